//! A password stays where its owner put it: never on a command line, in an environment, a log, the history or an output.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mysql_refreshd::route::INSTALLED;

use crate::world::{World, holds, processes};
use crate::{gate, rights};

const SECRET: &str = "Tr0ub4dor-and-3-horses";

/// Every file below a folder that holds one of these words.
fn files_with(folder: &Path, words: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_symlink() {
            continue;
        } else if path.is_dir() {
            found.extend(files_with(&path, words));
        } else if let Ok(bytes) = fs::read(&path)
            && words.iter().any(|w| holds(&bytes, w.as_bytes()))
        {
            found.push(path);
        }
    }
    found
}

/// A world in which the program logs in by password everywhere.
fn world_with_passwords() -> World {
    let world = World::builder().destinations(2).build();
    for server in world.servers() {
        server.sql(&format!("CREATE USER refresher@localhost IDENTIFIED BY '{SECRET}'; GRANT ALL ON *.* TO refresher@localhost WITH GRANT OPTION;"));
    }
    let file = world.root().join("secret");
    fs::write(&file, format!("{SECRET}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    for host in ["prod.hosts.db1", "rnd.hosts.r1", "rnd.hosts.r2"] {
        world.set(&format!("environments.{host}.user"), "\"refresher\"");
        world.set(&format!("environments.{host}.password"), &format!("{{ file = \"{}\" }}", file.display()));
    }
    world
}

#[test]
fn a_password_is_seen_nowhere_while_it_is_used_everywhere() {
    let world = world_with_passwords();
    let hashes: Vec<String> = world
        .servers()
        .map(|s| s.sql("SELECT JSON_VALUE(Priv, '$.authentication_string') FROM mysql.global_priv WHERE User IN ('refresher', 'analyst', 'twin') AND Host = 'localhost'"))
        .flat_map(|rows| rows.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    assert_eq!(hashes.len(), 8, "{hashes:?}");
    let end = AtomicBool::new(false);
    let (outcome, leaks, looks) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let (mut leaks, mut looks) = (BTreeSet::new(), 0);
            while !end.load(Ordering::Relaxed) {
                for process in processes() {
                    if holds(&process.raw, SECRET.as_bytes())
                        || hashes.iter().any(|h| holds(&process.raw, h.as_bytes()))
                    {
                        leaks.insert(format!("{} {:?}", process.program, process.args));
                    }
                }
                looks += 1;
                std::thread::sleep(Duration::from_millis(3));
            }
            (leaks, looks)
        });
        let outcome = world.call(&["-v", "--set", "daemon.log_level=trace", "--now", "nightly"]).run().expect(0);
        end.store(true, Ordering::Relaxed);
        let (leaks, looks) = watcher.join().unwrap();
        (outcome, leaks, looks)
    });
    assert!(looks > 10, "only {looks} looks at the process table");
    assert!(leaks.is_empty(), "a secret on a command line or in an environment: {leaks:?}");

    let mut words: Vec<&str> = vec![SECRET];
    words.extend(hashes.iter().map(String::as_str));
    for text in [&outcome.stdout, &outcome.stderr] {
        assert!(!words.iter().any(|w| text.contains(w)), "{outcome}");
    }
    for folder in ["state", "log", "host", "logs"] {
        let found = files_with(&world.root().join(folder), &words);
        assert!(found.is_empty(), "a secret or its hash in {found:?}");
    }
    for server in &world.destinations {
        let outside: Vec<_> = files_with(&server.dir, &[SECRET]);
        assert!(outside.is_empty(), "{outside:?}");
        assert!(server.log_in("refresher", SECRET).is_ok());
        assert!(!server.work().join("isolated").exists(), "the isolated start's files are left");
    }
    let shown = world.call(&["config", "show"]).run().expect(0);
    assert!(!shown.stdout.contains(SECRET));
    assert!(shown.stdout.contains("secret"), "the reference is shown: {shown}");
}

#[test]
fn a_password_with_every_awkward_character_works() {
    let world = World::new();
    let awkward = r#"a'b"c\d `e`#f;g%h -- $i {j} ü"#;
    let quoted = awkward.replace('\\', "\\\\").replace('\'', "''");
    for server in world.servers() {
        server.sql(&format!("CREATE USER refresher@localhost IDENTIFIED BY '{quoted}'; GRANT ALL ON *.* TO refresher@localhost WITH GRANT OPTION;"));
    }
    let file = world.root().join("secret");
    fs::write(&file, format!("{awkward}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    for host in ["prod.hosts.db1", "rnd.hosts.r1"] {
        world.set(&format!("environments.{host}.user"), "\"refresher\"");
        world.set(
            &format!("environments.{host}.password"),
            &format!("{{ command = [\"cat\", \"{}\"] }}", file.display()),
        );
    }
    world.refresh().run().expect(0);
    assert_eq!(world.content(world.destination()), "prod-0");
}

#[test]
fn a_password_that_does_not_fit_is_told_without_being_shown() {
    let world = world_with_passwords();
    let file = world.root().join("secret");
    fs::write(&file, "not-the-Passw0rd\n").unwrap();
    let source = world.source.process();
    let outcome = world.refresh().run().expect_any(&[1, 4]).says(&["prod/db1"]);
    assert!(!outcome.stderr.contains("not-the-Passw0rd"), "{outcome}");
    assert_eq!(world.source.process(), source);

    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    world.refresh().run().expect_any(&[2, 4]).says(&["secret"]);
    fs::remove_file(&file).unwrap();
    world.refresh().run().expect_any(&[2, 4]).says(&["secret"]);
    assert_eq!(world.source.process(), source);
}

#[test]
fn folders_with_secrets_are_not_open_to_everyone() {
    let world = World::new();
    let (call, hold) = world.refresh().hold("destination:install:changed");
    let mut running = call.spawn();
    hold.reached(&mut running);
    let work = world.destination().work();
    for path in [&work, &work.join("stage"), &work.join("isolated")] {
        let mode = fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode & 0o007, 0, "{} is {mode:o}", path.display());
    }
    hold.release();
    running.wait().expect(0);
    for folder in ["state", "host", "log"] {
        let mode = fs::metadata(world.root().join(folder)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode & 0o002, 0, "{folder} is {mode:o}");
    }
}

#[test]
fn the_isolated_server_is_out_of_reach() {
    let world = World::builder().source_options("event_scheduler=ON").build();
    let (call, hold) = world.refresh().hold("destination:install:started");
    let mut running = call.spawn();
    hold.reached(&mut running);
    let stage = world.destination().work().join("stage");
    let stage = stage.to_str().unwrap();
    let servers: Vec<_> =
        processes().filter(|p| p.program.starts_with("mariadbd") && p.args.iter().any(|a| a.contains(stage))).collect();
    assert_eq!(servers.len(), 1, "one server on the stage");
    let args = &servers[0].args;
    assert_eq!(args[1], "--no-defaults", "first, or it is not honoured: {args:?}");
    assert!(
        args.iter().any(|a| a == "--skip-networking" || a == "--skip-networking=1" || a == "--skip-networking=ON"),
        "{args:?}"
    );
    // it listens on no TCP port: neither of its file descriptors is one of the listening sockets of the machine
    let listening: BTreeSet<String> = ["tcp", "tcp6"]
        .iter()
        .flat_map(|f| {
            fs::read_to_string(format!("/proc/net/{f}"))
                .unwrap_or_default()
                .lines()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .filter(|l| l.split_whitespace().nth(3) == Some("0A"))
        .map(|l| format!("socket:[{}]", l.split_whitespace().nth(9).unwrap()))
        .collect();
    for fd in fs::read_dir(format!("/proc/{}/fd", servers[0].pid)).unwrap().flatten() {
        let target = fs::read_link(fd.path()).unwrap_or_default();
        assert!(!listening.contains(target.to_str().unwrap_or_default()), "the isolated server listens on TCP");
        let outside = target.starts_with(world.root()) && !target.starts_with(world.destination().work());
        assert!(!outside, "the isolated server holds {} open", target.display());
    }
    assert_eq!(world.content(world.destination()), "r1");
    hold.release();
    running.wait().expect(0);
}

/// The way in has secrets of its own: the key's passphrase, sudo's password, a password that stands on the host.
#[test]
fn the_secrets_of_the_way_in_are_seen_nowhere() {
    if !gate::may_be_a_host("the_secrets_of_the_way_in_are_seen_nowhere") {
        return;
    }
    let (passphrase, sudo) = ("Phr4se-of-the-key", "Sud0-says-please");
    let world = World::builder().over("local").build();
    for server in world.servers() {
        server.sql(&format!("CREATE USER refresher@localhost IDENTIFIED BY '{SECRET}'; GRANT ALL ON *.* TO refresher@localhost WITH GRANT OPTION;"));
    }
    let agents = ["source", "destination"].map(|role| format!("{INSTALLED} agent --role {role}")).join(", ");
    let rule = format!("refresher ALL=(root:root) PASSWD: {agents}");
    let gate = rights::host(&world, |gate| gate.passphrase(passphrase).password(sudo).sudoers(&rule));
    rights::consent(&gate, "r1", "prod");
    world.lives_behind(&gate, "ssh");
    let keep = |name: &str, text: &str| {
        let path = world.root().join("secrets").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        format!("{{ file = \"{}\" }}", path.display())
    };
    world.set("ssh.passphrase", &keep("passphrase", passphrase));
    for host in ["prod.hosts.db1", "rnd.hosts.r1"] {
        world.set(&format!("environments.{host}.sudo_password"), &keep("sudo", sudo));
    }
    // one server's password comes from here, the other's stays on its host
    world.set("environments.prod.hosts.db1.password", &keep("sql", SECRET));
    let lines = format!("user = \"refresher\"\\npassword_file = \"{}/secrets/sql\"", world.root().display());
    gate.exec(&format!("sed -i 's|^\\[instances.r1\\]$|&\\n{lines}|' /etc/mysql-refreshd/host.toml"));
    gate.exec("sed -i 's|^\\[instances.db1\\]$|&\\nuser = \"refresher\"|' /etc/mysql-refreshd/host.toml");
    let words = [SECRET, passphrase, sudo];
    let end = AtomicBool::new(false);
    let (outcome, leaks, looks) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let (mut leaks, mut looks) = (BTreeSet::new(), 0);
            while !end.load(Ordering::Relaxed) {
                for process in processes() {
                    if words.iter().any(|word| holds(&process.raw, word.as_bytes())) {
                        leaks.insert(format!("{} {:?}", process.program, process.args));
                    }
                }
                looks += 1;
                std::thread::sleep(Duration::from_millis(3));
            }
            (leaks, looks)
        });
        let outcome = world.call(&["-v", "--set", "daemon.log_level=trace", "--now", "nightly"]).run();
        end.store(true, Ordering::Relaxed);
        let (leaks, looks) = watcher.join().unwrap();
        (outcome, leaks, looks)
    });
    let outcome = outcome.expect(0);
    assert_eq!(world.content(world.destination()), "prod-0");
    assert!(looks > 10, "only {looks} looks at the process table");
    assert!(leaks.is_empty(), "a secret on a command line or in an environment: {leaks:?}");
    assert!(!words.iter().any(|word| outcome.to_string().contains(word)), "{outcome}");
    for folder in ["state", "log", "host", "logs"]
        .map(|name| world.root().join(name))
        .iter()
        .chain([&gate.folder().join("fs/var/log"), &gate.home()])
    {
        let found = files_with(folder, &words);
        assert!(found.is_empty(), "a secret in {found:?}");
    }
    assert!(!words.iter().any(|word| gate.log().contains(word)), "{}", gate.log());
    let shown = world.call(&["config", "show"]).run().expect(0);
    assert!(!words.iter().any(|word| shown.stdout.contains(word)), "{shown}");
}
