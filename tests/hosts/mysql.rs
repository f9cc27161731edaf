//! MySQL to MySQL: what it has that MariaDB has not, on real packages.

use crate::dump::{self, EVENTS_DISABLED, MEMORY_EMPTIED};
use crate::fleet::Fleet;
use crate::mariadb::{identity, production};
use crate::operator::Operator;
use crate::watch::{Onlooker, Writer};
use crate::{accounts, real_data};

const OWN_WORD: &str = "of production's root";

#[test]
fn mysql_to_mysql() {
    let fleet = Fleet::up(&["src=mysql", "d1=mysql,xfs:3G", "d2=mysql,ext4:3G", "ctl=plain"]);
    let (src, destinations) = (fleet.host("src"), [fleet.host("d1"), fleet.host("d2")]);
    // GTIDs with a binary log; a replication channel with its password; settings that were persisted; another redo log's size
    src.write(
        "/etc/mysql/mysql.conf.d/70-own.cnf",
        "[mysqld]\nserver_id=11\ngtid_mode=ON\nenforce_gtid_consistency=ON\nskip_replica_start=ON\ninnodb_redo_log_capacity=64M\n",
    );
    src.sh("systemctl restart mysql");
    production(src);
    real_data::load(src);
    src.sql(
        "CHANGE REPLICATION SOURCE TO SOURCE_HOST='192.0.2.1', SOURCE_USER='repl', SOURCE_PASSWORD='channel-word', SOURCE_SSL=1;
         CHANGE REPLICATION SOURCE TO SOURCE_HOST='192.0.2.2', SOURCE_USER='repl', SOURCE_PASSWORD='channel-word', SOURCE_SSL=1 FOR CHANNEL 'second';
         CREATE SERVER far FOREIGN DATA WRAPPER mysql OPTIONS (HOST '192.0.2.3', USER 'u', PASSWORD 'server-word', DATABASE 'd');
         SET PERSIST max_user_connections = 55; SET PERSIST_ONLY back_log = 99;
         CREATE USER old_style@'%' IDENTIFIED WITH sha256_password BY 'x';",
    );
    for (host, id) in destinations.iter().zip(["21", "22"]) {
        accounts::make(*host);
        host.sql(&format!("SET PERSIST sort_buffer_size = 333824; SET PERSIST server_id = {id}"));
    }
    // production's root needs a password here, of the kind that is MySQL's default
    src.sql("ALTER USER root@localhost IDENTIFIED WITH caching_sha2_password BY 'of production''s root'");
    src.write("/root/.my.cnf", format!("[client]\nuser=root\npassword=\"{OWN_WORD}\"\n"));
    src.sh("chmod 600 /root/.my.cnf; install -d -m 700 /etc/mysql-refreshd; umask 077; cat >/etc/mysql-refreshd/main.password <<<\"of production's root\"");

    let operator = Operator::at(&fleet);
    operator.install(&["src", "d1", "d2"]);
    operator.source("src", "--password-file /etc/mysql-refreshd/main.password");
    operator.destination("d1", "");
    operator.destination("d2", "");
    let settings = "[environments.rnd.settings]\nmax_connections = 66\nbind_address = \"0.0.0.0\"\n\
        [environments.rnd.hosts.d2.settings]\nsort_buffer_size = \"512K\"\n";
    operator.configure(("src", "ssh"), &[("d1", "ssh"), ("d2", "openssh")], settings);

    // what is persisted outranks what would be pushed
    operator.refreshd("check").expect(4).says(&["rnd/d2", "sort_buffer_size", "RESET PERSIST sort_buffer_size"]);
    destinations[1].sql("RESET PERSIST sort_buffer_size");
    operator.refreshd("check").expect(0);
    operator.refreshd("plan nightly").expect(0);

    let expected = dump::content(src);
    let (own_accounts, own_identity): (Vec<_>, Vec<_>) =
        destinations.iter().map(|host| (accounts::rows(*host), identity(*host))).unzip();
    let kept = |host: &crate::fleet::Host<'_>| {
        host.sh("cd $(mysql -N -e 'SELECT @@datadir'); cat auto.cnf; sha256sum mysqld-auto.cnf *.pem; stat -c %i .")
    };
    let own_files: Vec<String> = destinations.iter().map(kept).collect();
    let gtids = src.variable("gtid_executed");
    assert!(gtids.contains(':'), "{gtids}");
    let writer = Writer::on(src);
    let onlookers = destinations.map(Onlooker::at);
    let before = writer.committed();
    let ran = operator.refreshd("--now nightly").expect(0);
    eprintln!("{ran}\nlongest time without a commit: {:?}", writer.longest_gap());
    onlookers.into_iter().for_each(Onlooker::saw_old_then_new);
    writer.check(src, &destinations, before);

    let meant = [MEMORY_EMPTIED];
    for (n, host) in destinations.iter().enumerate() {
        expected.with(&[EVENTS_DISABLED]).with(&meant).check_same(&dump::content(*host).with(&meant));
        // accounts: exact, whatever their plugin; over TCP with caching_sha2_password, and over the socket
        assert_eq!(accounts::rows(*host), own_accounts[n], "{}", host.name);
        accounts::login(*host, "dev", "of research's own").expect(0);
        accounts::login(*host, "app", "of-production").expect(1);
        assert_eq!(host.sql("SELECT CURRENT_USER()"), "root@localhost");
        // auto.cnf, mysqld-auto.cnf and keys are the destination's own; the datadir is another one
        let (own, now) = (own_files[n].rsplit_once('\n').unwrap(), kept(host));
        let now = now.rsplit_once('\n').unwrap();
        assert_eq!(now.0, own.0, "{}", host.name);
        assert_ne!(now.1, own.1, "{}: it is the old folder", host.name);
        assert_eq!(identity(*host), own_identity[n]);
        assert_eq!(host.variable("sort_buffer_size"), if n == 0 { "333824" } else { "524288" });
        assert_eq!(
            (host.variable("max_connections").as_str(), host.variable("max_user_connections").as_str()),
            ("66", "0")
        );
        // nothing that leads to production: channels, servers, GTIDs, the binary log; nor the passwords in what is shown of them
        assert_eq!(
            host.sql("SHOW REPLICA STATUS; SELECT * FROM mysql.slave_master_info; SELECT * FROM mysql.servers"),
            ""
        );
        assert_eq!(
            host.sql("SELECT COUNT(*) FROM performance_schema.replication_connection_configuration WHERE host <> ''"),
            "0"
        );
        // no GTID but the server's own, of the one statement that it writes by itself: a MEMORY table that is empty after a start
        let (uuid, executed) = (host.variable("server_uuid"), host.variable("gtid_executed"));
        assert!(executed.is_empty() || executed == format!("{uuid}:1"), "{executed}");
        assert_eq!(host.variable("gtid_purged"), "");
        let written = host.sh("mysqlbinlog $(mysql -N -e 'SELECT @@log_bin_basename').0*");
        let statements =
            written.matches("SET @@SESSION.GTID_NEXT= '").count() - written.matches("GTID_NEXT= 'AUTOMATIC'").count();
        assert_eq!(statements, written.matches("implicitly emptying in-memory table").count(), "{written}");
        assert_ne!(host.variable("server_uuid"), src.variable("server_uuid"));
        // the X plugin serves again, on its usual socket and port
        assert_eq!(
            host.sql("SELECT plugin_status FROM information_schema.plugins WHERE plugin_name = 'mysqlx'"),
            "ACTIVE"
        );
        assert_eq!(host.sh("ss -ltn | grep -c ':33060 '; test -S /run/mysqld/mysqlx.sock"), "1");
        // the redo folder is whole and of this server's own size; nothing of the source's temporary or doublewrite files
        let files = host.sh("cd $(mysql -N -e 'SELECT @@datadir'); ls -d '#innodb_redo' inner_space.ibd extra_undo.ibu ibdata1 mysql.ibd");
        assert_eq!(files.lines().count(), 5, "{files}");
        assert_eq!(host.variable("innodb_redo_log_capacity"), "104857600");
        assert_eq!(
            host.sql("SELECT COUNT(*) FROM information_schema.innodb_tablespaces WHERE name = 'extra_undo'"),
            "1"
        );
        let log = host.sh("cat /var/log/mysql/error.log | grep -c 'Starting XA crash recovery' || true");
        assert_eq!(log, "0", "{}: a crash recovery has run", host.name);
    }
    assert_eq!(src.sql("SELECT COUNT(*) FROM mysql.slave_master_info"), "2", "the source's channels are not touched");
    assert!(src.variable("gtid_executed").contains(gtids.split(':').next().unwrap()));
    // over a boot, and back
    fleet.hosts(&["reboot", "d1"]);
    assert_eq!(accounts::rows(destinations[0]), own_accounts[0]);
    assert_eq!(identity(destinations[0]), own_identity[0]);
    operator.refreshd("rollback rnd/d2").expect(0);
    destinations[1].sql("SELECT id FROM mine.notes");
    assert_eq!(accounts::rows(destinations[1]), own_accounts[1]);
    // the next night, over what the first has left
    src.sql("DELETE FROM flights.flights WHERE month < 10");
    let expected = dump::content(src);
    operator.refreshd("--now nightly").expect(0);
    for host in destinations {
        expected.with(&[EVENTS_DISABLED]).check_same(&dump::content(host));
    }
    // no password of anybody's in what the program has left on the hosts
    for host in ["src", "d1", "d2", "ctl"] {
        let found = fleet.host(host).sh(
            "grep -rlE \"channel-word|server-word|of research's own|of production's root\" /var/lib/mysql-refreshd /var/log/mysql-refreshd \
             /var/log/journal /var/log/auth.log /etc/mysql-refreshd/config.toml /etc/mysql-refreshd/host.toml 2>/dev/null || true",
        );
        assert_eq!(found, "", "{host}");
    }
}
