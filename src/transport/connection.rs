//! The controller's end of the wire: greeting, calls and their answers, the image's stream, signs of life.
//!
//! One task owns the reading and one the writing, and neither is ever cancelled in the middle of a frame. A connection on
//! which anything went wrong is thrown away, never repaired.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, BufWriter};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};

use super::{Process, Tail, Transport};
use crate::problem::{Kind, Outcome, Problem};
use crate::wire::frame::{self, Frame, FrameKind, WireError};
use crate::wire::message::{Down, Entry, Reply, Role, Up, decode, encode};

/// How often we ask whether the agent is there.
const PING: Duration = Duration::from_secs(1);

/// How long a greeting may take.
const GREETING: Duration = Duration::from_secs(30);

/// A piece of the image's stream.
#[derive(Debug, Clone)]
pub enum Piece {
    /// A folder, or a file's begin or end.
    Entry(Entry),
    /// A packed chunk.
    Chunk(Bytes),
}

/// What an agent tells without being asked.
#[derive(Debug, Clone)]
pub enum Aside {
    /// A line for the log.
    Note(String),
    /// Something that a careful person should look at.
    Warning(String),
    /// How far it is.
    Progress {
        /// Done.
        done: u64,
        /// In all, or 0.
        total: u64,
        /// Of what.
        what: String,
    },
}

type Answers = Arc<Mutex<HashMap<u32, oneshot::Sender<Outcome<Reply>>>>>;

/// One agent.
pub struct Connection {
    role: Role,
    out: Option<mpsc::Sender<Frame>>,
    answers: Answers,
    next: AtomicU32,
    pieces: Option<mpsc::UnboundedReceiver<Piece>>,
    credit: Arc<Semaphore>,
    lost: watch::Receiver<Option<Problem>>,
    process: Option<Box<dyn Process>>,
    stop_pings: Arc<Notify>,
    silent: Arc<AtomicBool>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // the task holds the way out open: the agent would never see the end
        self.stop_pings.notify_one();
    }
}

/// Opens an agent and greets it. `asides` takes what it tells unasked; silence for longer than `silence` means it is lost.
pub async fn open(
    transport: &dyn Transport,
    role: Role,
    silence: Duration,
    asides: impl Fn(Aside) + Send + 'static,
) -> Outcome<Connection> {
    let pipe = transport.open(role).await?;
    let mut reader = BufReader::with_capacity(256 * 1024, pipe.reader);
    let mut writer = pipe.writer;
    let banner = match tokio::time::timeout(GREETING, greet(&mut reader, &mut writer, role)).await {
        Ok(Ok(banner)) => banner,
        Ok(Err(error)) => {
            drop(writer);
            return Err(no_greeting(transport, error, pipe.process).await);
        }
        Err(_) => {
            return Err(Problem::new(
                Kind::Lost,
                format!("no greeting from the agent within {} s", GREETING.as_secs()),
            )
            .cause(pipe.stderr.text()));
        }
    };
    if !banner.is_empty() {
        asides(Aside::Note(format!("skipped what was printed before the agent's greeting: {banner}")));
    }
    Ok(Connection::start(reader, writer, role, silence, asides, pipe.stderr, pipe.process))
}

async fn greet(
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    role: Role,
) -> Result<String, WireError> {
    frame::greet(writer).await?;
    let banner = frame::expect(reader).await?;
    let hello = frame::read(reader).await?;
    match decode::<Up>(&hello.payload)? {
        Up::Hello { role: theirs, .. } if theirs == role => Ok(banner),
        _ => Err(WireError::Damaged("the agent does not have the role it was started in".into())),
    }
}

async fn no_greeting(transport: &dyn Transport, error: WireError, process: Box<dyn Process>) -> Problem {
    match error {
        WireError::Version { .. } => Problem::refused(error.to_string())
            .hint("Install the same version of mysql-refreshd on the controller and on the host."),
        _ => {
            let mut end = process.end(false).await;
            if end.stderr.is_empty() {
                end.stderr = error.to_string();
            }
            transport.explain(&end)
        }
    }
}

impl Connection {
    fn start(
        reader: impl AsyncRead + Unpin + Send + 'static,
        writer: impl AsyncWrite + Unpin + Send + 'static,
        role: Role,
        silence: Duration,
        asides: impl Fn(Aside) + Send + 'static,
        stderr: Tail,
        process: Box<dyn Process>,
    ) -> Self {
        let (out, frames) = mpsc::channel(8);
        let (piece_tx, pieces) = mpsc::unbounded_channel();
        let (lost_tx, lost) = watch::channel(None);
        let answers = Answers::default();
        let credit = Arc::new(Semaphore::new(0));
        let stop_pings = Arc::new(Notify::new());
        let heard = Arc::new(Mutex::new(Instant::now()));
        let incoming = Incoming {
            answers: answers.clone(),
            credit: credit.clone(),
            pieces: piece_tx,
            heard: heard.clone(),
            asides: Box::new(asides),
        };
        let lost_tx = Arc::new(lost_tx);
        tokio::spawn(write_all(writer, frames));
        tokio::spawn(read_all(reader, incoming, lost_tx.clone(), stderr));
        let silent = Arc::new(AtomicBool::new(false));
        let watch = Watch {
            heard,
            silence,
            lost: lost_tx,
            stop: stop_pings.clone(),
            silent: silent.clone(),
            answers: answers.clone(),
            credit: credit.clone(),
        };
        tokio::spawn(ping(out.clone(), watch));
        Self {
            role,
            out: Some(out),
            answers,
            next: AtomicU32::new(0),
            pieces: Some(pieces),
            credit,
            lost,
            process: Some(process),
            stop_pings,
            silent,
        }
    }

    /// The agent's role.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Why the agent is lost, if it is.
    pub fn lost(&self) -> Option<Problem> {
        self.lost.borrow().clone()
    }

    /// Sends a request and waits for its answer. Dropping the future abandons the answer, not the request.
    pub async fn call<Q: Serialize>(&self, request: Q) -> Outcome<Reply> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (tell, told) = oneshot::channel();
        lock(&self.answers).insert(id, tell);
        if let Some(problem) = self.lost() {
            return Err(problem);
        }
        self.send(&Down::Call { id, request }).await?;
        match told.await {
            Ok(answer) => answer,
            Err(_) => Err(self.why_lost()),
        }
    }

    /// Sends a piece of the image; a chunk waits until the agent has room for it.
    pub async fn send_piece(&self, piece: Piece) -> Outcome<()> {
        match piece {
            Piece::Entry(entry) => self.send(&Down::<()>::Entry(entry)).await,
            Piece::Chunk(payload) => {
                let permits = self.credit.acquire_many(payload.len() as u32).await;
                permits.map_err(|_| self.why_lost())?.forget();
                self.out()?.send(Frame { kind: FrameKind::Chunk, payload }).await.map_err(|_| self.why_lost())
            }
        }
    }

    /// Gives the agent room for more chunks.
    pub async fn grant(&self, bytes: u64) -> Outcome<()> {
        self.send(&Down::<()>::Credit(bytes)).await
    }

    /// The image's stream from the agent; can be taken once. Ends when the agent is lost.
    pub fn take_pieces(&mut self) -> Option<mpsc::UnboundedReceiver<Piece>> {
        self.pieces.take()
    }

    /// Says goodbye and waits until the agent has put back what it had begun and ended.
    pub async fn close(mut self) {
        self.stop_pings.notify_one();
        self.out = None;
        if let Some(process) = self.process.take() {
            process.end(self.silent.load(Ordering::Relaxed)).await;
        }
    }

    fn out(&self) -> Outcome<&mpsc::Sender<Frame>> {
        self.out.as_ref().ok_or_else(|| Problem::new(Kind::Lost, "the connection was closed"))
    }

    async fn send<T: Serialize>(&self, message: &T) -> Outcome<()> {
        let frame = encode(message).map_err(|e| Problem::failed("cannot send a message").because(e))?;
        self.out()?.send(frame).await.map_err(|_| self.why_lost())
    }

    fn why_lost(&self) -> Problem {
        self.lost().unwrap_or_else(|| Problem::new(Kind::Lost, "the connection to the agent was lost"))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Incoming {
    answers: Answers,
    credit: Arc<Semaphore>,
    pieces: mpsc::UnboundedSender<Piece>,
    heard: Arc<Mutex<Instant>>,
    asides: Box<dyn Fn(Aside) + Send>,
}

impl Incoming {
    fn take(&self, frame: Frame) -> Result<(), WireError> {
        *lock(&self.heard) = Instant::now();
        match frame.kind {
            FrameKind::Ping | FrameKind::Pong => {}
            FrameKind::Chunk => {
                let _ = self.pieces.send(Piece::Chunk(frame.payload));
            }
            FrameKind::Message => match decode::<Up>(&frame.payload)? {
                Up::Reply { id, result } => {
                    if let Some(tell) = lock(&self.answers).remove(&id) {
                        let _ = tell.send(result);
                    }
                }
                Up::Note(text) => (self.asides)(Aside::Note(text)),
                Up::Warning(text) => (self.asides)(Aside::Warning(text)),
                Up::Progress { done, total, what } => (self.asides)(Aside::Progress { done, total, what }),
                Up::Entry(entry) => {
                    let _ = self.pieces.send(Piece::Entry(entry));
                }
                Up::Credit(bytes) => {
                    let room = Semaphore::MAX_PERMITS - self.credit.available_permits();
                    self.credit.add_permits((bytes as usize).min(room));
                }
                Up::Hello { .. } => return Err(WireError::Damaged("a second greeting".into())),
            },
        }
        Ok(())
    }
}

async fn read_all(
    mut reader: impl AsyncRead + Unpin,
    incoming: Incoming,
    lost: Arc<watch::Sender<Option<Problem>>>,
    stderr: Tail,
) {
    let error = loop {
        match frame::read(&mut reader).await {
            Ok(frame) => {
                if let Err(error) = incoming.take(frame) {
                    break error;
                }
            }
            Err(error) => break error,
        }
    };
    // what it said last explains the end better than the end itself; give it a moment to arrive
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut problem = Problem::new(Kind::Lost, "the connection to the agent was lost").because(error);
    let said = stderr.text();
    if !said.is_empty() {
        problem = problem.cause(format!("the agent said: {said}"));
    }
    give_up(&lost, problem, &incoming.answers, &incoming.credit);
}

fn give_up(lost: &watch::Sender<Option<Problem>>, problem: Problem, answers: &Answers, credit: &Semaphore) {
    lost.send_if_modified(|now| {
        let first = now.is_none();
        now.get_or_insert(problem);
        first
    });
    lock(answers).clear();
    credit.close();
}

async fn write_all(writer: impl AsyncWrite + Unpin, mut frames: mpsc::Receiver<Frame>) {
    let mut writer = BufWriter::with_capacity(256 * 1024, writer);
    while let Some(frame) = frames.recv().await {
        if frame::write(&mut writer, &frame).await.is_err() || (frames.is_empty() && writer.flush().await.is_err()) {
            // the reader sees the end of the connection and says why
            return;
        }
    }
    let _ = writer.shutdown().await;
}

/// What tells whether an agent is alive, and whom to tell when it is not.
struct Watch {
    heard: Arc<Mutex<Instant>>,
    silence: Duration,
    lost: Arc<watch::Sender<Option<Problem>>>,
    stop: Arc<Notify>,
    silent: Arc<AtomicBool>,
    answers: Answers,
    credit: Arc<Semaphore>,
}

/// Asks for signs of life, and gives the agent up after too long a silence.
async fn ping(out: mpsc::Sender<Frame>, watch: Watch) {
    loop {
        tokio::select! {
            () = watch.stop.notified() => return,
            () = tokio::time::sleep(PING) => {}
        }
        let quiet = lock(&watch.heard).elapsed();
        if quiet > watch.silence {
            let problem =
                Problem::new(Kind::Lost, format!("nothing was heard from the agent for {} s", quiet.as_secs()));
            watch.silent.store(true, Ordering::Relaxed);
            give_up(&watch.lost, problem, &watch.answers, &watch.credit);
            return;
        }
        // a full queue means that frames are under way: no need for another
        if let Err(mpsc::error::TrySendError::Closed(_)) = out.try_send(Frame::empty(FrameKind::Ping)) {
            return;
        }
    }
}
