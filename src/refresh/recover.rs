//! Recovery: runs that were interrupted are put back from the journal. Any number of times; needs no configuration but the
//! controller's own settings, since the journal holds the hosts' descriptions.

use super::hosts::{Descriptions, Hosts};
use super::undo::Undo;
use crate::config::Daemon;
use crate::host::{Context, Typed};
use crate::problem::{Explain, Kind, Outcome, Problem};
use crate::report::{Ending, Pulse, Reporter, Sink, Summary};
use crate::run::{Cancel, Run};
use crate::store::Store;
use crate::wire::message::Extra;

/// What became of one interrupted run.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Recovered {
    /// The run.
    pub run: String,
    /// Its refresh.
    pub refresh: String,
    /// Its hosts; empty if they cannot be told.
    pub hosts: Vec<String>,
    /// What could not be put back.
    pub left: Vec<Problem>,
}

/// Puts back all interrupted runs.
pub async fn all(
    daemon: &Daemon,
    store: &Store,
    sinks: Vec<Sink>,
    typed: &Typed,
    pulse: &Pulse,
) -> Outcome<Vec<Recovered>> {
    let mut results = Vec::new();
    for (run, refresh, hosts) in store.interrupted()? {
        // one that cannot be recovered must not keep the others from it: they may have a source that is down
        let left = match store.take_over(&run) {
            Ok(None) => continue,
            Ok(Some(_alive)) => one(daemon, store, (&run, &refresh, &hosts), &sinks, typed, pulse).await,
            Err(problem) => Err(problem),
        };
        let left = left.unwrap_or_else(|problem| vec![problem]);
        let names = serde_json::from_str::<Descriptions>(&hosts).map(|d| d.names()).unwrap_or_default();
        results.push(Recovered { run, refresh, hosts: names, left });
    }
    Ok(results)
}

/// The same before a new run on `hosts`; what could not be put back on one of them forbids it.
pub async fn abandoned(
    daemon: &Daemon,
    store: &Store,
    sinks: Vec<Sink>,
    hosts: &[String],
    typed: &Typed,
    pulse: &Pulse,
) -> Outcome<()> {
    let concerns = |r: &Recovered| r.hosts.is_empty() || r.hosts.iter().any(|h| hosts.contains(h));
    let stuck = all(daemon, store, sinks, typed, pulse).await?.into_iter().find(|r| !r.left.is_empty() && concerns(r));
    let Some(stuck) = stuck else { return Ok(()) };
    let mut problem = Problem::new(
        Kind::Human,
        format!("run {} of {} was interrupted and could not be put back", stuck.run, stuck.refresh),
    )
    .hint(format!(
        "Do what the messages say, then run `mysql-refreshd recover`; `recover --forget {}` gives the run up.",
        stuck.run
    ));
    for left in stuck.left {
        problem.causes.push(left.to_string());
        problem.hints.extend(left.hints);
    }
    Err(problem)
}

async fn one(
    daemon: &Daemon,
    store: &Store,
    (id, refresh, hosts): (&str, &str, &str),
    sinks: &[Sink],
    typed: &Typed,
    pulse: &Pulse,
) -> Outcome<Vec<Problem>> {
    let descriptions: Descriptions =
        serde_json::from_str(hosts).explain(|| format!("the journal of run {id} is not understood"))?;
    let mut sinks = sinks.to_vec();
    let history = store.clone();
    sinks.insert(0, std::sync::Arc::new(move |event| history.keep(event)));
    let report = Reporter::new(id, sinks, pulse.clone());
    report.note("", "recovering this interrupted run");
    let holder = super::holder(id, refresh);
    let report_end = report.clone();
    let run = Run::<Undo>::resume(store.clone(), holder.clone(), report.clone());
    let context = Context {
        run: Some(id.to_owned()),
        report,
        cancel: Cancel::default(),
        silence: daemon.host_timeout,
        extra: Extra::default(),
        from: None,
        typed: typed.clone(),
    };
    let mut hosts = Hosts::new(&descriptions, &context, holder);
    let left = run.unwind(&mut hosts, |_| true).await;
    hosts.close().await;
    let ending = if left.is_empty() { Ending::Failed } else { Ending::Human };
    let summary = Summary {
        problem: Some(Problem::failed("the run was interrupted; it was put back by recovery")),
        not_put_back: left.clone(),
        destinations: hosts.results(),
        ..Summary::of_nothing(id, refresh, ending)
    };
    report_end.flush();
    store.finish_recovered(id, &summary)?;
    Ok(left)
}
