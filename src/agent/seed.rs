//! The beginning of a basis: every file of the destination's current generation is made in the stage, as a clone that shares its blocks
//! where the filesystem can; else as a hole that is filled by and by, or by what the previous generation has left, where that may go. A server may be writing into the originals meanwhile: what is
//! hashed is the stage, so a wrong basis costs bytes, never correctness.
//!
//! Only reads the datadir; writes below the stage only. Knows nothing of the source.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::io::Errno;

use super::basis::{Basis, Filling, Way, hands};
use super::freeze;
use super::index::Index;
use super::receive::write_error;
use super::server;
use super::session::Session;
use super::stage::Work;
use super::stock::{Known, Stock};
use super::tree::Item;
use crate::delta::path::RelPath;
use crate::failpoint;
use crate::mysql::Flavour;
use crate::mysql::files::foreign;
use crate::problem::{Explain, Outcome, Problem};
use crate::wire::message::{Keep, Room, SeedOptions, Seeded};

/// How a stage is filled.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Of what runs here.
    pub flavour: Flavour,
    /// What cannot be cloned is copied. Worth its time and room only if it came from where the image comes from.
    pub copies: bool,
    /// The stage holds what was the previous generation.
    pub reused: bool,
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
    /// There may be older files of the same names.
    reused: bool,
    /// Some file could not be cloned: the others will not either.
    no_clones: AtomicBool,
    made: Mutex<Vec<(RelPath, Known, Filling)>>,
    failed: Mutex<Option<Problem>>,
}

/// Fills an empty stage, as far as there is room. What is not clones is filled and hashed by `stock.basis`, at once if the whole was asked
/// for. Blocking.
pub fn seed(stock: &mut Stock, datadir: &Path, items: &[Item], options: Options, session: &Session) -> Outcome<Seeded> {
    let Options { flavour, copies, reused, asked } = options;
    let wanted = |item: &&Item| foreign(flavour, &item.path.under(Path::new(""))).is_none();
    let all: BTreeMap<&RelPath, bool> = items.iter().filter(wanted).map(|item| (&item.path, item.dir)).collect();
    if reused {
        only_those(&stock.stage, Path::new(""), &all)?;
    }
    for item in items.iter().filter(wanted).filter(|item| item.dir) {
        let full = item.path.under(&stock.stage);
        match std::fs::DirBuilder::new().mode(item.mode | 0o700).create(&full) {
            Err(error) if reused && error.kind() == ErrorKind::AlreadyExists => {}
            made => made.map_err(|e| write_error(&full, &e))?,
        }
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
        reused,
        // it was tried before the previous generation was taken for that
        no_clones: AtomicBool::new(reused),
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
    let seeded = Seeded { files: made.len() as u64, bytes, shared: !no_clones.into_inner(), reused };
    let mut filling = Vec::with_capacity(made.len());
    for (path, known, file) in made {
        stock.known.insert(path, known);
        filling.push(file);
    }
    if reused {
        // of older files there is nothing but what the basis has
        let made = stock.known.iter().map(|(path, is)| (path, matches!(is, Known::Dir))).collect();
        only_those(&stock.stage, Path::new(""), &made)?;
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

/// Removes the previous generation if it may go before the new one comes, or begins the empty stage with it: then true.
pub fn make_room(work: &Work, room: Room) -> Outcome<bool> {
    if room.keep != Keep::UntilStage {
        return Ok(false);
    }
    let _act = work.exclusive()?;
    let reused = room.basis && previous_serves(work)?;
    if reused {
        work.reuse_previous()?
    } else {
        work.forget_previous()?
    }
    Ok(reused)
}

/// Whether the stage may begin as the previous generation: where nothing can be cloned, and both generations came from elsewhere, most
/// of what would be copied is there already.
fn previous_serves(work: &Work) -> Outcome<bool> {
    let (generations, previous) = (work.generations()?, work.previous());
    let of_one_kind = generations.current.origin.is_some() && generations.previous.is_some_and(|g| g.origin.is_some());
    let there = || std::fs::symlink_metadata(&previous).is_ok_and(|meta| meta.is_dir());
    // what looks like no datadir is none to begin with
    let idle = || server::find(&previous).is_ok_and(|running| running.is_none());
    Ok(of_one_kind && there() && idle() && !freeze::clones_into(&work.datadir, &work.folder))
}

/// Removes from a folder of the stage all but these entries (true: a folder), each of its kind and with no other name.
fn only_those(stage: &Path, below: &Path, wanted: &BTreeMap<&RelPath, bool>) -> Outcome<()> {
    let folder = stage.join(below);
    let unread = || format!("cannot read {}", folder.display());
    for entry in std::fs::read_dir(&folder).explain(unread)? {
        let entry = entry.explain(unread)?;
        let (path, full) = (below.join(entry.file_name()), entry.path());
        let meta = std::fs::symlink_metadata(&full).explain(unread)?;
        let dir = RelPath::try_from(path.clone()).ok().and_then(|path| wanted.get(&path).copied());
        match dir {
            Some(true) if meta.is_dir() => {
                bare(&full);
                only_those(stage, &path, wanted)?;
            }
            Some(false) if meta.is_file() && meta.nlink() == 1 => bare(&full),
            _ if meta.is_dir() => {
                std::fs::remove_dir_all(&full).explain(|| format!("cannot remove {}", full.display()))?
            }
            _ => std::fs::remove_file(&full).explain(|| format!("cannot remove {}", full.display()))?,
        }
    }
    Ok(())
}

/// Takes from an older file or folder what others have hung on it, like access lists: a new one would have none of that.
fn bare(path: &Path) {
    let mut names = vec![0; 4096];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    // a security module's label belongs to the place, not to the content
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty() && !name.starts_with(b"security."))
    {
        let _ = rustix::fs::lremovexattr(path, name);
    }
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
        let mut options = OpenOptions::new();
        options.write(true).mode(item.mode & 0o666);
        let older = match self.reused.then(|| options.open(&full)) {
            Some(Ok(file)) => Some(file),
            Some(Err(error)) if error.kind() != ErrorKind::NotFound => {
                std::fs::remove_file(&full).explain(|| format!("cannot remove {}", full.display()))?;
                None
            }
            _ => None,
        };
        let (to, made) = match older {
            Some(to) => {
                let made = to.set_len(item.len).map(|()| Some(Way::Compared));
                (to, made)
            }
            None => {
                let to = options.create_new(true).open(&full).map_err(|e| write_error(&full, &e))?;
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
        Ok(Some((Known::File { len, span, proof: None }, Filling::new(item.path.clone(), len, span, way))))
    }

    /// A clone, or a hole of the same length; None: neither. Errors are the stage's.
    fn make(&self, from: &File, to: &File, len: u64) -> Result<Option<Way>, Error> {
        if !self.no_clones.load(Ordering::Relaxed) {
            match rustix::fs::ioctl_ficlone(to, from) {
                Ok(()) => return Ok(Some(Way::Shared)),
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
        Ok(Some(Way::Copied))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
