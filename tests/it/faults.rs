//! Scenarios of failure: interrupts, guards that are alone, servers that do not start, damaged stages, one destination of several.
//! Whatever happens, afterwards the source is up with its data, every destination serves the old content or the new one, whole;
//! `recover` is clean, twice; and the next run succeeds. Every point of the code, one by one, is the matter of `points`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::aftermath::{Aftermath, GUARD_LIMIT, fault_world, kill_program};
use crate::ledger::Ledger;
use crate::poller::Spare;
use crate::refresh::kept_by_commands;
use crate::world::{World, signal, wait_for};

/// Interrupts a run while it is held at each of these points.
fn interrupt_at(points: &[&str], name: &str) {
    let world = fault_world();
    let mut failures = Vec::new();
    for (n, point) in points.iter().enumerate() {
        let result = catch_unwind(AssertUnwindSafe(|| {
            let after = Aftermath::prepare(&world, n as u32 + 1);
            let (call, hold) = world.refresh().hold(point);
            let mut running = call.spawn();
            hold.reached(&mut running);
            signal(running.pid(), name);
            std::thread::sleep(Duration::from_millis(400));
            if hold.file.exists() {
                hold.release();
            }
            let outcome = running.wait().expect_any(&[0, 130]);
            after.as_promised(&outcome);
            if outcome.code() == 0 {
                assert!(
                    ["controller:finish:before", "controller:verify:after"].contains(point),
                    "{point}: too late only at the end"
                );
            }
            world.expect_nobody_left();
            world.recover().expect(0);
        }));
        if let Err(panic) = result {
            failures.push(format!("== {point}\n{}", panic.downcast_ref::<String>().cloned().unwrap_or_default()));
            world.recover();
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    world.refresh().run().expect(0);
}

#[test]
fn ctrl_c_before_each_step_puts_everything_back() {
    interrupt_at(
        &[
            "controller:lock:before",
            "controller:preflight:before",
            "controller:stage:before",
            "controller:drain:before",
            "controller:guard:before",
            "controller:stop:before",
            "controller:copy:before",
            "controller:prove:before",
            "controller:start:before",
            "controller:disarm:before",
            "controller:install:before",
            "controller:swap:before",
            "controller:verify:before",
            "controller:finish:before",
        ],
        "-INT",
    );
}

#[test]
fn ctrl_c_in_the_middle_of_a_request_puts_everything_back() {
    interrupt_at(
        &[
            "source:drain:before",
            "source:stop-server:stopped",
            "source:stream:half",
            "destination:receive:first",
            "destination:receive:end",
            "destination:install:started",
            "destination:install:changed",
            "destination:swap:stopped",
            "destination:swap:exchanged",
            "destination:swap:started",
        ],
        "-INT",
    );
}

#[test]
fn a_service_managers_stop_is_a_ctrl_c() {
    interrupt_at(&["controller:copy:before", "destination:install:started"], "-TERM");
}

#[test]
fn a_second_ctrl_c_does_not_leave_the_source_down() {
    let world = fault_world();
    let after = Aftermath::prepare(&world, 1);
    let (call, hold) = world.refresh().hold("source:stream:half");
    let mut running = call.spawn();
    hold.reached(&mut running);
    for _ in 0..3 {
        signal(running.pid(), "-INT");
        std::thread::sleep(Duration::from_millis(100));
    }
    if hold.file.exists() {
        hold.release();
    }
    running.wait();
    after.source_is_up();
    after.recovers();
    after.runs_again();
}

#[test]
fn the_guard_alone_brings_the_source_back() {
    let world = fault_world();
    let ledger = Ledger::start(&world.source);
    let after = Aftermath::prepare(&world, 1);
    let (call, hold) = world.refresh().hold("controller:copy:before");
    let mut running = call.spawn();
    hold.reached(&mut running);
    assert!(world.source.process().is_none());
    assert!(kill_program(&world, |args| !args.contains("guard")) >= 3, "controller and two agents");
    let since = Instant::now();
    running.wait().expect(137);
    world.source.wait_up(GUARD_LIMIT);
    eprintln!("the guard needed {:?}", since.elapsed());
    ledger.wait_for_commits_in_life(1);
    ledger.finish().check_source(&world.source);
    wait_for("the guard's end", GUARD_LIMIT, || world.program_processes().is_empty());
    after.recovers();
    after.all_old();
    after.runs_again();
}

#[test]
fn the_timer_behind_the_guard_starts_what_nobody_has_started_and_nothing_else() {
    let world = fault_world();
    let after = Aftermath::prepare(&world, 1);
    let held = || {
        let (call, hold) = world.refresh().hold("controller:copy:before");
        let mut running = call.spawn();
        hold.reached(&mut running);
        running
    };
    // what systemd's timer runs, once `max_outage` and a half minute more have passed
    let timer = || {
        let folder = world.root().join("host/guard");
        let file = std::fs::read_dir(folder)
            .unwrap()
            .map(|f| f.unwrap().path())
            .find(|f| f.extension() == Some("json".as_ref()));
        let file = file.expect("the guard's record");
        let record: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let arguments = ["guard", "--file", file.to_str().unwrap(), "--cap", record["run"].as_str().unwrap()];
        world.call(&arguments).spawn()
    };
    // guard, agent and controller are dead
    let running = held();
    assert!(kill_program(&world, |_| true) >= 4, "controller, two agents, guard");
    running.wait().expect(137);
    assert!(!world.source.answers());
    let behind = timer();
    world.source.wait_up(GUARD_LIMIT);
    behind.wait().expect(0);
    after.recovers();
    after.all_old();
    // the guard has done it, has gone, and since then somebody has stopped the server
    let running = held();
    assert!(kill_program(&world, |args| !args.contains("guard")) >= 3, "controller and two agents");
    running.wait().expect(137);
    world.source.wait_up(GUARD_LIMIT);
    wait_for("the guard's end", GUARD_LIMIT, || world.program_processes().is_empty());
    world.source.stop();
    timer().wait().expect(0);
    assert!(world.source.process().is_none(), "it was somebody's will that it is down");
    world.source.start();
    after.recovers();
    after.runs_again();
}

#[test]
fn the_guard_brings_the_source_back_when_its_agent_is_frozen() {
    let world = fault_world();
    let after = Aftermath::prepare(&world, 1);
    let (call, hold) = world.refresh().hold("controller:copy:before");
    let mut running = call.spawn();
    hold.reached(&mut running);
    let agents: Vec<_> =
        world.program_processes().into_iter().filter(|p| p.args.join(" ").contains("--role source")).collect();
    assert_eq!(agents.len(), 1);
    signal(agents[0].pid, "-STOP");
    world.source.wait_up(GUARD_LIMIT);
    hold.release();
    signal(agents[0].pid, "-CONT");
    let outcome = running.wait();
    assert_ne!(outcome.code(), 0, "the guard had fired: the image is worth nothing\n{outcome}");
    after.source_is_up();
    after.recovers();
    after.all_old();
}

#[test]
fn the_guard_brings_the_source_back_when_the_controller_is_frozen() {
    let world = fault_world();
    let after = Aftermath::prepare(&world, 1);
    let (call, hold) = world.refresh().hold("controller:copy:before");
    let mut running = call.spawn();
    hold.reached(&mut running);
    signal(running.pid(), "-STOP");
    world.source.wait_up(GUARD_LIMIT);
    hold.release();
    signal(running.pid(), "-CONT");
    let outcome = running.wait();
    assert_ne!(outcome.code(), 0, "the guard had fired: the image is worth nothing\n{outcome}");
    after.source_is_up();
    after.recovers();
    after.all_old();
    after.runs_again();
}

/// A source that fails to start must stay the guard's business: nobody may disarm it while the server is down.
#[test]
fn a_source_that_does_not_start_at_once_is_started_as_soon_as_it_can() {
    let world = fault_world();
    // neither silence nor the length of the outage may be what makes the guard act, only that the start has failed
    world.set("daemon.host_timeout", "\"90s\"").set("refreshes.nightly.max_outage", "\"120s\"");
    let after = Aftermath::prepare(&world, 1);
    let (call, hold) = world.refresh().hold("controller:copy:before");
    let mut running = call.spawn();
    hold.reached(&mut running);
    let cnf = std::fs::read_to_string(world.source.cnf()).unwrap();
    std::fs::write(world.source.cnf(), cnf.replace("skip-networking", "skip-networking\nno-such-option=1")).unwrap();
    hold.release();
    let outcome = running.wait().expect(5).says(&["prod/db1", "hint: "]);
    assert!(!world.source.answers(), "the experiment is not what it is meant to be\n{outcome}");
    // longer than an agent that is left alone tries for: after that only the guard is there
    std::thread::sleep(Duration::from_secs(20));
    std::fs::write(world.source.cnf(), cnf).unwrap();
    // nobody does anything: no recover, no run
    let since = Instant::now();
    world.source.wait_up(Duration::from_secs(60));
    eprintln!("the guard needed {:?}", since.elapsed());
    wait_for("the guard's end", GUARD_LIMIT, || world.program_processes().is_empty());
    after.recovers();
    after.all_old();
    after.runs_again();
}

#[test]
fn an_outage_longer_than_allowed_is_ended() {
    let world = fault_world();
    world.set("refreshes.nightly.max_outage", "\"3s\"");
    let after = Aftermath::prepare(&world, 1);
    let (call, hold) = world.refresh().hold("source:stream:half");
    let mut running = call.spawn();
    hold.reached(&mut running);
    world.source.wait_up(Duration::from_secs(15));
    hold.release();
    let outcome = running.wait().expect(1);
    after.as_promised(&outcome);
    after.recovers();
    world.set("refreshes.nightly.max_outage", "\"30s\"");
    after.runs_again();
}

#[test]
fn someone_else_starts_the_source_while_it_is_read() {
    let world = fault_world();
    let after = Aftermath::prepare(&world, 1);
    let (call, hold) = world.refresh().hold("source:stream:half");
    let mut running = call.spawn();
    hold.reached(&mut running);
    world.source.start();
    hold.release();
    let outcome = running.wait().expect(1);
    after.as_promised(&outcome);
    after.recovers();
    after.all_old();
}

#[test]
fn a_first_start_that_fails_leaves_the_old_server_serving() {
    let world = World::new();
    let serving = world.destination().process();
    let after = Aftermath::prepare(&world, 1);
    for (name, damage) in
        [("ibdata1", Damage::Cut), ("mysql/global_priv.MAD", Damage::Gone), ("ib_logfile0", Damage::Noise)]
    {
        let (call, hold) = world.refresh().hold("controller:install:before");
        let mut running = call.spawn();
        hold.reached(&mut running);
        damage.inflict(&world.destination().work().join("stage").join(name));
        hold.release();
        let outcome = running.wait().expect(1).says(&["rnd/r1"]);
        assert_eq!(world.destination().process(), serving, "{name}: the old server was stopped\n{outcome}");
        after.as_promised(&outcome);
        world.expect_nobody_left();
    }
    after.runs_again();
}

#[test]
fn a_start_that_fails_after_the_swap_goes_back_by_itself() {
    let world = World::new();
    let after = Aftermath::prepare(&world, 1);
    let (call, hold) = world.refresh().hold("controller:swap:before");
    let mut running = call.spawn();
    hold.reached(&mut running);
    Damage::Cut.inflict(&world.destination().work().join("stage/ibdata1"));
    hold.release();
    let outcome = running.wait().expect(1).says(&["rnd/r1"]);
    after.as_promised(&outcome);
    assert!(!world.destination().dropin().exists(), "the new generation's settings are still there");
    after.recovers();
    after.runs_again();
}

#[test]
fn settings_that_no_server_takes_never_reach_a_running_one_or_are_taken_back() {
    let world = World::new();
    let after = Aftermath::prepare(&world, 1);
    world.set("environments.rnd.settings.no_such_variable", "\"1\"");
    let outcome = world.refresh().run().expect_any(&[1, 4]).says(&["no_such_variable"]);
    after.as_promised(&outcome);
    assert_eq!(world.destination().variable("max_connections"), "40");
    world.recover().expect(0);
}

#[test]
fn a_setting_that_is_overruled_is_not_called_done() {
    let world = World::new();
    world.poller().spare(Spare::Settings, "both generations are served with what the other file says");
    let after = Aftermath::prepare(&world, 1);
    // a file that is read after ours says something else
    std::fs::write(world.destination().dir.join("conf.d/99-mine.cnf"), "[mariadbd]\nmax_connections=66\n").unwrap();
    let outcome = world.refresh().run().expect(1).says(&["max_connections"]);
    after.as_promised(&outcome);
    after.recovers();
}

#[test]
fn a_stage_that_changed_after_its_proof_is_not_installed_unseen() {
    // the proof is read from the stage, so a block that went wrong on its way to the disk is found before the source starts
    let world = World::new();
    world.set("refreshes.nightly.precopy", "false");
    let after = Aftermath::prepare(&world, 1);
    let (call, hold) = world.refresh().hold("destination:receive:end");
    let mut running = call.spawn();
    hold.reached(&mut running);
    let table = world.destination().work().join("stage/shop/wide.ibd");
    Damage::OneByte.inflict(&table);
    hold.release();
    let outcome = running.wait();
    // proven block by block as they land: either the damage came after the proof of this file, and then the file's checksum
    // in the server speaks, or it is named here
    if outcome.code() == 0 {
        let check = world.destination().sql("CHECK TABLE shop.wide EXTENDED");
        assert!(check.contains("OK"), "damaged and called done: {check}");
    } else {
        after.as_promised(&outcome);
    }
    after.recovers();
    after.runs_again();
}

#[test]
fn one_of_three_destinations_fails_and_the_others_finish() {
    let world = World::builder().destinations(3).build();
    for (n, point) in
        ["receive:before", "receive:first", "install:before", "swap:exchanged", "verify:before"].into_iter().enumerate()
    {
        let after = Aftermath::prepare(&world, n as u32 + 1);
        world.refresh().fault(&format!("destination@rnd/r2:{point}=error")).run().expect(6).says(&["rnd/r2"]);
        after.source_is_up();
        for (n, (server, old)) in world.destinations.iter().zip(&after.old).enumerate() {
            after.serves(server, old, &[if n == 1 { old } else { &after.new }]);
        }
        world.expect_nobody_left();
    }
    world.recover().expect(0);
    world.set("refreshes.nightly.on_destination_failure", "\"abort\"");
    let after = Aftermath::prepare(&world, 50);
    let outcome = world.refresh().fault("destination@rnd/r2:receive:first=error").run().expect(1);
    after.as_promised(&outcome);
    after.runs_again();
}

#[test]
fn one_of_three_destination_agents_dies_and_the_others_finish() {
    let world = World::builder().destinations(3).build();
    for (n, point) in ["receive:first", "install:started", "swap:exchanged"].into_iter().enumerate() {
        let after = Aftermath::prepare(&world, n as u32 + 1);
        let outcome = world.refresh().fault(&format!("destination@rnd/r3:{point}=kill")).run().expect(6);
        after.source_is_up();
        for (n, (server, old)) in world.destinations.iter().zip(&after.old).enumerate() {
            after.serves(server, old, &[if n == 2 { old } else { &after.new }]);
        }
        assert!(outcome.stderr.contains("rnd/r3"), "{outcome}");
        world.expect_nobody_left();
    }
    world.recover().expect(0);
}

/// The source has asked all that it may ask, and sends nothing more: nobody hears from it that nobody is left to answer.
#[test]
fn a_destination_that_fails_while_the_source_waits_for_its_answers_ends_the_run() {
    let world = fault_world();
    world.refresh().run().expect(0);
    for (n, action) in ["error", "kill", "cut"].into_iter().enumerate() {
        let after = Aftermath::prepare(&world, n as u32 + 1);
        let outcome = world.refresh().fault(&format!("destination:receive:asked={action}-at:90")).run();
        after.as_promised(&outcome);
        after.recovers();
    }
}

#[test]
fn a_slow_destination_does_not_keep_the_source_down() {
    let world = World::builder().destinations(2).build();
    world.set("refreshes.nightly.max_outage", "\"6s\"").set("daemon.host_timeout", "\"4s\"");
    world.set("refreshes.nightly.precopy", "false");
    let after = Aftermath::prepare(&world, 1);
    let (call, hold) = world.refresh().hold("destination@rnd/r2:receive:first");
    let mut running = call.spawn();
    hold.reached(&mut running);
    world.source.wait_up(Duration::from_secs(20));
    hold.release();
    let outcome = running.wait().expect_any(&[1, 6]);
    after.as_promised(&outcome);
    after.recovers();
}

/// Both are instances of one host, with one folder for its state: the one that is started must leave the other one's stop alone.
#[test]
fn a_start_does_not_end_a_neighbours_stop() {
    let world = World::builder().destinations(2).build();
    let after = Aftermath::prepare(&world, 1);
    kept_by_commands(&world, &world.destinations[0], 4);
    kept_by_commands(&world, &world.destinations[1], 0);
    // r2 starts while r1's stop command is at work
    let call = world.refresh().fault("destination@rnd/r1:swap:journalled=sleep:1500");
    let outcome = call.fault("destination@rnd/r2:swap:stopped=sleep:3000").run().expect(0);
    after.as_promised(&outcome);
    after.recovers();
}

#[test]
fn death_in_a_rollback_leaves_one_content_whole() {
    let world = fault_world();
    world.stamp(1);
    world.refresh().run().expect(0);
    for point in [
        "swap:journalled",
        "swap:stopped",
        "swap:dropin",
        "swap:exchanged",
        "swap:started",
        "commit:journalled",
        "rollback:after",
    ] {
        let outcome = world.call(&["rollback", "rnd/r1"]).fault(&format!("destination:{point}=kill")).run();
        outcome.expect_any(&[0, 1, 5]);
        world.recover().expect(0);
        world.recover().expect(0);
        let server = world.destination();
        server.wait_up(Duration::from_secs(5));
        let serves = world.content(server);
        let settings = server.variable("max_connections");
        let fits = if serves == "r1" { "40" } else { "77" };
        assert_eq!(settings, fits, "{point}: {serves} with the other generation's settings");
        assert!(!server.work().join("swap.json").exists());
    }
    world.call(&["rollback", "rnd/r1"]).run().expect(0);
    world.refresh().run().expect(0);
}

/// A way to harm a file.
enum Damage {
    Cut,
    Gone,
    Noise,
    OneByte,
}

impl Damage {
    fn inflict(&self, path: &std::path::Path) {
        let bytes = std::fs::read(path).unwrap();
        match self {
            Damage::Cut => std::fs::write(path, &bytes[..bytes.len() / 3]).unwrap(),
            Damage::Gone => std::fs::remove_file(path).unwrap(),
            Damage::Noise => std::fs::write(path, vec![0x5a; bytes.len()]).unwrap(),
            Damage::OneByte => {
                let mut bytes = bytes;
                let at = bytes.len() - 16 * 1024 - 5000;
                bytes[at] ^= 0xff;
                std::fs::write(path, bytes).unwrap();
            }
        }
    }
}
