//! The swap of a datadir that can be renamed: it and the folder of the new generation change their names.

use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{inode, sync};
use crate::agent::stage::Work;
use crate::problem::{Explain, Outcome};

/// Brings the generation with inode `wanted` to the datadir's name and the one with inode `rest` to `other`, from wherever an
/// interrupted exchange left them.
pub fn place(work: &Work, other: &Path, wanted: u64, rest: u64) -> Outcome<()> {
    let aside = work.folder.join("aside");
    let at = |path: &Path| inode(path).ok();
    if at(&work.datadir) == Some(rest) && at(other) == Some(wanted) {
        match renameat_with(CWD, &work.datadir, CWD, other, RenameFlags::EXCHANGE) {
            Ok(()) => return sync_both(work),
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => {}
            Err(error) => {
                return Err(std::io::Error::from(error))
                    .explain(|| format!("cannot exchange {} and {}", work.datadir.display(), other.display()));
            }
        }
    }
    // a filesystem without an atomic exchange: three renames, each of which can be the last one before a crash
    let rename = |from: &Path, to: &Path| {
        std::fs::rename(from, to).explain(|| format!("cannot rename {} to {}", from.display(), to.display()))
    };
    if at(&work.datadir) == Some(rest) {
        rename(&work.datadir, if at(&aside) == Some(wanted) { other } else { &aside })?;
    }
    if at(&work.datadir) != Some(wanted) {
        let from = if at(other) == Some(wanted) { other } else { &aside };
        rename(from, &work.datadir)?;
    }
    if at(&aside) == Some(rest) {
        rename(&aside, other)?;
    }
    sync_both(work)
}

fn sync_both(work: &Work) -> Outcome<()> {
    sync(&work.folder)?;
    work.datadir.parent().map_or(Ok(()), sync)
}
