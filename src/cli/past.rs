//! What was done: lists of runs, one run, and a picture of their times. From the daemon where one runs, else from the files.

use std::path::Path;
use std::str::FromStr;

use chrono::{DateTime, Local, NaiveDate, NaiveTime, TimeZone, Utc};

use super::args::Global;
use super::{ask, load_kept, one_off, out, plot, terminal, views};
use crate::config::Config;
use crate::daemon::message::{Answer, Request};
use crate::failure;
use crate::problem::{Kind, Outcome, Problem};
use crate::report::Ending;
use crate::store::{Filter, Store};

/// A filter as typed.
pub(super) struct Wanted {
    pub refresh: Option<String>,
    pub destination: Option<String>,
    pub result: Option<String>,
    pub since: Option<String>,
    pub until: Option<String>,
    pub limit: u32,
}

impl Wanted {
    fn is_everything(&self) -> bool {
        [&self.refresh, &self.destination, &self.result, &self.since, &self.until].iter().all(|one| one.is_none())
    }

    fn filter(&self) -> Outcome<Filter> {
        Ok(Filter {
            refresh: self.refresh.clone(),
            destination: self.destination.clone(),
            ending: self.result.as_deref().map(ending).transpose()?,
            since: self.since.as_deref().map(|text| moment("--since", text)).transpose()?,
            until: self.until.as_deref().map(until).transpose()?,
            limit: self.limit,
        })
    }
}

fn ending(text: &str) -> Outcome<Ending> {
    let word = |ending: Ending| ending.name().split(' ').next().unwrap_or_default();
    Ending::ALL.into_iter().find(|known| word(*known) == text || known.name() == text).ok_or_else(|| {
        let words: Vec<&str> = Ending::ALL.into_iter().map(word).collect();
        Problem::new(Kind::Usage, format!("{text:?} is no result")).hint(format!("Results are: {}.", words.join(", ")))
    })
}

/// A date (its begin here), a time, or how long ago.
fn moment(option: &str, text: &str) -> Outcome<DateTime<Utc>> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.with_timezone(&Utc));
    }
    if let Ok(date) = NaiveDate::from_str(text)
        && let Some(begin) = Local.from_local_datetime(&date.and_time(NaiveTime::MIN)).earliest()
    {
        return Ok(begin.with_timezone(&Utc));
    }
    let ago = humantime::parse_duration(text).ok().and_then(|ago| chrono::Duration::from_std(ago).ok());
    ago.and_then(|ago| Utc::now().checked_sub_signed(ago)).ok_or_else(|| {
        Problem::new(Kind::Usage, format!("{option}: {text:?} is no time"))
            .hint("Write 2026-12-01, 2026-12-01T02:30:00Z, or how long ago: 7d.")
    })
}

/// The same; a date's whole day is meant.
fn until(text: &str) -> Outcome<DateTime<Utc>> {
    let begin = moment("--until", text)?;
    Ok(if NaiveDate::from_str(text).is_ok() {
        begin + chrono::Duration::days(1) - chrono::Duration::seconds(1)
    } else {
        begin
    })
}

/// Every history that there is. One that cannot be read is named.
pub(super) fn stores(config: &Config) -> Vec<Store> {
    stores_but(config, None)
}

fn stores_but(config: &Config, known: Option<&Path>) -> Vec<Store> {
    let mut own = config.clone();
    one_off::own_places(&mut own);
    let mut folders = vec![config.daemon.state_dir.clone()];
    if !folders.contains(&own.daemon.state_dir) {
        folders.push(own.daemon.state_dir);
    }
    folders.retain(|folder| Some(folder.as_path()) != known);
    let mut stores = Vec::new();
    for folder in folders.iter().filter(|folder| folder.join("history.db").exists()) {
        match Store::open(folder) {
            Ok(store) => stores.push(store),
            Err(problem) => {
                terminal::say(&format!("warning: {problem}; run this as the account that owns it, or with sudo"));
            }
        }
    }
    stores
}

/// What the daemon says, and the files that it does not know; if it may not be asked, all files, and if none of them may be read either,
/// that is said.
fn asked(config: &Config, request: Request) -> Outcome<(Option<Answer>, Vec<Store>)> {
    match ask::about(config, request) {
        Ok(Some(answer)) => Ok((Some(answer), stores_but(config, Some(&config.daemon.state_dir)))),
        Ok(None) => Ok((None, stores(config))),
        Err(problem) => {
            let stores = stores(config);
            if stores.is_empty() {
                return Err(problem);
            }
            terminal::say(&format!("warning: {problem}"));
            Ok((None, stores))
        }
    }
}

/// A list, or a picture.
pub(super) fn history(global: &Global, wanted: &Wanted, picture: bool) -> Outcome<u8> {
    let config = load_kept(global)?;
    let filter = wanted.filter()?;
    let (answer, files) = asked(&config, Request::History(filter.clone()))?;
    let mut rows = match answer {
        Some(Answer::History(theirs)) => theirs,
        _ => Vec::new(),
    };
    for store in files {
        rows.extend(store.history(&filter)?);
    }
    rows.sort_by(|a, b| b.run.cmp(&a.run));
    rows.truncate(filter.limit as usize);
    out(&match (global.json, picture) {
        (true, _) => views::json(&rows)?,
        (false, true) => plot::draw(&rows, terminal::width()),
        (false, false) if rows.is_empty() && !wanted.is_everything() => "No run matches.".to_owned(),
        (false, false) => views::history(&rows),
    });
    Ok(failure::DONE)
}

/// One run.
pub(super) fn show(global: &Global, run: &str) -> Outcome<u8> {
    let config = load_kept(global)?;
    let (answer, files) = asked(&config, Request::Show { run: run.to_owned() })?;
    let mut found = match answer {
        Some(Answer::Shown(found)) => found.map(|found| *found),
        _ => None,
    };
    for store in files {
        found = found.or(store.show(run)?);
    }
    let (row, events) = found.ok_or_else(|| {
        Problem::new(Kind::Usage, format!("no run {run:?} in the history"))
            .hint("`mysql-refreshd history` lists the runs.")
    })?;
    out(&if global.json {
        views::json(&serde_json::json!({ "run": row, "events": events }))?
    } else {
        views::show(&row, &events)
    });
    Ok(failure::DONE)
}
