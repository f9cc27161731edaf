//! What went wrong, in a form that crosses the wire, the journal and the terminal unchanged.
//!
//! Below the edge every failure is a `Problem`: a kind (what the run must do about it), one sentence, its causes and hints.
//! Knows nothing of exit codes; only `failure` does. Carries no secret: whoever builds one keeps them out.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What kind of failure it is: decides the exit code and whether anything has to be put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Bad usage or configuration; nothing was tried.
    Usage,
    /// A safety rule said no before anything was touched.
    Refused,
    /// Another run holds a lock.
    Locked,
    /// A step failed; undo applies.
    Failed,
    /// The operator or the service manager asked to stop.
    Cancelled,
    /// The connection to a host's agent is gone.
    Lost,
    /// Something could not be put back: a human must act.
    Human,
}

/// One failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What kind of failure.
    pub kind: Kind,
    /// One sentence, lower case, no full stop.
    pub message: String,
    /// What lies beneath, nearest first.
    pub causes: Vec<String>,
    /// What to do, as sentences.
    pub hints: Vec<String>,
    /// It may be over in a moment: worth another try where nothing was done yet.
    #[serde(default)]
    pub passing: bool,
}

/// The result of anything that can fail.
pub type Outcome<T> = Result<T, Problem>;

impl Problem {
    /// A problem of the given kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), causes: Vec::new(), hints: Vec::new(), passing: false }
    }
    /// A step failed.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }
    /// A safety rule said no.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(Kind::Refused, message)
    }
    /// The run was cancelled.
    pub fn cancelled() -> Self {
        Self::new(Kind::Cancelled, "cancelled")
    }
    /// Adds an error and everything beneath it.
    #[must_use]
    pub fn because(mut self, cause: impl std::error::Error) -> Self {
        self.causes.push(cause.to_string());
        let mut next = cause.source();
        while let Some(error) = next {
            let text = error.to_string();
            // many libraries repeat the cause in their own text
            if !self.causes.last().is_some_and(|last| last.contains(&text)) {
                self.causes.push(text);
            }
            next = error.source();
        }
        self
    }
    /// Adds a cause in words.
    #[must_use]
    pub fn cause(mut self, cause: impl Into<String>) -> Self {
        self.causes.push(cause.into());
        self
    }
    /// Adds a hint: a sentence with an action.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }
    /// Puts a sentence above what is there: the old message becomes the first cause.
    #[must_use]
    pub fn during(mut self, message: impl Into<String>) -> Self {
        self.causes.insert(0, std::mem::replace(&mut self.message, message.into()));
        self
    }
    /// Says on which host it happened.
    #[must_use]
    pub fn on(mut self, host: impl fmt::Display) -> Self {
        self.message = format!("{host}: {}", self.message);
        self
    }
    /// It may be over in a moment.
    #[must_use]
    pub fn passing(mut self) -> Self {
        self.passing = true;
        self
    }
    /// The same with another kind.
    #[must_use]
    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        // one line: what spans several (the end of a log) is for those who show problems in full
        for cause in self.causes.iter().filter(|cause| !cause.contains('\n')) {
            write!(f, ": {cause}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problem {}

/// Turns a library's error into a problem with a sentence of ours above it.
pub trait Explain<T> {
    /// The sentence is built only when there is an error.
    fn explain<S: Into<String>>(self, message: impl FnOnce() -> S) -> Outcome<T>;
}

impl<T, E: std::error::Error> Explain<T> for Result<T, E> {
    fn explain<S: Into<String>>(self, message: impl FnOnce() -> S) -> Outcome<T> {
        self.map_err(|error| Problem::failed(message()).because(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_kept_in_order() {
        let io = std::io::Error::other("disk on fire");
        let p = Problem::failed("cannot write x").because(io).during("copy failed").hint("Buy a disk.");
        assert_eq!(p.to_string(), "copy failed: cannot write x: disk on fire");
        assert_eq!(p.hints, ["Buy a disk."]);
    }
}
