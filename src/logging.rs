//! The log: one file a day in a folder of its own, as JSON lines or text, with the run's id in every line and one summary
//! line for each run.
//!
//! Written synchronously, so that the last line survives an abort. A log that cannot be written is a warning, never a reason
//! not to run. Retention is limited to the log's own names; still the folder is for nothing else.

use std::path::Path;

use tracing::{error, info, warn};
use tracing_appender::rolling::{RollingFileAppender, Rotation};
use tracing_subscriber::EnvFilter;

use crate::config::{Daemon, LogFormat};
use crate::failure;
use crate::problem::{Outcome, Problem};
use crate::report::{Event, Stamped, Summary};

/// Begins to log. An error is worth a warning.
pub fn start(daemon: &Daemon) -> Outcome<()> {
    let cannot = |error: &dyn std::error::Error| {
        Problem::failed(format!("cannot log to {}", daemon.log_dir.display()))
            .cause(error.to_string())
            .hint("Run as the account that owns it, or set `daemon.log_dir`.")
    };
    std::fs::create_dir_all(&daemon.log_dir).map_err(|e| cannot(&e))?;
    let appender = appender(&daemon.log_dir, daemon.log_keep).map_err(|e| cannot(&e))?;
    let filter = EnvFilter::new(format!("mysql_refreshd={}", daemon.log_level));
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::sync::Mutex::new(appender)).with_ansi(false);
    let started = match daemon.log_format {
        LogFormat::Json => builder.json().flatten_event(true).with_target(false).try_init(),
        LogFormat::Text => builder.with_target(false).try_init(),
    };
    started.map_err(|e| Problem::failed("cannot start logging").cause(e.to_string()))
}

fn appender(folder: &Path, keep: usize) -> Result<RollingFileAppender, tracing_appender::rolling::InitError> {
    RollingFileAppender::builder()
        .rotation(Rotation::DAILY)
        .filename_prefix("mysql-refreshd")
        .filename_suffix("log")
        .max_log_files(keep)
        .build(folder)
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
    let outage_ms = s.outage_ms.unwrap_or(0);
    if code == failure::DONE {
        info!(
            run,
            summary = true,
            refresh = s.refresh,
            ending,
            code,
            outage_ms,
            total_ms = s.total_ms,
            files = s.files,
            bytes = s.bytes,
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
            total_ms = s.total_ms,
            files = s.files,
            bytes = s.bytes,
            sent_bytes = s.sent_bytes,
            refreshed,
            failed,
            problem,
            "run finished"
        );
    }
}
