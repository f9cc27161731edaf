//! mysql-refreshd: keeps R&D MySQL and MariaDB servers fresh from production.
//!
//! The code map, from the edge inwards. Imports go down only; `tests/it/tidy.rs` enforces it.
//!
//! | layer | modules | what |
//! |---|---|---|
//! | 4 | [`cli`], [`daemon`], [`status`], [`failure`], [`logging`] | arguments, terminal; schedules, queue, socket, service manager; what goes on; exit codes, logs |
//! | 3 | [`refresh`] | the pipeline: one function, top to bottom; plan, recover, rollback |
//! | 2 | [`config`], [`host`], [`run`] | configuration as typed and validated; typed calls to one machine; steps, arm, fire, unwind |
//! | 1 | [`transport`], [`agent`], [`authority`], [`store`], [`lock`], [`durable`], [`account`] | how an agent is reached; the agent; what its host allows; journal and history; locks; files replaced whole; UNIX accounts |
//! | 0 | [`wire`], [`delta`], [`mysql`], [`instance`], [`route`], [`report`], [`problem`], [`failpoint`], `mutate` | pure data and knowledge; points that tests fail, and damage that they do |
//!
//! Invariants, stated as absences:
//!
//! - The source role has no request that writes into a datadir.
//! - No act happens before its undo is in the journal.
//! - `delta` and `mysql` do no I/O.
//! - A destination is never written in place: a generation takes its name by rename.
//! - Local agents and remote ones run the same code above `transport`.
//! - A run that ends without the exit code "a human is needed" leaves no armed undo.
//! - Nothing below `refresh` knows the order of the steps; nothing below `host` knows that there are two machines; nothing
//!   below `cli` knows of exit codes or a terminal.

pub mod cli;
pub mod daemon;
pub mod failure;
pub mod logging;
pub mod status;

pub mod refresh;

pub mod config;
pub mod host;
pub mod run;

pub mod account;
pub mod agent;
pub mod authority;
pub mod durable;
pub mod lock;
pub mod store;
pub mod transport;

pub mod delta;
pub mod failpoint;
pub mod instance;
pub mod mutate;
pub mod mysql;
pub mod problem;
pub mod report;
pub mod route;
pub mod wire;
