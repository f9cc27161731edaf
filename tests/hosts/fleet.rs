//! A fleet of hosts for one test: booted by the script `hosts`, gone when the test is, however that ends.
//!
//! Hosts are spoken to as root from outside (`exec`, `sql`) or as their operator over SSH (`ssh`).

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The script that boots them.
pub fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hosts/hosts")
}

/// The hosts of one test, on a network of their own.
pub struct Fleet {
    name: String,
}

impl Fleet {
    /// Boots hosts, each by its specification: `name=kind[,fs:size[,mount]]`.
    #[track_caller]
    pub fn up(specifications: &[&str]) -> Fleet {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("t{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let fleet = Fleet { name };
        fleet.grow(specifications);
        fleet
    }

    /// Boots more hosts, or those that are off.
    #[track_caller]
    pub fn grow(&self, specifications: &[&str]) {
        let owner = std::process::id().to_string();
        self.hosts(&[["up", "--owner", &owner].as_slice(), specifications].concat());
    }

    /// Its name, which is also the first part of the names of its network namespaces.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Calls the script for this fleet; it must succeed.
    #[track_caller]
    pub fn hosts(&self, arguments: &[&str]) -> String {
        done(self.command(arguments), &arguments.join(" "))
    }

    /// The script's command line for this fleet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(script());
        command.args(arguments).env("BENCH_FLEET", &self.name).env("BENCH_QUIET", "1").stdin(Stdio::null());
        command
    }

    /// One of its hosts.
    pub fn host<'a>(&'a self, name: &'a str) -> Host<'a> {
        Host { fleet: self, name }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::env::var_os("BENCH_KEEP").is_some() {
            eprintln!("the fleet {} is kept until this process ends", self.name);
            std::thread::sleep(Duration::from_secs(3600));
        }
        let down = self.command(&["down", "--all"]).output();
        if !std::thread::panicking() {
            let down = down.unwrap();
            assert!(down.status.success(), "{}", String::from_utf8_lossy(&down.stderr));
        }
    }
}

/// A host that has been booted.
#[derive(Clone, Copy)]
pub struct Host<'a> {
    fleet: &'a Fleet,
    /// Its name, also in every host's /etc/hosts.
    pub name: &'a str,
}

impl Host<'_> {
    /// Runs a shell script inside as root; it must succeed. Gives its standard output without the last line's end.
    #[track_caller]
    pub fn sh(&self, line: &str) -> String {
        done(self.fleet.command(&["exec", self.name, "bash", "-euo", "pipefail", "-c", line]), line)
    }

    /// Runs a shell script inside as root and tells how that went.
    pub fn try_sh(&self, line: &str) -> Ran {
        Ran::of(self.fleet.command(&["exec", self.name, "bash", "-euo", "pipefail", "-c", line]), line)
    }

    /// The command that runs a shell script inside as root, to be started by the caller.
    pub fn shell(&self, line: &str) -> Command {
        self.fleet.command(&["exec", self.name, "bash", "-euo", "pipefail", "-c", line])
    }

    /// Runs a shell script as the operator, who logs in by SSH.
    pub fn ssh(&self, line: &str) -> Ran {
        // the words pass through the shell of the login there
        let quoted = format!("'{}'", line.replace('\'', "'\\''"));
        Ran::of(self.fleet.command(&["ssh", self.name, "bash", "-eo", "pipefail", "-c", &quoted]), line)
    }

    /// What the server answers, as root over its socket: a line a row, columns parted by tabs.
    #[track_caller]
    pub fn sql(&self, sql: &str) -> String {
        let ran = self.try_sql("", sql);
        assert!(ran.code == Some(0), "{}: {ran}", self.name);
        ran.stdout
    }

    /// The same with options for the client.
    pub fn try_sql(&self, options: &str, sql: &str) -> Ran {
        let client =
            format!("$(command -v mariadb || command -v mysql) -N -B --default-character-set=utf8mb4 {options}");
        let mut command = self.fleet.command(&["exec", self.name, "bash", "-c", &client]);
        command.stdin(Stdio::piped());
        Ran::fed(command, sql, sql)
    }

    /// A global variable of its server.
    #[track_caller]
    pub fn variable(&self, name: &str) -> String {
        self.sql(&format!("SELECT @@GLOBAL.{name}"))
    }

    /// The fleet it belongs to.
    pub fn fleet_name(&self) -> &str {
        self.fleet.name()
    }

    /// Its root folder, as the machine below sees it.
    #[track_caller]
    pub fn root(&self) -> PathBuf {
        PathBuf::from(self.fleet.hosts(&["root", self.name]))
    }

    /// Puts a file's content in a place inside (not on a volume, and not below /run or /tmp).
    #[track_caller]
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let place = self.root().join(path.trim_start_matches('/'));
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::write(place, content).unwrap();
    }

    /// Copies a file or folder of this machine to a place inside, root's (not on a volume, and not below /run or /tmp).
    #[track_caller]
    pub fn put(&self, from: &Path, path: &str) {
        let place = self.root().join(path.trim_start_matches('/'));
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        let mut copy = Command::new("cp");
        copy.args(["-r", "--reflink=auto"]).arg(from).arg(&place);
        done(copy, "cp");
    }

    /// The server's main process; nothing if it does not run.
    pub fn server_pid(&self) -> String {
        self.sh("pgrep -o -x 'mariadbd|mysqld' || true")
    }

    /// When the server's process started, in clock ticks since boot: the same number means that it was never stopped.
    #[track_caller]
    pub fn server_life(&self) -> String {
        self.sh("pid=$(pgrep -o -x 'mariadbd|mysqld'); awk '{print $1, $22}' /proc/$pid/stat")
    }

    /// Calls another verb of the script for this host, e.g. `net NAME cut`.
    #[track_caller]
    pub fn verb(&self, verb: &str, arguments: &[&str]) -> String {
        self.fleet.hosts(&[[verb, self.name].as_slice(), arguments].concat())
    }
}

/// How a command went.
pub struct Ran {
    what: String,
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Its standard output without the last line's end.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Ran {
    fn new(what: &str, output: Output) -> Ran {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim_end_matches('\n').to_owned();
        Ran {
            what: what.to_owned(),
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// Runs a command to its end.
    pub fn of(mut command: Command, what: &str) -> Ran {
        Ran::new(what, command.output().unwrap())
    }

    /// Runs a command to its end with this on its standard input.
    pub fn fed(mut command: Command, input: &str, what: &str) -> Ran {
        use std::io::Write as _;
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut pipe = child.stdin.take().unwrap();
        let input = input.to_owned();
        // the command may end before it has read all
        let writer = std::thread::spawn(move || drop(pipe.write_all(input.as_bytes())));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        Ran::new(what, output)
    }

    /// It must have ended with this code.
    #[track_caller]
    pub fn expect(self, code: i32) -> Ran {
        assert_eq!(self.code, Some(code), "{self}");
        self
    }

    /// Its output, both kinds, must hold each of these.
    #[track_caller]
    pub fn says(self, words: &[&str]) -> Ran {
        for word in words {
            assert!(self.stdout.contains(word) || self.stderr.contains(word), "nothing of {word:?} in\n{self}");
        }
        self
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what: String = self.what.chars().take(2000).collect();
        write!(f, "{what}\nexit code {:?}\n--- out\n{}\n--- err\n{}", self.code, self.stdout, self.stderr)
    }
}

#[track_caller]
fn done(command: Command, what: &str) -> String {
    Ran::of(command, what).expect(0).stdout
}

/// Waits until something holds; at most so long.
#[track_caller]
pub fn eventually(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < end, "{what}: not after {limit:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
