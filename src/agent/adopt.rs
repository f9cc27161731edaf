//! Files of the generation before the last become files of a stage, one by one, where copies of them would have to be written otherwise.
//!
//! What it takes from belongs to the server's account, which may have prepared it, and may be at it still: nothing there is followed,
//! and no folder is taken. A file is moved into a folder of root's, looked at there, and taken only if it is one, has no other name,
//! has nothing hung on it, and is open nowhere else.

use std::collections::HashSet;
use std::fs::{File, OpenOptions, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags, openat2, renameat, statx};
use rustix::io::Errno;

use super::receive::is_root;
use crate::delta::path::RelPath;
use crate::problem::{Explain, Outcome};

/// All names of attributes that Linux tells of a file, at most.
const NAMES: usize = 64 << 10;

/// Device and inode.
pub type Id = (u64, u64);

/// Moves a file into the stage, where it is nobody's but root's then; None: it is not to be had, and its place is free.
pub fn adopt(previous: &Path, stage: &Path, path: &RelPath) -> Outcome<Option<File>> {
    let full = path.under(stage);
    let within = path.as_path();
    let (Some(name), Ok(folder)) = (within.file_name(), folder_beneath(previous, within.parent())) else {
        return Ok(None);
    };
    if renameat(&folder, name, CWD, &full).is_err() {
        return Ok(None);
    }
    if let Some(file) = plain(&full) {
        return Ok(Some(file));
    }
    let meta = std::fs::symlink_metadata(&full).explain(|| format!("cannot read {}", full.display()))?;
    match meta.is_dir() {
        true => std::fs::remove_dir_all(&full),
        false => std::fs::remove_file(&full),
    }
    .explain(|| format!("cannot remove {}", full.display()))?;
    Ok(None)
}

/// A folder, through no symlink on the way. Where the kernel cannot promise that (before Linux 5.6), there is none.
fn folder_beneath(root: &Path, path: Option<&Path>) -> Result<OwnedFd, Errno> {
    let root = rustix::fs::open(root, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let path = path.filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(&root, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
}

/// Opens a file for writing that is as good as a new one, and makes it the agent's own; None: it is something else.
fn plain(full: &Path) -> Option<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(full).ok()?;
    let meta = file.metadata().ok()?;
    // another name may be in somebody's backup
    if !meta.is_file() || meta.nlink() != 1 {
        return None;
    }
    if is_root() {
        std::os::unix::fs::fchown(&file, Some(0), Some(0)).ok()?;
    }
    file.set_permissions(Permissions::from_mode(0o600)).ok()?;
    bare(full).then_some(file)
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

/// Those of these files that another process has open or mapped: it could go on writing into them.
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
        for name in ["previous/shop/folder.ibd/inner", "stage/shop", "stage/linked", "outside"] {
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

        let good = adopt(&previous, &stage, &path("shop/good.ibd")).unwrap().unwrap();
        assert_eq!((good.metadata().unwrap().mode() & 0o7777, good.metadata().unwrap().uid()), (0o600, before.uid()));
        assert_eq!(fs::read_to_string(stage.join("shop/good.ibd")).unwrap(), "good");
        for gone in ["shop/twin.ibd", "shop/link.ibd", "shop/folder.ibd", "shop/none.ibd", "linked/x.ibd"] {
            assert!(adopt(&previous, &stage, &path(gone)).unwrap().is_none(), "{gone}");
            assert!(fs::symlink_metadata(stage.join(gone)).is_err(), "{gone}");
        }
        let after = fs::metadata(at("outside/theirs")).unwrap();
        assert_eq!((after.mode(), after.uid(), after.nlink()), (before.mode(), before.uid(), 1));
        assert_eq!(fs::read_to_string(at("outside/x.ibd")).unwrap(), "somebody's");
    }

    #[test]
    fn what_another_process_has_open_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        let files = [&one, &other].map(|path| File::create(path).unwrap());
        let ids: HashSet<Id> = files.iter().map(|file| id(file).unwrap()).collect();
        assert_eq!(held(&ids), HashSet::new());
        let mut holder =
            std::process::Command::new("sleep").arg("60").stdin(File::open(&one).unwrap()).spawn().unwrap();
        let found = held(&ids);
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert_eq!(found, HashSet::from([id(&files[0]).unwrap()]));
    }
}
