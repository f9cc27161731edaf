//! A refresh without a configuration: source and destinations as they are typed on the command line.
//!
//! A name that the configuration has is that host, with everything that protects it; anything else is an address.

use std::time::Duration;

use super::model::{Config, Host, HostId, Refresh, is_name};
use super::policy::{AgentKind, Method, Policy, TransportKind};
use super::secret::SecretRef;
use super::timing::{Blackout, CatchUp};
use crate::instance::Target;
use crate::problem::{Kind, Outcome, Problem};
use crate::route::{AgentProgram, INSTALLED, Route, Way};

/// What was typed.
#[derive(Debug, Clone)]
pub struct OneOff {
    /// The source: `[USER@]ADDRESS[:PORT]`, `localhost`, or a host of the configuration.
    pub source: String,
    /// The destinations, likewise.
    pub destinations: Vec<String>,
    /// The account on the hosts.
    pub user: Option<String>,
    /// The password's file.
    pub password: Option<SecretRef>,
    /// How hosts are reached.
    pub transport: TransportKind,
    /// Which agent is used there.
    pub agent: AgentKind,
}

/// The name of such a refresh.
pub const NAME: &str = "one-off";

impl OneOff {
    /// Adds the hosts to a configuration and makes the refresh. What the configuration protects stays protected.
    pub fn refresh(&self, config: &mut Config) -> Outcome<Refresh> {
        let source = self.resolve(config, &self.source)?;
        let mut destinations: Vec<HostId> = Vec::new();
        for text in &self.destinations {
            for id in self.resolve(config, text)? {
                if destinations.contains(&id) {
                    return Err(usage(format!("{id} is named twice as a destination")));
                }
                destinations.push(id);
            }
        }
        let source = match &source[..] {
            [one] => one.clone(),
            many => {
                return Err(usage(format!("the environment {} has {} hosts", self.source, many.len()))
                    .hint("Name one of them, as ENVIRONMENT/HOST."));
            }
        };
        for id in &destinations {
            forbidden(config, &source, id)?;
        }
        if destinations.is_empty() {
            return Err(usage("there is no destination").hint("Name one or more with --destination."));
        }
        Ok(Refresh {
            name: NAME.to_owned(),
            source,
            destinations,
            schedule: None,
            after: None,
            enabled: false,
            catch_up: CatchUp::No,
            blackout: Blackout::none(),
            jitter: Duration::ZERO,
            method: Method::default(),
            policy: Policy::default(),
        })
    }

    fn resolve(&self, config: &mut Config, text: &str) -> Outcome<Vec<HostId>> {
        if let Some(environment) = config.environments.get(text) {
            return Ok(environment.hosts.clone());
        }
        if let Ok(id) = text.parse::<HostId>()
            && config.environments.contains_key(id.environment())
        {
            return match config.host(&id) {
                Some(_) => Ok(vec![id]),
                None => Err(usage(format!("there is no host {id} in the configuration"))),
            };
        }
        let mut host = self.host(text, config)?;
        host.route.set_silence(config.daemon.host_timeout);
        let id = host.id.clone();
        config.hosts.insert(id.clone(), host);
        Ok(vec![id])
    }

    fn host(&self, text: &str, config: &Config) -> Outcome<Host> {
        let ssh = &config.ssh;
        let (user, rest) = match text.rsplit_once('@') {
            Some((user, rest)) => (Some(user.to_owned()), rest),
            None => (self.user.clone(), text),
        };
        let bad_port = || {
            usage(format!("{text:?} has no port that could be one")).hint("Write it as ADDRESS:PORT, or [IPV6]:PORT.")
        };
        let (address, port) = split_port(rest).ok_or_else(bad_port)?;
        let odd = |c: char| !(c.is_ascii_alphanumeric() || "._-:%".contains(c));
        let user_odd =
            user.as_deref().is_some_and(|user| user.is_empty() || user.starts_with('-') || user.contains(odd));
        if address.is_empty() || address.starts_with('-') || address.contains(odd) || user_odd {
            return Err(usage(format!("{text:?} is not a host"))
                .hint("Write it as [USER@]ADDRESS[:PORT], or ENVIRONMENT/HOST."));
        }
        let mut name = short(address);
        if config.environments.contains_key(&name) {
            // not to be taken for the configuration's
            name = format!("at-{name}").chars().take(64).collect();
        }
        let id = HostId::new(&name, "main").map_err(|e| usage(format!("{text:?} is not a host")).because(e))?;
        let local = matches!(address, "localhost" | "127.0.0.1" | "::1") && port.is_none();
        let route = if local {
            Route { sudo: !rustix::process::geteuid().is_root(), ..Route::local() }
        } else {
            let mut to = ssh.address(address.to_owned());
            to.port = port.or(to.port);
            to.user = user.or(to.user);
            let sudo = to.user.as_deref() != Some("root");
            let way = match self.transport {
                TransportKind::OpenSsh => Way::OpenSsh(to),
                _ => Way::Ssh(to),
            };
            let agent = match self.agent {
                AgentKind::Installed => AgentProgram::Installed(INSTALLED.into()),
                _ => AgentProgram::Uploaded,
            };
            Route { way, agent, sudo, policy: None }
        };
        Ok(Host {
            id,
            passphrase: if local { None } else { ssh.passphrase() },
            route,
            target: Target::Only,
            password: self.password.clone(),
            sudo_password: None,
            settings: Default::default(),
        })
    }
}

/// What no refresh of the configuration may do, this one may not either.
fn forbidden(config: &Config, source: &HostId, id: &HostId) -> Outcome<()> {
    if id == source {
        return Err(usage(format!("{id} is the source")));
    }
    if config.environments.get(id.environment()).is_some_and(|environment| environment.protected) {
        return Err(Problem::refused(format!("{id} must never be overwritten: its environment is protected")));
    }
    let address = |id: &HostId| {
        let address = config.host(id)?.route.address()?;
        Some((address.host.to_lowercase(), address.port.unwrap_or(22)))
    };
    let same = |other: &HostId| other == id || (address(other).is_some() && address(other) == address(id));
    if let Some(refresh) = config.refreshes.values().find(|refresh| same(&refresh.source)) {
        return Err(Problem::refused(format!("{id} is the source of the refresh {}", refresh.name))
            .hint("A host is either a source or a destination."));
    }
    let protected = config.hosts().find(|host| {
        same(&host.id)
            && config.environments.get(host.id.environment()).is_some_and(|environment| environment.protected)
    });
    match protected {
        Some(host) => Err(Problem::refused(format!("{id} must never be overwritten: it is {}", host.id))),
        None => Ok(()),
    }
}

fn usage(what: impl Into<String>) -> Problem {
    Problem::new(Kind::Usage, what)
}

/// `address:port`, `[v6]:port`; a bare IPv6 address has no port. None: a port that is none.
fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    let port = |text: &str| text.parse().ok().filter(|port| *port > 0);
    if let Some(rest) = text.strip_prefix('[')
        && let Some((address, rest)) = rest.split_once(']')
    {
        return match rest.strip_prefix(':') {
            Some(rest) => Some((address, Some(port(rest)?))),
            None => rest.is_empty().then_some((address, None)),
        };
    }
    match text.rsplit_once(':') {
        Some((address, rest)) if !address.contains(':') => Some((address, Some(port(rest)?))),
        _ => Some((text, None)),
    }
}

/// An address as the name of an environment, which is how consents name it.
fn short(address: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = address.chars().map(plain).take(64).collect();
    let name = name.trim_start_matches('-').to_owned();
    if is_name(&name) { name } else { "host".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_as_they_are_typed() {
        assert_eq!(split_port("db1:2222"), Some(("db1", Some(2222))));
        assert_eq!(split_port("db1"), Some(("db1", None)));
        assert_eq!(split_port("fe80::1"), Some(("fe80::1", None)));
        assert_eq!(split_port("[fe80::1]:22"), Some(("fe80::1", Some(22))));
        assert_eq!((split_port("[::1]:2x"), split_port("db1:0"), split_port("db1:")), (None, None, None));
        assert_eq!(short("DB1.example.com"), "db1-example-com");
        assert_eq!(short("::1"), "1");
    }
}
