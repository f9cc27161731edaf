//! Root that works on a state folder of another account becomes that account: nothing of root's is left there for a daemon to
//! stumble over, and no more is done as root than must be.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::account;
use crate::config::Config;
use crate::problem::{Explain, Kind, Outcome, Problem};

/// Whether this is root, and the state folder another account's.
pub(super) fn is_anothers(config: &Config) -> bool {
    let owner = std::fs::metadata(&config.daemon.state_dir).map(|metadata| metadata.uid());
    account::own_uid() == 0 && owner.is_ok_and(|uid| uid != 0)
}

/// Becomes the owner of the state folder by executing this program anew; returns where that is not needed.
pub(super) fn become_owner(config: &Config) -> Outcome<()> {
    if !is_anothers(config) {
        return Ok(());
    }
    let (mut command, name) = again(config)?;
    Err(Problem::failed(format!("cannot go on as {name}")).because(command.exec()))
}

/// Runs this program once more, as the owner of the state folder; its exit code.
pub(super) fn as_owner(config: &Config) -> Outcome<u8> {
    let (mut command, name) = again(config)?;
    let status = command.status().explain(|| format!("cannot go on as {name}"))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    code.ok_or_else(|| Problem::new(Kind::Human, format!("what was done as {name} ended by {status}")))
}

/// This program with the same arguments, as the owner of the state folder, and the name of that account.
fn again(config: &Config) -> Outcome<(Command, String)> {
    let folder = &config.daemon.state_dir;
    let uid = std::fs::metadata(folder).explain(|| format!("cannot read {}", folder.display()))?.uid();
    let owner = account::of_uid(uid).ok_or_else(|| {
        Problem::new(Kind::Usage, format!("{} belongs to uid {uid}, which is no account", folder.display()))
            .hint("Give it to the account of the service.")
    })?;
    let program = std::env::current_exe().explain(|| "cannot find this program")?;
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).uid(owner.uid).gid(owner.gid);
    command.env("HOME", &owner.home).env("USER", &owner.name).env("LOGNAME", &owner.name);
    // root's own key agent and runtime folder are not for this account
    command.env_remove("SSH_AUTH_SOCK").env_remove("XDG_RUNTIME_DIR").env_remove("XDG_CONFIG_HOME");
    Ok((command, owner.name))
}
