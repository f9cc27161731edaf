//! The steps that take the source's image: of the stopped source, or of the running one. Part of the pipeline, between stages that are ready
//! and what is done to them.
//!
//! Knows the source's side alone, and the order in which what must be undone is armed. How bytes move is `image`'s business.

use std::time::{Duration, Instant};

use super::Limits;
use super::hosts::Hosts;
use super::image::Taking;
use super::undo::Undo;
use crate::config::{Config, LongTransactions, OnDestinationFailure, Refresh};
use crate::problem::{Outcome, Problem};
use crate::report::Step;
use crate::run::{Armed, Run};
use crate::wire::message::{DrainOptions, Runtime};

/// What a run leaves for the way back and for destinations to be told that they failed, in time: part of `max_outage` that is
/// not spent on copying.
const START_RESERVE: Duration = Duration::from_secs(10);

/// What one attempt at the pipeline has.
pub struct Attempt<'a> {
    /// The run.
    pub run: &'a Run<Undo>,
    /// The configuration.
    pub config: &'a Config,
    /// What is refreshed.
    pub refresh: &'a Refresh,
    /// What the run may do.
    pub limits: Limits,
    /// When the source was stopped, once it is.
    pub stopped_at: &'a std::cell::Cell<Option<Instant>>,
}

/// The image of the stopped source: it is down for as long as this needs it to be. Its state at run time, and when the image was taken.
pub async fn of_stopped(
    at: Attempt<'_>,
    hosts: &mut Hosts,
    taking: &mut Taking,
    outage: &mut Option<Duration>,
    precopy: bool,
) -> Outcome<(Runtime, String)> {
    let Attempt { run, config, refresh, limits, stopped_at } = at;
    let (policy, report, source) = (&refresh.policy, &run.report, refresh.source.clone());
    let abort = policy.on_destination_failure == OnDestinationFailure::Abort;
    if precopy {
        run.step(Step::Precopy, async {
            taking.hot(refresh, hosts, report, &run.cancel).await?;
            hosts.none_lost(limits.may_begin_anew)
        })
        .await?;
    }

    let (runtime, undrain) = run
        .step(Step::Drain, async {
            limits.may_go_on(refresh)?;
            let runtime = hosts.source()?.record_runtime().await?;
            let undrain = run.arm(Undo::Undrain { host: source.clone(), runtime: runtime.clone() })?;
            let drained = hosts.source()?.drain(drain_options(refresh, false)).await?;
            report.note(
                &source,
                format!("drained: {} dirty pages before, {} after", drained.dirty_before, drained.dirty_after),
            );
            if drained.left_open > 0 {
                report.warn(
                    &source,
                    format!("{} long transaction(s) will be rolled back by the stop", drained.left_open),
                );
            }
            if precopy {
                // what the drain has written is not left for the outage
                let rounds = taking.rounds;
                taking.settle(refresh, hosts, report, &run.cancel).await?;
                if taking.rounds > rounds {
                    // transactions may have begun meanwhile that are long by now
                    hosts.source()?.drain(drain_options(refresh, true)).await?;
                }
            }
            hosts.none_lost(limits.may_begin_anew)?;
            Ok((runtime, undrain))
        })
        .await?;

    let guard = run
        .step(Step::Guard, async {
            limits.may_go_on(refresh)?;
            let guard = run.arm(Undo::DisarmGuard { host: source.clone() })?;
            let lease = config.daemon.host_timeout.as_secs().max(5);
            hosts.source()?.arm_guard(policy.max_outage.as_secs().max(1), lease).await?;
            Ok(guard)
        })
        .await?;

    // armed before the start is: should it come to that, nobody's start waits for the removal
    let thaw = match &taking.frozen {
        Some(_) => Some(run.arm(Undo::Thaw { host: source.clone() })?),
        None => None,
    };

    let start = run
        .step(Step::Stop, async {
            let start = run.arm(Undo::StartServer { host: source.clone(), runtime: runtime.clone() })?;
            stopped_at.set(Some(Instant::now()));
            hosts.source()?.stop_server().await?;
            Ok(start)
        })
        .await?;
    let down = stopped_at.get().unwrap_or_else(Instant::now);
    let taken = now();

    if thaw.is_some() {
        run.step(Step::Freeze, async { hosts.source()?.freeze().await }).await?;
    } else {
        let deadline = deadline(policy.max_outage, down);
        run.step(Step::Copy, taking.cold(Some(deadline), refresh, hosts, report, &run.cancel)).await?;
        run.step(Step::Prove, async { hosts.judge(abort) }).await?;
    }

    // from here on the wish to stop waits until the source is back
    run.must(Step::Start, async { run.fire(start, hosts).await }).await?;
    *outage = Some(down.elapsed());
    run.settle(undrain)?;

    run.must(Step::Disarm, async {
        run.fire(guard, hosts).await?;
        match &hosts.guard_fired {
            None => Ok(()),
            Some(why) => {
                Err(Problem::failed("the guard had started the source; the image is thrown away").cause(why.clone()))
            }
        }
    })
    .await?;

    if let Some(thaw) = thaw {
        from_frozen(run, refresh, hosts, taking, thaw, abort).await?;
    }
    Ok((runtime, taken))
}

/// The image of the running source, from one snapshot of its files. When that was made.
pub async fn of_running(
    run: &Run<Undo>,
    refresh: &Refresh,
    limits: Limits,
    hosts: &mut Hosts,
    taking: &mut Taking,
    held: &mut Option<Duration>,
) -> Outcome<String> {
    let (policy, source) = (&refresh.policy, refresh.source.clone());
    let abort = policy.on_destination_failure == OnDestinationFailure::Abort;
    limits.may_go_on(refresh)?;
    let thaw = run.arm(Undo::Thaw { host: source.clone() })?;
    run.step(Step::Freeze, async {
        *held = Some(hosts.source()?.snapshot(policy.drain_timeout).await?);
        Ok(())
    })
    .await?;
    let taken = now();
    from_frozen(run, refresh, hosts, taking, thaw, abort).await?;
    Ok(taken)
}

/// Copies what is frozen, proves it, and removes it.
async fn from_frozen(
    run: &Run<Undo>,
    refresh: &Refresh,
    hosts: &mut Hosts,
    taking: &mut Taking,
    thaw: Armed<Undo>,
    abort: bool,
) -> Outcome<()> {
    run.step(Step::Copy, taking.cold(None, refresh, hosts, &run.report, &run.cancel)).await?;
    run.step(Step::Prove, async { hosts.judge(abort) }).await?;
    // it stays armed, and is tried again at the end: no reason to leave destinations as they were
    if let Err(problem) = run.fire(thaw, hosts).await {
        run.report.warn(&refresh.source, format!("the frozen files are not removed yet: {problem}"));
    }
    Ok(())
}

fn drain_options(refresh: &Refresh, again: bool) -> DrainOptions {
    DrainOptions {
        limit_ms: refresh.policy.drain_timeout.as_millis() as u64,
        long_ms: refresh.policy.long_transaction_age.as_millis() as u64,
        wait_for_long: refresh.policy.long_transactions == LongTransactions::Wait,
        again,
    }
}

/// RFC 3339, to the second.
fn now() -> String {
    chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

/// When the copy must have ended, for the source to be back in time.
fn deadline(max_outage: Duration, down: Instant) -> Instant {
    down + max_outage.saturating_sub(START_RESERVE.min(max_outage / 4))
}
