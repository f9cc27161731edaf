//! The black-box world: real MariaDB servers as plain processes in a short temporary folder, a configuration that names
//! them, and the program run against it with folders of its own.
//!
//! A world belongs to one test. Whatever happens (a failed assertion, a killed test process), a janitor process ends
//! every server and every process of the program that belongs to the world, and removes the folder; it recognises them by the
//! world's folder in their command line or environment. `MR_KEEP=1` keeps the folder for a look.

use std::cell::{Cell, RefCell};
use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::client;
use crate::gate::Gate;
use crate::poller::Poller;
use crate::template;

/// The transport by which worlds reach their hosts: `MR_OVER=ssh`, `openssh`, or `mixed` (the source by the one, destinations by
/// the other); None: they are local.
pub fn over() -> Option<&'static str> {
    static OVER: OnceLock<Option<String>> = OnceLock::new();
    let read = || std::env::var("MR_OVER").ok().filter(|over| over != "local" && !over.is_empty());
    OVER.get_or_init(read).as_deref()
}

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_mysql-refreshd");

/// How long one execution of the program may take before it counts as hanging.
pub const RUN_LIMIT: Duration = Duration::from_secs(90);

/// How long a server may take to answer or to be gone.
pub const SERVER_LIMIT: Duration = Duration::from_secs(30);

/// The environment variable by which everything a world starts is recognised.
const MARK: &str = "MR_WORLD";

/// The name of the account that runs the tests; its SQL account of the same name authenticates by socket.
pub fn me() -> &'static str {
    static ME: OnceLock<String> = OnceLock::new();
    ME.get_or_init(|| output(Command::new("id").arg("-un")).trim().to_owned())
}

/// True if the tests run as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs a command that must succeed and returns what it wrote on standard output.
pub fn output(command: &mut Command) -> String {
    let out = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(out.status.success(), "{command:?}: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Copies a folder with everything the filesystem knows of it.
pub fn copy_tree(from: &Path, to: &Path) {
    output(Command::new("cp").args(["-a", "--reflink=auto"]).arg(from).arg(to));
}

/// Waits until `done` holds; panics with `what` after `limit`.
pub fn wait_for(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let since = Instant::now();
    while !done() {
        assert!(since.elapsed() < limit, "not within {limit:?}: {what}");
        sleep(Duration::from_millis(20));
    }
}

/// A free TCP port on the loopback address, kept apart from other worlds' by the kernel's choice.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// One process, named so that a recycled process id is not mistaken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Incarnation {
    /// The process id.
    pub pid: u32,
    started: u64,
}

impl Incarnation {
    /// The process with this id, if it lives (a zombie does not).
    pub fn of(pid: u32) -> Option<Incarnation> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        if matches!(fields.first(), Some(&("Z" | "X"))) {
            return None;
        }
        Some(Incarnation { pid, started: fields.get(19)?.parse().ok()? })
    }

    /// True if this very process still lives.
    pub fn lives(self) -> bool {
        Incarnation::of(self.pid) == Some(self)
    }
}

/// Sends a signal to one process.
pub fn signal(pid: u32, name: &str) {
    let _ = Command::new("kill").args([name, &pid.to_string()]).stderr(Stdio::null()).status();
}

/// One MariaDB server of a world.
#[derive(Debug, Clone)]
pub struct Server {
    /// Its short name, also the name of its host in the configuration.
    pub name: String,
    /// The folder that holds its datadir, socket, option file and logs.
    pub dir: PathBuf,
    /// The folder of the world.
    root: PathBuf,
    /// The test itself keeps it down.
    held: Arc<AtomicBool>,
}

impl Server {
    /// A server in `root/name` with a datadir copied from a template, not started.
    pub fn create(root: &Path, name: &str, template: &Path, options: &str) -> Server {
        let dir = root.join(name);
        fs::create_dir_all(&dir).unwrap();
        Server::create_in(root, name, dir, template, options)
    }

    /// The same in a folder that exists already (a mounted filesystem, for instance).
    pub fn create_in(root: &Path, name: &str, dir: PathBuf, template: &Path, options: &str) -> Server {
        fs::create_dir_all(dir.join("conf.d")).unwrap();
        let server = Server::adopt(root, name, dir);
        copy_tree(template, &server.datadir());
        server.write_options(options);
        server
    }

    /// A server in a folder that has its datadir already; without an option file.
    pub fn adopt(root: &Path, name: &str, dir: PathBuf) -> Server {
        Server { name: name.to_owned(), dir, root: root.to_owned(), held: Arc::default() }
    }

    /// Writes the option file: the fixed part, then `options`, then the folder of drop-ins.
    pub fn write_options(&self, options: &str) {
        // A tmpdir of its own: a server that starts removes other servers' temporary tables from a shared one.
        fs::create_dir_all(self.dir.join("tmp")).unwrap();
        let d = self.dir.display();
        let user = if is_root() { "user=root\n" } else { "" };
        let net = if options.contains("port=") { "bind-address=127.0.0.1\n" } else { "skip-networking\n" };
        let text = format!(
            "[mariadbd]\n{user}datadir={d}/data\nsocket={d}/s\npid-file={d}/pid\nlog-error={d}/err.log\ntmpdir={d}/tmp\n{net}\
             {}{options}\n!includedir {d}/conf.d\n",
            template::SMALL
        );
        fs::write(self.dir.join("my.cnf"), text).unwrap();
    }

    /// The data directory.
    pub fn datadir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// The unix socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("s")
    }

    /// The option file.
    pub fn cnf(&self) -> PathBuf {
        self.dir.join("my.cnf")
    }

    /// The option file that the program generates.
    pub fn dropin(&self) -> PathBuf {
        self.dir.join("conf.d/90-refreshd.cnf")
    }

    /// The program's work folder beside the datadir.
    pub fn work(&self) -> PathBuf {
        self.dir.join(".data.refreshd")
    }

    /// The server's error log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("err.log")).unwrap_or_default()
    }

    /// Every living server process of this datadir, by its option file or its datadir on the command line.
    pub fn processes(&self) -> Vec<Incarnation> {
        let cnf = format!("--defaults-file={}", self.cnf().display());
        let data = format!("--datadir={}", self.datadir().display());
        processes_of(|program| program.starts_with("mariadbd"))
            .filter(|p| p.args.iter().any(|a| *a == cnf || *a == data))
            .filter_map(|p| Incarnation::of(p.pid))
            .collect()
    }

    /// The process that serves, if exactly one does.
    pub fn process(&self) -> Option<Incarnation> {
        let all = self.processes();
        assert!(all.len() < 2, "two servers of {}: {all:?}", self.name);
        all.first().copied()
    }

    /// Starts the server, detached from the test process as a service manager's servers are, and waits until it answers.
    pub fn start(&self) -> Incarnation {
        self.start_with(&[])
    }

    /// Starts the server with more arguments.
    pub fn start_with(&self, arguments: &[&str]) -> Incarnation {
        // setsid forks: were the server our own child, it would stay a zombie after its end.
        let status = Command::new("setsid")
            .arg("-f")
            .arg(template::server())
            .arg(format!("--defaults-file={}", self.cnf().display()))
            .args(arguments)
            .env(MARK, &self.root)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        self.wait_up(SERVER_LIMIT);
        self.held.store(false, Ordering::Relaxed);
        self.process().expect("a server that answers has a process")
    }

    /// True while the test keeps it down: from `stop` to `start`.
    pub fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    /// Stops the server cleanly and waits until it is gone.
    pub fn stop(&self) {
        self.held.store(true, Ordering::Relaxed);
        if let Some(process) = self.process() {
            signal(process.pid, "-TERM");
            wait_for(&format!("{} stopped", self.name), SERVER_LIMIT, || !process.lives());
        }
    }

    /// True if the server answers a query now. Where nobody listens, no client need be started to learn that.
    pub fn answers(&self) -> bool {
        UnixStream::connect(self.socket()).is_ok() && self.try_sql("SELECT 1").is_ok()
    }

    /// Waits until the server answers; panics with its log.
    pub fn wait_up(&self, limit: Duration) {
        let since = Instant::now();
        while !self.answers() {
            assert!(
                since.elapsed() < limit,
                "{} does not answer after {limit:?}; its log ends with\n{}",
                self.name,
                tail(&self.log(), 40)
            );
            sleep(Duration::from_millis(20));
        }
    }

    fn client(&self) -> Command {
        let mut command = Command::new("mariadb");
        command.args([
            "--no-defaults",
            "--batch",
            "--skip-column-names",
            "--raw",
            "--default-character-set=utf8mb4",
            "--connect-timeout=10",
        ]);
        command.arg(format!("--socket={}", self.socket().display())).arg(format!("--user={}", me()));
        command.env_remove("MYSQL_PWD").env(MARK, &self.root);
        command
    }

    /// Runs statements through the socket; the rows as text, or the client's error.
    pub fn try_sql(&self, sql: &str) -> Result<String, String> {
        if client::takes(sql) { client::run(&self.socket(), me(), sql) } else { feed(&mut self.client(), sql) }
    }

    /// Runs statements that must succeed.
    pub fn sql(&self, sql: &str) -> String {
        self.try_sql(sql).unwrap_or_else(|e| panic!("{}: {e}\n{}\n{}", self.name, tail(sql, 3), tail(&self.log(), 5)))
    }

    /// Logs in with a password, as a person would, and asks who it is.
    pub fn log_in(&self, user: &str, password: &str) -> Result<String, String> {
        let mut command = self.client();
        command.arg(format!("--user={user}")).arg("--skip-ssl").env("MYSQL_PWD", password);
        feed(&mut command, "SELECT CURRENT_USER()")
    }

    /// One system variable.
    pub fn variable(&self, name: &str) -> String {
        self.sql(&format!("SELECT @@GLOBAL.{name}")).trim().to_owned()
    }

    /// A client that stays connected and idle after the statements, until it is dropped.
    pub fn idle_client(&self, sql: &str) -> IdleClient {
        let done = self.root.join(format!("idle-{}", unique()));
        let mut client = self.client();
        client.args(["--unbuffered", "--wait"]).stdin(Stdio::piped()).stdout(fs::File::create(&done).unwrap());
        let mut child = client.stderr(Stdio::null()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        writeln!(stdin, "{sql};\nSELECT 'idle now';").unwrap();
        stdin.flush().unwrap();
        wait_for("an idle client", SERVER_LIMIT, || fs::read_to_string(&done).unwrap().contains("idle now"));
        IdleClient { child, stdin: Some(stdin), done }
    }
}

/// A connected client doing nothing.
pub struct IdleClient {
    child: Child,
    stdin: Option<ChildStdin>,
    done: PathBuf,
}

impl IdleClient {
    /// Runs more statements on the same connection; does not wait for them.
    pub fn tell(&mut self, sql: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        writeln!(stdin, "{sql};").unwrap();
        stdin.flush().unwrap();
    }
}

impl Drop for IdleClient {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.done);
    }
}

fn feed(command: &mut Command, text: &str) -> Result<String, String> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let text = text.to_owned();
    let writer = std::thread::spawn(move || {
        let _ = stdin.write_all(text.as_bytes());
    });
    let out = child.wait_with_output().unwrap();
    writer.join().unwrap();
    if out.status.success() {
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&out.stderr).trim().to_owned())
    }
}

/// One line of the process table.
pub struct Process {
    /// The process id.
    pub pid: u32,
    /// The name of the executable's file, empty if it may not be known.
    pub program: String,
    /// The command line.
    pub args: Vec<String>,
    /// The raw command line and environment, for a search.
    pub raw: Vec<u8>,
}

/// All processes of the machine that can be read.
pub fn processes() -> impl Iterator<Item = Process> {
    processes_of(|_| true)
}

/// Those of them whose program's name is as wanted: only of these the rest is read.
pub fn processes_of(wanted: impl Fn(&str) -> bool) -> impl Iterator<Item = Process> {
    fs::read_dir("/proc").unwrap().filter_map(move |entry| {
        let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let program = exe.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !wanted(&program) {
            return None;
        }
        let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let cmdline = read("cmdline");
        let args = cmdline.split(|b| *b == 0).map(|a| String::from_utf8_lossy(a).into_owned()).collect();
        let mut raw = cmdline;
        raw.extend(read("environ"));
        Some(Process { pid, program, args, raw })
    })
}

/// True if `haystack` holds `needle`.
pub fn holds(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|w| w == needle)
}

/// The last lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// A number this process has not had.
pub fn unique() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A temporary folder whose processes do not outlive its owner.
pub struct Sandbox {
    /// The folder; short, for the sake of unix sockets.
    pub root: PathBuf,
    janitor: RefCell<Option<Child>>,
}

/// Waits for its standard input to end (the owner dropped it or died), then ends what belongs to the folder. It lives in a
/// process group of its own, so that a signal to the tests' group does not take it along.
const JANITOR: &str = r#"
root=$1
cat >/dev/null
for round in 1 2 3 4 5; do
  found=
  for file in $(grep -lsF -- "$root" /proc/[0-9]*/cmdline /proc/[0-9]*/environ); do
    pid=${file#/proc/}; pid=${pid%%/*}
    name=$(readlink "/proc/$pid/exe") || continue
    case ${name##*/} in
      mariadb*|mysqld*|mysql-refreshd*|agent-*|setsid|sleep) kill -9 "$pid" 2>/dev/null && found=1 ;;
    esac
  done
  [ -n "$found" ] || break
  sleep 0.1
done
if [ -z "$MR_KEEP" ]; then
  grep -F " $root/" /proc/mounts | cut -d' ' -f2 | while read -r point; do umount -l "$point"; done
  rm -rf -- "$root"
fi
"#;

impl Sandbox {
    /// A new folder with its janitor.
    pub fn new() -> Sandbox {
        Sandbox::below(Path::new("/tmp"))
    }

    /// The same in memory, where that has room.
    pub fn in_memory() -> Sandbox {
        let memory = Path::new("/dev/shm");
        let roomy = rustix::fs::statvfs(memory).is_ok_and(|stat| stat.f_bavail * stat.f_frsize > 4 << 30);
        Sandbox::below(if roomy { memory } else { Path::new("/tmp") })
    }

    fn below(folder: &Path) -> Sandbox {
        let root = output(Command::new("mktemp").arg("-d").arg(folder.join("mrXXXXXX"))).trim().into();
        let mut janitor = Command::new("bash");
        janitor.args(["-c", JANITOR, "janitor"]).arg(&root).process_group(0);
        janitor.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Sandbox { root, janitor: RefCell::new(Some(janitor.spawn().unwrap())) }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if let Some(mut janitor) = self.janitor.borrow_mut().take() {
            drop(janitor.stdin.take());
            let _ = janitor.wait();
        }
    }
}

/// A file that the program creates when it reaches a point, and whose removal lets it go on.
pub struct Hold {
    /// The file.
    pub file: PathBuf,
}

impl Hold {
    /// Waits until the program has reached the point.
    pub fn reached(&self, running: &mut Running) {
        let since = Instant::now();
        while !self.file.exists() {
            assert!(since.elapsed() < RUN_LIMIT, "never reached: {}\n{}", self.file.display(), running.so_far());
            if let Some(status) = running.ended() {
                panic!("ended ({status}) before {}\n{}", self.file.display(), running.so_far());
            }
            sleep(Duration::from_millis(10));
        }
    }

    /// Lets the program go on.
    pub fn release(&self) {
        fs::remove_file(&self.file).unwrap();
    }
}

/// What one execution of the program left.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

impl Outcome {
    /// The exit code, or 128 + signal as a shell would say.
    pub fn code(&self) -> i32 {
        self.status.code().or(self.status.signal().map(|s| 128 + s)).unwrap()
    }

    /// Checks the exit code.
    #[track_caller]
    pub fn expect(self, code: i32) -> Outcome {
        self.expect_any(&[code])
    }

    /// Checks that the exit code is one of several.
    #[track_caller]
    pub fn expect_any(self, codes: &[i32]) -> Outcome {
        assert!(codes.contains(&self.code()), "expected exit code {codes:?}, got {}\n{self}", self.code());
        self
    }

    /// Checks that standard error names every one of these, whatever the case of letters.
    #[track_caller]
    pub fn says(self, words: &[&str]) -> Outcome {
        let text = self.stderr.to_lowercase();
        for word in words {
            assert!(text.contains(&word.to_lowercase()), "standard error does not say {word:?}\n{self}");
        }
        self
    }

    /// Standard output as JSON objects, one a line.
    pub fn events(&self) -> Vec<serde_json::Value> {
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("no JSON ({e}): {line}"));
        self.stdout.lines().filter(|l| !l.is_empty()).map(parse).collect()
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} after {:?}\n-- stdout\n{}\n-- stderr\n{}",
            self.status,
            self.took,
            tail(&self.stdout, 40),
            tail(&self.stderr, 40)
        )
    }
}

/// An execution of the program that goes on.
pub struct Running {
    child: Child,
    out: PathBuf,
    err: PathBuf,
    since: Instant,
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// What it has written so far.
    pub fn so_far(&self) -> String {
        let read = |p: &Path| fs::read_to_string(p).unwrap_or_default();
        format!("-- stdout\n{}\n-- stderr\n{}", tail(&read(&self.out), 60), tail(&read(&self.err), 60))
    }

    /// Waits for its end; a hang is killed and fails the test.
    pub fn wait(mut self) -> Outcome {
        let status = loop {
            if let Some(status) = self.ended() {
                break status;
            }
            if self.since.elapsed() > RUN_LIMIT {
                self.child.kill().unwrap();
                self.child.wait().unwrap();
                panic!("hangs: no end within {RUN_LIMIT:?}\n{}", self.so_far());
            }
            sleep(Duration::from_millis(10));
        };
        let read = |p: &Path| fs::read_to_string(p).unwrap_or_default();
        Outcome { status, stdout: read(&self.out), stderr: read(&self.err), took: self.since.elapsed() }
    }
}

/// A call of the program being put together.
pub struct Call<'w> {
    world: &'w World,
    command: Command,
    faults: Vec<String>,
}

impl Call<'_> {
    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Gives another command the environment of this one.
    pub fn like<'c>(&self, other: &'c mut Command) -> &'c mut Command {
        for (name, value) in self.command.get_envs() {
            match value {
                Some(value) => other.env(name, value),
                None => other.env_remove(name),
            };
        }
        other.args(self.command.get_args())
    }

    /// Adds fail points, as in `controller:stop:after=kill`.
    pub fn fault(mut self, points: &str) -> Self {
        self.faults.push(points.to_owned());
        self
    }

    /// Adds a point at which the program waits.
    pub fn hold(mut self, point: &str) -> (Self, Hold) {
        let hold = Hold { file: self.world.root().join(format!("hold-{}", unique())) };
        self.faults.push(format!("{point}=hold:{}", hold.file.display()));
        (self, hold)
    }

    /// Starts it and does not wait. Output goes to files, so that no process that inherits it can block or delay.
    pub fn spawn(mut self) -> Running {
        let n = self.world.calls.get();
        self.world.calls.set(n + 1);
        let (out, err) = (self.world.logs().join(format!("{n:03}.out")), self.world.logs().join(format!("{n:03}.err")));
        if !self.faults.is_empty() {
            self.command.env("MYSQL_REFRESHD_FAIL", self.faults.join(","));
        }
        let head = format!("{:?}\n", self.command.get_args().collect::<Vec<_>>());
        fs::write(self.world.logs().join(format!("{n:03}.args")), head + &self.faults.join("\n")).unwrap();
        self.command.stdin(Stdio::null());
        self.command.stdout(fs::File::create(&out).unwrap()).stderr(fs::File::create(&err).unwrap());
        let child = self.command.spawn().unwrap();
        Running { child, out, err, since: Instant::now() }
    }

    /// Runs it to its end.
    pub fn run(self) -> Outcome {
        self.spawn().wait()
    }
}

/// Which content a world's server gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// The shop with all kinds of objects, and production's accounts.
    Production,
    /// Research data and research's accounts.
    Research,
    /// Nothing but the system schemas.
    Empty,
}

/// Puts a world together.
pub struct Builder {
    destinations: usize,
    source_options: String,
    destination_options: String,
    source_content: Content,
    destination_tmpfs: Option<&'static str>,
    source_made_with: &'static str,
    destination_made_with: &'static str,
    over: Option<&'static str>,
    in_memory: bool,
}

impl Builder {
    /// Not on a disk: for tests that are about who does what when, and wait for many files to be made durable.
    pub fn in_memory(mut self) -> Self {
        self.in_memory = true;
        self
    }

    /// The transport by which the hosts are reached, whatever `MR_OVER` says.
    pub fn over(mut self, transport: &'static str) -> Self {
        self.over = (transport != "local").then_some(transport);
        self
    }

    /// How many destinations there are: r1, r2, …
    pub fn destinations(mut self, count: usize) -> Self {
        self.destinations = count;
        self
    }

    /// More lines in the source's option file.
    pub fn source_options(mut self, lines: &str) -> Self {
        self.source_options += &format!("{lines}\n");
        self
    }

    /// More lines in every destination's option file.
    pub fn destination_options(mut self, lines: &str) -> Self {
        self.destination_options += &format!("{lines}\n");
        self
    }

    /// What the source holds; the shop unless told otherwise.
    pub fn source_content(mut self, content: Content) -> Self {
        self.source_content = content;
        self
    }

    /// Puts each destination on a filesystem of its own of this size (as root only).
    pub fn destination_tmpfs(mut self, size: &'static str) -> Self {
        self.destination_tmpfs = Some(size);
        self
    }

    /// Options with which the destinations' datadirs are made from the start (page size and the like).
    pub fn destination_made_with(mut self, lines: &'static str) -> Self {
        self.destination_made_with = lines;
        self
    }

    /// The same for source and destinations.
    pub fn made_with(mut self, lines: &'static str) -> Self {
        self.source_made_with = lines;
        self.destination_made_with(lines)
    }

    fn folder(root: &Path, name: &str, tmpfs: Option<&str>) -> PathBuf {
        let dir = root.join(name);
        fs::create_dir_all(&dir).unwrap();
        if let Some(size) = tmpfs {
            output(
                Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size},mode=0755"), "tmpfs"]).arg(&dir),
            );
        }
        dir
    }

    /// Makes the folders, starts the servers, writes the configuration.
    pub fn build(self) -> World {
        let sandbox = if self.in_memory { Sandbox::in_memory() } else { Sandbox::new() };
        let root = sandbox.root.clone();
        fs::create_dir_all(root.join("logs")).unwrap();
        fs::create_dir_all(root.join("home")).unwrap();
        let make = |name: &str, content: Content, made_with: &str, options: &str, tmpfs: Option<&str>| {
            let dir = Builder::folder(&root, name, tmpfs);
            let server = Server::create_in(&root, name, dir, &template::datadir(content, made_with), options);
            server.start();
            server
        };
        let source_options =
            format!("event_scheduler=ON\nserver_id=1\n{}{}", self.source_made_with, self.source_options);
        let source = make("db1", self.source_content, self.source_made_with, &source_options, None);
        let destinations: Vec<Server> = (1..=self.destinations)
            .map(|n| {
                let options =
                    format!("server_id={}\n{}{}", 100 + n, self.destination_made_with, self.destination_options);
                make(&format!("r{n}"), Content::Research, self.destination_made_with, &options, self.destination_tmpfs)
            })
            .collect();
        for server in &destinations {
            server.sql(&format!("UPDATE research.stamp SET content = '{}'", server.name));
        }
        let gate = self.over.map(|_| World::gate(&root));
        let way = gate.as_ref().zip(self.over);
        let config = World::default_config(&root, &source, &destinations, way);
        let poller = Poller::start(&source, &destinations);
        let (config, calls) = (RefCell::new(config), Cell::new(0));
        let world = World { poller, gate, sandbox, source, destinations, config, calls };
        world.destinations.iter().for_each(|server| world.consent(server));
        world
    }
}

/// Real servers, a configuration and the program.
pub struct World {
    poller: Poller,
    // goes before the folder it stands in
    gate: Option<Gate>,
    sandbox: Sandbox,
    /// The server to copy from.
    pub source: Server,
    /// The servers to copy to.
    pub destinations: Vec<Server>,
    config: RefCell<toml::Table>,
    calls: Cell<u32>,
}

impl World {
    /// A source with the shop and one destination, unless the builder is told otherwise.
    pub fn builder() -> Builder {
        Builder {
            destinations: 1,
            source_options: String::new(),
            destination_options: String::new(),
            source_content: Content::Production,
            destination_tmpfs: None,
            source_made_with: "",
            destination_made_with: "",
            over: over(),
            in_memory: false,
        }
    }

    /// The plain world: a source and one destination.
    pub fn new() -> World {
        World::builder().build()
    }

    /// The world's folder.
    pub fn root(&self) -> &Path {
        &self.sandbox.root
    }

    fn logs(&self) -> PathBuf {
        self.root().join("logs")
    }

    /// Who looks at the servers all the time.
    pub fn poller(&self) -> &Poller {
        &self.poller
    }

    /// The only destination, or the first.
    pub fn destination(&self) -> &Server {
        &self.destinations[0]
    }

    /// Source and destinations.
    pub fn servers(&self) -> impl Iterator<Item = &Server> {
        std::iter::once(&self.source).chain(&self.destinations)
    }

    /// The way in for a world whose hosts are reached by SSH.
    fn gate(root: &Path) -> Gate {
        let builder =
            Gate::at(root).line("AcceptEnv MYSQL_REFRESHD_FAIL").environment(&format!("{MARK}={}", root.display()));
        // every world uploads the same program: once is enough
        builder.environment(&format!("XDG_CACHE_HOME={}", env!("CARGO_TARGET_TMPDIR"))).start()
    }

    /// The owner's consent that a server be overwritten by production.
    fn consent(&self, server: &Server) {
        let mut command = Command::new(PROGRAM);
        command.args(["consent", "grant", "--from", "prod", "--instance", &server.name, "--datadir"]);
        output(command.arg(server.datadir()).arg("--policy").arg(self.policy()));
    }

    /// The way in, where the hosts are reached by SSH.
    pub fn way_in(&self) -> &Gate {
        self.gate.as_ref().expect("a world whose hosts are reached by SSH")
    }

    /// The hosts are reached through another gate, where the agent is installed and the host's policy decides.
    pub fn lives_behind(&self, gate: &Gate, transport: &str) {
        let mut config = self.config.borrow_mut();
        for (environment, server) in
            std::iter::once(("prod", &self.source)).chain(self.destinations.iter().map(|server| ("rnd", server)))
        {
            let hosts = config["environments"][environment]["hosts"].as_table_mut().unwrap();
            let old = hosts[&server.name].as_table().unwrap().clone();
            let mut new: toml::Table = toml::from_str(&format!(
                "transport = \"{transport}\"\naddress = \"{}\"\ninstance = \"{}\"\n",
                gate.address(),
                server.name
            ))
            .unwrap();
            new.extend(old.get("settings").map(|settings| ("settings".to_owned(), settings.clone())));
            hosts.insert(server.name.clone(), new.into());
        }
        drop(config);
        self.set("ssh.port", &gate.port().to_string()).set("ssh.user", &format!("\"{}\"", gate.user()));
        self.set("ssh.identity", &format!("\"{}\"", gate.identity().display()));
        self.set("ssh.known_hosts", &format!("\"{}\"", gate.known_hosts().display()));
        self.set("ssh.use_agent", "false");
    }

    /// The policy of the hosts.
    pub fn policy(&self) -> PathBuf {
        self.root().join("host.toml")
    }

    fn default_config(
        root: &Path,
        source: &Server,
        destinations: &[Server],
        over: Option<(&Gate, &str)>,
    ) -> toml::Table {
        let root = root.display();
        let mut text = format!(
            "[daemon]\nstate_dir = \"{root}/state\"\nlog_dir = \"{root}/log\"\nhost_timeout = \"5s\"\n\
             [environments.rnd.settings]\nmax_connections = \"77\"\n\
             [refreshes.nightly]\nsource = \"prod/db1\"\ndestinations = [\"rnd\"]\nlock_timeout = \"60s\"\n\
             max_outage = \"45s\"\ndrain_timeout = \"10s\"\nlong_transaction_age = \"1s\"\nspace_reserve = \"1MiB\"\n"
        );
        let way = |environment: &str| match over {
            None => "transport = \"local\"\n".to_owned(),
            Some((gate, over)) => {
                let over = match (over, environment) {
                    ("mixed", "prod") => "ssh",
                    ("mixed", _) => "openssh",
                    (over, _) => over,
                };
                let address = gate.address();
                format!("transport = \"{over}\"\naddress = \"{address}\"\nagent = \"uploaded\"\nsudo = false\n")
            }
        };
        if let Some((gate, _)) = over {
            text += &format!(
                "[ssh]\nsessions = 1\nport = {}\nuser = \"{}\"\nidentity = \"{}\"\nknown_hosts = \"{}\"\n",
                gate.port(),
                gate.user(),
                gate.identity().display(),
                gate.known_hosts().display()
            );
        }
        for (environment, server, n) in
            std::iter::once(("prod", source, 0)).chain(destinations.iter().zip(1..).map(|(d, n)| ("rnd", d, n)))
        {
            let (d, name) = (server.dir.display(), &server.name);
            text += &format!(
                "[environments.{environment}.hosts.{name}]\n{}policy = \"{root}/host.toml\"\ndatadir = \"{d}/data\"\n\
                 socket = \"{d}/s\"\nuser = \"{}\"\nservice = {{ server = \"{}\", defaults_file = \"{d}/my.cnf\" }}\n\
                 dropin = \"{d}/conf.d/90-refreshd.cnf\"\nstate_dir = \"{root}/host\"\n\
                 start_timeout = \"30s\"\nstop_timeout = \"30s\"\n",
                way(environment),
                me(),
                template::server().display(),
            );
            if n > 0 {
                text += &format!("[environments.{environment}.hosts.{name}.settings]\nserver_id = \"{}\"\n", 200 + n);
            }
        }
        toml::from_str(&text).unwrap()
    }

    /// Sets one key of the configuration, dotted, to a TOML value as it would be typed.
    pub fn set(&self, key: &str, value: &str) -> &World {
        set_key(&mut self.config.borrow_mut(), key, value);
        self.poller.configured(key, value);
        self
    }

    /// The configuration's text.
    pub fn config_text(&self) -> String {
        toml::to_string(&*self.config.borrow()).unwrap()
    }

    /// Writes the configuration and returns its path.
    pub fn write_config(&self) -> PathBuf {
        let (path, text) = (self.root().join("config.toml"), self.config_text());
        // another call may be reading it
        if !fs::read_to_string(&path).is_ok_and(|old| old == text) {
            let new = self.root().join("config.toml.new");
            fs::write(&new, text).unwrap();
            fs::rename(&new, &path).unwrap();
        }
        path
    }

    /// The program with these arguments and this world's configuration.
    pub fn call(&self, arguments: &[&str]) -> Call<'_> {
        let config = self.write_config();
        self.call_with(&config, arguments)
    }

    /// The program with another configuration file.
    pub fn call_with(&self, config: &Path, arguments: &[&str]) -> Call<'_> {
        let mut command = Command::new(PROGRAM);
        command.arg("--config").arg(config).args(arguments);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", self.root().join("home"));
        command.env("TMPDIR", self.root()).env(MARK, self.root()).env("RUST_BACKTRACE", "1");
        command.current_dir(self.root());
        Call { world: self, command, faults: Vec::new() }
    }

    /// `--now nightly`.
    pub fn refresh(&self) -> Call<'_> {
        self.call(&["--now", "nightly"])
    }

    /// `recover`.
    pub fn recover(&self) -> Outcome {
        self.call(&["recover"]).run()
    }

    /// Processes of the program that belong to this world.
    pub fn program_processes(&self) -> Vec<Process> {
        let root = self.root().as_os_str().as_encoded_bytes();
        let ours = |name: &str| name.starts_with("mysql-refreshd") || name.starts_with("agent-");
        processes_of(ours).filter(|p| holds(&p.raw, root)).collect()
    }

    /// Waits until no process of the program is left, and fails if one stays.
    #[track_caller]
    pub fn expect_nobody_left(&self) {
        let since = Instant::now();
        loop {
            let left: Vec<String> = self
                .program_processes()
                .iter()
                .filter(|p| Incarnation::of(p.pid).is_some())
                .map(|p| p.args.join(" "))
                .collect();
            if left.is_empty() {
                return;
            }
            assert!(since.elapsed() < Duration::from_secs(20), "processes left behind: {left:#?}");
            sleep(Duration::from_millis(50));
        }
    }

    /// Writes a number into every kind of table of the source, so that a mix of two contents shows.
    pub fn stamp(&self, number: u32) {
        self.poller.stamping(number, || drop(self.source.sql(&format!("CALL shop.stamp_all({number})"))));
    }

    /// Which whole content a server serves: a destination's own (its name), or production's (`prod-N`). Panics on a mix.
    pub fn content(&self, server: &Server) -> String {
        content(server)
    }

    /// What the last calls were and said, for messages.
    pub fn last_calls(&self) -> String {
        let (mut all, n) = (String::new(), self.calls.get());
        for n in n.saturating_sub(2)..n {
            for kind in ["args", "out", "err"] {
                let text = fs::read_to_string(self.logs().join(format!("{n:03}.{kind}"))).unwrap_or_default();
                all += &format!("---- call {n} {kind}\n{}\n", tail(&text, 30));
            }
        }
        all
    }

    /// A copy of the program's log, for messages.
    pub fn program_log(&self) -> String {
        let mut text = String::new();
        for entry in fs::read_dir(self.root().join("log")).into_iter().flatten().flatten() {
            text += &fs::read_to_string(entry.path()).unwrap_or_default();
        }
        text
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let verdicts = self.poller.finish();
        if !std::thread::panicking() {
            assert!(verdicts.is_empty(), "a client has seen what nobody may see:\n{}", verdicts.join("\n"));
            return;
        }
        eprintln!("==== a client has seen: {verdicts:#?}");
        eprintln!("==== the world {} at the time of the failure\n{}", self.root().display(), self.last_calls());
        eprintln!("---- the program's log\n{}", tail(&self.program_log(), 40));
        for server in self.servers() {
            eprintln!("---- {}: {:?}\n{}", server.name, server.processes(), tail(&server.log(), 12));
        }
    }
}

/// See [`World::content`].
pub fn content(server: &Server) -> String {
    let stamps: Vec<String> = template::STAMPED
        .iter()
        .map(|t| format!("SELECT '{t}', MIN(stamp), MAX(stamp), COUNT(*) >= 100 FROM shop.{t}"))
        .collect();
    // in one go
    let told = server.sql(&format!(
        "BEGIN NOT ATOMIC
           DECLARE found TEXT DEFAULT (SELECT GROUP_CONCAT(schema_name ORDER BY schema_name)
             FROM information_schema.schemata WHERE schema_name IN ('shop', 'research'));
           SELECT found;
           IF found = 'research' THEN SELECT DISTINCT content FROM research.stamp; SELECT COUNT(*) FROM research.results;
           ELSEIF found = 'shop' THEN {};
           END IF;
         END",
        stamps.join("; ")
    ));
    let (schemas, rows) = told.split_once('\n').unwrap_or((&told, ""));
    match schemas.trim() {
        "research" => {
            let rows: Vec<&str> = rows.lines().collect();
            assert!(rows.len() == 2 && rows[1] == "1000", "{}: not whole: {rows:?}", server.name);
            rows[0].to_owned()
        }
        "shop" => {
            let number = rows.split_whitespace().nth(1).unwrap().to_owned();
            for line in rows.lines() {
                let fields: Vec<&str> = line.split('\t').collect();
                assert!(
                    fields[1] == number && fields[2] == number && fields[3] == "1",
                    "{}: a mix of contents:\n{rows}",
                    server.name
                );
            }
            assert_eq!(rows.lines().count(), stamps.len(), "{}: {rows}", server.name);
            format!("prod-{number}")
        }
        other => panic!("{}: neither the old content nor the new: schemas {other:?}", server.name),
    }
}

fn set_key(table: &mut toml::Table, key: &str, value: &str) {
    let value: toml::Table = toml::from_str(&format!("v = {value}")).unwrap_or_else(|e| panic!("{value}: {e}"));
    let mut at = table;
    let (path, last) = key.rsplit_once('.').unwrap_or(("", key));
    for part in path.split('.').filter(|p| !p.is_empty()) {
        at = at.entry(part).or_insert_with(|| toml::Value::Table(toml::Table::new())).as_table_mut().unwrap();
    }
    at.insert(last.to_owned(), value["v"].clone());
}
