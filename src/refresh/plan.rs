//! The dry run: asks every host, judges, and says every act that a run would do, without doing any of it.

use std::sync::Arc;

use serde::Serialize;

use super::hosts::Hosts;
use super::{context, descriptions, holder, image, preflight, safety};
use crate::config::{Accounts, Basis, Config, Events, KeepPrevious, Layout, OnBusy, Refresh};
use crate::host::Typed;
use crate::instance::Service;
use crate::mysql::variables::{effective, layout_differences, same_setting};
use crate::problem::Outcome;
use crate::report::{Pulse, Reporter, Step, Taken, human_bytes};
use crate::run::Cancel;
use crate::store::{Filter, Store};
use crate::wire::facts::Facts;

/// Throughput assumed while nothing was measured, in bytes a second: a slow disk or a 1 Gbit/s link.
const ASSUMED_BYTES_PER_S: u64 = 100_000_000;

/// Seconds assumed for stop and start together while nothing was measured.
const ASSUMED_RESTART_S: f64 = 5.0;

/// The part of the data assumed to be in files that are touched between the last pass and the stop.
const ASSUMED_TOUCHED: f64 = 0.05;

/// What a run would do.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// The refresh.
    pub refresh: String,
    /// Acts, host by host.
    pub hosts: Vec<HostPlan>,
    /// Bytes of the image.
    pub bytes: u64,
    /// Files of the image.
    pub files: u64,
    /// How the image would be taken.
    pub taken: Taken,
    /// Predicted seconds the source is down.
    pub outage_s: f64,
    /// What the prediction rests on.
    pub outage_basis: String,
    /// Predicted bytes that destinations lack, and bytes that are sent for them; None: nothing was measured yet.
    pub lacking: Option<(u64, u64)>,
    /// Warnings.
    pub warnings: Vec<String>,
    /// Reasons against it, with what to do.
    pub refusals: Vec<(String, String)>,
}

/// What a run would do on one host.
#[derive(Debug, Clone, Serialize)]
pub struct HostPlan {
    /// Its name.
    pub host: String,
    /// `source` or `destination`.
    pub role: String,
    /// In order.
    pub acts: Vec<String>,
}

/// Makes the plan.
pub async fn plan(
    config: &Config,
    refresh: &Refresh,
    store: Option<&Store>,
    cancel: Cancel,
    typed: &Typed,
) -> Outcome<Plan> {
    let report = Reporter::new("plan", vec![Arc::new(|_| {})], Pulse::default());
    let context = context(config, Some(refresh), None, (&report, &cancel, typed));
    let mut hosts = Hosts::new(&descriptions(config, refresh)?, &context, holder("plan", &refresh.name));
    let gathered = preflight::gather(&mut hosts).await;
    let way = match &gathered {
        Ok(_) => image::way(refresh, &mut hosts, &report).await,
        Err(_) => Ok(None),
    };
    hosts.close().await;
    let facts = gathered?;
    let mut verdict = preflight::judge(config, refresh, &hosts, &facts);
    let way = way.unwrap_or_else(|problem| {
        let hint = problem.hints.first().cloned().unwrap_or_default();
        verdict.refusals.push(safety::Reason { what: problem.to_string(), hint });
        None
    });
    let taken = match way {
        way if !refresh.method.stops() => Taken::Snapshot(way.unwrap_or_else(|| "a snapshot".to_owned())),
        Some(way) => Taken::Frozen(way),
        None if refresh.policy.precopy => Taken::Passes(refresh.policy.precopy_rounds.max(1)),
        None => Taken::Whole,
    };
    let Prediction { outage_s, basis, lacking } = predict(refresh, store, &taken, facts.tree.copy_bytes);
    let mut plans = vec![source_plan(refresh, &facts, &taken)];
    plans.extend(hosts.destinations.iter().map(|d| destination_plan(refresh, d, &facts)));
    Ok(Plan {
        refresh: refresh.name.clone(),
        hosts: plans,
        bytes: facts.tree.copy_bytes,
        files: facts.tree.copy_files,
        taken,
        outage_s,
        outage_basis: basis,
        lacking,
        warnings: super::outside_blackout(refresh)
            .err()
            .map(|p| p.message)
            .into_iter()
            .chain(verdict.warnings)
            .collect(),
        refusals: verdict.refusals.into_iter().map(|r| (r.what, r.hint)).collect(),
    })
}

struct Prediction {
    outage_s: f64,
    basis: String,
    lacking: Option<(u64, u64)>,
}

/// From the last run whose image was taken in the same way, else from assumptions that are named.
fn predict(refresh: &Refresh, store: Option<&Store>, taken: &Taken, bytes: u64) -> Prediction {
    if matches!(taken, Taken::Snapshot(_)) {
        let basis = "nothing is stopped; writes are held while the snapshot is made".to_owned();
        return Prediction { outage_s: 0.0, basis, lacking: None };
    }
    let last = store
        .and_then(|s| s.history(&Filter { refresh: Some(refresh.name.clone()), limit: 20, ..Filter::default() }).ok())
        .unwrap_or_default();
    let measured = last.iter().find_map(|row| {
        let summary = row.summary.as_ref().filter(|s| s.bytes > 0)?;
        let alike = summary.taken.as_ref().is_some_and(|theirs| theirs.is_like(taken));
        alike.then_some((row.run.clone(), summary, summary.outage_ms?))
    });
    if let Some((run, summary, ms)) = measured {
        let seconds = ms as f64 / 1000.0;
        // what is copied while the source is down grows with the data; a restart does not
        let copy = summary.took(&[Step::Copy, Step::Prove]) as f64 / 1000.0;
        let growth = bytes as f64 / summary.bytes as f64;
        let outage_s = match taken {
            Taken::Frozen(_) | Taken::Snapshot(_) => seconds,
            Taken::Passes(_) | Taken::Whole => (seconds - copy).max(0.0) + copy * growth,
        };
        let parts = summary.outage_parts().unwrap_or_default();
        return Prediction {
            outage_s,
            basis: format!("run {run}: {seconds:.1} s for {} ({parts})", human_bytes(summary.bytes)),
            lacking: Some((summary.changed_bytes, summary.sent_bytes)),
        };
    }
    let (share, what) = match taken {
        Taken::Frozen(_) | Taken::Snapshot(_) => (0.0, String::new()),
        Taken::Passes(_) => {
            (ASSUMED_TOUCHED, format!(", {:.0} % of the data touched before the stop", ASSUMED_TOUCHED * 100.0))
        }
        Taken::Whole => (1.0, String::new()),
    };
    let rate = if share > 0.0 { format!(", {}/s", human_bytes(ASSUMED_BYTES_PER_S)) } else { String::new() };
    Prediction {
        outage_s: ASSUMED_RESTART_S + share * bytes as f64 / ASSUMED_BYTES_PER_S as f64,
        basis: format!(
            "no run measured yet that was taken so; assumed {ASSUMED_RESTART_S} s for stop and start{rate}{what}"
        ),
        lacking: None,
    }
}

fn verb(service: &Service, stop: bool) -> String {
    match (service, stop) {
        (Service::Systemd { unit }, true) => {
            format!("systemctl stop {unit}, held down by an assertion in /run/systemd/system")
        }
        (Service::Systemd { unit }, false) => format!("systemctl start {unit}"),
        (Service::Commands { stop, .. }, true) => stop.join(" "),
        (Service::Commands { start, .. }, false) => start.join(" "),
        (Service::Process { .. }, true) => "SIGTERM to the server".into(),
        (Service::Process { server, defaults_file }, false) => {
            format!("{} --defaults-file={}", server.display(), defaults_file.display())
        }
    }
}

fn waits(refresh: &Refresh) -> String {
    match refresh.policy.on_busy {
        OnBusy::Wait => format!("wait up to {}", humantime::format_duration(refresh.policy.lock_timeout)),
        OnBusy::Skip => "skip this run".into(),
        OnBusy::Fail => "fail".into(),
    }
}

fn source_plan(refresh: &Refresh, facts: &Facts, taken: &Taken) -> HostPlan {
    let policy = &refresh.policy;
    let say = |stop| verb(&facts.instance.service, stop);
    let files = format!(
        "{} files, {}, once for {} destination(s)",
        facts.tree.copy_files,
        human_bytes(facts.tree.copy_bytes),
        refresh.destinations.len()
    );
    let lock = format!("take the lock of this instance ({} if another run has it)", waits(refresh));
    if let Taken::Snapshot(way) = taken {
        let mut acts = vec![
            lock,
            format!(
                "hold its writes, trying for {} at most (BACKUP STAGE; MySQL: LOCK INSTANCE FOR BACKUP, FLUSH TABLES WITH READ LOCK)",
                humantime::format_duration(policy.drain_timeout)
            ),
            format!("freeze its files: {way}; let writes go on"),
            format!("read the frozen files: {files}; remove them"),
        ];
        acts.extend(left_behind(facts));
        return HostPlan { host: refresh.source.to_string(), role: "source".into(), acts };
    }
    let mut acts = vec![
        lock,
        "record variables set at run time and the replication state".into(),
        match taken {
            Taken::Passes(n) => format!("copy what destinations lack while it runs, {n} time(s) at most"),
            Taken::Frozen(_) | Taken::Snapshot(_) | Taken::Whole => String::new(),
        },
        format!(
            "drain for up to {}: transactions older than {} end, dirty pages are written (innodb_io_capacity, innodb_max_dirty_pages_pct and their kin are changed meanwhile)",
            humantime::format_duration(policy.drain_timeout),
            humantime::format_duration(policy.long_transaction_age)
        ),
        format!(
            "arm the guard: it starts the server after {} whatever happens",
            humantime::format_duration(policy.max_outage)
        ),
        format!("set innodb_fast_shutdown = 1 and stop: {}", say(true)),
        "prove the clean stop: process gone, locks free, no markers, redo log at its checkpoint".into(),
        match taken {
            Taken::Frozen(way) | Taken::Snapshot(way) => format!("freeze its files: {way}"),
            Taken::Passes(_) => format!("read what was touched since, send what has changed: {files}"),
            Taken::Whole => format!("read {files}"),
        },
        format!("start: {}; restore what was recorded; prove by a query that it is back", say(false)),
        "disarm the guard".into(),
        match taken {
            Taken::Frozen(_) => format!("read the frozen files: {files}; remove them"),
            Taken::Passes(_) | Taken::Snapshot(_) | Taken::Whole => String::new(),
        },
    ];
    acts.retain(|act| !act.is_empty());
    acts.extend(left_behind(facts));
    HostPlan { host: refresh.source.to_string(), role: "source".into(), acts }
}

fn left_behind(facts: &Facts) -> Option<String> {
    (!facts.tree.dropped.is_empty()).then(|| format!("left behind: {}", few(&facts.tree.dropped)))
}

/// Names for a human's eye: the first of a list that may be long.
fn few(names: &[String]) -> String {
    const SHOWN: usize = 12;
    let more = names.len().saturating_sub(SHOWN);
    let shown = names[..names.len() - more].join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

fn destination_plan(refresh: &Refresh, destination: &super::hosts::Destination, source: &Facts) -> HostPlan {
    let policy = &refresh.policy;
    let host = destination.host.0.host();
    let mut acts = vec![format!("take the lock of this instance ({} if another run has it)", waits(refresh))];
    if let Some(facts) = &destination.facts {
        let datadir = facts.identity.datadir.display();
        if policy.keep_previous == KeepPrevious::UntilStage && facts.disk.previous_bytes > 0 {
            acts.push(format!("give up the previous generation, {}", human_bytes(facts.disk.previous_bytes)));
        }
        if policy.basis == Basis::Current {
            acts.push("bring what it serves now into a stage, to compare with (clones; else copies, if it came from a refresh; files of a previous generation that is given up may save most of that)".into());
        }
        acts.push(format!(
            "receive {} into a stage beside {datadir} and prove it from this disk; {} available, {} remain free",
            human_bytes(source.tree.copy_bytes),
            human_bytes(safety::available(policy, facts)),
            human_bytes(safety::available(policy, facts).saturating_sub(source.tree.copy_bytes))
        ));
        if !facts.tree.keep.is_empty() {
            acts.push(format!("keep its own files: {}", facts.tree.keep.join(", ")));
        }
        if !refresh.method.stops() {
            acts.push("let the stage recover, as from a crash, in isolation".into());
        }
        acts.push("start the stage in isolation: no network, no option files, no replication, no events".into());
        acts.push(match (policy.accounts, &facts.server) {
            (Accounts::Destination, Some(server)) => {
                format!("restore its own {} accounts and roles, drop the source's", server.accounts)
            }
            (Accounts::Destination, None) => "restore its own accounts and roles, drop the source's".into(),
            (Accounts::Source, _) => "leave the source's accounts in place".into(),
        });
        acts.push(match policy.events {
            Events::Disable => "disable all events; remove replication connections and remote servers".into(),
            Events::Keep => "remove replication connections and remote servers; events stay as they are".into(),
        });
        acts.extend(settings(policy.layout, host, facts, source));
        acts.push(format!("stop: {}", verb(&facts.instance.service, true)));
        acts.push(format!("exchange {datadir} and the stage by rename"));
        acts.push(format!("start: {}", verb(&facts.instance.service, false)));
    }
    acts.push("verify settings, objects and replication; put the old generation back if anything is wrong".into());
    acts.push(match policy.keep_previous {
        KeepPrevious::UntilStage => "keep the old generation for `rollback` until the next refresh".into(),
        KeepPrevious::UntilVerified => "keep the old generation for `rollback` until the next one is verified".into(),
        KeepPrevious::None => "remove the old generation".into(),
    });
    HostPlan { host: host.id.to_string(), role: "destination".into(), acts }
}

/// Which settings change, and how.
fn settings(layout: Layout, host: &crate::config::Host, facts: &Facts, source: &Facts) -> Option<String> {
    let dropin = facts.instance.dropin.as_ref()?;
    let theirs = &facts.server.as_ref()?.variables;
    let mut lines: Vec<String> = Vec::new();
    if let (Layout::Follow, Some(server)) = (layout, &source.server) {
        let differences = layout_differences(crate::mysql::Flavour::MariaDb, &server.variables, theirs);
        lines.extend(
            differences.iter().map(|d| format!("{} = {} (is {}, follows the data)", d.name, d.source, d.destination)),
        );
    }
    for (name, wanted) in &host.settings {
        lines.push(match effective(theirs, name) {
            Some(is) if same_setting(name, wanted, is) => format!("{name} = {wanted} (as it is)"),
            Some(is) => format!("{name} = {wanted} (is {is})"),
            None => format!("{name} = {wanted} (not a variable of this server now)"),
        });
    }
    (!lines.is_empty()).then(|| format!("write {}: {}", dropin.display(), lines.join("; ")))
}
