//! How libssh2 waits: a stream of our own in place of the crate's, which panics when a session reads and writes at once over a
//! full socket, and sleeps a millisecond for every wait.
//!
//! libssh2 reads and writes the socket itself, so that tokio never sees it block: after a wait is asked for, tokio's idea
//! that the socket is ready is put to the test and cleared, then the directions that libssh2 names are awaited.

use std::io::{Error, ErrorKind, Result};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_ssh2_lite::AsyncSessionStream;
use async_ssh2_lite::ssh2::{self, BlockDirections, ErrorCode, Session};
use async_trait::async_trait;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Against a wake-up that was lost: what one call has read off the socket may be what another waits for.
const FALLBACK: Duration = Duration::from_millis(5);

/// What a call that blocks waits at least.
const PAUSE: Duration = Duration::from_micros(500);

/// libssh2's "would block". Source: libssh2.h, LIBSSH2_ERROR_EAGAIN.
const EAGAIN: ErrorCode = ErrorCode::Session(-37);

/// A TCP stream that waits for what libssh2 names.
pub(super) struct SshStream(TcpStream);

impl SshStream {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self(stream)
    }

    /// Makes tokio forget that the socket is readable if it is not.
    fn test_readable(&self) {
        let _ = self.0.try_io(Interest::READABLE, || {
            let mut byte = [MaybeUninit::uninit(); 1];
            socket2::SockRef::from(&self.0).peek(&mut byte)
        });
    }

    /// The same for writing.
    fn test_writable(&self) {
        let _ = self.0.try_io(Interest::WRITABLE, || {
            let mut asked = [PollFd::new(&self.0, PollFlags::OUT)];
            match poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? {
                0 => Err(Error::from(ErrorKind::WouldBlock)),
                _ => Ok(()),
            }
        });
    }

    async fn wait(&self, directions: BlockDirections) -> Result<()> {
        let (reads, writes) = both(directions);
        if reads || !writes {
            self.test_readable();
        }
        if writes {
            self.test_writable();
        }
        let interest = match (reads, writes) {
            (true, true) => Interest::READABLE | Interest::WRITABLE,
            (_, true) => Interest::WRITABLE,
            _ => Interest::READABLE,
        };
        match tokio::time::timeout(FALLBACK, self.0.ready(interest)).await {
            Ok(ready) => ready.map(drop),
            Err(_) => Ok(()),
        }
    }
}

fn both(directions: BlockDirections) -> (bool, bool) {
    match directions {
        BlockDirections::None => (false, false),
        BlockDirections::Inbound => (true, false),
        BlockDirections::Outbound => (false, true),
        BlockDirections::Both => (true, true),
    }
}

impl AsRawFd for SshStream {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[async_trait]
impl AsyncSessionStream for SshStream {
    async fn x_with<R>(
        &self,
        mut op: impl FnMut() -> std::result::Result<R, ssh2::Error> + Send,
        session: &Session,
        _expected: BlockDirections,
        _sleep: Option<Duration>,
    ) -> std::result::Result<R, async_ssh2_lite::Error> {
        loop {
            let blocked = match op() {
                Err(error) if error.code() == EAGAIN => session.block_directions(),
                other => return other.map_err(Into::into),
            };
            let begun = Instant::now();
            self.wait(blocked).await?;
            // ready, and yet it may block again, on something that is not the socket: others must run, and time must pass
            if begun.elapsed() < PAUSE {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Registers the task for what libssh2 waits for. The caller polls again after a while whatever happens: see `FALLBACK`.
    fn poll_x_with<R>(
        &self,
        context: &mut Context<'_>,
        mut op: impl FnMut() -> Result<R> + Send,
        session: &Session,
        _expected: BlockDirections,
        _sleep: Option<Duration>,
    ) -> Poll<Result<R>> {
        loop {
            match op() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                other => return Poll::Ready(other),
            }
            let (reads, writes) = both(session.block_directions());
            let mut ready = false;
            if writes {
                self.test_writable();
                ready |= self.0.poll_write_ready(context)?.is_ready();
            }
            // whatever waits, news from the other side may be what it waits for
            if reads || !writes {
                self.test_readable();
                ready |= self.0.poll_read_ready(context)?.is_ready();
            }
            if !ready {
                return Poll::Pending;
            }
            if !reads && !writes {
                // not the socket: the other side's window, which another call's reading may open
                return Poll::Pending;
            }
        }
    }
}
