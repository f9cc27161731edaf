//! The journal: what is armed is found again, whoever looks, and whatever else is damaged.

use super::*;
use crate::problem::Problem;

fn holder(run: &str) -> Holder {
    Holder {
        run: run.into(),
        refresh: "nightly".into(),
        pid: 1,
        host: "h".into(),
        since: "2026-01-01T00:00:00Z".into(),
        step: String::new(),
    }
}

#[test]
fn a_run_is_interrupted_only_when_nobody_holds_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let alive = store.begin(&holder("r1"), "{}").unwrap();
    let first = store.arm("r1", "one").unwrap();
    store.arm("r1", "two").unwrap();
    assert!(store.interrupted().unwrap().is_empty());
    drop(alive);
    assert_eq!(store.interrupted().unwrap().len(), 1);
    let armed: Vec<_> = store.armed("r1").unwrap().into_iter().map(|row| row.undo).collect();
    assert_eq!(armed, ["two", "one"], "newest first");
    store.settle(first).unwrap();
    assert_eq!(store.armed("r1").unwrap().len(), 1);
}

#[test]
fn what_is_armed_is_found_whatever_else_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    for run in ["r1", "r2", "r3"] {
        drop(store.begin(&holder(run), "{}").unwrap());
        store.arm(run, "undo").unwrap();
        store.finish(run, &Summary::of_nothing(run, "n", Ending::Human)).unwrap();
    }
    store.db().pragma_update(None, "foreign_keys", false).unwrap();
    let change = |sql: &str| assert_eq!(store.db().execute(sql, []).unwrap(), 1);
    // a word that nobody writes, a run that is not there, something that is no text
    change("UPDATE undos SET state = 'arled' WHERE run = 'r1'");
    change("UPDATE undos SET run = 'r9' WHERE run = 'r2'");
    change("UPDATE runs SET hosts = X'ff00' WHERE run = 'r3'");
    let found: Vec<String> = store.interrupted().unwrap().into_iter().map(|(run, ..)| run).collect();
    assert_eq!(found, ["r1", "r3", "r9"]);
    assert_eq!(store.armed("r1").unwrap().len() + store.armed("r9").unwrap().len(), 2);
    assert!(store.forget("r9").unwrap() && store.interrupted().unwrap().len() == 2);
    // an index that misses a row
    drop(store);
    let raw = || Connection::open(dir.path().join("history.db")).unwrap();
    let db = raw();
    let root: i64 =
        db.query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'undos_by_run'", [], |row| row.get(0)).unwrap();
    db.execute_batch("PRAGMA writable_schema = ON; DELETE FROM sqlite_schema WHERE name = 'undos_by_run'").unwrap();
    drop(db);
    let db = raw();
    db.execute_batch(
        "INSERT INTO undos (run, undo, state) VALUES ('r1', 'hidden', 'armed'); PRAGMA writable_schema = ON",
    )
    .unwrap();
    let index = "INSERT INTO sqlite_schema VALUES ('index', 'undos_by_run', 'undos', ?, 'CREATE INDEX undos_by_run ON undos (run)')";
    db.execute(index, [root]).unwrap();
    drop(db);
    let armed = Store::open(dir.path()).unwrap().armed("r1").unwrap();
    assert_eq!((armed.len(), armed[0].undo.as_str()), (2, "hidden"));
}

#[test]
fn the_name_of_a_run_leads_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("state");
    let store = Store::open(&folder).unwrap();
    store
        .db()
        .execute("INSERT INTO runs (run, refresh, started, hosts) VALUES ('../../x', 'n', '', '{}')", [])
        .unwrap();
    assert_eq!(store.interrupted().unwrap().len(), 1);
    assert!(store.take_over("../../x").unwrap_err().to_string().contains("../../x"));
    assert!(!dir.path().join("x.lock").exists());
    assert!(store.forget("../../x").unwrap() && store.interrupted().unwrap().is_empty());
}

#[test]
fn a_pause_that_cannot_be_read_is_one_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let paused = Some(Paused { since: Utc::now(), by: "root".into() });
    store.keep_schedule("n", &ScheduleRow { seen: Some(Utc::now()), paused, ..ScheduleRow::default() }).unwrap();
    store
        .db()
        .execute("UPDATE schedules SET paused = substr(paused, 2), seen = '-262143-01-01T00:00:00Z'", [])
        .unwrap();
    let row = store.schedules().unwrap().remove("n").unwrap();
    assert!(row.paused.is_some() && row.seen.is_none(), "{row:?}");
}

#[test]
fn many_may_open_it_at_once_before_it_is_there() {
    for _ in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        let open = |_| {
            std::thread::spawn({
                let path = dir.path().to_owned();
                move || Store::open(&path).map(drop)
            })
        };
        let all: Vec<_> = (0..6).map(open).collect();
        all.into_iter().for_each(|one| one.join().unwrap().unwrap());
    }
}

#[test]
fn the_journal_is_read_back_by_another_process() {
    let dir = tempfile::tempdir().unwrap();
    let alive = Store::open(dir.path()).unwrap();
    let lock = alive.begin(&holder("r1"), "{}").unwrap();
    alive.arm("r1", "one").unwrap();
    drop((alive, lock));
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.armed("r1").unwrap()[0].undo, "one");
    assert_eq!(store.history(&Filter { limit: 10, ..Filter::default() }).unwrap()[0].armed, 1);
}

#[test]
fn what_was_refreshed_is_known_when_the_controller_dies_before_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let result = |host: &str, refreshed: bool| DestinationResult {
        host: host.to_owned(),
        refreshed,
        serves: None,
        problem: None,
        notes: Vec::new(),
    };
    for (run, done, ending) in [("r1", &["rnd/a"][..], Ending::Partial), ("r2", &["rnd/b", "rnd/a"], Ending::Done)] {
        drop(store.begin(&holder(run), "{}").unwrap());
        done.iter().for_each(|host| store.refreshed(run, "nightly", result(host, true)).unwrap());
        let row = store.show(run).unwrap().unwrap().0;
        assert!(row.summary.is_none() && row.finished.is_none());
        // nothing of it was armed any more
        let found = Summary {
            destinations: vec![result("rnd/a", false), result("rnd/b", false)],
            problem: Some(Problem::failed("the run was interrupted")),
            ..Summary::of_nothing(run, "nightly", Ending::Failed)
        };
        store.finish_recovered(run, &found).unwrap();
        let told = store.show(run).unwrap().and_then(|(row, _)| row.summary).unwrap();
        let refreshed: Vec<_> = told.destinations.iter().filter(|d| d.refreshed).map(|d| d.host.as_str()).collect();
        assert_eq!(
            (told.ending, refreshed, told.problem.is_none()),
            (ending, done.to_vec(), ending == Ending::Done),
            "{run}"
        );
    }
}

#[test]
fn what_recovery_finds_done_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let result = |host: &str, refreshed: bool| {
        let (serves, problem) = (None, (!refreshed).then(|| Problem::failed("lost")));
        DestinationResult { host: host.to_owned(), refreshed, serves, problem, notes: Vec::new() }
    };
    let summary = |run: &str, ending, found: [bool; 2]| {
        let destinations = vec![result("rnd/a", found[0]), result("rnd/b", found[1])];
        Summary { destinations, ..Summary::of_nothing(run, "nightly", ending) }
    };
    for (run, before, found, after, ending) in [
        ("r1", [false, false], [false, false], [false, false], Ending::Failed),
        ("r2", [true, false], [false, false], [true, false], Ending::Partial),
        ("r3", [false, false], [false, true], [false, true], Ending::Partial),
        ("r4", [true, false], [false, true], [true, true], Ending::Done),
    ] {
        drop(store.begin(&holder(run), "{}").unwrap());
        store.finish(run, &summary(run, Ending::Human, before)).unwrap();
        store.finish_recovered(run, &summary(run, Ending::Failed, found)).unwrap();
        let told = store.show(run).unwrap().and_then(|(row, _)| row.summary).unwrap();
        let refreshed: Vec<bool> = told.destinations.iter().map(|d| d.refreshed).collect();
        assert_eq!((told.ending, refreshed), (ending, after.to_vec()), "{run}");
        assert!(told.destinations.iter().all(|d| d.problem.is_none() == d.refreshed), "{run}");
    }
}
