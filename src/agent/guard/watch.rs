//! The guard's process: looks after a source that a run has stopped, and starts it when nobody else does.
//!
//! Reads and writes nothing but the guard's record and lease; what it does to the server is `server::ensure_started`.

use std::path::Path;
use std::time::{Duration, Instant};

use super::{LOOK, Place, Record, State};
use crate::agent::server;
use crate::failpoint;
use crate::problem::{Explain, Outcome};

/// How long a dead agent's server may stay down: time for a restarted agent to take over.
const GRACE: Duration = Duration::from_secs(1);

/// How long a server must be up, with no agent left, until a guard that has fired goes.
const SETTLED: Duration = Duration::from_secs(5);

/// Fail points.
pub const POINTS: [&str; 5] = ["arming", "armed", "fire:before", "fire:journalled", "fire:started"];

/// What the guard says of itself, for the host's journal.
pub type Say<'a> = &'a dyn Fn(&str);

/// The guard process itself: a new one, or one that takes the place of a guard that was killed.
pub fn run(file: &Path, say: Say<'_>) -> Outcome<()> {
    failpoint::init(vec!["guard".into()]);
    let place = place_of(file);
    // without a record there is nothing to guard, also not at the next try
    let record = match place.read() {
        Ok(Some(record)) => record,
        Ok(None) => return Ok(()),
        Err(problem) => {
            say(&problem.to_string());
            return Ok(());
        }
    };
    let agent = record.watched.clone().or_else(|| server::process(record.agent));
    let ours = place.change(|now| match now {
        Some(mut now) if now.run == record.run && !now.dismissed => {
            let held = now.guard.as_ref().is_some_and(server::Process::alive);
            if held || now.state == State::Disarmed {
                return Ok(None);
            }
            if now.state == State::Arming {
                failpoint::hit("arming")?;
                now.state = State::Armed;
            }
            now.guard = server::process(std::process::id());
            now.watched = agent.clone();
            place.write(&now)?;
            Ok(Some(now))
        }
        _ => Ok(None),
    })?;
    // another one stands, or nobody needs one
    let Some(record) = ours else { return Ok(()) };
    let _deaf = ignore_signals()?;
    failpoint::hit("armed")?;
    match &record.state {
        State::Fired { reason, .. } => bring_back(&place, &record, reason, agent.as_ref(), say),
        _ => watch(&place, &record, agent.as_ref(), say),
    }
}

/// What the timer behind the guard runs once the outage has lasted as long as it may: the guard itself should have acted long
/// ago. Does nothing when it has, or when the run is over.
pub fn cap(file: &Path, run: &str, say: Say<'_>) -> Outcome<()> {
    let place = place_of(file);
    let reason = "max_outage is over, and the guard did nothing".to_owned();
    let marked = place.change(|now| match now {
        Some(mut now) if now.run == run && !now.dismissed && now.state != State::Disarmed => {
            if !matches!(now.state, State::Fired { .. }) {
                now.state = State::Fired { reason: reason.clone(), started: None, problem: None };
                place.write(&now)?;
            } else if server::greets(&now.instance.socket) || done_with(&now) {
                return Ok(None);
            }
            Ok(Some(now))
        }
        _ => Ok(None),
    });
    let record = match marked {
        Ok(None) => return Ok(()),
        Ok(Some(record)) => record,
        // a guard that hangs may hold the record's lock; the server must come up all the same
        Err(problem) => match place.read()? {
            Some(now) if now.run == run && !now.dismissed => {
                say(&problem.to_string());
                now
            }
            _ => return Ok(()),
        },
    };
    let agent = record.watched.clone();
    bring_back(&place, &record, &reason, agent.as_ref(), say)
}

/// Whether the server had come up and nobody of the run is there who might have stopped it since: if it is down, somebody wants it so.
fn done_with(record: &Record) -> bool {
    let lives = |process: &Option<server::Process>| process.as_ref().is_some_and(server::Process::alive);
    matches!(record.state, State::Fired { started: Some(_), .. }) && !lives(&record.watched) && !lives(&record.guard)
}

fn again(failed: &[String]) -> String {
    match failed {
        [] => "the server is up again".to_owned(),
        failed => format!("the server is up again; before that: {}", failed.join("; ")),
    }
}

fn place_of(file: &Path) -> Place {
    let folder = file.parent().map(Path::to_owned).unwrap_or_default();
    let key = file.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    Place { folder, key }
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

fn watch(place: &Place, record: &Record, agent: Option<&server::Process>, say: Say<'_>) -> Outcome<()> {
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
            return fire(place, record, &reason, agent, say);
        }
        std::thread::sleep(LOOK);
    }
}

/// A point at which nothing may end the guard any more.
fn whatever_happens(point: &str, say: Say<'_>) {
    if let Err(problem) = failpoint::hit(point) {
        say(&problem.to_string());
    }
}

fn fire(place: &Place, record: &Record, reason: &str, agent: Option<&server::Process>, say: Say<'_>) -> Outcome<()> {
    whatever_happens("fire:before", say);
    let mine = place.change(|now| match now {
        Some(mut now) if now.run == record.run && now.state == State::Armed => {
            now.state = State::Fired { reason: reason.to_owned(), started: None, problem: None };
            place.write(&now)?;
            Ok(true)
        }
        _ => Ok(false),
    });
    // a record that cannot be written (full disk) must not keep the server down
    if let Ok(false) = mine {
        return Ok(());
    }
    bring_back(place, record, reason, agent, say)
}

/// Starts the server, and keeps at it.
fn bring_back(
    place: &Place,
    record: &Record,
    reason: &str,
    agent: Option<&server::Process>,
    say: Say<'_>,
) -> Outcome<()> {
    say(&format!("run {}: {reason}; the server is started", record.run));
    whatever_happens("fire:journalled", say);
    // the guard is the last to go when memory is short; a server that it starts must not be
    let _ = std::fs::write("/proc/self/oom_score_adj", "0");
    let mut fired = record.clone();
    loop {
        let result = server::ensure_started(&record.instance, &record.key);
        whatever_happens("fire:started", say);
        let (started, problem) = match &result {
            Ok(up) => (Some(up.started), None),
            Err(problem) => (None, Some(problem.to_string())),
        };
        match &result {
            Ok(server::Up { started: true, failed }) => say(&again(failed)),
            Ok(_) => say("the server is up"),
            Err(problem) => say(&format!("the server does not start: {problem}")),
        }
        fired.state = State::Fired { reason: reason.to_owned(), started, problem };
        let told = place.change(|now| match now {
            Some(now) if now.run == record.run => {
                fired.dismissed = now.dismissed;
                fired.guard = now.guard;
                place.write(&fired)
            }
            _ => Ok(()),
        });
        // a record that is damaged is told nothing, ever
        if result.is_ok() && (told.is_ok() || place.read().is_err()) {
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
