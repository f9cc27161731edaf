//! `doctor`: what hosts lack, in the roles that the configuration gives them.

use super::args::Global;
use super::{load, out, typed, views, with_runtime};
use crate::config::{Config, Host, HostId};
use crate::failure;
use crate::problem::{Kind, Outcome, Problem};
use crate::refresh::doctor::examine;
use crate::wire::message::Role;

/// Looks at the named hosts, or at all.
pub(super) fn run(global: &Global, names: &[String]) -> Outcome<u8> {
    let config = load(global)?;
    let hosts: Vec<&Host> = match names {
        [] => config.hosts().collect(),
        names => names.iter().map(|name| named(&config, name)).collect::<Outcome<_>>()?,
    };
    let typed = typed(global, None)?;
    let mut all = Vec::new();
    with_runtime(async |cancel| {
        for host in hosts {
            let uses = |role| {
                config.refreshes.values().find(|refresh| match role {
                    Role::Source => refresh.source == host.id,
                    Role::Destination => refresh.destinations.contains(&host.id),
                })
            };
            let both = [Role::Source, Role::Destination];
            let mut roles: Vec<Role> = both.into_iter().filter(|role| uses(*role).is_some()).collect();
            if roles.is_empty() {
                roles.push(Role::Source);
            }
            for role in roles {
                let findings = examine(&config, host, role, uses(role), &cancel, &typed).await;
                if !global.json {
                    out(&views::findings(&host.id, role, &findings));
                }
                all.push((host.id.to_string(), role, findings));
            }
        }
        Ok(())
    })?;
    if global.json {
        let row = |(host, role, findings): &(String, Role, Vec<_>)| serde_json::json!({ "host": host, "role": role.to_string(), "findings": findings });
        out(&views::json(&all.iter().map(row).collect::<Vec<_>>())?);
    }
    let healthy = all.iter().flat_map(|(.., findings)| findings).all(|finding| finding.lacks.is_none());
    Ok(if healthy { failure::DONE } else { failure::FAILED })
}

/// By its whole name, or by the part of it that is enough.
fn named<'c>(config: &'c Config, name: &str) -> Outcome<&'c Host> {
    let whole = name.parse::<HostId>().ok().and_then(|id| config.host(&id));
    let part = || {
        let mut fit = config.hosts().filter(|host| host.id.name() == name || host.id.environment() == name);
        fit.next().filter(|_| fit.next().is_none())
    };
    whole.or_else(part).ok_or_else(|| {
        let known: Vec<String> = config.hosts().map(|host| host.id.to_string()).collect();
        Problem::new(Kind::Usage, format!("no host {name:?} in the configuration"))
            .hint(format!("Hosts are: {}.", known.join(", ")))
    })
}
