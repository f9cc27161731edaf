//! One read of the source, sent to every destination. The source gets room for more only when all destinations that still
//! take part have taken a chunk, so memory stays flat; one that fails or stalls is left out and never holds up the rest.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::sync::mpsc::UnboundedReceiver;

use super::hosts::{Destination, Hosts};
use crate::delta::hash::{Hash, Totals};
use crate::delta::pack::raw_len;
use crate::host::{DestinationHost, SourceHost};
use crate::problem::{Outcome, Problem};
use crate::report::{Event, Reporter};
use crate::run::Cancel;
use crate::transport::connection::Piece;
use crate::wire::message::{Entry, StreamOptions};

/// Bytes of chunks that may be under way from the source.
const WINDOW: u64 = 8 * 1024 * 1024;

/// How often progress is told.
const TELL: Duration = Duration::from_millis(200);

/// The image as the source sent it.
#[derive(Debug, Clone, Copy)]
pub struct Copied {
    /// How much.
    pub totals: Totals,
    /// The source's proof; every destination that still takes part has found the same.
    pub image: Hash,
    /// Bytes that went over the wire from the source.
    pub sent: u64,
}

/// How to copy.
pub struct Options {
    /// For the source.
    pub stream: StreamOptions,
    /// Destinations read back past the page cache.
    pub from_disk: bool,
    /// Bytes the image will have, for progress.
    pub expected: u64,
    /// One failed destination ends the copy.
    pub abort: bool,
    /// When the source must be started again.
    pub deadline: Instant,
    /// How long one destination may hold up all others.
    pub stall: Duration,
}

/// One destination's part in the stream.
struct Lane<'a> {
    host: &'a DestinationHost,
    /// Its proof, or why it takes no further part.
    end: RefCell<Option<Outcome<(Totals, Hash)>>>,
    /// Wished when it takes no further part.
    out: Cancel,
}

impl Lane<'_> {
    fn fail(&self, problem: Problem, report: &Reporter) {
        let mut end = self.end.borrow_mut();
        if end.is_none() {
            report.warn(self.host.0.name(), format!("takes no further part: {problem}"));
            *end = Some(Err(problem));
        }
        self.out.cancel();
    }

    fn problem(&self) -> Option<Problem> {
        self.end.borrow().as_ref().and_then(|end| end.as_ref().err().cloned())
    }
}

/// Streams the image. Destinations prove each file as it lands; their answers are awaited here, too, so that the proof is
/// complete before the source is started. After an error the connections must be closed.
pub async fn copy(hosts: &mut Hosts, options: Options, report: &Reporter, cancel: &Cancel) -> Outcome<Copied> {
    let (source, destinations) = (hosts.source.as_mut(), &mut hosts.destinations);
    let source = source.ok_or_else(|| Problem::failed("this run has no source"))?;
    let pieces = source.take_pieces()?;
    let mut live: Vec<&mut Destination> = destinations.iter_mut().filter(|d| d.failed.is_none()).collect();
    let lanes: Vec<Lane<'_>> =
        live.iter().map(|d| Lane { host: &d.host, end: RefCell::default(), out: Cancel::default() }).collect();
    let result = tokio::select! {
        result = stream(source, pieces, &lanes, &options, report) => result,
        () = cancel.cancelled() => Err(Problem::cancelled()),
        () = tokio::time::sleep_until(options.deadline.into()) => Err(Problem::failed(
            "the copy would have kept the source down for longer than `max_outage`"
        ).hint("Raise `max_outage`, or make the copy faster.")),
    };
    let ends: Vec<_> = lanes.into_iter().map(|lane| lane.end.into_inner()).collect();
    for (destination, end) in live.iter_mut().zip(ends) {
        let same = |proof: &(Totals, Hash)| result.as_ref().is_ok_and(|c| (c.totals, c.image) == *proof);
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
async fn stream(
    source: &SourceHost,
    pieces: UnboundedReceiver<Piece>,
    lanes: &[Lane<'_>],
    options: &Options,
    report: &Reporter,
) -> Outcome<Copied> {
    let receive = join_all(lanes.iter().map(async |lane| {
        tokio::select! {
            end = lane.host.receive(options.from_disk) => match end {
                Ok(proof) => *lane.end.borrow_mut() = Some(Ok(proof)),
                Err(problem) => lane.fail(problem, report),
            },
            () = lane.out.cancelled() => {}
        }
    }));
    let send = async {
        source.connection()?.grant(WINDOW).await?;
        let pump = pump(pieces, source, lanes, options, report);
        // what the source says comes first: when it fails, nobody else will ever finish
        tokio::try_join!(source.stream(options.stream.clone()), pump)
    };
    let (mut receive, mut send) = (std::pin::pin!(receive), std::pin::pin!(send));
    let ((totals, image), sent) = tokio::select! {
        sent = &mut send => sent?,
        _ = &mut receive => send.await?,
    };
    // proofs of the last files may take their time, but not the other destinations' success with them
    let late = options.deadline.checked_sub(Duration::from_millis(500)).unwrap_or(options.deadline);
    if lanes.iter().any(|lane| lane.end.borrow().is_none())
        && tokio::time::timeout_at(late.into(), receive).await.is_err()
    {
        for lane in lanes {
            lane.fail_if_open(report);
        }
    }
    match judge(lanes, options.abort) {
        Some(problem) => Err(problem),
        None => Ok(Copied { totals, image, sent }),
    }
}

impl Lane<'_> {
    fn fail_if_open(&self, report: &Reporter) {
        if self.end.borrow().is_none() {
            self.fail(Problem::failed("its proof came too late for `max_outage`"), report);
        }
    }
}

/// Why the copy cannot go on, if it cannot.
fn judge(lanes: &[Lane<'_>], abort: bool) -> Option<Problem> {
    let first = lanes.iter().find_map(Lane::problem)?;
    (abort || lanes.iter().all(|lane| lane.problem().is_some())).then_some(first)
}

/// Hands every piece to every lane that still takes part.
async fn pump(
    mut pieces: UnboundedReceiver<Piece>,
    source: &SourceHost,
    lanes: &[Lane<'_>],
    options: &Options,
    report: &Reporter,
) -> Outcome<u64> {
    let (mut sent, mut done, mut told) = (0u64, 0u64, Instant::now());
    while let Some(piece) = pieces.recv().await {
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
                done += raw_len(&bytes);
                source.connection()?.grant(bytes.len() as u64).await?;
                if told.elapsed() >= TELL {
                    report.tell(Event::Progress { done, total: options.expected.max(done), what: "bytes".into() });
                    told = Instant::now();
                }
            }
            Piece::Entry(Entry::End { totals, .. }) => {
                report.tell(Event::Progress { done: totals.bytes, total: totals.bytes, what: "bytes".into() });
                return Ok(sent);
            }
            Piece::Entry(_) => {}
        }
    }
    Err(Problem::failed("the image's stream ended early"))
}
