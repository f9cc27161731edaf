//! The README's "Two hosts in five minutes", its own commands as they stand, typed by an operator who has a login on both hosts.

use std::path::Path;

use crate::accounts;
use crate::dump::{self, EVENTS_DISABLED, FILES_REMADE, MEMORY_EMPTIED};
use crate::fleet::{Fleet, Ran};
use crate::mariadb::production;
use crate::operator::{CHECKOUT, Operator};

/// The blocks of code of one kind in a section, in their order, without their indentation.
fn blocks(section: &str, kind: &str) -> Vec<String> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let from = text.find(&format!("## {section}\n")).expect("the README has that section");
    let body = &text[from + 3..];
    let body = &body[..body.find("\n##").unwrap_or(body.len())];
    let mut found = Vec::new();
    let mut block: Option<String> = None;
    for line in body.lines() {
        let line = line.strip_prefix("   ").unwrap_or(line);
        if line == format!("```{kind}") {
            block = Some(String::new());
        } else if line == "```" {
            found.extend(block.take());
        } else if let Some(block) = &mut block {
            *block += &format!("{line}\n");
        }
    }
    found
}

/// Types a block at the controller's terminal: one of its own, so that scripts can ask there; every question is answered yes.
fn typed(operator: Operator<'_>, block: &str) -> Ran {
    operator.controller.sh(&format!("cat >{CHECKOUT}/typed.sh <<'END'\nset -e\n{block}\nEND"));
    operator.does("set +o pipefail; { for _ in {1..20}; do sleep 1; echo yes || break; done 2>/dev/null || true; } | script -qec 'bash typed.sh' /dev/null")
}

#[test]
fn two_hosts_in_five_minutes() {
    let section = "Two hosts in five minutes";
    let fleet = Fleet::up(&["db1=mariadb", "r1=mariadb", "ctl=plain"]);
    let (db1, r1) = (fleet.host("db1"), fleet.host("r1"));
    production(db1);
    accounts::make(r1);
    let operator = Operator::at(&fleet);
    // a first login by hand: r1's owner reaches the controller's checkout as the README expects
    let shell = blocks(section, "sh");
    assert_eq!(shell.len(), 4, "install, keys, policies, use: {shell:#?}");
    // what a checkout that was built elsewhere has behind it already
    let install: String = shell[0]
        .lines()
        .filter(|line| !line.starts_with("cargo build"))
        .fold(String::new(), |all, line| all + line + "\n");
    assert_ne!(install, shell[0]);
    for block in [&install, &shell[1], &shell[2]] {
        eprintln!("{}", typed(operator, block).expect(0));
    }
    let configuration = blocks(section, "toml");
    assert_eq!(configuration.len(), 1);
    operator.controller.write("/etc/mysql-refreshd/config.toml", &configuration[0]);
    let expected = dump::content(db1);
    let own_accounts = accounts::rows(r1);
    let mut run = String::new();
    let mut calls = 0;
    for line in shell[3].lines() {
        let mut line = line.split(" #").next().unwrap().trim().to_owned();
        if line.contains(" show ") {
            line = format!("sudo mysql-refreshd show {run}");
        }
        let ran = operator.does(&line).expect(0);
        eprintln!("{ran}");
        calls += 1;
        if line.ends_with("--now nightly") {
            let meant = [MEMORY_EMPTIED, FILES_REMADE];
            expected.with(&[EVENTS_DISABLED]).with(&meant).check_same(&dump::content(r1).with(&meant));
            assert_eq!(accounts::rows(r1), own_accounts);
            assert_eq!(r1.variable("bind_address"), "127.0.0.1");
        } else if line.ends_with("history") {
            let is_run = |word: &&str| word.len() > 16 && word.as_bytes()[8] == b'T';
            run = ran.stdout.split_whitespace().find(is_run).expect("the history names the run").to_owned();
        } else if line.contains(" rollback ") {
            r1.sql("SELECT id FROM mine.notes");
        }
    }
    assert_eq!(calls, 7, "{shell:#?}");
    // the controller's key opens nothing but the agent
    let tried = operator.does(
        "sudo ssh -i /etc/mysql-refreshd/id_ed25519 -o UserKnownHostsFile=/etc/mysql-refreshd/known_hosts \
        -o BatchMode=yes mysql-refreshd@db1 cat /etc/passwd",
    );
    assert!(tried.code != Some(0) && !tried.stdout.contains("root:"), "{tried}");
}
