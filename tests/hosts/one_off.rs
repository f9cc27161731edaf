//! The one-off form: no configuration, no agent installed; the operator's own login and general sudo, and the servers are found
//! by what systemd runs.

use crate::accounts;
use crate::dump::{self, EVENTS_DISABLED, FILES_REMADE, MEMORY_EMPTIED};
use crate::fleet::Fleet;
use crate::mariadb::production;
use crate::operator::{CHECKOUT, Operator};

#[test]
fn without_a_configuration() {
    let fleet = Fleet::up(&["src=mariadb", "d1=mariadb,xfs:1G", "ctl=plain"]);
    let (src, d1) = (fleet.host("src"), fleet.host("d1"));
    production(src);
    accounts::make(d1);
    let operator = Operator::at(&fleet);
    let program = format!("{CHECKOUT}/target/release/mysql-refreshd");
    let one_off = format!("{program} --now -s src -d d1 -u deploy");
    // wrong addresses and logins, each told apart
    operator.does(&format!("{program} --now -s src -d nowhere -u deploy")).expect(1).says(&["nowhere"]);
    operator.does(&format!("{program} --now -s src -d d1 -u stranger")).expect(1).says(&["stranger"]);
    let refused = operator
        .does(&one_off)
        .expect(4)
        .says(&["nobody on this host has consented", "consent grant --from src --datadir /srv/data/mysql"]);
    eprintln!("{refused}");
    // the program that was uploaded serves for the command that is shown
    operator
        .does(&format!(
            "scp -q {program} d1:\n\
             ssh d1 sudo install -o root -g root -m 0755 mysql-refreshd /usr/local/bin/\n\
             ssh d1 sudo /usr/local/bin/mysql-refreshd consent grant --from src --instance main --datadir /srv/data/mysql --expires 1d"
        ))
        .expect(0);
    operator.does(&format!("{one_off} --dry-run")).expect(0).says(&["mariadb.service"]);
    assert_eq!(d1.sql("SHOW DATABASES LIKE 'shop'"), "");
    let (expected, own_accounts) = (dump::content(src), accounts::rows(d1));
    operator.does(&one_off).expect(0);
    let meant = [MEMORY_EMPTIED, FILES_REMADE];
    expected.with(&[EVENTS_DISABLED]).with(&meant).check_same(&dump::content(d1).with(&meant));
    assert_eq!(accounts::rows(d1), own_accounts);
    // nothing but the program itself was put into the account
    assert_eq!(
        src.sh("cd /home/deploy; find . -newer .ssh/authorized_keys -type f | grep -v ssh/ | cut -d/ -f2-3"),
        ".cache/mysql-refreshd"
    );
    operator.does(&format!("{program} history")).expect(0).says(&["one-off", "done"]);
}
