//! Objects that have broken copies before: engines, names, storage forms, and everything that refers to something else. As SQL, once
//! for both flavours and once for each.
//!
//! `ledger.commits` is the one table that is written while a run is under way; nothing else here changes by itself.

/// What both take. The clients' own delimiter is used.
const BOTH: &str = r#"
SET NAMES utf8mb4;
CREATE DATABASE shop CHARACTER SET utf8mb4;
CREATE DATABASE hollow;
CREATE DATABASE latin CHARACTER SET latin1 COLLATE latin1_german1_ci;
CREATE DATABASE `two words`;
CREATE DATABASE `dash-ed`;
CREATE DATABASE `dot.ted`;
CREATE DATABASE `quo"te'd`;
CREATE DATABASE `back``tick`;
CREATE DATABASE `Käse_表_д`;
CREATE DATABASE `per%cent#hash@at`;
CREATE DATABASE ledger;
CREATE TABLE ledger.commits (n BIGINT PRIMARY KEY, at TIMESTAMP DEFAULT CURRENT_TIMESTAMP) ENGINE=InnoDB;

USE shop;
CREATE TABLE numbers (n INT PRIMARY KEY) ENGINE=InnoDB;
INSERT INTO numbers VALUES (0),(1),(2),(3),(4),(5),(6),(7),(8),(9);
INSERT INTO numbers SELECT 10 + a.n + 10*b.n + 100*c.n FROM numbers a, numbers b, numbers c WHERE a.n < 10 AND b.n < 10 AND c.n < 10;
CREATE TABLE customers (id INT PRIMARY KEY AUTO_INCREMENT, name VARCHAR(60) NOT NULL, born DATE, notes TEXT,
  loud VARCHAR(60) GENERATED ALWAYS AS (UPPER(name)) STORED, len INT GENERATED ALWAYS AS (CHAR_LENGTH(name)) VIRTUAL,
  KEY (len), UNIQUE KEY (name), CONSTRAINT sane CHECK (CHAR_LENGTH(name) > 2)) ENGINE=InnoDB;
INSERT INTO customers (id, name, born, notes) SELECT 1 + n, CONCAT('customer ', n, ' 😀 ñ'), '1970-01-01' + INTERVAL n DAY, REPEAT(CONCAT(n, ' '), 40) FROM numbers;
CREATE TABLE orders (id INT NOT NULL, customer INT NOT NULL, placed DATE NOT NULL, amount DECIMAL(20,6), PRIMARY KEY (id, placed))
  ENGINE=InnoDB PARTITION BY RANGE (YEAR(placed)) SUBPARTITION BY HASH (id) SUBPARTITIONS 2
  (PARTITION p24 VALUES LESS THAN (2025), PARTITION p25 VALUES LESS THAN (2026), PARTITION pmax VALUES LESS THAN MAXVALUE);
INSERT INTO orders SELECT n, 1 + n, '2024-06-01' + INTERVAL n DAY, n / 7 FROM numbers;
CREATE TABLE lists (id INT, region VARCHAR(10)) ENGINE=InnoDB PARTITION BY LIST COLUMNS (region)
  (PARTITION north VALUES IN ('n','ne'), PARTITION south VALUES IN ('s', NULL));
INSERT INTO lists SELECT n, ELT(1 + n % 4, 'n', 'ne', 's', NULL) FROM numbers;
CREATE TABLE hashed (id INT PRIMARY KEY, body VARBINARY(300)) ENGINE=InnoDB PARTITION BY KEY () PARTITIONS 5;
INSERT INTO hashed SELECT n, UNHEX(REPEAT(LEFT(SHA2(n, 256), 32), 4)) FROM numbers;
CREATE TABLE items (id INT PRIMARY KEY, customer INT, parent INT, what JSON,
  FOREIGN KEY (customer) REFERENCES customers (id) ON DELETE CASCADE,
  CONSTRAINT own FOREIGN KEY (parent) REFERENCES items (id) ON DELETE SET NULL) ENGINE=InnoDB;
INSERT INTO items SELECT n, 1 + n, NULL, JSON_OBJECT('n', n, 'list', JSON_ARRAY(1, 'zwei', NULL)) FROM numbers WHERE n < 500;
UPDATE items SET parent = id - 1 WHERE id > 0;
CREATE TABLE `two words`.`child` (id INT PRIMARY KEY, customer INT, FOREIGN KEY (customer) REFERENCES shop.customers (id)) ENGINE=InnoDB;
INSERT INTO `two words`.`child` SELECT n, 1 + n FROM numbers;
CREATE TABLE texts (id INT PRIMARY KEY, title VARCHAR(100), body TEXT, FULLTEXT KEY (body), FULLTEXT KEY both_of (title, body)) ENGINE=InnoDB;
INSERT INTO texts SELECT n, CONCAT('title ', n), CONCAT('the quick brown fox ', n, ' jumps über den Hund') FROM numbers;
DELETE FROM texts WHERE id % 3 = 0;
CREATE TABLE texts_myisam (id INT PRIMARY KEY, body TEXT, FULLTEXT KEY (body)) ENGINE=MyISAM;
INSERT INTO texts_myisam SELECT n, CONCAT('lazy dog ', n) FROM numbers;
CREATE TABLE places (id INT PRIMARY KEY, at POINT NOT NULL, SPATIAL KEY (at)) ENGINE=InnoDB;
INSERT INTO places SELECT n, POINT(n, -n / 3) FROM numbers;
CREATE TABLE packed (id INT PRIMARY KEY, body TEXT) ENGINE=InnoDB ROW_FORMAT=COMPRESSED KEY_BLOCK_SIZE=4;
INSERT INTO packed SELECT n, REPEAT(LEFT(SHA2(n, 256), 32), 30) FROM numbers;
CREATE TABLE redundant (id INT PRIMARY KEY, body VARCHAR(100)) ENGINE=InnoDB ROW_FORMAT=REDUNDANT;
INSERT INTO redundant SELECT n, LEFT(SHA2(n, 256), 32) FROM numbers;
CREATE TABLE wide (id INT PRIMARY KEY, body LONGBLOB) ENGINE=InnoDB;
INSERT INTO wide SELECT n, REPEAT(CHAR(n % 256), 40000) FROM numbers WHERE n < 60;
CREATE TABLE grown (id INT PRIMARY KEY) ENGINE=InnoDB;
INSERT INTO grown SELECT n FROM numbers WHERE n < 100;
ALTER TABLE grown ADD COLUMN later VARCHAR(20) NOT NULL DEFAULT 'instant', ALGORITHM=INSTANT;
INSERT INTO grown SELECT n, 'after' FROM numbers WHERE n >= 100;
CREATE TABLE no_key (a INT, b VARCHAR(20)) ENGINE=InnoDB;
INSERT INTO no_key SELECT n % 10, LEFT(SHA2(n % 7, 256), 12) FROM numbers;
CREATE TABLE kinds (id INT PRIMARY KEY, b BIT(13), y YEAR, t TIME(6), dt DATETIME(3), ts TIMESTAMP(6) NULL, e ENUM('a','ü','日'),
  s SET('x','y','z'), f FLOAT, d DOUBLE, big BIGINT UNSIGNED, bin BINARY(5), tiny TINYBLOB, lat VARCHAR(20) CHARACTER SET latin1) ENGINE=InnoDB;
INSERT INTO kinds VALUES (1, b'1010101010101', 2026, '-12:34:56.789012', '2026-03-29 02:30:00.123', '2026-10-25 00:30:00.654321', 'ü', 'x,z',
  1.5e-10, -2.5e300, 18446744073709551615, x'00ff00ff00', x'000a0d1a2227', 'äöü'), (2, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
CREATE TABLE log_myisam (id INT PRIMARY KEY AUTO_INCREMENT, line VARCHAR(80), KEY (line)) ENGINE=MyISAM;
INSERT INTO log_myisam (line) SELECT CONCAT('line ', n) FROM numbers;
DELETE FROM log_myisam WHERE id % 5 = 0;
CREATE TABLE log_one LIKE log_myisam;
CREATE TABLE log_two LIKE log_myisam;
INSERT INTO log_one (line) VALUES ('one');
INSERT INTO log_two (line) VALUES ('two');
CREATE TABLE log_all (id INT NOT NULL AUTO_INCREMENT, line VARCHAR(80), KEY (id), KEY (line)) ENGINE=MERGE UNION=(log_one, log_two) INSERT_METHOD=LAST;
CREATE TABLE export (id INT NOT NULL, line VARCHAR(80) NOT NULL) ENGINE=CSV;
INSERT INTO export VALUES (1, 'one, "quoted"'), (2, 'zwei\nZeilen');
CREATE TABLE fleeting (id INT PRIMARY KEY, what VARCHAR(20)) ENGINE=MEMORY;
INSERT INTO fleeting VALUES (1, 'gone'), (2, 'at a restart');
CREATE TABLE audit (at DATETIME, what VARCHAR(40)) ENGINE=InnoDB;
CREATE TABLE beats (at DATETIME) ENGINE=InnoDB;
CREATE TABLE empty_one (id INT PRIMARY KEY) ENGINE=InnoDB;
CREATE TABLE `a/b c.d-e "f" 'g' ``h`` ü 表` (`odd "col" ``x``` INT PRIMARY KEY, `ключ` VARCHAR(20)) ENGINE=InnoDB;
INSERT INTO `a/b c.d-e "f" 'g' ``h`` ü 表` SELECT n, 'значение' FROM numbers;
CREATE TABLE `Käse_表_д`.`таблица` (id INT PRIMARY KEY) ENGINE=MyISAM;
INSERT INTO `Käse_表_д`.`таблица` SELECT n FROM numbers;
CREATE TABLE `per%cent#hash@at`.`t#1@2` (id INT PRIMARY KEY) ENGINE=InnoDB;
INSERT INTO `per%cent#hash@at`.`t#1@2` VALUES (1);
CREATE TABLE `dash-ed`.`t-1` (id INT PRIMARY KEY) ENGINE=InnoDB;
CREATE TABLE `dot.ted`.`t.1` (id INT PRIMARY KEY) ENGINE=InnoDB;
CREATE TABLE `quo"te'd`.`t"'` (id INT PRIMARY KEY) ENGINE=InnoDB;
CREATE TABLE `back``tick`.`t```  (id INT PRIMARY KEY) ENGINE=InnoDB;
CREATE TABLE latin.t (word VARCHAR(30)) ENGINE=InnoDB;
INSERT INTO latin.t VALUES ('Straße'), ('ärgern');

CREATE USER app@'%' IDENTIFIED BY 'of-production';
GRANT ALL ON shop.* TO app@'%';
CREATE USER gone@localhost IDENTIFIED BY 'x';
GRANT ALL ON *.* TO gone@localhost;
CREATE VIEW spenders AS SELECT customer, SUM(amount) AS total FROM orders GROUP BY customer HAVING total > 100;
CREATE VIEW spenders_named AS SELECT c.name, s.total FROM spenders s JOIN customers c ON c.id = s.customer;
CREATE ALGORITHM=MERGE DEFINER=gone@localhost SQL SECURITY DEFINER VIEW `of a gone one` AS SELECT id FROM customers WITH CHECK OPTION;
DELIMITER //
CREATE FUNCTION twice(n INT) RETURNS INT DETERMINISTIC COMMENT 'it''s 2 × n' RETURN 2 * n //
CREATE PROCEDURE `odd name`(IN a INT, OUT b INT) SQL SECURITY INVOKER BEGIN DECLARE `x y` INT DEFAULT 3; SET b = a + `x y`; END //
CREATE DEFINER=gone@localhost PROCEDURE orphan() BEGIN SELECT 'ü'; END //
CREATE TRIGGER orders_in BEFORE INSERT ON orders FOR EACH ROW SET NEW.amount = COALESCE(NEW.amount, 0) //
CREATE TRIGGER orders_after AFTER INSERT ON orders FOR EACH ROW INSERT INTO audit VALUES (NOW(), CONCAT('order ', NEW.id)) //
CREATE TRIGGER orders_after2 AFTER INSERT ON orders FOR EACH ROW FOLLOWS orders_after INSERT INTO audit VALUES (NOW(), 'again') //
CREATE TRIGGER `trig ger` AFTER DELETE ON customers FOR EACH ROW INSERT INTO audit VALUES (NOW(), OLD.name) //
CREATE EVENT `never yet` ON SCHEDULE EVERY 1 MONTH STARTS '2037-01-01' ON COMPLETION PRESERVE COMMENT 'ünïcode' DO INSERT INTO shop.beats VALUES (NOW()) //
CREATE EVENT off ON SCHEDULE EVERY 1 YEAR STARTS '2037-01-01' DISABLE DO SELECT 1 //
CREATE DEFINER=gone@localhost EVENT of_a_gone_one ON SCHEDULE AT '2037-02-03 04:05:06' DO SELECT 'ü' //
SET NAMES latin1 //
CREATE EVENT latin_one ON SCHEDULE EVERY 1 YEAR STARTS '2037-01-01' DO SELECT 'x' //
SET NAMES utf8mb4 //
SET sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES' //
CREATE PROCEDURE modal() BEGIN SELECT "n" FROM "numbers" WHERE 'a\' = 'a\'; END //
SET sql_mode = DEFAULT //
DELIMITER ;
INSERT INTO orders (id, customer, placed) VALUES (9999, 1, '2025-05-05');
DROP USER gone@localhost;
"#;

/// MariaDB's own.
const MARIADB: &str = r"
USE shop;
CREATE TABLE log_aria (id INT PRIMARY KEY, line VARCHAR(80)) ENGINE=Aria TRANSACTIONAL=1;
INSERT INTO log_aria SELECT n, CONCAT('line ', n) FROM numbers;
CREATE TABLE log_aria_plain (id INT PRIMARY KEY, line VARCHAR(80), FULLTEXT KEY (line)) ENGINE=Aria TRANSACTIONAL=0 ROW_FORMAT=DYNAMIC;
INSERT INTO log_aria_plain SELECT n, CONCAT('line ', n) FROM numbers;
CREATE TABLE squeezed (id INT PRIMARY KEY, body TEXT) ENGINE=InnoDB PAGE_COMPRESSED=1;
INSERT INTO squeezed SELECT n, REPEAT('squeeze ', 500) FROM numbers;
CREATE TABLE aged (id INT PRIMARY KEY, what INT) ENGINE=InnoDB WITH SYSTEM VERSIONING;
INSERT INTO aged SELECT n, 1 FROM numbers WHERE n < 50;
UPDATE aged SET what = 2 WHERE id < 20;
DELETE FROM aged WHERE id < 5;
CREATE SEQUENCE tickets START WITH 100 INCREMENT BY 7 CACHE 10;
DO NEXTVAL(tickets);
CREATE TABLE shy (id INT PRIMARY KEY, hidden INT INVISIBLE DEFAULT 3, packed_col TEXT COMPRESSED, u UUID, ip INET6) ENGINE=InnoDB;
INSERT INTO shy (id, packed_col, u, ip) SELECT n, REPEAT('z', 500), UUID(), '::1' FROM numbers WHERE n < 100;
CREATE TABLE zero (d DATE, dt DATETIME) ENGINE=InnoDB;
SET sql_mode = '';
INSERT INTO zero VALUES ('0000-00-00', '0000-00-00 00:00:00');
SET sql_mode = DEFAULT;
";

/// MySQL's own.
const MYSQL: &str = r"
USE shop;
CREATE TABLESPACE inner_space ADD DATAFILE 'inner_space.ibd';
CREATE TABLE spaced (id INT PRIMARY KEY, body VARCHAR(100)) TABLESPACE inner_space;
INSERT INTO spaced SELECT n, LEFT(SHA2(n, 256), 32) FROM numbers;
CREATE UNDO TABLESPACE extra_undo ADD DATAFILE 'extra_undo.ibu';
CREATE TABLE archived (id INT, line VARCHAR(80)) ENGINE=ARCHIVE;
INSERT INTO archived SELECT n, CONCAT('line ', n) FROM numbers;
CREATE TABLE in_system (id INT PRIMARY KEY) TABLESPACE innodb_system;
INSERT INTO in_system SELECT n FROM numbers;
CREATE TABLE shy (id INT PRIMARY KEY, hidden INT INVISIBLE DEFAULT 3, tags JSON, KEY ((CAST(id AS CHAR(10)))), KEY down (id DESC),
  KEY many ((CAST(tags AS UNSIGNED ARRAY))), KEY unseen (hidden) INVISIBLE) ENGINE=InnoDB;
INSERT INTO shy (id, tags) SELECT n, JSON_ARRAY(n, n + 1) FROM numbers WHERE n < 100;
CREATE TABLE earth (id INT PRIMARY KEY, at POINT NOT NULL SRID 4326, SPATIAL KEY (at)) ENGINE=InnoDB;
INSERT INTO earth SELECT n, ST_SRID(POINT(n % 90, n % 45), 4326) FROM numbers;
ANALYZE TABLE customers UPDATE HISTOGRAM ON born WITH 8 BUCKETS;
";

/// All of it for a flavour, as one script for the client.
pub fn sql(mysql: bool) -> String {
    format!("{BOTH}\n{}", if mysql { MYSQL } else { MARIADB })
}
