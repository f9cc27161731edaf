//! The service manager's side: ready, reloading, stopping, what goes on, signs of life; and an inhibitor against shutdown while a
//! source is down. Without systemd all of it is nothing.

use std::process::Stdio;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::oneshot;

/// How much longer a stop may take, each time it is said again.
const LONGER: Duration = Duration::from_secs(60);

/// Where the daemon stands with its service manager.
pub struct Service {
    watchdog: Option<Duration>,
    last_sign: Instant,
    status: String,
    say: mpsc::Sender<Saying>,
}

enum Saying {
    States(Vec<NotifyState<'static>>),
    Status(String),
}

/// Says what the daemon wants to say, from a thread of its own: a service manager that does not read for a while must not hold up
/// what only the daemon can do.
fn speaker() -> mpsc::Sender<Saying> {
    let (say, said) = mpsc::channel();
    std::thread::spawn(move || {
        for saying in said {
            // there may be nobody to tell
            let _ = match &saying {
                Saying::States(states) => sd_notify::notify(states),
                Saying::Status(text) => sd_notify::notify(&[NotifyState::Status(text)]),
            };
        }
    });
    say
}

impl Service {
    /// As the environment says.
    pub fn new() -> Self {
        // three signs in the time in which one is wanted
        let watchdog = sd_notify::watchdog_enabled().map(|every| every / 3);
        Self { watchdog, last_sign: Instant::now(), status: String::new(), say: speaker() }
    }

    fn tell(&self, states: Vec<NotifyState<'static>>) {
        let _ = self.say.send(Saying::States(states));
    }

    /// It can be asked now.
    pub fn ready(&self) {
        self.tell(vec![NotifyState::Ready]);
    }

    /// The configuration is being read again; [`Self::ready`] ends that.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(vec![NotifyState::Reloading, now]),
            Err(_) => self.tell(vec![NotifyState::Reloading]),
        }
    }

    /// It is about to end.
    pub fn stopping(&self) {
        self.tell(vec![NotifyState::Stopping]);
    }

    /// The end takes longer, and something still moves.
    pub fn needs_longer(&self) {
        self.tell(vec![NotifyState::ExtendTimeoutUsec(LONGER.as_micros() as u32)]);
    }

    /// What goes on, in a line.
    pub fn status(&mut self, text: String) {
        if text != self.status {
            let _ = self.say.send(Saying::Status(text.clone()));
            self.status = text;
        }
    }

    /// A sign of life, if one is due.
    pub fn alive(&mut self) {
        if self.watchdog.is_some_and(|every| self.last_sign.elapsed() >= every) {
            self.tell(vec![NotifyState::Watchdog]);
            self.last_sign = Instant::now();
        }
    }
}

/// A lock against shutdown of this machine, for as long as this lives; it goes with this process, too: the child that holds it reads
/// a pipe of ours. Taken in the background, since whoever grants it may take its time.
pub struct Inhibitor {
    _release: oneshot::Sender<()>,
}

impl Inhibitor {
    /// Begins to take it.
    pub fn take(why: String) -> Self {
        let (release, released) = oneshot::channel::<()>();
        tokio::spawn(async move {
            let held = inhibit(&why).await;
            // an error: the other end is gone
            let _ = released.await;
            drop(held);
        });
        Self { _release: release }
    }
}

/// How long it may take until it is granted or refused.
const GRANTED: Duration = Duration::from_secs(30);

/// Where an account may not forbid a shutdown, it may still delay one. None: neither, or there is nobody to ask.
async fn inhibit(why: &str) -> Option<(Child, ChildStdin)> {
    for mode in ["block", "delay"] {
        let mut command = Command::new("systemd-inhibit");
        // one thing: logind of systemd 252 refuses an ordinary account several at once, even where it may each of them
        command.args(["--what=shutdown", "--who=mysql-refreshd"]);
        command.arg(format!("--why={why}")).arg(format!("--mode={mode}")).args(["sh", "-c", "echo held; exec cat"]);
        // what the service manager has told this process is not for a child
        command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        let mut child = command.spawn().ok()?;
        // out of the child's hands: waiting for it would close it
        let (pipe, mut says) = (child.stdin.take()?, child.stdout.take()?);
        let mut held = [0; 4];
        if let Ok(Ok(_)) = tokio::time::timeout(GRANTED, says.read_exact(&mut held)).await {
            tracing::debug!(mode, why, "shutdown is inhibited");
            return Some((child, pipe));
        }
        drop(pipe);
        let _ = child.start_kill();
        let _ = tokio::time::timeout(GRANTED, child.wait()).await;
    }
    tracing::info!("this account may not inhibit a shutdown of this machine");
    None
}
