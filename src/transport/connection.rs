//! The controller's end of the wire: greeting, calls and their answers, the image's stream, signs of life.
//!
//! One task owns the reading and one the writing, and neither is ever cancelled in the middle of a frame. A connection on
//! which anything went wrong is thrown away, never repaired.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use secrecy::ExposeSecret;
use secrecy::zeroize::Zeroizing;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, BufWriter};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};

use super::{Process, Prompt, Tail, Transport};
use crate::problem::{Explain, Kind, Outcome, Problem};
use crate::wire::frame::{self, Frame, FrameKind, WireError};
use crate::wire::message::{Down, Entry, Lack, Lanes, Reply, Role, Up, decode, encode};
use crate::wire::stripe::{self, Part};

/// How often we ask whether the agent is there.
const PING: Duration = Duration::from_secs(1);

/// How long a greeting may take.
const GREETING: Duration = Duration::from_secs(30);

/// A piece of the image's stream, or an answer to one.
#[derive(Debug, Clone)]
pub enum Piece {
    /// A folder, or a file's begin or end.
    Entry(Entry),
    /// A packed chunk.
    Chunk(Bytes),
    /// What a destination lacks of what it was asked for; goes to the source.
    Lack(Lack),
}

/// What an agent tells without being asked.
#[derive(Debug, Clone)]
pub enum Aside {
    /// A sign of life, whatever it was.
    Alive,
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
    pieces: tokio::sync::Mutex<mpsc::UnboundedReceiver<Piece>>,
    credit: Arc<Semaphore>,
    lost: watch::Receiver<Option<Problem>>,
    processes: Vec<Box<dyn Process>>,
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
    let meet = greet(&mut reader, &mut writer, role, pipe.prompt.as_ref(), &pipe.stderr);
    let (banner, round_trip) = match tokio::time::timeout(GREETING, meet).await {
        Ok(Ok(met)) => met,
        Ok(Err(error)) => {
            // whatever it still says, nobody listens
            drop((reader, writer));
            return Err(no_greeting(transport, error, pipe.process).await);
        }
        Err(_) => {
            let problem =
                Problem::new(Kind::Lost, format!("no greeting from the agent within {} s", GREETING.as_secs()));
            drop((reader, writer));
            pipe.process.end(true).await;
            let said = pipe.stderr.text();
            let problem = if said.is_empty() { problem } else { problem.cause(said) };
            return Err(if pipe.prompt.is_some() {
                problem
                    .hint("If sudo asks in its own words there (PAM), set `Defaults passprompt_override` in sudoers.")
            } else {
                problem
            });
        }
    };
    let sessions = transport.sessions(round_trip);
    let lanes = Lanes { more: sessions.saturating_sub(1), token: if sessions > 1 { token()? } else { 0 } };
    let told = async {
        frame::write(&mut writer, &encode(&lanes)?).await?;
        writer.flush().await.map_err(WireError::from)
    };
    told.await.map_err(|error| lost_on_the_way().because(error))?;
    if !banner.is_empty() {
        asides(Aside::Note(format!("skipped what was printed before the agent's greeting: {banner}")));
    }
    if lanes.more == 0 {
        return Ok(Connection::start(reader, writer, role, silence, asides, pipe.stderr, vec![pipe.process]));
    }
    let more = (0..lanes.more).map(|_| open_lane(transport, lanes.token));
    let more = futures_util::future::join_all(more).await.into_iter().collect::<Outcome<Vec<_>>>();
    let more = match more {
        Ok(more) => more,
        Err(problem) => {
            drop((reader, writer));
            pipe.process.end(true).await;
            return Err(problem.hint("Set `sessions = 1` in [ssh] to do without more sessions."));
        }
    };
    asides(Aside::Note(format!("{sessions} sessions: a round trip takes {:.1} ms", round_trip.as_secs_f64() * 1e3)));
    let mut parts = vec![Part { reader: Box::new(reader), writer: Box::new(writer) }];
    let mut processes = vec![pipe.process];
    for (part, process) in more {
        parts.push(part);
        processes.push(process);
    }
    let (reader, writer) = stripe::join(parts);
    Ok(Connection::start(
        BufReader::with_capacity(256 * 1024, reader),
        writer,
        role,
        silence,
        asides,
        pipe.stderr,
        processes,
    ))
}

/// What only this agent's lanes know.
fn token() -> Outcome<u128> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut bytes))
        .explain(|| "cannot read /dev/urandom")?;
    Ok(u128::from_le_bytes(bytes))
}

/// One more session.
async fn open_lane(transport: &dyn Transport, token: u128) -> Outcome<(Part, Box<dyn Process>)> {
    let mut pipe = transport.lane().await?;
    let meet = async {
        let prompt = pipe.prompt.as_ref();
        hear(&mut pipe.reader, &mut pipe.writer, prompt, &pipe.stderr).await?;
        frame::greet(&mut pipe.writer).await?;
        pipe.writer.write_u128_le(token).await?;
        pipe.writer.flush().await.map_err(WireError::from)
    };
    match tokio::time::timeout(GREETING, meet).await {
        Ok(Ok(())) => Ok((Part { reader: pipe.reader, writer: pipe.writer }, pipe.process)),
        Ok(Err(error)) => {
            drop((pipe.reader, pipe.writer));
            Err(no_greeting(transport, error, pipe.process).await)
        }
        Err(_) => {
            drop((pipe.reader, pipe.writer));
            pipe.process.end(true).await;
            Err(Problem::new(Kind::Lost, "no greeting over another session"))
        }
    }
}

async fn greet(
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    role: Role,
    prompt: Option<&Prompt>,
    stderr: &Tail,
) -> Result<(String, Duration), WireError> {
    let banner = hear(reader, writer, prompt, stderr).await?;
    let asked = Instant::now();
    frame::greet(writer).await?;
    let hello = frame::read(reader).await?;
    match decode::<Up>(&hello.payload)? {
        Up::Hello { role: theirs, .. } if theirs == role => Ok((banner, asked.elapsed())),
        _ => Err(WireError::Damaged("the agent does not have the role it was started in".into())),
    }
}

/// Waits for the greeting; answers what is asked before. What stood before it comes back.
async fn hear(
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    prompt: Option<&Prompt>,
    stderr: &Tail,
) -> Result<String, WireError> {
    // the agent speaks first: whatever stands between us and it (a shell, sudo) has then had its say
    let mut spoken = std::pin::pin!(frame::expect(reader));
    let mut news = stderr.watch();
    let mut answered = false;
    loop {
        let asked = prompt.map_or(0, |prompt| stderr.text().matches(&prompt.mark).count());
        match prompt {
            Some(prompt) if asked == 1 && !answered => {
                answered = true;
                answer(prompt, writer).await?;
            }
            Some(_) if asked > 1 => return Err(WireError::Damaged("the password was asked for again".into())),
            _ => {}
        }
        tokio::select! {
            banner = &mut spoken => return banner,
            _ = news.changed(), if prompt.is_some() => {}
        }
    }
}

/// Answers sudo's question: once, and to nobody else.
async fn answer(prompt: &Prompt, writer: &mut (impl AsyncWrite + Unpin)) -> Result<(), WireError> {
    let mut line = Zeroizing::new(String::with_capacity(prompt.answer.expose_secret().len() + 1));
    line.push_str(prompt.answer.expose_secret());
    line.push('\n');
    writer.write_all(line.as_bytes()).await?;
    writer.flush().await?;
    Ok(())
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
        processes: Vec<Box<dyn Process>>,
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
            pieces: tokio::sync::Mutex::new(pieces),
            credit,
            lost,
            processes,
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
            Piece::Lack(lack) => self.send(&Down::<()>::Lack(lack)).await,
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

    /// The next piece from the agent; None when the agent is lost. Nothing is lost when the future is dropped.
    pub async fn next_piece(&self) -> Option<Piece> {
        self.pieces.lock().await.recv().await
    }

    /// Says goodbye and waits until the agent has put back what it had begun and ended.
    pub async fn close(mut self) {
        self.stop_pings.notify_one();
        self.out = None;
        let silent = self.silent.load(Ordering::Relaxed);
        for process in std::mem::take(&mut self.processes) {
            process.end(silent).await;
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
        self.lost().unwrap_or_else(lost_on_the_way)
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
        (self.asides)(Aside::Alive);
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
                Up::Lack(lack) => {
                    let _ = self.pieces.send(Piece::Lack(lack));
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
    let mut problem = lost_on_the_way().because(error);
    let said = stderr.text();
    if !said.is_empty() {
        problem = problem.cause(format!("the agent said: {said}"));
    }
    give_up(&lost, problem, &incoming.answers, &incoming.credit);
}

fn lost_on_the_way() -> Problem {
    Problem::new(Kind::Lost, "the connection to the agent was lost").passing()
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
                Problem::new(Kind::Lost, format!("nothing was heard from the agent for {} s", quiet.as_secs()))
                    .passing();
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
