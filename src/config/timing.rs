//! When a scheduled run may not begin, and what becomes of an occurrence that was missed.
//!
//! Pure: asked about a moment, answers about that moment; never looks at the clock.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use chrono::{
    DateTime, Datelike, Days, LocalResult, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta, TimeZone, Utc, Weekday,
};
use chrono_tz::Tz;
use serde::{Deserialize, Serialize};

/// Whether an occurrence that was missed (the daemon was down, the machine slept, a blackout) is made good, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum CatchUp {
    /// It is left out.
    #[default]
    No,
    /// As soon as possible, however late.
    Yes,
    /// As soon as possible, but no later than this.
    Within(Duration),
}

impl CatchUp {
    /// Whether an occurrence may still be made good after `late`.
    pub fn allows(self, late: Duration) -> bool {
        match self {
            Self::No => false,
            Self::Yes => true,
            Self::Within(limit) => late <= limit,
        }
    }
}

/// A piece of time in which no run begins: every week, or on dates.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Window {
    /// Days of the week by number from Monday; minutes of the day. An end that is not after the begin is the next day's.
    Weekly { days: [bool; 7], begin: NaiveTime, minutes: i64 },
    /// Whole days, the last one included.
    Dates { first: NaiveDate, last: NaiveDate },
}

/// All windows of a refresh, in its time zone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Blackout {
    zone: Tz,
    texts: Vec<String>,
    windows: Vec<Window>,
}

#[derive(Serialize, Deserialize)]
struct Written {
    time_zone: String,
    windows: Vec<String>,
}

/// Why a text is no window.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BlackoutError(String);

/// How a window is written.
pub(super) const HINT: &str = "Write \"HH:MM-HH:MM\", \"mon-fri HH:MM-HH:MM\", \"sat,sun 00:00-24:00\", or dates like \"2026-12-24..2027-01-02\".";

/// More windows than this one after the other without a gap: there is no end.
const MAX_CHAIN: usize = 64;

impl Blackout {
    /// No window at all.
    pub fn none() -> Self {
        Self { zone: Tz::UTC, texts: Vec::new(), windows: Vec::new() }
    }

    /// Reads windows. Together they must leave time to run.
    pub fn parse(texts: &[String], zone: Tz) -> Result<Self, BlackoutError> {
        let windows = texts.iter().map(|text| text.parse()).collect::<Result<Vec<Window>, _>>()?;
        let all = Self { zone, texts: texts.to_vec(), windows };
        // a year without a free minute: somebody forgot what the windows are for
        let begin = DateTime::UNIX_EPOCH + TimeDelta::days(20_000);
        if all.weekly().until(begin).is_some_and(|end| end - begin > TimeDelta::days(30)) {
            return Err(BlackoutError("together these windows leave no time to run".to_owned()));
        }
        Ok(all)
    }

    /// Those of its windows that come again every week.
    pub fn weekly(&self) -> Self {
        let windows = self.windows.iter().filter(|window| matches!(window, Window::Weekly { .. })).cloned().collect();
        Self { windows, ..self.clone() }
    }

    /// The windows as written.
    pub fn texts(&self) -> &[String] {
        &self.texts
    }

    /// None: a run may begin. Else until when none may.
    pub fn until(&self, moment: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let mut local = moment.with_timezone(&self.zone).naive_local();
        let mut end = None;
        for _ in 0..MAX_CHAIN * 7 {
            let Some(later) = self.windows.iter().filter_map(|window| window.end(local)).max() else { break };
            local = later;
            end = Some(later);
        }
        end.map(|local| utc(self.zone, local))
    }
}

/// A local time in the zone; one that a change skips is taken after the gap, one that comes twice is taken the second time.
fn utc(zone: Tz, mut local: NaiveDateTime) -> DateTime<Utc> {
    for _ in 0..48 {
        match zone.from_local_datetime(&local) {
            LocalResult::Single(at) => return at.with_timezone(&Utc),
            LocalResult::Ambiguous(_, late) => return late.with_timezone(&Utc),
            LocalResult::None => local += TimeDelta::minutes(30),
        }
    }
    local.and_utc()
}

impl Window {
    /// When it ends, if the moment lies in it.
    fn end(&self, at: NaiveDateTime) -> Option<NaiveDateTime> {
        match self {
            Window::Dates { first, last } => {
                let inside = (*first..=*last).contains(&at.date());
                inside.then(|| last.checked_add_days(Days::new(1)).unwrap_or(*last).and_time(NaiveTime::MIN))
            }
            Window::Weekly { days, begin, minutes } => {
                let on = |date: NaiveDate| {
                    let begin = days[date.weekday().num_days_from_monday() as usize].then(|| date.and_time(*begin))?;
                    let end = begin + TimeDelta::minutes(*minutes);
                    (begin <= at && at < end).then_some(end)
                };
                // one that began yesterday may last into today
                on(at.date()).max(at.date().pred_opt().and_then(on))
            }
        }
    }
}

impl FromStr for Window {
    type Err = BlackoutError;

    fn from_str(text: &str) -> Result<Self, BlackoutError> {
        let wrong = |why: &str| {
            BlackoutError(format!("{:?} is not a window: {why}", text.chars().take(60).collect::<String>()))
        };
        let text = text.trim();
        if let Some((first, last)) = text.split_once("..") {
            let date = |part: &str| part.trim().parse().map_err(|_| wrong("a date is written like 2026-12-24"));
            let (first, last): (NaiveDate, NaiveDate) = (date(first)?, date(last)?);
            // where calendars end, what comes after a window cannot be told
            if first.year() < 1970 || last.year() > 9999 {
                return Err(wrong("a year is one from 1970 to 9999"));
            }
            return if first <= last {
                Ok(Window::Dates { first, last })
            } else {
                Err(wrong("it ends before it begins"))
            };
        }
        let (days, times) = text.rsplit_once(char::is_whitespace).unwrap_or(("mon-sun", text));
        let (begin, end) = times.split_once('-').ok_or_else(|| wrong("it has no begin and end"))?;
        let minute = |part: &str| -> Result<i64, BlackoutError> {
            let (hour, minute) = part.split_once(':').ok_or_else(|| wrong("a time is written like 08:30"))?;
            let number = |digits: &str, most: i64| {
                let plain = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
                digits.parse::<i64>().ok().filter(|number| plain && *number <= most)
            };
            match (number(hour, 24), number(minute, 59)) {
                (Some(hour), Some(minute)) if hour < 24 || minute == 0 => Ok(hour * 60 + minute),
                _ => Err(wrong("a time is written like 08:30, from 00:00 to 24:00")),
            }
        };
        let (begin, end) = (minute(begin)?, minute(end)?);
        if begin == end || begin == 24 * 60 {
            return Err(wrong("it has no length"));
        }
        let minutes = if end > begin { end - begin } else { end + 24 * 60 - begin };
        let begin = NaiveTime::from_num_seconds_from_midnight_opt((begin * 60) as u32, 0).unwrap_or(NaiveTime::MIN);
        Ok(Window::Weekly {
            days: weekdays(days).ok_or_else(|| wrong("a day is one of mon tue wed thu fri sat sun"))?,
            begin,
            minutes,
        })
    }
}

/// Days like `mon-fri`, `sat,sun` or `fri-mon`.
fn weekdays(text: &str) -> Option<[bool; 7]> {
    let day = |name: &str| -> Option<usize> {
        let name = name.trim();
        let short = name.len() == 3;
        name.parse::<Weekday>().ok().filter(|_| short).map(|day| day.num_days_from_monday() as usize)
    };
    let mut days = [false; 7];
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (mut at, last) = (day(first)?, day(last)?);
        days[at] = true;
        while at != last {
            at = (at + 1) % 7;
            days[at] = true;
        }
    }
    Some(days)
}

impl fmt::Display for Blackout {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} ({})", self.texts.join(", "), self.zone)
    }
}

impl TryFrom<Written> for Blackout {
    type Error = BlackoutError;

    fn try_from(written: Written) -> Result<Self, BlackoutError> {
        let zone = written
            .time_zone
            .parse()
            .map_err(|_| BlackoutError(format!("{:?} is not a time zone", written.time_zone)))?;
        Self::parse(&written.windows, zone)
    }
}

impl From<Blackout> for Written {
    fn from(blackout: Blackout) -> Self {
        Self { time_zone: blackout.zone.name().to_owned(), windows: blackout.texts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn until(windows: &[&str], at: &str) -> String {
        let windows: Vec<String> = windows.iter().map(|w| (*w).to_owned()).collect();
        let blackout = Blackout::parse(&windows, chrono_tz::Europe::Berlin).unwrap();
        match blackout.until(at.parse().unwrap()) {
            Some(end) => end.with_timezone(&chrono_tz::Europe::Berlin).format("%a %m-%d %H:%M").to_string(),
            None => "free".to_owned(),
        }
    }

    #[test]
    fn windows_end_where_they_say_in_their_own_zone() {
        // 2026-11-27 is a Friday; Berlin is an hour ahead
        assert_eq!(until(&["08:00-18:00"], "2026-11-27T06:59:00Z"), "free");
        assert_eq!(until(&["08:00-18:00"], "2026-11-27T07:00:00Z"), "Fri 11-27 18:00");
        assert_eq!(until(&["08:00-18:00"], "2026-11-27T17:00:00Z"), "free");
        assert_eq!(until(&["mon-thu 08:00-18:00"], "2026-11-27T10:00:00Z"), "free");
        assert_eq!(until(&["22:00-04:00"], "2026-11-27T01:00:00Z"), "Fri 11-27 04:00", "begun the day before");
        assert_eq!(until(&["fri-mon 00:00-24:00"], "2026-11-27T12:00:00Z"), "Tue 12-01 00:00", "one after the other");
        assert_eq!(until(&["2026-11-20..2026-11-30", "tue 00:00-06:00"], "2026-11-27T12:00:00Z"), "Tue 12-01 06:00");
    }

    #[test]
    fn an_end_that_a_change_of_the_clock_skips_comes_after_the_gap() {
        assert_eq!(until(&["01:00-02:30"], "2027-03-28T00:30:00Z"), "Sun 03-28 03:00");
    }

    #[test]
    fn what_is_no_window_is_refused() {
        for text in [
            "",
            "8:00-9:00",
            "08:00",
            "08:00-08:00",
            "mon 25:00-26:00",
            "xyz 08:00-09:00",
            "2026-02-30..2026-03-01",
            "2026-03-02..2026-03-01",
            "24:00-01:00",
            "2026-01-01..+262142-12-31",
            "-0001-01-01..2026-12-31",
        ] {
            assert!(Blackout::parse(&[text.to_owned()], Tz::UTC).is_err(), "{text:?}");
        }
        assert!(Blackout::parse(&["00:00-24:00".to_owned()], Tz::UTC).is_err(), "never free");
        assert!(Blackout::parse(&["00:00-12:00".to_owned(), "12:00-24:00".to_owned()], Tz::UTC).is_err(), "never free");
        assert!(Blackout::parse(&["2026-01-01..2027-12-31".to_owned()], Tz::UTC).is_ok(), "a freeze has an end");
    }
}
