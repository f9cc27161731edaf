//! Accounts as the grant tables hold them, and as people use them: by logging in.

use crate::dump::is_mysql;
use crate::fleet::{Host, Ran};

const MARIADB: &str = "global_priv db tables_priv columns_priv procs_priv proxies_priv roles_mapping";
const MYSQL: &str =
    "user db tables_priv columns_priv procs_priv proxies_priv global_grants role_edges default_roles password_history";

/// Makes accounts on a server of research, of every kind that it has. Their password is `of research's own`.
#[track_caller]
pub fn make(host: Host<'_>) {
    host.sql(
        "CREATE USER dev@'%' IDENTIFIED BY 'of research''s own'; GRANT ALL ON *.* TO dev@'%' WITH GRANT OPTION;
         CREATE USER reader@localhost IDENTIFIED BY 'of research''s own' PASSWORD EXPIRE NEVER;
         CREATE DATABASE mine; CREATE TABLE mine.notes (id INT PRIMARY KEY, secret INT);
         GRANT SELECT (id) ON mine.notes TO reader@localhost;
         CREATE ROLE readers; GRANT SELECT ON shop.* TO readers; GRANT readers TO reader@localhost;
         CREATE USER `odd 'name' ü`@'10.%' IDENTIFIED BY 'of research''s own' ACCOUNT LOCK;",
    );
    if is_mysql(host) {
        host.sql(
            "SET DEFAULT ROLE readers TO reader@localhost; ALTER USER dev@'%' ATTRIBUTE '{\"team\": \"r&d\"}';
             GRANT PROXY ON reader@localhost TO dev@'%'; GRANT BACKUP_ADMIN ON *.* TO reader@localhost;",
        );
    } else {
        host.sql("SET DEFAULT ROLE readers FOR reader@localhost; GRANT PROXY ON reader@localhost TO dev@'%';");
    }
}

/// All rows of the grant tables, as the vendor's dump program shows them.
#[track_caller]
pub fn rows(host: Host<'_>) -> String {
    let (tool, tables) =
        if is_mysql(host) { ("mysqldump --set-gtid-purged=OFF", MYSQL) } else { ("mariadb-dump", MARIADB) };
    let dump = host.sh(&format!(
        "{tool} --no-create-info --skip-comments --skip-dump-date --skip-extended-insert --order-by-primary --hex-blob mysql {tables}"
    ));
    assert!(dump.lines().filter(|line| line.starts_with("INSERT")).count() > 5, "{dump}");
    dump
}

/// Logs in over TCP with a password.
pub fn login(host: Host<'_>, account: &str, password: &str) -> Ran {
    host.write(
        "/root/login.cnf",
        format!("[client]\nuser={account}\npassword=\"{password}\"\nhost=127.0.0.1\nprotocol=tcp\n"),
    );
    let client = "$(command -v mariadb || command -v mysql)";
    host.try_sh(&format!("{client} --defaults-file=/root/login.cnf -N -B -e 'SELECT CURRENT_USER()'"))
}
