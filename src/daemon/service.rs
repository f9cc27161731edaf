//! The service manager's side: ready, reloading, stopping, what goes on, signs of life; and an inhibitor against shutdown while a
//! source is down. Without systemd all of it is nothing.

use std::process::Stdio;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::process::{Child, ChildStdin, Command};

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

/// A lock against shutdown of this machine. It goes when this is dropped or this process dies: the child that holds it
/// reads a pipe of ours.
pub struct Inhibitor {
    _child: Child,
    _pipe: ChildStdin,
}

impl Inhibitor {
    /// Takes it; where an account may not forbid a shutdown, it may still delay one. None: there is nobody to ask.
    pub async fn take(why: &str) -> Option<Self> {
        for mode in ["block", "delay"] {
            let mut command = Command::new("systemd-inhibit");
            // one thing: logind of systemd 252 refuses an ordinary account several at once, even where it may each of them
            command.args(["--what=shutdown", "--who=mysql-refreshd"]);
            command.arg(format!("--why={why}")).arg(format!("--mode={mode}")).arg("cat");
            // what the service manager has told this process is not for a child
            command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
            let mut child = command.spawn().ok()?;
            // out of the child's hands: waiting for it would close it
            let pipe = child.stdin.take()?;
            // one that is refused ends at once
            if tokio::time::timeout(Duration::from_millis(500), child.wait()).await.is_err() {
                tracing::debug!(mode, why, "shutdown is inhibited");
                return Some(Self { _child: child, _pipe: pipe });
            }
        }
        tracing::info!("this account may not inhibit a shutdown of this machine");
        None
    }
}
