//! From problems and summaries to exit codes and to the text a person reads. The only place that knows exit codes.
//!
//! The numbers are documented in README.md and are never used for anything else again; a number that is not listed means
//! failure.

use crate::problem::{Kind, Problem};
use crate::report::{Ending, Summary};

/// Everything was done.
pub const DONE: u8 = 0;
/// Failed; everything was put back.
pub const FAILED: u8 = 1;
/// Bad usage or configuration.
pub const USAGE: u8 = 2;
/// Another run holds a lock.
pub const LOCKED: u8 = 3;
/// Refused by a safety rule; nothing was touched.
pub const REFUSED: u8 = 4;
/// Failed, and not all was put back: a human is needed.
pub const HUMAN: u8 = 5;
/// Some destinations are done, some failed.
pub const PARTIAL: u8 = 6;
/// Cancelled; everything was put back.
pub const CANCELLED: u8 = 130;

/// The exit code of a problem outside a run.
pub fn of_problem(problem: &Problem) -> u8 {
    match problem.kind {
        Kind::Usage => USAGE,
        Kind::Refused => REFUSED,
        Kind::Locked => LOCKED,
        Kind::Cancelled => CANCELLED,
        Kind::Human => HUMAN,
        Kind::Failed | Kind::Lost => FAILED,
    }
}

/// The exit code of a run.
pub fn of_summary(summary: &Summary) -> u8 {
    match summary.ending {
        // to be left out then was its own wish
        Ending::Done | Ending::Skipped => DONE,
        Ending::Failed => FAILED,
        Ending::Usage => USAGE,
        Ending::Locked => LOCKED,
        Ending::Refused => REFUSED,
        Ending::Human => HUMAN,
        Ending::Partial => PARTIAL,
        Ending::Cancelled => CANCELLED,
    }
}

/// Of two exit codes the one that matters more.
pub fn worse(a: u8, b: u8) -> u8 {
    const ORDER: [u8; 8] = [HUMAN, FAILED, PARTIAL, REFUSED, LOCKED, USAGE, CANCELLED, DONE];
    let rank = |code: u8| ORDER.iter().position(|c| *c == code).unwrap_or(0);
    if rank(a) <= rank(b) { a } else { b }
}

/// A problem as a person reads it: what, why, what to do.
pub fn text(problem: &Problem) -> String {
    let mut lines = vec![format!("error: {}", problem.message)];
    lines.extend(problem.causes.iter().map(|cause| format!("caused by: {}", cause.replace('\n', "\n    "))));
    lines.extend(problem.hints.iter().map(|hint| format!("hint: {hint}")));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_human_is_needed_before_all_else() {
        assert_eq!(worse(DONE, HUMAN), HUMAN);
        assert_eq!(worse(CANCELLED, DONE), CANCELLED);
        assert_eq!(worse(PARTIAL, FAILED), FAILED);
        assert_eq!(worse(DONE, DONE), DONE);
    }

    #[test]
    fn text_has_causes_and_hints() {
        let problem = Problem::failed("cannot do it").cause("a\nb").hint("Do it yourself.");
        assert_eq!(text(&problem), "error: cannot do it\ncaused by: a\n    b\nhint: Do it yourself.");
    }
}
