#!/usr/bin/env bash
# The statements that make a realistic data set, a shop: for the demo and for benchmarks. Prints SQL, touches nothing.
set -euo pipefail

size=300
while [ $# -gt 0 ]; do
    case $1 in
        --size) size=${2-} && shift ;;
        --help | -h)
            cat <<'END'
usage: utils/shop.sh [--size MB]     (default 300)

Prints SQL that makes a database `shop` of about MB megabytes on an empty MariaDB server: InnoDB, Aria and MyISAM tables,
a partitioned one, foreign keys, full-text indexes, a view, a procedure, and for live use a ledger of numbered commits with
a trigger, and an event that fires every second. The same size gives the same content.
END
            exit
            ;;
        *) echo "shop.sh: error: unknown option $1, see --help" >&2 && exit 2 ;;
    esac
    shift
done
if ! [[ $size =~ ^[1-9][0-9]{0,5}$ ]]; then
    echo "shop.sh: error: --size takes a number of megabytes" >&2
    exit 2
fi

customers=$((size * 220))
products=$((1000 + size * 25))
orders=$((size * 730))
visits=$((size * 730))
documents=$((size * 180))
# Days over which the orders are spread, 2023 to today's.
days=1400

cat <<END
SET GLOBAL innodb_flush_log_at_trx_commit = 2;
SET SESSION unique_checks = 0, foreign_key_checks = 0;
CREATE DATABASE shop CHARACTER SET utf8mb4;
USE shop;

CREATE TABLE countries (code CHAR(2) PRIMARY KEY, name VARCHAR(60) NOT NULL) ENGINE=MyISAM;
INSERT INTO countries SELECT CHAR(65 + seq DIV 26, 65 + seq MOD 26), CONCAT('Country ', seq) FROM seq_0_to_675;

CREATE TABLE customers (
  id INT PRIMARY KEY, name VARCHAR(80) NOT NULL, email VARCHAR(120) NOT NULL, country CHAR(2) NOT NULL,
  created DATETIME NOT NULL, notes TEXT, UNIQUE KEY (email), KEY (country, created));
INSERT INTO customers SELECT seq,
  CONCAT(ELT(1 + seq MOD 7, 'Ada', 'Grace', 'Edsger', 'Barbara', 'Donald', 'Tony', 'Leslie'), ' ', HEX(seq * 7919)),
  CONCAT('customer', seq, '@example.org'), CHAR(65 + seq MOD 26, 65 + seq DIV 26 MOD 26),
  '2020-01-01' + INTERVAL seq MINUTE, REPEAT(MD5(seq), 1 + seq MOD 4) FROM seq_1_to_$customers;

CREATE TABLE products (
  id INT PRIMARY KEY, name VARCHAR(120) NOT NULL, description TEXT NOT NULL, price DECIMAL(10,2) NOT NULL,
  FULLTEXT KEY words (name, description));
INSERT INTO products SELECT seq,
  CONCAT(ELT(1 + seq MOD 5, 'red', 'green', 'blue', 'quiet', 'fast'), ' ',
         ELT(1 + seq DIV 5 MOD 6, 'lamp', 'chair', 'kettle', 'bicycle', 'radio', 'clock'), ' ', seq),
  CONCAT_WS(' ', 'made of', ELT(1 + seq MOD 4, 'oak', 'steel', 'glass', 'wool'),
         'for', ELT(1 + seq MOD 3, 'the kitchen', 'the garden', 'the office'), SHA1(seq)),
  1 + seq MOD 900 + 0.99 FROM seq_1_to_$products;

CREATE TABLE orders (
  id INT NOT NULL, customer INT NOT NULL, ordered DATE NOT NULL, state ENUM('open', 'paid', 'sent') NOT NULL,
  remark VARCHAR(700) NOT NULL, PRIMARY KEY (id, ordered), KEY (customer))
  PARTITION BY RANGE (YEAR(ordered)) (
    PARTITION y2023 VALUES LESS THAN (2024), PARTITION y2024 VALUES LESS THAN (2025),
    PARTITION y2025 VALUES LESS THAN (2026), PARTITION later VALUES LESS THAN MAXVALUE);
INSERT INTO orders SELECT seq, 1 + seq * 7919 MOD $customers, '2023-01-01' + INTERVAL seq * $days DIV $orders DAY,
  1 + seq MOD 3, REPEAT(CONCAT(SHA1(seq), ' to the door, please. '), 1 + seq MOD 9) FROM seq_1_to_$orders;

CREATE TABLE items (
  order_id INT NOT NULL, line TINYINT NOT NULL, product INT NOT NULL, pieces SMALLINT NOT NULL,
  price DECIMAL(10,2) NOT NULL, PRIMARY KEY (order_id, line), FOREIGN KEY (product) REFERENCES products (id));
INSERT INTO items SELECT o.seq, l.seq, 1 + (o.seq * 31 + l.seq * 17) MOD $products, 1 + o.seq MOD 5, 1 + o.seq MOD 900
  FROM seq_1_to_$orders o, seq_1_to_3 l;

CREATE TABLE visits (id INT PRIMARY KEY, page VARCHAR(200) NOT NULL, at DATETIME NOT NULL) ENGINE=Aria;
INSERT INTO visits SELECT seq, CONCAT('/product/', seq MOD $products, '?session=', SHA2(seq, 256)),
  '2026-01-01' + INTERVAL seq SECOND FROM seq_1_to_$visits;

CREATE TABLE documents (id INT PRIMARY KEY, order_id INT NOT NULL, body MEDIUMTEXT NOT NULL, KEY (order_id));
INSERT INTO documents SELECT seq, seq * 4, CONCAT(SHA2(seq, 512),
  REPEAT(CONCAT('Invoice for order ', seq * 4, ': thank you for your business. '), 20),
  SHA2(-seq, 512), SHA2(seq * 3, 512), SHA2(seq * 5, 512)) FROM seq_1_to_$documents;

CREATE VIEW turnover AS
  SELECT o.customer, COUNT(DISTINCT o.id) AS orders, SUM(i.pieces * i.price) AS total
  FROM orders o JOIN items i ON i.order_id = o.id GROUP BY o.customer;

-- What moves: numbered commits, written by a client; 'life' tells which life of the server acknowledged them.
CREATE TABLE ledger (id BIGINT PRIMARY KEY, life INT NOT NULL, at TIMESTAMP(6) NOT NULL DEFAULT NOW(6));
CREATE TABLE ledger_total (one TINYINT PRIMARY KEY, commits BIGINT NOT NULL);
INSERT INTO ledger_total VALUES (1, 0);
CREATE TABLE pulse (at TIMESTAMP(6) PRIMARY KEY);
DELIMITER //
CREATE TRIGGER ledger_counts AFTER INSERT ON ledger FOR EACH ROW
  UPDATE ledger_total SET commits = commits + 1 //
CREATE PROCEDURE order_value(IN wanted INT)
  SELECT SUM(pieces * price) AS value FROM items WHERE order_id = wanted //
DELIMITER ;
CREATE EVENT heartbeat ON SCHEDULE EVERY 1 SECOND DO INSERT IGNORE INTO shop.pulse VALUES (NOW(6));
SET GLOBAL innodb_flush_log_at_trx_commit = 1;
END
