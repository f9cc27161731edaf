//! The command line of the isolated first start on a staged datadir. Pure; starts nothing.
//!
//! An allow-list: no option file is read and no persisted variable applied, so that nothing written for the live server can
//! reach the copy. A persisted `skip_replica_start = OFF` beats the command line, and a copy that read it tried to connect to
//! production (verified on MySQL 9.7.4); the host's own option files could point redo, undo and logs at the live server's.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use super::identifier::quote_identifier;
use super::variables::{data_files, keeps_undo, layout_variables, sound_layout};
use super::version::Flavour;

/// What an isolated start needs to know. All paths are absolute and lie inside the run's own folders.
#[derive(Debug, Clone, PartialEq)]
pub struct Isolated<'a> {
    /// Whose server.
    pub flavour: Flavour,
    /// The staged datadir.
    pub datadir: &'a Path,
    /// The private socket; at most 107 bytes.
    pub socket: &'a Path,
    /// The private pid file.
    pub pid_file: &'a Path,
    /// The private error log. Its name needs an ending, or MariaDB adds `.err`.
    pub log_error: &'a Path,
    /// Statements run at start, for the temporary administrator.
    pub init_file: &'a Path,
    /// A private folder for temporary files.
    pub tmpdir: &'a Path,
    /// The account to change to, when started as root; a name or a number.
    pub user: Option<&'a str>,
    /// The source's layout variables. Beside them, the destination's own `basedir`, `plugin_dir`, `lc_messages_dir` and
    /// `character_sets_dir` are passed on if given: a server in an unusual place does not find them by itself.
    pub layout: &'a BTreeMap<String, String>,
    /// Bytes of buffer pool.
    pub pool: u64,
}

/// The buffer pool of a start that has nothing to recover, in bytes.
pub const POOL: u64 = 64 << 20;

/// Where the destination's server finds its own files.
const PLACES: [&str; 4] = ["basedir", "plugin_dir", "lc_messages_dir", "character_sets_dir"];

/// The size its redo log will have: it need not be changed twice.
const REDO_SIZES: [&str; 2] = ["innodb_log_file_size", "innodb_redo_log_capacity"];

/// The variables whose value is the destination's own, whatever the source's: places, the size of the redo log, and the
/// number of undo tablespaces where servers keep those they find or make them anew.
pub fn own_values(destination: &BTreeMap<String, String>) -> Vec<&'static str> {
    let undo = keeps_undo(destination).then_some("innodb_undo_tablespaces");
    PLACES.into_iter().chain(REDO_SIZES).chain(undo).collect()
}

/// Both flavours: nobody gets in from outside, nothing runs by itself, nothing is written but data, little memory.
const COMMON: [&str; 13] = [
    "--skip-networking",
    "--event-scheduler=DISABLED",
    // sanitising must not leave the values it removes in a log
    "--skip-log-bin",
    "--general-log=OFF",
    "--slow-query-log=OFF",
    "--local-infile=OFF",
    "--performance-schema=OFF",
    // the source's list of warm pages stays as it came
    "--innodb-buffer-pool-load-at-startup=OFF",
    "--innodb-buffer-pool-dump-at-shutdown=OFF",
    "--innodb-fast-shutdown=1",
    "--key-buffer-size=8M",
    "--max-connections=20",
    "--table-open-cache=200",
];

/// Seen on MariaDB 10.11.19: up in 0.5 s with 72 MB of memory beside the running server. Password checks are plugins whose
/// row travels in `mysql.plugin`; one refused the temporary administrator until it was off.
const MARIADB: [&str; 7] = [
    "--skip-slave-start",
    "--aria-pagecache-buffer-size=8M",
    "--loose-wsrep-on=OFF",
    "--loose-wsrep-provider=none",
    "--loose-feedback=OFF",
    "--loose-simple-password-check=OFF",
    "--loose-cracklib-password-check=OFF",
];

/// Accepted by MySQL 9.7.4. The log's third level is the one on which it admits a crash recovery.
const MYSQL: [&str; 8] = [
    "--persisted-globals-load=OFF",
    "--skip-replica-start",
    "--mysqlx=OFF",
    "--secure-file-priv=NULL",
    "--auto-generate-certs=OFF",
    "--log-error-verbosity=3",
    "--loose-group-replication-start-on-boot=OFF",
    "--loose-wsrep-on=OFF",
];

/// The arguments, without the program. `--no-defaults` counts only as the first.
pub fn arguments(isolated: &Isolated<'_>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["--no-defaults".into()];
    let mut path = |option: &str, path: &Path| {
        let mut argument = OsString::from(format!("--{option}="));
        argument.push(path);
        arguments.push(argument);
    };
    path("datadir", isolated.datadir);
    path("socket", isolated.socket);
    path("pid-file", isolated.pid_file);
    path("log-error", isolated.log_error);
    path("init-file", isolated.init_file);
    path("tmpdir", isolated.tmpdir);
    if isolated.flavour == Flavour::MariaDb {
        // NULL is a folder's name for MariaDB
        path("secure-file-priv", isolated.tmpdir);
        path("aria-log-dir-path", isolated.datadir);
    }
    path("innodb-log-group-home-dir", isolated.datadir);
    path("innodb-undo-directory", isolated.datadir);
    arguments.push(format!("--innodb-buffer-pool-size={}", isolated.pool).into());
    if isolated.flavour == Flavour::MariaDb {
        // 10.11.18 reserves 8 TiB of addresses for a pool that may grow, or ends: not every host lets it
        let most = isolated.pool.next_multiple_of(8 << 20);
        arguments.push(format!("--loose-innodb-buffer-pool-size-max={most}").into());
    }
    arguments.extend(isolated.user.map(|user| OsString::from(format!("--user={user}"))));
    let own = if isolated.flavour.is_mysql() { MYSQL.as_slice() } else { MARIADB.as_slice() };
    arguments.extend(COMMON.iter().chain(own).map(OsString::from));
    // MySQL has both, and the older one would take part in the newer one's value
    let redo = if isolated.layout.contains_key(REDO_SIZES[1]) { &REDO_SIZES[1..] } else { &REDO_SIZES[..1] };
    let layout = layout_variables(isolated.flavour).iter().chain(&PLACES).chain(redo);
    arguments.extend(layout.filter_map(|name| layout_argument(name, isolated.layout.get(*name)?)));
    arguments
}

/// An absolute data file would be the live server's own: it is never passed on (and refused long before).
fn layout_argument(name: &str, value: &str) -> Option<OsString> {
    // its own program files are where they are; what describes data stays inside the datadir
    let outside = || !PLACES.contains(&name) && (!sound_layout(value) || data_files_outside(name, value));
    if value.is_empty() || outside() {
        return None;
    }
    Some(format!("--{}={value}", name.replace('_', "-")).into())
}

fn data_files_outside(name: &str, value: &str) -> bool {
    name == "innodb_data_file_path"
        && data_files(value).is_none_or(|files| files.iter().any(|file| file.name.contains('/')))
}

/// The statements that make one temporary administrator, without `;`: for the init file, one a line. `password_literal` is a
/// quoted string without backslashes. Both servers stop at the first statement that fails and serve all the same
/// (verified): a login as this account is what proves that they ran.
pub fn init_statements(flavour: Flavour, user: &str, password_literal: &str) -> Vec<String> {
    let account = format!("{}@localhost", quote_identifier(user));
    let grant = format!("GRANT ALL ON *.* TO {account} WITH GRANT OPTION");
    match flavour {
        // by password: 10.11 ignores `unix_socket AS 'root'`
        Flavour::MariaDb => vec![format!("CREATE OR REPLACE USER {account} IDENTIFIED BY {password_literal}"), grant],
        Flavour::MySql | Flavour::Percona => vec![
            format!("DROP USER IF EXISTS {account}"),
            format!("CREATE USER {account} IDENTIFIED BY {password_literal}"),
            grant,
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn some_values_are_the_destinations_own() {
        let vars = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let undo = "innodb_undo_tablespaces";
        assert!(own_values(&vars(&[("version", "11.8.6-MariaDB")])).contains(&undo));
        assert!(!own_values(&vars(&[("version", "10.8.1-MariaDB")])).contains(&undo));
        assert!(!own_values(&vars(&[("version", "9.7.4"), ("version_comment", "(Debian)")])).contains(&undo));
    }

    fn isolated<'a>(flavour: Flavour, stage: &'a Path, layout: &'a BTreeMap<String, String>) -> Vec<String> {
        let run = Path::new("/x/.data.refreshd/isolated");
        let at = Isolated {
            flavour,
            datadir: stage,
            socket: &run.join("s.sock"),
            pid_file: &run.join("pid"),
            log_error: &run.join("error.log"),
            init_file: &run.join("init.sql"),
            tmpdir: &run.join("tmp"),
            user: Some("mysql"),
            layout,
            pool: POOL,
        };
        arguments(&at).into_iter().map(|a| a.into_string().unwrap()).collect()
    }

    #[test]
    fn nothing_reaches_out() {
        let stage = Path::new("/x/.data.refreshd/stage");
        for (flavour, own) in [
            (
                Flavour::MariaDb,
                ["--skip-slave-start", "--loose-wsrep-on=OFF", "--aria-log-dir-path=/x/.data.refreshd/stage"],
            ),
            (Flavour::MySql, ["--skip-replica-start", "--persisted-globals-load=OFF", "--mysqlx=OFF"]),
        ] {
            let found = isolated(flavour, stage, &BTreeMap::new());
            assert_eq!(found[0], "--no-defaults");
            assert_eq!(found[1], "--datadir=/x/.data.refreshd/stage");
            for needed in
                ["--skip-networking", "--event-scheduler=DISABLED", "--skip-log-bin", "--user=mysql"].iter().chain(&own)
            {
                assert!(found.iter().any(|a| a == needed), "{flavour} {needed}");
            }
            let outside = found.iter().filter(|a| a.contains("=/")).find(|a| !a.contains("=/x/.data.refreshd/"));
            assert_eq!(outside, None);
            let names: Vec<&str> = found.iter().map(|a| a.split('=').next().unwrap_or(a)).collect();
            let once: std::collections::BTreeSet<&str> = names.iter().copied().collect();
            assert_eq!(once.len(), names.len());
        }
    }

    #[test]
    fn the_layout_follows() {
        let layout = |path: &str| {
            let pairs = [
                ("innodb_page_size", "8192"),
                ("innodb_data_file_path", path),
                ("basedir", "/opt/m"),
                ("port", "3306"),
            ];
            pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
        };
        let found = isolated(Flavour::MariaDb, Path::new("/s"), &layout("ibdata1:12M:autoextend"));
        let tail = ["--innodb-page-size=8192", "--innodb-data-file-path=ibdata1:12M:autoextend", "--basedir=/opt/m"];
        assert_eq!(found[found.len() - 3..], tail);
        let found = isolated(Flavour::MariaDb, Path::new("/s"), &layout("/live/ibdata1:12M:autoextend"));
        assert!(!found.iter().any(|a| a.contains("/live") || a.contains("port")));
    }

    #[test]
    fn one_administrator() {
        assert_eq!(
            init_statements(Flavour::MariaDb, "in`stall", "'pw'"),
            [
                "CREATE OR REPLACE USER `in``stall`@localhost IDENTIFIED BY 'pw'",
                "GRANT ALL ON *.* TO `in``stall`@localhost WITH GRANT OPTION"
            ]
        );
        assert_eq!(init_statements(Flavour::MySql, "a", "'pw'").len(), 3);
    }

    proptest! {
        #[test]
        fn no_defaults_is_first_whatever_the_layout(layout in proptest::collection::btree_map("[a-z_-]{1,12}", ".{0,20}", 0..5)) {
            for flavour in [Flavour::MariaDb, Flavour::MySql] {
                let found = isolated(flavour, Path::new("/s"), &layout);
                prop_assert_eq!(&found[0], "--no-defaults");
                prop_assert!(found.iter().all(|argument| argument.starts_with("--")));
            }
        }
    }
}
