//! The service manager's side: ready, reloading, stopping, what goes on, signs of life; and an inhibitor against shutdown while a
//! source is down. Without systemd all of it is nothing.

use std::process::Stdio;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::process::{Child, Command};

/// How much longer a stop may take, each time it is said again.
const LONGER: Duration = Duration::from_secs(60);

/// Where the daemon stands with its service manager.
pub struct Service {
    watchdog: Option<Duration>,
    last_sign: Instant,
    status: String,
}

fn tell(states: &[NotifyState<'_>]) {
    // there may be nobody to tell
    let _ = sd_notify::notify(states);
}

impl Service {
    /// As the environment says.
    pub fn new() -> Self {
        // three signs in the time in which one is wanted
        let watchdog = sd_notify::watchdog_enabled().map(|every| every / 3);
        Self { watchdog, last_sign: Instant::now(), status: String::new() }
    }

    /// It can be asked now.
    pub fn ready(&self) {
        tell(&[NotifyState::Ready]);
    }

    /// The configuration is being read again; [`Self::ready`] ends that.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(_) => tell(&[NotifyState::Reloading]),
        }
    }

    /// It is about to end.
    pub fn stopping(&self) {
        tell(&[NotifyState::Stopping]);
    }

    /// The end takes longer, and something still moves.
    pub fn needs_longer(&self) {
        tell(&[NotifyState::ExtendTimeoutUsec(LONGER.as_micros() as u32)]);
    }

    /// What goes on, in a line.
    pub fn status(&mut self, text: String) {
        if text != self.status {
            tell(&[NotifyState::Status(&text)]);
            self.status = text;
        }
    }

    /// A sign of life, if one is due.
    pub fn alive(&mut self) {
        if self.watchdog.is_some_and(|every| self.last_sign.elapsed() >= every) {
            tell(&[NotifyState::Watchdog]);
            self.last_sign = Instant::now();
        }
    }
}

/// A lock against shutdown and sleep of this machine. It goes when this is dropped or this process dies: the child that holds it
/// reads a pipe of ours.
pub struct Inhibitor {
    _child: Child,
}

impl Inhibitor {
    /// Takes it; where an account may not forbid a shutdown, it may still delay one. None: there is nobody to ask.
    pub async fn take(why: &str) -> Option<Self> {
        for mode in ["block", "delay"] {
            let mut command = Command::new("systemd-inhibit");
            command.args(["--what=shutdown:sleep", "--who=mysql-refreshd"]);
            command.arg(format!("--why={why}")).arg(format!("--mode={mode}")).arg("cat");
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
            let mut child = command.spawn().ok()?;
            // one that is refused ends at once
            if tokio::time::timeout(Duration::from_millis(500), child.wait()).await.is_err() {
                tracing::debug!(mode, why, "shutdown is inhibited");
                return Some(Self { _child: child });
            }
        }
        tracing::info!("this account may not inhibit a shutdown of this machine");
        None
    }
}
