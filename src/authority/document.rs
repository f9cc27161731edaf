//! Writing the policy: comments and order stay as the owner wrote them, and the file is replaced whole or not at all.
//!
//! Whoever may write it decides here; nothing in this file is reached from a wire.

use std::path::Path;

use toml_edit::{DocumentMut, Item, Table, value};

use super::Policy;
use crate::durable;
use crate::instance::{Instance, Service};
use crate::problem::{Explain, Outcome, Problem};

const HEAD: &str = "\
# What mysql-refreshd may do on this host. Only its owner's hand, `mysql-refreshd host init` and `mysql-refreshd consent`
# write this file; nothing that comes over the network can.

";

/// Changes the policy under a lock of its own; the result must be a policy that can be read.
pub fn edit<T>(path: &Path, change: impl FnOnce(&mut DocumentMut) -> Outcome<T>) -> Outcome<T> {
    let folder = path.parent().ok_or_else(|| Problem::failed(format!("{} has no folder", path.display())))?;
    std::fs::create_dir_all(folder).explain(|| format!("cannot create {}", folder.display()))?;
    let lock = std::fs::File::open(folder).explain(|| format!("cannot open {}", folder.display()))?;
    fs2::FileExt::lock_exclusive(&lock).explain(|| format!("cannot lock {}", folder.display()))?;
    // what others could have written is not taken over
    Policy::read(path)?;
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => HEAD.to_owned(),
        Err(error) => return Err(error).explain(|| format!("cannot read {}", path.display())),
    };
    let mut document: DocumentMut = text.parse().map_err(|e: toml_edit::TomlError| {
        Problem::failed(format!("cannot understand {}", path.display())).because(e)
    })?;
    let result = change(&mut document)?;
    let text = document.to_string();
    Policy::parse(path, &text)?;
    durable::replace(path, text.as_bytes(), 0o644).explain(|| format!("cannot write {}", path.display()))?;
    Ok(result)
}

/// The table of an instance; made if it is not there.
pub fn instance_table<'d>(document: &'d mut DocumentMut, name: &str) -> Outcome<&'d mut Table> {
    let malformed = || Problem::failed("`instances` of the policy is not a table");
    let instances = document.entry("instances").or_insert_with(|| {
        let mut table = Table::new();
        table.set_implicit(true);
        Item::Table(table)
    });
    let instances = instances.as_table_mut().ok_or_else(malformed)?;
    instances.entry(name).or_insert_with(|| Item::Table(Table::new())).as_table_mut().ok_or_else(malformed)
}

/// Writes a described instance and the roles it may have.
pub fn described(document: &mut DocumentMut, name: &str, instance: &Instance, roles: &[&str]) -> Outcome<()> {
    let table = instance_table(document, name)?;
    let path = |path: &Path| value(path.to_string_lossy().into_owned());
    table["datadir"] = path(&instance.datadir);
    table["socket"] = path(&instance.socket);
    if instance.user != "root" {
        table["user"] = value(&instance.user);
    }
    let words = |words: &[String]| words.iter().collect::<toml_edit::Array>();
    let mut service = toml_edit::InlineTable::new();
    match &instance.service {
        Service::Systemd { unit } => {
            service.insert("unit", unit.as_str().into());
        }
        Service::Commands { start, stop } => {
            service.insert("start", words(start).into());
            service.insert("stop", words(stop).into());
        }
        Service::Process { server, defaults_file } => {
            service.insert("server", server.to_string_lossy().into_owned().into());
            service.insert("defaults_file", defaults_file.to_string_lossy().into_owned().into());
        }
    }
    table["service"] = value(service);
    if let Some(dropin) = &instance.dropin {
        table["dropin"] = path(dropin);
    }
    table["roles"] = value(roles.iter().copied().collect::<toml_edit::Array>());
    Ok(())
}
