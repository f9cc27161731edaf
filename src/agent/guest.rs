//! A good guest on a server in production: what is read while the server runs is read behind everything else, no faster than was
//! allowed, and leaves the page cache as it was.
//!
//! Knows nothing of what is read.

use std::fs::File;
use std::io::{Error, ErrorKind, IoSliceMut, Result};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};
use rustix::io::{ReadWriteFlags, preadv2};

use super::session::Session;

/// Where a reader's niceness ends up: behind every process that did not ask to be last.
const NICENESS: i32 = 10;

/// The longest nap between two reads; whoever naps must hear that the controller is gone.
const NAP: Duration = Duration::from_millis(200);

/// Memory that must be free, in parts of all of it, for what was read to stay in the page cache: then it displaces nothing.
const ROOMY: u64 = 8;

/// How often memory is looked at, in bytes read.
const LOOK: u64 = 64 << 20;

/// How to read.
pub struct Guest {
    shy: bool,
    max_rate: Option<u64>,
    begun: Instant,
    read: u64,
    looked: Option<u64>,
    roomy: bool,
}

impl Guest {
    /// Beside a server that runs: for this thread, and for good. `max_rate` in bytes a second.
    pub fn shy(max_rate: Option<u64>) -> Self {
        step_back();
        Self { shy: true, max_rate, begun: Instant::now(), read: 0, looked: None, roomy: false }
    }

    /// Of a server that is down and waits for us.
    pub fn hasty() -> Self {
        Self { shy: false, max_rate: None, begun: Instant::now(), read: 0, looked: None, roomy: true }
    }

    /// Fills the buffer.
    pub fn read(&mut self, file: &File, buffer: &mut [u8], offset: u64, session: &Session) -> Result<()> {
        if !self.shy {
            return file.read_exact_at(buffer, offset);
        }
        self.wait(buffer.len() as u64, session)?;
        if self.looked.is_none_or(|at| self.read - at >= LOOK) {
            self.looked = Some(self.read);
            self.roomy = free_memory().is_some_and(|(free, total)| free > total / ROOMY);
        }
        self.read += buffer.len() as u64;
        if self.roomy {
            return file.read_exact_at(buffer, offset);
        }
        // what is there already is somebody's, and stays; what only we have brought in goes again
        let there = match preadv2(file, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT) {
            Ok(n) if n == buffer.len() => return Ok(()),
            Ok(n) => n,
            Err(_) => 0,
        };
        let rest = offset + there as u64;
        file.read_exact_at(&mut buffer[there..], rest)?;
        if let Some(length) = std::num::NonZeroU64::new((buffer.len() - there) as u64) {
            let _ = fadvise(file, rest, Some(length), Advice::DontNeed);
        }
        Ok(())
    }

    /// Waits until so many bytes more may be read.
    fn wait(&self, bytes: u64, session: &Session) -> Result<()> {
        let Some(rate) = self.max_rate.filter(|rate| *rate > 0) else { return Ok(()) };
        let due = Duration::from_secs_f64((self.read + bytes) as f64 / rate as f64);
        while let Some(early) = due.checked_sub(self.begun.elapsed()) {
            if session.is_gone() {
                return Err(Error::new(ErrorKind::Interrupted, "the controller is gone"));
            }
            std::thread::sleep(early.min(NAP));
        }
        Ok(())
    }
}

/// Puts this thread behind all others, for the processor and for the disk. Where that is not possible it reads on all the same.
fn step_back() {
    let thread = rustix::thread::gettid();
    let _ = rustix::process::setpriority_process(Some(thread), NICENESS);
    // ionice(1) is in util-linux, which every host has; there is no safe call for it
    let id = thread.as_raw_nonzero().to_string();
    let _ = Command::new("ionice")
        .args(["-c", "3", "-p", &id])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

/// Memory that nobody uses, not even as cache, and all of it; in KiB.
fn free_memory() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').split_whitespace().next()?.parse().ok()
    };
    Some((of("MemFree")?, of("MemTotal")?))
}
