//! Draining the source before its stop: current transactions end, dirty pages are written while the server still serves.
//!
//! Changes only the variables in `FLUSHING`, which the runtime record holds and `undrain` puts back.

use std::time::{Duration, Instant};

use super::runtime::bare;
use super::session::Session;
use super::sql::Sql;
use crate::problem::{Outcome, Problem};
use crate::wire::message::{DrainOptions, Drained, Runtime};

/// What the drain and the stop change. Lowering the dirty-page limits alone is paced by innodb_io_capacity and useless
/// (verified: 170 pages/s at the default of 200), so that is raised too.
pub const FLUSHING: [&str; 5] = [
    "innodb_io_capacity_max",
    "innodb_io_capacity",
    "innodb_max_dirty_pages_pct_lwm",
    "innodb_max_dirty_pages_pct",
    "innodb_fast_shutdown",
];

/// Pages a second that the page cleaner may write.
const CAPACITY: u32 = 20_000;

/// Dirty pages that are not worth waiting for: about 1.6 MB.
const FEW: u64 = 100;

/// Pages that were written since the server's start.
const FLUSHED: &str = "Innodb_buffer_pool_pages_flushed";

/// What the stop would write within this time, as quickly as pages were seen to be written here, is not worth waiting for either.
const SOON: Duration = Duration::from_millis(100);

/// How long the number of dirty pages may stay as it is before we stop waiting: writers make new ones all the time, and the page cleaner
/// comes once a second.
const STALL: Duration = Duration::from_secs(2);

/// By how many pages it must have fallen to count as falling: between two of the page cleaner's rounds it goes up and down. No share of
/// them, since a slow disk with many is worth waiting for.
const FALLS: u64 = FEW / 4;

/// Lets transactions end and flushes dirty pages.
pub async fn drain(sql: &mut Sql, options: &DrainOptions, session: &Session) -> Outcome<Drained> {
    let limit = Duration::from_millis(options.limit_ms);
    let begun = Instant::now();
    // trx_started is in the system's time zone whatever the server's is (verified on MariaDB 10.11.19)
    sql.execute("SET time_zone = 'SYSTEM'").await?;
    let left_open = long_transactions(sql, options, session, begun, limit).await?;
    let before = sql.status("Innodb_buffer_pool_pages_dirty").await?;
    if before > FEW {
        for (name, value) in [
            ("innodb_io_capacity_max", 2 * CAPACITY),
            ("innodb_io_capacity", CAPACITY),
            ("innodb_max_dirty_pages_pct_lwm", 0),
            ("innodb_max_dirty_pages_pct", 0),
        ] {
            sql.execute(&format!("SET GLOBAL {name} = {value}")).await?;
        }
    }
    let mut least = before;
    let mut improved = Instant::now();
    let mut now = before;
    let (mut flushed, mut looked, mut rate) = (sql.status(FLUSHED).await?, Instant::now(), 0.0_f64);
    while now > FEW && !options.again && begun.elapsed() < limit && improved.elapsed() < STALL {
        session.check()?;
        session.progress(before.saturating_sub(now), before, "dirty pages written").await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        now = sql.status("Innodb_buffer_pool_pages_dirty").await?;
        let (before, since) = (std::mem::replace(&mut flushed, sql.status(FLUSHED).await?), looked.elapsed());
        looked = Instant::now();
        rate = rate.max(flushed.saturating_sub(before) as f64 / since.as_secs_f64());
        if (now as f64) < rate * SOON.as_secs_f64() {
            break;
        }
        if now + FALLS <= least {
            (least, improved) = (now, Instant::now());
        }
    }
    // a second look: a long transaction may have begun to matter while pages were written
    let left_open = if options.wait_for_long { left_open } else { count_long(sql, options.long_ms).await? };
    Ok(Drained { dirty_before: before, dirty_after: now, left_open })
}

/// Waits for transactions that have changed rows and are open for long.
async fn long_transactions(
    sql: &mut Sql,
    options: &DrainOptions,
    session: &Session,
    begun: Instant,
    limit: Duration,
) -> Outcome<u64> {
    let mut told = false;
    loop {
        let open = count_long(sql, options.long_ms).await?;
        if open == 0 || !options.wait_for_long {
            return Ok(open);
        }
        if begun.elapsed() >= limit {
            return Err(Problem::refused(format!(
                "{open} transaction(s) on the source have changed rows and stayed open for more than {} s; the source was not stopped",
                options.long_ms / 1000
            ))
            .hint("See information_schema.INNODB_TRX on the source. End them, raise `drain_timeout`, or set `long_transactions = \"proceed\"`: the stop then rolls them back."));
        }
        if !told {
            session.note(format!("waiting for {open} long transaction(s) on the source to end")).await;
            told = true;
        }
        session.check()?;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

async fn count_long(sql: &mut Sql, long_ms: u64) -> Outcome<u64> {
    sql.number(&format!(
        "SELECT COUNT(*) FROM information_schema.INNODB_TRX WHERE trx_rows_modified > 0 AND trx_mysql_thread_id <> 0 \
         AND TIMESTAMPDIFF(MICROSECOND, trx_started, NOW(6)) >= {long_ms} * 1000"
    ))
    .await
}

/// Puts back what `drain` set.
pub async fn undrain(sql: &mut Sql, runtime: &Runtime) -> Outcome<()> {
    // the other way round: the low-water mark is clamped to the limit that is in effect (verified on MariaDB 10.11.19)
    for name in FLUSHING.iter().rev() {
        if let Some(value) = runtime.flushing.get(*name) {
            sql.execute(&format!("SET GLOBAL {name} = {}", bare(value))).await?;
        }
    }
    Ok(())
}
