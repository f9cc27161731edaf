//! Journal and history in one SQLite file: which runs there were, what they told, and which undos are armed.
//!
//! Written synchronously: what `arm` returned for is on disk before the act. Knows nothing of what an undo does; it keeps
//! texts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Datelike, SecondsFormat, Utc};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use serde::{Deserialize, Serialize};

use crate::lock;
use crate::problem::{Explain, Outcome};
use crate::report::{DestinationResult, Ending, Event, Stamped, Summary};
use crate::wire::message::Holder;

/// The open file; cheap to clone.
#[derive(Clone)]
pub struct Store {
    db: Arc<Mutex<Connection>>,
    // events apart: they need not reach the disk one by one, and must not make an `arm` wait
    events: Arc<Mutex<Connection>>,
    folder: PathBuf,
}

/// A run as history knows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunRow {
    /// Its id.
    pub run: String,
    /// The refresh.
    pub refresh: String,
    /// RFC 3339.
    pub started: String,
    /// RFC 3339; None: under way, or interrupted.
    pub finished: Option<String>,
    /// How it ended.
    pub summary: Option<Summary>,
    /// Undos that are armed and not yet done.
    pub armed: u64,
    /// It has not finished, and nobody is at it any more.
    pub interrupted: bool,
}

/// An armed undo.
#[derive(Debug, Clone)]
pub struct UndoRow {
    /// Its number; later ones are greater.
    pub id: i64,
    /// The undo.
    pub undo: String,
}

/// Which runs are wanted.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Filter {
    /// Of this refresh.
    pub refresh: Option<String>,
    /// With this destination, as ENVIRONMENT/HOST.
    pub destination: Option<String>,
    /// That ended so.
    pub ending: Option<Ending>,
    /// Begun then or later.
    pub since: Option<DateTime<Utc>>,
    /// Begun then or before.
    pub until: Option<DateTime<Utc>>,
    /// How many at most.
    pub limit: u32,
}

/// What the daemon remembers of a refresh's schedule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleRow {
    /// The schedule it is about, as text.
    pub schedule: Option<String>,
    /// The latest occurrence that was dealt with: run, or left out.
    pub seen: Option<DateTime<Utc>>,
    /// The latest one that was left out, and why.
    pub missed: Option<Missed>,
    /// Who wished that the schedule not be followed, and since when.
    pub paused: Option<Paused>,
}

/// An occurrence of a schedule that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missed {
    /// When it would have been.
    pub planned: DateTime<Utc>,
    /// Why it was not.
    pub why: String,
}

/// A pause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paused {
    /// Since when.
    pub since: DateTime<Utc>,
    /// Whose wish it was.
    pub by: String,
}

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS runs (
    run TEXT PRIMARY KEY, refresh TEXT NOT NULL, started TEXT NOT NULL, finished TEXT, ending TEXT, summary TEXT, hosts TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS undos (
    id INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL REFERENCES runs(run), undo TEXT NOT NULL, state TEXT NOT NULL, problem TEXT
);
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL REFERENCES runs(run), event TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS schedules (
    refresh TEXT PRIMARY KEY, schedule TEXT, seen TEXT, missed TEXT, paused TEXT
);
CREATE INDEX IF NOT EXISTS undos_by_run ON undos (run);
CREATE INDEX IF NOT EXISTS events_by_run ON events (run);
PRAGMA user_version = 1;
";

/// Of an undo: it may still be needed. A word that nobody has written counts as well: an undo that is fired once more does no harm, one
/// that is forgotten does.
const ARMED: &str = "state IS NOT 'done' AND state IS NOT 'forgotten'";

/// How long another process may have the file for itself.
const BUSY: Duration = Duration::from_secs(30);

impl Store {
    /// Opens the file below the controller's state folder; creates both.
    pub fn open(state_dir: &Path) -> Outcome<Self> {
        std::fs::create_dir_all(state_dir).map_err(|e| {
            crate::problem::Problem::new(
                crate::problem::Kind::Usage,
                format!("cannot create the state folder {}", state_dir.display()),
            )
            .because(e)
            .hint("Run as the account that owns it, or set `daemon.state_dir`.")
        })?;
        let path = state_dir.join("history.db");
        let try_open = |synchronous: &str| -> rusqlite::Result<Connection> {
            let db = Connection::open(&path)?;
            db.busy_timeout(BUSY)?;
            db.pragma_update(None, "journal_mode", "WAL")?;
            db.pragma_update(None, "synchronous", synchronous)?;
            db.execute_batch(SCHEMA)?;
            Ok(db)
        };
        // whoever makes the file, or its log, locks it in a way for which SQLite does not wait
        let open = |synchronous: &str| {
            let begun = Instant::now();
            loop {
                match try_open(synchronous) {
                    Err(error)
                        if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && begun.elapsed() < BUSY =>
                    {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    result => return result,
                }
            }
        };
        let cannot = || format!("cannot open the history in {}", path.display());
        let (db, events) = (open("FULL").explain(cannot)?, open("NORMAL").explain(cannot)?);
        Ok(Self { db: Arc::new(Mutex::new(db)), events: Arc::new(Mutex::new(events)), folder: state_dir.to_owned() })
    }

    fn db(&self) -> MutexGuard<'_, Connection> {
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The controller's state folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The file whose lock says that a run is alive. The name comes from the journal, which may be damaged: it leads nowhere else.
    fn alive_file(&self, run: &str) -> Outcome<PathBuf> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if run.is_empty() || run.len() > 100 || !run.bytes().all(plain) {
            let shown: String = run.chars().take(100).collect();
            return Err(crate::problem::Problem::failed(format!("the journal has a run of the name {shown:?}")));
        }
        Ok(self.folder.join("runs").join(format!("{run}.lock")))
    }

    /// Records a new run; it counts as alive as long as the lock is held.
    pub fn begin(&self, holder: &Holder, hosts: &str) -> Outcome<lock::Lock> {
        let lock = match lock::try_take(&self.alive_file(&holder.run)?, holder)? {
            lock::Taken::Ours(lock) => lock,
            lock::Taken::Theirs(_) => {
                return Err(crate::problem::Problem::failed(format!("run {} exists already", holder.run)));
            }
        };
        self.db()
            .execute(
                "INSERT INTO runs (run, refresh, started, hosts) VALUES (?, ?, ?, ?)",
                params![holder.run, holder.refresh, holder.since, hosts],
            )
            .explain(|| "cannot write the journal")?;
        Ok(lock)
    }

    /// Replaces the hosts' descriptions of a run.
    pub fn describe(&self, run: &str, hosts: &str) -> Outcome<()> {
        self.db()
            .execute("UPDATE runs SET hosts = ? WHERE run = ?", params![hosts, run])
            .map(drop)
            .explain(|| "cannot write the journal; nothing was done")
    }

    /// Records that an undo may be needed. On disk when this returns.
    pub fn arm(&self, run: &str, undo: &str) -> Outcome<i64> {
        let db = self.db();
        db.execute("INSERT INTO undos (run, undo, state) VALUES (?, ?, 'armed')", params![run, undo])
            .explain(|| "cannot write the journal; nothing was done")?;
        Ok(db.last_insert_rowid())
    }

    /// Records that an undo was done, or is no longer needed.
    pub fn settle(&self, id: i64) -> Outcome<()> {
        self.db()
            .execute("UPDATE undos SET state = 'done', problem = NULL WHERE id = ?", params![id])
            .map(drop)
            .explain(|| "cannot write the journal")
    }

    /// Records that an undo failed; it stays armed.
    pub fn failed(&self, id: i64, problem: &str) {
        let _ = self.db().execute("UPDATE undos SET problem = ? WHERE id = ?", params![problem, id]);
    }

    /// A run's armed undos, newest first.
    pub fn armed(&self, run: &str) -> Outcome<Vec<UndoRow>> {
        let db = self.db();
        let read = || -> rusqlite::Result<Vec<UndoRow>> {
            // not by the index: one that is damaged would hide what stands in the table
            let query = format!("SELECT id, undo FROM undos NOT INDEXED WHERE run = ? AND {ARMED} ORDER BY id DESC");
            let mut query = db.prepare(&query)?;
            query.query_map(params![run], |row| Ok(UndoRow { id: row.get(0)?, undo: any_text(row, 1)? }))?.collect()
        };
        read().explain(|| "cannot read the journal")
    }

    /// Keeps an event. History is not worth failing a run for: errors are dropped.
    pub fn keep(&self, stamped: &Stamped) {
        if matches!(stamped.event, Event::Progress { .. }) {
            return;
        }
        if let Ok(text) = serde_json::to_string(stamped) {
            let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = events.execute("INSERT INTO events (run, event) VALUES (?, ?)", params![stamped.run, text]);
        }
    }

    /// Records how a run ended, and forgets that it was alive.
    pub fn finish(&self, run: &str, summary: &Summary) -> Outcome<()> {
        let text = serde_json::to_string(summary).explain(|| "cannot write the history")?;
        let now = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
        self.db()
            .execute(
                "UPDATE runs SET finished = ?, ending = ?, summary = ? WHERE run = ?",
                params![now, summary.ending.name(), text, run],
            )
            .and_then(|n| if n == 0 { Err(rusqlite::Error::QueryReturnedNoRows) } else { Ok(()) })
            .explain(|| "cannot write the history")?;
        // run ids are never used again, so this lock file may go
        let _ = self.alive_file(run).map(std::fs::remove_file);
        Ok(())
    }

    /// What a run has come to, whether it has finished or not.
    fn so_far(&self, run: &str) -> Outcome<Option<Summary>> {
        let query = "SELECT summary FROM runs WHERE run = ?";
        let text: rusqlite::Result<Option<Option<String>>> =
            self.db().query_row(query, params![run], |row| row.get(0)).optional();
        let text = text.explain(|| "cannot read the history")?.flatten();
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
    }

    /// Records, before a run has finished, that a destination serves its image for good: a controller that dies now would not know.
    pub fn refreshed(&self, run: &str, refresh: &str, result: DestinationResult) -> Outcome<()> {
        let mut summary = self.so_far(run)?.unwrap_or_else(|| Summary::of_nothing(run, refresh, Ending::Human));
        summary.destinations.retain(|known| known.host != result.host);
        summary.destinations.push(result);
        let text = serde_json::to_string(&summary).explain(|| "cannot write the history")?;
        self.db()
            .execute("UPDATE runs SET summary = ? WHERE run = ? AND finished IS NULL", params![text, run])
            .map(drop)
            .explain(|| "cannot write the history")
    }

    /// Records how recovery ended: a run that had finished keeps its summary, but for what is left.
    pub fn finish_recovered(&self, run: &str, summary: &Summary) -> Outcome<()> {
        let before = self.so_far(run)?;
        let summary = match before {
            Some(mut before) => {
                // of a run that has not finished, it has those alone that were refreshed
                for now in &summary.destinations {
                    if !before.destinations.iter().any(|known| known.host == now.host) {
                        before.destinations.push(now.clone());
                    }
                }
                // a commit that was under way when its host was lost may be found done by now
                for known in before.destinations.iter_mut().filter(|d| !d.refreshed) {
                    if let Some(now) = summary.destinations.iter().find(|d| d.host == known.host && d.refreshed) {
                        *known = DestinationResult { notes: std::mem::take(&mut known.notes), ..now.clone() };
                    }
                }
                let refreshed = before.destinations.iter().filter(|d| d.refreshed).count();
                let ending = match before.ending {
                    _ if !summary.not_put_back.is_empty() => Ending::Human,
                    Ending::Human if refreshed == 0 => Ending::Failed,
                    Ending::Human if refreshed == before.destinations.len() => Ending::Done,
                    Ending::Human => Ending::Partial,
                    other => other,
                };
                if ending != Ending::Done && before.problem.is_none() {
                    before.problem = summary.problem.clone();
                }
                Summary { ending, not_put_back: summary.not_put_back.clone(), ..before }
            }
            None => summary.clone(),
        };
        self.finish(run, &summary)
    }

    /// What is remembered of each refresh's schedule.
    pub fn schedules(&self) -> Outcome<BTreeMap<String, ScheduleRow>> {
        let db = self.db();
        let read = || -> rusqlite::Result<Vec<(String, [Option<String>; 4])>> {
            let mut query = db.prepare("SELECT refresh, schedule, seen, missed, paused FROM schedules")?;
            query
                .query_map([], |row| Ok((row.get(0)?, [row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?])))?
                .collect()
        };
        let rows = read().explain(|| "cannot read the schedules' state")?;
        // somebody has wished it, though it cannot be told any more who and when
        let unknown = |_| Paused { since: DateTime::UNIX_EPOCH, by: "somebody (the record is damaged)".to_owned() };
        let row = |[schedule, seen, missed, paused]: [Option<String>; 4]| ScheduleRow {
            schedule,
            // far from where calendars end, which a damaged one may not be
            seen: seen
                .and_then(|text| text.parse().ok())
                .filter(|at: &DateTime<Utc>| (1970..10_000).contains(&at.year())),
            missed: missed.and_then(|text| serde_json::from_str(&text).ok()),
            paused: paused.map(|text| serde_json::from_str(&text).unwrap_or_else(unknown)),
        };
        Ok(rows.into_iter().map(|(refresh, columns)| (refresh, row(columns))).collect())
    }

    /// Remembers a refresh's schedule. On disk when this returns.
    pub fn keep_schedule(&self, refresh: &str, row: &ScheduleRow) -> Outcome<()> {
        let missed = row.missed.as_ref().map(serde_json::to_string).transpose();
        let paused = row.paused.as_ref().map(serde_json::to_string).transpose();
        let (missed, paused) = (
            missed.explain(|| "cannot write the schedules' state")?,
            paused.explain(|| "cannot write the schedules' state")?,
        );
        self.db()
            .execute(
                "INSERT INTO schedules (refresh, seen, missed, paused, schedule) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (refresh) DO UPDATE SET seen = ?2, missed = ?3, paused = ?4, schedule = ?5",
                params![refresh, row.seen.map(|at| at.to_rfc3339()), missed, paused, row.schedule],
            )
            .map(drop)
            .explain(|| "cannot write the schedules' state")
    }

    /// Who is at a run that is under way, and how far; None: nobody, or it cannot be told.
    pub fn at_work(&self, run: &str) -> Option<Holder> {
        serde_json::from_str(&std::fs::read_to_string(self.alive_file(run).ok()?).ok()?).ok()
    }

    /// The lock that says a run is alive, for whoever puts back what it left; None: it is alive, or in other hands.
    pub fn take_over(&self, run: &str) -> Outcome<Option<lock::Lock>> {
        // another process may just be looking whether it is alive
        lock::take_within(&self.alive_file(run)?, Duration::from_secs(2))
    }

    /// Gives up on a run: nothing of it will be put back. False: there is nothing to forget.
    pub fn forget(&self, run: &str) -> Outcome<bool> {
        // a run whose name is none of ours is nobody's
        if self.is_alive(run)? {
            return Err(crate::problem::Problem::new(crate::problem::Kind::Locked, format!("run {run} is under way")));
        }
        let db = self.db();
        let forget = || -> rusqlite::Result<usize> {
            let undos =
                db.execute(&format!("UPDATE undos SET state = 'forgotten' WHERE run = ? AND {ARMED}"), params![run])?;
            let now = chrono::Utc::now().to_rfc3339();
            let runs =
                db.execute("UPDATE runs SET finished = ? WHERE run = ? AND finished IS NULL", params![now, run])?;
            Ok(undos + runs)
        };
        forget().map(|n| n > 0).explain(|| "cannot write the journal")
    }

    /// Runs that need recovery: not finished and not alive, or with undos still armed. With the hosts they were begun with; nothing
    /// for undos of a run that is not there.
    pub fn interrupted(&self) -> Outcome<Vec<(String, String, String)>> {
        let candidates = {
            let db = self.db();
            let read = || -> rusqlite::Result<Vec<(String, String, String)>> {
                // by no index: one that is damaged would hide what stands in the tables
                let mut query = db.prepare(&format!(
                    "WITH armed AS (SELECT DISTINCT run FROM undos NOT INDEXED WHERE {ARMED})
                     SELECT run, refresh, hosts FROM runs NOT INDEXED WHERE finished IS NULL OR run IN armed
                     UNION ALL SELECT run, '', '' FROM armed
                     WHERE NOT EXISTS (SELECT 1 FROM runs NOT INDEXED WHERE runs.run = armed.run)
                     ORDER BY run"
                ))?;
                let row = |row: &rusqlite::Row<'_>| Ok((any_text(row, 0)?, any_text(row, 1)?, any_text(row, 2)?));
                query.query_map([], row)?.collect()
            };
            read().explain(|| "cannot read the journal")?
        };
        let mut dead = Vec::new();
        for (run, refresh, hosts) in candidates {
            if !self.is_alive(&run)? {
                dead.push((run, refresh, hosts));
            }
        }
        Ok(dead)
    }

    fn is_alive(&self, run: &str) -> Outcome<bool> {
        // nobody can hold the lock of a name that is none
        let Ok(path) = self.alive_file(run) else { return Ok(false) };
        if !path.exists() {
            return Ok(false);
        }
        Ok(lock::take_within(&path, Duration::ZERO)?.is_none())
    }

    /// The runs that a filter lets through, newest first.
    pub fn history(&self, filter: &Filter) -> Outcome<Vec<RunRow>> {
        let db = self.db();
        let read = || -> rusqlite::Result<Vec<RunRow>> {
            let mut query = db.prepare(&format!(
                "{RUN_QUERY} WHERE (?1 IS NULL OR refresh = ?1) AND (?2 IS NULL OR ending = ?2)
                 AND (?3 IS NULL OR started >= ?3) AND (?4 IS NULL OR started <= ?4)
                 AND (?5 IS NULL OR EXISTS (SELECT 1 FROM json_each(summary, '$.destinations') AS d
                                            WHERE json_extract(d.value, '$.host') = ?5))
                 ORDER BY run DESC LIMIT ?6"
            ))?;
            let time = |moment: Option<DateTime<Utc>>| moment.map(|at| at.to_rfc3339_opts(SecondsFormat::Secs, true));
            let ending = filter.ending.map(Ending::name);
            let (since, until) = (time(filter.since), time(filter.until));
            let values = params![filter.refresh, ending, since, until, filter.destination, filter.limit];
            query.query_map(values, run_row)?.collect()
        };
        let rows = read().explain(|| "cannot read the history")?;
        Ok(rows.into_iter().map(|row| self.with_life(row)).collect())
    }

    /// Tells a run under way from one that was interrupted.
    fn with_life(&self, row: RunRow) -> RunRow {
        let interrupted = row.finished.is_none() && !self.is_alive(&row.run).unwrap_or(true);
        RunRow { interrupted, ..row }
    }

    /// One run and its events.
    pub fn show(&self, run: &str) -> Outcome<Option<(RunRow, Vec<Stamped>)>> {
        let db = self.db();
        let read = || -> rusqlite::Result<Option<(RunRow, Vec<String>)>> {
            let Some(row) = db.query_row(&format!("{RUN_QUERY} WHERE run = ?"), params![run], run_row).optional()?
            else {
                return Ok(None);
            };
            let mut query = db.prepare("SELECT event FROM events WHERE run = ? ORDER BY id")?;
            let events = query.query_map(params![run], |row| row.get(0))?.collect::<Result<_, _>>()?;
            Ok(Some((row, events)))
        };
        let found = read().explain(|| "cannot read the history")?;
        let found = found.map(|(row, events)| (self.with_life(row), events));
        Ok(found.map(|(row, events)| (row, events.iter().filter_map(|text| serde_json::from_str(text).ok()).collect())))
    }
}

const RUN_QUERY: &str = "SELECT run, refresh, started, finished, summary, (SELECT COUNT(*) FROM undos
    WHERE undos.run = runs.run AND state IS NOT 'done' AND state IS NOT 'forgotten') FROM runs";

/// A column whatever stands there: a row that is damaged must not hide those beside it. What is no text is not understood later.
fn any_text(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<String> {
    Ok(match row.get_ref(column)? {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        ValueRef::Null => String::new(),
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) => number.to_string(),
    })
}

fn run_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<RunRow> {
    let (finished, summary): (Option<String>, Option<String>) = (row.get(3)?, row.get(4)?);
    Ok(RunRow {
        run: row.get(0)?,
        refresh: row.get(1)?,
        started: row.get(2)?,
        // before, it is what recovery must know, and no ending
        summary: summary.filter(|_| finished.is_some()).and_then(|text| serde_json::from_str(&text).ok()),
        finished,
        armed: row.get::<_, i64>(5)?.unsigned_abs(),
        interrupted: false,
    })
}

#[cfg(test)]
mod tests;
