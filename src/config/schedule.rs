//! When a refresh runs: a cron expression in its own time zone.
//!
//! Computes the next occurrence and nothing else; it starts no timer and never looks at the clock by itself.

use std::str::FromStr;

use chrono::{DateTime, SubsecRound, Utc};
use chrono_tz::Tz;
use croner::Cron;
use croner::errors::CronError;
use serde::{Deserialize, Serialize};

/// A cron expression and the zone it is meant in. Daylight saving is the zone's: a time that a change skips runs once,
/// right after the gap, and one that comes twice runs once.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Schedule {
    expression: String,
    zone: Tz,
    cron: Cron,
}

/// A schedule as text.
#[derive(Serialize, Deserialize)]
struct Written {
    expression: String,
    time_zone: String,
}

/// Why there is no such schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// The expression does not parse.
    #[error("{expression:?} is not a schedule: {reason}")]
    Expression {
        /// What was written.
        expression: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No such zone.
    #[error("{0:?} is not a time zone")]
    TimeZone(String),
}

impl Schedule {
    /// Reads an expression of 5 fields (minute first), 6 (second first) or 7 (with a year at the end), or `@hourly`,
    /// `@daily`, `@weekly`, `@monthly`, `@yearly`. With 5 fields the second is 0.
    pub fn parse(expression: &str, zone: Tz) -> Result<Self, ScheduleError> {
        let wrong = |reason: String| ScheduleError::Expression { expression: expression.to_owned(), reason };
        if expression.len() > 200 || !expression.is_ascii() {
            // it is cited, and may be of any length
            let mut cited: String = expression.chars().take(60).collect();
            if cited.len() < expression.len() {
                cited.push('…');
            }
            let expression = cited;
            return Err(ScheduleError::Expression {
                expression,
                reason: "it must be short and plain ASCII".to_owned(),
            });
        }
        let cron = Cron::from_str(expression).map_err(|error| wrong(reason(&error)))?;
        Ok(Self { expression: expression.trim().to_owned(), zone, cron })
    }

    /// The expression as written.
    pub fn expression(&self) -> &str {
        &self.expression
    }

    /// Expression and zone: what makes a schedule this one.
    pub fn text(&self) -> String {
        format!("{} {}", self.expression, self.zone.name())
    }

    /// The zone it is meant in.
    pub fn zone(&self) -> Tz {
        self.zone
    }

    /// The first occurrence after the given moment; `None` if there is none any more.
    pub fn next_after(&self, moment: DateTime<Utc>) -> Option<DateTime<Tz>> {
        // whole seconds: what is left of one would be left in the occurrence
        self.cron.find_next_occurrence(&moment.trunc_subsecs(0).with_timezone(&self.zone), false).ok()
    }
}

/// What croner says, in our style and without its own names for things.
fn reason(error: &CronError) -> String {
    let text = match error {
        CronError::InvalidPattern(text) | CronError::IllegalCharacters(text) | CronError::ComponentError(text) => {
            text.clone()
        }
        other => other.to_string(),
    };
    text.trim_end_matches('.').replace("CronPattern", "it").to_lowercase()
}

impl PartialEq for Schedule {
    fn eq(&self, other: &Self) -> bool {
        self.expression == other.expression && self.zone == other.zone
    }
}

impl TryFrom<Written> for Schedule {
    type Error = ScheduleError;

    fn try_from(written: Written) -> Result<Self, ScheduleError> {
        let zone = written.time_zone.parse().map_err(|_| ScheduleError::TimeZone(written.time_zone.clone()))?;
        Self::parse(&written.expression, zone)
    }
}

impl From<Schedule> for Written {
    fn from(schedule: Schedule) -> Self {
        Self { expression: schedule.expression, time_zone: schedule.zone.name().to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(expression: &str, from: &str, count: usize) -> Vec<String> {
        let schedule = Schedule::parse(expression, chrono_tz::Europe::Berlin).unwrap();
        let mut moment: DateTime<Utc> = from.parse().unwrap();
        let mut runs = Vec::new();
        for _ in 0..count {
            let next = schedule.next_after(moment).unwrap();
            runs.push(next.format("%m-%d %H:%M:%S %z").to_string());
            moment = next.with_timezone(&Utc);
        }
        runs
    }

    #[test]
    fn a_skipped_time_runs_once_after_the_gap() {
        assert_eq!(
            runs("30 2 * * *", "2027-03-27T00:00:00Z", 3),
            ["03-27 02:30:00 +0100", "03-28 03:00:00 +0200", "03-29 02:30:00 +0200"]
        );
    }

    #[test]
    fn a_time_that_comes_twice_runs_once() {
        assert_eq!(
            runs("30 2 * * *", "2027-10-30T00:00:00Z", 3),
            ["10-30 02:30:00 +0200", "10-31 02:30:00 +0200", "11-01 02:30:00 +0100"]
        );
    }

    #[test]
    fn five_fields_run_at_second_zero() {
        assert_eq!(runs("*/30 * * * *", "2027-01-01T00:00:01Z", 1), ["01-01 01:30:00 +0100"]);
    }
}
