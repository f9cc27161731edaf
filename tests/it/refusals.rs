//! Everything that is refused: said clearly, with exit code 4 (2 where the configuration alone shows it), before anything is
//! touched: the source is never stopped, the destination keeps its process, its content and its folder.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::world::{Incarnation, Outcome, World, free_port, is_root, output, wait_for};

/// What a refusal must not change.
#[derive(Debug, PartialEq)]
struct Untouched {
    processes: Vec<Vec<Incarnation>>,
    contents: Vec<String>,
    dropins: Vec<Option<String>>,
    stages: Vec<Option<PathBuf>>,
    variables: Vec<String>,
}

impl Untouched {
    fn of(world: &World) -> Untouched {
        let servers = || world.servers();
        Untouched {
            processes: servers().map(|s| s.processes()).collect(),
            contents: servers().map(|s| world.content(s)).collect(),
            dropins: servers().map(|s| fs::read_to_string(s.dropin()).ok()).collect(),
            stages: servers().map(|s| Some(s.work().join("stage")).filter(|p| p.exists())).collect(),
            variables: servers()
                .map(|s| s.sql("SELECT @@innodb_max_dirty_pages_pct, @@innodb_max_dirty_pages_pct_lwm, @@innodb_io_capacity, @@innodb_io_capacity_max, @@innodb_fast_shutdown, @@read_only"))
                .collect(),
        }
    }
}

/// Runs the refresh, which must be refused in these words and change nothing.
#[track_caller]
fn refused(world: &World, codes: &[i32], words: &[&str]) -> Outcome {
    let before = Untouched::of(world);
    let outcome = world.refresh().run().expect_any(codes).says(words);
    assert!(outcome.stderr.contains("error: "), "{outcome}");
    assert_eq!(before, Untouched::of(world), "a refusal touched something");
    world.expect_nobody_left();
    outcome
}

/// After the cause is gone, the same refresh works: the refusal was about the cause and left nothing behind.
#[track_caller]
fn and_then_it_works(world: &World) {
    world.refresh().run().expect(0);
    assert!(world.content(world.destination()).starts_with("prod-"));
}

#[test]
fn the_same_server_on_both_ends_through_an_alias() {
    let world = World::new();
    let alias = world.root().join("alias");
    std::os::unix::fs::symlink(&world.source.dir, &alias).unwrap();
    let alias = alias.display();
    world.set("environments.rnd.hosts.r1.datadir", &format!("\"{alias}/data\""));
    world.set("environments.rnd.hosts.r1.socket", &format!("\"{alias}/s\""));
    world.set("environments.rnd.hosts.r1.dropin", &format!("\"{alias}/conf.d/90-refreshd.cnf\""));
    refused(&world, &[4], &["same"]);
}

#[test]
fn the_sources_socket_under_another_datadir() {
    // the configured datadir is the destination's own, the socket leads to the source: the facts of the one and the other
    // would be taken for those of one server
    let world = World::new();
    let alias = world.root().join("sock");
    std::os::unix::fs::symlink(world.source.socket(), &alias).unwrap();
    world.set("environments.rnd.hosts.r1.socket", &format!("\"{}\"", alias.display()));
    refused(&world, &[4], &["rnd/r1"]);
}

#[test]
fn a_neighbours_socket_under_the_sources_datadir() {
    let world = World::builder().destinations(2).build();
    world.set("refreshes.nightly.destinations", "[\"rnd/r1\"]");
    world.set("environments.prod.hosts.db1.socket", &format!("\"{}\"", world.destinations[1].socket().display()));
    world.set("environments.rnd.hosts.r2.socket", &format!("\"{}/none\"", world.root().display()));
    refused(&world, &[4], &["prod/db1"]);
}

#[test]
fn two_names_for_one_destination() {
    let world = World::builder().destinations(2).build();
    let alias = world.root().join("alias");
    std::os::unix::fs::symlink(&world.destinations[0].dir, &alias).unwrap();
    let alias = alias.display();
    world.set("environments.rnd.hosts.r2.datadir", &format!("\"{alias}/data\""));
    world.set("environments.rnd.hosts.r2.socket", &format!("\"{alias}/s\""));
    world.set("environments.rnd.hosts.r2.dropin", &format!("\"{alias}/conf.d/90-refreshd.cnf\""));
    refused(&world, &[4], &["same"]);
}

#[test]
fn a_destination_that_is_a_source() {
    let world = World::builder().destinations(2).build();
    world.set("refreshes.other.source", "\"rnd/r1\"").set("refreshes.other.destinations", "[\"rnd/r2\"]");
    refused(&world, &[2, 4], &["rnd/r1"]);
}

#[test]
fn a_source_among_its_own_destinations() {
    let world = World::new();
    world.set("refreshes.nightly.destinations", "[\"rnd\", \"prod/db1\"]");
    refused(&world, &[2, 4], &["prod/db1"]);
}

#[test]
fn a_protected_environment() {
    let world = World::new();
    world.set("environments.rnd.protected", "true");
    refused(&world, &[2, 4], &["protected"]);
    world.set("environments.rnd.protected", "false").set("environments.prod.protected", "true");
    and_then_it_works(&world);
}

#[test]
fn names_that_differ_in_case() {
    let world = World::builder().destination_options("lower_case_table_names=1").build();
    refused(&world, &[4], &["lower_case_table_names"]);
}

#[test]
fn another_page_size() {
    let world = World::builder().destination_made_with("innodb-page-size=8k\n").build();
    refused(&world, &[4], &["innodb_page_size"]);
}

#[test]
fn another_system_tablespace() {
    let world =
        World::builder().destination_made_with("innodb-data-file-path=ibdata1:12M;ibdata2:12M:autoextend\n").build();
    refused(&world, &[4], &["innodb_data_file_path"]);
}

#[test]
fn a_stage_that_does_not_fit() {
    if !is_root() {
        return;
    }
    let world = World::builder().destination_tmpfs("60m").build();
    refused(&world, &[4], &["space"]);
}

#[test]
fn a_stage_that_fits_but_leaves_no_space_for_its_first_start() {
    if !is_root() {
        return;
    }
    let world = World::builder().destination_tmpfs("76m").build();
    refused(&world, &[4], &["space"]);
}

#[test]
fn a_reserve_that_would_not_remain() {
    let world = World::new();
    world.set("refreshes.nightly.space_reserve", "\"900TiB\"");
    refused(&world, &[4], &["space"]);
    world.set("refreshes.nightly.space_reserve", "\"1MiB\"");
    and_then_it_works(&world);
}

#[test]
fn a_table_with_a_data_directory_of_its_own() {
    let world = World::new();
    let outside = world.root().join("out");
    fs::create_dir(&outside).unwrap();
    world.source.sql(&format!(
        "CREATE TABLE shop.far (id INT PRIMARY KEY) ENGINE=InnoDB DATA DIRECTORY = '{}'",
        outside.display()
    ));
    refused(&world, &[4], &["shop/far"]);
    world.source.sql("DROP TABLE shop.far");
    and_then_it_works(&world);
}

#[test]
fn a_myisam_table_with_a_data_directory_of_its_own() {
    let world = World::new();
    let outside = world.root().join("out");
    fs::create_dir(&outside).unwrap();
    world.source.sql(&format!(
        "CREATE TABLE shop.far (id INT PRIMARY KEY) ENGINE=MyISAM DATA DIRECTORY = '{}'",
        outside.display()
    ));
    assert!(world.source.datadir().join("shop/far.MYD").is_symlink(), "the experiment is not what it is meant to be");
    refused(&world, &[4], &["far.MYD"]);
}

#[test]
fn a_schema_that_is_a_symbolic_link() {
    let world = World::new();
    let (inside, outside) = (world.source.datadir().join("hollow"), world.root().join("hollow"));
    fs::rename(&inside, &outside).unwrap();
    std::os::unix::fs::symlink(&outside, &inside).unwrap();
    refused(&world, &[4], &["hollow"]);
}

#[test]
fn a_redo_log_elsewhere() {
    // made in place: the log is moved while the server is stopped, as an administrator would do
    let world = World::builder().destinations(1).build();
    let elsewhere = world.root().join("redo");
    fs::create_dir(&elsewhere).unwrap();
    world.source.stop();
    output(Command::new("mv").arg(world.source.datadir().join("ib_logfile0")).arg(&elsewhere));
    world.source.write_options(&format!(
        "event_scheduler=ON\nserver_id=1\ninnodb-log-group-home-dir={}\n",
        elsewhere.display()
    ));
    world.source.start();
    refused(&world, &[4], &["innodb_log_group_home_dir"]);
}

#[test]
fn encrypted_tables() {
    let world = World::builder().destinations(1).build();
    let keys = world.root().join("keys");
    fs::write(&keys, "1;770A8A65DA156D24EE2A093277530142\n").unwrap();
    world.source.stop();
    world.source.write_options(&format!(
        "event_scheduler=ON\nserver_id=1\nplugin-load-add=file_key_management\nfile-key-management-filename={}\n",
        keys.display()
    ));
    world.source.start();
    world.source.sql("CREATE TABLE shop.secret (id INT PRIMARY KEY) ENGINE=InnoDB ENCRYPTED=YES");
    refused(&world, &[4], &["encrypt"]);
}

#[test]
fn an_xa_transaction_that_is_prepared() {
    let world = World::new();
    world.set("refreshes.nightly.drain_timeout", "\"1s\"");
    world.source.sql("XA START 'x1'; INSERT INTO ledger.commits VALUES (8888, 0); XA END 'x1'; XA PREPARE 'x1';");
    refused(&world, &[4], &["xa"]);
    world.source.sql("XA COMMIT 'x1'");
    and_then_it_works(&world);
}

#[test]
fn a_transaction_that_does_not_end() {
    let world = World::new();
    world.set("refreshes.nightly.drain_timeout", "\"2s\"");
    let client = world.source.idle_client("BEGIN; INSERT INTO ledger.commits VALUES (7777, 0)");
    std::thread::sleep(Duration::from_millis(1300));
    refused(&world, &[4], &["transaction"]);
    drop(client);
    wait_for("the transaction's end", Duration::from_secs(10), || {
        // InnoDB shows its transactions as they were as long as it is asked again within 100 ms
        std::thread::sleep(Duration::from_millis(150));
        world.source.sql("SELECT COUNT(*) FROM information_schema.innodb_trx").trim() == "0"
    });
    and_then_it_works(&world);
}

#[test]
fn a_file_that_nobody_knows() {
    let world = World::new();
    let file = world.source.datadir().join("mystery.bin");
    fs::write(&file, "?").unwrap();
    refused(&world, &[4], &["mystery.bin", "copy_files"]);
    fs::remove_file(file).unwrap();
    and_then_it_works(&world);
}

#[test]
fn a_primary_with_a_replica() {
    let port = free_port();
    let world = World::builder().destinations(2).source_options(&format!("log-bin=binlog\nport={port}")).build();
    world.set("refreshes.nightly.destinations", "[\"rnd/r1\"]");
    world
        .source
        .sql("CREATE USER repl@'127.0.0.1' IDENTIFIED BY 'r'; GRANT REPLICATION SLAVE ON *.* TO repl@'127.0.0.1'");
    let replica = &world.destinations[1];
    replica.sql(&format!(
        "CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = {port}, MASTER_USER = 'repl', MASTER_PASSWORD = 'r', MASTER_CONNECT_RETRY = 1;
         START SLAVE IO_THREAD;"
    ));
    let connected = || world.source.sql("SHOW PROCESSLIST").contains("Binlog Dump");
    wait_for("the replica", Duration::from_secs(20), connected);
    refused(&world, &[4], &["replica", "allow_primary_stop"]);
    world.set("refreshes.nightly.allow_primary_stop", "true");
    and_then_it_works(&world);
    assert_eq!(world.content(&world.destinations[1]), "r2");
}

#[test]
fn a_destination_that_is_a_member_of_a_cluster() {
    let provider = ["/usr/lib/galera/libgalera_smm.so", "/usr/lib64/galera-4/libgalera_smm.so"];
    let Some(provider) = provider.into_iter().find(|p| PathBuf::from(p).exists()) else {
        eprintln!("not tried: no Galera library is installed");
        return;
    };
    let world = World::new();
    let server = world.destination();
    server.stop();
    server.write_options(&format!(
        "server_id=101\nbinlog_format=ROW\nwsrep_on=ON\nwsrep_provider={provider}\nwsrep_cluster_address=gcomm://\nwsrep_node_address=127.0.0.1\n\
         wsrep_provider_options=\"gmcast.listen_addr=tcp://127.0.0.1:{};base_host=127.0.0.1;gcache.size=1M\"\n",
        free_port()
    ));
    server.start_with(&["--wsrep-new-cluster"]);
    assert_eq!(server.variable("wsrep_on"), "1");
    refused(&world, &[4], &["rnd/r1", "cluster"]);
}

#[test]
fn a_destination_older_than_the_source() {
    // the server takes another version's name when told so; its files are the same
    for version in ["10.6.21-MariaDB", "10.4.34-MariaDB"] {
        let world = World::builder().destination_options(&format!("version={version}")).build();
        refused(&world, &[4], &["10.11", version.split('-').next().unwrap()]);
    }
}

#[test]
fn a_destination_of_another_make() {
    let world = World::builder().destination_options("version=8.0.36").build();
    refused(&world, &[4], &["rnd/r1"]);
}

#[test]
fn a_dropin_folder_that_is_not_there() {
    let world = World::new();
    world.set("environments.rnd.hosts.r1.dropin", &format!("\"{}/none/90.cnf\"", world.root().display()));
    refused(&world, &[4], &["rnd/r1", "drop-in"]);
}

#[test]
fn settings_that_have_no_place() {
    let world = World::new();
    let mut text = world.config_text();
    let line = text.lines().find(|l| l.starts_with("dropin") && l.contains("/r1/")).unwrap().to_owned();
    text = text.replace(&line, "");
    let config = world.root().join("other.toml");
    fs::write(&config, text).unwrap();
    let before = Untouched::of(&world);
    world.call_with(&config, &["--now", "nightly"]).run().expect_any(&[2, 4]).says(&["dropin"]);
    assert_eq!(before, Untouched::of(&world));
}

#[test]
fn a_source_whose_own_settings_would_keep_it_down() {
    let world = World::new();
    let cnf = fs::read_to_string(world.source.cnf()).unwrap();
    fs::write(world.source.cnf(), cnf.replace("skip-networking", "skip-networking\nno-such-option=1")).unwrap();
    refused(&world, &[4], &["no-such-option"]);
    fs::write(world.source.cnf(), cnf).unwrap();
    and_then_it_works(&world);
}

#[test]
fn a_swap_that_was_interrupted_waits_for_recover() {
    let world = World::new();
    if !cfg!(feature = "failpoints") {
        return;
    }
    // controller and agent both die in the middle of the swap, so that nobody is left to put it back
    let (call, hold) = world.refresh().hold("destination:swap:exchanged");
    let mut running = call.spawn();
    hold.reached(&mut running);
    for process in world.program_processes() {
        crate::world::signal(process.pid, "-KILL");
    }
    running.wait().expect(137);
    fs::remove_file(&hold.file).unwrap();
    world.source.wait_up(Duration::from_secs(20));
    let source = world.source.process();
    world.refresh().run().expect_any(&[0, 4]);
    assert!(world.source.answers());
    let outcome = world.recover();
    outcome.expect(0);
    world.recover().expect(0);
    world.destination().wait_up(Duration::from_secs(20));
    let content = world.content(world.destination());
    assert!(["r1", "prod-0"].contains(&content.as_str()), "{content}");
    let _ = source;
    world.refresh().run().expect(0);
    assert_eq!(world.content(world.destination()), "prod-0");
}

/// Root reads its journals back from beside the datadir: nobody else may be able to put others there.
#[test]
fn folders_that_others_can_change() {
    if !is_root() {
        return;
    }
    let world = World::builder().over("local").build();
    let server = world.destination();
    crate::world::output(std::process::Command::new("chown").arg("12345").arg(&server.dir));
    world.refresh().run().expect(4).says(&["others can change", "chown root"]);
    crate::world::output(std::process::Command::new("chown").arg("0").arg(&server.dir));
    std::os::unix::fs::symlink("/tmp", server.work()).unwrap();
    world.refresh().run().expect(4).says(&["is not root's folder"]);
    std::fs::remove_file(server.work()).unwrap();
    let state = world.root().join("host");
    std::fs::create_dir_all(&state).unwrap();
    crate::world::output(std::process::Command::new("chown").arg("12345").arg(&state));
    world.refresh().run().expect(4).says(&["others can change"]);
    assert_eq!(world.content(server), "r1");
}
