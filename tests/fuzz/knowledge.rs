//! What servers say of themselves, in words: versions, variables, error logs, file names, ids of transactions. Anything may stand
//! there; what is made of it is sound or nothing.

use std::collections::BTreeMap;
use std::path::Path;

use mysql_refreshd::mutate::{self, Rng};
use mysql_refreshd::mysql::dropin::{self, Header};
use mysql_refreshd::mysql::files::{EntryKind, Names, classify, foreign};
use mysql_refreshd::mysql::version::judge_pair;
use mysql_refreshd::mysql::{Flavour, Version, errorlog, identifier, setting, variables, xa};

use crate::{alone, samples};

const FLAVOURS: [Flavour; 3] = [Flavour::MariaDb, Flavour::MySql, Flavour::Percona];

fn line(rng: &mut Rng, samples: &[String]) -> String {
    String::from_utf8_lossy(&mutate::text(rng, samples)).into_owned()
}

/// A value that a shorter text could stand for as well: nothing here is slow on purpose.
fn short(text: String) -> String {
    text.chars().take(5000).collect()
}

#[test]
fn odd_versions() {
    let _alone = alone();
    let versions = samples::texts(&[
        "10.11.19-MariaDB-0+deb12u1",
        "5.5.5-10.5.2-MariaDB",
        "8.0.36-28.1",
        "9.7.4",
        "8.4.0-0ubuntu0",
        "11.8.3-MariaDB-log",
    ]);
    let comments = samples::texts(&["Debian 12", "MySQL Community Server - GPL", "Percona Server (GPL), Release 28"]);
    mutate::run("versions", move |rng| {
        let parse = |rng: &mut Rng| Version::parse(&line(rng, &versions), &line(rng, &comments));
        let (one, other) = (parse(rng), parse(rng));
        if let (Some(one), Some(other)) = (one, other) {
            let _ = (judge_pair(&one, &other), one.partial_cmp(&other), one.to_string());
            let shown = format!("{}.{}.{}", one.major, one.minor, one.patch);
            let back = Version::parse(&shown, "").unwrap();
            assert_eq!((back.major, back.minor, back.patch), (one.major, one.minor, one.patch));
        }
    });
}

#[test]
fn odd_error_logs() {
    let _alone = alone();
    let logs = samples::texts(&[
        "2026-11-22 20:06:22 0 [Note] mariadbd: ready for connections.\n2026-11-22 20:06:32 0 [ERROR] Aborting\n",
        "2026-11-22T20:06:21.0Z 1 [ERROR] [MY-013590] [InnoDB] Cannot find undo tablespace undo_x\n",
        "ERROR: 1049  Unknown database 'nodb'\n261122 20:06:32 [ERROR] mariadbd got signal 11 ;\n",
    ]);
    mutate::run("error logs", move |rng| {
        let log = line(rng, &logs);
        for flavour in FLAVOURS {
            for problem in errorlog::problems(flavour, &log) {
                assert!(log.contains(&problem) && problem.chars().count() <= 500);
            }
        }
    });
}

#[test]
fn odd_variables() {
    let _alone = alone();
    let usual = [
        ("datadir", "/srv/data/"),
        ("innodb_data_file_path", "ibdata1:12M;extra/sys2:1G:autoextend:max:2G"),
        ("innodb_data_home_dir", "../x"),
        ("innodb_directories", "/a;/srv/data/b;../c"),
        ("innodb_undo_directory", "./"),
        ("log_bin_basename", "/srv/data/changes"),
        ("pid_file", "/srv/data/x.pid"),
        ("version", "10.11.19-MariaDB"),
        ("sql_mode", "ANSI,STRICT_ALL_TABLES"),
        ("innodb_buffer_pool_size", "17179869183G"),
        ("wsrep_on", "ON"),
        ("innodb_encrypt_tables", "FORCE"),
    ];
    let names: Vec<String> = usual.iter().map(|(name, _)| (*name).to_owned()).collect();
    let values: Vec<String> = usual.iter().map(|(_, value)| (*value).to_owned()).collect();
    mutate::run("variables", move |rng| {
        let any = |rng: &mut Rng| -> BTreeMap<String, String> {
            names.iter().map(|name| (name.clone(), short(line(rng, &values)))).collect()
        };
        let (one, other) = (any(rng), any(rng));
        let flavour = FLAVOURS[rng.usize(..3)];
        let datadir = Path::new("/srv/data");
        for name in &names {
            let _ = setting::same_setting(name, &one[name], &other[name]);
            let _ = (setting::effective(&one, &one[name]), variables::sound_layout(&one[name]));
            let _ = (dropin::denied(&one[name]), variables::secret_setting(&one[name]));
        }
        let _ = variables::layout_differences(flavour, &one, &other);
        let _ = variables::outside_datadir(flavour, datadir, &one);
        let _ = variables::encryption_reasons(flavour, &one, &values);
        let _ = variables::cluster_reasons(flavour, &one);
        let listed = Names::from_variables(datadir, &one, &values, &names);
        let file = short(line(rng, &values));
        for kind in [EntryKind::File, EntryKind::Dir, EntryKind::Symlink, EntryKind::Other] {
            let _ = classify(flavour, &listed, Path::new(&file), kind);
        }
    });
}

#[test]
fn odd_file_names_bring_no_file_that_leads_elsewhere() {
    let _alone = alone();
    let names =
        samples::texts(&["shop/orders.ibd", ".my.cnf", "shop/x.isl", "a.so", "ib_logfile0", "mysql/x.cnf", "a/.b/c"]);
    mutate::run("file names", move |rng| {
        let name = short(line(rng, &names));
        for flavour in FLAVOURS {
            if foreign(flavour, Path::new(&name)).is_none() {
                let hidden = name.split('/').any(|part| part.starts_with('.'));
                let leads = [".isl", ".cnf", ".so"].iter().any(|end| name.to_lowercase().ends_with(end));
                assert!(!hidden && !leads, "{name:?}");
            }
        }
    });
}

#[test]
fn odd_values_stay_one_setting_and_one_literal() {
    let _alone = alone();
    let values = samples::texts(&["512M", "a # \"b\" c\\d", "ON", "\n[client]\nx=1", "it's", "!include /etc/x"]);
    mutate::run("settings", move |rng| {
        let (name, value) = (short(line(rng, &values)), short(line(rng, &values)));
        let header = Header { run: &short(line(rng, &values)), refresh: &name, source: &value };
        for flavour in FLAVOURS {
            let file = dropin::render(flavour, &header, &[(name.clone(), value.clone())].into());
            assert_eq!(file.split('\n').count(), 8, "{file:?}");
            let sections = file.lines().filter(|line| line.starts_with(['[', '!'])).count();
            assert_eq!(sections, 1, "{file:?}");
        }
        let literal = identifier::quote_string(&value);
        assert!(!literal.contains('\\') && !literal.chars().any(char::is_control));
        assert!(literal.matches('\'').count().is_multiple_of(2));
        let listed =
            samples::map(&[("data", &value), ("formatID", &name), ("gtrid_length", "1"), ("bqual_length", "0")]);
        if let Some(id) = xa::id(Flavour::MySql, &listed) {
            assert!(id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'\'' || byte == b','), "{id}");
        }
    });
}
