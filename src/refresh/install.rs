//! What happens on one destination after the image has landed: isolated first start, swap, verification, commit. Each part is
//! run on all destinations at once; one that fails takes no further part.

use std::collections::BTreeMap;
use std::time::Duration;

use super::hosts::Destination;
use super::safety::upgrades;
use super::undo::Undo;
use crate::config::{Accounts, Events, KeepPrevious, Layout, Method, Policy, Refresh, XaPrepared};
use crate::mysql::Flavour;
use crate::mysql::variables::layout_variables;
use crate::problem::{Outcome, Problem};
use crate::report::{Reporter, Serves};
use crate::run::{Run, pauses};
use crate::wire::message::{Extra, InstallOptions, Keep, Origin, SwapOptions, VerifyOptions};

/// What all destinations have in common.
pub struct Shared<'a> {
    /// The refresh.
    pub refresh: &'a Refresh,
    /// The source's variables.
    pub variables: &'a BTreeMap<String, String>,
    /// Its flavour.
    pub flavour: Flavour,
    /// Where the generation comes from.
    pub origin: Origin,
    /// Top-level names the operator decided on.
    pub extra: Extra,
}

/// `keep_previous` as hosts know it.
pub fn keep(policy: &Policy) -> Keep {
    match policy.keep_previous {
        KeepPrevious::UntilStage => Keep::UntilStage,
        KeepPrevious::UntilVerified => Keep::UntilVerified,
        KeepPrevious::None => Keep::Never,
    }
}

/// Before the first new attempt on a destination whose agent was lost.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Does something with a destination's stage. An agent that is lost gets a successor, which goes on where the stage is still
/// whole: what was copied while the source was down need not be lost with a connection.
pub async fn surely(
    destination: &mut Destination,
    run: &Run<Undo>,
    work: impl AsyncFn(&mut Destination) -> Outcome<()>,
) -> Outcome<()> {
    let mut result = work(destination).await;
    for pause in pauses(FIRST_PAUSE) {
        let lost = match &result {
            Err(problem) if problem.passing && !run.cancel.is_cancelled() => problem.clone(),
            _ => break,
        };
        let s = pause.as_secs_f64();
        run.report.warn(destination.host.0.name(), format!("{lost}; another agent takes over in {s:.1} s"));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = run.cancel.cancelled() => return Err(Problem::cancelled()),
        }
        result = match destination.host.resume(run.holder()).await {
            Ok(installed) => {
                destination.resumed = installed;
                work(destination).await
            }
            Err(problem) if problem.passing => Err(problem),
            Err(problem) => return Err(lost.cause(problem.to_string())),
        };
    }
    result
}

/// The isolated first start.
pub async fn install(destination: &mut Destination, shared: &Shared<'_>, report: &Reporter) -> Outcome<()> {
    let policy = &shared.refresh.policy;
    let own_accounts = policy.accounts == Accounts::Destination;
    let upgrade = destination.facts.as_ref().is_some_and(|facts| upgrades(shared.variables, facts));
    let options = InstallOptions {
        layout: layout(shared),
        own_accounts,
        disable_events: policy.events == Events::Disable,
        rollback_xa: policy.xa_prepared == XaPrepared::Rollback,
        upgrade,
        recover: shared.refresh.method == Method::Snapshot,
        extra: shared.extra.clone(),
    };
    let installed = match destination.resumed.take() {
        Some(installed) => installed,
        None => destination.host.install(options).await?,
    };
    let mut notes = vec![match installed.accounts {
        Some(n) => format!("{n} own accounts and roles kept, the source's dropped"),
        None => "accounts are the source's".to_owned(),
    }];
    if upgrade {
        notes.push("brought up to this server's series".to_owned());
    }
    for (n, what) in [
        (installed.events, "events disabled"),
        (installed.xa, "prepared XA transactions rolled back"),
        (installed.defused, "replication connections and remote servers removed"),
    ] {
        if n > 0 {
            notes.push(format!("{n} {what}"));
        }
    }
    for note in &notes {
        report.note(destination.host.0.name(), note);
    }
    destination.notes.extend(notes);
    destination.installed = Some(installed);
    Ok(())
}

/// The source's layout variables.
fn layout(shared: &Shared<'_>) -> BTreeMap<String, String> {
    let of = |name: &&str| shared.variables.get(*name).map(|value| ((*name).to_owned(), value.clone()));
    layout_variables(shared.flavour).iter().filter_map(of).collect()
}

/// Settings to be pushed: what the environment says, and the layout that follows the data.
fn settings(destination: &Destination, shared: &Shared<'_>) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    if shared.refresh.policy.layout == Layout::Follow {
        // all of them, not those that differ now: they may be equal only because the last drop-in says so
        settings.extend(layout(shared));
    }
    settings.extend(destination.host.0.host().settings.clone());
    settings
}

/// The swap. Its undo is in the journal before.
pub async fn swap(destination: &mut Destination, shared: &Shared<'_>, run: &Run<Undo>) -> Outcome<()> {
    let settings = settings(destination, shared);
    if !destination.swap_armed {
        destination.armed.push(run.arm(Undo::UndoSwap { host: destination.host.0.host().id.clone() })?);
        destination.swap_armed = true;
    }
    destination.host.swap(SwapOptions { settings, origin: shared.origin.clone() }).await
}

/// What the served generation must show.
pub async fn verify(destination: &mut Destination, shared: &Shared<'_>) -> Outcome<()> {
    let installed =
        destination.installed.as_ref().ok_or_else(|| Problem::failed("verified before it was installed"))?;
    let options = VerifyOptions {
        settings: settings(destination, shared),
        counts: installed.counts.clone(),
        no_replication: true,
    };
    destination.host.verify(options).await
}

/// The new generation stays; nothing of this destination is to be put back any more.
pub async fn commit(destination: &mut Destination, shared: &Shared<'_>, run: &Run<Undo>) -> Outcome<()> {
    destination.host.0.begin_undo(run.holder());
    destination.host.commit(keep(&shared.refresh.policy)).await?;
    destination.refreshed = true;
    let Origin { run: id, source, taken, .. } = &shared.origin;
    destination.serves = Some(Serves { run: id.clone(), source: source.clone(), taken: taken.clone() });
    // what cannot be written down now is written when the run ends
    let _ = run.refreshed(destination.result());
    for armed in destination.armed.drain(..) {
        run.settle(armed)?;
    }
    Ok(())
}
