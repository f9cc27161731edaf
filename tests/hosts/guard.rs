//! The guard where systemd runs the host: a service that nobody's end takes along, that comes back when it is killed, and a timer behind
//! it for the case that it hangs.

use std::time::Duration;

use crate::accounts;
use crate::connections::{CAP, heavy, until_it_copies};
use crate::fleet::{Fleet, Host, eventually};
use crate::operator::{Operator, WHOLE};
use crate::watch::{Onlooker, Writer};

/// The units of guards that systemd knows on a host, by name.
fn units(host: Host<'_>) -> Vec<String> {
    let told = host.sh("systemctl list-units --all --plain --no-legend 'mysql-refreshd-guard*' | cut -d' ' -f1");
    told.lines().map(str::to_owned).collect()
}

fn main_pid(host: Host<'_>, unit: &str) -> String {
    host.sh(&format!("systemctl show -P MainPID {unit}"))
}

#[test]
fn a_guard_of_systemds() {
    let fleet = Fleet::up(&["src=mariadb", "d1=mariadb,xfs:1G", "ctl=plain"]);
    let (src, d1) = (fleet.host("src"), fleet.host("d1"));
    heavy(src);
    accounts::make(d1);
    let slow = format!("{WHOLE}max_outage = \"25s\"\n[daemon]\nhost_timeout = \"300s\"\n");
    let operator = Operator::sets_up(&fleet, ("src", "ssh"), &[("d1", "ssh")], WHOLE);

    // a source that would stay down after a boot: not before the repair is there
    src.sh("systemctl disable -q mysql-refreshd-repair; systemctl disable -q mariadb");
    operator.refreshd("check").expect(4).says(&["would stay down if its host booted", "mariadb.service is disabled"]);
    operator.refreshd("--now nightly").expect(4).says(&["would stay down if its host booted"]);
    src.sh("systemctl enable -q mysql-refreshd-repair");
    operator.refreshd("check").expect(0);
    src.sh("systemctl enable -q mariadb");

    let (writer, onlooker) = (Writer::on(src), Onlooker::at(d1));
    let service = || units(src).into_iter().find(|unit| unit.ends_with(".service") && !unit.contains("-cap-"));

    // killed, it is back before anyone looks, and the run goes on
    fleet.hosts(&["net", "d1", "rate", "20mbit"]);
    std::thread::scope(|scope| {
        let run = scope.spawn(|| operator.refreshd("--now nightly"));
        until_it_copies(src, d1);
        let unit = service().expect("no guard's unit");
        assert!(units(src).iter().any(|unit| unit.contains("-cap-") && unit.ends_with(".timer")), "{:?}", units(src));
        let pid = main_pid(src, &unit);
        assert!(src.sh(&format!("cat /proc/{pid}/cgroup")).contains("system.slice/mysql-refreshd-guard-"));
        src.sh(&format!("kill -KILL {pid}"));
        eventually("another guard", Duration::from_secs(10), || {
            let now = main_pid(src, &unit);
            now != "0" && now != pid
        });
        run.join().unwrap();
    });
    eventually("the guard's units go", Duration::from_secs(20), || units(src).is_empty());
    // whether the run noticed is a matter of the moment; the source is up, and nothing is left to do
    operator.refreshd("recover").expect(0);
    assert_eq!(src.sh("ls /run/systemd/system/*.d/mysql-refreshd.held 2>/dev/null || true"), "");

    // with session, agent and controller gone at once it acts within seconds
    std::thread::scope(|scope| {
        let run = scope.spawn(|| operator.refreshd("--now nightly"));
        until_it_copies(src, d1);
        let unit = service().expect("no guard's unit");
        // the agent before its session, whose end it would answer with a start of its own
        src.sh("systemctl stop ssh.service ssh.socket 2>/dev/null; pkill -KILL -f '[m]ysql-refreshd agent'; pkill -KILL -u mysql-refreshd || true");
        eventually("the source", Duration::from_secs(30), || src.try_sql("", "SELECT 1").code == Some(0));
        let said = src.sh(&format!("journalctl -u {unit} -o cat --no-pager"));
        assert!(said.contains("the agent on this host died; the server is started"), "{said}");
        assert!(said.contains("the server is up again"), "{said}");
        src.sh("systemctl start ssh.service");
        assert_ne!(run.join().unwrap().code, Some(0));
    });
    operator.refreshd("recover").expect(0);
    operator.refreshd("recover").expect(0);

    // guard and agent hang, the controller is cut off: the timer is what is left
    operator.configure(("src", "ssh"), &[("d1", "ssh")], &slow);
    std::thread::scope(|scope| {
        let run = scope.spawn(|| operator.refreshd("--now nightly"));
        until_it_copies(src, d1);
        let unit = service().expect("no guard's unit");
        src.sh(&format!("kill -STOP {} $(pgrep -f '[m]ysql-refreshd agent --role')", main_pid(src, &unit)));
        fleet.hosts(&["net", "src", "cut"]);
        eventually("the source", CAP, || src.try_sql("", "SELECT 1").code == Some(0));
        let said = src.sh("journalctl -u 'mysql-refreshd-guard-cap-*' -o cat --no-pager");
        assert!(said.contains("max_outage is over, and the guard did nothing; the server is started"), "{said}");
        fleet.hosts(&["net", "src", "heal"]);
        // a sudo that wakes before its agent stops itself once more
        let wake = "pkill -CONT -f '[m]ysql-refreshd'";
        src.sh(&format!("{wake}; for _ in 1 2 3 4; do sleep 0.3; {wake} || true; done"));
        let ran = run.join().unwrap();
        assert_ne!(ran.code, Some(0), "{ran}");
    });
    eventually("recovery", Duration::from_secs(120), || operator.refreshd("recover").code == Some(0));
    let gap = writer.longest_gap();
    eprintln!("longest time without a commit: {gap:?}");
    assert!(gap < CAP, "the source was down for {gap:?}");
    drop(onlooker);

    fleet.hosts(&["net", "d1", "clear"]);
    operator.configure(("src", "ssh"), &[("d1", "ssh")], WHOLE);
    let before = writer.committed();
    operator.refreshd("--now nightly").expect(0);
    writer.check(src, &[d1], before);
    eventually("the guard's units go", Duration::from_secs(20), || units(src).is_empty());
}
