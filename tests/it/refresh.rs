//! Refreshes that go well, on real servers: what arrives, what each side keeps, and the way back.

use std::fs;
use std::time::Duration;

use crate::ledger::Ledger;
use crate::oracle::{self, Observer};
use crate::world::{Content, Outcome, Server, World, output, wait_for};

/// The last event of a `--json` run.
fn summary(outcome: &Outcome) -> serde_json::Value {
    let last = outcome.events().pop().expect("a --json run prints events");
    assert_eq!(last["event"], "run_finished");
    last
}

fn number(value: &serde_json::Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("{key} is not a number in {value}"))
}

/// What must hold of a refreshed destination, whatever the refresh.
#[track_caller]
fn check_refreshed(world: &World, server: &Server, content: &str) {
    assert_eq!(world.content(server), content);
    assert_eq!(server.variable("max_connections"), "77", "the environment's setting");
    assert!(server.variable("server_id").starts_with("20"), "the host's own setting");
    assert_eq!(fs::canonicalize(server.variable("datadir")).unwrap(), fs::canonicalize(server.datadir()).unwrap());
    assert_eq!(server.sql("SHOW ALL SLAVES STATUS"), "");
    assert!(!server.work().join("stage").exists(), "no stage stays");
    assert!(!server.work().join("swap.json").exists(), "no swap is unfinished");
}

#[test]
fn a_copy_under_live_writes_is_the_stopped_datadir_and_loses_no_commit() {
    let world = World::new();
    world.stamp(5);
    let own = oracle::accounts(world.destination());
    let ledger = Ledger::start(&world.source);
    let before = world.source.process().unwrap();

    let (call, copy) = world.call(&["--json", "--now", "nightly"]).hold("controller:copy:before");
    let (call, install) = call.hold("controller:install:before");
    let mut running = call.spawn();
    copy.reached(&mut running);
    assert!(!before.lives());
    let observer = Observer::copy_of(&world);
    copy.release();
    install.reached(&mut running);
    world.source.wait_up(Duration::from_secs(1));
    observer.check_stage(&world.destination().work().join("stage"));
    ledger.wait_for_commits_in_life(1);
    assert_eq!(world.content(world.destination()), "r1", "the old content serves until the swap");
    install.release();
    let outcome = running.wait().expect(0);

    let book = ledger.finish();
    assert_eq!(book.lives(), 2, "one stop, one start");
    book.check_copy(world.destination(), 0);
    book.check_source(&world.source);
    check_refreshed(&world, world.destination(), "prod-5");
    oracle::check_same(observer.start(), world.destination());
    oracle::check_accounts(&own, world.destination());
    let summary = summary(&outcome);
    let (outage, total) = (number(&summary, "outage_ms"), number(&summary, "total_ms"));
    assert!(0 < outage && outage < total, "{summary}");
    world.expect_nobody_left();
}

#[test]
fn a_destination_keeps_its_accounts_and_productions_are_gone() {
    let world = World::new();
    let own = oracle::accounts(world.destination());
    let productions = oracle::accounts(&world.source);
    world.refresh().run().expect(0);
    let server = world.destination();
    oracle::check_accounts(&own, server);
    assert_eq!(server.log_in("analyst", r#"An@lyst's "pw" \ #1"#).unwrap().trim(), "analyst@localhost");
    assert!(server.log_in("twin", "twin-on-research").is_ok());
    assert!(server.log_in("twin", "twin-on-prod").is_err(), "production's password opens R&D");
    assert!(server.log_in("prod_app", "pr0d-app-pw").is_err());
    assert_eq!(server.sql("SELECT COUNT(*) FROM mysql.global_priv WHERE User LIKE 'prod%'").trim(), "0");
    let leftovers = "SELECT COUNT(*) FROM mysql.db WHERE User LIKE 'prod%'; SELECT COUNT(*) FROM mysql.roles_mapping WHERE User LIKE 'prod%' OR Role LIKE 'prod%'";
    assert_eq!(server.sql(leftovers), "0\n0\n");
    // the analyst's default role and grants work on what arrived
    let rows = server.sql("SET ROLE NONE; SELECT COUNT(*) > 0 FROM mysql.db WHERE User = 'analyst' AND Db = 'shop'");
    assert_eq!(rows.trim(), "1");
    oracle::check_accounts(&productions, &world.source);
}

#[test]
fn accounts_follow_the_source_when_asked() {
    let world = World::new();
    world.set("refreshes.nightly.accounts", "\"source\"");
    let productions = oracle::accounts(&world.source);
    world.refresh().run().expect(0);
    oracle::check_accounts(&productions, world.destination());
    assert!(world.destination().log_in("twin", "twin-on-prod").is_ok());
}

#[test]
fn three_destinations_get_one_image() {
    let world = World::builder().destinations(3).build();
    world.stamp(3);
    let own: Vec<_> = world.destinations.iter().map(oracle::accounts).collect();
    let ledger = Ledger::start(&world.source);
    let outcome = world.call(&["--json", "--now", "nightly"]).run().expect(0);
    let book = ledger.finish();
    for (server, own) in world.destinations.iter().zip(&own) {
        check_refreshed(&world, server, "prod-3");
        book.check_copy(server, 0);
        oracle::check_accounts(own, server);
    }
    let ids: Vec<_> = world.destinations.iter().map(|s| s.variable("server_id")).collect();
    assert_eq!(ids, ["201", "202", "203"]);
    oracle::check_same(&world.destinations[0], &world.destinations[1]);
    oracle::check_same(&world.destinations[0], &world.destinations[2]);
    let summary = summary(&outcome);
    // passes beside live writes send more than the image holds
    assert!(
        number(&summary, "sent_bytes") <= number(&summary, "changed_bytes") * 11 / 10,
        "sent once, not three times: {summary}"
    );
    assert_eq!(summary["destinations"].as_array().unwrap().len(), 3);
    world.expect_nobody_left();
}

#[test]
fn one_host_of_an_environment_leaves_its_neighbours_alone() {
    let world = World::builder().destinations(2).build();
    world.set("refreshes.nightly.destinations", "[\"rnd/r2\"]");
    let neighbour = world.destinations[0].process();
    world.refresh().run().expect(0);
    check_refreshed(&world, &world.destinations[1], "prod-0");
    assert_eq!(world.content(&world.destinations[0]), "r1");
    assert_eq!(world.destinations[0].process(), neighbour);
    assert!(!world.destinations[0].work().exists());
}

#[test]
fn a_second_refresh_and_the_way_back_and_forth() {
    let world = World::new();
    let own = oracle::accounts(world.destination());
    world.stamp(1);
    world.refresh().run().expect(0);
    check_refreshed(&world, world.destination(), "prod-1");
    world.stamp(2);
    world.refresh().run().expect(0);
    check_refreshed(&world, world.destination(), "prod-2");
    oracle::check_accounts(&own, world.destination());
    let source = world.source.process();

    world.call(&["rollback", "rnd/r1"]).run().expect(0);
    check_refreshed(&world, world.destination(), "prod-1");
    oracle::check_accounts(&own, world.destination());
    world.call(&["rollback", "rnd/r1"]).run().expect(0);
    check_refreshed(&world, world.destination(), "prod-2");
    assert_eq!(world.source.process(), source, "a rollback is no business of the source");

    // a refresh after a rollback is a refresh like any other
    world.call(&["rollback", "rnd/r1"]).run().expect(0);
    world.stamp(3);
    world.refresh().run().expect(0);
    check_refreshed(&world, world.destination(), "prod-3");
    world.expect_nobody_left();
}

#[test]
fn rollback_of_the_first_refresh_restores_the_destinations_own_world() {
    let world = World::new();
    let own = (oracle::accounts(world.destination()), oracle::contents(world.destination()));
    world.refresh().run().expect(0);
    assert!(world.destination().dropin().exists());
    world.call(&["rollback", "rnd/r1"]).run().expect(0);
    let server = world.destination();
    assert_eq!(world.content(server), "r1");
    oracle::check_accounts(&own.0, server);
    assert_eq!(oracle::contents(server), own.1);
    assert!(!server.dropin().exists(), "the configuration is rolled back with the data");
    assert_eq!((server.variable("max_connections"), server.variable("server_id")), ("40".into(), "101".into()));
    world.call(&["rollback", "rnd/r1"]).run().expect(0);
    check_refreshed(&world, server, "prod-0");
}

#[test]
fn nothing_is_kept_when_nothing_is_to_be_kept() {
    let world = World::new();
    world.set("refreshes.nightly.keep_previous", "\"none\"");
    world.refresh().run().expect(0);
    assert!(!world.destination().work().join("previous").exists());
    let serving = world.destination().process();
    world.call(&["rollback", "rnd/r1"]).run().expect_any(&[1, 4]).says(&["previous"]);
    assert_eq!(world.destination().process(), serving);
    assert_eq!(world.content(world.destination()), "prod-0");
}

#[test]
fn the_previous_generation_is_kept_until_the_new_one_is_verified() {
    let world = World::new();
    world.set("refreshes.nightly.keep_previous", "\"until_verified\"");
    world.stamp(1);
    world.refresh().run().expect(0);
    world.stamp(2);
    world.refresh().run().expect(0);
    world.call(&["rollback", "rnd/r1"]).run().expect(0);
    check_refreshed(&world, world.destination(), "prod-1");
}

#[test]
fn events_and_replication_of_production_are_dead_on_arrival() {
    let world = World::builder().destination_options("event_scheduler=ON").build();
    world.source.sql(
        "CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = 1, MASTER_USER = 'repl', MASTER_PASSWORD = 'leaky-repl-pw';
         CHANGE MASTER 'second' TO MASTER_HOST = '127.0.0.1', MASTER_PORT = 2, MASTER_USER = 'repl', MASTER_PASSWORD = 'leaky-repl-pw';
         INSERT INTO mysql.servers VALUES ('outside', '127.0.0.1', 'shop', 'fed', 'leaky-fed-pw', 1, '', 'mysql', '');",
    );
    world.refresh().run().expect(0);
    let server = world.destination();
    check_refreshed(&world, server, "prod-0");
    assert_eq!(server.sql("SELECT DISTINCT status FROM information_schema.events").trim(), "DISABLED");
    let beats = || server.sql("SELECT COUNT(*) FROM shop.beats");
    let (first, _) = (beats(), std::thread::sleep(Duration::from_millis(2500)));
    assert_eq!(beats(), first, "production's event runs in R&D");
    assert_eq!(server.sql("SELECT COUNT(*) FROM mysql.servers").trim(), "0");
    output(std::process::Command::new("sync").arg("-f").arg(&server.dir));
    for name in ["master.info", "master-second.info", "multi-master.info", "relay-log.info"] {
        let text = fs::read_to_string(server.datadir().join(name)).unwrap_or_default();
        assert!(!text.contains("repl") && !text.contains("second"), "{name} came along: {text}");
    }
    // the source keeps all of it
    assert_eq!(world.source.sql("SHOW ALL SLAVES STATUS").lines().count(), 2);
    assert_eq!(world.source.sql("SELECT COUNT(*) FROM mysql.servers").trim(), "1");
    let statuses = world.source.sql("SELECT event_name, status FROM information_schema.events ORDER BY 1");
    assert_eq!(statuses, "beat\tENABLED\nnever\tDISABLED\n");
}

#[cfg(feature = "failpoints")]
#[test]
fn a_source_that_is_a_replica_is_back_when_it_has_caught_up() {
    let world = World::builder().destinations(2).build();
    world.set("refreshes.nightly.destinations", "[\"rnd/r1\"]");
    let (upstream, port) = (&world.destinations[1], crate::world::free_port());
    upstream.stop();
    upstream.write_options(&format!("server_id=9\nlog-bin=binlog\nbinlog_format=STATEMENT\nport={port}\n"));
    upstream.start();
    upstream.sql(
        "CREATE USER repl@'127.0.0.1' IDENTIFIED BY 'r'; GRANT REPLICATION SLAVE ON *.* TO repl@'127.0.0.1';
         CREATE DATABASE feed; CREATE TABLE feed.t (n INT PRIMARY KEY, slept INT);",
    );
    world.source.sql(&format!(
        "CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = {port}, MASTER_USER = 'repl', MASTER_PASSWORD = 'r', MASTER_CONNECT_RETRY = 1, MASTER_USE_GTID = slave_pos;
         START SLAVE;"
    ));
    let rows = || world.source.try_sql("SELECT COUNT(*) FROM feed.t").unwrap_or_default();
    crate::world::wait_for("replication", Duration::from_secs(30), || rows() == "0\n");
    let (call, hold) = world.refresh().hold("controller:copy:before");
    let mut running = call.spawn();
    hold.reached(&mut running);
    // statements that take as long on the replica, which is down now
    for n in 1..=3 {
        upstream.sql(&format!("SET STATEMENT max_statement_time = 0 FOR INSERT INTO feed.t SELECT {n}, SLEEP(1)"));
    }
    hold.release();
    running.wait().expect(0);
    assert_eq!(rows(), "3\n", "the run did not wait for it");
    let log = world.program_log();
    assert!(log.contains("replication is as near to its source as it was"), "{log}");
}

#[test]
fn a_destination_that_was_a_replica_is_none_afterwards() {
    let world = World::new();
    let server = world.destination();
    server.sql("CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = 1, MASTER_USER = 'repl', MASTER_PASSWORD = 'r'; START SLAVE;");
    world.refresh().run().expect(0);
    check_refreshed(&world, server, "prod-0");
    world.call(&["rollback", "rnd/r1"]).run().expect(0);
    assert_eq!(
        server.sql("SHOW ALL SLAVES STATUS").lines().count(),
        1,
        "its own replication is a part of its old content"
    );
}

#[test]
fn events_stay_when_asked() {
    let world = World::builder().destination_options("event_scheduler=ON").build();
    world.set("refreshes.nightly.events", "\"keep\"");
    world.refresh().run().expect(0);
    let server = world.destination();
    assert_eq!(
        server.sql("SELECT event_name, status FROM information_schema.events ORDER BY 1"),
        "beat\tENABLED\nnever\tDISABLED\n"
    );
    let beats = || server.sql("SELECT COUNT(*) FROM shop.beats").trim().parse::<u64>().unwrap();
    let first = beats();
    wait_for("the event runs", Duration::from_secs(10), || beats() > first);
}

#[test]
fn the_source_comes_back_with_the_state_it_ran_with() {
    let world = World::new();
    world.source.sql(
        "SET GLOBAL read_only = 1; SET GLOBAL max_connections = 33; SET GLOBAL innodb_io_capacity = 321;
         SET GLOBAL innodb_max_dirty_pages_pct = 61.5; SET GLOBAL sql_mode = 'ANSI_QUOTES,NO_ZERO_DATE';
         SET GLOBAL init_connect = 'SET @a = ''it''''s'''; SET GLOBAL innodb_fast_shutdown = 0;",
    );
    let state = |server: &Server| {
        [
            "read_only",
            "max_connections",
            "innodb_io_capacity",
            "innodb_io_capacity_max",
            "innodb_max_dirty_pages_pct",
            "sql_mode",
            "init_connect",
            "innodb_max_dirty_pages_pct_lwm",
            "innodb_fast_shutdown",
            "event_scheduler",
        ]
        .map(|name| format!("{name}={}", server.variable(name)))
    };
    let (before, process) = (state(&world.source), world.source.process());
    world.refresh().run().expect(0);
    assert_ne!(world.source.process(), process);
    assert_eq!(state(&world.source), before);
    assert_eq!(world.destination().variable("read_only"), "0", "the source's runtime state is not the destination's");
}

#[test]
fn a_transaction_that_ends_in_time_is_in_the_copy() {
    let world = World::new();
    world.set("refreshes.nightly.drain_timeout", "\"20s\"");
    let mut client = world.source.idle_client("BEGIN; INSERT INTO ledger.commits VALUES (7777, 0)");
    std::thread::sleep(Duration::from_millis(1500));
    let running = world.refresh().spawn();
    std::thread::sleep(Duration::from_secs(3));
    assert!(world.source.answers(), "stopped in spite of a long transaction");
    client.tell("COMMIT");
    running.wait().expect(0);
    assert_eq!(world.destination().sql("SELECT COUNT(*) FROM ledger.commits WHERE n = 7777").trim(), "1");
    assert_eq!(world.source.sql("SELECT COUNT(*) FROM ledger.commits WHERE n = 7777").trim(), "1");
}

#[test]
fn a_long_transaction_is_rolled_back_when_policy_says_proceed() {
    let world = World::new();
    world.set("refreshes.nightly.long_transactions", "\"proceed\"");
    let _client = world.source.idle_client("BEGIN; INSERT INTO ledger.commits VALUES (7777, 0)");
    std::thread::sleep(Duration::from_millis(1500));
    world.refresh().run().expect(0);
    for server in world.servers() {
        assert_eq!(server.sql("SELECT COUNT(*) FROM ledger.commits WHERE n = 7777").trim(), "0", "{}", server.name);
    }
}

#[test]
fn prepared_xa_is_rolled_back_on_the_destination_alone() {
    let world = World::new();
    world.set("refreshes.nightly.xa_prepared", "\"rollback\"");
    world
        .source
        .sql("XA START 'it''s'; INSERT INTO ledger.commits VALUES (8888, 0); XA END 'it''s'; XA PREPARE 'it''s';");
    assert_eq!(world.source.sql("XA RECOVER").lines().count(), 1);
    world.refresh().run().expect(0);
    let server = world.destination();
    assert_eq!(server.sql("XA RECOVER"), "");
    assert_eq!(server.sql("SELECT COUNT(*) FROM ledger.commits WHERE n = 8888").trim(), "0");
    assert_eq!(world.source.sql("XA RECOVER").lines().count(), 1, "the source's is left alone");
    world.source.sql("XA COMMIT 'it''s'");
    assert_eq!(world.source.sql("SELECT COUNT(*) FROM ledger.commits WHERE n = 8888").trim(), "1");
}

#[test]
fn binary_logs_stay_where_they_are() {
    let world = World::builder().source_options("log-bin=binlog").destination_options("log-bin=binlog").build();
    world.source.sql("INSERT INTO ledger.commits VALUES (4242, 0); FLUSH BINARY LOGS;");
    world.destination().sql("UPDATE research.results SET x = 1 WHERE id = 1");
    world.refresh().run().expect(0);
    let server = world.destination();
    check_refreshed(&world, server, "prod-0");
    assert_eq!(server.sql("SHOW BINARY LOGS").lines().count(), 1, "a log of its own, begun anew");
    let first = fs::read(server.datadir().join("binlog.000001")).unwrap();
    assert!(!crate::world::holds(&first, b"ledger"), "production's statements, or those of the isolated start");
    server.sql("UPDATE shop.orders SET stamp = 1 WHERE id = 1");
    assert!(world.source.sql("SHOW BINARY LOGS").lines().count() >= 3, "the source has lost its logs");
}

#[test]
fn undo_tablespaces_and_an_own_page_size_travel() {
    let made = "innodb-undo-tablespaces=3\ninnodb-page-size=8k\n";
    let world = World::builder().made_with(made).build();
    world.stamp(6);
    let ledger = Ledger::start(&world.source);
    world.refresh().run().expect(0);
    ledger.finish().check_copy(world.destination(), 0);
    check_refreshed(&world, world.destination(), "prod-6");
    assert!(world.destination().datadir().join("undo002").exists());
    assert_eq!(world.destination().variable("innodb_page_size"), "8192");
}

#[test]
fn an_empty_source_is_a_source() {
    let world = World::builder().source_content(Content::Empty).build();
    world.refresh().run().expect(0);
    let schemas = world
        .destination()
        .sql("SELECT COUNT(*) FROM information_schema.schemata WHERE schema_name IN ('shop', 'research')");
    assert_eq!(schemas.trim(), "0");
    assert!(world.destination().log_in("twin", "twin-on-research").is_ok());
}

#[test]
fn the_performance_schema_does_not_get_in_the_way() {
    let on = "performance-schema=1";
    let world = World::builder().source_options(on).destination_options(on).build();
    world.refresh().run().expect(0);
    check_refreshed(&world, world.destination(), "prod-0");
}

/// The server is started and stopped by scripts; the stop takes so many seconds before it begins.
pub fn kept_by_commands(world: &World, server: &Server, hesitates: u32) {
    let script = |name: &str, text: String| {
        let path = server.dir.join(name);
        fs::write(&path, format!("#!/bin/sh\nset -eu\n{text}\n")).unwrap();
        output(std::process::Command::new("chmod").arg("755").arg(&path));
        path
    };
    let start = format!(
        "setsid -f mariadbd --defaults-file={} </dev/null >/dev/null 2>&1\necho started >>{}",
        server.cnf().display(),
        server.dir.join("starts").display()
    );
    let stop =
        format!("sleep {hesitates}\nexec mariadb-admin --no-defaults --socket={} shutdown", server.socket().display());
    let service = format!("{{ start = [{:?}], stop = [{:?}] }}", script("up", start), script("down", stop));
    let environment = if server.name == world.source.name { "prod" } else { "rnd" };
    world.set(&format!("environments.{environment}.hosts.{}.service", server.name), &service);
}

#[test]
fn a_server_may_be_kept_by_commands() {
    let world = World::new();
    world.servers().for_each(|server| kept_by_commands(&world, server, 0));
    world.refresh().run().expect(0);
    check_refreshed(&world, world.destination(), "prod-0");
    for server in world.servers() {
        assert_eq!(fs::read_to_string(server.dir.join("starts")).unwrap(), "started\n", "{}", server.name);
    }
}

#[test]
fn a_datadir_may_be_reached_by_a_symbolic_link() {
    let world = World::new();
    let server = world.destination();
    std::os::unix::fs::symlink(server.datadir(), world.root().join("link")).unwrap();
    world.set("environments.rnd.hosts.r1.datadir", &format!("\"{}/link\"", world.root().display()));
    world.refresh().run().expect(0);
    check_refreshed(&world, server, "prod-0");
    assert!(world.root().join("link").is_symlink());
    world.call(&["rollback", "rnd/r1"]).run().expect(0);
    assert_eq!(world.content(server), "r1");
}

#[test]
fn a_file_that_nobody_knows_goes_or_stays_as_told() {
    let world = World::new();
    fs::write(world.source.datadir().join("mystery.bin"), "?").unwrap();
    fs::write(world.source.datadir().join("scratch.tmp1"), "?").unwrap();
    world
        .set("refreshes.nightly.copy_files", "[\"mystery*\"]")
        .set("refreshes.nightly.drop_files", "[\"scratch.tmp1\"]");
    world.refresh().run().expect(0);
    assert_eq!(fs::read_to_string(world.destination().datadir().join("mystery.bin")).unwrap(), "?");
    assert!(!world.destination().datadir().join("scratch.tmp1").exists());
    assert!(world.source.datadir().join("scratch.tmp1").exists());
}

/// With and without passes while the source runs, with and without something to compare with, each way over what the one before it left.
#[test]
fn every_way_to_take_the_image_gives_the_same() {
    let world = World::new();
    let ways: [(&str, &[(&str, &str)]); 6] = [
        ("passes", &[]),
        ("passes", &[("precopy_rounds", "1"), ("basis", "\"none\""), ("proof", "\"disk\"")]),
        ("passes", &[("paranoid", "true"), ("proof", "\"disk\""), ("basis", "\"current\"")]),
        ("whole", &[("precopy", "false"), ("paranoid", "false"), ("freeze", "\"none\"")]),
        ("whole", &[("basis", "\"none\"")]),
        ("passes", &[("precopy", "true"), ("max_rate", "\"20MB\""), ("basis", "\"current\"")]),
    ];
    let mut sent = Vec::new();
    for (n, (way, settings)) in ways.into_iter().enumerate() {
        for (key, value) in settings {
            world.set(&format!("refreshes.nightly.{key}"), value);
        }
        world.stamp(n as u32);
        let summary = summary(&world.call(&["--json", "--now", "nightly"]).run().expect(0));
        check_refreshed(&world, world.destination(), &format!("prod-{n}"));
        let taken = &summary["taken"];
        assert!(taken == way || taken.get(way).is_some(), "{taken}, not {way}");
        let (bytes, read, cold) =
            (number(&summary, "bytes"), number(&summary, "read_bytes"), number(&summary, "cold_bytes"));
        assert!(cold <= read && read >= bytes, "{summary}");
        // elsewhere that depends on when what was touched
        let all_of_it = way == "whole" || settings.contains(&("paranoid", "true"));
        assert!(cold == bytes || !all_of_it, "{summary}");
        sent.push(number(&summary, "sent_bytes"));
    }
    assert!(sent[3] < sent[4] / 2, "what the destination has does not travel: {sent:?}");
    assert!(sent[5] < sent[1] / 2, "what the destination has does not travel: {sent:?}");
}

#[test]
fn what_nobody_has_touched_for_a_minute_is_not_read_while_the_source_is_down() {
    let world = World::new();
    world.refresh().run().expect(0);
    world.source.sql("SET GLOBAL innodb_max_dirty_pages_pct = 0");
    std::thread::sleep(Duration::from_secs(63));
    world.stamp(3);
    let summary = summary(&world.call(&["--json", "--now", "nightly"]).run().expect(0));
    check_refreshed(&world, world.destination(), "prod-3");
    let (bytes, cold) = (number(&summary, "bytes"), number(&summary, "cold_bytes"));
    assert!(cold < bytes, "{cold} of {bytes}");
}

#[test]
fn every_way_to_send_and_to_prove_gives_the_same() {
    let world = World::new();
    for (n, (compression, proof)) in [("\"none\"", "reread"), ("19", "disk"), ("1", "reread")].into_iter().enumerate() {
        let content = format!("prod-{n}");
        world.set("refreshes.nightly.compression", compression);
        world.set("refreshes.nightly.proof", &format!("\"{proof}\""));
        world.stamp(n as u32);
        world.refresh().run().expect(0);
        check_refreshed(&world, world.destination(), &content);
    }
}

#[test]
fn layout_that_differs_follows_the_source_when_asked() {
    let world = World::builder().destination_options("lower_case_table_names=1").build();
    assert_eq!(world.destination().variable("lower_case_table_names"), "1");
    world.set("refreshes.nightly.layout", "\"follow\"");
    world.refresh().run().expect(0);
    check_refreshed(&world, world.destination(), "prod-0");
    assert_eq!(world.destination().variable("lower_case_table_names"), "0");
    world.call(&["rollback", "rnd/r1"]).run().expect(0);
    assert_eq!(world.content(world.destination()), "r1");
    assert_eq!(world.destination().variable("lower_case_table_names"), "1");
}

#[test]
fn the_dropin_says_what_it_is_and_is_the_only_file_written_outside() {
    let world = World::new();
    let listing = |server: &Server| {
        let mut names: Vec<_> =
            fs::read_dir(&server.dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let (source, destination) = (listing(&world.source), listing(world.destination()));
    let cnf = fs::read_to_string(world.destination().cnf()).unwrap();
    world.refresh().run().expect(0);
    let text = fs::read_to_string(world.destination().dropin()).unwrap();
    for word in ["mysql-refreshd", "nightly", "prod/db1", "max_connections", "server_id"] {
        assert!(text.contains(word), "{word} is not in\n{text}");
    }
    assert_eq!(fs::read_to_string(world.destination().cnf()).unwrap(), cnf);
    assert_eq!(listing(&world.source), source, "something was left beside the source's datadir");
    let mut expected = destination;
    expected.push(".data.refreshd".into());
    expected.sort();
    assert_eq!(listing(world.destination()), expected);
    assert!(!world.source.dropin().exists());
}

#[test]
fn a_stopped_destination_or_source_is_a_clear_failure() {
    let world = World::new();
    world.destination().stop();
    let source = world.source.process();
    world.refresh().run().expect_any(&[1, 4]).says(&["rnd/r1"]);
    assert_eq!(world.source.process(), source);
    world.destination().start();
    world.source.stop();
    world.refresh().run().expect_any(&[1, 4]).says(&["prod/db1"]);
    assert_eq!(world.content(world.destination()), "r1");
    world.source.start();
    world.refresh().run().expect(0);
}

#[test]
fn the_source_keeps_what_its_folder_holds() {
    let world = World::builder().source_options("event_scheduler=OFF").build();
    // a quiet source: nothing but the restart itself may change its datadir
    let before = (oracle::contents(&world.source), oracle::objects(&world.source), oracle::accounts(&world.source));
    world.refresh().run().expect(0);
    let after = (oracle::contents(&world.source), oracle::objects(&world.source), oracle::accounts(&world.source));
    assert!(before == after, "the source's content changed");
}
