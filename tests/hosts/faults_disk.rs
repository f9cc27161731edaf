//! Faults of disks while a run is under way: full, broken, broken only at the fsync, read-only, hung; on destinations, and on the source
//! while it is read.

use std::time::Duration;

use crate::fleet::Fleet;
use crate::trial::Trial;

#[test]
fn bad_disks() {
    let fleet = Fleet::up(&["src=mariadb,xfs:1G", "d1=mariadb,xfs:2G", "d2=mariadb,ext4:2G", "ctl=plain"]);
    let mut trial = Trial::new(&fleet, "ssh", &[("d1", "ssh"), ("d2", "ssh")]);
    full(&mut trial, "copy", &[6]);
    // neither the new server nor the old one may be able to start then
    full(&mut trial, "swap", &[0, 5, 6]);
    hung(&mut trial);
    broken_on_the_source(&mut trial);
    broken_at_the_fsync(&mut trial);
    broken(&mut trial, "d1", "eio", "copy");
    broken(&mut trial, "d2", "readonly", "copy");
    broken(&mut trial, "d2", "readonly", "swap");
    trial.finish();
}

/// A destination's disk is full, from some step on.
pub fn full(trial: &mut Trial<'_>, step: &str, codes: &[i32]) {
    trial.case(format!("a destination's disk is full from the {step} on")).codes(codes).broken_disk().run(|live| {
        let trial = live.trial();
        trial.hosts("net src rate 60mbit");
        live.until(step);
        trial.hosts("disk d1 fill 0");
        live.until_over();
        trial.hosts("disk d1 unfill");
        trial.hosts("net src clear");
    });
}

/// A destination whose disk does not answer for longer than it may hold up the others.
fn hung(trial: &mut Trial<'_>) {
    trial.case("a destination's disk hangs in the copy").codes(&[5, 6]).broken_disk().run(|live| {
        let trial = live.trial();
        trial.hosts("net src rate 40mbit");
        live.until_it_copies();
        trial.hosts("disk d1 freeze");
        trial.hosts("net src clear");
        live.until_the_source_is_back();
        std::thread::sleep(Duration::from_secs(3));
        trial.hosts("disk d1 thaw");
    });
}

/// The source's disk cannot read what is to be copied; later it can again.
fn broken_on_the_source(trial: &mut Trial<'_>) {
    let ran = trial.case("the source's disk cannot be read in the copy").codes(&[1, 5]).run(|live| {
        let trial = live.trial();
        trial.hosts("net src rate 16mbit");
        live.until("copy");
        trial.hosts("disk src short 75");
        // or what was read in the last run would come from memory
        trial.src.sh("find /srv/data/mysql -type f -exec dd if={} iflag=nocache count=0 status=none \\;");
        trial.hosts("net src clear");
        std::thread::sleep(Duration::from_secs(4));
        trial.hosts("disk src whole");
        live.until_over();
    });
    ran.says(&["os error 5"]);
}

/// A destination's disk takes everything, and only says at the fsync that it has not.
fn broken_at_the_fsync(trial: &mut Trial<'_>) {
    let d1 = trial.dst(0);
    let ran = trial.case("a destination's disk fails at the fsync").codes(&[5, 6]).broken_disk().run(|live| {
        let trial = live.trial();
        live.until("copy");
        trial.hosts("disk d1 short 75");
        live.until_over();
        trial.hosts("disk d1 whole");
        // what server and filesystem make of writes that failed is their affair; the host's owner mounts it anew
        trial.hosts("crash d1");
        trial.boot(d1);
    });
    ran.says(&["os error 5"]);
}

/// A destination's disk is gone, or is read-only, until its host is mended.
pub fn broken(trial: &mut Trial<'_>, host: &'static str, fault: &str, step: &str) {
    let mended = trial.host(host);
    trial.case(format!("{host}: {fault} from the {step} on")).codes(&[1, 5, 6]).broken_disk().run(|live| {
        let trial = live.trial();
        trial.hosts("net src rate 60mbit");
        live.until(step);
        trial.hosts(&format!("disk {host} {fault}"));
        trial.hosts("net src clear");
        live.until_over();
        trial.hosts(&format!("crash {host}"));
        trial.boot(mended);
    });
}
