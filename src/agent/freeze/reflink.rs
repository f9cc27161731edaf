//! A clone of each file of the image, which shares its blocks with the original until somebody writes there (XFS, btrfs).
//!
//! Reads the datadir and writes beside it, never in it. One file after the other: only a stopped server's files make one image.

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::fs::{IFlags, Mode, OFlags, ioctl_ficlone, ioctl_getflags, ioctl_setflags, mkdirat, openat};
use rustix::io::Errno;

use crate::agent::server;
use crate::agent::stage::Work;
use crate::agent::tree::Item;
use crate::problem::{Explain, Outcome, Problem};

/// Files that one thread takes at a time.
const BATCH: usize = 256;

/// Threads at most: most of it is the kernel's work in one filesystem's log.
const THREADS: usize = 4;

/// How many entries of the datadir are looked at for one to try with.
const TRIED: usize = 200;

/// A file of at most this size is tried with: a large one would be locked for a while.
const TRIED_SIZE: u64 = 4 << 20;

/// Whether files can be cloned into the folder beside the datadir; an error says why not.
pub fn possible(work: &Work, filesystem: &str) -> Result<(), String> {
    if work.inside {
        let datadir = work.datadir.display();
        return Err(format!("{datadir} is a mount point: on its filesystem there is no place beside it for a clone"));
    }
    let parent = work.datadir.parent().unwrap_or(Path::new("/"));
    try_to_clone(&work.datadir, parent).map_err(|(trial, error)| match error {
        Errno::ACCESS | Errno::PERM | Errno::ROFS if trial == Trial::Create => {
            format!("this account cannot create anything beside the datadir, in {}: {error}", parent.display())
        }
        Errno::NOSPC | Errno::DQUOT if trial == Trial::Create => {
            format!("there is no room beside the datadir, in {}", parent.display())
        }
        _ if trial == Trial::Create || (trial == Trial::Clone && NO_REFLINKS.contains(&error)) => {
            format!("{filesystem} has no reflinks")
        }
        Errno::XDEV => format!("the datadir and {} are not on one filesystem", parent.display()),
        other if trial == Trial::Clone => format!("{filesystem}: a file could not be cloned: {other}"),
        other => format!("{filesystem}: {other}"),
    })
}

/// Whether there are no clones on the filesystem of datadir and folder. What could not be tried is no answer.
pub fn none(datadir: &Path, folder: &Path) -> bool {
    try_to_clone(datadir, folder).is_err_and(|(_, error)| NO_REFLINKS.contains(&error))
}

/// What is tried, in turn.
#[derive(PartialEq, Eq)]
enum Trial {
    Create,
    Write,
    Clone,
}

/// By which a filesystem says that it has none, or no files without a name.
const NO_REFLINKS: [Errno; 5] = [Errno::OPNOTSUPP, Errno::NOTTY, Errno::INVAL, Errno::NOSYS, Errno::ISDIR];

/// Leaves nothing behind: the clone never has a name.
fn try_to_clone(datadir: &Path, folder: &Path) -> Result<(), (Trial, Errno)> {
    let nameless = |mode| {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        rustix::fs::open(folder, flags, Mode::from_raw_mode(mode)).map(File::from)
    };
    let clone = nameless(0o600).map_err(|error| (Trial::Create, error))?;
    let original = match small_file(datadir) {
        Some(file) => file,
        None => {
            let own = nameless(0o600).map_err(|error| (Trial::Write, error))?;
            rustix::io::write(&own, &[1; 65536]).map_err(|error| (Trial::Write, error))?;
            own
        }
    };
    share(&original, &clone).map_err(|error| (Trial::Clone, error))
}

/// A file of the datadir that is quickly cloned.
fn small_file(datadir: &Path) -> Option<File> {
    let fits = |path: PathBuf| {
        let file = server::open_no_follow(&path).ok()?;
        let len = file.metadata().ok()?.len();
        (1..=TRIED_SIZE).contains(&len).then_some(file)
    };
    std::fs::read_dir(datadir).ok()?.flatten().take(TRIED).find_map(|entry| fits(entry.path()))
}

/// One file's blocks for another, empty one.
pub fn share(original: &File, clone: &File) -> rustix::io::Result<()> {
    loop {
        match ioctl_ficlone(clone, original) {
            Err(Errno::INTR) => {}
            // btrfs shares between files only if both are copied on write, or none
            Err(Errno::INVAL) => {
                let flags = ioctl_getflags(original)?;
                if !flags.contains(IFlags::NOCOW) || ioctl_getflags(clone)?.contains(IFlags::NOCOW) {
                    return Err(Errno::INVAL);
                }
                ioctl_setflags(clone, IFlags::NOCOW)?;
            }
            result => return result,
        }
    }
}

/// Clones the image's files and folders from the datadir into a folder that is empty and nobody else's.
pub fn clone(datadir: &Path, into: &Path, items: &[Item]) -> Outcome<()> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS);
    clone_with(datadir, into, items, threads)
}

fn folder(path: &Path) -> Outcome<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).explain(|| format!("cannot open {}", path.display()))
}

/// A folder below, through no symlink: folders of a datadir may belong to the server's account.
fn beneath(top: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = openat(top, ".", flags, Mode::empty())?;
    for part in path.components() {
        match part {
            Component::Normal(name) => at = openat(&at, name, flags, Mode::empty())?,
            _ => return Err(Errno::INVAL),
        }
    }
    Ok(at)
}

fn clone_with(datadir: &Path, into: &Path, items: &[Item], threads: usize) -> Outcome<()> {
    let (from, to) = (folder(datadir)?, folder(into)?);
    // by folder, so that each is opened once for many files
    let mut folders: BTreeMap<&Path, Vec<&Item>> = BTreeMap::new();
    for item in items {
        let path = item.path.as_path();
        if item.dir {
            // a folder that its owner could not enter would not be filled
            let mode = Mode::from_raw_mode(item.mode | 0o700);
            mkdirat(&to, path, mode).explain(|| format!("cannot create {}", into.join(path).display()))?;
            // the umask may have taken bits
            std::fs::set_permissions(into.join(path), Permissions::from_mode(mode.bits()))
                .explain(|| format!("cannot set the permissions of {}", into.join(path).display()))?;
        } else {
            folders.entry(path.parent().unwrap_or(Path::new(""))).or_default().push(item);
        }
    }
    let batches: Vec<(&Path, &[&Item])> =
        folders.iter().flat_map(|(path, items)| items.chunks(BATCH).map(|batch| (*path, batch))).collect();
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let work = || -> Outcome<()> {
        while !failed.load(Ordering::Relaxed) {
            let Some((path, batch)) = batches.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
            let open =
                |top, of: &Path| beneath(top, path).explain(|| format!("cannot open {}", of.join(path).display()));
            let (from, to) = (open(&from, datadir)?, open(&to, into)?);
            batch.iter().try_for_each(|item| one(&from, &to, item))?;
        }
        Ok(())
    };
    let noted = || work().inspect_err(|_| failed.store(true, Ordering::Relaxed));
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads.min(batches.len())).map(|_| scope.spawn(noted)).collect();
        let mut result = noted();
        for other in others {
            result = result.and(other.join().unwrap_or_else(|_| Err(Problem::failed("a cloning thread failed"))));
        }
        result
    })
}

/// Clones one file between two folders.
fn one(from: &OwnedFd, to: &OwnedFd, item: &Item) -> Outcome<()> {
    let of = || format!("cannot clone {}", item.path);
    let name = item.path.as_path().file_name().unwrap_or_default();
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let original = File::from(openat(from, name, flags, Mode::empty()).explain(of)?);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(item.mode);
    let clone = File::from(openat(to, name, flags, mode).explain(of)?);
    let before = original.metadata().explain(of)?;
    if !before.is_file() || before.len() != item.len {
        return Err(Problem::failed(format!("{} was changed after the server's stop", item.path)));
    }
    if item.len > 0 {
        share(&original, &clone).map_err(|error| {
            let problem = Problem::failed(of()).because(std::io::Error::from(error));
            match error {
                Errno::NOSPC | Errno::DQUOT => {
                    problem.hint("Make room on the source's filesystem, or set `freeze = \"none\"`.")
                }
                _ => problem,
            }
        })?;
    }
    let after = clone.metadata().explain(of)?;
    if after.len() != item.len {
        return Err(Problem::failed(format!("the clone of {} is not as long as the file", item.path)));
    }
    if after.permissions().mode() & 0o777 != item.mode {
        clone.set_permissions(Permissions::from_mode(item.mode)).explain(of)?;
    }
    Ok(())
}
