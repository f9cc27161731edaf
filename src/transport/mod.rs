//! How an agent is reached: a transport opens a process on a host and hands back its pipe. It knows processes, nothing of
//! files or MySQL, and it can say what a failed start means.
//!
//! `connection` speaks the wire over any such pipe. The transports to other machines get their places beside `local`; all of
//! them pass the conformance suite in `tests/it/transport.rs`.

pub mod connection;
pub mod local;

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::problem::{Outcome, Problem};
use crate::wire::message::Role;

/// A boxed future, so that transports can be chosen at run time.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A way to reach agents on one host.
pub trait Transport: Send + Sync {
    /// Starts an agent in a role. An agent that cannot be started may show only as a pipe that ends at once; `explain` then
    /// says why.
    fn open(&self, role: Role) -> Later<'_, Outcome<Pipe>>;
    /// What it means that an agent ended before it greeted: the end of its stderr and its exit status, in words.
    fn explain(&self, end: &End) -> Problem;
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
    /// Exit status in words, if it is known.
    pub status: String,
    /// The last of its stderr.
    pub stderr: String,
}

/// Bytes of stderr that are kept.
const TAIL: usize = 32 * 1024;

/// The last `TAIL` bytes of a stream.
#[derive(Clone, Default)]
pub struct Tail(Arc<Mutex<Vec<u8>>>);

impl Tail {
    /// Appends and forgets what is too old.
    pub fn push(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(bytes);
        let excess = kept.len().saturating_sub(TAIL);
        kept.drain(..excess);
    }
    /// As text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).trim().to_owned()
    }
}
