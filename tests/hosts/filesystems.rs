//! Where datadirs lie: volumes of several kinds, and datadirs that are volumes themselves.

use crate::accounts;
use crate::dump::{self, EVENTS_DISABLED, FILES_REMADE, LOST_AND_FOUND, MEMORY_EMPTIED};
use crate::fleet::Fleet;
use crate::mariadb::production;
use crate::operator::Operator;

#[test]
fn datadirs_that_are_mount_points() {
    let fleet = Fleet::up(&["src=mariadb,ext4:1G,mount", "d1=mariadb,ext4:1G", "d2=mariadb,xfs:1G,mount", "ctl=plain"]);
    let (src, d1, d2) = (fleet.host("src"), fleet.host("d1"), fleet.host("d2"));
    assert_eq!(
        src.sh("findmnt -n -o FSTYPE /var/lib/mysql; ls -d /var/lib/mysql/lost+found"),
        "ext4\n/var/lib/mysql/lost+found"
    );
    production(src);
    [d1, d2].into_iter().for_each(accounts::make);
    let operator = Operator::sets_up(&fleet, ("src", "ssh"), &[("d1", "ssh"), ("d2", "ssh")], "");
    // as a destination it could not be exchanged by rename: said before anything is touched
    let lives = || [src.server_life(), d1.server_life(), d2.server_life()];
    let before = lives();
    operator.refreshd("check").expect(4).says(&["rnd/d2", "mount point"]);
    operator.refreshd("--now nightly").expect(4).says(&["rnd/d2", "mount point"]);
    assert_eq!(lives(), before, "a server was stopped");
    // as a source it is as good as any
    operator.configure(("src", "ssh"), &[("d1", "ssh")], "");
    let expected = dump::content(src);
    operator.refreshd("--now nightly").expect(0);
    let meant = [MEMORY_EMPTIED, FILES_REMADE, LOST_AND_FOUND];
    expected.with(&[EVENTS_DISABLED]).with(&meant).check_same(&dump::content(d1).with(&meant));
    assert_eq!(d1.sh("ls -A /srv/data/mysql | grep -c lost+found || true"), "0");
    d2.sql("SELECT id FROM mine.notes");
    assert_eq!(d2.server_life(), before[2]);
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
