//! The refresh: one pipeline, read top to bottom, and what belongs to it. Every act that must be undone is in the journal before
//! it is done; whatever ends the pipeline, what is armed is put back before the run is over.
//!
//! Knows the order of the steps and both sides. Knows no exit codes, no terminal, no SQL.

pub mod doctor;
pub mod hosts;
pub mod plan;
pub mod recover;
pub mod rollback;
pub mod undo;

mod image;
mod install;
mod locking;
mod preflight;
mod safety;
mod take;
mod transfer;

use std::time::{Duration, Instant};

use hosts::{Descriptions, Hosts};
use image::Taking;
use undo::Undo;

use crate::config::{Basis, Config, Method, OnBusy, OnDestinationFailure, Refresh};
use crate::host::{Context, SourceHost, Typed};
use crate::problem::{Explain, Kind, Outcome, Problem};
use crate::report::{Ending, Event, Pulse, Reporter, Sink, Step, Summary};
use crate::run::{Cancel, Run, new_id, pauses};
use crate::store::Store;
use crate::wire::message::{Extra, Holder, Origin, Room, Runtime};

/// Before the first new attempt of a run whose connections were lost.
const FIRST_PAUSE: Duration = Duration::from_secs(2);

/// How long a run looks after the replication of its source.
const CATCH_UP: Duration = Duration::from_secs(120);

/// What a run is begun with.
pub struct Job<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// Journal and history.
    pub store: Store,
    /// Who listens.
    pub sinks: Vec<Sink>,
    /// The wish to stop.
    pub cancel: Cancel,
    /// Do not wait for locks.
    pub no_wait: bool,
    /// A window in which nothing may begin does not matter.
    pub despite_blackout: bool,
    /// Secrets that a person gave.
    pub typed: Typed,
    /// The run's signs of life.
    pub pulse: Pulse,
}

/// Figures that the pipeline leaves for the summary.
#[derive(Default)]
struct Figures {
    outage: Option<Duration>,
    /// A running source's writes were held for so long.
    held: Option<Duration>,
    /// The source was stopped, or the image has landed.
    acted: bool,
    taking: Option<Taking>,
}

/// What a run has passed from where it does not begin anew.
#[derive(Default)]
struct Passed {
    /// When the source was stopped.
    stopped_at: std::cell::Cell<Option<Instant>>,
    /// The image is at the destinations.
    landed: std::cell::Cell<bool>,
}

impl Passed {
    fn any(&self) -> bool {
        self.landed.get() || self.stopped_at.get().is_some()
    }
}

/// What a run may do about others, and when.
#[derive(Clone, Copy)]
struct Limits {
    patience: locking::Patience,
    despite_blackout: bool,
    /// A connection that is lost before the stop ends this attempt, not the run.
    may_begin_anew: bool,
}

impl Limits {
    fn may_go_on(self, refresh: &Refresh) -> Outcome<()> {
        if self.despite_blackout { Ok(()) } else { outside_blackout(refresh) }
    }
}

/// A refresh does not begin, and stops no source, in its blackout windows.
pub fn outside_blackout(refresh: &Refresh) -> Outcome<()> {
    let Some(end) = refresh.blackout.until(chrono::Utc::now()) else { return Ok(()) };
    let end = end.with_timezone(&chrono::Local).format("%Y-%m-%d %H:%M %Z");
    let what = format!("{} must not run now: its `blackout` {} lasts until {end}", refresh.name, refresh.blackout);
    Err(Problem::refused(what).hint("Wait until then, or use --now with --despite-blackout."))
}

/// Who a run is, for locks and journal.
pub fn holder(run: &str, refresh: &str) -> Holder {
    Holder {
        run: run.to_owned(),
        refresh: refresh.to_owned(),
        pid: std::process::id(),
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        since: chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
        step: "start".to_owned(),
    }
}

/// The hosts of a refresh, as the journal keeps them.
fn descriptions(config: &Config, refresh: &Refresh) -> Outcome<Descriptions> {
    let host = |id| {
        config.host(id).cloned().ok_or_else(|| Problem::new(Kind::Usage, format!("no host {id} in the configuration")))
    };
    Ok(Descriptions {
        source: Some(host(&refresh.source)?),
        destinations: refresh.destinations.iter().map(host).collect::<Outcome<_>>()?,
    })
}

/// What every agent of a run is told.
fn context(
    config: &Config,
    refresh: Option<&Refresh>,
    run: Option<&str>,
    (report, cancel, typed): (&Reporter, &Cancel, &Typed),
) -> Context {
    let extra = refresh.map_or_else(Extra::default, extra);
    Context {
        run: run.map(str::to_owned),
        report: report.clone(),
        cancel: cancel.clone(),
        silence: config.daemon.host_timeout,
        extra,
        from: refresh.map(|refresh| refresh.source.origin().to_owned()),
        typed: typed.clone(),
    }
}

/// Runs a refresh to its end, whatever that is. An error means that no run was begun.
pub async fn run(job: Job<'_>, refresh: &Refresh) -> Outcome<Summary> {
    if !job.despite_blackout {
        outside_blackout(refresh)?;
    }
    let descriptions = descriptions(job.config, refresh)?;
    recover::abandoned(
        &job.config.daemon,
        &job.store,
        job.sinks.clone(),
        &descriptions.names(),
        &job.typed,
        &job.pulse,
    )
    .await?;
    let (id, begun) = (new_id(), Instant::now());
    let mut sinks = job.sinks;
    let store = job.store.clone();
    sinks.insert(0, std::sync::Arc::new(move |event| store.keep(event)));
    let report = Reporter::new(&id, sinks, job.pulse.clone());
    let text = serde_json::to_string(&descriptions).explain(|| "cannot write the journal")?;
    let run =
        Run::<Undo>::begin(job.store.clone(), holder(&id, &refresh.name), &text, report.clone(), job.cancel.clone())?;
    report.tell(Event::RunStarted {
        refresh: refresh.name.clone(),
        source: refresh.source.to_string(),
        destinations: refresh.destinations.iter().map(ToString::to_string).collect(),
    });
    let context = context(job.config, Some(refresh), Some(&id), (&report, &job.cancel, &job.typed));
    let mut hosts = Hosts::new(&descriptions, &context, run.holder().clone());
    let mut figures = Figures::default();
    let wait = !job.no_wait && refresh.policy.on_busy == OnBusy::Wait;
    let limits = Limits {
        patience: wait.then_some(refresh.policy.lock_timeout),
        despite_blackout: job.despite_blackout,
        may_begin_anew: false,
    };
    let passed = Passed::default();
    let mut pauses = pauses(FIRST_PAUSE);
    let (result, left) = loop {
        let pause = pauses.next();
        let limits = Limits { may_begin_anew: pause.is_some(), ..limits };
        let result = pipeline(&run, job.config, refresh, &mut hosts, &mut figures, limits, &passed).await;
        let left = put_back(&run, &mut hosts, result.is_err()).await;
        // a connection lost before the stop is no reason to leave a night out: all is put back, so begin anew
        match (&result, pause) {
            (Err(problem), Some(pause))
                if problem.passing && !passed.any() && left.is_empty() && !run.cancel.is_cancelled() =>
            {
                let s = pause.as_secs_f64();
                report.warn("", format!("{problem}; nothing was stopped: the run begins anew in {s:.1} s"));
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = run.cancel.cancelled() => {}
                }
                hosts.close().await;
                run.release_locks();
                hosts = Hosts::new(&descriptions, &context, run.holder().clone());
            }
            _ => break (result, left),
        }
    };
    // a source that the pipeline could not bring back was down until it was put back
    if figures.outage.is_none() {
        let back = hosts.back_since.unwrap_or_else(Instant::now);
        figures.outage = passed.stopped_at.get().map(|at| back.saturating_duration_since(at));
    }
    figures.acted = passed.any();
    let mut summary = summarise(refresh, &run, &hosts, result, left, &figures, begun);
    if summary.ending == Ending::Locked && refresh.policy.on_busy == OnBusy::Skip && !job.no_wait {
        summary.ending = Ending::Skipped;
    }
    hosts.close().await;
    report.tell(Event::RunFinished(summary.clone()));
    report.flush();
    job.store.finish(&id, &summary).map_err(unrecorded)?;
    Ok(summary)
}

/// A run whose end is not on record: what became of it was said, and who asks later will not be told.
fn unrecorded(problem: Problem) -> Problem {
    problem
        .with_kind(Kind::Human)
        .hint("Mend the cause, then run `mysql-refreshd recover`: the run counts as interrupted until then.")
}

/// Puts on record that a run was not begun at all, and why.
pub fn left_out(store: &Store, refresh: &str, ending: Ending, problem: Problem, sinks: Vec<Sink>) -> Outcome<Summary> {
    let id = new_id();
    let alive = store.begin(&holder(&id, refresh), r#"{"source":null,"destinations":[]}"#)?;
    let summary = Summary { problem: Some(problem), ..Summary::of_nothing(&id, refresh, ending) };
    let report = Reporter::new(&id, sinks, Pulse::default());
    report.tell(Event::RunFinished(summary.clone()));
    report.flush();
    store.finish(&id, &summary)?;
    drop(alive);
    Ok(summary)
}

/// The pipeline: each step needs what the one before it gave.
async fn pipeline(
    run: &Run<Undo>,
    config: &Config,
    refresh: &Refresh,
    hosts: &mut Hosts,
    figures: &mut Figures,
    limits: Limits,
    passed: &Passed,
) -> Outcome<()> {
    let (policy, report) = (&refresh.policy, &run.report);
    let abort = policy.on_destination_failure == OnDestinationFailure::Abort;

    run.step(Step::Lock, locking::take_all(run, hosts, &config.daemon.state_dir, limits.patience)).await?;

    let (facts, way) = run
        .step(Step::Preflight, async {
            // it may have waited for its locks for hours
            limits.may_go_on(refresh)?;
            let facts = preflight::gather(hosts).await?;
            let verdict = preflight::judge(config, refresh, hosts, &facts);
            verdict.warnings.iter().for_each(|warning| report.warn("", warning));
            preflight::refuse(&verdict)?;
            // recovery must know what was found
            let text = serde_json::to_string(&hosts.descriptions()).explain(|| "cannot write the journal")?;
            run.describe(&text)?;
            let way = image::way(refresh, hosts, report).await?;
            Ok((facts, way))
        })
        .await?;
    let precopy = policy.precopy && way.is_none();
    let taking = figures.taking.insert(Taking::new(config, refresh, hosts, way, facts.tree.copy_bytes));
    let server = facts.server.as_ref().ok_or_else(|| Problem::refused("the source does not answer"))?;

    let room = Room { keep: install::keep(policy), basis: policy.basis != Basis::None };
    run.step(Step::Stage, async {
        hosts
            .each(report, abort, async |d| {
                d.armed.push(run.arm(Undo::DiscardStage { host: d.host.0.host().id.clone() })?);
                d.host.prepare_stage().await?;
                // from here on the previous generation may be gone, whatever becomes of the run
                d.host.make_room(room).await
            })
            .await?;
        hosts.none_lost(limits.may_begin_anew)?;
        taking.seed(precopy, refresh, hosts, report).await?;
        hosts.none_lost(limits.may_begin_anew)
    })
    .await?;

    let (runtime, taken) = match refresh.method {
        Method::Cold => {
            let at = take::Attempt { run, config, refresh, limits, stopped_at: &passed.stopped_at };
            take::of_stopped(at, hosts, taking, &mut figures.outage, precopy).await?
        }
        Method::Snapshot => {
            let taken = take::of_running(run, refresh, limits, hosts, taking, &mut figures.held).await?;
            (Runtime::default(), taken)
        }
    };
    passed.landed.set(true);
    let (_, image) = taking.image.ok_or_else(|| Problem::failed("there is no image"))?;

    let shared = install::Shared {
        refresh,
        variables: &server.variables,
        flavour: crate::mysql::Flavour::MariaDb,
        origin: Origin {
            run: run.id.clone(),
            refresh: refresh.name.clone(),
            source: refresh.source.to_string(),
            taken,
            image,
        },
        extra: extra(refresh),
    };
    let mut source = hosts.source.take();
    let delivered = {
        let mut catching_up = std::pin::pin!(caught_up(source.as_mut(), &runtime, report));
        let (delivered, caught) = {
            let mut delivering = std::pin::pin!(deliver(run, hosts, &shared, abort));
            tokio::select! {
                delivered = &mut delivering => (delivered, false),
                () = &mut catching_up => (delivering.await, true),
            }
        };
        // whoever has to go back does not wait for that
        let all_well = delivered.is_ok() && hosts.destinations.iter().all(|d| d.failed.is_none());
        if all_well && !caught {
            tokio::select! {
                () = catching_up => {}
                () = run.cancel.cancelled() => {}
            }
        }
        delivered
    };
    hosts.source = source;
    delivered
}

/// What happens at the destinations once the image has landed. The source is of no concern any more.
async fn deliver(run: &Run<Undo>, hosts: &mut Hosts, shared: &install::Shared<'_>, abort: bool) -> Outcome<()> {
    let report = &run.report;
    run.step(Step::Install, async {
        hosts.each(report, abort, async |d| install::surely(d, run, async |d| d.host.sync_stage().await).await).await?;
        hosts
            .each(report, abort, async |d| {
                install::surely(d, run, async |d| install::install(d, shared, report).await).await
            })
            .await
    })
    .await?;

    run.step(Step::Swap, async {
        hosts
            .each(report, abort, async |d| install::surely(d, run, async |d| install::swap(d, shared, run).await).await)
            .await
    })
    .await?;

    run.step(Step::Verify, async { hosts.each(report, abort, async |d| install::verify(d, shared).await).await })
        .await?;

    run.must(Step::Finish, async { hosts.each(report, abort, async |d| install::commit(d, shared, run).await).await })
        .await
}

/// A source that is a replica is wholly back when it is as near to its own source as it was. Nothing else depends on that.
async fn caught_up(source: Option<&mut SourceHost>, runtime: &Runtime, report: &Reporter) {
    let Some(source) = source else { return };
    let name = source.0.name();
    match source.catch_up(runtime, CATCH_UP).await {
        Ok(None) if runtime.lag_s.is_empty() => {}
        Ok(None) => report.note(name, "replication is as near to its source as it was"),
        Ok(Some(behind)) => report.warn(name, format!("{} s after its start: {behind}", CATCH_UP.as_secs())),
        Err(problem) => report.warn(name, format!("cannot tell whether replication has caught up: {problem}")),
    }
}

fn extra(refresh: &Refresh) -> Extra {
    Extra { copy: refresh.policy.copy_files.clone(), drop: refresh.policy.drop_files.clone() }
}

/// Puts back everything that is still armed. After a failure all connections are closed first: agents end what is under way,
/// and the source's starts its server at once.
async fn put_back(run: &Run<Undo>, hosts: &mut Hosts, failed: bool) -> Vec<Problem> {
    if failed {
        hosts.close().await;
    } else {
        for destination in hosts.destinations.iter_mut().filter(|d| d.failed.is_some()) {
            destination.host.0.close().await;
        }
    }
    run.unwind(hosts, |_| true).await
}

fn summarise(
    refresh: &Refresh,
    run: &Run<Undo>,
    hosts: &Hosts,
    result: Outcome<()>,
    left: Vec<Problem>,
    figures: &Figures,
    begun: Instant,
) -> Summary {
    let results = hosts.results();
    let problem = result.err();
    let done = results.iter().filter(|d| d.refreshed).count();
    let ending = match &problem {
        _ if !left.is_empty() => Ending::Human,
        _ if done == results.len() => Ending::Done,
        _ if done > 0 => Ending::Partial,
        None => Ending::Failed,
        Some(p) => match p.kind {
            Kind::Cancelled => Ending::Cancelled,
            // these promise that nothing was touched
            Kind::Refused if !figures.acted => Ending::Refused,
            Kind::Locked if !figures.acted => Ending::Locked,
            Kind::Usage if !figures.acted => Ending::Usage,
            _ => Ending::Failed,
        },
    };
    let problem = problem.or_else(|| results.iter().find_map(|d| d.problem.clone()));
    let taking = figures.taking.as_ref();
    let totals = taking.and_then(|t| t.image);
    Summary {
        id: run.id.clone(),
        refresh: refresh.name.clone(),
        ending,
        problem,
        not_put_back: left,
        outage_ms: figures.outage.map(|d| d.as_millis() as u64),
        held_ms: figures.held.map(|d| d.as_millis() as u64),
        total_ms: begun.elapsed().as_millis() as u64,
        files: totals.map_or(0, |(totals, _)| totals.files),
        bytes: totals.map_or(0, |(totals, _)| totals.bytes),
        taken: taking.filter(|t| t.image.is_some()).map(Taking::taken),
        read_bytes: taking.map_or(0, |t| t.passed.read),
        cold_bytes: taking.map_or(0, |t| t.cold),
        changed_bytes: taking.map_or(0, |t| t.passed.changed),
        sent_bytes: taking.map_or(0, |t| t.sent),
        image: totals.map(|(_, image)| image.to_string()),
        destinations: results,
        steps: run.times(),
    }
}
