//! Configuration: read in layers, checked as a whole, handed out as one validated value.
//!
//! Layers, later ones win: built-in defaults, the main file, `conf.d/*.toml` beside it in byte order, the environment,
//! `--set` flags. Tables are merged key by key; everything else, arrays included, is replaced as a whole.
//!
//! Nothing here touches a host. The only process ever started is a command that fetches a secret, and only when the
//! secret is asked for. Knows nothing of exit codes or terminals.

mod check;
mod error;
mod form;
mod hosts;
mod layers;
mod load;
mod model;
mod one_off;
mod policy;
mod reader;
mod refreshes;
mod schedule;
mod secret;
#[cfg(test)]
mod tests;
mod timing;

pub use error::{ConfigError, ConfigErrors};
pub use layers::Sources;
pub use load::load;
pub use model::{Config, Daemon, Effective, Environment, Host, HostId, InvalidName, Refresh, is_name};
pub use one_off::OneOff;
pub use policy::{
    Accounts, AgentKind, Basis, Choice, Compression, Events, Freeze, KeepPrevious, Layout, LogFormat, LongTransactions,
    Method, OnBusy, OnDestinationFailure, Policy, Proof, Reserve, TransportKind, XaPrepared,
};
pub use schedule::{Schedule, ScheduleError};
pub use secret::{SecretError, SecretRef};
pub use timing::{Blackout, BlackoutError, CatchUp};
