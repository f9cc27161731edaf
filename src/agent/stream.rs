//! Reading the source's files: every file in blocks, hashed, packed, sent. A hot pass runs while the server writes, so that little is
//! left for the cold one, which alone makes the image. Two threads: one reads and packs, one sends, so that disk and wire overlap; memory
//! stays flat whatever the datadir's size.
//!
//! Only reads. What was walked before a cold pass must be found unchanged after, or the image is not one moment's.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, available_parallelism};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc::UnboundedReceiver;

use super::guest::Guest;
use super::index::{Index, Span};
use super::server;
use super::session::Session;
use super::tree::{Item, Tree};
use crate::delta::hash::{self, FileHasher, Hash, ImageHasher, Totals};
use crate::delta::pack::{self, Chunk, Encoding, pack};
use crate::delta::path::RelPath;
use crate::delta::{BLOCK, BLOCK_PAGES, CHUNK, PAGE};
use crate::failpoint;
use crate::mysql::files::stamped;
use crate::problem::{Explain, Kind, Outcome, Problem};
use crate::wire::message::{Entry, Lack, Pass, Passed, StreamOptions};

/// Chunks between reader and sender.
const QUEUE: usize = 4;

/// Chunks that are read and hashed at once while the server is down, by as many threads as there are processors, up to so many.
const HANDS: usize = 8;

/// Chunks that wait for the receivers' answer. As much is read ahead as a link with 40 ms of latency carries in a round trip.
const ASKED: usize = 32;

/// A file that was touched so shortly before it was read may have changed after that without a new time: within a tick of a coarse clock,
/// and by a write that had its time when it was asked for and reached the file only when the disk was done. The kernel gives a disk 30 s.
const RACY_NS: i128 = 60_000_000_000;

/// What the receivers have of each file, by what was sent in hot passes.
pub struct Sent {
    index: Index,
    files: HashMap<RelPath, Before>,
    racy_ns: i128,
}

/// A file as it was sent.
#[derive(Clone)]
struct Before {
    item: Item,
    /// When its reading began, in nanoseconds since 1970.
    read_ns: i128,
    span: Span,
    proof: Hash,
}

impl Sent {
    /// Nothing yet; the hashes lie in `folder`.
    pub fn new(folder: &Path) -> Outcome<Self> {
        Ok(Self { index: Index::new(folder)?, files: HashMap::new(), racy_ns: RACY_NS })
    }

    /// For tests that cannot wait so long: another span in which a file may have changed unseen.
    #[cfg(test)]
    pub fn racy_for(folder: &Path, span: std::time::Duration) -> Outcome<Self> {
        Ok(Self { racy_ns: span.as_nanos() as i128, ..Self::new(folder)? })
    }
}

/// One pass.
pub struct Reading<'a> {
    /// Where the files are.
    pub datadir: &'a Path,
    /// What is there.
    pub tree: &'a Tree,
    /// How to go about it.
    pub options: &'a StreamOptions,
    /// The server is down, and waits for this.
    pub down: bool,
    /// The receivers' answers.
    pub lacks: &'a mut UnboundedReceiver<Lack>,
    /// Called for every chunk; an error ends the pass.
    pub watch: &'a (dyn Fn() -> Outcome<()> + Sync),
}

enum Out {
    Entry(Entry),
    Chunk(bytes::Bytes),
}

/// What one pass gives: its work, and after a cold pass the image.
pub type Result = (Passed, Option<(Totals, Hash)>);

/// Streams one pass. Blocking; ends early when the controller is gone.
pub fn send(reading: Reading<'_>, sent: &mut Sent, session: &Session) -> Outcome<Result> {
    let runtime = tokio::runtime::Handle::current();
    let (tx, rx) = sync_channel(QUEUE);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| forward(rx, session, &runtime));
        // a thread of its own: priorities that a hot pass gives up do not come back to the thread that gave them up
        let reader = scope.spawn(move || {
            let mut reader = Reader::new(reading, sent, tx, session)?;
            reader.all()
        });
        let read = reader.join().unwrap_or_else(|_| Err(Problem::failed("the reading thread failed")));
        let forwarded = sender.join().unwrap_or_else(|_| Err(Problem::failed("the sending thread failed")));
        // the sender's failure is the cause when both fail: the reader then only saw a closed queue
        forwarded.and(read)
    })
}

fn forward(queue: Receiver<Out>, session: &Session, runtime: &tokio::runtime::Handle) -> Outcome<()> {
    for out in queue {
        session.check()?;
        match out {
            Out::Entry(entry) => session.send_entry_blocking(entry)?,
            Out::Chunk(chunk) => session.send_chunk_blocking(runtime, chunk)?,
        }
    }
    Ok(())
}

/// What waits for the answers to what was asked before it.
enum Waiting {
    Chunk { number: u32, offset: u64, raw: Vec<u8>, hashes: Vec<Hash> },
    End(Entry),
}

/// What was read of a file at once, and is next.
struct Part {
    offset: u64,
    raw: Vec<u8>,
    hashes: Vec<Hash>,
}

struct Reader<'a> {
    reading: Reading<'a>,
    sent: &'a mut Sent,
    out: SyncSender<Out>,
    session: &'a Session,
    guest: Guest,
    /// Threads that read and hash; 1 beside a server that runs.
    hands: usize,
    encoding: Encoding,
    waiting: VecDeque<Waiting>,
    asked: usize,
    spare: Vec<Vec<u8>>,
    number: u32,
    passed: Passed,
}

/// How one file's blocks find their way.
#[derive(Clone, Copy)]
enum Against {
    /// The receivers may have anything: ask.
    Ask,
    /// They have nothing.
    Nothing,
    /// They have what an earlier pass has sent.
    Sent(Span),
}

impl<'a> Reader<'a> {
    fn new(reading: Reading<'a>, sent: &'a mut Sent, out: SyncSender<Out>, session: &'a Session) -> Outcome<Self> {
        let guest = if reading.down { Guest::hasty() } else { Guest::shy(reading.options.max_rate) };
        let hands = if reading.down { available_parallelism().map_or(1, |n| n.get().min(HANDS)) } else { 1 };
        let encoding = reading.options.level.map_or(Encoding::Plain, Encoding::Zstd);
        // answers to what an earlier pass has asked and left in vain
        while reading.lacks.try_recv().is_ok() {}
        Ok(Self {
            reading,
            sent,
            out,
            session,
            guest,
            hands,
            encoding,
            waiting: VecDeque::new(),
            asked: 0,
            spare: Vec::new(),
            number: 0,
            passed: Passed::default(),
        })
    }

    fn hot(&self) -> bool {
        self.reading.options.pass == Pass::Hot
    }

    fn all(&mut self) -> Outcome<Result> {
        let (tree, hot) = (self.reading.tree, self.hot());
        let mut image = ImageHasher::default();
        let half = tree.items.len() / 2;
        for (n, item) in tree.items.iter().enumerate() {
            if n == half {
                failpoint::hit(if hot { "stream:hot-half" } else { "stream:half" })?;
            }
            if item.dir {
                self.put(Entry::Dir { path: item.path.clone(), mode: item.mode })?;
                image.dir(&item.path);
                continue;
            }
            if let Some(proof) = self.file(item)? {
                image.file(&item.path, item.len, &proof);
            }
        }
        self.settle(0)?;
        (self.reading.watch)()?;
        if hot {
            self.put(Entry::PassEnd)?;
            return Ok((self.passed, None));
        }
        let (totals, proof) = image.finish();
        self.put(Entry::End { totals, image: proof })?;
        Ok((self.passed, Some((totals, proof))))
    }

    /// Sends what has to be sent of one file; its proof, or None: it has gone, or was left out of a hot pass.
    fn file(&mut self, item: &Item) -> Outcome<Option<Hash>> {
        let before = self.sent.files.get(&item.path).cloned();
        if let Some(before) = &before
            && self.is_still(item, before)
        {
            if !self.hot() {
                self.same(item, before.proof)?;
            }
            return Ok(Some(before.proof));
        }
        let read_ns = now_ns();
        let file = match server::open_beneath(self.reading.datadir, &item.path.under(Path::new(""))) {
            Err(error) if self.hot() && error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened.explain(|| format!("cannot open {}", item.path.under(self.reading.datadir).display()))?,
        };
        let against = match &before {
            Some(before) => Against::Sent(self.sent.index.resized(before.span, before.item.len, item.len)?),
            None if self.reading.options.ask => Against::Ask,
            None => Against::Nothing,
        };
        let span = match against {
            Against::Sent(span) => span,
            _ => self.sent.index.span(if self.hot() { item.len } else { 0 }),
        };
        let Some(proof) = self.blocks(item, &file, against, span)? else {
            self.sent.files.remove(&item.path);
            return Ok(None);
        };
        if self.hot() {
            let before = Before { item: item.clone(), read_ns, span, proof };
            self.sent.files.insert(item.path.clone(), before);
        }
        Ok(Some(proof))
    }

    /// Whether a file is what was sent of it, by all that its metadata says.
    fn is_still(&self, item: &Item, before: &Before) -> bool {
        let untouched = item.untouched_since(&before.item)
            && item.touched_ns() < before.read_ns - self.sent.racy_ns
            // a clock that was set back tells nothing
            && item.touched_ns() < now_ns();
        // what is written through mappings may change without a new time (MyISAM and Aria can), and is small
        untouched && !self.reading.options.paranoid && stamped(item.path.as_path())
    }

    /// Reads a file and sends its blocks; None: it has gone or shrunk under a hot pass.
    fn blocks(&mut self, item: &Item, file: &File, against: Against, span: Span) -> Outcome<Option<Hash>> {
        self.passed.files += 1;
        self.number += 1;
        let number = self.number;
        let begin = Entry::File { number, path: item.path.clone(), mode: item.mode, len: item.len };
        let same_length =
            |this: &Self| this.sent.files.get(&item.path).is_some_and(|before| before.item.len == item.len);
        // of a file of which receivers have all, nothing is said but that
        let mut begun = !matches!(against, Against::Sent(_)) || !same_length(self);
        if begun {
            self.put(begin.clone())?;
        }
        let mut hasher = FileHasher::default();
        let mut parts = VecDeque::new();
        let mut next = 0;
        while next < item.len {
            if parts.is_empty() {
                match self.parts(file, item.len, next) {
                    Err(error) if self.hot() && error.kind() == ErrorKind::UnexpectedEof => {
                        self.gone(number, begun)?;
                        return Ok(None);
                    }
                    read => {
                        parts =
                            read.explain(|| format!("cannot read {}", item.path.under(self.reading.datadir).display()))?
                    }
                }
            }
            let Some(Part { offset, raw, hashes }) = parts.pop_front() else {
                return Err(Problem::failed("nothing was read"));
            };
            let want = raw.len();
            self.passed.read += want as u64;
            (self.reading.watch)()?;
            self.session.check()?;
            hashes.iter().enumerate().for_each(|(n, hash)| hasher.add(hash, BLOCK.min(want - n * BLOCK)));
            let first = offset / BLOCK as u64;
            let mut absent = 0;
            if let Against::Sent(span) = against {
                let had = self.sent.index.read(span, first, hashes.len() as u64)?;
                absent = had
                    .iter()
                    .zip(&hashes)
                    .enumerate()
                    .filter(|(_, (had, is))| had == is)
                    .fold(0, |bits, (n, _)| bits | Chunk::pages_of(n));
            }
            if self.hot() {
                self.sent.index.write(span, first, &hashes)?;
            }
            match against {
                Against::Ask => {
                    self.put(Entry::Ask { number, offset, hashes: hashes.clone() })?;
                    self.waiting.push_back(Waiting::Chunk { number, offset, raw, hashes });
                    self.asked += 1;
                    self.settle(ASKED)?;
                }
                Against::Sent(_) if (0..hashes.len()).all(|n| absent & Chunk::pages_of(n) != 0) => self.reuse(raw),
                _ => {
                    if !begun {
                        begun = true;
                        self.put(begin.clone())?;
                    }
                    self.pack(number, offset, raw, &hashes, absent)?;
                }
            }
            next = offset + want as u64;
        }
        let proof = hasher.finish();
        if begun {
            self.waiting.push_back(Waiting::End(Entry::FileEnd { number, proof }));
            self.settle(ASKED)?;
        } else if !self.hot() {
            self.same(item, proof)?;
        }
        Ok(Some(proof))
    }

    /// What comes at `offset` of a file of `len` bytes: while a server waits for us a few chunks at once, or else one.
    fn parts(&mut self, file: &File, len: u64, offset: u64) -> std::io::Result<VecDeque<Part>> {
        let places = (offset..len).step_by(CHUNK).take(if self.hands > 1 { 2 * self.hands } else { 1 });
        let mut parts: VecDeque<Part> = places
            .map(|offset| {
                let raw = match (len - offset).min(CHUNK as u64) as usize {
                    CHUNK => self.spare.pop().unwrap_or_else(|| vec![0; CHUNK]),
                    shorter => vec![0; shorter],
                };
                Part { offset, raw, hashes: Vec::new() }
            })
            .collect();
        let parts_of = parts.make_contiguous();
        let [part] = parts_of else {
            let share = parts_of.len().div_ceil(self.hands);
            std::thread::scope(|scope| {
                let take = |part: &mut Part| {
                    file.read_exact_at(&mut part.raw, part.offset)?;
                    part.hashes = pack::hashes(&part.raw);
                    Ok(())
                };
                let hands: Vec<_> = parts_of
                    .chunks_mut(share)
                    .map(|parts| Builder::new().spawn_scoped(scope, move || parts.iter_mut().try_for_each(take)))
                    .collect::<std::io::Result<_>>()?;
                hands.into_iter().try_for_each(|hand| {
                    hand.join().unwrap_or_else(|_| Err(std::io::Error::other("a reading thread failed")))
                })
            })?;
            return Ok(parts);
        };
        self.guest.read(file, &mut part.raw, part.offset, self.session)?;
        part.hashes = pack::hashes(&part.raw);
        Ok(parts)
    }

    /// Whole chunks need not be made of zeros again.
    fn reuse(&mut self, raw: Vec<u8>) {
        if raw.len() == CHUNK {
            self.spare.push(raw);
        }
    }

    /// Receivers have it as it is.
    fn same(&self, item: &Item, proof: Hash) -> Outcome<()> {
        self.put(Entry::Same { path: item.path.clone(), mode: item.mode, len: item.len, proof })
    }

    /// What was asked about a file that is gone is answered in vain.
    fn gone(&mut self, number: u32, begun: bool) -> Outcome<()> {
        for waiting in &mut self.waiting {
            match waiting {
                Waiting::Chunk { number: of, raw, .. } if *of == number => raw.clear(),
                _ => {}
            }
        }
        if begun {
            self.waiting.push_back(Waiting::End(Entry::Gone { number }));
        }
        Ok(())
    }

    /// Sends on what is answered, until no more than `limit` chunks wait.
    fn settle(&mut self, limit: usize) -> Outcome<()> {
        loop {
            // files without a block wait, too, and are open at the receivers
            let must = self.asked > limit || limit == 0 || self.waiting.len() > 4 * ASKED;
            match self.waiting.front() {
                None => return Ok(()),
                Some(Waiting::End(_)) => {
                    if let Some(Waiting::End(entry)) = self.waiting.pop_front() {
                        self.put(entry)?;
                    }
                }
                Some(Waiting::Chunk { .. }) => {
                    let lack = match self.reading.lacks.try_recv() {
                        Ok(lack) => lack,
                        Err(_) if !must => return Ok(()),
                        Err(_) => self.reading.lacks.blocking_recv().ok_or_else(lost)?,
                    };
                    let Some(Waiting::Chunk { number, offset, raw, hashes }) = self.waiting.pop_front() else {
                        return Ok(());
                    };
                    self.asked -= 1;
                    self.answered(&lack, number, offset, raw, &hashes)?;
                }
            }
        }
    }

    fn answered(&mut self, lack: &Lack, number: u32, offset: u64, raw: Vec<u8>, hashes: &[Hash]) -> Outcome<()> {
        if (lack.number, lack.offset) != (number, offset) || lack.pages.len() != lack.blocks.count_ones() as usize {
            return Err(Problem::failed("an answer that does not fit what was asked"));
        }
        if lack.blocks == 0 || raw.is_empty() {
            self.reuse(raw);
            return Ok(());
        }
        let mut theirs = lack.pages.iter();
        let mut absent = 0u64;
        for n in 0..hashes.len() {
            let pages = if lack.blocks & (1 << n) != 0 { theirs.next() } else { None };
            let Some(pages) = pages else {
                absent |= Chunk::pages_of(n);
                continue;
            };
            for (page, short) in pages.iter().enumerate() {
                let begin = (n * BLOCK_PAGES + page) * PAGE;
                let bytes = raw.get(begin..raw.len().min(begin + PAGE)).unwrap_or_default();
                if *short != 0 && !bytes.is_empty() && hash::page(bytes) == *short {
                    absent |= 1 << (n * BLOCK_PAGES + page);
                }
            }
        }
        self.pack(number, offset, raw, hashes, absent)
    }

    fn pack(&mut self, number: u32, offset: u64, raw: Vec<u8>, hashes: &[Hash], absent: u64) -> Outcome<()> {
        let pages = raw.len().div_ceil(PAGE);
        let travels = (0..pages).filter(|page| absent & (1 << page) == 0);
        self.passed.changed += travels.map(|page| PAGE.min(raw.len() - page * PAGE) as u64).sum::<u64>();
        let packed = pack(pack::Place { file: number, offset }, &raw, hashes, absent, self.encoding);
        self.reuse(raw);
        self.out.send(Out::Chunk(packed)).map_err(|_| not_sent())
    }

    fn put(&self, entry: Entry) -> Outcome<()> {
        self.out.send(Out::Entry(entry)).map_err(|_| not_sent())
    }
}

fn lost() -> Problem {
    Problem::new(Kind::Lost, "the controller is gone")
}

fn not_sent() -> Problem {
    Problem::failed("the image could not be sent on")
}

/// Now, by the clock that files' times come from.
fn now_ns() -> i128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i128)
}

/// Whether a later walk shows the very same files: nobody started the server or wrote into the datadir meanwhile.
pub fn unchanged(before: &Tree, after: &Tree) -> Outcome<()> {
    if let Some(reason) = after.unclean.first() {
        return Err(changed(reason.clone()));
    }
    if before.items.len() != after.items.len() {
        return Err(changed(format!("{} entries before, {} after", before.items.len(), after.items.len())));
    }
    match before.items.iter().zip(&after.items).find(|(a, b)| a != b) {
        Some((a, _)) => Err(changed(format!("{} was touched", a.path))),
        None => Ok(()),
    }
}

fn changed(what: String) -> Problem {
    Problem::failed("the source's datadir changed while it was read; the image is thrown away").cause(what).hint(
        "Something else started the server or wrote into its datadir: monitoring, a service manager, an administrator.",
    )
}
