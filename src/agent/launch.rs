//! Starts a long-lived process that outlives this one: a server, or the guard. In a session of its own, without stdin and
//! stdout, and as nobody's child, so that neither a terminal's signals nor the end of an agent reach it.
//!
//! `mysql-refreshd launch LOG PROGRAM ARGUMENT…` is the middle process of the usual double fork, as `unsafe` is not used.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::problem::{Explain, Outcome, Problem};

/// This program's own executable, also after it was replaced on disk.
const SELF: &str = "/proc/self/exe";

/// Starts `program`; its stderr is appended to `log`. Returns once it runs, not once it is ready.
pub fn detached(log: &Path, program: &Path, arguments: &[OsString]) -> Outcome<()> {
    let output = Command::new(SELF)
        .arg("launch")
        .arg(log)
        .arg(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .explain(|| format!("cannot start {}", program.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Problem::failed(format!("cannot start {}", program.display())).cause(said))
}

/// The middle process: new session, start the program, end.
pub fn middle(log: &Path, program: &OsString, arguments: &[OsString]) -> Outcome<()> {
    rustix::process::setsid().explain(|| "cannot open a new session")?;
    // a log that cannot be written must not keep a server down
    let log = OpenOptions::new().create(true).append(true).mode(0o640).open(log);
    let log = log.map_or_else(|_| Stdio::null(), Stdio::from);
    let program = if program == "self" { OsString::from(SELF) } else { program.clone() };
    Command::new(&program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .explain(|| format!("cannot execute {}", program.display()))?;
    Ok(())
}
