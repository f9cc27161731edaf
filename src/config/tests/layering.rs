//! How the layers come together: who wins, what merges, what text becomes.

use std::fs;

use proptest::prelude::*;

use super::super::*;
use super::{World, id};

#[test]
fn later_layers_win_and_are_named() {
    let mut world = World::new("[daemon]\nlog_keep = 1\n");
    let origin = |world: &World| (world.config().daemon.log_keep, world.origin("daemon.log_keep"));
    assert_eq!(origin(&World::new("")), (30, "default".to_owned()));
    assert_eq!(origin(&world), (1, "config.toml".to_owned()));
    world = world.part("b.toml", "daemon.log_keep = 3").part("a.toml", "daemon.log_keep = 2");
    world = world.part(".hidden.toml", "nonsense").part("z.toml.bak", "nonsense");
    assert_eq!(origin(&world), (3, "conf.d/b.toml".to_owned()));
    world = world.env("DAEMON__LOG_KEEP", "4");
    assert_eq!(origin(&world), (4, "environment variable MYSQL_REFRESHD_DAEMON__LOG_KEEP".to_owned()));
    world = world.set("daemon.log_keep=5").set("daemon.log_keep=6");
    assert_eq!(origin(&world), (6, "--set daemon.log_keep".to_owned()));
}

#[test]
fn tables_merge_and_arrays_are_replaced() {
    let world = World::refresh("copy_files = [\"a\", \"b*\"]\nevents = \"keep\"")
        .part("x.toml", "refreshes.n.copy_files = [\"c\"]\n[environments.rnd.settings]\nport = 3306\n")
        .env("ENVIRONMENTS__RND__SETTINGS__BIND_ADDRESS", "::1")
        .set("environments.rnd.hosts.r1.dropin=/etc/r1.cnf")
        .set("environments.rnd.hosts={r2 = {dropin = \"/etc/r2.cnf\", settings = {port = 1, read-only = true}}}");
    let config = world.config();
    let policy = &config.refreshes["n"].policy;
    assert_eq!((&policy.copy_files[..], policy.events), (&["c".to_owned()][..], Events::Keep));
    let settings = |host: &str| format!("{:?}", config.host(&id(host)).unwrap().settings);
    assert_eq!(settings("rnd/r1"), r#"{"bind_address": "::1", "port": "3306"}"#);
    assert_eq!(settings("rnd/r2"), r#"{"bind_address": "::1", "port": "1", "read_only": "ON"}"#);
}

#[test]
fn text_from_the_environment_is_not_reshaped() {
    let world = World::refresh("")
        .env("ENVIRONMENTS__RND__HOSTS__R1__USER", "007")
        .env("ENVIRONMENTS__RND__HOSTS__R1__PASSWORD__CREDENTIAL", "12345")
        .env("REFRESHES__N__ALLOW_PRIMARY_STOP", "true")
        .env("REFRESHES__N__COMPRESSION", "7")
        .env("REFRESHES__N__DESTINATIONS", "rnd/r1")
        .env("REFRESHES__N__COPY_FILES", "['x', \"y\"]")
        .env("FAIL", "source:copy=kill")
        .env("CONFIG", "/elsewhere");
    let config = world.config();
    let (host, refresh) = (config.host(&id("rnd/r1")).unwrap(), &config.refreshes["n"]);
    assert_eq!(host.target.described().unwrap().user, "007");
    assert_eq!(host.password, Some(SecretRef::Credential("12345".to_owned())));
    assert!(refresh.policy.allow_primary_stop);
    assert_eq!(refresh.policy.compression, Compression::Level(7));
    assert_eq!(refresh.destinations, [id("rnd/r1")]);
    assert_eq!(refresh.policy.copy_files, ["x", "y"]);
}

#[test]
fn a_missing_main_file_is_named_unless_the_environment_is_enough() {
    let mut world = World::new("");
    fs::remove_file(&world.sources.file).unwrap();
    world = world.env("DAEMON__LOG_KEEP", "4");
    assert_eq!(
        world.errors(),
        ["config.toml: there is no such file (hint: Copy config/minimal.toml there and adapt it; config/config.toml \
          explains every key.)"]
    );
    let host = "{datadir = '/d', socket = '/s', service = {unit = 'u'}}";
    world = world.env("ENVIRONMENTS__A__HOSTS__B", host);
    let config = world.config();
    assert_eq!(
        config.host(&id("a/b")).unwrap().target.described().unwrap().service,
        crate::instance::Service::Systemd { unit: "u.service".to_owned() }
    );
}

#[test]
fn deep_nesting_does_not_overflow_the_stack() {
    let deep = vec!["a"; 200_000].join(".");
    for world in [
        World::new(&format!("{deep} = 1")),
        World::new(&format!("a = {}", "[".repeat(200_000))),
        World::new(&format!("a = {}", "{a=".repeat(200_000))),
        World::new(&format!("[{deep}]")),
        World::new("").set(&format!("{deep}=1")),
        World::new("").set(&format!("daemon={{{deep}=1}}")),
        World::new("").env(&vec!["A"; 100_000].join("__"), "1"),
        World::new("").env("DAEMON", &"[".repeat(200_000)),
    ] {
        assert!(!world.errors().is_empty());
    }
}

/// The layers a key may be set in, in their order.
fn layered(key: &str, values: &[Option<usize>]) -> (World, Option<(usize, String)>) {
    let mut world = World::new(&values[0].map(|value| format!("{key} = {value}\n")).unwrap_or_default());
    let mut last = values[0].map(|value| (value, "config.toml".to_owned()));
    for (index, name) in ["10-a.toml", "9-b.toml"].into_iter().enumerate() {
        if let Some(value) = values[1 + index] {
            world = world.part(name, &format!("{key} = {value}\n"));
            last = Some((value, format!("conf.d/{name}")));
        }
    }
    if let Some(value) = values[3] {
        let name = key.replace('.', "__").to_uppercase();
        world = world.env(&name, &value.to_string());
        last = Some((value, format!("environment variable MYSQL_REFRESHD_{name}")));
    }
    for value in values[4..].iter().flatten() {
        world = world.set(&format!("{key}={value}"));
        last = Some((*value, format!("--set {key}")));
    }
    (world, last)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_last_layer_that_sets_a_key_decides_it(
        values in proptest::collection::vec(proptest::option::of(1..10_000_usize), 6),
    ) {
        let (world, last) = layered("daemon.log_keep", &values);
        let (value, origin) = last.unwrap_or((30, "default".to_owned()));
        prop_assert_eq!(world.config().daemon.log_keep, value);
        prop_assert_eq!(world.origin("daemon.log_keep"), origin);
    }

    #[test]
    fn any_text_is_a_configuration_or_an_error(text in "\\PC{0,200}", key in "[a-z_.]{0,30}", name in "[A-Z_]{0,30}") {
        for value in ["", &text[..]] {
            let world = World::new(value).part("a.toml", &text).set(&format!("{key}={text}")).env(&name, &text);
            if let Err(errors) = world.load() {
                prop_assert!(!errors.0.is_empty());
                prop_assert_eq!(errors.to_string().lines().count(), errors.0.len());
            }
        }
    }

    #[test]
    fn any_schedule_is_read_or_refused(text in "[-+*/,#?@LWA-Z0-9 ]{0,30}", fields in "([*0-9L#?,/-]{1,4} ){5,6}") {
        for text in [text, fields] {
            if let Ok(schedule) = Schedule::parse(&text, chrono_tz::Europe::Berlin) {
                schedule.next_after(chrono::DateTime::UNIX_EPOCH);
            }
        }
    }
}
