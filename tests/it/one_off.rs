//! The one-off form, the way of the old script: hosts and a password on the command line, no configuration of theirs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use crate::gate::{self, Gate};
use crate::poller::Spare;
use crate::rights::{allow_sudo, consent, host};
use crate::world::{World, holds, processes};

const SECRET: &str = "C0rrect-h0rse-77";

/// A configuration that says how to reach hosts, and nothing of any host.
fn bare_config(world: &World, gate: &Gate) -> PathBuf {
    let known = world.root().join("known_hosts");
    let lines = gate.known_hosts_lines();
    fs::write(&known, format!("{lines}{}", lines.replace("127.0.0.1", "127.0.0.2"))).unwrap();
    let path = world.root().join("bare.toml");
    let root = world.root().display();
    let text = format!(
        "[daemon]\nstate_dir = \"{root}/state\"\nlog_dir = \"{root}/log\"\nhost_timeout = \"5s\"\n\
         [ssh]\nidentity = \"{}\"\nknown_hosts = \"{}\"\nuse_agent = false\n",
        gate.identity().display(),
        known.display()
    );
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn source_and_destination_on_the_command_line() {
    if !gate::may_be_a_host("source_and_destination_on_the_command_line") {
        return;
    }
    let world = World::builder().over("local").build();
    let gate = host(&world, |gate| gate.line("ListenAddress 127.0.0.2"));
    allow_sudo(&gate);
    let config = bare_config(&world, &gate);
    let (source, destination) = (format!("127.0.0.1:{}", gate.port()), format!("127.0.0.2:{}", gate.port()));
    for server in world.servers() {
        server.sql(&format!(
            "ALTER USER root@localhost IDENTIFIED VIA mysql_native_password USING PASSWORD('{SECRET}') OR unix_socket"
        ));
    }
    world.poller().spare(Spare::Settings, "this form pushes none: both generations have the option file's");
    world.stamp(4);
    let form = |more: &[&str]| {
        let mut words = vec!["--now", "-s", &source, "-d", &destination, "-u", "refresher", "--agent", "installed"];
        words.extend(more);
        world.call_with(&config, &words).run()
    };
    form(&["-p", SECRET]).expect(4).says(&["has not consented", "consent grant --from 127-0-0-1 --instance r1"]);
    consent(&gate, "r1", "127-0-0-1");
    let plan = form(&["-p", SECRET, "--dry-run"]).expect(0);
    assert!(plan.stdout.contains("nothing was changed"), "{plan}");
    assert_eq!(world.content(world.destination()), "r1");
    let done = form(&["-p", SECRET]).expect(0).says(&["warning", "--password-file", "unix_socket", "credential"]);
    assert!(!done.to_string().contains(SECRET));
    assert_eq!(world.content(world.destination()), "prod-4");
    assert!(!world.program_log().contains(SECRET));
    let file = world.root().join("pw");
    fs::write(&file, SECRET).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    world.stamp(5);
    for transport in ["openssh", "ssh"] {
        let quiet = form(&["--password-file", "pw", "--transport", transport]).expect(0);
        assert!(!quiet.stderr.contains("warning: a password"), "{quiet}");
    }
    assert_eq!(world.content(world.destination()), "prod-5");
    form(&["--database", "shop"]).expect(2).says(&["not in this version"]);
    world.call_with(&config, &["--now", "-s", &source]).run().expect(2).says(&["--destination"]);
    world.call_with(&config, &["--now", "-s", &source, "-d", &source]).run().expect(2).says(&["is the source"]);
    world.call_with(&config, &["--now", "-s", "a b", "-d", &source]).run().expect(2).says(&["is not a host"]);
    // a server of the configuration is protected in this form, too
    world.lives_behind(&gate, "ssh");
    world.set("environments.prod.protected", "true");
    world.call(&["--now", "-s", "rnd/r1", "-d", "prod/db1"]).run().expect(4).says(&["protected"]);
    world
        .call(&["--now", "-s", &destination, "-d", &source])
        .run()
        .expect(4)
        .says(&["is the source of the refresh nightly"]);
}

#[cfg(feature = "failpoints")]
#[test]
fn a_typed_password_is_gone_from_the_command_line() {
    let world = World::new();
    let forms: [&[&str]; 4] =
        [&["-p", SECRET], &["--password", SECRET], &[&format!("-p{SECRET}")], &[&format!("--password={SECRET}")]];
    for form in forms {
        let mut words = vec!["--now", "-s", "prod/db1", "-d", "rnd/r1"];
        words.extend(form);
        let (call, hold) = world.call(&words).hold("controller:preflight:before");
        let mut running = call.spawn();
        hold.reached(&mut running);
        let seen: Vec<_> =
            processes().filter(|p| holds(&p.raw, SECRET.as_bytes())).map(|p| (p.program, p.args)).collect();
        hold.release();
        assert!(seen.is_empty(), "{seen:?}");
        let outcome = running.wait();
        assert!(!outcome.to_string().contains(SECRET), "{outcome}");
    }
}
