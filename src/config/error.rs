//! What is wrong with a configuration: a list, because an operator wants to correct a file once.
//!
//! Texts only; never the value of anything that could be a secret.

use std::borrow::Cow;
use std::fmt;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The full key; empty when a layer as a whole could not be read.
    pub key: String,
    /// The file, environment variable or flag in which it was set.
    pub origin: String,
    /// What is wrong.
    pub problem: String,
    /// What to do, as a sentence.
    pub hint: Option<String>,
}

/// Characters of a key that are shown; names are shorter than a fifth of this.
const LONGEST: usize = 400;

impl fmt::Display for ConfigError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: ", self.origin)?;
        if !self.key.is_empty() {
            write!(out, "{}: ", self.shown_key())?;
        }
        out.write_str(&self.problem)?;
        match &self.hint {
            Some(hint) => write!(out, " (hint: {hint})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ConfigError {}

impl ConfigError {
    /// The key as a message can bear it: anything may stand where a key was expected, of any length.
    pub fn shown_key(&self) -> Cow<'_, str> {
        let begin = self.key.char_indices().nth(LONGEST / 2).map(|(at, _)| at);
        let end = self.key.char_indices().nth_back(LONGEST / 2 - 1).map(|(at, _)| at);
        match (begin, end) {
            (Some(begin), Some(end)) if begin < end => {
                Cow::Owned(format!("{}…{}", &self.key[..begin], &self.key[end..]))
            }
            _ => Cow::Borrowed(&self.key),
        }
    }
}

/// Everything that is wrong, at least one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                out.write_str("\n")?;
            }
            error.fmt(out)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_any_length_stays_readable() {
        let error = |key: String| {
            ConfigError { key, origin: "--set".into(), problem: "there is no such key".into(), hint: None }.to_string()
        };
        assert_eq!(error("daemon.é".into()), "--set: daemon.é: there is no such key");
        let whole = "k".repeat(LONGEST);
        assert_eq!(error(whole.clone()), format!("--set: {whole}: there is no such key"));
        let long = error(format!("daemon.{}.end", "é".repeat(200_000)));
        assert!(long.starts_with("--set: daemon.éé") && long.ends_with("éé.end: there is no such key"), "{long}");
        assert_eq!(long.chars().count(), "--set: …: there is no such key".chars().count() + LONGEST);
    }
}
