//! How an agent is reached: a transport opens a process on a host and hands back its pipe. It knows processes, nothing of
//! files or MySQL, and it can say what a failed start means.
//!
//! A transport is made of two parts: a [`Starter`] starts a command on a host, as a child (`local`), through the system's `ssh`
//! (`openssh`) or through our own client (`ssh`); `agents` knows how an agent is started, whoever starts it. `connection`
//! speaks the wire over any such pipe. All pass the conformance suite in `tests/it/transport.rs`.

pub mod connection;
pub mod openssh;
pub mod ssh;

mod agents;
mod child;
mod known_hosts;
mod local;
mod reasons;
mod upload;

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use secrecy::SecretString;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use crate::problem::{Outcome, Problem};
use crate::route::{Route, Way};
use crate::wire::message::Role;

/// A boxed future, so that transports can be chosen at run time.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A way to reach agents on one host.
pub trait Transport: Send + Sync {
    /// Starts an agent in a role. An agent that cannot be started may show only as a pipe that ends at once; `explain` then
    /// says why.
    fn open(&self, role: Role) -> Later<'_, Outcome<Pipe>>;
    /// Opens one more session for an agent that was opened.
    fn lane(&self) -> Later<'_, Outcome<Pipe>>;
    /// How many sessions an agent's stream is to have, when a round trip takes so long.
    fn sessions(&self, round_trip: Duration) -> u8;
    /// What it means that an agent ended before it greeted: the end of its stderr and its exit status, in words.
    fn explain(&self, end: &End) -> Problem;
    /// Where the host is, for messages; None: this machine.
    fn place(&self) -> Option<String>;
}

/// What a transport must know and a route must not hold.
#[derive(Debug, Clone, Default)]
pub struct Secrets {
    /// Of the private key.
    pub passphrase: Option<SecretString>,
    /// For sudo, where it asks.
    pub sudo: Option<SecretString>,
}

/// The transport of a route.
pub fn to(route: &Route, secrets: Secrets) -> Box<dyn Transport> {
    let Secrets { passphrase, sudo } = secrets;
    let starter: Box<dyn Starter> = match &route.way {
        Way::Local => Box::new(local::Local),
        Way::OpenSsh(address) => Box::new(openssh::OpenSsh::new(address.clone())),
        Way::Ssh(address) => Box::new(ssh::Ssh::new(address.clone(), passphrase)),
    };
    Box::new(agents::Agents::new(starter, route.clone(), sudo))
}

/// Starts commands on one host.
trait Starter: Send + Sync {
    /// Starts a program with its arguments.
    fn start<'a>(&'a self, words: &'a [String]) -> Later<'a, Outcome<Pipe>>;
    /// For messages: where.
    fn place(&self) -> String;
    /// What it means that a command ended, if that has to do with how it was reached and not with the command.
    fn explain(&self, end: &End) -> Option<Problem>;
}

/// A question that may come on stderr before an agent speaks, and its answer.
pub struct Prompt {
    /// How the question can be told from everything else.
    pub mark: String,
    /// The answer, without its line end.
    pub answer: SecretString,
}

/// An agent's pipe.
pub struct Pipe {
    /// The agent's stdout.
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    /// The agent's stdin.
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
    /// The last of what it wrote to stderr.
    pub stderr: Tail,
    /// Ends it.
    pub process: Box<dyn Process>,
    /// What may be asked before it speaks.
    pub prompt: Option<Prompt>,
}

/// The agent's process, as far as a transport can hold it.
pub trait Process: Send {
    /// Waits until the process has ended; the caller has closed its stdin. After a while it is asked to end by a signal it can
    /// handle, later it is killed: when this returns, it is gone, or on another machine and out of reach. A process that has
    /// stopped answering is killed at once: it would not put anything back.
    fn end(self: Box<Self>, unresponsive: bool) -> Later<'static, End>;
}

/// How an agent ended.
#[derive(Debug, Clone, Default)]
pub struct End {
    /// Exit code; None where it is not known: killed, connection lost.
    pub code: Option<i32>,
    /// How it ended, in words.
    pub status: String,
    /// The last of its stderr.
    pub stderr: String,
}

/// Bytes of stderr that are kept.
const TAIL: usize = 32 * 1024;

/// The last `TAIL` bytes of a stream.
#[derive(Clone)]
pub struct Tail(Arc<Mutex<Vec<u8>>>, Arc<watch::Sender<u64>>);

impl Default for Tail {
    fn default() -> Self {
        Self(Arc::default(), Arc::new(watch::Sender::new(0)))
    }
}

impl Tail {
    /// Appends and forgets what is too old.
    pub fn push(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(bytes);
        let excess = kept.len().saturating_sub(TAIL);
        kept.drain(..excess);
        drop(kept);
        self.1.send_modify(|seen| *seen += bytes.len() as u64);
    }
    /// Changes with every push.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.1.subscribe()
    }
    /// As text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).trim().to_owned()
    }
}
