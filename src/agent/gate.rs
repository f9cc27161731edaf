//! The gate: what sshd executes for a controller's key (`command=` in authorized_keys), whatever was asked for. Starts the
//! agent of this very program, through sudo unless it is root, and nothing else.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::problem::{Explain, Kind, Outcome, Problem};
use crate::wire::message::Role;

/// What may be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wish {
    /// None: a lane of an agent.
    role: Option<Role>,
    /// sudo may ask for a password, with this question.
    prompt: Option<String>,
}

/// Becomes the agent that was asked for. Comes back only with an error.
pub fn pass(asked: Option<OsString>) -> Outcome<()> {
    let asked = asked.and_then(|text| text.into_string().ok()).unwrap_or_default();
    let program = std::env::current_exe().explain(|| "cannot find this program")?;
    let Some(wish) = understand(&asked, &program) else {
        return Err(Problem::new(Kind::Refused, "mysql-refreshd gate: this key starts agents and nothing else")
            .hint("Use a key of your own to log in."));
    };
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new(&program)
    } else {
        let mut sudo = Command::new("/usr/bin/sudo");
        match &wish.prompt {
            None => sudo.arg("-n"),
            Some(prompt) => sudo.args(["-S", "-p", prompt]),
        };
        sudo.arg("--").arg(&program);
        sudo
    };
    command.arg("agent");
    match wish.role {
        Some(role) => command.args(["--role", &role.to_string()]),
        None => command.arg("--lane"),
    };
    let error = command.exec();
    Err(Problem::failed("mysql-refreshd gate: cannot start the agent").because(error))
}

/// The only lines there are: those that a controller sends for an installed agent.
fn understand(asked: &str, program: &Path) -> Option<Wish> {
    let words: Vec<&str> = asked.split(' ').collect();
    let (prompt, rest): (Option<&str>, &[&str]) = match words.as_slice() {
        ["sudo", "-n", "--", rest @ ..] => (None, rest),
        ["sudo", "-S", "-p", prompt, "--", rest @ ..] => (Some(prompt), rest),
        rest => (None, rest),
    };
    let mark = |text: &str| {
        let random = text.strip_prefix("mysql-refreshd-").and_then(|rest| rest.strip_suffix(':'));
        random.is_some_and(|hex| hex.len() == 16 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    if prompt.is_some_and(|prompt| !mark(prompt)) {
        return None;
    }
    let role = match rest {
        [path, "agent", "--role", "source"] if Path::new(path) == program => Some(Role::Source),
        [path, "agent", "--role", "destination"] if Path::new(path) == program => Some(Role::Destination),
        [path, "agent", "--lane"] if Path::new(path) == program => None,
        _ => return None,
    };
    Some(Wish { role, prompt: prompt.map(str::to_owned) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_the_agent() {
        let program = Path::new("/usr/local/bin/mysql-refreshd");
        let wish = |asked: &str| understand(asked, program);
        let agent = "/usr/local/bin/mysql-refreshd agent --role source";
        assert_eq!(wish(agent).unwrap().role, Some(Role::Source));
        assert_eq!(wish("/usr/local/bin/mysql-refreshd agent --lane").unwrap().role, None);
        assert_eq!(wish(&format!("sudo -n -- {agent}")).unwrap().prompt, None);
        let mark = "mysql-refreshd-0123456789abcdef:";
        assert_eq!(wish(&format!("sudo -S -p {mark} -- {agent}")).unwrap().prompt.unwrap(), mark);
        for no in [
            "",
            "id",
            "sudo -n -- id",
            "/usr/local/bin/mysql-refreshd agent --role source --trust-controller",
            "/usr/local/bin/mysql-refreshd agent --role source; id",
            "/usr/local/bin/mysql-refreshd agent --role source\nid",
            "/usr/local/bin/mysql-refreshd consent grant --from prod",
            "/tmp/mysql-refreshd agent --role source",
            "sudo -S -p %u -- /usr/local/bin/mysql-refreshd agent --role source",
            "sh -c 'id'",
        ] {
            assert_eq!(wish(no), None, "{no}");
        }
    }
}
