//! Plans, histories and the like as text for people. Pure: values in, text out.

use std::fmt::Write as _;

use serde::Serialize;

use crate::authority::{Consent, Policy, RoleWord};
use crate::config::{Config, ConfigError, Effective, Host, HostId};
use crate::failure;
use crate::instance::Service;
use crate::problem::{Explain, Outcome};
use crate::refresh::doctor::Finding;
use crate::refresh::plan::Plan;
use crate::refresh::recover::Recovered;
use crate::report::{Event, Stamped, human_bytes};
use crate::route::{AgentProgram, Way};
use crate::store::{RunRow, Store};
use crate::wire::message::Role;

/// Any value as JSON.
pub fn json<T: Serialize>(value: &T) -> Outcome<String> {
    serde_json::to_string_pretty(value).explain(|| "cannot write JSON")
}

/// The history, if there is one: looking must not create it.
pub fn existing_store(config: &Config) -> Option<Store> {
    let file = config.daemon.state_dir.join("history.db");
    file.exists().then(|| Store::open(&config.daemon.state_dir).ok()).flatten()
}

/// One error of the configuration.
pub fn config_error(error: &ConfigError) -> String {
    let hint = error.hint.as_ref().map_or_else(String::new, |h| format!(" ({h})"));
    let key = if error.key.is_empty() { String::new() } else { format!("{}: ", error.shown_key()) };
    format!("{}: {key}{}{hint}", error.origin, error.problem)
}

/// One host on one line; fields parted by tabs, `-` for what is not set.
pub fn host_line(host: &Host) -> String {
    let or = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let path = |path: &std::path::Path| path.to_string_lossy().into_owned();
    let address = host.route.address();
    let transport = match &host.route.way {
        Way::Local => "local",
        Way::Ssh(_) => "ssh",
        Way::OpenSsh(_) => "openssh",
    };
    let (agent, agent_path) = match &host.route.agent {
        AgentProgram::Own(_) => ("own", None),
        AgentProgram::Installed(at) => ("installed", Some(path(at))),
        AgentProgram::Uploaded => ("uploaded", None),
    };
    [
        host.id.to_string(),
        transport.to_owned(),
        or(address.and_then(|a| a.user.clone())),
        or(address.map(|a| a.host.clone())),
        or(address.and_then(|a| a.port).map(|port| port.to_string())),
        or(address.and_then(|a| a.identity.as_deref()).map(path)),
        or(address.and_then(|a| a.known_hosts.as_deref()).map(path)),
        agent.to_owned(),
        or(agent_path),
    ]
    .join("\t")
}

/// What a doctor found on a host.
pub fn findings(host: &HostId, role: Role, findings: &[Finding]) -> String {
    let mut text = format!("{host} as a {role}");
    for finding in findings {
        match &finding.lacks {
            None => {
                let _ = write!(text, "\n  ok     {}", finding.what);
            }
            Some(problem) => {
                let _ = write!(text, "\n  LACKS  {}\n         {problem}", finding.what);
                for line in problem.causes.iter().filter(|cause| cause.contains('\n')).flat_map(|cause| cause.lines()) {
                    let _ = write!(text, "\n         | {line}");
                }
                for hint in &problem.hints {
                    let _ = write!(text, "\n         mend it: {hint}");
                }
            }
        }
    }
    text
}

/// How a server is started and stopped.
pub fn service(service: &Service) -> String {
    match service {
        Service::Systemd { unit } => format!("  service  {unit}"),
        Service::Commands { start, stop } => format!("  service  start: {}; stop: {}", start.join(" "), stop.join(" ")),
        Service::Process { server, defaults_file } => {
            format!("  service  {} --defaults-file={}", server.display(), defaults_file.display())
        }
    }
}

/// A host's policy.
pub fn policy(policy: &Policy) -> String {
    let mut text = format!("{}:", policy.path.display());
    for (name, entry) in &policy.instances {
        let roles: Vec<&str> = entry
            .roles
            .iter()
            .map(|role| match role {
                RoleWord::Source => "source",
                RoleWord::Destination => "destination",
            })
            .collect();
        let _ = write!(text, "\n{name}\n  datadir  {}", entry.datadir.display());
        match entry.instance() {
            Ok(Some(instance)) => {
                let _ = write!(text, "\n  socket   {}\n{}", instance.socket.display(), service(&instance.service));
                if let Some(dropin) = &instance.dropin {
                    let _ = write!(text, "\n  drop-in  {}", dropin.display());
                }
            }
            _ => text.push_str("\n  only a consent: no socket, no service"),
        }
        let _ = write!(text, "\n  roles    {}", if roles.is_empty() { "none".to_owned() } else { roles.join(", ") });
        if entry.protected {
            text.push_str("\n  protected: never a destination");
        }
    }
    text
}

/// One instance's consent.
#[derive(Debug, Serialize)]
pub struct ConsentRow {
    /// The instance.
    pub instance: String,
    /// Its datadir.
    pub datadir: std::path::PathBuf,
    /// What stands in the policy.
    pub consent: Option<Consent>,
    /// Why it does not count; None: it does.
    pub problem: Option<String>,
}

/// Consents.
pub fn consents(rows: &[ConsentRow]) -> String {
    if rows.is_empty() {
        return "the policy has no such instance, and no consent".to_owned();
    }
    let line = |row: &ConsentRow| {
        let verdict = match &row.problem {
            None => "counts".to_owned(),
            Some(why) => format!("does not count: {why}"),
        };
        let what = match &row.consent {
            None => return format!("{} ({}): no consent", row.instance, row.datadir.display()),
            Some(consent) => format!(
                "from {}; {}; given {}",
                consent.from.join(", "),
                consent.expires.map_or_else(|| "without end".to_owned(), |end| format!("until {end}")),
                consent.granted
            ),
        };
        format!("{} ({}): {what}: {verdict}", row.instance, row.datadir.display())
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A consent that was just given.
pub fn granted(consent: &Consent) -> String {
    let end = consent.expires.map(|end| format!(", until {}", end.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)));
    format!(
        "{} may be overwritten with data from {}{}",
        consent.datadir.display(),
        consent.from.join(", "),
        end.unwrap_or_default()
    )
}

/// A plan.
pub fn plan(plan: &Plan) -> String {
    let mut text = format!("Plan for {}: nothing was changed.\n", plan.refresh);
    for host in &plan.hosts {
        let _ = write!(text, "\n{} ({})\n", host.host, host.role);
        for (n, act) in host.acts.iter().enumerate() {
            let _ = writeln!(text, "  {:>2}. {act}", n + 1);
        }
    }
    let _ = write!(
        text,
        "\nImage: {} files, {}; {}.\nThe source would be down for about {:.1} s ({}).\n",
        plan.files,
        human_bytes(plan.bytes),
        plan.taken,
        plan.outage_s,
        plan.outage_basis
    );
    if let Some((lacking, sent)) = plan.lacking {
        let (lacking, sent) = (human_bytes(lacking), human_bytes(sent));
        let _ = writeln!(text, "Last time {lacking} of it were lacking, and {sent} were sent.");
    }
    for warning in &plan.warnings {
        let _ = write!(text, "\nwarning: {warning}");
    }
    for (what, hint) in &plan.refusals {
        let _ = write!(text, "\nrefused: {what}\n  hint: {hint}");
    }
    text.push_str(if plan.refusals.is_empty() {
        "\nIt could run."
    } else {
        "\n\nIt would be refused; nothing would be touched."
    });
    text
}

/// What `check` found.
pub fn check(config: &Config, plans: &[(String, Outcome<Plan>)]) -> String {
    let mut text = format!(
        "The configuration is right: {} environments, {} hosts, {} refreshes.",
        config.environments.len(),
        config.hosts().count(),
        config.refreshes.len()
    );
    for (name, plan) in plans {
        match plan {
            Ok(plan) if plan.refusals.is_empty() => {
                let _ = write!(text, "\n{name}: could run now");
            }
            Ok(plan) => {
                let _ = write!(text, "\n{name}: would be refused");
                for (what, hint) in &plan.refusals {
                    let _ = write!(text, "\n  {what}\n    hint: {hint}");
                }
            }
            Err(problem) => {
                let _ = write!(text, "\n{name}: cannot be checked\n  {}", failure::text(problem).replace('\n', "\n  "));
            }
        }
        for warning in plan.iter().flat_map(|p| &p.warnings) {
            let _ = write!(text, "\n  warning: {warning}");
        }
    }
    text
}

/// The same as JSON.
pub fn check_json(config: &Config, plans: &[(String, Outcome<Plan>)]) -> Outcome<String> {
    let refreshes: Vec<_> = plans
        .iter()
        .map(|(name, plan)| match plan {
            Ok(plan) => serde_json::json!({ "refresh": name, "could_run": plan.refusals.is_empty(), "plan": plan }),
            Err(problem) => serde_json::json!({ "refresh": name, "could_run": false, "problem": problem }),
        })
        .collect();
    json(&serde_json::json!({ "configuration": "valid", "hosts": config.hosts().count(), "refreshes": refreshes }))
}

/// Effective values and where they were set.
pub fn effective(values: &[Effective]) -> String {
    let width = values.iter().map(|v| v.key.len() + v.value.len() + 3).max().unwrap_or(0).min(80);
    let line = |v: &Effective| format!("{:<width$}  # {}", format!("{} = {}", v.key, v.value), v.origin);
    values.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Past runs.
pub fn history(rows: &[RunRow]) -> String {
    if rows.is_empty() {
        return "No runs yet.".into();
    }
    let mut lines = vec![format!(
        "{:<22} {:<20} {:<13} {:>9} {:>9} {:>11}  destinations",
        "run", "refresh", "result", "outage", "total", "size"
    )];
    for row in rows {
        let seconds = |ms: Option<u64>| ms.map_or_else(|| "-".into(), |ms| format!("{:.1} s", ms as f64 / 1000.0));
        let (result, outage, total, size, done) = match &row.summary {
            Some(s) => {
                let done = s.destinations.iter().filter(|d| d.refreshed).count();
                (
                    s.ending.name(),
                    seconds(s.outage_ms),
                    seconds(Some(s.total_ms).filter(|ms| *ms > 0)),
                    human_bytes(s.bytes),
                    format!("{done} of {}", s.destinations.len()),
                )
            }
            None if row.interrupted => ("interrupted", "-".into(), "-".into(), "-".into(), "recover it".into()),
            None => ("under way", "-".into(), "-".into(), "-".into(), "-".into()),
        };
        lines.push(format!(
            "{:<22} {:<20} {result:<13} {outage:>9} {total:>9} {size:>11}  {done}",
            row.run, row.refresh
        ));
    }
    lines.join("\n")
}

/// One run.
pub fn show(row: &RunRow, events: &[Stamped]) -> String {
    let mut text = match &row.summary {
        Some(summary) => super::terminal::summary(summary),
        None if row.interrupted => {
            format!("{}: interrupted; `mysql-refreshd recover` puts back what it left", row.refresh)
        }
        None => format!("{}: under way", row.refresh),
    };
    let _ = write!(text, "\n  run           {}\n  started       {}", row.run, row.started);
    if let Some(finished) = &row.finished {
        let _ = write!(text, "\n  finished      {finished}");
    }
    if row.armed > 0 {
        let _ = write!(text, "\n  NOT PUT BACK  {} undo(s) are still armed: run `mysql-refreshd recover`", row.armed);
    }
    text.push('\n');
    for stamped in events {
        if let Some(line) = event(&stamped.event) {
            let time = stamped.at.get(11..23).unwrap_or(&stamped.at);
            let _ = write!(text, "\n  {time}  {line}");
        }
    }
    if let Some(problem) = row.summary.as_ref().and_then(|s| s.problem.as_ref()) {
        let _ = write!(text, "\n\n{}", failure::text(problem));
    }
    text
}

fn event(event: &Event) -> Option<String> {
    let at = |host: &str, text: &str| if host.is_empty() { text.to_owned() } else { format!("{host}: {text}") };
    match event {
        Event::StepFinished { step, ms, ok } => {
            Some(format!("{:<10} {:>8.2} s{}", step.name(), *ms as f64 / 1000.0, if *ok { "" } else { "  failed" }))
        }
        Event::Waiting { host, holder } => {
            let by = holder.as_ref().map_or_else(|| "another run".into(), |h| format!("run {}", h.run));
            Some(format!("waited for {host}, held by {by}"))
        }
        Event::Note { host, text } => Some(at(host, text)),
        Event::Warning { host, text } => Some(format!("warning: {}", at(host, text))),
        Event::Undo { what, problem: None } => Some(format!("put back: {what}")),
        Event::Undo { what, problem: Some(problem) } => Some(format!("NOT put back: {what}: {problem}")),
        _ => None,
    }
}

/// What `recover` did.
pub fn recovered(all: &[Recovered]) -> String {
    if all.is_empty() {
        return "Nothing to recover.".into();
    }
    let line = |r: &Recovered| match r.left.len() {
        0 => format!("run {} of {}: put back", r.run, r.refresh),
        n => format!("run {} of {}: {n} thing(s) could NOT be put back", r.run, r.refresh),
    };
    all.iter().map(line).collect::<Vec<_>>().join("\n")
}
