//! The guard: a process of its own on the source host, armed before the stop, which starts the server again when the run
//! does not come back. It needs no controller, no connection, no agent and no SQL account.
//!
//! It fires when the agent that armed it has died, when nothing was heard for the lease, or when the outage has lasted as
//! long as it may. Firing and disarming exclude each other by a lock on the guard's record, so that a run always learns
//! whether its guard had fired; the image is then thrown away.
//!
//! Where systemd runs the host, the guard is a transient service: outside the control group of whoever armed it, brought back
//! when it is killed, the last to go when memory is short. A transient timer stands behind it and starts the server at the cap
//! should the service hang. Elsewhere it is a detached process. A boot ends them all: `repair` goes by the record.
//!
//! Here is the record and what agents do with it; `watch` is the process itself.

pub mod watch;

mod service;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{launch, server};
use crate::instance::Instance;
use crate::lock;
use crate::problem::{Explain, Outcome, Problem};

/// How often the guard looks.
const LOOK: Duration = Duration::from_millis(100);

/// How long a guard may take until it says that it is armed.
const ARM_LIMIT: Duration = Duration::from_secs(10);

/// Where the record and the lease of an instance's guard are.
#[derive(Debug, Clone)]
pub struct Place {
    folder: PathBuf,
    key: String,
}

/// The guard's record, on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    run: String,
    key: String,
    instance: Instance,
    agent: u32,
    /// The same as a process that cannot be mistaken, once a guard has seen it.
    #[serde(default)]
    watched: Option<server::Process>,
    lease_s: u64,
    max_outage_s: u64,
    state: State,
    /// The guard itself, once it stands.
    guard: Option<server::Process>,
    /// Nobody needs it any more: it ends, also after it has fired.
    dismissed: bool,
    /// The transient timer that stands behind it.
    #[serde(default)]
    timer: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum State {
    Arming,
    Armed,
    Disarmed,
    Fired { reason: String, started: Option<bool>, problem: Option<String> },
}

impl Place {
    /// The guard's files for an instance.
    pub fn new(instance: &Instance, key: &str) -> Self {
        Self { folder: instance.state_dir.join("guard"), key: key.to_owned() }
    }
    fn file(&self, kind: &str) -> PathBuf {
        self.folder.join(format!("{}.{kind}", self.key))
    }
    fn read(&self) -> Outcome<Option<Record>> {
        let path = self.file("json");
        match std::fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map(Some).explain(|| format!("cannot understand {}", path.display()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).explain(|| format!("cannot read {}", path.display())),
        }
    }
    fn write(&self, record: &Record) -> Outcome<()> {
        std::fs::create_dir_all(&self.folder).explain(|| format!("cannot create {}", self.folder.display()))?;
        let bytes = serde_json::to_vec_pretty(record).explain(|| "cannot write the guard's record")?;
        super::stage::write_durably(&self.file("json"), &bytes)
    }
    /// Changes the record under its lock.
    fn change<T>(&self, act: impl FnOnce(Option<Record>) -> Outcome<T>) -> Outcome<T> {
        let lock = lock::take_within(&self.file("lock"), Duration::from_secs(10))?;
        if lock.is_none() {
            return Err(Problem::failed(format!("{} stays locked", self.file("lock").display())));
        }
        act(self.read()?)
    }
    /// A sign of life: the guard's lease begins anew.
    pub fn renew(&self, pulse: u64) {
        let _ = std::fs::write(self.file("lease"), pulse.to_string());
    }
}

/// Arms a guard for a run and waits until it stands. Returns what it is, in words.
pub fn arm(instance: &Instance, key: &str, run: &str, max_outage_s: u64, lease_s: u64) -> Outcome<String> {
    let place = Place::new(instance, key);
    let record = Record {
        run: run.into(),
        key: key.into(),
        instance: instance.clone(),
        agent: std::process::id(),
        watched: server::process(std::process::id()),
        lease_s,
        max_outage_s,
        state: State::Arming,
        guard: None,
        dismissed: false,
        timer: None,
    };
    place.change(|_| place.write(&record))?;
    place.renew(0);
    stand(&place, &record)
}

/// Brings up a guard for what is on record, and waits until it stands. Returns what it is, in words.
fn stand(place: &Place, record: &Record) -> Outcome<String> {
    let run = record.run.as_str();
    let mut why = None;
    if service::manager() {
        match service::start(place, record) {
            Ok(unit) if stands_within(place, run, ARM_LIMIT / 2)? => return Ok(unit),
            Ok(unit) => why = Some(format!("the service {unit} did not come up")),
            Err(problem) => why = Some(problem.to_string()),
        }
    }
    // whichever stands first is the guard; another one ends when it sees that
    let arguments: Vec<OsString> = vec!["guard".into(), "--file".into(), place.file("json").into()];
    launch::detached(&place.file("log"), Path::new("self"), &arguments)?;
    if stands_within(place, run, ARM_LIMIT)? {
        let as_what = "a process of its own".to_owned();
        return Ok(why.map_or(as_what.clone(), |why| format!("{as_what} ({why})")));
    }
    Err(Problem::failed("the guard did not come up; the server was not stopped")
        .cause(server::tail(&place.file("log"), 5)))
}

fn stands_within(place: &Place, run: &str, limit: Duration) -> Outcome<bool> {
    let begun = Instant::now();
    while begun.elapsed() < limit {
        let stands = |record: &Record| match record.state {
            State::Armed => true,
            // one that has fired already, and stands for what is left to do
            State::Fired { .. } => record.guard.as_ref().is_some_and(server::Process::alive),
            State::Arming | State::Disarmed => false,
        };
        if place.read()?.is_some_and(|record| record.run == run && stands(&record)) {
            return Ok(true);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(false)
}

/// Disarms the guard of a run. Returns why it had fired, if it had. Idempotent.
pub fn disarm(instance: &Instance, key: &str, run: &str) -> Outcome<Option<String>> {
    let place = Place::new(instance, key);
    let deadline = Instant::now() + Duration::from_secs(u64::from(instance.start_timeout_s) + 60);
    loop {
        let state = place.change(|record| match record {
            Some(mut record) if record.run == run => {
                // whatever it has done so far: while the server is down it is needed, and will start it
                // one that was killed is about to be back, and a timer stands behind it
                let stands = record.guard.as_ref().is_some_and(server::Process::alive) || record.timer.is_some();
                let needed = !record.dismissed && stands;
                if needed && !server::greets(&instance.socket) {
                    return Err(Problem::failed("the server is down; its guard stays"));
                }
                if matches!(record.state, State::Arming | State::Armed) {
                    record.state = State::Disarmed;
                }
                let under_way = matches!(record.state, State::Fired { started: None, problem: None, .. });
                if !record.dismissed && !under_way {
                    record.dismissed = true;
                    place.write(&record)?;
                }
                Ok(Some(record.state))
            }
            _ => Ok(None),
        })?;
        match state {
            // unless nobody is there any more who could end it
            Some(State::Fired { started: None, problem: None, .. })
                if Instant::now() < deadline && place.read()?.is_some_and(|r| r.guard.is_some_and(|g| g.alive())) =>
            {
                std::thread::sleep(LOOK)
            }
            Some(State::Fired { reason, problem, .. }) => {
                service::drop_timer(&place, run);
                return Ok(Some(problem.map_or(reason.clone(), |p| format!("{reason}; its start failed: {p}"))));
            }
            _ => {
                service::drop_timer(&place, run);
                return Ok(None);
            }
        }
    }
}

/// Whether the guard of a run stands: armed, not fired, and its process alive. No stop without it, and no image from a stop
/// during which it did not stand throughout.
pub fn stands(instance: &Instance, key: &str, run: &str) -> Outcome<()> {
    let record = Place::new(instance, key).read()?;
    match record {
        Some(record) if record.run == run => match record.state {
            State::Armed if record.guard.as_ref().is_some_and(server::Process::alive) => Ok(()),
            State::Armed => Err(Problem::failed("the guard's process is gone")),
            State::Fired { reason, .. } => Err(Problem::failed("the guard has fired").cause(reason)),
            State::Arming | State::Disarmed => Err(Problem::failed("the guard is not armed")),
        },
        _ => Err(Problem::failed("this run has no guard")),
    }
}

/// After a boot, or whatever else has ended guard and agent at once: a server that is down for a run comes up, and the run will
/// learn that it did. What was done, in words; None: no run has left anything.
pub fn repair(instance: &Instance, key: &str) -> Outcome<Option<String>> {
    let place = Place::new(instance, key);
    let Some(record) = place.read()? else { return Ok(None) };
    let open = matches!(record.state, State::Arming | State::Armed | State::Fired { started: None, .. });
    if record.dismissed || !open || record.guard.as_ref().is_some_and(server::Process::alive) {
        return Ok(None);
    }
    let up = server::ensure_started(instance, key);
    let (started, problem) = match &up {
        Ok(up) => (Some(up.started), None),
        Err(problem) => (None, Some(problem.to_string())),
    };
    let ours = place.change(|now| match now {
        Some(now) if now.run == record.run => {
            let reason = "this host was started anew, or its guard was killed".to_owned();
            place.write(&Record { state: State::Fired { reason, started, problem }, ..now }).map(|()| true)
        }
        _ => Ok(false),
    })?;
    let started = match up {
        Ok(up) => up.started,
        Err(problem) => {
            // storage that comes late, a port that is taken: nobody else may be there who would try again
            return Err(match ours.then(|| stand(&place, &record)) {
                Some(Ok(_)) => problem.hint("A guard stands on this host and goes on trying."),
                Some(Err(guard)) => problem.cause(format!("and no guard goes on trying: {guard}")),
                None => problem,
            });
        }
    };
    let what = if started { "the server was down and was started" } else { "the server was up" };
    Ok(Some(format!("run {} was interrupted while this source was guarded: {what}", record.run)))
}

/// Whether the guard of a run has fired.
pub fn has_fired(instance: &Instance, key: &str, run: &str) -> bool {
    matches!(Place::new(instance, key).read(), Ok(Some(Record { run: r, state: State::Fired { .. }, .. })) if r == run)
}
