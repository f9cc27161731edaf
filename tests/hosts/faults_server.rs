//! Servers and agents that do not do as they are told: an agent that sleeps, a stop that hangs or is cut short by the service manager, a
//! start that fails once or always, and people and scripts that start a server which is down for a reason.

use std::time::Duration;

use crate::fleet::{Fleet, Host, eventually};
use crate::trial::{CAP, Trial};

/// MariaDB, as its units and programs are called.
pub const MARIADB: Kind = Kind { unit: "mariadb.service", server: "mariadbd" };
/// MySQL.
pub const MYSQL: Kind = Kind { unit: "mysql.service", server: "mysqld" };

/// What differs between the servers here.
pub struct Kind {
    unit: &'static str,
    server: &'static str,
}

impl Kind {
    /// What the host's administrator adds to the unit; nothing takes it away again.
    fn unit_says(&self, host: Host<'_>, lines: &str) {
        let folder = format!("/etc/systemd/system/{}.d", self.unit);
        host.sh(&format!("rm -rf {folder}"));
        if !lines.is_empty() {
            host.write(&format!("{folder}/own.conf"), format!("[Service]\n{lines}\n"));
        }
        host.sh("systemctl daemon-reload");
    }

    /// Starts the server past its unit, as a monitoring script does that knows nothing of units.
    fn by_hand(&self) -> String {
        format!(
            "systemd-run -q --collect --unit=by-hand sh -c 'install -d -o mysql -g mysql /run/mysqld; exec {} --user=mysql'",
            self.server
        )
    }
}

#[test]
fn servers_and_agents_that_are_wilful() {
    let fleet = Fleet::up(&["src=mariadb,xfs:1G", "d1=mariadb,xfs:2G", "ctl=plain"]);
    let mut trial = Trial::new(&fleet, "ssh", &[("d1", "ssh")]);
    agents(&mut trial);
    stops(&MARIADB, &mut trial);
    starts(&MARIADB, &mut trial);
    others(&MARIADB, &mut trial);
    trial.finish();
}

const AGENTS: &str = "'[m]ysql-refreshd agent'";

fn put_agents_to_sleep(host: Host<'_>) {
    host.sh(&format!("pkill -STOP -f {AGENTS}"));
}

/// Wakes all of them, again and again: sudo goes to sleep by itself, for ever, if it wakes up before its agent and finds that asleep.
fn wake_agents(host: Host<'_>) {
    host.sh(&format!("pkill -CONT -f {AGENTS}; for _ in 1 2 3 4; do sleep 0.3; pkill -CONT -f {AGENTS} || true; done"));
}

/// Agents that sleep longer than the lease of the guard.
fn agents(trial: &mut Trial<'_>) {
    trial.case("the source's agent sleeps through its lease").run(|live| {
        let src = live.trial().src;
        live.until("copy");
        put_agents_to_sleep(src);
        live.until_the_source_is_back();
        // it wakes up when the guard has fired, and must not do what it was about to do
        std::thread::sleep(Duration::from_secs(2));
        wake_agents(src);
    });
    trial.case("the destination's agent sleeps in the swap").codes(&[1, 5]).run(|live| {
        let d1 = live.trial().dst(0);
        live.until("swap");
        put_agents_to_sleep(d1);
        std::thread::sleep(Duration::from_secs(8));
        wake_agents(d1);
    });
}

/// Stops that hang, or are cut short.
pub fn stops(kind: &Kind, trial: &mut Trial<'_>) {
    let src = trial.src;
    // longer than the host's stop_timeout; then the service manager does stop it, and the start that waits follows
    kind.unit_says(src, "ExecStop=/bin/sleep 14");
    trial.case("the source's stop hangs").run(|_| {});
    kind.unit_says(src, "");
    // asleep as soon as it is told to stop, and again whenever it is woken: a service manager does that with its signals
    src.write(
        "/root/sleep",
        "systemd-run -q --collect --unit=sleeper sh -c \"while kill -STOP $MAINPID; do sleep 0.002; done\"
         until grep -q '^State:.T' /proc/$MAINPID/status; do sleep 0.01; done",
    );
    // the service manager loses patience and kills it: that is no clean stop, and no image
    kind.unit_says(src, "ExecStop=+/bin/bash /root/sleep\nTimeoutStopSec=1\nSendSIGKILL=yes");
    trial.case("the source's server is killed in its stop").run(|_| {}).says(&["did not stop cleanly"]);
    // nobody ever kills it: it sleeps, and so does the source, until somebody wakes it
    kind.unit_says(src, "ExecStop=+/bin/bash /root/sleep\nTimeoutStopSec=900");
    let process = src.server_pid();
    trial.case("the source's server sleeps in its stop").codes(&[1, 5]).cap(CAP).run(|live| {
        live.until("stop");
        std::thread::sleep(Duration::from_secs(14));
        assert_eq!(src.server_pid(), process);
        assert!(!live.over(), "a run that has left a source down is over");
        src.sh(&format!("systemctl stop sleeper; pkill -CONT -x {}", kind.server));
        live.until_the_source_is_back();
    });
    kind.unit_says(src, "");
}

/// Starts that fail.
pub fn starts(kind: &Kind, trial: &mut Trial<'_>) {
    let (src, d1) = (trial.src, trial.dst(0));
    kind.unit_says(src, "ExecStartPre=+/bin/sh -c \"! rm /run/once 2>/dev/null\"");
    trial.case("the source's start fails once").codes(&[0]).run(|live| {
        live.until("stop");
        src.sh("touch /run/once");
        live.until_over();
        src.sh("! test -e /run/once");
    });
    kind.unit_says(src, "ExecStartPre=+/bin/sh -c \"! test -e /run/never\"");
    trial
        .case("the source does not start until it is mended")
        .codes(&[5])
        .cap(CAP * 3)
        .run(|live| {
            live.until("stop");
            src.sh("touch /run/never");
            live.until_over();
            assert_eq!(src.server_pid(), "", "the experiment is not what it is meant to be");
            src.sh("rm /run/never");
            // nobody does anything: no recover, no run
            live.until_the_source_is_back();
        })
        .says(&["prod/src", "by hand", "mysql-refreshd recover"]);
    kind.unit_says(src, "");
    // what starts is the folder that was there before: the new one does not, and goes back
    d1.write("/root/only", "test ! -e /run/only || test $(stat -c %i /srv/data/mysql) = $(cat /run/only)");
    kind.unit_says(d1, "ExecStartPre=+/bin/sh /root/only");
    trial.case("the destination does not start with the new image").run(|live| {
        live.until("copy");
        d1.sh("stat -c %i /srv/data/mysql >/run/only");
        live.until_over();
        d1.sh("rm /run/only");
    });
    kind.unit_says(d1, "");
}

/// Others who start a server that is down for a reason.
pub fn others(kind: &Kind, trial: &mut Trial<'_>) {
    let (src, d1) = (trial.src, trial.dst(0));
    // a runtime mask is nothing to a unit whose own file is here
    src.sh(&format!(
        "cp $(systemctl show -P FragmentPath {0}) /etc/systemd/system/{0} && systemctl daemon-reload",
        kind.unit
    ));
    trial.case("somebody starts the source's unit in the copy").codes(&[0]).run(|live| {
        live.trial().hosts("net d1 rate 40mbit");
        live.until_it_copies();
        let tried = src.try_sh(&format!("systemctl start {}", kind.unit));
        assert!(tried.code != Some(0) && tried.stderr.contains("Assertion failed"), "{tried}");
        live.trial().hosts("net d1 clear");
    });
    src.sh(&format!("rm /etc/systemd/system/{} && systemctl daemon-reload", kind.unit));
    trial.case("somebody starts the source's server by hand in the copy").codes(&[1, 5]).run(|live| {
        live.trial().hosts("net d1 rate 40mbit");
        live.until_it_copies();
        src.sh(&kind.by_hand());
        eventually("it serves", CAP, || src.try_sql("", "SELECT 1").code == Some(0));
        live.trial().hosts("net d1 clear");
        live.until_over();
        // and makes room for the unit again
        src.sh(&format!("systemctl stop by-hand; systemctl reset-failed; systemctl start {}", kind.unit));
    });
    monitored(kind, trial, src, &[1, 5]);
    monitored(kind, trial, d1, &[0, 1, 5]);
}

/// A script that starts a server whenever none runs, also in the middle of a stop.
pub fn monitored(kind: &Kind, trial: &mut Trial<'_>, host: Host<'_>, codes: &[i32]) {
    trial.case(format!("a script on {} starts a server whenever none runs", host.name)).codes(codes).run(|live| {
        live.until("stage");
        let script =
            format!("while :; do pgrep -x {} >/dev/null || {} || true; sleep 0.05; done", kind.server, kind.by_hand());
        host.write("/root/monitor", script);
        host.sh("systemd-run -q --collect --unit=monitor bash /root/monitor");
        live.until_over();
        host.sh(&format!(
            "systemctl stop monitor; systemctl stop by-hand || true; systemctl reset-failed; systemctl start {}",
            kind.unit
        ));
    });
}
