//! When refreshes are due: occurrences of their schedules, each dealt with once, whatever the clock does meanwhile.
//!
//! Pure: it is told what time it is. Starts nothing, waits for nothing, stores nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use crate::config::{Blackout, CatchUp, Refresh, Schedule};
use crate::store::ScheduleRow;

/// An occurrence that is noticed later than this was missed: the daemon was down, or the machine slept.
const ON_TIME: TimeDelta = TimeDelta::seconds(90);

/// A clock that is behind what was dealt with by more than this is wrong now, or was wrong then.
const GONE_BACK: TimeDelta = TimeDelta::hours(1);

/// If it stays behind for so long it was wrong then: what it had passed does not count. A machine that boots with a wrong clock sets it
/// sooner than that.
const BELIEVED: TimeDelta = TimeDelta::minutes(15);

/// More missed occurrences than this are not counted one by one.
const MANY: usize = 2000;

/// What becomes of an occurrence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Its run begins now.
    Run {
        /// When it was planned, without jitter.
        planned: DateTime<Utc>,
        /// It is being made good.
        late: bool,
    },
    /// It is left out.
    Missed {
        /// When it was planned.
        planned: DateTime<Utc>,
        /// Why.
        why: String,
    },
}

/// The schedules of all refreshes that have one.
#[derive(Debug, Default)]
pub struct Timetable {
    rows: BTreeMap<String, Row>,
}

#[derive(Debug)]
struct Row {
    schedule: Schedule,
    blackout: Blackout,
    catch_up: CatchUp,
    jitter: Duration,
    /// Occurrences up to this one have been dealt with.
    seen: DateTime<Utc>,
    /// One that waits for the end of a blackout.
    owed: Option<DateTime<Utc>>,
    paused: bool,
    /// Since when the clock has been behind `seen`.
    behind: Option<DateTime<Utc>>,
}

impl Timetable {
    /// Of these refreshes; `rows` is what is remembered of each. A schedule that is new, or not the one that is remembered,
    /// begins now: nothing of it was missed.
    pub fn new<'a>(
        refreshes: impl Iterator<Item = &'a Refresh>,
        rows: &BTreeMap<String, ScheduleRow>,
        now: DateTime<Utc>,
    ) -> Self {
        let row = |refresh: &Refresh| {
            let schedule = refresh.schedule.clone().filter(|_| refresh.enabled)?;
            let known = rows.get(&refresh.name).cloned().unwrap_or_default();
            let same = known.schedule.as_deref() == Some(schedule.text().as_str());
            let row = Row {
                schedule,
                blackout: refresh.blackout.clone(),
                catch_up: refresh.catch_up,
                jitter: refresh.jitter,
                seen: known.seen.filter(|_| same).unwrap_or(now),
                owed: None,
                paused: known.paused.is_some(),
                behind: None,
            };
            Some((refresh.name.clone(), row))
        };
        Self { rows: refreshes.filter_map(row).collect() }
    }

    /// Occurrences that waited for the end of a blackout wait on, across a reload.
    pub fn inherit(&mut self, before: &Self) {
        for (name, row) in &mut self.rows {
            row.owed = before.rows.get(name).and_then(|old| old.owed).filter(|_| row.catch_up != CatchUp::No);
        }
    }

    /// Deals with everything that is due.
    pub fn due(&mut self, now: DateTime<Utc>) -> Vec<(String, Verdict)> {
        let judge = |(name, row): (&String, &mut Row)| Some((name.clone(), row.due(name, now)?));
        self.rows.iter_mut().filter_map(judge).collect()
    }

    /// Up to when occurrences of a refresh have been dealt with, and of which schedule.
    pub fn seen(&self, name: &str) -> Option<(DateTime<Utc>, String)> {
        self.rows.get(name).map(|row| {
            // one that waits for the end of a blackout is not dealt with
            let seen = row.owed.map_or(row.seen, |owed| row.seen.min(owed - TimeDelta::seconds(1)));
            (seen, row.schedule.text())
        })
    }

    /// The names of all refreshes with a schedule.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.rows.keys()
    }

    /// Occurrences of a refresh up to this one have been dealt with elsewhere.
    pub fn pass(&mut self, name: &str, planned: DateTime<Utc>) {
        if let Some(row) = self.rows.get_mut(name) {
            row.seen = row.seen.max(planned);
        }
    }

    /// Follows a schedule no more, or again: what comes round meanwhile is not made good.
    pub fn pause(&mut self, name: &str, paused: bool, now: DateTime<Utc>) {
        if let Some(row) = self.rows.get_mut(name) {
            row.paused = paused;
            row.seen = row.seen.max(now);
            row.owed = None;
        }
    }

    /// When to look again; None: nothing will ever be due.
    pub fn wake(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.rows.iter().filter(|(_, row)| !row.paused).filter_map(|(name, row)| row.wake(name, now)).min()
    }

    /// When the next run of a refresh begins, if nothing else holds it up; None: not by its schedule.
    pub fn next(&self, name: &str, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.rows.get(name).filter(|row| !row.paused)?.next(name, now)
    }
}

impl Row {
    /// When an occurrence begins. The same every time it is asked, so that a reload does not draw again.
    fn begins(&self, name: &str, planned: DateTime<Utc>) -> DateTime<Utc> {
        let most = self.jitter.as_secs();
        if most == 0 {
            return planned;
        }
        let hash = blake3::hash(format!("{name} {}", planned.timestamp()).as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hash.as_bytes()[..8]);
        planned + TimeDelta::seconds((u64::from_le_bytes(first) % (most + 1)) as i64)
    }

    fn after(&self, moment: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.schedule.next_after(moment).map(|next| next.with_timezone(&Utc))
    }

    fn due(&mut self, name: &str, now: DateTime<Utc>) -> Option<Verdict> {
        if self.seen > now + GONE_BACK {
            // a clock that goes back once more begins the wait anew
            let since = *self.behind.get_or_insert(now);
            self.behind = Some(since.min(now));
            if now - since >= BELIEVED {
                self.seen = now;
                self.behind = None;
            }
        } else {
            self.behind = None;
        }
        if self.paused {
            return None;
        }
        let mut latest = None;
        for n in 0.. {
            let Some(next) = self.after(self.seen).filter(|next| self.begins(name, *next) <= now) else { break };
            // beyond that many, the last hour decides
            self.seen = if n == MANY { next.max(now - TimeDelta::hours(1)) } else { next };
            latest = Some(self.seen);
        }
        if latest.is_some() {
            self.owed = latest;
        }
        let planned = self.owed?;
        let begins = self.begins(name, planned);
        let late = |at: DateTime<Utc>| (at - begins).to_std().unwrap_or_default();
        if let Some(end) = self.blackout.until(now) {
            if self.catch_up.allows(late(end)) {
                return None;
            }
            self.owed = None;
            return Some(Verdict::Missed { planned, why: "a blackout forbade it".to_owned() });
        }
        self.owed = None;
        if now - begins <= ON_TIME {
            return Some(Verdict::Run { planned, late: false });
        }
        // what was allowed to wait for the end of a window is allowed a moment after it
        if self.catch_up.allows(late(now - ON_TIME)) {
            return Some(Verdict::Run { planned, late: true });
        }
        Some(Verdict::Missed {
            planned,
            why: "nobody was there to begin it: the daemon was down, or the machine slept".to_owned(),
        })
    }

    fn wake(&self, name: &str, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let next = self.after(self.seen).map(|next| self.begins(name, next));
        let owed = self.owed.map(|_| self.blackout.until(now).unwrap_or(now));
        next.into_iter().chain(owed).min()
    }

    fn next(&self, name: &str, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        if self.owed.is_some() {
            return Some(self.blackout.until(now).unwrap_or(now));
        }
        let mut at = self.seen;
        for _ in 0..1000 {
            at = self.after(at)?;
            let begins = self.begins(name, at);
            match self.blackout.until(begins) {
                None => return Some(begins),
                Some(end) if self.catch_up.allows((end - begins).to_std().unwrap_or_default()) => return Some(end),
                // none before it ends
                Some(end) => at = at.max(end - TimeDelta::seconds(1)),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
