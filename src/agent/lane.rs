//! More sessions for one agent: lanes. The agent waits for them on a private socket; each lane is a process of its own, started
//! over a session of its own, that carries bytes between that session and the socket and understands none of them.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::problem::{Explain, Kind, Outcome, Problem};
use crate::wire::frame;
use crate::wire::message::Lanes;
use crate::wire::stripe::Part;

/// How long lanes may take to come.
const LIMIT: Duration = Duration::from_secs(15);

/// Removes the socket's name.
struct Named(PathBuf);

impl Drop for Named {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
        // the last one takes the folder along
        if let Some(folder) = self.0.parent() {
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// A folder that only this account can enter.
fn folder() -> Outcome<PathBuf> {
    let me = rustix::process::geteuid();
    let folder = match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|_| !me.is_root()) {
        _ if me.is_root() => PathBuf::from("/run/mysql-refreshd"),
        Some(own) => own.join("mysql-refreshd"),
        None => PathBuf::from(format!("/tmp/mysql-refreshd-{}", me.as_raw())),
    };
    let what = || format!("cannot use {}", folder.display());
    match std::fs::DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error).explain(what),
        _ => {}
    }
    let meta = std::fs::symlink_metadata(&folder).explain(what)?;
    if !meta.is_dir() || meta.uid() != me.as_raw() || meta.mode() & 0o077 != 0 {
        return Err(Problem::failed(what()).cause("others could get at it"));
    }
    Ok(folder)
}

fn socket(token: u128) -> Outcome<PathBuf> {
    Ok(folder()?.join(format!("lane-{token:032x}")))
}

/// Another agent may take the empty folder away just now.
fn listen(token: u128) -> Outcome<(Named, UnixListener)> {
    for _ in 0..10 {
        let named = Named(socket(token)?);
        match UnixListener::bind(&named.0) {
            Ok(listener) => return Ok((named, listener)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).explain(|| "cannot wait for lanes"),
        }
    }
    Err(Problem::failed("cannot wait for lanes"))
}

/// The agent: waits for its lanes.
pub async fn gather(lanes: &Lanes) -> Outcome<Vec<Part>> {
    let (named, listener) = listen(lanes.token)?;
    let _named = named;
    let take = async {
        let mut parts = Vec::new();
        while parts.len() < usize::from(lanes.more) {
            let (stream, _) = listener.accept().await.explain(|| "cannot take a lane")?;
            let (reader, writer) = stream.into_split();
            parts.push(Part { reader: Box::new(reader), writer: Box::new(writer) });
        }
        Ok(parts)
    };
    match tokio::time::timeout(LIMIT, take).await {
        Ok(parts) => parts,
        Err(_) => Err(Problem::new(Kind::Lost, "the other sessions of this agent did not come")),
    }
}

/// A lane: finds its agent, then carries.
pub fn run() -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.explain(|| "cannot start a lane")?;
    let result = runtime.block_on(async {
        let (mut stdin, mut stdout) = (tokio::io::stdin(), tokio::io::stdout());
        frame::greet(&mut stdout).await.explain(|| "there is nobody on stdout")?;
        frame::expect(&mut stdin).await.explain(|| "no controller on stdin; lanes are started by the controller")?;
        let token = stdin.read_u128_le().await.explain(|| "a lane without an agent")?;
        let stream = find(token).await?;
        let (mut reader, mut writer) = stream.into_split();
        let there = async {
            let _ = tokio::io::copy(&mut stdin, &mut writer).await;
            let _ = writer.shutdown().await;
        };
        let back = async {
            let _ = tokio::io::copy(&mut reader, &mut stdout).await;
            let _ = stdout.flush().await;
        };
        // it ends with its agent, whatever the controller does
        tokio::select! {
            () = back => {}
            () = async { there.await; std::future::pending::<()>().await } => {}
        }
        Ok(())
    });
    runtime.shutdown_background();
    result
}

/// The agent may not have got so far.
async fn find(token: u128) -> Outcome<UnixStream> {
    let path = socket(token)?;
    let begun = std::time::Instant::now();
    loop {
        match UnixStream::connect(&path).await {
            Ok(stream) => return Ok(stream),
            Err(_) if begun.elapsed() < LIMIT => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => return Err(error).explain(|| "the agent of this lane is not there"),
        }
    }
}
