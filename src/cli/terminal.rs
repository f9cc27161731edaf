//! What a person sees while a run goes on: one line for each finished step, and on a terminal a bar with bytes, rate and time
//! left. Views of the run's events; decides nothing.

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use secrecy::SecretString;

use crate::problem::{Kind, Outcome, Problem};
use crate::report::{Event, Sink, Stamped, human_bytes};

/// How much to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Volume {
    /// Nothing but errors.
    Quiet,
    /// Steps, waits, warnings.
    Normal,
    /// Notes, too.
    Verbose,
}

/// Asks for a secret, which is not shown. Without a terminal there is nobody to ask.
pub fn secret(question: &str) -> Outcome<SecretString> {
    match rpassword::prompt_password(question) {
        Ok(text) if text.is_empty() => Err(Problem::new(Kind::Usage, "no password was typed")),
        Ok(text) => Ok(SecretString::from(text)),
        Err(error) => Err(Problem::new(Kind::Usage, "there is no terminal to ask for a password")
            .because(error)
            .hint("Name a file or command with `sudo_password` of the host instead.")),
    }
}

/// Events as JSON lines on stdout.
pub fn json() -> Sink {
    Arc::new(|stamped: &Stamped| {
        if let Ok(line) = serde_json::to_string(stamped) {
            super::out(&line);
        }
    })
}

/// Events for a person, on stderr.
pub fn person(volume: Volume) -> Sink {
    let view = Mutex::new(View::new());
    Arc::new(move |stamped: &Stamped| {
        if volume != Volume::Quiet {
            view.lock().unwrap_or_else(PoisonError::into_inner).show(&stamped.run, &stamped.event, volume);
        }
    })
}

struct View {
    bar: Option<ProgressBar>,
}

impl View {
    fn new() -> Self {
        Self { bar: None }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(text)),
            None => say(text),
        }
    }

    fn show(&mut self, run: &str, event: &Event, volume: Volume) {
        match event {
            Event::RunStarted { refresh, source, destinations } => {
                let from = if source.is_empty() { String::new() } else { format!("{source} → ") };
                self.line(&format!("run {run}: {refresh}: {from}{}", destinations.join(", ")));
                if std::io::stderr().is_terminal() {
                    self.bar = Some(bar());
                }
            }
            Event::StepStarted { step } => {
                if let Some(bar) = &self.bar {
                    bar.reset();
                    bar.set_length(0);
                    bar.set_style(spinner());
                    bar.set_message(step.name());
                }
            }
            Event::Progress { done, total, what } => self.progress(*done, *total, what),
            Event::StepFinished { step, ms, ok } => {
                self.line(&format!(
                    "  {} {:<10} {:>8.2} s",
                    if *ok { "✓" } else { "✗" },
                    step.name(),
                    *ms as f64 / 1000.0
                ));
            }
            Event::Waiting { host, holder } => self.line(&match holder {
                Some(h) => format!(
                    "  … waiting for {host}: held by run {} of {} on {} since {}, in step {}",
                    h.run, h.refresh, h.host, h.since, h.step
                ),
                None => format!("  … waiting for {host}: held by another run"),
            }),
            Event::Note { host, text } if volume == Volume::Verbose => {
                self.line(&format!("    {}{text}", prefix(host)))
            }
            Event::Note { .. } => {}
            Event::Warning { host, text } => self.line(&format!("  ! {}{text}", prefix(host))),
            Event::Undo { what, problem } => self.line(&match problem {
                None => format!("  ↩ {what}"),
                Some(problem) => format!("  ✗ NOT put back: {what}: {problem}"),
            }),
            Event::RunFinished(_) => {
                if let Some(bar) = self.bar.take() {
                    bar.finish_and_clear();
                }
            }
        }
    }

    fn progress(&self, done: u64, total: u64, what: &str) {
        let Some(bar) = &self.bar else { return };
        if what == "bytes" {
            if bar.length() != Some(total) {
                bar.set_style(bytes());
                bar.set_length(total);
            }
            bar.set_position(done);
        } else {
            bar.set_message(if total > 0 { format!("{done}/{total} {what}") } else { format!("{done} {what}") });
        }
    }
}

fn prefix(host: &str) -> String {
    if host.is_empty() { String::new() } else { format!("{host}: ") }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0).with_style(spinner());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

fn spinner() -> ProgressStyle {
    ProgressStyle::with_template("  {spinner} {msg} {elapsed}").unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn bytes() -> ProgressStyle {
    ProgressStyle::with_template("  {spinner} {msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// A line on stderr; a closed stderr is no reason to fail.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", plain(text));
}

/// Without control characters: some texts come from hosts, and a terminal obeys what it is shown.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && !matches!(c, '\n' | '\t') { '·' } else { c }).collect()
}

/// An empty screen.
pub fn clear() {
    let _ = write!(std::io::stdout(), "\x1b[H\x1b[2J");
}

/// Columns of the terminal, or of a page where there is none.
pub fn width() -> usize {
    console_width().unwrap_or(100)
}

fn console_width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    (size.ws_col > 0).then_some(usize::from(size.ws_col))
}

/// A finished run in a few lines.
pub fn summary(s: &crate::report::Summary) -> String {
    let seconds = |ms: u64| format!("{:.2} s", ms as f64 / 1000.0);
    let mut lines = vec![format!("{}: {} in {} (run {})", s.refresh, s.ending.name(), seconds(s.total_ms), s.id)];
    if let Some(outage) = s.outage_ms {
        let parts = s.outage_parts().filter(|parts| !parts.is_empty()).map_or_else(String::new, |p| format!(" ({p})"));
        lines.push(format!("  source down   {}{parts}", seconds(outage)));
    }
    if let Some(held) = s.held_ms {
        lines.push(format!("  not stopped   its writes were held for {}", seconds(held)));
    }
    if let Some(image) = &s.image {
        lines.push(format!(
            "  image         {} files, {}, sent {}, BLAKE3 {}",
            s.files,
            human_bytes(s.bytes),
            human_bytes(s.sent_bytes),
            &image[..16.min(image.len())]
        ));
        if let Some(taken) = &s.taken {
            lines.push(format!(
                "  taken         {taken}; read {}, {} of it while the source was down; {} were lacking",
                human_bytes(s.read_bytes),
                human_bytes(s.cold_bytes),
                human_bytes(s.changed_bytes)
            ));
        }
    }
    for d in &s.destinations {
        let unknown = s.not_put_back.iter().any(|problem| problem.to_string().contains(&d.host));
        let state = match (d.refreshed, s.refresh.starts_with("rollback of ")) {
            (true, true) => "rolled back",
            (true, false) => "refreshed",
            (false, _) if unknown => "not refreshed; not everything could be put back, look at what it serves",
            (false, _) => "not refreshed, serves what it served before",
        };
        lines.push(format!("  {:<13} {state}", d.host));
        // what was done to a copy that is gone again is of no interest
        lines.extend(d.notes.iter().filter(|_| d.refreshed).map(|note| format!("                {note}")));
        if let Some(problem) = &d.problem {
            lines.push(format!("                {problem}"));
        }
    }
    lines.join("\n")
}
