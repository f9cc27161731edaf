//! Putting this very program on a host, once: at a path with its hash, in the account's own cache.
//!
//! For trying out. A program that its account can replace is never named in a sudoers file.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{End, Starter, reasons};
use crate::problem::{Explain, Kind, Outcome, Problem};

/// How long it may take.
const LIMIT: Duration = Duration::from_secs(300);

/// Says whether the program is there and what the machine is. `$1` is the program's name.
const LOOK: &str = "d=${XDG_CACHE_HOME:-$HOME/.cache}/mysql-refreshd; f=$d/$1; \
    if [ -x \"$f\" ]; then s=there; else s=missing; fi; printf 'mysql-refreshd-upload %s %s %s\\n' \"$(uname -m)\" \"$s\" \"$f\"";

/// Takes the program from stdin. `$1` is its name, `$2` its size.
const PUT: &str = "set -e; umask 077; d=${XDG_CACHE_HOME:-$HOME/.cache}/mysql-refreshd; mkdir -p \"$d\"; t=$(mktemp \"$d/.new.XXXXXX\"); \
    trap 'rm -f \"$t\"' EXIT; cat >\"$t\"; n=$(wc -c <\"$t\"); [ \"$n\" -eq \"$2\" ] || { echo \"$n of $2 bytes arrived\" >&2; exit 1; }; \
    chmod 700 \"$t\"; mv -f \"$t\" \"$d/$1\"; trap - EXIT; echo mysql-refreshd-upload done";

/// This program, also after it was replaced on disk.
const PROGRAM: &str = "/proc/self/exe";

/// What it is called there: by its content.
fn name() -> Outcome<String> {
    let mut hasher = blake3::Hasher::new();
    let file = std::fs::File::open(PROGRAM).explain(|| "cannot read this program")?;
    hasher.update_reader(file).explain(|| "cannot read this program")?;
    Ok(format!("agent-{}", &hasher.finalize().to_hex()[..24]))
}

/// Puts the program there if it is not, and tells where it is.
pub(super) async fn put(starter: &dyn Starter) -> Outcome<String> {
    let name = tokio::task::spawn_blocking(name).await.explain(|| "cannot read this program")??;
    let work = async {
        let said = run(starter, LOOK, &[&name], &[]).await?;
        let line = said.lines().find_map(|line| line.strip_prefix("mysql-refreshd-upload "));
        let mut fields = line.unwrap_or_default().splitn(3, ' ');
        let (Some(machine), Some(state), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            return Err(Problem::new(Kind::Lost, "the account's shell there does not understand a POSIX command line"));
        };
        if machine != std::env::consts::ARCH {
            return Err(reasons::other_architecture(machine));
        }
        if state != "there" {
            let content = tokio::fs::read(PROGRAM).await.explain(|| "cannot read this program")?;
            run(starter, PUT, &[&name, &content.len().to_string()], &content).await?;
        }
        Ok(path.to_owned())
    };
    match tokio::time::timeout(LIMIT, work).await {
        Ok(path) => path.map_err(|p| p.during(format!("cannot put this program on {}", starter.place()))),
        Err(_) => Err(Problem::new(Kind::Lost, format!("putting this program on {} takes too long", starter.place()))),
    }
}

/// Runs a shell script with arguments and input; what it says on stdout.
async fn run(starter: &dyn Starter, script: &str, arguments: &[&str], input: &[u8]) -> Outcome<String> {
    let mut words = ["sh", "-c", script, "sh"].map(str::to_owned).to_vec();
    words.extend(arguments.iter().map(|word| (*word).to_owned()));
    let mut pipe = starter.start(&words).await?;
    let mut said = Vec::new();
    let mut writer = pipe.writer;
    let (written, read) = tokio::join!(
        async move {
            let result = writer.write_all(input).await;
            let _ = writer.shutdown().await;
            // to a child's stdin only this is the end
            drop(writer);
            result
        },
        async { (&mut pipe.reader).take(64 * 1024).read_to_end(&mut said).await }
    );
    let end = pipe.process.end(false).await;
    if end.code != Some(0) || written.is_err() || read.is_err() {
        return Err(failed(starter, &end));
    }
    Ok(String::from_utf8_lossy(&said).into_owned())
}

fn failed(starter: &dyn Starter, end: &End) -> Problem {
    starter.explain(end).unwrap_or_else(|| {
        let problem = Problem::new(Kind::Lost, format!("a command there failed ({})", end.status));
        if end.stderr.is_empty() { problem } else { problem.cause(end.stderr.clone()) }
    })
}
