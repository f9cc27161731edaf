//! The oracle: an observer keeps a copy of the stopped datadir of its own, and what the program made of it is compared
//! with that, first file by file, then row by row through servers.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::world::{Server, World, copy_tree};

/// Entries at the top of a datadir that an image leaves behind, each with its reason. Everything else must arrive.
const LEFT_BEHIND: &[(&str, &str)] = &[
    ("ib_buffer_pool", "a list of production's warm pages"),
    ("multi-master.info", "replication connections"),
    ("master.info", "replication credentials"),
    ("relay-log.info", "replication position"),
    ("*.pid", "belongs to a process"),
    ("*.err", "a log"),
    ("*.log", "a log"),
    ("binlog.*", "production's binary logs"),
    ("relay-bin.*", "production's relay logs"),
    ("tc.log", "two-phase commit of the running server"),
];

/// Entries a destination keeps of its own, so that they may differ.
const KEPT: &[&str] = &["auto.cnf", "mysqld-auto.cnf", "debian-*.flag"];

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        Some((head, rest)) => name.len() >= head.len() + rest.len() && name.starts_with(head) && name.ends_with(rest),
        None => pattern == name,
    }
}

/// What a tree holds: path → folder, or length and hash.
fn listing(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(at) = todo.pop() {
        for entry in fs::read_dir(folder.join(&at)).unwrap() {
            let entry = entry.unwrap();
            let path = at.join(entry.file_name());
            let kind = entry.file_type().unwrap();
            let text = if kind.is_dir() {
                todo.push(path.clone());
                "folder".to_owned()
            } else if kind.is_file() {
                let bytes = fs::read(entry.path()).unwrap();
                format!("{} bytes {}", bytes.len(), &blake3::hash(&bytes).to_hex()[..16])
            } else {
                format!("{kind:?}")
            };
            found.insert(path, text);
        }
    }
    found
}

/// The differences between two folders, one a line; empty if they are equal.
pub fn tree_differences(expected: &Path, found: &Path) -> Vec<String> {
    let (expected, found) = (listing(expected), listing(found));
    let names: std::collections::BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    let none = "missing".to_owned();
    names
        .into_iter()
        .map(|name| (name, expected.get(name).unwrap_or(&none), found.get(name).unwrap_or(&none)))
        .filter(|(_, a, b)| a != b)
        .map(|(name, a, b)| format!("{}: expected {a}, found {b}", name.display()))
        .collect()
}

/// A copy of a stopped datadir, taken by the test itself.
pub struct Observer {
    server: Server,
}

impl Observer {
    /// Copies the stopped source's datadir.
    pub fn copy_of(world: &World) -> Observer {
        assert!(world.source.process().is_none(), "the source still runs");
        let dir = world.root().join("obs");
        fs::create_dir_all(dir.join("conf.d")).unwrap();
        copy_tree(&world.source.datadir(), &dir.join("data"));
        let server = Server::adopt(world.root(), "obs", dir);
        server.write_options("event_scheduler=OFF\nskip-slave-start\nserver_id=99\n");
        Observer { server }
    }

    /// The stage must equal the copy file by file but for what is meant to be left behind or to be the destination's own.
    #[track_caller]
    pub fn check_stage(&self, stage: &Path) {
        let meant = |line: &String| {
            let name = line.split(':').next().unwrap();
            let missing = line.ends_with("found missing");
            !name.contains('/')
                && ((missing && LEFT_BEHIND.iter().any(|(p, _)| matches(p, name)))
                    || KEPT.iter().any(|p| matches(p, name)))
        };
        let mut differences = tree_differences(&self.server.datadir(), stage);
        differences.retain(|line| !meant(line));
        assert!(differences.is_empty(), "the stage is not the image:\n{}", differences.join("\n"));
        for name in ["ibdata1", "ib_logfile0", "aria_log_control", "shop/customers.ibd", "shop/log_myisam.MYD"] {
            assert!(
                stage.join(name).exists(),
                "{name} is missing from the stage, and the observer's copy lacks it, too"
            );
        }
    }

    /// Starts a server on the copy; nothing of the program ever touched it.
    pub fn start(&self) -> &Server {
        self.server.start();
        &self.server
    }
}

const SYSTEM: &str = "('mysql', 'information_schema', 'performance_schema', 'sys')";

/// Number of rows, hash and checksum of every table that is not the system's, and the state of every sequence.
///
/// `CHECKSUM TABLE` of a table with a generated column is not the same twice on MariaDB 10.11.19, even on one server with
/// nothing changed: such tables are compared by our own hash over all columns alone.
pub fn contents(server: &Server) -> BTreeMap<String, String> {
    let tables = server.sql(&format!(
        "SET SESSION group_concat_max_len = 1000000;
         SELECT CONCAT('`', t.table_schema, '`.`', t.table_name, '`'), t.table_type, SUM(c.is_generated = 'ALWAYS'),
           GROUP_CONCAT('IFNULL(HEX(`', c.column_name, '`), ''-'')' ORDER BY c.ordinal_position)
         FROM information_schema.tables t JOIN information_schema.columns c USING (table_schema, table_name)
         WHERE t.table_schema NOT IN {SYSTEM} AND t.table_type IN ('BASE TABLE', 'SEQUENCE') GROUP BY t.table_schema, t.table_name"
    ));
    let mut sql = String::new();
    for line in tables.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let (table, quoted) = (fields[0], fields[0].replace('\'', "''"));
        if fields[1] == "SEQUENCE" {
            sql += &format!(
                "SELECT '{quoted}', CONCAT_WS(' ', next_not_cached_value, increment, cycle_count) FROM {table};\n"
            );
            continue;
        }
        let hash = format!("SUM(CAST(CONV(LEFT(MD5(CONCAT_WS('/', {})), 15), 16, 10) AS UNSIGNED))", fields[3]);
        sql += &format!("SELECT '{quoted} rows', CONCAT_WS(' ', COUNT(*), {hash}) FROM {table};\n");
        if fields[2] == "0" {
            sql += &format!("CHECKSUM TABLE {table} EXTENDED;\n");
        }
    }
    server.sql(&sql).lines().map(|l| l.split_once('\t').unwrap()).map(|(a, b)| (a.to_owned(), b.to_owned())).collect()
}

/// Every object that is not the system's, with its definition: one a line.
pub fn objects(server: &Server) -> String {
    let parts = [
        format!(
            "SELECT 'schema', schema_name, default_collation_name FROM information_schema.schemata WHERE schema_name NOT IN {SYSTEM}"
        ),
        format!(
            "SELECT 'table', table_schema, table_name, table_type, engine, row_format, table_collation, create_options FROM information_schema.tables WHERE table_schema NOT IN {SYSTEM}"
        ),
        format!(
            "SELECT 'column', table_schema, table_name, column_name, ordinal_position, column_type, is_nullable, column_default, extra, generation_expression FROM information_schema.columns WHERE table_schema NOT IN {SYSTEM}"
        ),
        format!(
            "SELECT 'index', table_schema, table_name, index_name, seq_in_index, column_name, index_type, non_unique FROM information_schema.statistics WHERE table_schema NOT IN {SYSTEM}"
        ),
        format!(
            "SELECT 'partition', table_schema, table_name, partition_name, partition_method, partition_description FROM information_schema.partitions WHERE table_schema NOT IN {SYSTEM} AND partition_name IS NOT NULL"
        ),
        format!(
            "SELECT 'constraint', constraint_schema, table_name, constraint_name, constraint_type FROM information_schema.table_constraints WHERE constraint_schema NOT IN {SYSTEM}"
        ),
        format!(
            "SELECT 'view', table_schema, table_name, view_definition, definer, security_type FROM information_schema.views WHERE table_schema NOT IN {SYSTEM}"
        ),
        format!(
            "SELECT 'trigger', trigger_schema, trigger_name, event_object_table, action_statement, definer, created FROM information_schema.triggers WHERE trigger_schema NOT IN {SYSTEM}"
        ),
        format!(
            "SELECT 'routine', routine_schema, routine_name, routine_type, routine_definition, definer, created FROM information_schema.routines WHERE routine_schema NOT IN {SYSTEM}"
        ),
        format!(
            "SELECT 'event', event_schema, event_name, event_definition, interval_value, interval_field, definer, created FROM information_schema.events WHERE event_schema NOT IN {SYSTEM}"
        ),
    ];
    let mut lines: Vec<String> = parts
        .iter()
        .flat_map(|sql| server.sql(&format!("{sql};")).lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    lines.sort();
    lines.join("\n")
}

/// Two servers hold the same rows and the same objects.
#[track_caller]
pub fn check_same(expected: &Server, found: &Server) {
    let (a, b) = (contents(expected), contents(found));
    let names: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
    let different: Vec<_> = names
        .into_iter()
        .filter(|n| a.get(*n) != b.get(*n))
        .map(|n| format!("{n}: {:?} / {:?}", a.get(n), b.get(n)))
        .collect();
    assert!(different.is_empty(), "{} and {} differ in content:\n{}", expected.name, found.name, different.join("\n"));
    let (a, b) = (objects(expected), objects(found));
    let lacks: Vec<_> = a.lines().filter(|l| !b.lines().any(|m| m == *l)).collect();
    let more: Vec<_> = b.lines().filter(|l| !a.lines().any(|m| m == *l)).collect();
    assert!(lacks.is_empty() && more.is_empty(), "{} lacks {lacks:#?}\nand has more: {more:#?}", found.name);
}

/// All accounts and roles of a server with everything that belongs to them: statements that make them, grants, default roles.
pub fn accounts(server: &Server) -> BTreeMap<String, String> {
    let names = server.sql("SELECT user, host, is_role FROM mysql.user ORDER BY user, host");
    let mut found = BTreeMap::new();
    for line in names.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let quote = |s: &str| format!("'{}'", s.replace('\\', "\\\\").replace('\'', "''"));
        let (name, sql) = if fields[2] == "Y" {
            (quote(fields[0]), format!("SHOW GRANTS FOR {};", quote(fields[0])))
        } else {
            let account = format!("{}@{}", quote(fields[0]), quote(fields[1]));
            let sql = format!("SHOW CREATE USER {account}; SHOW GRANTS FOR {account};");
            (account, sql)
        };
        let mut lines: Vec<String> = server.sql(&sql).lines().map(str::to_owned).collect();
        lines.sort();
        found.insert(name, lines.join("\n"));
    }
    let rows = server.sql(
        "SELECT 'mapping', Host, User, Role, Admin_option FROM mysql.roles_mapping ORDER BY 2, 3, 4;
         SELECT 'proxy', Host, User, Proxied_host, Proxied_user, With_grant FROM mysql.proxies_priv ORDER BY 2, 3, 4, 5;
         SELECT 'global', Host, User, Priv FROM mysql.global_priv ORDER BY 2, 3;",
    );
    found.insert("rows".into(), rows);
    found
}

/// The accounts of a server are exactly these.
#[track_caller]
pub fn check_accounts(expected: &BTreeMap<String, String>, server: &Server) {
    let found = accounts(server);
    for name in expected.keys().chain(found.keys()) {
        assert_eq!(expected.get(name), found.get(name), "{}: the account {name} is not as it was", server.name);
    }
}
