//! Power cuts of a host in every step of a run. What was not durable is lost; the host boots, its server comes up by itself, and the
//! run's other hosts are none the worse for it.

use std::time::Duration;

use crate::fleet::{Fleet, Host};
use crate::trial::Trial;

/// When the power is cut: as soon as the run is in that step, or so many milliseconds later.
pub type Moment = (&'static str, u64);

/// The source's part ends with its start; later it is nobody's business.
const SOURCE: [Moment; 7] =
    [("stage", 0), ("drain", 0), ("guard", 0), ("stop", 0), ("copy", 500), ("start", 0), ("install", 0)];
const DESTINATION: [Moment; 9] = [
    ("stage", 0),
    ("copy", 500),
    ("install", 500),
    ("swap", 0),
    ("swap", 100),
    ("swap", 250),
    ("swap", 450),
    ("verify", 0),
    ("finish", 0),
];

#[test]
fn power_cuts_of_the_source() {
    let fleet = Fleet::up(&["src=mariadb,xfs:1G", "d1=mariadb,xfs:2G", "ctl=plain"]);
    let mut trial = Trial::new(&fleet, "ssh", &[("d1", "ssh")]);
    let src = trial.src;
    power_cuts(&mut trial, src, &SOURCE);
    trial.finish();
}

#[test]
fn power_cuts_of_a_destination() {
    let fleet = Fleet::up(&["src=mariadb,xfs:1G", "d1=mariadb,xfs:2G", "ctl=plain"]);
    let mut trial = Trial::new(&fleet, "ssh", &[("d1", "ssh")]);
    let d1 = trial.dst(0);
    power_cuts(&mut trial, d1, &DESTINATION);
    trial.finish();
}

/// One case for each moment. The moments are in order: each run goes at least as far as the one before it had come, so that nothing
/// that was left stands in its way.
pub fn power_cuts(trial: &mut Trial<'_>, host: Host<'_>, moments: &[Moment]) {
    for (step, later) in moments {
        // on a busy machine a short step may be over before it is seen: that is a power cut as well, but not this one
        let tried = (0..4).any(|_| {
            let mut seen = String::new();
            let what = format!("{}: power is cut in {step} + {later} ms", host.name);
            trial.case(what).codes(&[0, 1, 5]).run(|live| {
                let trial = live.trial();
                if *step == "copy" {
                    trial.hosts("net d1 rate 40mbit");
                }
                seen = live.until(step);

                std::thread::sleep(Duration::from_millis(*later));
                trial.cut_power(host);
                trial.boot(host);
                trial.hosts("net d1 clear");
            });
            seen == *step
        });
        assert!(tried, "{step} was never seen");
    }
}
