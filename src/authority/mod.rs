//! What a host allows: its own policy, `/etc/mysql-refreshd/host.toml`, which only root can write, with the consents in it.
//!
//! An installed agent takes everything that gives power from here: which datadir, unit and commands, in which roles, from
//! whose data. Nothing that came over a wire is believed. Decides about a host alone, knows no run.

pub mod consent;

mod document;

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use consent::{Consent, Machine};
pub use document::{described, edit, instance_table};

use crate::instance::{Instance, Service, Target};
use crate::problem::{Explain, Outcome, Problem};
use crate::wire::message::Role;

/// Where root's policy is.
pub const FILE: &str = "/etc/mysql-refreshd/host.toml";

/// Where the state of a host's agents is, unless the policy says otherwise.
pub const STATE_DIR: &str = "/var/lib/mysql-refreshd/host";

/// The policy's file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    instances: BTreeMap<String, Entry>,
}

/// One instance as it is written. Without `socket` and `service` it only carries a consent, for agents that trust their
/// controller.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The data directory.
    pub datadir: PathBuf,
    /// The server's unix socket.
    pub socket: Option<PathBuf>,
    /// The SQL account; `root` by default.
    pub user: Option<String>,
    /// A file with that account's password.
    pub password_file: Option<PathBuf>,
    /// How the server is started and stopped.
    pub service: Option<ServiceForm>,
    /// The generated option file.
    pub dropin: Option<PathBuf>,
    /// Locks, guard and journals of this host.
    pub state_dir: Option<PathBuf>,
    /// How long a start may take.
    pub start_timeout: Option<String>,
    /// How long a clean stop may take.
    pub stop_timeout: Option<String>,
    /// What agents may be here.
    #[serde(default)]
    pub roles: Vec<RoleWord>,
    /// Never a destination, whatever any consent says.
    #[serde(default)]
    pub protected: bool,
    /// The longest outage that a controller may ask for; "4h" by default.
    pub max_outage: Option<String>,
    /// Of a destination: "source" lets a refresh bring the source's accounts; by default its own stay.
    #[serde(default)]
    pub accounts: AccountsWord,
    /// Of a destination: "keep" lets a refresh leave the source's events enabled; by default they are disabled.
    #[serde(default)]
    pub events: EventsWord,
    /// The owner's consent to be overwritten.
    pub consent: Option<Consent>,
}

/// Whose accounts a destination may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccountsWord {
    /// Its own.
    #[default]
    Destination,
    /// The source's, if the refresh wants it so.
    Source,
}

/// What may become of events that come with the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventsWord {
    /// They are disabled.
    #[default]
    Disable,
    /// They stay, if the refresh wants it so.
    Keep,
}

/// A role as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RoleWord {
    /// May be stopped and read.
    Source,
    /// May be overwritten, with consent.
    Destination,
}

/// A service in one of its three forms.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(
    untagged,
    deny_unknown_fields,
    expecting = "give `unit`, or `start` and `stop`, or `server` and `defaults_file`"
)]
pub enum ServiceForm {
    /// A systemd unit.
    Unit {
        /// Its name.
        unit: String,
    },
    /// Two commands.
    Commands {
        /// Starts the server.
        start: Vec<String>,
        /// Stops it.
        stop: Vec<String>,
    },
    /// A plain process.
    Process {
        /// The executable.
        server: PathBuf,
        /// Its option file.
        defaults_file: PathBuf,
    },
}

/// A host's policy, as far as this account may rely on it.
#[derive(Debug, Clone, Serialize)]
pub struct Policy {
    /// Where it is.
    pub path: PathBuf,
    /// Its instances by name.
    pub instances: BTreeMap<String, Entry>,
}

/// Where the policy of this account's servers is: root's for root, else the account's own, since its servers are its own.
pub fn path() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from(FILE);
    }
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config"));
    let base = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute()).or_else(home);
    base.unwrap_or_else(|| PathBuf::from("/etc")).join("mysql-refreshd/host.toml")
}

impl Policy {
    /// Reads a policy; None where there is no file. One that others could have written is not believed.
    pub fn read(path: &Path) -> Outcome<Option<Self>> {
        let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
        let mut file = match std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Problem::refused(unreadable(path)).because(error)),
        };
        trusted(path, &file.metadata().explain(|| unreadable(path))?)?;
        let mut text = String::new();
        file.read_to_string(&mut text).explain(|| unreadable(path))?;
        Self::parse(path, &text).map(Some)
    }

    fn parse(path: &Path, text: &str) -> Outcome<Self> {
        let read: File = toml::from_str(text).map_err(|error| {
            Problem::refused(format!("the host's policy {} has an error", path.display()))
                .cause(error.to_string().trim().replace('\n', " "))
                .hint("Mend the file; nothing is done on this host before.")
        })?;
        let policy = Self { path: path.to_owned(), instances: read.instances };
        let mut datadirs = BTreeMap::new();
        for (name, entry) in &policy.instances {
            let real = entry.datadir.canonicalize().unwrap_or_else(|_| entry.datadir.clone());
            if let Some(other) = datadirs.insert(real, name) {
                return Err(Problem::refused(format!("the host's policy {} has an error", path.display()))
                    .cause(format!("{other:?} and {name:?} have the same datadir"))
                    .hint("Describe each server once."));
            }
            entry
                .check()
                .map_err(|problem| problem.during(format!("the host's policy {}, instances.{name}", path.display())))?;
        }
        Ok(policy)
    }

    /// The instance on this datadir, however it is written.
    pub fn on(&self, datadir: &Path) -> Option<(&String, &Entry)> {
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let datadir = real(datadir);
        self.instances.iter().find(|(_, entry)| real(&entry.datadir) == datadir)
    }
}

fn unreadable(path: &Path) -> String {
    format!("cannot read the host's policy {}", path.display())
}

/// Nobody but root and this account could have written the file, or put another in its place.
fn trusted(path: &Path, file: &std::fs::Metadata) -> Outcome<()> {
    let me = rustix::process::geteuid().as_raw();
    let ours = |meta: &std::fs::Metadata| meta.uid() == 0 || meta.uid() == me;
    let refuse = |what: String| {
        Err(Problem::refused(format!("the host's policy is not believed: {what}")).hint(
            "It must be a file of root's (or of the account whose servers it is about) that nobody else can write.",
        ))
    };
    if !file.is_file() || !ours(file) || file.mode() & 0o022 != 0 {
        return refuse(format!("others could have written {}", path.display()));
    }
    let real = path.canonicalize().explain(|| unreadable(path))?;
    for folder in real.ancestors().skip(1) {
        let meta = std::fs::metadata(folder).explain(|| unreadable(path))?;
        // in a sticky folder nobody can replace what is ours
        if !ours(&meta) || (meta.mode() & 0o022 != 0 && meta.mode() & 0o1000 == 0) {
            return refuse(format!("others could have put it into {}", folder.display()));
        }
    }
    Ok(())
}

/// Whether root can keep its own things in a folder: nobody else could have put it, or what leads to it, in its place. Only
/// asked by root; an ordinary account's servers are its own affair.
pub fn only_ours(folder: &Path) -> Outcome<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    for place in folder.ancestors() {
        let meta = match std::fs::symlink_metadata(place) {
            Ok(meta) if meta.is_symlink() && meta.uid() == 0 => {
                std::fs::metadata(place).explain(|| format!("cannot look at {}", place.display()))?
            }
            Ok(meta) => meta,
            // it will be root's who makes it
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).explain(|| format!("cannot look at {}", place.display())),
        };
        let sticky = meta.mode() & 0o1000 != 0;
        if meta.uid() != 0 || (meta.mode() & 0o022 != 0 && !sticky) {
            return Err(Problem::refused(format!(
                "root cannot keep anything in {}: others can change {}",
                folder.display(),
                place.display()
            ))
            .hint(format!("As root: chown root {0} && chmod go-w {0}", place.display())));
        }
    }
    Ok(())
}

impl Entry {
    fn check(&self) -> Outcome<()> {
        let paths = [Some(&self.datadir), self.socket.as_ref(), self.dropin.as_ref(), self.state_dir.as_ref()];
        for path in paths.into_iter().flatten() {
            if !path.is_absolute() || path.parent().is_none() {
                return Err(Problem::refused(format!("{} is not an absolute path", path.display())));
            }
        }
        if self.socket.is_some() != self.service.is_some() {
            return Err(Problem::refused("`socket` and `service` belong together: one of them is missing"));
        }
        if let Some(ServiceForm::Commands { start, stop }) = &self.service
            && [start, stop].iter().any(|words| !words.first().is_some_and(|program| program.starts_with('/')))
        {
            return Err(Problem::refused("the commands of `service` must begin with a program's absolute path"));
        }
        if let Some(state_dir) = self.state_dir.as_ref().filter(|dir| dir.starts_with(&self.datadir)) {
            return Err(Problem::refused(format!("state_dir {} lies inside the datadir", state_dir.display())));
        }
        let limits = [(&self.start_timeout, 300), (&self.stop_timeout, 900), (&self.max_outage, MAX_OUTAGE_S)];
        limits.into_iter().try_for_each(|(text, default)| self.timeout(text.as_deref(), default).map(drop))
    }

    fn timeout(&self, text: Option<&str>, default_s: u32) -> Outcome<u32> {
        let Some(text) = text else { return Ok(default_s) };
        match humantime::parse_duration(text) {
            Ok(limit) if (1..=31_622_400).contains(&limit.as_secs()) => Ok(limit.as_secs() as u32),
            _ => Err(Problem::refused(format!("{text:?} is not a duration of a second or more, like \"5m\""))),
        }
    }

    /// As agents need it; None where the entry only carries a consent.
    pub fn instance(&self) -> Outcome<Option<Instance>> {
        let (Some(socket), Some(service)) = (&self.socket, &self.service) else { return Ok(None) };
        let service = match service.clone() {
            ServiceForm::Unit { unit } if unit.ends_with(".service") => Service::Systemd { unit },
            ServiceForm::Unit { unit } => Service::Systemd { unit: format!("{unit}.service") },
            ServiceForm::Commands { start, stop } => Service::Commands { start, stop },
            ServiceForm::Process { server, defaults_file } => Service::Process { server, defaults_file },
        };
        Ok(Some(Instance {
            datadir: self.datadir.clone(),
            socket: socket.clone(),
            user: self.user.clone().unwrap_or_else(|| "root".to_owned()),
            service,
            dropin: self.dropin.clone(),
            state_dir: self.state_dir.clone().unwrap_or_else(|| PathBuf::from(STATE_DIR)),
            start_timeout_s: self.timeout(self.start_timeout.as_deref(), 300)?,
            stop_timeout_s: self.timeout(self.stop_timeout.as_deref(), 900)?,
        }))
    }

    fn allows(&self, role: Role) -> bool {
        let word = match role {
            Role::Source => RoleWord::Source,
            Role::Destination => RoleWord::Destination,
        };
        self.roles.contains(&word)
    }
}

/// What one agent may rely on: the policy's place, and whether the controller is believed.
#[derive(Debug, Clone)]
pub struct Authority {
    path: PathBuf,
    trusting: bool,
}

/// What the host's owner has to say about one instance.
#[derive(Debug, Clone)]
pub struct Entitled {
    /// Its name in the policy, if it stands there.
    pub name: Option<String>,
    /// The instance.
    pub instance: Instance,
    /// Its password, where the policy names a file.
    pub password_file: Option<PathBuf>,
    /// What else the owner has said; an agent that trusts its controller is not bound.
    pub bounds: Option<Bounds>,
}

/// How far a controller may go with an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The longest outage, in seconds.
    pub max_outage_s: u64,
    /// A refresh may bring the source's accounts.
    pub source_accounts: bool,
    /// A refresh may leave events enabled.
    pub keep_events: bool,
}

/// The longest outage unless the policy says otherwise.
const MAX_OUTAGE_S: u32 = 4 * 3600;

impl Authority {
    /// An installed agent: the host's policy decides everything.
    pub fn strict() -> Self {
        Self { path: path(), trusting: false }
    }

    /// An agent that does what its controller says, with consents only.
    pub fn trusting(policy: Option<PathBuf>) -> Self {
        Self { path: policy.unwrap_or_else(path), trusting: true }
    }

    /// Whether instances may be described by the controller.
    pub fn is_trusting(&self) -> bool {
        self.trusting
    }

    /// The instance an agent is to serve. `discover` finds the only server that runs here.
    pub fn instance(
        &self,
        role: Role,
        target: &Target,
        discover: impl FnOnce() -> Outcome<Instance>,
    ) -> Outcome<Entitled> {
        let policy = Policy::read(&self.path)?;
        if self.trusting {
            let described = match target {
                Target::Described(instance) => Some((**instance).clone()),
                Target::Only => Some(discover()?),
                Target::Named(_) => None,
            };
            if let Some(instance) = described {
                return self.believed(policy.as_ref(), role, instance);
            }
        }
        let Some(policy) = policy else {
            return Err(Problem::refused(format!("this host has no policy ({})", self.path.display()))
                .hint(format!("On the host, as root: mysql-refreshd host init --role {role}")));
        };
        let (name, entry) = match target {
            Target::Named(name) => policy.instances.get_key_value(name).ok_or_else(|| {
                let known: Vec<&str> = policy.instances.keys().map(String::as_str).collect();
                Problem::refused(format!("this host's policy knows no instance {name:?}")).hint(format!(
                    "Its instances are: {}. Set the host's `instance`, or add it to {}.",
                    known.join(", "),
                    policy.path.display()
                ))
            })?,
            Target::Only => self.only(&policy, role)?,
            Target::Described(_) => {
                return Err(Problem::refused("an installed agent takes the instance from its host's own policy")
                    .hint("Name it with the host's key `instance`, and leave out `datadir`, `socket` and `service`."));
            }
        };
        if !entry.allows(role) {
            return Err(not_in_role(&policy.path, name, role));
        }
        let instance = entry.instance()?.ok_or_else(|| {
            Problem::refused(format!("the policy's instance {name:?} has no `socket` and `service`"))
                .hint(format!("Complete it in {}.", policy.path.display()))
        })?;
        let bounds = Bounds {
            max_outage_s: entry.timeout(entry.max_outage.as_deref(), MAX_OUTAGE_S)?.into(),
            source_accounts: entry.accounts == AccountsWord::Source,
            keep_events: entry.events == EventsWord::Keep,
        };
        only_ours(&instance.state_dir)?;
        Ok(Entitled {
            name: Some(name.clone()),
            instance,
            password_file: entry.password_file.clone(),
            bounds: Some(bounds),
        })
    }

    fn only<'p>(&self, policy: &'p Policy, role: Role) -> Outcome<(&'p String, &'p Entry)> {
        let mut fit = policy.instances.iter().filter(|(_, entry)| entry.allows(role));
        match (fit.next(), fit.next()) {
            (Some(one), None) => Ok(one),
            (None, _) => Err(Problem::refused(format!("this host's policy has no instance in the role {role}"))
                .hint(format!("On the host, as root: mysql-refreshd host init --role {role}"))),
            _ => Err(Problem::refused(format!("this host has several instances in the role {role}"))
                .hint("Describe the host in a configuration, and name its `instance`.")),
        }
    }

    /// An instance that the controller describes; where the host's policy knows its datadir, the policy's word counts.
    fn believed(&self, policy: Option<&Policy>, role: Role, instance: Instance) -> Outcome<Entitled> {
        let found = policy.and_then(|policy| Some((policy, policy.on(&instance.datadir)?)));
        if let Some((policy, (name, entry))) = found
            && !entry.roles.is_empty()
            && !entry.allows(role)
        {
            return Err(not_in_role(&policy.path, name, role));
        }
        let name = found.map(|(_, (name, _))| name.clone());
        only_ours(&instance.state_dir)?;
        Ok(Entitled { name, instance, password_file: None, bounds: None })
    }

    /// Whether this instance's owner allows it to be overwritten with data from `from` (None: with its own older data). Read anew each time: a consent can
    /// be taken back.
    pub fn consent(&self, datadir: &Path, from: Option<&str>) -> Outcome<()> {
        let wanted = from.unwrap_or("ENVIRONMENT");
        let policy = Policy::read(&self.path)?;
        let place = if self.path == path() { String::new() } else { format!(" --policy {}", self.path.display()) };
        let who = if rustix::process::geteuid().is_root() { "as root" } else { "as the same account" };
        let program = own_name();
        let command = |name: &str| match (name, self.trusting) {
            ("", _) => format!("{program} consent grant --from {wanted} --datadir {}{place}", datadir.display()),
            (name, _) => format!("{program} consent grant --from {wanted} --instance {name}{place}"),
        };
        let found = policy.as_ref().and_then(|policy| policy.on(datadir));
        let Some((name, entry)) = found else {
            return Err(Problem::refused(format!(
                "nobody on this host has consented that {} be overwritten",
                datadir.display()
            ))
            .hint(format!("On the host, {who}: {}", command(""))));
        };
        if entry.protected {
            return Err(Problem::refused(format!("the instance {name:?} is protected on its own host"))
                .hint(format!("It is never a destination, unless {} says otherwise.", self.path.display())));
        }
        let Some(consent) = &entry.consent else {
            return Err(Problem::refused(format!(
                "the owner of the instance {name:?} has not consented to be overwritten"
            ))
            .hint(format!("On the host, {who}: {}", command(name))));
        };
        let real = datadir.canonicalize().unwrap_or_else(|_| datadir.to_owned());
        consent.judge(name, &real, &Machine::this(), from, chrono::Utc::now()).map_err(|why| {
            Problem::refused(format!("the consent of the instance {name:?} does not count: {why}"))
                .hint(format!("On the host, {who}: {}", command(name)))
        })
    }
}

/// How this program is called on this host: where it was put for the occasion it is in nobody's PATH.
fn own_name() -> String {
    let own = std::env::current_exe().unwrap_or_default();
    let uploaded = own.file_name().is_some_and(|name| name.to_string_lossy().starts_with("agent-"));
    if uploaded { own.display().to_string() } else { "mysql-refreshd".to_owned() }
}

fn not_in_role(path: &Path, name: &str, role: Role) -> Problem {
    Problem::refused(format!("the instance {name:?} may not be a {role} on this host"))
        .hint(format!("Its owner can add the role to `roles` in {}.", path.display()))
}

#[cfg(test)]
mod tests;
