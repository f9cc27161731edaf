//! The status as a person or a monitoring system reads it. Asks the daemon, else the files; text and nothing else.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::time::Duration;

use chrono::{DateTime, Local, Utc};

use super::args::Global;
use super::{ask, load_to_ask, out, terminal, views};
use crate::config::Config;
use crate::daemon::message::{Answer, Request};
use crate::failure;
use crate::problem::{Outcome, Problem};
use crate::report::human_bytes;
use crate::status::{self, Limits, RunState, Status, Verdict};

/// How it is wanted.
pub(super) enum How {
    /// To be read.
    Person {
        /// Again and again.
        watch: bool,
    },
    /// By monitoring: only of one refresh, if it is named.
    Nagios(Option<String>, Limits),
}

/// How often it is shown again.
const AGAIN: Duration = Duration::from_secs(2);

pub(super) fn run(global: &Global, how: How) -> Outcome<u8> {
    match how {
        How::Nagios(only, limits) => {
            // whatever goes wrong is an answer, too: monitoring knows no other exit codes
            let (verdict, line) = match load_to_ask(global).and_then(|(config, broken)| get(&config, broken)) {
                Ok(status) if only.as_ref().is_some_and(|name| status.refreshes.iter().all(|r| r.refresh != *name)) => {
                    (Verdict::Unknown, format!("REFRESHD UNKNOWN - there is no refresh {:?}", only.unwrap_or_default()))
                }
                Ok(status) => status::judge(&status, only.as_deref(), limits),
                Err(problem) => {
                    (Verdict::Unknown, format!("REFRESHD UNKNOWN - {}", problem.to_string().replace(['|', '\n'], " ")))
                }
            };
            out(&line);
            Ok(verdict as u8)
        }
        How::Person { watch } => {
            let (config, broken) = load_to_ask(global)?;
            if let Some(problem) = &broken {
                terminal::say(&format!("warning: {problem}"));
            }
            loop {
                let status = get(&config, broken.clone())?;
                let text = if global.json { views::json(&status)? } else { text(&status) };
                if !watch {
                    out(&text);
                    return Ok(failure::DONE);
                }
                if std::io::stdout().is_terminal() {
                    terminal::clear();
                }
                out(&text);
                std::thread::sleep(AGAIN);
            }
        }
    }
}

/// `broken`: what is wrong with the configuration; then only a daemon knows anything.
fn get(config: &Config, broken: Option<Problem>) -> Outcome<Status> {
    match ask::about(config, Request::Status)? {
        Some(Answer::Status(status)) => Ok(*status),
        Some(_) => Err(Problem::failed("the daemon gave an answer to something else")),
        None => {
            if let Some(problem) = broken {
                return Err(problem);
            }
            let store = views::existing_store(config);
            status::build(config, store.as_ref(), None, Utc::now())
        }
    }
}

/// A span for people: the two greatest units.
fn span(seconds: u64) -> String {
    let parts = [(seconds / 86_400, "d"), (seconds / 3600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let first = parts.iter().position(|(n, _)| *n > 0).unwrap_or(3);
    parts[first..]
        .iter()
        .take(2)
        .filter(|(n, _)| *n > 0 || first == 3)
        .map(|(n, unit)| format!("{n}{unit}"))
        .collect::<Vec<_>>()
        .join(" ")
}

fn clock(at: DateTime<Utc>) -> String {
    at.with_timezone(&Local).format("%a %Y-%m-%d %H:%M:%S %:z").to_string()
}

fn since(at: DateTime<Utc>, now: DateTime<Utc>) -> String {
    span((now - at).num_seconds().unsigned_abs())
}

/// Everything, for a person.
pub(super) fn text(status: &Status) -> String {
    let now = status.at;
    let mut text = match &status.daemon {
        None => "No daemon runs: schedules are not followed.".to_owned(),
        Some(daemon) => {
            let more = match (daemon.stopping, daemon.recovering) {
                (true, _) => "; it is about to end",
                (_, true) => "; it is putting interrupted runs back",
                _ => "",
            };
            format!(
                "mysql-refreshd {} runs as process {} for {}{more}",
                daemon.version,
                daemon.pid,
                since(daemon.since, now)
            )
        }
    };
    for alarm in &status.alarms {
        let word = if alarm.interrupted { "INTERRUPTED" } else { "A HUMAN IS NEEDED" };
        let _ = write!(text, "\n\n{word}: run {} of {}\n  {}", alarm.run, alarm.refresh, alarm.what);
        alarm.hints.iter().for_each(|hint| {
            let _ = write!(text, "\n  hint: {hint}");
        });
    }
    if let Some(why) = status.daemon.as_ref().and_then(|daemon| daemon.reload_failed.as_ref()) {
        let _ = write!(text, "\n\nThe changed configuration is not in force: {why}");
    }
    for run in &status.running {
        text.push_str("\n\n");
        text.push_str(&running(run, now));
    }
    for waiting in &status.queue {
        let _ = write!(
            text,
            "\n\n{}: waits for {}\n  for {} ({})",
            waiting.refresh,
            waiting.waits_for,
            since(waiting.since, now),
            waiting.why
        );
    }
    for refresh in &status.refreshes {
        let _ =
            write!(text, "\n\n{} ({} → {} destinations)", refresh.refresh, refresh.source, refresh.destinations.len());
        let when = refresh.when.as_deref().unwrap_or("on demand");
        match (refresh.enabled, &refresh.paused, refresh.next) {
            (_, _, _) if refresh.when.is_none() => text.push_str("\n  next   on demand"),
            (false, _, _) => {
                let _ = write!(text, "\n  next   not enabled ({when})");
            }
            (_, Some(paused), _) => {
                let _ = write!(text, "\n  next   paused by {} {} ago ({when})", paused.by, since(paused.since, now));
            }
            (_, _, Some(next)) => {
                let _ = write!(text, "\n  next   {}, in {} ({when})", clock(next), since(next, now));
            }
            (_, _, None) => {
                let _ = write!(text, "\n  next   {when}");
            }
        }
        if let Some(missed) = &refresh.missed {
            let _ = write!(text, "\n  missed {}: {}", clock(missed.planned), missed.why);
        }
        match &refresh.last {
            None => text.push_str("\n  last   never"),
            Some(last) => {
                let ending = last.ending.map_or("interrupted", |ending| ending.name());
                let seconds = |ms: u64| format!("{:.1} s", ms as f64 / 1000.0);
                let down = last.outage_ms.map_or_else(String::new, |ms| format!(", source down {}", seconds(ms)));
                let took =
                    last.total_ms.filter(|ms| *ms > 0).map_or_else(String::new, |ms| format!(", took {}", seconds(ms)));
                let _ = write!(text, "\n  last   {ending}, {}{down}{took} (run {})", last.started, last.run);
                if let Some(reason) = &last.reason {
                    let _ = write!(text, "\n         {reason}");
                }
            }
        }
        for destination in &refresh.destinations {
            let age = match (&destination.serves, destination.age_s) {
                (Some(serves), Some(age)) => format!("data is {} old, taken {}", span(age), serves.taken),
                _ => "nothing known of its data".to_owned(),
            };
            let _ = write!(text, "\n  {:<20} {age}", destination.host);
        }
    }
    text
}

fn running(run: &RunState, now: DateTime<Utc>) -> String {
    let id = run.run.as_deref().map_or_else(String::new, |id| format!(" (run {id})"));
    let mut text = format!("{} runs{id} for {}, {}", run.refresh, since(run.since, now), run.why);
    if let Some(step) = run.step {
        let long = run.step_since.map_or_else(String::new, |at| format!(" for {}", since(at, now)));
        let _ = write!(text, "\n  step   {step}{long}");
    }
    if let Some(p) = &run.progress {
        let amount = |n: u64| if p.what == "bytes" { human_bytes(n) } else { n.to_string() };
        let total = if p.total > 0 { format!(" of {}", amount(p.total)) } else { String::new() };
        let what = if p.what == "bytes" { String::new() } else { format!(" {}", p.what) };
        let left = p.left_s.filter(|_| p.total > 0).map_or_else(String::new, |s| format!(", {} left", span(s)));
        let _ = write!(text, "\n         {}{total}{what}, {}/s{left}", amount(p.done), amount(p.per_s));
    }
    if let Some(waits) = &run.waits_for {
        let by = waits.holder.as_ref().map_or_else(
            || "another run".to_owned(),
            |h| format!("run {} of {} on {} since {}, in step {}", h.run, h.refresh, h.host, h.since, h.step),
        );
        let _ = write!(text, "\n  waits  for the lock of {}, held by {by}", waits.host);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_two_units() {
        let spans: Vec<String> = [0, 59, 60, 3_661, 90_000, 86_400].into_iter().map(span).collect();
        assert_eq!(spans, ["0s", "59s", "1m", "1h 1m", "1d 1h", "1d"]);
    }
}
