//! What a host's owner does on the host: its policy, its consents, and the gate that a controller's key leads to.
//!
//! Writes the policy and nothing else; needs no controller and no configuration.

use std::path::{Path, PathBuf};

use super::args::{ConsentCommand, Global, HostCommand, RoleArg};
use super::{out, secret_in, terminal, views};
use crate::agent::{discover, gate as gate_keeper, repair};
use crate::authority::{self, Machine, Policy, consent};
use crate::config::is_name;
use crate::failure;
use crate::instance::Instance;
use crate::problem::{Kind, Outcome, Problem};

fn usage(what: impl Into<String>) -> Problem {
    Problem::new(Kind::Usage, what)
}

fn instance_name(name: &str) -> Outcome<()> {
    if is_name(name) { Ok(()) } else { Err(usage(format!("{name:?} is not a valid name for an instance"))) }
}

/// Commands about the policy.
pub(super) fn host(global: &Global, command: HostCommand) -> Outcome<u8> {
    match command {
        HostCommand::Init { role, instance, datadir, protected, password_file, policy } => {
            instance_name(&instance)?;
            let path = policy.unwrap_or_else(authority::path);
            let found = found(datadir.as_deref(), password_file.as_deref())?;
            init(&path, &role, &instance, &found, protected, password_file.as_deref())
        }
        HostCommand::Show { policy } => show(global, policy),
        HostCommand::Repair { policy } => put_back(&policy.unwrap_or_else(authority::path)),
    }
}

/// What an interrupted run has left on this host.
fn put_back(policy: &Path) -> Outcome<u8> {
    let mut code = failure::DONE;
    for repaired in repair::all(policy)? {
        match (repaired.done.is_empty(), repaired.problems.is_empty()) {
            (true, true) => out(&format!("{}: nothing was left", repaired.instance)),
            _ => repaired.done.iter().for_each(|what| out(&format!("{}: {what}", repaired.instance))),
        }
        for problem in repaired.problems {
            terminal::say(&failure::text(&problem.on(&repaired.instance)));
            code = failure::HUMAN;
        }
    }
    Ok(code)
}

/// The server that is meant.
fn found(datadir: Option<&Path>, password_file: Option<&Path>) -> Outcome<Instance> {
    let password = password_file.map(secret_in).transpose()?;
    let Some(wanted) = datadir else { return discover::only(password.as_ref()) };
    let real = wanted.canonicalize().unwrap_or_else(|_| wanted.to_owned());
    let fits = |instance: &Instance| instance.datadir.canonicalize().is_ok_and(|datadir| datadir == real);
    discover::all(password.as_ref())
        .into_iter()
        .filter_map(|found| found.instance.ok())
        .find(fits)
        .ok_or_else(|| Problem::refused(format!("no server that lets us in serves {}", wanted.display())))
}

fn init(
    path: &Path,
    roles: &[RoleArg],
    name: &str,
    instance: &Instance,
    protected: bool,
    password_file: Option<&Path>,
) -> Outcome<u8> {
    if let Some(policy) = Policy::read(path)? {
        if let Some((other, _)) = policy.on(&instance.datadir).filter(|(other, _)| *other != name) {
            return Err(usage(format!("{} has this datadir already, as {other:?}", path.display())));
        }
        if policy.instances.get(name).is_some_and(|entry| entry.datadir != instance.datadir) {
            return Err(usage(format!("{} has an instance {name:?} with another datadir", path.display()))
                .hint("Choose another name with --instance."));
        }
    }
    let word = |role: &RoleArg| match role {
        RoleArg::Source => "source",
        RoleArg::Destination => "destination",
    };
    let words: Vec<&str> = roles.iter().map(word).collect();
    authority::edit(path, |document| {
        authority::described(document, name, instance, &words)?;
        let table = authority::instance_table(document, name)?;
        if protected {
            table["protected"] = toml_edit::value(true);
        }
        if let Some(file) = password_file {
            let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
            table["password_file"] = toml_edit::value(file.to_string_lossy().into_owned());
        }
        Ok(())
    })?;
    let roles = words.join(" and a ");
    out(&format!("{}: the instance {name:?} on {} may be a {roles}", path.display(), instance.datadir.display()));
    out(&views::service(&instance.service));
    if words.contains(&"destination") {
        terminal::say("its data can be replaced only after `mysql-refreshd consent grant --from ENVIRONMENT`");
    }
    Ok(failure::DONE)
}

fn show(global: &Global, policy: Option<PathBuf>) -> Outcome<u8> {
    let path = policy.unwrap_or_else(authority::path);
    let policy = Policy::read(&path)?.ok_or_else(|| {
        usage(format!("there is no policy at {}", path.display()))
            .hint("As root: mysql-refreshd host init --role source, or --role destination.")
    })?;
    out(&if global.json { views::json(&policy)? } else { views::policy(&policy) });
    Ok(failure::DONE)
}

/// Commands about consents.
pub(super) fn consent(global: &Global, command: ConsentCommand) -> Outcome<u8> {
    match command {
        ConsentCommand::Grant { from, instance, datadir, expires, policy } => {
            if let Some(odd) = from.iter().find(|name| !is_name(name)) {
                return Err(usage(format!("{odd:?} is not the name of an environment")));
            }
            instance_name(&instance)?;
            let end = |after: std::time::Duration| {
                let after = chrono::Duration::from_std(after).ok()?;
                chrono::Utc::now().checked_add_signed(after)
            };
            let expires = match expires {
                Some(after) => Some(end(*after).ok_or_else(|| usage("--expires is too far away"))?),
                None => None,
            };
            let path = policy.unwrap_or_else(authority::path);
            if expires.is_some_and(|end| end <= chrono::Utc::now()) {
                return Err(usage("--expires must be some time from now"));
            }
            let entry = Policy::read(&path)?.and_then(|policy| policy.instances.get(&instance).cloned());
            if entry.is_some_and(|entry| {
                !entry.roles.is_empty() && !entry.roles.contains(&authority::RoleWord::Destination)
            }) {
                let word = format!(
                    "warning: the instance {instance:?} may not be a destination here; see `roles` in {}",
                    path.display()
                );
                terminal::say(&word);
            }
            let granted = consent::grant(&path, &consent::Grant { instance, datadir, from, expires })?;
            out(&views::granted(&granted));
            Ok(failure::DONE)
        }
        ConsentCommand::Show { instance, from, policy } => {
            let path = policy.unwrap_or_else(authority::path);
            let rows = consents(Policy::read(&path)?, instance.as_deref(), from.as_deref());
            out(&if global.json { views::json(&rows)? } else { views::consents(&rows) });
            Ok(if rows.iter().any(|row| row.problem.is_none()) { failure::DONE } else { failure::FAILED })
        }
        ConsentCommand::Revoke { instance, policy } => {
            let path = policy.unwrap_or_else(authority::path);
            out(&match consent::revoke(&path, &instance)? {
                true => format!("the instance {instance:?} is not to be overwritten any more"),
                false => format!("the instance {instance:?} had no consent"),
            });
            Ok(failure::DONE)
        }
    }
}

fn consents(policy: Option<Policy>, instance: Option<&str>, from: Option<&str>) -> Vec<views::ConsentRow> {
    let (now, here) = (chrono::Utc::now(), Machine::this());
    let entries = policy.into_iter().flat_map(|policy| policy.instances);
    let wanted = entries.filter(|(name, _)| instance.is_none_or(|wanted| wanted == name));
    let row = |(name, entry): (String, authority::Entry)| {
        let real = entry.datadir.canonicalize().unwrap_or_else(|_| entry.datadir.clone());
        let verdict = match &entry.consent {
            _ if entry.protected => Err("protected: never a destination".to_owned()),
            None => Err("none".to_owned()),
            Some(consent) => consent.judge(&name, &real, &here, from, now),
        };
        views::ConsentRow { instance: name, datadir: entry.datadir, consent: entry.consent, problem: verdict.err() }
    };
    wanted.map(row).collect()
}

/// What a controller's key leads to.
pub(super) fn gate() -> Outcome<()> {
    gate_keeper::pass(std::env::var_os("SSH_ORIGINAL_COMMAND"))
}
