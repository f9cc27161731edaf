//! Images of a server that is never stopped: what a snapshot of its filesystem holds recovers into a state that the server really had, of
//! tables of every engine at once.
//!
//! Mounts need root; without it there is nothing here to test, which the output says.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::frozen::{nothing_frozen, world_on_clones, world_on_lvm, world_on_subvolume};
use crate::ledger::Ledger;
use crate::oracle;
use crate::world::{Outcome, Server, World, output, wait_for};

/// A world whose source is copied while it runs.
pub fn world_on_snapshots() -> Option<World> {
    let world = world_on_subvolume()?;
    world.set("refreshes.nightly.method", "\"snapshot\"");
    Some(world)
}

fn summary(outcome: &Outcome) -> serde_json::Value {
    outcome.events().into_iter().find(|event| event["event"] == "run_finished").unwrap()
}

fn numbers(server: &Server, query: &str) -> Vec<u64> {
    server.sql(query).lines().map(|line| line.trim().parse().unwrap()).collect()
}

/// Writes the same numbers to a table of each engine in turn, until told to end; the last one that was wholly written.
fn write_pairs(server: &Server, end: &AtomicBool) -> u64 {
    for engine in ["MyISAM", "Aria", "InnoDB"] {
        server.sql(&format!(
            "CREATE TABLE IF NOT EXISTS shop.in_{engine} (n INT PRIMARY KEY, filler VARCHAR(200)) ENGINE={engine}"
        ));
    }
    let mut client = server.idle_client("SELECT 1");
    let mut n = 0;
    while !end.load(Ordering::Relaxed) {
        n += 1;
        for engine in ["MyISAM", "Aria", "InnoDB"] {
            client.tell(&format!("INSERT INTO shop.in_{engine} VALUES ({n}, REPEAT('x', 200))"));
        }
    }
    n
}

#[test]
fn it_is_a_moment_of_the_running_server_and_nothing_is_stopped() {
    let Some(world) = world_on_snapshots() else { return };
    is_a_moment_of_the_running_server(&world, "btrfs");
}

#[test]
fn it_is_so_on_a_logical_volume_too() {
    for (kind, thin) in [("xfs", false), ("ext4", true)] {
        let Some(world) = world_on_lvm(kind, thin) else { return };
        world.set("refreshes.nightly.method", "\"snapshot\"");
        is_a_moment_of_the_running_server(&world, "LVM snapshot of ");
    }
}

fn is_a_moment_of_the_running_server(world: &World, way: &str) {
    world.stamp(5);
    let own = oracle::accounts(world.destination());
    let before = world.source.process().unwrap();
    let ledger = Ledger::start(&world.source);
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let source = &world.source;
        let pairs = scope.spawn(|| write_pairs(source, &end));
        wait_for("tables of all engines to be written to", Duration::from_secs(10), || {
            world
                .source
                .try_sql("SELECT n FROM shop.in_InnoDB WHERE n > 50 LIMIT 1")
                .is_ok_and(|found| !found.is_empty())
        });
        let committed = numbers(&world.source, "SELECT MAX(n) FROM ledger.commits")[0];
        let outcome = world.call(&["--json", "--now", "nightly"]).run().expect(0);
        end.store(true, Ordering::Relaxed);
        pairs.join().unwrap();

        assert_eq!(world.source.process(), Some(before), "it was stopped");
        let summary = summary(&outcome);
        assert_eq!(summary["outage_ms"], serde_json::Value::Null, "{summary}");
        assert!(summary["held_ms"].as_u64().is_some(), "{summary}");
        assert!(summary["taken"]["snapshot"].as_str().unwrap().contains(way), "{summary}");

        // every commit from before the run, and then a beginning of what came after, without a gap
        let copy = world.destination();
        let rows = numbers(copy, "SELECT n FROM ledger.commits ORDER BY n");
        assert!(*rows.last().unwrap() >= committed, "{rows:?}");
        let all = numbers(&world.source, "SELECT n FROM ledger.commits ORDER BY n");
        assert_eq!(rows[..], all[..rows.len()]);
        assert!(all.len() > rows.len(), "nothing was written after the snapshot: nothing is shown");
        // one client, one table after the other: no engine is more than one row ahead of another
        let last = |engine| numbers(copy, &format!("SELECT MAX(n) FROM shop.in_{engine}"))[0];
        let (myisam, aria, innodb) = (last("MyISAM"), last("Aria"), last("InnoDB"));
        assert!(
            innodb >= 50 && (innodb..=innodb + 1).contains(&aria) && (aria..=innodb + 1).contains(&myisam),
            "{myisam} {aria} {innodb}"
        );
        for engine in ["MyISAM", "Aria", "InnoDB"] {
            let rows = numbers(copy, &format!("SELECT COUNT(*) FROM shop.in_{engine}"))[0];
            assert_eq!(rows, last(engine), "{engine}");
            let checked = copy.sql(&format!("CHECK TABLE shop.in_{engine} EXTENDED"));
            assert!(checked.trim().ends_with("OK") && !checked.contains("arning"), "{checked}");
        }
    });
    drop(ledger);
    assert_eq!(world.content(world.destination()), "prod-5");
    oracle::check_accounts(&own, world.destination());
    nothing_frozen(world);
    // over what this one has left, and with nobody writing: exactly what the source has
    world.stamp(6);
    world.refresh().run().expect(0);
    assert_eq!(world.content(world.destination()), "prod-6");
    let rows =
        |server: &Server| server.sql("CHECKSUM TABLE ledger.commits, shop.in_MyISAM, shop.in_Aria, shop.in_InnoDB");
    assert_eq!(rows(world.destination()), rows(&world.source));
    world.expect_nobody_left();
}

#[test]
fn clones_of_files_are_refused_and_so_is_a_filesystem_without_snapshots() {
    let world = World::builder().over("local").build();
    let before = world.source.process();
    world.set("refreshes.nightly.method", "\"snapshot\"");
    world.refresh().run().expect(4).says(&["no snapshot can be made", "method = \"cold\""]);
    let planned = world.call(&["plan", "nightly"]).run().expect(4);
    assert!(planned.stdout.contains("no snapshot can be made"), "{}", planned.stdout);
    for freeze in ["reflink", "none"] {
        world.set("refreshes.nightly.freeze", &format!("\"{freeze}\""));
        world.refresh().run().expect(2).says(&["refreshes.nightly.method", freeze, "method = \"cold\""]);
    }
    assert_eq!(world.source.process(), before);
    // XFS has clones, but no snapshot of them all at once
    if let Some(world) = world_on_clones("xfs") {
        world.set("refreshes.nightly.method", "\"snapshot\"");
        world.refresh().run().expect(4).says(&["no snapshot can be made", "one after the other"]);
    }
}

/// A statement that keeps its locks is waited for as long as the drain may take, and nobody waits behind us for longer than an attempt.
#[test]
fn a_statement_that_keeps_its_locks_is_not_waited_for_for_ever() {
    let Some(world) = world_on_snapshots() else { return };
    world.set("refreshes.nightly.drain_timeout", "\"4s\"");
    world.source.sql("CREATE TABLE shop.slow (n INT) ENGINE=MyISAM");
    let client = world.source.idle_client("LOCK TABLES shop.slow WRITE");
    world.refresh().run().expect(1).says(&["could not be held", "process list"]);
    drop(client);
    world.source.sql("INSERT INTO shop.slow VALUES (1)");
    nothing_frozen(&world);
    world.refresh().run().expect(0);
}

/// A loss at the destination after that is no reason to copy once more: it may serve the new generation already.
#[test]
fn once_the_image_has_landed_the_run_does_not_begin_anew() {
    let Some(world) = world_on_snapshots() else { return };
    for (n, point) in ["verify:after", "commit:journalled"].into_iter().enumerate() {
        world.stamp(n as u32 + 1);
        let outcome = world
            .call(&["--json", "--now", "nightly"])
            .fault(&format!("destination:{point}=kill"))
            .run()
            .expect_any(&[0, 1]);
        let begun = |step: &str| {
            let events = outcome.events();
            events.iter().filter(|event| event["event"] == "step_started" && event["step"] == step).count()
        };
        assert_eq!((begun("freeze"), begun("copy")), (1, 1), "{point}");
        world.recover().expect(0);
        let serves = if outcome.code() == 0 { format!("prod-{}", n + 1) } else { "r1".to_owned() };
        assert_eq!(world.content(world.destination()), serves, "{point}");
    }
}

/// What is mounted on a folder of the datadir is on the same filesystem, and yet no part of its snapshot.
#[test]
fn a_schema_that_is_a_mount_of_its_own_is_not_missed() {
    let Some(world) = world_on_snapshots() else { return };
    let source = &world.source;
    source.sql("CREATE DATABASE elsewhere; CREATE TABLE elsewhere.t (n INT) ENGINE=MyISAM; FLUSH TABLES");
    let (there, here) = (source.datadir().join("elsewhere"), source.datadir().join("here-it-is"));
    world.set("refreshes.nightly.drop_files", "[\"here-it-is\"]");
    std::fs::rename(&there, &here).unwrap();
    std::fs::create_dir(&there).unwrap();
    output(Command::new("mount").arg("--bind").arg(&here).arg(&there));
    let outcome = world.refresh().run();
    output(Command::new("umount").arg(&there));
    let outcome = outcome.expect_any(&[1, 4]);
    assert!(
        outcome.stderr.contains("mount of its own") || outcome.stderr.contains("another filesystem"),
        "{}",
        outcome.stderr
    );
    assert_eq!(world.content(world.destination()), "r1");
    nothing_frozen(&world);
}

/// Whoever holds the writes may hang: the server lets go of it, and what was frozen is not used.
#[test]
fn an_agent_that_hangs_holds_no_writes_for_ever() {
    let Some(world) = world_on_snapshots() else { return };
    world.stamp(1);
    world.set("daemon.host_timeout", "\"120s\"");
    let (call, hold) = world.refresh().hold("source:snapshot:held");
    let mut running = call.spawn();
    hold.reached(&mut running);
    let begun = std::time::Instant::now();
    world.source.sql("INSERT INTO ledger.commits VALUES (900001, 0)");
    assert!(begun.elapsed() > Duration::from_secs(1), "its writes were not held");
    hold.release();
    running.wait().expect(1).says(&["not held throughout"]);
    assert_eq!(world.content(world.destination()), "r1");
    nothing_frozen(&world);
    world.refresh().run().expect(0);
    assert_eq!(world.content(world.destination()), "prod-1");
}
