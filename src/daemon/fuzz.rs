//! Damage to what the daemon is told over its socket, and to what it remembers of schedules: a request is understood as it was meant or
//! not at all, and a schedule that was not to be followed is not followed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use chrono::{DateTime, TimeDelta, Utc};

use super::control::understand;
use super::message::{Answer, Greeting, PROTOCOL, Request};
use super::queue::Work;
use super::timetable::Timetable;
use crate::config::{Config, Sources, load};
use crate::mutate;
use crate::problem::Problem;
use crate::report::{Ending, Event, Stamped, Summary};
use crate::store::{Filter, Missed, Paused, RunRow, ScheduleRow, Store};

const STATE: &str = "/var/lib/mysql-refreshd/controller";

fn requests() -> Vec<Request> {
    let filter = Filter {
        refresh: Some("nightly".into()),
        ending: Some(Ending::Done),
        since: Some(Utc::now()),
        limit: 9,
        ..Filter::default()
    };
    let work = |work| Request::Do { work, no_wait: false, despite_blackout: true };
    let all = vec![
        work(Work::Refresh("nightly".into())),
        work(Work::Rollback("rnd/r1".parse().unwrap())),
        Request::Cancel { run: "20261127T023000Z-0001".into() },
        Request::Pause { refresh: "nightly".into() },
        Request::Resume { refresh: "nightly".into() },
        Request::Reload,
        Request::Status,
        Request::History(filter),
        Request::Show { run: "20261127T023000Z-0001".into() },
    ];
    // a new one belongs into the list above
    let number = |request: &Request| match request {
        Request::Do { work: Work::Refresh(_), .. } => 0,
        Request::Do { work: Work::Rollback(_), .. } => 1,
        Request::Cancel { .. } => 2,
        Request::Pause { .. } => 3,
        Request::Resume { .. } => 4,
        Request::Reload => 5,
        Request::Status => 6,
        Request::History(_) => 7,
        Request::Show { .. } => 8,
    };
    assert!(all.iter().map(number).eq(0..9));
    all
}

#[test]
fn damaged_requests() {
    let line = |request| {
        let (state_dir, configuration) = (PathBuf::from(STATE), "0123abcd".to_owned());
        serde_json::to_string(&Greeting { protocol: PROTOCOL, state_dir, configuration, request }).unwrap()
    };
    let samples: Vec<String> = requests().into_iter().map(line).collect();
    for sample in &samples {
        let understood = understand(sample, Path::new(STATE)).unwrap();
        assert_eq!(&serde_json::to_string(&understood).unwrap(), sample);
    }
    mutate::run("requests", move |rng| {
        let line = String::from_utf8_lossy(&mutate::text(rng, &samples)).into_owned();
        match understand(&line, Path::new(STATE)) {
            Ok(greeting) => {
                assert!(greeting.protocol == PROTOCOL && greeting.state_dir == Path::new(STATE));
                let text = serde_json::to_string(&greeting).unwrap();
                assert_eq!(serde_json::to_string(&understand(&text, Path::new(STATE)).unwrap()).unwrap(), text);
            }
            Err(problem) => assert!(problem.to_string().len() > 10),
        }
    });
}

#[test]
fn damaged_answers() {
    let summary = Summary::of_nothing("r1", "nightly", Ending::Partial);
    let note = Event::Note { host: "prod/db1".into(), text: "x".into() };
    let stamped = Stamped { run: "r1".into(), at: "2026-11-27T02:30:00.000Z".into(), event: note };
    let row = RunRow {
        run: "r1".into(),
        refresh: "nightly".into(),
        started: "2026-11-27T02:30:00Z".into(),
        finished: None,
        summary: Some(summary.clone()),
        armed: u64::MAX,
        interrupted: true,
    };
    let answers = [
        Answer::Event(Box::new(stamped.clone())),
        Answer::Note("n".into()),
        Answer::Finished(Box::new(summary)),
        Answer::Done("d".into()),
        Answer::Failed(Problem::refused("no").cause("c").hint("H.")),
        Answer::History(vec![row.clone()]),
        Answer::Shown(Some(Box::new((row, vec![stamped])))),
        Answer::Shown(None),
    ];
    let samples: Vec<String> = answers.iter().map(|answer| serde_json::to_string(answer).unwrap()).collect();
    mutate::run("answers", move |rng| {
        if let Ok(answer) = serde_json::from_slice::<Answer>(&mutate::text(rng, &samples)) {
            let text = serde_json::to_string(&answer).unwrap();
            assert_eq!(serde_json::to_string(&serde_json::from_str::<Answer>(&text).unwrap()).unwrap(), text);
        }
    });
}

/// Schedules of every kind, in zones on both sides.
fn config() -> Config {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    let mut text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/minimal.toml")).unwrap();
    let more = [
        ("one", "schedule = '*/5 * * * *'\njitter = '4m'"),
        ("two", "schedule = '@daily'\ntime_zone = 'America/New_York'\ncatch_up = true\nblackout = ['22:00-04:00']"),
        ("three", "schedule = '30 2 29 2 *'\ntime_zone = 'Pacific/Kiritimati'\ncatch_up = '6h'"),
    ];
    for (name, keys) in more {
        text.push_str(&format!("\n[refreshes.{name}]\nsource = 'prod'\ndestinations = ['rnd']\n{keys}\n"));
    }
    std::fs::write(&file, text).unwrap();
    load(&Sources { file, ..Sources::default() }).unwrap()
}

#[test]
fn damaged_memory_of_schedules() {
    let config = config();
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let db = rusqlite::Connection::open(folder.path().join("history.db")).unwrap();
    db.pragma_update(None, "synchronous", "OFF").unwrap();
    mutate::run("memory of schedules", move |rng| {
        let _ = &folder;
        let now = Utc::now();
        let seen = Some(now - TimeDelta::hours(rng.i64(-5..50)));
        for name in config.refreshes.keys() {
            let schedule = config.refreshes[name].schedule.as_ref().map(crate::config::Schedule::text);
            let missed = Some(Missed { planned: now, why: "a blackout forbade it".into() });
            let paused = rng.bool().then(|| Paused { since: now, by: "root".into() });
            store.keep_schedule(name, &ScheduleRow { schedule, seen, missed, paused }).unwrap();
        }
        let (row, column) = (rng.usize(..3), ["seen", "missed", "paused", "schedule"][rng.usize(..4)]);
        let name = ["one", "two", "three"][row];
        let text: Option<String> = db
            .query_row(&format!("SELECT {column} FROM schedules WHERE refresh = ?"), [name], |row| row.get(0))
            .unwrap();
        let samples = [
            "-262143-01-01T00:00:00Z",
            "+262142-12-31T23:59:59.999999999Z",
            "9999-12-31T23:59:59Z",
            "1969-01-01T00:00:00+14:00",
        ];
        let samples: Vec<String> = samples.iter().map(|text| (*text).to_owned()).chain(text.clone()).collect();
        if text.is_some() {
            let damaged = if rng.bool() {
                mutate::pick(rng, &samples).cloned().unwrap().into_bytes()
            } else {
                mutate::text(rng, &samples)
            };
            let set = format!("UPDATE schedules SET {column} = CAST(?1 AS TEXT) WHERE refresh = ?2");
            db.execute(&set, rusqlite::params![damaged, name]).unwrap();
        }
        let was_paused: BTreeMap<String, bool> = db
            .prepare("SELECT refresh, paused IS NOT NULL FROM schedules")
            .unwrap()
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        let Ok(rows) = store.schedules() else { return };
        let mut table = Timetable::new(config.refreshes.values(), &rows, now);
        let mut moment: DateTime<Utc> = now;
        for _ in 0..5 {
            for (name, _) in table.due(moment) {
                assert!(!was_paused[&name], "{name} is paused, and is followed");
            }
            for name in config.refreshes.keys() {
                let _ = (table.next(name, moment), table.seen(name));
            }
            if let Some(wake) = table.wake(moment) {
                moment = wake.max(moment) + TimeDelta::seconds(1);
            }
        }
        for name in config.refreshes.keys() {
            // what is written again is what is known
            let row = rows.get(name).cloned().unwrap_or_default();
            store.keep_schedule(name, &row).unwrap();
            assert_eq!(store.schedules().unwrap()[name], row);
        }
    });
}
