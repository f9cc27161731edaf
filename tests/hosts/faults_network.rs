//! Faults of the network while a run is under way: silence, resets, loss, a slow line, a flipped bit; and two controllers that want the
//! same hosts at once.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::fleet::{Fleet, eventually};
use crate::operator::{Operator, WHOLE};
use crate::trial::Trial;

#[test]
fn a_bad_network() {
    let fleet = Fleet::up(&["src=mariadb,xfs:1G", "d1=mariadb,xfs:2G", "d2=mariadb,xfs:2G", "ctl=plain"]);
    let mut trial = Trial::new(&fleet, "ssh", &[("d1", "ssh"), ("d2", "openssh")]);
    blinks(&mut trial);
    silence_of_the_source(&mut trial);
    silence_of_destinations(&mut trial);
    resets(&mut trial);
    bad_lines(&mut trial);
    flipped_bits(&fleet, &mut trial);
    trial.finish();
}

/// A cable that is out for less than what counts as lost: TCP sends again what has not arrived.
fn blinks(trial: &mut Trial<'_>) {
    trial.case("silence of the source for 2 s, on a line of 30 Mbit/s").codes(&[0]).run(|live| {
        let trial = live.trial();
        trial.hosts("net src rate 30mbit");
        live.until_it_copies();
        trial.hosts("net src cut");
        std::thread::sleep(Duration::from_secs(2));
        trial.hosts("net src clear");
    });
}

/// A source that falls silent in the middle of the copy.
pub fn silence_of_the_source(trial: &mut Trial<'_>) {
    trial.case("silence of the source until it is back by itself").codes(&[1, 5]).run(|live| {
        let trial = live.trial();
        trial.hosts("net src rate 30mbit");
        live.until_it_copies();
        trial.hosts("net src cut");
        live.until_the_source_is_back();
        trial.hosts("net src clear");
    });
}

/// Destinations that fall silent. Another one goes on, and the source waits for no one for longer than the silence that is allowed.
fn silence_of_destinations(trial: &mut Trial<'_>) {
    trial.case("silence of one destination after 6 MB").codes(&[5, 6]).run(|live| {
        let trial = live.trial();
        live.until("guard");
        trial.hosts("net d1 quota 6000000");
        live.until_over();
        trial.hosts("net d1 clear");
    });
    // nobody ever tells a destination's agent that its controller is gone
    trial.case("silence of all but one destination until the run has given up").codes(&[5]).run(|live| {
        let trial = live.trial();
        trial.hosts("net src rate 30mbit");
        live.until_it_copies();
        trial.hosts("net d1 cut");
        trial.hosts("net src cut");
        live.until_over();
        trial.hosts("net src clear");
        trial.hosts("net d1 clear");
    });
}

/// Connections that are reset.
fn resets(trial: &mut Trial<'_>) {
    trial.case("a reset of the source's connection in the copy").codes(&[1, 5]).run(|live| {
        let trial = live.trial();
        trial.hosts("net src rate 30mbit");
        live.until_it_copies();
        trial.hosts("net src reset 22");
        live.until_the_source_is_back();
        trial.hosts("net src clear");
    });
    trial.case("a reset of one destination's connection in the copy").codes(&[5, 6]).run(|live| {
        let trial = live.trial();
        trial.hosts("net src rate 30mbit");
        live.until_it_copies();
        trial.hosts("net d1 reset 22");
        std::thread::sleep(Duration::from_secs(1));
        trial.hosts("net d1 clear");
        live.until_over();
        trial.hosts("net src clear");
    });
    // nothing has been stopped yet: a run that begins anew is as good as one that ends
    trial.case("a reset of the source's connection before the stop").codes(&[0, 1, 5]).run(|live| {
        let trial = live.trial();
        live.until("stage");
        trial.hosts("net src reset 22");
        std::thread::sleep(Duration::from_millis(500));
        trial.hosts("net src clear");
    });
}

/// Lines that carry everything in the end, or too slowly.
fn bad_lines(trial: &mut Trial<'_>) {
    trial.case("3 % of all packets are lost").codes(&[0]).run(|live| {
        let trial = live.trial();
        trial.hosts("net src loss 3");
        trial.hosts("net d1 loss 3");
        live.until_over();
        trial.hosts("net src clear");
        trial.hosts("net d1 clear");
    });
    let most = Duration::from_secs(20);
    let limited = "--set refreshes.nightly.max_outage=8s";
    trial
        .case("a line of 4 Mbit/s, and 8 s are all there is")
        .with(limited)
        .cap(most)
        .run(|live| {
            live.trial().hosts("net src rate 4mbit");
            live.until_over();
            live.trial().hosts("net src clear");
        })
        .says(&["max_outage"]);
}

/// A bit flips on the way: whoever notices, wrong data is never installed.
fn flipped_bits(fleet: &Fleet, trial: &mut Trial<'_>) {
    for (n, (host, environment, way, after)) in
        [("src", "prod", "down", 3_000_000), ("d1", "rnd", "up", 3_000_000), ("d2", "rnd", "up", 3_000_000)]
            .into_iter()
            .enumerate()
    {
        let cable = Cable::to(fleet, host, 2201 + n, way, after);
        let key = fleet.host(host).sh("cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub");
        let base = format!("environments.{environment}.hosts.{host}");
        let options = format!(
            "--set '{base}.address=\"10.77.0.1\"' --set {base}.ssh.port={} --set '{base}.ssh.host_key=\"{key}\"'",
            2201 + n
        );
        let codes: &[i32] = if host == "src" { &[1] } else { &[6] };
        trial.case(format!("a bit flips on the way {way} of {host}")).with(&options).codes(codes).run(|live| {
            live.until_over();
            assert!(cable.said("flipped"), "{host}: nothing was flipped");
        });
    }
}

/// A way to a host on which a bit flips: a process in the network between the hosts.
struct Cable {
    process: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Cable {
    fn to(fleet: &Fleet, host: &str, port: usize, way: &str, after: u64) -> Cable {
        let address = fleet.host("ctl").sh(&format!("getent hosts {host} | cut -d' ' -f1"));
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/hosts/flip.py");
        let mut command =
            fleet.command(&["outside", "python3", script, &port.to_string(), &address, way, &after.to_string()]);
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (out, into) = (BufReader::new(process.stdout.take().unwrap()), lines.clone());
        std::thread::spawn(move || out.lines().map_while(Result::ok).for_each(|line| into.lock().unwrap().push(line)));
        let cable = Cable { process, lines };
        eventually("the cable", Duration::from_secs(20), || cable.said("ready"));
        cable
    }

    fn said(&self, word: &str) -> bool {
        self.lines.lock().unwrap().iter().any(|line| line == word)
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn two_controllers_at_once() {
    let fleet = Fleet::up(&["src=mariadb,xfs:1G", "d1=mariadb,xfs:2G", "ctl=plain", "ctl2=plain"]);
    let mut trial = Trial::new(&fleet, "ssh", &[("d1", "ssh")]);
    let other = Operator::sits_at(&fleet, "ctl2");
    other.install(&[]);
    other.is_let_in_by("src", "source");
    other.is_let_in_by("d1", "destination");
    other.configure(("src", "ssh"), &[("d1", "openssh")], WHOLE);
    other.refreshd("check").expect(0);
    // where it is, by the locks that it holds on its own machine
    let step = || {
        other.controller.sh("sed -n 's/.*\"step\":\"\\([^\"]*\\)\".*/\\1/p' /var/lib/mysql-refreshd/controller/locks/controller-*.lock | sort -u")
    };
    trial.case("another controller comes in the middle of a run").codes(&[0]).run(|live| {
        live.trial().hosts("net d1 rate 30mbit");
        live.until_it_copies();
        other.refreshd("--now nightly --no-wait").expect(3).says(&["is locked", "nightly"]);
        other.refreshd("--now nightly --set refreshes.nightly.on_busy='\"skip\"'").expect(0).says(&["nightly"]);
        std::thread::scope(|scope| {
            let second = scope.spawn(|| other.refreshd("--now nightly"));
            eventually("the other has begun", Duration::from_secs(30), || {
                other.refreshd("status --json").stdout.contains("\"why\"")
            });
            // one that waits for a host's lock still says where it began
            while !live.over() {
                let now = step();
                assert!(
                    ["lock", "start"].contains(&now.as_str()) || live.over(),
                    "both are at work: the other is in {now}"
                );
            }
            live.trial().hosts("net d1 clear");
            // on a busy machine the first may be over before it has asked every host
            second.join().unwrap().expect(0);
        });
    });
    // both at the same moment, again and again: exactly one at a time, and nobody waits for ever
    trial.case("two controllers begin at the same moment").codes(&[0]).run(|_| {
        other.refreshd("--now nightly").expect(0);
    });
    // the host's lock is free at once when its holder's machine is gone
    trial.case("another controller loses power in its run").codes(&[0]).run(|live| {
        live.until_over();
        // so slow that it is in its middle: a stage that is whole would wait for another agent of that run
        live.trial().hosts("net d1 rate 8mbit");
        std::thread::scope(|scope| {
            let second = scope.spawn(|| other.refreshd("--now nightly"));
            eventually("the other copies", Duration::from_secs(60), || step() == "copy");
            live.trial().hosts("crash ctl2");
            second.join().unwrap();
        });
        live.trial().hosts("net d1 clear");
        live.until_the_source_is_back();
    });
    trial.case("and its hosts are free for the first").codes(&[0]).run(|_| {});
    fleet.hosts(&["start", "ctl2"]);
    other.refreshd("recover").expect(0);
    trial.finish();
}
