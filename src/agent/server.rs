//! The server process of an instance: find it, stop it, prove that it stopped, and the one idempotent *ensure-started*
//! that agent, guard and recovery share. Needs no SQL account for any of that.
//!
//! Never kills a server: a stop that hangs is reported, not forced. Never starts a second one on a datadir.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use rustix::process::{Flock, FlockType, Pid, Signal};

use super::launch;
use crate::instance::{Instance, Service};
use crate::lock;
use crate::problem::{Explain, Outcome, Problem};

/// How often a condition is looked at: each look that comes late is part of an outage, and costs a few system calls.
const POLL: Duration = Duration::from_millis(10);

/// Files a running server holds a POSIX lock on (verified: MariaDB 10.11 and 11.8 lock these two, MySQL 9.7 every open
/// InnoDB file).
const LOCKED_FILES: [&str; 3] = ["ibdata1", "aria_log_control", "mysql.ibd"];

/// A running server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its process id; 0 if it is in another namespace.
    pub pid: u32,
    /// Clock ticks at its start: tells a reused process id.
    started: u64,
}

impl Process {
    /// Process id and start in clock ticks.
    pub fn identity(&self) -> (u32, u64) {
        (self.pid, self.started)
    }
    /// How long ago it was started, in milliseconds; 0 if that cannot be told.
    pub fn age_ms(&self) -> u64 {
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
        let now: f64 = uptime.split(' ').next().and_then(|seconds| seconds.parse().ok()).unwrap_or(0.0);
        // proc(5): in clock ticks, of which the kernel shows 100 a second
        let age = now - self.started as f64 / 100.0;
        if self.started > 0 && age > 0.0 { (age * 1000.0) as u64 } else { 0 }
    }
    /// Whether this very process is still there; a zombie is not.
    pub fn alive(&self) -> bool {
        state(self.pid).is_some_and(|(status, started)| started == self.started && status != 'Z' && status != 'X')
    }
}

/// Status letter and start time of a process.
fn state(pid: u32) -> Option<(char, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let rest = stat.rsplit_once(')')?.1;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    Some((fields.first()?.chars().next()?, fields.get(19)?.parse().ok()?))
}

/// A process id with its start time, for later `alive` checks.
pub fn process(pid: u32) -> Option<Process> {
    state(pid).map(|(_, started)| Process { pid, started })
}

/// The server that has this datadir open, by the locks it holds.
pub fn find(datadir: &Path) -> Outcome<Option<Process>> {
    for name in LOCKED_FILES {
        let path = datadir.join(name);
        let file = match open_no_follow(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).explain(|| format!("cannot open {}", path.display())),
        };
        let probe = Flock::from(FlockType::WriteLock);
        let held = rustix::process::fcntl_getlk(&file, &probe)
            .explain(|| format!("cannot test the lock on {}", path.display()))?;
        if let Some(lock) = held {
            let pid = lock.pid.map_or(0, |pid: Pid| pid.as_raw_nonzero().get() as u32);
            return Ok(Some(process(pid).unwrap_or(Process { pid, started: 0 })));
        }
    }
    Ok(None)
}

/// The executable of a process, and whether the file on disk is another one by now.
pub fn executable(pid: u32) -> Option<(PathBuf, bool)> {
    let link = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let text = link.to_string_lossy();
    match text.strip_suffix(" (deleted)") {
        Some(path) => Some((path.into(), true)),
        None => Some((link.clone(), false)),
    }
}

/// How long a starter waits for another one.
const SWITCH_WAIT: Duration = Duration::from_secs(30);

/// The lock under which a server is started on this host.
fn switch_lock(state_dir: &Path, key: &str) -> PathBuf {
    state_dir.join("locks").join(format!("{key}.switch"))
}

/// Whether a server answers on the socket: its greeting, or its word that it has too many connections.
pub fn greets(socket: &Path) -> bool {
    let Ok(mut stream) = UnixStream::connect(socket) else { return false };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
    let mut packet = [0u8; 7];
    if stream.read_exact(&mut packet).is_err() {
        return false;
    }
    // packet header of 4 bytes; protocol version 10, or an error with its code (1040: too many connections)
    packet[4] == 10 || (packet[4] == 0xff && u16::from_le_bytes([packet[5], packet[6]]) == 1040)
}

/// Stops the server cleanly and waits until it is gone. Blocking. Ok when it was not running. Takes no lock: a stop that
/// hangs must not keep the guard from starting the server afterwards.
pub fn stop(instance: &Instance) -> Outcome<()> {
    let process = find(&instance.datadir)?;
    let limit = Duration::from_secs(instance.stop_timeout_s.into());
    let begun = Instant::now();
    match (&instance.service, &process) {
        (Service::Systemd { unit }, _) => {
            // before the stop: a unit with Restart=, or monitoring, brings a server back within 100 ms
            prepare_hold(instance)?;
            let mark = Hold::of(unit).mark;
            File::create(&mark).explain(|| format!("cannot create {}", mark.display()))?;
            command(&["systemctl", "stop", unit], limit, instance)?;
        }
        (_, None) => return Ok(()),
        (Service::Commands { stop, .. }, Some(_)) => {
            let note = command_file(instance, "pid");
            let result = command_noted(stop, limit, instance, Some(&note));
            let _ = std::fs::remove_file(note);
            result?;
        }
        (Service::Process { .. }, Some(process)) => {
            let pid = Pid::from_raw(process.pid as i32)
                .ok_or_else(|| Problem::failed("the server's process is not visible"))?;
            rustix::process::kill_process(pid, Signal::TERM)
                .explain(|| format!("cannot signal the server (process {pid:?})"))?;
        }
    }
    while process.as_ref().is_some_and(Process::alive) || find(&instance.datadir)?.is_some() {
        if begun.elapsed() > limit {
            return Err(Problem::failed(format!(
                "the server still runs {} s after it was told to stop",
                limit.as_secs()
            ))
            .hint("Look at the server's error log for what holds it up; `stop_timeout` of the host sets this limit."));
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// What holds a unit down: an assertion that fails while a file is there, so that nobody's start succeeds. Gone with the next boot.
///
/// A runtime mask would not do: it is nothing to a unit whose own file lies in /etc/systemd/system, and takes ExecStop=, TimeoutStopSec=
/// and SendSIGKILL= from a unit that has yet to stop (verified on systemd 252 and 262).
struct Hold {
    /// Read by the service manager.
    dropin: PathBuf,
    /// The server is held down while this is there.
    mark: PathBuf,
}

/// The drop-in's name in the unit's folder.
const HOLD: &str = "90-mysql-refreshd.conf";

impl Hold {
    fn of(unit: &str) -> Self {
        let folder = Path::new("/run/systemd/system").join(format!("{unit}.d"));
        Self { dropin: folder.join(HOLD), mark: folder.join("mysql-refreshd.held") }
    }

    fn text(&self) -> String {
        format!(
            "# While the file named here is there, mysql-refreshd copies or exchanges the server's files, and holds it down.\n[Unit]\nAssertPathExists=!{}\n",
            self.mark.display()
        )
    }
}

/// Has the service manager ask before each start whether the server is held down. It is not yet; this takes some 100 ms, and is done
/// while it serves. What it needs stays until the next boot.
pub fn prepare_hold(instance: &Instance) -> Outcome<()> {
    let Service::Systemd { unit } = &instance.service else { return Ok(()) };
    let hold = Hold::of(unit);
    let there = std::fs::read_to_string(&hold.dropin).is_ok_and(|text| text == hold.text());
    if there && is_asked(unit) {
        return Ok(());
    }
    let written = hold.dropin.parent().map_or(Ok(()), std::fs::create_dir_all);
    let written = written.and_then(|()| std::fs::write(&hold.dropin, hold.text()));
    written.explain(|| format!("cannot write {}", hold.dropin.display()))?;
    command(&["systemctl", "daemon-reload"], Duration::from_secs(30), instance)?;
    if is_asked(unit) {
        return Ok(());
    }
    Err(Problem::failed(format!("systemd does not read {}: {unit} could not be held down", hold.dropin.display())))
}

/// Whether the service manager has read the drop-in.
fn is_asked(unit: &str) -> bool {
    let show = ["show", "--property=DropInPaths,NeedDaemonReload", unit];
    let output = Command::new("systemctl").args(show).stdin(Stdio::null()).stderr(Stdio::null()).output();
    output.is_ok_and(|output| {
        let said = String::from_utf8_lossy(&output.stdout);
        said.contains(&format!("/{HOLD}")) && !said.contains("NeedDaemonReload=yes")
    })
}

/// Lets go of a server that `stop` holds down; starts nothing.
pub fn release(instance: &Instance) -> Outcome<()> {
    let Service::Systemd { unit } = &instance.service else { return Ok(()) };
    let mark = Hold::of(unit).mark;
    match std::fs::remove_file(&mark) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).explain(|| format!("cannot remove {}: {unit} stays held down", mark.display()))
        }
        _ => Ok(()),
    }
}

/// A file about this instance's commands; another instance of the host may be stopping at the same time.
fn command_file(instance: &Instance, kind: &str) -> PathBuf {
    let name = blake3::hash(instance.datadir.as_os_str().as_bytes()).to_hex();
    instance.state_dir.join(format!("command-{}.{kind}", &name[..16]))
}

/// Ends a stop command that has outlived its agent: it must not stop the server again once that is started.
fn end_stop(instance: &Instance) {
    let file = command_file(instance, "pid");
    let left = std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice::<Process>(&bytes).ok());
    if let Some(process) = left.filter(Process::alive)
        && let Some(pid) = Pid::from_raw(process.pid as i32)
    {
        let _ = rustix::process::kill_process_group(pid, Signal::KILL);
    }
    let _ = std::fs::remove_file(file);
}

/// A server that is up.
#[derive(Debug)]
pub struct Up {
    /// This call has started it.
    pub started: bool,
    /// What went wrong before it came up, in words.
    pub failed: Vec<String>,
}

/// Starts the server unless it runs, and waits until it answers. Blocking, idempotent; the only way a server is started
/// here.
pub fn ensure_started(instance: &Instance, key: &str) -> Outcome<Up> {
    // a holder that hangs, or a folder that cannot be written, must not keep the server down: we go on without the lock,
    // since the server's own locks keep a second one from running
    let _switch = lock::take_within(&switch_lock(&instance.state_dir, key), SWITCH_WAIT).unwrap_or(None);
    // also when it runs: a unit that stays held down would not come back from its next crash
    release(instance)?;
    let was_up = find(&instance.datadir)?.is_some();
    end_stop(instance);
    if matches!(instance.service, Service::Systemd { .. }) {
        // also when it greets: a stop that an agent which died had asked for may be under way, and this start follows it
        let _ = start(instance);
    }
    let mut failed: Vec<Problem> = Vec::new();
    let words = |failed: &[Problem]| failed.iter().map(ToString::to_string).collect();
    for attempt in 0..3u32 {
        if attempt > 0 {
            std::thread::sleep(Duration::from_secs(1 << attempt));
        }
        let running = find(&instance.datadir)?;
        if let (Some(_), true) = (&running, greets(&instance.socket)) {
            return Ok(Up { started: !was_up, failed: words(&failed) });
        }
        let begun = running.is_none();
        let result = if begun { start(instance) } else { Ok(()) };
        match result.and_then(|()| wait_ready(instance)) {
            Ok(()) => return Ok(Up { started: !was_up || begun, failed: words(&failed) }),
            Err(problem) => failed.push(problem),
        }
    }
    Err(failed.pop().unwrap_or_else(|| Problem::failed("the server does not start")))
}

fn start(instance: &Instance) -> Outcome<()> {
    let limit = Duration::from_secs(instance.start_timeout_s.into());
    match &instance.service {
        Service::Systemd { unit } => command(&["systemctl", "start", unit], limit, instance),
        Service::Commands { start, .. } => command(start, limit, instance),
        Service::Process { server, defaults_file } => {
            let mut option = std::ffi::OsString::from("--defaults-file=");
            option.push(defaults_file);
            launch::detached(&instance.state_dir.join("server.err"), server, &[option])
        }
    }
}

/// Waits until the server answers, and gives up early when its process never shows or has gone.
fn wait_ready(instance: &Instance) -> Outcome<()> {
    let limit = Duration::from_secs(instance.start_timeout_s.into());
    let begun = Instant::now();
    let mut seen = None;
    loop {
        let now = find(&instance.datadir)?;
        if now.is_some() && greets(&instance.socket) {
            return Ok(());
        }
        let gone = match (&seen, &now) {
            (Some(_), None) => true,
            (None, None) => begun.elapsed() > Duration::from_secs(20).min(limit),
            _ => false,
        };
        if gone {
            return Err(Problem::failed("the server ended right after its start").hint("Its error log says why."));
        }
        if begun.elapsed() > limit {
            return Err(Problem::failed(format!("the server does not answer {} s after its start", limit.as_secs()))
                .hint("Its error log says why; `start_timeout` of the host sets this limit."));
        }
        seen = now.or(seen);
        std::thread::sleep(POLL);
    }
}

/// Runs an operator's command to its end. Its stdout is ignored; the end of its stderr goes into the error. One that does not
/// end in time is killed with its children: it must not stop a server again later.
pub fn command<S: AsRef<std::ffi::OsStr>>(words: &[S], limit: Duration, instance: &Instance) -> Outcome<()> {
    command_noted(words, limit, instance, None)
}

/// The same; its process is written down while it runs.
fn command_noted<S: AsRef<std::ffi::OsStr>>(
    words: &[S],
    limit: Duration,
    instance: &Instance,
    note: Option<&Path>,
) -> Outcome<()> {
    let Some((program, arguments)) = words.split_first() else { return Err(Problem::failed("an empty command")) };
    let shown = words.iter().map(|w| w.as_ref().to_string_lossy()).collect::<Vec<_>>().join(" ");
    // a file, not a pipe: a server that a command starts keeps its stderr for life
    let said_file = command_file(instance, "err");
    let stderr = File::create(&said_file).map_or_else(|_| Stdio::null(), Stdio::from);
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .process_group(0)
        .spawn()
        .explain(|| format!("cannot execute `{shown}`"))?;
    if let (Some(note), Some(process)) = (note, process(child.id())) {
        let _ = std::fs::write(note, serde_json::to_vec(&process).unwrap_or_default());
    }
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().explain(|| format!("cannot wait for `{shown}`"))? {
            break status;
        }
        if begun.elapsed() > limit {
            let _ = rustix::process::kill_process_group(Pid::from_child(&child), Signal::KILL);
            let _ = child.wait();
            return Err(Problem::failed(format!("`{shown}` did not end within {} s and was killed", limit.as_secs())));
        }
        std::thread::sleep(POLL);
    };
    if status.success() {
        return Ok(());
    }
    let said = tail(&said_file, 8);
    let said = if said.is_empty() { "it said nothing".to_owned() } else { said };
    Err(Problem::failed(format!("`{shown}` failed ({status})")).cause(said))
}

/// The last lines of a log, for error texts. Follows no symlink: the folder may belong to the server's account.
pub fn tail(path: &Path, lines: usize) -> String {
    let mut text = Vec::new();
    if let Ok(mut file) = open_no_follow(path) {
        // the end is enough of a log that may be large
        let length = file.metadata().map_or(0, |meta| meta.len());
        let _ = file.seek(SeekFrom::Start(length.saturating_sub(64 * 1024)));
        let _ = file.read_to_end(&mut text);
    }
    let text = text.as_slice();
    let text = String::from_utf8_lossy(text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// The same of a log that the server has named itself: only a file of the account that owns the datadir is its log.
pub fn tail_of(path: &Path, datadir: &Path, lines: usize) -> String {
    let uid = |path: &Path| std::fs::symlink_metadata(path).ok().map(|meta| meta.uid());
    if uid(path).is_some() && uid(path) == uid(datadir) { tail(path, lines) } else { String::new() }
}

/// Opens a file below a folder for reading, through no symlink on the way: folders there may belong to the server's account.
pub fn open_beneath(root: &Path, path: &Path) -> std::io::Result<File> {
    let root_fd = File::open(root)?;
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC;
    let beneath = rustix::fs::ResolveFlags::BENEATH | rustix::fs::ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(&root_fd, path, flags, rustix::fs::Mode::empty(), beneath) {
        Ok(fd) => {
            let file = File::from(fd);
            if file.metadata()?.is_file() { Ok(file) } else { Err(std::io::Error::other("not a regular file")) }
        }
        // before Linux 5.6, or where a container forbids it
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => open_no_follow(&root.join(path)),
        Err(error) => Err(error.into()),
    }
}

/// Opens a regular file for reading, never through a symlink: the folder may belong to the server's account.
pub fn open_no_follow(path: &Path) -> std::io::Result<File> {
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags as i32).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("not a regular file"));
    }
    Ok(file)
}
