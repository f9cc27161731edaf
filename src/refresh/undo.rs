//! What a run may have to put back, as data: after a crash there are no step objects left, only the journal. One page, matched
//! exhaustively; each undo is idempotent and brings its own preconditions on the host.

use serde::{Deserialize, Serialize};

use super::hosts::Hosts;
use crate::config::HostId;
use crate::problem::{Outcome, Problem};
use crate::run::Undoer;
use crate::wire::message::Runtime;

/// One undo.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Undo {
    /// Remove a destination's stage.
    DiscardStage {
        /// The destination.
        host: HostId,
    },
    /// Put back the variables the drain set.
    Undrain {
        /// The source.
        host: HostId,
        /// As they were.
        runtime: Runtime,
    },
    /// Disarm the guard.
    DisarmGuard {
        /// The source.
        host: HostId,
    },
    /// Remove the source's frozen files.
    Thaw {
        /// The source.
        host: HostId,
    },
    /// Start the source and prove that it is back.
    StartServer {
        /// The source.
        host: HostId,
        /// What a restart loses.
        runtime: Runtime,
    },
    /// The old generation serves again.
    UndoSwap {
        /// The destination.
        host: HostId,
    },
}

impl Undoer<Undo> for Hosts {
    async fn undo(&mut self, undo: &Undo) -> Outcome<()> {
        let holder = self.holder.clone();
        match undo {
            Undo::Undrain { host, runtime } => {
                let source = self.source_named(host)?;
                source.0.begin_undo(&holder);
                source.undrain(runtime).await
            }
            Undo::DisarmGuard { host } => {
                let source = self.source_named(host)?;
                source.0.begin_undo(&holder);
                let fired = source.disarm_guard().await?;
                self.guard_fired = fired;
                Ok(())
            }
            Undo::Thaw { host } => {
                let source = self.source_named(host)?;
                source.0.begin_undo(&holder);
                source.thaw().await
            }
            Undo::StartServer { host, runtime } => {
                let source = self.source_named(host)?;
                source.0.begin_undo(&holder);
                let (ours, up) = source.start_server(runtime).await.map_err(|problem| {
                    problem.hint(format!("Start the server on {host} by hand now, then run `mysql-refreshd recover`."))
                })?;
                // its agent or its guard may have brought it back long before we could ask
                self.back_since = std::time::Instant::now().checked_sub(up).filter(|_| !ours);
                Ok(())
            }
            Undo::DiscardStage { host } => {
                let destination = self.destination_named(host)?;
                destination.host.0.begin_undo(&holder);
                destination.host.discard_stage().await
            }
            Undo::UndoSwap { host } => {
                let destination = self.destination_named(host)?;
                destination.host.0.begin_undo(&holder);
                // a commit that was under way was finished instead: the new generation serves
                destination.refreshed |= destination.host.undo_swap().await?;
                Ok(())
            }
        }
    }

    fn describe(&self, undo: &Undo) -> String {
        match undo {
            Undo::DiscardStage { host } => format!("{host}: remove the stage"),
            Undo::Undrain { host, .. } => format!("{host}: restore the variables set for draining"),
            Undo::DisarmGuard { host } => format!("{host}: disarm the guard"),
            Undo::Thaw { host } => format!("{host}: remove the frozen files"),
            Undo::StartServer { host, .. } => format!("{host}: start the source"),
            Undo::UndoSwap { host } => format!("{host}: serve the old generation"),
        }
    }

    fn place(&self, undo: &Undo) -> String {
        undo.host().to_string()
    }
}

impl Undo {
    fn host(&self) -> &HostId {
        match self {
            Self::DiscardStage { host }
            | Self::Undrain { host, .. }
            | Self::DisarmGuard { host }
            | Self::Thaw { host }
            | Self::StartServer { host, .. }
            | Self::UndoSwap { host } => host,
        }
    }
}

impl Hosts {
    fn source_named(&mut self, host: &HostId) -> Outcome<&mut crate::host::SourceHost> {
        self.source.as_mut().filter(|s| s.0.host().id == *host).ok_or_else(|| unknown(host))
    }

    fn destination_named(&mut self, host: &HostId) -> Outcome<&mut super::hosts::Destination> {
        self.destinations.iter_mut().find(|d| d.host.0.host().id == *host).ok_or_else(|| unknown(host))
    }
}

fn unknown(host: &HostId) -> Problem {
    Problem::failed(format!("the journal names {host}, which is not part of this run"))
}
