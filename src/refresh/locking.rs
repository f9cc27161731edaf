//! Locks for the source and every destination: on the controller and on the host itself, keyed by machine and datadir so that
//! aliases meet, taken in sorted order so that two runs never wait for each other in a circle.

use std::path::Path;
use std::time::{Duration, Instant};

use super::hosts::Hosts;
use super::undo::Undo;
use crate::host::locked;
use crate::lock::{self, Taken};
use crate::problem::{Outcome, Problem};
use crate::report::Event;
use crate::run::Run;
use crate::wire::message::Holder;

/// How often a taken lock is tried again.
const POLL: Duration = Duration::from_millis(500);

/// How long to wait for locks; None: not at all.
pub type Patience = Option<Duration>;

/// Takes all locks, or says who has one.
pub async fn take_all(run: &Run<Undo>, hosts: &mut Hosts, state_dir: &Path, patience: Patience) -> Outcome<()> {
    let mut wanted: Vec<(String, String)> = Vec::new();
    if let Some(source) = &mut hosts.source {
        wanted.push((source.identify().await?.key, source.0.name()));
    }
    for destination in &mut hosts.destinations {
        wanted.push((destination.host.identify().await?.key, destination.host.0.name()));
    }
    wanted.sort();
    if let Some(pair) = wanted.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(Problem::refused(format!("{} and {} are the same server", pair[0].1, pair[1].1))
            .hint("Two names of the configuration lead to one datadir; check `datadir` and the host's address."));
    }
    let begun = Instant::now();
    for (key, name) in &wanted {
        let path = state_dir.join("locks").join(format!("controller-{key}.lock"));
        wait(run, name, patience, begun, async || {
            Ok(match lock::try_take(&path, run.holder())? {
                Taken::Ours(lock) => {
                    run.keep_lock(lock);
                    None
                }
                Taken::Theirs(holder) => Some(holder),
            })
        })
        .await?;
    }
    for (_, name) in &wanted {
        let holder = run.holder().clone();
        if let Some(source) = hosts.source.as_mut().filter(|s| s.0.name() == *name) {
            let source = tokio::sync::Mutex::new(source);
            wait(run, name, patience, begun, async || Ok(source.lock().await.lock(&holder).await?.map(Some))).await?;
        } else if let Some(destination) = hosts.destinations.iter_mut().find(|d| d.host.0.name() == *name) {
            let host = tokio::sync::Mutex::new(&mut destination.host);
            wait(run, name, patience, begun, async || Ok(host.lock().await.lock(&holder).await?.map(Some))).await?;
        }
    }
    Ok(())
}

/// Tries until the lock is ours (`None`), visibly.
async fn wait(
    run: &Run<Undo>,
    name: &str,
    patience: Patience,
    begun: Instant,
    attempt: impl AsyncFn() -> Outcome<Option<Option<Holder>>>,
) -> Outcome<()> {
    let mut told: Option<Option<Holder>> = None;
    loop {
        let Some(holder) = attempt().await? else { return Ok(()) };
        match patience {
            None => return Err(locked(name, holder.as_ref())),
            Some(limit) if begun.elapsed() >= limit => {
                return Err(
                    locked(name, holder.as_ref()).hint(format!("`lock_timeout` of {} s is over.", limit.as_secs()))
                );
            }
            Some(_) => {}
        }
        run.report.beat();
        if told.as_ref() != Some(&holder) {
            run.report.tell(Event::Waiting { host: name.to_owned(), holder: holder.clone() });
            told = Some(holder);
        }
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            () = run.cancel.cancelled() => return Err(Problem::cancelled()),
        }
    }
}
