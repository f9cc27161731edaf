//! What a server holds, by tools that are not ours: the vendor's dump program for every schema, object and row, and the information
//! schema for what dumps leave out. Two servers are compared line by line; what may differ is listed here, one by one.

use std::process::{Command, Stdio};

use crate::fleet::{Host, Ran};

/// Schemas that are the server's own, and the one that is written during a run.
const NOT_COMPARED: &str = "('mysql', 'information_schema', 'performance_schema', 'sys', 'ledger')";

/// Everything that users have made on a server, as lines.
#[derive(Clone)]
pub struct Content {
    lines: Vec<String>,
    what: String,
}

/// Reads all of it. MySQL's dump program is that of the host; for MariaDB it is this machine's, over the host's socket, so that
/// servers of two series are described in the same words.
#[track_caller]
pub fn content(host: Host<'_>) -> Content {
    let mysql = is_mysql(host);
    let schemas = host.sql(&format!(
        "SELECT schema_name FROM information_schema.schemata WHERE schema_name NOT IN {NOT_COMPARED} ORDER BY 1"
    ));
    let schemas: Vec<String> = schemas.lines().map(unescaped).collect();
    // --force: a view whose definer is gone cannot be described, which must not hide the rest; the complaint is compared
    let options = "--force --skip-comments --skip-dump-date --skip-extended-insert --routines --events --triggers --hex-blob \
        --order-by-primary --default-character-set=utf8mb4";
    let mut command;
    if mysql {
        command = Command::new(crate::fleet::script());
        command.env("BENCH_FLEET", host.fleet_name()).args(["exec", host.name, "mysqldump", "--set-gtid-purged=OFF"]);
        command.arg("--all-tablespaces");
    } else {
        command = Command::new("mariadb-dump");
        command.arg(format!("--socket=/proc/{}/root/run/mysqld/mysqld.sock", host.verb("pid", &[])));
    }
    command.args(options.split_whitespace()).arg("--databases").args(&schemas).stdin(Stdio::null());
    let dump = Ran::of(command, "dump");
    assert!(matches!(dump.code, Some(0 | 2)), "{}: {}", host.name, dump.stderr);
    let complaints = dump.stderr.lines().filter(|line| !line.contains("Deprecated program name"));
    let mut lines: Vec<String> = dump.stdout.lines().chain(complaints).map(str::to_owned).collect();
    lines.retain(|line| !line.is_empty());
    for query in OBJECTS {
        lines.extend(host.sql(&query.replace("{without}", NOT_COMPARED)).lines().map(str::to_owned));
    }
    assert!(lines.len() > 100, "{}: a dump of {} lines: {}", host.name, lines.len(), dump.stderr);
    Content { lines, what: host.name.to_owned() }
}

/// What dumps do not tell, or not if it is broken: a line an object.
const OBJECTS: &[&str] = &[
    "SELECT 'schema', schema_name, default_character_set_name, default_collation_name FROM information_schema.schemata
     WHERE schema_name NOT IN {without} ORDER BY 2",
    "SELECT 'table', table_schema, table_name, table_type, engine, row_format, create_options, create_time, table_comment
     FROM information_schema.tables WHERE table_schema NOT IN {without} AND table_type <> 'VIEW' ORDER BY 2, 3",
    "SELECT 'view', table_schema, table_name, view_definition, check_option, is_updatable, definer, security_type,
     character_set_client, collation_connection FROM information_schema.views WHERE table_schema NOT IN {without} ORDER BY 2, 3",
    "SELECT 'trigger', trigger_schema, trigger_name, event_manipulation, event_object_table, action_order, action_timing,
     action_statement, created, sql_mode, definer, character_set_client, collation_connection, database_collation
     FROM information_schema.triggers WHERE trigger_schema NOT IN {without} ORDER BY 2, 3",
    "SELECT 'routine', routine_schema, routine_name, routine_type, routine_definition, security_type, created, last_altered, sql_mode,
     routine_comment, definer, character_set_client, collation_connection, database_collation
     FROM information_schema.routines WHERE routine_schema NOT IN {without} ORDER BY 2, 3",
    "SELECT 'event', event_schema, event_name, definer, time_zone, event_definition, event_type, execute_at, interval_value,
     interval_field, sql_mode, starts, ends, on_completion, created, event_comment, character_set_client, collation_connection,
     database_collation FROM information_schema.events WHERE event_schema NOT IN {without} ORDER BY 2, 3",
    "SELECT 'statistics', table_schema, table_name, index_name, seq_in_index, column_name, collation, sub_part, nullable, index_type
     FROM information_schema.statistics WHERE table_schema NOT IN {without} ORDER BY 2, 3, 4, 5",
];

/// A difference that is meant.
#[derive(Clone, Copy)]
pub struct Meant {
    /// Why.
    pub why: &'static str,
    /// What the expected line becomes; `None` if it is to be missing.
    pub becomes: fn(&str) -> Option<String>,
}

/// A refresh disables events.
pub const EVENTS_DISABLED: Meant = Meant {
    why: "events are disabled in the copy",
    becomes: |line| {
        let event = line.contains(" EVENT `");
        Some(if event { line.replace("PRESERVE ENABLE", "PRESERVE DISABLE") } else { line.to_owned() })
    },
};

/// A restart empties MEMORY tables, the source's as well.
pub const MEMORY_EMPTIED: Meant = Meant {
    why: "MEMORY tables are empty after a restart, on the source too",
    becomes: |line| (!line.starts_with("INSERT INTO `fleeting` VALUES ")).then(|| line.to_owned()),
};

/// MariaDB takes every folder for a schema, also the one of a file system's own.
pub const LOST_AND_FOUND: Meant = Meant {
    why: "a file system's lost+found is not the datadir's, and is not copied",
    becomes: |line| (!line.contains("lost+found")).then(|| line.to_owned()),
};

/// How a newer MariaDB writes the same definition.
pub const WORD_ORDER: Meant = Meant {
    why: "MariaDB 11 shows INVISIBLE after DEFAULT",
    becomes: |line| Some(line.replace("INVISIBLE DEFAULT 3,", "DEFAULT 3 INVISIBLE,")),
};

/// Files are new where they arrive.
pub const FILES_REMADE: Meant = Meant {
    why: "MariaDB shows the change time of a table's file as the time of its creation",
    becomes: |line| Some(if line.starts_with("table\t") { without_time(line) } else { line.to_owned() }),
};

fn without_time(line: &str) -> String {
    line.split('\t').enumerate().map(|(n, field)| if n == 7 { "-" } else { field }).collect::<Vec<_>>().join("\t")
}

impl Content {
    /// The same with meant differences applied.
    pub fn with(&self, meant: &[Meant]) -> Content {
        let one = |line: &String| meant.iter().try_fold(line.clone(), |line, meant| (meant.becomes)(&line));
        Content { lines: self.lines.iter().filter_map(one).collect(), what: self.what.clone() }
    }

    /// Each of these differences must be there to be meant: one that changes nothing is not a difference.
    #[track_caller]
    pub fn each_matters(&self, meant: &[Meant]) {
        for one in meant {
            assert!(self.with(&[*one]).lines != self.lines, "nothing of this on {}: {}", self.what, one.why);
        }
    }

    /// Both hold the same.
    #[track_caller]
    pub fn check_same(&self, found: &Content) {
        if self.lines == found.lines {
            return;
        }
        let count = |lines: &[String]| {
            let mut all = std::collections::HashMap::<String, i64>::new();
            lines.iter().for_each(|line| *all.entry(line.clone()).or_default() += 1);
            all
        };
        let (a, b) = (count(&self.lines), count(&found.lines));
        let short = |line: &str| line.chars().take(400).collect::<String>();
        let only = |these: &[String],
                    a: &std::collections::HashMap<String, i64>,
                    b: &std::collections::HashMap<String, i64>| {
            let more = these.iter().filter(|line| a[*line] > b.get(*line).copied().unwrap_or(0));
            more.take(25).map(|line| short(line)).collect::<Vec<_>>().join("\n")
        };
        panic!(
            "{} ({} lines) and {} ({} lines) differ\nonly on {}:\n{}\nonly on {}:\n{}",
            self.what,
            self.lines.len(),
            found.what,
            found.lines.len(),
            self.what,
            only(&self.lines, &a, &b),
            found.what,
            only(&found.lines, &b, &a)
        );
    }
}

/// Whether the host's server is MySQL.
pub fn is_mysql(host: Host<'_>) -> bool {
    !host.variable("version").contains("MariaDB")
}

/// A value as the clients' batch mode writes it, with its backslashes taken back.
fn unescaped(text: &str) -> String {
    text.replace("\\\\", "\\")
}
