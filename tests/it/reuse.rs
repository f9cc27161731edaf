//! Stages that take over files of the generation before the last: nothing is written anew that is there already, and nothing of what people have
//! done to it since gets into the new generation.
//!
//! Where the worlds' filesystem has clones nothing is reused, which the tests then say.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use crate::oracle;
use crate::world::{Outcome, World};

fn inode(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).ino()
}

/// A world with two refreshes behind it, and whether this filesystem has clones.
fn world_of_two_nights() -> Option<World> {
    let world = World::new();
    world.stamp(1);
    world.refresh().run().expect(0);
    world
        .destination()
        .sql("CREATE DATABASE playground; CREATE TABLE playground.own (id INT PRIMARY KEY) ENGINE=InnoDB");
    world.stamp(2);
    let told = world.call(&["--json", "--now", "nightly"]).run().expect(0);
    if told.stdout.contains("shared with the current generation") {
        eprintln!("nothing tested: the filesystem of {} has clones", world.root().display());
        return None;
    }
    assert!(told.stdout.contains("copied from the current generation"), "the one before came from nowhere");
    Some(world)
}

fn refresh(world: &World, stamp: u32) -> Outcome {
    world.stamp(stamp);
    world.call(&["--json", "--now", "nightly"]).run()
}

#[test]
fn a_stage_of_the_generation_before() {
    let Some(world) = world_of_two_nights() else { return };
    let server = world.destination();
    let own = oracle::accounts(server);
    let previous = server.work().join("previous");
    let table = |of: &Path| of.join("shop/customers.ibd");
    let (old, current) = (inode(&table(&previous)), inode(&table(&server.datadir())));
    // what people may have done in there
    let outside = world.root().join("outside");
    fs::write(&outside, "somebody's").unwrap();
    symlink(&outside, previous.join("shop/evil.ibd")).unwrap();
    symlink(world.root(), previous.join("elsewhere")).unwrap();
    fs::hard_link(&outside, previous.join("shop/texts.ibd.old")).unwrap();
    fs::remove_file(previous.join("shop/texts.ibd")).unwrap();
    fs::rename(previous.join("shop/texts.ibd.old"), previous.join("shop/texts.ibd")).unwrap();
    fs::set_permissions(previous.join("shop"), fs::Permissions::from_mode(0o777)).unwrap();
    let others = fs::metadata(&outside).unwrap();
    fs::write(previous.join("shop/notes.txt"), "?").unwrap();
    fs::remove_file(previous.join("shop/items.ibd")).unwrap();
    fs::create_dir(previous.join("shop/items.ibd")).unwrap();
    assert!(previous.join("playground/own.ibd").exists());

    let told = refresh(&world, 3).expect(0);
    assert!(told.stdout.contains("taken over from the one before"), "{}", told.stdout);
    assert_eq!(world.content(server), "prod-3");
    oracle::check_accounts(&own, server);
    assert_eq!(inode(&table(&server.datadir())), old, "it was not written anew");
    assert_eq!(inode(&table(&previous)), current);
    for gone in ["shop/evil.ibd", "elsewhere", "shop/notes.txt", "playground"] {
        assert!(fs::symlink_metadata(server.datadir().join(gone)).is_err(), "{gone} is there");
    }
    let (before, after) = (others, fs::metadata(&outside).unwrap());
    assert_eq!((after.uid(), after.mode(), after.nlink()), (before.uid(), before.mode(), 1));
    assert_eq!(fs::read_to_string(&outside).unwrap(), "somebody's");
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&server.datadir().join("shop")), mode(&world.source.datadir().join("shop")));
    assert_eq!(mode(&table(&server.datadir())), mode(&table(&world.source.datadir())));
    world.expect_nobody_left();

    // there is a way back from it as from any other
    world.call(&["rollback", "rnd/r1"]).run().expect(0);
    assert_eq!(world.content(server), "prod-2");
}

#[test]
fn a_run_that_fails_over_it_leaves_the_current_generation() {
    let Some(world) = world_of_two_nights() else { return };
    let server = world.destination();
    world.stamp(3);
    let failed = world.refresh().fault("controller:copy:after=error").run();
    failed.expect(1);
    assert_eq!(world.content(server), "prod-2");
    assert!(!server.work().join("stage").exists() && !server.work().join("previous").exists());
    // which has nothing before it any more, and is copied once more
    let told = refresh(&world, 4).expect(0);
    assert!(told.stdout.contains("copied from the current generation"), "{}", told.stdout);
    assert_eq!(world.content(server), "prod-4");
}

/// What was given up to a stage goes with it, whether anything was taken of it or not.
#[test]
fn a_run_that_fails_before_it_takes_anything_leaves_nothing_behind() {
    let Some(world) = world_of_two_nights() else { return };
    let server = world.destination();
    assert!(server.work().join("previous").exists());
    world.stamp(3);
    world.refresh().fault("destination:seed:before=error").run().expect_any(&[1, 4]);
    assert_eq!(world.content(server), "prod-2");
    assert!(!server.work().join("stage").exists() && !server.work().join("previous").exists());
    world.call(&["rollback", "rnd/r1"]).run().expect(4).says(&["no previous generation"]);
    refresh(&world, 4).expect(0);
    assert_eq!(world.content(server), "prod-4");
}

#[test]
fn what_is_to_be_kept_or_compared_with_nothing_is_not_reused() {
    let Some(world) = world_of_two_nights() else { return };
    let server = world.destination();
    world.set("refreshes.nightly.keep_previous", "\"until_verified\"");
    let kept = inode(&server.work().join("previous"));
    world.stamp(3);
    world.refresh().fault("controller:copy:after=error").run().expect(1);
    assert_eq!(inode(&server.work().join("previous")), kept);
    world.set("refreshes.nightly.keep_previous", "\"until_stage\"");
    world.set("refreshes.nightly.basis", "\"none\"");
    let told = refresh(&world, 4).expect(0);
    assert!(!told.stdout.contains("taken over"), "{}", told.stdout);
    assert_eq!(world.content(server), "prod-4");
}
