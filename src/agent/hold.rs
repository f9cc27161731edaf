//! Holding the writes of a running server for the moment in which its files are frozen, on one connection that is kept for it.
//!
//! Changes nothing that outlives the connection: when that ends, whoever ends it, everything goes on.

use std::time::{Duration, Instant};

use super::session::Session;
use super::sql::Sql;
use crate::mysql::Flavour;
use crate::problem::{Outcome, Problem};

/// How long one attempt waits for the locks, in seconds: others who want to write wait behind it.
const ATTEMPT_S: u64 = 2;

/// Seconds of silence after which the server itself ends the connection, and with it the hold: an agent that hangs holds nobody up for ever.
const SILENCE_S: u64 = 20;

/// After an attempt that did not get the locks, so that those who waited behind it get on.
const PAUSE: Duration = Duration::from_secs(3);

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

/// Holds the writes. Tries for `wait`, some seconds at a time, and goes out of everybody's way in between.
pub async fn hold(mut sql: Sql, flavour: Flavour, wait: Duration, session: &Session) -> Outcome<Held> {
    sql.execute(&format!("SET SESSION lock_wait_timeout = {ATTEMPT_S}, wait_timeout = {SILENCE_S}")).await?;
    let (begun, mut told) = (Instant::now(), false);
    loop {
        session.check()?;
        let since = Instant::now();
        let statements = statements(flavour);
        let got = acquire(&mut sql, statements).await?;
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
        if begun.elapsed() + PAUSE >= wait {
            return Err(Problem::refused(format!(
                "the source's writes could not be held: some statement kept its locks for all of {} s",
                begun.elapsed().as_secs()
            ))
            .hint("See its process list for what runs for long, take another time, or raise `drain_timeout`."));
        }
        if !told {
            session.note("waiting for a moment in which writes can be held").await;
            told = true;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// How many of them got their locks: the first that does not is the last that is tried.
async fn acquire(sql: &mut Sql, statements: &[&str]) -> Outcome<usize> {
    for (n, statement) in statements.iter().enumerate() {
        if !sql.within_lock_wait(statement).await? {
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
