//! Which class each entry of a datadir falls in. Pure; reads no directory.
//!
//! Every entry has exactly one class, and what nobody knows is refused: a copy that silently leaves out or carries along
//! an unknown file is worse than one that is not made. Names are those of MariaDB 10.11.19 (each seen after clean stops,
//! after kill -9 or while running), of MySQL 9.7.4, and those the vendors' documentation adds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::variables::{data_files, inside};
use super::version::Flavour;

/// What an entry is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A socket, pipe or device.
    Other,
}

/// What a refresh does with an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Class {
    /// Travels from the source to the destination. A folder's entries are classified on their own.
    Copy,
    /// Each host keeps its own; regular files (or links to them) at the top only.
    Keep,
    /// Stays behind on the source and does not survive on the destination. A folder goes with all it holds.
    Drop,
    /// Nobody knows what it is, or it must not be copied; the reason.
    Refuse(String),
    /// Not copied, and its presence after a stop proves that the stop was not clean; the reason.
    Unclean(String),
}

/// The names a server's own variables give to files of its datadir, and the refresh's lists of names nobody knows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Names {
    /// The system tablespace's files, the buffer pool's list.
    data: BTreeSet<String>,
    /// Files of the temporary tablespace.
    temporary: BTreeSet<String>,
    pid: BTreeSet<String>,
    /// Base names of binary and relay logs.
    numbered: BTreeSet<String>,
    /// Error, general, slow and audit logs.
    logs: BTreeSet<String>,
    /// Sockets, indexes, the replication's files.
    left: BTreeSet<String>,
    /// Certificates and keys.
    own: BTreeSet<String>,
    copy: Vec<String>,
    drop: Vec<String>,
    /// The server was running: what its recovery needs is part of the image.
    running: bool,
}

const NUMBERED: [&str; 2] = ["log_bin_basename", "relay_log_basename"];
const LOGS: [&str; 6] = [
    "log_error",
    "general_log_file",
    "slow_query_log_file",
    "log_slow_query_file",
    "server_audit_file_path",
    "audit_log_file",
];
const LEFT: [&str; 6] =
    ["log_bin_index", "relay_log_index", "relay_log_info_file", "master_info_file", "socket", "mysqlx_socket"];
const OWN: [&str; 8] = [
    "ssl_ca",
    "ssl_cert",
    "ssl_key",
    "ssl_crl",
    "sha256_password_private_key_path",
    "sha256_password_public_key_path",
    "caching_sha2_password_private_key_path",
    "caching_sha2_password_public_key_path",
];

impl Names {
    /// From the running server's variables, and the refresh's own lists: top-level names nobody knows (a path below, where
    /// there is a slash), each with an optional `*` at its end. `datadir` and the variable `datadir` both count as root.
    pub fn from_variables(datadir: &Path, vars: &BTreeMap<String, String>, copy: &[String], drop: &[String]) -> Names {
        let value = |name: &str| vars.get(name).map_or("", String::as_str);
        let roots = [datadir, Path::new(value("datadir"))];
        let place = |path: &str| inside(&roots, path).filter(|path| !path.is_empty());
        let places = |names: &[&str]| names.iter().filter_map(|name| place(value(name))).collect::<BTreeSet<_>>();
        let files = |name: &str| {
            data_files(value(name)).into_iter().flatten().filter_map(|file| place(&file.name)).collect::<BTreeSet<_>>()
        };
        let mut data = files("innodb_data_file_path");
        data.extend(place(value("innodb_buffer_pool_filename")));
        Names {
            data,
            temporary: files("innodb_temp_data_file_path"),
            pid: places(&["pid_file"]),
            numbered: places(&NUMBERED),
            logs: places(&LOGS),
            left: places(&LEFT),
            own: places(&OWN),
            copy: copy.to_vec(),
            drop: drop.to_vec(),
            running: false,
        }
    }

    /// The same for files as a running server has them at one moment.
    #[must_use]
    pub fn of_running(self) -> Self {
        Self { running: true, ..self }
    }

    /// The class of a file that a variable names.
    fn class(&self, path: &str) -> Option<Class> {
        let numbered = |base: &String| path.strip_prefix(base.as_str()).is_some_and(is_numbered_log);
        // not `mysql.ibd` for a log `mysql`
        let rotated = |log: &String| {
            let turned = |rest: &str| log.contains('.') && rest.starts_with(['.', '-']);
            path.strip_prefix(log.as_str()).is_some_and(|rest| rest.is_empty() || turned(rest))
        };
        if self.data.contains(path) {
            Some(Class::Copy)
        } else if self.temporary.contains(path) {
            Some(temporary_tablespace())
        } else if self.pid.contains(path) {
            Some(Class::Unclean("a server removes its pid file when it stops".into()))
        } else if self.own.contains(path) && path.contains('/') {
            Some(Class::Refuse("a certificate or key of this host, in a folder of the datadir".into()))
        } else if self.own.contains(path) {
            Some(Class::Keep)
        } else if self.left.contains(path) || self.numbered.iter().any(numbered) || self.logs.iter().any(rotated) {
            Some(Class::Drop)
        } else {
            None
        }
    }

    /// The class of what nobody knows.
    fn unknown(&self, path: &str, why: &str) -> Class {
        let listed = |list: &[String]| {
            list.iter().any(|name| match name.strip_suffix('*') {
                Some(start) => path.starts_with(start) && (start.contains('/') || !path[start.len()..].contains('/')),
                None => path == name,
            })
        };
        if listed(&self.copy) {
            Class::Copy
        } else if listed(&self.drop) {
            Class::Drop
        } else {
            Class::Refuse(why.into())
        }
    }
}

/// The class of the entry at `path`, relative to the datadir.
pub fn classify(flavour: Flavour, names: &Names, path: &Path, kind: EntryKind) -> Class {
    let Some(text) = path.to_str().filter(|text| !text.is_empty()) else {
        return Class::Refuse("its name is not UTF-8".into());
    };
    let class = match text.split_once('/') {
        None => top(flavour, names, text, kind),
        Some((folder, rest)) => match top(flavour, names, folder, EntryKind::Dir) {
            Class::Copy => below(flavour, names, folder, rest, text, kind),
            class => class,
        },
    };
    match (class, kind) {
        (Class::Copy, EntryKind::Symlink) => {
            Class::Refuse("a symbolic link: what it leads to is outside the datadir or there twice".into())
        }
        (Class::Refuse(_), EntryKind::Symlink) => Class::Refuse("a symbolic link nobody knows".into()),
        // a socket or a pipe holds nothing that could be missed
        (Class::Copy | Class::Keep | Class::Refuse(_), EntryKind::Other) => Class::Drop,
        (class, _) => class,
    }
}

/// Why an entry of an image must not be taken in, whoever sends it. What a source leaves behind is its own affair; these would
/// give a sender more than data: option files, links to other servers' files, programs, what each host keeps of its own.
pub fn foreign(flavour: Flavour, path: &Path) -> Option<&'static str> {
    let text = path.to_str()?.to_lowercase();
    if text.split('/').any(|part| part.starts_with('.')) {
        return Some("no server keeps data in hidden files");
    }
    // InnoDB opens and writes the file that an .isl names, wherever it is (verified on MariaDB 10.11.19)
    if [".isl", ".cnf", ".ini", ".so"].iter().any(|end| text.ends_with(end)) {
        return Some("it would lead the server to other files");
    }
    match classify(flavour, &Names::default(), path, EntryKind::File) {
        Class::Keep => Some("each host keeps its own"),
        _ => None,
    }
}

/// The class of a top-level entry. A link is judged by its name, as a file.
fn top(flavour: Flavour, names: &Names, name: &str, kind: EntryKind) -> Class {
    if kind == EntryKind::Dir {
        return folder(flavour, names, name);
    }
    let recovers = (names.running && is_for_recovery(flavour, name)).then_some(Class::Copy);
    let known = recovers.or_else(|| names.class(name)).or_else(|| common_file(name)).or_else(|| match flavour {
        Flavour::MariaDb => mariadb_file(name),
        Flavour::MySql | Flavour::Percona => mysql_file(name),
    });
    known.unwrap_or_else(|| names.unknown(name, &format!("not a file of {flavour} known here")))
}

/// Schemas' folders, and the few others.
fn folder(flavour: Flavour, names: &Names, name: &str) -> Class {
    match name {
        // MySQL 9.7.4: after a clean stop the second one is there, empty
        "#innodb_redo" | "#innodb_temp" if flavour.is_mysql() => Class::Copy,
        // `lost+found` keeps MySQL 9.7.4 from starting where it is not the filesystem's
        "lost+found" | ".fseventsd" => Class::Drop,
        "#rocksdb" | ".rocksdb" => {
            Class::Refuse("RocksDB's files may lie elsewhere too, and are not known to be copied whole".into())
        }
        // this program's own work folder, where the datadir is a mount point
        _ if name.starts_with('.') && name.ends_with(".refreshd") => Class::Drop,
        _ if is_schema(name) => Class::Copy,
        _ => names.unknown(name, "a folder that is no schema's"),
    }
}

/// Whether writes to a file always show in its times: InnoDB writes its tablespaces by write calls, also where they bypass the page
/// cache (verified on ext4: 226 of 226 files). Others may be written through mappings.
pub fn stamped(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let top = path.components().count() == 1;
    name.ends_with(".ibd") || top && (name.starts_with("ibdata") || name.starts_with("undo"))
}

/// Whether a folder's name can be a schema's: in file names, servers write all but ASCII letters, digits, `_` and `$` as
/// `@` and digits or letters. `stage`, `old` and the like cannot be told from a schema.
fn is_schema(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'@'))
}

/// The class of what lies below a copied top-level folder.
fn below(flavour: Flavour, names: &Names, folder: &str, rest: &str, path: &str, kind: EntryKind) -> Class {
    if let Some(class) = names.class(path) {
        return class;
    }
    match folder {
        "#innodb_redo" if flavour.is_mysql() => return redo_file(names, rest, path),
        "#innodb_temp" if flavour.is_mysql() => return temporary_tablespace(),
        // of the refresh's own list
        _ if !is_schema(folder) => return Class::Copy,
        _ => {}
    }
    let inner = rest.contains('/') || kind == EntryKind::Dir;
    match rest.rsplit_once('.').map(|(_, extension)| extension) {
        _ if inner => names.unknown(path, "a folder inside a schema's folder"),
        // MariaDB; a copy started on it opened, and wrote to, the source's own file (verified)
        Some("isl") => Class::Refuse("names a tablespace outside the datadir".into()),
        // what REPAIR TABLE leaves behind when it is interrupted
        Some("TMD" | "TMM") => Class::Drop,
        // all else belongs to a table, `#sql-` too: after a crash the data dictionary may still know it, and a missing
        // tablespace is what a first start must not show
        _ => Class::Copy,
    }
}

fn redo_file(names: &Names, name: &str, path: &str) -> Class {
    match name.strip_prefix("#ib_redo") {
        Some(number) if is_number(number) => Class::Copy,
        // spare files: MySQL 9.7.4 starts without
        Some(number) if number.strip_suffix("_tmp").is_some_and(is_number) => Class::Drop,
        _ => names.unknown(path, "not a redo file"),
    }
}

fn temporary_tablespace() -> Class {
    Class::Unclean("a server removes its temporary tablespaces when it stops".into())
}

/// Files both flavours have.
fn common_file(name: &str) -> Option<Class> {
    let class = match name {
        "ib_buffer_pool" | "tc.log" | "mysql_upgrade_info" => Class::Copy,
        "ibtmp1" => temporary_tablespace(),
        // gone after a clean stop, there after kill -9 (MariaDB); the backup of a recovered one stays for good, so it
        // proves nothing. Neither may be copied
        "ddl_recovery.log" => Class::Unclean("a server removes its log of table changes when it stops".into()),
        "ddl_recovery-backup.log" | "ddl-backup.log" => Class::Drop,
        "galera.cache" | "grastate.dat" | "gvwstate.dat" | "backup-my.cnf" | "core" => Class::Drop,
        // the account's home is often the datadir
        ".bash_history" | ".bash_logout" | ".bashrc" | ".profile" | ".lesshst" | ".viminfo" | ".rnd" | ".my.cnf"
        | ".mylogin.cnf" | ".mysql_history" | ".mariadb_history" => Class::Keep,
        _ if is_replication(name) || is_left_behind(name) => Class::Drop,
        _ if name.ends_with(".pem") || (name.starts_with("debian-") && name.ends_with(".flag")) => Class::Keep,
        _ if name.strip_prefix("ibdata").is_some_and(is_number) => Class::Copy,
        _ => return None,
    };
    Some(class)
}

/// Positions and passwords of replication. An `.info` file has the password in clear and makes the copy connect to
/// production; a `multi-master.info` that does not fit keeps MariaDB 10.11.19 from starting (both verified).
fn is_replication(name: &str) -> bool {
    let info = |start: &str| name.strip_prefix(start).is_some_and(|rest| rest == ".info" || rest.starts_with('-'));
    (name.ends_with(".info") && (info("master") || info("relay-log")))
        || name == "multi-master.info"
        || name.rfind("-bin").is_some_and(|at| is_numbered_log(&name[at + "-bin".len()..]))
        || name.strip_prefix("binlog").is_some_and(is_numbered_log)
}

/// `.000001`, `.index` and what else stands behind a binary or relay log's base name. A relay log has its connection's
/// name between: `host-relay-bin-c1.000001`.
fn is_numbered_log(rest: &str) -> bool {
    let Some((connection, end)) = rest.split_once('.') else { return false };
    let number = end.strip_suffix(".idx").unwrap_or(end);
    (connection.is_empty() || connection.starts_with('-'))
        && (number.len() >= 6 && is_number(number)
            || matches!(end, "index" | "state" | "~rec~" | "index_crash_safe" | "~index_crash_safe~"))
}

/// What servers and backup tools leave lying about.
fn is_left_behind(name: &str) -> bool {
    const ENDS: [&str; 5] = [".pid", ".sock", ".sock.lock", ".err", ".log"];
    const STARTS: [&str; 7] =
        ["gcache.page.", "wsrep_recovery.", "xtrabackup_", "mariadb_backup_", "#sql", "innodb_status.", "core."];
    let own_log = name == "tc.log" || name.starts_with("undo_");
    let rotated = [".log.", ".err.", ".log-", ".err-"].iter().any(|middle| name.contains(middle));
    !own_log && (rotated || ENDS.iter().any(|end| name.ends_with(end)) || STARTS.iter().any(|s| name.starts_with(s)))
}

fn mariadb_file(name: &str) -> Option<Class> {
    let class = match name {
        "ib_logfile0" | "aria_log_control" | "mariadb_upgrade_info" => Class::Copy,
        "ib_logfile101" => Class::Unclean("the redo log was being replaced".into()),
        _ if name.strip_prefix("aria_log.").is_some_and(is_number) => Class::Copy,
        _ if name.strip_prefix("undo").is_some_and(|n| n.len() == 3 && is_number(n)) => Class::Copy,
        _ if name.starts_with("ib_logfile") => Class::Refuse("since 10.5 there is only ib_logfile0".into()),
        _ => return None,
    };
    Some(class)
}

fn mysql_file(name: &str) -> Option<Class> {
    let class = match name {
        "mysql.ibd" | "mysql_upgrade_history" => Class::Copy,
        // identity and persisted settings: they would override the destination's own
        "auto.cnf" | "mysqld-auto.cnf" | "mysqld-auto.cnf.backup" | "mysqld.my" | "keyring" => Class::Keep,
        "backup-auto.cnf" | "backup-mysqld-auto.cnf" => Class::Drop,
        _ if name.starts_with("component_keyring_") => Class::Keep,
        // empty of meaning after a clean stop, recreated, and may hold passwords (verified on MySQL 9.7.4)
        _ if name.ends_with(".dblwr") || name.ends_with(".bdblwr") => Class::Drop,
        _ if name.ends_with(".ibd") || name.ends_with(".ibu") => Class::Copy,
        _ if name.strip_prefix("ib_logfile").is_some_and(is_number) => Class::Copy,
        _ => match name.strip_prefix("undo_") {
            Some(number) if is_number(number) => Class::Copy,
            Some(rest) if rest.strip_suffix("_trunc.log").is_some_and(is_number) => {
                Class::Unclean("an undo tablespace was being truncated".into())
            }
            _ => return None,
        },
    };
    Some(class)
}

/// What a server looks at when it recovers from a crash, and removes or makes anew by itself: the log of table changes under way (MariaDB
/// 10.11), pages that may have been torn, undo tablespaces that were being cut (MySQL 9.7).
fn is_for_recovery(flavour: Flavour, name: &str) -> bool {
    if flavour == Flavour::MariaDb {
        return name == "ddl_recovery.log";
    }
    let undo = name.strip_prefix("undo_").and_then(|rest| rest.strip_suffix("_trunc.log"));
    name.ends_with(".dblwr") || name.ends_with(".bdblwr") || undo.is_some_and(is_number)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod foreign_tests {
    use super::*;

    #[test]
    fn what_a_recovery_needs_is_part_of_a_running_servers_image() {
        let class = |flavour, running: bool, name: &str| {
            let names = if running { Names::default().of_running() } else { Names::default() };
            classify(flavour, &names, Path::new(name), EntryKind::File)
        };
        for (flavour, name) in [
            (Flavour::MariaDb, "ddl_recovery.log"),
            (Flavour::MySql, "#ib_16384_0.dblwr"),
            (Flavour::MySql, "#ib_16384_1.bdblwr"),
            (Flavour::MySql, "undo_1_trunc.log"),
        ] {
            assert_eq!(class(flavour, true, name), Class::Copy, "{name}");
            assert_ne!(class(flavour, false, name), Class::Copy, "{name}");
        }
        // these are made anew, belong to the host, or lead to production, whoever runs
        for (flavour, name) in [
            (Flavour::MariaDb, "ibtmp1"),
            (Flavour::MariaDb, "master.info"),
            (Flavour::MariaDb, "vm-bin.000001"),
            (Flavour::MariaDb, "vm.pid"),
            (Flavour::MySql, "auto.cnf"),
            (Flavour::MySql, "binlog.000001"),
        ] {
            assert_ne!(class(flavour, true, name), Class::Copy, "{name}");
            assert_eq!(class(flavour, true, name), class(flavour, false, name), "{name}");
        }
    }

    #[test]
    fn an_image_brings_data_and_nothing_else() {
        let why = |path: &str| foreign(Flavour::MariaDb, Path::new(path));
        for no in
            [".my.cnf", "shop/x.isl", "shop/.x", ".ssh/authorized_keys", "my.cnf", "evil.so", "SHOP/X.ISL", "auto.cnf"]
        {
            assert!(why(no).is_some() || no == "auto.cnf", "{no}");
        }
        for yes in [
            "ibdata1",
            "shop/orders.ibd",
            "shop/db.opt",
            "mysql/global_priv.MAD",
            "ib_logfile0",
            "undo001",
            "a@002eb/t.frm",
        ] {
            assert_eq!(why(yes), None, "{yes}");
        }
        assert!(foreign(Flavour::MySql, Path::new("auto.cnf")).is_some());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(copy: &[&str], drop: &[&str]) -> Names {
        let vars = [
            ("datadir", "/var/lib/mysql/"),
            ("innodb_data_file_path", "ibdata1:12M;extra/sys2:1G:autoextend:max:2G"),
            ("innodb_temp_data_file_path", "scratch:12M:autoextend"),
            ("innodb_buffer_pool_filename", "ib_buffer_pool"),
            ("log_bin_basename", "/var/lib/mysql/changes"),
            ("relay_log_basename", ""),
            ("log_error", "./foo.err"),
            ("general_log_file", "mysql"),
            ("slow_query_log_file", "/var/log/mysql/slow.log"),
            ("pid_file", "/srv/real/foo.process"),
            ("socket", "/run/mysqld/mysqld.sock"),
            ("ssl_key", "/var/lib/mysql/tls.key"),
        ];
        let vars = vars.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        Names::from_variables(Path::new("/srv/real"), &vars, &owned(copy), &owned(drop))
    }

    fn letter(flavour: Flavour, names: &Names, entry: &str) -> char {
        let kind = if entry.ends_with('/') { EntryKind::Dir } else { EntryKind::File };
        match classify(flavour, names, Path::new(entry.trim_end_matches('/')), kind) {
            Class::Copy => 'C',
            Class::Keep => 'K',
            Class::Drop => 'D',
            Class::Refuse(_) => 'R',
            Class::Unclean(_) => 'U',
        }
    }

    /// One line a class: its letter, then entries; folders end with a slash.
    fn check(flavour: Flavour, names: &Names, table: &str) {
        for line in table.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let mut words = line.split_whitespace();
            let class = words.next().unwrap();
            for entry in words {
                assert_eq!(letter(flavour, names, entry).to_string(), class, "{entry}");
            }
        }
    }

    #[test]
    fn mariadb_as_seen() {
        let table = "
            C ibdata1 extra/ extra/sys2 ib_logfile0 undo001 undo003 aria_log_control aria_log.00000001 ib_buffer_pool tc.log
            C mysql/ performance_schema/ sys/ sh@0020op@002d@0p/ shop/ old/ mysql_upgrade_info mariadb_upgrade_info
            C mysql/db.MAI mysql/general_log.CSV shop/db.opt shop/a.frm shop/a.ibd shop/a.TRG shop/t1.TRN shop/arch.ARZ
            C shop/p#P#p0.ibd shop/p2#P#a#SP#asp0.MYD shop/p.par shop/mg.MRG shop/FTS_0000000000000012_CONFIG.ibd
            C shop/#sql-alter-54b2-5.frm shop/#sql-ib17.ibd shop/@0023x@0020y@002fz.frm shop/README
            K tls.key ca.pem debian-10.11.flag .bash_history
            D changes.000001 changes.index changes.state f-bin.000001 f-bin.1000001 f-bin.index f-bin.state f-bin.000001.idx
            D binlog.000003 binlog.index f-relay-bin-c1.000001 f-relay-bin-c1.index f-relay-bin.000002 relay-log.info
            D master.info master-c1.info relay-log-c1.info multi-master.info foo.err foo.err-old foo.err.1.gz vm.log vm.log.1
            D vm-slow.log mysql other.pid mysqld.sock.lock lost+found/ lost+found/x galera.cache grastate.dat core core.123
            D .data.refreshd/ server_audit.log xtrabackup_info #sql-temptable-5603-4-0.MAD ddl_recovery-backup.log shop/a.TMD
            U ibtmp1 scratch foo.process ddl_recovery.log ib_logfile101
            R ib_logfile1 shop/dd.isl shop/inner/ shop/inner/x.ibd .ssh/ old.bak/ data-old/ what notes.txt #rocksdb/
            R auto.cnf mysql.ibd #innodb_redo/ undo_001 a.ibd stage.tar ibdata1.bak aria_log. undo0001
        ";
        check(Flavour::MariaDb, &names(&[], &[]), table);
    }

    #[test]
    fn mysql_as_seen() {
        let table = "
            C ibdata1 mysql.ibd ib_buffer_pool mysql/ performance_schema/ sys/ undo_001 undo_002 undo_x.ibu ts1.ibd
            C mysql_upgrade_history #innodb_redo/ #innodb_redo/#ib_redo12 #innodb_temp/ shop/ shop/c.ibd shop/m_375.sdi
            K auto.cnf mysqld-auto.cnf ca-key.pem ca.pem private_key.pem server-cert.pem debian-5.7.flag mysqld.my
            K component_keyring_file.cnf
            D #ib_16384_0.dblwr #ib_16384_1.bdblwr binlog.000001 binlog.index binlog.~rec~ h-relay-bin.000001
            D h-relay-bin.index h-relay-bin-channel.000001 #innodb_redo/#ib_redo13_tmp host.pid error.log
            U ibtmp1 #innodb_temp/temp_1.ibt undo_1_trunc.log ddl_recovery.log
            R ib_logfileX #innodb_redo/other #clone/ aria_log_control shop/old/ undo_x stage.d/
        ";
        check(Flavour::MySql, &names(&[], &[]), table);
    }

    #[test]
    fn own_lists_are_for_unknown_names_only() {
        let lists = names(&["notes.txt", "my-*", "shop/attic*"], &["scrap*", "*"]);
        let table = "
            C notes.txt my-folder/ my-folder/a/ my-folder/a/b my-file shop/attic/ ibdata1 shop/ shop/a.ibd mysql/ ib_logfile0
            D scraps scrap-folder/ scrap-folder/x what .ssh/
            K ca.pem
            U ibtmp1
            R #rocksdb/ shop/other/ shop/x.isl
        ";
        check(Flavour::MariaDb, &lists, table);
    }

    #[test]
    fn links_and_special_files() {
        let names = names(&["mine"], &[]);
        let class = |path: &str, kind| classify(Flavour::MariaDb, &names, Path::new(path), kind);
        for path in ["shop", "shop/a.MYD", "ibdata1", "mine", "what"] {
            assert!(matches!(class(path, EntryKind::Symlink), Class::Refuse(_)), "{path}");
        }
        assert_eq!(class("ca.pem", EntryKind::Symlink), Class::Keep);
        assert_eq!(class("foo.err", EntryKind::Symlink), Class::Drop);
        for path in ["mysql.sock", "what", "ibdata1", "shop/pipe"] {
            assert_eq!(class(path, EntryKind::Other), Class::Drop, "{path}");
        }
    }

    proptest! {
        #[test]
        fn any_name_has_a_class(path in "\\PC{0,20}(/\\PC{0,20}){0,2}", mysql: bool, dir: bool) {
            let flavour = if mysql { Flavour::MySql } else { Flavour::MariaDb };
            let kind = if dir { EntryKind::Dir } else { EntryKind::File };
            let class = classify(flavour, &names(&[], &[]), Path::new(&path), kind);
            // only what is in a class of its own is changed by the refresh's lists
            let dropped = classify(flavour, &names(&[], &["*"]), Path::new(&path), kind);
            if !matches!(class, Class::Refuse(_)) {
                prop_assert_eq!(dropped, class);
            }
        }

        #[test]
        fn tables_always_travel(schema in "[a-z_$@0-9]{1,20}", table in "[a-z_$@0-9#]{1,20}", extension in "(ibd|frm|MYD|MYI|MAD|MAI|CSV|sdi)") {
            let path = format!("{schema}/{table}.{extension}");
            prop_assert_eq!(classify(Flavour::MariaDb, &names(&[], &["*"]), Path::new(&path), EntryKind::File), Class::Copy);
        }
    }
}
