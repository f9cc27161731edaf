//! The world builder keeps its own promises: it works without the program, and nothing outlives it.

use std::time::Duration;

use crate::ledger::Ledger;
use crate::oracle::{self, Observer};
use crate::world::{Sandbox, World, holds, processes, wait_for};

#[test]
fn a_world_has_its_servers_and_leaves_nothing() {
    let world = World::builder().destinations(2).build();
    assert_eq!(world.content(&world.source), "prod-0");
    assert_eq!(world.content(&world.destinations[1]), "r2");
    world.stamp(4);
    assert_eq!(world.content(&world.source), "prod-4");
    assert!(world.destination().log_in("analyst", r#"An@lyst's "pw" \ #1"#).is_ok());
    assert!(world.destination().log_in("analyst", "wrong").is_err());
    let root = world.root().to_owned();
    drop(world);
    assert!(!root.exists());
    let marked = root.as_os_str().as_encoded_bytes();
    wait_for("an empty process table", Duration::from_secs(5), || {
        !processes().any(|p| p.program == "mariadbd" && holds(&p.raw, marked))
    });
}

#[test]
#[should_panic(expected = "a mix of contents")]
fn a_mix_is_seen() {
    let world = World::new();
    world.source.sql("UPDATE shop.log_aria SET stamp = 9 WHERE id = 7");
    world.content(&world.source);
}

#[test]
fn a_sandbox_goes_with_its_owner() {
    let sandbox = Sandbox::new();
    let root = sandbox.root.clone();
    assert!(root.exists());
    drop(sandbox);
    assert!(!root.exists());
}

#[test]
fn ledger_and_oracle_agree_with_a_copy_made_by_hand() {
    let world = World::builder().destinations(0).build();
    let ledger = Ledger::start(&world.source);
    world.source.stop();
    let observer = Observer::copy_of(&world);
    world.source.start();
    ledger.wait_for_commits_in_life(1);
    let book = ledger.finish();
    assert_eq!(book.lives(), 2);
    observer.check_stage(&observer_data(&world));
    let copy = observer.start();
    book.check_copy(copy, 0);
    book.check_source(&world.source);
    let wrong = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| book.check_copy(&world.source, 0)));
    assert!(wrong.is_err(), "the source has moved on, and the check did not see it");
    oracle::check_same(copy, copy);
    copy.sql("UPDATE shop.wide SET body = '' WHERE id = 3");
    let wrong = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| oracle::check_same(&world.source, copy)));
    assert!(wrong.is_err());
    oracle::check_accounts(&oracle::accounts(&world.source), copy);
}

fn observer_data(world: &World) -> std::path::PathBuf {
    world.root().join("obs/data")
}
