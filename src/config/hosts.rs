//! The hosts of the configuration: how each is reached, which server it has, and what is pushed to it.
//!
//! Reads one table after the other; what concerns several of them is left to `check`. Every error is collected.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::form::{self, Sessions, choice};
use super::model::{Host, HostId};
use super::policy::{AgentKind, TransportKind};
use super::reader::{Reader, Section};
use super::secret::SecretRef;
use crate::instance::{Instance, Service, Target};
use crate::mysql::variables::secret_setting;
use crate::route::{Address, AgentProgram, INSTALLED, Route, Way};

/// What a host has in common with its environment.
pub(super) struct Shared {
    /// Server variables.
    pub settings: BTreeMap<String, String>,
    /// How hosts are reached by SSH.
    pub ssh: SshKeys,
}

/// The keys of a table `ssh`; what is absent is taken from the table above.
#[derive(Debug, Clone, Default)]
pub(super) struct SshKeys {
    user: Option<String>,
    port: Option<u16>,
    identity: Option<PathBuf>,
    passphrase: Option<SecretRef>,
    use_agent: Option<bool>,
    known_hosts: Option<PathBuf>,
    host_key: Option<String>,
    connect_timeout: Option<Duration>,
    sessions: Option<Sessions>,
}

impl SshKeys {
    /// With the nearer table's keys in place of these.
    pub fn overridden(self, by: Self) -> Self {
        Self {
            user: by.user.or(self.user),
            port: by.port.or(self.port),
            // a passphrase belongs to its key
            passphrase: by.passphrase.or(if by.identity.is_some() { None } else { self.passphrase }),
            identity: by.identity.or(self.identity),
            use_agent: by.use_agent.or(self.use_agent),
            known_hosts: by.known_hosts.or(self.known_hosts),
            host_key: by.host_key.or(self.host_key),
            connect_timeout: by.connect_timeout.or(self.connect_timeout),
            sessions: by.sessions.or(self.sessions),
        }
    }

    /// The address of a host; `silence` as the daemon's `host_timeout` says.
    pub fn address(&self, host: String) -> Address {
        Address {
            host,
            port: self.port,
            user: self.user.clone(),
            identity: self.identity.clone(),
            use_agent: self.use_agent.unwrap_or(true),
            known_hosts: self.known_hosts.clone(),
            host_key: self.host_key.clone(),
            connect_timeout_s: seconds(self.connect_timeout.unwrap_or(CONNECT_TIMEOUT)),
            silence_s: 30,
            sessions: self.sessions.and_then(|sessions| sessions.0),
        }
    }

    /// Where the key's passphrase is.
    pub fn passphrase(&self) -> Option<SecretRef> {
        self.passphrase.clone()
    }
}

/// Until a connection that is not made counts as failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// The table `ssh` of a section.
pub(super) fn keys<'v>(reader: &mut Reader<'v>, section: &mut Section<'v>) -> SshKeys {
    let mut table = reader.table(section, "ssh");
    let keys = SshKeys {
        user: reader.optional(&mut table, "user", form::WORD),
        port: reader.optional(&mut table, "port", form::PORT),
        identity: reader.optional(&mut table, "identity", form::PATH),
        passphrase: secret(reader, &mut table, "passphrase"),
        use_agent: reader.optional(&mut table, "use_agent", form::FLAG),
        known_hosts: reader.optional(&mut table, "known_hosts", form::PATH),
        host_key: reader.optional(&mut table, "host_key", form::HOST_KEY),
        connect_timeout: reader.optional(&mut table, "connect_timeout", form::PERIOD),
        sessions: reader.optional(&mut table, "sessions", form::SESSIONS),
    };
    reader.close(table);
    keys
}

/// One host; None if it could not be read.
pub(super) fn host<'v>(
    reader: &mut Reader<'v>,
    section: &mut Section<'v>,
    id: Option<HostId>,
    shared: &Shared,
) -> Option<Host> {
    let transport = reader.or(section, "transport", choice(), TransportKind::default());
    let mut ssh = shared.ssh.clone().overridden(keys(reader, section));
    let local = transport == TransportKind::Local;
    let kind = reader.or(section, "agent", choice(), if local { AgentKind::Own } else { AgentKind::Installed });
    if transport == TransportKind::Ssh && kind == AgentKind::Installed {
        // the account that the set-up of a host makes; `ssh` asks its own configuration
        ssh.user.get_or_insert_with(|| "mysql-refreshd".to_owned());
    }
    let way = way(reader, section, transport, &ssh);
    if kind == AgentKind::Own && !local || kind == AgentKind::Uploaded && local {
        let hint = if local { "Write \"own\" or \"installed\"." } else { "Write \"installed\" or \"uploaded\"." };
        reader.fail(
            &section.key("agent"),
            format!("this is nothing for the transport {transport}"),
            Some(hint.to_owned()),
        );
    }
    let path = reader.optional(section, "agent_path", form::PATH);
    let sudo = reader.or(section, "sudo", form::FLAG, !local);
    let sudo_password = secret(reader, section, "sudo_password");
    let policy = reader.optional(section, "policy", form::PATH);
    let agent = match kind {
        AgentKind::Installed => AgentProgram::Installed(path.clone().unwrap_or_else(|| PathBuf::from(INSTALLED))),
        AgentKind::Uploaded => AgentProgram::Uploaded,
        AgentKind::Own => AgentProgram::Own(PathBuf::from("/proc/self/exe")),
    };
    let installed = kind == AgentKind::Installed;
    for (key, is, fits) in [("agent_path", path.is_some(), installed), ("policy", policy.is_some(), !installed)] {
        if is && !fits {
            reader.fail(&section.key(key), format!("this has no meaning for `agent = \"{kind}\"`"), None);
        }
    }
    let target = if installed { named(reader, section) } else { described(reader, section).map(Target::Described) };
    let password = secret(reader, section, "password");
    let mut merged = shared.settings.clone();
    merged.extend(settings(reader, section));
    Some(Host {
        id: id?,
        route: Route { way: way?, agent, sudo, policy },
        target: target?,
        password,
        passphrase: if local { None } else { ssh.passphrase() },
        sudo_password,
        settings: merged,
    })
}

fn way<'v>(reader: &mut Reader<'v>, section: &mut Section<'v>, transport: TransportKind, ssh: &SshKeys) -> Option<Way> {
    if transport == TransportKind::Local {
        if reader.optional(section, "address", form::WORD).is_some() {
            let hint = "Set `transport` to \"ssh\" or \"openssh\", or leave the address out.".to_owned();
            reader.fail(&section.key("address"), "a host on this machine has no address", Some(hint));
        }
        return Some(Way::Local);
    }
    let address = ssh.address(reader.required(section, "address", form::WORD)?);
    if transport == TransportKind::Ssh {
        return Some(Way::Ssh(address));
    }
    if address.host_key.as_ref().is_some_and(|key| key.starts_with("SHA256:")) {
        let hint = "Write the whole public key, or pin it in a known_hosts file.".to_owned();
        reader.fail(
            section.path(),
            "the transport openssh cannot pin a key by its fingerprint (`host_key`)",
            Some(hint),
        );
    }
    if ssh.passphrase.is_some() {
        let hint = "Load the key into a key agent (ssh-agent), or use `transport = \"ssh\"`.".to_owned();
        reader.fail(section.path(), "the transport openssh cannot be given a `passphrase`", Some(hint));
    }
    Some(Way::OpenSsh(address))
}

/// An instance of the host's own policy.
fn named<'v>(reader: &mut Reader<'v>, section: &mut Section<'v>) -> Option<Target> {
    let name = reader.or(section, "instance", form::WORD, "main".to_owned());
    for key in ["datadir", "socket", "user", "service", "dropin", "state_dir", "start_timeout", "stop_timeout"] {
        if section.has(key) {
            let hint = format!("Write it into {} on that host; or use another `agent`.", crate::authority::FILE);
            reader.fail(&section.key(key), "an installed agent takes this from its host's own policy", Some(hint));
            section.skip(key);
        }
    }
    Some(Target::Named(name))
}

fn described<'v>(reader: &mut Reader<'v>, section: &mut Section<'v>) -> Option<Box<Instance>> {
    if section.has("instance") {
        let hint = "Describe the server here, or use `agent = \"installed\"`.".to_owned();
        reader.fail(&section.key("instance"), "only an installed agent knows instances by their names", Some(hint));
        section.skip("instance");
    }
    let datadir = reader.required(section, "datadir", form::PATH);
    let socket = reader.required(section, "socket", form::SOCKET);
    let user = reader.or(section, "user", form::TEXT, "root".to_owned());
    let service = service(reader, section);
    let dropin = reader.optional(section, "dropin", form::PATH);
    let state_dir = reader.or(section, "state_dir", form::PATH, PathBuf::from(crate::authority::STATE_DIR));
    let start_timeout = reader.or(section, "start_timeout", form::PERIOD, Duration::from_secs(5 * 60));
    let stop_timeout = reader.or(section, "stop_timeout", form::PERIOD, Duration::from_secs(15 * 60));
    Some(Box::new(Instance {
        datadir: datadir?,
        socket: socket?,
        user,
        service: service?,
        dropin,
        state_dir,
        start_timeout_s: seconds(start_timeout),
        stop_timeout_s: seconds(stop_timeout),
    }))
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

/// A reference to a secret, in one of its three forms.
fn secret<'v>(reader: &mut Reader<'v>, section: &mut Section<'v>, key: &'static str) -> Option<SecretRef> {
    let given = section.has(key);
    let mut table = reader.table(section, key);
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
pub(super) fn settings<'v>(reader: &mut Reader<'v>, section: &mut Section<'v>) -> BTreeMap<String, String> {
    let table = reader.table(section, "settings");
    let (mut settings, mut spelled) = (BTreeMap::new(), BTreeMap::new());
    for (name, value) in table.entries() {
        let key = table.key(name);
        let normal = name.replace('-', "_");
        let form = if secret_setting(&normal) { form::SECRET_SETTING } else { form::SETTING };
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
