//! Bytes per second through each transport, beside `ssh`, `scp` and `rsync` doing the same, interleaved, over a private sshd on
//! loopback: what a refresh between machines can move at best. `cargo bench --bench transports [-- MEGABYTES ROUNDS]`.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    dead_code,
    unused_imports,
    reason = "a benchmark says so and fails; the tests' modules are borrowed"
)]

#[path = "../tests/it/client.rs"]
mod client;
#[path = "../tests/it/gate.rs"]
mod gate;
#[path = "../tests/it/poller.rs"]
mod poller;
#[path = "../tests/it/template.rs"]
mod template;
#[path = "../tests/it/world.rs"]
mod world;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use mysql_refreshd::route::{Address, AgentProgram, Route, Way};
use mysql_refreshd::transport::{self, Secrets};
use mysql_refreshd::wire::message::Role;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use gate::Gate;

/// What is measured: a name, and seconds for one round.
type Flow<'a> = (&'static str, Box<dyn Fn() -> f64 + 'a>);

fn address(gate: &Gate) -> Address {
    Address {
        host: gate.address().to_owned(),
        port: Some(gate.port()),
        user: Some(gate.user().to_owned()),
        identity: Some(gate.identity()),
        use_agent: false,
        known_hosts: Some(gate.known_hosts()),
        host_key: None,
        connect_timeout_s: 20,
        sessions: Some(1),
        silence_s: 60,
    }
}

fn script(folder: &Path, name: &str, line: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\n{line}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Through a transport: the whole file up or down, and the other side's word that it has ended.
fn carried(way: Way, agent: &Path, file: &Path, up: bool) -> f64 {
    let route = Route { way, agent: AgentProgram::Installed(agent.to_owned()), sudo: false, policy: None };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let content = fs::read(file).unwrap();
    runtime.block_on(async {
        let transport = transport::to(&route, Secrets::default());
        let begun = Instant::now();
        let pipe = transport.open(Role::Source).await.unwrap();
        let (mut reader, mut writer) = (pipe.reader, pipe.writer);
        let mut got = 0;
        let length = content.len();
        let write = async move {
            if up {
                for piece in content.chunks(1 << 20) {
                    writer.write_all(piece).await.unwrap();
                }
            }
            writer.shutdown().await.unwrap();
            drop(writer);
        };
        let read = async {
            let mut buffer = vec![0; 1 << 18];
            while let Ok(n @ 1..) = reader.read(&mut buffer).await {
                got += n;
            }
        };
        tokio::join!(write, read);
        let end = pipe.process.end(false).await;
        assert_eq!((end.code, got), (Some(0), if up { 0 } else { length }), "{end:?}");
        begun.elapsed().as_secs_f64()
    })
}

/// A command of the system's, its input and output as given.
fn command(mut command: Command, input: Option<&Path>, output: Stdio) -> f64 {
    command.stdin(input.map_or_else(Stdio::null, |path| File::open(path).unwrap().into())).stdout(output);
    let begun = Instant::now();
    assert!(command.status().unwrap().success(), "{command:?}");
    begun.elapsed().as_secs_f64()
}

fn options(gate: &Gate) -> Vec<String> {
    let mut options = Vec::new();
    for option in [
        "BatchMode=yes".into(),
        "Compression=no".into(),
        format!("UserKnownHostsFile={}", gate.known_hosts().display()),
    ] {
        options.extend(["-o".to_owned(), option]);
    }
    options.extend(["-F".into(), "none".into(), "-i".into(), gate.identity().display().to_string()]);
    options
}

fn main() {
    let numbers: Vec<usize> = std::env::args().filter_map(|word| word.parse().ok()).collect();
    let (megabytes, rounds) = (numbers.first().copied().unwrap_or(512), numbers.get(1).copied().unwrap_or(5));
    let folder = tempfile::Builder::new().prefix("mrb").tempdir_in("/tmp").unwrap();
    let gate = Gate::at(folder.path()).start();
    let file = folder.path().join("data");
    // not compressible, so that nobody gains by it
    let mut random = fastrand::Rng::with_seed(1);
    let content: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(megabytes << 20).collect();
    fs::write(&file, content).unwrap();
    let sink = script(folder.path(), "sink", "exec cat >/dev/null");
    let spring = script(folder.path(), "spring", &format!("exec cat {}", file.display()));
    let (target, port) = (format!("{}@127.0.0.1", gate.user()), gate.port().to_string());
    let ssh = |line: &str| {
        let mut ssh = Command::new("ssh");
        ssh.args(options(&gate)).args(["-p", &port, &target, line]);
        ssh
    };
    let landing = folder.path().join("landing");
    let mut flows: Vec<Flow> = vec![
        ("ssh transport, up", Box::new(|| carried(Way::Ssh(address(&gate)), &sink, &file, true))),
        ("openssh transport, up", Box::new(|| carried(Way::OpenSsh(address(&gate)), &sink, &file, true))),
        ("ssh, up", Box::new(|| command(ssh("cat >/dev/null"), Some(&file), Stdio::null()))),
        ("ssh transport, down", Box::new(|| carried(Way::Ssh(address(&gate)), &spring, &file, false))),
        ("openssh transport, down", Box::new(|| carried(Way::OpenSsh(address(&gate)), &spring, &file, false))),
        ("ssh, down", Box::new(|| command(ssh(&format!("cat {}", file.display())), None, Stdio::null()))),
        (
            "scp",
            Box::new(|| {
                let mut scp = Command::new("scp");
                scp.arg("-q")
                    .args(options(&gate))
                    .args(["-P", &port])
                    .arg(&file)
                    .arg(format!("{target}:{}", landing.display()));
                command(scp, None, Stdio::null())
            }),
        ),
    ];
    if Command::new("rsync").arg("--version").stdout(Stdio::null()).status().is_ok() {
        flows.push((
            "rsync -W",
            Box::new(|| {
                let _ = fs::remove_file(&landing);
                let mut rsync = Command::new("rsync");
                let shell = format!("ssh {} -p {port}", options(&gate).join(" "));
                rsync.args(["-W", "-e", &shell]).arg(&file).arg(format!("{target}:{}", landing.display()));
                command(rsync, None, Stdio::null())
            }),
        ));
    }
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); flows.len()];
    for _ in 0..rounds {
        for ((_, flow), times) in flows.iter().zip(&mut times) {
            times.push(flow());
        }
    }
    println!("{megabytes} MiB, {rounds} rounds, interleaved; MB/s: median (least-most)");
    for ((name, _), times) in flows.iter().zip(&mut times) {
        times.sort_by(f64::total_cmp);
        let rate = |seconds: f64| (megabytes << 20) as f64 / 1e6 / seconds;
        let (median, most, least) = (rate(times[times.len() / 2]), rate(times[0]), rate(times[times.len() - 1]));
        println!("{name:<26} {median:>6.0}  ({least:.0}-{most:.0})");
    }
}
