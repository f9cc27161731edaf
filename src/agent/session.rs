//! One conversation with a controller, as an operation sees it: notes and progress out, the image's stream in and out with
//! credit, and a flag that says that the controller is gone or wants to stop.
//!
//! Owns the tasks that read and write the wire; knows nothing of what the requests do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, BufWriter};
use tokio::sync::{Notify, Semaphore, mpsc};

use crate::problem::{Outcome, Problem};
use crate::wire::frame::{self, Frame, FrameKind, WireError};
use crate::wire::message::{Down, Entry, Lack, Lanes, Up, decode, encode};

/// Bytes of chunks that may be under way towards a destination agent.
pub const WINDOW: u64 = 16 * 1024 * 1024;

/// A controller that is there sends a sign of life every second, whatever it does. After a silence of this length it is gone: a
/// dead network tells an agent nothing, and one that went on waiting would keep the host's lock.
const SILENCE: Duration = Duration::from_secs(30);

/// How long a farewell may take to be written once the controller is gone.
const FAREWELL: Duration = Duration::from_secs(2);

/// A piece of the image's stream.
#[derive(Debug)]
pub enum Piece {
    /// A folder, or a file's begin or end.
    Entry(Entry),
    /// A packed chunk.
    Chunk(Bytes),
}

/// What operations hold of the session; cheap to clone.
#[derive(Clone)]
pub struct Session {
    out: mpsc::Sender<Frame>,
    gone: Arc<AtomicBool>,
    gone_notify: Arc<Notify>,
    credit: Arc<Semaphore>,
    /// Counts every sign of life of the controller and every chunk: what keeps a guard from firing.
    pub pulse: Arc<AtomicU64>,
}

/// What the dispatcher takes from the wire.
pub struct Inbox<Q> {
    /// Requests, in order.
    pub calls: mpsc::Receiver<(u32, Q)>,
    /// The image's stream; bounded by the credit that this side has given.
    pub pieces: mpsc::UnboundedReceiver<Piece>,
    /// To a source: answers to what it has asked, in order; bounded by its questions.
    pub lacks: mpsc::UnboundedReceiver<Lack>,
}

impl Session {
    /// Starts the tasks that read and write.
    pub fn start<Q: DeserializeOwned + Send + 'static>(
        reader: impl AsyncRead + Unpin + Send + 'static,
        writer: impl AsyncWrite + Unpin + Send + 'static,
    ) -> (Self, Inbox<Q>) {
        let (out, frames) = mpsc::channel(8);
        let (call_tx, calls) = mpsc::channel(16);
        let (piece_tx, pieces) = mpsc::unbounded_channel();
        let (lack_tx, lacks) = mpsc::unbounded_channel();
        let session = Self {
            out,
            gone: Arc::default(),
            gone_notify: Arc::default(),
            credit: Arc::new(Semaphore::new(0)),
            pulse: Arc::default(),
        };
        let heard = Arc::new(AtomicU64::new(0));
        tokio::spawn(write_all(writer, frames, session.clone()));
        tokio::spawn(leave_after_silence(session.clone(), heard.clone()));
        tokio::spawn(read_all(
            reader,
            session.clone(),
            heard,
            Incoming { calls: call_tx, pieces: piece_tx, lacks: lack_tx },
        ));
        (session, Inbox { calls, pieces, lacks })
    }

    /// The controller is gone; what is under way should end.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// Marks the controller as gone.
    pub fn leave(&self) {
        self.gone.store(true, Ordering::Relaxed);
        self.credit.close();
        self.gone_notify.notify_waiters();
        self.gone_notify.notify_one();
    }

    /// Resolves once the controller is gone.
    pub async fn gone(&self) {
        while !self.is_gone() {
            self.gone_notify.notified().await;
        }
        self.gone_notify.notify_one();
    }

    /// An error when the controller is gone.
    pub fn check(&self) -> Outcome<()> {
        if self.is_gone() { Err(lost()) } else { Ok(()) }
    }

    /// Sends a message.
    pub async fn send(&self, message: &Up) -> Outcome<()> {
        let frame = encode(message).map_err(|e| Problem::failed("cannot send a message").because(e))?;
        self.out.send(frame).await.map_err(|_| lost())
    }

    /// A line for the log. Lost when the controller is.
    pub async fn note(&self, text: impl Into<String>) {
        let _ = self.send(&Up::Note(text.into())).await;
    }

    /// Something that a careful person should look at. Lost when the controller is.
    pub async fn warn(&self, text: impl Into<String>) {
        let _ = self.send(&Up::Warning(text.into())).await;
    }

    /// How far a long request is.
    pub async fn progress(&self, done: u64, total: u64, what: &str) {
        let _ = self.send(&Up::Progress { done, total, what: what.into() }).await;
    }

    /// Sends an entry, from a blocking thread.
    pub fn send_entry_blocking(&self, entry: Entry) -> Outcome<()> {
        self.send_blocking(&Up::Entry(entry))
    }

    /// Sends a chunk once the receivers have room for it, from a blocking thread.
    pub fn send_chunk_blocking(&self, runtime: &tokio::runtime::Handle, chunk: Bytes) -> Outcome<()> {
        let size = chunk.len() as u32;
        runtime.block_on(self.credit.acquire_many(size)).map_err(|_| lost())?.forget();
        self.pulse.fetch_add(1, Ordering::Relaxed);
        self.out.blocking_send(Frame { kind: FrameKind::Chunk, payload: chunk }).map_err(|_| lost())
    }

    /// Gives the controller room for more chunks, from a blocking thread.
    pub fn grant_blocking(&self, bytes: u64) -> Outcome<()> {
        self.send_blocking(&Up::Credit(bytes))
    }

    /// Says what is lacking of what was asked for, from a blocking thread.
    pub fn lack_blocking(&self, lack: Lack) -> Outcome<()> {
        self.send_blocking(&Up::Lack(lack))
    }

    /// How far a long request is, from a blocking thread.
    pub fn progress_blocking(&self, done: u64, total: u64, what: &str) {
        let _ = self.send_blocking(&Up::Progress { done, total, what: what.into() });
    }

    fn send_blocking(&self, message: &Up) -> Outcome<()> {
        let frame = encode(message).map_err(|e| Problem::failed("cannot send a message").because(e))?;
        self.out.blocking_send(frame).map_err(|_| lost())
    }
}

fn lost() -> Problem {
    Problem::new(crate::problem::Kind::Lost, "the controller is gone")
}

async fn write_all(writer: impl AsyncWrite + Unpin, mut frames: mpsc::Receiver<Frame>, session: Session) {
    let mut writer = BufWriter::with_capacity(256 * 1024, writer);
    while let Some(frame) = frames.recv().await {
        let written = async {
            frame::write(&mut writer, &frame).await?;
            // flushed when nothing waits: answers are not delayed, streams are not cut into small writes
            if frames.is_empty() { writer.flush().await.map_err(WireError::from) } else { Ok(()) }
        };
        let too_late = async {
            session.gone().await;
            tokio::time::sleep(FAREWELL).await;
        };
        let done = tokio::select! {
            written = written => written.is_ok(),
            // nobody takes it any more; whoever waits for room to send must not wait for ever
            () = too_late => false,
        };
        if !done {
            session.leave();
            return;
        }
    }
}

async fn leave_after_silence(session: Session, heard: Arc<AtomicU64>) {
    let (mut last, mut since) = (heard.load(Ordering::Relaxed), Instant::now());
    while !session.is_gone() {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = heard.load(Ordering::Relaxed);
        if now != last {
            (last, since) = (now, Instant::now());
        } else if since.elapsed() >= SILENCE {
            session.leave();
        }
    }
}

/// Where what is read goes.
struct Incoming<Q> {
    calls: mpsc::Sender<(u32, Q)>,
    pieces: mpsc::UnboundedSender<Piece>,
    lacks: mpsc::UnboundedSender<Lack>,
}

async fn read_all<Q: DeserializeOwned + Send + 'static>(
    reader: impl AsyncRead + Unpin,
    session: Session,
    heard: Arc<AtomicU64>,
    incoming: Incoming<Q>,
) {
    let Incoming { calls, pieces, lacks } = incoming;
    let mut reader = BufReader::with_capacity(256 * 1024, reader);
    loop {
        let read = tokio::select! {
            read = frame::read(&mut reader) => read,
            // a dead network never ends a read, and whoever waits for the stream's next piece would wait with it
            () = session.gone() => break,
        };
        let Ok(frame) = read else { break };
        session.pulse.fetch_add(1, Ordering::Relaxed);
        heard.fetch_add(1, Ordering::Relaxed);
        let taken = match frame.kind {
            FrameKind::Ping => session.out.send(Frame::empty(FrameKind::Pong)).await.is_ok(),
            FrameKind::Pong => true,
            FrameKind::Chunk => {
                // nobody may be receiving any more: an operation that failed reads no further
                let _ = pieces.send(Piece::Chunk(frame.payload));
                true
            }
            FrameKind::Message => match decode::<Down<Q>>(&frame.payload) {
                Ok(Down::Call { id, request }) => calls.send((id, request)).await.is_ok(),
                Ok(Down::Entry(entry)) => {
                    let _ = pieces.send(Piece::Entry(entry));
                    true
                }
                Ok(Down::Credit(bytes)) => {
                    let room = Semaphore::MAX_PERMITS - session.credit.available_permits();
                    session.credit.add_permits((bytes as usize).min(room));
                    true
                }
                Ok(Down::Lack(lack)) => {
                    let _ = lacks.send(lack);
                    true
                }
                Err(_) => false,
            },
        };
        if !taken {
            break;
        }
    }
    session.leave();
}

/// Greets the controller; it tells how many sessions there will be. The hello follows the controller's greeting, so that the
/// controller learns how long a round trip takes.
pub async fn greet(
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    hello: &impl Serialize,
) -> Result<Lanes, WireError> {
    frame::greet(writer).await?;
    frame::expect(reader).await?;
    frame::write(writer, &encode(hello)?).await?;
    writer.flush().await?;
    decode(&frame::read(reader).await?.payload)
}

/// Runs blocking work off the runtime's threads.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Outcome<T> + Send + 'static) -> Outcome<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Problem::failed("work on this host failed").because(error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::message::DestinationRequest;

    #[tokio::test]
    async fn whoever_waits_for_the_stream_hears_that_the_controller_is_gone() {
        let (controller, agent) = tokio::io::duplex(1024);
        let (reader, writer) = tokio::io::split(agent);
        let (session, mut inbox) = Session::start::<DestinationRequest>(reader, writer);
        session.leave();
        let next = tokio::time::timeout(Duration::from_secs(10), inbox.pieces.recv()).await;
        assert!(next.expect("it waits for ever").is_none());
        // the line itself is as it was all the time: open, and silent
        drop(controller);
    }
}
