//! Servers that do not stop or do not start as they are told, by whomever: each is found out, nothing is copied from one that was not
//! cleanly stopped, and what cannot be put back is an alarm until someone has seen to it.

use std::fs;
use std::time::Duration;

use crate::world::{Outcome, Server, World, content, wait_for};

/// A world whose server `which` is kept by two commands.
struct Kept {
    world: World,
    which: Which,
}

#[derive(Clone, Copy, PartialEq)]
enum Which {
    Source,
    Destination,
}

impl Kept {
    fn new(which: Which) -> Kept {
        let world = World::new();
        world.set("daemon.host_timeout", "\"60s\"").set("refreshes.nightly.max_outage", "\"60s\"");
        let kept = Kept { world, which };
        let (start, stop) = (kept.good_start(), kept.good_stop());
        kept.stops_by(&stop);
        kept.starts_by(&start);
        let environment = if which == Which::Source { "prod" } else { "rnd" };
        let (up, down) = (kept.server().dir.join("up"), kept.server().dir.join("down"));
        let host = format!("environments.{environment}.hosts.{}", kept.server().name);
        kept.world.set(&format!("{host}.service"), &format!("{{ start = [{up:?}], stop = [{down:?}] }}"));
        kept.world.set(&format!("{host}.stop_timeout"), "\"4s\"").set(&format!("{host}.start_timeout"), "\"4s\"");
        kept
    }

    fn server(&self) -> &Server {
        if self.which == Which::Source { &self.world.source } else { self.world.destination() }
    }

    fn good_start(&self) -> String {
        format!("setsid -f mariadbd --defaults-file={} </dev/null >/dev/null 2>&1", self.server().cnf().display())
    }

    fn admin(&self, program: &str) -> String {
        format!("{program} --no-defaults --socket={}", self.server().socket().display())
    }

    fn good_stop(&self) -> String {
        format!("exec {} shutdown", self.admin("mariadb-admin"))
    }

    fn script(&self, name: &str, text: &str) {
        let path = self.server().dir.join(name);
        let new = path.with_extension("new");
        fs::write(&new, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&new, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        fs::rename(new, path).unwrap();
    }

    fn stops_by(&self, text: &str) {
        self.script("down", text);
    }

    fn starts_by(&self, text: &str) {
        self.script("up", text);
    }

    fn kill(&self) -> String {
        format!("kill -KILL $(cat {}/pid)", self.server().dir.display())
    }

    fn run(&self) -> Outcome {
        self.world.refresh().run()
    }

    fn alarms(&self) -> Vec<serde_json::Value> {
        let told = self.world.call(&["status", "--json"]).run();
        let status: serde_json::Value = serde_json::from_str(&told.stdout).unwrap_or_else(|e| panic!("{e}: {told}"));
        status["alarms"].as_array().unwrap().clone()
    }

    fn nothing_left(&self) {
        self.world.recover().expect(0);
        self.world.recover().expect(0);
        assert_eq!(self.alarms(), Vec::<serde_json::Value>::new());
        self.world.expect_nobody_left();
    }
}

#[test]
fn a_source_that_does_not_stop_is_left_running() {
    let kept = Kept::new(Which::Source);
    let life = kept.server().process();
    for (how, text) in [
        ("sleep 60", "did not end within 4 s"),
        ("exit 0", "still runs 4 s after it was told to stop"),
        ("echo no such server >&2; exit 3", "no such server"),
    ] {
        kept.stops_by(how);
        kept.run().expect(1).says(&["prod/db1", text]);
        assert_eq!(kept.server().process(), life, "{how}");
        assert_eq!(content(kept.world.destination()), "r1");
        kept.nothing_left();
    }
    kept.stops_by(&kept.good_stop());
    kept.run().expect(0);
}

#[test]
fn a_source_that_was_not_cleanly_stopped_is_not_copied() {
    let kept = Kept::new(Which::Source);
    let fast = format!("{} -e 'SET GLOBAL innodb_fast_shutdown = 2'", kept.admin("mariadb"));
    for how in [kept.kill(), format!("{fast}\n{}", kept.good_stop())] {
        kept.world.stamp(7);
        kept.world.source.sql("CREATE TABLE IF NOT EXISTS shop.unflushed (n INT PRIMARY KEY) ENGINE=InnoDB");
        // something that only the redo log holds
        kept.stops_by(&format!(
            "{} -e 'INSERT IGNORE INTO shop.unflushed VALUES (1), (2)'\n{how}",
            kept.admin("mariadb")
        ));
        kept.run().expect(1).says(&["prod/db1", "did not stop cleanly"]);
        assert_eq!(kept.world.content(kept.server()), "prod-7");
        assert_eq!(content(kept.world.destination()), "r1");
        kept.nothing_left();
    }
}

#[test]
fn a_source_that_starts_at_the_second_try_is_back() {
    let kept = Kept::new(Which::Source);
    let tried = kept.server().dir.join("tried").display().to_string();
    let once = |failure: &str| format!("[ -e {tried} ] || {{ touch {tried}; {failure}; }}\n{}", kept.good_start());
    for failure in ["echo no luck >&2; exit 1", "exit 0"] {
        let _ = fs::remove_file(&tried);
        kept.starts_by(&once(failure));
        kept.run().expect(0).says(&["prod/db1", "the source did not start at once"]);
        assert!(fs::exists(&tried).unwrap() && kept.server().answers(), "{failure}");
        kept.nothing_left();
    }
}

#[test]
fn a_source_that_never_starts_is_an_alarm_until_it_does() {
    let kept = Kept::new(Which::Source);
    kept.starts_by("echo no luck >&2; exit 1");
    kept.run().expect(5).says(&[
        "prod/db1",
        "no luck",
        "Start the server on prod/db1 by hand now, then run `mysql-refreshd recover`.",
    ]);
    assert!(!kept.server().answers());
    let alarm = kept.alarms();
    assert_eq!(alarm.len(), 1);
    assert!(alarm[0]["what"].as_str().unwrap().contains("prod/db1"), "{alarm:?}");
    let told = kept.world.call(&["status"]).run();
    assert!(told.stdout.contains("A HUMAN IS NEEDED") && told.stdout.contains("by hand now"), "{told}");
    let told = kept.world.call(&["status", "--nagios"]).run().expect(2);
    assert!(told.stdout.contains("CRITICAL"), "{told}");
    // not mended: as before, and a new run is refused
    kept.world.recover().expect(5).says(&["by hand now"]);
    kept.run().expect(5).says(&["could not be put back"]);
    assert_eq!(kept.alarms().len(), 1);
    // mended: whoever looks after it, its guard or we, brings it back
    kept.starts_by(&kept.good_start());
    wait_for("the guard starts it", Duration::from_secs(60), || kept.server().answers());
    assert_eq!(kept.alarms().len(), 1, "nobody has put the rest back");
    wait_for("the guard's end", Duration::from_secs(30), || kept.world.program_processes().is_empty());
    kept.nothing_left();
    kept.run().expect(0);
}

#[test]
fn an_alarm_may_be_acknowledged() {
    let kept = Kept::new(Which::Source);
    kept.starts_by("exit 1");
    kept.run().expect(5);
    let run = kept.alarms()[0]["run"].as_str().unwrap().to_owned();
    // somebody has seen to it, with means of their own
    kept.starts_by(&kept.good_start());
    wait_for("the guard starts it", Duration::from_secs(60), || kept.server().answers());
    kept.world.call(&["recover", "--forget", &run]).run().expect(0);
    assert_eq!(kept.alarms(), Vec::<serde_json::Value>::new());
    let told = kept.world.call(&["history"]).run().expect(0);
    assert!(told.stdout.contains(&run), "{told}");
    kept.run().expect(0);
}

#[cfg(feature = "failpoints")]
#[test]
fn a_rollback_with_nothing_to_go_back_to_leaves_nothing_to_undo() {
    let world = World::new();
    let told = world.call(&["rollback", "rnd/r1"]).run().expect(4).says(&["no previous generation"]);
    assert!(
        !told.stdout.contains("serve the old generation") && !told.stderr.contains("serve the old generation"),
        "{told}"
    );
    world.recover().expect(0);
    // one that is there no more when a run comes to be put back: is its volume not mounted?
    let (call, hold) = world.refresh().hold("controller:swap:after");
    let mut running = call.spawn();
    hold.reached(&mut running);
    crate::world::signal(running.pid(), "-KILL");
    for process in world.program_processes() {
        crate::world::signal(process.pid, "-KILL");
    }
    running.wait();
    let (work, away) = (world.destination().work(), world.root().join("away"));
    fs::rename(&work, &away).unwrap();
    world.recover().expect(5).says(&["Is the datadir's volume mounted?"]);
    fs::rename(&away, &work).unwrap();
    world.recover().expect(0);
    assert_eq!(content(world.destination()), "r1");
}

#[test]
fn a_destination_that_does_not_stop_keeps_its_old_data() {
    let kept = Kept::new(Which::Destination);
    let life = kept.server().process();
    for (how, text) in [("sleep 60", "did not end within 4 s"), ("exit 0", "still runs 4 s after")] {
        kept.stops_by(how);
        kept.run().expect(1).says(&["rnd/r1", text]);
        assert_eq!(kept.server().process(), life, "{how}");
        kept.nothing_left();
    }
    kept.stops_by(&kept.good_stop());
    kept.run().expect(0);
}

#[test]
fn a_destination_that_does_not_start_is_an_alarm_and_then_serves_its_old_data() {
    let kept = Kept::new(Which::Destination);
    kept.starts_by("echo no luck >&2; exit 1");
    kept.run().expect(5).says(&["rnd/r1", "no luck"]);
    assert!(kept.world.source.answers());
    assert!(!kept.server().answers());
    assert_eq!(kept.alarms().len(), 1);
    kept.world.recover().expect(5);
    assert_eq!(kept.alarms().len(), 1);
    kept.starts_by(&kept.good_start());
    kept.nothing_left();
    assert_eq!(content(kept.server()), "r1");
    kept.run().expect(0);
    assert_eq!(content(kept.server()), "prod-0");
}
