//! A folder of root's inside a datadir that belongs to the server's account. Whoever owns a folder may rename and replace what is
//! in it, also what is not theirs; so this one is made immutable, and the work folder lies inside it. Then nothing else can be put
//! in the place of what root reads back, removes or gives away.
//!
//! Touches nothing but that one folder. An agent that is not root is the server's account itself and needs none of this.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{IFlags, Mode, OFlags, ioctl_getflags, ioctl_setflags, mkdirat, open};

use super::receive::is_root;
use super::stage::INSIDE;
use crate::problem::{Explain, Outcome, Problem};

fn opened(datadir: &Path) -> Outcome<Option<File>> {
    let path = datadir.join(INSIDE);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match open(&path, flags, Mode::empty()) {
        Ok(fd) => Ok(Some(File::from(fd))),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(error) => Err(std::io::Error::from(error)).explain(|| format!("cannot open {}", path.display())),
    }
}

fn not_ours(datadir: &Path) -> Problem {
    Problem::refused(format!("{} is not root's folder", datadir.join(INSIDE).display()))
        .hint("Somebody else has put it there: look at it, and remove it.")
}

/// Whether the folder is there, and cannot be replaced. An error: there is one, but not ours.
pub fn holds(datadir: &Path) -> Outcome<bool> {
    let Some(folder) = opened(datadir)? else { return Ok(false) };
    if !is_root() {
        return Ok(true);
    }
    let meta = folder.metadata().explain(|| "cannot read our folder in the datadir")?;
    if meta.uid() != 0 {
        return Err(not_ours(datadir));
    }
    let fixed = ioctl_getflags(&folder).is_ok_and(|flags| flags.contains(IFlags::IMMUTABLE));
    Ok(fixed || owner(datadir)? == 0)
}

fn owner(datadir: &Path) -> Outcome<u32> {
    std::fs::metadata(datadir).map(|meta| meta.uid()).explain(|| format!("cannot read {}", datadir.display()))
}

/// Makes the folder, and `work` in it; idempotent.
pub fn drop(datadir: &Path) -> Outcome<()> {
    let path = datadir.join(INSIDE);
    let of = || format!("cannot create {}", path.display());
    match rustix::fs::mkdir(&path, Mode::from_raw_mode(0o711)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(super::receive::write_error(&path, &error.into())),
    }
    if holds(datadir)? && path.join("work").is_dir() {
        return Ok(());
    }
    let folder = opened(datadir)?.ok_or_else(|| not_ours(datadir))?;
    match mkdirat(&folder, "work", Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(super::receive::write_error(&path.join("work"), &error.into())),
    }
    if !is_root() || owner(datadir)? == 0 {
        return Ok(());
    }
    let fixed = ioctl_getflags(&folder).and_then(|flags| ioctl_setflags(&folder, flags | IFlags::IMMUTABLE));
    fixed.map_err(|error| {
        Problem::refused(format!("{} cannot be made immutable: {error}", path.display())).hint(
            "The datadir is a mount point and belongs to the server's account, so root can only work in a folder there that \
             nobody else can replace. Make the datadir a folder below the mount point, or use a filesystem with that attribute.",
        )
    })?;
    let now = std::fs::symlink_metadata(&path).explain(of)?;
    let held = folder.metadata().explain(of)?;
    if (now.dev(), now.ino()) != (held.dev(), held.ino()) {
        return Err(not_ours(datadir));
    }
    Ok(())
}
