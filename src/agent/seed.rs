//! The basis: what the destination's current generation holds is brought into the stage, as clones that share their blocks where the
//! filesystem can, else as copies, and hashed there. A server may be writing into the originals meanwhile: what is hashed is the stage,
//! so a wrong basis costs bytes, never correctness.
//!
//! Only reads the datadir; writes below the stage only. Knows nothing of the source.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::io::Errno;

use super::freeze;
use super::index::Index;
use super::receive::write_error;
use super::server;
use super::session::Session;
use super::stock::{Known, Stock, read_back};
use super::tree::Item;
use crate::delta::CHUNK;
use crate::delta::path::RelPath;
use crate::failpoint;
use crate::mysql::Flavour;
use crate::mysql::files::foreign;
use crate::problem::{Explain, Outcome, Problem};
use crate::wire::message::Seeded;

/// Files that are hashed at once, at most.
const HANDS: usize = 4;

/// Bytes that are copied before somebody looks whether there is still room, and a controller.
const PIECE: u64 = 64 << 20;

/// How often progress is told, in files.
const TELL: usize = 256;

/// One seeding.
struct Seeding<'a> {
    stage: &'a Path,
    datadir: &'a Path,
    files: &'a [&'a Item],
    index: &'a Index,
    from_disk: bool,
    session: &'a Session,
    next: AtomicUsize,
    /// Files may be copied where they cannot be cloned.
    copies: bool,
    /// Some file could not be cloned: the others will not either.
    no_clones: AtomicBool,
    known: Mutex<BTreeMap<RelPath, Known>>,
    failed: Mutex<Option<Problem>>,
}

/// How a stage is filled.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Of what runs here.
    pub flavour: Flavour,
    /// What cannot be cloned is copied. Worth its time and room only if it came from where the image comes from.
    pub copies: bool,
    /// Files are hashed past the page cache.
    pub from_disk: bool,
}

/// Fills an empty stage, as far as there is room. Blocking.
pub fn seed(stock: &mut Stock, datadir: &Path, items: &[Item], options: Options, session: &Session) -> Outcome<Seeded> {
    let Options { flavour, copies, from_disk } = options;
    let wanted = |item: &&Item| foreign(flavour, &item.path.under(Path::new(""))).is_none();
    for item in items.iter().filter(wanted).filter(|item| item.dir) {
        let full = item.path.under(&stock.stage);
        std::fs::DirBuilder::new().mode(item.mode | 0o700).create(&full).map_err(|e| write_error(&full, &e))?;
        stock.known.insert(item.path.clone(), Known::Dir);
    }
    // a length beyond the whole disk is nobody's table
    let disk = rustix::fs::statvfs(&stock.stage).map_or(u64::MAX, |stat| stat.f_blocks.saturating_mul(stat.f_frsize));
    let files: Vec<&Item> = items.iter().filter(wanted).filter(|item| !item.dir && item.len <= disk).collect();
    let seeding = Seeding {
        stage: &stock.stage,
        datadir,
        files: &files,
        index: &stock.index,
        from_disk,
        session,
        next: AtomicUsize::new(0),
        copies,
        no_clones: AtomicBool::new(false),
        known: Mutex::default(),
        failed: Mutex::default(),
    };
    let hands = std::thread::available_parallelism().map_or(1, |n| n.get()).min(HANDS);
    std::thread::scope(|scope| {
        for _ in 0..hands {
            scope.spawn(|| seeding.work());
        }
    });
    let Seeding { known, failed, no_clones, .. } = seeding;
    if let Some(problem) = failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
        return Err(problem);
    }
    let known = known.into_inner().unwrap_or_else(|e| e.into_inner());
    let bytes = known.values().map(Known::len).sum();
    let seeded = Seeded { files: known.len() as u64, bytes, shared: !no_clones.into_inner() };
    stock.known.extend(known);
    Ok(seeded)
}

impl Seeding<'_> {
    fn work(&self) {
        loop {
            let n = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = self.files.get(n) else { return };
            let result = self.session.check().and_then(|()| {
                if n == self.files.len() / 2 {
                    failpoint::hit("seed:half")?;
                }
                if n.is_multiple_of(TELL) {
                    self.session.progress_blocking(n as u64, self.files.len() as u64, "files of the basis");
                }
                self.one(item)
            });
            match result {
                Ok(None) => {}
                Ok(Some(known)) => {
                    lock(&self.known).insert(item.path.clone(), known);
                }
                Err(problem) => {
                    // a basis never costs the image: where room is short, there is less of it
                    let short = freeze::roomy(self.stage).is_ok_and(|room| room.is_err());
                    if self.session.is_gone() || !short {
                        lock(&self.failed).get_or_insert(problem);
                    }
                    let _ = std::fs::remove_file(item.path.under(self.stage));
                    // nobody begins another one
                    self.next.store(self.files.len(), Ordering::Relaxed);
                    return;
                }
            }
        }
    }

    /// Brings one file in; None: it has vanished, or cannot be read, and is no basis.
    fn one(&self, item: &Item) -> Outcome<Option<Known>> {
        let Ok(from) = server::open_beneath(self.datadir, &item.path.under(Path::new(""))) else { return Ok(None) };
        let full = item.path.under(self.stage);
        let to = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(item.mode & 0o666)
            .open(&full)
            .map_err(|e| write_error(&full, &e))?;
        let brought = match self.bring(&from, &to, item.len) {
            Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                // room is for the image: nobody begins another one
                self.next.store(self.files.len(), Ordering::Relaxed);
                false
            }
            brought => brought.map_err(|e| write_error(&full, &e))?,
        };
        if !brought {
            drop(to);
            std::fs::remove_file(&full).explain(|| format!("cannot remove {}", full.display()))?;
            return Ok(None);
        }
        let len = to.metadata().explain(|| format!("cannot read {}", full.display()))?.len();
        let span = self.index.span(len);
        if self.from_disk {
            to.sync_data().map_err(|e| write_error(&full, &e))?;
            let _ = rustix::fs::fadvise(&to, 0, None, rustix::fs::Advice::DontNeed);
        }
        let mut buffer = vec![0; CHUNK.min(len.max(1) as usize)];
        read_back(&to, &full, len, &mut buffer, |first, hashes| {
            self.session.check()?;
            self.index.write(span, first, hashes)
        })?;
        Ok(Some(Known::File { len, span, proof: None }))
    }

    /// False: the original cannot be read, or is not to be copied. Errors are the stage's.
    fn bring(&self, from: &File, to: &File, len: u64) -> std::io::Result<bool> {
        if !self.no_clones.load(Ordering::Relaxed) {
            match rustix::fs::ioctl_ficlone(to, from) {
                Ok(()) => return Ok(true),
                Err(Errno::NOSPC | Errno::DQUOT) => return Err(Errno::NOSPC.into()),
                // of this one file only: btrfs keeps those apart whose blocks have no checksums
                Err(Errno::INVAL) => {}
                Err(_) => self.no_clones.store(true, Ordering::Relaxed),
            }
        }
        if !self.copies {
            return Ok(false);
        }
        to.set_len(len)?;
        self.copy_data(from, to, len)
    }

    /// Whether to copy on: the server that serves from this filesystem must not find it full because of us.
    fn may_go_on(&self) -> std::io::Result<()> {
        if self.session.is_gone() {
            return Err(ErrorKind::ConnectionAborted.into());
        }
        match freeze::roomy(self.stage) {
            Ok(Err(_)) => Err(ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }

    /// Copies what is not a hole. False: the original cannot be read.
    fn copy_data(&self, from: &File, to: &File, len: u64) -> std::io::Result<bool> {
        let mut at = 0;
        while at < len {
            let (begin, end) = match rustix::fs::seek(from, rustix::fs::SeekFrom::Data(at)) {
                // holes only, from here on
                Err(Errno::NXIO) => return Ok(true),
                Err(_) => (at, len),
                Ok(begin) => (begin, rustix::fs::seek(from, rustix::fs::SeekFrom::Hole(begin)).unwrap_or(len)),
            };
            if !self.copy_range(from, to, begin, end.min(len))? {
                return Ok(false);
            }
            at = end.max(begin + 1);
        }
        Ok(true)
    }

    fn copy_range(&self, from: &File, to: &File, mut at: u64, end: u64) -> std::io::Result<bool> {
        while at < end {
            self.may_go_on()?;
            let (mut off_in, mut off_out) = (at, at);
            match rustix::fs::copy_file_range(
                from,
                Some(&mut off_in),
                to,
                Some(&mut off_out),
                (end - at).min(PIECE) as usize,
            ) {
                // it has shrunk
                Ok(0) => return Ok(true),
                Ok(n) => at += n as u64,
                Err(Errno::INTR) => {}
                Err(Errno::NOSPC | Errno::DQUOT) => return Err(Errno::NOSPC.into()),
                Err(_) => return self.copy_by_hand(from, to, at, end),
            }
        }
        Ok(true)
    }

    /// Where the kernel cannot copy between these files.
    fn copy_by_hand(&self, from: &File, to: &File, mut at: u64, end: u64) -> std::io::Result<bool> {
        let mut buffer = vec![0; CHUNK];
        while at < end {
            if at.is_multiple_of(PIECE) {
                self.may_go_on()?;
            }
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
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
