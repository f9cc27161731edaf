//! What a host puts back by itself, when controller, agents and guard are gone at once: a power cut, as far as one machine can have
//! it without being off.

use std::time::Duration;

use mysql_refreshd::lock::{self, Taken};
use mysql_refreshd::wire::message::Holder;

use crate::poller::Spare;
use crate::world::{Outcome, Server, World, signal, wait_for};

/// The policy of the world's hosts describes a server, as `host init` would.
fn describe(world: &World, server: &Server, role: &str) {
    let mut policy: toml::Table = std::fs::read_to_string(world.policy()).unwrap_or_default().parse().unwrap();
    let config: toml::Table = world.config_text().parse().unwrap();
    let environment = if role == "source" { "prod" } else { "rnd" };
    let described = config["environments"][environment]["hosts"][&server.name].as_table().unwrap();
    let instances = policy.entry("instances").or_insert_with(|| toml::Table::new().into()).as_table_mut().unwrap();
    let entry = instances.entry(&server.name).or_insert_with(|| toml::Table::new().into()).as_table_mut().unwrap();
    for key in ["datadir", "socket", "user", "service", "dropin", "state_dir", "start_timeout", "stop_timeout"] {
        entry.insert(key.to_owned(), described[key].clone());
    }
    entry.insert("roles".to_owned(), vec![role.to_owned()].into());
    std::fs::write(world.policy(), toml::to_string(&policy).unwrap()).unwrap();
}

fn repair(world: &World) -> Outcome {
    world.call(&["host", "repair", "--policy", world.policy().to_str().unwrap()]).run()
}

/// Everything of the program dies in one moment.
fn kill_all(world: &World) {
    let stop = |signal_name: &str| world.program_processes().iter().for_each(|p| signal(p.pid, signal_name));
    // stopped first: none of them may see another one's death
    stop("-STOP");
    // whoever was about to be started by one of them
    stop("-STOP");
    stop("-KILL");
    world.expect_nobody_left();
}

#[test]
fn a_source_comes_up_without_guard_agent_and_controller() {
    let world = World::new();
    describe(&world, &world.source, "source");
    let told = repair(&world).expect(0);
    assert!(told.stdout.contains("db1: nothing was left"), "{told}");
    let (call, hold) = world.refresh().hold("controller:copy:before");
    let mut run = call.spawn();
    hold.reached(&mut run);
    let told = repair(&world).expect(0);
    assert!(told.stdout.contains("is at work here; it is left alone") && !world.source.answers(), "{told}");
    kill_all(&world);
    run.wait();
    std::thread::sleep(Duration::from_secs(2));
    assert!(!world.source.answers(), "nobody is left who could have started it");
    let told = repair(&world).expect(0);
    assert!(
        told.stdout.contains("was interrupted while this source was guarded: the server was down and was started"),
        "{told}"
    );
    assert!(world.source.answers());
    let told = repair(&world).expect(0);
    assert!(told.stdout.contains("db1: nothing was left"), "once: {told}");
    // and the controller, when it is back, finds nothing to do but to know
    world.recover().expect(0);
    world.recover().expect(0);
    assert_eq!(world.content(&world.source), "prod-0");
    world.refresh().run().expect(0);
    world.expect_nobody_left();
}

#[test]
fn a_source_whose_first_starts_fail_after_a_boot_is_not_left_to_itself() {
    let world = World::new();
    let (up, down) = (world.source.dir.join("up"), world.source.dir.join("down"));
    let script = |path: &std::path::Path, text: &str| {
        std::fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    };
    let start =
        format!("setsid -f mariadbd --defaults-file={} </dev/null >/dev/null 2>&1", world.source.cnf().display());
    script(&up, "echo no storage yet >&2; exit 1");
    script(&down, &format!("exec mariadb-admin --no-defaults --socket={} shutdown", world.source.socket().display()));
    world
        .set("environments.prod.hosts.db1.service", &format!("{{ start = [{up:?}], stop = [{down:?}] }}"))
        .set("environments.prod.hosts.db1.start_timeout", "\"4s\"")
        .set("refreshes.nightly.max_outage", "\"60s\"");
    describe(&world, &world.source, "source");
    let (call, hold) = world.refresh().hold("controller:copy:before");
    let mut run = call.spawn();
    hold.reached(&mut run);
    kill_all(&world);
    run.wait();
    repair(&world).expect(5).says(&["no storage yet", "A guard stands on this host and goes on trying."]);
    assert!(!world.source.answers());
    script(&up, &start);
    wait_for("the guard starts it", Duration::from_secs(60), || world.source.answers());
    wait_for("the guard's end", Duration::from_secs(60), || world.program_processes().is_empty());
    world.recover().expect(0);
    world.refresh().run().expect(0);
    world.expect_nobody_left();
}

#[test]
fn a_destination_gets_one_whole_generation() {
    let world = World::new();
    describe(&world, world.destination(), "destination");
    let (call, hold) = world.refresh().hold("controller:swap:after");
    let mut run = call.spawn();
    hold.reached(&mut run);
    assert_eq!(world.content(world.destination()), "prod-0");
    kill_all(&world);
    run.wait();
    let told = repair(&world).expect(0);
    assert!(told.stdout.contains("was interrupted while it swapped: the old generation serves again"), "{told}");
    wait_for("it answers", Duration::from_secs(20), || world.destination().answers());
    assert_eq!(world.content(world.destination()), "r1");
    world.recover().expect(0);
    assert_eq!(world.content(world.destination()), "r1");
    world.refresh().run().expect(0);
    assert_eq!(world.content(world.destination()), "prod-0");
    world.expect_nobody_left();
}

#[test]
fn recovery_waits_for_a_host_that_repairs_itself() {
    let world = World::new();
    let (call, hold) = world.refresh().hold("controller:swap:after");
    let mut run = call.spawn();
    hold.reached(&mut run);
    kill_all(&world);
    run.wait();
    // what a repair at work holds
    let locks: Vec<_> = std::fs::read_dir(world.root().join("host/locks"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "lock"))
        .collect();
    assert!(locks.len() >= 2, "{locks:?}");
    let holder = Holder {
        run: "repair".to_owned(),
        refresh: "host repair".to_owned(),
        pid: std::process::id(),
        host: "here".to_owned(),
        since: "2026-01-01T00:00:00Z".to_owned(),
        step: "repair".to_owned(),
    };
    let take = |path: &std::path::PathBuf| {
        let mut taken = None;
        wait_for("the dead let go of their locks", Duration::from_secs(20), || {
            taken = Some(lock::try_take(path, &holder).unwrap());
            matches!(taken, Some(Taken::Ours(_)))
        });
        taken
    };
    let held: Vec<_> = locks.iter().map(take).collect();
    let mut recover = world.call(&["recover"]).spawn();
    std::thread::sleep(Duration::from_secs(3));
    assert!(recover.ended().is_none(), "it did not wait: {}", recover.so_far());
    drop(held);
    recover.wait().expect(0);
    assert_eq!(world.content(world.destination()), "r1");
    world.refresh().run().expect(0);
}

#[test]
fn old_data_that_a_boot_started_with_new_settings_is_started_anew() {
    let world = World::new();
    let server = world.destination();
    world.poller().spare(
        Spare::Settings,
        "a boot in the middle of a swap starts the server before anyone can see to its settings",
    );
    describe(&world, server, "destination");
    let (call, hold) = world.refresh().hold("destination:swap:dropin");
    let mut run = call.spawn();
    hold.reached(&mut run);
    kill_all(&world);
    run.wait();
    server.start();
    assert_eq!((world.content(server).as_str(), server.variable("max_connections").as_str()), ("r1", "77"));
    let told = repair(&world).expect(0);
    assert!(told.stdout.contains("the old generation serves again"), "{told}");
    wait_for("it answers", Duration::from_secs(20), || server.answers());
    assert_eq!((world.content(server).as_str(), server.variable("max_connections").as_str()), ("r1", "40"));
    world.recover().expect(0);
    world.refresh().run().expect(0);
    world.expect_nobody_left();
}
