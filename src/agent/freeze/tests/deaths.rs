//! Death at every moment between journal, act and removal, and things that are not ours where ours should be.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::volume::{Volume, content, fill, items, names, output, same, way};
use crate::agent::freeze::{POINTS, Place, Way, Wish, attempt, sweep, sweep_to, take};
use crate::mutate;
use crate::problem::{Outcome, Problem};

/// Comes as far as a point, and not farther: as a death there leaves it.
pub fn dies_at(point: &'static str) -> impl Fn(&str) -> Outcome<()> {
    move |at| if at == point { Err(Problem::failed(format!("died at {at}"))) } else { Ok(()) }
}

/// Every datadir and way that loop devices give, with the volume it is on.
fn all() -> Vec<(Volume, PathBuf, Way)> {
    let mut all = Vec::new();
    if let Some(volume) = Volume::new("xfs", 400) {
        let datadir = volume.datadir();
        let found = way(&datadir, Wish::Auto);
        all.push((volume, datadir, found));
    }
    for name in ["data", "@data"] {
        let Some(mut volume) = Volume::new("btrfs", 400) else { continue };
        let mut datadir = volume.top().join(name);
        output(Command::new("btrfs").args(["subvolume", "create"]).arg(&datadir));
        if name.starts_with('@') {
            datadir = volume.mount("mounted", "subvol=@data").unwrap();
        }
        fill(&datadir);
        let found = way(&datadir, Wish::Auto);
        assert_eq!(matches!(found, Way::Btrfs { beside: false, .. }), name.starts_with('@'));
        all.push((volume, datadir, found));
    }
    all
}

/// What is mounted below the state folder.
fn mounts_of_ours(place: &Place) -> usize {
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let below = |line: &&str| Path::new(line.split(' ').nth(1).unwrap()).starts_with(&place.state_dir);
    table.lines().filter(below).count()
}

#[test]
fn whatever_a_death_leaves_is_removed() {
    for (volume, datadir, way) in all() {
        let (place, walked, before) = (volume.place(&datadir), items(&datadir), content(&datadir));
        let clean = names(volume.top());
        let nothing_left = |when: &str| {
            assert!(!sweep(&place).unwrap(), "{way}, {when}");
            assert_eq!(names(volume.top()), clean, "{way}, {when}");
            assert_eq!((names(&place.state_dir.join("freeze")), mounts_of_ours(&place)), (vec![], 0), "{way}, {when}");
            same(&content(&datadir), &before, when);
        };
        for point in POINTS {
            let result = attempt(&way, &place, "r1", &walked, &dies_at(point));
            assert_eq!(result.is_err(), point != "freeze:removed", "{way}, {point}");
            assert!(sweep(&place).unwrap(), "{way}, {point}");
            nothing_left(point);
        }
        // half of the files, then no more
        let mut half = walked.clone();
        half.truncate(walked.len() / 2);
        half.extend_from_slice(&walked[..1]);
        if matches!(way, Way::Reflink { .. }) {
            assert!(attempt(&way, &place, "r1", &half, &|_| Ok(())).is_err());
            assert!(sweep(&place).unwrap());
            nothing_left("half");
        }
        // in the middle of the removal, more than once; and another run comes
        attempt(&way, &place, "r1", &walked, &|_| Ok(())).unwrap();
        assert!(sweep_to(&place, &dies_at("freeze:removed")).is_err());
        assert!(sweep_to(&place, &dies_at("freeze:removed")).is_err());
        let frozen = take(&way, &place, "r2", &walked).unwrap();
        same(&content(frozen.datadir()), &before, "frozen");
        // a boot: what was mounted is not any more
        if mounts_of_ours(&place) > 0 {
            output(Command::new("umount").arg(place.mount_point()));
            assert!(frozen.check().is_err());
        }
        assert!(sweep(&place).unwrap());
        nothing_left("a boot");
    }
}

#[test]
fn what_is_not_ours_stays() {
    let Some(volume) = Volume::new("xfs", 400) else { return };
    let datadir = volume.datadir();
    let (place, walked, found) = (volume.place(&datadir), items(&datadir), way(&datadir, Wish::Auto));
    let work = volume.top().join(".data.refreshd");
    let ours = work.join("frozen/mysql-refreshd-r1");
    let precious = |folder: &Path| {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join("precious"), "x").unwrap();
    };
    let left_alone = |at: &Path| {
        let problem = sweep(&place).unwrap_err();
        assert!(problem.to_string().contains("is left alone"), "{problem}");
        assert!(problem.hints.iter().any(|hint| hint.contains("mysql-refreshd-r1")), "{problem:?}");
        assert!(at.join("precious").exists());
    };
    // it was there before us
    precious(&ours);
    let problem = take(&found, &place, "r1", &walked).unwrap_err();
    assert!(problem.to_string().contains("is not what this program has made there"), "{problem}");
    assert!(ours.join("precious").exists() && !sweep(&place).unwrap());
    std::fs::remove_dir_all(&work).unwrap();
    // it came after the journal, or took the place of ours
    attempt(&found, &place, "r1", &walked, &dies_at("freeze:journalled")).unwrap_err();
    precious(&ours);
    left_alone(&ours);
    std::fs::remove_dir_all(&ours).unwrap();
    assert!(sweep(&place).unwrap());
    take(&found, &place, "r1", &walked).unwrap();
    std::fs::rename(&ours, volume.top().join("moved")).unwrap();
    precious(&ours);
    left_alone(&ours);
    std::fs::rename(&ours, volume.top().join("theirs")).unwrap();
    symlink(volume.top().join("theirs"), &ours).unwrap();
    left_alone(&volume.top().join("theirs"));
    std::fs::remove_file(&ours).unwrap();
    // the folder around it is somebody else's
    std::fs::rename(volume.top().join("moved"), &ours).unwrap();
    std::fs::write(ours.join("precious"), "x").unwrap();
    for folder in [work.join("frozen"), work.clone()] {
        output(Command::new("chown").arg("12345").arg(&folder));
        left_alone(&ours);
        output(Command::new("chown").arg("0").arg(&folder));
    }
    assert!(sweep(&place).unwrap() && !work.exists());
}

#[test]
fn a_foreign_subvolume_or_mount_stays() {
    for (volume, datadir, way) in all().into_iter().filter(|(_, _, way)| matches!(way, Way::Btrfs { .. })) {
        let Way::Btrfs { beside, .. } = way else { unreachable!() };
        let (place, walked) = (volume.place(&datadir), items(&datadir));
        let folder = if beside { volume.top().join(".data.refreshd/frozen") } else { volume.top().to_owned() };
        let ours = folder.join("mysql-refreshd-r1");
        let btrfs = |verb: &str, of: &Path| output(Command::new("btrfs").args(["subvolume", verb]).arg(of));
        for made_by_us in [false, true] {
            if made_by_us {
                take(&way, &place, "r1", &walked).unwrap();
                btrfs("delete", &ours);
            } else {
                attempt(&way, &place, "r1", &walked, &dies_at("freeze:journalled")).unwrap_err();
                std::fs::create_dir_all(&folder).unwrap();
            }
            // of our name, but not made from the datadir
            btrfs("create", &ours);
            std::fs::write(ours.join("precious"), "x").unwrap();
            let problem = sweep(&place).unwrap_err();
            assert!(problem.to_string().contains("is left alone") && ours.join("precious").exists(), "{problem}");
            btrfs("delete", &ours);
            // a folder, no subvolume
            std::fs::create_dir(&ours).unwrap();
            let problem = sweep(&place).unwrap_err();
            assert!(problem.to_string().contains("is left alone") && ours.exists(), "{problem}");
            std::fs::remove_dir(&ours).unwrap();
            assert!(sweep(&place).unwrap());
        }
        // what stands there already is not snapshotted into
        std::fs::create_dir_all(&ours).unwrap();
        let problem = take(&way, &place, "r1", &walked).unwrap_err();
        assert!(problem.to_string().contains("is not what this program has made there"), "{problem}");
        assert_eq!(names(&ours), [""; 0]);
        if !beside {
            // its removal finds the folder, too
            std::fs::remove_dir(&ours).unwrap();
            sweep(&place).unwrap();
            take(&way, &place, "r1", &walked).unwrap();
            output(Command::new("umount").arg(place.mount_point()));
            output(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(place.mount_point()));
            let problem = sweep(&place).unwrap_err();
            assert!(problem.to_string().contains("tmpfs on tmpfs is mounted on"), "{problem}");
            assert_eq!(mounts_of_ours(&place), 1);
            output(Command::new("umount").arg(place.mount_point()));
            assert!(ours.exists(), "not forgotten meanwhile");
            assert!(sweep(&place).unwrap() && !ours.exists());
        }
    }
}

#[test]
fn a_damaged_record_removes_nothing() {
    let Some(volume) = Volume::new("xfs", 400) else { return };
    let datadir = volume.datadir();
    let (place, walked) = (volume.place(&datadir), items(&datadir));
    let frozen = take(&way(&datadir, Wish::Auto), &place, "r1", &walked).unwrap();
    let (before, record) = (content(frozen.datadir()), std::fs::read(place.file()).unwrap());
    let (at, whole) = (place.clone(), record.clone());
    mutate::run("freeze's record", move |rng| {
        let damaged = mutate::bytes(rng, std::slice::from_ref(&whole));
        if damaged == whole {
            return;
        }
        std::fs::write(at.file(), &damaged).unwrap();
        let problem = sweep(&at).unwrap_err();
        assert!(problem.to_string().contains("is damaged; nothing is removed on its word"), "{problem}");
    });
    same(&content(frozen.datadir()), &before, "frozen");
    std::fs::write(place.file(), &record).unwrap();
    assert!(sweep(&place).unwrap());
}
