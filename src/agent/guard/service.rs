//! The guard as systemd's business: a transient service, and a transient timer behind it.
//!
//! Starts nothing but this program, in the role of the guard.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use super::{Place, Record};
use crate::agent::server;
use crate::instance::Instance;
use crate::problem::{Explain, Outcome, Problem};

/// How much later than the guard itself its timer acts.
const TIMER_MARGIN_S: u64 = 30;

/// How long the service manager may take for one answer.
const MANAGER_LIMIT: Duration = Duration::from_secs(10);

/// Whether systemd runs this machine, and does what we tell it.
pub fn manager() -> bool {
    Path::new("/run/systemd/system").is_dir() && rustix::process::geteuid().is_root()
}

/// Has the service manager run this program with `arguments` as the transient unit `name`, outside our own control group: no end
/// of a session or a service reaches it. What it started itself outlives it.
fn transient(name: &str, properties: &[&str], arguments: &[OsString], instance: &Instance) -> Outcome<()> {
    let program = std::env::current_exe().explain(|| "cannot tell this program's path")?;
    if !program.exists() {
        return Err(Problem::failed(format!("{} is not there any more", program.display())));
    }
    let mut words: Vec<OsString> = ["systemd-run", "--quiet", "--collect", "--property=KillMode=process"]
        .iter()
        .chain(properties)
        .map(OsString::from)
        .collect();
    words.push(format!("--unit={name}").into());
    words.push("--".into());
    words.push(program.into());
    words.extend_from_slice(arguments);
    server::command(&words, MANAGER_LIMIT, instance)
}

/// Has the service manager start the guard, and a timer behind it. The service's name.
pub fn start(place: &Place, record: &Record) -> Outcome<String> {
    let name = |what: &str| format!("mysql-refreshd-{what}-{}", record.run);
    // it comes over the wire
    if !record.run.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')) {
        return Err(Problem::failed("the run's id cannot be the name of a unit"));
    }
    let file = place.file("json");
    let (timer, unit) = (name("guard-cap"), name("guard"));
    let delay = format!("--on-active={}", record.max_outage_s + TIMER_MARGIN_S);
    let mut last_resort: Vec<OsString> = vec!["guard".into(), "--file".into(), file.clone().into()];
    last_resort.extend(["--cap".into(), record.run.clone().into()]);
    let instance = &record.instance;
    transient(&timer, &[&delay, "--timer-property=AccuracySec=100ms"], &last_resort, instance)?;
    place.change(|now| match now {
        Some(now) if now.run == record.run => place.write(&Record { timer: Some(format!("{timer}.timer")), ..now }),
        _ => Err(Problem::failed("the guard was superseded before it stood")),
    })?;
    let service = [
        // killed, by whomever: it is back before the agent's next look
        "--property=Restart=on-failure",
        "--property=RestartSec=100ms",
        "--property=StartLimitIntervalSec=0",
        "--property=OOMScoreAdjust=-900",
        // it does not end when it is asked; a shutdown of the host need not wait for it
        "--property=TimeoutStopSec=2s",
    ];
    transient(&unit, &service, &["guard".into(), "--file".into(), file.into()], instance)?;
    Ok(format!("{unit}.service"))
}

/// A timer that nobody needs goes; one that stays would find nothing to do.
pub fn drop_timer(place: &Place, run: &str) {
    if let Ok(Some(Record { run: of, timer: Some(timer), instance, .. })) = place.read()
        && of == run
    {
        let _ = server::command(&["systemctl", "stop", "--quiet", &timer], MANAGER_LIMIT, &instance);
    }
}
