//! Bringing a copy of an older MariaDB series up to the destination's: the vendor's own `mariadb-upgrade`, on the isolated
//! server. MySQL upgrades itself at its start.
//!
//! Runs as the account that owns the copy; the password is in a file of its own that only this account can read, written
//! before the folder became this account's.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};

use super::receive::{Owner, is_root};
use super::server;
use super::session::Session;
use crate::problem::{Explain, Outcome, Problem};

/// The vendor's tool that belongs to a server's executable: beside it, or in the `bin` of its `basedir`.
pub fn tool(executable: &Path, basedir: &str) -> Option<PathBuf> {
    let beside = executable.parent().map(Path::to_owned);
    // /usr/sbin/mariadbd and /usr/bin/mariadb-upgrade
    let folders = beside.into_iter().chain((!basedir.is_empty()).then(|| Path::new(basedir).join("bin")));
    folders.map(|folder| folder.join("mariadb-upgrade")).find(|path| path.is_file())
}

/// The option file of the tool, in the isolated start's folder.
pub const OPTIONS: &str = "upgrade.cnf";

/// Its text. `password` is of plain characters. With the environment's character set, or none, the tool would not find schemas
/// whose names are not ASCII (verified on 11.8.9).
pub fn options(socket: &Path, user: &str, password: &str) -> String {
    format!("[client]\nsocket={}\nuser={user}\npassword={password}\ndefault-character-set=utf8mb4\n", socket.display())
}

/// Ends with everything that it has started.
struct Tool(Child);

impl Drop for Tool {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let _ = rustix::process::kill_process_group(Pid::from_child(&self.0), Signal::KILL);
            let _ = self.0.wait();
        }
    }
}

/// Upgrades the system tables and marks all others as checked. `place` is the isolated start's folder, `owner` the account
/// that owns the copy. Takes as long as there are tables: ends early only when the run is cancelled.
pub async fn run(program: &Path, place: &Path, owner: Owner, session: &Session) -> Outcome<()> {
    if is_root() && owner.uid == 0 && !root_only(program) {
        return Err(Problem::refused(format!("{} is not root's alone, and would be run by root", program.display())));
    }
    // beside the folder, which belongs to the server's account by now
    let log = place.with_extension("upgrade");
    let _ = std::fs::remove_file(&log);
    let file = std::fs::File::create(&log).explain(|| "cannot create a log for the upgrade")?;
    let again = file.try_clone().explain(|| "cannot use the log of the upgrade twice")?;
    let mut argument = std::ffi::OsString::from("--defaults-file=");
    argument.push(place.join(OPTIONS));
    let mut command = Command::new(program);
    if is_root() && owner.uid != 0 {
        command.uid(owner.uid).gid(owner.gid);
    }
    // --force: a marker file of the source's would make it skip all its work (verified, 10.11 to 11.8)
    let child = command
        .arg(argument)
        .arg("--force")
        .env_clear()
        .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
        .env("TMPDIR", place.join("tmp"))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(again)
        .process_group(0)
        .spawn()
        .explain(|| format!("cannot execute {}", program.display()))?;
    let mut tool = Tool(child);
    session.note("bringing the copy up to this server's version").await;
    let status = loop {
        session.check()?;
        if let Some(status) = tool.0.try_wait().explain(|| "cannot wait for the upgrade")? {
            break status;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    if !status.success() {
        let failed = Problem::failed(format!("{} failed ({status})", program.display()));
        return Err(failed.cause(format!("it ended with:\n{}", server::tail(&log, 12))));
    }
    let _ = std::fs::remove_file(&log);
    Ok(())
}

/// Whether only root can change a program.
pub fn root_only(program: &Path) -> bool {
    std::fs::metadata(program).is_ok_and(|meta| meta.uid() == 0 && meta.mode() & 0o022 == 0)
}
