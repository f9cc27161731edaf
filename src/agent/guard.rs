//! The guard: a process of its own on the source host, armed before the stop, which starts the server again when the run
//! does not come back. It needs no controller, no connection, no agent and no SQL account.
//!
//! It fires when the agent that armed it has died, when nothing was heard for the lease, or when the outage has lasted as
//! long as it may. Firing and disarming exclude each other by a lock on the guard's record, so that a run always learns
//! whether its guard had fired; the image is then thrown away.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{launch, server};
use crate::failpoint;
use crate::instance::Instance;
use crate::lock;
use crate::problem::{Explain, Outcome, Problem};

/// How often the guard looks.
const LOOK: Duration = Duration::from_millis(100);

/// How long a dead agent's server may stay down: time for a restarted agent to take over.
const GRACE: Duration = Duration::from_secs(1);

/// How long a server must be up, with no agent left, until a guard that has fired goes.
const SETTLED: Duration = Duration::from_secs(5);

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
    lease_s: u64,
    max_outage_s: u64,
    state: State,
    /// The guard itself, once it stands.
    guard: Option<server::Process>,
    /// Nobody needs it any more: it ends, also after it has fired.
    dismissed: bool,
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

/// Arms a guard for a run and waits until it stands.
pub fn arm(instance: &Instance, key: &str, run: &str, max_outage_s: u64, lease_s: u64) -> Outcome<()> {
    let place = Place::new(instance, key);
    let record = Record {
        run: run.into(),
        key: key.into(),
        instance: instance.clone(),
        agent: std::process::id(),
        lease_s,
        max_outage_s,
        state: State::Arming,
        guard: None,
        dismissed: false,
    };
    place.change(|_| place.write(&record))?;
    place.renew(0);
    let arguments: Vec<OsString> = vec!["guard".into(), "--file".into(), place.file("json").into()];
    launch::detached(&place.file("log"), Path::new("self"), &arguments)?;
    let begun = Instant::now();
    while begun.elapsed() < ARM_LIMIT {
        if place.read()?.is_some_and(|r| r.run == run && r.state == State::Armed) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(Problem::failed("the guard did not come up; the server was not stopped")
        .cause(server::tail(&place.file("log"), 5)))
}

/// Disarms the guard of a run. Returns why it had fired, if it had. Idempotent.
pub fn disarm(instance: &Instance, key: &str, run: &str) -> Outcome<Option<String>> {
    let place = Place::new(instance, key);
    let deadline = Instant::now() + Duration::from_secs(u64::from(instance.start_timeout_s) + 60);
    loop {
        let state = place.change(|record| match record {
            Some(mut record) if record.run == run => {
                // whatever it has done so far: while the server is down it is needed, and will start it
                let needed = !record.dismissed && record.guard.as_ref().is_some_and(server::Process::alive);
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
            Some(State::Fired { started: None, problem: None, .. }) if Instant::now() < deadline => {
                std::thread::sleep(LOOK)
            }
            Some(State::Fired { reason, problem, .. }) => {
                return Ok(Some(problem.map_or(reason.clone(), |p| format!("{reason}; its start failed: {p}"))));
            }
            _ => return Ok(None),
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
    let started = server::ensure_started(instance, key)?;
    place.change(|now| match now {
        Some(now) if now.run == record.run => {
            let reason = "this host was started anew, or its guard was killed".to_owned();
            place.write(&Record { state: State::Fired { reason, started: Some(started), problem: None }, ..now })
        }
        _ => Ok(()),
    })?;
    let what = if started { "the server was down and was started" } else { "the server was up" };
    Ok(Some(format!("run {} was interrupted while this source was guarded: {what}", record.run)))
}

/// Whether the guard of a run has fired.
pub fn has_fired(instance: &Instance, key: &str, run: &str) -> bool {
    matches!(Place::new(instance, key).read(), Ok(Some(Record { run: r, state: State::Fired { .. }, .. })) if r == run)
}

/// The guard process itself.
pub fn run(file: &Path) -> Outcome<()> {
    failpoint::init(vec!["guard".into()]);
    let folder = file.parent().map(Path::to_owned).unwrap_or_default();
    let key = file.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let place = Place { folder, key };
    let mut record =
        place.read()?.ok_or_else(|| Problem::failed(format!("no guard's record at {}", file.display())))?;
    let agent = server::process(record.agent);
    record = place.change(|now| match now {
        Some(mut now) if now.run == record.run && now.state == State::Arming => {
            now.state = State::Armed;
            now.guard = server::process(std::process::id());
            place.write(&now)?;
            Ok(now)
        }
        _ => Err(Problem::failed("the guard was superseded before it stood")),
    })?;
    let _deaf = ignore_signals()?;
    watch(&place, &record, agent.as_ref())
}

/// From here on the guard does not end because someone asks: a service manager that clears up after a dead run signals it
/// just when it is needed. Lasts as long as the value.
fn ignore_signals() -> Outcome<tokio::runtime::Runtime> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.explain(|| "cannot start the guard's runtime")?;
    let _entered = runtime.enter();
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
        let mut stream = signal(kind).explain(|| "cannot take over signals")?;
        runtime.spawn(async move { while stream.recv().await.is_some() {} });
    }
    drop(_entered);
    Ok(runtime)
}

fn watch(place: &Place, record: &Record, agent: Option<&server::Process>) -> Outcome<()> {
    let begun = Instant::now();
    let (mut pulse, mut heard) = (String::new(), Instant::now());
    let mut orphaned: Option<Instant> = None;
    // the outage is what is limited, not the time before it
    let mut down_since: Option<Instant> = None;
    let mut looked = Instant::now();
    loop {
        match place.read() {
            Ok(Some(now)) if now.run == record.run && now.state == State::Armed => {}
            // disarmed, or superseded by another run
            Ok(Some(_)) => return Ok(()),
            // a record that is gone or cannot be read is no reason to leave a server down
            Ok(None) if down_since.is_some() => return keep_up(place, record, agent),
            Ok(None) => return Ok(()),
            Err(_) => {}
        }
        let now = std::fs::read_to_string(place.file("lease")).unwrap_or_default();
        if now != pulse {
            (pulse, heard) = (now, Instant::now());
        }
        if looked.elapsed() > Duration::from_millis(500) || begun.elapsed() < LOOK {
            looked = Instant::now();
            // a server that is stopping serves nobody, though it still holds its files
            let running = server::greets(&record.instance.socket);
            down_since = if running { None } else { down_since.or(Some(Instant::now())) };
        }
        orphaned = if agent.is_some_and(server::Process::alive) { None } else { orphaned.or(Some(Instant::now())) };
        let reason = if orphaned.is_some_and(|since| since.elapsed() >= GRACE) {
            Some("the agent on this host died".to_owned())
        } else if heard.elapsed() >= Duration::from_secs(record.lease_s) {
            Some(format!("nothing was heard of the run for {} s", record.lease_s))
        } else if down_since.is_some_and(|since| since.elapsed() >= Duration::from_secs(record.max_outage_s)) {
            Some(format!("max_outage of {} s is over", record.max_outage_s))
        } else {
            None
        };
        if let Some(reason) = reason {
            return fire(place, record, reason, agent);
        }
        std::thread::sleep(LOOK);
    }
}

fn fire(place: &Place, record: &Record, reason: String, agent: Option<&server::Process>) -> Outcome<()> {
    let mine = place.change(|now| match now {
        Some(mut now) if now.run == record.run && now.state == State::Armed => {
            now.state = State::Fired { reason: reason.clone(), started: None, problem: None };
            place.write(&now)?;
            Ok(true)
        }
        _ => Ok(false),
    });
    // a record that cannot be written (full disk) must not keep the server down
    if let Ok(false) = mine {
        return Ok(());
    }
    let mut fired = record.clone();
    loop {
        let result = server::ensure_started(&record.instance, &record.key);
        let (started, problem) = match &result {
            Ok(started) => (Some(*started), None),
            Err(problem) => (None, Some(problem.to_string())),
        };
        fired.state = State::Fired { reason: reason.clone(), started, problem };
        let told = place.change(|now| match now {
            Some(now) if now.run == record.run => {
                fired.dismissed = now.dismissed;
                fired.guard = now.guard;
                place.write(&fired)
            }
            _ => Ok(()),
        });
        if result.is_ok() && told.is_ok() {
            return keep_up(place, record, agent);
        }
        if superseded(place, record) {
            return Ok(());
        }
        // for ever: a source that is down stays our business until another run or a human takes the record over
        std::thread::sleep(Duration::from_secs(2));
    }
}

/// Whether nobody needs this guard any more.
fn superseded(place: &Place, record: &Record) -> bool {
    matches!(place.read(), Ok(Some(now)) if now.run != record.run || now.dismissed)
}

/// After it has fired the guard stays: an agent that slept through it may yet stop the server. Ends when it is dismissed, or
/// when the agent is gone and the server has been up for a while.
fn keep_up(place: &Place, record: &Record, agent: Option<&server::Process>) -> Outcome<()> {
    let mut up_since: Option<Instant> = None;
    while !superseded(place, record) {
        if server::greets(&record.instance.socket) {
            let since = *up_since.get_or_insert_with(Instant::now);
            let alone = !agent.is_some_and(server::Process::alive);
            if alone && since.elapsed() > SETTLED {
                return Ok(());
            }
        } else {
            up_since = None;
            let _ = server::ensure_started(&record.instance, &record.key);
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}
