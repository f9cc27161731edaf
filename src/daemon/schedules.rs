//! From the timetable to the queue, and what of it is on disk: an occurrence counts as dealt with when its run begins or it is left
//! out, not before.

use chrono::{DateTime, TimeDelta, Utc};

use super::queue::{Origin, Work};
use super::{Daemon, Wish, timetable};
use crate::store::{Missed, ScheduleRow};

impl Daemon {
    pub(super) fn due(&mut self, name: &str, verdict: timetable::Verdict) {
        let missed = match &verdict {
            timetable::Verdict::Run { .. } => None,
            timetable::Verdict::Missed { planned, why } => Some(Missed { planned: *planned, why: why.clone() }),
        };
        match verdict {
            timetable::Verdict::Run { planned, late } => {
                if late {
                    tracing::info!(refresh = name, %planned, "a missed run is made good");
                }
                let work = Work::Refresh(name.to_owned());
                if let Err(problem) = self.enqueue(work, Origin::Schedule(planned), Wish::default(), None) {
                    tracing::error!(refresh = name, %problem, "cannot begin");
                }
            }
            timetable::Verdict::Missed { planned, why } => {
                tracing::warn!(refresh = name, %planned, why, "a run was left out");
            }
        }
        self.keep(name, |row| row.missed = missed.or_else(|| row.missed.take()));
    }

    /// Changes what is remembered of a schedule.
    pub(super) fn keep(&self, name: &str, change: impl FnOnce(&mut ScheduleRow)) {
        let kept = self.store.schedules().and_then(|mut rows| {
            let mut row = rows.remove(name).unwrap_or_default();
            if let Some((seen, schedule)) = self.timetable.seen(name) {
                row.seen = Some(self.owed(name).map_or(seen, |planned| seen.min(planned - TimeDelta::seconds(1))));
                row.schedule = Some(schedule);
            }
            change(&mut row);
            self.store.keep_schedule(name, &row)
        });
        if let Err(problem) = kept {
            tracing::error!(refresh = name, %problem, "cannot remember the schedule");
        }
    }

    /// The occurrence that waits in the queue: until its run begins it is not dealt with, whatever becomes of this process.
    fn owed(&self, name: &str) -> Option<DateTime<Utc>> {
        let waiting = self.waiting.iter().map(|waiting| &waiting.entry);
        waiting.filter(|entry| matches!(&entry.work, Work::Refresh(other) if other == name)).find_map(|entry| {
            match entry.origin {
                Origin::Schedule(planned) => Some(planned),
                _ => None,
            }
        })
    }

    /// Every schedule is on record, so that it is known later what was missed; of one that is not followed nothing is.
    pub(super) fn remember(&self) {
        let names: Vec<String> = self.timetable.names().cloned().collect();
        names.iter().for_each(|name| self.keep(name, |_| ()));
        let stored = self.store.schedules().unwrap_or_default();
        for (name, _) in stored.iter().filter(|(name, row)| row.schedule.is_some() && !names.contains(name)) {
            self.keep(name, |row| {
                row.schedule = None;
                row.seen = None;
            });
        }
    }
}
