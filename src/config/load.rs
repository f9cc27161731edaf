//! From the merged layers to a [`Config`]: daemon, environments and hosts, which keys there are and their defaults.
//!
//! Reads one table after the other; what concerns several of them is left to `check`. Every error is collected.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use figment::value::{Dict, Value};

use super::check;
use super::error::ConfigErrors;
use super::form::{self, choice};
use super::hosts::{Shared, SshKeys, host, keys, settings};
use super::layers::{Layers, Sources};
use super::model::{Config, Daemon, Environment, Host, HostId};
use super::policy::LogFormat;
use super::reader::{Reader, Section};
use super::refreshes;

/// Reads the configuration in all its layers and checks it as a whole. An error tells everything that is wrong.
pub fn load(sources: &Sources) -> Result<Config, ConfigErrors> {
    let Layers { figment, errors } = Layers::read(sources);
    let values = match figment.find_value("") {
        Ok(Value::Dict(_, values)) => values,
        // No layer has anything: everything is at its default.
        _ => Dict::new(),
    };
    let mut reader = Reader::new(&figment, errors);
    let mut root = reader.root(&values);
    let daemon = daemon(&mut reader, &mut root);
    let ssh = keys(&mut reader, &mut root);
    let (environments, mut hosts) = environments(&mut reader, &mut root, &ssh);
    for host in hosts.values_mut() {
        host.route.set_silence(daemon.host_timeout);
    }
    let refreshes = refreshes::refreshes(&mut reader, &mut root, &environments);
    reader.close(root);
    let mut config = Config { daemon, environments, refreshes, effective: Vec::new(), hosts, ssh };
    check::config(&mut reader, &config);
    config.effective = reader.finish()?;
    Ok(config)
}

/// Where the controller keeps what it knows, unless told otherwise.
const STATE_DIR: &str = "/var/lib/mysql-refreshd/controller";

fn daemon<'v>(reader: &mut Reader<'v>, root: &mut Section<'v>) -> Daemon {
    let mut table = reader.table(root, "daemon");
    let state_dir = reader.or(&mut table, "state_dir", form::PATH, PathBuf::from(STATE_DIR));
    // another controller on this machine has a daemon of its own
    let socket = match state_dir.to_str() {
        Some(STATE_DIR) => PathBuf::from("/run/mysql-refreshd/control.sock"),
        _ => state_dir.join("control.sock"),
    };
    let daemon = Daemon {
        state_dir,
        log_dir: reader.or(&mut table, "log_dir", form::PATH, PathBuf::from("/var/log/mysql-refreshd")),
        log_format: reader.or(&mut table, "log_format", choice(), LogFormat::default()),
        log_level: reader.or(&mut table, "log_level", form::LOG_LEVEL, "info".to_owned()),
        log_keep: reader.or(&mut table, "log_keep", form::COUNT, 30),
        host_timeout: reader.or(&mut table, "host_timeout", form::PERIOD, Duration::from_secs(30)),
        socket: reader.or(&mut table, "socket", form::SOCKET, socket),
        max_runs: reader.or(&mut table, "max_runs", form::COUNT, 2),
    };
    reader.close(table);
    daemon
}

type Environments = BTreeMap<String, Environment>;

fn environments<'v>(
    reader: &mut Reader<'v>,
    root: &mut Section<'v>,
    ssh: &SshKeys,
) -> (Environments, BTreeMap<HostId, Host>) {
    let (mut environments, mut hosts) = (Environments::new(), BTreeMap::new());
    let table = reader.table(root, "environments");
    for (name, mut section) in reader.named(&table) {
        let protected = reader.or(&mut section, "protected", form::FLAG, false);
        let shared = Shared {
            settings: settings(reader, &mut section),
            ssh: ssh.clone().overridden(keys(reader, &mut section)),
        };
        let members = reader.table(&mut section, "hosts");
        let mut environment = Environment { name: name.to_owned(), protected, hosts: Vec::new() };
        for (host_name, mut section) in reader.named(&members) {
            // A host that is not well described still has its name, so that nothing is said about those who name it.
            let id = HostId::new(name, host_name).ok();
            environment.hosts.extend(id.clone());
            let host = host(reader, &mut section, id, &shared);
            hosts.extend(host.map(|host| (host.id.clone(), host)));
            reader.close(section);
        }
        environments.insert(name.to_owned(), environment);
        reader.close(section);
    }
    (environments, hosts)
}
