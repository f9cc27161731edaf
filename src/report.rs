//! What a run tells: a closed set of events. Log, terminal, `--json`, lock files and history are all views of this stream.
//! Pure data; who listens is decided above.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::problem::Problem;
use crate::wire::message::Holder;

/// The named phases of a run, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Locks for source and destinations.
    Lock,
    /// Facts from every host, and the safety rules.
    Preflight,
    /// Empty stages on the destinations.
    Stage,
    /// The image is copied while the source runs, so that little is left for its stop.
    Precopy,
    /// Transactions end, dirty pages are written.
    Drain,
    /// The guard is armed on the source's host.
    Guard,
    /// The source is stopped, and that it stopped cleanly is proven.
    Stop,
    /// The files of the stopped source are frozen: it is started before they are copied.
    Freeze,
    /// The image is read and sent.
    Copy,
    /// What landed is proven.
    Prove,
    /// The source is started and proven back.
    Start,
    /// The guard is disarmed; it must not have fired.
    Disarm,
    /// The isolated first start on every stage.
    Install,
    /// The new generation takes its place.
    Swap,
    /// The served generation is checked.
    Verify,
    /// What is no longer needed goes.
    Finish,
}

impl Step {
    /// All of them, in order.
    pub const ALL: [Step; 16] = [
        Step::Lock,
        Step::Preflight,
        Step::Stage,
        Step::Precopy,
        Step::Drain,
        Step::Guard,
        Step::Stop,
        Step::Freeze,
        Step::Copy,
        Step::Prove,
        Step::Start,
        Step::Disarm,
        Step::Install,
        Step::Swap,
        Step::Verify,
        Step::Finish,
    ];

    /// Its name, as shown and as fail points know it.
    pub fn name(self) -> &'static str {
        match self {
            Step::Lock => "lock",
            Step::Preflight => "preflight",
            Step::Stage => "stage",
            Step::Precopy => "precopy",
            Step::Drain => "drain",
            Step::Guard => "guard",
            Step::Stop => "stop",
            Step::Freeze => "freeze",
            Step::Copy => "copy",
            Step::Prove => "prove",
            Step::Start => "start",
            Step::Disarm => "disarm",
            Step::Install => "install",
            Step::Swap => "swap",
            Step::Verify => "verify",
            Step::Finish => "finish",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// Every destination serves the new generation.
    Done,
    /// Failed; everything was put back.
    Failed,
    /// Bad usage or configuration.
    Usage,
    /// Another run holds a lock.
    Locked,
    /// Another run holds a lock, and this one was to be left out then.
    Skipped,
    /// A safety rule said no; everything is as it was.
    Refused,
    /// Failed, and not all could be put back: a human is needed.
    Human,
    /// Some destinations are done, some failed and were put back.
    Partial,
    /// Cancelled; everything was put back.
    Cancelled,
}

impl Ending {
    /// All of them.
    pub const ALL: [Ending; 9] = [
        Ending::Done,
        Ending::Failed,
        Ending::Usage,
        Ending::Locked,
        Ending::Skipped,
        Ending::Refused,
        Ending::Human,
        Ending::Partial,
        Ending::Cancelled,
    ];

    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Ending::Done => "done",
            Ending::Failed => "failed",
            Ending::Usage => "usage",
            Ending::Locked => "locked",
            Ending::Skipped => "skipped",
            Ending::Refused => "refused",
            Ending::Human => "human needed",
            Ending::Partial => "partial",
            Ending::Cancelled => "cancelled",
        }
    }
}

/// The data that a destination serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serves {
    /// The run that brought it.
    pub run: String,
    /// The host it was taken from.
    pub source: String,
    /// When the source was stopped for it, RFC 3339.
    pub taken: String,
}

/// What became of one destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationResult {
    /// The host.
    pub host: String,
    /// It serves the new generation.
    pub refreshed: bool,
    /// What it serves since this run, where that is known.
    #[serde(default)]
    pub serves: Option<Serves>,
    /// Why not.
    pub problem: Option<Problem>,
    /// Accounts kept, events disabled and the like, in words.
    pub notes: Vec<String>,
}

/// How an image is taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Taken {
    /// From files that were frozen in this way, with the source up again.
    Frozen(String),
    /// From a snapshot of the running server's files, made in this way.
    Snapshot(String),
    /// In so many passes while the source ran, and one over what had changed by its stop.
    Passes(usize),
    /// All of it while the source was down.
    Whole,
}

impl Taken {
    /// Whether another image was taken in a way whose figures say something about this one.
    pub fn is_like(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Taken::Frozen(way) => f.write_str(way),
            Taken::Snapshot(way) => write!(f, "{way}, of the running server"),
            Taken::Passes(1) => f.write_str("one pass while the source ran, then what had changed"),
            Taken::Passes(n) => write!(f, "{n} passes while the source ran, then what had changed"),
            Taken::Whole => f.write_str("all of it while the source was down"),
        }
    }
}

/// A finished run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The run.
    pub id: String,
    /// The refresh.
    pub refresh: String,
    /// How it ended.
    pub ending: Ending,
    /// The first problem, if it did not end well.
    pub problem: Option<Problem>,
    /// What could not be put back, and what to do.
    pub not_put_back: Vec<Problem>,
    /// Milliseconds the source was down, as the controller saw it; None: it was not stopped.
    pub outage_ms: Option<u64>,
    /// Milliseconds for which a running source's writes were held; None: they were not.
    #[serde(default)]
    pub held_ms: Option<u64>,
    /// Milliseconds in all.
    pub total_ms: u64,
    /// Files in the image.
    pub files: u64,
    /// Bytes in the image.
    pub bytes: u64,
    /// How the image was taken.
    #[serde(default)]
    pub taken: Option<Taken>,
    /// Bytes read at the source, in all passes.
    #[serde(default)]
    pub read_bytes: u64,
    /// Bytes of those read while it was down.
    #[serde(default)]
    pub cold_bytes: u64,
    /// Bytes of pages that some destination lacked, before compression.
    #[serde(default)]
    pub changed_bytes: u64,
    /// Bytes the source sent, once, whatever the number of destinations.
    pub sent_bytes: u64,
    /// The image's proof, if it was taken.
    pub image: Option<String>,
    /// Each destination's result.
    pub destinations: Vec<DestinationResult>,
    /// Each step's time.
    pub steps: Vec<StepTime>,
}

impl Summary {
    /// Milliseconds that some steps took together.
    pub fn took(&self, steps: &[Step]) -> u64 {
        self.steps.iter().filter(|time| steps.contains(&time.step)).map(|time| time.ms).sum()
    }

    /// What the outage was made of, in words; None: it was not stopped.
    pub fn outage_parts(&self) -> Option<String> {
        self.outage_ms?;
        let part = |name, steps: &[Step]| {
            let ms = self.took(steps);
            (ms > 0).then(|| format!("{name} {:.2} s", ms as f64 / 1000.0))
        };
        // also where it came to no image
        let frozen = matches!(self.taken, Some(Taken::Frozen(_))) || self.took(&[Step::Freeze]) > 0;
        let copy = if frozen { None } else { part("copy", &[Step::Copy, Step::Prove]) };
        let parts = [part("stop", &[Step::Stop]), part("freeze", &[Step::Freeze]), copy, part("start", &[Step::Start])];
        Some(parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }

    /// Of something that took no image and touched nothing yet.
    pub fn of_nothing(id: &str, refresh: &str, ending: Ending) -> Self {
        Self {
            id: id.to_owned(),
            refresh: refresh.to_owned(),
            ending,
            problem: None,
            not_put_back: Vec::new(),
            outage_ms: None,
            held_ms: None,
            total_ms: 0,
            files: 0,
            bytes: 0,
            taken: None,
            read_bytes: 0,
            cold_bytes: 0,
            changed_bytes: 0,
            sent_bytes: 0,
            image: None,
            destinations: Vec::new(),
            steps: Vec::new(),
        }
    }
}

/// How long a step took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepTime {
    /// Which.
    pub step: Step,
    /// Milliseconds.
    pub ms: u64,
}

/// One event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A run begins.
    RunStarted {
        /// The refresh.
        refresh: String,
        /// The source host.
        source: String,
        /// The destination hosts.
        destinations: Vec<String>,
    },
    /// A step begins.
    StepStarted {
        /// Which.
        step: Step,
    },
    /// A step is over.
    StepFinished {
        /// Which.
        step: Step,
        /// How long it took, in milliseconds.
        ms: u64,
        /// It succeeded.
        ok: bool,
    },
    /// How far a step is.
    Progress {
        /// Done.
        done: u64,
        /// In all; 0: unknown.
        total: u64,
        /// Of what; `bytes` are bytes.
        what: String,
    },
    /// A lock is taken by someone else.
    Waiting {
        /// The host whose lock it is.
        host: String,
        /// Who has it, if that is known.
        holder: Option<Holder>,
    },
    /// A line worth keeping.
    Note {
        /// The host it is about, or empty.
        host: String,
        /// The line.
        text: String,
    },
    /// Something that a careful person should look at.
    Warning {
        /// The host it is about, or empty.
        host: String,
        /// The line.
        text: String,
    },
    /// Something is being put back.
    Undo {
        /// What.
        what: String,
        /// How it failed, if it did.
        problem: Option<Problem>,
    },
    /// The run is over.
    RunFinished(Summary),
}

/// An event with its run and time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stamped {
    /// The run.
    pub run: String,
    /// When, RFC 3339 with milliseconds.
    pub at: String,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// A listener.
pub type Sink = Arc<dyn Fn(&Stamped) + Send + Sync>;

/// Hands a run's events to everyone who listens, on a thread of its own: a listener that hangs (a stopped terminal, a full
/// pipe, a slow disk) must never hold up a run whose source is down.
#[derive(Clone)]
pub struct Reporter {
    run: Arc<str>,
    queue: Sender<Item>,
    waiting: Arc<AtomicUsize>,
    pulse: Pulse,
    hung: Arc<AtomicBool>,
}

/// Counts a run's signs of life: its events, what is heard from its hosts, its looks at a lock it waits for. Whoever watches
/// sees whether it moves. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Pulse(Arc<AtomicU64>);

impl Pulse {
    /// A sign of life.
    pub fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

enum Item {
    Event(Box<Stamped>),
    Flush(SyncSender<()>),
}

/// Events that may wait; progress beyond that is left out, everything else is kept.
const MAX_WAITING: usize = 1000;

/// How long the begin and end of a step wait for theirs.
const MOMENT: Duration = Duration::from_millis(100);

/// How long the end of a run waits for its listeners.
const FLUSH: Duration = Duration::from_secs(10);

impl Reporter {
    /// For one run.
    pub fn new(run: &str, sinks: Vec<Sink>, pulse: Pulse) -> Self {
        let (queue, items) = channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let taken = waiting.clone();
        std::thread::spawn(move || {
            for item in items {
                match item {
                    Item::Event(stamped) => {
                        taken.fetch_sub(1, Ordering::Relaxed);
                        sinks.iter().for_each(|sink| sink(&stamped));
                    }
                    Item::Flush(done) => {
                        let _ = done.send(());
                    }
                }
            }
        });
        Self { run: run.into(), queue, waiting, pulse, hung: Arc::default() }
    }
    /// A sign of life without an event.
    pub fn beat(&self) {
        self.pulse.beat();
    }
    /// Tells everyone, without waiting.
    pub fn tell(&self, event: Event) {
        self.beat();
        let waiting = self.waiting.load(Ordering::Relaxed);
        if waiting > MAX_WAITING && matches!(event, Event::Progress { .. }) {
            return;
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let heavy = matches!(event, Event::StepStarted { .. } | Event::StepFinished { .. } | Event::Undo { .. });
        let at = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
        let _ = self.queue.send(Item::Event(Box::new(Stamped { run: self.run.to_string(), at, event })));
        // where a run was must be on record if this process dies now; a listener that hangs is waited for only once
        if heavy && !self.hung.load(Ordering::Relaxed) && !self.flush_within(MOMENT) {
            self.hung.store(true, Ordering::Relaxed);
        }
    }
    /// Waits until everything told so far has reached everyone, but not for ever.
    pub fn flush(&self) {
        self.flush_within(FLUSH);
    }

    fn flush_within(&self, limit: Duration) -> bool {
        let (done, heard) = sync_channel(1);
        self.queue.send(Item::Flush(done)).is_ok() && heard.recv_timeout(limit).is_ok()
    }
    /// A line about a host.
    pub fn note(&self, host: impl fmt::Display, text: impl Into<String>) {
        self.tell(Event::Note { host: host.to_string(), text: text.into() });
    }
    /// A warning about a host.
    pub fn warn(&self, host: impl fmt::Display, text: impl Into<String>) {
        self.tell(Event::Warning { host: host.to_string(), text: text.into() });
    }
}

/// Bytes for people.
pub fn human_bytes(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}
