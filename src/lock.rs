//! File locks (fs2) that say who holds them: one for each instance, on the controller and on the host.
//!
//! A lock lives as long as its value. Lock files are never removed: two holders at once were seen after unlink and
//! re-create. Knows nothing of waiting policies; callers poll `try_take`.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::problem::{Explain, Outcome};
use crate::wire::message::Holder;

/// A lock that is held.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

/// What a try gave.
#[derive(Debug)]
pub enum Taken {
    /// It is ours now.
    Ours(Lock),
    /// Someone else's; None: the holder has not written its name yet.
    Theirs(Option<Holder>),
}

/// The lock file for an instance's key below a state folder.
pub fn path(state_dir: &Path, key: &str) -> PathBuf {
    state_dir.join("locks").join(format!("{key}.lock"))
}

/// Tries to take the lock, without waiting. The file and its folder are created.
pub fn try_take(path: &Path, holder: &Holder) -> Outcome<Taken> {
    let mut file = open(path)?;
    match fs2::FileExt::try_lock_exclusive(&file) {
        Ok(()) => {
            let mut lock = Lock { file, path: path.to_owned() };
            // on a full disk the lock holds all the same; it only cannot say whose it is
            let _ = lock.describe(holder);
            Ok(Taken::Ours(lock))
        }
        Err(error) if error.raw_os_error() == fs2::lock_contended_error().raw_os_error() => {
            let mut text = String::new();
            let _ = file.read_to_string(&mut text);
            Ok(Taken::Theirs(serde_json::from_str(&text).ok()))
        }
        Err(error) => Err(error).explain(|| format!("cannot lock {}", path.display())),
    }
}

/// Waits for the lock, blocking, for at most `limit`; None when it stayed taken.
pub fn take_within(path: &Path, limit: Duration) -> Outcome<Option<Lock>> {
    let file = open(path)?;
    let begun = Instant::now();
    loop {
        match fs2::FileExt::try_lock_exclusive(&file) {
            Ok(()) => return Ok(Some(Lock { file, path: path.to_owned() })),
            Err(error) if error.raw_os_error() != fs2::lock_contended_error().raw_os_error() => {
                return Err(error).explain(|| format!("cannot lock {}", path.display()));
            }
            Err(_) if begun.elapsed() >= limit => return Ok(None),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn open(path: &Path) -> Outcome<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).explain(|| format!("cannot create {}", folder.display()))?;
    }
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o640)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
        .open(path)
        .explain(|| format!("cannot open {}", path.display()))
}

impl Lock {
    /// Writes who holds it and how far it is; readers of a half-written text see no holder for a moment.
    pub fn describe(&mut self, holder: &Holder) -> Outcome<()> {
        let text = serde_json::to_vec(holder).explain(|| "cannot describe a lock's holder")?;
        let write = |file: &mut File| {
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&text)
        };
        write(&mut self.file).explain(|| format!("cannot write {}", self.path.display()))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // the text stays: a reader between truncation and unlock would see a lock that nobody holds
        let _ = fs2::FileExt::unlock(&self.file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(run: &str) -> Holder {
        Holder {
            run: run.into(),
            refresh: "nightly".into(),
            pid: 1,
            host: "h".into(),
            since: "2026-01-01T00:00:00Z".into(),
            step: "copy".into(),
        }
    }

    #[test]
    fn one_holder_at_a_time_and_it_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = path(dir.path(), "abc");
        let Taken::Ours(first) = try_take(&file, &holder("r1")).unwrap() else { panic!("free lock not taken") };
        match try_take(&file, &holder("r2")).unwrap() {
            Taken::Theirs(Some(who)) => assert_eq!(who, holder("r1")),
            other => panic!("{other:?}"),
        }
        drop(first);
        assert!(matches!(try_take(&file, &holder("r2")).unwrap(), Taken::Ours(_)));
        assert!(file.exists());
    }
}
