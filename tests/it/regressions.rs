//! Faults that were found and mended: each test failed before.

use std::time::Duration;

use crate::world::World;

/// `trx_started` is in the system's time zone, `NOW()` in the server's: behind it no transaction was ever long, ahead of it
/// every one was.
#[test]
fn a_long_transaction_is_seen_in_any_time_zone() {
    let world = World::builder().source_options("default_time_zone=-05:00").build();
    world.set("refreshes.nightly.drain_timeout", "\"2s\"");
    let _client = world.source.idle_client("BEGIN; INSERT INTO ledger.commits VALUES (7777, 0)");
    std::thread::sleep(Duration::from_millis(1500));
    let process = world.source.process();
    world.refresh().run().expect(4);
    assert_eq!(world.source.process(), process, "the source was stopped");
}

/// The low-water mark is clamped to the limit that is in effect: put back before the limit, it stayed 0.
#[cfg(feature = "failpoints")]
#[test]
fn a_drain_that_is_taken_back_leaves_no_setting_behind() {
    let world = World::builder().source_options("innodb_max_dirty_pages_pct_lwm=50").build();
    let names = [
        "innodb_io_capacity",
        "innodb_io_capacity_max",
        "innodb_max_dirty_pages_pct",
        "innodb_max_dirty_pages_pct_lwm",
    ];
    let settings = || names.map(|name| world.source.variable(name));
    let before = settings();
    assert_eq!(before[3], "50.000000");
    world.source.sql(
        "CREATE TABLE ledger.dirt (n INT PRIMARY KEY, t VARCHAR(600)) ENGINE=InnoDB; \
         INSERT INTO ledger.dirt SELECT seq, REPEAT('x', 600) FROM ledger.seq_1_to_20000;",
    );
    let dirty = world.source.sql("SHOW GLOBAL STATUS LIKE 'Innodb_buffer_pool_pages_dirty'");
    let dirty: u64 = dirty.trim().rsplit('\t').next().unwrap().parse().unwrap();
    assert!(dirty > 200, "nothing to drain: {dirty} dirty pages");
    // only the agent puts it back then, once; a second time would hide the fault
    world.refresh().fault("controller:guard:before=kill").run().expect(137);
    world.expect_nobody_left();
    assert_eq!(settings(), before);
}
