//! What goes on in this daemon right now, as `status` shows it: kept up to date by the events of the runs.
//!
//! Holds no decision: the queue and the main loop have those.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};

use crate::report::{Event, Stamped};
use crate::status::{Progress, RunState, WaitsFor};

/// The runs of this daemon. Cheap to clone.
#[derive(Clone, Default)]
pub struct Live {
    runs: Arc<Mutex<Vec<(u64, RunState)>>>,
}

impl Live {
    fn runs(&self) -> MutexGuard<'_, Vec<(u64, RunState)>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A run begins; its id is known with its first event.
    pub fn begin(&self, ticket: u64, name: String, why: String, since: DateTime<Utc>) {
        self.runs().push((ticket, RunState { refresh: name, why, since, ..RunState::default() }));
    }

    /// A run is over.
    pub fn end(&self, ticket: u64) {
        self.runs().retain(|(other, _)| *other != ticket);
    }

    /// What happened in it.
    pub fn hear(&self, ticket: u64, stamped: &Stamped) {
        let now = Utc::now();
        let mut runs = self.runs();
        let Some((_, run)) = runs.iter_mut().find(|(other, _)| *other == ticket) else { return };
        run.run = Some(stamped.run.clone());
        match &stamped.event {
            Event::StepStarted { step } => {
                run.step = Some(*step);
                run.step_since = Some(now);
                run.waits_for = None;
                run.progress = None;
            }
            Event::Progress { done, total, what } => {
                let begun = match &run.progress {
                    Some(before) if before.what == *what && before.done <= *done => (before.since, before.first),
                    _ => (now, *done),
                };
                run.progress = Some(Progress::of(*done, *total, what, begun, now));
            }
            Event::Waiting { host, holder } => {
                run.waits_for = Some(WaitsFor { host: host.clone(), holder: holder.clone() });
            }
            Event::StepFinished { .. } => run.waits_for = None,
            _ => {}
        }
    }

    /// All runs, as they are now.
    pub fn states(&self) -> Vec<RunState> {
        self.runs().iter().map(|(_, run)| run.clone()).collect()
    }

    /// The id of a run, once it has one.
    pub fn run_of(&self, ticket: u64) -> Option<String> {
        self.runs().iter().find(|(other, _)| *other == ticket).and_then(|(_, run)| run.run.clone())
    }
}
