//! Where datadirs lie: volumes of several kinds, and datadirs that are volumes themselves.

use crate::accounts;
use crate::dump::{self, EVENTS_DISABLED, FILES_REMADE, LOST_AND_FOUND, MEMORY_EMPTIED};
use crate::fleet::{Fleet, Host};
use crate::mariadb::production;
use crate::operator::Operator;
use crate::watch::Writer;

/// The data of production is on a mount point, the destinations' are on those of other filesystems: refreshed, rolled back, refreshed.
#[test]
fn datadirs_that_are_mount_points() {
    let fleet = Fleet::up(&[
        "src=mariadb,ext4:1G,mount",
        "d1=mariadb,ext4:1G,mount",
        "d2=mariadb,xfs:1G,mount",
        "d3=mariadb,btrfs:1G,mount",
        "ctl=plain",
    ]);
    let src = fleet.host("src");
    assert_eq!(
        src.sh("findmnt -n -o FSTYPE /var/lib/mysql; ls -d /var/lib/mysql/lost+found"),
        "ext4\n/var/lib/mysql/lost+found"
    );
    production(src);
    let names = ["d1", "d2", "d3"];
    names.iter().for_each(|name| accounts::make(fleet.host(name)));
    let own = names.map(|name| accounts::rows(fleet.host(name)));
    let operator = Operator::sets_up(&fleet, ("src", "ssh"), &names.map(|name| (name, "ssh")), "");
    operator.refreshd("check").expect(0);
    let expected = dump::content(src);
    let meant = [MEMORY_EMPTIED, FILES_REMADE, LOST_AND_FOUND];
    let whole = |host: Host<'_>| {
        expected.with(&[EVENTS_DISABLED]).with(&meant).check_same(&dump::content(host).with(&meant));
    };
    operator.refreshd("--now nightly").expect(0);
    for (name, own) in names.into_iter().zip(own) {
        let host = fleet.host(name);
        whole(host);
        assert_eq!(accounts::rows(host), own, "{name}: accounts");
        // root's, and nobody can put another one in its place: the datadir belongs to the server's account
        assert_eq!(host.sh("stat -c '%U %a' /var/lib/mysql/.refreshd"), "root 711");
        host.try_sh("su -s /bin/sh mysql -c 'mv /var/lib/mysql/.refreshd /var/lib/mysql/.mine'").expect(1);
        assert_eq!(host.sql("SHOW DATABASES LIKE '#mysql50#%'"), "");
    }
    operator.refreshd("rollback rnd/d2").expect(0);
    fleet.host("d2").sql("SELECT id FROM mine.notes");
    operator.refreshd("--now nightly").expect(0);
    names.into_iter().for_each(|name| whole(fleet.host(name)));

    // ext4 has no clones: files of the generation before the last are taken over, whatever its owner has made of it
    let d1 = fleet.host("d1");
    let previous = d1.sh("ls -d /var/lib/mysql/.refreshd/*/previous");
    let inodes =
        |at: &str| d1.sh(&format!("cd {at} && find . -name '*.ibd' -path './ledger/*' -printf '%p %i\\n' | sort"));
    let taken = inodes(&previous);
    d1.sh(&format!(
        "cd {previous} && chmod -R a+rwX . && ln -s /etc/passwd ledger/evil.ibd && mkdir other && mv mysql/proc.frm other && \
         ln -s /etc/passwd mysql/proc.frm && chown -Rh mysql: . && sha256sum /etc/passwd >/tmp/before"
    ));
    operator.refreshd("--now nightly").expect(0);
    names.into_iter().for_each(|name| whole(fleet.host(name)));
    assert!(!taken.is_empty());
    assert_eq!(inodes("/var/lib/mysql"), taken, "they were written anew");
    d1.sh("sha256sum --check --quiet /tmp/before; test ! -e /var/lib/mysql/ledger/evil.ibd");
    let open = "find /var/lib/mysql -mindepth 2 -path '*/.refreshd*' -prune -o -path '*/lost+found*' -prune -o \\( -not -user mysql -o -perm /o+rwx \\) -print";
    assert_eq!(d1.sh(open), "", "somebody else's, or open to everybody");
}

/// MySQL's, with the files that only MySQL has.
#[test]
fn datadirs_of_mysql_that_are_mount_points() {
    let fleet = Fleet::up(&["src=mysql,btrfs:2G", "d1=mysql,xfs:2G,mount", "ctl=plain"]);
    let (src, d1) = (fleet.host("src"), fleet.host("d1"));
    src.sql("CREATE DATABASE shop; CREATE TABLE shop.t (n INT PRIMARY KEY); INSERT INTO shop.t VALUES (1)");
    d1.sql("CREATE DATABASE mine; CREATE TABLE mine.t (n INT PRIMARY KEY); INSERT INTO mine.t VALUES (2)");
    let operator = Operator::sets_up(&fleet, ("src", "ssh"), &[("d1", "ssh")], "");
    operator.refreshd("--now nightly").expect(0);
    assert_eq!(d1.sql("SELECT n FROM shop.t"), "1");
    operator.refreshd("rollback rnd/d1").expect(0);
    assert_eq!(d1.sql("SELECT n FROM mine.t"), "2");
    // and of the running server: tables of both kinds, while commits go on
    src.sql("CREATE DATABASE ledger; CREATE TABLE ledger.commits (n INT PRIMARY KEY)");
    src.sql("CREATE TABLE shop.m (n INT PRIMARY KEY) ENGINE=MyISAM; INSERT INTO shop.m VALUES (5), (6)");
    let snapshot = "--now nightly --set refreshes.nightly.method='\"snapshot\"'";
    // a statement that runs for long is not waited behind: who comes after it would wait for its end, readers too
    std::thread::scope(|scope| {
        scope.spawn(|| src.sql("SELECT SLEEP(25) FROM shop.t"));
        std::thread::sleep(std::time::Duration::from_secs(2));
        operator
            .refreshd(&format!("{snapshot} --set refreshes.nightly.drain_timeout='\"4s\"'"))
            .expect(1)
            .says(&["could not be held"]);
        src.sh("timeout 5 mysql -e 'SELECT COUNT(*) FROM shop.t; INSERT INTO shop.m VALUES (7); DELETE FROM shop.m WHERE n = 7'");
    });
    let (life, writer) = (src.server_life(), Writer::on(src));
    let before = writer.committed();
    operator.refreshd(snapshot).expect(0).says(&["btrfs snapshot", "its writes were held for"]);
    assert_eq!(src.server_life(), life, "it was stopped");
    writer.check(src, &[d1], before);
    assert_eq!(d1.sql("SELECT SUM(n) FROM shop.m; SELECT COUNT(*) FROM shop.t"), "11\n1");
    assert!(d1.sql("CHECK TABLE shop.m, shop.t, ledger.commits").lines().all(|line| line.ends_with("OK")));
    operator.refreshd("--now nightly").expect(0);
    // no server starts on what lies there between two moves
    let unit = "systemctl start mysql";
    d1.sh("systemctl stop mysql; cp -a /var/lib/mysql /var/lib/whole");
    for without in ["mysql.ibd", "mysql", "ibdata1", "mysql.ibd mysql", "mysql.ibd mysql ibdata1", "mysql ibdata1"] {
        d1.sh(&format!("cd /var/lib/mysql && mkdir /var/lib/aside && mv {without} /var/lib/aside/"));
        let answers = "mysql -e 'SELECT 1' 2>/dev/null";
        let started = d1.try_sh(&format!("timeout 60 {unit}; {answers}"));
        assert_ne!(started.code, Some(0), "serves without {without}");
        d1.sh("systemctl stop mysql; systemctl reset-failed mysql || true; cd /var/lib/mysql; ls -A | grep -vx .refreshd | xargs rm -rf; cd /var/lib/whole; ls -A | grep -vx .refreshd | xargs -I{} cp -a {} /var/lib/mysql/; rm -rf /var/lib/aside");
    }
    d1.sh(unit);
    assert_eq!(d1.sql("SELECT n FROM shop.t"), "1");
}

#[test]
fn a_destination_without_room() {
    let fleet = Fleet::up(&["src=mariadb", "d1=mariadb,ext4:600M", "ctl=plain"]);
    let (src, d1) = (fleet.host("src"), fleet.host("d1"));
    production(src);
    accounts::make(d1);
    let operator = Operator::sets_up(&fleet, ("src", "ssh"), &[("d1", "ssh")], "");
    fleet.hosts(&["disk", "d1", "fill", "60"]);
    let before = [src.server_life(), d1.server_life()];
    operator.refreshd("--now nightly").expect(4).says(&["rnd/d1", "space"]);
    assert_eq!([src.server_life(), d1.server_life()], before);
    fleet.hosts(&["disk", "d1", "unfill"]);
    operator.refreshd("--now nightly").expect(0);
    assert_eq!(d1.sql("SELECT COUNT(*) FROM shop.customers"), src.sql("SELECT COUNT(*) FROM shop.customers"));
}
