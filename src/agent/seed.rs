//! The beginning of a basis: every file of the destination's current generation is made in the stage, as a clone that shares its blocks
//! where the filesystem can, else as a hole that is filled by and by. A server may be writing into the originals meanwhile: what is
//! hashed is the stage, so a wrong basis costs bytes, never correctness.
//!
//! Only reads the datadir; writes below the stage only. Knows nothing of the source.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::io::Errno;

use super::basis::{Basis, Filling, hands};
use super::freeze;
use super::index::Index;
use super::receive::write_error;
use super::server;
use super::session::Session;
use super::stock::{Known, Stock};
use super::tree::Item;
use crate::delta::path::RelPath;
use crate::failpoint;
use crate::mysql::Flavour;
use crate::mysql::files::foreign;
use crate::problem::{Explain, Outcome, Problem};
use crate::wire::message::{SeedOptions, Seeded};

/// How a stage is filled.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Of what runs here.
    pub flavour: Flavour,
    /// What cannot be cloned is copied. Worth its time and room only if it came from where the image comes from.
    pub copies: bool,
    /// As it was asked for.
    pub asked: SeedOptions,
}

/// One seeding.
struct Seeding<'a> {
    stage: &'a Path,
    datadir: &'a Path,
    items: &'a [&'a Item],
    index: &'a Index,
    session: &'a Session,
    next: AtomicUsize,
    /// Files may be copied where they cannot be cloned.
    copies: bool,
    /// Some file could not be cloned: the others will not either.
    no_clones: AtomicBool,
    made: Mutex<Vec<(RelPath, Known, Filling)>>,
    failed: Mutex<Option<Problem>>,
}

/// Fills an empty stage, as far as there is room. What is not clones is filled and hashed by `stock.basis`, at once if the whole was asked
/// for. Blocking.
pub fn seed(stock: &mut Stock, datadir: &Path, items: &[Item], options: Options, session: &Session) -> Outcome<Seeded> {
    let Options { flavour, copies, asked } = options;
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
        items: &files,
        index: &stock.index,
        session,
        next: AtomicUsize::new(0),
        copies,
        no_clones: AtomicBool::new(false),
        made: Mutex::default(),
        failed: Mutex::default(),
    };
    std::thread::scope(|scope| {
        for _ in 0..hands() {
            scope.spawn(|| seeding.work());
        }
    });
    let Seeding { made, failed, no_clones, .. } = seeding;
    if let Some(problem) = failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
        return Err(problem);
    }
    let made = made.into_inner().unwrap_or_else(|e| e.into_inner());
    let bytes = made.iter().map(|(_, known, _)| known.len()).sum();
    let seeded = Seeded { files: made.len() as u64, bytes, shared: !no_clones.into_inner() };
    let mut filling = Vec::with_capacity(made.len());
    for (path, known, file) in made {
        stock.known.insert(path, known);
        filling.push(file);
    }
    stock.basis = Basis::new(&stock.stage, datadir, asked.from_disk, filling);
    if asked.whole {
        std::thread::scope(|scope| {
            for _ in 0..hands() {
                scope.spawn(|| stock.basis.work(&stock.index, session, true));
            }
        });
        stock.basis.verdict()?;
    }
    Ok(seeded)
}

impl Seeding<'_> {
    fn work(&self) {
        loop {
            let n = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = self.items.get(n) else { return };
            let result = self.session.check().and_then(|()| {
                if n == self.items.len() / 2 {
                    failpoint::hit("seed:half")?;
                }
                self.one(item)
            });
            match result {
                Ok(None) => {}
                Ok(Some((known, filling))) => lock(&self.made).push((item.path.clone(), known, filling)),
                Err(problem) => {
                    // a basis never costs the image: where room is short, there is less of it
                    let short = freeze::roomy(self.stage).is_ok_and(|room| room.is_err());
                    if self.session.is_gone() || !short {
                        lock(&self.failed).get_or_insert(problem);
                    }
                    let _ = std::fs::remove_file(item.path.under(self.stage));
                    self.enough();
                    return;
                }
            }
        }
    }

    /// Nobody begins another file.
    fn enough(&self) {
        self.next.store(self.items.len(), Ordering::Relaxed);
    }

    /// Makes one file; None: it has vanished, or cannot be read, and is no basis.
    fn one(&self, item: &Item) -> Outcome<Option<(Known, Filling)>> {
        if self.no_clones.load(Ordering::Relaxed) && !self.copies {
            return Ok(None);
        }
        let Ok(from) = server::open_beneath(self.datadir, &item.path.under(Path::new(""))) else { return Ok(None) };
        let full = item.path.under(self.stage);
        let to = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(item.mode & 0o666)
            .open(&full)
            .map_err(|e| write_error(&full, &e))?;
        let made = match self.make(&from, &to, item.len) {
            Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                self.enough();
                None
            }
            made => made.map_err(|e| write_error(&full, &e))?,
        };
        let Some(copied) = made else {
            drop(to);
            std::fs::remove_file(&full).explain(|| format!("cannot remove {}", full.display()))?;
            return Ok(None);
        };
        let len = to.metadata().explain(|| format!("cannot read {}", full.display()))?.len();
        let span = self.index.span(len);
        Ok(Some((Known::File { len, span, proof: None }, Filling::new(item.path.clone(), len, span, copied))))
    }

    /// A clone, or a hole of the same length. Whether it has yet to be copied; None: it is not to be. Errors are the stage's.
    fn make(&self, from: &File, to: &File, len: u64) -> Result<Option<bool>, Error> {
        if !self.no_clones.load(Ordering::Relaxed) {
            match rustix::fs::ioctl_ficlone(to, from) {
                Ok(()) => return Ok(Some(false)),
                Err(Errno::NOSPC | Errno::DQUOT) => return Err(Errno::NOSPC.into()),
                // of this one file only: btrfs keeps those apart whose blocks have no checksums
                Err(Errno::INVAL) => {}
                Err(_) => self.no_clones.store(true, Ordering::Relaxed),
            }
        }
        if !self.copies {
            return Ok(None);
        }
        to.set_len(len)?;
        Ok(Some(true))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
