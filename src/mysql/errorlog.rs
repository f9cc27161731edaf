//! Which lines of a server's error log must fail a first start. Pure.
//!
//! An empty answer is no proof that nothing is missing: MariaDB opens tablespaces late, and a copy without a partition's file
//! or without `aria_log.*` starts without a line (verified on 10.11.19). Completeness is proven by hashes.

use super::version::Flavour;

/// Errors that are expected, each with its reason. All else at the level of an error fails the start.
const EXPECTED_MYSQL: [&str; 6] = [
    // ib_buffer_pool is not there: only a list of warm pages
    "[MY-011947]",
    // the relay logs were left behind on purpose, the rows that name them are removed afterwards
    "[MY-010544]",
    "[MY-011059]",
    "[MY-010426]",
    "[MY-010529]",
    // a persisted event_scheduler = ON against DISABLED on the command line, which holds
    "[MY-011268]",
];

/// A datadir of an older series, before `mariadb-upgrade` has run on it.
const EXPECTED_MARIADB: [&str; 2] = ["Column count of mysql.", "Incorrect definition of table mysql."];

/// Lines below the level of an error that show a crash recovery or a loss. Verified on MySQL 9.7.4.
const SIGNS_MYSQL: [&str; 6] = [
    // a tablespace is missing, an undo tablespace is missing
    "MY-012351",
    "MY-013590",
    // pages from a future the redo log does not know
    "MY-011971",
    "MY-011972",
    // after kill -9; after any crash, at the third level of verbosity
    "MY-010229",
    "MY-012552",
];

/// The same, verified on MariaDB 10.11.19 after `innodb_fast_shutdown = 2`, kill -9 and with files missing. `Starting recovery
/// for XA transactions` is none: it follows every clean stop with a prepared transaction.
const SIGNS_MARIADB: [&str; 6] = [
    "InnoDB: Starting crash recovery",
    "InnoDB: To recover:",
    "Aria engine: starting recovery",
    "InnoDB: Ignoring tablespace for",
    "is in the future",
    "marked as crashed",
];

/// Those of the signs that say that a server recovers as from a crash, and nothing else.
const RECOVERY: [&str; 5] = [
    "MY-010229",
    "MY-012552",
    "InnoDB: Starting crash recovery",
    "InnoDB: To recover:",
    "Aria engine: starting recovery",
];

/// The lines of `log` that must fail the start on a copy of a running server, which has to recover.
pub fn problems_of_recovery(flavour: Flavour, log: &str) -> Vec<String> {
    let recovers = |line: &String| RECOVERY.iter().any(|sign| line.contains(sign)) && !is_error(line);
    problems(flavour, log).into_iter().filter(|line| !recovers(line)).collect()
}

/// Longest line handed on.
const LONGEST: usize = 500;

/// The lines of `log` that must fail an isolated or a normal first start, in order. `log` begins with that start.
pub fn problems(flavour: Flavour, log: &str) -> Vec<String> {
    let (expected, signs) = if flavour.is_mysql() {
        (EXPECTED_MYSQL.as_slice(), SIGNS_MYSQL.as_slice())
    } else {
        (EXPECTED_MARIADB.as_slice(), SIGNS_MARIADB.as_slice())
    };
    let has = |line: &str, parts: &[&str]| parts.iter().any(|part| line.contains(part));
    let is_problem =
        |line: &&str| has(line, signs) || line.contains(" got signal ") || (is_error(line) && !has(line, expected));
    log.lines().filter(is_problem).map(|line| line.trim().chars().take(LONGEST).collect()).collect()
}

/// An error by its level; or one of MariaDB's about the init file, which has neither time nor level.
fn is_error(line: &str) -> bool {
    line.contains(" [ERROR] ") || line.starts_with("ERROR: ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A clean isolated start and stop of MariaDB 10.11.19 on a copy with a prepared XA transaction.
    const CLEAN: &str = "\
2026-11-22 20:06:21 0 [Note] InnoDB: End of log at LSN=76461
2026-11-22 20:06:22 0 [Note] InnoDB: Transaction 45 was in the XA prepared state.
2026-11-22 20:06:22 0 [Note] InnoDB: Starting in background the rollback of recovered transactions
2026-11-22 20:06:22 0 [Note] InnoDB: Starting recovery for XA transactions...
2026-11-22 20:06:22 0 [Note] InnoDB: 1 transactions in prepared state after recovery
2026-11-22 20:06:22 0 [Warning] Found 1 prepared XA transactions
2026-11-22 20:06:22 0 [Note] mariadbd: ready for connections.
Version: '10.11.19-MariaDB-0+deb12u1'  socket: '/x/s.sock'  port: 0  Debian 12
2026-11-22 20:06:22 4 [Warning] Access denied for user 'root'@'localhost' (using password: NO)
2026-11-22 20:06:22 0 [Note] InnoDB: Removed temporary tablespace data file: \"./ibtmp1\"
2026-11-22 20:16:07 5 [ERROR] Column count of mysql.column_stats is wrong. Expected 11, found 10. The table is probably corrupted
2026-11-22 20:06:22 0 [Note] mariadbd: Shutdown complete
";

    #[test]
    fn a_clean_start_has_none() {
        assert_eq!(problems(Flavour::MariaDb, CLEAN), [""; 0]);
        let mysql = "\
2026-11-22T20:06:21.000000Z 0 [System] [MY-010931] [Server] /usr/sbin/mysqld: ready for connections.
2026-11-22T20:06:21.000000Z 0 [ERROR] [MY-011947] [InnoDB] Cannot open '/x/ib_buffer_pool' for reading: No such file
2026-11-22T20:06:21.000000Z 0 [ERROR] [MY-010544] [Repl] Failed to open the relay log 'h-relay-bin.000002'
2026-11-22T20:06:21.000000Z 0 [Warning] [MY-010225] [Server] Found 1 prepared XA transactions
";
        assert_eq!(problems(Flavour::MySql, mysql), [""; 0]);
    }

    #[test]
    fn mariadb_troubles() {
        for line in [
            "2026-11-22 20:09:53 0 [Note] InnoDB: Starting crash recovery from checkpoint LSN=76445",
            "2026-11-22 20:09:53 0 [Note] InnoDB: To recover: 14 pages",
            "2026-11-22 20:09:55 0 [Note] mariadbd: Aria engine: starting recovery",
            "2026-11-22 20:09:59 0 [Warning] InnoDB: Ignoring tablespace for shop/dd because it could not be opened.",
            "2026-11-22 20:06:22 0 [ERROR] InnoDB: Could not find a valid tablespace file for shop/a.",
            "2026-11-22 20:06:24 0 [ERROR] Failed to initialize multi master structures",
            "2026-11-22 20:06:32 0 [ERROR] Aborting",
            "ERROR: 1049  Unknown database 'nodb'",
            "261122 20:06:32 [ERROR] mariadbd got signal 11 ;",
        ] {
            assert_eq!(problems(Flavour::MariaDb, &format!("{CLEAN}{line}\n{CLEAN}")), [line]);
        }
    }

    #[test]
    fn mysql_troubles() {
        for line in [
            "2026-11-22T20:06:21.0Z 1 [Warning] [MY-012351] [InnoDB] Tablespace 5, name 'shop/t', file './shop/t.ibd' is missing!",
            "2026-11-22T20:06:21.0Z 1 [ERROR] [MY-013590] [InnoDB] Cannot find undo tablespace undo_x",
            "2026-11-22T20:06:21.0Z 0 [System] [MY-010229] [Server] Starting XA crash recovery...",
            "2026-11-22T20:06:21.0Z 1 [Note] [MY-012552] [InnoDB] Starting crash recovery.",
            "2026-11-22T20:06:21.0Z 5 [ERROR] [MY-000061] [Server] 1049  Unknown database 'nodb'.",
            "2026-11-22T20:06:21.0Z 0 [ERROR] [MY-010119] [Server] Aborting",
        ] {
            assert_eq!(problems(Flavour::MySql, &format!("{line}\n")), [line]);
            assert_eq!(problems(Flavour::Percona, line), [line]);
        }
    }

    #[test]
    fn a_copy_of_a_running_server_may_recover_and_nothing_else() {
        let log = "2026-11-22 20:09:53 0 [Note] InnoDB: Starting crash recovery from checkpoint LSN=76445\n\
                   2026-11-22 20:09:53 0 [Note] InnoDB: To recover: 14 pages\n\
                   2026-11-22 20:09:55 0 [Note] mariadbd: Aria engine: starting recovery\n";
        assert_eq!(problems(Flavour::MariaDb, log).len(), 3);
        assert_eq!(problems_of_recovery(Flavour::MariaDb, log), [""; 0]);
        let crashed =
            "2026-11-22 20:09:59 8 [ERROR] mariadbd: Table './a/b' is marked as crashed and should be repaired";
        assert_eq!(problems_of_recovery(Flavour::MariaDb, &format!("{log}{crashed}\n")), [crashed]);
        let mysql = "2026-11-22T20:06:21.0Z 0 [System] [MY-010229] [Server] Starting XA crash recovery...\n";
        assert_eq!(problems_of_recovery(Flavour::MySql, mysql), [""; 0]);
        let torn = "2026-11-22T20:06:21.0Z 1 [ERROR] [MY-012552] [InnoDB] something else";
        assert_eq!(problems_of_recovery(Flavour::MySql, torn), [torn]);
    }

    proptest! {
        #[test]
        fn every_answer_is_a_line_of_the_log(log in "(.{0,40}( \\[ERROR\\] )?.{0,20}\n){0,5}") {
            for problem in problems(Flavour::MariaDb, &log) {
                prop_assert!(log.contains(&problem));
            }
        }
    }
}
