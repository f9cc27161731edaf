//! What a host puts back by itself, at boot or when its owner asks: a source that a run had stopped comes up, a destination serves one
//! whole generation. Needs no controller, no connection and no SQL account.
//!
//! Acts only where no run is at work, and only on what this host's own records say.

use std::path::Path;

use super::{facts, freeze, guard, stage, swap};
use crate::authority::{Policy, RoleWord};
use crate::instance::Instance;
use crate::lock::{self, Taken};
use crate::problem::{Outcome, Problem};
use crate::wire::message::Holder;

/// What the host's lock says while it is repaired: nobody's run.
pub const RUN: &str = "repair";

/// What was found for one instance.
#[derive(Debug)]
pub struct Repaired {
    /// Its name in the policy.
    pub instance: String,
    /// What was done, in words; nothing: nothing was left.
    pub done: Vec<String>,
    /// What could not be done.
    pub problems: Vec<Problem>,
}

/// Looks at every instance of the host's policy.
pub fn all(policy: &Path) -> Outcome<Vec<Repaired>> {
    let entries = Policy::read(policy)?.map(|policy| policy.instances).unwrap_or_default();
    let mut all = Vec::new();
    for (name, entry) in entries {
        let mut repaired = Repaired { instance: name, done: Vec::new(), problems: Vec::new() };
        match entry.instance() {
            // a consent alone: what runs there is not described, so no installed agent has acted there
            Ok(None) => continue,
            Ok(Some(instance)) => one(&instance, &entry.roles, &mut repaired),
            Err(problem) => repaired.problems.push(problem),
        }
        all.push(repaired);
    }
    Ok(all)
}

fn one(instance: &Instance, roles: &[RoleWord], repaired: &mut Repaired) {
    let identity = match facts::identity(instance) {
        Ok(identity) => identity,
        Err(problem) => return repaired.problems.push(problem),
    };
    let holder = Holder {
        run: RUN.to_owned(),
        refresh: "host repair".to_owned(),
        pid: std::process::id(),
        host: identity.hostname.clone(),
        since: chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
        step: "repair".to_owned(),
    };
    // held to the end
    let _lock = match lock::try_take(&lock::path(&instance.state_dir, &identity.key), &holder) {
        Ok(Taken::Ours(lock)) => lock,
        Ok(Taken::Theirs(other)) => {
            let by = other.map_or_else(|| "a run".to_owned(), |other| format!("run {}", other.run));
            return repaired.done.push(format!("{by} is at work here; it is left alone"));
        }
        Err(problem) => return repaired.problems.push(problem),
    };
    let mut take = |result: Outcome<Option<String>>| match result {
        Ok(done) => repaired.done.extend(done),
        Err(problem) => repaired.problems.push(problem),
    };
    if roles.contains(&RoleWord::Destination) {
        take(generation(instance, &identity.key));
    }
    if roles.contains(&RoleWord::Source) {
        take(guard::repair(instance, &identity.key));
        let swept = freeze::sweep(&freeze::Place::new(instance, &identity.key));
        take(swept.map(|any| any.then(|| "what an interrupted run had frozen of the datadir was removed".to_owned())));
    }
}

/// Brings a swap that was interrupted to its begin, or to its end if it was committed.
fn generation(instance: &Instance, key: &str) -> Outcome<Option<String>> {
    let work = stage::Work::of(&instance.datadir)?;
    let Some(journal) = swap::journal(&work)? else { return Ok(None) };
    let run = journal.run;
    let new = swap::undo(&work, instance, key, &run)?;
    let what =
        if new { "its commit was finished: the new generation serves" } else { "the old generation serves again" };
    Ok(Some(format!("run {run} was interrupted while it swapped: {what}")))
}
