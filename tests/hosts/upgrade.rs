//! An older MariaDB to a newer one: the copy is brought up to the destination's series while nobody can reach it.

use crate::dump::{self, EVENTS_DISABLED, FILES_REMADE, MEMORY_EMPTIED, WORD_ORDER};
use crate::fleet::Fleet;
use crate::mariadb::{identity, production};
use crate::operator::Operator;
use crate::watch::{Onlooker, Writer};
use crate::{accounts, real_data};

#[test]
fn mariadb_10_11_to_11_8() {
    let fleet = Fleet::up(&["src=mariadb", "d1=mariadb11,xfs:2G", "ctl=plain"]);
    let (src, d1) = (fleet.host("src"), fleet.host("d1"));
    production(src);
    real_data::load(src);
    accounts::make(d1);
    let operator = Operator::sets_up(&fleet, ("src", "openssh"), &[("d1", "ssh")], "");
    operator.refreshd("plan nightly").expect(0).says(&["newer than the source's"]);
    let expected = dump::content(src);
    let (own_accounts, own_identity) = (accounts::rows(d1), identity(d1));
    let (writer, onlooker) = (Writer::on(src), Onlooker::at(d1));
    let before = writer.committed();
    let ran = operator.refreshd("--now nightly").expect(0).says(&["brought up to this server's series"]);
    eprintln!("{ran}\nlongest time without a commit: {:?}", writer.longest_gap());
    onlooker.saw_old_then_new();
    writer.check(src, &[d1], before);
    let meant = [MEMORY_EMPTIED, FILES_REMADE, WORD_ORDER];
    expected.with(&[EVENTS_DISABLED]).with(&meant).check_same(&dump::content(d1).with(&meant));
    assert_eq!(accounts::rows(d1), own_accounts);
    accounts::login(d1, "dev", "of research's own").expect(0);
    accounts::login(d1, "app", "of-production").expect(1);
    assert_eq!(identity(d1), own_identity);
    // whole by the vendor's own judgement
    d1.sh("mariadb-upgrade --check-if-upgrade-is-needed && exit 1 || test $? = 1");
    let checked = |host: crate::fleet::Host<'_>| {
        let lines = host
            .sh("mariadb-check --all-databases --extended --default-character-set=utf8mb4 | grep -v ' OK$' || true");
        let names = lines.lines().filter(|line| !line.contains(" : "));
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    // what cannot be checked on the source, as a view whose definer is gone, cannot be here; and nothing else
    assert_eq!(checked(d1), checked(src));
    fleet.hosts(&["reboot", "d1"]);
    assert_eq!(accounts::rows(d1), own_accounts);
    // the way back is to the old series' data of the destination's own: the same server, another datadir
    operator.refreshd("rollback rnd/d1").expect(0);
    d1.sql("SELECT id FROM mine.notes");
}
