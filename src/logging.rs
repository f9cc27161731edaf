//! The log: one file a day in a folder of its own, as JSON lines or text, with the run's id in every line and one summary
//! line for each run.
//!
//! Written synchronously, so that the last line survives an abort. A log that cannot be written is a warning, never a reason
//! not to run. Retention touches the log's own files only. Under a service manager every line goes to its journal, too, with
//! fields.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tracing::{error, info, warn};
use tracing_appender::rolling::{RollingFileAppender, Rotation};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::config::{Daemon, LogFormat};
use crate::failure;
use crate::problem::{Outcome, Problem};
use crate::report::{Event, Stamped, Summary};

/// Whether the log is heard elsewhere, too: in the service manager's journal, or where there is none, on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aloud {
    /// It is: nobody else shows what goes on.
    Yes,
    /// It is not: a view of the events is shown.
    No,
}

/// Begins to log. An error is worth a warning.
pub fn start(daemon: &Daemon, aloud: Aloud) -> Outcome<()> {
    let cannot = |error: &dyn std::error::Error| {
        Problem::failed(format!("cannot log to {}", daemon.log_dir.display()))
            .cause(error.to_string())
            .hint("Run as the account that owns it, or set `daemon.log_dir`.")
    };
    let filter = EnvFilter::new(format!("mysql_refreshd={}", daemon.log_level));
    let journal = (aloud == Aloud::Yes).then(journal).flatten();
    let console = (aloud == Aloud::Yes && journal.is_none())
        .then(|| tracing_subscriber::fmt::layer().with_writer(console).with_ansi(false).with_target(false));
    let files = files(&daemon.log_dir, daemon.log_keep);
    let (writer, failed) = match files {
        Ok(files) => (Some(Mutex::new(files)), None),
        Err(error) => (None, Some(cannot(&error))),
    };
    let file = writer.map(|writer| {
        let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false).with_target(false);
        match daemon.log_format {
            LogFormat::Json => layer.json().flatten_event(true).boxed(),
            LogFormat::Text => layer.boxed(),
        }
    });
    let started = tracing_subscriber::registry().with(filter).with(journal).with(console).with(file).try_init();
    started.map_err(|e| Problem::failed("cannot start logging").cause(e.to_string()))?;
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        error!(panic = %panic, "a fault of this program");
        before(panic);
    }));
    failed.map_or(Ok(()), Err)
}

/// The only writer to stderr beside the command line's own.
fn console() -> std::io::Stderr {
    std::io::stderr()
}

/// The journal, with fields, where a service manager has connected it; else nobody.
fn journal() -> Option<tracing_journald::Layer> {
    std::env::var_os("JOURNAL_STREAM")?;
    Some(tracing_journald::layer().ok()?.with_syslog_identifier("mysql-refreshd".to_owned()))
}

/// The log's files: one for each day, so many of them. What else lies in the folder is nobody's business here.
struct Files {
    folder: PathBuf,
    keep: usize,
    day: String,
    appender: RollingFileAppender,
}

/// How the files are named.
const PREFIX: &str = "mysql-refreshd.";
const SUFFIX: &str = ".log";

fn files(folder: &Path, keep: usize) -> Result<Files, std::io::Error> {
    std::fs::create_dir_all(folder)?;
    // its own limit on the number of files would count and delete whatever begins and ends alike
    let appender = RollingFileAppender::builder()
        .rotation(Rotation::DAILY)
        .filename_prefix(PREFIX.trim_end_matches('.'))
        .filename_suffix(SUFFIX.trim_start_matches('.'))
        .build(folder)
        .map_err(std::io::Error::other)?;
    prune(folder, keep);
    Ok(Files { folder: folder.to_owned(), keep, day: today(), appender })
}

/// The day by which files are named: UTC, as the appender has it.
fn today() -> String {
    chrono::Utc::now().format("%Y-%m-%d").to_string()
}

impl std::io::Write for Files {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.appender.write(bytes)?;
        let day = today();
        if day != self.day {
            self.day = day;
            prune(&self.folder, self.keep);
        }
        Ok(written)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.appender.flush()
    }
}

/// Deletes the oldest of the log's own files beyond `keep`: plain files named by a day, and nothing else.
fn prune(folder: &Path, keep: usize) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let own = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.ok()?;
        let name = entry.file_name().into_string().ok()?;
        let day = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
        let is_day = day.len() == 10 && day.parse::<chrono::NaiveDate>().is_ok();
        (is_day && entry.file_type().ok()?.is_file()).then_some(name)
    };
    let mut names: Vec<String> = entries.filter_map(own).collect();
    names.sort();
    for name in &names[..names.len().saturating_sub(keep)] {
        let _ = std::fs::remove_file(folder.join(name));
    }
}

/// Writes an event to the log.
pub fn log(stamped: &Stamped) {
    let run = stamped.run.as_str();
    match &stamped.event {
        Event::RunStarted { refresh, source, destinations } => {
            info!(run, refresh, source, destinations = destinations.join(","), "run started");
        }
        Event::StepStarted { step } => tracing::debug!(run, %step, "step started"),
        Event::StepFinished { step, ms, ok } => info!(run, %step, ms, ok, "step finished"),
        Event::Progress { done, total, what } => tracing::trace!(run, done, total, what, "progress"),
        Event::Waiting { host, holder } => {
            let (by, step) = holder.as_ref().map_or(("", ""), |h| (h.run.as_str(), h.step.as_str()));
            info!(run, host, by, step, "waiting for a lock");
        }
        Event::Note { host, text } => info!(run, host, "{text}"),
        Event::Warning { host, text } => warn!(run, host, "{text}"),
        Event::Undo { what, problem: None } => info!(run, what, "put back"),
        Event::Undo { what, problem: Some(problem) } => error!(run, what, %problem, "not put back"),
        Event::RunFinished(summary) => log_summary(run, summary),
    }
}

fn log_summary(run: &str, s: &Summary) {
    let refreshed: Vec<&str> = s.destinations.iter().filter(|d| d.refreshed).map(|d| d.host.as_str()).collect();
    let failed: Vec<&str> = s.destinations.iter().filter(|d| !d.refreshed).map(|d| d.host.as_str()).collect();
    let problem = s.problem.as_ref().map(ToString::to_string).unwrap_or_default();
    let (refreshed, failed) = (refreshed.join(","), failed.join(","));
    let (ending, code) = (s.ending.name(), failure::of_summary(s));
    let (outage_ms, held_ms) = (s.outage_ms.unwrap_or(0), s.held_ms.unwrap_or(0));
    let taken = s.taken.as_ref().map(ToString::to_string).unwrap_or_default();
    if code == failure::DONE {
        info!(
            run,
            summary = true,
            refresh = s.refresh,
            ending,
            code,
            outage_ms,
            held_ms,
            total_ms = s.total_ms,
            files = s.files,
            bytes = s.bytes,
            taken,
            read_bytes = s.read_bytes,
            cold_bytes = s.cold_bytes,
            changed_bytes = s.changed_bytes,
            sent_bytes = s.sent_bytes,
            refreshed,
            failed,
            "run finished"
        );
    } else {
        error!(
            run,
            summary = true,
            refresh = s.refresh,
            ending,
            code,
            outage_ms,
            held_ms,
            total_ms = s.total_ms,
            files = s.files,
            bytes = s.bytes,
            taken,
            read_bytes = s.read_bytes,
            cold_bytes = s.cold_bytes,
            changed_bytes = s.changed_bytes,
            sent_bytes = s.sent_bytes,
            refreshed,
            failed,
            problem,
            "run finished"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retention_never_touches_foreign_files() {
        let dir = tempfile::tempdir().unwrap();
        let own: Vec<String> = (1..=5).map(|day| format!("mysql-refreshd.2026-01-0{day}.log")).collect();
        let foreign = [
            "mysql-refreshd.log",
            "mysql-refreshd.notes.log",
            "mysql-refreshd.2026-01-01.log.gz",
            "mysql-refreshd.2026-13-01.log",
            "mysql-refreshd-2026-01-01.log",
            "mysql-refreshd.20260101.log",
            "z.log",
        ];
        for name in own.iter().map(String::as_str).chain(foreign) {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        std::fs::create_dir(dir.path().join("mysql-refreshd.2025-01-01.log")).unwrap();
        std::os::unix::fs::symlink("z.log", dir.path().join("mysql-refreshd.2025-01-02.log")).unwrap();
        // opening makes today's, and counts it
        drop(files(dir.path(), 3).unwrap());
        let has = |name: &str| dir.path().join(name).symlink_metadata().is_ok();
        assert_eq!(own.iter().map(|name| has(name)).collect::<Vec<_>>(), [false, false, false, true, true]);
        assert!(foreign.iter().all(|name| has(name)));
        assert!(has("mysql-refreshd.2025-01-01.log") && has("mysql-refreshd.2025-01-02.log"));
    }
}
