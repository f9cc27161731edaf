//! The daemon's socket: who may write to it may ask. Turns lines into requests for the main loop, and its answers into lines.
//!
//! Decides nothing but that: access is the matter of the file's mode and group, and of the folder it lies in.

use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use super::Message;
use super::message::{Answer, Greeting, MAX_LINE, PROTOCOL, WITHDRAW};
use crate::account;
use crate::problem::{Explain, Kind, Outcome, Problem};

/// How long somebody may take to say what is wanted.
const GREETING: Duration = Duration::from_secs(10);

/// How long somebody may take to read a line.
const READING: Duration = Duration::from_secs(30);

/// How long it may take to find out somebody's name.
const NAMED: Duration = Duration::from_secs(2);

/// Answers that may wait for a slow reader; who is slower than that is left.
const ROOM: usize = 4096;

/// Somebody who has asked.
#[derive(Debug)]
pub struct Client {
    /// Who, for log and history.
    pub who: String,
    /// Where answers go.
    pub answers: mpsc::Sender<Answer>,
    /// Tells when it is withdrawn.
    pub withdrawn: mpsc::UnboundedReceiver<()>,
}

/// The socket, which is removed when this is dropped.
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Control {
    /// Makes the socket. The daemon's lock must be held: what lies there from another time is removed.
    pub fn bind(path: &Path) -> Outcome<Self> {
        let cannot = || format!("cannot make the socket {}", path.display());
        if let Some(folder) = path.parent().filter(|folder| !folder.exists()) {
            std::fs::DirBuilder::new().recursive(true).mode(0o750).create(folder).explain(cannot)?;
        }
        match std::fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path).explain(cannot)?,
            Ok(_) => {
                return Err(Problem::new(Kind::Usage, format!("{} is there already and no socket", path.display()))
                    .hint("Set `daemon.socket` to a path of its own."));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).explain(cannot),
        }
        // between bind and chmod nobody listens yet
        let listener = UnixListener::bind(path).explain(cannot)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).explain(cannot)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Listens until it is aborted. `state_dir` tells whose daemon this is; `talking` is held by every conversation.
    pub async fn serve(self, state_dir: PathBuf, main: mpsc::UnboundedSender<Message>, talking: mpsc::Sender<()>) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let (main, state_dir, talking) = (main.clone(), state_dir.clone(), talking.clone());
                    tokio::spawn(async move {
                        let _ = converse(stream, &state_dir, &main).await;
                        drop(talking);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the control socket");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

/// Who is at the other end.
async fn who(stream: &UnixStream) -> String {
    let Ok(uid) = stream.peer_cred().map(|peer| peer.uid()) else { return "somebody".to_owned() };
    // accounts may come over a network that hangs
    let name = tokio::task::spawn_blocking(move || account::of_uid(uid));
    match tokio::time::timeout(NAMED, name).await {
        Ok(Ok(Some(account))) => format!("{} (uid {uid})", account.name),
        _ => format!("uid {uid}"),
    }
}

async fn converse(stream: UnixStream, state_dir: &Path, main: &mpsc::UnboundedSender<Message>) -> std::io::Result<()> {
    let who = who(&stream).await;
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader.take(MAX_LINE as u64)).lines();
    let Ok(Ok(Some(line))) = tokio::time::timeout(GREETING, lines.next_line()).await else { return Ok(()) };
    let (answers, mut told) = mpsc::channel(ROOM);
    match understand(&line, state_dir) {
        Err(problem) => drop(answers.try_send(Answer::Failed(problem))),
        Ok(greeting) => {
            let (withdraw, withdrawn) = mpsc::unbounded_channel();
            tokio::spawn(async move {
                while let Ok(Some(line)) = lines.next_line().await {
                    if line.trim() == WITHDRAW {
                        let _ = withdraw.send(());
                    }
                }
            });
            let client = Client { who, answers, withdrawn };
            let _ = main.send(Message::Asked(Box::new((greeting, client))));
        }
    }
    while let Some(answer) = told.recv().await {
        let mut line = serde_json::to_vec(&answer)?;
        line.push(b'\n');
        tokio::time::timeout(READING, writer.write_all(&line)).await??;
        if answer.is_last() {
            break;
        }
    }
    writer.shutdown().await
}

pub(super) fn understand(line: &str, state_dir: &Path) -> Outcome<Greeting> {
    // the protocol first: the rest may have another shape in another version
    #[derive(serde::Deserialize)]
    struct Version {
        protocol: u32,
    }
    let strange = || "the daemon does not understand this request";
    let version: Version = serde_json::from_str(line).explain(strange)?;
    if version.protocol != PROTOCOL {
        let what = format!("the daemon speaks protocol {PROTOCOL}, this program {}", version.protocol);
        return Err(Problem::new(Kind::Refused, what)
            .hint("Restart the daemon after an upgrade: systemctl restart mysql-refreshd."));
    }
    let greeting: Greeting = serde_json::from_str(line).explain(strange)?;
    if greeting.state_dir != state_dir {
        let what = format!(
            "the daemon on this socket keeps its state in {}, this configuration in {}",
            state_dir.display(),
            greeting.state_dir.display()
        );
        return Err(
            Problem::new(Kind::Usage, what).hint("Set `daemon.socket` where several controllers share a machine.")
        );
    }
    Ok(greeting)
}
