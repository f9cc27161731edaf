//! Prepared XA transactions: how a server lists them, and the statement that rolls one back. Pure.

use std::collections::BTreeMap;

use super::version::Flavour;

/// The statement that lists them, with ids that can be written down.
pub fn list(flavour: Flavour) -> &'static str {
    // MariaDB prints the id as its own statements take it; MySQL 9.7.4 as one hexadecimal number, with the lengths of its parts
    if flavour.is_mysql() { "XA RECOVER CONVERT XID" } else { "XA RECOVER FORMAT='SQL'" }
}

/// The id as `XA ROLLBACK` and `XA COMMIT` take it, from a row of [`list`]; `None` if the row cannot be read.
pub fn id(flavour: Flavour, row: &BTreeMap<String, String>) -> Option<String> {
    let data = row.get("data")?;
    if !flavour.is_mysql() {
        return Some(data.clone());
    }
    let number = |name: &str| row.get(name)?.parse::<usize>().ok();
    let (format, global, branch) = (number("formatID")?, number("gtrid_length")?, number("bqual_length")?);
    let hex = data.strip_prefix("0x").unwrap_or(data);
    let digits = hex.bytes().all(|b| b.is_ascii_hexdigit());
    // two digits a byte; X/Open allows 64 bytes a part
    if !digits || global > 64 || branch > 64 || hex.len() != 2 * (global + branch) {
        return None;
    }
    let (global, branch) = hex.split_at(2 * global);
    Some(format!("X'{global}',X'{branch}',{format}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn ids_as_servers_list_them() {
        // as MySQL 9.7.4 lists XA START 'x1','b'
        let listed = row(&[("formatID", "1"), ("gtrid_length", "2"), ("bqual_length", "1"), ("data", "0x783162")]);
        assert_eq!(id(Flavour::MySql, &listed).as_deref(), Some("X'7831',X'62',1"));
        assert_eq!(id(Flavour::MariaDb, &row(&[("data", "'x1','b',1")])).as_deref(), Some("'x1','b',1"));
        let short = row(&[("formatID", "1"), ("gtrid_length", "3"), ("bqual_length", "1"), ("data", "0x783162")]);
        assert_eq!(id(Flavour::MySql, &short), None);
        assert_eq!(id(Flavour::MySql, &row(&[("data", "0x78")])), None);
    }

    proptest! {
        #[test]
        fn an_id_holds_nothing_but_itself(data in "(0x)?[0-9A-Fa-f'; ]{0,12}", global in 0usize..8, branch in 0usize..8) {
            let (global, branch) = (global.to_string(), branch.to_string());
            let listed = row(&[("formatID", "1"), ("gtrid_length", &global), ("bqual_length", &branch), ("data", &data)]);
            if let Some(id) = id(Flavour::MySql, &listed) {
                prop_assert!(!id.contains(';') && id.matches('\'').count() == 4);
            }
        }
    }
}
