//! One MySQL or MariaDB instance on one machine: where it lives and how it is started and stopped.
//!
//! Pure data, shared by configuration, wire and journal. Holds no secret (the journal keeps it on disk) and does no I/O.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How a server is started and stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Service {
    /// By a systemd unit, `mariadb.service` for example.
    Systemd {
        /// The unit's name.
        unit: String,
    },
    /// By two commands of the operator's, each a program and its arguments (no shell). A command returns when its work
    /// is done; whether it is done is checked apart.
    Commands {
        /// Starts the server.
        start: Vec<String>,
        /// Stops the server cleanly.
        stop: Vec<String>,
    },
    /// As a plain process of the account the agent runs under: `SERVER --defaults-file=FILE`, stopped by SIGTERM.
    Process {
        /// The server's executable.
        server: PathBuf,
        /// Its option file.
        defaults_file: PathBuf,
    },
}

/// Which server an agent is to serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// This one. Only an agent that trusts its controller takes it.
    Described(Box<Instance>),
    /// The one that the host's policy knows by this name.
    Named(String),
    /// The only one that runs on the host. Only an agent that trusts its controller takes it.
    Only,
}

impl Target {
    /// The description, where the controller has one.
    pub fn described(&self) -> Option<&Instance> {
        match self {
            Self::Described(instance) => Some(instance),
            _ => None,
        }
    }
}

/// One server instance, as far as its host knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// The data directory, absolute.
    pub datadir: PathBuf,
    /// The unix socket of the running server, absolute.
    pub socket: PathBuf,
    /// The account used over the socket. Without a password it authenticates by `unix_socket` or `auth_socket`.
    pub user: String,
    /// How it is started and stopped.
    pub service: Service,
    /// The generated option file with the environment's settings; must be in a folder that the server reads last.
    /// Without one, no settings are pushed.
    pub dropin: Option<PathBuf>,
    /// Where this host keeps locks, guard and journals, absolute.
    pub state_dir: PathBuf,
    /// Seconds a start may take until the server answers.
    pub start_timeout_s: u32,
    /// Seconds a clean stop may take.
    pub stop_timeout_s: u32,
}
