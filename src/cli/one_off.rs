//! The one-off form: source and destinations on the command line, and a password that does not stay there.
//!
//! Only reads what was typed; what is done with it is the same refresh as any other.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::IntoRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use secrecy::SecretString;
use secrecy::zeroize::Zeroizing;

use super::args::{AgentArg, DEFAULT_CONFIG, Global, OneOffArgs, TransportArg};
use super::{How, load_from, run_all, terminal, typed};
use crate::config::{AgentKind, Config, OneOff, SecretRef, TransportKind};
use crate::problem::{Explain, Kind, Outcome, Problem};

/// Runs what was typed.
pub(super) fn run(global: &Global, one_off: &OneOffArgs, how: How) -> Outcome<u8> {
    if !one_off.database.is_empty() {
        return Err(Problem::new(Kind::Usage, "--database is not in this version")
            .hint("Leave it out: the whole server is refreshed."));
    }
    let password = match (&one_off.password, one_off.password_fd) {
        (Some(password), _) => {
            wipe(password)?;
            None
        }
        (None, Some(fd)) => Some(from_pipe(fd)?),
        (None, None) => None,
    };
    // a file that is named must be there; the usual one need not
    let mut config = load_from(global, global.config.as_os_str() == DEFAULT_CONFIG)?;
    own_places(&mut config);
    let whole = |path: &std::path::PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    let form = OneOff {
        source: one_off.source.clone().unwrap_or_default(),
        destinations: one_off.destination.clone(),
        user: one_off.username.clone(),
        password: one_off.password_file.as_ref().map(|path| SecretRef::File(whole(path))),
        transport: match one_off.transport {
            TransportArg::Ssh => TransportKind::Ssh,
            TransportArg::Openssh => TransportKind::OpenSsh,
        },
        agent: match one_off.agent {
            AgentArg::Uploaded => AgentKind::Uploaded,
            AgentArg::Installed => AgentKind::Installed,
        },
    };
    let refresh = form.refresh(&mut config)?;
    run_all(global, &config, &[&refresh], how, &typed(global, password)?)
}

/// Without a configuration, an ordinary account keeps history and log in its own home; so does root, where the usual places are
/// those of the service's account, which could not open what root leaves there.
pub(super) fn own_places(config: &mut Config) {
    let is_default = |key: &str| config.effective.iter().any(|value| value.key == key && value.origin == "default");
    let (state, log) = (is_default("daemon.state_dir"), is_default("daemon.log_dir"));
    let Some(base) = home() else { return };
    let root = crate::account::own_uid() == 0;
    let writable = |folder: &Path| match std::fs::metadata(folder) {
        Ok(metadata) if root => metadata.uid() == 0,
        Err(_) if root => true,
        _ => rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).is_ok(),
    };
    if state && !writable(&config.daemon.state_dir) {
        config.daemon.state_dir = base.join("controller");
    }
    if log && !writable(&config.daemon.log_dir) {
        config.daemon.log_dir = base.join("log");
    }
}

/// Where an account keeps what is its own.
fn home() -> Option<PathBuf> {
    Some(Path::new(&std::env::var_os("HOME")?).join(".local/state/mysql-refreshd"))
}

/// History and log in this account's own home, whatever the configuration says; false: it has none, or has them there anyway.
pub(super) fn into_home(config: &mut Config) -> bool {
    let Some(base) = home().filter(|base| base.join("controller") != config.daemon.state_dir) else { return false };
    config.daemon.state_dir = base.join("controller");
    config.daemon.log_dir = base.join("log");
    true
}

/// Starts this program again without the password among its arguments; it comes through a pipe instead. Comes back only
/// with an error.
fn wipe(password: &str) -> Outcome<()> {
    let what = "cannot take the password off the command line";
    let (reader, writer) = rustix::pipe::pipe().explain(|| what)?;
    let mut writer = File::from(writer);
    writer.write_all(password.as_bytes()).explain(|| what)?;
    drop(writer);
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| "mysql-refreshd".into());
    let mut kept = without_password(arguments);
    // it is empty once it is read: what inherits it learns nothing
    kept.extend(["--password-fd".into(), reader.into_raw_fd().to_string().into()]);
    let program = std::env::current_exe().explain(|| what)?;
    Err(Problem::failed(what).because(Command::new(program).arg0(name).args(kept).exec()))
}

/// The arguments without `-p X`, `-pX`, `--password X` and `--password=X`.
fn without_password(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut kept: Vec<OsString> = Vec::new();
    let mut skip = false;
    for argument in arguments {
        if std::mem::take(&mut skip) {
            continue;
        }
        let bytes = argument.as_bytes();
        if argument == "--password" {
            skip = true;
        } else if bytes.starts_with(b"--") {
            // an abbreviation is none to clap
            if !bytes.starts_with(b"--password=") {
                kept.push(argument);
            }
        } else if let Some((before, alone)) = split_short(bytes) {
            if before.len() > 1 {
                kept.push(OsString::from_vec(before.to_vec()));
            }
            skip = alone;
        } else {
            kept.push(argument);
        }
    }
    kept
}

/// Of `-vpSECRET` the part before `p`, and whether the value is the next argument. None: there is no such `p`, or it is in
/// another option's value.
fn split_short(bytes: &[u8]) -> Option<(&[u8], bool)> {
    if !bytes.starts_with(b"-") {
        return None;
    }
    for (at, letter) in bytes.iter().enumerate().skip(1) {
        match letter {
            b'p' => return Some((&bytes[..at], at + 1 == bytes.len())),
            b's' | b'd' | b'u' => return None,
            _ => {}
        }
    }
    None
}

fn from_pipe(fd: u32) -> Outcome<SecretString> {
    let path = format!("/proc/self/fd/{fd}");
    let mut text = Zeroizing::new(String::with_capacity(4096));
    let read = File::open(&path).and_then(|file| file.take(4096).read_to_string(&mut text));
    read.explain(|| "cannot read the password")?;
    terminal::say(
        "warning: a password on the command line can be seen by others for a moment, and stays in your shell's history. \
         Rather use --password-file FILE, SQL accounts with unix_socket authentication (no password at all), or `password` \
         with a systemd credential in the configuration.",
    );
    Ok(SecretString::from(text.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_form_of_the_password_stays() {
        for typed in ["-p secret", "-psecret", "--password secret", "--password=secret", "-vpsecret", "-vp secret"] {
            let words = format!("--now -s a -d b {typed} -u x").split(' ').map(OsString::from).collect::<Vec<_>>();
            let kept = without_password(words.into_iter());
            let kept = kept.into_iter().map(|word| word.into_string().unwrap()).collect::<Vec<_>>().join(" ");
            let wanted = if typed.starts_with("-v") { "--now -s a -d b -v -u x" } else { "--now -s a -d b -u x" };
            assert_eq!(kept, wanted, "{typed}");
        }
        let kept = without_password(["-sprod", "-dp1,p2", "-up", "--policy=p"].into_iter().map(OsString::from));
        assert_eq!(kept, ["-sprod", "-dp1,p2", "-up", "--policy=p"]);
    }
}
