//! The controller's journal: whatever has happened to its file or to what stands in it, it is read or refused with words; and a run
//! whose rows can still be read is never taken for one that is over.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use chrono::Utc;
use mysql_refreshd::config::{Host, HostId};
use mysql_refreshd::host::Typed;
use mysql_refreshd::mutate::{self, Rng};
use mysql_refreshd::refresh::hosts::Descriptions;
use mysql_refreshd::refresh::recover;
use mysql_refreshd::refresh::undo::Undo;
use mysql_refreshd::report::{Ending, Event, Pulse, Stamped, Summary};
use mysql_refreshd::route::{AgentProgram, Route, Way};
use mysql_refreshd::store::{Filter, Missed, Paused, ScheduleRow, Store};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, params};

use crate::{alone, samples};

/// Runs with something left to put back.
const OPEN: [&str; 3] = ["20261127T023000Z-0001", "20261127T023000Z-0002", "20261127T023000Z-0003"];

fn undos(source: &HostId, destination: &HostId) -> Vec<Undo> {
    let (source, destination, runtime) = (source.clone(), destination.clone(), samples::runtime());
    let all = vec![
        Undo::DiscardStage { host: destination.clone() },
        Undo::Undrain { host: source.clone(), runtime: runtime.clone() },
        Undo::DisarmGuard { host: source.clone() },
        Undo::Thaw { host: source.clone() },
        Undo::StartServer { host: source, runtime },
        Undo::UndoSwap { host: destination },
    ];
    // a new one belongs into the list above
    let number = |undo: &Undo| match undo {
        Undo::DiscardStage { .. } => 0,
        Undo::Undrain { .. } => 1,
        Undo::DisarmGuard { .. } => 2,
        Undo::Thaw { .. } => 3,
        Undo::StartServer { .. } => 4,
        Undo::UndoSwap { .. } => 5,
    };
    assert!(all.iter().map(number).eq(0..6));
    all
}

/// Hosts whose agents cannot be started: nothing is put back, whatever the journal says.
fn descriptions() -> Descriptions {
    let config = samples::shipped("minimal.toml");
    let far = |host: &Host| Host {
        route: Route {
            way: Way::Local,
            agent: AgentProgram::Installed("/nonexistent/mysql-refreshd".into()),
            sudo: false,
            policy: None,
        },
        ..host.clone()
    };
    let host = |id: &str| far(config.host(&id.parse().unwrap()).unwrap());
    Descriptions { source: Some(host("prod/db1")), destinations: vec![host("rnd/r1")] }
}

/// A journal as runs leave it: one killed in the middle, one that could not put all back, one killed before its first act, and some
/// that are over.
fn fill(store: &Store) {
    let descriptions = descriptions();
    let hosts = serde_json::to_string(&descriptions).unwrap();
    let undos = undos(&descriptions.source.as_ref().unwrap().id, &descriptions.destinations[0].id);
    let mut runs = OPEN.to_vec();
    runs.extend(["20261126T023000Z-0004", "20261125T023000Z-0005"]);
    for (n, run) in runs.iter().enumerate() {
        let alive = store.begin(&samples::holder(run), &hosts).unwrap();
        let event = Event::Note { host: "prod/db1".into(), text: "x".repeat(300) };
        (0..3).for_each(|_| store.keep(&stamped(run, event.clone())));
        let ids: Vec<i64> = match n {
            2 => Vec::new(),
            _ => undos.iter().map(|undo| store.arm(run, &serde_json::to_string(undo).unwrap()).unwrap()).collect(),
        };
        if n == 1 {
            store.failed(ids[0], "no connection");
            store.finish(run, &Summary::of_nothing(run, "nightly", Ending::Human)).unwrap();
        }
        if n > 2 {
            ids.into_iter().for_each(|id| store.settle(id).unwrap());
            store.finish(run, &Summary::of_nothing(run, "nightly", Ending::Done)).unwrap();
        }
        drop(alive);
    }
    for name in ["nightly", "weekly"] {
        let now = Utc::now();
        let missed = Some(Missed { planned: now, why: "a blackout forbade it".into() });
        let paused = Some(Paused { since: now, by: "root (uid 0)".into() });
        let row = ScheduleRow { schedule: Some("30 2 * * * UTC".into()), seen: Some(now), missed, paused };
        store.keep_schedule(name, &row).unwrap();
    }
}

fn stamped(run: &str, event: Event) -> Stamped {
    Stamped { run: run.into(), at: "2026-11-27T02:30:00.000Z".into(), event }
}

/// The journal's file, everything in it.
fn written() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    fill(&store);
    drop(store);
    assert!(!folder.path().join("history.db-wal").exists(), "the last one who leaves takes the log along");
    fs::read(folder.path().join("history.db")).unwrap()
}

/// What whoever reads every row one after the other finds: runs that need recovery. None: not all can be read.
fn readable(folder: &Path) -> Option<BTreeSet<String>> {
    let db = Connection::open(folder.join("history.db")).ok()?;
    let text = |value: ValueRef<'_>| match value {
        ValueRef::Null => None,
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        ValueRef::Integer(number) => Some(number.to_string()),
        ValueRef::Real(number) => Some(number.to_string()),
    };
    let read = |query: &str| -> rusqlite::Result<Vec<(String, Option<String>)>> {
        let row = |row: &rusqlite::Row<'_>| Ok((text(row.get_ref(0)?).unwrap_or_default(), text(row.get_ref(1)?)));
        db.prepare(query)?.query_map([], row)?.collect()
    };
    let runs = read("SELECT run, finished FROM runs NOT INDEXED").ok()?;
    let undos = read("SELECT run, state FROM undos NOT INDEXED").ok()?;
    let over = |state: &Option<String>| matches!(state.as_deref(), Some("done" | "forgotten"));
    let open = runs.into_iter().filter(|(_, finished)| finished.is_none()).map(|(run, _)| run);
    let armed = undos.into_iter().filter(|(_, state)| !over(state)).map(|(run, _)| run);
    Some(open.chain(armed).collect())
}

/// Reads everything that there is to read.
fn judge(folder: &Path) {
    let readable = readable(folder);
    let text = |problem: mysql_refreshd::problem::Problem| assert!(problem.to_string().len() > 10, "{problem:?}");
    let store = match Store::open(folder) {
        Ok(store) => store,
        Err(problem) => return text(problem),
    };
    match store.interrupted() {
        Ok(list) => {
            let found: BTreeSet<String> = list.into_iter().map(|(run, ..)| run).collect();
            let forgotten: Vec<&String> = readable.iter().flatten().filter(|run| !found.contains(*run)).collect();
            assert!(forgotten.is_empty(), "forgotten: {forgotten:?} of {readable:?}, found {found:?}");
        }
        Err(problem) => text(problem),
    }
    for run in OPEN {
        let _ = (store.armed(run), store.show(run), store.at_work(run));
    }
    let _ = store.history(&Filter { limit: 10, destination: Some("rnd/r1".into()), ..Filter::default() });
    let _ = store.schedules();
}

/// A folder in a folder: what is written beside it shows.
fn around(outer: &Path) {
    let names: Vec<_> = fs::read_dir(outer).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["state"], "something was written outside of the state folder");
}

/// One of a row's values, damaged.
fn touch_a_row(rng: &mut Rng, db: &Connection) -> (&'static str, &'static str) {
    let places = [
        ("undos", "undo"),
        ("undos", "undo"),
        ("runs", "hosts"),
        ("runs", "hosts"),
        ("undos", "state"),
        ("undos", "run"),
        ("undos", "problem"),
        ("runs", "run"),
        ("runs", "refresh"),
        ("runs", "started"),
        ("runs", "finished"),
        ("runs", "summary"),
        ("runs", "ending"),
        ("events", "event"),
        ("events", "run"),
        ("schedules", "seen"),
        ("schedules", "missed"),
        ("schedules", "paused"),
        ("schedules", "schedule"),
    ];
    let (table, column) = places[rng.usize(..places.len())];
    let rows: Vec<(i64, Option<String>)> = db
        .prepare(&format!("SELECT rowid, {column} FROM {table}"))
        .unwrap()
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let all: Vec<String> = rows.iter().filter_map(|(_, text)| text.clone()).chain(["{}".to_owned()]).collect();
    let (row, value) = mutate::pick(rng, &rows).cloned().unwrap();
    // of the very value, mostly
    let samples = if rng.u8(..4) > 0 { vec![value.unwrap_or_default()] } else { all };
    let damaged = mutate::text(rng, &samples);
    // a text, though it may not be one; or what SQLite stores as bytes
    let cast = if rng.u8(..8) == 0 { "?1" } else { "CAST(?1 AS TEXT)" };
    // two rows of one name are none of ours
    let _ = db.execute(&format!("UPDATE {table} SET {column} = {cast} WHERE rowid = ?2"), params![damaged, row]);
    (table, column)
}

#[test]
fn damaged_rows() {
    let _alone = alone();
    let base = written();
    mutate::run("journal's rows", move |rng| {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("state");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("history.db"), &base).unwrap();
        let db = Connection::open(folder.join("history.db")).unwrap();
        db.execute_batch("PRAGMA synchronous = OFF; PRAGMA foreign_keys = OFF").unwrap();
        let (table, _) = touch_a_row(rng, &db);
        let pauses: Vec<String> = db
            .prepare("SELECT refresh FROM schedules WHERE paused IS NOT NULL")
            .unwrap()
            .query_map([], |row| row.get(0))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        drop(db);
        judge(&folder);
        if table == "schedules" {
            // a pause that cannot be read is one all the same
            let rows = Store::open(&folder).unwrap().schedules().unwrap_or_default();
            for name in pauses {
                assert!(rows.get(&name).is_none_or(|row| row.paused.is_some()), "{name} is followed again");
            }
        }
        around(outer.path());
    });
}

#[test]
fn recovery_from_damaged_rows_forgets_nothing() {
    let _alone = alone();
    let base = written();
    let daemon = samples::shipped("minimal.toml").daemon;
    mutate::run("recovery", move |rng| {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("state");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("history.db"), &base).unwrap();
        let db = Connection::open(folder.join("history.db")).unwrap();
        db.execute_batch("PRAGMA synchronous = OFF; PRAGMA foreign_keys = OFF").unwrap();
        touch_a_row(rng, &db);
        let armed = |db: &Connection| -> i64 {
            let query = "SELECT COUNT(*) FROM undos NOT INDEXED WHERE state IS NOT 'done' AND state IS NOT 'forgotten'";
            db.query_row(query, [], |row| row.get(0)).unwrap()
        };
        let before = armed(&db);
        let store = Store::open(&folder).unwrap();
        let wanted = readable(&folder);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (typed, pulse) = (Typed::default(), Pulse::default());
        let recovered = runtime.block_on(recover::all(&daemon, &store, Vec::new(), &typed, &pulse));
        // no agent could be reached: what was armed is armed, and a human hears of it
        assert_eq!(armed(&db), before);
        match recovered {
            Ok(all) => {
                let left: BTreeSet<&str> = all.iter().filter(|r| !r.left.is_empty()).map(|r| r.run.as_str()).collect();
                for (run, ..) in store.interrupted().unwrap() {
                    assert!(left.contains(run.as_str()), "{run} was not put back, and nobody hears of it");
                }
                let seen: BTreeSet<&str> = all.iter().map(|r| r.run.as_str()).collect();
                let lost: Vec<&String> = wanted.iter().flatten().filter(|run| !seen.contains(run.as_str())).collect();
                assert!(lost.is_empty(), "not looked at: {lost:?}");
            }
            // one row that cannot be read as what it should be keeps all others from it: that is said, and nothing is lost
            Err(problem) => assert!(problem.to_string().contains("journal"), "{problem}"),
        }
        drop((db, store));
        around(outer.path());
    });
}

#[test]
fn a_damaged_file() {
    let _alone = alone();
    let base = written();
    mutate::run("journal's file", move |rng| {
        let folder = tempfile::tempdir().unwrap();
        let mut bytes = base.clone();
        match rng.u8(..3) {
            // bits turn over on a disk where something stands
            0 => {
                let full: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
                for _ in 0..1 + rng.usize(..4) {
                    bytes[full[rng.usize(..full.len())]] ^= 1 << rng.u8(..8);
                }
            }
            // and pages are lost, or come to stand in another's place
            1 => {
                let pages = bytes.len() / 4096;
                let (one, other) = (rng.usize(..pages) * 4096, rng.usize(..pages) * 4096);
                let page = if rng.bool() { bytes[other..other + 4096].to_vec() } else { vec![0; 4096] };
                bytes[one..one + 4096].copy_from_slice(&page);
            }
            _ => bytes = mutate::bytes(rng, std::slice::from_ref(&base)),
        }
        fs::write(folder.path().join("history.db"), bytes).unwrap();
        judge(folder.path());
    });
}

#[test]
fn a_damaged_or_missing_log_beside_the_file() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    fill(&store);
    let files = ["history.db", "history.db-wal", "history.db-shm"]
        .map(|name| (name, fs::read(folder.path().join(name)).unwrap()));
    drop(store);
    mutate::run("journal's log", move |rng| {
        let folder = tempfile::tempdir().unwrap();
        let hit = rng.usize(..3);
        for (n, (name, bytes)) in files.iter().enumerate() {
            let bytes = if n == hit { mutate::bytes(rng, std::slice::from_ref(bytes)) } else { bytes.clone() };
            // or it is not there at all
            if n != hit || n == 0 || rng.u8(..4) > 0 {
                fs::write(folder.path().join(name), bytes).unwrap();
            }
        }
        judge(folder.path());
    });
}
