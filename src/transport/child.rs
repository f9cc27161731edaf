//! A child process of this machine as a pipe: in a process group of its own, so that Ctrl-C at the terminal reaches the
//! controller alone, and with an environment that holds nothing but what it needs.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

use super::{End, Later, Pipe, Process, Tail};
use crate::problem::{Explain, Outcome, Problem};

/// How long an agent may take to put back what it had begun, once its stdin is closed: a server may have to start.
const PATIENCE: Duration = Duration::from_secs(600);

/// How long it may take after SIGTERM.
const LAST_CALL: Duration = Duration::from_secs(30);

/// What children inherit of this process's environment.
const INHERITED: [&str; 7] = ["PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "XDG_CONFIG_HOME"];

/// Starts a program; `environment` names more variables that it inherits, `more` sets some.
pub(super) fn start(words: &[String], environment: &[&str], more: &[(&str, &str)]) -> Outcome<Pipe> {
    let (program, arguments) = words.split_first().ok_or_else(|| Problem::failed("no program to start"))?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear();
    for name in INHERITED.iter().chain(environment) {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.envs(more.iter().copied());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().explain(|| format!("cannot execute {program}"))?;
    let (Some(writer), Some(reader), Some(mut errors)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(Problem::failed(format!("{program} has no pipes")));
    };
    let stderr = Tail::default();
    let tail = stderr.clone();
    let listening = tokio::spawn(async move {
        let mut buffer = vec![0; 8 * 1024];
        while let Ok(n @ 1..) = errors.read(&mut buffer).await {
            tail.push(&buffer[..n]);
        }
    });
    let process = Box::new(ChildProcess { child, stderr: stderr.clone(), listening });
    Ok(Pipe { reader: Box::new(reader), writer: Box::new(writer), stderr, process, prompt: None })
}

struct ChildProcess {
    child: Child,
    stderr: Tail,
    listening: tokio::task::JoinHandle<()>,
}

impl Process for ChildProcess {
    fn end(mut self: Box<Self>, unresponsive: bool) -> Later<'static, End> {
        Box::pin(async move {
            let status = if unresponsive { self.kill().await } else { self.wait().await };
            // what it said last is still in the pipe; something that it started may hold that open for ever
            let _ = tokio::time::timeout(Duration::from_millis(200), &mut self.listening).await;
            let (code, status) = match status {
                Ok(status) => (status.code(), status.to_string()),
                Err(error) => (None, error.to_string()),
            };
            End { code, status, stderr: self.stderr.text() }
        })
    }
}

impl ChildProcess {
    async fn wait(&mut self) -> std::io::Result<ExitStatus> {
        if let Ok(status) = tokio::time::timeout(PATIENCE, self.child.wait()).await {
            return status;
        }
        self.signal(rustix::process::Signal::TERM);
        if let Ok(status) = tokio::time::timeout(LAST_CALL, self.child.wait()).await {
            return status;
        }
        self.kill().await
    }

    /// What is root's (sudo) does not hear an ordinary account: then it is out of reach.
    async fn kill(&mut self) -> std::io::Result<ExitStatus> {
        self.signal(rustix::process::Signal::KILL);
        match tokio::time::timeout(LAST_CALL, self.child.wait()).await {
            Ok(status) => status,
            Err(_) => Err(std::io::Error::other("it does not end, and cannot be killed")),
        }
    }

    /// To the whole group: a `ssh` may have helpers of its own.
    fn signal(&self, signal: rustix::process::Signal) {
        if let Some(group) = self.child.id().and_then(|id| rustix::process::Pid::from_raw(id as i32)) {
            let _ = rustix::process::kill_process_group(group, signal);
        }
    }
}
