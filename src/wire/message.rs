//! The messages of both roles. A source agent has no request that writes into a datadir; a destination agent none that
//! touches anything but its datadir, the stage, its state folder and its drop-in. No I/O.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::facts::{Facts, Identity};
use super::frame::{Frame, FrameKind, WireError};
pub use super::image::{Entry, Filled, Lack, Pass, Passed, ReceiveOptions, SeedOptions, Seeded, StreamOptions};
use crate::delta::hash::{Hash, Totals};
use crate::instance::Target;
use crate::problem::Problem;

/// The role an agent is started in, fixed for its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Reads a datadir, stops and starts its server.
    Source,
    /// Builds a stage and swaps it in.
    Destination,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Source => "source",
            Role::Destination => "destination",
        })
    }
}

/// A secret on the wire: serialised there and nowhere else, never printed.
#[derive(Clone)]
pub struct WireSecret(pub SecretString);

impl fmt::Debug for WireSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl Serialize for WireSecret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.expose_secret())
    }
}

impl<'de> Deserialize<'de> for WireSecret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(String::deserialize(deserializer)?.into()))
    }
}

/// First request on every connection: whom the agent serves.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Open {
    /// The host's name in the configuration, for messages.
    pub host: String,
    /// Which instance.
    pub target: Target,
    /// Password of the instance's SQL account.
    pub password: Option<WireSecret>,
    /// The run this agent works for; None for a look that changes nothing.
    pub run: Option<String>,
    /// To a destination: the environment whose data is to come; None: none, an older generation is to come back.
    pub from: Option<String>,
}

/// Who holds a lock and how far it is; what lock files contain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The run's id.
    pub run: String,
    /// The refresh, or what else holds it.
    pub refresh: String,
    /// Process id of the holder.
    pub pid: u32,
    /// The host on which it runs.
    pub host: String,
    /// Since when, RFC 3339.
    pub since: String,
    /// The step it is in.
    pub step: String,
}

/// How a source is drained before its stop.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DrainOptions {
    /// Longest time, in milliseconds.
    pub limit_ms: u64,
    /// Transactions older than this are long, in milliseconds.
    pub long_ms: u64,
    /// Wait for long transactions and refuse if they do not end; otherwise the stop rolls them back.
    pub wait_for_long: bool,
    /// It has been drained, and pages are written as they come.
    pub again: bool,
}

/// What the drain did.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Drained {
    /// Dirty pages before.
    pub dirty_before: u64,
    /// Dirty pages after.
    pub dirty_after: u64,
    /// Long transactions that were still open at the end and will be rolled back by the stop.
    pub left_open: u64,
}

/// A global variable that was set at run time and that a restart would lose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeVariable {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
    /// Its value is a number or a switch and is written without quotes.
    pub bare: bool,
}

/// Runtime state a restart would lose.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    /// Variables set at run time.
    pub variables: Vec<RuntimeVariable>,
    /// read_only and its kin, whoever set them: a primary that comes back read-only is not back.
    pub essential: BTreeMap<String, String>,
    /// Replication connections: name, receiver running, applier running.
    pub replication: Vec<(String, bool, bool)>,
    /// How far each connection was behind, in seconds, where that was known.
    #[serde(default)]
    pub lag_s: BTreeMap<String, u64>,
    /// The variables that the drain and the stop change, as they were.
    pub flushing: BTreeMap<String, String>,
    /// The server's process when this was recorded, and its start in clock ticks: tells whether it was restarted since.
    pub server: (u32, u64),
    /// When it was recorded, in seconds since 1970: old state is not forced on a server that others look after meanwhile.
    pub recorded_s: i64,
}

/// Top-level names that the operator decided on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extra {
    /// Copy all the same.
    pub copy: Vec<String>,
    /// Leave behind.
    pub drop: Vec<String>,
}

/// Requests of the source role.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum SourceRequest {
    /// Must come first.
    Open(Box<Open>),
    /// Look at the host; changes nothing.
    Facts(Extra),
    /// Take the host's own lock for this run.
    Lock(Holder),
    /// Record what a restart would lose.
    RecordRuntime,
    /// Let transactions end and flush dirty pages, before the stop.
    Drain(DrainOptions),
    /// Put back what the drain set.
    Undrain(Runtime),
    /// Arm the guard: no stop without it.
    ArmGuard {
        /// Seconds of outage after which the guard starts the server whatever happens.
        max_outage_s: u64,
        /// Seconds of silence after which it does.
        lease_s: u64,
    },
    /// Clean stop, proven.
    StopServer,
    /// Read files and stream them: before the stop, of the stopped server, or from what was frozen.
    Stream(StreamOptions),
    /// Start the server if it is not running, restore its runtime state, prove that it is back.
    StartServer(Runtime),
    /// Disarm the guard; tells whether it had fired.
    DisarmGuard,
    /// Wait until replication that ran before is as near to its source as it was; for so many seconds at most.
    CatchUp {
        /// As it was.
        runtime: Runtime,
        /// Seconds.
        limit_s: u64,
    },
    /// Whether and how the files of the stopped server could be frozen; changes nothing.
    CanFreeze(FreezeWish),
    /// Freeze the files of the stopped server, in the way that was found; with the extra names that belong to the image.
    Freeze(Extra),
    /// Remove what was frozen. Idempotent.
    Thaw,
    /// Freeze the files of the running server at one moment, in the way that was found, with its writes held meanwhile.
    Snapshot {
        /// Names that belong to the image.
        extra: Extra,
        /// How long to try to have the writes held, in milliseconds.
        wait_ms: u64,
    },
}

/// How the copy is made the destination's own on its isolated first start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InstallOptions {
    /// Layout variables of the source.
    pub layout: BTreeMap<String, String>,
    /// Restore the destination's accounts and drop the source's.
    pub own_accounts: bool,
    /// Disable all events.
    pub disable_events: bool,
    /// Roll back prepared XA transactions.
    pub rollback_xa: bool,
    /// The copy is of an older series than the server: upgrade it.
    pub upgrade: bool,
    /// Extra top-level names, for the files each host keeps.
    pub extra: Extra,
    /// The copy is of a server that was running: it recovers as from a crash first.
    pub recover: bool,
}

/// Object counts, for comparison between two starts of one image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// kind of object → number, system schemas not counted.
    pub objects: BTreeMap<String, u64>,
}

/// What the isolated start did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    /// Accounts and roles restored; None: the source's were left.
    pub accounts: Option<u64>,
    /// Events disabled.
    pub events: u64,
    /// Prepared XA transactions rolled back.
    pub xa: u64,
    /// Replication connections and remote servers removed.
    pub defused: u64,
    /// What the image holds.
    pub counts: Counts,
}

/// What is swapped in.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SwapOptions {
    /// Settings for the drop-in, which the agent writes; none: the old one is left as it is.
    pub settings: BTreeMap<String, String>,
    /// For the record kept beside the generation, and for the drop-in's head.
    pub origin: Origin,
}

/// Where a generation came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The run that installed it.
    pub run: String,
    /// The refresh.
    pub refresh: String,
    /// The source host.
    pub source: String,
    /// When the source was stopped, RFC 3339: the age of the data.
    pub taken: String,
    /// The image's proof.
    pub image: Hash,
}

/// What must be true of the destination once it serves the new generation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VerifyOptions {
    /// Settings and the values they must have.
    pub settings: BTreeMap<String, String>,
    /// Object counts the isolated start found.
    pub counts: Counts,
    /// The generation's replication must be gone.
    pub no_replication: bool,
}

/// How the source's datadir is frozen, so that the server need not wait for the copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FreezeWish {
    /// In the best way that the source's filesystem allows.
    #[default]
    Auto,
    /// Not at all.
    None,
    /// By clones of files that share their blocks (XFS, btrfs).
    Reflink,
    /// By a btrfs snapshot.
    Btrfs,
    /// By an LVM snapshot, thin or classic.
    Lvm,
    /// By a ZFS snapshot.
    Zfs,
    /// In the best way that holds all files as they were at one moment.
    Atomic,
}

/// When the previous generation goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Keep {
    /// When the next run begins to stage.
    UntilStage,
    /// When the next run is verified.
    UntilVerified,
    /// At once, after this run is verified.
    Never,
}

/// How room is made for a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// What is to become of the previous generation.
    pub keep: Keep,
    /// There will be a basis.
    pub basis: bool,
}

/// Requests of the destination role.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum DestinationRequest {
    /// Must come first.
    Open(Box<Open>),
    /// Look at the host; changes nothing.
    Facts(Extra),
    /// Take the host's own lock for this run.
    Lock(Holder),
    /// An empty stage.
    PrepareStage,
    /// Bring what the current generation holds into the stage, as the basis that blocks are compared with.
    Seed(SeedOptions),
    /// Remove the previous generation, if it may go before the new one comes; or leave its files to the stage.
    MakeRoom(Room),
    /// Take one pass of the stream into the stage, prove it from the stage.
    Receive(ReceiveOptions),
    /// Write the stage out to the disk.
    SyncStage,
    /// The isolated first start.
    Install(Box<InstallOptions>),
    /// Stop, exchange, start.
    Swap(Box<SwapOptions>),
    /// Check the running server.
    Verify(Box<VerifyOptions>),
    /// The new generation is good: forget the way back (the previous generation stays as `Keep` says).
    Commit(Keep),
    /// Undo of the swap: the old generation serves again. Idempotent; does nothing once committed.
    UndoSwap,
    /// Undo of the stage: remove it. Idempotent.
    DiscardStage,
    /// Exchange current and previous generation (an operator's wish).
    Rollback,
    /// Go on with the stage that an earlier agent of this run has received and proven.
    Resume,
}

/// Successful answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Reply {
    /// Nothing to tell.
    Done,
    /// To `Open`.
    Opened(Identity),
    /// To `Facts`.
    Facts(Box<Facts>),
    /// To `Lock`: None when it was taken, else who has it.
    Locked(Option<Holder>),
    /// To `RecordRuntime`.
    Runtime(Runtime),
    /// To `Drain`.
    Drained(Drained),
    /// To `StartServer`.
    Started {
        /// Whether this call started it.
        ours: bool,
        /// For how long its process has been there, in milliseconds.
        up_ms: u64,
    },
    /// To `DisarmGuard`: why it had fired, if it had.
    Disarmed(Option<String>),
    /// To `Stream`: what it did; after a cold pass also the image and the proof over all of it.
    Streamed {
        /// Work.
        passed: Passed,
        /// The image.
        image: Option<(Totals, Hash)>,
    },
    /// To `Seed`.
    Seeded(Seeded),
    /// To the `Receive` of a cold pass.
    Image {
        /// How much.
        totals: Totals,
        /// The proof over all of it.
        image: Hash,
    },
    /// To `Install`.
    Installed(Installed),
    /// To `UndoSwap`: true when the swap had been committed and stays.
    Undone(bool),
    /// To `Rollback`: what serves now, if it is known.
    RolledBack(Option<Origin>),
    /// To `CanFreeze`: the way, or why there is none; both in words.
    Freezable(Result<String, String>),
    /// To `Snapshot`: milliseconds for which writes were held.
    Snapped(u64),
    /// To `CatchUp`: what is still behind, in words; None: nothing is.
    CaughtUp(Option<String>),
    /// To `Resume`: what the isolated start did, if that was over.
    Resumed(Option<Installed>),
}

/// After the greetings, from the controller: over how many more sessions the agent's stream goes.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Lanes {
    /// How many more; 0: this one alone.
    pub more: u8,
    /// What the lanes say to be let in.
    pub token: u128,
}

/// Controller to agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Down<Q> {
    /// Do something; answered by one `Up::Reply`.
    Call {
        /// Repeated in the answer.
        id: u32,
        /// What.
        request: Q,
    },
    /// A piece of the image.
    Entry(Entry),
    /// So many more bytes of chunks may be sent.
    Credit(u64),
    /// To a source: what the receivers lack of what was asked for.
    Lack(Lack),
}

/// Agent to controller.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Up {
    /// Answer to a call.
    Reply {
        /// Of the call.
        id: u32,
        /// How it went.
        result: Result<Reply, Problem>,
    },
    /// Something worth a line in the log.
    Note(String),
    /// Something that a careful person should look at.
    Warning(String),
    /// How far a long request is.
    Progress {
        /// Done so far, in the unit of `what`.
        done: u64,
        /// In all; 0: unknown.
        total: u64,
        /// What is counted.
        what: String,
    },
    /// A piece of the image.
    Entry(Entry),
    /// So many more bytes of chunks may be sent.
    Credit(u64),
    /// From a destination: what it lacks of what was asked for.
    Lack(Lack),
    /// The agent's first message: its role and version.
    Hello {
        /// Role it was started in.
        role: Role,
        /// Version of the program.
        build: String,
    },
}

/// Encodes a message.
pub fn encode<T: Serialize>(message: &T) -> Result<Frame, WireError> {
    let payload = postcard::to_stdvec(message).map_err(|e| WireError::Damaged(e.to_string()))?;
    Ok(Frame { kind: FrameKind::Message, payload: payload.into() })
}

/// Decodes a message; all bytes must be used.
pub fn decode<T: DeserializeOwned>(payload: &Bytes) -> Result<T, WireError> {
    match postcard::take_from_bytes(payload) {
        Ok((message, [])) => Ok(message),
        Ok(_) => Err(WireError::Damaged("bytes after a message".into())),
        Err(error) => Err(WireError::Damaged(error.to_string())),
    }
}

/// The requests' names as fail points and logs know them.
pub trait Named {
    /// In kebab case.
    fn name(&self) -> &'static str;
    /// All names.
    const ALL: &'static [&'static str];
}

macro_rules! named {
    ($type:ty { $($variant:ident => $name:literal),* $(,)? }) => {
        impl Named for $type {
            fn name(&self) -> &'static str {
                match self { $( Self::$variant { .. } => $name, )* }
            }
            const ALL: &'static [&'static str] = &[$($name),*];
        }
    };
}

named!(SourceRequest {
    Open => "open", Facts => "facts", Lock => "lock", RecordRuntime => "record-runtime", Drain => "drain", Undrain => "undrain",
    ArmGuard => "arm-guard", StopServer => "stop-server", Stream => "stream", StartServer => "start-server",
    DisarmGuard => "disarm-guard", CatchUp => "catch-up", CanFreeze => "can-freeze", Freeze => "freeze", Thaw => "thaw",
    Snapshot => "snapshot",
});

named!(DestinationRequest {
    Open => "open", Facts => "facts", Lock => "lock", PrepareStage => "prepare-stage", Seed => "seed", MakeRoom => "make-room", Receive => "receive",
    SyncStage => "sync-stage", Install => "install", Swap => "swap", Verify => "verify", Commit => "commit",
    UndoSwap => "undo-swap", DiscardStage => "discard-stage", Rollback => "rollback",
    Resume => "resume",
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delta::path::RelPath;
    use proptest::prelude::*;

    #[test]
    fn messages_round_trip() {
        let entry = Entry::File {
            number: 3,
            path: RelPath::try_from(b"shop/o@0020.ibd".as_slice()).unwrap(),
            mode: 0o660,
            len: 1 << 40,
        };
        let frame = encode(&Down::<SourceRequest>::Entry(entry.clone())).unwrap();
        match decode::<Down<SourceRequest>>(&frame.payload).unwrap() {
            Down::Entry(back) => assert_eq!(back, entry),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_path_out_of_the_stage_does_not_decode() {
        #[derive(Serialize)]
        enum Forged {
            Dir { path: std::path::PathBuf, mode: u32 },
        }
        let frame = encode(&Forged::Dir { path: "../../etc".into(), mode: 0 }).unwrap();
        assert!(decode::<Entry>(&frame.payload).is_err());
    }

    #[test]
    fn a_secret_is_not_printed() {
        let open = WireSecret("hunter2".to_owned().into());
        assert!(!format!("{open:?}").contains("hunter2"));
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let bytes = Bytes::from(bytes);
            let _ = decode::<Down<SourceRequest>>(&bytes);
            let _ = decode::<Down<DestinationRequest>>(&bytes);
            let _ = decode::<Up>(&bytes);
        }
    }
}
