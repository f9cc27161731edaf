//! The program as a service of systemd on a controller: units, rights, schedule, timer, reload; and what becomes of a run when the service
//! is stopped, killed or its machine loses power.

use std::time::Duration;

use crate::accounts;
use crate::connections::{CAP, heavy, until_it_copies};
use crate::fleet::{Fleet, Ran, eventually};
use crate::mariadb::production;
use crate::operator::{Operator, WHOLE};
use crate::watch::{Onlooker, Writer};

/// What the history says of the runs of a refresh, newest first.
fn endings(operator: &Operator<'_>, refresh: &str) -> Vec<String> {
    let told = operator.refreshd(&format!("history {refresh} --json")).expect(0);
    let rows: serde_json::Value = serde_json::from_str(&told.stdout).unwrap();
    let ending = |row: &serde_json::Value| row["summary"]["ending"].as_str().unwrap_or("none").to_owned();
    rows.as_array().unwrap().iter().map(ending).collect()
}

fn status(operator: &Operator<'_>) -> serde_json::Value {
    let told = operator.refreshd("status --json");
    serde_json::from_str(&told.stdout).unwrap_or(serde_json::Value::Null)
}

/// A call by an account of the controller.
fn by(operator: &Operator<'_>, who: &str, arguments: &str) -> Ran {
    operator.does(&format!("sudo -u {who} mysql-refreshd {arguments}"))
}

#[test]
fn a_service_with_its_schedule_its_rights_and_its_timer() {
    let fleet = Fleet::up(&["src=mariadb", "d1=mariadb", "ctl=plain"]);
    let (src, d1) = (fleet.host("src"), fleet.host("d1"));
    production(src);
    accounts::make(d1);
    let second = "[refreshes.second]\nsource = \"prod\"\ndestinations = [\"rnd\"]\n";
    let operator = Operator::sets_up(&fleet, ("src", "ssh"), &[("d1", "openssh")], second);
    let ctl = operator.controller;

    // what systemd itself thinks of the units
    for (host, units) in [
        (ctl, "mysql-refreshd.service mysql-refreshd@nightly.service mysql-refreshd@nightly.timer"),
        (src, "mysql-refreshd-repair.service"),
    ] {
        let told = host.try_sh(&format!("cd /etc/systemd/system && systemd-analyze verify --man=no {units}")).expect(0);
        assert_eq!((told.stdout.as_str(), told.stderr.as_str()), ("", ""), "{}", host.name);
    }
    for unit in ["mysql-refreshd.service", "mysql-refreshd@nightly.service"] {
        let told = ctl.sh(&format!("systemd-analyze security --no-pager {unit} | tail -1"));
        let exposure: f64 = told.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
        assert!(exposure <= 3.0, "{unit}: {told}");
    }
    assert!(ctl.sh("zcat -f /usr/local/share/man/man1/mysql-refreshd.1").contains("mysql\\-refreshd"));
    ctl.sh("bash -c '. /usr/local/share/bash-completion/completions/mysql-refreshd; complete -p mysql-refreshd'");

    // a schedule that comes round in a moment, in the zone of the refresh
    let schedule = |seconds: u32| {
        let at = ctl.sh(&format!("date -u -d '+{seconds} seconds' +'%-S %-M %-H %-d %-m'"));
        operator.configure(("src", "ssh"), &[("d1", "openssh")], &format!("schedule = \"{at} *\"\n{second}"));
    };
    schedule(12);
    operator.does("sudo systemctl enable --now -q mysql-refreshd").expect(0);
    assert_eq!(ctl.sh("systemctl is-active mysql-refreshd"), "active");
    assert!(ctl.sh("systemctl show -P StatusText mysql-refreshd").starts_with("idle; nightly at "));
    let onlooker = Onlooker::at(d1);
    eventually("the schedule fires and the run is done", Duration::from_secs(120), || {
        endings(&operator, "nightly") == ["done"]
    });
    onlooker.saw_old_then_new();
    let fields = ctl.sh("journalctl -u mysql-refreshd -o json --no-pager | grep '\"MESSAGE\":\"run finished\"'");
    let entry: serde_json::Value = serde_json::from_str(fields.lines().next().unwrap()).unwrap();
    assert_eq!((entry["F_REFRESH"].as_str(), entry["F_ENDING"].as_str()), (Some("nightly"), Some("done")), "{entry}");
    let old = status(&operator)["refreshes"][0]["destinations"][0]["age_s"].as_u64().unwrap();
    assert!(old < 120);

    // who may ask
    operator.does("sudo useradd -G mysql-refreshd alice; sudo useradd bob").expect(0);
    by(&operator, "bob", "--now nightly").expect(4).says(&["you may not use the daemon's socket", "mysql-refreshd"]);
    by(&operator, "bob", "status --nagios")
        .expect(3)
        .says(&["REFRESHD UNKNOWN", "you may not use the daemon's socket"]);
    by(&operator, "alice", "--now nightly").expect(0).says(&["nightly: done in"]);
    let why = ctl.sh("journalctl -u mysql-refreshd -o cat --no-pager | grep -c 'asked for' || true");
    assert_ne!(why, "0");
    by(&operator, "alice", "pause nightly").expect(0);
    by(&operator, "alice", "status").expect(0).says(&["paused by alice (uid "]);
    by(&operator, "alice", "resume nightly").expect(0);
    by(&operator, "alice", "history").expect(0).says(&["nightly"]);

    // two refreshes of one destination wait for each other
    std::thread::scope(|scope| {
        let one = scope.spawn(|| operator.refreshd("--now nightly"));
        eventually("the first runs", Duration::from_secs(30), || status(&operator)["running"][0]["step"].is_string());
        let other = scope.spawn(|| by(&operator, "alice", "--now second"));
        eventually("the other waits", Duration::from_secs(30), || {
            let now = status(&operator);
            now["queue"][0]["refresh"] == "second" || now["running"][0]["refresh"] == "second"
        });
        one.join().unwrap().expect(0);
        other.join().unwrap().expect(0).says(&["waiting for nightly, which has prod/src, rnd/d1"]);
    });

    // a configuration with an error: the reload fails and the daemon stays as it is
    ctl.sh(
        "cp /etc/mysql-refreshd/config.toml /root/good; echo 'max_outge = \"5m\"' >>/etc/mysql-refreshd/config.toml",
    );
    let pid = ctl.sh("systemctl show -P MainPID mysql-refreshd");
    operator.does("sudo systemctl reload mysql-refreshd").expect(1);
    assert!(ctl.sh("journalctl -u mysql-refreshd -o cat --no-pager | tail -20").contains("max_outge"));
    ctl.sh("cp /root/good /etc/mysql-refreshd/config.toml");
    operator.does("sudo systemctl reload mysql-refreshd").expect(0);
    assert_eq!(
        (ctl.sh("systemctl show -P MainPID mysql-refreshd"), ctl.sh("systemctl is-active mysql-refreshd")),
        (pid, "active".into())
    );

    // the instance of the timer: through the daemon, and without one
    let runs = endings(&operator, "nightly").len();
    operator.does("sudo systemctl start mysql-refreshd@nightly.service").expect(0);
    assert_eq!(endings(&operator, "nightly").len(), runs + 1);
    assert!(ctl.sh("journalctl -u mysql-refreshd -o json --no-pager").contains("asked for by mysql-refreshd"));
    operator.does("sudo systemctl disable --now -q mysql-refreshd").expect(0);
    // once a minute here: a timer's moment cannot be named before it is known
    ctl.sh("mkdir -p /etc/systemd/system/mysql-refreshd@nightly.timer.d; printf '[Timer]\\nOnCalendar=\\nOnCalendar=*:*:0/20\\n' \
        >/etc/systemd/system/mysql-refreshd@nightly.timer.d/often.conf; systemctl daemon-reload; systemctl enable --now -q mysql-refreshd@nightly.timer");
    eventually("the timer's run is done", Duration::from_secs(90), || endings(&operator, "nightly").len() > runs + 1);
    operator.does("sudo systemctl disable --now -q mysql-refreshd@nightly.timer").expect(0);
    eventually("its service ends", Duration::from_secs(60), || {
        ctl.sh("systemctl is-active mysql-refreshd@nightly.service || true") != "activating"
    });
    assert!(endings(&operator, "nightly").iter().all(|ending| ending == "done"), "{:?}", endings(&operator, "nightly"));
    assert_eq!(ctl.sh("find /var/lib/mysql-refreshd/controller /var/log/mysql-refreshd /run/mysql-refreshd -user root 2>/dev/null || true"), "");
    assert_eq!(ctl.sh("journalctl -o cat --no-pager | grep -c 'SECCOMP\\|audit.*mysql-refreshd' || true"), "0");

    // and away again: what an operator has written stays
    operator.does("sudo utils/install.sh --uninstall").expect(0);
    assert_eq!(
        ctl.sh(
            "ls /usr/local/bin/mysql-refreshd /etc/systemd/system/mysql-refreshd*.{service,timer} 2>/dev/null || true"
        ),
        ""
    );
    ctl.sh("test -e /etc/mysql-refreshd/config.toml && test -e /var/lib/mysql-refreshd/controller/history.db");
}

#[test]
fn a_service_that_is_stopped_killed_or_loses_power() {
    let fleet = Fleet::up(&["src=mariadb", "d1=mariadb,xfs:1G", "ctl=plain"]);
    let (src, d1) = (fleet.host("src"), fleet.host("d1"));
    heavy(src);
    accounts::make(d1);
    let operator = Operator::sets_up(&fleet, ("src", "openssh"), &[("d1", "ssh")], WHOLE);
    let ctl = operator.controller;
    operator.does("sudo systemctl enable --now -q mysql-refreshd").expect(0);
    let (writer, onlooker) = (Writer::on(src), Onlooker::at(d1));
    for how in ["stop", "kill", "power"] {
        fleet.hosts(&["net", "d1", "rate", "40mbit"]);
        std::thread::scope(|scope| {
            let run = scope.spawn(|| operator.refreshd("--now nightly"));
            until_it_copies(src, d1);
            let inhibitors = ctl.sh("COLUMNS=300 systemd-inhibit --list --no-pager");
            assert!(inhibitors.contains("the source prod/src is down"), "{how}: {inhibitors}");
            match how {
                "stop" => drop(ctl.sh("systemctl stop mysql-refreshd")),
                "kill" => drop(ctl.sh("systemctl kill --kill-whom=main -s KILL mysql-refreshd")),
                _ => drop(fleet.hosts(&["crash", "ctl"])),
            }
            eventually("the source", CAP, || src.try_sql("", "SELECT 1").code == Some(0));
            let ran = run.join().unwrap();
            eprintln!("{how}: {ran}");
            assert!(how != "stop" || ran.code == Some(130), "{how}: {ran}");
        });
        fleet.hosts(&["net", "d1", "clear"]);
        match how {
            "stop" => {
                // what was under way is put back when the stop is over
                assert_eq!(ctl.sh("systemctl show -P Result mysql-refreshd"), "success");
                assert_eq!(endings(&operator, "nightly")[0], "cancelled");
                ctl.sh("systemctl start mysql-refreshd");
            }
            "kill" => eventually("systemd starts it again", Duration::from_secs(30), || {
                ctl.sh("systemctl is-active mysql-refreshd || true") == "active"
            }),
            _ => drop(fleet.hosts(&["start", "ctl"])),
        }
        eventually("everything is put back", Duration::from_secs(120), || {
            let now = status(&operator);
            now["daemon"]["recovering"] == false && now["alarms"].as_array().is_some_and(Vec::is_empty)
        });
        assert_eq!(src.sh("ls /run/systemd/system/*.d/mysql-refreshd.held 2>/dev/null || true"), "", "{how}");
        assert!(!ctl.sh("systemd-inhibit --list --no-pager").contains("mysql-refreshd"), "{how}");
    }
    let gap = writer.longest_gap();
    eprintln!("longest time without a commit: {gap:?}");
    assert!(gap < CAP, "the source was down for {gap:?}");
    onlooker.saw_old_only();
    // a source that loses power in the middle of a run, with its guard: it comes up with its host, and the run knows
    fleet.hosts(&["net", "d1", "rate", "40mbit"]);
    drop(writer);
    std::thread::scope(|scope| {
        let run = scope.spawn(|| operator.refreshd("--now nightly"));
        until_it_copies(src, d1);
        fleet.hosts(&["crash", "src"]);
        fleet.hosts(&["start", "src"]);
        eventually("the source", CAP, || src.try_sql("", "SELECT 1").code == Some(0));
        let repair = || src.sh("systemctl is-active mysql-refreshd-repair || true");
        eventually("the repair at boot is over", Duration::from_secs(60), || repair() != "activating");
        assert_eq!(repair(), "inactive");
        let ran = run.join().unwrap();
        assert_ne!(ran.code, Some(0), "{ran}");
    });
    fleet.hosts(&["net", "d1", "clear"]);
    eventually("everything is put back", Duration::from_secs(180), || {
        let now = status(&operator);
        now["daemon"]["recovering"] == false
            && now["alarms"].as_array().is_some_and(Vec::is_empty)
            && now["running"].as_array().is_some_and(Vec::is_empty)
    });
    // and nothing is in the way of the next
    src.sql("DELETE FROM ledger.commits");
    let (writer, onlooker) = (Writer::on(src), Onlooker::at(d1));
    let before = writer.committed();
    operator.refreshd("--now nightly").expect(0);
    onlooker.saw_old_then_new();
    writer.check(src, &[d1], before);
}
