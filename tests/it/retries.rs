//! Agents and connections that are lost where the run can go on with others: before the stop, and after the source is back. How often
//! is bounded, every try is told, and nothing that was proven is copied again.

use std::time::Duration;

use crate::world::{World, content, signal, unique};

fn world() -> World {
    let world = World::new();
    world.set("daemon.host_timeout", "\"4s\"").set("refreshes.nightly.max_outage", "\"30s\"");
    world
}

/// `point=kill-once`, with a file of its own.
fn once(world: &World, point: &str) -> String {
    format!("{point}=kill-once:{}", world.root().join(format!("once-{}", unique())).display())
}

#[test]
fn an_agent_lost_before_the_stop_costs_another_begin() {
    let world = world();
    for (stamp, point) in (1..).zip([
        "source:lock:after",
        "destination:facts:after",
        "destination:prepare-stage:after",
        "source:record-runtime:before",
        "source:drain:after",
        "destination:make-room:before",
        "source:arm-guard:after",
    ]) {
        world.stamp(stamp);
        let told = world.refresh().fault(&once(&world, point)).run().expect(0);
        let told = told.says(&["the run begins anew in"]);
        assert_eq!(told.stderr.matches("begins anew").count(), 1, "{point}: {told}");
        assert_eq!(content(world.destination()), format!("prod-{stamp}"), "{point}");
        world.expect_nobody_left();
    }
    world.recover().expect(0);
}

#[test]
fn tries_are_bounded_and_what_is_hopeless_is_not_tried() {
    let world = world();
    let lives = || (world.source.process(), world.destination().process());
    let before = lives();
    let told = world.refresh().fault("destination:prepare-stage:after=kill").run().expect(1);
    assert_eq!(told.stderr.matches("begins anew").count(), 2, "{told}");
    let told = world.refresh().fault("source:drain:before=error").run().expect(1);
    assert_eq!(told.stderr.matches("begins anew").count(), 0, "{told}");
    assert_eq!(lives(), before, "a server was touched");
    world.recover().expect(0);
    world.refresh().run().expect(0);
}

#[test]
fn a_wish_to_stop_ends_the_tries() {
    let world = world();
    let mut running = world.refresh().fault("destination:prepare-stage:after=kill").spawn();
    crate::world::wait_for("the first pause", Duration::from_secs(30), || {
        assert!(running.ended().is_none(), "{}", running.so_far());
        running.so_far().contains("begins anew")
    });
    signal(running.pid(), "-INT");
    let told = running.wait().expect(130);
    assert_eq!(told.stderr.matches("begins anew").count(), 1, "{told}");
    world.expect_nobody_left();
}

#[test]
fn an_agent_lost_after_the_copy_gets_a_successor_that_goes_on() {
    let world = World::builder().destinations(2).build();
    // what is lost before the stop is another matter: then the run begins anew
    world.set("daemon.host_timeout", "\"4s\"").set("refreshes.nightly.precopy", "false");
    for (stamp, point) in (1..).zip([
        "receive:after",
        "sync-stage:before",
        "sync-stage:after",
        "install:before",
        "install:after",
        "swap:before",
    ]) {
        world.stamp(stamp);
        let fault = once(&world, &format!("destination@rnd/r2:{point}"));
        let told = world.refresh().fault(&fault).run();
        if point == "receive:after" {
            // its answer was lost while the source was down: nobody waits for a successor then
            told.expect(6).says(&["rnd/r2"]);
            world.recover().expect(0);
            continue;
        }
        let told = told.expect(0).says(&["another agent takes over in"]);
        for server in &world.destinations {
            assert_eq!(content(server), format!("prod-{stamp}"), "{point}: {}\n{told}", server.name);
            assert!(!server.work().join("stage.json").exists() && !server.work().join("stage").exists());
        }
        world.expect_nobody_left();
    }
    // bounded, and the other one finishes
    world.stamp(50);
    let told = world.refresh().fault("destination@rnd/r2:install:before=kill").run().expect(6);
    assert_eq!(told.stderr.matches("another agent takes over").count(), 2, "{told}");
    assert_eq!(content(&world.destinations[0]), "prod-50");
    assert_ne!(content(&world.destinations[1]), "prod-50");
    // a stage that is half changed is nobody's to go on with
    world.stamp(51);
    let fault = once(&world, "destination@rnd/r2:install:started");
    world.refresh().fault(&fault).run().expect(6).says(&["there is no whole stage of this run to go on with"]);
    world.recover().expect(0);
    world.recover().expect(0);
    for server in &world.destinations {
        assert!(!server.work().join("stage").exists(), "{}", server.name);
    }
    world.refresh().run().expect(0);
}

#[test]
fn a_whole_stage_whose_controller_died_is_removed_by_recovery() {
    let world = world();
    let (call, hold) = world.refresh().hold("controller:install:after");
    let mut running = call.spawn();
    hold.reached(&mut running);
    signal(running.pid(), "-KILL");
    running.wait();
    crate::world::wait_for("the agents' end", Duration::from_secs(30), || world.program_processes().is_empty());
    assert!(world.destination().work().join("stage.json").exists(), "the agent did not leave its stage to a successor");
    world.recover().expect(0);
    world.recover().expect(0);
    assert!(!world.destination().work().join("stage").exists());
    assert!(!world.destination().work().join("stage.json").exists());
    world.expect_nobody_left();
}
