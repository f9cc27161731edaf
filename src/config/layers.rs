//! The layers of the configuration, merged: main file, `conf.d`, environment, flags; later ones win.
//!
//! Tables merge key by key; everything else, arrays included, is replaced as a whole. Each value keeps the mark of the
//! layer it came from. Knows nothing of what the keys mean.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use figment::providers::{Format, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};

use super::error::ConfigError;

/// What every environment variable of ours begins with.
const PREFIX: &str = "MYSQL_REFRESHD_";

/// Variables with our prefix that are no configuration keys: the path of the main file and the test hooks.
const RESERVED: [&str; 2] = ["MYSQL_REFRESHD_CONFIG", "MYSQL_REFRESHD_FAIL"];

/// More parts than any real key has. Tables are walked recursively, so their depth must have an end.
const DEEPEST_KEY: usize = 16;

/// Where the configuration comes from. The environment is passed in, so that whoever reads a configuration says which.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The main file; `conf.d/*.toml` beside it are read after it, in byte order.
    pub file: PathBuf,
    /// The main file may be missing: everything else is said on the command line.
    pub optional: bool,
    /// The values of `--set`, `a.b.c=value` each, in the order given.
    pub set: Vec<String>,
    /// Environment variables by name; those that are not ours are passed over.
    pub env: Vec<(String, String)>,
}

impl Sources {
    /// The variables of this process that begin as ours do, for `env`. One that is not valid UTF-8 is kept, damaged, so
    /// that it is refused rather than passed over (`std::env::vars` would panic).
    pub fn process_env() -> Vec<(String, String)> {
        let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        let all = std::env::vars_os().map(|(name, value)| (text(name), text(value)));
        all.filter(|(name, _)| is_ours(name)).collect()
    }
}

/// All layers, merged.
pub(super) struct Layers {
    /// The merged values and where each came from.
    pub figment: Figment,
    /// What could not be read.
    pub errors: Vec<ConfigError>,
}

impl Layers {
    /// Reads every layer there is. What cannot be read is an error, and the rest is read all the same.
    pub fn read(sources: &Sources) -> Self {
        let mut layers = Self { figment: Figment::new(), errors: Vec::new() };
        let needed = !is_missing(&sources.file) || !(sources.optional || defines_hosts(sources));
        let main = needed.then(|| sources.file.clone());
        for file in main.into_iter().chain(layers.drop_ins(&sources.file)) {
            match read_file(&file) {
                Ok(layer) => layers.add(layer),
                Err(error) => layers.errors.push(error),
            }
        }
        let mut variables: Vec<_> = sources.env.iter().filter(|(name, _)| is_ours(name)).collect();
        variables.sort();
        for (name, text) in variables {
            let parts: Vec<String> = name[PREFIX.len()..].to_lowercase().split("__").map(str::to_owned).collect();
            layers.add_text(format!("environment variable {}", plain(name)), &parts, text);
        }
        for flag in &sources.set {
            let (key, text) = flag.split_once('=').unwrap_or((flag, ""));
            let origin = format!("--set {}", plain(key));
            if !flag.contains('=') {
                let hint = Some("Write `--set KEY=VALUE`, for example `--set daemon.log_level=debug`.".to_owned());
                layers.fail(origin, "there is no `=`".to_owned(), hint);
                continue;
            }
            let parts: Vec<String> = key.trim().split('.').map(str::to_owned).collect();
            layers.add_text(origin, &parts, text);
        }
        layers
    }

    fn add(&mut self, layer: Layer) {
        self.figment = std::mem::take(&mut self.figment).merge(layer);
    }

    fn fail(&mut self, origin: String, problem: String, hint: Option<String>) {
        self.errors.push(ConfigError { key: String::new(), origin, problem, hint });
    }

    /// Adds one value from the environment or a flag.
    fn add_text(&mut self, origin: String, parts: &[String], text: &str) {
        if parts.iter().any(String::is_empty) || parts.len() > DEEPEST_KEY {
            let hint = "Name every part of the key once; the environment separates them by two underscores, as in \
                        MYSQL_REFRESHD_DAEMON__LOG_LEVEL.";
            return self.fail(origin, "this is not a key".to_owned(), Some(hint.to_owned()));
        }
        let value = match parse_text(text) {
            Ok(value) => value,
            Err(reason) => {
                let hint = "A value that begins with `[`, `{` or a quote is read as TOML; quote it as a whole.";
                return self.fail(origin, format!("the value is not valid TOML: {reason}"), Some(hint.to_owned()));
            }
        };
        let mut nested = value;
        for part in parts.iter().skip(1).rev() {
            nested = Value::from(Dict::from([(part.clone(), nested)]));
        }
        let values = Dict::from([(parts[0].clone(), nested)]);
        self.add(Layer { metadata: Metadata::named(origin), values });
    }

    /// The files of `conf.d` beside the main file, in byte order of their names.
    fn drop_ins(&mut self, main: &Path) -> Vec<PathBuf> {
        let folder = main.parent().unwrap_or(Path::new("")).join("conf.d");
        let listed = std::fs::read_dir(&folder).and_then(|entries| {
            entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<PathBuf>, _>>()
        });
        let mut files = match listed {
            Ok(files) => files,
            Err(error) if error.kind() == ErrorKind::NotFound => return Vec::new(),
            Err(error) => {
                self.fail(shown(&folder), format!("the folder cannot be read: {error}"), None);
                return Vec::new();
            }
        };
        let hidden = |file: &PathBuf| file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        files.retain(|file| file.extension().is_some_and(|end| end == "toml") && !hidden(file));
        files.sort();
        files
    }
}

/// One layer's values, all with the same origin.
struct Layer {
    metadata: Metadata,
    values: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        self.metadata.clone()
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.values.clone())]))
    }
}

fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX) && !RESERVED.contains(&name)
}

fn is_missing(file: &Path) -> bool {
    std::fs::symlink_metadata(file).is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

/// Whether environment and flags alone name a host, so that a missing main file is meant.
fn defines_hosts(sources: &Sources) -> bool {
    let in_env = |name: &str| is_ours(name) && name[PREFIX.len()..].to_lowercase().starts_with("environments");
    sources.env.iter().any(|(name, _)| in_env(name))
        || sources.set.iter().any(|flag| flag.trim_start().starts_with("environments"))
}

/// A value from the environment or a flag: TOML where it begins like an array, table or quoted text, the text itself
/// otherwise. What the text stands for is decided where it is read, so that `007` is not turned into a number first.
fn parse_text(text: &str) -> Result<Value, String> {
    if !text.trim_start().starts_with(['[', '{', '"', '\'']) {
        return Ok(Value::from(text));
    }
    let mut values = parse_toml(&format!("value = {text}")).map_err(|(_, reason)| reason)?;
    match values.remove("value") {
        Some(value) if values.is_empty() => Ok(value),
        _ => Err("there is more than one value".to_owned()),
    }
}

fn read_file(file: &Path) -> Result<Layer, ConfigError> {
    let origin = shown(file);
    let fail = |problem: String, hint: Option<&str>| ConfigError {
        key: String::new(),
        origin: origin.clone(),
        problem,
        hint: hint.map(str::to_owned),
    };
    let text = std::fs::read_to_string(file).map_err(|error| match error.kind() {
        ErrorKind::NotFound => fail(
            "there is no such file".to_owned(),
            Some("Copy config/minimal.toml there and adapt it; config/config.toml explains every key."),
        ),
        ErrorKind::InvalidData => fail("the file is not valid UTF-8".to_owned(), None),
        _ => fail(format!("the file cannot be read: {error}"), None),
    })?;
    let values = parse_toml(&text).map_err(|(line, reason)| fail(format!("line {line}: {reason}"), None))?;
    Ok(Layer { metadata: Metadata::from(origin.clone(), file), values })
}

/// Parses TOML; an error is its line and what is wrong there, without the text of the line, which may hold a secret.
fn parse_toml(text: &str) -> Result<Dict, (usize, String)> {
    if let Err(error) = toml::from_str::<toml::Table>(text) {
        let offset = error.span().map_or(0, |span| span.start);
        let line = text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1;
        return Err((line, error.message().trim().replace('\n', ", ")));
    }
    let mut profiles = Toml::string(text).data().map_err(|error| (1, error.to_string()))?;
    Ok(profiles.remove(&Profile::Default).unwrap_or_default())
}

fn shown(path: &Path) -> String {
    plain(&path.display().to_string())
}

/// Text from outside, safe to show on one line.
fn plain(text: &str) -> String {
    let mut shown = String::new();
    for letter in text.chars().take(200) {
        if letter.is_control() {
            shown.extend(letter.escape_default());
        } else {
            shown.push(letter);
        }
    }
    shown
}
