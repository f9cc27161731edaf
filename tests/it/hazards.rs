//! The hazards of async-ssh2-lite, one test each: the crate used as anybody would use it does the job wrong, our transport
//! does the same job right. They say why src/transport/ssh is not shorter.
//!
//! Against a real sshd; where the network matters, through a proxy. Nothing is judged by how fast it was: times only bound
//! what would hang. Not shown here: the crate's 1 ms polling (a matter for the bench).

use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use async_ssh2_lite::ssh2::{CheckResult, KnownHostFileKind};
use async_ssh2_lite::{AsyncChannel, AsyncSession, SessionConfiguration, TokioTcpStream};
use mysql_refreshd::problem::{Kind, Problem};
use mysql_refreshd::route::{Address, AgentProgram, Route, Way};
use mysql_refreshd::transport::{self, End, Pipe, Secrets, Transport, connection};
use mysql_refreshd::wire::message::{Role, SourceRequest};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::gate::{self, Gate};
use crate::proxy::{Direction, Proxy};
use crate::world::{PROGRAM, Sandbox, output};

/// No healthy machine needs this long.
const LIMIT: Duration = Duration::from_secs(120);

/// Who has not answered by then, in a case where nothing is under way any more, hangs.
const HANGS: Duration = Duration::from_secs(3);

type Naive = AsyncSession<TokioTcpStream>;
type NaiveChannel = AsyncChannel<TokioTcpStream>;

/// An sshd and a folder, for one test.
struct Bed {
    gate: Gate,
    sandbox: Sandbox,
}

impl Bed {
    fn new() -> Bed {
        Bed::with(|gate| gate)
    }

    fn with(wish: impl FnOnce(gate::Builder) -> gate::Builder) -> Bed {
        let sandbox = Sandbox::new();
        Bed { gate: wish(Gate::at(&sandbox.root)).start(), sandbox }
    }

    fn folder(&self) -> &Path {
        &self.sandbox.root
    }

    /// A script on the host.
    fn script(&self, text: &str) -> PathBuf {
        let path = self.folder().join(format!("script{}", crate::world::unique()));
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn address(&self, port: u16) -> Address {
        Address {
            host: self.gate.address().into(),
            port: Some(port),
            user: Some(self.gate.user().into()),
            identity: Some(self.gate.identity()),
            use_agent: false,
            known_hosts: None,
            host_key: Some(self.gate.host_key("ed25519")),
            connect_timeout_s: 30,
            silence_s: 30,
            sessions: Some(1),
        }
    }

    /// Our transport; the script stands in the place of the agent.
    fn ours(&self, address: Address, script: &Path) -> Box<dyn Transport> {
        let agent = AgentProgram::Installed(script.to_owned());
        transport::to(&Route { way: Way::Ssh(address), agent, sudo: false, policy: None }, Secrets::default())
    }

    /// The pipe to a script over our transport.
    async fn pipe(&self, port: u16, text: &str) -> Pipe {
        self.ours(self.address(port), &self.script(text)).open(Role::Source).await.unwrap()
    }

    /// The crate, as its examples use it.
    async fn naive(&self, port: u16) -> Naive {
        let mut session = AsyncSession::<TokioTcpStream>::connect(([127, 0, 0, 1], port), None).await.unwrap();
        session.handshake().await.unwrap();
        self.let_in(&session).await;
        session
    }

    async fn let_in(&self, session: &Naive) {
        session.userauth_pubkey_file(self.gate.user(), None, &self.gate.identity(), None).await.unwrap();
        assert!(session.authenticated());
    }

    async fn naive_channel(&self, port: u16, script: &str) -> (Naive, NaiveChannel) {
        let session = self.naive(port).await;
        let mut channel = session.channel_session().await.unwrap();
        channel.exec(self.script(script).to_str().unwrap()).await.unwrap();
        (session, channel)
    }
}

/// Runs a case within a time that no healthy machine needs.
fn run(case: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let result = runtime.block_on(async { timeout(LIMIT, case).await });
    runtime.shutdown_background();
    assert!(result.is_ok(), "hangs");
}

/// Bytes that no compression and no repetition hides.
fn bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; count];
    random.fill(&mut bytes);
    bytes
}

/// Equality, without printing megabytes.
#[track_caller]
fn same(got: &[u8], wanted: &[u8]) {
    let differs = got.iter().zip(wanted).position(|(a, b)| a != b);
    assert!(got == wanted, "{} of {} bytes, the first that differs at {differs:?}", got.len(), wanted.len());
}

/// Writes all, says that this was all, and reads at the same time until the other side has ended.
async fn exchange(pipe: Pipe, data: &[u8]) -> (Vec<u8>, End) {
    let Pipe { mut reader, mut writer, process, .. } = pipe;
    let write = async {
        writer.write_all(data).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let mut got = Vec::new();
    let (read, ()) = tokio::join!(reader.read_to_end(&mut got), write);
    read.unwrap();
    (got, process.end(false).await)
}

/// The same with the crate's channel: reading in a task of its own, as it would be done with any other stream.
async fn naive_exchange(mut channel: NaiveChannel, data: Vec<u8>) -> Result<Vec<u8>, String> {
    let wanted = data.len();
    let mut reader = channel.stream(0);
    let reading = tokio::spawn(async move {
        let mut got = vec![0; wanted];
        reader.read_exact(&mut got).await.map(|_| got)
    });
    let writing = tokio::spawn(async move {
        let result = channel.write_all(&data).await;
        (channel, result)
    });
    let panicked = |error: tokio::task::JoinError| match error.try_into_panic() {
        Ok(payload) => payload.downcast_ref::<&str>().map_or("panic", |text| text).to_owned(),
        Err(error) => error.to_string(),
    };
    let got = timeout(LIMIT / 3, reading).await.map_err(|_| "hangs".to_owned())?.map_err(panicked)?;
    writing.abort();
    got.map_err(|error| error.to_string())
}

#[test]
fn reading_while_the_socket_is_too_full_to_write() {
    run(async {
        let bed = Bed::new();
        let slow = Proxy::to(bed.gate.port()).rate(8_000_000).buffers(8 * 1024).start();
        let data = bytes(1, 4_000_000);
        let (session, channel) = bed.naive_channel(slow.port(), "exec cat").await;
        let outcome = naive_exchange(channel, data.clone()).await;
        let why =
            outcome.map(|got| got.len()).expect_err("the crate's stream asserts that reading never waits for writing");
        assert!(why.contains("assertion failed"), "{why}");
        drop(session);

        let (got, end) = exchange(bed.pipe(slow.port(), "exec cat").await, &data).await;
        same(&got, &data);
        assert_eq!(end.code, Some(0), "{end:?}");
    });
}

#[test]
fn flush_throws_away_what_was_received() {
    const ROUNDS: usize = 40;
    run(async {
        let bed = Bed::new();
        let seen = bed.folder().join("seen");
        let script = format!("while read -r n; do echo \"answer to $n\"; echo $n >{}; done; echo bye", seen.display());
        // asks, flushes as one does, and goes on when the answer is under way
        let ask = async |writer: &mut (dyn AsyncWrite + Send + Unpin)| {
            for n in 0..ROUNDS {
                writer.write_all(format!("{n}\n").as_bytes()).await.unwrap();
                writer.flush().await.unwrap();
                while std::fs::read_to_string(&seen).unwrap_or_default().trim() != n.to_string() {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let (session, mut channel) = bed.naive_channel(bed.gate.port(), &script).await;
        ask(&mut channel).await;
        channel.send_eof().await.unwrap();
        let mut got = String::new();
        channel.read_to_string(&mut got).await.unwrap();
        assert!(got.lines().count() < ROUNDS + 1, "nothing was lost");
        drop(session);

        let Pipe { mut reader, mut writer, process, .. } = bed.pipe(bed.gate.port(), &script).await;
        ask(&mut writer).await;
        writer.shutdown().await.unwrap();
        let mut got = String::new();
        reader.read_to_string(&mut got).await.unwrap();
        let wanted: String = (0..ROUNDS).map(|n| format!("answer to {n}\n")).collect();
        assert_eq!(got, wanted + "bye\n");
        assert_eq!(process.end(false).await.code, Some(0));
    });
}

#[test]
fn shutdown_does_not_say_that_this_was_all() {
    // the answer begins only after the end of the question, and is larger than every window
    const SCRIPT: &str = "wc -c; head -c 9000000 /dev/zero";
    run(async {
        let bed = Bed::new();
        let direct = async {
            let (_session, mut channel) = bed.naive_channel(bed.gate.port(), "wc -c").await;
            channel.write_all(b"12345").await.unwrap();
            channel.shutdown().await.unwrap();
            let mut got = String::new();
            assert!(timeout(HANGS, channel.read_to_string(&mut got)).await.is_err(), "{got}");
        };
        // and as a pump between two streams, which ends one way when the other side has ended
        let pumped = async {
            let (_session, mut channel) = bed.naive_channel(bed.gate.port(), "wc -c").await;
            let (mut near, mut far) = tokio::io::duplex(64 * 1024);
            let pump = tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut channel).await });
            far.write_all(b"12345").await.unwrap();
            far.shutdown().await.unwrap();
            let mut got = String::new();
            assert!(timeout(HANGS, far.read_to_string(&mut got)).await.is_err(), "{got}");
            pump.abort();
        };
        tokio::join!(direct, pumped);

        let data = bytes(2, 3_000_000);
        let (got, end) = exchange(bed.pipe(bed.gate.port(), SCRIPT).await, &data).await;
        let mut wanted = b"3000000\n".to_vec();
        wanted.resize(wanted.len() + 9_000_000, 0);
        same(&got, &wanted);
        assert_eq!(end.code, Some(0), "{end:?}");
    });
}

/// News that is dropped if it cannot be sent at once, and replaced by later news: a write that is dropped has written nothing,
/// says tokio. Returns what was accepted, and how much news was dropped.
async fn tell_news(writer: &mut (impl AsyncWrite + Unpin)) -> (Vec<u8>, usize) {
    let (mut accepted, mut dropped) = (Vec::new(), 0);
    for number in 0.. {
        if accepted.len() > 1_000_000 {
            break;
        }
        let news = format!("{number:07}\n").repeat(2_500);
        match timeout(Duration::from_millis(3), writer.write(news.as_bytes())).await {
            Ok(written) => accepted.extend(&news.as_bytes()[..written.unwrap()]),
            Err(_) => dropped += 1,
        }
    }
    (accepted, dropped)
}

#[test]
fn a_dropped_write_is_one_that_has_not_happened() {
    run(async {
        let bed = Bed::new();
        let slow = Proxy::to(bed.gate.port()).rate(1_500_000).buffers(8 * 1024).start();
        let store = |name: &str| format!("exec cat > {}/{name}", bed.folder().display());
        let stored = |name: &str| std::fs::read(bed.folder().join(name)).unwrap();

        let (session, mut channel) = bed.naive_channel(slow.port(), &store("naive")).await;
        let (accepted, dropped) = tell_news(&mut channel).await;
        assert!(dropped > 0, "the link is not slow");
        let _ = timeout(HANGS, channel.send_eof()).await;
        let _ = timeout(HANGS, channel.read_to_end(&mut Vec::new())).await;
        // not only less than what was accepted: something else
        assert!(!accepted.starts_with(&stored("naive")), "intact after {dropped} dropped writes");
        drop(session);

        let Pipe { mut reader, mut writer, process, .. } = bed.pipe(slow.port(), &store("ours")).await;
        let (accepted, dropped) = tell_news(&mut writer).await;
        assert!(dropped > 0, "the link is not slow");
        writer.shutdown().await.unwrap();
        assert_eq!(reader.read_to_end(&mut Vec::new()).await.unwrap(), 0);
        assert_eq!(process.end(false).await.code, Some(0));
        same(&stored("ours"), &accepted);
    });
}

#[test]
fn how_a_command_ended_is_not_guessed() {
    const KILLED: &str = "echo half; kill -KILL $$";
    const LINGERS: &str = "echo half; exec sleep 600";
    run(async {
        let bed = Bed::new();
        let port = bed.gate.port();

        let (session, mut channel) = bed.naive_channel(port, "sleep 1; exit 3").await;
        assert_eq!(channel.exit_status().unwrap(), 0, "before it has ended");
        let mut got = String::new();
        channel.read_to_string(&mut got).await.unwrap();
        drop((session, channel));
        let (session, mut channel) = bed.naive_channel(port, KILLED).await;
        channel.read_to_string(&mut got).await.unwrap();
        channel.wait_close().await.unwrap();
        assert_eq!((got.as_str(), channel.exit_status().unwrap()), ("half\n", 0), "killed");
        drop(session);
        let (session, mut channel) = bed.naive_channel(port, LINGERS).await;
        let mut half = [0; 5];
        channel.read_exact(&mut half).await.unwrap();
        bed.gate.kill_sessions();
        let _ = channel.read_to_string(&mut got).await;
        assert_eq!(channel.exit_status().unwrap(), 0, "lost");
        drop(session);

        let (got, end) = exchange(bed.pipe(port, "echo all; exit 3").await, b"").await;
        assert_eq!((got.as_slice(), end.code), (&b"all\n"[..], Some(3)), "{end:?}");
        let (got, end) = exchange(bed.pipe(port, "echo all; exec >&- 2>&-; sleep 1; exit 3").await, b"").await;
        assert_eq!((got.as_slice(), end.code), (&b"all\n"[..], Some(3)), "output ended first: {end:?}");
        let (got, end) = exchange(bed.pipe(port, KILLED).await, b"").await;
        assert_eq!((got.as_slice(), end.code), (&b"half\n"[..], None), "{end:?}");
        assert!(end.status.contains("KILL"), "{end:?}");
        let mut pipe = bed.pipe(port, LINGERS).await;
        pipe.reader.read_exact(&mut half).await.unwrap();
        bed.gate.kill_sessions();
        let mut rest = Vec::new();
        // an end or an error, but no more bytes
        let _ = pipe.reader.read_to_end(&mut rest).await;
        let end = pipe.process.end(false).await;
        assert_eq!((rest.len(), end.code), (0, None), "{end:?}");
        assert!(end.status.contains("lost"), "{end:?}");
    });
}

/// libssh2 takes nothing else while a packet is half sent. A command that ends while one is leaves the caller in a loop that no
/// timeout ends, unless somebody sees to it.
#[test]
fn a_command_that_ends_in_mid_upload_is_heard_to_the_end() {
    let bed = Bed::new();
    run(async {
        for round in 0..4 {
            let slow = Proxy::to(bed.gate.port()).rate(1_500_000).buffers(8 * 1024).start();
            let pipe = bed.pipe(slow.port(), "head -c 700000 >/dev/null; echo enough >&2; exit 3").await;
            let Pipe { mut reader, mut writer, process, .. } = pipe;
            let writing = tokio::spawn(async move {
                let _ = writer.write_all(&bytes(round, 6_000_000)).await;
                writer
            });
            let mut got = Vec::new();
            reader.read_to_end(&mut got).await.unwrap();
            let end = timeout(Duration::from_secs(30), process.end(false)).await.expect("others run meanwhile");
            assert!(end.code == Some(3) || end.code.is_none(), "{end:?}");
            assert!(end.stderr.contains("enough"), "{end:?}");
            writing.abort();
        }
    });
}

#[test]
fn an_unread_stderr_stops_stdout() {
    const SCRIPT: &str = "yes complaint | head -c 8000000 >&2; echo last words >&2; echo answer";
    run(async {
        let bed = Bed::new();
        let (session, mut channel) = bed.naive_channel(bed.gate.port(), SCRIPT).await;
        let mut got = String::new();
        assert!(timeout(HANGS, channel.read_to_string(&mut got)).await.is_err(), "{got}");
        drop(session);

        let pipe = bed.pipe(bed.gate.port(), SCRIPT).await;
        let stderr = pipe.stderr.clone();
        let (got, end) = exchange(pipe, b"").await;
        assert_eq!(got, b"answer\n");
        assert_eq!(end.code, Some(0), "{end:?}");
        assert!(end.stderr.ends_with("complaint\nlast words"), "{}", &end.stderr[end.stderr.len() - 40..]);
        assert!(
            (32_000..=32 * 1024).contains(&end.stderr.len()) && stderr.text() == end.stderr,
            "{}",
            end.stderr.len()
        );
    });
}

#[test]
fn a_dead_peer_is_noticed() {
    const SILENCE: Duration = Duration::from_secs(3);
    run(async {
        let bed = Bed::new();
        let line = Proxy::to(bed.gate.port()).start();
        let mut configuration = SessionConfiguration::new();
        configuration.set_keepalive(true, 1);
        let mut session =
            AsyncSession::<TokioTcpStream>::connect(([127, 0, 0, 1], line.port()), configuration).await.unwrap();
        session.handshake().await.unwrap();
        bed.let_in(&session).await;
        line.fall_silent();
        for _ in 0..SILENCE.as_secs() + 1 {
            session.keepalive_send().await.expect("asks for a reply and does not miss it");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        drop(session);

        line.speak();
        let transport = bed.ours(bed.address(line.port()), Path::new(PROGRAM));
        let connection = connection::open(transport.as_ref(), Role::Source, SILENCE, |_| {}).await.unwrap();
        line.fall_silent();
        let call = timeout(LIMIT / 2, connection.call(SourceRequest::RecordRuntime)).await;
        let problem = call.expect("hangs").unwrap_err();
        assert_eq!(problem.kind, Kind::Lost, "{problem}");
        timeout(LIMIT / 3, connection.close()).await.expect("hangs");
    });
}

#[test]
fn a_peer_that_dies_on_the_way_in_is_noticed() {
    run(async {
        let bed = Bed::new();
        let script = bed.script("exec cat");
        let case = async |bytes: u64| {
            let line = Proxy::to(bed.gate.port()).silent_after(Direction::Down, bytes).start();
            let naive = async {
                let mut session =
                    AsyncSession::<TokioTcpStream>::connect(([127, 0, 0, 1], line.port()), None).await.unwrap();
                session.handshake().await.unwrap();
                bed.let_in(&session).await;
            };
            assert!(timeout(HANGS, naive).await.is_err(), "after {bytes} bytes");

            let line = Proxy::to(bed.gate.port()).silent_after(Direction::Down, bytes).start();
            let transport = bed.ours(Address { connect_timeout_s: 1, ..bed.address(line.port()) }, &script);
            let opened = timeout(LIMIT / 4, transport.open(Role::Source)).await.expect("hangs");
            let problem = opened.err().expect("nobody let us in");
            assert_eq!(problem.kind, Kind::Lost, "after {bytes} bytes: {problem}");
            assert!(problem.message.contains("cannot be reached"), "after {bytes} bytes: {problem}");
        };
        // before its greeting, in the middle of the exchange of keys, and about to ask who we are
        tokio::join!(case(0), case(700), case(1_500));
    });
}

#[test]
fn a_peer_that_dies_in_the_middle_is_given_up_by_the_kernel() {
    const SCRIPT: &str = "exec cat >/dev/null";
    let data = vec![0; 64 * 1024];
    run(async {
        let bed = Bed::new();
        let line = || Proxy::to(bed.gate.port()).buffers(8 * 1024).silent_after(Direction::Up, 500_000).start();
        let naive = async {
            let line = line();
            let (_session, mut channel) = bed.naive_channel(line.port(), SCRIPT).await;
            let write = async { while channel.write_all(&data).await.is_ok() {} };
            assert!(timeout(2 * HANGS, write).await.is_err(), "something told that it is dead");
        };
        let ours = async {
            let line = line();
            let address = Address { silence_s: 2, ..bed.address(line.port()) };
            let pipe = bed.ours(address, &bed.script(SCRIPT)).open(Role::Source).await.unwrap();
            let Pipe { mut reader, mut writer, process, .. } = pipe;
            while writer.write_all(&data).await.is_ok() {}
            let _ = reader.read_to_end(&mut Vec::new()).await;
            let end = process.end(false).await;
            assert_eq!(end.code, None, "{end:?}");
            assert!(end.status.contains("lost"), "{end:?}");
        };
        tokio::join!(naive, timeout(LIMIT / 2, ours)).1.expect("hangs");
    });
}

#[test]
fn a_connection_that_is_cut_is_lost_and_not_ended() {
    run(async {
        let bed = Bed::new();
        let line = Proxy::to(bed.gate.port()).cut_after(Direction::Down, 300_000).start();
        let pipe = bed.pipe(line.port(), "head -c 9000000 /dev/zero").await;
        let Pipe { mut reader, writer, process, .. } = pipe;
        let mut got = Vec::new();
        let _ = reader.read_to_end(&mut got).await;
        assert!(got.len() < 300_000, "{}", got.len());
        drop(writer);
        let end = process.end(false).await;
        assert_eq!(end.code, None, "{end:?}");
        assert!(end.status.contains("lost"), "{end:?}");
    });
}

/// What the crate's own check says of the host, with a known_hosts file.
async fn naive_check(bed: &Bed, file: &Path) -> CheckResult {
    let mut session = AsyncSession::<TokioTcpStream>::connect(([127, 0, 0, 1], bed.gate.port()), None).await.unwrap();
    session.handshake().await.unwrap();
    let mut known = session.known_hosts().unwrap();
    if known.read_file(file, KnownHostFileKind::OpenSSH).is_err() {
        return CheckResult::Failure;
    }
    known.check_port(bed.gate.address(), bed.gate.port(), session.host_key().unwrap().0)
}

#[test]
fn host_keys_are_judged_as_openssh_judges_them() {
    run(async {
        let bed = Bed::with(|gate| gate.host_keys(&["ed25519", "rsa", "ecdsa"]));
        let gate = &bed.gate;
        let file = bed.folder().join("known");
        let know = |lines: &str| std::fs::write(&file, lines).unwrap();
        let script = bed.script("exec cat");
        let ours = async || -> Result<(), Problem> {
            let address = Address { host_key: None, known_hosts: Some(file.clone()), ..bed.address(gate.port()) };
            let (got, _) = exchange(bed.ours(address, &script).open(Role::Source).await?, b"hello").await;
            same(&got, b"hello");
            Ok(())
        };
        let place = format!("[127.0.0.1]:{}", gate.port());

        // known by a key of another kind than the one the server would rather show
        for kind in ["rsa", "ecdsa"] {
            know(&format!("{place} {}\n", gate.host_key(kind)));
            assert!(!matches!(naive_check(&bed, &file).await, CheckResult::Match), "{kind}");
            ours().await.unwrap();
        }
        // known by a pattern
        know(&format!("[127.0.0.*]:{} {}\n", gate.port(), gate.host_key("ed25519")));
        assert!(!matches!(naive_check(&bed, &file).await, CheckResult::Match));
        ours().await.unwrap();
        // excluded by a pattern
        know(&format!("[127.0.0.*]:{},!{place} {}\n", gate.port(), gate.host_key("ed25519")));
        assert!(ours().await.unwrap_err().message.contains("is not known"));
        // hashed
        know(&format!("{place} {}\n", gate.host_key("ed25519")));
        output(Command::new("ssh-keygen").args(["-q", "-H", "-f"]).arg(&file));
        assert!(std::fs::read_to_string(&file).unwrap().starts_with("|1|"));
        ours().await.unwrap();
        // known and revoked
        know(&format!("{}@revoked * {}\n", gate.known_hosts_lines(), gate.host_key("ed25519")));
        let problem = ours().await.unwrap_err();
        assert!(problem.kind == Kind::Refused && problem.message.contains("revoked"), "{problem}");
        // of another host
        know(&format!("[127.0.0.2]:{} {}\n", gate.port(), gate.host_key("ed25519")));
        let problem = ours().await.unwrap_err();
        assert!(problem.kind == Kind::Refused && problem.message.contains("is not known"), "{problem}");
        // changed
        know(&gate.known_hosts_lines());
        for kind in ["ed25519", "rsa", "ecdsa"] {
            gate.replace_host_key(kind);
        }
        let problem = ours().await.unwrap_err();
        assert!(problem.kind == Kind::Refused && problem.message.contains("another machine"), "{problem}");
        know(&gate.known_hosts_lines());
        ours().await.unwrap();
    });
}

#[test]
fn new_keys_in_the_middle_of_a_duplex_stream() {
    // What was fixed is in libssh2 itself: with the snapshot in libssh2-sys 0.3.4 the crate's own stream passes the first of
    // these two as well (40 MB both ways, tried many times), so that only the version is left to be guarded. On the second,
    // it panics as above.
    let lock: toml::Table = toml::from_str(include_str!("../../Cargo.lock")).unwrap();
    let packages = lock["package"].as_array().unwrap();
    let libssh2 = packages.iter().find(|p| p["name"].as_str() == Some("libssh2-sys")).unwrap();
    let version: Vec<u32> = libssh2["version"].as_str().unwrap().split('.').map(|n| n.parse().unwrap()).collect();
    assert!(
        version >= vec![0, 3, 4],
        "before 0.3.4, libssh2 deadlocks when keys are renewed in the middle of a packet"
    );
    run(async {
        let bed = Bed::with(|gate| gate.line("RekeyLimit 1M").line("LogLevel DEBUG1"));
        let slow = Proxy::to(bed.gate.port()).rate(15_000_000).buffers(8 * 1024).start();
        for (port, size) in [(bed.gate.port(), 40_000_000), (slow.port(), 10_000_000)] {
            let data = bytes(3, size);
            let before = bed.gate.log().matches("SSH2_MSG_NEWKEYS received").count();
            let (got, end) = exchange(bed.pipe(port, "exec cat").await, &data).await;
            same(&got, &data);
            assert_eq!(end.code, Some(0), "{end:?}");
            let renewed = bed.gate.log().matches("SSH2_MSG_NEWKEYS received").count() - before;
            assert!(renewed > 5, "keys were renewed only {renewed} times");
        }
    });
}
