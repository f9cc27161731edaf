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
use super::layers::{Layers, Sources};
use super::model::{Config, Daemon, Environment, Host, HostId};
use super::policy::{LogFormat, TransportKind};
use super::reader::{Reader, Section};
use super::refreshes;
use super::secret::SecretRef;
use crate::instance::{Instance, Service};

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
    let (environments, hosts) = environments(&mut reader, &mut root);
    let refreshes = refreshes::refreshes(&mut reader, &mut root, &environments);
    reader.close(root);
    let mut config = Config { daemon, environments, refreshes, effective: Vec::new(), hosts };
    check::config(&mut reader, &config);
    config.effective = reader.finish()?;
    Ok(config)
}

fn daemon<'v>(reader: &mut Reader<'v>, root: &mut Section<'v>) -> Daemon {
    let mut table = reader.table(root, "daemon");
    let daemon = Daemon {
        state_dir: reader.or(&mut table, "state_dir", form::PATH, PathBuf::from("/var/lib/mysql-refreshd")),
        log_dir: reader.or(&mut table, "log_dir", form::PATH, PathBuf::from("/var/log/mysql-refreshd")),
        log_format: reader.or(&mut table, "log_format", choice(), LogFormat::default()),
        log_level: reader.or(&mut table, "log_level", form::LOG_LEVEL, "info".to_owned()),
        log_keep: reader.or(&mut table, "log_keep", form::COUNT, 30),
        host_timeout: reader.or(&mut table, "host_timeout", form::PERIOD, Duration::from_secs(30)),
    };
    reader.close(table);
    daemon
}

type Environments = BTreeMap<String, Environment>;

fn environments<'v>(reader: &mut Reader<'v>, root: &mut Section<'v>) -> (Environments, BTreeMap<HostId, Host>) {
    let (mut environments, mut hosts) = (Environments::new(), BTreeMap::new());
    let table = reader.table(root, "environments");
    for (name, mut section) in reader.named(&table) {
        let protected = reader.or(&mut section, "protected", form::FLAG, false);
        let shared = settings(reader, &mut section);
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

fn host<'v>(
    reader: &mut Reader<'v>,
    section: &mut Section<'v>,
    id: Option<HostId>,
    shared: &BTreeMap<String, String>,
) -> Option<Host> {
    let transport = reader.or(section, "transport", choice(), TransportKind::default());
    let datadir = reader.required(section, "datadir", form::PATH);
    let socket = reader.required(section, "socket", form::SOCKET);
    let user = reader.or(section, "user", form::TEXT, "root".to_owned());
    let password = password(reader, section);
    let service = service(reader, section);
    let dropin = reader.optional(section, "dropin", form::PATH);
    let state_dir = reader.or(section, "state_dir", form::PATH, PathBuf::from("/var/lib/mysql-refreshd/host"));
    let start_timeout = reader.or(section, "start_timeout", form::PERIOD, Duration::from_secs(5 * 60));
    let stop_timeout = reader.or(section, "stop_timeout", form::PERIOD, Duration::from_secs(15 * 60));
    let mut merged = shared.clone();
    merged.extend(settings(reader, section));
    let instance = Instance {
        datadir: datadir?,
        socket: socket?,
        user,
        service: service?,
        dropin,
        state_dir,
        start_timeout_s: seconds(start_timeout),
        stop_timeout_s: seconds(stop_timeout),
    };
    Some(Host { id: id?, transport, instance, password, settings: merged })
}

/// Whole seconds, rounded up: a limit is never shortened.
fn seconds(duration: Duration) -> u32 {
    let up = u64::from(duration.subsec_nanos() > 0);
    u32::try_from(duration.as_secs() + up).unwrap_or(u32::MAX)
}

/// Which of several forms a table is written in, each given by its keys: exactly one must be there.
fn form_of(reader: &mut Reader<'_>, table: &Section<'_>, forms: &[&[&str]]) -> Option<usize> {
    if table.is_broken() {
        return None;
    }
    let written: Vec<usize> = (0..forms.len()).filter(|index| forms[*index].iter().any(|key| table.has(key))).collect();
    let show = |keys: &[&str]| format!("`{}`", keys.join("` and `"));
    match written[..] {
        [one] => return Some(one),
        [] => {
            let all: Vec<String> = forms.iter().map(|keys| show(keys)).collect();
            reader.fail_absent(table.path(), "this is missing", Some(format!("Give {}.", all.join(", or "))));
        }
        _ => {
            let given = |index: &usize| {
                let keys: Vec<&str> = forms[*index].iter().copied().filter(|key| table.has(key)).collect();
                let origin = keys.first().map(|key| reader.origin(&table.key(key))).unwrap_or_default();
                format!("{} in {origin}", show(&keys))
            };
            let given: Vec<String> = written.iter().map(given).collect();
            let hint = "Keep one of them; tables of several layers are merged key by key.".to_owned();
            let problem = format!("only one of these can be used: {}", given.join(", "));
            reader.fail(table.path(), problem, Some(hint));
        }
    }
    None
}

fn service<'v>(reader: &mut Reader<'v>, host: &mut Section<'v>) -> Option<Service> {
    let mut table = reader.table(host, "service");
    let unit = reader.optional(&mut table, "unit", form::UNIT);
    let start = reader.optional(&mut table, "start", form::COMMAND);
    let stop = reader.optional(&mut table, "stop", form::COMMAND);
    let server = reader.optional(&mut table, "server", form::PATH);
    let defaults_file = reader.optional(&mut table, "defaults_file", form::PATH);
    let forms: [&[&str]; 3] = [&["unit"], &["start", "stop"], &["server", "defaults_file"]];
    let form = form_of(reader, &table, &forms);
    for key in form.map_or(&[][..], |form| forms[form]) {
        if !table.has(key) {
            reader.fail_absent(&table.key(key), "this key is missing", None);
        }
    }
    reader.close(table);
    match form? {
        0 => Some(Service::Systemd { unit: unit? }),
        1 => Some(Service::Commands { start: start?, stop: stop? }),
        _ => Some(Service::Process { server: server?, defaults_file: defaults_file? }),
    }
}

fn password<'v>(reader: &mut Reader<'v>, host: &mut Section<'v>) -> Option<SecretRef> {
    let given = host.has("password");
    let mut table = reader.table(host, "password");
    let file = reader.optional(&mut table, "file", form::PATH);
    let command = reader.optional(&mut table, "command", form::COMMAND);
    let credential = reader.optional(&mut table, "credential", form::CREDENTIAL);
    let form = if given { form_of(reader, &table, &[&["file"], &["command"], &["credential"]]) } else { None };
    reader.close(table);
    match form? {
        0 => file.map(SecretRef::File),
        1 => command.map(SecretRef::Command),
        _ => credential.map(SecretRef::Credential),
    }
}

/// The server variables of a table, their names written with underscores.
fn settings<'v>(reader: &mut Reader<'v>, section: &mut Section<'v>) -> BTreeMap<String, String> {
    let table = reader.table(section, "settings");
    let (mut settings, mut spelled) = (BTreeMap::new(), BTreeMap::new());
    for (name, value) in table.entries() {
        let key = table.key(name);
        let normal = name.replace('-', "_");
        let form = if holds_secret(&normal) { form::SECRET_SETTING } else { form::SETTING };
        let text = reader.value(&key, value, form);
        if let Err(problem) = setting_name(&normal) {
            reader.fail(&key, problem, None);
        } else if let Some(other) = spelled.insert(normal.clone(), name) {
            reader.fail(&key, format!("this variable is set twice, also as `{other}`"), None);
        } else {
            settings.extend(text.map(|text| (normal, text)));
        }
    }
    settings
}

fn setting_name(name: &str) -> Result<(), String> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if name.is_empty() || name.len() > 64 || !name.bytes().all(allowed) {
        return Err("this is not the name of a server variable: lower-case letters, digits, `-` and `_`".to_owned());
    }
    match name {
        "datadir" | "socket" => Err(format!("this belongs to the host: its key `{name}` says where it is")),
        _ => Ok(()),
    }
}

/// Whether the variable's value is a secret, not to be shown.
fn holds_secret(name: &str) -> bool {
    name == "wsrep_sst_auth" || ["password", "passphrase", "secret", "token"].iter().any(|end| name.ends_with(end))
}
