//! The main job: production under load to two R&D servers, each on a host of its own, with what a real datadir holds; by an account
//! of its own on the controller, as a daemon does it.

use crate::dump::{self, EVENTS_DISABLED, FILES_REMADE, MEMORY_EMPTIED};
use crate::fleet::{Fleet, Host};
use crate::operator::Operator;
use crate::watch::{Onlooker, Writer};
use crate::{accounts, awkward, real_data};

/// Production's content: awkward objects, and an event that acts every second.
#[track_caller]
pub fn production(host: Host<'_>) {
    let ran = host.try_sql("", &awkward::sql(dump::is_mysql(host)));
    assert!(ran.code == Some(0), "{ran}");
    host.sql(
        "CREATE TABLE ledger.ticks (at DATETIME);
         CREATE EVENT ledger.tick ON SCHEDULE EVERY 1 SECOND DO INSERT INTO ledger.ticks VALUES (NOW());
         SET GLOBAL event_scheduler = ON;",
    );
}

/// An identity of its own: what a server answers about itself.
#[track_caller]
pub fn identity(host: Host<'_>) -> String {
    let uuid = if dump::is_mysql(host) { "@@server_uuid" } else { "'-'" };
    host.sql(&format!("SELECT @@hostname, @@server_id, @@port, @@datadir, @@socket, {uuid}"))
}

#[test]
fn production_under_load_to_two_servers() {
    let fleet = Fleet::up(&["src=mariadb", "d1=mariadb,xfs:2G", "d2=mariadb,btrfs:2G", "ctl=plain"]);
    let (src, destinations) = (fleet.host("src"), [fleet.host("d1"), fleet.host("d2")]);
    production(src);
    real_data::load(src);
    destinations.iter().for_each(|host| accounts::make(*host));
    let settings = "[environments.rnd.settings]\nbind_address = \"0.0.0.0\"\nmax_connections = 77\n\
        [environments.rnd.hosts.d1.settings]\nserver_id = 901\n[environments.rnd.hosts.d2.settings]\nserver_id = 902\n";
    let operator = Operator::sets_up(&fleet, ("src", "ssh"), &[("d1", "ssh"), ("d2", "openssh")], settings);
    operator.refreshd("doctor").expect(0);
    operator.refreshd("check").expect(0);
    let as_daemon = |arguments: &str| operator.does(&format!("sudo -u mysql-refreshd mysql-refreshd {arguments}"));
    let plan = as_daemon("plan nightly").expect(0);
    assert!(plan.stdout.contains("fleeting"), "MEMORY tables are named before they are emptied: {plan}");

    let expected = dump::content(src);
    let (own_accounts, own_identity): (Vec<_>, Vec<_>) =
        destinations.iter().map(|host| (accounts::rows(*host), identity(*host))).unzip();
    let writer = Writer::on(src);
    let onlookers = destinations.map(Onlooker::at);
    let before = writer.committed();
    let ran = as_daemon("--now nightly").expect(0);
    eprintln!("{ran}\nlongest time without a commit: {:?}", writer.longest_gap());
    onlookers.into_iter().for_each(Onlooker::saw_old_then_new);
    writer.check(src, &destinations, before);

    // the source is as it was, and so is each destination but for what is meant
    let meant = [FILES_REMADE, MEMORY_EMPTIED];
    expected.with(&meant).check_same(&dump::content(src).with(&meant));
    expected.each_matters(&[EVENTS_DISABLED, MEMORY_EMPTIED, FILES_REMADE]);
    let mut ticks = Vec::new();
    for (n, host) in destinations.into_iter().enumerate() {
        let found = dump::content(host);
        expected.with(&[EVENTS_DISABLED]).with(&meant).check_same(&found.with(&meant));
        assert_eq!(accounts::rows(host), own_accounts[n], "{}: accounts", host.name);
        accounts::login(host, "dev", "of research's own").expect(0);
        accounts::login(host, "app", "of-production").expect(1);
        let set =
            own_identity[n].split('\t').enumerate().map(|(at, text)| if at == 1 { ["901", "902"][n] } else { text });
        assert_eq!(identity(host), set.collect::<Vec<_>>().join("\t"));
        assert_eq!(
            (host.variable("max_connections").as_str(), host.variable("bind_address").as_str()),
            ("77", "0.0.0.0")
        );
        ticks.push(host.sql("SELECT COUNT(*) FROM ledger.ticks"));
    }
    // it goes on over a boot of every host: units enabled, nothing held down, nothing left over
    ["src", "d1", "d2"].iter().for_each(|host| drop(fleet.hosts(&["reboot", host])));
    for (n, host) in destinations.into_iter().enumerate() {
        assert_eq!(host.sql("SELECT COUNT(*) FROM ledger.ticks"), ticks[n], "an event has run on {}", host.name);
        assert_eq!(host.variable("max_connections"), "77");
        assert_eq!(
            host.sh(
                "systemctl --failed --no-legend; ls /run/systemd/system/*.d/mysql-refreshd.held 2>/dev/null || true"
            ),
            ""
        );
    }
    assert_eq!(
        src.sh("systemctl --failed --no-legend; ls /run/systemd/system/*.d/mysql-refreshd.held 2>/dev/null || true"),
        ""
    );
    // back to the old data and again to the new
    as_daemon("rollback rnd/d2").expect(0);
    assert_eq!(accounts::rows(fleet.host("d2")), own_accounts[1]);
    assert_eq!(fleet.host("d2").sql("SHOW DATABASES LIKE 'shop'"), "");
    fleet.host("d2").sql("SELECT id FROM mine.notes");
    // the next night, over what the first has left
    src.sql("DROP TABLE flights.flights; INSERT INTO shop.audit VALUES ('2026-01-01', 'second night')");
    let expected = dump::content(src);
    as_daemon("--now nightly").expect(0);
    for host in destinations {
        expected.with(&[EVENTS_DISABLED, FILES_REMADE]).check_same(&dump::content(host).with(&[FILES_REMADE]));
    }
    let history = as_daemon("history").expect(0);
    assert_eq!(history.stdout.matches("nightly").count(), 2, "{history}");
    // root is the service's account here, too: nothing on the controller becomes root's
    operator.refreshd("--now nightly").expect(0);
    let state = "/var/lib/mysql-refreshd/controller /var/log/mysql-refreshd";
    assert_eq!(operator.controller.sh(&format!("find {state} -user root")), "");
}
