//! A run of the daemon: a thread of its own, with everything that watches over it.
//!
//! Begins and waits; what a run means for others is the main loop's matter.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::listeners::Listeners;
use super::live::Live;
use super::queue::{Entry, Work};
use super::service::Inhibitor;
use super::{Message, Wish};
use crate::config::Config;
use crate::host::Typed;
use crate::logging;
use crate::problem::{Kind, Outcome, Problem};
use crate::refresh::{self, Job, recover, rollback};
use crate::report::{Event, Pulse, Sink, Stamped, Summary};
use crate::run::Cancel;
use crate::store::Store;

/// A run under way.
pub struct Running {
    /// What it is.
    pub entry: Entry,
    /// The wish to stop.
    pub cancel: Cancel,
    /// Who listens.
    pub listeners: Listeners,
    /// Its source, once it is told.
    pub source: String,
    /// Held while the source is down.
    pub inhibitor: Option<Inhibitor>,
    watched: Watched,
}

/// Something that gives signs of life.
pub struct Watched {
    /// They.
    pub pulse: Pulse,
    seen: (u64, Instant),
}

impl Default for Watched {
    fn default() -> Self {
        Self { pulse: Pulse::default(), seen: (0, Instant::now()) }
    }
}

impl Watched {
    /// Whether there was none for so long.
    pub fn is_stuck(&mut self, limit: Duration) -> bool {
        let count = self.pulse.count();
        if count != self.seen.0 {
            self.seen = (count, Instant::now());
        }
        self.seen.1.elapsed() > limit
    }
}

/// How a run ended.
pub enum Ended {
    /// By its pipeline.
    Summary(Box<Summary>),
    /// No run was begun.
    Problem(Problem),
    /// By a fault of this program.
    Panic,
}

impl Running {
    /// Its name, if nothing was heard of it for so long.
    pub fn stuck(&mut self, limit: Duration) -> Option<String> {
        self.watched.is_stuck(limit).then(|| self.entry.work.to_string())
    }
}

/// Begins a run.
pub(super) fn begin(
    entry: Entry,
    wish: Wish,
    listeners: Listeners,
    config: Arc<Config>,
    store: Store,
    live: &Live,
    main: &mpsc::UnboundedSender<Message>,
) -> Running {
    let (cancel, watched, ticket) = (Cancel::default(), Watched::default(), entry.ticket);
    let (heard, told) = (live.clone(), main.clone());
    let watch: Sink = Arc::new(move |stamped: &Stamped| {
        heard.hear(ticket, stamped);
        let _ = told.send(Message::Happened(ticket, Box::new(stamped.clone())));
    });
    let sinks: Vec<Sink> = vec![Arc::new(logging::log), watch];
    let work = entry.work.clone();
    let (stop, beats, main) = (cancel.clone(), watched.pulse.clone(), main.clone());
    let runtime = tokio::runtime::Handle::current();
    std::thread::spawn(move || {
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            runtime.block_on(async {
                let job = Job {
                    config: &config,
                    store,
                    sinks,
                    cancel: stop,
                    no_wait: wish.no_wait,
                    despite_blackout: wish.despite_blackout,
                    typed: Typed::default(),
                    pulse: beats,
                };
                do_it(job, &config, &work).await
            })
        }));
        let ended = match ended {
            Ok(Ok(summary)) => Ended::Summary(Box::new(summary)),
            Ok(Err(problem)) => Ended::Problem(problem),
            Err(_) => Ended::Panic,
        };
        let _ = main.send(Message::Ended(ticket, Box::new(ended)));
    });
    Running { entry, cancel, listeners, source: String::new(), inhibitor: None, watched }
}

async fn do_it(job: Job<'_>, config: &Config, work: &Work) -> Outcome<Summary> {
    match work {
        Work::Refresh(name) => {
            let gone = || Problem::new(Kind::Usage, format!("there is no refresh {name:?}"));
            refresh::run(job, config.refresh(name).ok_or_else(gone)?).await
        }
        Work::Rollback(host) => rollback::run(job, host).await,
    }
}

/// Puts back what interrupted runs have left, and says whether something is still left.
pub(super) fn recover(config: Arc<Config>, store: Store, pulse: Pulse, main: mpsc::UnboundedSender<Message>) {
    let runtime = tokio::runtime::Handle::current();
    std::thread::spawn(move || {
        let sinks: Vec<Sink> = vec![Arc::new(|stamped: &Stamped| {
            if !matches!(stamped.event, Event::Progress { .. }) {
                logging::log(stamped);
            }
        })];
        let all = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            runtime.block_on(recover::all(&config.daemon, &store, sinks, &Typed::default(), &pulse))
        }));
        let clean = match all {
            Ok(Ok(runs)) => runs.iter().all(|run| run.left.is_empty()),
            Ok(Err(problem)) => {
                tracing::error!(%problem, "cannot recover");
                false
            }
            Err(_) => false,
        };
        let _ = main.send(Message::Recovered(clean));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_gives_no_sign_of_life_is_stuck() {
        let limit = Duration::from_millis(60);
        let mut watched = Watched::default();
        for _ in 0..4 {
            std::thread::sleep(Duration::from_millis(30));
            watched.pulse.beat();
            assert!(!watched.is_stuck(limit));
        }
        std::thread::sleep(Duration::from_millis(80));
        assert!(watched.is_stuck(limit));
        watched.pulse.beat();
        assert!(!watched.is_stuck(limit));
    }
}
