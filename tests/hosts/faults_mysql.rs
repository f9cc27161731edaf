//! The faults that a server's own files, stops and starts have a part in, with MySQL.

use crate::faults_disk::{broken, full};
use crate::faults_network::silence_of_the_source;
use crate::faults_power::power_cuts;
use crate::faults_server::{MYSQL, others, starts, stops};
use crate::fleet::Fleet;
use crate::trial::Trial;

#[test]
fn mysqls_on_bad_hosts() {
    let fleet = Fleet::up(&["src=mysql,xfs:2G", "d1=mysql,xfs:2G", "ctl=plain"]);
    let mut trial = Trial::new(&fleet, "openssh", &[("d1", "ssh")]);
    let (src, d1) = (trial.src, trial.dst(0));
    silence_of_the_source(&mut trial);
    full(&mut trial, "swap", &[0, 1, 5]);
    broken(&mut trial, "d1", "eio", "copy");
    power_cuts(&mut trial, src, &[("stop", 0), ("copy", 500), ("start", 0)]);
    power_cuts(&mut trial, d1, &[("install", 1500), ("swap", 0), ("swap", 300), ("swap", 1000), ("verify", 0)]);
    trial.finish();
}

#[test]
fn mysqls_that_are_wilful() {
    let fleet = Fleet::up(&["src=mysql,xfs:2G", "d1=mysql,xfs:2G", "ctl=plain"]);
    let mut trial = Trial::new(&fleet, "ssh", &[("d1", "openssh")]);
    stops(&MYSQL, &mut trial);
    starts(&MYSQL, &mut trial);
    others(&MYSQL, &mut trial);
    trial.finish();
}
