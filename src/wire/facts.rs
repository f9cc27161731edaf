//! What an agent reports about its host: plain data, gathered once and judged elsewhere. No I/O.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::instance::Instance;
use crate::problem::Problem;

/// Which machine and which datadir: equal for all aliases of one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Content of /etc/machine-id, or a stand-in where there is none.
    pub machine: String,
    /// The host's own name.
    pub hostname: String,
    /// The datadir, symlinks resolved.
    pub datadir: PathBuf,
    /// Device and inode of the datadir.
    pub inode: (u64, u64),
    /// The name of the lock for this instance, made from machine and datadir.
    pub key: String,
    /// The agent's version.
    pub build: String,
}

/// Everything preflight needs to know about a host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Facts {
    /// Which machine and datadir.
    pub identity: Identity,
    /// The instance, as the agent was told or as its host's policy says.
    pub instance: Instance,
    /// The host's own policy decides what the agent may do.
    pub installed: bool,
    /// By that policy the source's accounts may come along, and events may stay enabled.
    pub lets_in: (bool, bool),
    /// Of a destination: why its owner's consent is missing.
    pub no_consent: Option<Problem>,
    /// The server, when it runs and answers.
    pub server: Option<ServerFacts>,
    /// Why `server` is missing.
    pub server_problem: Option<String>,
    /// What lies in the datadir.
    pub tree: TreeFacts,
    /// The filesystem around it.
    pub disk: DiskFacts,
    /// Where a server socket for the isolated start would be, and whether its path is short enough.
    pub socket_path_fits: bool,
    /// Why the server would stay down after a boot of the host; None: something starts it, or nobody can tell.
    pub not_at_boot: Option<String>,
}

/// A running server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServerFacts {
    /// Process id.
    pub pid: u32,
    /// Its executable.
    pub executable: PathBuf,
    /// The executable on disk is no longer the one that runs: a pending upgrade.
    pub executable_replaced: bool,
    /// The server's own word on its settings on disk; None: they validate.
    pub settings_problem: Option<String>,
    /// All global variables.
    pub variables: BTreeMap<String, String>,
    /// Names of replication connections this server has (it is a replica).
    pub replicates_from: Vec<String>,
    /// Replicas connected to this server.
    pub replicas: Vec<String>,
    /// Prepared XA transactions.
    pub prepared_xa: Vec<String>,
    /// Tables in MEMORY: their rows do not survive a restart.
    pub memory_tables: Vec<String>,
    /// Tablespaces whose file lies outside the datadir.
    pub outside_files: Vec<String>,
    /// Encrypted tablespaces.
    pub encrypted: Vec<String>,
    /// Active plugins, and MySQL's components.
    pub plugins: Vec<String>,
    /// MySQL: variables set by SET PERSIST, with their values; they override option files.
    pub persisted: BTreeMap<String, String>,
    /// MariaDB: the vendor's upgrade tool belongs to this server.
    pub upgrade_tool: bool,
    /// Rows of mysql.servers and tables of engines that reach out to other servers.
    pub remote_tables: Vec<String>,
    /// Accounts and roles, system ones not counted.
    pub accounts: u64,
    /// Events that are enabled.
    pub enabled_events: u64,
}

/// What lies in a datadir, by class.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct TreeFacts {
    /// Files that belong to the image.
    pub copy_files: u64,
    /// Folders that belong to the image.
    pub copy_dirs: u64,
    /// Bytes of those files, as their sizes say.
    pub copy_bytes: u64,
    /// Entries each host keeps of its own.
    pub keep: Vec<String>,
    /// Entries that are left behind.
    pub dropped: Vec<String>,
    /// Entries that forbid a copy, with the reason.
    pub refusals: Vec<String>,
}

/// The filesystem of a datadir.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct DiskFacts {
    /// Bytes free for the agent's account.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
    /// Free inodes; None where the filesystem has no fixed number.
    pub free_inodes: Option<u64>,
    /// Why root cannot work beside the datadir: somebody else could change the folders there.
    pub unguarded: Option<Problem>,
    /// The datadir is a mount point, and these entries of it cannot be moved.
    pub immovable: Vec<String>,
    /// The datadir comes from a lower layer of an overlay: it cannot be renamed at all.
    pub lower_layer: bool,
    /// The agent may create the work folder beside the datadir.
    pub writable: bool,
    /// Bytes in the previous generation that is kept.
    pub previous_bytes: u64,
    /// Bytes in an abandoned stage.
    pub stage_bytes: u64,
    /// A swap that was interrupted and not yet recovered, with its run.
    pub interrupted_swap: Option<String>,
    /// The drop-in's folder is there and writable; None: no drop-in configured.
    pub dropin_writable: Option<bool>,
}
