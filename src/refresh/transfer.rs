//! One read of the source, sent to every destination. The source gets room for more only when all destinations that still
//! take part have taken a chunk, so memory stays flat; one that fails or stalls is left out and never holds up the rest. What the
//! source asks goes to all destinations, and it hears what any of them lacks.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::hosts::{Destination, Hosts};
use crate::delta::BLOCK;
use crate::delta::hash::{Hash, Totals};
use crate::delta::pack::raw_len;
use crate::host::{DestinationHost, SourceHost};
use crate::problem::{Outcome, Problem};
use crate::report::{Event, Reporter};
use crate::run::Cancel;
use crate::transport::connection::Piece;
use crate::wire::message::{Entry, Lack, Passed, ReceiveOptions, StreamOptions};

/// Bytes of chunks that may be under way from the source.
const WINDOW: u64 = 8 * 1024 * 1024;

/// How often progress is told.
const TELL: Duration = Duration::from_millis(200);

/// How long a destination may take to prove what it has received last, where no outage depends on it: with `proof = "disk"` one large
/// file may still have to be written out.
const PROOF: Duration = Duration::from_secs(15 * 60);

/// How often it is looked whether an answer is overdue.
const LOOK: Duration = Duration::from_secs(1);

/// What one pass moved.
#[derive(Debug, Clone, Copy)]
pub struct Moved {
    /// The source's work.
    pub passed: Passed,
    /// Bytes that went over the wire from the source.
    pub sent: u64,
    /// After a cold pass: how much the image holds, and the source's proof; every destination that still takes part has found
    /// the same.
    pub image: Option<(Totals, Hash)>,
}

/// How to copy.
pub struct Options {
    /// For the source.
    pub stream: StreamOptions,
    /// For the destinations.
    pub receive: ReceiveOptions,
    /// The first pass over these connections: the source needs room to send.
    pub first: bool,
    /// Bytes the image will have, for progress.
    pub expected: u64,
    /// One failed destination ends the copy.
    pub abort: bool,
    /// When the source must be started again; None: it is not down.
    pub deadline: Option<Instant>,
    /// How long one destination may hold up all others.
    pub stall: Duration,
}

/// What a destination says at the end of a pass.
type Proof = Option<(Totals, Hash)>;

/// One destination's part in the stream.
struct Lane<'a> {
    host: &'a DestinationHost,
    /// Its proof, or why it takes no further part.
    end: RefCell<Option<Outcome<Proof>>>,
    /// Wished when it takes no further part.
    out: Cancel,
}

/// Questions that not all have answered: file, offset, and number of blocks.
type Asked = RefCell<VecDeque<(u32, u64, usize)>>;

impl Lane<'_> {
    fn fail(&self, problem: Problem, report: &Reporter) {
        let mut end = self.end.borrow_mut();
        if end.is_none() {
            report.warn(self.host.0.name(), format!("takes no further part: {problem}"));
            *end = Some(Err(problem));
        }
        self.out.cancel();
    }

    fn fail_if_open(&self, report: &Reporter) {
        if self.end.borrow().is_none() {
            self.fail(Problem::failed("its proof came too late for `max_outage`"), report);
        }
    }

    fn problem(&self) -> Option<Problem> {
        self.end.borrow().as_ref().and_then(|end| end.as_ref().err().cloned())
    }
}

/// Streams one pass. Destinations prove each file as it lands; their answers are awaited here, too, so that the proof is
/// complete before the source is started. After an error the connections must be closed.
pub async fn copy(hosts: &mut Hosts, options: Options, report: &Reporter, cancel: &Cancel) -> Outcome<Moved> {
    let (source, destinations) = (hosts.source.as_mut(), &mut hosts.destinations);
    let source = source.ok_or_else(|| Problem::failed("this run has no source"))?;
    let mut live: Vec<&mut Destination> = destinations.iter_mut().filter(|d| d.failed.is_none()).collect();
    let lanes: Vec<Lane<'_>> =
        live.iter().map(|d| Lane { host: &d.host, end: RefCell::default(), out: Cancel::default() }).collect();
    let too_late = async {
        match options.deadline {
            Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
            None => std::future::pending().await,
        }
    };
    let result = tokio::select! {
        result = stream(source, &lanes, &options, report) => result,
        () = cancel.cancelled() => Err(Problem::cancelled()),
        () = too_late => Err(Problem::failed(
            "the copy would have kept the source down for longer than `max_outage`"
        ).hint("Raise `max_outage`, or make the copy faster.")),
    };
    let ends: Vec<_> = lanes.into_iter().map(|lane| lane.end.into_inner()).collect();
    for (destination, end) in live.iter_mut().zip(ends) {
        let same = |proof: &Proof| result.as_ref().is_ok_and(|moved| moved.image == *proof);
        destination.failed = match end {
            Some(Err(problem)) => Some(problem),
            Some(Ok(proof)) if result.is_ok() && !same(&proof) => {
                Some(Problem::failed("the stage is not the image that the source sent"))
            }
            _ => None,
        };
    }
    result
}

/// The source's stream into all lanes, until every lane has its end.
async fn stream(source: &SourceHost, lanes: &[Lane<'_>], options: &Options, report: &Reporter) -> Outcome<Moved> {
    let receive = join_all(lanes.iter().map(async |lane| {
        tokio::select! {
            end = lane.host.receive(options.receive) => match end {
                Ok(proof) => *lane.end.borrow_mut() = Some(Ok(proof)),
                Err(problem) => lane.fail(problem, report),
            },
            () = lane.out.cancelled() => {}
        }
    }));
    let asked = Asked::default();
    let send = async {
        if options.first {
            source.connection()?.grant(WINDOW).await?;
        }
        let pump = pump(source, lanes, options, report, &asked);
        // what the source says comes first: when it fails, nobody else will ever finish
        tokio::try_join!(source.stream(options.stream.clone()), pump)
    };
    let relay = relay(source, lanes, options, report, &asked);
    let (mut receive, mut send, mut relay) = (std::pin::pin!(receive), std::pin::pin!(send), std::pin::pin!(relay));
    let mut received = false;
    let ((passed, image), sent) = loop {
        tokio::select! {
            sent = &mut send => break sent?,
            _ = &mut receive, if !received => {
                received = true;
                // a source that waits for answers sends nothing by which it would show
                if let Some(problem) = judge(lanes, options.abort) {
                    return Err(problem);
                }
            }
            problem = &mut relay => return Err(problem),
        }
    };
    // proofs of the last files may take their time, but not the other destinations' success with them
    if lanes.iter().any(|lane| lane.end.borrow().is_none()) {
        match options.deadline {
            None => {
                if tokio::time::timeout(PROOF, receive).await.is_err() {
                    let late = || Problem::failed(format!("its proof did not come within {} s", PROOF.as_secs()));
                    lanes.iter().filter(|lane| lane.end.borrow().is_none()).for_each(|lane| lane.fail(late(), report));
                }
            }
            Some(deadline) => {
                let late = deadline.checked_sub(Duration::from_millis(500)).unwrap_or(deadline);
                if tokio::time::timeout_at(late.into(), receive).await.is_err() {
                    lanes.iter().for_each(|lane| lane.fail_if_open(report));
                }
            }
        }
    }
    match judge(lanes, options.abort) {
        Some(problem) => Err(problem),
        None => Ok(Moved { passed, sent, image }),
    }
}

/// Why the copy cannot go on, if it cannot.
fn judge(lanes: &[Lane<'_>], abort: bool) -> Option<Problem> {
    let first = lanes.iter().find_map(Lane::problem)?;
    (abort || lanes.iter().all(|lane| lane.problem().is_some())).then_some(first)
}

/// Hands every piece to every lane that still takes part.
async fn pump(
    source: &SourceHost,
    lanes: &[Lane<'_>],
    options: &Options,
    report: &Reporter,
    asked: &Asked,
) -> Outcome<u64> {
    let (mut sent, mut done, mut told) = (0u64, 0u64, Instant::now());
    let connection = source.connection()?;
    while let Some(piece) = connection.next_piece().await {
        if let Piece::Entry(Entry::Ask { number, offset, hashes }) = &piece {
            asked.borrow_mut().push_back((*number, *offset, hashes.len()));
        }
        for lane in lanes.iter().filter(|lane| !lane.out.is_cancelled()) {
            tokio::select! {
                // a failure to send shows as the failure of what it receives
                _ = async { lane.host.connection()?.send_piece(piece.clone()).await } => {}
                () = lane.out.cancelled() => {}
                () = tokio::time::sleep(options.stall) => {
                    let s = options.stall.as_secs();
                    lane.fail(Problem::failed(format!("it took nothing for {s} s and held up the copy")), report);
                }
            }
        }
        if let Some(problem) = judge(lanes, options.abort) {
            return Err(problem);
        }
        match piece {
            Piece::Chunk(bytes) => {
                sent += bytes.len() as u64;
                done += if options.stream.ask { 0 } else { raw_len(&bytes) };
                connection.grant(bytes.len() as u64).await?;
            }
            Piece::Entry(Entry::Ask { hashes, .. }) => {
                sent += size_of_val(hashes.as_slice()) as u64;
                done += (hashes.len() * BLOCK) as u64;
            }
            Piece::Entry(Entry::Same { len, .. }) => done += len,
            Piece::Entry(Entry::PassEnd) => return Ok(sent),
            Piece::Entry(Entry::End { totals, .. }) => {
                report.tell(Event::Progress { done: totals.bytes, total: totals.bytes, what: "bytes".into() });
                return Ok(sent);
            }
            Piece::Entry(_) => {}
            Piece::Lack(_) => return Err(Problem::failed("the source answered a question that nobody had asked")),
        }
        if told.elapsed() >= TELL {
            report.tell(Event::Progress { done, total: options.expected.max(done), what: "bytes".into() });
            told = Instant::now();
        }
    }
    Err(Problem::failed("the image's stream ended early"))
}

/// Tells the source what any destination lacks, question by question. Ends only with a problem.
async fn relay(
    source: &SourceHost,
    lanes: &[Lane<'_>],
    options: &Options,
    report: &Reporter,
    asked: &Asked,
) -> Problem {
    loop {
        let answers = join_all(lanes.iter().map(|lane| answer(lane, options, report, asked))).await;
        asked.borrow_mut().pop_front();
        let together = answers.into_iter().flatten().reduce(|one, other| one.or(&other));
        let Some(lack) = together else {
            // whoever judges the lanes says why
            return std::future::pending().await;
        };
        let told = async { source.connection()?.send_piece(Piece::Lack(lack)).await };
        if let Err(problem) = told.await {
            return problem;
        }
    }
}

/// A lane's next answer; None: it takes no further part.
async fn answer(lane: &Lane<'_>, options: &Options, report: &Reporter, asked: &Asked) -> Option<Lack> {
    let connection = lane.host.connection().ok()?;
    let mut owed_since = None;
    while !lane.out.is_cancelled() {
        tokio::select! {
            piece = connection.next_piece() => match piece {
                Some(Piece::Lack(lack)) => {
                    let fits = asked.borrow().front().is_some_and(|(number, offset, blocks)| {
                        (lack.number, lack.offset) == (*number, *offset)
                            && lack.pages.len() == lack.blocks.count_ones() as usize
                            && u32::from(lack.blocks).checked_shr(*blocks as u32).unwrap_or(0) == 0
                    });
                    if fits {
                        return Some(lack);
                    }
                    lane.fail(Problem::failed("its answer does not fit what it was asked"), report);
                }
                Some(_) => lane.fail(Problem::failed("it sent a piece of an image"), report),
                // its end, or its loss, is told where its proof is awaited
                None => lane.out.cancelled().await,
            },
            () = lane.out.cancelled() => {}
            () = tokio::time::sleep(LOOK) => {
                let owes = !asked.borrow().is_empty();
                let since = *owed_since.get_or_insert_with(Instant::now);
                if !owes {
                    owed_since = None;
                } else if since.elapsed() > options.stall {
                    let s = options.stall.as_secs();
                    lane.fail(Problem::failed(format!("it answered nothing for {s} s and held up the copy")), report);
                }
            }
        }
    }
    None
}
