//! The daemon: schedules, queue, clients, reload, stop, death and restart, and what it tells its service manager.

use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::world::{Outcome, Running, World, signal, wait_for};

/// Starts the daemon and waits until it can be asked.
fn start(world: &World) -> Running {
    start_with(world, world.call(&["daemon"]))
}

fn start_with(world: &World, call: crate::world::Call<'_>) -> Running {
    let mut daemon = call.spawn();
    let limit = Duration::from_secs(20);
    wait_for("the daemon answers", limit, || {
        assert!(daemon.ended().is_none(), "the daemon has ended: {}", daemon.so_far());
        status(world)["daemon"].is_object()
    });
    daemon
}

/// SIGTERM, and it must end well.
fn stop(daemon: Running) -> Outcome {
    signal(daemon.pid(), "-TERM");
    daemon.wait().expect(0)
}

/// What is printed for a person must hold these.
#[track_caller]
fn shows(told: Outcome, words: &[&str]) {
    for word in words {
        assert!(told.stdout.contains(word), "nothing of {word:?} in\n{told}");
    }
}

fn status(world: &World) -> serde_json::Value {
    let told = world.call(&["status", "--json"]).run();
    serde_json::from_str(&told.stdout).unwrap_or(serde_json::Value::Null)
}

fn history(world: &World, arguments: &[&str]) -> Vec<serde_json::Value> {
    let told = world.call(&[&["history", "--json"], arguments].concat()).run().expect(0);
    serde_json::from_str(&told.stdout).unwrap()
}

fn endings(world: &World, refresh: &str) -> Vec<String> {
    let row = |row: &serde_json::Value| row["summary"]["ending"].as_str().unwrap_or("under way").to_owned();
    history(world, &[refresh]).iter().map(row).collect()
}

/// A schedule that comes round once, so many seconds from now, in the zone of the refresh (UTC).
fn once_in(seconds: i64) -> String {
    let at = chrono::Utc::now() + chrono::TimeDelta::seconds(seconds);
    format!("\"{} *\"", at.format("%-S %-M %-H %-d %-m"))
}

#[test]
fn a_schedule_fires_once_and_others_follow() {
    let world = World::builder().destinations(2).build();
    world.set("refreshes.nightly.destinations", "[\"rnd/r1\"]").set("refreshes.nightly.schedule", &once_in(8));
    world.set("refreshes.second.source", "\"prod\"").set("refreshes.second.destinations", "[\"rnd/r2\"]");
    world.set("refreshes.second.after", "\"nightly\"").set("refreshes.second.space_reserve", "\"1MiB\"");
    let daemon = start(&world);
    let next = status(&world)["refreshes"][0]["next"].as_str().unwrap().to_owned();
    wait_for("both runs are done", Duration::from_secs(90), || {
        endings(&world, "nightly") == ["done"] && endings(&world, "second") == ["done"]
    });
    assert_eq!(world.content(&world.destinations[0]), "prod-0");
    assert_eq!(world.content(&world.destinations[1]), "prod-0");
    let begun = history(&world, &["nightly"])[0]["started"].as_str().unwrap().to_owned();
    let (next, begun) = (at(&next), at(&begun));
    assert!((0..=3).contains(&(begun - next).num_seconds()), "planned {next}, begun {begun}");
    let age = status(&world)["refreshes"][0]["destinations"][0]["age_s"].as_u64().unwrap();
    assert!(age < 120, "{age}");
    stop(daemon);
    world.expect_nobody_left();
    assert_eq!(endings(&world, "nightly").len() + endings(&world, "second").len(), 2);
}

fn at(text: &str) -> chrono::DateTime<chrono::Utc> {
    text.parse().unwrap()
}

#[test]
fn an_occurrence_during_a_short_absence_is_not_lost_and_not_doubled() {
    let world = World::new();
    world.set("refreshes.nightly.schedule", &once_in(10));
    stop(start(&world));
    assert!(endings(&world, "nightly").is_empty());
    std::thread::sleep(Duration::from_secs(10));
    let daemon = start(&world);
    wait_for("the run is done", Duration::from_secs(60), || endings(&world, "nightly") == ["done"]);
    stop(daemon);
    let daemon = start(&world);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(endings(&world, "nightly"), ["done"]);
    stop(daemon);
}

#[test]
fn now_asks_the_daemon_and_shows_what_goes_on() {
    let world = World::new();
    let (call, hold) = world.call(&["daemon"]).hold("controller:copy:after");
    let daemon = start_with(&world, call);
    let mut client = world.refresh().spawn();
    hold.reached(&mut client);
    wait_for("the status shows the step", Duration::from_secs(10), || status(&world)["running"][0]["step"] == "copy");
    let shown = status(&world)["running"][0].clone();
    assert_eq!(shown["refresh"], "nightly", "{shown}");
    assert!(shown["why"].as_str().unwrap().starts_with("asked for by "), "{shown}");
    shows(world.call(&["status"]).run().expect(0), &["nightly runs (run ", "step   copy for "]);
    hold.release();
    let told = client.wait().expect(0).says(&["✓ copy"]);
    shows(told, &["nightly: done in ", "source down"]);
    assert_eq!(world.content(world.destination()), "prod-0");
    // the same way back
    shows(world.call(&["rollback", "rnd/r1"]).run().expect(0), &["rolled back"]);
    assert_eq!(world.content(world.destination()), "r1");
    let told = world.call(&["status"]).run().expect(0);
    assert!(told.stdout.contains("nothing known of its data"), "the first generation came from nowhere: {told}");
    stop(daemon);
    world.expect_nobody_left();
}

#[test]
fn a_run_is_cancelled_by_its_client_or_by_another_but_not_by_a_lost_terminal() {
    let world = World::new();
    // slow enough to be cancelled in the middle
    let call = world.call(&["daemon"]).fault("controller:copy:before=sleep:3000");
    let daemon = start_with(&world, call);
    let copies = || status(&world)["running"][0]["step"] == "copy";
    let client = world.refresh().spawn();
    wait_for("it copies", Duration::from_secs(30), copies);
    signal(client.pid(), "-INT");
    client.wait().expect(130);
    assert!(world.source.answers());
    // by somebody else
    let client = world.refresh().spawn();
    wait_for("it copies", Duration::from_secs(30), copies);
    let run = status(&world)["running"][0]["run"].as_str().unwrap().to_owned();
    world.call(&["cancel", "20200101T000000Z-0000"]).run().expect(2).says(&["no run"]);
    shows(world.call(&["cancel", &run]).run().expect(0), &["is cancelled"]);
    client.wait().expect(130);
    // the client dies, the run goes on
    let client = world.refresh().spawn();
    wait_for("it copies", Duration::from_secs(30), copies);
    signal(client.pid(), "-HUP");
    client.wait();
    wait_for("the run is done", Duration::from_secs(60), || {
        endings(&world, "nightly") == ["done", "cancelled", "cancelled"]
    });
    assert_eq!(world.content(world.destination()), "prod-0");
    stop(daemon);
    world.expect_nobody_left();
}

#[test]
fn two_refreshes_of_one_destination_wait_skip_or_fail() {
    let world = World::new();
    for name in ["waits", "skips", "fails"] {
        world.set(&format!("refreshes.{name}.source"), "\"prod\"");
        world.set(&format!("refreshes.{name}.destinations"), "[\"rnd\"]");
        world.set(&format!("refreshes.{name}.space_reserve"), "\"1MiB\"");
    }
    world.set("refreshes.skips.on_busy", "\"skip\"").set("refreshes.fails.on_busy", "\"fail\"");
    let daemon = start_with(&world, world.call(&["daemon"]).fault("controller:copy:before=sleep:4000"));
    let first = world.refresh().spawn();
    wait_for("it copies", Duration::from_secs(30), || status(&world)["running"][0]["step"] == "copy");
    let mut second = world.call(&["--now", "waits"]).spawn();
    wait_for("it is in the queue", Duration::from_secs(10), || status(&world)["queue"][0]["refresh"] == "waits");
    let queue = status(&world)["queue"].clone();
    assert_eq!(queue[0]["waits_for"], "nightly, which has prod/db1, rnd/r1");
    shows(world.call(&["status"]).run().expect(0), &["waits: waits for nightly, which has prod/db1, rnd/r1"]);
    world.call(&["--now", "skips"]).run().expect(0).says(&["another run is in the way: nightly"]);
    world.call(&["--now", "fails"]).run().expect(3).says(&["another run is in the way: nightly"]);
    world.call(&["--now", "waits", "--no-wait"]).run().expect(3);
    assert_eq!((endings(&world, "skips"), endings(&world, "fails")), (vec!["skipped".into()], vec!["locked".into()]));
    assert!(second.ended().is_none());
    first.wait().expect(0);
    second.wait().expect(0).says(&["waiting for nightly, which has prod/db1, rnd/r1"]);
    // monitoring: that one was left out by its own wish is no alarm, that one failed is
    let told = world.call(&["status", "--nagios", "skips"]).run().expect(0);
    assert!(told.stdout.starts_with("REFRESHD OK"), "{told}");
    let told = world.call(&["status", "--nagios"]).run().expect(1);
    assert!(told.stdout.starts_with("REFRESHD WARNING") && told.stdout.contains("fails: last run locked"), "{told}");
    let told = world.call(&["status", "--nagios", "nightly", "--warning", "1s", "--critical", "1s"]).run().expect(2);
    assert!(told.stdout.contains("'nightly rnd/r1 age'="), "{told}");
    assert_eq!(world.call(&["status", "--nagios", "unknown"]).run().code(), 3);
    stop(daemon);
    // a history that can be asked
    assert_eq!(history(&world, &["--result", "done"]).len(), 2);
    assert_eq!(history(&world, &["--destination", "rnd/r1", "--since", "1h"]).len(), 2);
    assert_eq!(history(&world, &["--until", "1h"]).len(), 0);
    world.call(&["history", "--result", "fine"]).run().expect(2).says(&["is no result", "partial"]);
    shows(world.call(&["history", "--plot"]).run().expect(0), &["source down", "█"]);
}

#[test]
fn a_broken_configuration_is_refused_and_the_old_one_followed() {
    let world = World::new();
    let daemon = start(&world);
    let config = world.write_config();
    let good = std::fs::read_to_string(&config).unwrap();
    let asks = |arguments: &[&str]| {
        // not through the world, which writes the configuration anew
        let old = world.root().join("old.toml");
        std::fs::write(&old, &good).unwrap();
        world.call_with(&old, arguments).run()
    };
    std::fs::write(&config, good.replace("lock_timeout", "lock_timeuot")).unwrap();
    asks(&["reload"]).expect(2).says(&["refreshes.nightly.lock_timeuot", "Did you mean `lock_timeout`?"]);
    assert!(asks(&["status"]).expect(0).stdout.contains("The changed configuration is not in force"));
    assert_eq!(asks(&["status", "--nagios"]).code(), 1);
    asks(&["--now", "nightly"]).expect(0);
    // and by signal, once it is right again
    std::fs::write(&config, format!("{good}\n[refreshes.more]\nsource = \"prod\"\ndestinations = [\"rnd\"]\n"))
        .unwrap();
    signal(daemon.pid(), "-HUP");
    wait_for("the new configuration is in force", Duration::from_secs(10), || {
        let told: serde_json::Value = serde_json::from_str(&asks(&["status", "--json"]).stdout).unwrap();
        told["refreshes"].as_array().unwrap().len() == 2 && told["daemon"]["reload_failed"].is_null()
    });
    // what the asking side sees is not what would be done
    asks(&["--now", "nightly"])
        .expect(2)
        .says(&["the daemon's configuration is not the one you see", "mysql-refreshd reload"]);
    stop(daemon);
}

#[test]
fn a_pause_outlives_the_daemon() {
    let world = World::new();
    world.set("refreshes.nightly.schedule", "\"*/2 * * * * *\"").set("refreshes.nightly.enabled", "true");
    world.set("refreshes.by_hand.source", "\"prod\"").set("refreshes.by_hand.destinations", "[\"rnd\"]");
    // paused before it can fire: it is not enabled yet
    world.set("refreshes.nightly.enabled", "false");
    let daemon = start(&world);
    shows(world.call(&["pause", "nightly"]).run().expect(0), &["nightly is paused"]);
    world.call(&["pause", "by_hand"]).run().expect(2).says(&["has no schedule"]);
    world.call(&["pause", "nihgtly"]).run().expect(2);
    stop(daemon);
    world.set("refreshes.nightly.enabled", "true");
    let daemon = start(&world);
    std::thread::sleep(Duration::from_secs(4));
    assert!(endings(&world, "nightly").is_empty());
    assert!(status(&world)["refreshes"][1]["next"].is_null());
    shows(world.call(&["status"]).run().expect(0), &["paused by "]);
    world.call(&["resume", "nightly"]).run().expect(0);
    wait_for("it runs again", Duration::from_secs(60), || endings(&world, "nightly").contains(&"done".to_owned()));
    stop(daemon);
    world.expect_nobody_left();
}

#[test]
fn a_stop_brings_a_run_to_a_safe_point() {
    let world = World::new();
    for point in ["controller:copy:before", "controller:swap:after"] {
        let (call, hold) = world.call(&["daemon"]).hold(point);
        let daemon = start_with(&world, call);
        let mut client = world.refresh().spawn();
        hold.reached(&mut client);
        signal(daemon.pid(), "-TERM");
        std::thread::sleep(Duration::from_millis(500));
        hold.release();
        daemon.wait().expect(0);
        client.wait().expect(130);
        assert!(world.source.answers() && world.destination().answers(), "{point}");
        assert_eq!(world.content(world.destination()), "r1", "{point}");
        assert_eq!(endings(&world, "nightly")[0], "cancelled");
        world.expect_nobody_left();
    }
    shows(world.call(&["recover"]).run().expect(0), &["Nothing to recover"]);
}

#[test]
fn a_daemon_that_is_killed_recovers_when_it_is_started_again() {
    let world = World::new();
    for point in ["controller:copy:before", "controller:swap:after"] {
        let (call, hold) = world.call(&["daemon"]).hold(point);
        let daemon = start_with(&world, call);
        let mut client = world.refresh().spawn();
        hold.reached(&mut client);
        signal(daemon.pid(), "-KILL");
        daemon.wait();
        client
            .wait()
            .expect(5)
            .says(&["the daemon has ended the conversation", "starts again puts interrupted runs back"]);
        let told = world.call(&["status"]).run().expect(0);
        assert!(told.stdout.contains("INTERRUPTED: run ") && told.stdout.contains("No daemon runs"), "{told}");
        assert_eq!(world.call(&["status", "--nagios"]).run().code(), 2);
        let daemon = start(&world);
        wait_for("it has put everything back", Duration::from_secs(60), || {
            let now = status(&world);
            now["alarms"].as_array().is_some_and(Vec::is_empty) && now["daemon"]["recovering"] == false
        });
        assert!(world.source.answers(), "{point}");
        assert_eq!(world.content(world.destination()), "r1", "{point}");
        stop(daemon);
        world.expect_nobody_left();
    }
}

#[test]
fn the_service_manager_hears_of_begin_life_and_end() {
    let world = World::new();
    let socket = world.root().join("notify");
    let notify = UnixDatagram::bind(&socket).unwrap();
    let heard = Arc::new(Mutex::new(Vec::<String>::new()));
    let into = heard.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n) = notify.recv(&mut buffer) {
            into.lock().unwrap().push(String::from_utf8_lossy(&buffer[..n]).trim().to_owned());
        }
    });
    let listen = || heard.lock().unwrap().clone();
    let call = world.call(&["daemon"]).env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "1500000");
    let daemon = start_with(&world, call);
    wait_for("signs of life", Duration::from_secs(10), || listen().iter().filter(|l| *l == "WATCHDOG=1").count() >= 3);
    world.refresh().run().expect(0);
    world.call(&["reload"]).run().expect(0);
    stop(daemon);
    let heard = listen();
    let first = heard.iter().position(|line| line == "READY=1");
    let has = |part: &str| heard.iter().position(|line| line.starts_with(part));
    assert!(first.is_some() && has("STATUS=idle; nothing is scheduled").is_some(), "{heard:?}");
    assert!(has("STATUS=nightly: ").is_some(), "{heard:?}");
    assert!(has("ERRNO").is_none(), "not for children: {heard:?}");
    assert!(has("RELOADING=1") > first && has("STOPPING=1") > has("RELOADING=1"), "{heard:?}");
    assert!(has("EXTEND_TIMEOUT_USEC=") > has("STOPPING=1"), "{heard:?}");
}

#[test]
fn there_is_one_daemon_and_it_serves_its_own_controller() {
    let world = World::new();
    let daemon = start(&world);
    world.call(&["daemon"]).run().expect(3).says(&["a daemon runs already, process "]);
    // another controller that names this socket by mistake
    let socket = world.root().join("state/control.sock");
    let text = world.config_text().replace("/state\"", "/state2\"");
    let other = world.root().join("other.toml");
    std::fs::write(&other, text.replace("[daemon]", &format!("[daemon]\nsocket = \"{}\"", socket.display()))).unwrap();
    world.call_with(&other, &["--now", "nightly"]).run().expect(2).says(&["keeps its state in"]);
    // the daemon of an upgrade, or somebody's script
    for (line, answer) in [
        (r#"{"protocol": 9, "strange": 1}"#, "speaks protocol 1"),
        ("nonsense", "does not understand"),
        (r#"{"protocol": 1}"#, "does not understand"),
    ] {
        use std::io::{Read, Write};
        let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        stream.write_all(format!("{line}\n").as_bytes()).unwrap();
        let mut told = String::new();
        stream.read_to_string(&mut told).unwrap();
        assert!(told.contains(answer), "{told}");
    }
    stop(daemon);
    assert!(!socket.exists());
    // what is not ours is not removed
    std::fs::write(&socket, "precious").unwrap();
    world.call(&["daemon"]).run().expect(2).says(&["is there already and no socket"]);
    assert_eq!(std::fs::read_to_string(&socket).unwrap(), "precious");
    std::fs::remove_file(&socket).unwrap();
    // looking on ends like any program
    let watching = world.call(&["status", "--watch"]).spawn();
    std::thread::sleep(Duration::from_secs(3));
    signal(watching.pid(), "-INT");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&watching.wait().status), Some(2));
    world.call(&["pause", "nightly"]).run().expect(4).says(&["no daemon runs"]);
}

#[test]
fn a_blackout_forbids_what_is_not_insisted_on() {
    let world = World::new();
    let day = chrono::Utc::now().format("%Y-%m-%d").to_string();
    let tomorrow = (chrono::Utc::now() + chrono::TimeDelta::days(1)).format("%Y-%m-%d").to_string();
    world.set("refreshes.nightly.blackout", &format!("[\"{day}..{tomorrow}\"]"));
    world.refresh().run().expect(4).says(&["must not run now", "--despite-blackout"]);
    let daemon = start(&world);
    world.refresh().run().expect(4).says(&["must not run now", "--despite-blackout"]);
    world.call(&["--now", "nightly", "--despite-blackout"]).run().expect(0);
    stop(daemon);
}

#[test]
fn the_last_line_survives_an_abort() {
    let world = World::new();
    world.set("daemon.log_level", "\"debug\"");
    for step in ["drain", "copy", "swap"] {
        world.refresh().fault(&format!("controller:{step}:before=kill")).run();
        let log = world.program_log();
        let last: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
        assert_eq!((last["message"].as_str(), last["step"].as_str()), (Some("step started"), Some(step)), "{last}");
        world.recover().expect(0);
    }
}

/// A world where `other` waits by its schedule for `nightly`, which takes its time.
fn one_waits_by_schedule() -> (World, Running, Running) {
    let world = World::new();
    world.set("refreshes.other.source", "\"prod\"").set("refreshes.other.destinations", "[\"rnd\"]");
    world.set("refreshes.other.space_reserve", "\"1MiB\"").set("refreshes.other.schedule", &once_in(10));
    let daemon = start_with(&world, world.call(&["daemon"]).fault("controller:copy:before=sleep:14000"));
    let first = world.refresh().spawn();
    wait_for("the other waits", Duration::from_secs(30), || status(&world)["queue"][0]["refresh"] == "other");
    (world, daemon, first)
}

#[test]
fn what_a_schedule_wants_is_not_taken_away_by_a_person_who_leaves() {
    let (world, daemon, first) = one_waits_by_schedule();
    let joined = world.call(&["--now", "other"]).spawn();
    wait_for("it is told", Duration::from_secs(10), || joined.so_far().contains("waiting for nightly"));
    signal(joined.pid(), "-INT");
    joined.wait().expect(130);
    assert_eq!(status(&world)["queue"][0]["refresh"], "other");
    // somebody who will not wait does not
    world.call(&["--now", "other", "--no-wait"]).run().expect(3);
    // and a pause means it
    world.call(&["pause", "other"]).run().expect(0);
    assert_eq!(status(&world)["queue"].as_array().map(Vec::len), Some(0));
    first.wait().expect(0);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(endings(&world, "other"), ["locked"]);
    stop(daemon);
}

#[test]
fn what_waits_is_not_forgotten_by_a_restart() {
    let (world, daemon, first) = one_waits_by_schedule();
    stop(daemon);
    first.wait().expect(130);
    assert!(endings(&world, "other").is_empty());
    let daemon = start(&world);
    wait_for("it runs", Duration::from_secs(60), || endings(&world, "other") == ["done"]);
    stop(daemon);
    let daemon = start(&world);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(endings(&world, "other"), ["done"]);
    stop(daemon);
    world.expect_nobody_left();
}

#[test]
fn a_schedule_that_was_not_followed_has_missed_nothing() {
    let world = World::new();
    let schedule = once_in(10);
    world.set("refreshes.nightly.schedule", &schedule).set("refreshes.nightly.catch_up", "true");
    stop(start(&world));
    world.set("refreshes.nightly.enabled", "false");
    stop(start(&world));
    std::thread::sleep(Duration::from_secs(10));
    world.set("refreshes.nightly.enabled", "true");
    let daemon = start(&world);
    std::thread::sleep(Duration::from_secs(3));
    assert!(endings(&world, "nightly").is_empty());
    stop(daemon);
}

#[test]
fn a_broken_file_keeps_nobody_from_the_daemon() {
    let world = World::new();
    let daemon = start_with(&world, world.call(&["daemon"]).fault("controller:copy:before=sleep:6000"));
    let config = world.write_config();
    let client = world.refresh().spawn();
    wait_for("it copies", Duration::from_secs(30), || status(&world)["running"][0]["step"] == "copy");
    let good = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("{good}\nnonsense = 1\n")).unwrap();
    let asks = |arguments: &[&str]| world.call_with(&config, arguments).run();
    asks(&["reload"]).expect(2).says(&["nonsense", "there is no such key"]);
    let told = asks(&["status", "--json"]).expect(0).says(&["warning: the configuration has an error"]);
    let told: serde_json::Value = serde_json::from_str(&told.stdout).unwrap();
    let run = told["running"][0]["run"].as_str().unwrap().to_owned();
    assert_eq!(asks(&["status", "--nagios"]).code(), 1);
    asks(&["cancel", &run]).expect(0);
    client.wait().expect(130);
    asks(&["--now", "nightly"]).expect(2);
    stop(daemon);
}
