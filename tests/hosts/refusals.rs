//! Pairs between which no copy can go: refused before anything is touched, in words that say why.

use crate::fleet::Fleet;
use crate::operator::Operator;

#[test]
fn pairs_that_cannot_be() {
    let fleet = Fleet::up(&["m10=mariadb", "m11=mariadb11", "my=mysql", "ctl=plain"]);
    let hosts = ["m10", "m11", "my"];
    let operator = Operator::at(&fleet);
    operator.install(&hosts);
    for host in hosts {
        operator
            .does(&format!(
                "sudo utils/copy-all-keys.sh --prepare --yes --role both {host}
                 ssh {host} sudo /usr/local/bin/mysql-refreshd host init --role source --role destination
                 ssh {host} sudo /usr/local/bin/mysql-refreshd consent grant --from prod --expires 90d"
            ))
            .expect(0);
    }
    let look = || -> Vec<String> {
        let one = |host: &str| {
            let host = fleet.host(host);
            let files = host.sh("find /var/lib/mysql -maxdepth 2 -not -name '*.log' -printf '%p %i\\n' | sort; ls -A /var/lib; ls -R /etc/mysql");
            format!("{} {files}", host.server_life())
        };
        hosts.iter().map(|host| one(host)).collect()
    };
    let before = look();
    for (from, to, transport, why) in [
        ("m11", "m10", "ssh", &["11.8", "10.11", "older"] as &[&str]),
        ("m10", "my", "ssh", &["MariaDB", "MySQL"]),
        ("my", "m10", "openssh", &["MySQL", "MariaDB"]),
        ("my", "m11", "ssh", &["MySQL", "MariaDB"]),
    ] {
        operator.configure((from, transport), &[(to, transport)], "");
        for command in ["check", "plan nightly", "--now nightly"] {
            eprintln!("{}", operator.refreshd(command).expect(4).says(why));
        }
    }
    assert_eq!(look(), before, "something was touched");
}
