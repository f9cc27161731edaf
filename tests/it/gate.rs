//! The way in to a host: a private, real OpenSSH sshd on loopback for one test. It leaves nothing outside its folder, and when
//! the gate is dropped or the test process dies, a guard ends the sshd and everything that was started through it.
//!
//! Plain, sshd is run by the account of the tests and lets that same account in; it sees the machine as it is:
//!
//! ```text
//! let gate = Gate::at(&sandbox.root).start();
//! gate.address() gate.port() gate.user() gate.identity() gate.known_hosts() gate.host_key("ed25519")
//! ```
//!
//! As a host (root only: ask [`may_be_a_host`] first), it lives in a mount namespace with a private /etc (a copy, in
//! [`Gate::etc`]: accounts, sudoers, machine-id, an empty mysql-refreshd/ on a filesystem of its own), a private /home and
//! /usr/local/bin (holding just the program under test as mysql-refreshd), a private /var/log; what is made anew in /run and
//! /var/lib stays in the gate's folder. There is one more account without rights, whom sudo obeys as the test says:
//!
//! ```text
//! if !gate::may_be_a_host("name of the test") { return; }
//! let gate = Gate::at(world.root()).as_host("refresher").sudoers("refresher ALL=(root) NOPASSWD: …").start();
//! gate.exec("visudo -c")                  // in the host, as root
//! ```
//!
//! Drop the gate before the folder it stands in. What sudo starts has no environment of the test: a world's janitor does not
//! recognise it, the guard does (by its mount namespace).

use std::fs;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::world::{self, Incarnation, PROGRAM, output};

/// The environment variable by which what was started through a gate is recognised.
const MARK: &str = "MR_GATE";

/// How long an sshd may take to come up, or to show a change.
const LIMIT: Duration = Duration::from_secs(20);

/// The user and group id of a host's extra account.
const UID: u32 = 61_234;

/// Starts its arguments, tells their process id, and waits until its standard input ends (the gate is dropped, or its owner
/// died). Then it ends what belongs to the gate: first the sshds, so that nothing new is begun.
const GUARD: &str = r#"
folder=$1; shift
"$@" </dev/null >>"$folder/log" 2>&1 &
listener=$!
echo "$listener" >"$folder/listener.new" && mv "$folder/listener.new" "$folder/listener"
cat >/dev/null
own=$(readlink /proc/self/ns/mnt)
# held open: the number of a namespace that is gone is given to the next one, which may be another gate's
theirs=
if exec 9<"/proc/$listener/ns/mnt"; then theirs=$(readlink /proc/self/fd/9); fi 2>/dev/null
sshds() {
  for fd in $(find /proc/[0-9]*/fd -lname "$folder/log" 2>/dev/null); do
    pid=${fd#/proc/}; pid=${pid%%/*}
    case $(readlink "/proc/$pid/exe") in */sshd*) echo "$pid" ;; esac
  done
}
others() {
  grep -lszxF -- "MR_GATE=$folder" /proc/[0-9]*/environ | cut -d/ -f3
  if [ -n "$theirs" ] && [ "$theirs" != "$own" ]; then
    number=${theirs#mnt:?}; find /proc/[0-9]*/ns/mnt -lname "mnt:?${number%?}?" 2>/dev/null | cut -d/ -f3
  fi
}
kill -9 "$listener" 2>/dev/null
for round in $(seq 50); do
  found=$({ sshds; others; } | grep -vx "$$" | sort -u)
  [ -n "$found" ] || break
  kill -9 $found 2>/dev/null
  sleep 0.02
done
"#;

/// Makes the host inside a new mount namespace, then becomes its remaining arguments. An empty account: a plain gate.
const INSIDE: &str = r#"
set -e
folder=$1 account=$2; shift 2
# all of a system folder stays visible, but for the names given; what is made anew is made in the gate's folder
graft() {
  system=$1; shift
  new=$folder/fs$system
  mkdir -p "$new"
  for entry in "$system"/* "$system"/.[!.]*; do
    name=${entry##*/}
    case " $* " in *" $name "*) continue ;; esac
    if [ -L "$entry" ]; then cp -P "$entry" "$new/"
    elif [ -d "$entry" ]; then mkdir -p "$new/$name"; mount --rbind "$entry" "$new/$name"
    elif [ -e "$entry" ]; then : >"$new/$name"; mount --bind "$entry" "$new/$name"
    fi
  done
  for name; do mkdir -p "$new/$name"; done
  mount --rbind "$new" "$system"
}
if [ -z "$account" ]; then
  [ -d /run/sshd ] || graft /run sshd
  if grep -q '^root:!' /etc/shadow; then
    sed 's/^root:![^:]*:/root:*:/' /etc/shadow >"$folder/shadow"
    mount --bind "$folder/shadow" /etc/shadow
  fi
else
  graft /run sshd sudo
  graft /var/lib sudo
  for part in /etc /home /usr/local/bin /var/log; do mount --bind "$folder/fs$part" "$part"; done
  mount -t tmpfs -o mode=0755 tmpfs /etc/mysql-refreshd
  # in a file: tests look for secrets on command lines
  [ ! -e "$folder/password" ] || echo "$account:$(cat "$folder/password")" | chpasswd
fi
exec "$@"
"#;

/// What a host's sudo obeys before the test's own lines.
const SUDOERS: &str = "Defaults env_reset\n\
     Defaults secure_path=\"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\"\n\
     root ALL=(ALL:ALL) ALL\n";

/// True if this process may make mount namespaces.
fn may_unshare() -> bool {
    static MAY: OnceLock<bool> = OnceLock::new();
    *MAY.get_or_init(|| {
        world::is_root()
            && Command::new("unshare")
                .args(["--mount", "--propagation", "slave", "true"])
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|s| s.success())
    })
}

/// True if gates can be hosts here; else says loudly that the test is skipped.
pub fn may_be_a_host(test: &str) -> bool {
    let may = may_unshare();
    if !may {
        eprintln!("SKIPPED {test}: a private host needs root and mount namespaces");
    }
    may
}

fn sshd() -> PathBuf {
    ["/usr/sbin/sshd", "/usr/bin/sshd", "/usr/local/sbin/sshd", "/sbin/sshd"]
        .map(PathBuf::from)
        .into_iter()
        .find(|p| p.exists())
        .expect("these tests need OpenSSH's sshd (package openssh-server)")
}

fn make_key(path: &Path, kind: &str, passphrase: &str) {
    for old in [path.to_owned(), path.with_extension("pub")] {
        let _ = fs::remove_file(old);
    }
    let comment = format!("{}@gate", path.file_name().unwrap().to_string_lossy());
    output(Command::new("ssh-keygen").args(["-q", "-t", kind, "-N", passphrase, "-C", &comment, "-f"]).arg(path));
}

/// The two words of a public key's file that name the key.
fn public_key(path: &Path) -> String {
    let text = fs::read_to_string(path.with_extension("pub")).unwrap();
    text.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

/// Puts a gate together.
pub struct Builder {
    folder: PathBuf,
    user_key: &'static str,
    passphrase: String,
    options: String,
    host_keys: Vec<&'static str>,
    lines: String,
    environment: Vec<String>,
    host: Option<String>,
    password: String,
    sudoers: String,
    machine_id: Option<String>,
}

#[allow(clippy::wrong_self_convention, reason = "`as_host` reads so where it is used")]
impl Builder {
    /// The user key's kind: ed25519 unless told otherwise.
    pub fn user_key(mut self, kind: &'static str) -> Self {
        self.user_key = kind;
        self
    }

    /// Protects the user key.
    pub fn passphrase(mut self, text: &str) -> Self {
        self.passphrase = text.to_owned();
        self
    }

    /// What stands before the key in authorized_keys, as in `restrict,command="…"`.
    pub fn authorized_with(mut self, options: &str) -> Self {
        self.options = options.to_owned();
        self
    }

    /// The kinds of host keys that are offered (ed25519, rsa, ecdsa); ed25519 alone unless told otherwise.
    pub fn host_keys(mut self, kinds: &[&'static str]) -> Self {
        self.host_keys = kinds.to_vec();
        self
    }

    /// One more line of sshd_config; it stands before the gate's own and therefore wins over them.
    pub fn line(mut self, line: &str) -> Self {
        self.lines += &format!("{line}\n");
        self
    }

    /// An environment variable for everything that is started through the gate, NAME=value (sudo drops it).
    pub fn environment(mut self, variable: &str) -> Self {
        self.environment.push(variable.to_owned());
        self
    }

    /// Makes it a host of its own, where this account without rights is let in.
    pub fn as_host(mut self, account: &str) -> Self {
        self.host = Some(account.to_owned());
        self
    }

    /// The password of a host's account, for sudo; none unless told otherwise.
    pub fn password(mut self, text: &str) -> Self {
        self.password = text.to_owned();
        self
    }

    /// More lines of a host's sudoers. Without any, sudo is denied.
    pub fn sudoers(mut self, lines: &str) -> Self {
        self.sudoers += &format!("{lines}\n");
        self
    }

    /// Another identity of the machine, 32 hexadecimal digits.
    pub fn machine_id(mut self, id: &str) -> Self {
        self.machine_id = Some(id.to_owned());
        self
    }

    /// Makes keys and folders, and starts sshd.
    pub fn start(self) -> Gate {
        assert!(self.host.is_none() || may_unshare(), "a host needs root: ask may_be_a_host first");
        let folder = self.folder.clone();
        fs::create_dir_all(&folder).unwrap();
        make_key(&folder.join("id"), self.user_key, &self.passphrase);
        for kind in &self.host_keys {
            make_key(&folder.join(format!("host_{kind}")), kind, "");
        }
        let line = format!("{} {} gate-user\n", self.options, public_key(&folder.join("id")));
        fs::write(folder.join("authorized_keys"), line.trim_start()).unwrap();
        if !self.password.is_empty() {
            fs::write(folder.join("password"), &self.password).unwrap();
        }
        if let Some(account) = &self.host {
            self.furnish(account);
        }
        // another process may take the port between the kernel's choice and sshd's bind
        for _ in 0..10 {
            if let Some(gate) = self.try_start(world::free_port()) {
                return gate;
            }
        }
        panic!("no sshd came up:\n{}", fs::read_to_string(folder.join("log")).unwrap_or_default());
    }

    /// The private parts of a host, to be mounted over the machine's.
    fn furnish(&self, account: &str) {
        let fs_of = |part: &str| self.folder.join("fs").join(part);
        for part in ["home", "usr/local/bin", "var/log"] {
            fs::create_dir_all(fs_of(part)).unwrap();
        }
        let etc = fs_of("etc");
        world::copy_tree(Path::new("/etc"), &etc);
        fs::create_dir_all(etc.join("mysql-refreshd")).unwrap();
        let append = |file: &str, line: String| {
            fs::OpenOptions::new().append(true).open(etc.join(file)).unwrap().write_all(line.as_bytes()).unwrap();
        };
        append("passwd", format!("{account}:x:{UID}:{UID}::/home/{account}:/bin/sh\n"));
        append("group", format!("{account}:x:{UID}:\n"));
        append("shadow", format!("{account}:*:20000:0:99999:7:::\n"));
        let _ = fs::remove_dir_all(etc.join("sudoers.d"));
        fs::create_dir_all(etc.join("sudoers.d")).unwrap();
        let sudoers = format!("{SUDOERS}{}@includedir /etc/sudoers.d\n", self.sudoers);
        let _ = fs::remove_file(etc.join("sudoers"));
        fs::write(etc.join("sudoers"), sudoers).unwrap();
        output(Command::new("chmod").arg("0440").arg(etc.join("sudoers")));
        if let Some(id) = &self.machine_id {
            let _ = fs::remove_file(etc.join("machine-id"));
            fs::write(etc.join("machine-id"), format!("{id}\n")).unwrap();
        }
        let program = fs_of("usr/local/bin").join("mysql-refreshd");
        output(Command::new("cp").arg("--reflink=auto").arg(PROGRAM).arg(&program));
        output(Command::new("chown").arg("root:root").arg(&program));
        output(Command::new("chmod").arg("0755").arg(&program));
        let ssh = fs_of("home").join(account).join(".ssh");
        fs::create_dir_all(&ssh).unwrap();
        // there, and as a person would have put it there
        fs::rename(self.folder.join("authorized_keys"), ssh.join("authorized_keys")).unwrap();
        output(Command::new("chown").arg("-R").arg(format!("{UID}:{UID}")).arg(fs_of("home").join(account)));
        output(Command::new("chmod").args(["-R", "go-rwx"]).arg(fs_of("home").join(account)));
    }

    fn write_config(&self, port: u16) {
        let folder = self.folder.display();
        let user = self.host.clone().unwrap_or_else(|| world::me().to_owned());
        let keys =
            if self.host.is_some() { ".ssh/authorized_keys".into() } else { format!("{folder}/authorized_keys") };
        let mut text = format!(
            "{}Port {port}\nListenAddress 127.0.0.1\nPidFile none\nLogLevel VERBOSE\nStrictModes no\nUsePAM no\nUseDNS no\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n\
             AllowUsers {user}\nAuthorizedKeysFile {keys}\nMaxStartups 1000\nMaxSessions 1000\nPrintMotd no\n\
             Subsystem sftp internal-sftp\nSetEnv {MARK}={folder}",
            self.lines
        );
        for variable in &self.environment {
            text += &format!(" {variable}");
        }
        text += "\n";
        for kind in &self.host_keys {
            text += &format!("HostKey {folder}/host_{kind}\n");
        }
        fs::write(self.folder.join("sshd_config"), text).unwrap();
    }

    fn try_start(&self, port: u16) -> Option<Gate> {
        let folder = &self.folder;
        self.write_config(port);
        let _ = fs::remove_file(folder.join("listener"));
        fs::write(folder.join("log"), "").unwrap();
        let mut guard = Command::new("bash");
        guard.args(["-c", GUARD, "guard"]).arg(folder).process_group(0);
        let namespace = may_unshare();
        if namespace {
            guard.args(["unshare", "--mount", "--propagation", "slave", "env"]);
            guard.arg(format!("{MARK}={}", folder.display())).args(["sh", "-c", INSIDE, "inside"]).arg(folder);
            guard.arg(self.host.as_deref().unwrap_or_default());
        } else {
            guard.arg("env").arg(format!("{MARK}={}", folder.display()));
        }
        guard.arg(sshd()).arg("-D").arg("-f").arg(folder.join("sshd_config")).arg("-E").arg(folder.join("log"));
        guard.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let gate = Gate {
            folder: folder.clone(),
            guard: Some(guard.spawn().unwrap()),
            port,
            user: self.host.clone().unwrap_or_else(|| world::me().to_owned()),
            host_keys: self.host_keys.clone(),
            namespace,
        };
        world::wait_for("a guard that has started sshd", LIMIT, || folder.join("listener").exists());
        let listener = gate.listener();
        let begun = Instant::now();
        while !gate.log().contains(&format!("Server listening on 127.0.0.1 port {port}")) {
            if !listener.is_some_and(Incarnation::lives) {
                // what else than a taken port would be a fault of the gate
                assert!(gate.log().contains("in use"), "no sshd:\n{}", gate.log());
                return None;
            }
            assert!(begun.elapsed() < LIMIT, "sshd does not listen:\n{}", gate.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        fs::write(gate.known_hosts(), gate.known_hosts_lines()).unwrap();
        Some(gate)
    }
}

/// A running sshd and all that belongs to it.
pub struct Gate {
    folder: PathBuf,
    guard: Option<Child>,
    port: u16,
    user: String,
    host_keys: Vec<&'static str>,
    namespace: bool,
}

impl Gate {
    /// A gate in a new folder of its own below `root`.
    pub fn at(root: &Path) -> Builder {
        Builder {
            folder: root.join(format!("gate{}", world::unique())),
            user_key: "ed25519",
            passphrase: String::new(),
            options: String::new(),
            host_keys: vec!["ed25519"],
            lines: String::new(),
            environment: Vec::new(),
            host: None,
            password: String::new(),
            sudoers: String::new(),
            machine_id: None,
        }
    }

    /// The folder with keys, configuration and log.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where it listens.
    pub fn address(&self) -> &'static str {
        "127.0.0.1"
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Who is let in.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The private key of who is let in; the public one stands beside it (.pub).
    pub fn identity(&self) -> PathBuf {
        self.folder.join("id")
    }

    /// A file that knows this host by all its keys, and nothing else.
    pub fn known_hosts(&self) -> PathBuf {
        self.folder.join("known_hosts")
    }

    /// The content of such a file.
    pub fn known_hosts_lines(&self) -> String {
        let line = |kind: &&str| format!("[127.0.0.1]:{} {}\n", self.port, self.host_key(kind));
        self.host_keys.iter().map(line).collect()
    }

    /// The public host key of a kind, as in `ssh-ed25519 AAAA…`.
    pub fn host_key(&self, kind: &str) -> String {
        public_key(&self.folder.join(format!("host_{kind}")))
    }

    /// Lets sshd take a new host key, as after a reinstallation; known_hosts keeps the old one.
    pub fn replace_host_key(&self, kind: &str) {
        make_key(&self.folder.join(format!("host_{kind}")), kind, "");
        world::signal(self.listener().expect("a listening sshd").pid, "-HUP");
        let new = self.host_key(kind);
        world::wait_for("the new host key", LIMIT, || {
            let mut scan = Command::new("ssh-keyscan");
            scan.args(["-T", "2", "-t", kind, "-p", &self.port.to_string(), "127.0.0.1"]).stdin(Stdio::null());
            String::from_utf8_lossy(&scan.output().unwrap().stdout).contains(&new)
        });
    }

    /// A host's /etc, for files to be put in before or while it runs (its mysql-refreshd/ is only seen from inside).
    pub fn etc(&self) -> PathBuf {
        self.folder.join("fs/etc")
    }

    /// A host's /usr/local/bin.
    pub fn local_bin(&self) -> PathBuf {
        self.folder.join("fs/usr/local/bin")
    }

    /// The home of a host's account.
    pub fn home(&self) -> PathBuf {
        self.folder.join("fs/home").join(&self.user)
    }

    /// A command that runs where sshd runs (in a host: as root, in its namespace).
    pub fn command(&self, program: &str) -> Command {
        let mut command = if self.namespace {
            let mut enter = Command::new("nsenter");
            enter.arg(format!("--mount=/proc/{}/ns/mnt", self.listener().expect("a listening sshd").pid)).arg(program);
            enter
        } else {
            Command::new(program)
        };
        command.env(MARK, &self.folder).stdin(Stdio::null());
        command
    }

    /// Runs a shell script where sshd runs.
    pub fn try_exec(&self, script: &str) -> Output {
        self.command("sh").args(["-c", script]).output().unwrap()
    }

    /// The same for one that must succeed; returns what it wrote.
    #[track_caller]
    pub fn exec(&self, script: &str) -> String {
        let out = self.try_exec(script);
        assert!(out.status.success(), "{script}: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    /// Runs a command over the system's `ssh`, as a check of the gate itself.
    pub fn ssh(&self, script: &str) -> Output {
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=yes"]);
        ssh.arg("-o").arg(format!("UserKnownHostsFile={}", self.known_hosts().display()));
        ssh.arg("-i").arg(self.identity()).args(["-p", &self.port.to_string(), "-l", &self.user, "127.0.0.1", script]);
        ssh.env_remove("SSH_AUTH_SOCK").stdin(Stdio::null()).output().unwrap()
    }

    /// Cuts every connection by ending sshd's process of it; what runs on the host is left alone. Returns how many processes
    /// that were.
    pub fn kill_sessions(&self) -> usize {
        let sshds = self.sshds();
        sshds.iter().for_each(|s| world::signal(s.pid, "-KILL"));
        world::wait_for("cut connections", LIMIT, || !sshds.iter().any(|s| s.lives()));
        sshds.len()
    }

    /// Ends the listening sshd: new connections are refused, old ones stay.
    pub fn stop_listening(&self) {
        if let Some(listener) = self.listener() {
            world::signal(listener.pid, "-KILL");
            world::wait_for("an end of listening", LIMIT, || !listener.lives());
        }
    }

    /// Everything that sshd has written.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    fn listener(&self) -> Option<Incarnation> {
        Incarnation::of(fs::read_to_string(self.folder.join("listener")).ok()?.trim().parse().ok()?)
    }

    /// The sshds of connections. They overwrite their environment, but hold the log open.
    fn sshds(&self) -> Vec<Incarnation> {
        let listener = self.listener().map_or(0, |l| l.pid);
        let log = self.folder.join("log");
        let holds_log = |pid: u32| {
            let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            fds.into_iter().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == log))
        };
        world::processes()
            .filter(|p| p.program.starts_with("sshd") && p.pid != listener && holds_log(p.pid))
            .filter_map(|p| Incarnation::of(p.pid))
            .collect()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        if let Some(mut guard) = self.guard.take() {
            drop(guard.stdin.take());
            let _ = guard.wait();
        }
        if std::thread::panicking() {
            eprintln!("==== sshd at {}\n{}", self.folder.display(), world::tail(&self.log(), 30));
        }
    }
}

/// The gate's processes, seen from the test.
#[cfg(test)]
mod itself {
    use super::*;
    use crate::world::Sandbox;

    fn text(out: &Output) -> String {
        format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
    }

    /// Processes that were started through a gate, by a word in their command line.
    fn running(word: &str) -> usize {
        world::processes().filter(|p| p.args.iter().any(|a| a == word)).count()
    }

    #[test]
    fn a_plain_gate_lets_the_tests_account_in_and_leaves_nothing() {
        let sandbox = Sandbox::new();
        let gate = Gate::at(&sandbox.root).user_key("rsa").environment("MR_COLOUR=green").start();
        let said = text(&gate.ssh("id -un; echo $MR_COLOUR"));
        assert_eq!(said, format!("{}\ngreen\n", world::me()));
        let seconds = format!("7{:05}", gate.port());
        gate.ssh(&format!("sleep {seconds} >/dev/null 2>&1 & exec true"));
        std::thread::scope(|s| {
            let long = s.spawn(|| gate.ssh(&format!("sleep {seconds}")));
            world::wait_for("two sleepers", LIMIT, || running(&seconds) == 2);
            assert!(gate.kill_sessions() >= 1);
            assert!(!long.join().unwrap().status.success());
        });
        assert_eq!(text(&gate.ssh("echo again")), "again\n");
        gate.replace_host_key("ed25519");
        assert!(text(&gate.ssh("true")).contains("HOST IDENTIFICATION HAS CHANGED"));
        fs::write(gate.known_hosts(), gate.known_hosts_lines()).unwrap();
        assert_eq!(text(&gate.ssh("echo known")), "known\n");
        gate.stop_listening();
        assert!(text(&gate.ssh("true")).contains("refused"));
        drop(gate);
        assert_eq!(running(&seconds), 0);
    }

    #[test]
    fn a_host_is_private_and_sudo_obeys() {
        if !may_be_a_host("a_host_is_private_and_sudo_obeys") {
            return;
        }
        let sandbox = Sandbox::new();
        let before = fs::read("/etc/passwd").unwrap();
        let id = "0123456789abcdef0123456789abcdef";
        let gate = Gate::at(&sandbox.root)
            .as_host("refresher")
            .sudoers("refresher ALL=(root:root) NOPASSWD: /usr/bin/id -u")
            .password("open sesame")
            .machine_id(id)
            .start();
        assert_eq!(text(&gate.ssh("id -un; id -u; pwd")), format!("refresher\n{UID}\n/home/refresher\n"));
        assert_eq!(text(&gate.ssh("sudo -n id -u; cat /etc/machine-id")), format!("0\n{id}\n"));
        assert!(text(&gate.ssh("sudo -n id -g")).contains("password is required"));
        assert_eq!(text(&gate.ssh("/usr/local/bin/mysql-refreshd --version | cut -d' ' -f1")), "mysql-refreshd\n");
        assert!(gate.local_bin().join("mysql-refreshd").exists());
        assert_eq!(gate.exec("ls /etc/mysql-refreshd"), "");
        gate.exec(
            "visudo -qc && mkdir -p /var/lib/mysql-refreshd /run/gate-of-a-test && echo x > /etc/mysql-refreshd/x",
        );
        gate.exec("useradd -m somebody && echo 'refresher ALL=(ALL) ALL' > /etc/sudoers.d/all");
        assert!(fs::read_to_string(gate.etc().join("passwd")).unwrap().contains("somebody"));
        let said = text(&gate.ssh("echo 'open sesame' | sudo -S -p 'word?' id -g"));
        assert!(said.starts_with("0\n"), "{said}");
        let seconds = format!("8{:05}", gate.port());
        gate.ssh(&format!("sudo -n id -u; sleep {seconds} >/dev/null 2>&1 & exec true"));
        world::wait_for("a sleeper", LIMIT, || running(&seconds) == 1);
        drop(gate);
        assert_eq!(running(&seconds), 0);
        assert_eq!(fs::read("/etc/passwd").unwrap(), before);
        for trace in ["/run/gate-of-a-test", "/home/somebody", "/etc/sudoers.d/all"] {
            assert!(!Path::new(trace).exists(), "{trace}");
        }
    }
}
