//! What the daemon shows of itself: the status, and one line for the service manager. Changes nothing.

use chrono::{DateTime, Utc};

use super::{Daemon, Waiting};
use crate::status::{self, DaemonState, QueueState, View};

impl Daemon {
    pub(super) fn view(&self) -> View {
        let now = Utc::now();
        let next = |name: &String| Some((name.clone(), self.timetable.next(name, now)?));
        let waits = |waiting: &Waiting| QueueState {
            refresh: waiting.entry.work.to_string(),
            why: waiting.entry.origin.to_string(),
            since: waiting.entry.since,
            waits_for: waiting.told.clone(),
        };
        View {
            daemon: DaemonState {
                pid: std::process::id(),
                since: self.since,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                reload_failed: self.reload_failed.clone(),
                recovering: self.recovering,
                stopping: self.stopping,
            },
            next: self.timetable.names().filter_map(next).collect(),
            running: self.live.states(),
            queue: self.waiting.iter().map(waits).collect(),
        }
    }

    /// For `systemctl status`.
    pub(super) fn headline(&self, now: DateTime<Utc>) -> String {
        let runs = self.live.states();
        let line = |run: &status::RunState| match run.step {
            Some(step) => format!("{}: {step}", run.refresh),
            None => run.refresh.clone(),
        };
        let mut parts: Vec<String> = runs.iter().map(line).collect();
        if self.recovering {
            parts.insert(0, "putting interrupted runs back".to_owned());
        }
        if !self.waiting.is_empty() {
            parts.push(format!("{} waiting", self.waiting.len()));
        }
        if parts.is_empty() {
            let next = self.timetable.names().filter_map(|name| Some((self.timetable.next(name, now)?, name))).min();
            parts.push(match next {
                Some((at, name)) => {
                    format!("idle; {name} at {}", at.with_timezone(&chrono::Local).format("%Y-%m-%d %H:%M:%S %:z"))
                }
                None => "idle; nothing is scheduled".to_owned(),
            });
        }
        if self.reload_failed.is_some() {
            parts.push("the changed configuration has errors".to_owned());
        }
        parts.join("; ")
    }
}
