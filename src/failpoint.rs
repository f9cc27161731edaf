//! Named points at which a test makes the program fail, hang or die.
//!
//! Compiled to nothing without the cargo feature `failpoints`; what is installed never has it. Decides nothing: a point
//! returns the failure that the test asked for, and the code around it handles that like any other.
//!
//! `MYSQL_REFRESHD_FAIL` holds `WHERE:POINT=ACTION` items, separated by commas. WHERE is the process (`controller`, `source`,
//! `destination`, `destination@ENV/HOST`, `guard`), ACTION is `error`, `kill`, `cut` (an agent's connection), each of them also as
//! `…-once:FILE` (only while there is no FILE, which it creates) and `…-at:N` (the Nth time this process comes to such a point),
//! `cut-when:FILE` (later, as soon as there is FILE, which it removes), `hold:FILE` or `sleep:MS`.

use crate::problem::Outcome;

/// The variable that holds the requests.
pub const VARIABLE: &str = "MYSQL_REFRESHD_FAIL";

#[cfg(feature = "failpoints")]
mod active {
    use std::sync::{Mutex, PoisonError};

    use crate::problem::{Outcome, Problem};

    static HITS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    static PLACES: Mutex<Vec<String>> = Mutex::new(Vec::new());

    pub fn init(places: Vec<String>) {
        *PLACES.lock().unwrap_or_else(PoisonError::into_inner) = places;
    }

    pub fn hit(point: &str) -> Outcome<()> {
        let Ok(spec) = std::env::var(super::VARIABLE) else { return Ok(()) };
        let places = PLACES.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for item in spec.split(',') {
            let Some((at, action)) = item.split_once('=') else { continue };
            if places.iter().any(|place| at == format!("{place}:{point}")) {
                act(point, action)?;
            }
        }
        Ok(())
    }

    fn act(point: &str, action: &str) -> Outcome<()> {
        let (name, detail) = action.split_once(':').unwrap_or((action, ""));
        if let Some(once) = name.strip_suffix("-once") {
            let first = std::fs::OpenOptions::new().write(true).create_new(true).open(detail).is_ok();
            return if first { act(point, once) } else { Ok(()) };
        }
        if let Some(then) = name.strip_suffix("-at") {
            let now = HITS.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
            return if detail.parse() == Ok(now) { act(point, then) } else { Ok(()) };
        }
        match (name, detail) {
            ("error", _) => return Err(Problem::failed(format!("failure injected at {point}"))),
            ("cut", _) => cut(),
            ("cut-when", file) => {
                let path = std::path::PathBuf::from(file);
                std::thread::spawn(move || {
                    while !path.exists() {
                        std::thread::sleep(std::time::Duration::from_millis(20));
                    }
                    cut();
                    let _ = std::fs::remove_file(path);
                });
            }
            ("kill", _) => {
                let me = rustix::process::getpid();
                let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
                std::thread::park();
            }
            ("hold", file) => {
                let path = std::path::Path::new(file);
                let _ = std::fs::write(path, point);
                while path.exists() {
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
            }
            ("sleep", ms) => std::thread::sleep(std::time::Duration::from_millis(ms.parse().unwrap_or(0))),
            _ => {}
        }
        Ok(())
    }

    /// An agent and its controller lose each other, and neither dies: from now on the agent reads nothing and nobody reads it.
    fn cut() {
        if let Ok(nowhere) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null") {
            let _ = rustix::stdio::dup2_stdout(&nowhere);
            let _ = rustix::stdio::dup2_stdin(&nowhere);
        }
    }
}

/// Says who this process is.
#[cfg_attr(not(feature = "failpoints"), allow(unused_variables, reason = "compiled to nothing"))]
pub fn init(places: Vec<String>) {
    #[cfg(feature = "failpoints")]
    active::init(places);
}

/// A point that a test may fail. Blocks the thread when it is told to hold.
#[cfg_attr(not(feature = "failpoints"), allow(unused_variables, reason = "compiled to nothing"))]
pub fn hit(point: &str) -> Outcome<()> {
    #[cfg(feature = "failpoints")]
    active::hit(point)?;
    Ok(())
}

/// The same from asynchronous code: a hold must not stop the runtime's other tasks, signals and heartbeats among them.
pub async fn reach(point: &str) -> Outcome<()> {
    if cfg!(feature = "failpoints") {
        let point = point.to_owned();
        return tokio::task::spawn_blocking(move || hit(&point)).await.unwrap_or(Ok(()));
    }
    Ok(())
}
