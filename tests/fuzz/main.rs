//! Damaged input for everything that reads what it has not written itself: a value or an error comes out, soon, and in bounded memory.
//! A binary of its own, since it counts what is allocated. How to repeat a failure, and how to run longer: `src/mutate.rs`.
#![cfg(feature = "failpoints")]
#![allow(clippy::unwrap_used, reason = "a test says so and fails")]

mod chunks;
mod configuration;
mod journal;
mod knowledge;
mod messages;
mod redo;
mod samples;
mod wire;

use std::sync::{Mutex, MutexGuard, PoisonError};

use peak_alloc::PeakAlloc;

/// Counts what Rust code allocates; what zstd and SQLite take for themselves in C does not pass here.
#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

static ALONE: Mutex<()> = Mutex::new(());

/// Held by every test here: where they share a process, one that counts must not count what others allocate.
fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What `work` gives, and the most bytes that were allocated at any moment of it, beyond what there was before.
fn measured<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = ALLOCATED.current_usage();
    ALLOCATED.reset_peak_usage();
    let value = work();
    (value, ALLOCATED.peak_usage().saturating_sub(before))
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

#[test]
fn what_is_allocated_is_counted() {
    let _alone = alone();
    let (kept, most) = measured(|| {
        drop(vec![1u8; 3_000_000]);
        vec![2u8; 1_000_000]
    });
    assert!((3_000_000..3_100_000).contains(&most), "{most}");
    assert_eq!(kept.len(), 1_000_000);
    assert!(measured(|| drop(vec![1u8; 2_000_000])).1 >= 2_000_000);
}
