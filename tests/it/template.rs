//! Datadirs made once and copied for every world: an empty one, production's shop, research's own data and accounts.
//!
//! Kept below the build's folder for temporary files, named by a hash of what they are made from; test processes that
//! start together make each of them once (a lock file).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::world::{Content, Sandbox, Server, copy_tree, is_root, me, output};

/// Options that make a server small and quick to start; all of them sizing, but for what a datadir is made with. Later releases of MariaDB
/// reserve terabytes of addresses for a buffer pool, which not every kernel has.
pub const SMALL: &str = "innodb-buffer-pool-size=32M\nloose-innodb-buffer-pool-size-max=64M\ninnodb-log-file-size=10M\ninnodb-buffer-pool-dump-at-shutdown=0\n\
    innodb-buffer-pool-load-at-startup=0\nkey-buffer-size=1M\naria-pagecache-buffer-size=2M\nperformance-schema=0\n\
    max-connections=40\ntable-open-cache=100\nskip-name-resolve\n";

/// The tables of the shop that carry the stamp: one for each engine and kind of storage that matters.
pub const STAMPED: &[&str] =
    &["orders", "customers", "log_myisam", "log_aria", "packed", "texts", "wide", "`odd-näme tab`"];

/// The server's executable.
pub fn server() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
            .map(|dir| dir.join("mariadbd"))
            .find(|p| p.exists())
            .expect("mariadbd is not installed: utils/test.sh installs what the tests need")
    })
}

/// What production's server holds.
const PRODUCTION: &str = r"
CREATE DATABASE shop CHARACTER SET utf8mb4;
USE shop;
CREATE TABLE customers (id INT PRIMARY KEY, name VARCHAR(60), city VARCHAR(40), stamp INT NOT NULL, loud VARCHAR(60) AS (UPPER(name)) STORED,
  KEY city (city), UNIQUE KEY name (name)) ENGINE=InnoDB;
INSERT INTO customers (id, name, city, stamp) SELECT seq, CONCAT('customer ', seq), CONCAT('city ', seq % 17), 0 FROM seq_1_to_500;
CREATE TABLE orders (id INT NOT NULL, customer INT NOT NULL, placed DATE NOT NULL, amount DECIMAL(10,2), stamp INT NOT NULL, PRIMARY KEY (id, placed), KEY customer (customer))
  ENGINE=InnoDB PARTITION BY RANGE (YEAR(placed)) (PARTITION p24 VALUES LESS THAN (2025), PARTITION p25 VALUES LESS THAN (2026), PARTITION pmax VALUES LESS THAN MAXVALUE);
INSERT INTO orders SELECT seq, 1 + seq % 500, DATE_ADD('2024-06-01', INTERVAL seq % 900 DAY), seq / 7, 0 FROM seq_1_to_3000;
CREATE TABLE items (id INT PRIMARY KEY AUTO_INCREMENT, customer INT, what JSON, FOREIGN KEY (customer) REFERENCES customers (id) ON DELETE CASCADE) ENGINE=InnoDB;
INSERT INTO items (customer, what) SELECT 1 + seq % 500, JSON_OBJECT('n', seq) FROM seq_1_to_1000;
CREATE TABLE texts (id INT PRIMARY KEY, body TEXT, stamp INT NOT NULL, FULLTEXT KEY body (body)) ENGINE=InnoDB;
INSERT INTO texts SELECT seq, CONCAT('the quick brown fox number ', seq, ' jumps'), 0 FROM seq_1_to_300;
CREATE TABLE packed (id INT PRIMARY KEY, body TEXT, stamp INT NOT NULL) ENGINE=InnoDB ROW_FORMAT=COMPRESSED KEY_BLOCK_SIZE=8;
INSERT INTO packed SELECT seq, REPEAT(MD5(seq), 20), 0 FROM seq_1_to_300;
CREATE TABLE wide (id INT PRIMARY KEY, body LONGBLOB, stamp INT NOT NULL) ENGINE=InnoDB;
INSERT INTO wide SELECT seq, REPEAT(CHAR(seq % 256), 20000), 0 FROM seq_1_to_120;
CREATE TABLE log_myisam (id INT PRIMARY KEY, line VARCHAR(80), stamp INT NOT NULL, KEY line (line)) ENGINE=MyISAM;
INSERT INTO log_myisam SELECT seq, CONCAT('line ', seq), 0 FROM seq_1_to_400;
CREATE TABLE log_aria (id INT PRIMARY KEY, line VARCHAR(80), stamp INT NOT NULL) ENGINE=Aria;
INSERT INTO log_aria SELECT seq, CONCAT('line ', seq), 0 FROM seq_1_to_400;
CREATE TABLE `odd-näme tab` (id INT PRIMARY KEY, stamp INT NOT NULL) ENGINE=InnoDB;
INSERT INTO `odd-näme tab` SELECT seq, 0 FROM seq_1_to_100;
CREATE TABLE export (id INT NOT NULL, line VARCHAR(80) NOT NULL) ENGINE=CSV;
INSERT INTO export VALUES (1, 'one'), (2, 'two');
CREATE TABLE empty_one (id INT PRIMARY KEY) ENGINE=InnoDB;
CREATE TABLE beats (at DATETIME) ENGINE=InnoDB;
CREATE TABLE audit (at DATETIME, what VARCHAR(20)) ENGINE=InnoDB;
CREATE SEQUENCE numbers START WITH 100;
CREATE VIEW big_spenders AS SELECT customer, SUM(amount) AS total FROM orders GROUP BY customer HAVING total > 100;
CREATE FUNCTION twice(n INT) RETURNS INT DETERMINISTIC RETURN 2 * n;
DELIMITER //
CREATE TRIGGER orders_added AFTER INSERT ON orders FOR EACH ROW INSERT INTO audit VALUES (NOW(), 'order') //
CREATE EVENT beat ON SCHEDULE EVERY 1 SECOND DO INSERT INTO shop.beats VALUES (NOW()) //
CREATE EVENT never ON SCHEDULE EVERY 1 YEAR STARTS '2037-01-01' DISABLE DO SELECT 1 //
CREATE PROCEDURE stamp_all(n INT) BEGIN
  UPDATE customers SET stamp = n; UPDATE orders SET stamp = n; UPDATE texts SET stamp = n; UPDATE packed SET stamp = n;
  UPDATE wide SET stamp = n; UPDATE log_myisam SET stamp = n; UPDATE log_aria SET stamp = n; UPDATE `odd-näme tab` SET stamp = n;
END //
DELIMITER ;
CREATE DATABASE `two words`;
CREATE TABLE `two words`.`a/b` (id INT PRIMARY KEY) ENGINE=InnoDB;
CREATE DATABASE hollow;
CREATE DATABASE ledger;
CREATE TABLE ledger.commits (n BIGINT PRIMARY KEY, life INT NOT NULL) ENGINE=InnoDB;
CREATE ROLE prod_role;
GRANT ALL ON shop.* TO prod_role;
CREATE USER prod_app@'%' IDENTIFIED BY 'pr0d-app-pw';
CREATE USER prod_app@localhost IDENTIFIED BY 'pr0d-app-pw';
GRANT SELECT, INSERT ON shop.* TO prod_app@'%';
GRANT prod_role TO prod_app@localhost;
CREATE USER twin@localhost IDENTIFIED BY 'twin-on-prod';
GRANT ALL ON *.* TO twin@localhost WITH GRANT OPTION;
";

/// What a destination holds of its own. The content of `research.stamp` names the server, later.
const RESEARCH: &str = r#"
CREATE DATABASE research;
USE research;
CREATE TABLE stamp (content VARCHAR(20)) ENGINE=InnoDB;
INSERT INTO stamp VALUES ('r');
CREATE TABLE results (id INT PRIMARY KEY, x DOUBLE) ENGINE=InnoDB;
INSERT INTO results SELECT seq, RAND(seq) FROM seq_1_to_1000;
CREATE TABLE notes (id INT PRIMARY KEY, note TEXT) ENGINE=MyISAM;
INSERT INTO notes SELECT seq, MD5(seq) FROM seq_1_to_50;
CREATE FUNCTION research.seven() RETURNS INT DETERMINISTIC RETURN 7;
CREATE ROLE readers; CREATE ROLE writers; GRANT readers TO writers;
GRANT SELECT ON research.* TO readers;
GRANT INSERT, UPDATE ON research.* TO writers;
CREATE USER analyst@localhost IDENTIFIED BY 'An@lyst''s "pw" \\ #1';
GRANT readers TO analyst@localhost; SET DEFAULT ROLE readers FOR analyst@localhost;
GRANT SELECT ON shop.* TO analyst@localhost;
CREATE USER analyst@'%' IDENTIFIED BY 'tcp-pw' REQUIRE SSL WITH MAX_QUERIES_PER_HOUR 500 MAX_USER_CONNECTIONS 7;
GRANT SELECT (id), UPDATE (x) ON research.results TO analyst@'%';
GRANT EXECUTE ON FUNCTION research.seven TO analyst@'%';
CREATE USER lead@'10.0.0.0/255.0.0.0' IDENTIFIED VIA mysql_native_password USING '*94BDCEBE19083CE2A1F959FD02F964C7AF4CFC29' OR unix_socket;
GRANT writers TO lead@'10.0.0.0/255.0.0.0' WITH ADMIN OPTION;
CREATE USER gone@localhost IDENTIFIED BY 'x' ACCOUNT LOCK PASSWORD EXPIRE NEVER;
CREATE USER twin@localhost IDENTIFIED BY 'twin-on-research';
GRANT SELECT ON research.* TO twin@localhost;
CREATE USER `o'dd "n``me` @localhost IDENTIFIED BY 'odd';
GRANT PROXY ON analyst@localhost TO lead@'10.0.0.0/255.0.0.0';
FLUSH PRIVILEGES;
"#;

fn content_sql(content: Content) -> &'static str {
    match content {
        Content::Production => PRODUCTION,
        Content::Research => RESEARCH,
        Content::Empty => "",
    }
}

/// The datadir of a cleanly stopped server with this content, made with more options for the datadir itself.
pub fn datadir(content: Content, made_with: &str) -> PathBuf {
    let version = output(Command::new(server()).arg("--version"));
    let recipe = format!("{version}{}{SMALL}{made_with}{}", content_sql(content), me());
    let key = blake3::hash(recipe.as_bytes()).to_hex();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("datadirs");
    fs::create_dir_all(&folder).unwrap();
    let (made, lock) = (folder.join(&key[..16]), folder.join(format!("{}.lock", &key[..16])));
    if !made.exists() {
        let lock = fs::File::create(lock).unwrap();
        fs2::FileExt::lock_exclusive(&lock).unwrap();
        if !made.exists() {
            make(content, made_with, &made);
        }
    }
    made
}

fn make(content: Content, made_with: &str, made: &Path) {
    let sandbox = Sandbox::new();
    let empty = sandbox.root.join("empty");
    let mut install = Command::new("mariadb-install-db");
    install.arg("--no-defaults").arg(format!("--datadir={}", empty.display()));
    install.args(["--auth-root-authentication-method=socket", "--skip-test-db", "--innodb-log-file-size=10M"]);
    install.arg("--loose-innodb-buffer-pool-size-max=64M");
    install.arg(format!("--auth-root-socket-user={}", me()));
    if is_root() {
        install.arg("--user=root");
    }
    for line in made_with.lines() {
        install.arg(format!("--{line}"));
    }
    output(&mut install);
    let server = Server::create(&sandbox.root, "t", &empty, made_with);
    server.start();
    server.sql(&format!("SET SESSION sql_log_bin = 0;\n{}", content_sql(content)));
    server.stop();
    let half_made = made.with_extension("half");
    let _ = fs::remove_dir_all(&half_made);
    copy_tree(&server.datadir(), &half_made);
    fs::rename(&half_made, made).unwrap();
}
