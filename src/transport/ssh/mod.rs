//! Our own SSH client, on async-ssh2-lite: needs nothing but this program on the controller.
//!
//! One session for one agent, one task that owns it (`pump`), a stream that waits as libssh2 means it (`stream`), host keys
//! and keys judged before anything is started (`session`). The tests in `tests/it/hazards.rs` show what each of these is
//! for.

mod pump;
mod session;
mod stream;

use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::oneshot;

use super::openssh::shell_line;
use super::{End, Later, Pipe, Process, Starter, Tail};
use crate::failpoint;
use crate::problem::{Kind, Outcome, Problem};
use crate::route::Address;

/// What the other side may send before we have read it. Larger ones were erratic, smaller ones are slow on links with latency
/// (measured: 32 MB/s with 2 MiB, 79 with this, at 40 ms).
const WINDOW: u32 = 4 * 1024 * 1024;

/// Largest packet.
const PACKET: u32 = 32 * 1024;

/// Between the task that owns the session and those who read and write.
const BETWEEN: usize = 512 * 1024;

/// How long an agent may take to put back what it had begun, once its stdin is closed.
const PATIENCE: Duration = Duration::from_secs(630);

/// How long a task that was told to end may take.
const LAST_CALL: Duration = Duration::from_secs(2);

/// One host, reached by our own client.
pub struct Ssh {
    address: Address,
    passphrase: Option<SecretString>,
}

impl Ssh {
    /// Nothing happens yet.
    pub fn new(address: Address, passphrase: Option<SecretString>) -> Self {
        Self { address, passphrase }
    }
}

impl Starter for Ssh {
    fn start<'a>(&'a self, words: &'a [String]) -> Later<'a, Outcome<Pipe>> {
        Box::pin(async move {
            let session = session::connect(&self.address, self.passphrase.as_ref()).await?;
            let limit = Duration::from_secs(self.address.connect_timeout_s.max(1).into());
            let begin = async {
                let mut channel = session.channel_open("session", WINDOW, PACKET, None).await?;
                if cfg!(feature = "failpoints")
                    && let Ok(points) = std::env::var(failpoint::VARIABLE)
                {
                    // an sshd that does not take it fails no test here
                    let _ = channel.setenv(failpoint::VARIABLE, &points).await;
                }
                channel.exec(&shell_line(words)).await?;
                Ok(channel)
            };
            let failed = |why: String| {
                Problem::new(Kind::Lost, format!("{} does not start a command", self.place()))
                    .cause(why)
                    .hint("Does its sshd allow commands for this account (ForceCommand, MaxSessions)?")
            };
            let channel = match tokio::time::timeout(limit, begin).await {
                Ok(Ok(channel)) => channel,
                Ok(Err(error)) => return Err(failed(session::said(&error))),
                Err(_) => return Err(failed(format!("no answer within {} s", limit.as_secs()))),
            };
            let (writer, stdin) = tokio::io::duplex(BETWEEN);
            let (stdout, reader) = tokio::io::duplex(BETWEEN);
            let stderr = Tail::default();
            let (tell, told) = oneshot::channel();
            let tail = stderr.clone();
            let task = tokio::spawn(async move {
                let _ = tell.send(pump::run(session, channel, stdin, stdout, tail).await);
            });
            let process = Box::new(SshProcess { task, told, stderr: stderr.clone() });
            Ok(Pipe { reader: Box::new(reader), writer: Box::new(writer), stderr, process, prompt: None })
        })
    }

    fn place(&self) -> String {
        self.address.shown()
    }

    fn explain(&self, _: &End) -> Option<Problem> {
        // what fails before the command runs was told by `start`
        None
    }
}

struct SshProcess {
    task: tokio::task::JoinHandle<()>,
    told: oneshot::Receiver<pump::Ended>,
    stderr: Tail,
}

impl Process for SshProcess {
    fn end(self: Box<Self>, unresponsive: bool) -> Later<'static, End> {
        Box::pin(async move {
            let patience = if unresponsive { Duration::ZERO } else { PATIENCE };
            let ended = match tokio::time::timeout(patience, self.told).await {
                Ok(Ok(ended)) => ended,
                _ => pump::Ended { code: None, status: "connection closed".to_owned() },
            };
            // the session is given up as a whole: sshd there ends what is left of it
            self.task.abort();
            let _ = tokio::time::timeout(LAST_CALL, self.task).await;
            End { code: ended.code, status: ended.status, stderr: self.stderr.text() }
        })
    }
}
