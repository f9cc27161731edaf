//! What is changed in a copy while it is isolated, so that it neither reaches production nor acts by itself: prepared
//! transactions, replication, remote servers, events.
//!
//! Speaks to the isolated server only. Each part fails rather than leave something behind.

use std::collections::BTreeMap;

use super::runtime;
use super::sql::Sql;
use crate::mysql::identifier::{quote_identifier, quote_string};
use crate::mysql::{Flavour, Version, xa};
use crate::problem::{Outcome, Problem};

/// Prepared XA transactions survive a clean stop and a copy, and hold their row locks for ever.
pub async fn roll_back_xa(sql: &mut Sql, flavour: Flavour, allowed: bool) -> Outcome<u64> {
    let prepared = sql.named(xa::list(flavour)).await?;
    if !prepared.is_empty() && !allowed {
        return Err(Problem::failed(format!("the copy holds {} prepared XA transaction(s)", prepared.len()))
            .hint("Set `xa_prepared = \"rollback\"` to roll them back in the copy; the source keeps them."));
    }
    for row in &prepared {
        let id = xa::id(flavour, row)
            .ok_or_else(|| Problem::failed(format!("a prepared XA transaction's id is not understood: {row:?}")))?;
        sql.execute(&format!("XA ROLLBACK {id}")).await?;
    }
    Ok(prepared.len() as u64)
}

/// Removes everything that would make the copy talk to production: replication connections with their passwords and
/// positions, and remote servers. Returns how many.
pub async fn disconnect(sql: &mut Sql, version: &Version) -> Outcome<u64> {
    let connections = runtime::replication(sql, version.flavour).await?;
    let mut more = 0;
    if version.flavour.is_mysql() {
        disconnect_mysql(sql, version, &connections).await?;
        more = empty(sql, "replication_asynchronous_connection_failover").await?;
        more += empty(sql, "replication_asynchronous_connection_failover_managed").await?;
    } else {
        sql.execute("STOP ALL SLAVES").await?;
        for (name, ..) in &connections {
            sql.execute(&format!("RESET SLAVE {} ALL", quote_string(name))).await?;
        }
        sql.execute("SET GLOBAL gtid_slave_pos = ''").await?;
    }
    if let Some((name, ..)) = runtime::replication(sql, version.flavour).await?.first() {
        return Err(Problem::failed(format!("the copy still has the replication connection {name:?}")));
    }
    Ok(connections.len() as u64 + more + empty(sql, "servers").await?)
}

/// MySQL keeps connections, with the password in clear, and the GTIDs it has executed in tables, which travel with the copy
/// (verified on 9.7.4; the statements work there without a binary log).
async fn disconnect_mysql(sql: &mut Sql, version: &Version, connections: &[(String, bool, bool)]) -> Outcome<()> {
    sql.execute("STOP REPLICA").await?;
    for (name, ..) in connections {
        sql.execute(&format!("RESET REPLICA ALL FOR CHANNEL {}", quote_string(name))).await?;
    }
    // the older statement is a syntax error on 9.7.4, the newer one came with 8.2 (MySQL documentation)
    let reset = if version.series() >= (8, 2) { "RESET BINARY LOGS AND GTIDS" } else { "RESET MASTER" };
    sql.execute(reset).await?;
    for table in ["slave_master_info", "slave_relay_log_info", "slave_worker_info"] {
        if sql.number(&format!("SELECT COUNT(*) FROM mysql.{table}")).await? > 0 {
            return Err(Problem::failed(format!("the copy's mysql.{table} is not empty after the reset")));
        }
    }
    Ok(())
}

/// Empties a table of the schema `mysql`, if the server has it.
async fn empty(sql: &mut Sql, table: &str) -> Outcome<u64> {
    let there = format!(
        "SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = 'mysql' AND TABLE_NAME = '{table}'"
    );
    if sql.number(&there).await? == 0 {
        return Ok(0);
    }
    let rows = sql.number(&format!("SELECT COUNT(*) FROM mysql.{table}")).await?;
    sql.execute(&format!("DELETE FROM mysql.{table}")).await?;
    Ok(rows)
}

/// Disables all events, and changes nothing else in them. Returns how many.
pub async fn disable_events(sql: &mut Sql, flavour: Flavour) -> Outcome<u64> {
    if !flavour.is_mysql() {
        // not ALTER EVENT, which would make its own account the definer; `created` would change by itself (verified on 10.11)
        let events = sql.number("SELECT COUNT(*) FROM mysql.event WHERE status <> 'DISABLED'").await?;
        sql.execute("UPDATE mysql.event SET status = 'DISABLED', created = created WHERE status <> 'DISABLED'").await?;
        return Ok(events);
    }
    let before = events(sql).await?;
    let mut disabled = 0;
    for event in before.iter().filter(|event| text(event, "STATUS") != DISABLED) {
        disable(sql, event).await?;
        disabled += 1;
    }
    let mut wanted = before;
    wanted.iter_mut().for_each(|event| drop(event.insert("STATUS".into(), DISABLED.into())));
    if events(sql).await? != wanted {
        return Err(Problem::failed("disabling the copy's events has changed more than their status"));
    }
    Ok(disabled)
}

const DISABLED: &str = "DISABLED";

/// MySQL: the data dictionary has no rows to write, and ALTER EVENT takes definer, character set and collation from its own
/// session unless told otherwise, which would change what the event's text means. In a procedure the statement is read in
/// our character set and runs in the event's (each verified on 9.7.4).
async fn disable(sql: &mut Sql, event: &BTreeMap<String, String>) -> Outcome<()> {
    let name = |column: &str| quote_identifier(text(event, column));
    let (user, host) = text(event, "DEFINER").rsplit_once('@').unwrap_or((text(event, "DEFINER"), "%"));
    let procedure = format!("mysql.{}", quote_identifier("refreshd_disable_event"));
    sql.execute(&format!("DROP PROCEDURE IF EXISTS {procedure}")).await?;
    sql.execute(&format!(
        "CREATE PROCEDURE {procedure}() BEGIN SET character_set_client = {}; SET collation_connection = {}; \
         ALTER DEFINER = {}@{} EVENT {}.{} DISABLE; END",
        quote_string(text(event, "CHARACTER_SET_CLIENT")),
        quote_string(text(event, "COLLATION_CONNECTION")),
        quote_identifier(user),
        quote_identifier(host),
        name("EVENT_SCHEMA"),
        name("EVENT_NAME"),
    ))
    .await?;
    let done = sql.execute(&format!("CALL {procedure}()")).await;
    sql.execute(&format!("DROP PROCEDURE {procedure}")).await?;
    done
}

/// MySQL's events with all that belongs to them, but for the number of the server that changed them last, which only matters to
/// replicas.
async fn events(sql: &mut Sql) -> Outcome<Vec<BTreeMap<String, String>>> {
    sql.named(
        "SELECT EVENT_SCHEMA, EVENT_NAME, DEFINER, TIME_ZONE, EVENT_BODY, EVENT_DEFINITION, EVENT_TYPE, EXECUTE_AT, \
         INTERVAL_VALUE, INTERVAL_FIELD, SQL_MODE, STARTS, ENDS, STATUS, ON_COMPLETION, CREATED, EVENT_COMMENT, \
         CHARACTER_SET_CLIENT, COLLATION_CONNECTION, DATABASE_COLLATION \
         FROM information_schema.EVENTS ORDER BY EVENT_SCHEMA, EVENT_NAME",
    )
    .await
}

fn text<'a>(row: &'a BTreeMap<String, String>, column: &str) -> &'a str {
    row.get(column).map_or("", String::as_str)
}
