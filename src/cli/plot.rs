//! Outage and duration of past runs as bars in a terminal. Pure: rows in, text out.

use crate::report::Ending;
use crate::store::RunRow;

/// Eighths of a block.
const PARTS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];

/// A bar of `value` where `most` fills `width`.
fn bar(value: u64, most: u64, width: usize) -> String {
    let eighths = (value as f64 / most.max(1) as f64 * (width * 8) as f64).round() as usize;
    let mut text = "█".repeat(eighths / 8);
    if !eighths.is_multiple_of(8) {
        text.push(PARTS[eighths % 8]);
    } else if eighths == 0 && value > 0 {
        text.push(PARTS[1]);
    }
    format!("{text}{}", " ".repeat(width.saturating_sub(text.chars().count())))
}

/// Milliseconds for people.
fn short(ms: u64) -> String {
    match ms {
        0..60_000 => format!("{:.1} s", ms as f64 / 1000.0),
        60_000..3_600_000 => format!("{} m {:02} s", ms / 60_000, ms / 1000 % 60),
        _ => format!("{} h {:02} m", ms / 3_600_000, ms / 60_000 % 60),
    }
}

/// Newest first, as they come; `width`: columns of the terminal.
pub(super) fn draw(rows: &[RunRow], width: usize) -> String {
    let finished: Vec<_> =
        rows.iter().filter_map(|row| Some((row, row.summary.as_ref().filter(|s| s.total_ms > 0)?))).collect();
    if finished.is_empty() {
        return "No finished runs yet.".into();
    }
    let (times, figures) = (16, 12);
    let name = finished.iter().map(|(row, _)| row.refresh.chars().count()).max().unwrap_or(0);
    let bars = width.saturating_sub(times + name + 2 * figures + 6).max(20) / 2;
    let most_down = finished.iter().filter_map(|(_, s)| s.outage_ms).max().unwrap_or(0);
    let most = finished.iter().map(|(_, s)| s.total_ms).max().unwrap_or(0);
    let mut lines = vec![format!(
        "{:<times$} {:<name$} {:>figures$} {:<bars$} {:>figures$} {}",
        "started", "", "source down", "", "took", ""
    )];
    for (row, summary) in finished {
        let down = summary.outage_ms.unwrap_or(0);
        let started = row.started.get(..16).unwrap_or(&row.started).replace('T', " ");
        let mark = if summary.ending == Ending::Done { String::new() } else { format!(" {}", summary.ending.name()) };
        let outage = summary.outage_ms.map_or_else(|| "-".to_owned(), short);
        lines.push(
            format!(
                "{started:<times$} {:<name$} {outage:>figures$} {} {:>figures$} {}{mark}",
                row.refresh,
                bar(down, most_down, bars),
                short(summary.total_ms),
                bar(summary.total_ms, most, bars).trim_end(),
            )
            .trim_end()
            .to_owned(),
        );
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Summary;

    #[test]
    fn bars_are_to_scale() {
        assert_eq!(bar(50, 100, 10), "█████     ");
        assert_eq!(bar(100, 100, 4), "████");
        assert_eq!(bar(1, 100_000, 4), "▏   ", "something is never nothing");
        assert_eq!(bar(0, 0, 3), "   ");
    }

    #[test]
    fn a_run_is_a_line() {
        let row = |ending, outage_ms, total_ms| RunRow {
            run: "r".into(),
            refresh: "nightly".into(),
            started: "2026-11-27T02:30:00Z".into(),
            finished: Some(String::new()),
            summary: Some(Summary { outage_ms, total_ms, ..Summary::of_nothing("r", "nightly", ending) }),
            armed: 0,
            interrupted: false,
        };
        let text = draw(&[row(Ending::Done, Some(2_000), 65_000), row(Ending::Refused, None, 1_000)], 100);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(
            lines[1].contains("2026-11-27 02:30 nightly")
                && lines[1].contains("2.0 s █")
                && lines[1].contains("1 m 05 s █")
        );
        assert!(lines[2].ends_with("refused") && lines[2].contains(" - "), "{text}");
        assert!(lines.iter().all(|line| line.chars().count() <= 110), "{text}");
    }
}
