//! Sources whose filesystem can freeze their files: they are up again before anything is copied, and whatever happens, nothing of what was
//! frozen stays.
//!
//! Mounts need root; without it there is nothing here to test, which the output says.

use std::process::Command;

use crate::world::{Outcome, World, is_root, output, wait_for};
use std::time::Duration;

/// A world whose source lies on a volume of its own that can clone files.
pub fn world_on_clones(kind: &str) -> Option<World> {
    world_on(kind, false)
}

/// The same with a datadir that is a btrfs subvolume.
pub fn world_on_subvolume() -> Option<World> {
    world_on("btrfs", true)
}

fn world_on(kind: &str, subvolume: bool) -> Option<World> {
    if !is_root() {
        eprintln!("nothing tested: mounts need root");
        return None;
    }
    if Command::new(format!("mkfs.{kind}")).arg("-V").output().is_err() {
        eprintln!("nothing tested: mkfs.{kind} is not installed");
        return None;
    }
    Some(world_with_its_source_on(|world| {
        let image = world.root().join("volume");
        output(Command::new("truncate").args(["-s", "1536M"]).arg(&image));
        output(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image));
        let home = world.source.cnf().parent().unwrap().to_owned();
        output(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&home));
        if subvolume {
            output(Command::new("btrfs").args(["-q", "subvolume", "create"]).arg(world.source.datadir()));
        }
    }))
}

/// A world whose source lies on a logical volume of the group that `MYSQL_REFRESHD_TEST_VG` names, where one is named (`tests/hosts/guest`
/// boots a machine that has one); thin, or with snapshots of their own size.
pub fn world_on_lvm(kind: &str, thin: bool) -> Option<World> {
    let Ok(group) = std::env::var("MYSQL_REFRESHD_TEST_VG") else {
        eprintln!("nothing tested: no volume group is named in MYSQL_REFRESHD_TEST_VG");
        return None;
    };
    let world = world_with_its_source_on(|world| {
        output(Command::new("lvremove").args(["-q", "-f", "-y", &group]));
        let volume = if thin {
            output(Command::new("lvcreate").args(["-q", "-y", "-L", "1500m", "-T", &format!("{group}/pool")]));
            vec!["-V", "700m", "-T"]
        } else {
            vec!["-L", "700m"]
        };
        let of = if thin { format!("{group}/pool") } else { group.clone() };
        output(Command::new("lvcreate").args(["-q", "-y", "-n", "mysql"]).args(volume).arg(of));
        let device = format!("/dev/{group}/mysql");
        output(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&device));
        output(Command::new("mount").arg(&device).arg(world.source.cnf().parent().unwrap()));
    });
    world.set("refreshes.nightly.freeze", "\"lvm\"");
    Some(world)
}

/// What is mounted where the source's folder is by then takes what was in it.
fn world_with_its_source_on(mount: impl FnOnce(&World)) -> World {
    // what is mounted now is not seen through a gate that was made before
    let world = World::builder().over("local").build();
    world.set("daemon.host_timeout", "\"4s\"").set("refreshes.nightly.max_outage", "\"60s\"");
    let source = &world.source;
    source.stop();
    let home = source.cnf().parent().unwrap().to_owned();
    let moved = world.root().join("moved");
    std::fs::rename(&home, &moved).unwrap();
    std::fs::create_dir(&home).unwrap();
    mount(&world);
    output(Command::new("cp").arg("-a").arg(format!("{}/.", moved.display())).arg(&home));
    source.start();
    world
}

/// Nothing of what was frozen is there, nor the record of it.
pub fn nothing_frozen(world: &World) {
    assert!(!world.source.work().join("frozen").exists(), "frozen files are left");
    let records = std::fs::read_dir(world.root().join("host/freeze"));
    let left: Vec<_> = records.map(|all| all.flatten().map(|entry| entry.path()).collect()).unwrap_or_default();
    assert!(!left.iter().any(|path| path.extension().is_some_and(|end| end == "json")), "{left:?}");
}

fn summary(outcome: &Outcome) -> serde_json::Value {
    outcome.events().into_iter().find(|event| event["event"] == "run_finished").unwrap()
}

#[test]
fn a_source_on_xfs_or_btrfs_is_up_again_before_anything_is_copied() {
    for kind in ["xfs", "btrfs"] {
        let Some(world) = world_on_clones(kind) else { return };
        is_up_again_before_anything_is_copied(&world, "beside the datadir");
    }
}

#[test]
fn a_source_on_a_logical_volume_is_up_again_before_anything_is_copied() {
    for (kind, thin) in [("ext4", false), ("xfs", true)] {
        let Some(world) = world_on_lvm(kind, thin) else { return };
        is_up_again_before_anything_is_copied(&world, "LVM snapshot of ");
    }
}

fn is_up_again_before_anything_is_copied(world: &World, way: &str) {
    // what is part of the image only because somebody says so is part of what is frozen
    std::fs::write(world.source.datadir().join("my.odd-file"), "odd").unwrap();
    world.set("refreshes.nightly.copy_files", "[\"my.odd-file\"]");
    world.stamp(7);
    let seven = world.content(&world.source);
    // the copy waits while the source serves, and while new rows come in that are not of this image
    let (call, hold) = world.call(&["--json", "--now", "nightly"]).hold("controller:copy:before");
    let mut running = call.spawn();
    hold.reached(&mut running);
    wait_for("the source to serve during the copy", Duration::from_secs(10), || world.source.answers());
    world.stamp(8);
    let eight = world.content(&world.source);
    hold.release();
    let outcome = running.wait().expect(0);
    assert_eq!(world.content(world.destination()), seven);
    let summary = summary(&outcome);
    assert!(summary["taken"]["frozen"].as_str().unwrap().contains(way), "{summary}");
    assert_eq!(summary["cold_bytes"], 0);
    assert_eq!(std::fs::read_to_string(world.destination().datadir().join("my.odd-file")).unwrap(), "odd");
    nothing_frozen(world);
    world.refresh().run().expect(0);
    assert_eq!(world.content(world.destination()), eight);
}

#[test]
fn a_way_that_the_filesystem_does_not_have_is_refused_before_anything_is_touched() {
    let world = World::builder().over("local").build();
    let before = world.source.process();
    world.set("refreshes.nightly.freeze", "\"lvm\"");
    world.refresh().run().expect(4).says(&["cannot be frozen by", "auto"]);
    assert_eq!(world.source.process(), before);
    // and with the word for all of them it is copied in passes
    world.set("refreshes.nightly.freeze", "\"auto\"");
    world.stamp(3);
    world.refresh().run().expect(0);
    assert_eq!(world.content(world.destination()), world.content(&world.source));
}

/// What is written to a filesystem that shares the frozen blocks takes room: production must not find it full.
#[test]
fn a_volume_that_runs_full_costs_the_image_and_not_the_source() {
    let Some(world) = world_on_clones("xfs") else { return };
    world.stamp(1);
    world.refresh().run().expect(0);
    let old = world.content(world.destination());
    world.stamp(2);
    let (call, hold) = world.refresh().hold("controller:copy:before");
    let mut running = call.spawn();
    hold.reached(&mut running);
    let home = world.source.cnf().parent().unwrap().to_owned();
    let filler = home.join("filler");
    let free = |path: &std::path::Path| {
        let stat = rustix::fs::statvfs(path).unwrap();
        stat.f_bavail * stat.f_frsize
    };
    let most = free(&home) - (40 << 20);
    output(Command::new("fallocate").arg("-l").arg(most.to_string()).arg(&filler));
    hold.release();
    running.wait().expect(1).says(&["cannot be used any longer", "run full"]);
    assert!(world.source.answers());
    assert_eq!(world.content(world.destination()), old);
    nothing_frozen(&world);
    std::fs::remove_file(filler).unwrap();
    world.refresh().run().expect(0);
    assert_eq!(world.content(world.destination()), world.content(&world.source));
}
