//! Runs the programs of volume managers and filesystems: without a shell, by their full paths, with a limit.
//!
//! Never kills one: an `lvcreate` that dies between suspending a volume and resuming it would leave production's volume suspended.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;
use rustix::process::{Pid, Signal};

use crate::problem::{Explain, Outcome, Problem};

/// How long a look may take.
pub const LOOK: Duration = Duration::from_secs(20);

/// How long a change may take.
pub const CHANGE: Duration = Duration::from_secs(60);

/// How often it is looked whether a program has ended: the source may be down meanwhile.
const POLL: Duration = Duration::from_millis(2);

/// How long one that was asked to end is waited for.
const ENDS: Duration = Duration::from_secs(10);

/// Where programs of the system are; a login's PATH may lack the half of them, and is not asked.
const FOLDERS: [&str; 5] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin"];

/// Where a program is; None: this host has none.
pub fn find(program: &str) -> Option<PathBuf> {
    FOLDERS.iter().map(|folder| Path::new(folder).join(program)).find(|path| path.is_file())
}

/// Runs a program to its end. What it says on stdout.
pub fn run<S: AsRef<OsStr>>(program: &str, arguments: &[S], limit: Duration) -> Outcome<Vec<u8>> {
    let path = find(program).ok_or_else(|| Problem::failed(format!("this host has no program `{program}`")))?;
    let shown = std::iter::once(program.into())
        .chain(arguments.iter().map(|word| word.as_ref().to_string_lossy()))
        .collect::<Vec<_>>()
        .join(" ");
    // files, not pipes: a daemon that it starts may keep them for life
    let (out, said) = (paper()?, paper()?);
    let writable = |file: &File| file.try_clone().map(Stdio::from).explain(|| "cannot keep a program's output");
    let mut child = Command::new(&path)
        .args(arguments)
        .env("LC_ALL", "C")
        .env("LVM_SUPPRESS_FD_WARNINGS", "1")
        .stdin(Stdio::null())
        .stdout(writable(&out)?)
        .stderr(writable(&said)?)
        .process_group(0)
        .spawn()
        .explain(|| format!("cannot execute `{shown}`"))?;
    let (begun, mut asked) = (Instant::now(), false);
    let status = loop {
        if let Some(status) = child.try_wait().explain(|| format!("cannot wait for `{shown}`"))? {
            break status;
        }
        if !asked && begun.elapsed() > limit {
            let _ = rustix::process::kill_process_group(Pid::from_child(&child), Signal::TERM);
            asked = true;
        }
        if begun.elapsed() > limit + ENDS {
            return Err(Problem::failed(format!("`{shown}` has not ended after {} s", limit.as_secs())).hint(
                "It was asked to end, and is left alone: look at what holds it up (`ps`, `dmsetup info`, the kernel's log).",
            ));
        }
        std::thread::sleep(POLL);
    };
    if status.success() && !asked {
        return text(out);
    }
    let said = String::from_utf8_lossy(&text(said)?).trim().to_owned();
    let lines: Vec<&str> = said.lines().collect();
    let last = lines[lines.len().saturating_sub(8)..].join("\n");
    let problem = match asked {
        true => Problem::failed(format!("`{shown}` did not end within {} s and was ended", limit.as_secs())),
        false => Problem::failed(format!("`{shown}` failed ({status})")),
    };
    Err(problem.cause(if last.is_empty() { "it said nothing".to_owned() } else { last }))
}

fn paper() -> Outcome<File> {
    rustix::fs::memfd_create("said", MemfdFlags::CLOEXEC).map(File::from).explain(|| "cannot keep a program's output")
}

fn text(mut file: File) -> Outcome<Vec<u8>> {
    let mut text = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut text)).explain(|| "cannot read a program's output")?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_words_and_a_failure_says_what_was_said() {
        let said = run("printf", &["%s|", "a b", "$(id)", "'"], LOOK).unwrap();
        assert_eq!(said, b"a b|$(id)|'|");
        let problem = run("ls", &["/nowhere at all"], LOOK).unwrap_err();
        assert!(problem.message.starts_with("`ls /nowhere at all` failed"), "{problem:?}");
        assert!(problem.causes[0].contains("No such file"), "{problem:?}");
        assert!(run("no-such-program", &[""; 0], LOOK).unwrap_err().message.contains("has no program"));
    }

    #[test]
    fn one_that_does_not_end_is_ended() {
        let begun = Instant::now();
        let problem = run("sleep", &["50"], Duration::from_millis(100)).unwrap_err();
        assert!(problem.message.contains("did not end within"), "{problem:?}");
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}
