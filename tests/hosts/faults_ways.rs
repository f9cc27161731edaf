//! Faults while the image is taken in the ways that are the default: from frozen files with the source up again, and in passes while it
//! runs. Everything still travels, so that there is a middle for a fault to fall into.

use std::time::Duration;

use crate::fleet::Fleet;
use crate::trial::{Case, Live, Trial};

const FROZEN: &str = "--set refreshes.nightly.freeze='\"auto\"'";
const PASSES: &str = "--set refreshes.nightly.precopy=true";

#[test]
fn frozen_files_and_passes() {
    let fleet = Fleet::up(&["src=mariadb,xfs:1G", "d1=mariadb,xfs:2G", "ctl=plain"]);
    let mut trial = Trial::new(&fleet, "ssh", &[("d1", "ssh")]);
    while_frozen(&mut trial);
    in_a_pass(&mut trial);
    trial.finish();
}

fn frozen<'t, 'a>(trial: &'t mut Trial<'a>, what: &str) -> Case<'t, 'a> {
    trial.case(format!("frozen: {what}")).with(FROZEN).freezes()
}

fn passes<'t, 'a>(trial: &'t mut Trial<'a>, what: &str) -> Case<'t, 'a> {
    trial.case(format!("in passes: {what}")).with(PASSES)
}

/// Until the copy is well under way on a slow line, in the pass of that step.
fn until_it_copies_slowly(live: &Live<'_, '_>, step: &str) {
    live.trial().hosts("net d1 rate 30mbit");
    live.until(step);
    live.until_bytes_arrive();
}

/// The source has been up again since before the copy: what happens to the run is none of its business any more.
fn while_frozen(trial: &mut Trial<'_>) {
    let (src, d1) = (trial.src, trial.dst(0));
    frozen(trial, "nothing happens").codes(&[0]).run(|_| {});
    frozen(trial, "the source's agent dies").run(|live| {
        until_it_copies_slowly(live, "copy");
        let life = src.server_life();
        src.sh("pkill -KILL -f '[m]ysql-refreshd agent'");
        live.until_over();
        assert_eq!(src.server_life(), life, "its server was touched");
        live.trial().hosts("net d1 clear");
    });
    frozen(trial, "silence of the source").codes(&[1, 5]).run(|live| {
        until_it_copies_slowly(live, "copy");
        live.trial().hosts("net src cut");
        live.until_over();
        live.trial().hosts("net src clear");
        live.trial().hosts("net d1 clear");
    });
    frozen(trial, "power is cut at the source").codes(&[1, 5]).run(|live| {
        until_it_copies_slowly(live, "copy");
        live.trial().cut_power(src);
        live.trial().boot(src);
        live.until_over();
        live.trial().hosts("net d1 clear");
    });
    frozen(trial, "power is cut at the destination").codes(&[1, 5]).run(|live| {
        until_it_copies_slowly(live, "copy");
        live.trial().cut_power(d1);
        live.trial().boot(d1);
        live.until_over();
        live.trial().hosts("net d1 clear");
    });
    frozen(trial, "the source's disk fills up")
        .run(|live| {
            until_it_copies_slowly(live, "copy");
            live.trial().hosts("disk src fill 60");
            live.until_over();
            live.trial().hosts("disk src unfill");
            live.trial().hosts("net d1 clear");
        })
        .says(&["run full"]);
    frozen(trial, "power is cut at the source while it is being frozen").codes(&[0, 1, 5]).run(|live| {
        live.until("stop");
        std::thread::sleep(Duration::from_millis(200));
        live.trial().cut_power(src);
        live.trial().boot(src);
        live.until_over();
    });
}

/// Before the stop a run may begin anew; after it, it ends.
fn in_a_pass(trial: &mut Trial<'_>) {
    let (src, d1) = (trial.src, trial.dst(0));
    passes(trial, "nothing happens").codes(&[0]).run(|_| {});
    passes(trial, "the source's agent dies in the first").codes(&[0, 1]).run(|live| {
        until_it_copies_slowly(live, "precopy");
        let life = src.server_life();
        src.sh("pkill -KILL -f '[m]ysql-refreshd agent'");
        assert_eq!(src.server_life(), life, "its server was touched");
        live.trial().hosts("net d1 clear");
    });
    passes(trial, "a reset of the destination's connection in the first").codes(&[0, 1, 5]).run(|live| {
        until_it_copies_slowly(live, "precopy");
        live.trial().hosts("net d1 reset 22");
        std::thread::sleep(Duration::from_millis(500));
        live.trial().hosts("net d1 clear");
    });
    passes(trial, "power is cut at the source in the first").codes(&[0, 1, 5]).run(|live| {
        until_it_copies_slowly(live, "precopy");
        live.trial().cut_power(src);
        live.trial().boot(src);
        live.trial().hosts("net d1 clear");
    });
    passes(trial, "power is cut at the destination in the first").codes(&[0, 1, 5]).run(|live| {
        until_it_copies_slowly(live, "precopy");
        live.trial().cut_power(d1);
        live.trial().boot(d1);
        live.trial().hosts("net d1 clear");
    });
    for (host, other) in [(src, "source"), (d1, "destination")] {
        passes(trial, &format!("power is cut at the {other} in the last")).codes(&[0, 1, 5]).run(|live| {
            live.until("copy");
            live.trial().cut_power(host);
            live.trial().boot(host);
        });
    }
}
