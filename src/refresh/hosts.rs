//! The machines of one run: one source, its destinations, and what became of each of them so far.

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use crate::config::Host;
use crate::host::{Context, DestinationHost, SourceHost};
use crate::problem::{Outcome, Problem};
use crate::report::{DestinationResult, Reporter, Serves};
use crate::run::Armed;
use crate::wire::facts::Facts;
use crate::wire::message::{Holder, Installed};

use super::undo::Undo;

/// The hosts' descriptions as the journal keeps them: recovery must not depend on a configuration that changed meanwhile.
/// Holds references to secrets, no secrets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Descriptions {
    /// The source; None for a rollback.
    pub source: Option<Host>,
    /// The destinations.
    pub destinations: Vec<Host>,
}

impl Descriptions {
    /// All names.
    pub fn names(&self) -> Vec<String> {
        self.source.iter().chain(&self.destinations).map(|host| host.id.to_string()).collect()
    }
}

/// The machines of one run.
pub struct Hosts {
    /// The source; None for a rollback.
    pub source: Option<SourceHost>,
    /// The destinations.
    pub destinations: Vec<Destination>,
    /// Who we are, for the hosts' locks.
    pub holder: Holder,
    /// Why the guard had fired, once it was disarmed.
    pub guard_fired: Option<String>,
    /// Since when the source has been up, where somebody else than the run brought it back.
    pub back_since: Option<std::time::Instant>,
}

/// One destination and how far it is.
pub struct Destination {
    /// Its agent.
    pub host: DestinationHost,
    /// What it told in preflight.
    pub facts: Option<Facts>,
    /// Why it takes no further part.
    pub failed: Option<Problem>,
    /// It serves the new generation, for good.
    pub refreshed: bool,
    /// What it serves since this run.
    pub serves: Option<Serves>,
    /// What its isolated start did.
    pub installed: Option<Installed>,
    /// What an isolated start did whose answer was lost with its agent.
    pub resumed: Option<Installed>,
    /// The undo of its swap is in the journal.
    pub swap_armed: bool,
    /// Armed undos, to be settled once the new generation is committed.
    pub armed: Vec<Armed<Undo>>,
    /// For the report.
    pub notes: Vec<String>,
}

impl Destination {
    /// Its result for the report.
    pub fn result(&self) -> DestinationResult {
        DestinationResult {
            host: self.host.0.name(),
            refreshed: self.refreshed,
            serves: self.serves.clone(),
            problem: self.failed.clone(),
            notes: self.notes.clone(),
        }
    }
}

impl Hosts {
    /// Agents are opened when first needed.
    pub fn new(descriptions: &Descriptions, context: &Context, holder: Holder) -> Self {
        let destination = |host: &Host| Destination {
            host: DestinationHost::new(host.clone(), context.clone()),
            facts: None,
            failed: None,
            refreshed: false,
            serves: None,
            installed: None,
            resumed: None,
            swap_armed: false,
            armed: Vec::new(),
            notes: Vec::new(),
        };
        Self {
            source: descriptions.source.clone().map(|host| SourceHost::new(host, context.clone())),
            destinations: descriptions.destinations.iter().map(destination).collect(),
            holder,
            guard_fired: None,
            back_since: None,
        }
    }

    /// The descriptions as they are now: preflight has found what nobody had described.
    pub fn descriptions(&self) -> Descriptions {
        Descriptions {
            source: self.source.as_ref().map(|source| source.0.host().clone()),
            destinations: self.destinations.iter().map(|d| d.host.0.host().clone()).collect(),
        }
    }

    /// The source; every refresh has one.
    pub fn source(&mut self) -> Outcome<&mut SourceHost> {
        self.source.as_mut().ok_or_else(|| Problem::failed("this run has no source"))
    }

    /// Destinations that still take part.
    pub fn live(&mut self) -> impl Iterator<Item = &mut Destination> {
        self.destinations.iter_mut().filter(|d| d.failed.is_none())
    }

    /// Does something on all destinations that still take part, at once. One that fails takes no further part; the error is
    /// returned only if none is left, or if one failure is to end the run.
    pub async fn each<F>(&mut self, report: &Reporter, abort: bool, work: F) -> Outcome<()>
    where
        F: AsyncFn(&mut Destination) -> Outcome<()>,
    {
        let work = &work;
        let all = self.live().map(async |destination| {
            if let Err(problem) = work(destination).await {
                report.warn(destination.host.0.name(), format!("takes no further part: {problem}"));
                destination.failed = Some(problem);
            }
        });
        join_all(all).await;
        self.judge(abort)
    }

    /// Whether the run goes on with the destinations that are left.
    pub fn judge(&self, abort: bool) -> Outcome<()> {
        let first = self.destinations.iter().find_map(|d| d.failed.as_ref());
        match first {
            Some(problem) if abort || self.destinations.iter().all(|d| d.failed.is_some()) => Err(problem.clone()),
            _ => Ok(()),
        }
    }

    /// An error if a destination was lost that may be back in a moment, where the run could still begin anew with it.
    pub fn none_lost(&self, may_begin_anew: bool) -> Outcome<()> {
        let lost = self.destinations.iter().find_map(|d| d.failed.as_ref().filter(|p| p.passing && may_begin_anew));
        lost.map_or(Ok(()), |problem| Err(problem.clone()))
    }

    /// Closes all connections, the source's first: its agent starts the server if it had stopped it.
    pub async fn close(&mut self) {
        if let Some(source) = &mut self.source {
            source.0.close().await;
        }
        join_all(self.destinations.iter_mut().map(|d| d.host.0.close())).await;
    }

    /// Results for the report.
    pub fn results(&self) -> Vec<DestinationResult> {
        self.destinations.iter().map(Destination::result).collect()
    }
}
