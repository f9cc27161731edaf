//! The choices of a refresh: every option that takes one word of a few, with the word as it stands in the file.
//!
//! Pure data. Reads nothing and decides nothing; a choice only knows its words and its default.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// An option whose value is one word of a fixed list.
pub trait Choice: Copy + Eq + 'static {
    /// Every word and what it stands for, in the order in which they are documented.
    const WORDS: &'static [(&'static str, Self)];

    /// Words that are planned but refused in this version.
    const LATER: &'static [&'static str] = &[];

    /// The word as written in the configuration.
    fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(_, choice)| *choice == self).map_or("", |(word, _)| word)
    }
}

/// Declares a [`Choice`]: an enum whose variants stand beside their words; the first is the default.
macro_rules! choice {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)+ } $(later $later:expr)?) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$doc])* #[serde(rename = $word)] $variant,)+ }

        impl Choice for $name {
            const WORDS: &'static [(&'static str, Self)] = &[$(($word, Self::$variant)),+];
            $(const LATER: &'static [&'static str] = &$later;)?
        }

        impl Default for $name {
            fn default() -> Self {
                Self::WORDS[0].1
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str(self.word())
            }
        }
    };
}

choice! {
    /// How the log is written.
    LogFormat {
        /// One JSON object per line.
        Json = "json",
        /// Lines for people.
        Text = "text",
    }
}

choice! {
    /// How a host is reached.
    TransportKind {
        /// A child process on this machine.
        Local = "local",
        /// By our own SSH client.
        Ssh = "ssh",
        /// By the system's `ssh`, with its own configuration.
        OpenSsh = "openssh",
    }
}

choice! {
    /// Which program is the agent on a host.
    AgentKind {
        /// What its owner has installed there; the host's own policy decides what it may do.
        Installed = "installed",
        /// This very program, put there for the occasion.
        Uploaded = "uploaded",
        /// This very program, on this machine.
        Own = "own",
    }
}

choice! {
    /// How the image is taken.
    Method {
        /// From the files of the cleanly stopped server.
        Cold = "cold",
        /// From a snapshot of the running server's filesystem; nothing is stopped.
        Snapshot = "snapshot",
    } later ["hot", "logical"]
}

impl Method {
    /// Whether the source is stopped for it.
    pub fn stops(self) -> bool {
        self == Method::Cold
    }
}

choice! {
    /// What to do when another run holds a lock.
    OnBusy {
        /// Wait for it, up to `lock_timeout`.
        Wait = "wait",
        /// Leave this run out; that is no failure.
        Skip = "skip",
        /// Give up at once.
        Fail = "fail",
    }
}

choice! {
    /// What to do about transactions that are open for long on the source.
    LongTransactions {
        /// Wait for them within the drain, then refuse.
        Wait = "wait",
        /// Stop all the same; the server rolls them back.
        Proceed = "proceed",
    }
}

choice! {
    /// What to do about prepared XA transactions on the source.
    XaPrepared {
        /// Refuse before anything is touched.
        Refuse = "refuse",
        /// Roll them back on the destination, leave them alone on the source.
        Rollback = "rollback",
    }
}

choice! {
    /// Whose accounts, grants and roles the destination has afterwards.
    Accounts {
        /// Its own, as before the refresh.
        Destination = "destination",
        /// The source's.
        Source = "source",
    }
}

choice! {
    /// What becomes of the source's scheduled events on a destination.
    Events {
        /// They are disabled.
        Disable = "disable",
        /// They stay as they are.
        Keep = "keep",
    }
}

choice! {
    /// What to do when the settings that describe the data's layout differ between source and destination.
    Layout {
        /// Refuse before anything is touched.
        Refuse = "refuse",
        /// The destination's generated settings follow the data.
        Follow = "follow",
    }
}

choice! {
    /// How long the generation before is kept.
    KeepPrevious {
        /// Until the next refresh needs the space for its stage; `rollback` works until then.
        UntilStage = "until_stage",
        /// Until the new generation is verified.
        UntilVerified = "until_verified",
        /// Not beyond the swap.
        None = "none",
    }
}

choice! {
    /// What the failure of one destination means for the others.
    OnDestinationFailure {
        /// They go on without it.
        Continue = "continue",
        /// The run fails.
        Abort = "abort",
    }
}

choice! {
    /// How a destination proves what has landed.
    Proof {
        /// By reading the files again.
        Reread = "reread",
        /// By reading them from the disk, past the page cache.
        Disk = "disk",
    }
}

choice! {
    /// How the files of the stopped source are frozen, so that it can be started before they are copied.
    Freeze {
        /// In the best way that its filesystem has; where it has none they are copied twice, see `precopy`.
        Auto = "auto",
        /// Not at all.
        None = "none",
        /// By clones of the files that share their blocks (XFS, btrfs).
        Reflink = "reflink",
        /// By a snapshot of the btrfs subvolume.
        Btrfs = "btrfs",
        /// By a snapshot of the logical volume.
        Lvm = "lvm",
        /// By a snapshot of the ZFS dataset.
        Zfs = "zfs",
    }
}

choice! {
    /// What a destination compares the image's blocks with, so that only those travel that it lacks.
    Basis {
        /// The generation that it serves.
        Current = "current",
        /// Nothing: everything travels.
        None = "none",
    }
}

/// How blocks are compressed on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compression {
    /// As suits the transport.
    Auto,
    /// Not at all.
    None,
    /// By zstd at this level, 1 to 19.
    Level(i32),
}

/// Free space that must remain on the stage's filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reserve {
    /// A share of the filesystem, 0 to 99.
    Percent(u8),
    /// A number of bytes.
    Bytes(u64),
}

impl Compression {
    /// Reads `auto`, `none` or a level.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            "none" => Some(Self::None),
            level => level.parse().ok().filter(|level| (1..=19).contains(level)).map(Self::Level),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => out.write_str("auto"),
            Self::None => out.write_str("none"),
            Self::Level(level) => level.fmt(out),
        }
    }
}

/// Units of size, larger ones before those they are a multiple of.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// Reads a size like `2GiB`; a number alone is bytes.
pub fn parse_size(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim_start() {
        "" => 1,
        unit => UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?.1,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// A size as it can be read again, in the largest unit that it is a multiple of.
pub fn show_size(bytes: u64) -> String {
    let whole = |factor: u64| bytes >= factor && bytes.is_multiple_of(factor);
    let (name, factor) = UNITS.iter().find(|(_, factor)| whole(*factor)).unwrap_or(&("B", 1));
    format!("{}{name}", bytes / factor)
}

impl Reserve {
    /// Reads a share like `5%` or a size like `2GiB`; a number alone is bytes.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(share) = text.strip_suffix('%') {
            return share.trim().parse().ok().filter(|share| *share <= 99).map(Self::Percent);
        }
        parse_size(text).map(Self::Bytes)
    }

    /// The reserve in bytes on a filesystem of the given size.
    pub fn bytes_of(self, filesystem_bytes: u64) -> u64 {
        match self {
            Self::Percent(share) => {
                let bytes = u128::from(filesystem_bytes) * u128::from(share) / 100;
                u64::try_from(bytes).unwrap_or(u64::MAX)
            }
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl fmt::Display for Reserve {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Percent(share) => write!(out, "{share}%"),
            Self::Bytes(bytes) => out.write_str(&show_size(*bytes)),
        }
    }
}

/// Everything about a refresh that is a matter of policy rather than of place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// A source with connected replicas is stopped only with this.
    pub allow_primary_stop: bool,
    /// What to do when another run holds a lock.
    pub on_busy: OnBusy,
    /// How long to wait for locks.
    pub lock_timeout: Duration,
    /// How long the source may be down at most.
    pub max_outage: Duration,
    /// How long to drain before the stop.
    pub drain_timeout: Duration,
    /// What to do about long transactions.
    pub long_transactions: LongTransactions,
    /// From which age on a transaction is long.
    pub long_transaction_age: Duration,
    /// What to do about prepared XA transactions.
    pub xa_prepared: XaPrepared,
    /// Whose accounts the destination keeps.
    pub accounts: Accounts,
    /// What becomes of events.
    pub events: Events,
    /// What to do when layout settings differ.
    pub layout: Layout,
    /// How long the generation before is kept.
    pub keep_previous: KeepPrevious,
    /// What one destination's failure means for the others.
    pub on_destination_failure: OnDestinationFailure,
    /// How a destination proves its copy.
    pub proof: Proof,
    /// How the files of the stopped source are frozen.
    pub freeze: Freeze,
    /// Where nothing is frozen: copy while the source runs, and again what has changed by its stop.
    pub precopy: bool,
    /// Copies while the source runs, at most.
    pub precopy_rounds: usize,
    /// Read everything again from the stopped source, whatever its files' times say.
    pub paranoid: bool,
    /// Bytes a second that are read at most while the source runs.
    pub max_rate: Option<u64>,
    /// What a destination compares blocks with.
    pub basis: Basis,
    /// How blocks are compressed on the way.
    pub compression: Compression,
    /// Free space that must remain on the stage's filesystem.
    pub space_reserve: Reserve,
    /// Unknown top-level names of the datadir to be copied all the same; a trailing `*` stands for any ending.
    pub copy_files: Vec<String>,
    /// Unknown top-level names of the datadir to be left behind; a trailing `*` stands for any ending.
    pub drop_files: Vec<String>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            allow_primary_stop: false,
            on_busy: OnBusy::default(),
            lock_timeout: Duration::from_secs(2 * 60 * 60),
            max_outage: Duration::from_secs(30 * 60),
            drain_timeout: Duration::from_secs(5 * 60),
            long_transactions: LongTransactions::default(),
            long_transaction_age: Duration::from_secs(10),
            xa_prepared: XaPrepared::default(),
            accounts: Accounts::default(),
            events: Events::default(),
            layout: Layout::default(),
            keep_previous: KeepPrevious::default(),
            on_destination_failure: OnDestinationFailure::default(),
            proof: Proof::default(),
            freeze: Freeze::default(),
            precopy: true,
            precopy_rounds: 3,
            paranoid: false,
            max_rate: None,
            basis: Basis::default(),
            compression: Compression::Auto,
            space_reserve: Reserve::Percent(5),
            copy_files: Vec::new(),
            drop_files: Vec::new(),
        }
    }
}
