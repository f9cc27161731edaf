//! The daemon: one loop that owns the schedules, the queue and the runs of this controller, and is asked over a socket.
//!
//! A schedule's timer, a signal, a client and a run that has ended all send a message; only the loop decides. Runs are threads of
//! their own: whatever one does, the loop goes on. Knows no terminal and no exit code.

mod alarm;
pub mod client;
mod control;
mod listeners;
mod live;
pub mod message;
mod queue;
mod runs;
mod schedules;
mod service;
mod timetable;
mod view;
mod wishes;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use self::alarm::Alarm;
use self::control::{Client, Control};
use self::listeners::{Listener, Listeners};
use self::live::Live;
use self::message::{Answer, Greeting};
use self::runs::{Ended, Running, Watched};
use self::service::Service;
use self::timetable::Timetable;
use crate::config::{Config, OnBusy};
use crate::lock::{self, Taken};
use crate::problem::{Explain, Kind, Outcome, Problem};
use crate::refresh;
use crate::report::{Ending, Event, Stamped, Step};
use crate::store::Store;

pub use self::queue::{Entry, Held, Origin, Work};

/// How often the loop looks around.
const BEAT: Duration = Duration::from_secs(1);

/// How long after a failed recovery it is tried again.
const RECOVER_AGAIN: Duration = Duration::from_secs(60);

/// The longest time between two tries: each is longer than the one before.
const RECOVER_AT_LAST: Duration = Duration::from_secs(15 * 60);

/// How long clients may take to read how their wishes ended, once the daemon is over.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// A run without any sign of life for this long, and for twice the silence that a host may keep, hangs in a way that nothing in it notices.
const STUCK: Duration = Duration::from_secs(300);

/// What the loop is told.
pub(crate) enum Message {
    /// It may be time.
    Ring,
    /// Somebody asks.
    Asked(Box<(Greeting, Client)>),
    /// A listener withdraws what it has asked for.
    Withdrawn(u64, u64),
    /// Something happened in a run.
    Happened(u64, Box<Stamped>),
    /// A run is over.
    Ended(u64, Box<Ended>),
    /// Recovery has been tried; false: something is left.
    Recovered(bool),
    /// Read the configuration again.
    Reload,
    /// End.
    Stop,
}

/// Reads the configuration.
pub type Load = Box<dyn Fn() -> Outcome<Config> + Send>;

/// One that waits, and who listens.
struct Waiting {
    entry: Entry,
    listeners: Listeners,
    told: String,
}

struct Daemon {
    load: Load,
    config: Arc<Config>,
    store: Store,
    main: mpsc::UnboundedSender<Message>,
    timetable: Timetable,
    alarm: Alarm,
    service: Service,
    live: Live,
    waiting: VecDeque<Waiting>,
    running: BTreeMap<u64, Running>,
    next_ticket: u64,
    recovering: bool,
    recover_at: Option<std::time::Instant>,
    recover_after: Duration,
    recovery: Watched,
    stopping: bool,
    since: DateTime<Utc>,
    reload_failed: Option<String>,
}

/// Runs until it is told to end, and every run with it is over and put back.
pub async fn serve(config: Config, load: Load) -> Outcome<()> {
    let store = Store::open(&config.daemon.state_dir)?;
    let _only = only_one(&config)?;
    let control = Control::bind(&config.daemon.socket)?;
    let (main, mut messages) = mpsc::unbounded_channel();
    for (kind, what) in [
        (SignalKind::terminate(), Signal::Stop),
        (SignalKind::interrupt(), Signal::Stop),
        (SignalKind::hangup(), Signal::Reload),
    ] {
        listen(kind, what, main.clone())?;
    }
    let (talking, mut talked) = mpsc::channel(1);
    let listening = tokio::spawn(control.serve(config.daemon.state_dir.clone(), main.clone(), talking));
    let now = Utc::now();
    let timetable = Timetable::new(config.refreshes.values(), &store.schedules()?, now);
    let mut daemon = Daemon {
        load,
        store,
        alarm: Alarm::new(main.clone()).await?,
        main,
        timetable,
        service: Service::new(),
        live: Live::default(),
        waiting: VecDeque::new(),
        running: BTreeMap::new(),
        next_ticket: 1,
        recovering: false,
        recover_at: None,
        recover_after: RECOVER_AGAIN,
        recovery: Watched::default(),
        stopping: false,
        since: now,
        reload_failed: None,
        config: Arc::new(config),
    };
    tracing::info!(version = env!("CARGO_PKG_VERSION"), pid = std::process::id(), "daemon started");
    daemon.remember();
    daemon.recover();
    daemon.service.ready();
    let mut beat = tokio::time::interval(BEAT);
    while !daemon.is_over() {
        tokio::select! {
            Some(message) = messages.recv() => daemon.hear(message).await,
            _ = beat.tick() => daemon.beat(),
        }
        daemon.step().await;
    }
    listening.abort();
    drop((daemon, messages));
    // everyone has been answered; the answers must also be read
    let _ = tokio::time::timeout(LAST_WORDS, talked.recv()).await;
    tracing::info!("daemon ended");
    Ok(())
}

/// Two daemons on one state folder would both follow its schedules.
fn only_one(config: &Config) -> Outcome<lock::Lock> {
    let file = client::lock_file(&config.daemon.state_dir);
    // a client may just be looking whether there is one
    if let Some(mut lock) = lock::take_within(&file, Duration::from_secs(5))? {
        lock.describe(&refresh::holder("daemon", "daemon"))?;
        return Ok(lock);
    }
    let by = match lock::try_take(&file, &refresh::holder("daemon", "daemon"))? {
        Taken::Ours(lock) => return Ok(lock),
        Taken::Theirs(holder) => holder.map_or_else(String::new, |h| format!(", process {} since {}", h.pid, h.since)),
    };
    Err(Problem::new(Kind::Locked, format!("a daemon runs already{by}")))
}

#[derive(Clone, Copy)]
enum Signal {
    Stop,
    Reload,
}

fn listen(kind: SignalKind, what: Signal, main: mpsc::UnboundedSender<Message>) -> Outcome<()> {
    let mut stream = signal(kind).explain(|| "cannot watch for signals")?;
    tokio::spawn(async move {
        while stream.recv().await.is_some() {
            let _ = main.send(match what {
                Signal::Stop => Message::Stop,
                Signal::Reload => Message::Reload,
            });
        }
    });
    Ok(())
}

impl Daemon {
    fn is_over(&self) -> bool {
        self.stopping && self.running.is_empty() && !self.recovering
    }

    async fn hear(&mut self, message: Message) {
        match message {
            Message::Ring => self.alarm.rang(),
            Message::Asked(asked) => self.asked(asked.0, asked.1),
            Message::Withdrawn(ticket, listener) => self.withdraw(ticket, listener),
            Message::Happened(ticket, stamped) => self.happened(ticket, *stamped),
            Message::Ended(ticket, ended) => self.ended(ticket, *ended),
            Message::Recovered(clean) => {
                self.recovering = false;
                self.recover_at = (!clean).then(|| std::time::Instant::now() + self.recover_after);
                self.recover_after = if clean { RECOVER_AGAIN } else { (self.recover_after * 2).min(RECOVER_AT_LAST) };
            }
            Message::Reload => {
                let _ = self.reload();
            }
            Message::Stop => self.stop(),
        }
    }

    /// After every message: whatever can begin begins, and the alarm stands.
    async fn step(&mut self) {
        if self.stopping {
            return;
        }
        let now = Utc::now();
        for (name, verdict) in self.timetable.due(now) {
            self.due(&name, verdict);
        }
        self.admit(now);
        if let Err(problem) = self.alarm.set(self.timetable.wake(now)).await {
            // the loop's own beat comes round all the same
            tracing::error!(%problem, "the scheduler fails");
        }
        let text = self.headline(now);
        self.service.status(text);
    }

    fn beat(&mut self) {
        if self.recover_at.is_some_and(|at| at <= std::time::Instant::now()) && self.running.is_empty() {
            self.recover();
        }
        let limit = STUCK + 2 * self.config.daemon.host_timeout;
        let mut stuck: Vec<String> = self.running.values_mut().filter_map(|run| run.stuck(limit)).collect();
        if self.recovering && self.recovery.is_stuck(limit) {
            stuck.push("recovery".to_owned());
        }
        match stuck.first() {
            // the service manager will end this process; agents and guards put back, and recovery after the restart
            Some(name) => {
                tracing::error!(refresh = name, "the run shows no sign of life: this daemon is no longer well")
            }
            None => {
                self.service.alive();
                if self.stopping {
                    self.service.needs_longer();
                }
            }
        }
    }

    // --- the queue ---------------------------------------------------------------------------------------------------

    /// Puts work in the queue; one that waits already is joined.
    fn enqueue(&mut self, work: Work, origin: Origin, wish: Wish, listener: Option<Listener>) -> Outcome<u64> {
        let (hosts, on_busy, patience) = match &work {
            Work::Refresh(name) => {
                let refresh = self.config.refresh(name).ok_or_else(|| {
                    Problem::new(Kind::Usage, format!("the daemon's configuration has no refresh {name:?}"))
                        .hint("After a change of the configuration: systemctl reload mysql-refreshd.")
                })?;
                (Entry::hosts_of(refresh), refresh.policy.on_busy, refresh.policy.lock_timeout)
            }
            Work::Rollback(host) => {
                if self.config.host(host).is_none() {
                    return Err(Problem::new(Kind::Usage, format!("the daemon's configuration has no host {host}"))
                        .hint("After a change of the configuration: systemctl reload mysql-refreshd."));
                }
                ([host.clone()].into(), OnBusy::Wait, Duration::from_secs(2 * 3600))
            }
        };
        let on_busy = if wish.no_wait { OnBusy::Fail } else { on_busy };
        if let Some(same) = self.waiting.iter_mut().find(|waiting| waiting.entry.work == work)
            && !wish.no_wait
        {
            same.listeners.join(listener);
            same.told.clear();
            if origin.leads_on() && !same.entry.origin.leads_on() {
                // from here on it is wanted by itself, with its own patience
                same.entry =
                    Entry { origin, on_busy, patience, no_wait: false, since: Utc::now(), ..same.entry.clone() };
            }
            return Ok(same.entry.ticket);
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        tracing::info!(work = %work, origin = %origin, "asked for");
        let (no_wait, since) = (wish.no_wait, Utc::now());
        let entry = Entry { ticket, work, origin, hosts, on_busy, patience, no_wait, held: None, since };
        let mut listeners = Listeners::default();
        listeners.join(listener);
        self.waiting.push_back(Waiting { entry, listeners, told: String::new() });
        Ok(ticket)
    }

    fn judge(&self, now: DateTime<Utc>) -> Vec<(u64, queue::Verdict)> {
        let held = |waiting: &Waiting| Entry { held: self.held(waiting, now), ..waiting.entry.clone() };
        let waiting: Vec<Entry> = self.waiting.iter().map(held).collect();
        let running: Vec<&Entry> = self.running.values().map(|run| &run.entry).collect();
        let state = queue::Now { at: now, max_runs: self.config.daemon.max_runs, recovering: self.recovering };
        queue::judge(&waiting, &running, state).into_iter().map(|(entry, verdict)| (entry.ticket, verdict)).collect()
    }

    fn admit(&mut self, now: DateTime<Utc>) {
        for (ticket, verdict) in self.judge(now) {
            let Some(at) = self.waiting.iter().position(|waiting| waiting.entry.ticket == ticket) else { continue };
            match verdict {
                queue::Verdict::Wait(why) => {
                    let waiting = &mut self.waiting[at];
                    if waiting.told != why {
                        tracing::info!(work = %waiting.entry.work, why, "waits");
                        waiting.listeners.tell(&Answer::Note(format!("waiting for {why}")));
                        waiting.told = why;
                    }
                }
                queue::Verdict::Begin => {
                    if let Some(waiting) = self.waiting.remove(at) {
                        self.begin(waiting);
                    }
                }
                queue::Verdict::GiveUp(why) => {
                    if let Some(waiting) = self.waiting.remove(at) {
                        let skip = waiting.entry.on_busy == OnBusy::Skip;
                        let ending = if skip { Ending::Skipped } else { Ending::Locked };
                        let problem = Problem::new(Kind::Locked, format!("another run is in the way: {why}"));
                        self.give_up(waiting, ending, problem);
                    }
                }
                queue::Verdict::LeaveOut(why) => {
                    if let Some(waiting) = self.waiting.remove(at) {
                        self.give_up(waiting, Ending::Refused, Problem::refused(why));
                    }
                }
            }
        }
    }

    /// One that nobody has asked for and that comes into a blackout waits for its end, or is left out.
    fn held(&self, waiting: &Waiting, now: DateTime<Utc>) -> Option<Held> {
        let Work::Refresh(name) = &waiting.entry.work else { return None };
        let refresh = self.config.refresh(name).filter(|_| waiting.entry.origin.leads_on())?;
        let end = refresh.blackout.until(now).filter(|_| !waiting.listeners.despite_blackout())?;
        let late = (end - waiting.entry.since).to_std().unwrap_or_default();
        let at = end.format("%Y-%m-%d %H:%M UTC");
        Some(match refresh.catch_up.allows(late) {
            true => Held::Until(format!("its blackout to end at {at}")),
            false => Held::For(format!("it came to wait into its blackout, which lasts until {at}")),
        })
    }

    fn begin(&mut self, waiting: Waiting) {
        let Waiting { entry, listeners, .. } = waiting;
        let (no_wait, despite_blackout) = (entry.no_wait, listeners.despite_blackout());
        // it is out of the queue: on disk it is dealt with before it begins, so that a crash never doubles it
        if let (Work::Refresh(name), Origin::Schedule(_)) = (&entry.work, &entry.origin) {
            self.keep(name, |_| ());
        }
        self.live.begin(entry.ticket, entry.work.to_string(), entry.origin.to_string(), Utc::now());
        let wish = Wish { no_wait, despite_blackout };
        let run = runs::begin(entry, wish, listeners, self.config.clone(), self.store.clone(), &self.live, &self.main);
        self.running.insert(run.entry.ticket, run);
    }

    /// It does not run; that is on record like any other end.
    fn give_up(&self, mut waiting: Waiting, ending: Ending, problem: Problem) {
        if let (Work::Refresh(name), Origin::Schedule(_)) = (&waiting.entry.work, &waiting.entry.origin) {
            self.keep(name, |_| ());
        }
        let answer = self.record(&waiting.entry, ending, problem);
        waiting.listeners.tell(&answer);
    }

    fn record(&self, entry: &Entry, ending: Ending, problem: Problem) -> Answer {
        let sinks = vec![Arc::new(crate::logging::log) as crate::report::Sink];
        match refresh::left_out(&self.store, &entry.work.to_string(), ending, problem.clone(), sinks) {
            Ok(summary) => Answer::Finished(Box::new(summary)),
            Err(other) => {
                tracing::error!(problem = %other, "cannot record a run that was left out");
                Answer::Failed(problem)
            }
        }
    }

    /// A listener no longer wants what it has asked for. What others want, or a schedule, goes on without it.
    fn withdraw(&mut self, ticket: u64, id: u64) {
        let alone = || Answer::Failed(Problem::cancelled());
        if let Some(at) = self.waiting.iter().position(|waiting| waiting.entry.ticket == ticket) {
            let waiting = &mut self.waiting[at];
            waiting.listeners.leave(id, alone());
            if !waiting.entry.origin.leads_on() && waiting.listeners.is_empty() {
                tracing::info!(work = %waiting.entry.work, "withdrawn from the queue");
                self.waiting.remove(at);
            }
        } else if let Some(run) = self.running.get_mut(&ticket) {
            if run.entry.origin.leads_on() || run.listeners.others_than(id) {
                let goes_on = Problem::new(Kind::Human, "the run goes on without you: it is not yours alone");
                let hint = "`mysql-refreshd cancel RUN` cancels it for everyone.";
                run.listeners.leave(id, Answer::Failed(goes_on.hint(hint)));
            } else {
                tracing::info!(work = %run.entry.work, "cancelled by who asked for it");
                run.cancel.cancel();
            }
        }
    }

    // --- runs --------------------------------------------------------------------------------------------------------

    fn happened(&mut self, ticket: u64, stamped: Stamped) {
        let Some(run) = self.running.get_mut(&ticket) else { return };
        match &stamped.event {
            Event::RunStarted { source, .. } => run.source = source.clone(),
            Event::StepStarted { step: Step::Stop } => {
                run.inhibitor =
                    Some(service::Inhibitor::take(format!("the source {} is down for a refresh", run.source)));
            }
            Event::StepFinished { step: Step::Start, ok: true, .. } => run.inhibitor = None,
            _ => {}
        }
        run.listeners.tell(&Answer::Event(Box::new(stamped)));
    }

    fn ended(&mut self, ticket: u64, ended: Ended) {
        self.live.end(ticket);
        let Some(mut run) = self.running.remove(&ticket) else { return };
        // not even its end could be written down
        if matches!(&ended, Ended::Problem(problem) if problem.kind == Kind::Human) {
            self.recover_at = Some(std::time::Instant::now() + RECOVER_AGAIN);
        }
        let answer = match ended {
            Ended::Summary(summary) => {
                if summary.ending == Ending::Done && run.entry.origin.leads_on() {
                    self.lead_on(&run.entry.work);
                }
                if !summary.not_put_back.is_empty() {
                    self.recover_at = Some(std::time::Instant::now() + RECOVER_AGAIN);
                }
                Answer::Finished(summary)
            }
            // no run was begun; what nobody has asked for, or nobody hears of, is in the history
            Ended::Problem(problem) if run.entry.origin.leads_on() || run.listeners.is_deaf() => {
                let ending = refused(&problem);
                self.record(&run.entry, ending, problem)
            }
            Ended::Problem(problem) => Answer::Failed(problem),
            Ended::Panic => {
                tracing::error!(work = %run.entry.work, "the run ended by a fault of this program; recovery begins");
                self.recover_at = Some(std::time::Instant::now());
                Answer::Failed(Problem::failed(
                    "the run ended by a fault of this program, see the log; it is being put back",
                ))
            }
        };
        run.listeners.tell(&answer);
    }

    /// What follows a refresh that has ended well.
    fn lead_on(&mut self, work: &Work) {
        let Work::Refresh(first) = work else { return };
        let config = self.config.clone();
        let paused = match self.store.schedules() {
            Ok(rows) => rows,
            Err(problem) => {
                return tracing::error!(%problem, after = first, "nothing follows: who is paused cannot be told");
            }
        };
        let follows = |refresh: &&crate::config::Refresh| refresh.enabled && refresh.after.as_ref() == Some(first);
        for refresh in config.refreshes.values().filter(follows) {
            if paused.get(&refresh.name).is_some_and(|row| row.paused.is_some()) {
                tracing::info!(refresh = refresh.name, after = first, "paused: it does not follow");
                continue;
            }
            let (wish, work) = (Wish::default(), Work::Refresh(refresh.name.clone()));
            if let Err(problem) = self.enqueue(work, Origin::After(first.clone()), wish, None) {
                tracing::error!(refresh = refresh.name, %problem, "cannot begin");
            }
        }
    }

    fn recover(&mut self) {
        self.recovering = true;
        self.recover_at = None;
        self.recovery = Watched::default();
        runs::recover(self.config.clone(), self.store.clone(), self.recovery.pulse.clone(), self.main.clone());
    }

    fn stop(&mut self) {
        if self.stopping {
            return;
        }
        tracing::info!(runs = self.running.len(), "stopping: runs under way are being put back");
        self.stopping = true;
        self.service.stopping();
        self.service.needs_longer();
        self.service.status("stopping: putting things back".to_owned());
        // what a schedule has put there is on disk as not dealt with: the next daemon finds it
        for mut waiting in std::mem::take(&mut self.waiting) {
            if waiting.entry.origin.leads_on() {
                tracing::warn!(work = %waiting.entry.work, origin = %waiting.entry.origin, "it waited, and is not begun");
                if matches!(waiting.entry.origin, Origin::After(_)) {
                    let problem = Problem::cancelled().cause("the daemon ended before it could begin");
                    self.record(&waiting.entry, Ending::Cancelled, problem);
                }
            }
            waiting.listeners.tell(&Answer::Failed(Problem::cancelled().cause("the daemon is about to end")));
        }
        self.running.values().for_each(|run| run.cancel.cancel());
    }
}

/// How something was asked for.
#[derive(Debug, Clone, Copy, Default)]
struct Wish {
    no_wait: bool,
    despite_blackout: bool,
}

/// The ending of a run that never began.
fn refused(problem: &Problem) -> Ending {
    match problem.kind {
        Kind::Usage => Ending::Usage,
        Kind::Refused => Ending::Refused,
        Kind::Locked => Ending::Locked,
        Kind::Cancelled => Ending::Cancelled,
        Kind::Human => Ending::Human,
        Kind::Failed | Kind::Lost => Ending::Failed,
    }
}

#[cfg(test)]
mod fuzz;
