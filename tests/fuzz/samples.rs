//! One of every message that there is, and the bytes they travel as. A new variant does not compile before it is here.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bytes::Bytes;
use mysql_refreshd::config::{self, Config, Sources};
use mysql_refreshd::delta::hash::{Hash, Totals};
use mysql_refreshd::delta::path::RelPath;
use mysql_refreshd::instance::{Instance, Service, Target};
use mysql_refreshd::problem::Problem;
use mysql_refreshd::wire::facts::{DiskFacts, Facts, Identity, ServerFacts, TreeFacts};
use mysql_refreshd::wire::message::*;

pub fn texts(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

pub fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

pub fn instance(service: Service) -> Instance {
    Instance {
        datadir: "/srv/data".into(),
        socket: "/srv/sock".into(),
        user: "root".into(),
        service,
        dropin: Some("/etc/x.cnf".into()),
        state_dir: "/var/lib/x".into(),
        start_timeout_s: 300,
        stop_timeout_s: u32::MAX,
    }
}

/// A shipped configuration.
pub fn shipped(name: &str) -> Config {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("config").join(name);
    config::load(&Sources { file, ..Sources::default() }).unwrap()
}

pub fn path(text: &str) -> RelPath {
    RelPath::try_from(text.as_bytes()).unwrap()
}

pub fn holder(run: &str) -> Holder {
    Holder {
        run: run.into(),
        refresh: "nightly".into(),
        pid: 4711,
        host: "ctl".into(),
        since: "2026-11-27T02:30:00Z".into(),
        step: "copy".into(),
    }
}

pub fn runtime() -> Runtime {
    Runtime {
        variables: vec![RuntimeVariable { name: "max_connections".into(), value: "500".into(), bare: true }],
        essential: map(&[("read_only", "OFF")]),
        replication: vec![("c1".into(), true, false)],
        lag_s: [("c1".to_owned(), 3)].into(),
        flushing: map(&[("innodb_max_dirty_pages_pct", "90.0")]),
        server: (4711, 1 << 40),
        recorded_s: i64::MIN,
    }
}

fn origin() -> Origin {
    let taken = "2026-11-27T02:31:00Z".into();
    Origin { run: "r1".into(), refresh: "n".into(), source: "prod/db1".into(), taken, image: Hash([7; 32]) }
}

fn identity() -> Identity {
    Identity {
        machine: "m".into(),
        hostname: "db1".into(),
        datadir: "/srv/data".into(),
        inode: (3, u64::MAX),
        key: "abc".into(),
        build: "0.1.0".into(),
    }
}

fn facts() -> Facts {
    let server = ServerFacts {
        pid: 1,
        executable: "/usr/sbin/mariadbd".into(),
        executable_replaced: false,
        settings_problem: Some("no".into()),
        variables: map(&[("version", "10.11.19-MariaDB"), ("datadir", "/srv/data/"), ("port", "3306")]),
        replicates_from: texts(&["c1"]),
        replicas: texts(&["db2:3306"]),
        prepared_xa: texts(&["'x1','b',1"]),
        memory_tables: texts(&["shop.m"]),
        outside_files: vec![],
        encrypted: vec![],
        plugins: texts(&["a", "b", "c"]),
        persisted: BTreeMap::new(),
        upgrade_tool: true,
        remote_tables: vec![],
        accounts: 7,
        enabled_events: 0,
    };
    Facts {
        identity: identity(),
        instance: instance(Service::Systemd { unit: "mariadb.service".into() }),
        installed: true,
        lets_in: (true, false),
        no_consent: Some(Problem::refused("no").cause("because").hint("Ask.")),
        server: Some(server),
        server_problem: None,
        tree: TreeFacts { copy_files: 3, keep: texts(&["ca.pem"]), ..TreeFacts::default() },
        disk: DiskFacts { free: u64::MAX, interrupted_swap: Some("r0".into()), ..DiskFacts::default() },
        socket_path_fits: true,
        not_at_boot: Some("the unit m.service is disabled".into()),
    }
}

fn opens() -> Vec<Open> {
    let services = [
        Service::Systemd { unit: "m.service".into() },
        Service::Commands { start: texts(&["/bin/up", "1"]), stop: texts(&["/bin/down"]) },
        Service::Process { server: "/bin/s".into(), defaults_file: "/srv/my.cnf".into() },
    ];
    let described = services.into_iter().map(|service| Target::Described(Box::new(instance(service))));
    let open = |target| {
        let password = Some(WireSecret("hunter2".to_owned().into()));
        Open { host: "prod/db1".into(), target, password, run: Some("r1".into()), from: None }
    };
    described.chain([Target::Named("main".into()), Target::Only]).map(open).collect()
}

pub fn source_requests() -> Vec<SourceRequest> {
    let drain = DrainOptions { limit_ms: 1, long_ms: u64::MAX, wait_for_long: true, again: false };
    let extra = Extra { copy: texts(&["my-*"]), drop: texts(&["scrap"]) };
    let all: Vec<_> = opens()
        .into_iter()
        .map(|open| SourceRequest::Open(Box::new(open)))
        .chain([
            SourceRequest::Facts(extra.clone()),
            SourceRequest::Lock(holder("r1")),
            SourceRequest::RecordRuntime,
            SourceRequest::Drain(drain),
            SourceRequest::Undrain(runtime()),
            SourceRequest::ArmGuard { max_outage_s: 1800, lease_s: u64::MAX },
            SourceRequest::StopServer,
            SourceRequest::Stream(StreamOptions {
                pass: Pass::Hot,
                level: Some(-3),
                extra,
                ask: true,
                paranoid: true,
                max_rate: Some(u64::MAX),
            }),
            SourceRequest::CanFreeze(FreezeWish::Lvm),
            SourceRequest::Freeze(Extra::default()),
            SourceRequest::Thaw,
            SourceRequest::Snapshot { extra: Extra::default(), wait_ms: u64::MAX },
            SourceRequest::StartServer(runtime()),
            SourceRequest::DisarmGuard,
            SourceRequest::CatchUp { runtime: runtime(), limit_s: u64::MAX },
        ])
        .collect();
    covers(SourceRequest::ALL, all.iter().map(Named::name));
    all
}

pub fn destination_requests() -> Vec<DestinationRequest> {
    let install = InstallOptions {
        layout: map(&[("innodb_page_size", "16384")]),
        own_accounts: true,
        disable_events: true,
        rollback_xa: false,
        upgrade: true,
        extra: Extra::default(),
        recover: true,
    };
    let verify = VerifyOptions { settings: map(&[("port", "1")]), counts: counts(), no_replication: true };
    let swap = SwapOptions { settings: map(&[("port", "1")]), origin: origin() };
    let all: Vec<_> = opens()
        .into_iter()
        .map(|open| DestinationRequest::Open(Box::new(open)))
        .chain([Keep::UntilStage, Keep::UntilVerified, Keep::Never].map(DestinationRequest::Commit))
        .chain([
            DestinationRequest::Facts(Extra::default()),
            DestinationRequest::Lock(holder("r1")),
            DestinationRequest::PrepareStage,
            DestinationRequest::MakeRoom(Room { keep: Keep::UntilStage, basis: true }),
            DestinationRequest::Seed(SeedOptions { from_disk: false, filled: Filled::Before }),
            DestinationRequest::Receive(ReceiveOptions { pass: Pass::Cold, from_disk: true }),
            DestinationRequest::SyncStage,
            DestinationRequest::Install(Box::new(install)),
            DestinationRequest::Swap(Box::new(swap)),
            DestinationRequest::Verify(Box::new(verify)),
            DestinationRequest::UndoSwap,
            DestinationRequest::DiscardStage,
            DestinationRequest::Rollback,
            DestinationRequest::Resume,
        ])
        .collect();
    covers(DestinationRequest::ALL, all.iter().map(Named::name));
    all
}

fn covers(all: &[&str], here: impl Iterator<Item = &'static str>) {
    let here: Vec<&str> = here.collect();
    all.iter().for_each(|name| assert!(here.contains(name), "there is no sample of {name}"));
}

fn counts() -> Counts {
    Counts { objects: [("tables".to_owned(), 12), ("views".to_owned(), u64::MAX)].into() }
}

pub fn entries() -> Vec<Entry> {
    let totals = Totals { files: 1, dirs: 2, bytes: u64::MAX };
    vec![
        Entry::Dir { path: path("shop"), mode: 0o750 },
        Entry::File { number: 3, path: path("shop/o@0020.ibd"), mode: 0o660, len: 1 << 40 },
        Entry::FileEnd { number: 3, proof: Hash([1; 32]) },
        Entry::Same { path: path("shop/o@0020.ibd"), mode: 0o660, len: u64::MAX, proof: Hash([1; 32]) },
        Entry::Ask { number: 3, offset: 1 << 40, hashes: vec![Hash([3; 32]); 16] },
        Entry::Gone { number: u32::MAX },
        Entry::PassEnd,
        Entry::End { totals, image: Hash([2; 32]) },
    ]
}

fn lack() -> Lack {
    Lack { number: 3, offset: 1 << 40, blocks: 0b101, pages: vec![[u64::MAX, 0, 1, 7]; 2] }
}

fn replies() -> Vec<Reply> {
    let installed = Installed { accounts: Some(3), counts: counts(), ..Installed::default() };
    let all = vec![
        Reply::Done,
        Reply::Opened(identity()),
        Reply::Facts(Box::new(facts())),
        Reply::Locked(Some(holder("r2"))),
        Reply::Runtime(runtime()),
        Reply::Drained(Drained { dirty_before: u64::MAX, ..Drained::default() }),
        Reply::Started { ours: true, up_ms: u64::MAX },
        Reply::Disarmed(Some("the agent died".into())),
        Reply::Image { totals: Totals::default(), image: Hash([9; 32]) },
        Reply::Streamed {
            passed: Passed { files: 3, read: u64::MAX, changed: 0 },
            image: Some((Totals::default(), Hash([9; 32]))),
        },
        Reply::Seeded(Seeded { files: 3, bytes: u64::MAX, shared: true, reused: false }),
        Reply::Freezable(Ok("a snapshot".into())),
        Reply::Freezable(Err("ext4 has none".into())),
        Reply::Installed(installed),
        Reply::Undone(true),
        Reply::RolledBack(Some(origin())),
        Reply::CaughtUp(Some("replication is 7 s behind".into())),
        Reply::Snapped(u64::MAX),
        Reply::Resumed(None),
    ];
    // a new one belongs into the list above
    let number = |reply: &Reply| match reply {
        Reply::Done => 0,
        Reply::Opened(_) => 1,
        Reply::Facts(_) => 2,
        Reply::Locked(_) => 3,
        Reply::Runtime(_) => 4,
        Reply::Drained(_) => 5,
        Reply::Started { .. } => 6,
        Reply::Disarmed(_) => 7,
        Reply::Image { .. } => 8,
        Reply::Installed(_) => 9,
        Reply::Undone(_) => 10,
        Reply::RolledBack(_) => 11,
        Reply::CaughtUp(_) => 12,
        Reply::Resumed(_) => 13,
        Reply::Streamed { .. } => 14,
        Reply::Seeded(_) => 15,
        Reply::Freezable(_) => 16,
        Reply::Snapped(_) => 17,
    };
    let here: std::collections::BTreeSet<i32> = all.iter().map(number).collect();
    assert!(here.into_iter().eq(0..18));
    all
}

pub fn ups() -> Vec<Up> {
    let refused = Problem::refused("no").cause("a").cause("b").hint("Do it.");
    let all: Vec<_> = replies()
        .into_iter()
        .map(|reply| Up::Reply { id: 1, result: Ok(reply) })
        .chain([Up::Reply { id: u32::MAX, result: Err(refused) }, Up::Note("n".into()), Up::Warning("w".into())])
        .chain([Up::Progress { done: 1, total: u64::MAX, what: "bytes".into() }])
        .chain(entries().into_iter().map(Up::Entry))
        .chain([Up::Credit(u64::MAX), Up::Lack(lack()), Up::Hello { role: Role::Source, build: "0.1.0".into() }])
        .collect();
    let number = |up: &Up| match up {
        Up::Reply { .. } => 0,
        Up::Note(_) => 1,
        Up::Warning(_) => 2,
        Up::Progress { .. } => 3,
        Up::Entry(_) => 4,
        Up::Credit(_) => 5,
        Up::Hello { .. } => 6,
        Up::Lack(_) => 7,
    };
    (0..8).for_each(|n| assert!(all.iter().any(|up| number(up) == n), "{n}"));
    all
}

pub fn downs<Q>(requests: Vec<Q>) -> Vec<Down<Q>> {
    let calls = requests.into_iter().enumerate().map(|(n, request)| Down::Call { id: n as u32, request });
    calls.chain(entries().into_iter().map(Down::Entry)).chain([Down::Credit(1), Down::Lack(lack())]).collect()
}

fn payloads<T: serde::Serialize>(messages: &[T]) -> Vec<Vec<u8>> {
    messages.iter().map(|message| encode(message).unwrap().payload.to_vec()).collect()
}

/// Every message as it travels.
pub fn encoded() -> Vec<Vec<u8>> {
    [
        payloads(&ups()),
        payloads(&downs(source_requests())),
        payloads(&downs(destination_requests())),
        payloads(&[Lanes { more: 4, token: u128::MAX }]),
    ]
    .concat()
}

pub fn shared(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}
