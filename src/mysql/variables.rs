//! Server variables: which belong to the layout of the data, which lead out of the datadir, which rule a copy out. Pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use super::setting::{effective, same_setting, variable_name};
use super::setting::{size, switch, tidy};
use super::version::Flavour;

/// A layout variable that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The variable.
    pub name: String,
    /// Its value on the source, as the source prints it: can be pushed as a setting.
    pub source: String,
    /// Its value on the destination.
    pub destination: String,
}

/// A variable that puts data outside the datadir.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outside {
    /// The variable.
    pub variable: String,
    /// Where it leads.
    pub path: PathBuf,
}

/// Both flavours' layout. Page size and lengths of words cannot change under existing data; a server with another
/// `lower_case_table_names` or one more data file starts all the same on MariaDB (verified on 10.11.19) and on MySQL 9.7.4
/// (the data file), so that only a comparison protects. Full text: MySQL documentation, copying raw data for replication.
macro_rules! layout {
    ($($more:literal),*) => {
        &[
            "innodb_page_size",
            "innodb_data_file_path",
            "lower_case_table_names",
            "ft_min_word_len",
            "ft_max_word_len",
            "innodb_ft_min_token_size",
            "innodb_ft_max_token_size",
            "innodb_ft_enable_stopword",
            $($more),*
        ]
    };
}

/// The variables that belong to the data: they must be the same on both ends, or follow the data.
///
/// Not here, with reason: paths (refused by [`outside_datadir`]); redo sizes and `innodb_checksum_algorithm` (any will do);
/// `ft_stopword_file`, whose built-in value `(built-in)` cannot be set (MariaDB 10.11.19 looks for a file of that name).
pub fn layout_variables(flavour: Flavour) -> &'static [&'static str] {
    match flavour {
        // 10.11 keeps the number of undo tablespaces it finds; before, it had to match (MariaDB documentation)
        Flavour::MariaDb => layout!("aria_block_size", "innodb_undo_tablespaces"),
        Flavour::MySql | Flavour::Percona => layout!("ngram_token_size"),
    }
}

/// Whether a layout variable's value stays inside the datadir: plain words, and files whose names have no folder. A data file
/// named `../x` is created outside (verified on MariaDB 10.11.19).
pub fn sound_layout(value: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.:;,-".contains(c);
    value.chars().all(plain) && !value.contains("..")
}

/// Whether a variable's value is a secret, not to be shown.
pub fn secret_setting(name: &str) -> bool {
    name == "wsrep_sst_auth" || ["password", "passphrase", "secret", "token"].iter().any(|end| name.ends_with(end))
}

/// The layout variables in which two servers differ. One that either does not have is no difference.
pub fn layout_differences(
    flavour: Flavour,
    source: &BTreeMap<String, String>,
    destination: &BTreeMap<String, String>,
) -> Vec<Difference> {
    let differs = |name: &&'static str| {
        let (source, destination) = (source.get(*name)?, destination.get(*name)?);
        let same = match *name {
            "innodb_data_file_path" => data_files(source).is_some() && data_files(source) == data_files(destination),
            _ => same_setting(name, source, destination),
        };
        let (name, source, destination) = ((*name).to_owned(), source.clone(), destination.clone());
        (!same).then_some(Difference { name, source, destination })
    };
    let needless =
        |name: &&&'static str| **name == "innodb_undo_tablespaces" && keeps_undo(source) && keeps_undo(destination);
    layout_variables(flavour).iter().filter(|name| !needless(name)).filter_map(differs).collect()
}

/// From 10.11 on a server takes the undo tablespaces it finds, whatever the variable says (verified on 10.11.19).
pub(super) fn keeps_undo(vars: &BTreeMap<String, String>) -> bool {
    let comment = vars.get("version_comment").map_or("", String::as_str);
    let version = vars.get("version").and_then(|text| super::Version::parse(text, comment));
    version.is_some_and(|version| version.flavour == Flavour::MariaDb && version.series() >= (10, 11))
}

/// One file of the system tablespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DataFile {
    pub(super) name: String,
    size: u128,
    autoextend: bool,
    max: Option<u128>,
}

/// The files of `innodb_data_file_path`, in order; `None` if the value cannot be read.
pub(super) fn data_files(value: &str) -> Option<Vec<DataFile>> {
    let file = |text: &str| {
        let mut parts = text.trim().split(':');
        let (name, size) = (parts.next()?.to_owned(), size(parts.next()?)?);
        let mut file = DataFile { name, size, autoextend: false, max: None };
        while let Some(word) = parts.next() {
            match word.to_ascii_lowercase().as_str() {
                "autoextend" => file.autoextend = true,
                "max" => file.max = Some(self::size(parts.next()?)?),
                _ => return None,
            }
        }
        (!file.name.is_empty()).then_some(file)
    };
    value.split(';').filter(|text| !text.trim().is_empty()).map(file).collect()
}

/// Where below one of `roots` a path lies; empty for a root itself, `None` outside. Servers take relative paths from the
/// datadir. A root may have two names, as the datadir can be reached through a link.
pub(super) fn inside(roots: &[&Path], path: &str) -> Option<String> {
    let path = tidy(Path::new(path))?;
    let below = if path.is_absolute() {
        let root = |root: &&Path| tidy(root).filter(|root| root.is_absolute());
        roots.iter().filter_map(root).find_map(|root| path.strip_prefix(root).map(Path::to_path_buf).ok())?
    } else {
        path
    };
    below.to_str().map(str::to_owned)
}

/// Folders that hold data. In the datadir itself they must lie: the proof of a clean stop and the isolated start look there.
const DATA_FOLDERS: [&str; 4] =
    ["innodb_data_home_dir", "innodb_log_group_home_dir", "innodb_undo_directory", "innodb_doublewrite_dir"];

/// The variables whose path holds data and is not the datadir, a folder inside it included; and data files with an absolute
/// path, wherever that leads: a copy would open the original. Not data: `log_bin`, `relay_log`, `tmpdir`,
/// `secure_file_priv`.
pub fn outside_datadir(flavour: Flavour, datadir: &Path, vars: &BTreeMap<String, String>) -> Vec<Outside> {
    let value = |name: &str| vars.get(name).map_or("", String::as_str).trim();
    let roots = [datadir, Path::new(value("datadir"))];
    let found = |variable: &str, path: &str| Outside { variable: variable.into(), path: datadir.join(path) };
    let mut outside = Vec::new();
    let own = if flavour.is_mysql() { [].as_slice() } else { ["aria_log_dir_path"].as_slice() };
    for name in DATA_FOLDERS.iter().chain(own) {
        let path = value(name);
        if !is_unset(path) && inside(&roots, path).as_deref() != Some("") {
            outside.push(found(name, path));
        }
    }
    for file in data_files(value("innodb_data_file_path")).unwrap_or_default() {
        if file.name.starts_with('/') || inside(&roots, &file.name).is_none() {
            outside.push(found("innodb_data_file_path", &file.name));
        }
    }
    if flavour.is_mysql() {
        // `;` between them: MySQL documentation, innodb_directories
        for path in value("innodb_directories").split(';').map(str::trim).filter(|path| !is_unset(path)) {
            if inside(&roots, path).is_none() {
                outside.push(found("innodb_directories", path));
            }
        }
    }
    outside
}

fn is_unset(value: &str) -> bool {
    value.is_empty() || value.eq_ignore_ascii_case("null")
}

/// Why this server's data may be encrypted; empty if nothing says so. `plugins` are the active ones, and MySQL's components.
pub fn encryption_reasons(flavour: Flavour, vars: &BTreeMap<String, String>, plugins: &[String]) -> Vec<String> {
    let switches: &[&str] = if flavour.is_mysql() {
        &["default_table_encryption", "innodb_redo_log_encrypt", "innodb_undo_log_encrypt"]
    } else {
        &["innodb_encrypt_tables", "innodb_encrypt_log", "aria_encrypt_tables"]
    };
    let on = |name: &&&str| vars.get(**name).is_some_and(|value| !is_unset(value) && switch(value) != Some(false));
    let mut reasons: Vec<String> = switches.iter().filter(on).map(|name| format!("{name} is on")).collect();
    // tables can be encrypted one by one as soon as there are keys
    let holds_keys = |plugin: &&String| {
        let plugin = plugin.to_ascii_lowercase();
        plugin.contains("keyring") && plugin != "daemon_keyring_proxy_plugin" || plugin.contains("key_management")
    };
    reasons.extend(plugins.iter().filter(holds_keys).map(|plugin| format!("{plugin} provides keys")));
    reasons
}

/// Why this server counts as a member of a cluster; empty if nothing says so.
pub fn cluster_reasons(_flavour: Flavour, vars: &BTreeMap<String, String>) -> Vec<String> {
    let set = |name: &str| vars.get(name).map(|v| v.trim()).filter(|v| !is_unset(v) && !v.eq_ignore_ascii_case("none"));
    let mut reasons = Vec::new();
    if let Some(true) = set("wsrep_on").and_then(switch) {
        reasons.push("wsrep_on is on".to_owned());
    }
    for name in ["wsrep_provider", "group_replication_group_name", "ndb_connectstring"] {
        if let Some(value) = set(name) {
            reasons.push(format!("{name} is {value}"));
        }
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_stays_in_the_datadir() {
        assert!(sound_layout("ibdata1:12M;ibdata2:1M:autoextend") && sound_layout("16384") && sound_layout("ON"));
        for no in ["ibdata1:12M;../victim/x:1M", "/abs:1M", "a/b:1M", "a\n[mysqld]", "a b"] {
            assert!(!sound_layout(no), "{no}");
        }
    }
    use proptest::prelude::*;

    fn vars(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn layout_is_compared_by_meaning() {
        let source = vars(&[
            ("version", "10.11.19-MariaDB"),
            ("innodb_page_size", "16384"),
            ("innodb_data_file_path", "ibdata1:12M:autoextend"),
            ("innodb_undo_tablespaces", "3"),
            ("lower_case_table_names", "0"),
            ("ft_min_word_len", "4"),
        ]);
        let mut other = source.clone();
        other.insert("innodb_data_file_path".into(), "ibdata1:12288K:AUTOEXTEND;".into());
        other.insert("innodb_page_size".into(), "16k".into());
        other.insert("innodb_undo_tablespaces".into(), "0".into());
        assert_eq!(layout_differences(Flavour::MariaDb, &source, &other), []);
        other.insert("version".into(), "10.6.20-MariaDB".into());
        other.insert("innodb_data_file_path".into(), "ibdata1:12M;ibdata2:12M:autoextend".into());
        other.insert("lower_case_table_names".into(), "1".into());
        let names = layout_differences(Flavour::MariaDb, &source, &other).into_iter().map(|d| d.name);
        assert_eq!(
            names.collect::<Vec<_>>(),
            ["innodb_data_file_path", "lower_case_table_names", "innodb_undo_tablespaces"]
        );
    }

    #[test]
    fn data_outside_is_found() {
        let found = |flavour, pairs: &[(&str, &str)]| {
            outside_datadir(flavour, Path::new("/srv/real"), &vars(pairs))
                .into_iter()
                .map(|outside| format!("{} {}", outside.variable, outside.path.display()))
                .collect::<Vec<_>>()
        };
        let usual = [
            ("datadir", "/var/lib/mysql/"),
            ("innodb_data_home_dir", ""),
            ("innodb_data_file_path", "ibdata1:12M:autoextend"),
            ("innodb_log_group_home_dir", "./"),
            ("innodb_undo_directory", "/srv/real"),
            ("aria_log_dir_path", "/var/lib/mysql/"),
            ("innodb_directories", "NULL"),
            ("log_bin_basename", "/var/log/mysql/bin"),
            ("tmpdir", "/tmp"),
            ("secure_file_priv", "/x"),
        ];
        assert!(found(Flavour::MariaDb, &usual).is_empty());
        assert!(found(Flavour::MySql, &usual).is_empty());
        let moved = [
            ("datadir", "/var/lib/mysql/"),
            ("innodb_data_file_path", "sub/ibdata1:12M;/var/lib/mysql/ibdata2:1G;../x:1M:autoextend"),
            ("innodb_log_group_home_dir", "redo"),
            ("aria_log_dir_path", "/var/lib/mysql/../aria"),
            ("innodb_directories", "/var/lib/mysql/sub;/gen"),
        ];
        let files = ["innodb_data_file_path /var/lib/mysql/ibdata2", "innodb_data_file_path /srv/real/../x"];
        let mut expected = vec!["innodb_log_group_home_dir /srv/real/redo", "aria_log_dir_path /var/lib/mysql/../aria"];
        expected.extend(files);
        assert_eq!(found(Flavour::MariaDb, &moved), expected);
        let expected =
            [&["innodb_log_group_home_dir /srv/real/redo"][..], &files, &["innodb_directories /gen"]].concat();
        assert_eq!(found(Flavour::MySql, &moved), expected);
    }

    #[test]
    fn encryption_and_clusters() {
        let none: &[String] = &[];
        let plain = vars(&[("innodb_encrypt_tables", "OFF"), ("wsrep_on", "OFF"), ("wsrep_provider", "none")]);
        assert!(encryption_reasons(Flavour::MariaDb, &plain, none).is_empty());
        assert!(cluster_reasons(Flavour::MariaDb, &plain).is_empty());
        let force =
            vars(&[("innodb_encrypt_tables", "FORCE"), ("wsrep_on", "ON"), ("wsrep_provider", "/usr/lib/galera.so")]);
        let plugins = ["file_key_management".to_owned(), "unix_socket".to_owned()];
        assert_eq!(
            encryption_reasons(Flavour::MariaDb, &force, &plugins),
            ["innodb_encrypt_tables is on", "file_key_management provides keys"]
        );
        assert_eq!(
            cluster_reasons(Flavour::MariaDb, &force),
            ["wsrep_on is on", "wsrep_provider is /usr/lib/galera.so"]
        );
        let group = vars(&[("group_replication_group_name", "aaaa"), ("innodb_redo_log_encrypt", "ON")]);
        assert_eq!(cluster_reasons(Flavour::MySql, &group), ["group_replication_group_name is aaaa"]);
        let component = ["daemon_keyring_proxy_plugin".to_owned(), "component_keyring_file".to_owned()];
        assert_eq!(
            encryption_reasons(Flavour::MySql, &group, &component),
            ["innodb_redo_log_encrypt is on", "component_keyring_file provides keys"]
        );
    }

    proptest! {
        #[test]
        fn a_place_inside_does_not_climb(path in "[a./]{0,20}", text in ".{0,30}") {
            let _ = (data_files(&text), inside(&[Path::new(&text)], &text));
            if let Some(place) = inside(&[Path::new("/a")], &path) {
                prop_assert!(!place.starts_with('/') && !place.split('/').any(|part| part == ".."));
            }
        }
    }
}
