//! Who may do what: real sudo, a key behind the gate, the host's own policy and its owner's consent, on a host with an account of
//! its own. What a stolen key can do is tried with that key.
//!
//! Where no private host can be made (not root), these tests say so and are skipped.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use mysql_refreshd::instance::{Instance, Service, Target};
use mysql_refreshd::problem::{Outcome, Problem};
use mysql_refreshd::route::{AgentProgram, INSTALLED, Route, Way};
use mysql_refreshd::transport::connection::{self, Connection};
use mysql_refreshd::transport::{self, Secrets};
use mysql_refreshd::wire::message::{
    DestinationRequest, Extra, Filled, Keep, Open, Origin, Pass, ReceiveOptions, Reply, Role, Room, SeedOptions,
    SourceRequest, SwapOptions,
};

use crate::gate::{self, Gate};
use crate::transport::{address, holder};
use crate::world::World;

const ACCOUNT: &str = "refresher";

/// A script of the project, run as an owner runs it on the host.
fn script(gate: &Gate, line: &str) -> String {
    gate.exec(&format!("sh {}/utils/{line}", env!("CARGO_MANIFEST_DIR")))
}

/// A host with both servers of the world, set up as the README says, but for consents.
pub fn host(world: &World, with: impl FnOnce(gate::Builder) -> gate::Builder) -> Gate {
    let options = format!("restrict,command=\"{INSTALLED} gate\"");
    let gate = with(Gate::at(world.root()).as_host(ACCOUNT).authorized_with(&options)).start();
    for (server, role) in
        std::iter::once((&world.source, "source")).chain(world.destinations.iter().map(|s| (s, "destination")))
    {
        let datadir = server.datadir();
        gate.exec(&format!(
            "{INSTALLED} host init --role {role} --instance {} --datadir {}",
            server.name,
            datadir.display()
        ));
        // a plain process has no folder of option files that could be guessed
        let dropin =
            format!("dropin = \"{}\"\\nstate_dir = \"{}/host\"", server.dropin().display(), world.root().display());
        gate.exec(&format!("sed -i 's|^\\[instances.{}\\]$|&\\n{dropin}|' /etc/mysql-refreshd/host.toml", server.name));
    }
    gate
}

/// The account may start the agent.
pub fn allow_sudo(gate: &Gate) {
    script(gate, &format!("remove-sudo-password-prompt.sh --user {ACCOUNT}"));
}

/// The owner of an instance consents.
pub fn consent(gate: &Gate, instance: &str, from: &str) {
    gate.exec(&format!("{INSTALLED} consent grant --from {from} --instance {instance}"));
}

fn both(test: &str, case: impl Fn(&World, &str)) {
    if gate::may_be_a_host(test) {
        for transport in ["ssh", "openssh"] {
            case(&World::builder().over("local").build(), transport);
        }
    }
}

#[test]
fn a_refresh_with_no_more_rights_than_it_needs() {
    both("a_refresh_with_no_more_rights_than_it_needs", |world, transport| {
        let gate = host(world, |gate| gate);
        world.lives_behind(&gate, transport);
        // one thing after the other is missing, and each is told with what mends it
        world.call(&["doctor"]).run().expect(1);
        let lacks = world.call(&["doctor", "rnd/r1"]).run().expect(1);
        assert!(lacks.stdout.contains("remove-sudo-password-prompt.sh"), "{lacks}");
        world.refresh().run().expect(1).says(&["sudo", "remove-sudo-password-prompt.sh"]);
        allow_sudo(&gate);
        let lacks = world.call(&["doctor", "rnd/r1"]).run().expect(1);
        assert!(lacks.stdout.contains("consent grant --from prod --instance r1"), "{lacks}");
        world.refresh().run().expect(4).says(&["has not consented", "consent grant --from prod --instance r1"]);
        assert_eq!(world.content(world.destination()), "r1");
        consent(&gate, "r1", "prod");
        let healthy = world.call(&["doctor"]).run().expect(0);
        assert!(!healthy.stdout.contains("LACKS"), "{healthy}");
        world.stamp(7);
        world.refresh().run().expect(0);
        assert_eq!(world.content(world.destination()), "prod-7");
        assert_eq!(world.destination().variable("max_connections"), "77");
        // a consent that was taken back, and one for somebody else's data
        gate.exec(&format!("{INSTALLED} consent revoke --instance r1"));
        world.refresh().run().expect(4).says(&["has not consented"]);
        world.call(&["rollback", "rnd/r1"]).run().expect(4).says(&["has not consented"]);
        consent(&gate, "r1", "stage");
        world.refresh().run().expect(4).says(&["accepts data from stage only"]);
        assert_eq!(world.content(world.destination()), "prod-7");
        consent(&gate, "r1", "prod");
        world.call(&["rollback", "rnd/r1"]).run().expect(0);
        assert_eq!(world.content(world.destination()), "r1");
    });
}

#[test]
fn what_the_owner_protects_no_consent_opens() {
    both("what_the_owner_protects_no_consent_opens", |world, transport| {
        let gate = host(world, |gate| gate);
        allow_sudo(&gate);
        consent(&gate, "r1", "prod");
        gate.exec("sed -i 's|^\\[instances.r1\\]$|&\\nprotected = true|' /etc/mysql-refreshd/host.toml");
        world.lives_behind(&gate, transport);
        world.refresh().run().expect(4).says(&["protected on its own host"]);
        // what the owner has not let in
        gate.exec("sed -i 's|^protected = true$||' /etc/mysql-refreshd/host.toml");
        for (key, word, says) in
            [("accounts", "source", "let the source's accounts in"), ("events", "keep", "let events stay enabled")]
        {
            world.set(&format!("refreshes.nightly.{key}"), &format!("\"{word}\""));
            world.refresh().run().expect(4).says(&[says]);
            gate.exec(&format!(
                "sed -i 's|^\\[instances.r1\\]$|&\\n{key} = \"{word}\"|' /etc/mysql-refreshd/host.toml"
            ));
            world.call(&["check"]).run().expect(0);
        }
        // and a role that the owner has not given
        gate.exec("sed -i 's|\\[\"source\"\\]|[]|' /etc/mysql-refreshd/host.toml");
        world.refresh().run().expect(4).says(&["may not be a source on this host"]);
        assert_eq!(world.content(world.destination()), "r1");
    });
}

#[test]
fn a_consent_that_came_with_a_clone_does_not_count() {
    if !gate::may_be_a_host("a_consent_that_came_with_a_clone_does_not_count") {
        return;
    }
    let world = World::builder().over("local").build();
    let original = host(&world, |gate| gate);
    consent(&original, "r1", "prod");
    let policy = original.exec("cat /etc/mysql-refreshd/host.toml");
    drop(original);
    // the same disk in another machine: everything is there, and the machine has another identity
    let clone = host(&world, |gate| gate.machine_id("0123456789abcdef0123456789abcdef"));
    allow_sudo(&clone);
    let copy = world.root().join("copy.toml");
    fs::write(&copy, policy).unwrap();
    clone.exec(&format!("cp {} /etc/mysql-refreshd/host.toml", copy.display()));
    world.lives_behind(&clone, "ssh");
    world.refresh().run().expect(4).says(&["was given on another machine"]);
    // moved to another datadir it does not count either
    clone.exec("sed -i 's|^datadir = .*/r1/data\"$|datadir = \"/var/lib/other\"|' /etc/mysql-refreshd/host.toml");
    world.refresh().run().expect_any(&[1, 4]);
    assert_eq!(world.content(world.destination()), "r1");
}

#[test]
fn sudo_that_asks_gets_its_answer_and_nobody_else_does() {
    both("sudo_that_asks_gets_its_answer_and_nobody_else_does", |world, transport| {
        const SECRET: &str = "0penSesame-1001";
        // a busy machine's loopback may look like a long line, which gets more sessions
        let kinds = ["--role source", "--role destination", "--lane"];
        let agents = kinds.map(|kind| format!("{INSTALLED} agent {kind}")).join(", ");
        let gate =
            host(world, |gate| gate.password(SECRET).sudoers(&format!("{ACCOUNT} ALL=(root:root) PASSWD: {agents}")));
        consent(&gate, "r1", "prod");
        world.lives_behind(&gate, transport);
        world.refresh().run().expect(1).says(&["sudo wants a password", "--ask-sudo-password"]);
        let file = world.root().join("sudo.password");
        let write = |text: &str| {
            fs::write(&file, text).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        };
        for host in ["prod.hosts.db1", "rnd.hosts.r1"] {
            world.set(&format!("environments.{host}.sudo_password"), &format!("{{ file = \"{}\" }}", file.display()));
        }
        write("wrong");
        world.refresh().run().expect(1).says(&["sudo does not accept the password"]);
        write(SECRET);
        world.stamp(3);
        world.refresh().run().expect(0);
        assert_eq!(world.content(world.destination()), "prod-3");
        assert!(!world.program_log().contains(SECRET));
    });
}

/// What a thief of the controller's key does: the same key, and any message that the wire knows.
struct Thief<'a> {
    gate: &'a Gate,
    runtime: tokio::runtime::Runtime,
}

impl Thief<'_> {
    fn open(&self, role: Role) -> Outcome<Connection> {
        let route = Route {
            way: Way::Ssh(address(self.gate)),
            agent: AgentProgram::Installed(INSTALLED.into()),
            sudo: true,
            policy: None,
        };
        let silence = Duration::from_secs(20);
        self.runtime.block_on(async {
            connection::open(transport::to(&route, Secrets::default()).as_ref(), role, silence, |_| {}).await
        })
    }

    fn ask(&self, connection: &Connection, request: impl serde::Serialize) -> Outcome<Reply> {
        self.runtime.block_on(connection.call(request))
    }

    fn open_as(&self, target: Target) -> Box<Open> {
        Box::new(Open { host: "x/y".into(), target, password: None, run: Some("r1".into()), from: Some("prod".into()) })
    }
}

fn listing(folder: &Path) -> Vec<String> {
    let out = crate::world::output(std::process::Command::new("find").arg(folder).args(["-printf", "%p %s %T@\\n"]));
    let mut lines: Vec<String> = out.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn a_stolen_key_opens_what_was_consented_to_and_nothing_else() {
    if !gate::may_be_a_host("a_stolen_key_opens_what_was_consented_to_and_nothing_else") {
        return;
    }
    let world = World::builder().over("local").destinations(2).build();
    let gate = host(&world, |gate| gate);
    allow_sudo(&gate);
    consent(&gate, "r2", "prod");
    let unconsented = &world.destinations[0];
    // no command, no shell, no file transfer, no forwarding, no other program of ours
    for line in [
        "id",
        "sh -c id",
        "sudo -n id",
        &format!("sudo -n -- {INSTALLED} consent grant --from prod --instance r1"),
        &format!("{INSTALLED} agent --role destination --trust-controller"),
        &format!("sudo -n -- {INSTALLED} agent --role destination --trust-controller --policy /tmp/x"),
        &format!("{INSTALLED} host show; id"),
        "/usr/lib/openssh/sftp-server",
        "",
    ] {
        let out = gate.ssh(line);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && said.contains("starts agents and nothing else"), "{line}: {said}");
        assert!(out.stdout.is_empty(), "{line}: {}", String::from_utf8_lossy(&out.stdout));
    }
    // and what sudo itself allows the account, should a way around the gate be found
    let sudo = |command: &str| gate.try_exec(&format!("su {ACCOUNT} -c 'sudo -n {command}'"));
    for command in [
        "id",
        &format!("{INSTALLED} consent grant --from prod --instance r1"),
        &format!("{INSTALLED} agent --role source --trust-controller"),
    ] {
        assert!(!sudo(command).status.success(), "{command}");
    }
    let thief = Thief { gate: &gate, runtime: tokio::runtime::Runtime::new().unwrap() };
    let refused = |result: Outcome<Reply>, word: &str| {
        let problem: Problem = result.map(|reply| panic!("{reply:?}")).unwrap_err();
        assert!(problem.to_string().contains(word), "{problem}");
    };
    let (before, etc) = (listing(&unconsented.dir.join("conf.d")), gate.exec("find /etc -type f | sort | xargs cksum"));
    // a server of the thief's own description
    let evil = Instance {
        datadir: "/etc".into(),
        socket: unconsented.socket(),
        user: "root".into(),
        service: Service::Commands {
            start: vec!["/bin/touch".into(), "/tmp/owned".into()],
            stop: vec!["/bin/true".into()],
        },
        dropin: Some("/etc/cron.d/x".into()),
        state_dir: "/etc/mysql-refreshd".into(),
        start_timeout_s: 5,
        stop_timeout_s: 5,
    };
    for role in [Role::Source, Role::Destination] {
        for (target, word) in [
            (Target::Described(Box::new(evil.clone())), "its host's own policy"),
            (Target::Named("nobody".into()), "knows no instance"),
            (Target::Named(if role == Role::Source { "r1" } else { "db1" }.into()), "may not be a"),
        ] {
            let connection = thief.open(role).unwrap();
            let open = thief.open_as(target);
            let result = match role {
                Role::Source => thief.ask(&connection, SourceRequest::Open(open)),
                Role::Destination => thief.ask(&connection, DestinationRequest::Open(open)),
            };
            refused(result, word);
        }
    }
    // an instance whose owner has not consented: no request that changes anything
    let connection = thief.open(Role::Destination).unwrap();
    thief.ask(&connection, DestinationRequest::Open(thief.open_as(Target::Named("r1".into())))).unwrap();
    refused(thief.ask(&connection, DestinationRequest::PrepareStage), "without its lock");
    thief.ask(&connection, DestinationRequest::Lock(holder())).unwrap();
    let origin = Origin {
        run: "r1".into(),
        refresh: "x".into(),
        source: "x/y".into(),
        taken: "now".into(),
        image: mysql_refreshd::delta::hash::ImageHasher::default().finish().1,
    };
    let swap = |settings: &[(&str, &str)]| {
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        DestinationRequest::Swap(Box::new(SwapOptions { settings, origin: origin.clone() }))
    };
    for request in [
        DestinationRequest::PrepareStage,
        DestinationRequest::MakeRoom(Room { keep: Keep::UntilStage, basis: true }),
        DestinationRequest::Seed(SeedOptions { from_disk: false, filled: Filled::Before }),
        DestinationRequest::Receive(ReceiveOptions { pass: Pass::Cold, from_disk: false }),
        DestinationRequest::SyncStage,
        swap(&[]),
        DestinationRequest::Rollback,
    ] {
        refused(thief.ask(&connection, request), "has not consented");
    }
    assert!(!unconsented.work().exists());
    thief.runtime.block_on(connection.close());
    // a consented one: its data may go, but no setting that would execute or write anything
    let connection = thief.open(Role::Destination).unwrap();
    thief.ask(&connection, DestinationRequest::Open(thief.open_as(Target::Named("r2".into())))).unwrap();
    thief.ask(&connection, DestinationRequest::Lock(holder())).unwrap();
    thief.ask(&connection, DestinationRequest::Facts(Extra::default())).unwrap();
    refused(
        thief.ask(&connection, swap(&[("innodb_data_file_path", "ibdata1:12M;../r1/data/x:1M")])),
        "leads out of the datadir",
    );
    refused(thief.ask(&connection, swap(&[])), "out of order");
    for setting in [
        "plugin_load_add",
        "init_file",
        "plugin_dir",
        "secure_file_priv",
        "general_log_file",
        "datadir",
        "malloc_lib",
        "skip_grant_tables",
    ] {
        refused(thief.ask(&connection, swap(&[(setting, "/tmp/x")])), "may not be pushed");
    }
    thief.runtime.block_on(connection.close());
    // statements of the thief's own through the source's recorded state
    let connection = thief.open(Role::Source).unwrap();
    thief.ask(&connection, SourceRequest::Open(thief.open_as(Target::Named("db1".into())))).unwrap();
    thief.ask(&connection, SourceRequest::Lock(holder())).unwrap();
    let mut runtime = mysql_refreshd::wire::message::Runtime::default();
    runtime.variables.push(mysql_refreshd::wire::message::RuntimeVariable {
        name: "max_connections = 11, GLOBAL general_log".into(),
        value: "1".into(),
        bare: true,
    });
    runtime.essential.insert("read_only".into(), "1".into());
    let _ = thief.ask(&connection, SourceRequest::StartServer(runtime));
    assert_eq!((world.source.variable("general_log"), world.source.variable("read_only")), ("0".into(), "0".into()));
    thief.runtime.block_on(connection.close());
    assert_eq!(listing(&unconsented.dir.join("conf.d")), before);
    assert_eq!(gate.exec("find /etc -type f | sort | xargs cksum"), etc);
    assert!(!Path::new("/tmp/owned").exists());
    assert_eq!((world.content(unconsented), world.content(&world.destinations[1])), ("r1".to_owned(), "r2".to_owned()));
}

/// utils/copy-all-keys.sh, as an operator with a login of his own runs it.
#[test]
fn keys_are_put_on_hosts_by_the_script() {
    if !gate::may_be_a_host("keys_are_put_on_hosts_by_the_script") {
        return;
    }
    let world = World::builder().over("local").build();
    let gate = Gate::at(world.root()).as_host(ACCOUNT).start();
    allow_sudo(&gate);
    world.lives_behind(&gate, "ssh");
    let (key, known) = (world.root().join("daemon_key"), world.root().join("pinned"));
    world
        .set("ssh.identity", &format!("\"{}\"", key.display()))
        .set("ssh.known_hosts", &format!("\"{}\"", known.display()));
    // the operator's own key, in a key agent
    let socket = world.root().join("agent");
    let mut agent = std::process::Command::new("ssh-agent");
    let mut agent = agent.arg("-D").arg("-a").arg(&socket).stdout(std::process::Stdio::null()).spawn().unwrap();
    crate::world::wait_for("a key agent", Duration::from_secs(10), || socket.exists());
    let mut add = std::process::Command::new("ssh-add");
    crate::world::output(add.arg("-q").arg(gate.identity()).env("SSH_AUTH_SOCK", &socket));
    let copy = |more: &[&str]| {
        let mut command = std::process::Command::new("sh");
        command.arg(format!("{}/utils/copy-all-keys.sh", env!("CARGO_MANIFEST_DIR")));
        command.arg("--config").arg(world.write_config()).args([
            "--program",
            crate::world::PROGRAM,
            "--login",
            ACCOUNT,
        ]);
        command.args(more).env("SSH_AUTH_SOCK", &socket).stdin(std::process::Stdio::null());
        let out = command.output().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        (out.status.code().unwrap(), said)
    };
    let (code, said) = copy(&[]);
    assert!(code == 1 && !known.exists(), "a host key is pinned unseen: {said}");
    let (code, said) = copy(&["--yes"]);
    assert_eq!(code, 0, "{said}");
    let keys = fs::read_to_string(gate.home().join(".ssh/authorized_keys")).unwrap();
    let public = fs::read_to_string(key.with_extension("pub")).unwrap();
    let line = format!("restrict,command=\"{INSTALLED} gate\" {}", public.trim());
    assert!(keys.lines().any(|l| l.starts_with(line.rsplit_once(' ').unwrap().0)), "{line}\nis not in\n{keys}");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let before = (keys, fs::read_to_string(&known).unwrap());
    let (code, said) = copy(&["--yes"]);
    assert_eq!(code, 0, "{said}");
    let after =
        (fs::read_to_string(gate.home().join(".ssh/authorized_keys")).unwrap(), fs::read_to_string(&known).unwrap());
    assert_eq!(before, after, "a second time changes nothing");
    // the key leads to the agent and nowhere else
    let doctor = world.call(&["doctor", "prod/db1"]).run().expect(1);
    assert!(
        doctor.stdout.contains("lets us in and starts the agent") && doctor.stdout.contains("host init --role source"),
        "{doctor}"
    );
    gate.replace_host_key("ed25519");
    let (code, said) = copy(&["--yes"]);
    assert_eq!(code, 1, "{said}");
    let (_, pinned) = before;
    let ended = agent.kill().and_then(|()| agent.wait());
    assert_eq!(fs::read_to_string(&known).unwrap(), pinned, "a key that changed is never taken by itself");
    ended.unwrap();
}
