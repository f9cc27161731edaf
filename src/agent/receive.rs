//! Taking a pass of the image's stream into the stage, and proving it from the stage: what was written is read back and hashed anew,
//! and must be what the source announced. Blocks are verified as they arrive, files as they end, the image at its end.
//!
//! Writes below the stage only. Two threads: one writes and answers, one reads back.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rustix::fs::{FallocateFlags, fallocate};
use tokio::sync::mpsc::UnboundedReceiver;

use super::basis::{Basis, hands};
use super::index::{Index, Span, UNKNOWN};
use super::session::{Piece, Session};
use super::stock::{Known, Stock, keep_only};
use crate::delta::hash::{self, Hash, ImageHasher, Totals};
use crate::delta::pack::{self, Chunk, unpack};
use crate::delta::path::RelPath;
use crate::delta::{BLOCK, BLOCK_PAGES, CHUNK, CHUNK_BLOCKS, PAGE};
use crate::failpoint;
use crate::mysql::Flavour;
use crate::mysql::files::foreign;
use crate::problem::{Explain, Kind, Outcome, Problem};
use crate::wire::message::{Entry, Lack, Pass, ReceiveOptions};

/// Chunks and files that wait for being read back.
const QUEUE: usize = 64;

/// For files that are opened by name.
const NO_FOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits() as i32;

/// Bytes that are written before somebody looks how much room there is.
const LOOK: u64 = 64 << 20;

/// A file of the stage, for both threads.
struct Place {
    file: File,
    full: PathBuf,
    path: RelPath,
}

enum Step {
    /// Written, and to be read back.
    Written { place: Arc<Place>, span: Span, offset: u64, len: u64 },
    /// Complete.
    File { place: Arc<Place>, span: Span, len: u64, proof: Hash, unread: Vec<u64> },
    /// The pass is over.
    End,
}

/// Who owns the files of the stage.
#[derive(Debug, Clone, Copy)]
pub struct Owner {
    /// User id of the datadir.
    pub uid: u32,
    /// Group id of the datadir.
    pub gid: u32,
}

struct Open {
    place: Arc<Place>,
    len: u64,
    span: Span,
    /// It was there before this pass: what is zero now may not have been.
    old: bool,
    /// Its number in the basis.
    basis: Option<usize>,
    /// Where chunks were written that are read back when the file is on the disk.
    unread: Vec<u64>,
}

/// Receives one pass; after a cold one, the image. Blocking.
pub fn receive(
    stock: &mut Stock,
    flavour: Flavour,
    options: ReceiveOptions,
    pieces: &mut UnboundedReceiver<Piece>,
    session: &Session,
) -> Outcome<Option<(Totals, Hash)>> {
    let (tx, rx) = sync_channel(QUEUE);
    let (from_disk, Stock { stage, index, known, basis, passed }) = (options.from_disk, &mut *stock);
    let (index, basis, first) = (&*index, &*basis, !*passed);
    let (written, proven) = std::thread::scope(|scope| {
        let prover = scope.spawn(move || prove_all(&rx, index));
        for _ in 0..if basis.is_empty() { 0 } else { hands() } {
            scope.spawn(|| basis.work(index, session, false));
        }
        let hands = basis.until_dropped();
        let mut writer = Writer {
            stage,
            flavour,
            index,
            known,
            basis,
            from_disk,
            open: HashMap::new(),
            cold: options.pass == Pass::Cold,
            named: BTreeSet::new(),
            spare: first,
            written: 0,
            proofs: tx,
            session,
        };
        let written = writer.take_all(pieces).map(|end| (end, std::mem::take(&mut writer.named)));
        drop(writer);
        drop(hands);
        (written, prover.join().unwrap_or_else(|_| Err(Problem::failed("the proving thread failed"))))
    });
    let (end, named, proofs) = match (written, proven) {
        // a writer that could not hand over a file only saw that the prover had given up
        (_, Err(problem)) | (Err(problem), Ok(_)) => return Err(problem),
        (Ok(_), Ok(None)) => return Err(Problem::failed("the image's stream ended early")),
        (Ok((end, named)), Ok(Some(proofs))) => (end, named, proofs),
    };
    for (path, found) in proofs {
        if let Some(Known::File { proof, .. }) = stock.known.get_mut(&path) {
            *proof = Some(found);
        }
    }
    if first {
        std::mem::take(&mut stock.basis).verdict()?;
        // of the basis what the source does not have is only in the way
        keep_only(&stock.stage, &mut stock.known, |path, _| named.contains(path))?;
        stock.passed = true;
    }
    match (options.pass, end) {
        (Pass::Hot, None) => Ok(None),
        (Pass::Cold, Some(announced)) => finish(stock, &named, announced).map(Some),
        _ => Err(out_of_order("a pass ended as another one")),
    }
}

/// The stage becomes the image: what is not part of it goes, and its proof must be the source's.
fn finish(stock: &mut Stock, image: &BTreeSet<RelPath>, announced: (Totals, Hash)) -> Outcome<(Totals, Hash)> {
    keep_only(&stock.stage, &mut stock.known, |path, _| image.contains(path))?;
    let mut hasher = ImageHasher::default();
    for path in image {
        match stock.known.get(path) {
            Some(Known::Dir) => hasher.dir(path),
            Some(Known::File { len, proof: Some(proof), .. }) => hasher.file(path, *len, proof),
            _ => return Err(Problem::failed(format!("{path} is not proven"))),
        }
    }
    if hasher.finish() == announced {
        return Ok(announced);
    }
    Err(Problem::failed("the stage does not hold the image the source sent"))
}

struct Writer<'a> {
    stage: &'a Path,
    flavour: Flavour,
    index: &'a Index,
    known: &'a mut BTreeMap<RelPath, Known>,
    basis: &'a Basis,
    from_disk: bool,
    open: HashMap<u32, Open>,
    cold: bool,
    /// What the pass has named so far; a cold one names everything, once.
    named: BTreeSet<RelPath>,
    /// There may still be a basis of things that nobody has named: room, if need be.
    spare: bool,
    /// Bytes written since somebody last looked how much there is.
    written: u64,
    proofs: SyncSender<Step>,
    session: &'a Session,
}

/// What an entry ends: a hot pass, or the image with its proof.
type Ended = Option<(Totals, Hash)>;

impl Writer<'_> {
    fn take_all(&mut self, pieces: &mut UnboundedReceiver<Piece>) -> Outcome<Ended> {
        let mut ungranted = 0u64;
        let ended = loop {
            self.session.check()?;
            match pieces.blocking_recv() {
                None => return Err(Problem::new(Kind::Lost, "the controller is gone")),
                Some(Piece::Chunk(bytes)) => {
                    self.chunk(unpack(&bytes).map_err(|e| Problem::failed("the stream is damaged").because(e))?)?;
                    ungranted += bytes.len() as u64;
                    if ungranted >= CHUNK as u64 {
                        self.session.grant_blocking(std::mem::take(&mut ungranted))?;
                    }
                }
                Some(Piece::Entry(entry)) => {
                    if let ControlFlow::Break(ended) = self.entry(entry)? {
                        break ended;
                    }
                }
            }
        };
        // the next pass finds all of its room again
        self.session.grant_blocking(ungranted)?;
        Ok(ended)
    }

    fn entry(&mut self, entry: Entry) -> Outcome<ControlFlow<Ended>> {
        match entry {
            Entry::Dir { path, mode } => self.dir(path, mode)?,
            Entry::File { number, path, mode, len } => self.begin(number, path, mode, len)?,
            Entry::Same { path, mode, len, proof } => self.same(path, mode, len, proof)?,
            Entry::Ask { number, offset, hashes } => self.answer(number, offset, &hashes)?,
            Entry::FileEnd { number, proof } => {
                let open = self.open.remove(&number).ok_or_else(|| out_of_order("end of a file that is not open"))?;
                let Open { place, len, span, unread, basis, .. } = open;
                self.need(basis, len)?;
                self.hand_over(Step::File { place, span, len, proof, unread })?;
            }
            Entry::Gone { number } => {
                let open = self.open.remove(&number).filter(|_| !self.cold);
                let open = open.ok_or_else(|| out_of_order("a file that is not open has gone"))?;
                self.known.remove(&open.place.path);
                self.basis.forget(&open.place.path);
                let full = &open.place.full;
                std::fs::remove_file(full).explain(|| format!("cannot remove {}", full.display()))?;
            }
            Entry::PassEnd | Entry::End { .. } => {
                failpoint::hit("receive:end")?;
                // no proof covers a file that has not ended: it would stay on the stage beside the proven ones
                if let Some(open) = self.open.values().next() {
                    return Err(out_of_order(&format!("the image ended before {}", open.place.path)));
                }
                self.hand_over(Step::End)?;
                return Ok(ControlFlow::Break(match entry {
                    Entry::End { totals, image } => Some((totals, image)),
                    _ => None,
                }));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Whether an entry may be taken in; a cold pass names each one once.
    fn named(&mut self, path: &RelPath) -> Outcome<()> {
        if let Some(why) = foreign(self.flavour, &path.under(Path::new(""))) {
            return Err(Problem::failed(format!("the image holds {path}, which is not taken in: {why}")));
        }
        let again = !self.named.insert(path.clone());
        if again && self.cold { Err(out_of_order(&format!("{path} comes a second time"))) } else { Ok(()) }
    }

    fn dir(&mut self, path: RelPath, mode: u32) -> Outcome<()> {
        self.named(&path)?;
        let full = path.under(self.stage);
        let failed = |e| write_error(&full, &e);
        match self.known.get(&path) {
            Some(Known::Dir) => {}
            Some(Known::File { .. }) => {
                self.basis.forget(&path);
                std::fs::remove_file(&full).map_err(failed)?;
                std::fs::DirBuilder::new().mode(mode | 0o700).create(&full).map_err(failed)?;
            }
            None => std::fs::DirBuilder::new().mode(mode | 0o700).create(&full).map_err(failed)?,
        }
        std::fs::set_permissions(&full, std::fs::Permissions::from_mode((mode & 0o777) | 0o700)).map_err(failed)?;
        self.known.insert(path, Known::Dir);
        Ok(())
    }

    fn begin(&mut self, number: u32, path: RelPath, mode: u32, len: u64) -> Outcome<()> {
        if number == 1 {
            failpoint::hit("receive:first")?;
        }
        self.named(&path)?;
        if self.open.contains_key(&number) || self.open.values().any(|open| open.place.path == path) {
            return Err(out_of_order("a file, or its number, that is open already"));
        }
        let full = path.under(self.stage);
        let failed = |e| write_error(&full, &e);
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(NO_FOLLOW).mode(mode & 0o666);
        let basis = self.basis.find(&path);
        let (file, old, span) = match self.known.get(&path).copied() {
            Some(Known::File { len: before, span, .. }) => {
                let file = options.open(&full).map_err(failed)?;
                // nobody may be at it meanwhile
                let mut hold = basis.map(|n| self.basis.hold(n));
                file.set_len(len).map_err(failed)?;
                let span = if before == len { span } else { self.index.resized(span, before, len)? };
                if let Some(at) = &mut hold {
                    (at.len, at.span) = (at.len.min(len), span);
                }
                (file, true, span)
            }
            folder => {
                if folder.is_some() {
                    // a database that became a table's file: whatever was in it has gone with it
                    self.basis.forget(&path);
                    self.forget_below(&path);
                    std::fs::remove_dir_all(&full).map_err(failed)?;
                }
                let file = options.create_new(true).open(&full).map_err(failed)?;
                file.set_len(len).map_err(failed)?;
                (file, false, self.index.span(len))
            }
        };
        // the umask may have taken bits that the source's file had
        let _ = file.set_permissions(std::fs::Permissions::from_mode(mode & 0o666));
        self.known.insert(path.clone(), Known::File { len, span, proof: None });
        let place = Arc::new(Place { file, full, path });
        self.open.insert(number, Open { place, len, span, old, basis, unread: Vec::new() });
        Ok(())
    }

    fn forget_below(&mut self, folder: &RelPath) {
        self.known.retain(|path, _| !path.as_path().starts_with(folder.as_path()));
    }

    /// Nothing of it follows: what the stage holds must be it.
    fn same(&mut self, path: RelPath, mode: u32, len: u64, proof: Hash) -> Outcome<()> {
        self.named(&path)?;
        match self.known.get(&path) {
            Some(Known::File { len: here, proof: Some(known), .. }) if (*here, *known) == (len, proof) => {}
            _ => return Err(Problem::failed(format!("{path} is not in the stage as the source believes"))),
        }
        let full = path.under(self.stage);
        std::fs::set_permissions(&full, std::fs::Permissions::from_mode(mode & 0o666))
            .map_err(|e| write_error(&full, &e))
    }

    /// What the basis has of a file is there and hashed up to here.
    fn need(&self, file: Option<usize>, until: u64) -> Outcome<()> {
        file.map_or(Ok(()), |n| self.basis.need(n, until, self.index, self.session))
    }

    /// Says which blocks are lacking, and by short hashes what is there instead.
    fn answer(&mut self, number: u32, offset: u64, hashes: &[Hash]) -> Outcome<()> {
        failpoint::hit("receive:asked")?;
        let open = self.open.get(&number).ok_or_else(|| out_of_order("a question about a file that is not open"))?;
        let whole = offset.is_multiple_of(BLOCK as u64) && !hashes.is_empty() && hashes.len() <= CHUNK_BLOCKS;
        let first = offset / BLOCK as u64;
        if !whole || first + hashes.len() as u64 > super::index::blocks(open.len) {
            return Err(out_of_order("a question about blocks that are not there"));
        }
        self.need(open.basis, offset + (hashes.len() * BLOCK) as u64)?;
        let here = self.index.read(open.span, first, hashes.len() as u64)?;
        let mut lack = Lack { number, offset, blocks: 0, pages: Vec::new() };
        let mut buffer = vec![0; BLOCK];
        for (n, _) in here.iter().zip(hashes).enumerate().filter(|(_, (here, wanted))| here != wanted) {
            lack.blocks |= 1 << n;
            let at = offset + (n * BLOCK) as u64;
            let want = (open.len - at).min(BLOCK as u64) as usize;
            let mut pages = [0; BLOCK_PAGES];
            if here[n] != UNKNOWN && open.place.file.read_exact_at(&mut buffer[..want], at).is_ok() {
                buffer[..want].chunks(PAGE).zip(&mut pages).for_each(|(bytes, page)| *page = hash::page(bytes));
            }
            lack.pages.push(pages);
        }
        self.session.lack_blocking(lack)
    }

    fn chunk(&mut self, mut chunk: Chunk) -> Outcome<()> {
        let open = self.open.get_mut(&chunk.file).ok_or_else(|| out_of_order("a chunk of a file that is not open"))?;
        let end = chunk.offset.checked_add(chunk.raw.len() as u64).filter(|end| *end <= open.len);
        let end = end.ok_or_else(|| out_of_order("a chunk beyond its file"))?;
        if !chunk.raw.len().is_multiple_of(BLOCK) && end != open.len {
            return Err(out_of_order("a chunk that ends within a block"));
        }
        if let Some(n) = open.basis {
            self.basis.need(n, end, self.index, self.session)?;
        }
        let first = chunk.offset / BLOCK as u64;
        let mut here = self.index.read(open.span, first, chunk.hashes.len() as u64)?;
        let mut wanted = 0u64;
        for (n, hash) in chunk.hashes.iter().enumerate() {
            let pages = Chunk::pages_of(n);
            if here[n] == *hash {
                continue;
            }
            if chunk.absent & pages != 0 {
                complete(&mut chunk.raw, n, chunk.absent, &open.place.file, chunk.offset)?;
                let (begin, stop) = (n * BLOCK, chunk.raw.len().min((n + 1) * BLOCK));
                if hash::block(&chunk.raw[begin..stop]) != *hash {
                    return Err(Problem::failed(format!(
                        "a block of {} was left out by the source, and is not in the stage",
                        open.place.path
                    )));
                }
            }
            here[n] = *hash;
            wanted |= pages & !chunk.absent;
        }
        if wanted == 0 {
            return Ok(());
        }
        self.written += chunk.raw.len() as u64;
        if self.spare && self.written >= LOOK {
            self.written = 0;
            if super::freeze::roomy(self.stage)?.is_err() {
                // before the server that serves from this filesystem finds it full
                self.spare = false;
                let named = &self.named;
                self.basis.only(|path| named.contains(path));
                keep_only(self.stage, self.known, |path, is| matches!(is, Known::Dir) || named.contains(path))?;
            }
        }
        while let Err(error) = write(open, &chunk, wanted) {
            let full = matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
            if !full || !std::mem::take(&mut self.spare) {
                return Err(write_error(&open.place.full, &error));
            }
            // a basis saves bytes, and must not cost the image
            let named = &self.named;
            self.basis.only(|path| named.contains(path));
            keep_only(self.stage, self.known, |path, is| matches!(is, Known::Dir) || named.contains(path))?;
        }
        self.index.write(open.span, first, &here)?;
        if self.from_disk {
            open.unread.push(chunk.offset);
        } else {
            let step = Step::Written {
                place: open.place.clone(),
                span: open.span,
                offset: chunk.offset,
                len: chunk.raw.len() as u64,
            };
            self.hand_over(step)?;
        }
        Ok(())
    }

    fn hand_over(&self, step: Step) -> Outcome<()> {
        self.proofs.send(step).map_err(|_| Problem::failed("the stage could not be proven"))
    }
}

/// Fills the pages of a block that were left out from what the stage holds.
fn complete(raw: &mut [u8], block: usize, absent: u64, file: &File, offset: u64) -> Outcome<()> {
    for page in (block * BLOCK_PAGES..(block + 1) * BLOCK_PAGES).filter(|page| absent & (1 << page) != 0) {
        let (begin, stop) = (page * PAGE, raw.len().min((page + 1) * PAGE));
        file.read_exact_at(&mut raw[begin..stop], offset + begin as u64).explain(|| "cannot read the stage")?;
    }
    Ok(())
}

/// Writes the pages that are wanted: neighbours at once, zero ones as holes.
fn write(open: &Open, chunk: &Chunk, wanted: u64) -> std::io::Result<()> {
    let pages = chunk.raw.len().div_ceil(PAGE);
    let kind = |page: usize| (wanted & (1 << page) != 0, chunk.zero & (1 << page) != 0);
    let mut page = 0;
    while page < pages {
        let stop = (page..pages).find(|n| kind(*n) != kind(page)).unwrap_or(pages);
        let bytes = &chunk.raw[page * PAGE..chunk.raw.len().min(stop * PAGE)];
        let at = chunk.offset + (page * PAGE) as u64;
        match kind(page) {
            (true, true) if !open.old => {}
            (true, true) => {
                let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                if fallocate(&open.place.file, hole, at, bytes.len() as u64).is_err() {
                    open.place.file.write_all_at(bytes, at)?;
                }
            }
            (true, false) => open.place.file.write_all_at(bytes, at)?,
            (false, _) => {}
        }
        page = stop;
    }
    Ok(())
}

/// Proves chunk after chunk and file after file; None when the writer gave up before the pass was over.
fn prove_all(steps: &Receiver<Step>, index: &Index) -> Outcome<Option<Vec<(RelPath, Hash)>>> {
    let (mut proofs, mut buffer) = (Vec::new(), vec![0; CHUNK]);
    for step in steps {
        match step {
            Step::Written { place, span, offset, len } => {
                check(index, span, offset, &mut buffer[..len as usize], &place)?;
            }
            Step::File { place, span, len, proof, unread } => {
                if !unread.is_empty() {
                    place.file.sync_data().map_err(|e| write_error(&place.full, &e))?;
                    let _ = rustix::fs::fadvise(&place.file, 0, None, rustix::fs::Advice::DontNeed);
                }
                for offset in unread {
                    let want = (len - offset).min(CHUNK as u64) as usize;
                    check(index, span, offset, &mut buffer[..want], &place)?;
                }
                if Stock::proof(index, span, len)? != Some(proof) {
                    return Err(not_here(&place.path));
                }
                proofs.push((place.path.clone(), proof));
            }
            Step::End => return Ok(Some(proofs)),
        }
    }
    Ok(None)
}

/// What is read back must be what was announced.
fn check(index: &Index, span: Span, offset: u64, bytes: &mut [u8], place: &Place) -> Outcome<()> {
    place.file.read_exact_at(bytes, offset).explain(|| format!("cannot read back {}", place.full.display()))?;
    let found = pack::hashes(bytes);
    let announced = index.read(span, offset / BLOCK as u64, found.len() as u64)?;
    let wrong = announced.iter().zip(&found).any(|(announced, found)| *announced != UNKNOWN && announced != found);
    if wrong { Err(not_here(&place.path)) } else { Ok(()) }
}

fn not_here(path: &RelPath) -> Problem {
    Problem::failed(format!("{path} is not on this disk what the source sent"))
        .hint("Suspect this host's memory, disk or filesystem; the old generation keeps serving.")
}

/// Whether the agent runs as root, and files must change hands.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Gives a file to the owner of the datadir; needed only where the agent is root. Follows no symlink.
pub fn chown(path: &Path, owner: Owner) -> Outcome<()> {
    if !is_root() {
        return Ok(());
    }
    std::os::unix::fs::lchown(path, Some(owner.uid), Some(owner.gid))
        .explain(|| format!("cannot change the owner of {}", path.display()))
}

/// An error while writing, with what can be done about it.
pub fn write_error(path: &Path, error: &std::io::Error) -> Problem {
    let problem = Problem::failed(format!("cannot write {}", path.display())).because(error);
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            problem.hint("Make room on the destination's filesystem; the old generation keeps serving.")
        }
        _ => problem,
    }
}

fn out_of_order(what: &str) -> Problem {
    Problem::failed(format!("the image's stream is out of order: {what}"))
}
