//! What a person asks in the morning: each refresh, when it ran and runs next, how old the data is, what goes on and what waits,
//! and what needs a human.
//!
//! Put together from the configuration, the history and, where there is one, the daemon's own view. Changes nothing.

mod nagios;

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

pub use nagios::{Limits, Verdict, judge};

use crate::config::{Config, Refresh};
use crate::problem::Outcome;
use crate::report::{Ending, Serves, Step};
use crate::store::{Filter, Missed, Paused, RunRow, Store};
use crate::wire::message::Holder;

/// How far back the last good run of a destination is looked for, in runs of its refresh.
const DEPTH: u32 = 500;

/// Everything.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// When this was true.
    pub at: DateTime<Utc>,
    /// The daemon; None: none runs.
    pub daemon: Option<DaemonState>,
    /// Every refresh, by name.
    pub refreshes: Vec<RefreshState>,
    /// What runs now.
    pub running: Vec<RunState>,
    /// What waits to begin, in its order.
    pub queue: Vec<QueueState>,
    /// What needs a human.
    pub alarms: Vec<Alarm>,
}

/// The daemon.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DaemonState {
    /// Its process.
    pub pid: u32,
    /// Since when.
    pub since: DateTime<Utc>,
    /// Its version.
    pub version: String,
    /// Why the configuration of the last reload was not taken.
    pub reload_failed: Option<String>,
    /// It is putting interrupted runs back.
    pub recovering: bool,
    /// It is about to end.
    pub stopping: bool,
}

/// One refresh.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RefreshState {
    /// Its name.
    pub refresh: String,
    /// Its source.
    pub source: String,
    /// Its schedule and zone, or which refresh it follows.
    pub when: Option<String>,
    /// Whether that is followed.
    pub enabled: bool,
    /// Who wished that it not be.
    pub paused: Option<Paused>,
    /// When it runs next by itself; only a running daemon does that.
    pub next: Option<DateTime<Utc>>,
    /// The latest occurrence that was left out.
    pub missed: Option<Missed>,
    /// Its last run that is over.
    pub last: Option<LastRun>,
    /// Its destinations.
    pub destinations: Vec<DestinationState>,
}

/// A run that is over.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LastRun {
    /// Its id.
    pub run: String,
    /// When it began.
    pub started: String,
    /// How it ended; None: it was interrupted.
    pub ending: Option<Ending>,
    /// Why, in a sentence.
    pub reason: Option<String>,
    /// How long the source was down, in milliseconds.
    pub outage_ms: Option<u64>,
    /// How long it took, in milliseconds.
    pub total_ms: Option<u64>,
}

/// One destination.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DestinationState {
    /// The host.
    pub host: String,
    /// What it serves, as far as the history knows.
    pub serves: Option<Serves>,
    /// How old that is, in seconds.
    pub age_s: Option<u64>,
}

/// A run under way.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RunState {
    /// Its id, once it has one.
    pub run: Option<String>,
    /// The refresh, or which rollback.
    pub refresh: String,
    /// Why it runs.
    pub why: String,
    /// Since when.
    pub since: DateTime<Utc>,
    /// Where it is.
    pub step: Option<Step>,
    /// Since when it is there.
    pub step_since: Option<DateTime<Utc>>,
    /// How far the step is.
    pub progress: Option<Progress>,
    /// The lock it waits for.
    pub waits_for: Option<WaitsFor>,
}

/// How far a step is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Progress {
    /// Done.
    pub done: u64,
    /// In all; 0: unknown.
    pub total: u64,
    /// Of what; `bytes` are bytes.
    pub what: String,
    /// A second, on average since it began.
    pub per_s: u64,
    /// Seconds left, at that rate.
    pub left_s: Option<u64>,
    /// Since when that is counted.
    pub since: DateTime<Utc>,
    /// Where it was then.
    pub first: u64,
}

impl Progress {
    /// With rate and time left; `begun`: when it was first seen, and where it was.
    pub fn of(done: u64, total: u64, what: &str, begun: (DateTime<Utc>, u64), now: DateTime<Utc>) -> Self {
        let (since, first) = begun;
        let seconds = (now - since).num_milliseconds().max(1) as f64 / 1000.0;
        let per_s = (done.saturating_sub(first) as f64 / seconds) as u64;
        let left_s = (per_s > 0 && total >= done).then(|| (total - done) / per_s);
        Self { done, total, what: what.to_owned(), per_s, left_s, since, first }
    }
}

/// A lock that a run waits for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WaitsFor {
    /// The host.
    pub host: String,
    /// Who has it, where that is known.
    pub holder: Option<Holder>,
}

/// One that waits to begin.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct QueueState {
    /// The refresh, or which rollback.
    pub refresh: String,
    /// Why it is to run.
    pub why: String,
    /// Since when it waits.
    pub since: DateTime<Utc>,
    /// For what.
    pub waits_for: String,
}

/// A run that was not put back.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Alarm {
    /// The run.
    pub run: String,
    /// Its refresh.
    pub refresh: String,
    /// Nobody has tried to put it back yet: a daemon that starts does.
    pub interrupted: bool,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub hints: Vec<String>,
}

/// What only the daemon knows.
pub struct View {
    /// Itself.
    pub daemon: DaemonState,
    /// When refreshes run next.
    pub next: BTreeMap<String, DateTime<Utc>>,
    /// What runs.
    pub running: Vec<RunState>,
    /// What waits.
    pub queue: Vec<QueueState>,
}

/// The status now. Without a daemon's view the runs under way are those that the history knows.
pub fn build(config: &Config, store: Option<&Store>, view: Option<View>, now: DateTime<Utc>) -> Outcome<Status> {
    let mut refreshes = Vec::new();
    let rows = store.map(Store::schedules).transpose()?.unwrap_or_default();
    for refresh in config.refreshes.values() {
        let kept = rows.get(&refresh.name).cloned().unwrap_or_default();
        let next = view.as_ref().and_then(|view| view.next.get(&refresh.name).copied());
        let of = Filter { refresh: Some(refresh.name.clone()), limit: DEPTH, ..Filter::default() };
        let runs = store.map(|store| store.history(&of)).transpose()?.unwrap_or_default();
        refreshes.push(RefreshState {
            refresh: refresh.name.clone(),
            source: refresh.source.to_string(),
            when: when(refresh),
            enabled: refresh.enabled,
            paused: kept.paused,
            next,
            missed: kept.missed,
            last: runs.iter().find(|row| row.finished.is_some() || row.interrupted).map(last),
            destinations: destinations(refresh, store, now)?,
        });
    }
    let alarms = store.map(alarms).transpose()?.unwrap_or_default();
    let (daemon, running, queue) = match view {
        Some(view) => {
            let mut running = view.running;
            // what other processes do on this state, by hand or by a timer
            let elsewhere = store.map(under_way).transpose()?.unwrap_or_default();
            let known = |run: &RunState| running.iter().any(|mine| mine.run == run.run);
            let elsewhere: Vec<RunState> = elsewhere.into_iter().filter(|run| !known(run)).collect();
            running.extend(elsewhere);
            (Some(view.daemon), running, view.queue)
        }
        None => (None, store.map(under_way).transpose()?.unwrap_or_default(), Vec::new()),
    };
    Ok(Status { at: now, daemon, refreshes, running, queue, alarms })
}

fn when(refresh: &Refresh) -> Option<String> {
    match (&refresh.schedule, &refresh.after) {
        (Some(schedule), _) => Some(schedule.text()),
        (None, Some(first)) => Some(format!("after {first}")),
        (None, None) => None,
    }
}

fn last(row: &RunRow) -> LastRun {
    let summary = row.summary.as_ref();
    LastRun {
        run: row.run.clone(),
        started: row.started.clone(),
        ending: summary.map(|s| s.ending),
        reason: match summary {
            Some(summary) => summary.problem.as_ref().map(ToString::to_string),
            None => Some("it was interrupted; `mysql-refreshd recover` puts back what it left".to_owned()),
        },
        outage_ms: summary.and_then(|s| s.outage_ms),
        total_ms: summary.map(|s| s.total_ms),
    }
}

/// Each destination by the latest run, of any refresh or rollback, that changed what it serves.
fn destinations(refresh: &Refresh, store: Option<&Store>, now: DateTime<Utc>) -> Outcome<Vec<DestinationState>> {
    let mut states = Vec::new();
    for host in &refresh.destinations {
        let of = Filter { destination: Some(host.to_string()), limit: DEPTH, ..Filter::default() };
        let runs = store.map(|store| store.history(&of)).transpose()?.unwrap_or_default();
        let name = host.to_string();
        let latest = runs.iter().find_map(|row| {
            let result = row.summary.as_ref()?.destinations.iter().find(|d| d.host == name && d.refreshed)?;
            Some((row, result.serves.clone()))
        });
        let serves = latest.and_then(|(row, serves)| match serves {
            Some(serves) => Some(serves),
            // rolled back to what was there before the first refresh
            None if row.refresh == format!("rollback of {name}") => None,
            // one that recovery ended, or of a version that did not keep it: not younger than the run's begin
            None => Some(Serves { run: row.run.clone(), source: String::new(), taken: row.started.clone() }),
        });
        let age = |serves: &Serves| {
            let taken = DateTime::parse_from_rfc3339(&serves.taken).ok()?;
            u64::try_from((now - taken.with_timezone(&Utc)).num_seconds()).ok()
        };
        let age_s = serves.as_ref().and_then(age);
        states.push(DestinationState { host: name, serves, age_s });
    }
    Ok(states)
}

fn under_way(store: &Store) -> Outcome<Vec<RunState>> {
    let rows = store.history(&Filter { limit: DEPTH, ..Filter::default() })?;
    let state = |row: RunRow| {
        let holder = store.at_work(&row.run);
        let step = holder.as_ref().map(|h| h.step.clone()).unwrap_or_default();
        RunState {
            run: Some(row.run),
            refresh: row.refresh,
            why: holder.map_or_else(String::new, |h| format!("process {} on {}", h.pid, h.host)),
            since: DateTime::parse_from_rfc3339(&row.started).map(|at| at.with_timezone(&Utc)).unwrap_or_default(),
            step: Step::ALL.into_iter().find(|known| known.name() == step),
            ..RunState::default()
        }
    };
    Ok(rows.into_iter().filter(|row| row.finished.is_none() && !row.interrupted).map(state).collect())
}

fn alarms(store: &Store) -> Outcome<Vec<Alarm>> {
    let rows = store.history(&Filter { limit: DEPTH, ..Filter::default() })?;
    let alarm = |row: RunRow| {
        let left = row.summary.as_ref().map(|s| s.not_put_back.clone()).unwrap_or_default();
        let (what, mut hints) = match (left.first(), row.interrupted) {
            (Some(first), _) => (first.to_string(), left.iter().flat_map(|p| p.hints.clone()).collect::<Vec<_>>()),
            (None, true) => ("it was interrupted and is not put back".to_owned(), Vec::new()),
            (None, false) => (format!("{} things are not put back", row.armed), Vec::new()),
        };
        hints.push(format!(
            "`mysql-refreshd recover` tries again; `mysql-refreshd recover --forget {}` gives it up.",
            row.run
        ));
        let interrupted = row.interrupted && left.is_empty();
        if interrupted {
            hints.insert(0, "A daemon that starts puts it back first.".to_owned());
        }
        Alarm { run: row.run, refresh: row.refresh, interrupted, what, hints }
    };
    let stuck = |row: &RunRow| row.interrupted || (row.finished.is_some() && row.armed > 0);
    Ok(rows.into_iter().filter(stuck).map(alarm).collect())
}
