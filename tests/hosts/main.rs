//! The bench of real hosts: the program as operators install and use it, on machines with systemd, sshd and the distributions'
//! own MariaDB and MySQL packages. `tests/hosts/hosts` boots them; `utils/test.sh` runs this where that can be done.
//!
//! Each test has a fleet of its own. Nothing here knows the program's inside: it is called, and what came of it is asked from
//! the servers.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test says so and fails")]

mod accounts;
mod awkward;
mod bench;
mod connections;
mod dump;
mod faults_disk;
mod faults_mysql;
mod faults_network;
mod faults_power;
mod faults_server;
mod faults_ways;
mod filesystems;
mod fleet;
mod guard;
mod mariadb;
mod mysql;
mod one_off;
mod operator;
mod readme;
mod real_data;
mod refusals;
mod service;
mod trial;
mod upgrade;
mod watch;
