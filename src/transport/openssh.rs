//! The system's `ssh` as a child: its own configuration, jump hosts, key agents, hardware keys and certificates count.
//!
//! Strict host keys and no questions, whatever its configuration says. Knows no secret: what asks for one belongs in a key
//! agent.

use super::{End, Later, Pipe, Starter, child, reasons};
use crate::failpoint;
use crate::problem::{Outcome, Problem};
use crate::route::Address;

/// Host keys pinned by utils/copy-all-keys.sh.
pub(super) const PINNED: &str = "/etc/mysql-refreshd/known_hosts";

/// A jump host's `ssh` is started by ssh itself, without our options: it must not ask on a terminal that is not its own.
const NOBODY_TO_ASK: [(&str, &str); 2] = [("SSH_ASKPASS", "/bin/false"), ("SSH_ASKPASS_REQUIRE", "force")];

/// One host, reached by `ssh`.
pub struct OpenSsh {
    address: Address,
}

impl OpenSsh {
    /// Nothing happens yet.
    pub fn new(address: Address) -> Self {
        Self { address }
    }

    /// `ssh` and its arguments, without the command.
    fn client(&self) -> Vec<String> {
        let address = &self.address;
        let mut words = vec!["ssh".to_owned(), "-T".to_owned(), "-e".to_owned(), "none".to_owned()];
        let mut option = |text: String| words.extend(["-o".to_owned(), text]);
        if cfg!(feature = "failpoints") {
            option(format!("SendEnv={}", failpoint::VARIABLE));
        }
        for fixed in [
            "BatchMode=yes",
            "StrictHostKeyChecking=yes",
            "UpdateHostKeys=no",
            "ClearAllForwardings=yes",
            "ForwardAgent=no",
            "ForwardX11=no",
            "PermitLocalCommand=no",
            "RemoteCommand=none",
            "RequestTTY=no",
            "Compression=no",
            // a connection of its own: a shared one is as slow as its busiest user, and ends with its master
            "ControlMaster=no",
            "ControlPath=none",
            "EscapeChar=none",
            "LogLevel=INFO",
        ] {
            option(fixed.to_owned());
        }
        option(format!("ConnectTimeout={}", address.connect_timeout_s.max(1)));
        option(format!("ServerAliveInterval={}", (address.silence_s / 3).max(1)));
        option("ServerAliveCountMax=3".to_owned());
        match (&address.host_key, &address.known_hosts) {
            (Some(key), _) => {
                // the pinned key and nothing else; `echo` is given the name under which ssh looks
                option(format!("KnownHostsCommand=/bin/echo %H {key}"));
                option("UserKnownHostsFile=/dev/null".to_owned());
                option("GlobalKnownHostsFile=/dev/null".to_owned());
            }
            (None, Some(file)) => {
                option(format!("UserKnownHostsFile={}", quoted(&file.to_string_lossy())));
                option("GlobalKnownHostsFile=/dev/null".to_owned());
            }
            (None, None) => option(format!("GlobalKnownHostsFile=/etc/ssh/ssh_known_hosts {PINNED}")),
        }
        if let Some(identity) = &address.identity {
            option(format!("IdentityFile={}", quoted(&identity.to_string_lossy())));
            option("IdentitiesOnly=yes".to_owned());
        }
        if !address.use_agent {
            option("IdentityAgent=none".to_owned());
        }
        if let Some(port) = address.port {
            words.extend(["-p".to_owned(), port.to_string()]);
        }
        if let Some(user) = &address.user {
            words.extend(["-l".to_owned(), user.clone()]);
        }
        words.extend(["--".to_owned(), address.host.clone()]);
        words
    }
}

/// A value of ssh's configuration that may hold spaces; `%` begins a token there.
fn quoted(value: &str) -> String {
    format!("\"{}\"", value.replace('%', "%%"))
}

/// A line for the login shell there: every word in single quotes, so that no shell sees anything in it.
pub(super) fn shell_line(words: &[String]) -> String {
    let plain =
        |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-:=,+@".contains(&b));
    let quote = |word: &String| if plain(word) { word.clone() } else { format!("'{}'", word.replace('\'', r"'\''")) };
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}

impl Starter for OpenSsh {
    fn start<'a>(&'a self, words: &'a [String]) -> Later<'a, Outcome<Pipe>> {
        Box::pin(async move {
            let mut all = self.client();
            all.push(shell_line(words));
            let mut environment = vec!["SSH_AUTH_SOCK", "USER", "LOGNAME", "KRB5CCNAME"];
            if cfg!(feature = "failpoints") {
                environment.push(failpoint::VARIABLE);
            }
            child::start(&all, &environment, &NOBODY_TO_ASK).map_err(|problem| {
                problem.hint(
                    "The transport `openssh` needs the system's ssh client (package openssh-client); `ssh` does not.",
                )
            })
        })
    }

    fn place(&self) -> String {
        self.address.shown()
    }

    fn explain(&self, end: &End) -> Option<Problem> {
        reasons::of_openssh(end, &self.place())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_shell_sees_anything_in_a_word() {
        let words = ["sh", "-c", "it's $HOME; x", "", "/a/b-c"].map(str::to_owned);
        assert_eq!(shell_line(&words), r"sh -c 'it'\''s $HOME; x' '' /a/b-c");
    }
}
