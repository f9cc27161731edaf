//! Logical volumes, thin and classic, with ext4 and XFS. They need a device mapper: where a volume group of the test's own is named in
//! `MYSQL_REFRESHD_TEST_VG` (`tests/hosts/guest` boots a machine that has one) it is used as it pleases; elsewhere nothing is tested.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use super::deaths::dies_at;
use super::volume::{Content, MIB, content, fill, items, live_on, names, no_way, output, same, way};
use crate::agent::freeze::{POINTS, Place, Room, Way, Wish, attempt, choose, prepare, sweep, sweep_to, take};

/// The volume group, and what is mounted of it.
struct Group {
    name: String,
    dir: tempfile::TempDir,
}

impl Group {
    fn given() -> Option<Self> {
        let Ok(name) = std::env::var("MYSQL_REFRESHD_TEST_VG") else {
            eprintln!("nothing tested: no volume group is named in MYSQL_REFRESHD_TEST_VG");
            return None;
        };
        let group = Self { name, dir: tempfile::tempdir().unwrap() };
        group.clear();
        Some(group)
    }
    fn lvm(&self, program: &str, words: &[&str]) -> String {
        output(Command::new(program).args(words))
    }
    /// Every volume, but those that the pool is made of.
    fn volumes(&self) -> Vec<String> {
        let said = self.lvm("lvs", &["--noheadings", "-o", "lv_name", &self.name]);
        let mut names: Vec<_> = said.split_whitespace().map(str::to_owned).collect();
        names.sort();
        names
    }
    fn clear(&self) {
        self.lvm("lvremove", &["-q", "-f", "-y", &self.name]);
    }
    /// A volume with a filesystem, mounted; thin ones from a pool of this size.
    fn mounted(&self, kind: &str, pool_mib: Option<u64>, mib: u64) -> PathBuf {
        // hyphens are doubled by the device mapper
        let (name, size) = (format!("da-ta_{kind}"), format!("{mib}m"));
        match pool_mib {
            Some(pool) => {
                let (pool, of) = (format!("{pool}m"), format!("{}/pool", self.name));
                self.lvm("lvcreate", &["-q", "-y", "-L", &pool, "-T", &of]);
                self.lvm("lvcreate", &["-q", "-y", "-V", &size, "-T", &of, "-n", &name]);
            }
            None => drop(self.lvm("lvcreate", &["-q", "-y", "-L", &size, "-n", &name, &self.name])),
        }
        let device = format!("/dev/{}/{name}", self.name);
        let quiet = if kind == "ext4" { ["-q", "-F"] } else { ["-q", "-f"] };
        output(Command::new(format!("mkfs.{kind}")).args(quiet).arg(&device));
        let point = self.dir.path().join(kind);
        std::fs::create_dir_all(&point).unwrap();
        output(Command::new("mount").arg(&device).arg(&point));
        point
    }
    fn unmount(&self, point: &Path) {
        output(Command::new("umount").arg(point));
        self.clear();
    }
    fn place(&self, datadir: &Path) -> Place {
        Place { state_dir: self.dir.path().join("state"), key: "0123456789abcdef".into(), datadir: datadir.to_owned() }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for point in ["state/freeze/0123456789abcdef", "ext4", "xfs"] {
            let _ = Command::new("umount").arg(self.dir.path().join(point)).output();
        }
        let _ = Command::new("lvremove").args(["-q", "-f", "-y", &self.name]).output();
    }
}

/// Filesystems and kinds of volumes.
fn all() -> [(&'static str, Option<u64>); 4] {
    [("ext4", None), ("xfs", None), ("ext4", Some(900)), ("xfs", Some(900))]
}

fn without_lost_and_found(folder: &Path) -> Content {
    content(folder).into_iter().filter(|(path, _)| path != Path::new("lost+found")).collect()
}

#[test]
fn what_is_frozen_stays_what_it_was() {
    let Some(group) = Group::given() else { return };
    for (kind, pool) in all() {
        let point = group.mounted(kind, pool, 400);
        let volumes = group.volumes();
        // a datadir that is the mount point, and one below it
        for datadir in [point.clone(), point.join("sub/data")] {
            std::fs::create_dir_all(&datadir).unwrap();
            fill(&datadir);
            let place = group.place(&datadir);
            let found = way(&datadir, Wish::Lvm);
            let Way::Lvm(volume) = &found else { panic!("{found:?}") };
            assert_eq!(matches!(volume.room, Room::Thin { .. }), pool.is_some(), "{found}");
            if kind == "ext4" || datadir == point {
                assert_eq!(way(&datadir, Wish::Auto), found);
            }
            assert_eq!(group.volumes(), volumes, "choosing changes nothing");
            // what is in memory only is in it, too
            let mut last = std::fs::File::create(datadir.join("aria_log.00000001")).unwrap();
            last.write_all(&vec![7; 3 << 20]).unwrap();
            let before = without_lost_and_found(&datadir);
            let begun = Instant::now();
            let frozen = take(&found, &place, "20260101-000000-aa", &items(&datadir)).unwrap();
            let taken = begun.elapsed();
            same(&without_lost_and_found(frozen.datadir()), &before, &found.to_string());
            live_on(&datadir);
            assert!(without_lost_and_found(&datadir) != before);
            same(&without_lost_and_found(frozen.datadir()), &before, &found.to_string());
            let begun = Instant::now();
            frozen.check().unwrap();
            let checked = begun.elapsed();
            assert!(std::fs::write(frozen.datadir().join("x"), "").is_err(), "it is mounted read-only");
            assert_eq!(group.volumes().len(), volumes.len() + 1);
            let begun = Instant::now();
            assert!(sweep(&place).unwrap());
            eprintln!("{kind}, {found}: taken in {taken:?}, checked in {checked:?}, swept in {:?}", begun.elapsed());
            assert!(!sweep(&place).unwrap() && frozen.check().is_err());
            assert_eq!((group.volumes(), names(&place.state_dir.join("freeze"))), (volumes.clone(), vec![]));
        }
        group.unmount(&point);
    }
}

#[test]
fn whatever_a_death_leaves_is_removed() {
    let Some(group) = Group::given() else { return };
    for (kind, pool) in all() {
        let point = group.mounted(kind, pool, 400);
        fill(&point);
        let (place, found, walked) = (group.place(&point), way(&point, Wish::Lvm), items(&point));
        let (volumes, before) = (group.volumes(), without_lost_and_found(&point));
        let nothing_left = |when: &str| {
            assert!(!sweep(&place).unwrap(), "{found}, {when}");
            assert_eq!((group.volumes(), names(&place.state_dir.join("freeze"))), (volumes.clone(), vec![]), "{when}");
            same(&without_lost_and_found(&point), &before, when);
        };
        for death in POINTS {
            let result = attempt(&found, &place, "r1", &walked, &dies_at(death));
            assert_eq!(result.is_err(), death != "freeze:removed", "{found}, {death}");
            assert!(sweep(&place).unwrap(), "{found}, {death}");
            nothing_left(death);
        }
        attempt(&found, &place, "r1", &walked, &|_| Ok(())).unwrap();
        assert!(sweep_to(&place, &dies_at("freeze:removed")).is_err());
        let frozen = take(&found, &place, "r2", &walked).unwrap();
        same(&without_lost_and_found(frozen.datadir()), &before, "after a death");
        // a boot: nothing of it is mounted, and a thin snapshot is not activated
        output(Command::new("umount").arg(place.mount_point()));
        if pool.is_some() {
            group.lvm("lvchange", &["-q", "-an", &format!("{}/mysql-refreshd-r2", group.name)]);
            assert!(frozen.check().is_err());
        }
        assert!(sweep(&place).unwrap());
        nothing_left("a boot");
        group.unmount(&point);
    }
}

#[test]
fn what_is_not_ours_stays() {
    let Some(group) = Group::given() else { return };
    let point = group.mounted("ext4", Some(900), 400);
    fill(&point);
    let (place, found, walked) = (group.place(&point), way(&point, Wish::Lvm), items(&point));
    let (ours, origin) = (format!("{}/mysql-refreshd-r1", group.name), format!("{}/da-ta_ext4", group.name));
    let left_alone = || {
        let problem = sweep(&place).unwrap_err();
        assert!(problem.to_string().contains("is left alone"), "{problem}");
        assert!(group.volumes().contains(&"mysql-refreshd-r1".to_owned()));
    };
    // of our name: not made from the datadir's volume, or without our tag
    attempt(&found, &place, "r1", &walked, &dies_at("freeze:journalled")).unwrap_err();
    group.lvm(
        "lvcreate",
        &["-q", "-y", "-L", "8m", "-n", "mysql-refreshd-r1", "--addtag", "mysql-refreshd", &group.name],
    );
    left_alone();
    group.lvm("lvremove", &["-q", "-f", "-y", &ours]);
    group.lvm("lvcreate", &["-q", "-y", "-s", "-n", "mysql-refreshd-r1", &origin]);
    left_alone();
    group.lvm("lvremove", &["-q", "-f", "-y", &ours]);
    assert!(sweep(&place).unwrap());
    // something else in the place of ours
    take(&found, &place, "r1", &walked).unwrap();
    output(Command::new("umount").arg(place.mount_point()));
    output(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(place.mount_point()));
    left_alone();
    output(Command::new("umount").arg(place.mount_point()));
    assert!(sweep(&place).unwrap());
    // what is there before us is an error, and stays
    group.lvm("lvcreate", &["-q", "-y", "-L", "8m", "-n", "mysql-refreshd-r1", &group.name]);
    let problem = take(&found, &place, "r1", &walked).unwrap_err();
    assert!(problem.to_string().contains("already exists") || problem.to_string().contains("lvcreate"), "{problem}");
    left_alone();
    group.lvm("lvremove", &["-q", "-f", "-y", &ours]);
    assert!(sweep(&place).unwrap());
    group.unmount(&point);
}

#[test]
fn a_snapshot_that_runs_full_is_thrown_away_and_production_goes_on() {
    let Some(group) = Group::given() else { return };
    // a thin pool with room for half of the changes
    for (kind, pool) in [("ext4", None), ("xfs", None), ("ext4", Some(480)), ("xfs", Some(480))] {
        let point = group.mounted(kind, pool, 400);
        let table = std::fs::File::create(point.join("ibdata1")).unwrap();
        let write = |n: u64, byte: u8| {
            std::os::unix::fs::FileExt::write_all_at(&table, &vec![byte; 4 << 20], n * 4 * MIB).unwrap();
            table.sync_all().unwrap();
        };
        (0..60).for_each(|n| write(n, 1));
        let (place, found) = (group.place(&point), way(&point, Wish::Lvm));
        prepare(&place, &found).unwrap();
        let frozen = take(&found, &place, "r1", &items(&point)).unwrap();
        let mut given_up = None;
        for n in 0..60 {
            write(n, 2);
            if given_up.is_none()
                && let Err(problem) = frozen.check()
            {
                let expected = if pool.is_some() { "could run full" } else { "is full" };
                assert!(problem.to_string().contains(expected), "{problem}");
                // a classic one that is invalid gives errors, or what it had kept in memory
                assert!(sweep(&place).unwrap());
                given_up = Some(n);
            }
        }
        let at = given_up.unwrap_or_else(|| panic!("{kind}, {found}: it never ran full"));
        eprintln!("{kind}, {found}: thrown away after {} MiB of changes", (at + 1) * 4);
        assert!(at > 5);
        let bytes = std::fs::read(point.join("ibdata1")).unwrap();
        assert!(bytes.len() == 240 << 20 && bytes.iter().all(|byte| *byte == 2));
        assert!(!group.volumes().iter().any(|name| name.starts_with("mysql-refreshd")));
        drop(table);
        group.unmount(&point);
    }
}

#[test]
fn where_there_is_no_room_it_is_said() {
    let Some(group) = Group::given() else { return };
    let point = group.mounted("ext4", None, 400);
    group.lvm("lvcreate", &["-q", "-y", "-l", "100%FREE", "-n", "rest", &group.name]);
    let text = no_way(&point, Wish::Lvm);
    assert!(text.contains("has 0 MiB free; a snapshot of") && text.contains("needs 20 MiB at least"), "{text}");
    group.unmount(&point);
    let point = group.mounted("ext4", Some(160), 300);
    let mut table = std::fs::File::create(point.join("ibdata1")).unwrap();
    while choose(&point, Wish::Lvm).unwrap().is_ok() {
        table.write_all(&vec![1; 2 << 20]).unwrap();
        table.sync_all().unwrap();
    }
    drop(table);
    let text = no_way(&point, Wish::Auto);
    assert!(
        text.contains("is a mount point") && text.contains("the thin pool") && text.contains("could run full"),
        "{text}"
    );
    group.unmount(&point);
}
