//! The basis, file by file, as it fills: what could not be shared with the current generation is copied, as far as it is not there from an
//! older one, and all of it is hashed in the stage, piece by piece. A few hands work through all files beside the pass that is received; whoever needs a block before they
//! have come to it does that piece itself, so that nobody ever waits for files that nobody asks for.
//!
//! Only reads the datadir; writes below the stage only. What it gives up is unknown, and travels: a basis costs bytes, never correctness.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Result};
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};
use rustix::io::Errno;

use super::freeze;
use super::index::{Index, Span};
use super::receive::write_error;
use super::server;
use super::session::Session;
use crate::delta::path::RelPath;
use crate::delta::{BLOCK, CHUNK, PAGE, pack};
use crate::failpoint;
use crate::problem::{Explain, Outcome, Problem};

/// Files that hands work on at once, at most.
const HANDS: usize = 4;

/// Bytes of a file that are copied and hashed before others may have a say; also when every piece has to reach the disk first.
const PIECE: u64 = if cfg!(test) { CHUNK as u64 } else { 16 << 20 };
const PIECE_ON_DISK: u64 = 64 << 20;

/// Whoever waits for another hand looks this often whether it is still worth it.
const LOOK: Duration = Duration::from_secs(1);

/// How long a hand leaves a file to who wants it.
const YIELD: Duration = Duration::from_millis(1);

/// How often progress is told, in files.
const TELL: usize = 256;

/// How many hands there are.
pub fn hands() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get()).min(HANDS)
}

/// All files of a basis, in the order of their paths.
#[derive(Default)]
pub struct Basis {
    stage: PathBuf,
    datadir: PathBuf,
    from_disk: bool,
    files: Vec<Filling>,
    next: AtomicUsize,
    over: AtomicBool,
    /// Room is for the image: nothing more is copied.
    short: AtomicBool,
    failed: Mutex<Option<Problem>>,
}

/// How a file of the stage becomes what the original is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It shares its blocks with the original.
    Shared,
    /// It is a hole, and copied.
    Copied,
    /// It is an older one; what differs is copied.
    Compared,
}

/// One file, which is in the stage already.
pub struct Filling {
    path: RelPath,
    /// How it is filled.
    pub way: Way,
    at: Mutex<At>,
    turn: Condvar,
}

/// How far a file is.
pub struct At {
    /// Up to here it is copied and hashed, or never will be.
    done: u64,
    /// What is of interest of it.
    pub len: u64,
    /// Where its hashes go.
    pub span: Span,
    busy: bool,
    /// Somebody waits until nobody is at it.
    wanted: bool,
    open: Option<Pair>,
}

/// The file in the stage, and the original if it is copied.
struct Pair {
    to: File,
    from: Option<File>,
}

/// As long as it lives, hands work.
pub struct Until<'a>(&'a Basis);

impl Drop for Until<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::SeqCst);
    }
}

/// A hand's turn at a file; it ends however the hand does.
struct Turn<'a>(&'a Filling);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.0.at).busy = false;
        self.0.turn.notify_all();
    }
}

impl Filling {
    /// At its beginning.
    pub fn new(path: RelPath, len: u64, span: Span, way: Way) -> Self {
        let at = Mutex::new(At { done: 0, len, span, busy: false, wanted: false, open: None });
        Self { path, way, at, turn: Condvar::new() }
    }
}

impl Basis {
    /// Of files that were just made in a stage.
    pub fn new(stage: &Path, datadir: &Path, from_disk: bool, mut files: Vec<Filling>) -> Self {
        files.sort_by(|one, other| one.path.cmp(&other.path));
        Self { stage: stage.to_owned(), datadir: datadir.to_owned(), from_disk, files, ..Self::default() }
    }

    /// Nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// One hand's work, until all is done, or somebody has stopped it. Blocking.
    pub fn work(&self, index: &Index, session: &Session, tell: bool) {
        while !self.over.load(Ordering::SeqCst) {
            let n = self.next.fetch_add(1, Ordering::SeqCst);
            let Some(file) = self.files.get(n) else { return };
            if tell && n.is_multiple_of(TELL) {
                session.progress_blocking(n as u64, self.files.len() as u64, "files of the basis");
            }
            let first = if n == 0 { failpoint::hit("seed:hashing") } else { Ok(()) };
            if let Err(problem) = first.and_then(|()| self.all_of(file, index, session)) {
                lock(&self.failed).get_or_insert(problem);
                self.over.store(true, Ordering::SeqCst);
            }
        }
    }

    fn all_of(&self, file: &Filling, index: &Index, session: &Session) -> Outcome<()> {
        loop {
            let at = lock(&file.at);
            if at.done >= at.len || self.over.load(Ordering::SeqCst) {
                return Ok(());
            }
            if at.wanted {
                // whoever has woken by now comes first
                drop(at);
                std::thread::sleep(YIELD);
            } else {
                drop(self.further(file, at, index, session)?);
            }
        }
    }

    /// Returns when the file is hashed up to there. Blocking, but never for another file's sake.
    pub fn need(&self, file: usize, until: u64, index: &Index, session: &Session) -> Outcome<()> {
        let file = &self.files[file];
        let mut at = lock(&file.at);
        while at.done < until.min(at.len) {
            self.verdict()?;
            at = self.further(file, at, index, session)?;
        }
        Ok(())
    }

    /// One piece more, by this hand or by the one that is at it.
    fn further<'a>(
        &self,
        file: &'a Filling,
        mut at: MutexGuard<'a, At>,
        index: &Index,
        session: &Session,
    ) -> Outcome<MutexGuard<'a, At>> {
        session.check()?;
        if at.busy {
            let waited = file.turn.wait_timeout(at, LOOK).unwrap_or_else(PoisonError::into_inner);
            return Ok(waited.0);
        }
        let piece = if self.from_disk { PIECE_ON_DISK } else { PIECE };
        let (begin, end, span) = (at.done, at.len.min(at.done + piece), at.span);
        let open = at.open.take();
        at.busy = true;
        let turn = Turn(file);
        drop(at);
        let result = self.piece(file, open, (begin, end), span, index, session);
        let mut at = lock(&file.at);
        let result = match result {
            Ok(Some(open)) => {
                at.done = end;
                at.open = (end < at.len).then_some(open);
                Ok(())
            }
            Ok(None) => {
                at.done = at.len;
                Ok(())
            }
            // a basis never costs the image: where room is short, there is less of it
            Err(_) if !session.is_gone() && freeze::roomy(&self.stage).is_ok_and(|room| room.is_err()) => {
                self.short.store(true, Ordering::SeqCst);
                at.done = at.len;
                Ok(())
            }
            Err(problem) => Err(problem),
        };
        drop(at);
        drop(turn);
        result.map(|()| lock(&file.at))
    }

    /// Copies, if need be, and hashes a piece. None: no more of this file.
    fn piece(
        &self,
        file: &Filling,
        open: Option<Pair>,
        (begin, end): (u64, u64),
        span: Span,
        index: &Index,
        session: &Session,
    ) -> Outcome<Option<Pair>> {
        let full = file.path.under(&self.stage);
        let failed = |e: &Error| write_error(&full, e);
        let Pair { to, from } = match open {
            Some(open) => open,
            None => Pair {
                to: match open_in_stage(&full, file.way != Way::Shared) {
                    // an account that is not root may have no right to write into what it is to have
                    Err(error) if error.kind() == ErrorKind::PermissionDenied => return Ok(None),
                    opened => opened.map_err(|e| failed(&e))?,
                },
                from: match file.way {
                    Way::Shared => None,
                    _ => server::open_beneath(&self.datadir, &file.path.under(Path::new(""))).ok(),
                },
            },
        };
        #[cfg(test)]
        std::thread::sleep(Duration::from_millis(DAWDLE.load(Ordering::SeqCst)));
        if file.way != Way::Shared {
            let Some(from) = from.as_ref().filter(|_| !self.short.load(Ordering::SeqCst)) else { return Ok(None) };
            let may_go_on = || may_go_on(&self.stage, session);
            let brought = match file.way {
                Way::Compared => copy_what_differs(from, &to, (begin, end), &may_go_on),
                _ => copy_data(from, &to, (begin, end), &may_go_on),
            };
            match brought {
                Ok(true) => {}
                // it cannot be read
                Ok(false) => return Ok(None),
                Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                    self.short.store(true, Ordering::SeqCst);
                    return Ok(None);
                }
                Err(error) => {
                    session.check()?;
                    return Err(failed(&error));
                }
            }
        }
        if self.from_disk {
            to.sync_data().map_err(|e| failed(&e))?;
            let _ = fadvise(&to, begin, NonZeroU64::new(end - begin), Advice::DontNeed);
        }
        let mut buffer = vec![0; CHUNK.min((end - begin) as usize)];
        let mut at = begin;
        while at < end {
            session.check()?;
            let want = (end - at).min(buffer.len() as u64) as usize;
            to.read_exact_at(&mut buffer[..want], at).explain(|| format!("cannot read back {}", full.display()))?;
            index.write(span, at / BLOCK as u64, &pack::hashes(&buffer[..want]))?;
            at += want as u64;
        }
        Ok(Some(Pair { to, from }))
    }

    /// The number of a file.
    pub fn find(&self, path: &RelPath) -> Option<usize> {
        self.files.binary_search_by(|file| file.path.cmp(path)).ok()
    }

    /// How far a file is, while nobody works on it; nobody does while this is held.
    pub fn hold(&self, file: usize) -> MutexGuard<'_, At> {
        let file = &self.files[file];
        let mut at = lock(&file.at);
        at.wanted = true;
        let mut at = file.turn.wait_while(at, |at| at.busy).unwrap_or_else(PoisonError::into_inner);
        at.wanted = false;
        at
    }

    /// What has this name, and all below it, goes from the stage: nobody works on it any more when this returns.
    pub fn forget(&self, path: &RelPath) {
        let first = self.files.partition_point(|file| file.path < *path);
        // what is below a folder need not follow it at once: `a.b` stands between `a` and `a/b`
        for n in (first..self.files.len()).take_while(|n| self.files[*n].path.as_bytes().starts_with(path.as_bytes())) {
            if self.files[n].path.as_path().starts_with(path.as_path()) {
                let mut at = self.hold(n);
                (at.done, at.open) = (at.len, None);
            }
        }
    }

    /// Room is for the image: nothing more is copied, and what nobody has named yet is let go of, closed, and may be removed when this
    /// returns.
    pub fn only(&self, named: impl Fn(&RelPath) -> bool) {
        self.short.store(true, Ordering::SeqCst);
        // nobody begins another one: who needs it does it
        self.next.store(self.files.len(), Ordering::SeqCst);
        for n in (0..self.files.len()).filter(|n| !named(&self.files[*n].path)) {
            let mut at = self.hold(n);
            (at.done, at.open) = (at.len, None);
        }
    }

    /// When it is dropped the hands end: nobody needs anything any more.
    pub fn until_dropped(&self) -> Until<'_> {
        Until(self)
    }

    /// What a hand has met with.
    pub fn verdict(&self) -> Outcome<()> {
        lock(&self.failed).clone().map_or(Ok(()), Err)
    }
}

/// Milliseconds that pass before a piece is copied: small files are filled before anybody asks for them, and tests want to see what
/// happens meanwhile.
#[cfg(test)]
pub static DAWDLE: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// Opens a file of the stage, and nothing else.
fn open_in_stage(full: &Path, write: bool) -> Result<File> {
    let no_follow = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    OpenOptions::new().read(true).write(write).custom_flags(no_follow).open(full)
}

/// Whether to copy on: the server that serves from this filesystem must not find it full because of us.
fn may_go_on(stage: &Path, session: &Session) -> Result<()> {
    if session.is_gone() {
        return Err(ErrorKind::ConnectionAborted.into());
    }
    match freeze::roomy(stage) {
        Ok(Err(_)) => Err(ErrorKind::StorageFull.into()),
        _ => Ok(()),
    }
}

/// Copies what is not a hole. False: the original cannot be read. Errors are the stage's.
fn copy_data(from: &File, to: &File, (begin, end): (u64, u64), may_go_on: &dyn Fn() -> Result<()>) -> Result<bool> {
    let mut at = begin;
    while at < end {
        let (data, stop) = match rustix::fs::seek(from, rustix::fs::SeekFrom::Data(at)) {
            // holes only, from here on
            Err(Errno::NXIO) => return Ok(true),
            Err(_) => (at, end),
            Ok(data) => (data, rustix::fs::seek(from, rustix::fs::SeekFrom::Hole(data)).unwrap_or(end)),
        };
        if data < end && !copy_range(from, to, (data, stop.min(end)), may_go_on)? {
            return Ok(false);
        }
        at = stop.max(data + 1);
    }
    Ok(true)
}

fn copy_range(from: &File, to: &File, (mut at, end): (u64, u64), may_go_on: &dyn Fn() -> Result<()>) -> Result<bool> {
    while at < end {
        may_go_on()?;
        let (mut off_in, mut off_out) = (at, at);
        match rustix::fs::copy_file_range(from, Some(&mut off_in), to, Some(&mut off_out), (end - at) as usize) {
            // it has shrunk
            Ok(0) => return Ok(true),
            Ok(n) => at += n as u64,
            Err(Errno::INTR) => {}
            Err(Errno::NOSPC | Errno::DQUOT) => return Err(Errno::NOSPC.into()),
            Err(_) => return copy_by_hand(from, to, (at, end)),
        }
    }
    Ok(true)
}

/// Copies what is not the same, page by page: reading costs less than writing. False: the original cannot be read.
fn copy_what_differs(
    from: &File,
    to: &File,
    (mut at, end): (u64, u64),
    may_go_on: &dyn Fn() -> Result<()>,
) -> Result<bool> {
    let (mut theirs, mut ours) = (vec![0; CHUNK], vec![0; CHUNK]);
    while at < end {
        let want = (end - at).min(CHUNK as u64) as usize;
        match from.read_exact_at(&mut theirs[..want], at) {
            Ok(()) => {}
            // it has shrunk
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(true),
            Err(_) => return Ok(false),
        }
        if to.read_exact_at(&mut ours[..want], at).is_err() {
            // an old file whose disk has lost it is worth nothing, and written over
            may_go_on()?;
            to.write_all_at(&theirs[..want], at)?;
            at += want as u64;
            continue;
        }
        if theirs[..want] != ours[..want] {
            may_go_on()?;
        }
        for (n, (page, here)) in theirs[..want].chunks(PAGE).zip(ours[..want].chunks(PAGE)).enumerate() {
            if page != here {
                let at = at + (n * PAGE) as u64;
                let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                let zero = page.iter().all(|byte| *byte == 0);
                if !zero || fallocate(to, hole, at, page.len() as u64).is_err() {
                    to.write_all_at(page, at)?;
                }
            }
        }
        at += want as u64;
    }
    Ok(true)
}

/// Where the kernel cannot copy between these files.
fn copy_by_hand(from: &File, to: &File, (mut at, end): (u64, u64)) -> Result<bool> {
    let mut buffer = vec![0; CHUNK];
    while at < end {
        let want = (end - at).min(CHUNK as u64) as usize;
        match from.read_at(&mut buffer[..want], at) {
            Ok(0) => return Ok(true),
            Ok(n) => {
                to.write_all_at(&buffer[..n], at)?;
                at += n as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Ok(false),
        }
    }
    Ok(true)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
