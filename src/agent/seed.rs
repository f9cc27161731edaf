//! The beginning of a basis: every file of the destination's current generation is made in the stage, as a clone that shares its blocks
//! where the filesystem can; else as a hole that is filled by and by, or as the file that the previous generation has of it, where that one may go. A server may be writing into the originals meanwhile: what is
//! hashed is the stage, so a wrong basis costs bytes, never correctness.
//!
//! Only reads the datadir; writes below the stage only, and takes files from what was the previous generation. What it makes is closed to
//! everybody else until the source's own modes come. Knows nothing of the source.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::io::Errno;

use super::adopt;
use super::basis::{Basis, Filling, Way, hands};
use super::freeze;
use super::index::Index;
use super::receive::write_error;
use super::server;
use super::session::Session;
use super::stage::{self, Work};
use super::stock::{Known, Stock};
use super::tree::Item;
use crate::delta::path::RelPath;
use crate::failpoint;
use crate::mysql::Flavour;
use crate::mysql::files::foreign;
use crate::problem::{Explain, Outcome, Problem};
use crate::wire::message::{Keep, Room, Seeded};

/// How a stage is filled.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// Of what runs here.
    pub flavour: Flavour,
    /// What cannot be cloned is copied. Worth its time and room only if it came from where the image comes from.
    pub copies: bool,
    /// The previous generation, if its files may be had.
    pub previous: Option<&'a Path>,
    /// Files are hashed past the page cache.
    pub from_disk: bool,
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
    /// Where older files of the same names are to be had.
    previous: Option<&'a Path>,
    /// Some file could not be cloned: the others will not either.
    no_clones: AtomicBool,
    made: Mutex<Vec<Made>>,
    failed: Mutex<Option<Problem>>,
}

/// Begins to fill an empty stage, as far as there is room: `stock.basis` goes on with it. Blocking.
pub fn seed(
    stock: &mut Stock,
    datadir: &Path,
    items: &[Item],
    options: Options<'_>,
    session: &Session,
) -> Outcome<Seeded> {
    let Options { flavour, copies, previous, from_disk } = options;
    let wanted = |item: &&Item| foreign(flavour, &item.path.under(Path::new(""))).is_none();
    for item in items.iter().filter(wanted).filter(|item| item.dir) {
        let full = item.path.under(&stock.stage);
        std::fs::DirBuilder::new().mode(0o700).create(&full).map_err(|e| write_error(&full, &e))?;
        stock.known.insert(item.path.clone(), Known::Dir);
    }
    if let Some(previous) = previous {
        stage::make_dir(&adopt::quarantine(previous))?;
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
        previous,
        // that was tried before the previous generation was given up to this
        no_clones: AtomicBool::new(previous.is_some()),
        made: Mutex::default(),
        failed: Mutex::default(),
    };
    std::thread::scope(|scope| {
        for _ in 0..hands() {
            scope.spawn(|| seeding.work());
        }
    });
    let Seeding { made, failed, .. } = seeding;
    if let Some(problem) = failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
        return Err(problem);
    }
    let mut made = made.into_inner().unwrap_or_else(|e| e.into_inner());
    without_held(&stock.stage, &mut made);
    if let Some(previous) = previous {
        // the next one makes its own
        let _ = std::fs::remove_dir_all(adopt::quarantine(previous));
    }
    let bytes = made.iter().map(|one| one.known.len()).sum();
    let (shared, reused) = made.iter().fold((true, false), |(shared, reused), one| {
        let way = one.filling.way;
        (shared && (way == Way::Shared || one.known.len() == 0), reused || way == Way::Compared)
    });
    let seeded = Seeded { files: made.len() as u64, bytes, shared, reused };
    let mut filling = Vec::with_capacity(made.len());
    for Made { path, known, filling: file, .. } in made {
        stock.known.insert(path, known);
        filling.push(file);
    }
    stock.basis = Basis::new(&stock.stage, datadir, from_disk, filling);
    Ok(seeded)
}

/// Fills and hashes what `seed` has begun, all of it. Blocking.
pub fn fill(stock: &Stock, session: &Session) -> Outcome<()> {
    std::thread::scope(|scope| {
        for _ in 0..hands() {
            scope.spawn(|| stock.basis.work(&stock.index, session, true));
        }
    });
    stock.basis.verdict()
}

/// A file of the stage.
struct Made {
    path: RelPath,
    known: Known,
    filling: Filling,
    /// Which file of the previous generation it was.
    adopted: Option<adopt::Id>,
}

/// What another process has open, or gives another name, is no basis: a new file takes its place, if one can be made.
fn without_held(stage: &Path, made: &mut Vec<Made>) {
    let adopted: HashSet<adopt::Id> = made.iter().filter_map(|one| one.adopted).collect();
    if adopted.is_empty() {
        return;
    }
    let held = adopt::held(&adopted);
    made.retain_mut(|one| {
        let Some(id) = one.adopted else { return true };
        let full = one.path.under(stage);
        let alone = std::fs::symlink_metadata(&full).is_ok_and(|meta| meta.nlink() == 1);
        if alone && !held.contains(&id) {
            return true;
        }
        one.filling.way = Way::Copied;
        let new = || {
            std::fs::remove_file(&full)?;
            let new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&full)?;
            new.set_len(one.known.len())
        };
        let is_new = new();
        if is_new.is_err() {
            let _ = std::fs::remove_file(&full);
        }
        is_new.is_ok()
    });
}

/// Removes the previous generation if it may go before the new one comes; true: it is nobody's, and left for its files to be had.
pub fn make_room(work: &Work, room: Room) -> Outcome<bool> {
    if room.keep != Keep::UntilStage {
        return Ok(false);
    }
    let _act = work.exclusive()?;
    let reused = room.basis && previous_serves(work)?;
    if reused {
        work.disown_previous()?
    } else {
        work.forget_previous()?
    }
    Ok(reused)
}

/// Whether files of the previous generation are worth having: where nothing can be cloned, and both generations came from elsewhere, most
/// of what would be copied is there already. Where room is short, it is worth more to be gone.
fn previous_serves(work: &Work) -> Outcome<bool> {
    let (generations, previous) = (work.generations()?, work.previous());
    let of_one_kind = generations.current.origin.is_some() && generations.previous.is_some_and(|g| g.origin.is_some());
    let there = || std::fs::symlink_metadata(&previous).is_ok_and(|meta| meta.is_dir());
    let room = || freeze::roomy(&work.folder).is_ok_and(|room| room.is_ok());
    // what looks like no datadir is none to begin with
    let idle = || server::find(&previous).is_ok_and(|running| running.is_none());
    Ok(of_one_kind && there() && room() && idle() && freeze::no_clones(&work.datadir, &work.folder))
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
                self.one(n, item)
            });
            match result {
                Ok(None) => {}
                Ok(Some(made)) => lock(&self.made).push(made),
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
    fn one(&self, n: usize, item: &Item) -> Outcome<Option<Made>> {
        if self.no_clones.load(Ordering::Relaxed) && !self.copies {
            return Ok(None);
        }
        let Ok(from) = server::open_beneath(self.datadir, &item.path.under(Path::new(""))) else { return Ok(None) };
        let full = item.path.under(self.stage);
        let older = match self.previous {
            Some(previous) => adopt::adopt(previous, self.stage, &item.path, n)?,
            None => None,
        };
        let adopted = older.as_ref().and_then(adopt::id);
        let (to, made) = match older {
            Some(to) => {
                let made = to.set_len(item.len).map(|()| Some(Way::Compared));
                (to, made)
            }
            None => {
                let mut options = OpenOptions::new();
                options.write(true).create_new(true).mode(0o600);
                let to = options.open(&full).map_err(|e| write_error(&full, &e))?;
                let made = self.make(&from, &to, item.len);
                (to, made)
            }
        };
        let made = match made {
            Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                self.enough();
                None
            }
            made => made.map_err(|e| write_error(&full, &e))?,
        };
        let Some(way) = made else {
            drop(to);
            std::fs::remove_file(&full).explain(|| format!("cannot remove {}", full.display()))?;
            return Ok(None);
        };
        let len = to.metadata().explain(|| format!("cannot read {}", full.display()))?.len();
        let span = self.index.span(len);
        let (path, known) = (item.path.clone(), Known::File { len, span, proof: None });
        Ok(Some(Made { filling: Filling::new(path.clone(), len, span, way), path, known, adopted }))
    }

    /// A clone, or a hole of the same length; None: neither. Errors are the stage's.
    fn make(&self, from: &File, to: &File, len: u64) -> Result<Option<Way>, Error> {
        if !self.no_clones.load(Ordering::Relaxed) {
            match freeze::share(from, to) {
                Ok(()) => return Ok(Some(Way::Shared)),
                Err(Errno::NOSPC | Errno::DQUOT) => return Err(Errno::NOSPC.into()),
                // of this one file only
                Err(Errno::INVAL) => {}
                Err(_) => self.no_clones.store(true, Ordering::Relaxed),
            }
        }
        if !self.copies {
            return Ok(None);
        }
        to.set_len(len)?;
        Ok(Some(Way::Copied))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
