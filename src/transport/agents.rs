//! How an agent is started, whoever starts it: which program, through sudo or not, put there before if need be.
//!
//! The words of an installed agent are fixed, so that a sudoers file can name them; nothing that differs between runs is among
//! them.

use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::OnceCell;

use super::{End, Later, Pipe, Prompt, Starter, Transport, reasons, upload};
use crate::problem::{Explain, Outcome, Problem};
use crate::route::{AgentProgram, Route};
use crate::wire::message::Role;

/// A round trip from which on one session's window (2 MiB at most OpenSSH servers) is less than a fast link can carry: 140 MB/s.
/// Shorter ones cannot be told from a busy host.
const LATENCY: Duration = Duration::from_millis(15);

/// Sessions on such a link (measured at 40 ms: 38 MB/s with one, 87 with four).
const MANY: u8 = 4;

/// Agents on one host.
pub(super) struct Agents {
    starter: Box<dyn Starter>,
    route: Route,
    sudo_password: Option<SecretString>,
    /// Where the uploaded program is.
    uploaded: OnceCell<String>,
}

impl Agents {
    pub(super) fn new(starter: Box<dyn Starter>, route: Route, sudo_password: Option<SecretString>) -> Self {
        Self { starter, route, sudo_password, uploaded: OnceCell::new() }
    }

    async fn program(&self) -> Outcome<String> {
        match &self.route.agent {
            // to sudo, /proc/self is sudo
            AgentProgram::Own(path) if self.route.sudo && path.starts_with("/proc/self") => {
                let own = std::env::current_exe().explain(|| "cannot find this program")?;
                Ok(own.to_string_lossy().into_owned())
            }
            AgentProgram::Own(path) | AgentProgram::Installed(path) => Ok(path.to_string_lossy().into_owned()),
            AgentProgram::Uploaded => {
                self.uploaded.get_or_try_init(|| upload::put(self.starter.as_ref())).await.cloned()
            }
        }
    }

    /// The agent's program and its arguments.
    fn words(&self, program: String, role: Option<Role>) -> Vec<String> {
        let Some(role) = role else {
            return vec![program, "agent".to_owned(), "--lane".to_owned()];
        };
        let mut words = vec![program, "agent".to_owned(), "--role".to_owned(), role.to_string()];
        if self.route.agent.trusts() {
            words.push("--trust-controller".to_owned());
            if let Some(policy) = &self.route.policy {
                words.extend(["--policy".to_owned(), policy.to_string_lossy().into_owned()]);
            }
        }
        words
    }

    async fn start(&self, role: Option<Role>) -> Outcome<Pipe> {
        let words = self.words(self.program().await?, role);
        let (words, prompt) = self.through_sudo(words);
        let pipe = self.starter.start(&words).await?;
        Ok(Pipe { prompt, ..pipe })
    }

    /// The same through sudo. The question, where one is asked, is marked, so that the password goes to sudo and to nobody
    /// else.
    fn through_sudo(&self, words: Vec<String>) -> (Vec<String>, Option<Prompt>) {
        if !self.route.sudo {
            return (words, None);
        }
        let (before, prompt) = match &self.sudo_password {
            None => (vec!["sudo".to_owned(), "-n".to_owned(), "--".to_owned()], None),
            Some(password) => {
                let mark = format!("mysql-refreshd-{:016x}:", fastrand::u64(..));
                let before = ["sudo", "-S", "-p", &mark, "--"].map(str::to_owned).to_vec();
                (before, Some(Prompt { mark, answer: password.clone() }))
            }
        };
        (before.into_iter().chain(words).collect(), prompt)
    }
}

impl Transport for Agents {
    fn place(&self) -> Option<String> {
        self.route.address().map(|_| self.starter.place())
    }

    fn open(&self, role: Role) -> Later<'_, Outcome<Pipe>> {
        Box::pin(self.start(Some(role)))
    }

    fn lane(&self) -> Later<'_, Outcome<Pipe>> {
        Box::pin(self.start(None))
    }

    fn sessions(&self, round_trip: Duration) -> u8 {
        match self.route.address() {
            None => 1,
            Some(address) => match address.sessions {
                Some(wanted) => wanted.max(1),
                None if round_trip >= LATENCY => MANY,
                None => 1,
            },
        }
    }

    fn explain(&self, end: &End) -> Problem {
        self.starter.explain(end).unwrap_or_else(|| {
            let problem = reasons::of_agent(end, &self.route);
            match self.route.address() {
                Some(_) => problem.on(self.starter.place()),
                None => problem,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::local::Local;

    fn agents(agent: AgentProgram, sudo: bool, password: Option<&str>) -> Agents {
        let route = Route { agent, sudo, policy: Some("/p".into()), ..Route::local() };
        Agents::new(Box::new(Local), route, password.map(Into::into))
    }

    #[test]
    fn an_installed_agent_is_started_with_words_that_a_sudoers_file_can_name() {
        let (words, prompt) = agents(AgentProgram::Installed("/a/b".into()), true, None).through_sudo(
            agents(AgentProgram::Installed("/a/b".into()), true, None).words("/a/b".into(), Some(Role::Source)),
        );
        assert_eq!(words, ["sudo", "-n", "--", "/a/b", "agent", "--role", "source"]);
        assert!(prompt.is_none());
    }

    #[test]
    fn a_password_is_in_no_word() {
        let agents = agents(AgentProgram::Uploaded, true, Some("hunter2"));
        let (words, prompt) = agents.through_sudo(agents.words("/u".into(), Some(Role::Destination)));
        assert_eq!(&words[5..], ["/u", "agent", "--role", "destination", "--trust-controller", "--policy", "/p"]);
        assert!(words.iter().all(|word| !word.contains("hunter2")));
        assert_eq!(prompt.unwrap().mark, words[3]);
    }
}
