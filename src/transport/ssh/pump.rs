//! The owner of a session: one task that reads stdout and stderr and writes stdin, and that is never cancelled.
//!
//! What libssh2 could not write at once must be offered again, the same bytes, before anything else: here no caller can drop
//! a write in the middle, nobody flushes (which would throw away what was received), and the end is said by `send_eof`.

use std::future::poll_fn;
use std::io::{Error, Result};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use async_ssh2_lite::{AsyncChannel, AsyncSession};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use super::session::said;
use super::stream::SshStream;
use crate::transport::Tail;

/// One SSH packet's worth and more; smaller writes cost 40 % (measured), larger ones gain nothing.
const BUFFER: usize = 128 * 1024;

/// Nothing is waited for longer than this without looking again.
const FALLBACK: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(40)];

/// How long the end of stdin is tried at a time.
const ATTEMPT: Duration = Duration::from_millis(200);

/// How long the other side may take to say how its command ended.
const FAREWELL: Duration = Duration::from_secs(5);

/// How a command ended.
#[derive(Debug, Clone, Default)]
pub(super) struct Ended {
    /// Its exit code, if it is known.
    pub code: Option<i32>,
    /// In words.
    pub status: String,
}

/// Bytes on their way from one place to another.
struct Flow {
    buffer: Vec<u8>,
    from: usize,
    to: usize,
    /// The end has been seen.
    ended: bool,
}

impl Flow {
    fn new() -> Self {
        Self { buffer: vec![0; BUFFER], from: 0, to: 0, ended: false }
    }
    fn is_empty(&self) -> bool {
        self.from == self.to
    }
    /// Reads more, if there is room; true if something happened.
    fn fill(&mut self, context: &mut Context<'_>, source: &mut (impl AsyncRead + Unpin)) -> Result<bool> {
        if !self.is_empty() || self.ended {
            return Ok(false);
        }
        let mut space = ReadBuf::new(&mut self.buffer);
        match Pin::new(source).poll_read(context, &mut space) {
            Poll::Ready(Ok(())) => {
                (self.from, self.to) = (0, space.filled().len());
                self.ended = self.to == 0;
                Ok(true)
            }
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => Ok(false),
        }
    }
    /// Writes what is there; true if something happened.
    fn drain(&mut self, context: &mut Context<'_>, sink: &mut (impl AsyncWrite + Unpin)) -> Result<bool> {
        if self.is_empty() {
            return Ok(false);
        }
        match Pin::new(sink).poll_write(context, &self.buffer[self.from..self.to]) {
            Poll::Ready(Ok(written)) => {
                self.from += written;
                Ok(written > 0)
            }
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => Ok(false),
        }
    }
    fn discard(&mut self) {
        self.from = self.to;
    }
}

/// The three streams of one command.
struct Pump {
    channel: AsyncChannel<SshStream>,
    up: Flow,
    down: Flow,
    ear: Vec<u8>,
    stdin: Option<DuplexStream>,
    stdout: Option<DuplexStream>,
    tail: Tail,
}

/// Carries everything until the command ends or the connection is lost.
pub(super) async fn run(
    session: AsyncSession<SshStream>,
    channel: AsyncChannel<SshStream>,
    stdin: DuplexStream,
    stdout: DuplexStream,
    tail: Tail,
) -> Ended {
    let mut pump = Pump {
        channel,
        up: Flow::new(),
        down: Flow::new(),
        ear: vec![0; BUFFER],
        stdin: Some(stdin),
        stdout: Some(stdout),
        tail,
    };
    let result = pump.carry().await;
    let ended = match result {
        Ok(()) => pump.farewell().await,
        Err(error) => Ended { code: None, status: format!("connection lost: {error}") },
    };
    // the reader sees its end only now, when everything before it has been handed over
    drop(pump);
    drop(session);
    ended
}

impl Pump {
    async fn carry(&mut self) -> Result<()> {
        let mut idle = 0;
        loop {
            let moved = {
                let look = poll_fn(|context| match self.step(context) {
                    Ok((false, false)) => Poll::Pending,
                    other => Poll::Ready(other),
                });
                tokio::time::timeout(FALLBACK[idle.min(1)], look).await
            };
            match moved {
                Ok(Ok((_, true))) => return Ok(()),
                Ok(Ok(_)) => idle = 0,
                Ok(Err(error)) => return Err(error),
                Err(_) => idle += 1,
            }
            if self.up.ended && self.up.is_empty() && self.stdin.is_some() {
                // not longer: reading may have to go on before there is room
                match tokio::time::timeout(ATTEMPT, self.channel.send_eof()).await {
                    Ok(Ok(())) => self.stdin = None,
                    Ok(Err(error)) => return Err(Error::other(said(&error))),
                    Err(_) => {}
                }
            }
            // a command that says much to nobody must not keep a thread to itself
            tokio::task::consume_budget().await;
        }
    }

    /// One round over all streams: whether anything moved, and whether all is over.
    fn step(&mut self, context: &mut Context<'_>) -> Result<(bool, bool)> {
        let mut moved = false;
        if let Some(stdin) = &mut self.stdin {
            moved |= self.up.fill(context, stdin)?;
            moved |= self.up.drain(context, &mut self.channel)?;
        }
        moved |= self.down.fill(context, &mut self.channel)?;
        let taken = match &mut self.stdout {
            Some(stdout) => self.down.drain(context, stdout),
            None => Ok(false),
        };
        match taken {
            Ok(taken) => moved |= taken,
            // nobody listens any more: the command must not hang on a full window for that
            Err(_) => self.stdout = None,
        }
        if self.stdout.is_none() && !self.down.is_empty() {
            self.down.discard();
            moved = true;
        }
        // what it said last explains a failure: stdout's end is not yet the end
        let heard = self.listen(context)?;
        Ok((moved | heard, self.down.ended && self.down.is_empty() && !heard))
    }

    /// Reads stderr, always: unread, it would stop stdout.
    fn listen(&mut self, context: &mut Context<'_>) -> Result<bool> {
        // as much as of stdout: libssh2 counts both against one window, and by what each read could have taken
        let mut space = ReadBuf::new(&mut self.ear);
        match Pin::new(&mut self.channel.stderr()).poll_read(context, &mut space) {
            Poll::Ready(Ok(())) => {
                let said = space.filled();
                self.tail.push(said);
                Ok(!said.is_empty())
            }
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => Ok(false),
        }
    }

    /// How the command ended. libssh2 says 0 before the status has come, after death by a signal and after a lost
    /// connection: only after the other side has closed the channel does its word count.
    async fn farewell(&mut self) -> Ended {
        let unknown = |why: String| Ended { code: None, status: why };
        // a packet that is half sent would have to be finished first, and nobody takes it any more: the other side closes by
        // itself once its command has ended
        let free = self.up.is_empty();
        let closed = async {
            if free {
                self.channel.close().await?;
            }
            self.channel.wait_close().await?;
            self.channel.exit_signal().await
        };
        match tokio::time::timeout(FAREWELL, closed).await {
            Ok(Ok(signal)) => match (signal.exit_signal, self.channel.exit_status()) {
                (Some(signal), _) => unknown(format!("killed by signal {signal}")),
                (None, Ok(code)) => Ended { code: Some(code), status: format!("exit status: {code}") },
                (None, Err(error)) => unknown(format!("ended, nobody knows how: {}", said(&error))),
            },
            Ok(Err(error)) => unknown(format!("connection lost: {}", said(&error))),
            Err(_) => unknown("ended, but the other side does not say how".to_owned()),
        }
    }
}
