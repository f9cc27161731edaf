//! What one host lacks, looked at from the controller in the order in which a run would need it. Changes nothing.

use std::sync::Arc;

use serde::Serialize;

use super::context;
use super::safety::{self, Side};
use crate::config::{Config, Host, Refresh};
use crate::host::{DestinationHost, SourceHost, Typed};
use crate::problem::{Kind, Problem};
use crate::report::{Pulse, Reporter};
use crate::run::Cancel;
use crate::wire::facts::Facts;
use crate::wire::message::Role;

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// What.
    pub what: String,
    /// What is wrong with it, and what mends it; None: nothing.
    pub lacks: Option<Problem>,
}

/// Looks at a host in a role. `refresh` is one that uses the host so, if there is one.
pub async fn examine(
    config: &Config,
    host: &Host,
    role: Role,
    refresh: Option<&Refresh>,
    cancel: &Cancel,
    typed: &Typed,
) -> Vec<Finding> {
    let report = Reporter::new("doctor", vec![Arc::new(|_| {})], Pulse::default());
    let context = context(config, refresh, None, (&report, cancel, typed));
    let mut findings = Vec::new();
    let mut found = |what: String, lacks: Option<Problem>| {
        let ends = lacks.is_some();
        findings.push(Finding { what, lacks });
        ends
    };
    let place = host.route.address().map_or_else(|| "this machine".to_owned(), |address| address.shown());
    // both roles are asked alike, over types of their own
    macro_rules! ask {
        ($host:ty) => {{
            let mut remote = <$host>::new(host.clone(), context);
            if found(format!("{place} lets us in and starts the agent"), remote.0.can_be_reached().await.err())
                || found(format!("it may be a {role}"), remote.identify().await.err())
            {
                return findings;
            }
            let facts = remote.facts().await;
            remote.0.close().await;
            facts
        }};
    }
    let facts: Result<Facts, Problem> = match role {
        Role::Source => ask!(SourceHost),
        Role::Destination => ask!(DestinationHost),
    };
    let facts = match facts {
        Ok(facts) => facts,
        Err(problem) => {
            found("it tells about itself".to_owned(), Some(problem));
            return findings;
        }
    };
    let server = facts.server.as_ref().map(|server| server.variables.get("version").cloned().unwrap_or_default());
    found(
        match &server {
            Some(version) => format!("the server on {} answers (version {version})", facts.instance.datadir.display()),
            None => format!("the server on {} answers", facts.instance.datadir.display()),
        },
        server.is_none().then(|| {
            let why = facts.server_problem.clone().unwrap_or_default();
            Problem::new(Kind::Refused, "it does not").cause(why).hint("Start it; check socket, account and password.")
        }),
    );
    if role == Role::Destination {
        found("its owner consents to be overwritten".to_owned(), facts.no_consent.clone());
    }
    let side = Side { id: &host.id, facts: &facts, settings: &host.settings };
    let verdict = safety::judge_alone(role, &side);
    let seen = |what: &str| facts.no_consent.as_ref().is_some_and(|problem| what.ends_with(&problem.to_string()));
    let rest: Vec<_> = verdict.refusals.iter().filter(|r| !seen(&r.what) && server.is_some()).collect();
    if rest.is_empty() && server.is_some() {
        found("nothing in its datadir, settings or disks speaks against it".to_owned(), None);
    }
    for refusal in rest {
        let problem = Problem::new(Kind::Refused, refusal.what.clone()).hint(refusal.hint.clone());
        found("its datadir, settings and disks".to_owned(), Some(problem));
    }
    findings
}
