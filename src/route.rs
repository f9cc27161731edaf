//! How a host is reached, and how the agent is started there. Pure data, shared by configuration, transports and journal.
//!
//! Holds no secret (the journal keeps it on disk) and does no I/O.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where the agent is found on a host unless told otherwise.
pub const INSTALLED: &str = "/usr/local/bin/mysql-refreshd";

/// A way to a host and to its agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// How processes are started there.
    pub way: Way,
    /// Which program the agent is.
    pub agent: AgentProgram,
    /// Through sudo, as root.
    pub sudo: bool,
    /// Where the host's policy is, for an agent that trusts its controller; None: where it is for everyone. An installed agent is
    /// never told.
    pub policy: Option<PathBuf>,
}

/// How processes are started on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Way {
    /// As children, on this machine.
    Local,
    /// By our own SSH client.
    Ssh(Address),
    /// By the system's `ssh`.
    OpenSsh(Address),
}

/// Which program is the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentProgram {
    /// A program on this machine, which trusts its controller: the controller itself, usually.
    Own(PathBuf),
    /// What the host's owner has installed there; it takes what it may do from the host's own policy.
    Installed(PathBuf),
    /// This very program, put there for the occasion; it trusts its controller.
    Uploaded,
}

impl AgentProgram {
    /// It does what its controller says, with whatever rights the account has.
    pub fn trusts(&self) -> bool {
        !matches!(self, Self::Installed(_))
    }
}

/// Where an SSH server is and how to be let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// Name or address; for `openssh` also an alias of its own configuration.
    pub host: String,
    /// TCP port; None: 22, or what the configuration of `ssh` says.
    pub port: Option<u16>,
    /// The account there; None: this account's name, or what the configuration of `ssh` says.
    pub user: Option<String>,
    /// The private key's file; None: what the key agent has, then the usual files of this account.
    pub identity: Option<PathBuf>,
    /// Ask the key agent (`SSH_AUTH_SOCK`).
    pub use_agent: bool,
    /// The only file of known host keys; None: the usual ones.
    pub known_hosts: Option<PathBuf>,
    /// The only host key that counts: `TYPE BASE64`, or for our own client a fingerprint, `SHA256:…`.
    pub host_key: Option<String>,
    /// Seconds until a connection that is not made counts as failed.
    pub connect_timeout_s: u32,
    /// Parallel sessions for one agent's stream; None: as many as the link's latency asks for.
    pub sessions: Option<u8>,
    /// Seconds of unacknowledged data after which the kernel gives a connection up.
    pub silence_s: u32,
}

impl Address {
    /// For messages: `user@host:port`.
    pub fn shown(&self) -> String {
        let user = self.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let port = self.port.filter(|port| *port != 22).map(|port| format!(":{port}")).unwrap_or_default();
        format!("{user}{host}{port}")
    }
}

impl Route {
    /// The address, if the host is not this machine.
    pub fn address(&self) -> Option<&Address> {
        match &self.way {
            Way::Local => None,
            Way::Ssh(address) | Way::OpenSsh(address) => Some(address),
        }
    }

    /// How long a connection may be silent.
    pub fn set_silence(&mut self, silence: std::time::Duration) {
        if let Way::Ssh(address) | Way::OpenSsh(address) = &mut self.way {
            address.silence_s = u32::try_from(silence.as_secs()).unwrap_or(u32::MAX).max(1);
        }
    }

    /// This machine, the agent being this program.
    pub fn local() -> Self {
        let agent = AgentProgram::Own(PathBuf::from("/proc/self/exe"));
        Self { way: Way::Local, agent, sudo: false, policy: None }
    }
}
