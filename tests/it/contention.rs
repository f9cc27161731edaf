//! Two runs that want the same servers, and filesystems that fill up.

use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::world::{World, is_root, output, wait_for};

#[test]
fn the_second_run_names_the_first_and_waits() {
    let world = World::new();
    let (call, hold) = world.refresh().hold("controller:copy:before");
    let mut first = call.spawn();
    hold.reached(&mut first);
    let serving = world.destination().process();

    let refused = world.call(&["--now", "nightly", "--no-wait"]).run().expect(3);
    let pid = first.pid().to_string();
    let told = refused.says(&["locked", "nightly", "copy", &pid]);
    assert!(told.took < Duration::from_secs(10), "{told}");

    let mut second = world.refresh().spawn();
    wait_for("the second run says that it waits", Duration::from_secs(15), || {
        let text = second.so_far();
        text.contains("waiting for ") && text.contains("in step copy")
    });
    std::thread::sleep(Duration::from_secs(1));
    assert!(second.ended().is_none(), "it did not wait");
    assert_eq!(world.destination().process(), serving);
    hold.release();
    first.wait().expect(0);
    second.wait().expect(0);
    assert_eq!(world.content(world.destination()), "prod-0");
    world.expect_nobody_left();
}

#[test]
fn policy_and_timeout_end_the_wait() {
    let world = World::new();
    let (call, hold) = world.refresh().hold("controller:preflight:before");
    let mut first = call.spawn();
    hold.reached(&mut first);
    world.set("refreshes.nightly.on_busy", "\"fail\"");
    let told = world.refresh().run().expect(3);
    assert!(told.took < Duration::from_secs(10), "{told}");
    world.set("refreshes.nightly.on_busy", "\"wait\"").set("refreshes.nightly.lock_timeout", "\"2s\"");
    let told = world.refresh().run().expect(3);
    assert!(told.took > Duration::from_secs(2) && told.took < Duration::from_secs(20), "{told}");
    hold.release();
    first.wait().expect(0);
}

#[test]
fn a_wait_can_be_interrupted() {
    let world = World::new();
    let (call, hold) = world.refresh().hold("controller:preflight:before");
    let mut first = call.spawn();
    hold.reached(&mut first);
    let second = world.refresh().spawn();
    std::thread::sleep(Duration::from_secs(2));
    crate::world::signal(second.pid(), "-INT");
    let told = second.wait().expect(130);
    assert!(told.took < Duration::from_secs(15), "{told}");
    hold.release();
    first.wait().expect(0);
}

#[test]
fn another_controller_meets_the_lock_on_the_host_under_any_name() {
    // a second controller with a state folder of its own, whose hosts are reached through other names
    let world = World::builder().destinations(2).build();
    world.set("refreshes.nightly.destinations", "[\"rnd/r1\"]");
    let alias = world.root().join("alias");
    std::os::unix::fs::symlink(world.root(), &alias).unwrap();
    let (root, alias) = (world.root().display().to_string(), alias.display().to_string());
    let other =
        world.config_text().replace(&root, &alias).replace(&format!("{alias}/state"), &format!("{root}/state2"));
    let other = other.replace("rnd/r1", "rnd/r2").replace(&format!("{alias}/host"), &format!("{root}/host"));
    let config = world.root().join("other.toml");
    fs::write(&config, other).unwrap();

    let (call, hold) = world.refresh().hold("controller:copy:before");
    let mut first = call.spawn();
    hold.reached(&mut first);
    let started = world.destinations[1].process();
    world
        .call_with(&config, &["--now", "nightly", "--no-wait"])
        .run()
        .expect(3)
        .says(&["locked", &first.pid().to_string()]);
    assert_eq!(world.destinations[1].process(), started);
    hold.release();
    first.wait().expect(0);
    world.call_with(&config, &["--now", "nightly", "--no-wait"]).run().expect(0);
    assert_eq!(world.content(&world.destinations[1]), "prod-0");
}

#[test]
fn a_rollback_waits_for_a_run() {
    let world = World::new();
    world.refresh().run().expect(0);
    world.stamp(1);
    let (call, hold) = world.refresh().hold("controller:install:before");
    let mut first = call.spawn();
    hold.reached(&mut first);
    let mut rollback = world.call(&["rollback", "rnd/r1"]).spawn();
    std::thread::sleep(Duration::from_secs(2));
    let early = rollback.ended();
    assert!(
        early.is_none_or(|s| s.code() == Some(3)),
        "a rollback in the middle of a run: {early:?}\n{}",
        rollback.so_far()
    );
    assert_eq!(world.content(world.destination()), "prod-0");
    hold.release();
    first.wait().expect(0);
    rollback.wait().expect_any(&[0, 3]);
}

#[test]
fn recover_leaves_a_living_run_alone() {
    let world = World::new();
    let (call, hold) = world.refresh().hold("controller:install:before");
    let mut running = call.spawn();
    hold.reached(&mut running);
    world.recover().expect_any(&[0, 3]);
    assert!(world.destination().work().join("stage").exists(), "recover took a living run's stage away");
    hold.release();
    running.wait().expect(0);
    assert_eq!(world.content(world.destination()), "prod-0");
}

#[test]
fn a_disk_that_fills_up_during_the_copy() {
    if !is_root() {
        return;
    }
    let world = World::builder().destinations(2).destination_tmpfs("260m").build();
    world.stamp(1);
    for (full, code) in [(vec![0], 6), (vec![0, 1], 1)] {
        let before: Vec<_> = world.destinations.iter().map(|s| (world.content(s), s.process())).collect();
        let (call, hold) = world.refresh().hold("controller:precopy:before");
        let mut running = call.spawn();
        hold.reached(&mut running);
        for n in &full {
            let filler = world.destinations[*n].dir.join("filler");
            let _ = Command::new("dd").args(["if=/dev/zero", "bs=1M"]).arg(format!("of={}", filler.display())).output();
            // leave room for a part of the copy, so that it fails in its middle
            output(Command::new("truncate").args(["-s", "-12M"]).arg(&filler));
        }
        hold.release();
        let outcome = running.wait().expect(code).says(&["space"]);
        world.source.wait_up(Duration::from_secs(1));
        assert_eq!(world.content(&world.source), "prod-1");
        for (n, server) in world.destinations.iter().enumerate() {
            let _ = fs::remove_file(server.dir.join("filler"));
            if full.contains(&n) {
                assert_eq!((world.content(server), server.process()), before[n], "{}\n{outcome}", server.name);
                assert!(!server.work().join("stage").exists(), "the stage that filled the disk is still there");
            } else {
                assert_eq!(world.content(server), "prod-1");
            }
        }
        world.recover().expect(0);
        world.expect_nobody_left();
    }
    world.refresh().run().expect(0);
    assert_eq!(world.content(&world.destinations[0]), "prod-1");
}

#[test]
fn a_full_state_folder_of_the_controller_does_not_keep_the_source_down() {
    if !is_root() {
        return;
    }
    let world = World::new();
    let state = world.root().join("small");
    fs::create_dir(&state).unwrap();
    output(Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]).arg(&state));
    world.set("daemon.state_dir", &format!("\"{}/state\"", state.display()));
    world.set("daemon.log_dir", &format!("\"{}/log\"", state.display()));
    let (call, hold) = world.refresh().hold("controller:copy:before");
    let mut running = call.spawn();
    hold.reached(&mut running);
    let filler = state.join("filler");
    let _ = Command::new("dd").args(["if=/dev/zero", "bs=4k"]).arg(format!("of={}", filler.display())).output();
    hold.release();
    // neither what becomes of the run nor that it was put back can be written down
    running.wait().expect(5).says(&["recover"]);
    world.source.wait_up(Duration::from_secs(20));
    fs::remove_file(filler).unwrap();
    world.recover().expect(0);
    world.recover().expect(0);
    world.source.wait_up(Duration::from_secs(1));
    let content = world.content(world.destination());
    assert!(["r1", "prod-0"].contains(&content.as_str()), "{content}");
    world.refresh().run().expect(0);
}
