//! The configuration as validated: what the rest of the program works with.
//!
//! Whoever holds a [`Config`] may rely on it: names resolve, paths are absolute, a destination is never a source. Reads
//! no file and no environment, holds no secret, only references to them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::hosts::SshKeys;
use super::policy::{LogFormat, Method, Policy};
use super::schedule::Schedule;
use super::secret::SecretRef;
use super::timing::{Blackout, CatchUp};
use crate::instance::Target;
use crate::route::Route;

/// The whole configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Settings of the controller itself.
    pub daemon: Daemon,
    /// Every environment by name.
    pub environments: BTreeMap<String, Environment>,
    /// Every refresh by name.
    pub refreshes: BTreeMap<String, Refresh>,
    /// Every effective value and where it came from, in the order of the keys.
    pub effective: Vec<Effective>,
    pub(super) hosts: BTreeMap<HostId, Host>,
    pub(super) ssh: SshKeys,
}

impl Config {
    /// The host of this name.
    pub fn host(&self, id: &HostId) -> Option<&Host> {
        self.hosts.get(id)
    }

    /// The refresh of this name.
    pub fn refresh(&self, name: &str) -> Option<&Refresh> {
        self.refreshes.get(name)
    }

    /// Every host of every environment, sorted.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.hosts.values()
    }
}

/// Settings of the controller itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Daemon {
    /// History, journal and locks of the controller.
    pub state_dir: PathBuf,
    /// The log's folder, used for nothing else: old files in it are deleted.
    pub log_dir: PathBuf,
    /// How the log is written.
    pub log_format: LogFormat,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub log_level: String,
    /// How many rotated files are kept, at least 1.
    pub log_keep: usize,
    /// The silence after which a host counts as lost.
    pub host_timeout: Duration,
    /// The unix socket of the running daemon.
    pub socket: PathBuf,
    /// How many runs go on at once, at least 1.
    pub max_runs: usize,
}

/// A named cluster of hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// Its name.
    pub name: String,
    /// Never a destination.
    pub protected: bool,
    /// Its hosts, sorted.
    pub hosts: Vec<HostId>,
}

/// The name of a host: `environment/host`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostId(String);

impl HostId {
    /// Names a host; both names must be valid.
    pub fn new(environment: &str, host: &str) -> Result<Self, InvalidName> {
        for name in [environment, host] {
            if !is_name(name) {
                return Err(InvalidName(name.to_owned()));
            }
        }
        Ok(Self(format!("{environment}/{host}")))
    }

    /// The name of its environment.
    pub fn environment(&self) -> &str {
        self.0.split_once('/').map_or("", |(environment, _)| environment)
    }

    /// Whose data it has, as consents name it: its environment.
    pub fn origin(&self) -> &str {
        self.environment()
    }

    /// The host's own name within the environment.
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or("", |(_, name)| name)
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(&self.0)
    }
}

impl FromStr for HostId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let (environment, host) = text.split_once('/').ok_or_else(|| InvalidName(text.to_owned()))?;
        Self::new(environment, host)
    }
}

impl TryFrom<String> for HostId {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<HostId> for String {
    fn from(id: HostId) -> Self {
        id.0
    }
}

/// What is not the name of an environment, host or refresh.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a valid name")]
pub struct InvalidName(pub String);

/// Whether the text can name an environment, a host or a refresh: lower-case letters, digits, `-` and `_`, at most 64,
/// beginning with a letter or digit. Names become parts of file names, so nothing else is let in.
pub fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.len() <= 64
        && text.bytes().next().is_some_and(plain)
        && text.bytes().all(|byte| plain(byte) || byte == b'_' || byte == b'-')
}

/// One machine with one server instance.
#[derive(Clone, Serialize, Deserialize, PartialEq, Eq, Debug)]
pub struct Host {
    /// Its name.
    pub id: HostId,
    /// How it is reached.
    pub route: Route,
    /// Its server.
    pub target: Target,
    /// Where the SQL account's password is, if it has one.
    pub password: Option<SecretRef>,
    /// Where the passphrase of the private key is, if it has one.
    pub passphrase: Option<SecretRef>,
    /// Where the password for sudo is, if sudo asks.
    pub sudo_password: Option<SecretRef>,
    /// Server variables it must have as a destination: the environment's, overridden by its own. Names are written with
    /// underscores.
    pub settings: BTreeMap<String, String>,
}

/// A configured job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Refresh {
    /// Its name.
    pub name: String,
    /// Where the data comes from.
    pub source: HostId,
    /// Where it goes, in the order of the configuration; at least one.
    pub destinations: Vec<HostId>,
    /// When it runs by itself.
    pub schedule: Option<Schedule>,
    /// It runs whenever this refresh has ended well in a scheduled run; never together with a schedule.
    pub after: Option<String>,
    /// Whether the schedule is followed.
    pub enabled: bool,
    /// What becomes of a missed occurrence.
    pub catch_up: CatchUp,
    /// When no run may begin.
    pub blackout: Blackout,
    /// A scheduled run begins later by up to this, differently each time.
    pub jitter: Duration,
    /// How the image is taken.
    pub method: Method,
    /// Everything else.
    pub policy: Policy,
}

/// One effective value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Effective {
    /// The full key, `daemon.log_keep`.
    pub key: String,
    /// The value as it would be written in the file; a secret shows only its reference.
    pub value: String,
    /// `default`, a file, an environment variable or a `--set` flag.
    pub origin: String,
}
