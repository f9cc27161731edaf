//! One execution: its id, its steps, and its undos as data in the journal. Knows no MySQL and no host.
//!
//! `arm` writes the undo to disk before the act; `fire` is the same code on the good path and on the way back, so that
//! "start the source" exists once. `unwind` fires what is left, newest first; one failure does not stop the rest.

use std::future::Future;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::failpoint;
use crate::lock::Lock;
use crate::problem::{Explain, Kind, Outcome, Problem};
use crate::report::{DestinationResult, Event, Reporter, Step, StepTime};
use crate::store::Store;
use crate::wire::message::Holder;

/// The operator's wish to stop; cheap to clone.
#[derive(Clone)]
pub struct Cancel {
    tell: Arc<watch::Sender<bool>>,
}

impl Default for Cancel {
    fn default() -> Self {
        Self { tell: Arc::new(watch::channel(false).0) }
    }
}

impl Cancel {
    /// Wishes it.
    pub fn cancel(&self) {
        self.tell.send_replace(true);
    }
    /// Whether it was wished.
    pub fn is_cancelled(&self) -> bool {
        *self.tell.borrow()
    }
    /// Resolves once it is wished.
    pub async fn cancelled(&self) {
        let mut heard = self.tell.subscribe();
        let _ = heard.wait_for(|wished| *wished).await;
    }
}

/// Something that can put back: knows the hosts.
pub trait Undoer<U> {
    /// Puts back; idempotent, tolerates an act that was done half or not at all.
    fn undo(&mut self, undo: &U) -> impl Future<Output = Outcome<()>>;
    /// In words, for log and report.
    fn describe(&self, undo: &U) -> String;
    /// The machine on which it happens.
    fn place(&self, undo: &U) -> String;
}

/// Pauses before another try where something failed that may be over in a moment: growing, and spread by a half, so that many
/// that failed at once do not come back at once.
pub fn pauses(first: Duration) -> impl Iterator<Item = Duration> {
    (0..RETRIES).map(move |n| first * 3u32.pow(n)).map(|base| base.mul_f64(0.75 + fastrand::f64() / 2.0))
}

/// How often something is tried again.
pub const RETRIES: u32 = 2;

/// An undo that is in the journal.
#[derive(Debug)]
#[must_use = "an armed undo is fired or settled"]
pub struct Armed<U> {
    id: i64,
    undo: U,
}

/// Undoes. An agent that is lost on the way gets a successor at once; a machine that cannot be reached gets a few moments.
async fn undo_surely<U>(
    undoer: &mut impl Undoer<U>,
    undo: &U,
    patient: bool,
    mut say: impl FnMut(&Problem, Duration),
) -> Outcome<()> {
    let mut result = undoer.undo(undo).await;
    if matches!(&result, Err(problem) if problem.kind == Kind::Lost) {
        result = undoer.undo(undo).await;
    }
    for pause in pauses(FIRST_PAUSE) {
        match &result {
            Err(problem) if problem.passing && patient => say(problem, pause),
            _ => break,
        }
        tokio::time::sleep(pause).await;
        result = undoer.undo(undo).await;
    }
    result
}

/// Before the first of these tries.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// One run.
pub struct Run<U> {
    /// Its id: sorts by time.
    pub id: String,
    /// Where its events go.
    pub report: Reporter,
    /// The wish to stop.
    pub cancel: Cancel,
    store: Store,
    holder: Holder,
    locks: Mutex<Vec<Lock>>,
    times: Mutex<Vec<StepTime>>,
    // of a run that was taken up again, someone else holds it
    alive: Mutex<Option<Lock>>,
    undos: PhantomData<fn(U)>,
}

/// A run id: sortable by time, readable, unique.
pub fn new_id() -> String {
    format!("{}-{:04x}", chrono::Utc::now().format("%Y%m%dT%H%M%SZ"), fastrand::u16(..))
}

impl<U: Serialize + DeserializeOwned + Clone> Run<U> {
    /// Begins a run: it is in the journal, with the hosts' descriptions, when this returns.
    pub fn begin(store: Store, holder: Holder, hosts: &str, report: Reporter, cancel: Cancel) -> Outcome<Self> {
        let alive = store.begin(&holder, hosts)?;
        Ok(Self::with(store, holder, report, cancel, Some(alive)))
    }

    /// Replaces the hosts' descriptions in the journal.
    pub fn describe(&self, hosts: &str) -> Outcome<()> {
        self.store.describe(&self.id, hosts)
    }

    /// Takes up an interrupted run, to put back what it left.
    pub fn resume(store: Store, holder: Holder, report: Reporter) -> Self {
        Self::with(store, holder, report, Cancel::default(), None)
    }

    fn with(store: Store, holder: Holder, report: Reporter, cancel: Cancel, alive: Option<Lock>) -> Self {
        Self {
            id: holder.run.clone(),
            report,
            cancel,
            store,
            holder,
            locks: Mutex::default(),
            times: Mutex::default(),
            alive: Mutex::new(alive),
            undos: PhantomData,
        }
    }

    /// Who we are, for locks.
    pub fn holder(&self) -> &Holder {
        &self.holder
    }

    /// Keeps a lock until the run ends; it will say which step the run is in.
    pub fn keep_lock(&self, lock: Lock) {
        self.locks.lock().unwrap_or_else(PoisonError::into_inner).push(lock);
    }

    /// The steps so far.
    pub fn times(&self) -> Vec<StepTime> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs a step. Not begun when the run is cancelled.
    pub async fn step<T>(&self, step: Step, work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
        if self.cancel.is_cancelled() {
            return Err(Problem::cancelled());
        }
        self.must(step, work).await
    }

    /// Runs a step that a cancelled run must not leave out: bringing the source back.
    pub async fn must<T>(&self, step: Step, work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
        self.say_where(step.name());
        self.report.tell(Event::StepStarted { step });
        let begun = Instant::now();
        let result = async {
            failpoint::reach(&format!("{step}:before")).await?;
            let value = work.await?;
            failpoint::reach(&format!("{step}:after")).await?;
            Ok(value)
        }
        .await;
        let ms = begun.elapsed().as_millis() as u64;
        self.times.lock().unwrap_or_else(PoisonError::into_inner).push(StepTime { step, ms });
        self.report.tell(Event::StepFinished { step, ms, ok: result.is_ok() });
        result
    }

    fn say_where(&self, step: &str) {
        let holder = Holder { step: step.into(), ..self.holder.clone() };
        let mut alive = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        for lock in self.locks.lock().unwrap_or_else(PoisonError::into_inner).iter_mut().chain(alive.iter_mut()) {
            // for whoever waits; not worth failing a run
            let _ = lock.describe(&holder);
        }
    }

    /// Journals an undo, before the act it undoes.
    pub fn arm(&self, undo: U) -> Outcome<Armed<U>> {
        let text = serde_json::to_string(&undo).explain(|| "cannot write the journal")?;
        let id = self.store.arm(&self.id, &text)?;
        Ok(Armed { id, undo })
    }

    /// Fires an undo on the good path. It stays armed if that fails.
    pub async fn fire(&self, armed: Armed<U>, undoer: &mut impl Undoer<U>) -> Outcome<()> {
        let place = undoer.place(&armed.undo);
        undo_surely(undoer, &armed.undo, true, |problem, pause| self.again(&place, problem, pause))
            .await
            .inspect_err(|problem| self.store.failed(armed.id, &problem.to_string()))?;
        self.store.settle(armed.id)
    }

    fn again(&self, place: &str, problem: &Problem, pause: Duration) {
        self.report.warn(place, format!("{problem}; trying again in {:.1} s", pause.as_secs_f64()));
    }

    /// Lets go of all locks, for another begin.
    pub fn release_locks(&self) {
        self.locks.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The act is final: its undo is no longer wanted.
    pub fn settle(&self, armed: Armed<U>) -> Outcome<()> {
        self.store.settle(armed.id)
    }

    /// A destination serves its image for good. To be told before its undos are settled, or a recovery could not know.
    pub fn refreshed(&self, result: DestinationResult) -> Outcome<()> {
        self.store.refreshed(&self.id, &self.holder.refresh, result)
    }

    /// Fires everything that is armed and that `which` selects, newest first. Returns what could not be put back.
    pub async fn unwind(&self, undoer: &mut impl Undoer<U>, which: impl Fn(&U) -> bool) -> Vec<Problem> {
        let mut left = Vec::new();
        // a machine that stayed away through all tries of one undo does not hold up the others' with its own
        let mut away: Vec<String> = Vec::new();
        let armed = match self.store.armed(&self.id) {
            Ok(armed) => armed,
            Err(problem) => return vec![problem],
        };
        for row in armed {
            let undo: U = match serde_json::from_str(&row.undo) {
                Ok(undo) => undo,
                Err(error) => {
                    left.push(
                        Problem::failed(format!("an undo in the journal is not understood: {}", row.undo))
                            .because(error),
                    );
                    continue;
                }
            };
            if !which(&undo) {
                continue;
            }
            let what = undoer.describe(&undo);
            self.say_where(&format!("putting back: {what}"));
            let place = undoer.place(&undo);
            let patient = !away.contains(&place);
            let result = undo_surely(undoer, &undo, patient, |problem, pause| self.again(&place, problem, pause)).await;
            let result = result.and_then(|()| self.store.settle(row.id));
            if let Err(problem) = &result {
                if problem.passing {
                    away.push(place);
                }
                self.store.failed(row.id, &problem.to_string());
                left.push(problem.clone().during(format!("not put back: {what}")));
            }
            self.report.tell(Event::Undo { what, problem: result.err() });
        }
        left
    }
}
