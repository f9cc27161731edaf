//! Reads the merged layers key by key: collects every error instead of stopping at the first, notes where each
//! effective value came from, and reports keys that nobody asked for.
//!
//! Knows no key of its own; `load` says which keys there are, `form` what their values look like.

use std::collections::BTreeMap;

use figment::Figment;
use figment::value::{Dict, Tag, Value};

use super::error::{ConfigError, ConfigErrors};
use super::form::{Form, Found, Mismatch, cited, describe, nearest, quoted};
use super::model::{Effective, is_name};

/// The origin of what nobody has set.
const DEFAULT: &str = "default";

/// One table of the configuration, and which of its keys have been asked for.
pub(super) struct Section<'v> {
    path: String,
    origin: String,
    values: Option<&'v Dict>,
    known: Vec<&'static str>,
    /// Something else stands where the table should; that has been reported, and nothing is said about its keys.
    broken: bool,
}

impl<'v> Section<'v> {
    /// The full key of the table.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The full key of an entry.
    pub fn key(&self, key: &str) -> String {
        join(&self.path, key)
    }

    /// Whether the key is set, rightly or not.
    pub fn has(&self, key: &str) -> bool {
        self.values.is_some_and(|values| values.contains_key(key))
    }

    /// Whether something else stands where the table should.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// A key that has been complained about: nothing more is said of it.
    pub fn skip(&mut self, key: &'static str) {
        self.known.push(key);
    }

    /// Every entry as it stands, of a table whose keys are names.
    pub fn entries(&self) -> impl Iterator<Item = (&'v str, &'v Value)> + use<'v> {
        self.values.into_iter().flatten().map(|(key, value)| (key.as_str(), value))
    }

    fn take(&mut self, key: &'static str) -> Option<&'v Value> {
        self.known.push(key);
        self.values?.get(key)
    }
}

/// The state of one reading.
pub(super) struct Reader<'v> {
    figment: &'v Figment,
    errors: Vec<ConfigError>,
    /// Value (none for a table) and origin by full key.
    seen: BTreeMap<String, (Option<String>, String)>,
    complete: bool,
}

impl<'v> Reader<'v> {
    /// Begins with what went wrong before; if anything did, a layer is missing, so nothing is said about absent keys.
    pub fn new(figment: &'v Figment, errors: Vec<ConfigError>) -> Self {
        let complete = errors.is_empty();
        Self { figment, errors, seen: BTreeMap::new(), complete }
    }

    /// The effective values in order of their keys, or everything that is wrong.
    pub fn finish(self) -> Result<Vec<Effective>, ConfigErrors> {
        if !self.errors.is_empty() {
            return Err(ConfigErrors(self.errors));
        }
        let values = self.seen.into_iter();
        Ok(values.filter_map(|(key, (value, origin))| Some(Effective { key, value: value?, origin })).collect())
    }

    /// Reports a problem with a key that has been read, or with one of a table that has been.
    pub fn fail(&mut self, key: &str, problem: impl Into<String>, hint: Option<String>) {
        let origin = self.origin(key);
        self.errors.push(ConfigError { key: key.to_owned(), origin, problem: problem.into(), hint });
    }

    /// Reports that something is not there; holds back when a layer could not be read, since it may be there.
    pub fn fail_absent(&mut self, key: &str, problem: impl Into<String>, hint: Option<String>) {
        if self.complete {
            self.fail(key, problem, hint);
        }
    }

    /// Where the key was set, or else the innermost table that would hold it.
    pub fn origin(&self, key: &str) -> String {
        let mut key = key;
        loop {
            if let Some((_, origin)) = self.seen.get(key) {
                return origin.clone();
            }
            match key.rfind('.') {
                Some(end) => key = &key[..end],
                None => return DEFAULT.to_owned(),
            }
        }
    }

    /// The whole configuration.
    pub fn root(&self, values: &'v Dict) -> Section<'v> {
        let (path, origin) = (String::new(), DEFAULT.to_owned());
        Section { path, origin, values: Some(values), known: Vec::new(), broken: false }
    }

    /// The table of this name; an empty one if there is none.
    pub fn table(&mut self, section: &mut Section<'v>, key: &'static str) -> Section<'v> {
        match section.take(key) {
            Some(value) => self.entry(section, key, value),
            None => Section {
                path: section.key(key),
                origin: section.origin.clone(),
                values: None,
                known: Vec::new(),
                broken: false,
            },
        }
    }

    /// An entry of [`Section::entries`] as a table.
    fn entry(&mut self, section: &Section<'v>, key: &str, value: &'v Value) -> Section<'v> {
        let path = section.key(key);
        let (origin, _) = self.layer(value.tag());
        self.seen.insert(path.clone(), (None, origin.clone()));
        let values = value.as_dict();
        if values.is_none() {
            let hint = "Write its keys in braces, like { key = \"value\" }, or below a [heading].".to_owned();
            self.fail(&path, format!("a table is expected here, not {}", describe(value)), Some(hint));
        }
        Section { path, origin, values, known: Vec::new(), broken: values.is_none() }
    }

    /// The entries of a table whose keys are names of the operator's choice.
    pub fn named(&mut self, table: &Section<'v>) -> Vec<(&'v str, Section<'v>)> {
        let mut entries = Vec::new();
        for (name, value) in table.entries() {
            let section = self.entry(table, name, value);
            if !is_name(name) {
                let hint = "Use at most 64 lower-case letters, digits, `-` and `_`, beginning with a letter or digit.";
                self.fail(&section.path, format!("{} is not a valid name", cited(name)), Some(hint.to_owned()));
            }
            entries.push((name, section));
        }
        entries
    }

    /// A value that may be absent.
    pub fn optional<T>(&mut self, section: &mut Section<'v>, key: &'static str, form: Form<T>) -> Option<T> {
        let value = section.take(key)?;
        self.value(&section.key(key), value, form)
    }

    /// A value that must be there.
    pub fn required<T>(&mut self, section: &mut Section<'v>, key: &'static str, form: Form<T>) -> Option<T> {
        if !section.has(key) {
            section.known.push(key);
            if !section.broken {
                self.fail_absent(&section.key(key), "this key is missing", None);
            }
            return None;
        }
        self.optional(section, key, form)
    }

    /// A value with a default.
    pub fn or<T>(&mut self, section: &mut Section<'v>, key: &'static str, form: Form<T>, default: T) -> T {
        if !section.has(key) {
            section.known.push(key);
            self.seen.insert(section.key(key), (Some((form.show)(&default)), DEFAULT.to_owned()));
            return default;
        }
        self.optional(section, key, form).unwrap_or(default)
    }

    /// Any value, under its full key.
    pub fn value<T>(&mut self, path: &str, value: &'v Value, form: Form<T>) -> Option<T> {
        let (origin, loose) = self.layer(value.tag());
        match (form.read)(&Found { value, loose }) {
            Ok(read) => {
                self.seen.insert(path.to_owned(), (Some((form.show)(&read)), origin));
                Some(read)
            }
            Err(Mismatch { problem, hint }) => {
                self.seen.insert(path.to_owned(), (None, origin));
                self.fail(path, problem, hint);
                None
            }
        }
    }

    /// Reports the keys of a table that nobody has asked for.
    pub fn close(&mut self, section: Section<'v>) {
        for (key, value) in section.entries().filter(|(key, _)| !section.known.contains(key)) {
            let (origin, _) = self.layer(value.tag());
            let hint = match nearest(key, section.known.iter().copied()) {
                Some(near) => format!("Did you mean `{near}`?"),
                None => format!("The keys known here are {}.", section.known.join(", ")),
            };
            let (key, problem) = (section.key(key), "there is no such key".to_owned());
            self.errors.push(ConfigError { key, origin, problem, hint: Some(hint) });
        }
    }

    /// The layer a value came from, and whether it was given as bare text.
    fn layer(&self, tag: Tag) -> (String, bool) {
        match self.figment.get_metadata(tag) {
            Some(metadata) => (metadata.name.to_string(), metadata.source.is_none()),
            None => (DEFAULT.to_owned(), false),
        }
    }
}

/// A full key; a part that is no bare TOML key is quoted, so that it stays on one line and is told from two parts.
fn join(path: &str, key: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    let part = if !key.is_empty() && key.bytes().all(bare) { key.to_owned() } else { quoted(key) };
    if path.is_empty() { part } else { format!("{path}.{part}") }
}
