//! What a failed connection or a failed start means, told apart, each with what to do. Pure: texts and exit codes in,
//! problems out.
//!
//! Texts are those of OpenSSH, sudo, dash, bash and glibc. What is not recognised is shown as it came.

use super::End;
use crate::problem::{Kind, Problem};
use crate::route::{AgentProgram, Route};

fn lost(what: impl Into<String>) -> Problem {
    Problem::new(Kind::Lost, what)
}

/// Nothing answers there.
pub(super) fn unreachable(place: &str, why: impl Into<String>) -> Problem {
    lost(format!("{place} cannot be reached"))
        .passing()
        .cause(why)
        .hint("Check `address` and `port` of the host, its name in the DNS, the network and firewalls.")
}

/// Something says no before SSH begins.
pub(super) fn refused(place: &str) -> Problem {
    lost(format!("{place} refuses connections"))
        .passing()
        .hint("Does sshd run there, and on this port? Check `port` of the host.")
}

/// The host's key is not known.
pub(super) fn unknown_key(place: &str, offered: &str) -> Problem {
    Problem::refused(format!("the host key of {place} is not known"))
        .cause(format!("it offers {offered}"))
        .hint("Compare this with the host's own (`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` there), then run utils/copy-all-keys.sh, or pin it with `host_key`.")
}

/// The host's key is another one than the one that is known.
pub(super) fn changed_key(place: &str, offered: &str) -> Problem {
    Problem::refused(format!("the host key of {place} is not the one that is known: perhaps it is another machine"))
        .cause(format!("it offers {offered}"))
        .hint("If the host was installed anew, compare the key on the host itself, then remove the old one with `ssh-keygen -R` and pin the new one with utils/copy-all-keys.sh. (A fingerprint in `host_key` must be that of the key that is offered; a whole key can be of any type.)")
}

/// The host's key must not be used any more.
pub(super) fn revoked_key(place: &str, offered: &str) -> Problem {
    Problem::refused(format!("the host key of {place} is marked as revoked"))
        .cause(format!("it offers {offered}"))
        .hint("The host needs a new key; then pin that one with utils/copy-all-keys.sh.")
}

/// Nobody lets us in.
pub(super) fn authentication(place: &str, tried: &str) -> Problem {
    lost(format!("{place} does not let this key in"))
        .cause(tried.to_owned())
        .hint("Is the public key in ~/.ssh/authorized_keys of that account? utils/copy-all-keys.sh puts it there. Check `user` and `identity` in [ssh] (for an installed agent mysql-refreshd and /etc/mysql-refreshd/id_ed25519, as a rule).")
}

/// The machine there has another processor.
pub(super) fn other_architecture(machine: &str) -> Problem {
    lost(format!("the machine there is {machine}, and this program is built for {}", std::env::consts::ARCH))
        .hint("Install mysql-refreshd for its architecture there, and set `agent = \"installed\"`.")
}

/// What OpenSSH's client says of itself; None: it is about the command.
pub(super) fn of_openssh(end: &End, place: &str) -> Option<Problem> {
    if end.code != Some(255) {
        return None;
    }
    let said = end.stderr.as_str();
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    let line = |words: &[&str]| {
        said.lines().find(|line| words.iter().any(|word| line.contains(word))).unwrap_or_default().trim().to_owned()
    };
    let offered = || {
        let found =
            said.split_whitespace().find(|word| word.starts_with("SHA256:")).map(|word| word.trim_end_matches('.'));
        found.unwrap_or("a key").to_owned()
    };
    const UNREACHABLE: [&str; 6] = [
        "Could not resolve hostname",
        "timed out",
        "No route to host",
        "is unreachable",
        "Temporary failure",
        "Connection reset",
    ];
    let problem = if has(&["REVOKED HOST KEY", "marked as revoked"]) {
        revoked_key(place, &offered())
    } else if has(&["REMOTE HOST IDENTIFICATION HAS CHANGED"]) {
        changed_key(place, &offered())
    } else if has(&["host key is known", "Host key verification failed"]) {
        unknown_key(place, &offered())
    } else if has(&["Permission denied (", "Too many authentication failures", "Permission denied, please"]) {
        authentication(place, &line(&["Permission denied", "Too many"]))
    } else if has(&["knownhostscommand", "KnownHostsCommand"]) {
        lost(format!("ssh to {place} failed: this `ssh` is too old to pin a key with `host_key`"))
            .cause(said)
            .hint("OpenSSH 8.5 can; or pin the key in a known_hosts file, or use `transport = \"ssh\"`.")
    } else if has(&["Connection refused"]) {
        refused(place)
    } else if has(&UNREACHABLE) {
        unreachable(place, line(&UNREACHABLE))
    } else {
        lost(format!("ssh to {place} failed")).cause(if said.is_empty() {
            "it said nothing".to_owned()
        } else {
            said.to_owned()
        })
    };
    Some(problem)
}

/// What it means that an agent ended before it greeted.
pub(super) fn of_agent(end: &End, route: &Route) -> Problem {
    let said = end.stderr.as_str();
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    let program = match &route.agent {
        AgentProgram::Own(path) | AgentProgram::Installed(path) => path.display().to_string(),
        AgentProgram::Uploaded => "the uploaded agent".to_owned(),
    };
    // other lines may be a login script's
    let about = |words: &[&str]| {
        said.lines().any(|line| line.contains(program.as_str()) && words.iter().any(|word| line.contains(word)))
    };
    let through_sudo = route.sudo;
    let problem = if through_sudo && has(&["Sorry, try again", "incorrect password"]) {
        lost("sudo does not accept the password").hint("Check `sudo_password`, or what you typed.")
    } else if through_sudo
        && has(&["password is required", "terminal is required", "no password was provided", "must have a tty"])
    {
        lost("sudo wants a password").hint(
            "On the host, as root: utils/remove-sudo-password-prompt.sh; or give the password with --ask-sudo-password or `sudo_password`.",
        )
    } else if through_sudo
        && has(&["not in the sudoers", "not allowed to execute", "may not run sudo", "not allowed to run sudo"])
    {
        lost("sudo does not let this account start the agent")
            .hint("On the host, as root: utils/remove-sudo-password-prompt.sh (it allows the agent and nothing else).")
    } else if has(&["sudo: not found", "sudo: command not found", "sudo: No such file", "cannot execute sudo"]) {
        lost("there is no sudo")
            .hint("Install it there, or set `sudo = false` and log in as an account that may do the work.")
    } else if has(&["Exec format error", "cannot execute binary file"]) {
        lost(format!("{program} is not a program for that machine: another architecture, or a damaged file"))
            .hint("Install mysql-refreshd for the host's architecture there.")
    } else if has(&["GLIBC", "cannot open shared object", "libc.so"]) {
        lost(format!("the system libraries there are too old for {program}"))
            .hint("Build mysql-refreshd on that system, or on an older one, and install it there.")
    } else if has(&["mysql-refreshd gate:"]) {
        lost("the host's gate does not let this through")
            .hint("The key is there for an installed agent only: set `agent = \"installed\"` and `agent_path` to the program that the key's command= names.")
    } else if end.code == Some(126)
        || has(&["unable to execute"])
        || (end.code != Some(127) && about(&["Permission denied"]))
    {
        lost(format!("{program} may not be executed"))
            .hint("Is it executable for this account, and is its filesystem mounted without noexec? (An uploaded agent lies in ~/.cache; set XDG_CACHE_HOME or install it.)")
    } else if end.code == Some(127) || about(&["not found", "No such file or directory", "cannot execute"]) {
        lost(format!("there is no agent at {program}"))
            .hint("Install mysql-refreshd there (root-owned, mode 0755), check `agent_path`, or set `agent = \"uploaded\"` for a try.")
    } else if has(&["unrecognized subcommand", "unexpected argument", "Usage: mysql-refreshd"]) {
        lost(format!("{program} is another version of mysql-refreshd and does not understand how it is started"))
            .hint("Install the same version on the controller and on the host.")
    } else if has(&["account is currently not available", "nologin"]) {
        lost("the account there has no shell").hint("Give it one: `usermod --shell /bin/sh ACCOUNT`.")
    } else {
        lost(format!("the agent ended before it was ready ({})", end.status))
    };
    let shown = without_marks(said);
    if shown.is_empty() { problem } else { problem.cause(shown) }
}

/// Without the marks of sudo's questions, which mean nothing to a person.
fn without_marks(said: &str) -> String {
    let is_mark = |rest: &str| rest.len() >= 16 && rest.as_bytes()[..16].iter().all(u8::is_ascii_hexdigit);
    let mut parts = said.split("mysql-refreshd-");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(16..).filter(|_| is_mark(part)).and_then(|rest| rest.strip_prefix(':')) {
            Some(rest) => text.push_str(rest),
            None => text.extend(["mysql-refreshd-", part]),
        }
    }
    text.lines().filter(|line| !line.trim().is_empty()).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::Way;

    fn end(code: i32, stderr: &str) -> End {
        End { code: Some(code), status: format!("exit status: {code}"), stderr: stderr.to_owned() }
    }

    #[test]
    fn openssh_failures_are_told_apart() {
        for (stderr, word, kind) in [
            ("ssh: connect to host db1 port 22: Connection refused", "refuses", Kind::Lost),
            ("ssh: connect to host db1 port 22: Connection timed out", "cannot be reached", Kind::Lost),
            ("ssh: Could not resolve hostname db1: Name or service not known", "cannot be reached", Kind::Lost),
            (
                "No ED25519 host key is known for db1 and you have requested strict checking.\nHost key verification failed.",
                "not known",
                Kind::Refused,
            ),
            (
                "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nis\nSHA256:abc.\nHost key verification failed.",
                "another machine",
                Kind::Refused,
            ),
            ("r@db1: Permission denied (publickey).", "does not let this key in", Kind::Lost),
        ] {
            let problem = of_openssh(&end(255, stderr), "r@db1").unwrap();
            assert!(problem.message.contains(word), "{stderr}: {problem}");
            assert_eq!(problem.kind, kind, "{problem}");
            assert!(!problem.hints.is_empty());
        }
        assert!(of_openssh(&end(1, "Permission denied ("), "x").is_none());
    }

    #[test]
    fn marks_of_questions_are_not_shown() {
        let said = "mysql-refreshd-0123456789abcdef:Sorry, try again.\nmysql-refreshd-0123456789abcdef:\nsudo: mysql-refreshd-x";
        assert_eq!(without_marks(said), "Sorry, try again.\nsudo: mysql-refreshd-x");
    }

    #[test]
    fn starts_that_fail_are_told_apart() {
        let route = Route { way: Way::Local, agent: AgentProgram::Installed("/a/b".into()), sudo: true, policy: None };
        for (code, stderr, word) in [
            (1, "sudo: a password is required", "wants a password"),
            (1, "sudo: a terminal is required to read the password; either use", "wants a password"),
            (1, "Sorry, user r is not allowed to execute '/a/b agent' as root on db1.\nsudo", "does not let"),
            (1, "r is not in the sudoers file.\nsudo", "does not let"),
            (1, "mark: Sorry, try again.\nsudo: 1 incorrect password attempt", "does not accept"),
            (1, "sudo: /a/b: command not found", "no agent at /a/b"),
            (127, "sh: 1: sudo: not found", "no sudo"),
            (127, "bash: line 1: /a/b: No such file or directory", "no agent at /a/b"),
            (126, "sh: 1: /a/b: Permission denied", "may not be executed"),
            (126, "bash: line 1: /a/b: cannot execute binary file: Exec format error", "another architecture"),
            (1, "/a/b: /lib/libc.so.6: version `GLIBC_2.99' not found", "too old"),
            (2, "error: unrecognized subcommand 'agent'", "another version"),
            (9, "boom", "ended before it was ready"),
        ] {
            let problem = of_agent(&end(code, stderr), &route);
            assert!(problem.message.contains(word), "{stderr}: {problem}");
        }
    }
}
