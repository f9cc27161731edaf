//! Destinations whose datadir is a mount point: their entries are moved one by one, and at no moment between two moves may a server
//! serve what lies there.
//!
//! Mounts need root; without it there is nothing here to test, which the output says.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::poller::Spare;
use crate::world::{Server, World, content, is_root, output, signal, wait_for};

/// A world whose destination's datadir is a volume of its own.
pub fn world_on_a_mount() -> Option<World> {
    if !is_root() {
        eprintln!("nothing tested: mounts need root");
        return None;
    }
    // what is mounted now is not seen through a gate that was made before
    let world = World::builder().over("local").build();
    world.set("daemon.host_timeout", "\"4s\"").set("refreshes.nightly.max_outage", "\"30s\"");
    let server = world.destination();
    server.stop();
    let moved = world.root().join("moved");
    std::fs::rename(server.datadir(), &moved).unwrap();
    std::fs::create_dir(server.datadir()).unwrap();
    output(Command::new("mount").args(["-t", "tmpfs", "-o", "size=600m"]).arg("tmpfs").arg(server.datadir()));
    output(Command::new("cp").arg("-a").arg(format!("{}/.", moved.display())).arg(server.datadir()));
    std::fs::create_dir(server.datadir().join("lost+found")).unwrap();
    server.start();
    Some(world)
}

fn journal(server: &Server) -> serde_json::Value {
    let text = std::fs::read(work(server).join("swap.json")).unwrap();
    // the last line is its proof
    serde_json::Deserializer::from_slice(&text).into_iter().next().unwrap().unwrap()
}

/// A start that somebody tries: true if the server answers.
fn serves_when_started(server: &Server) -> bool {
    let mut command = Command::new(crate::template::server());
    command.arg(format!("--defaults-file={}", server.cnf().display()));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    let (mut answered, mut ended) = (false, false);
    while !answered && !ended && begun.elapsed() < Duration::from_secs(20) {
        answered = server.answers();
        ended = child.try_wait().unwrap().is_some();
        std::thread::sleep(Duration::from_millis(50));
    }
    signal(child.id(), "-KILL");
    child.wait().unwrap();
    assert!(answered || ended, "it neither serves nor ends");
    answered
}

#[test]
fn it_is_refreshed_rolled_back_and_refreshed_again() {
    let Some(world) = world_on_a_mount() else { return };
    let server = world.destination();
    let device = |path: &std::path::Path| std::os::unix::fs::MetadataExt::dev(&std::fs::metadata(path).unwrap());
    let volume = device(&server.datadir());
    world.refresh().run().expect(0);
    assert_eq!(content(server), "prod-0");
    assert_eq!(device(&server.datadir().join("ibdata1")), volume);
    assert_eq!(server.variable("max_connections"), "77", "settings follow the data");
    let schemas = server.sql("SHOW DATABASES");
    assert!(!schemas.contains("mysql50"), "what is no schema shows as one: {schemas}");
    assert!(server.datadir().join("lost+found").is_dir());
    world.call(&["rollback", "rnd/r1"]).run().expect(0);
    assert_eq!((content(server).as_str(), server.variable("max_connections").as_str()), ("r1", "40"));
    world.call(&["rollback", "rnd/r1"]).run().expect(0);
    assert_eq!(content(server), "prod-0");
    for stamp in [5, 6] {
        world.stamp(stamp);
        world.refresh().run().expect(0);
        assert_eq!(content(server), format!("prod-{stamp}"));
    }
    // nothing but the two generations and their record
    let mut left: Vec<_> = std::fs::read_dir(server.datadir().join(".refreshd").join("work"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["act.lock", "generation.json", "isolated.stderr", "previous"]);
    world.expect_nobody_left();
}

#[test]
fn death_between_two_moves_leaves_nothing_that_a_server_would_serve() {
    let Some(world) = world_on_a_mount() else { return };
    let server = world.destination();
    let (mut at, mut stamp) = (vec![1], 0);
    let mut tried = 0;
    while let Some(nth) = at.pop() {
        stamp += 1;
        world.stamp(stamp);
        let old = content(server);
        let run = world
            .refresh()
            .fault(&format!("destination:swap:moving=kill-at:{nth}"))
            .fault("controller:swap:before=sleep:0");
        // the controller must not put it back at once: it dies with its agent
        let (run, _hold) = run.hold("controller:swap:after");
        let running = run.spawn();
        let killed = Instant::now();
        while !work(server).join("swap.json").exists() && killed.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(5));
        }
        wait_for("the agent's death", Duration::from_secs(30), || {
            !world.program_processes().iter().any(|p| p.args.join(" ").contains("--role destination"))
        });
        signal(running.pid(), "-KILL");
        running.wait();
        let moves = &journal(server)["moves"];
        let count = |which: &str| moves[which].as_array().unwrap().len();
        let (olds, news) = (count("old"), count("new"));
        if tried == 0 {
            assert!(olds > 5 && news > 5, "{moves}");
            at = vec![
                2,
                3,
                4,
                3 + olds / 2,
                olds,
                olds + 1,
                olds + 2,
                olds + news / 2,
                olds + news - 2,
                olds + news - 1,
                olds + news,
            ];
        }
        tried += 1;
        assert_eq!(moves["placed"], false);
        if nth > 1 {
            // before the first move it is the old generation, whole
            assert!(
                !serves_when_started(server),
                "a server serves what lies between moves {} and {nth} of {}",
                nth - 1,
                olds + news
            );
        }
        world.recover().expect(0);
        world.recover().expect(0);
        server.wait_up(Duration::from_secs(10));
        assert_eq!(content(server), old, "killed at move {nth}");
        assert!(!work(server).join("stray").exists());
        if tried % 4 == 0 {
            world.refresh().run().expect(0);
            assert_eq!(content(server), format!("prod-{stamp}"));
        }
        world.expect_nobody_left();
    }
    assert!(tried > 10);
}

/// Runs until the destination's agent has been killed at the `nth` move; nobody is left to put anything back.
fn killed_at_move(world: &World, nth: usize, on_the_way_back: bool) {
    let fault = format!("destination:swap:moving=kill-at:{nth}");
    let (call, hold) = world.refresh().fault(&fault).hold("controller:swap:after");
    let mut running = call.spawn();
    if on_the_way_back {
        hold.reached(&mut running);
    } else {
        wait_for("the journal", Duration::from_secs(60), || work(world.destination()).join("swap.json").exists());
        wait_for("the agent's death", Duration::from_secs(30), || !has_agent(world));
    }
    // left alone, an agent goes back by itself
    signal(running.pid(), "-KILL");
    running.wait();
    wait_for("the agent's end", Duration::from_secs(60), || !has_agent(world));
}

fn has_agent(world: &World) -> bool {
    world.program_processes().iter().any(|p| p.args.join(" ").contains("--role destination"))
}

fn work(server: &Server) -> std::path::PathBuf {
    server.datadir().join(".refreshd").join("work")
}

#[test]
fn a_server_that_ran_before_the_first_move_keeps_what_it_was_given() {
    let Some(world) = world_on_a_mount() else { return };
    let server = world.destination();
    let why = "a boot in the middle of a swap starts the server before anyone can see to its settings";
    world.poller().spare(Spare::Settings, why);
    world.stamp(1);
    killed_at_move(&world, 1, false);
    // a boot, for instance: the old data is all there, and somebody uses it, and the server replaces files of its own at its stop
    server.start();
    server.sql("CREATE DATABASE since; CREATE TABLE since.t (n INT); INSERT INTO since.t VALUES (7); SET GLOBAL innodb_buffer_pool_dump_now = ON");
    server.stop();
    world.recover().expect(0);
    world.recover().expect(0);
    server.wait_up(Duration::from_secs(10));
    assert_eq!((content(server).as_str(), server.sql("SELECT n FROM since.t").as_str()), ("r1", "7\n"));
    assert_eq!(server.variable("max_connections"), "40");
    world.refresh().run().expect(0);
    assert_eq!(content(server), "prod-1");
    world.expect_nobody_left();
}

#[test]
fn death_on_the_way_back_leaves_nothing_that_a_server_would_serve() {
    let Some(world) = world_on_a_mount() else { return };
    let server = world.destination();
    killed_at_move(&world, 2, false);
    let moves = journal(server)["moves"].clone();
    let all = moves["old"].as_array().unwrap().len() + moves["new"].as_array().unwrap().len();
    world.recover().expect(0);
    for (stamp, back) in (1..).zip([1, 2, 3, 9, all / 2 + 2, all - 2, all - 1]) {
        world.stamp(stamp);
        let old = content(server);
        killed_at_move(&world, all + back, true);
        let serves = serves_when_started(server);
        // before the first move back it is the new generation, whole, on which a server has run
        assert_eq!(serves, back == 1, "after {} of the moves back", back - 1);
        world.recover().expect(0);
        world.recover().expect(0);
        server.wait_up(Duration::from_secs(10));
        assert_eq!(content(server), old, "killed at move {back} on the way back");
        assert!(!work(server).join("stray").exists() && !work(server).join("aside").exists());
        world.expect_nobody_left();
    }
    world.refresh().run().expect(0);
}

#[test]
fn an_error_between_two_moves_and_a_new_generation_that_fails_are_put_back_at_once() {
    let Some(world) = world_on_a_mount() else { return };
    let server = world.destination();
    let faults = [
        "destination:swap:moving=error-at:1",
        "destination:swap:moving=error-at:2",
        "destination:swap:moving=error-at:9",
        "destination:swap:moving=error-at:20",
        "destination:swap:exchanged=error",
        "destination:swap:started=error",
        "destination:verify:after=error",
    ];
    for (stamp, fault) in (1..).zip(faults) {
        world.stamp(stamp);
        let old = content(server);
        world.refresh().fault(fault).run().expect(1).says(&["rnd/r1"]);
        assert_eq!(content(server), old, "{fault}");
        server.sql("CREATE DATABASE IF NOT EXISTS since; DROP DATABASE since");
        world.expect_nobody_left();
        world.recover().expect(0);
    }
    world.refresh().run().expect(0);
    // what users did on the old generation after a rollback is theirs, also through the next failure
    world.call(&["rollback", "rnd/r1"]).run().expect(0);
    server.sql("CREATE DATABASE mine_too; CREATE TABLE mine_too.t (n INT); INSERT INTO mine_too.t VALUES (7)");
    world.refresh().fault("destination:verify:after=error").run().expect(1);
    assert_eq!(server.sql("SELECT n FROM mine_too.t"), "7\n");
}

#[test]
fn death_around_the_moves_is_recovered() {
    let Some(world) = world_on_a_mount() else { return };
    let server = world.destination();
    for (stamp, point) in
        (1..).zip(["swap:journalled", "swap:exchanged", "swap:started", "commit:journalled", "commit:after"])
    {
        world.stamp(stamp);
        let old = content(server);
        world.refresh().fault(&format!("destination:{point}=kill")).run().expect_any(&[0, 1, 5]);
        world.recover().expect(0);
        world.recover().expect(0);
        server.wait_up(Duration::from_secs(10));
        let now = content(server);
        assert!(now == old || now == format!("prod-{stamp}"), "{point}: {now}");
        assert_eq!(now != old, point.starts_with("commit"), "{point}: {now}");
        assert!(!work(server).join("swap.json").exists());
        world.expect_nobody_left();
    }
    world.refresh().run().expect(0);
}
