//! Who may begin: one run of a refresh, one run on a host, so many in all, in the order in which they were asked for.
//!
//! Pure: it is told what runs and what waits. The locks of the run itself stand behind it: they also know other controllers.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::config::{HostId, OnBusy, Refresh};

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// A refresh, by name.
    Refresh(String),
    /// A destination's generation before.
    Rollback(HostId),
}

impl fmt::Display for Work {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refresh(name) => out.write_str(name),
            Self::Rollback(host) => write!(out, "rollback of {host}"),
        }
    }
}

/// Why it is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Its schedule, planned for then.
    Schedule(DateTime<Utc>),
    /// A scheduled run of this refresh has ended well.
    After(String),
    /// Somebody.
    Person(String),
}

impl Origin {
    /// Whether refreshes that follow this one are to follow.
    pub fn leads_on(&self) -> bool {
        !matches!(self, Self::Person(_))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Schedule(planned) => {
                write!(out, "by schedule, planned for {}", planned.format("%Y-%m-%d %H:%M:%S UTC"))
            }
            Self::After(refresh) => write!(out, "after {refresh}"),
            Self::Person(who) => write!(out, "asked for by {who}"),
        }
    }
}

/// A blackout, to one that nobody insists on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// It waits for this.
    Until(String),
    /// It will be too late then.
    For(String),
}

/// One that waits or runs.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its number, greater for later ones.
    pub ticket: u64,
    /// What.
    pub work: Work,
    /// Why.
    pub origin: Origin,
    /// The hosts it needs for itself.
    pub hosts: BTreeSet<HostId>,
    /// What to do when another one has them.
    pub on_busy: OnBusy,
    /// How long to wait for them.
    pub patience: Duration,
    /// Not to wait for anything.
    pub no_wait: bool,
    /// Why it must not begin now, whatever the others do; it is in nobody's way meanwhile.
    pub held: Option<Held>,
    /// Since when it waits or runs.
    pub since: DateTime<Utc>,
}

impl Entry {
    /// The hosts of a refresh.
    pub fn hosts_of(refresh: &Refresh) -> BTreeSet<HostId> {
        refresh.destinations.iter().chain([&refresh.source]).cloned().collect()
    }
}

/// What becomes of one that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It begins.
    Begin,
    /// It waits, for this.
    Wait(String),
    /// It is given up: another one is in its way, and it is not to wait, or not any longer.
    GiveUp(String),
    /// It is left out: it may not begin in time.
    LeaveOut(String),
}

/// What else there is to know.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// The time.
    pub at: DateTime<Utc>,
    /// How many may run at once.
    pub max_runs: usize,
    /// Interrupted runs are being put back: nothing begins.
    pub recovering: bool,
}

/// Judges every entry of `waiting`. The order is kept between those that need
/// the same host: nobody overtakes, nobody starves.
pub fn judge<'a>(waiting: &'a [Entry], running: &[&Entry], now: Now) -> Vec<(&'a Entry, Verdict)> {
    let mut begun: Vec<&Entry> = running.to_vec();
    let mut passed: Vec<&Entry> = Vec::new();
    let mut verdicts = Vec::new();
    for entry in waiting {
        let verdict = match &entry.held {
            Some(Held::Until(why)) => Verdict::Wait(why.clone()),
            Some(Held::For(why)) => Verdict::LeaveOut(why.clone()),
            None => one(entry, &begun, &passed, now),
        };
        match verdict {
            Verdict::Wait(_) if entry.held.is_some() => {}
            Verdict::Begin => begun.push(entry),
            Verdict::Wait(_) => passed.push(entry),
            Verdict::GiveUp(_) | Verdict::LeaveOut(_) => {}
        }
        verdicts.push((entry, verdict));
    }
    verdicts
}

fn one(entry: &Entry, running: &[&Entry], before: &[&Entry], now: Now) -> Verdict {
    let in_the_way = |other: &&&Entry| other.work == entry.work || !other.hosts.is_disjoint(&entry.hosts);
    let what = |other: &Entry| {
        let shared: Vec<String> = other.hosts.intersection(&entry.hosts).map(ToString::to_string).collect();
        match other.work == entry.work {
            true => format!("a run of {} that is under way", other.work),
            false => format!("{}, which has {}", other.work, shared.join(", ")),
        }
    };
    let over = (now.at - entry.since).to_std().is_ok_and(|waited| waited >= entry.patience);
    let contended = |by: String| match entry.on_busy {
        OnBusy::Wait if over => Verdict::GiveUp(format!("it waited for {by} for as long as it may")),
        OnBusy::Wait => Verdict::Wait(by),
        OnBusy::Skip | OnBusy::Fail => Verdict::GiveUp(by),
    };
    if let Some(other) = running.iter().find(in_the_way) {
        return contended(what(other));
    }
    if let Some(other) = before.iter().find(in_the_way) {
        return contended(format!("{}, which waits before it", other.work));
    }
    // no contention: only who will not wait at all minds
    let delayed = |by: String| if entry.no_wait { Verdict::GiveUp(by) } else { Verdict::Wait(by) };
    if now.recovering {
        return delayed("interrupted runs to be put back".to_owned());
    }
    if running.len() >= now.max_runs {
        return delayed(format!("one of {} runs to end (`max_runs` of [daemon])", running.len()));
    }
    Verdict::Begin
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(ticket: u64, name: &str, hosts: &[&str]) -> Entry {
        Entry {
            ticket,
            work: Work::Refresh(name.to_owned()),
            origin: Origin::Person("me".to_owned()),
            hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
            on_busy: OnBusy::Wait,
            patience: Duration::from_secs(60),
            no_wait: false,
            held: None,
            since: DateTime::UNIX_EPOCH,
        }
    }

    fn now(seconds: i64) -> Now {
        Now { at: DateTime::UNIX_EPOCH + chrono::TimeDelta::seconds(seconds), max_runs: 2, recovering: false }
    }

    fn words(waiting: &[Entry], running: &[&Entry], now: Now) -> Vec<String> {
        judge(waiting, running, now)
            .into_iter()
            .map(|(_, verdict)| match verdict {
                Verdict::Begin => "begin".to_owned(),
                Verdict::Wait(why) => format!("wait: {why}"),
                Verdict::GiveUp(why) => format!("give up: {why}"),
                Verdict::LeaveOut(why) => format!("leave out: {why}"),
            })
            .collect()
    }

    #[test]
    fn one_run_on_a_host_and_no_more_than_so_many() {
        let a = entry(1, "a", &["prod/db1", "rnd/r1"]);
        let waiting = [
            entry(2, "b", &["prod/db1", "rnd/r2"]),
            entry(3, "c", &["prod/db2", "rnd/r3"]),
            entry(4, "d", &["prod/db3", "rnd/r4"]),
            entry(5, "e", &["prod/db4", "rnd/r2"]),
            entry(6, "a", &["prod/db1", "rnd/r1"]),
        ];
        assert_eq!(
            words(&waiting, &[&a], now(0)),
            [
                "wait: a, which has prod/db1",
                "begin",
                "wait: one of 2 runs to end (`max_runs` of [daemon])",
                "wait: b, which waits before it",
                "wait: a run of a that is under way",
            ]
        );
        assert_eq!(
            words(&waiting[1..2], &[], Now { recovering: true, ..now(0) }),
            ["wait: interrupted runs to be put back"]
        );
    }

    #[test]
    fn who_is_held_by_a_blackout_is_in_nobodys_way() {
        let (mut a, mut b) = (entry(1, "a", &["prod/db1", "rnd/r1"]), entry(2, "b", &["prod/db2", "rnd/r1"]));
        a.held = Some(Held::Until("noon".into()));
        b.held = Some(Held::For("noon".into()));
        let waiting = [a, b, entry(3, "c", &["prod/db1", "rnd/r1"]), entry(4, "d", &["prod/db2", "rnd/r2"])];
        assert_eq!(words(&waiting, &[], now(0)), ["wait: noon", "leave out: noon", "begin", "begin"]);
    }

    #[test]
    fn who_does_not_wait_gives_up_and_who_waits_does_not_wait_for_ever() {
        let a = entry(1, "a", &["prod/db1", "rnd/r1"]);
        let mut b = entry(2, "b", &["prod/db1", "rnd/r2"]);
        assert_eq!(
            words(std::slice::from_ref(&b), &[&a], now(60)),
            ["give up: it waited for a, which has prod/db1 for as long as it may"]
        );
        for on_busy in [OnBusy::Skip, OnBusy::Fail] {
            b.on_busy = on_busy;
            assert_eq!(words(std::slice::from_ref(&b), &[&a], now(0)), ["give up: a, which has prod/db1"]);
            // the number of runs is no contention
            let (c, d) = (entry(3, "c", &["x/1"]), entry(4, "d", &["x/2"]));
            assert!(words(std::slice::from_ref(&b), &[&c, &d], now(0))[0].starts_with("wait: one of 2 runs"));
            let mut e = entry(5, "e", &["x/3"]);
            e.no_wait = true;
            assert!(words(&[e], &[&c, &d], now(0))[0].starts_with("give up: one of 2 runs"), "who will not wait");
            let first = entry(6, "first", &["prod/db1"]);
            let two = [first, b.clone()];
            assert_eq!(words(&two, &[&c, &d], now(0))[1], "give up: first, which waits before it");
        }
    }
}
