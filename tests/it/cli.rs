//! The command line: help a stranger understands, exit codes, errors of usage and configuration, and the commands that only
//! look.

use std::fs;

use crate::world::{Outcome, World};

fn call(world: &World, arguments: &[&str]) -> Outcome {
    world.call(arguments).run()
}

/// A world without servers in use: the configuration alone is looked at.
fn world() -> World {
    World::builder().destinations(1).build()
}

#[test]
fn help_names_every_command_and_exit_code() {
    let world = World::builder().destinations(0).build();
    let help = call(&world, &["--help"]).expect(0).stdout;
    for word in [
        "run",
        "plan",
        "check",
        "config",
        "history",
        "show",
        "rollback",
        "recover",
        "--now",
        "--config",
        "--set",
        "--json",
        "130",
        "MYSQL_REFRESHD_",
    ] {
        assert!(help.contains(word), "--help does not name {word}:\n{help}");
    }
    for hidden in ["guard --file", "launch", "  agent"] {
        assert!(!help.contains(hidden), "--help shows {hidden}");
    }
    for command in ["run", "plan", "check", "config", "history", "show", "rollback", "recover"] {
        let help = call(&world, &[command, "--help"]).expect(0).stdout;
        assert!(help.contains("Usage:"), "{help}");
        assert!(
            help.lines().next().is_some_and(|l| l.len() > 20),
            "{command} --help does not begin with a sentence:\n{help}"
        );
    }
    assert!(call(&world, &["--version"]).expect(0).stdout.contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_usage_is_exit_code_2() {
    let world = world();
    for arguments in [
        &["frobnicate"][..],
        &["run"],
        &[],
        &["--now"],
        &["--no-such-flag"],
        &["plan"],
        &["rollback"],
        &["show"],
        &["--now", "nightly", "check"],
        &["history", "--limit", "many"],
    ] {
        let outcome = call(&world, arguments).expect(2);
        assert!(!outcome.stderr.is_empty(), "{arguments:?} says nothing");
    }
    let outcome = call(&world, &["--now", "nightyl"]).expect(2).says(&["nightyl", "nightly"]);
    assert!(outcome.stderr.contains("error: "), "{outcome}");
    call(&world, &["rollback", "rnd/r9"]).expect(2).says(&["rnd/r9"]);
    call(&world, &["show", "no-such-run"]).expect_any(&[1, 2]).says(&["no-such-run"]);
}

#[test]
fn every_error_of_the_configuration_is_told_with_file_and_key() {
    let world = world();
    world.set("refreshes.nightly.max_outtage", "\"5s\"");
    world.set("refreshes.nightly.xa_prepared", "\"sometimes\"");
    world.set("environments.rnd.hosts.r1.transport", "\"sssh\"");
    world.set("deamon", "{}");
    let outcome = call(&world, &["check", "--offline"]).expect(2).says(&[
        "refreshes.nightly.max_outtage",
        "max_outage",
        "refreshes.nightly.xa_prepared",
        "rollback",
        "environments.rnd.hosts.r1.transport",
        "Did you mean",
        "deamon",
        "daemon",
        "config.toml",
    ]);
    assert!(outcome.stdout.is_empty(), "{outcome}");
}

#[test]
fn a_file_that_is_no_toml_or_not_there_is_named() {
    let world = world();
    let path = world.root().join("broken.toml");
    fs::write(&path, "[daemon\nx = 1\n").unwrap();
    world.call_with(&path, &["check", "--offline"]).run().expect(2).says(&["broken.toml"]);
    world.call_with(&world.root().join("none.toml"), &["check", "--offline"]).run().expect(2).says(&["none.toml"]);
}

#[test]
fn config_show_says_where_each_value_comes_from() {
    let world = world();
    let folder = world.root().join("conf.d");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("50-night.toml"), "[refreshes.nightly]\nlock_timeout = \"11m\"\n").unwrap();
    let shown = world
        .call(&["--set", "refreshes.nightly.max_outage=7m", "config", "show"])
        .env("MYSQL_REFRESHD_REFRESHES__NIGHTLY__DRAIN_TIMEOUT", "13s")
        .run()
        .expect(0)
        .stdout;
    let line = |key: &str| {
        shown.lines().find(|l| l.contains(key)).unwrap_or_else(|| panic!("{key} is not in\n{shown}")).to_owned()
    };
    let checks = [
        ("refreshes.nightly.lock_timeout", "11m", "50-night.toml"),
        ("refreshes.nightly.max_outage", "7m", "--set"),
        ("refreshes.nightly.drain_timeout", "13s", "MYSQL_REFRESHD_REFRESHES__NIGHTLY__DRAIN_TIMEOUT"),
        ("refreshes.nightly.source", "prod/db1", "config.toml"),
        ("refreshes.nightly.proof", "reread", "default"),
    ];
    for (key, value, origin) in checks {
        let line = line(key);
        assert!(line.contains(value) && line.contains(origin), "{key}: {value} from {origin}, but it says: {line}");
    }
}

#[test]
fn check_looks_at_the_servers_unless_told_not_to() {
    let world = world();
    let before: Vec<_> = world.servers().map(|s| s.process()).collect();
    call(&world, &["check"]).expect(0);
    world.destination().stop();
    call(&world, &["check", "--offline"]).expect(0);
    let outcome = call(&world, &["check"]);
    assert_ne!(outcome.code(), 0, "a server that does not run is no good check\n{outcome}");
    assert!(format!("{}{}", outcome.stdout, outcome.stderr).contains("rnd/r1"), "{outcome}");
    assert_eq!(world.source.process(), before[0]);
    world.expect_nobody_left();
}

#[test]
fn a_plan_tells_every_act_and_does_none() {
    let world = World::builder().destinations(2).build();
    let before: Vec<_> = world.servers().map(|s| s.process()).collect();
    let plan = call(&world, &["plan", "nightly"]).expect(0).stdout;
    for word in [
        "prod/db1",
        "rnd/r1",
        "rnd/r2",
        "down for about",
        "stop",
        "start",
        "by rename",
        "account",
        "event",
        "max_connections",
        "server_id",
    ] {
        assert!(plan.to_lowercase().contains(word), "the plan does not name {word}:\n{plan}");
    }
    let json = call(&world, &["--json", "plan", "nightly"]).expect(0).stdout;
    let _: serde_json::Value = serde_json::from_str(json.trim()).unwrap_or_else(|e| panic!("{e}: {json}"));
    let after: Vec<_> = world.servers().map(|s| s.process()).collect();
    assert_eq!(before, after);
    for server in world.servers() {
        assert!(!server.work().exists(), "a plan made a folder");
        assert!(!server.dropin().exists());
    }
    assert_eq!(call(&world, &["--json", "history"]).expect(0).stdout.matches("nightly").count(), 0, "a plan is no run");
    world.expect_nobody_left();
}

#[test]
fn a_plan_of_what_would_be_refused_is_refused() {
    let world = world();
    fs::write(world.source.datadir().join("mystery.bin"), "?").unwrap();
    let outcome = call(&world, &["plan", "nightly"]).expect(4);
    assert!(format!("{}{}", outcome.stdout, outcome.stderr).contains("mystery.bin"), "{outcome}");
}

#[test]
fn history_and_show_tell_what_happened() {
    let world = world();
    call(&world, &["history"]).expect(0);
    call(&world, &["--now", "nightly"]).expect(0);
    fs::write(world.source.datadir().join("mystery.bin"), "?").unwrap();
    call(&world, &["--now", "nightly"]).expect(4);
    let text = call(&world, &["history"]).expect(0).stdout;
    assert!(text.contains("done") && text.contains("refused"), "{text}");
    let one = call(&world, &["history", "--limit", "1"]).expect(0).stdout;
    assert!(one.contains("refused") && !one.contains("done"), "{one}");
    let rows = call(&world, &["--json", "history", "nightly"]).expect(0).stdout;
    let rows: Vec<serde_json::Value> = match serde_json::from_str(&rows) {
        Ok(serde_json::Value::Array(rows)) => rows,
        _ => rows.lines().map(|l| serde_json::from_str(l).unwrap()).collect(),
    };
    assert_eq!(rows.len(), 2);
    let run = rows[1]["run"].as_str().unwrap();
    let shown = call(&world, &["show", run]).expect(0).stdout;
    for word in [run, "prod/db1", "rnd/r1", "copy", "swap", "verify"] {
        assert!(shown.contains(word), "show does not name {word}:\n{shown}");
    }
    call(&world, &["--json", "show", run]).expect(0);
    let nothing = call(&world, &["--json", "history", "other"]);
    assert!(!nothing.stdout.contains("nightly"), "{nothing}");
}

#[test]
fn json_output_is_json_alone_and_the_log_names_the_run_in_every_line() {
    let world = world();
    let outcome = call(&world, &["--json", "--now", "nightly"]).expect(0);
    let events = outcome.events();
    let run = events[0]["run"].as_str().unwrap().to_owned();
    assert!(events.iter().all(|e| e["run"] == run.as_str()), "{outcome}");
    assert_eq!(events.iter().filter(|e| e["event"] == "run_finished").count(), 1);
    assert_eq!(events.last().unwrap()["event"], "run_finished");
    let log = world.program_log();
    assert!(!log.is_empty(), "nothing was logged");
    for line in log.lines() {
        let value: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(value.to_string().contains(&run), "no run id: {line}");
    }
}

#[test]
fn a_failure_is_told_with_cause_and_hint() {
    let world = world();
    fs::write(world.source.datadir().join("mystery.bin"), "?").unwrap();
    let outcome = call(&world, &["--now", "nightly"]).expect(4);
    let error = outcome.stderr.lines().find(|l| l.starts_with("error: ")).unwrap_or_else(|| panic!("{outcome}"));
    assert!(!error.ends_with('.'), "{error}");
    let hint = outcome.stderr.lines().find(|l| l.starts_with("hint: ")).unwrap_or_else(|| panic!("{outcome}"));
    assert!(hint.ends_with('.') || hint.ends_with('?'), "{hint}");
}

#[test]
fn recover_with_nothing_to_recover_is_done() {
    let world = world();
    call(&world, &["recover"]).expect(0);
    call(&world, &["recover"]).expect(0);
}

#[test]
fn several_refreshes_in_one_call() {
    let world = World::builder().destinations(2).build();
    world.set("refreshes.nightly.destinations", "[\"rnd/r1\"]");
    world.set("refreshes.weekly.source", "\"prod/db1\"").set("refreshes.weekly.destinations", "[\"rnd/r2\"]");
    world.set("refreshes.weekly.space_reserve", "\"1MiB\"");
    call(&world, &["--now", "nightly", "weekly"]).expect(0);
    for server in &world.destinations {
        assert_eq!(world.content(server), "prod-0");
    }
    world.set("refreshes.weekly.space_reserve", "\"900TiB\"");
    world.stamp(1);
    let outcome = call(&world, &["run", "weekly", "nightly"]);
    assert_ne!(outcome.code(), 0, "one of the two was refused\n{outcome}");
    assert_eq!(world.content(&world.destinations[1]), "prod-0");
}
