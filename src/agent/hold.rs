//! Holding the writes of a running server for the moment in which its files are frozen, on one connection that is kept for it.
//!
//! What holds ends with the connection: when that ends, whoever ends it, everything goes on.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::freeze::Way;
use super::session::Session;
use super::sql::Sql;
use crate::mysql::Flavour;
use crate::problem::{Outcome, Problem};

/// How long one statement waits for its locks, in seconds: others who want to write wait behind it.
const LOCK_WAIT_S: u64 = 1;

/// After this an attempt waits for no further lock.
const ATTEMPT: Duration = Duration::from_secs(2);

/// Statements that run for this long would keep an attempt waiting where it has to wait for all of them.
const LONG_S: u64 = 1;

/// Seconds of silence after which the server itself ends the connection, and with it the hold: an agent that hangs holds nobody up for ever.
const SILENCE_S: u64 = 20;

/// After an attempt that did not get the locks, so that those who waited behind it get on; twice as long after each.
const PAUSE: Duration = Duration::from_secs(3);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What holds the writes: what is in memory of tables other than InnoDB's is in their files, no statement that changes a table's definition
/// is under way, no transaction is between its prepare and its commit.
fn statements(flavour: Flavour) -> &'static [&'static str] {
    match flavour {
        // long SELECTs keep nobody waiting here (MariaDB's documentation of BACKUP STAGE; since 10.4)
        Flavour::MariaDb => {
            &["BACKUP STAGE START", "BACKUP STAGE FLUSH", "BACKUP STAGE BLOCK_DDL", "BACKUP STAGE BLOCK_COMMIT"]
        }
        Flavour::MySql | Flavour::Percona => &["LOCK INSTANCE FOR BACKUP", "FLUSH TABLES WITH READ LOCK"],
    }
}

fn releases(flavour: Flavour) -> &'static [&'static str] {
    match flavour {
        Flavour::MariaDb => &["BACKUP STAGE END"],
        Flavour::MySql | Flavour::Percona => &["UNLOCK TABLES", "UNLOCK INSTANCE"],
    }
}

/// A server whose writes are held, until this is released or dropped.
pub struct Held {
    sql: Sql,
    flavour: Flavour,
    since: Instant,
}

/// What runs for so long that FLUSH TABLES WITH READ LOCK would have to wait for it. One that gives up waiting leaves the tables that such a
/// statement uses marked as old: all who come after wait for its end, readers too (MySQL's and Percona's documentation). So it is
/// not tried then. MariaDB's stages wait for no reader.
async fn too_long(sql: &mut Sql, flavour: Flavour) -> Outcome<u64> {
    if flavour == Flavour::MariaDb {
        return Ok(0);
    }
    // not by performance_schema, which may be off and then shows nobody
    let all = sql.named("SHOW PROCESSLIST").await?;
    let long = |row: &&BTreeMap<String, String>| {
        let value = |name: &str| row.get(name).map_or("", String::as_str);
        matches!(value("Command"), "Query" | "Execute") && value("Time").parse().is_ok_and(|s: u64| s >= LONG_S)
    };
    Ok(all.iter().filter(long).count() as u64)
}

/// Whether a copy of the running server could recover at all; an error says why not.
pub async fn recoverable(sql: &mut Sql, variables: &BTreeMap<String, String>, way: &Way) -> Outcome<()> {
    let is = |name: &str, values: &[&str]| {
        variables.get(name).is_some_and(|value| values.iter().any(|one| one.eq_ignore_ascii_case(value)))
    };
    let refused = |why: &str| Problem::refused(format!("a snapshot of the running source would not recover: {why}"));
    // ZFS never writes half of a record
    // DETECT_ONLY of MySQL finds torn pages and cannot mend them
    if is("innodb_doublewrite", &["OFF", "0", "DETECT_ONLY"]) && !matches!(way, Way::Zfs { .. }) {
        return Err(refused("innodb_doublewrite is off or only detects, so pages may stay torn")
            .hint("Set `method = \"cold\"`."));
    }
    let logged = sql.pairs("SHOW GLOBAL STATUS LIKE 'Innodb_redo_log_enabled'").await?;
    match logged.values().any(|value| value == "OFF") {
        true => {
            Err(refused("its redo log is disabled")
                .hint("ALTER INSTANCE ENABLE INNODB REDO_LOG, or `method = \"cold\"`."))
        }
        false => Ok(()),
    }
}

/// Holds the writes. Tries for `wait`, some seconds at a time, and goes out of everybody's way in between.
pub async fn hold(mut sql: Sql, flavour: Flavour, wait: Duration, session: &Session) -> Outcome<Held> {
    sql.execute(&format!("SET SESSION lock_wait_timeout = {LOCK_WAIT_S}, wait_timeout = {SILENCE_S}")).await?;
    let (begun, mut told, mut pause) = (Instant::now(), false, PAUSE);
    loop {
        session.check()?;
        let since = Instant::now();
        let statements = statements(flavour);
        let long = too_long(&mut sql, flavour).await? > 0;
        let got = if long { 0 } else { acquire(&mut sql, statements, since).await? };
        if got == statements.len() {
            // what is committed is in the redo log's files, however seldom the server writes it there by itself
            sql.execute("FLUSH LOCAL ENGINE LOGS").await?;
            return Ok(Held { sql, flavour, since });
        }
        if got > 0 {
            for statement in releases(flavour) {
                sql.execute(statement).await?;
            }
        }
        if begun.elapsed() + pause >= wait {
            return Err(Problem::failed(format!(
                "the source's writes could not be held: some statement kept its locks for all of {} s",
                begun.elapsed().as_secs()
            ))
            .hint("See its process list for what runs for long, take another time, or raise `drain_timeout`."));
        }
        if !told {
            session.note("waiting for a moment in which writes can be held").await;
            told = true;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// How many of them got their locks: the first that does not is the last that is tried.
async fn acquire(sql: &mut Sql, statements: &[&str], since: Instant) -> Outcome<usize> {
    for (n, statement) in statements.iter().enumerate() {
        if since.elapsed() >= ATTEMPT || !sql.within_lock_wait(statement).await? {
            return Ok(n);
        }
    }
    Ok(statements.len())
}

impl Held {
    /// Lets everybody go on. For how long they were held; an error: the hold had ended before, and what was frozen may be of no one moment.
    pub async fn release(mut self) -> Outcome<Duration> {
        for statement in releases(self.flavour) {
            self.sql.execute(statement).await.map_err(|p| p.during("the source's writes were not held throughout"))?;
        }
        let held = self.since.elapsed();
        self.sql.close().await;
        Ok(held)
    }
}
