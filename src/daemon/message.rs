//! What is said over the daemon's socket: one JSON object a line, requests one way, answers the other.
//!
//! Pure data. Holds no secret: what a person would have to type does not go this way.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::queue::Work;
use crate::problem::Problem;
use crate::report::{Stamped, Summary};
use crate::status::Status;
use crate::store::{Filter, RunRow};

/// Both sides must speak the same.
pub const PROTOCOL: u32 = 1;

/// The longest line that is read.
pub const MAX_LINE: usize = 16 * 1024 * 1024;

/// What comes first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Greeting {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// The state folder of the configuration that the asking side has read: another one belongs to another daemon.
    pub state_dir: PathBuf,
    /// A hash of that configuration's effective values.
    pub configuration: String,
    /// What is wanted.
    pub request: Request,
}

/// What is wanted.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Do it, and tell how it goes. A further line, [`WITHDRAW`], cancels it.
    Do {
        /// What.
        work: Work,
        /// Not if it would have to wait for another run.
        no_wait: bool,
        /// Even in a window in which nothing may begin.
        despite_blackout: bool,
    },
    /// Cancel a run.
    Cancel {
        /// Its id.
        run: String,
    },
    /// Do not follow a schedule.
    Pause {
        /// Of this refresh.
        refresh: String,
    },
    /// Follow it again.
    Resume {
        /// Of this refresh.
        refresh: String,
    },
    /// Read the configuration again.
    Reload,
    /// Tell everything.
    Status,
    /// Past runs.
    History(Filter),
    /// One of them.
    Show {
        /// Its id.
        run: String,
    },
}

/// The line that withdraws what was asked for on this connection.
pub const WITHDRAW: &str = "withdraw";

/// What is answered; the last one but events and notes ends the conversation.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Something happened in the run.
    Event(Box<Stamped>),
    /// A line for the person, not the end.
    Note(String),
    /// The run is over.
    Finished(Box<Summary>),
    /// It is done.
    Done(String),
    /// It is not.
    Failed(Problem),
    /// The status.
    Status(Box<Status>),
    /// Runs.
    History(Vec<RunRow>),
    /// A run and what it told; None: there is none of that name.
    Shown(Option<Box<(RunRow, Vec<Stamped>)>>),
}

impl Answer {
    /// Whether nothing follows.
    pub fn is_last(&self) -> bool {
        !matches!(self, Self::Event(_) | Self::Note(_))
    }
}
