//! Rollback: a destination's current and previous generation change places, because an operator wishes it. The same locks, the
//! same journal and the same swap as in a refresh.

use std::time::Instant;

use super::hosts::{Descriptions, Hosts};
use super::undo::Undo;
use super::{Job, context, holder, locking, put_back, recover};
use crate::config::{Config, HostId};
use crate::problem::{Explain, Kind, Outcome, Problem};
use crate::report::{Ending, Event, Reporter, Serves, Step, Summary};
use crate::run::{Run, new_id};

/// Rolls a destination back. An error means that no run was begun.
pub async fn run(job: Job<'_>, id: &HostId) -> Outcome<Summary> {
    let Job { config, store, sinks, cancel, no_wait, typed, pulse, .. } = job;
    let host = config.host(id).cloned().ok_or_else(|| {
        let known: Vec<String> = config.hosts().map(|h| h.id.to_string()).collect();
        Problem::new(Kind::Usage, format!("no host {id} in the configuration"))
            .hint(format!("Hosts are: {}.", known.join(", ")))
    })?;
    if !config.refreshes.values().any(|r| r.destinations.contains(id)) {
        return Err(Problem::new(Kind::Usage, format!("{id} is not a destination of any refresh"))
            .hint("Only destinations have a previous generation."));
    }
    recover::abandoned(&config.daemon, &store, sinks.clone(), &[id.to_string()], &typed, &pulse).await?;
    let begun = Instant::now();
    let run_id = new_id();
    let name = format!("rollback of {id}");
    let descriptions = Descriptions { source: None, destinations: vec![host] };
    let mut sinks = sinks;
    let history = store.clone();
    sinks.insert(0, std::sync::Arc::new(move |event| history.keep(event)));
    let report = Reporter::new(&run_id, sinks, pulse);
    let text = serde_json::to_string(&descriptions).explain(|| "cannot write the journal")?;
    let run = Run::<Undo>::begin(store.clone(), holder(&run_id, &name), &text, report.clone(), cancel.clone())?;
    report.tell(Event::RunStarted { refresh: name.clone(), source: String::new(), destinations: vec![id.to_string()] });
    let context = context(config, None, Some(&run_id), (&report, &cancel, &typed));
    let mut hosts = Hosts::new(&descriptions, &context, run.holder().clone());
    let patience = (!no_wait).then_some(std::time::Duration::from_secs(2 * 3600));
    let result = pipeline(&run, config, &mut hosts, patience).await;
    let left = put_back(&run, &mut hosts, result.is_err()).await;
    let problem = result.err();
    let ending = match &problem {
        _ if !left.is_empty() => Ending::Human,
        _ if hosts.results().iter().all(|d| d.refreshed) => Ending::Done,
        None => Ending::Failed,
        Some(p) => match p.kind {
            Kind::Cancelled => Ending::Cancelled,
            Kind::Refused => Ending::Refused,
            Kind::Locked => Ending::Locked,
            Kind::Usage => Ending::Usage,
            _ => Ending::Failed,
        },
    };
    let summary = Summary {
        problem,
        not_put_back: left,
        total_ms: begun.elapsed().as_millis() as u64,
        destinations: hosts.results(),
        steps: run.times(),
        ..Summary::of_nothing(&run_id, &name, ending)
    };
    hosts.close().await;
    report.tell(Event::RunFinished(summary.clone()));
    report.flush();
    store.finish(&run_id, &summary).map_err(super::unrecorded)?;
    Ok(summary)
}

async fn pipeline(run: &Run<Undo>, config: &Config, hosts: &mut Hosts, patience: locking::Patience) -> Outcome<()> {
    run.step(Step::Lock, locking::take_all(run, hosts, &config.daemon.state_dir, patience)).await?;
    run.step(Step::Swap, async {
        for destination in &mut hosts.destinations {
            let armed = run.arm(Undo::UndoSwap { host: destination.host.0.host().id.clone() })?;
            let origin = match destination.host.rollback().await {
                Ok(origin) => origin,
                // the host says so before it touches anything
                Err(problem) if problem.kind == Kind::Refused => {
                    run.settle(armed)?;
                    return Err(problem);
                }
                Err(problem) => return Err(problem),
            };
            destination.refreshed = true;
            destination.serves = origin.as_ref().map(|o| Serves {
                run: o.run.clone(),
                source: o.source.clone(),
                taken: o.taken.clone(),
            });
            destination.notes.push(match origin {
                Some(o) => format!("serves the generation of run {}, taken from {} at {}", o.run, o.source, o.taken),
                None => "serves the generation from before the first refresh".to_owned(),
            });
            run.settle(armed)?;
        }
        Ok(())
    })
    .await
}
