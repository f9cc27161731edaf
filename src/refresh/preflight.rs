//! Facts from every host, judged by the safety rules. Changes nothing anywhere.

use futures_util::future::join_all;

use super::hosts::Hosts;
use super::safety::{self, OtherSource, Side, Verdict};
use crate::config::{Config, Host, Refresh};
use crate::problem::{Outcome, Problem};
use crate::route::Way;
use crate::wire::facts::Facts;

/// Asks every host; the source's facts come back, each destination keeps its own.
pub async fn gather(hosts: &mut Hosts) -> Outcome<Facts> {
    let (source, destinations) = (&mut hosts.source, &mut hosts.destinations);
    let ask_source = async {
        match source {
            Some(source) => source.facts().await,
            None => Err(Problem::failed("this run has no source")),
        }
    };
    let ask_destinations = join_all(destinations.iter_mut().map(async |d| {
        d.facts = Some(d.host.facts().await?);
        Ok::<(), Problem>(())
    }));
    let (facts, all) = tokio::join!(ask_source, ask_destinations);
    all.into_iter().collect::<Outcome<Vec<()>>>()?;
    facts
}

/// The safety rules over what was gathered.
pub fn judge(config: &Config, refresh: &Refresh, hosts: &Hosts, source: &Facts) -> Verdict {
    let Some(source_host) = &hosts.source else { return Verdict::default() };
    fn side<'a>(host: &'a Host, facts: &'a Facts) -> Side<'a> {
        Side { id: &host.id, facts, settings: &host.settings }
    }
    let sides: Vec<Side<'_>> =
        hosts.destinations.iter().filter_map(|d| Some(side(d.host.0.host(), d.facts.as_ref()?))).collect();
    let source = side(source_host.0.host(), source);
    safety::judge(refresh, &source, &sides, &other_sources(config))
}

/// Sources of the whole configuration on this machine, their datadirs resolved: an alias of one must not be a destination.
fn other_sources(config: &Config) -> Vec<OtherSource> {
    let source_of = |refresh: &Refresh| {
        let host = config.host(&refresh.source).filter(|h| h.route.way == Way::Local)?;
        let datadir = host.target.described()?.datadir.canonicalize().ok()?;
        Some(OtherSource { id: host.id.clone(), refresh: refresh.name.clone(), datadir })
    };
    config.refreshes.values().filter_map(source_of).collect()
}

/// One problem out of all refusals, so that nobody has to mend them one by one.
pub fn refuse(verdict: &Verdict) -> Outcome<()> {
    let Some(first) = verdict.refusals.first() else { return Ok(()) };
    let mut problem = match verdict.refusals.len() {
        1 => Problem::refused(first.what.clone()),
        n => {
            let mut problem = Problem::refused(format!("{n} reasons against this refresh; nothing was touched"));
            problem.causes.extend(verdict.refusals.iter().map(|r| r.what.clone()));
            problem
        }
    };
    for refusal in &verdict.refusals {
        if !problem.hints.contains(&refusal.hint) {
            problem.hints.push(refusal.hint.clone());
        }
    }
    Err(problem)
}
