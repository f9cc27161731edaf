//! The part that runs on each host: one process in one role, serving typed requests over stdin and stdout.
//!
//! `serve` speaks the wire and survives its controller: when the connection is gone it puts back what it had begun. The
//! other modules are the work itself. Nothing here knows the order of a run's steps.

mod adopt;
mod basis;
pub mod discover;
pub mod gate;
pub mod guard;
pub mod lane;
pub mod launch;
pub mod repair;
pub mod serve;

mod destination;
mod source;

mod accounts;
mod anchor;
mod defuse;
mod drain;
mod engage;
mod facts;
mod freeze;
mod guest;
mod hold;
mod index;
mod isolated;
mod receive;
mod runtime;
mod seed;
mod server;
mod session;
mod snapshot;
mod sql;
mod stage;
mod stock;
mod stopped;
mod stream;
mod swap;
mod tree;
mod upgrade;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
