//! The local transport: the agent is a child process on this machine, under this account.
//!
//! In a process group of its own, so that Ctrl-C at the terminal reaches the controller alone, and with an environment that
//! holds nothing but a path and a locale.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

use super::{End, Later, Pipe, Process, Tail, Transport};
use crate::problem::{Explain, Kind, Outcome, Problem};
use crate::wire::message::Role;

/// How long an agent may take to put back what it had begun, once its stdin is closed: a server may have to start.
const PATIENCE: Duration = Duration::from_secs(600);

/// How long it may take after SIGTERM.
const LAST_CALL: Duration = Duration::from_secs(30);

/// Agents on this machine.
pub struct Local {
    program: PathBuf,
}

impl Local {
    /// Agents run this very program.
    pub fn new() -> Self {
        Self { program: PathBuf::from("/proc/self/exe") }
    }
    /// Agents run another program; for tests.
    pub fn with_program(program: PathBuf) -> Self {
        Self { program }
    }
}

impl Default for Local {
    fn default() -> Self {
        Self::new()
    }
}

/// What agents inherit of this process's environment.
const INHERITED: [&str; 6] = ["PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR"];

impl Transport for Local {
    fn open(&self, role: Role) -> Later<'_, Outcome<Pipe>> {
        Box::pin(async move {
            let mut command = Command::new(&self.program);
            command.args(["agent", "--role", &role.to_string()]).env_clear();
            let fail = cfg!(feature = "failpoints").then_some(crate::failpoint::VARIABLE);
            for name in INHERITED.into_iter().chain(fail) {
                if let Some(value) = std::env::var_os(name) {
                    command.env(name, value);
                }
            }
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
            let mut child = command.spawn().explain(|| format!("cannot start an agent: {}", self.program.display()))?;
            let (Some(writer), Some(reader), Some(mut errors)) =
                (child.stdin.take(), child.stdout.take(), child.stderr.take())
            else {
                return Err(Problem::failed("an agent without pipes"));
            };
            let stderr = Tail::default();
            let tail = stderr.clone();
            tokio::spawn(async move {
                let mut buffer = vec![0; 8 * 1024];
                while let Ok(n @ 1..) = errors.read(&mut buffer).await {
                    tail.push(&buffer[..n]);
                }
            });
            let process = Box::new(LocalProcess { child, stderr: stderr.clone() });
            Ok(Pipe { reader: Box::new(reader), writer: Box::new(writer), stderr, process })
        })
    }

    fn explain(&self, end: &End) -> Problem {
        let problem = Problem::new(Kind::Lost, format!("the agent ended before it was ready ({})", end.status));
        if end.stderr.is_empty() { problem } else { problem.cause(end.stderr.clone()) }
    }
}

struct LocalProcess {
    child: Child,
    stderr: Tail,
}

impl Process for LocalProcess {
    fn end(mut self: Box<Self>, unresponsive: bool) -> Later<'static, End> {
        Box::pin(async move {
            if unresponsive {
                let _ = self.child.start_kill();
            }
            let status = self.wait().await;
            End { status, stderr: self.stderr.text() }
        })
    }
}

impl LocalProcess {
    async fn wait(&mut self) -> String {
        if let Ok(status) = tokio::time::timeout(PATIENCE, self.child.wait()).await {
            return in_words(status);
        }
        if let Some(pid) = self.child.id().and_then(|id| rustix::process::Pid::from_raw(id as i32)) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        if let Ok(status) = tokio::time::timeout(LAST_CALL, self.child.wait()).await {
            return in_words(status);
        }
        let _ = self.child.kill().await;
        in_words(self.child.wait().await)
    }
}

fn in_words(status: std::io::Result<ExitStatus>) -> String {
    status.map_or_else(|error| error.to_string(), |status| status.to_string())
}
