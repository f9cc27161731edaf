//! The integration tests: one binary, which drives the program from outside against real MariaDB servers.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test says so and fails")]
#![cfg_attr(not(feature = "failpoints"), allow(dead_code, reason = "what only the fault tests use"))]

#[cfg(feature = "failpoints")]
mod aftermath;
mod cli;
mod client;
#[cfg(feature = "failpoints")]
mod connections;
#[cfg(feature = "failpoints")]
mod contention;
#[cfg(feature = "failpoints")]
mod daemon;
#[cfg(feature = "failpoints")]
mod faults;
#[cfg(feature = "failpoints")]
mod frozen;
mod gate;
mod hazards;
mod ledger;
#[cfg(feature = "failpoints")]
mod mounts;
#[cfg(feature = "failpoints")]
mod one_off;
mod oracle;
mod ordering;
#[cfg(feature = "failpoints")]
mod points;
mod poller;
mod proxy;
mod refresh;
mod refusals;
mod regressions;
#[cfg(feature = "failpoints")]
mod repair;
#[cfg(feature = "failpoints")]
mod retries;
#[cfg(feature = "failpoints")]
mod reuse;
mod rights;
#[cfg(feature = "failpoints")]
mod secrets;
mod servers;
#[cfg(feature = "failpoints")]
mod snapshot;
mod template;
mod tidy;
mod transport;
mod world;
mod world_itself;
