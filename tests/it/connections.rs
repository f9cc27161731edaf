//! Connections that are not made, or that end in the middle: every cause is told apart, with what to do, and nothing is lost
//! or left down. Over both SSH transports, against a real sshd.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use mysql_refreshd::problem::{Kind, Problem};
use mysql_refreshd::route::{Address, AgentProgram, Route, Way};
use mysql_refreshd::transport::connection;
use mysql_refreshd::transport::{self, Secrets};
use mysql_refreshd::wire::frame::{MAGIC, PROTOCOL};
use mysql_refreshd::wire::message::Role;

use crate::gate::Gate;
use crate::transport::address;
use crate::world::{World, free_port};

type Wrap = fn(Address) -> Way;

const WAYS: [(&str, Wrap); 2] = [("ssh", Way::Ssh), ("openssh", Way::OpenSsh)];

/// Why an agent cannot be opened.
fn failure(way: Way, agent: AgentProgram, sudo: bool, secrets: Secrets) -> Problem {
    let route = Route { way, agent, sudo, policy: None };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let transport = transport::to(&route, secrets);
        let opened = connection::open(transport.as_ref(), Role::Source, Duration::from_secs(20), |_| {}).await;
        opened.err().expect("a connection that fails")
    })
}

#[track_caller]
fn told(name: &str, problem: &Problem, words: &[&str]) {
    let text = format!("{problem} {} {}", problem.causes.join(" "), problem.hints.join(" "));
    for word in words {
        assert!(text.contains(word), "{name}: {word:?} is not in: {text}");
    }
    assert!(!problem.hints.is_empty(), "{name}: no hint: {problem:?}");
}

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("mrc").tempdir_in("/tmp").unwrap()
}

fn program() -> AgentProgram {
    AgentProgram::Own(env!("CARGO_BIN_EXE_mysql-refreshd").into())
}

fn script(folder: &Path, name: &str, text: &[u8], mode: u32) -> AgentProgram {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    AgentProgram::Installed(path)
}

#[test]
fn hosts_that_cannot_be_reached_or_proven() {
    let folder = folder();
    let gate = Gate::at(folder.path()).start();
    let other = folder.path().join("known");
    let fail = |way| failure(way, program(), false, Secrets::default());
    for (name, way) in WAYS {
        let refused = fail(way(Address { port: Some(free_port()), ..address(&gate) }));
        told(name, &refused, &["refuses connections", "Does sshd run there"]);
        let nowhere = fail(way(Address { host: "no-such-host.invalid".into(), ..address(&gate) }));
        told(name, &nowhere, &["cannot be reached", "Check `address`"]);
        // something that takes the connection and says nothing
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = Some(silent.local_addr().unwrap().port());
        told(name, &fail(way(Address { port, connect_timeout_s: 2, ..address(&gate) })), &["cannot be reached"]);
        fs::write(&other, "").unwrap();
        let unknown = fail(way(Address { known_hosts: Some(other.clone()), ..address(&gate) }));
        told(name, &unknown, &["host key of", "is not known", "copy-all-keys.sh"]);
        assert_eq!(unknown.kind, Kind::Refused, "{name}");
        let absent = fail(way(Address { known_hosts: Some(folder.path().join("absent")), ..address(&gate) }));
        assert!(absent.to_string().contains("absent") || absent.to_string().contains("not known"), "{absent:?}");
    }
    // pinned: the key that it has, as a key and as a fingerprint
    let key = gate.host_key("ed25519");
    for (name, way) in WAYS {
        let pinned = Address { host_key: Some(key.clone()), known_hosts: Some(other.clone()), ..address(&gate) };
        let missing =
            failure(way(pinned), AgentProgram::Installed("/nonexistent/agent".into()), false, Secrets::default());
        told(name, &missing, &["no agent at /nonexistent/agent"]);
    }
    gate.replace_host_key("ed25519");
    for (name, way) in WAYS {
        for host_key in [None, Some(key.clone())] {
            let changed = fail(way(Address { host_key, ..address(&gate) }));
            told(name, &changed, &["perhaps it is another machine", "SHA256:"]);
            assert_eq!(changed.kind, Kind::Refused, "{name}");
        }
    }
}

#[test]
fn keys_that_do_not_fit() {
    let folder = folder();
    let gate = Gate::at(folder.path()).passphrase("correct horse").start();
    let fail = |way, passphrase: Option<&str>| {
        failure(
            way,
            AgentProgram::Installed("/nonexistent/agent".into()),
            false,
            Secrets { passphrase: passphrase.map(Into::into), sudo: None },
        )
    };
    let stranger = Gate::at(folder.path()).start();
    for (name, way) in WAYS {
        let wrong = fail(way(Address { identity: Some(stranger.identity()), ..address(&gate) }), None);
        told(name, &wrong, &["does not let this key in", "authorized_keys"]);
        let nobody = fail(way(Address { user: Some("nobody-like-this".into()), ..address(&stranger) }), None);
        told(name, &nobody, &["does not let this key in"]);
        let locked = fail(way(address(&gate)), None);
        told(name, &locked, &["does not let this key in"]);
    }
    told("ssh", &fail(Way::Ssh(address(&gate)), None), &["it has a passphrase, and none is configured"]);
    let wrong = fail(Way::Ssh(address(&gate)), Some("battery staple"));
    told("ssh", &wrong, &["does not let this key in"]);
    assert!(!format!("{wrong:?}").contains("battery staple"));
    let right = fail(Way::Ssh(address(&gate)), Some("correct horse"));
    told("ssh", &right, &["no agent at /nonexistent/agent"]);
    // a private key that others can read
    fs::set_permissions(stranger.identity(), fs::Permissions::from_mode(0o644)).unwrap();
    told("ssh", &fail(Way::Ssh(address(&stranger)), None), &["open to others", "chmod 600"]);
}

#[test]
fn agents_that_do_not_start() {
    let folder = folder();
    let gate = Gate::at(folder.path()).start();
    let at = folder.path();
    let mut other_protocol = b"#!/bin/sh\nprintf '".to_vec();
    let mut hello = MAGIC.to_vec();
    hello.extend_from_slice(&(PROTOCOL + 1).to_le_bytes());
    other_protocol.extend(hello.iter().flat_map(|byte| format!("\\{byte:03o}").into_bytes()));
    other_protocol.extend(b"'\ncat >/dev/null\n");
    // an ELF header of another processor (EM_SPARC)
    let mut foreign = b"\x7fELF\x02\x02\x01\0\0\0\0\0\0\0\0\0\0\x02\0\x02".to_vec();
    foreign.resize(200, 0);
    let cases = [
        (AgentProgram::Installed("/nonexistent/agent".into()), false, vec!["no agent at", "agent_path"]),
        (script(at, "plain", b"#!/bin/sh\n", 0o644), false, vec!["may not be executed", "noexec"]),
        (script(at, "foreign", &foreign, 0o755), false, vec!["another architecture"]),
        (script(at, "protocol", &other_protocol, 0o755), false, vec!["same version of mysql-refreshd"]),
        (script(at, "old", b"#!/bin/sh\necho \"error: unrecognized subcommand 'agent'\" >&2; exit 2\n", 0o755), false, vec!["another version"]),
        (script(at, "libc", b"#!/bin/sh\necho \"$0: /lib/libc.so.6: version 'GLIBC_2.99' not found (required by $0)\" >&2; exit 1\n", 0o755), false, vec!["too old"]),
    ];
    for (agent, sudo, words) in cases {
        for (name, way) in WAYS {
            let problem = failure(way(address(&gate)), agent.clone(), sudo, Secrets::default());
            told(&format!("{name} {agent:?}"), &problem, &words);
        }
    }
}

#[test]
fn a_noexec_folder_is_named() {
    let folder = folder();
    let mount = folder.path().join("noexec");
    fs::create_dir(&mount).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "noexec", "tmpfs"])
        .arg(&mount)
        .stderr(std::process::Stdio::null())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED a_noexec_folder_is_named: nothing can be mounted here");
        return;
    }
    let gate = Gate::at(folder.path()).environment(&format!("XDG_CACHE_HOME={}", mount.display())).start();
    let agent = script(&mount, "agent", b"#!/bin/sh\nexit 0\n", 0o755);
    for (name, way) in WAYS {
        told(
            name,
            &failure(way(address(&gate)), agent.clone(), false, Secrets::default()),
            &["may not be executed", "noexec"],
        );
        let uploaded = failure(way(address(&gate)), AgentProgram::Uploaded, false, Secrets::default());
        told(name, &uploaded, &["may not be executed", "noexec"]);
    }
    drop(gate);
    let _ = std::process::Command::new("umount").arg("-l").arg(&mount).status();
}

#[cfg(feature = "failpoints")]
#[test]
fn a_connection_that_is_cut_in_mid_copy_leaves_both_ends_whole() {
    for (transport, _) in WAYS {
        let world = World::builder().over(transport).build();
        world.stamp(5);
        let (call, hold) = world.refresh().hold("source:stream:half");
        let mut running = call.spawn();
        hold.reached(&mut running);
        assert!(!world.source.answers(), "the source is stopped while it is read");
        assert!(world.way_in().kill_sessions() > 0);
        hold.release();
        let outcome = running.wait();
        assert!([1, 5].contains(&outcome.code()), "{transport}: {outcome}");
        world.source.wait_up(Duration::from_secs(60));
        assert_eq!(world.content(world.destination()), "r1", "{transport}");
        world.recover().expect(0);
        world.recover().expect(0);
        world.expect_nobody_left();
        world.refresh().run().expect(0);
        assert_eq!(world.content(world.destination()), "prod-5", "{transport}");
    }
}

/// The agent is put there once, and again only when the program is another one.
#[test]
fn an_agent_is_uploaded_once() {
    let folder = folder();
    let cache = folder.path().join("cache");
    let gate = Gate::at(folder.path()).environment(&format!("XDG_CACHE_HOME={}", cache.display())).start();
    let files = || fs::read_dir(cache.join("mysql-refreshd")).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>();
    let mut first = None;
    for (_, way) in WAYS {
        let route = Route { way: way(address(&gate)), agent: AgentProgram::Uploaded, sudo: false, policy: None };
        let runtime = tokio::runtime::Runtime::new().unwrap();
        // this program is the tests': it is put there, and is no agent
        let problem = runtime.block_on(async {
            let transport = transport::to(&route, Secrets::default());
            connection::open(transport.as_ref(), Role::Source, Duration::from_secs(20), |_| {}).await.err().unwrap()
        });
        assert!(!problem.to_string().contains("cannot put"), "{problem}");
        let now: Vec<_> = files()
            .into_iter()
            .map(|path| {
                let time = fs::metadata(&path).unwrap().modified().unwrap();
                (path, time)
            })
            .collect();
        assert_eq!(now.len(), 1, "{now:?}");
        let same = fs::read(&now[0].0).unwrap() == fs::read("/proc/self/exe").unwrap();
        assert!(same, "what arrived is what was sent");
        assert_eq!(*first.get_or_insert_with(|| now.clone()), now, "it was sent again");
    }
}
