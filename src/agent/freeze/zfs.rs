//! A ZFS snapshot of the datadir's dataset, read below `.zfs/snapshot`.
//!
//! Destroys nothing but a snapshot of our name that says of itself that it is ours; never a dataset.

use std::path::{Path, PathBuf};

use super::mounts::Mount;
use super::programs::{self, CHANGE, LOOK};
use crate::agent::receive::is_root;
use crate::problem::{Explain, Outcome, Problem};

/// What a snapshot of ours says of itself: the run.
const PROPERTY: &str = "mysql-refreshd:run";

/// The datadir's dataset and where it is mounted; an error says why there can be no snapshot.
pub fn possible(mount: &Mount) -> Result<(String, PathBuf), String> {
    if mount.kind != "zfs" {
        return Err(format!("{mount} is not ZFS"));
    }
    if !mount.is_whole() {
        return Err(format!("{mount} shows a part of its dataset only, and not what has been frozen of it"));
    }
    if !is_root() {
        return Err("ZFS snapshots need root".to_owned());
    }
    if programs::find("zfs").is_none() {
        return Err("this host has no program `zfs`".to_owned());
    }
    let dataset = mount.source.to_string_lossy().into_owned();
    if !is_dataset(&dataset) {
        return Err(format!("{dataset} is not the name of a ZFS dataset"));
    }
    Ok((dataset, mount.point.clone()))
}

/// Names as zfs allows them for datasets; no `@`, no `%` and no comma, which mean something in the place where it is used.
pub fn is_dataset(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.: /".contains(c))
}

/// Makes the snapshot.
pub fn snapshot(dataset: &str, name: &str, run: &str) -> Outcome<()> {
    let words = ["snapshot", "-o", &format!("{PROPERTY}={run}"), &format!("{dataset}@{name}")].map(str::to_owned);
    programs::run("zfs", &words, CHANGE).map(|_| ())
}

/// Where a snapshot can be read.
pub fn path(mounted: &Path, name: &str, below: &Path) -> PathBuf {
    mounted.join(".zfs/snapshot").join(name).join(below)
}

/// Destroys the run's snapshot; Ok if there is none.
pub fn destroy(dataset: &str, name: &str, run: &str) -> Outcome<()> {
    let snapshot = format!("{dataset}@{name}");
    let said = programs::run(
        "zfs",
        &["list", "-H", "-p", "-t", "snapshot", "-d", "1", "-o", &format!("name,{PROPERTY}"), dataset],
        LOOK,
    )?;
    match owner(&String::from_utf8(said).explain(|| "cannot understand what zfs says")?, &snapshot) {
        None => Ok(()),
        Some(of) if of == run => programs::run("zfs", &["destroy", &snapshot], CHANGE).map(|_| ()),
        Some(_) => Err(Problem::failed(format!("{snapshot} is not run {run}'s snapshot; it is left alone"))
            .hint("Look at it, and take it away.")),
    }
}

/// Whose a snapshot is, by zfs' list of names and owners; None: there is none.
fn owner<'a>(said: &'a str, snapshot: &str) -> Option<&'a str> {
    said.lines().find_map(|line| line.split_once('\t').filter(|(name, _)| *name == snapshot)).map(|(_, owner)| owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_told_by_its_whole_name_and_its_owner() {
        let said = "tank/my sql@daily\t-\ntank/my sql@mysql-refreshd-1\t1\ntank/my sql@mysql-refreshd-12\tx\n";
        assert_eq!(owner(said, "tank/my sql@mysql-refreshd-1"), Some("1"));
        assert_eq!(owner(said, "tank/my sql@daily"), Some("-"));
        assert_eq!(owner(said, "tank/my sql@mysql-refreshd"), None);
        assert_eq!(owner("no datasets available\n", "tank@x"), None);
    }

    #[test]
    fn a_part_of_a_dataset_that_is_mounted_elsewhere_is_not_frozen() {
        let mounts = super::super::mounts::parse(b"40 29 0:50 /part /srv/part rw - zfs tank/mysql rw,xattr\n");
        let why = possible(&mounts[0]).unwrap_err();
        assert!(why.contains("a part of its dataset"), "{why}");
    }

    #[test]
    fn only_names_of_datasets_are_used() {
        assert!(["tank", "tank/my sql", "a/b-c_d.e:f"].iter().all(|name| is_dataset(name)));
        assert!(["", "-r", "tank@x", "a,b", "a%b", "/dev/sda1", "a\nb"].iter().all(|name| !is_dataset(name)));
    }

    #[test]
    fn the_snapshot_is_read_below_its_mount_point() {
        let path = path(Path::new("/tank/mysql"), "mysql-refreshd-1", Path::new("data"));
        assert_eq!(path, Path::new("/tank/mysql/.zfs/snapshot/mysql-refreshd-1/data"));
    }
}
