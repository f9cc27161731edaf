//! A frozen, consistent view of a stopped server's datadir, so that the server starts again at once and the copy goes on from the view.
//!
//! What is going to be made is on record before it is made, in root's own folder; `sweep` removes what the record names, whoever made it
//! and however far they came. Nothing else is ever removed: everything of ours carries the program's name and the run's id, and is looked
//! at once more before it goes. Never writes into the datadir. Blocks; takes no lock, since its callers hold the host's.
//!
//! Here is the record and what agents do; each way has a file of its own.

mod btrfs;
mod lvm;
mod mounts;
mod programs;
mod reflink;
mod zfs;

#[cfg(test)]
mod tests;

use std::fmt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::receive::is_root;
use super::stage::{self, Work};
use super::tree::Item;
use crate::authority;
use crate::durable::{sealed, sync_dir, unsealed};
use crate::failpoint;
use crate::instance::Instance;
use crate::problem::{Explain, Outcome, Problem};
pub use crate::wire::message::FreezeWish as Wish;
pub use lvm::{Room, Volume};
pub use reflink::share;

/// Fail points in here.
pub const POINTS: [&str; 4] = ["freeze:journalled", "freeze:made", "freeze:taken", "freeze:removed"];

/// Whether a filesystem has room beside what its server needs; an error in words: it has not.
pub fn roomy(path: &Path) -> Outcome<Result<(), String>> {
    mounts::roomy(path)
}

/// Whether no file of a datadir can be cloned into a folder of its filesystem.
pub fn no_clones(datadir: &Path, folder: &Path) -> bool {
    reflink::none(datadir, folder)
}

/// For files that are opened by name.
const NO_FOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits() as i32;

/// What everything of ours is called, before the run's id.
const NAME: &str = "mysql-refreshd-";

/// How a datadir can be frozen. An agent goes by what it has chosen itself, never by one that came over a wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Way {
    /// A clone of each file, in the work folder beside the datadir.
    Reflink {
        /// The filesystem's kind.
        filesystem: String,
    },
    /// A read-only snapshot of the datadir's subvolume.
    Btrfs {
        /// The subvolume's uuid.
        uuid: String,
        /// In the work folder beside the datadir; else at the top of the filesystem, which is mounted for that.
        beside: bool,
    },
    /// A snapshot of the datadir's dataset.
    Zfs {
        /// The dataset.
        dataset: String,
        /// Where it is mounted.
        mounted: PathBuf,
    },
    /// A snapshot of the datadir's logical volume.
    Lvm(Volume),
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Way::Reflink { filesystem } => {
                let shown = if filesystem == "xfs" { "XFS" } else { filesystem };
                write!(f, "reflink clone beside the datadir ({shown})")
            }
            Way::Btrfs { beside: true, .. } => write!(f, "btrfs snapshot beside the datadir"),
            Way::Btrfs { beside: false, .. } => write!(f, "btrfs snapshot at the top of the datadir's filesystem"),
            Way::Zfs { dataset, .. } => write!(f, "ZFS snapshot of {dataset}"),
            Way::Lvm(Volume { vg, lv, room: Room::Thin { pool }, .. }) => {
                write!(f, "thin LVM snapshot of {vg}/{lv} (pool {pool})")
            }
            Way::Lvm(Volume { vg, lv, room: Room::Classic { bytes, .. }, .. }) => {
                write!(f, "LVM snapshot of {vg}/{lv} with room for {} MiB of changes", bytes >> 20)
            }
        }
    }
}

impl Way {
    /// Whether it holds all files as they were at one moment, also while a server writes to them. Clones are made one after the other.
    pub fn is_atomic(&self) -> bool {
        !matches!(self, Way::Reflink { .. })
    }
}

/// Whether what is frozen takes its room from the datadir's filesystem.
fn shares_room(way: &Way) -> bool {
    !matches!(way, Way::Lvm(_))
}

/// Whose datadir, and where its record is.
#[derive(Debug, Clone)]
pub struct Place {
    /// The host's state folder.
    pub state_dir: PathBuf,
    /// The instance's key on this host.
    pub key: String,
    /// The datadir.
    pub datadir: PathBuf,
}

/// What is frozen, or is about to be; on disk from before anything is made until it is gone again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    run: String,
    /// What everything of this run's is called.
    name: String,
    way: Way,
    /// The datadir, symlinks resolved.
    datadir: PathBuf,
    /// Our folder beside it.
    folder: PathBuf,
    /// The clone's folder, once it is made.
    made: Option<u64>,
}

impl Place {
    /// Of an instance.
    pub fn new(instance: &Instance, key: &str) -> Self {
        Self { state_dir: instance.state_dir.clone(), key: key.to_owned(), datadir: instance.datadir.clone() }
    }
    fn folder(&self) -> PathBuf {
        self.state_dir.join("freeze")
    }
    fn file(&self) -> PathBuf {
        self.folder().join(format!("{}.json", self.key))
    }
    /// Where what has to be mounted is.
    fn mount_point(&self) -> PathBuf {
        self.folder().join(&self.key)
    }
    fn read(&self) -> Outcome<Option<Record>> {
        let path = self.file();
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).explain(|| format!("cannot read {}", path.display())),
        };
        authority::only_ours(&self.folder())?;
        let damaged = || {
            Problem::failed(format!("{} is damaged; nothing is removed on its word", path.display())).hint(format!(
                "Look for what is called {NAME}… (`lvs`, `btrfs subvolume list`, `zfs list -t snapshot`, the folder beside the datadir), \
                 remove it, then the file."
            ))
        };
        let record: Record = serde_json::from_slice(unsealed(&bytes).ok_or_else(damaged)?).map_err(|_| damaged())?;
        if name_of(&record.run).ok().as_ref() != Some(&record.name) {
            return Err(damaged());
        }
        Ok(Some(record))
    }
    fn write(&self, record: &Record) -> Outcome<()> {
        authority::only_ours(&self.folder())?;
        std::fs::create_dir_all(&self.state_dir).explain(|| format!("cannot create {}", self.state_dir.display()))?;
        stage::make_dir(&self.folder())?;
        let bytes = serde_json::to_vec_pretty(record).explain(|| "cannot write what is frozen")?;
        crate::durable::replace(&self.file(), &sealed(bytes), 0o600)
            .explain(|| format!("cannot write {}", self.file().display()))
    }
    fn forget(&self) -> Outcome<()> {
        std::fs::remove_file(self.file())
            .and_then(|()| sync_dir(&self.folder()))
            .explain(|| format!("cannot remove {}", self.file().display()))
    }
}

/// What a run's snapshots are called. The id comes over a wire, and names are given to programs that run as root.
fn name_of(run: &str) -> Outcome<String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match !run.is_empty() && run.len() <= 64 && run.chars().all(fits) {
        true => Ok(format!("{NAME}{run}")),
        false => Err(Problem::failed("the run's id cannot be the name of a snapshot")),
    }
}

/// How a datadir can be frozen as wished; an error in words: why it cannot. Looks, and changes nothing; the server may be running.
pub fn choose(datadir: &Path, wish: Wish) -> Outcome<Result<Way, String>> {
    if wish == Wish::None {
        return Ok(Err("it is not wished".to_owned()));
    }
    let work = Work::of(datadir)?;
    let mount = mounts::Mount::of(&work.datadir)?;
    let mut reasons = Vec::new();
    // one snapshot of everything before many clones, and where the filesystem can do it itself no volume manager. Without a wish for it a way
    // that another filesystem has is no reason
    let all = [
        (Wish::Btrfs, mount.kind == "btrfs"),
        (Wish::Zfs, mount.kind == "zfs"),
        (Wish::Reflink, true),
        (Wish::Lvm, true),
    ];
    let any = matches!(wish, Wish::Auto | Wish::Atomic);
    for (way, fits) in all {
        if wish == Wish::Atomic && way == Wish::Reflink {
            reasons.push("clones of files are made one after the other, not at one moment".to_owned());
        } else if wish == way || (any && fits) {
            match possible(&work, &mount, way) {
                Ok(Ok(way)) => return Ok(Ok(way)),
                Ok(Err(why)) => reasons.push(why),
                // whatever is wrong with it, there are other ways
                Err(problem) if any => reasons.push(problem.to_string()),
                Err(problem) => return Err(problem),
            }
        }
    }
    Ok(Err(reasons.join("; ")))
}

fn possible(work: &Work, mount: &mounts::Mount, way: Wish) -> Outcome<Result<Way, String>> {
    let beside = matches!(way, Wish::Btrfs | Wish::Reflink) && !work.inside;
    if beside && let Err(problem) = work.guarded() {
        return Ok(Err(problem.to_string()));
    }
    let found = match way {
        Wish::Btrfs => btrfs::possible(work, mount)?.map(|uuid| Way::Btrfs { uuid, beside: !work.inside }),
        Wish::Zfs => zfs::possible(mount).map(|(dataset, mounted)| Way::Zfs { dataset, mounted }),
        Wish::Reflink => {
            reflink::possible(work, &mount.to_string()).map(|()| Way::Reflink { filesystem: mount.kind.clone() })
        }
        Wish::Lvm => lvm::possible(mount)?.map(Way::Lvm),
        Wish::Auto | Wish::Atomic | Wish::None => Err("it is not a way".to_owned()),
    };
    match found {
        Ok(way) if shares_room(&way) => Ok(mounts::roomy(&work.datadir)?
            .map(|()| way)
            .map_err(|why| format!("{mount} could run full while something is frozen: {why}"))),
        other => Ok(other),
    }
}

/// All that can be done before the stop, and is not part of the outage then: what an earlier run has left goes, there is room, and what is in
/// memory of the datadir's filesystem is written out.
pub fn prepare(place: &Place, way: &Way) -> Outcome<()> {
    sweep(place)?;
    let datadir = &place.datadir;
    if shares_room(way) {
        mounts::roomy(datadir)?
            .map_err(|why| Problem::failed("the datadir cannot be frozen: its filesystem could run full").cause(why))?;
    }
    let folder = std::fs::File::open(datadir).explain(|| format!("cannot open {}", datadir.display()))?;
    rustix::fs::syncfs(&folder).explain(|| format!("cannot write out {}", datadir.display()))
}

/// A frozen datadir. It stays until `sweep`, also when this value or its process is gone.
#[derive(Debug)]
pub struct Frozen {
    place: Place,
    record: Record,
    datadir: PathBuf,
}

impl Frozen {
    /// Where it can be read.
    pub fn datadir(&self) -> &Path {
        &self.datadir
    }
    /// An error: it may not hold any longer what it held, or production could find its filesystem full because of it. What was read
    /// from it is not to be used then, and it has to go at once.
    pub fn check(&self) -> Outcome<()> {
        let invalid = |why: String| {
            Problem::failed("what is frozen of the datadir cannot be used any longer").cause(why).hint(
                "Make room on the source, run at a time when less is written, or set `freeze = \"none\"` for a longer outage.",
            )
        };
        match self.place.read()? {
            Some(record) if record.run == self.record.run => {}
            _ => return Err(invalid("it was removed meanwhile".to_owned())),
        }
        if !self.datadir.is_dir() {
            return Err(invalid(format!("{} is gone", self.datadir.display())));
        }
        if let Way::Lvm(volume) = &self.record.way {
            return lvm::check(volume, &self.record.name).map_err(|problem| invalid(problem.to_string()));
        }
        mounts::roomy(&self.record.datadir)?
            .map_err(|why| invalid(format!("the source's filesystem could run full: {why}")))
    }
}

/// How often frozen files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Frozen files that a thread looks at until this is dropped: should they fill up, or be about to fill the source's filesystem, they are
/// removed at once, whatever their reader waits for.
pub struct Watched {
    frozen: Arc<Frozen>,
    gone: Arc<Mutex<Option<Problem>>>,
    _over: Sender<()>,
}

impl Watched {
    /// From now on.
    pub fn new(frozen: Frozen) -> Self {
        let (frozen, gone) = (Arc::new(frozen), Arc::<Mutex<Option<Problem>>>::default());
        let (over, wait) = channel();
        let (looked_at, noted) = (frozen.clone(), gone.clone());
        std::thread::spawn(move || {
            while wait.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                if let Err(problem) = looked_at.check() {
                    noted.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(problem);
                    // whoever reads has it open, and ends soon
                    while sweep(&looked_at.place).is_err() && wait.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout)
                    {
                    }
                    return;
                }
            }
        });
        Self { frozen, gone, _over: over }
    }
    /// Where it can be read.
    pub fn datadir(&self) -> &Path {
        self.frozen.datadir()
    }
    /// An error: they are not there any more, or not to be used.
    pub fn still(&self) -> Outcome<()> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner).clone().map_or(Ok(()), Err)
    }
    /// The same, looked at now: what was read until now may be used.
    pub fn held(&self) -> Outcome<()> {
        self.still()?;
        self.frozen.check()
    }
}

/// Freezes the datadir; what an earlier run left is removed first. The server must be stopped, and stay so until this returns. On failure
/// what was begun is removed.
pub fn take(way: &Way, place: &Place, run: &str, items: &[Item]) -> Outcome<Frozen> {
    take_at(way, place, run, items, &mut || ())
}

/// The same. `made` is told as soon as it no longer matters what becomes of the files: the snapshot is made, or it never will be.
pub fn take_at(way: &Way, place: &Place, run: &str, items: &[Item], made: &mut dyn FnMut()) -> Outcome<Frozen> {
    sweep(place)?;
    let told = std::cell::RefCell::new(made);
    let reach = |point: &str| {
        if point == "freeze:made" {
            (told.borrow_mut())();
        }
        failpoint::hit(point)
    };
    attempt(way, place, run, items, &reach).map_err(|problem| {
        (told.borrow_mut())();
        match sweep(place) {
            Ok(_) => problem,
            Err(left) => problem.cause(format!("and what was begun could not be removed: {left}")),
        }
    })
}

/// The same without a way back.
fn attempt(
    way: &Way,
    place: &Place,
    run: &str,
    items: &[Item],
    reach: &dyn Fn(&str) -> Outcome<()>,
) -> Outcome<Frozen> {
    let work = Work::of(&place.datadir)?;
    let (name, folder, datadir) = (name_of(run)?, work.frozen(), work.datadir.clone());
    let mut record = Record {
        run: run.to_owned(),
        name: name.clone(),
        way: way.clone(),
        datadir: datadir.clone(),
        folder,
        made: None,
    };
    if shares_room(way) {
        mounts::roomy(&datadir)?
            .map_err(|why| Problem::failed("the datadir cannot be frozen: its filesystem could run full").cause(why))?;
    }
    let beside = matches!(way, Way::Reflink { .. } | Way::Btrfs { beside: true, .. });
    if beside {
        free(&record.folder, &name)?;
    }
    place.write(&record)?;
    reach("freeze:journalled")?;
    if beside {
        work.create()?;
        stage::make_dir(&record.folder)?;
    }
    let (point, beside) = (place.mount_point(), record.folder.join(&name));
    let frozen = match way {
        Way::Reflink { .. } => {
            std::fs::DirBuilder::new()
                .mode(0o700)
                .create(&beside)
                .explain(|| format!("cannot create {}", beside.display()))?;
            reach("freeze:made")?;
            let meta = std::fs::symlink_metadata(&beside).explain(|| format!("cannot look at {}", beside.display()))?;
            record.made = Some(meta.ino());
            place.write(&record)?;
            reflink::clone(&datadir, &beside, items)?;
            beside
        }
        Way::Btrfs { beside: true, .. } => {
            btrfs::snapshot(&datadir, &beside)?;
            reach("freeze:made")?;
            beside
        }
        Way::Btrfs { beside: false, .. } => {
            btrfs::attach_top(&datadir, &point)?;
            free(&point, &name)?;
            btrfs::snapshot(&datadir, &point.join(&name))?;
            reach("freeze:made")?;
            point.join(&name)
        }
        Way::Zfs { dataset, mounted } => {
            zfs::snapshot(dataset, &name, run)?;
            reach("freeze:made")?;
            zfs::path(mounted, &name, &mounts::Mount::of(&datadir)?.inside(&datadir)?)
        }
        Way::Lvm(volume) => {
            lvm::snapshot(&datadir, volume, &name)?;
            reach("freeze:made")?;
            lvm::attach(volume, &name, &point)?;
            point.join(mounts::Mount::of(&datadir)?.inside(&datadir)?)
        }
    };
    reach("freeze:taken")?;
    Ok(Frozen { place: place.clone(), record, datadir: frozen })
}

/// Removes what is on record as frozen, then the record. Idempotent; false: there was nothing.
pub fn sweep(place: &Place) -> Outcome<bool> {
    sweep_to(place, &failpoint::hit)
}

fn sweep_to(place: &Place, reach: &dyn Fn(&str) -> Outcome<()>) -> Outcome<bool> {
    let Some(record) = place.read()? else { return Ok(false) };
    remove(place, &record).map_err(|problem| {
        problem.during(format!("what run {} had frozen ({}) cannot be removed", record.run, record.way)).hint(format!(
            "It is called {}. When it is gone by other means, remove {}.",
            record.name,
            place.file().display()
        ))
    })?;
    reach("freeze:removed")?;
    place.forget()?;
    Ok(true)
}

fn remove(place: &Place, record: &Record) -> Outcome<()> {
    let (name, point) = (&record.name, place.mount_point());
    match &record.way {
        Way::Reflink { .. } => {
            if owned(&record.folder)? {
                remove_clone(&record.folder.join(name), record.made)?;
            }
            leave(&record.folder)
        }
        Way::Btrfs { uuid, beside: true } => {
            if owned(&record.folder)? {
                btrfs::delete(&record.folder, name, uuid)?;
            }
            leave(&record.folder)
        }
        Way::Btrfs { uuid, beside: false } => {
            stage::make_dir(&point)?;
            let device = btrfs::attach_top(&record.datadir, &point)?;
            btrfs::delete(&point, name, uuid)?;
            mounts::detach(&point, |mount| mount.is_whole() && mount.device == device)
        }
        Way::Zfs { dataset, .. } => match zfs::is_dataset(dataset) {
            true => zfs::destroy(dataset, name, &record.run),
            false => Err(Problem::failed("not the name of a dataset")),
        },
        Way::Lvm(volume) => match lvm::is_name(&volume.vg) {
            true => lvm::remove(volume, name, &point),
            false => Err(Problem::failed("not the name of a volume group")),
        },
    }
}

fn not_ours(path: &Path) -> Problem {
    Problem::failed(format!("{} is not what this program has made there; it is left alone", path.display()))
        .hint("Look at it, and take it away.")
}

/// Whether a folder is there, and this account's, and nobody else's can be put in its place.
fn owned(folder: &Path) -> Outcome<bool> {
    for folder in folder.parent().into_iter().chain([folder]) {
        match std::fs::symlink_metadata(folder) {
            Ok(meta) if meta.is_dir() && meta.uid() == rustix::process::geteuid().as_raw() => {}
            Ok(_) => return Err(not_ours(folder)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error).explain(|| format!("cannot look at {}", folder.display())),
        }
    }
    if is_root() {
        authority::only_ours(folder)?;
    }
    Ok(true)
}

/// An error: what we are about to make is there already, and so it is not ours.
fn free(folder: &Path, name: &str) -> Outcome<()> {
    let path = folder.join(name);
    match owned(folder)? && std::fs::symlink_metadata(&path).is_ok() {
        true => Err(not_ours(&path)),
        false => Ok(()),
    }
}

/// Removes the clone's folder. One that was never filled is not on record by its number, and is empty.
fn remove_clone(folder: &Path, made: Option<u64>) -> Outcome<()> {
    let of = || format!("cannot remove {}", folder.display());
    let meta = match std::fs::symlink_metadata(folder) {
        Ok(meta) => meta,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).explain(of),
    };
    let ours = owned(folder)?;
    match made {
        None if ours => std::fs::remove_dir(folder).map_err(|error| match error.kind() {
            std::io::ErrorKind::DirectoryNotEmpty => not_ours(folder),
            _ => Problem::failed(of()).because(error),
        })?,
        Some(inode) if ours && meta.ino() == inode => {
            // whoever still has one open keeps no blocks alive
            empty(folder);
            std::fs::remove_dir_all(folder).explain(of)?;
        }
        _ => return Err(not_ours(folder)),
    }
    Ok(())
}

/// Cuts all files below a folder of ours to nothing, as far as that can be done.
fn empty(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => empty(&entry.path()),
            Ok(kind) if kind.is_file() => {
                let file = std::fs::OpenOptions::new().write(true).custom_flags(NO_FOLLOW).open(entry.path());
                let _ = file.and_then(|file| file.set_len(0));
            }
            _ => {}
        }
    }
}

/// Makes it durable that nothing of ours is in the folder beside the datadir, and removes it and the work folder, unless they are in use.
/// Only then may the record go: a loss of power must not bring back what nobody knows of any more.
fn leave(folder: &Path) -> Outcome<()> {
    for at in [folder, folder.parent().unwrap_or(folder)] {
        match sync_dir(at) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            result => result.explain(|| format!("cannot make {} durable", at.display()))?,
        }
        if std::fs::remove_dir(at).is_err() {
            break;
        }
    }
    Ok(())
}
