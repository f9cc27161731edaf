//! What a real network does to a run: a cable that is pulled, and a controller that dies with all its agents.

use std::time::Duration;

use crate::accounts;
use crate::fleet::{Fleet, Host, eventually};
use crate::mariadb::production;
use crate::operator::{Operator, WHOLE};
use crate::watch::{Onlooker, Writer};

/// The longest that the source may be down when its run is gone: 30 s of silence, a proven stop and a start, on a busy machine.
pub const CAP: Duration = Duration::from_secs(90);

/// Production with enough data that a copy takes a while over a slow line.
#[track_caller]
pub fn heavy(src: Host<'_>) {
    production(src);
    src.sql(
        "CREATE TABLE shop.heavy (id INT PRIMARY KEY, body VARBINARY(1024)) ENGINE=InnoDB;
         INSERT INTO shop.heavy SELECT a.n + 2000 * b.n, RANDOM_BYTES(1024) FROM shop.numbers a, shop.numbers b WHERE b.n < 40;",
    );
}

/// Until the run stands in its copy: the source is down and bytes arrive.
pub fn until_it_copies(src: Host<'_>, d1: Host<'_>) {
    eventually("the copy", Duration::from_secs(60), || {
        let arrived = d1.sh("du -sm /srv/data/.mysql.refreshd 2>/dev/null | cut -f1 || true");
        src.server_pid().is_empty() && arrived.parse::<u64>().is_ok_and(|mb| mb > 5)
    });
}

#[test]
fn a_cable_that_is_pulled() {
    let fleet = Fleet::up(&["src=mariadb", "d1=mariadb,xfs:1G", "ctl=plain"]);
    let (src, d1) = (fleet.host("src"), fleet.host("d1"));
    heavy(src);
    accounts::make(d1);
    let more = format!("{WHOLE}[daemon]\nhost_timeout = \"4s\"\n");
    let operator = Operator::sets_up(&fleet, ("src", "ssh"), &[("d1", "openssh")], &more);
    let (writer, onlooker) = (Writer::on(src), Onlooker::at(d1));
    for victim in ["src", "d1"] {
        fleet.hosts(&["net", "d1", "rate", "40mbit"]);
        std::thread::scope(|scope| {
            let run = scope.spawn(|| operator.refreshd("--now nightly"));
            until_it_copies(src, d1);
            fleet.hosts(&["net", victim, "cut"]);
            // nobody can reach the source, and it comes back all the same
            eventually("the source", CAP, || src.try_sql("", "SELECT 1").code == Some(0));
            let ran = run.join().unwrap();
            assert!(matches!(ran.code, Some(1 | 5)), "{victim}: {ran}");
            eprintln!("{victim}: {ran}");
        });
        fleet.hosts(&["net", victim, "heal"]);
        operator.refreshd("recover").expect(0);
        operator.refreshd("recover").expect(0);
    }
    let gap = writer.longest_gap();
    eprintln!("longest time without a commit: {gap:?}");
    assert!(gap < CAP, "the source was down for {gap:?}");
    onlooker.saw_old_only();
    // and nothing is in the way of the next
    fleet.hosts(&["net", "d1", "clear"]);
    let onlooker = Onlooker::at(d1);
    let before = writer.committed();
    operator.refreshd("--now nightly").expect(0);
    onlooker.saw_old_then_new();
    writer.check(src, &[d1], before);
}

#[test]
fn a_controller_that_dies() {
    let fleet = Fleet::up(&["src=mariadb", "d1=mariadb,xfs:1G", "ctl=plain"]);
    let (src, d1) = (fleet.host("src"), fleet.host("d1"));
    heavy(src);
    accounts::make(d1);
    let operator = Operator::sets_up(&fleet, ("src", "ssh"), &[("d1", "ssh")], WHOLE);
    let (writer, onlooker) = (Writer::on(src), Onlooker::at(d1));
    // power is cut at the controller; then the source's agent is killed as well, and only the guard is left
    for agent_too in [false, true] {
        fleet.hosts(&["net", "d1", "rate", "40mbit"]);
        std::thread::scope(|scope| {
            let run = scope.spawn(|| operator.refreshd("--now nightly"));
            until_it_copies(src, d1);
            if agent_too {
                src.sh("pkill -KILL -f 'mysql-refreshd agent'");
            }
            fleet.hosts(&["crash", "ctl"]);
            eventually("the source", CAP, || src.try_sql("", "SELECT 1").code == Some(0));
            run.join().unwrap();
        });
        fleet.hosts(&["start", "ctl"]);
        operator.refreshd("history").expect(0).says(&["interrupted"]);
        operator.refreshd("recover").expect(0);
        assert_eq!(src.sh("ls /run/systemd/system/*.d/mysql-refreshd.held 2>/dev/null || true"), "");
    }
    let gap = writer.longest_gap();
    eprintln!("longest time without a commit: {gap:?}");
    assert!(gap < CAP, "the source was down for {gap:?}");
    onlooker.saw_old_only();
    fleet.hosts(&["net", "d1", "clear"]);
    let (onlooker, before) = (Onlooker::at(d1), writer.committed());
    operator.refreshd("--now nightly").expect(0);
    onlooker.saw_old_then_new();
    writer.check(src, &[d1], before);
}
