//! The asking side: is there a daemon, and what does it say.
//!
//! Prints nothing; who asks decides what is shown.

use std::io::ErrorKind;
use std::path::Path;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::message::{Answer, Greeting, PROTOCOL, Request, WITHDRAW};
use crate::config::Config;
use crate::lock;
use crate::problem::{Explain, Kind, Outcome, Problem};
use crate::run::Cancel;

/// A hash of everything that a configuration says.
pub fn fingerprint(config: &Config) -> String {
    let mut hasher = blake3::Hasher::new();
    for value in &config.effective {
        hasher.update(value.key.as_bytes()).update(b"\0").update(value.value.as_bytes()).update(b"\0");
    }
    hasher.finalize().to_hex().to_string()
}

/// The file whose lock says that a daemon works on a state folder.
pub(super) fn lock_file(state_dir: &Path) -> std::path::PathBuf {
    state_dir.join("daemon.lock")
}

/// A daemon that can be asked.
pub struct Client {
    stream: UnixStream,
}

impl Client {
    /// None: no daemon runs for this configuration.
    pub async fn connect(config: &Config) -> Outcome<Option<Self>> {
        let path = &config.daemon.socket;
        match UnixStream::connect(path).await {
            Ok(stream) => Ok(Some(Self { stream })),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                Err(Problem::new(Kind::Refused, format!("you may not use the daemon's socket {}", path.display()))
                    .because(error)
                    .hint("Its group may: ask for membership in the group mysql-refreshd, or use sudo."))
            }
            // nothing there, or what a daemon has left that was killed
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                let file = lock_file(&config.daemon.state_dir);
                if file.exists() && matches!(lock::take_within(&file, std::time::Duration::ZERO), Ok(None)) {
                    let what = format!(
                        "a daemon works on {}, but does not listen on {}",
                        config.daemon.state_dir.display(),
                        path.display()
                    );
                    return Err(Problem::new(Kind::Locked, what)
                        .because(error)
                        .hint("Is it starting or stopping? See `systemctl status mysql-refreshd`."));
                }
                Ok(None)
            }
            Err(error) => Err(error).explain(|| format!("cannot ask the daemon on {}", path.display())),
        }
    }

    /// Asks, and hears what is told on the way; returns the last answer. When `cancel` is wished, what was asked for is
    /// withdrawn, and its end awaited.
    pub async fn ask(
        self,
        config: &Config,
        request: Request,
        cancel: &Cancel,
        mut hear: impl FnMut(Answer),
    ) -> Outcome<Answer> {
        let gone = || "the daemon has ended the conversation";
        let greeting = Greeting {
            protocol: PROTOCOL,
            state_dir: config.daemon.state_dir.clone(),
            configuration: fingerprint(config),
            request,
        };
        let (reader, mut writer) = self.stream.into_split();
        let line = serde_json::to_string(&greeting).explain(|| "cannot write a request")?;
        writer.write_all(format!("{line}\n").as_bytes()).await.explain(gone)?;
        let mut lines = BufReader::new(reader).lines();
        let mut withdrawn = false;
        loop {
            let line = tokio::select! {
                line = lines.next_line() => line.explain(gone)?,
                () = cancel.cancelled(), if !withdrawn => {
                    withdrawn = true;
                    writer.write_all(format!("{WITHDRAW}\n").as_bytes()).await.explain(gone)?;
                    continue;
                }
            };
            let Some(line) = line else {
                return Err(Problem::new(Kind::Human, gone()).hint(
                    "What became of the run is not known here. A daemon that starts again puts interrupted runs back: see \
                     `mysql-refreshd status`; without a daemon, run `mysql-refreshd recover`.",
                ));
            };
            let answer: Answer =
                serde_json::from_str(&line).explain(|| "the daemon's answer is not understood").map_err(|problem| {
                    problem.hint("Restart the daemon after an upgrade: systemctl restart mysql-refreshd.")
                })?;
            if answer.is_last() {
                return Ok(answer);
            }
            hear(answer);
        }
    }
}
