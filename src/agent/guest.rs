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

/// How far a reader may be behind its rate and still catch up.
const SLACK: Duration = Duration::from_secs(1);

/// What is looked for in the page cache at once: a page of the server's.
const PIECE: usize = 16 << 10;

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
        // what is there already is somebody's, and stays; what only we have brought in goes again: nothing is to be read ahead, which
        // would look like somebody's
        let _ = fadvise(file, 0, None, Advice::Random);
        let absent: Vec<bool> = buffer
            .chunks_mut(PIECE)
            .enumerate()
            .map(|(n, piece)| {
                let (at, whole) = (offset + (n * PIECE) as u64, piece.len());
                let there = preadv2(file, &mut [IoSliceMut::new(piece)], at, ReadWriteFlags::NOWAIT);
                !there.is_ok_and(|n| n == whole)
            })
            .collect();
        let mut at = 0;
        for run in absent.chunk_by(|a, b| a == b) {
            let bytes = (run.len() * PIECE).min(buffer.len() - at);
            if run[0] {
                let from = offset + at as u64;
                file.read_exact_at(&mut buffer[at..at + bytes], from)?;
                let _ = fadvise(file, from, std::num::NonZeroU64::new(bytes as u64), Advice::DontNeed);
            }
            at += bytes;
        }
        Ok(())
    }

    /// Waits until so many bytes more may be read.
    fn wait(&mut self, bytes: u64, session: &Session) -> Result<()> {
        let Some(rate) = self.max_rate.filter(|rate| *rate > 0) else { return Ok(()) };
        let due = Duration::from_secs_f64((self.read + bytes) as f64 / rate as f64);
        // what was not read while others held it up is not made up for
        if let Some(late) = self.begun.elapsed().checked_sub(due + SLACK) {
            self.begun += late;
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::message::SourceRequest;

    fn session() -> (tokio::runtime::Runtime, Session) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let _in = runtime.enter();
        // its other end is kept open by nobody asking
        let (near, far) = tokio::io::duplex(1024);
        std::mem::forget(near);
        let session = Session::start::<SourceRequest>(far, tokio::io::sink()).0;
        drop(_in);
        (runtime, session)
    }

    /// How long 8 MiB take.
    fn reads(guest: &mut Guest, session: &Session) -> Duration {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 << 20).unwrap();
        let begun = Instant::now();
        (0..8).for_each(|n| guest.read(&file, &mut vec![0; 1 << 20], n << 20, session).unwrap());
        begun.elapsed()
    }

    #[test]
    fn no_more_is_read_in_a_second_than_is_allowed() {
        let (_runtime, session) = session();
        let mut guest = Guest::shy(Some(4 << 20));
        let took = reads(&mut guest, &session);
        assert!(took >= Duration::from_millis(1990), "8 MiB in {took:?}");
        // whoever waits hears that nobody wants it any more
        session.leave();
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let error = guest.read(&file, &mut vec![0; 1 << 20], 0, &session).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Interrupted);
    }

    #[test]
    fn what_others_held_up_is_not_made_up_for_at_once() {
        let (_runtime, session) = session();
        let mut guest = Guest::shy(Some(4 << 20));
        std::thread::sleep(Duration::from_secs(3));
        let took = reads(&mut guest, &session);
        // 2 s, less the second that may be caught up with
        assert!(took >= Duration::from_millis(740), "8 MiB in {took:?}");
    }

    /// KiB of a file in the page cache.
    fn cached(path: &std::path::Path) -> Option<u64> {
        let output = Command::new("fincore").args(["-b", "-n", "-o", "RES"]).arg(path).output().ok()?;
        Some(String::from_utf8(output.stdout).ok()?.trim().parse::<u64>().ok()? / 1024)
    }

    #[test]
    fn the_page_cache_is_as_it_was() {
        let (_runtime, session) = session();
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = folder.path().join("table.ibd");
        std::fs::write(&path, vec![1; 8 << 20]).unwrap();
        let file = File::open(&path).unwrap();
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        if cached(&path) != Some(0) {
            eprintln!("nothing tested: this filesystem keeps its pages, or fincore is not installed");
            return;
        }
        // the server's: 2 MiB of it, and a page here and there, as an index is read
        file.read_exact_at(&mut vec![0; 2 << 20], 4 << 20).unwrap();
        for n in 0..16 {
            fadvise(&file, 0, None, Advice::Random).unwrap();
            file.read_exact_at(&mut vec![0; PIECE], (n * 160 + 48) << 10).unwrap();
        }
        let before = cached(&path).unwrap();
        let mut guest =
            Guest { shy: true, max_rate: None, begun: Instant::now(), read: 0, looked: Some(0), roomy: false };
        let mut buffer = vec![0; 1 << 20];
        for n in 0..8 {
            guest.read(&file, &mut buffer, n << 20, &session).unwrap();
            assert!(buffer.iter().all(|byte| *byte == 1));
        }
        let after = cached(&path).unwrap();
        assert!(after + 64 >= before, "the server's: {before} KiB before, {after} after");
        // now and then the kernel does not let go of a read's pages (1 in 25 here); never of all reads'
        assert!(after <= before + 1024, "ours: {before} KiB before, {after} after");
    }
}
