//! A read-only snapshot of a datadir that is a btrfs subvolume.
//!
//! Deletes a subvolume only if it has our name and was made from this datadir.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::mounts::{self, Mount};
use super::programs::{self, CHANGE, LOOK};
use crate::agent::receive::is_root;
use crate::agent::stage::Work;
use crate::problem::{Explain, Outcome, Problem};

/// The inode number of every subvolume's top folder.
const TOP: u64 = 256;

/// What is told of a subvolume.
#[derive(Debug, Default, PartialEq, Eq)]
struct Subvolume {
    name: String,
    uuid: Option<String>,
    parent: Option<String>,
}

/// The datadir's subvolume by its uuid, if a snapshot of it can be made where no server looks; an error says why not.
pub fn possible(work: &Work, mount: &Mount) -> Outcome<Result<String, String>> {
    let datadir = work.datadir.display();
    if mount.kind != "btrfs" {
        return Ok(Err(format!("{mount} is not btrfs")));
    }
    if std::fs::metadata(&work.datadir).explain(|| format!("cannot look at {datadir}"))?.ino() != TOP {
        return Ok(Err(format!("{datadir} is a folder, not a btrfs subvolume")));
    }
    if work.inside && mount.is_whole() {
        return Ok(Err(format!(
            "{datadir} is the top of its btrfs filesystem: a snapshot would lie inside the datadir"
        )));
    }
    if !is_root() {
        return Ok(Err("btrfs snapshots need root".to_owned()));
    }
    if programs::find("btrfs").is_none() {
        return Ok(Err("this host has no program `btrfs`".to_owned()));
    }
    Ok(match show(&work.datadir)?.uuid {
        Some(uuid) => Ok(uuid),
        None => {
            Err(format!("the btrfs subvolume {datadir} has no uuid: a snapshot of it could not be told from others"))
        }
    })
}

fn show(path: &Path) -> Outcome<Subvolume> {
    let words: [OsString; 3] = ["subvolume".into(), "show".into(), path.into()];
    let said = programs::run("btrfs", &words, LOOK)?;
    parse(&String::from_utf8_lossy(&said))
        .ok_or_else(|| Problem::failed(format!("cannot understand what btrfs says of {}", path.display())))
}

fn parse(said: &str) -> Option<Subvolume> {
    let field = |name: &str| {
        said.lines().find_map(|line| Some(line.trim().strip_prefix(name)?.strip_prefix(':')?.trim().to_owned()))
    };
    // none is shown as a dash
    let uuid = |name: &str| field(name).filter(|uuid| uuid != "-");
    Some(Subvolume { name: field("Name")?, uuid: uuid("UUID"), parent: uuid("Parent UUID") })
}

/// Has the top of the datadir's filesystem at `point`: what is made there lies outside of every other mount. The filesystem's device, by
/// which this mount of it is told.
pub fn attach_top(datadir: &Path, point: &Path) -> Outcome<String> {
    let mount = Mount::of(datadir)?;
    if mount.kind != "btrfs" {
        return Err(Problem::failed(format!("{} is not on btrfs any more, but on {mount}", datadir.display())));
    }
    match mounts::at(point)? {
        None => mounts::attach(&mount.source, point, "btrfs", "subvolid=5", false)?,
        Some(there) if there.is_whole() && there.device == mount.device => {}
        Some(there) => return Err(mounts::not_ours(format!("{there} is mounted on {}", point.display()))),
    }
    Ok(mount.device)
}

/// Makes the snapshot. Writes out what is in memory first, all of one moment.
pub fn snapshot(datadir: &Path, to: &Path) -> Outcome<()> {
    let words: [OsString; 5] = ["subvolume".into(), "snapshot".into(), "-r".into(), datadir.into(), to.into()];
    programs::run("btrfs", &words, CHANGE).map(|_| ())
}

/// Deletes the snapshot `name` in a folder if it is one of the subvolume `uuid`; Ok if there is none.
pub fn delete(folder: &Path, name: &str, uuid: &str) -> Outcome<()> {
    let path: PathBuf = folder.join(name);
    let meta = match std::fs::symlink_metadata(&path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).explain(|| format!("cannot look at {}", path.display())),
    };
    let not_ours = || {
        Problem::failed(format!("{} is not the snapshot that this program has made; it is left alone", path.display()))
            .hint("Look at it, and take it away.")
    };
    if !meta.is_dir() || meta.ino() != TOP {
        return Err(not_ours());
    }
    let found = show(&path)?;
    if found.name != name || found.parent.as_deref() != Some(uuid) {
        return Err(not_ours());
    }
    // until that is committed, a loss of power would bring it back when nobody knows of it any more
    let words: [OsString; 4] = ["subvolume".into(), "delete".into(), "--commit-after".into(), path.clone().into()];
    programs::run("btrfs", &words, CHANGE).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_btrfs_says_is_read() {
        let said = "@mysql\n\tName: \t\t\t@mysql\n\tUUID: \t\t\t5d0ab8a6-7c24-0f4b-9a0e-5b2c3e9e4f11\n\tParent UUID: \t\t-\n\
                    \tReceived UUID: \t\t-\n\tSubvolume ID: \t\t257\n\tFlags: \t\t\t-\n\tSnapshot(s):\n\t\t\t\tx\n";
        let uuid = Some("5d0ab8a6-7c24-0f4b-9a0e-5b2c3e9e4f11".to_owned());
        assert_eq!(parse(said), Some(Subvolume { name: "@mysql".into(), uuid: uuid.clone(), parent: None }));
        let snapshot = said.replace("Parent UUID: \t\t-", "Parent UUID: \t\tabc");
        assert_eq!(parse(&snapshot).unwrap().parent.as_deref(), Some("abc"));
        assert_eq!(parse("ERROR: Not a Btrfs subvolume"), None);
    }

    proptest! {
        #[test]
        fn anything_it_says_is_read_without_a_panic(said in ".{0,200}") {
            parse(&said);
        }
    }
}
