//! The status as monitoring wants it: one word, one line, figures. The numbers of the words are Nagios' own.

use super::{RefreshState, Status};
use crate::report::Ending;

/// A monitoring plugin's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// All is well.
    Ok = 0,
    /// Somebody should look at it in the morning.
    Warning = 1,
    /// Somebody should look at it now.
    Critical = 2,
    /// It cannot be told.
    Unknown = 3,
}

/// From which age of a destination's data on it matters, in seconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// To somebody.
    pub warning_s: Option<u64>,
    /// To somebody now.
    pub critical_s: Option<u64>,
}

/// Verdict and line, figures after a bar. Only of one refresh, if it is named.
pub fn judge(status: &Status, only: Option<&str>, limits: Limits) -> (Verdict, String) {
    let mut said: Vec<(Verdict, String)> = Vec::new();
    let wanted = |name: &str| only.is_none_or(|only| only == name);
    for alarm in status.alarms.iter().filter(|alarm| wanted(&alarm.refresh) || only.is_none()) {
        said.push((Verdict::Critical, format!("run {} of {}: {}", alarm.run, alarm.refresh, alarm.what)));
    }
    let mut figures = Vec::new();
    for refresh in status.refreshes.iter().filter(|refresh| wanted(&refresh.refresh)) {
        one(refresh, limits, &mut said, &mut figures);
    }
    let scheduled = status.refreshes.iter().any(|r| wanted(&r.refresh) && r.when.is_some() && r.enabled);
    match &status.daemon {
        None if scheduled => said.push((Verdict::Critical, "no daemon runs, schedules are not followed".to_owned())),
        Some(daemon) if daemon.reload_failed.is_some() => {
            said.push((
                Verdict::Warning,
                "the configuration was changed and has errors; the old one is followed".to_owned(),
            ));
        }
        _ => {}
    }
    let worst = said.iter().map(|(verdict, _)| *verdict).max().unwrap_or(Verdict::Ok);
    let word = match worst {
        Verdict::Ok => "OK",
        Verdict::Warning => "WARNING",
        Verdict::Critical => "CRITICAL",
        Verdict::Unknown => "UNKNOWN",
    };
    said.sort_by_key(|(verdict, _)| std::cmp::Reverse(*verdict));
    let text = match said.is_empty() {
        true => format!("{} refreshes", status.refreshes.iter().filter(|r| wanted(&r.refresh)).count()),
        false => said.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join("; "),
    };
    // a bar begins the figures, a line's end ends the answer
    let text = text.replace(['|', '\n', '\r'], " ");
    let figures = if figures.is_empty() { String::new() } else { format!(" | {}", figures.join(" ")) };
    (worst, format!("REFRESHD {word} - {text}{figures}"))
}

fn one(refresh: &RefreshState, limits: Limits, said: &mut Vec<(Verdict, String)>, figures: &mut Vec<String>) {
    let name = &refresh.refresh;
    if let Some(last) = &refresh.last {
        let reason = last.reason.clone().unwrap_or_default();
        match last.ending {
            Some(Ending::Done | Ending::Skipped | Ending::Cancelled) => {}
            Some(Ending::Human) => said.push((Verdict::Critical, format!("{name}: a human is needed: {reason}"))),
            Some(ending) => said.push((Verdict::Warning, format!("{name}: last run {}: {reason}", ending.name()))),
            None => said.push((Verdict::Critical, format!("{name}: last run interrupted"))),
        }
        for (what, value) in [("outage", last.outage_ms), ("total", last.total_ms)] {
            // 0: it never began, or recovery ended it
            if let Some(ms) = value.filter(|ms| *ms > 0) {
                figures.push(format!("'{name} {what}'={:.3}s", ms as f64 / 1000.0));
            }
        }
    }
    if let Some(paused) = &refresh.paused {
        said.push((Verdict::Warning, format!("{name}: paused by {}", paused.by)));
    }
    for destination in &refresh.destinations {
        let limit = |seconds: Option<u64>| seconds.map_or_else(String::new, |s| s.to_string());
        let over = |seconds: Option<u64>| seconds.is_some_and(|most| destination.age_s.is_none_or(|age| age > most));
        let age = destination.age_s.map_or_else(
            || "nothing known of its data".to_owned(),
            |age| format!("its data is {} old", humantime::format_duration(std::time::Duration::from_secs(age))),
        );
        if over(limits.critical_s) {
            said.push((Verdict::Critical, format!("{name}, {}: {age}", destination.host)));
        } else if over(limits.warning_s) {
            said.push((Verdict::Warning, format!("{name}, {}: {age}", destination.host)));
        }
        if let Some(age) = destination.age_s {
            let (warning, critical) = (limit(limits.warning_s), limit(limits.critical_s));
            figures.push(format!("'{name} {} age'={age}s;{warning};{critical}", destination.host));
        }
    }
}
