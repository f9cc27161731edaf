//! Runtime state that a restart of the source would lose: recorded before the stop, restored after the start.

use std::collections::BTreeMap;

use super::drain::FLUSHING;
use super::sql::Sql;
use crate::mysql::identifier::quote_string;
use crate::mysql::{Flavour, Version};
use crate::problem::{Outcome, Problem};
use crate::wire::message::{Runtime, RuntimeVariable};

/// A primary that comes back read-only is not back: these are put back or the start has failed.
const ESSENTIAL: [&str; 4] = ["read_only", "super_read_only", "offline_mode", "event_scheduler"];

/// Set at run time by the server itself, or acts rather than settings.
const NOT_SETTINGS: [&str; 4] = ["gtid_", "innodb_buffer_pool_dump_now", "innodb_buffer_pool_load", "timestamp"];

/// The flavour and version of a running server.
pub fn version(variables: &BTreeMap<String, String>) -> Outcome<Version> {
    let get = |name: &str| variables.get(name).map_or("", String::as_str);
    Version::parse(get("version"), get("version_comment"))
        .ok_or_else(|| Problem::refused(format!("the server's version is not understood: {:?}", get("version"))))
}

/// Records what a restart would lose.
pub async fn record(
    sql: &mut Sql,
    flavour: Flavour,
    variables: &BTreeMap<String, String>,
    server: (u32, u64),
) -> Outcome<Runtime> {
    let pick = |names: &[&str]| -> BTreeMap<String, String> {
        names.iter().filter_map(|n| variables.get(*n).map(|v| ((*n).to_owned(), v.clone()))).collect()
    };
    let mut set = Vec::new();
    for row in sql.texts(origin_query(flavour)).await? {
        let mut cells = row.into_iter().map(Option::unwrap_or_default);
        let (name, value, kind) =
            (cells.next().unwrap_or_default(), cells.next().unwrap_or_default(), cells.next().unwrap_or_default());
        let name = name.to_lowercase();
        if !NOT_SETTINGS.iter().any(|not| name.starts_with(not)) {
            let bare = kind.contains("INT") || kind == "BOOLEAN" || kind == "DOUBLE" || value.parse::<f64>().is_ok();
            set.push(RuntimeVariable { name, value, bare });
        }
    }
    Ok(Runtime {
        variables: set,
        essential: pick(&ESSENTIAL),
        replication: replication(sql, flavour).await?,
        lag_s: lag(sql, flavour).await?.into_iter().filter_map(|(name, lag)| Some((name, lag?))).collect(),
        flushing: pick(&FLUSHING),
        server,
        recorded_s: chrono::Utc::now().timestamp(),
    })
}

/// Which variables were set by SQL since the start. Source: MariaDB, "information_schema.SYSTEM_VARIABLES"; MySQL,
/// "performance_schema.variables_info".
fn origin_query(flavour: Flavour) -> &'static str {
    match flavour {
        Flavour::MariaDb => {
            "SELECT VARIABLE_NAME, GLOBAL_VALUE, VARIABLE_TYPE FROM information_schema.SYSTEM_VARIABLES \
             WHERE GLOBAL_VALUE_ORIGIN = 'SQL' AND READ_ONLY = 'NO' ORDER BY VARIABLE_NAME"
        }
        Flavour::MySql | Flavour::Percona => {
            "SELECT i.VARIABLE_NAME, g.VARIABLE_VALUE, '' FROM performance_schema.variables_info i \
             JOIN performance_schema.global_variables g USING (VARIABLE_NAME) WHERE i.VARIABLE_SOURCE = 'DYNAMIC' ORDER BY 1"
        }
    }
}

/// Replication connections: name, receiver runs, applier runs.
pub async fn replication(sql: &mut Sql, flavour: Flavour) -> Outcome<Vec<(String, bool, bool)>> {
    let (query, name, io, applier) = match flavour {
        Flavour::MariaDb => ("SHOW ALL SLAVES STATUS", "Connection_name", "Slave_IO_Running", "Slave_SQL_Running"),
        _ => ("SHOW REPLICA STATUS", "Channel_Name", "Replica_IO_Running", "Replica_SQL_Running"),
    };
    let get = |row: &BTreeMap<String, String>, key: &str| row.get(key).cloned().unwrap_or_default();
    Ok(sql
        .named(query)
        .await?
        .iter()
        .map(|row| (get(row, name), get(row, io) != "No", get(row, applier) != "No"))
        .collect())
}

/// How far each replication connection is behind, in seconds; None: it does not run, or does not know.
async fn lag(sql: &mut Sql, flavour: Flavour) -> Outcome<Vec<(String, Option<u64>)>> {
    let (query, name, behind) = match flavour {
        Flavour::MariaDb => ("SHOW ALL SLAVES STATUS", "Connection_name", "Seconds_Behind_Master"),
        _ => ("SHOW REPLICA STATUS", "Channel_Name", "Seconds_Behind_Source"),
    };
    let one = |row: &BTreeMap<String, String>| {
        (row.get(name).cloned().unwrap_or_default(), row.get(behind).and_then(|seconds| seconds.parse().ok()))
    };
    Ok(sql.named(query).await?.iter().map(one).collect())
}

/// What of the replication that ran before is not back, in words; None: all of it is as near to its source as it was.
pub async fn behind(sql: &mut Sql, flavour: Flavour, runtime: &Runtime) -> Outcome<Option<String>> {
    let now = lag(sql, flavour).await?;
    let mut words = Vec::new();
    // one whose lag was not known did not replicate before either
    for (name, before) in &runtime.lag_s {
        let what = if name.is_empty() { "replication".to_owned() } else { format!("replication connection {name:?}") };
        // what was a second behind may well be two
        let allowed = before + 1;
        match now.iter().find(|(is, _)| is == name).and_then(|(_, lag)| *lag) {
            None => words.push(format!("{what} does not run")),
            Some(lag) if lag > allowed => words.push(format!("{what} is {lag} s behind")),
            Some(_) => {}
        }
    }
    Ok((!words.is_empty()).then(|| words.join(", ")))
}

/// Restores what was recorded. Returns warnings; an essential variable that cannot be put back is an error.
pub async fn restore(sql: &mut Sql, flavour: Flavour, runtime: &Runtime) -> Outcome<Vec<String>> {
    let mut warnings = Vec::new();
    for variable in &runtime.variables {
        let value = if variable.bare { bare(&variable.value) } else { quote_string(&variable.value) };
        if let Err(problem) = sql.execute(&format!("SET GLOBAL {} = {value}", variable.name)).await {
            warnings.push(format!("runtime value of {} not restored: {problem}", variable.name));
        }
    }
    let now = sql.variables().await?;
    for (name, value) in &runtime.essential {
        if now.get(name).is_some_and(|is| is != value) {
            sql.execute(&format!("SET GLOBAL {name} = {}", bare(value)))
                .await
                .map_err(|p| p.during(format!("the source is up, but {name} is not back to {value}")))?;
        }
    }
    let running = replication(sql, flavour).await?;
    for (name, io, applier) in &runtime.replication {
        let is = running.iter().find(|(n, ..)| n == name);
        let mut switch = async |want: bool, is: bool, thread: &str| {
            if want == is {
                return;
            }
            let statement = replication_statement(flavour, want, name, thread);
            if let Err(problem) = sql.execute(&statement).await {
                warnings.push(format!("replication not put back: {problem}"));
            }
        };
        switch(*io, is.is_some_and(|(_, io, _)| *io), "IO_THREAD").await;
        switch(*applier, is.is_some_and(|(_, _, applier)| *applier), "SQL_THREAD").await;
    }
    Ok(warnings)
}

fn replication_statement(flavour: Flavour, start: bool, name: &str, thread: &str) -> String {
    let verb = if start { "START" } else { "STOP" };
    match flavour {
        Flavour::MariaDb => format!("{verb} SLAVE {} {thread}", quote_string(name)),
        _ => format!("{verb} REPLICA {thread} FOR CHANNEL {}", quote_string(name)),
    }
}

/// A value without quotes: a number or a word; anything else is quoted.
pub fn bare(value: &str) -> String {
    let plain = !value.is_empty() && value.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
    if plain { value.to_owned() } else { quote_string(value) }
}

/// Object counts of a server, system schemas left out: what must be equal between two starts of one image.
pub async fn counts(sql: &mut Sql, flavour: Flavour) -> Outcome<crate::wire::message::Counts> {
    const NOT_SYSTEM: &str = "NOT IN ('mysql','information_schema','performance_schema','sys')";
    let mut objects = BTreeMap::new();
    for (kind, query) in [
        (
            "schemas",
            // not folders that MariaDB takes for schemas: lost+found, our own
            format!(
                "SELECT COUNT(*) FROM information_schema.SCHEMATA \
                 WHERE SCHEMA_NAME {NOT_SYSTEM} AND SCHEMA_NAME NOT LIKE '#mysql50#%'"
            ),
        ),
        (
            "tables",
            format!(
                "SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_TYPE <> 'VIEW' AND TABLE_SCHEMA {NOT_SYSTEM}"
            ),
        ),
        ("views", format!("SELECT COUNT(*) FROM information_schema.VIEWS WHERE TABLE_SCHEMA {NOT_SYSTEM}")),
        ("indexes", format!("SELECT COUNT(*) FROM information_schema.STATISTICS WHERE TABLE_SCHEMA {NOT_SYSTEM}")),
        ("triggers", format!("SELECT COUNT(*) FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA {NOT_SYSTEM}")),
        ("routines", format!("SELECT COUNT(*) FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA {NOT_SYSTEM}")),
        (
            "events",
            match flavour {
                // information_schema.EVENTS is an error while the scheduler is disabled (verified on 10.11.19)
                Flavour::MariaDb => format!("SELECT COUNT(*) FROM mysql.event WHERE db {NOT_SYSTEM}"),
                _ => format!("SELECT COUNT(*) FROM information_schema.EVENTS WHERE EVENT_SCHEMA {NOT_SYSTEM}"),
            },
        ),
    ] {
        objects.insert(kind.to_owned(), sql.number(&query).await?);
    }
    Ok(crate::wire::message::Counts { objects })
}
