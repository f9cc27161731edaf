//! Files of the generation before the last become files of a stage, one by one, where copies of them would have to be written otherwise.
//!
//! What it takes from belongs to the server's account, which may have prepared it, and may be at it still: nothing there is followed,
//! and no folder is taken. A file is moved into a folder of root's that holds nothing else of worth, looked at there, and taken only if it
//! is one, has no other name, can be rid of what hangs on it, and is seen open nowhere else.

use std::collections::HashSet;
use std::fs::{File, OpenOptions, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, StatxFlags, openat2, renameat, statat, statx,
};
use rustix::io::Errno;

use super::receive::{is_root, write_error};
use crate::delta::path::RelPath;
use crate::problem::Outcome;

/// All names of attributes that Linux tells of a file, at most.
const NAMES: usize = 64 << 10;

/// Device and inode.
pub type Id = (u64, u64);

/// Where files are looked at, beside the previous generation.
pub fn quarantine(previous: &Path) -> PathBuf {
    previous.with_file_name("adopting")
}

/// Moves a file into the stage by way of the quarantine, a folder that is nobody's but the agent's; `number` is no other file's. It is
/// the agent's own then. None: it is not to be had, and its place is free.
pub fn adopt(previous: &Path, stage: &Path, path: &RelPath, number: usize) -> Outcome<Option<File>> {
    let within = path.as_path();
    let (Some(name), Ok(folder)) = (within.file_name(), folder_beneath(previous, within.parent())) else {
        return Ok(None);
    };
    let is_file = |stat: Stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_nlink == 1;
    if !statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(is_file) {
        return Ok(None);
    }
    let place = quarantine(previous).join(number.to_string());
    if renameat(&folder, name, CWD, &place).is_err() {
        return Ok(None);
    }
    // what has come instead stays there, and goes with the quarantine
    let Some(file) = plain(&place) else { return Ok(None) };
    let full = path.under(stage);
    std::fs::rename(&place, &full).map_err(|error| write_error(&full, &error))?;
    Ok(Some(file))
}

/// A folder, through no symlink on the way. Where the kernel cannot promise that (before Linux 5.6), there is none.
fn folder_beneath(root: &Path, path: Option<&Path>) -> Result<OwnedFd, Errno> {
    let root = rustix::fs::open(root, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let path = path.filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(&root, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
}

/// Opens a file for writing that is as good as a new one, and makes it the agent's own; None: it is something else.
fn plain(place: &Path) -> Option<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(place).ok()?;
    // another name may be in somebody's backup
    let alone = || file.metadata().is_ok_and(|meta| meta.is_file() && meta.nlink() == 1);
    if !alone() {
        return None;
    }
    if is_root() {
        std::os::unix::fs::fchown(&file, Some(0), Some(0)).ok()?;
    }
    file.set_permissions(Permissions::from_mode(0o600)).ok()?;
    // who had it open could give it another name until now
    (bare(place) && alone()).then_some(file)
}

/// Takes from a file what others have hung on it, like access lists. False: it cannot be had without.
fn bare(full: &Path) -> bool {
    let mut names = vec![0; NAMES];
    let len = match rustix::fs::llistxattr(full, &mut names[..]) {
        Ok(len) => len,
        Err(error) => return error == Errno::OPNOTSUPP,
    };
    names[..len]
        .split(|byte| *byte == 0)
        // a security module's label belongs to the place, not to the content
        .filter(|name| !name.is_empty() && !name.starts_with(b"security."))
        .all(|name| rustix::fs::lremovexattr(full, name).is_ok())
}

/// Who a file is.
pub fn id(file: &File) -> Option<Id> {
    let meta = file.metadata().ok()?;
    Some((meta.dev(), meta.ino()))
}

/// Those of these files that another process is seen to have open or mapped: it could go on writing into them.
pub fn held(files: &HashSet<Id>) -> HashSet<Id> {
    let mut held = HashSet::new();
    let own = std::process::id().to_string();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = process.file_name();
        let is_other = name.to_str().is_some_and(|name| name != own && name.bytes().all(|b| b.is_ascii_digit()));
        for place in ["fd", "map_files"].iter().filter(|_| is_other) {
            for open in std::fs::read_dir(process.path().join(place)).into_iter().flatten().flatten() {
                // it may be on a dead network, of which nothing is to be asked
                if let Ok(stat) = statx(CWD, open.path(), AtFlags::STATX_DONT_SYNC, StatxFlags::INO) {
                    let id = (rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor), stat.stx_ino);
                    held.extend(files.get(&id));
                }
            }
        }
    }
    held
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::try_from(std::path::PathBuf::from(text)).unwrap()
    }

    #[test]
    fn only_a_file_that_is_nobody_elses_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let (previous, stage) = (at("previous"), at("stage"));
        for name in ["previous/shop/folder.ibd/inner", "stage/shop", "stage/linked", "outside", "adopting"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        fs::write(at("outside/theirs"), "somebody's").unwrap();
        fs::write(at("outside/x.ibd"), "somebody's").unwrap();
        fs::write(previous.join("shop/good.ibd"), "good").unwrap();
        fs::set_permissions(previous.join("shop/good.ibd"), Permissions::from_mode(0o666)).unwrap();
        fs::hard_link(at("outside/theirs"), previous.join("shop/twin.ibd")).unwrap();
        symlink(at("outside/theirs"), previous.join("shop/link.ibd")).unwrap();
        symlink(at("outside"), previous.join("linked")).unwrap();
        let before = fs::metadata(at("outside/theirs")).unwrap();

        let good = adopt(&previous, &stage, &path("shop/good.ibd"), 7).unwrap().unwrap();
        assert_eq!((good.metadata().unwrap().mode() & 0o7777, good.metadata().unwrap().uid()), (0o600, before.uid()));
        assert_eq!(fs::read_to_string(stage.join("shop/good.ibd")).unwrap(), "good");
        for gone in ["shop/twin.ibd", "shop/link.ibd", "shop/folder.ibd", "shop/none.ibd", "linked/x.ibd"] {
            assert!(adopt(&previous, &stage, &path(gone), 8).unwrap().is_none(), "{gone}");
            assert!(fs::symlink_metadata(stage.join(gone)).is_err(), "{gone}");
        }
        let after = fs::metadata(at("outside/theirs")).unwrap();
        assert_eq!((after.mode(), after.uid(), after.nlink()), (before.mode(), before.uid(), 2));
        assert_eq!(fs::read_dir(at("adopting")).unwrap().count(), 0);
        assert_eq!(fs::read_to_string(at("outside/x.ibd")).unwrap(), "somebody's");
    }

    #[test]
    fn what_another_process_has_open_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        let ids = [&one, &other].map(|path| id(&File::create(path).unwrap()).unwrap());
        let all = HashSet::from(ids);
        assert_eq!(held(&all), HashSet::new());
        let mut holder =
            std::process::Command::new("sleep").arg("60").stdin(File::open(&one).unwrap()).spawn().unwrap();
        let found = held(&all);
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert_eq!(found, HashSet::from([ids[0]]));
    }
}
