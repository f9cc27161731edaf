//! Option files and servers spell one value in many ways: whether a setting is in effect. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

/// An option's name as servers name the variable: lower case, `_` for `-`, without `loose_`.
pub fn variable_name(option: &str) -> String {
    let name = option.trim().to_ascii_lowercase().replace('-', "_");
    name.strip_prefix("loose_").map(str::to_owned).unwrap_or(name)
}

/// The running server's value for a configured option; also for the few whose variable has another name.
pub fn effective<'v>(vars: &'v BTreeMap<String, String>, option: &str) -> Option<&'v str> {
    let name = variable_name(option);
    let other = match name.as_str() {
        "default_time_zone" => "time_zone",
        // MariaDB before 11.1
        "transaction_isolation" => "tx_isolation",
        "transaction_read_only" => "tx_read_only",
        _ => "",
    };
    vars.get(&name).or_else(|| vars.get(other)).map(String::as_str)
}

/// Variables whose value is a list in no order; servers print it in theirs.
const LISTS: [&str; 13] = [
    "sql_mode",
    "old_mode",
    "tls_version",
    "log_slow_filter",
    "log_slow_verbosity",
    "log_slow_disabled_statements",
    "log_disabled_statements",
    "log_output",
    "myisam_recover_options",
    "aria_recover_options",
    "slave_type_conversions",
    "bind_address",
    "ignore_db_dirs",
];

/// Modes that stand for others: the server prints both.
const COMBINED_MODES: [&str; 9] =
    ["ANSI", "DB2", "MAXDB", "MSSQL", "MYSQL323", "MYSQL40", "ORACLE", "POSTGRESQL", "TRADITIONAL"];

/// Whether a configured setting is what the server's variable shows. Servers print `ON` for `1`, bytes for `64M`, lists in
/// their own order, numbers with decimals, and round sizes (each verified on MariaDB 10.11.19).
pub fn same_setting(name: &str, wanted: &str, effective: &str) -> bool {
    let (name, wanted, effective) = (variable_name(name), wanted.trim(), effective.trim());
    if wanted.eq_ignore_ascii_case(effective) {
        return wanted == effective || !wanted.contains('/');
    }
    match name.as_str() {
        // the option is a base name, the variable a switch
        "log_bin" => return switch(effective) == Some(switch(wanted).unwrap_or(true)),
        // a name without an ending gets one
        "log_error" if format!("{wanted}.err") == effective => return true,
        "optimizer_switch" => return list(wanted).is_subset(&list(effective)),
        "sql_mode" if list(wanted).iter().any(|mode| COMBINED_MODES.contains(&mode.to_ascii_uppercase().as_str())) => {
            return list(wanted).is_subset(&list(effective));
        }
        _ if LISTS.contains(&name.as_str()) => return list(wanted) == list(effective),
        _ => {}
    }
    if let (Some(wanted), Some(effective)) = (switch(wanted), switch(effective)) {
        return wanted == effective;
    }
    if let (Some(wanted), Some(effective)) = (size(wanted), size(effective)) {
        return wanted == effective || rounds_to(&name, wanted, effective);
    }
    if let (Ok(wanted), Ok(effective)) = (wanted.parse::<f64>(), effective.parse::<f64>()) {
        return (wanted - effective).abs() < 1e-6;
    }
    if wanted.contains('/') || effective.contains('/') {
        return same_path(wanted, effective);
    }
    word(&name, wanted) == word(&name, effective)
}

/// `ON` and `OFF` in all their spellings.
pub(super) fn switch(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "on" | "true" | "yes" => Some(true),
        "0" | "off" | "false" | "no" => Some(false),
        _ => None,
    }
}

/// A whole number, with one of the suffixes option files know.
pub(super) fn size(value: &str) -> Option<u128> {
    let value = value.trim();
    let (digits, suffix) = value.split_at(value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len()));
    let power = match suffix {
        "" => 0,
        "k" | "K" => 1,
        "m" | "M" => 2,
        "g" | "G" => 3,
        "t" | "T" => 4,
        "p" | "P" => 5,
        "e" | "E" => 6,
        _ => return None,
    };
    digits.parse::<u64>().ok().map(|number| u128::from(number) << (10 * power))
}

/// Whether a server makes `effective` of `wanted`: buffers go down to a multiple of at most 4096, MySQL's buffer pool up to a
/// multiple of its chunks (128 MiB, times 8 instances from 1 GiB on, by default: MySQL documentation).
fn rounds_to(name: &str, wanted: u128, effective: u128) -> bool {
    const MIB: u128 = 1 << 20;
    if name == "innodb_buffer_pool_size" {
        let step = if wanted < 1024 * MIB { 128 * MIB } else { 1024 * MIB };
        return effective >= wanted && effective - wanted < step && effective.is_multiple_of(MIB);
    }
    let is_buffer = ["_size", "_packet", "_stack"].iter().any(|end| name.ends_with(end));
    is_buffer && effective < wanted && wanted - effective < 4096 && effective > 0 && effective.is_multiple_of(128)
}

fn list(value: &str) -> BTreeSet<String> {
    value.split(',').map(|part| part.trim().to_ascii_lowercase()).filter(|part| !part.is_empty()).collect()
}

/// A relative path is shown absolute by some variables.
fn same_path(wanted: &str, effective: &str) -> bool {
    match (tidy(Path::new(wanted)), tidy(Path::new(effective))) {
        (Some(wanted), Some(effective)) if wanted.is_relative() => effective.ends_with(&wanted),
        (wanted, effective) => wanted.is_some() && wanted == effective,
    }
}

/// A path without `.`, `..` and doubled slashes, by its letters alone; `None` if it climbs above its root.
pub(super) fn tidy(path: &Path) -> Option<PathBuf> {
    let mut tidy = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                if !matches!(tidy.components().next_back(), Some(Component::Normal(_))) {
                    return None;
                }
                tidy.pop();
            }
            part => tidy.push(part),
        }
    }
    Some(tidy)
}

/// A word without the spellings that make no difference. `utf8` is an old name of what servers call `utf8mb3`.
fn word(name: &str, value: &str) -> String {
    let word = value.to_ascii_lowercase().replace('-', "_");
    match word.strip_prefix("utf8") {
        Some(rest)
            if (name.starts_with("character_set") || name.starts_with("collation")) && !rest.starts_with("mb") =>
        {
            format!("utf8mb3{rest}")
        }
        _ => word,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn settings_that_mean_the_same() {
        for (name, wanted, effective) in [
            ("read_only", "1", "ON"),
            ("skip-name-resolve", "true", "ON"),
            ("innodb_buffer_pool_size", "64M", "67108864"),
            ("innodb_buffer_pool_size", "100M", "134217728"),
            ("innodb_buffer_pool_size", "3G", "3221225472"),
            ("sql_mode", "NO_ENGINE_SUBSTITUTION,strict_trans_tables", "STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION"),
            ("sql_mode", "TRADITIONAL", "STRICT_TRANS_TABLES,STRICT_ALL_TABLES,TRADITIONAL,NO_AUTO_CREATE_USER"),
            ("sql_mode", "", ""),
            ("long_query_time", "2", "2.000000"),
            ("expire-logs-days", "3", "3.000000"),
            ("log_bin", "mysql-bin", "ON"),
            ("log_bin", "OFF", "OFF"),
            ("key_buffer_size", "1000001", "999424"),
            ("join_buffer_size", "1000001", "999936"),
            ("thread_stack", "300001", "299008"),
            ("character_set_server", "utf8", "utf8mb3"),
            ("collation_server", "utf8_general_ci", "utf8mb3_general_ci"),
            ("transaction_isolation", "read-committed", "READ-COMMITTED"),
            ("binlog_format", "row", "ROW"),
            ("myisam_recover_options", "force,backup", "BACKUP,FORCE"),
            ("tls_version", "TLSv1.3,TLSv1.2", "TLSv1.2,TLSv1.3"),
            ("bind_address", "127.0.0.1", "127.0.0.1"),
            ("bind_address", "::1, 127.0.0.1", "127.0.0.1,::1"),
            ("innodb_undo_directory", "/data/x", "/data/x/"),
            ("log_bin_index", "logs/a.index", "/var/lib/mysql/logs/a.index"),
            ("log_error", "/var/log/mysql/error", "/var/log/mysql/error.err"),
            ("optimizer_switch", "index_merge=off", "index_merge=off,mrr=on"),
        ] {
            assert!(same_setting(name, wanted, effective), "{name} {wanted} {effective}");
        }
    }

    #[test]
    fn settings_that_do_not() {
        for (name, wanted, effective) in [
            ("read_only", "1", "OFF"),
            ("max_connections", "5000", "4900"),
            ("innodb_buffer_pool_size", "64M", "536870912"),
            ("innodb_log_buffer_size", "1000001", "2097152"),
            ("sql_mode", "STRICT_TRANS_TABLES", ""),
            ("sql_mode", "ANSI_QUOTES", "ANSI_QUOTES,STRICT_TRANS_TABLES"),
            ("log_bin", "mysql-bin", "OFF"),
            ("log_bin", "0", "ON"),
            ("bind_address", "127.0.0.1", "*"),
            ("general_log_file", "/x/a.log", "/x/A.log"),
            ("tmpdir", "/x", "/y/x"),
            ("character_set_server", "utf8mb4", "utf8mb3"),
            ("long_query_time", "2", "10.000000"),
            ("event_scheduler", "ON", "DISABLED"),
        ] {
            assert!(!same_setting(name, wanted, effective), "{name} {wanted} {effective}");
        }
    }

    #[test]
    fn names_of_variables() {
        let vars = [("tx_isolation", "READ-COMMITTED"), ("time_zone", "+02:00"), ("read_only", "ON")];
        let vars = vars.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        assert_eq!(effective(&vars, "transaction-isolation"), Some("READ-COMMITTED"));
        assert_eq!(effective(&vars, "default_time_zone"), Some("+02:00"));
        assert_eq!(effective(&vars, "loose-READ-only"), Some("ON"));
        assert_eq!(effective(&vars, "nothing"), None);
    }

    proptest! {
        #[test]
        fn a_setting_is_the_same_as_itself(name in "[a-z_]{1,12}", value in ".{0,30}") {
            prop_assert!(same_setting(&name, &value, &value));
        }

        #[test]
        fn any_text_is_compared_without_panic(name in "[a-z_]{1,12}", a in ".{0,30}", b in ".{0,30}") {
            let _ = same_setting(&name, &a, &b);
        }
    }
}
