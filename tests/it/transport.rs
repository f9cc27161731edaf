//! The conformance suite: what every transport must keep, run here over `local`. A new transport adds one `Way` and nothing
//! else. Agents are real; where a host misbehaves, a wrapper script does it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mysql_refreshd::authority::consent::{self, Grant};
use mysql_refreshd::delta::hash::{FileHasher, ImageHasher, block};
use mysql_refreshd::delta::pack::{Encoding, Place, pack_whole};
use mysql_refreshd::delta::{BLOCK, CHUNK};
use mysql_refreshd::instance::{Instance, Service, Target};
use mysql_refreshd::problem::Kind;
use mysql_refreshd::route::{Address, AgentProgram, Route, Way};
use mysql_refreshd::transport::connection::{self, Aside, Connection, Piece};
use mysql_refreshd::transport::{self, Secrets, Transport};
use mysql_refreshd::wire::message::{
    DestinationRequest, Entry, Holder, Open, Pass, ReceiveOptions, Reply, Role, SourceRequest,
};

use crate::gate::Gate;
use crate::world::wait_for;

/// Reaches an agent that is started as `program`.
type Reach<'a> = &'a dyn Fn(PathBuf) -> Box<dyn Transport>;

/// Every transport there is.
const WAYS: [&str; 4] = ["local", "ssh", "ssh, four sessions", "openssh"];

/// How the host behind a gate is addressed.
pub fn address(gate: &Gate) -> Address {
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
        silence_s: 20,
    }
}

fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_mysql-refreshd").into()
}

/// A script in place of the program; `$REAL` in it is the program.
fn wrapper(folder: &Path, script: &str) -> PathBuf {
    let path = folder.join("wrapper");
    let real = program();
    std::fs::write(&path, format!("#!/bin/sh\n{}\n", script.replace("$REAL", &real.to_string_lossy()))).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn instance(folder: &Path) -> Instance {
    let datadir = folder.join("data");
    std::fs::create_dir_all(&datadir).unwrap();
    Instance {
        datadir,
        socket: folder.join("sock"),
        user: "root".into(),
        service: Service::Process { server: "/bin/false".into(), defaults_file: folder.join("my.cnf") },
        dropin: None,
        state_dir: folder.join("state"),
        start_timeout_s: 5,
        stop_timeout_s: 5,
    }
}

fn open_request(folder: &Path) -> Box<Open> {
    Box::new(Open {
        host: "t/t".into(),
        target: Target::Described(Box::new(instance(folder))),
        password: None,
        run: Some("r1".into()),
        from: Some("prod".into()),
    })
}

const SILENCE: Duration = Duration::from_secs(20);

async fn connect(transport: &dyn Transport, role: Role) -> Connection {
    connection::open(transport, role, SILENCE, |_| {}).await.unwrap()
}

/// Runs a case over every transport, within a time that no healthy machine needs.
fn over_all<F: AsyncFn(Reach<'_>, &Path)>(case: F) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for name in WAYS {
        let folder = tempfile::Builder::new().prefix("mrt").tempdir_in("/tmp").unwrap();
        let gate = (name != "local").then(|| Gate::at(folder.path()).start());
        let policy = folder.path().join("host.toml");
        let way = match (name, &gate) {
            ("ssh", Some(gate)) => Way::Ssh(address(gate)),
            ("ssh, four sessions", Some(gate)) => Way::Ssh(Address { sessions: Some(4), ..address(gate) }),
            (_, Some(gate)) => Way::OpenSsh(address(gate)),
            _ => Way::Local,
        };
        let reach = |program: PathBuf| {
            let agent = AgentProgram::Own(program);
            let route = Route { way: way.clone(), agent, sudo: false, policy: Some(policy.clone()) };
            transport::to(&route, Secrets::default())
        };
        let case = case(&reach, folder.path());
        let result = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(120), case).await });
        assert!(result.is_ok(), "{name}: hangs");
    }
    runtime.shutdown_background();
}

#[test]
fn both_roles_greet_and_answer() {
    over_all(async |way, folder| {
        let transport = way(program());
        let source = connect(transport.as_ref(), Role::Source).await;
        assert!(matches!(source.call(SourceRequest::Open(open_request(folder))).await, Ok(Reply::Opened(_))));
        let again = source.call(SourceRequest::Open(open_request(folder))).await.unwrap_err();
        assert!(again.to_string().contains("out of order"), "{again}");
        source.close().await;
        let destination = connect(transport.as_ref(), Role::Destination).await;
        let early = destination.call(DestinationRequest::DiscardStage).await.unwrap_err();
        assert!(early.to_string().contains("out of order"), "{early}");
        destination.close().await;
    });
}

#[test]
fn a_banner_is_skipped_and_noted() {
    over_all(async |way, folder| {
        let wrapper = wrapper(folder, "echo 'Welcome to db1. Authorised use only.'\nexec $REAL \"$@\"");
        let notes = Arc::new(Mutex::new(Vec::new()));
        let kept = notes.clone();
        let connection = connection::open(way(wrapper).as_ref(), Role::Source, SILENCE, move |aside| {
            if let Aside::Note(text) = aside {
                kept.lock().unwrap().push(text);
            }
        })
        .await
        .unwrap();
        assert!(matches!(connection.call(SourceRequest::Open(open_request(folder))).await, Ok(Reply::Opened(_))));
        assert!(notes.lock().unwrap().iter().any(|n| n.contains("Authorised use only")), "{notes:?}");
        connection.close().await;
    });
}

#[test]
fn an_agent_that_cannot_start_says_why() {
    over_all(async |way, folder| {
        let wrapper = wrapper(folder, "echo 'libfoo.so.6: version GLIBC_2.99 not found' >&2\nexit 127");
        let problem = connection::open(way(wrapper).as_ref(), Role::Source, SILENCE, |_| {}).await.err().unwrap();
        assert_eq!(problem.kind, Kind::Lost);
        assert!(problem.to_string().contains("GLIBC_2.99"), "{problem}");
        let missing = connection::open(way("/nonexistent/agent".into()).as_ref(), Role::Source, SILENCE, |_| {}).await;
        assert!(missing.err().unwrap().to_string().contains("/nonexistent/agent"));
    });
}

#[test]
fn a_killed_agent_is_a_lost_one_and_not_an_answer() {
    over_all(async |way, folder| {
        let wrapper = wrapper(
            folder,
            &format!("case $* in *--lane*) ;; *) echo $$ > {}/pid ;; esac\nexec $REAL \"$@\"", folder.display()),
        );
        let connection = connect(way(wrapper).as_ref(), Role::Source).await;
        let pid = std::fs::read_to_string(folder.join("pid")).unwrap();
        assert!(std::process::Command::new("kill").args(["-KILL", pid.trim()]).status().unwrap().success());
        let problem = connection.call(SourceRequest::Open(open_request(folder))).await.unwrap_err();
        assert_eq!(problem.kind, Kind::Lost, "{problem}");
        connection.close().await;
    });
}

#[test]
fn a_stopped_agent_is_noticed() {
    over_all(async |way, folder| {
        let wrapper = wrapper(
            folder,
            &format!("case $* in *--lane*) ;; *) echo $$ > {}/pid ;; esac\nexec $REAL \"$@\"", folder.display()),
        );
        let silence = Duration::from_secs(3);
        let connection = connection::open(way(wrapper).as_ref(), Role::Source, silence, |_| {}).await.unwrap();
        let pid = std::fs::read_to_string(folder.join("pid")).unwrap();
        assert!(std::process::Command::new("kill").args(["-STOP", pid.trim()]).status().unwrap().success());
        let problem = connection.call(SourceRequest::Open(open_request(folder))).await.unwrap_err();
        assert_eq!(problem.kind, Kind::Lost, "{problem}");
        assert!(problem.to_string().contains("nothing was heard"), "{problem}");
        // the promise of `close`: the process is gone, or on another machine, where it ends as soon as it can
        connection.close().await;
        let process = PathBuf::from(format!("/proc/{}", pid.trim()));
        if way(program()).place().is_some() {
            let _ = std::process::Command::new("kill").args(["-CONT", pid.trim()]).status();
            wait_for("the agent's end", Duration::from_secs(20), || !process.exists());
        }
        assert!(!process.exists());
    });
}

#[test]
fn flooded_stderr_does_not_stop_the_wire() {
    over_all(async |way, folder| {
        let wrapper = wrapper(folder, "head -c 8000000 /dev/zero | tr '\\0' 'x' >&2\nexec $REAL \"$@\"");
        let connection = connect(way(wrapper).as_ref(), Role::Source).await;
        assert!(matches!(connection.call(SourceRequest::Open(open_request(folder))).await, Ok(Reply::Opened(_))));
        connection.close().await;
    });
}

#[test]
fn foreign_output_is_named_and_not_decoded() {
    over_all(async |way, folder| {
        let wrapper = wrapper(folder, "exec cat /bin/sh");
        let problem = connection::open(way(wrapper).as_ref(), Role::Source, SILENCE, |_| {}).await.err().unwrap();
        assert!(problem.to_string().contains("no greeting") || problem.to_string().contains("damaged"), "{problem}");
    });
}

#[test]
fn closing_waits_until_the_agent_is_gone() {
    over_all(async |way, folder| {
        let wrapper = wrapper(
            folder,
            &format!("case $* in *--lane*) ;; *) echo $$ > {}/pid ;; esac\nexec $REAL \"$@\"", folder.display()),
        );
        let connection = connect(way(wrapper).as_ref(), Role::Destination).await;
        give_consent(folder);
        connection.call(DestinationRequest::Open(open_request(folder))).await.unwrap();
        let early = connection.call(DestinationRequest::PrepareStage).await.unwrap_err();
        assert!(early.to_string().contains("without its lock"), "{early}");
        take_lock(&connection).await;
        connection.call(DestinationRequest::PrepareStage).await.unwrap();
        assert!(folder.join(".data.refreshd/stage").is_dir());
        connection.close().await;
        let pid = std::fs::read_to_string(folder.join("pid")).unwrap();
        assert!(!Path::new(&format!("/proc/{}", pid.trim())).exists());
        assert!(!folder.join(".data.refreshd/stage").exists(), "what was begun is put back");
    });
}

/// A file's pieces, and its part of the image.
fn file(number: u32, name: &str, content: &[u8], image: &mut ImageHasher) -> Vec<Piece> {
    let path = mysql_refreshd::delta::path::RelPath::try_from(name.as_bytes()).unwrap();
    let mut hasher = FileHasher::default();
    let mut pieces =
        vec![Piece::Entry(Entry::File { number, path: path.clone(), mode: 0o640, len: content.len() as u64 })];
    for (n, chunk) in content.chunks(CHUNK).enumerate() {
        chunk.chunks(BLOCK).for_each(|b| hasher.add(&block(b), b.len()));
        let place = Place { file: number, offset: (n * CHUNK) as u64 };
        pieces.push(Piece::Chunk(pack_whole(place, chunk, Encoding::Zstd(1))));
    }
    let proof = hasher.finish();
    image.file(&path, content.len() as u64, &proof);
    pieces.push(Piece::Entry(Entry::FileEnd { number, proof }));
    pieces
}

/// The owner's consent to what the tests write.
fn give_consent(folder: &Path) {
    let datadir = Some(instance(folder).datadir);
    let grant = Grant { instance: "t".into(), datadir, from: vec!["prod".into()], expires: None };
    consent::grant(&folder.join("host.toml"), &grant).unwrap();
}

/// The lock of a run.
pub fn holder() -> Holder {
    let text = |text: &str| text.to_owned();
    Holder { run: text("r1"), refresh: text("t"), pid: 1, host: text("t"), since: text("now"), step: text("t") }
}

async fn take_lock(connection: &Connection) {
    let reply = connection.call(DestinationRequest::Lock(holder())).await.unwrap();
    assert!(matches!(reply, Reply::Locked(None)), "{reply:?}");
}

async fn staged(transport: &dyn Transport, folder: &Path) -> Connection {
    give_consent(folder);
    let connection = connect(transport, Role::Destination).await;
    connection.call(DestinationRequest::Open(open_request(folder))).await.unwrap();
    take_lock(&connection).await;
    connection.call(DestinationRequest::PrepareStage).await.unwrap();
    connection
}

#[test]
fn a_stream_larger_than_every_window_arrives_whole() {
    over_all(async |way, folder| {
        let connection = staged(way(program()).as_ref(), folder).await;
        let mut random = fastrand::Rng::with_seed(1);
        let big: Vec<u8> = (0..60 * 1024 * 1024).map(|_| random.u8(..)).collect();
        let mut holes = vec![0u8; 3 * CHUNK + 77];
        holes[2 * CHUNK + 5] = 9;
        let mut image = ImageHasher::default();
        let mut pieces = Vec::new();
        for (n, (name, content)) in [("big", big.as_slice()), ("empty", &[]), ("holes", &holes)].into_iter().enumerate()
        {
            pieces.extend(file(n as u32 + 1, name, content, &mut image));
        }
        let (totals, proof) = image.finish();
        pieces.push(Piece::Entry(Entry::End { totals, image: proof }));
        let send = async {
            for piece in pieces {
                connection.send_piece(piece).await.unwrap();
            }
        };
        let receive =
            connection.call(DestinationRequest::Receive(ReceiveOptions { pass: Pass::Cold, from_disk: true }));
        let (reply, ()) = tokio::join!(receive, send);
        match reply.unwrap() {
            Reply::Image { totals: t, image: i } => assert_eq!((t, i), (totals, proof)),
            other => panic!("{other:?}"),
        }
        let stage = folder.join(".data.refreshd/stage");
        assert!(std::fs::read(stage.join("big")).unwrap() == big);
        assert!(std::fs::read(stage.join("empty")).unwrap().is_empty());
        assert!(std::fs::read(stage.join("holes")).unwrap() == holes);
        connection.close().await;
    });
}

#[test]
fn a_wrong_proof_fails_the_image() {
    over_all(async |way, folder| {
        let connection = staged(way(program()).as_ref(), folder).await;
        let mut image = ImageHasher::default();
        let mut pieces = file(1, "t.ibd", &[1; 5000], &mut image);
        let other = file(2, "u.ibd", &[2; 5000], &mut image);
        // the second file's content under the first one's proof
        if let (
            Some(Piece::Entry(Entry::FileEnd { proof, .. })),
            Some(Piece::Entry(Entry::FileEnd { proof: wrong, .. })),
        ) = (pieces.last_mut(), other.last())
        {
            *proof = *wrong;
        }
        for piece in pieces {
            connection.send_piece(piece).await.unwrap();
        }
        let (totals, proof) = image.finish();
        connection.send_piece(Piece::Entry(Entry::End { totals, image: proof })).await.unwrap();
        let problem = connection
            .call(DestinationRequest::Receive(ReceiveOptions { pass: Pass::Cold, from_disk: false }))
            .await
            .unwrap_err();
        assert!(problem.to_string().contains("is not on this disk what the source sent"), "{problem}");
        connection.close().await;
    });
}

/// Option files, links to other servers' files, what each host keeps: an image brings data, whoever sends it.
#[test]
fn an_image_that_brings_more_than_data_is_refused() {
    over_all(async |way, folder| {
        for name in [".my.cnf", "x.isl", "evil.so", "my.cnf"] {
            let connection = staged(way(program()).as_ref(), folder).await;
            let mut image = ImageHasher::default();
            for piece in file(1, name, b"[mysqld]", &mut image) {
                let _ = connection.send_piece(piece).await;
            }
            let problem = connection
                .call(DestinationRequest::Receive(ReceiveOptions { pass: Pass::Cold, from_disk: false }))
                .await
                .unwrap_err();
            assert!(problem.to_string().contains("is not taken in"), "{name}: {problem}");
            assert!(!folder.join(".data.refreshd/stage").join(name).exists());
            let again = connection
                .call(DestinationRequest::Receive(ReceiveOptions { pass: Pass::Cold, from_disk: false }))
                .await
                .unwrap_err();
            assert!(again.to_string().contains("out of order"), "{again}");
            connection.close().await;
        }
    });
}

#[test]
fn a_controller_that_vanishes_leaves_no_agent() {
    over_all(async |way, folder| {
        let wrapper = wrapper(
            folder,
            &format!("case $* in *--lane*) ;; *) echo $$ > {}/pid ;; esac\nexec $REAL \"$@\"", folder.display()),
        );
        let connection = staged(way(wrapper).as_ref(), folder).await;
        let pid = std::fs::read_to_string(folder.join("pid")).unwrap();
        drop(connection);
        let begun = Instant::now();
        // a zombie counts as gone: nobody waits for a dropped agent
        let lives = || std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).is_ok_and(|s| !s.contains(") Z"));
        while lives() {
            assert!(begun.elapsed() < Duration::from_secs(20), "the agent lives on");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(!folder.join(".data.refreshd/stage").exists());
    });
}
