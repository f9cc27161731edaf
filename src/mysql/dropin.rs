//! The generated option file. Pure; writes nothing.

use std::collections::BTreeMap;

use super::variables::variable_name;
use super::version::Flavour;

/// Where the settings come from: the head of the file says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header<'a> {
    /// The run's id.
    pub run: &'a str,
    /// The refresh.
    pub refresh: &'a str,
    /// The source host.
    pub source: &'a str,
}

/// Servers read lines of up to 4095 bytes; of a longer one, the rest becomes an option of its own (verified on 10.11.19).
const LONGEST_LINE: usize = 4000;

/// The whole file. A setting that no option file can hold is left out, and named in a comment.
pub fn render(flavour: Flavour, header: &Header<'_>, settings: &BTreeMap<String, String>) -> String {
    let mut file = String::from(
        "# Written by mysql-refreshd; the next refresh writes it anew. Change the configuration instead.\n",
    );
    for (what, value) in [("run", header.run), ("refresh", header.refresh), ("source", header.source)] {
        file.push_str(&format!("# {what}: {}\n", printable(value)));
    }
    file.push_str(if flavour.is_mysql() { "\n[mysqld]\n" } else { "\n[mariadbd]\n" });
    for (option, value) in settings {
        let line = format!("{} = {}\n", option.trim(), quoted(value));
        if is_option_name(option.trim()) && !value.contains('\0') && line.len() <= LONGEST_LINE {
            file.push_str(&line);
        } else {
            file.push_str(&format!("# left out, cannot be written: {}\n", printable(option)));
        }
    }
    file
}

/// Why a setting must not come from elsewhere, though it is a variable of the server: it would name a program, a file or a
/// folder, or let people in. Source: the server option references of MariaDB and MySQL.
pub fn denied(option: &str) -> Option<&'static str> {
    const EXACT: [&str; 14] = [
        "basedir",
        "datadir",
        "socket",
        "user",
        "chroot",
        "init_file",
        "init_connect",
        "init_slave",
        "init_replica",
        "secure_file_priv",
        "skip_grant_tables",
        "version",
        "proxy_protocol_networks",
        "mysqlx_socket",
    ];
    const PARTS: [&str; 12] = [
        "_dir",
        "_file",
        "plugin",
        "log_error",
        "log_bin",
        "relay_log",
        "wsrep",
        "ssl_",
        "tmpdir",
        "_path",
        "keyring",
        "auth",
    ];
    let name = variable_name(option);
    // sizes and switches of logs are harmless; their places are not
    let size = ["_size", "_format", "_purge", "_compress", "_recovery", "_per_table", "_limit"]
        .iter()
        .any(|end| name.ends_with(end));
    let module = ["server_audit", "feedback_", "connect_work", "hashicorp_", "debug"]
        .iter()
        .any(|start| name.starts_with(start));
    let named = module || EXACT.contains(&name.as_str()) || name.ends_with("_cmd") || name.ends_with("_lib");
    (named || (!size && PARTS.iter().any(|part| name.contains(part))))
        .then_some("it names a program, a file or a folder, or decides who is let in; set it on the host itself")
}

/// Whether an option file can set it: a letter, then letters, digits, `_`, `-` and `.`.
fn is_option_name(option: &str) -> bool {
    let name = variable_name(option);
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.len() <= 100
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.'))
}

/// A value in double quotes, which keep spaces at its ends and `#` inside. Read back as it was by `my_print_defaults` and
/// `mariadbd` 10.11.19, single quotes and all.
fn quoted(value: &str) -> String {
    let mut quoted = String::from('"');
    for c in value.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// On one line of a comment, and not too long.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEADER: Header<'static> = Header { run: "01J9", refresh: "nightly", source: "prod/db1" };

    #[test]
    fn what_gives_power_is_denied() {
        for name in
            ["plugin_load", "init_file", "log_bin", "general_log_file", "wsrep_notify_cmd", "ssl_cert", "datadir"]
        {
            assert!(denied(name).is_some(), "{name}");
        }
        for name in ["max_connections", "bind_address", "innodb_buffer_pool_size", "innodb_log_file_size", "server_id"]
        {
            assert!(denied(name).is_none(), "{name}");
        }
        for name in ["binlog_format", "innodb_file_per_table", "read_only", "port", "sql_mode", "max_relay_log_size"] {
            assert!(denied(name).is_none(), "{name}");
        }
    }

    #[test]
    fn the_whole_file() {
        let settings =
            [("bind_address", "127.0.0.1"), ("init_connect", r#"a # "b" c\d"#), ("sql-mode", ""), ("x\n[y]", "1")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into();
        let expected = "\
# Written by mysql-refreshd; the next refresh writes it anew. Change the configuration instead.
# run: 01J9
# refresh: nightly
# source: prod/db1

[mariadbd]
bind_address = \"127.0.0.1\"
init_connect = \"a # \\\"b\\\" c\\\\d\"
sql-mode = \"\"
# left out, cannot be written: x [y]
";
        assert_eq!(render(Flavour::MariaDb, &HEADER, &settings), expected);
        assert!(render(Flavour::Percona, &HEADER, &settings).contains("\n[mysqld]\n"));
    }

    #[test]
    fn too_long_a_line_is_left_out() {
        let settings = [("init_connect".to_owned(), "x".repeat(5000))].into();
        let file = render(Flavour::MariaDb, &HEADER, &settings);
        assert!(file.ends_with("# left out, cannot be written: init_connect\n") && file.len() < 1000);
    }

    /// Reads a line as `my_print_defaults` does: ends it at a `#` outside quotes, cuts the quotes, undoes the escapes.
    fn read(line: &str) -> (String, String) {
        let (mut quote, mut escape, mut end) = (None, false, line.len());
        for (at, c) in line.char_indices() {
            if matches!(c, '"' | '\'') && !escape {
                quote = match quote {
                    None => Some(c),
                    Some(open) if open == c => None,
                    open => open,
                };
            }
            if quote.is_none() && c == '#' {
                end = at;
                break;
            }
            escape = quote.is_some() && c == '\\' && !escape;
        }
        let (name, value) = line[..end].split_once('=').unwrap();
        let value = value.trim().strip_prefix('"').unwrap().strip_suffix('"').unwrap();
        let (mut plain, mut chars) = (String::new(), value.chars());
        while let Some(c) = chars.next() {
            plain.push(match (c, if c == '\\' { chars.next() } else { None }) {
                (_, Some('n')) => '\n',
                (_, Some('r')) => '\r',
                (_, Some('t')) => '\t',
                (_, Some(other)) => other,
                (c, None) => c,
            });
        }
        (name.trim().to_owned(), plain)
    }

    proptest! {
        #[test]
        fn values_come_back(settings in proptest::collection::btree_map("[a-z][a-z_-]{0,10}", any::<String>(), 0..4)) {
            let file = render(Flavour::MariaDb, &HEADER, &settings);
            let lines = file.lines().skip_while(|line| *line != "[mariadbd]").skip(1).filter(|line| !line.starts_with('#'));
            let found: BTreeMap<String, String> = lines.map(read).collect();
            let expected = settings.into_iter().filter(|(_, value)| !value.contains('\0')).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn nothing_adds_a_line(name in any::<String>(), value in any::<String>(), run in any::<String>()) {
            let header = Header { run: &run, ..HEADER };
            let file = render(Flavour::MySql, &header, &[(name, value)].into());
            prop_assert_eq!(file.split('\n').count(), 8);
        }
    }
}
