//! What single values look like in the configuration: how each kind is read, checked and shown again.
//!
//! Sees one value at a time: whatever needs a second one is checked in `load` or `check`. Does no I/O.

use std::path::{Component, PathBuf};
use std::time::Duration;

use chrono_tz::Tz;
use figment::value::Value;

use super::policy::{Choice, Compression, Reserve, parse_size, show_size};
use super::timing::CatchUp;

/// The longest duration taken: far beyond any use, and far from overflowing a clock.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// A value as found in a layer.
pub(super) struct Found<'v> {
    pub value: &'v Value,
    /// From the environment or a flag, where everything is text.
    pub loose: bool,
}

/// Why a value cannot stand here.
pub(super) struct Mismatch {
    pub problem: String,
    pub hint: Option<String>,
}

type Read<T> = Result<T, Mismatch>;

/// A kind of value: how it is read and how it is shown.
pub(super) struct Form<T> {
    pub read: fn(&Found<'_>) -> Read<T>,
    pub show: fn(&T) -> String,
}

fn wrong<T>(problem: impl Into<String>) -> Read<T> {
    Err(Mismatch { problem: problem.into(), hint: None })
}

fn wrong_hint<T>(problem: impl Into<String>, hint: impl Into<String>) -> Read<T> {
    Err(Mismatch { problem: problem.into(), hint: Some(hint.into()) })
}

/// The text as a TOML string. JSON's escapes are a part of TOML's; it leaves the controls from 7F to 9F, which terminals obey too.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::new();
    for letter in serde_json::Value::from(text).to_string().chars() {
        match letter {
            '\u{7f}'..='\u{9f}' => quoted.push_str(&format!("\\u{:04x}", u32::from(letter))),
            _ => quoted.push(letter),
        }
    }
    quoted
}

/// Text from the configuration within a message: quoted, and not longer than a message can bear.
pub(super) fn cited(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => quoted(&format!("{}…", &text[..end])),
        None => quoted(text),
    }
}

/// The candidate that was probably meant.
pub(super) fn nearest<'c>(text: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    // The distance is quadratic in the length, and the text is anyone's.
    if text.len() > 100 {
        return None;
    }
    let allowed = (text.chars().count() / 3).max(1);
    candidates
        .map(|candidate| (strsim::damerau_levenshtein(text, candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, candidate)| candidate)
}

/// What kind of value it is, without the value.
pub(super) fn describe(value: &Value) -> &'static str {
    match value {
        Value::String(..) | Value::Char(..) => "a text",
        Value::Bool(..) => "true or false",
        Value::Num(..) => "a number",
        Value::Empty(..) => "nothing",
        Value::Dict(_, entries) if entries.keys().any(|key| key.starts_with("$__toml")) => "a date",
        Value::Dict(..) => "a table",
        Value::Array(..) => "an array",
    }
}

/// A text; a number or a boolean is taken as it is written.
fn scalar(found: &Found<'_>) -> Read<String> {
    match found.value {
        Value::String(_, text) => Ok(text.clone()),
        Value::Char(_, letter) => Ok(letter.to_string()),
        Value::Bool(_, flag) => Ok(flag.to_string()),
        Value::Num(_, number) => {
            let whole = number.to_i128().map(|number| number.to_string());
            let natural = || number.to_u128().map(|number| number.to_string());
            let broken = || number.to_f64().map(|number| number.to_string());
            Ok(whole.or_else(natural).or_else(broken).unwrap_or_default())
        }
        other => wrong(format!("a text is expected, not {}", describe(other))),
    }
}

fn line(found: &Found<'_>) -> Read<String> {
    let text = scalar(found)?;
    if text.is_empty() {
        return wrong("it must not be empty");
    }
    if text.chars().any(char::is_control) {
        return wrong("it must not contain control characters or line breaks");
    }
    Ok(text)
}

/// One line of text, not empty.
pub(super) const TEXT: Form<String> = Form { read: line, show: |text| quoted(text) };

/// True or false.
pub(super) const FLAG: Form<bool> = Form {
    read: |found| match found.value {
        Value::Bool(_, flag) => Ok(*flag),
        Value::String(_, text) if found.loose && text.trim() == "true" => Ok(true),
        Value::String(_, text) if found.loose && text.trim() == "false" => Ok(false),
        Value::String(_, text) => wrong_hint(
            format!("true or false is expected, not {}", cited(text)),
            "Write true or false, without quotes.",
        ),
        other => wrong(format!("true or false is expected, not {}", describe(other))),
    },
    show: bool::to_string,
};

/// A number of things, at least one.
pub(super) const COUNT: Form<usize> = Form {
    read: |found| {
        let number = match found.value {
            Value::String(_, text) if found.loose => text.trim().parse::<u128>().ok(),
            value => value.to_u128().or_else(|| value.to_i128()?.try_into().ok()),
        };
        match number {
            Some(number @ 1..=10_000) => Ok(number as usize),
            _ => wrong("a whole number from 1 to 10000 is expected"),
        }
    },
    show: usize::to_string,
};

fn duration(found: &Found<'_>) -> Read<Duration> {
    const HINT: &str = "Write a number and a unit, like \"30s\", \"5m\" or \"2h\".";
    let text = scalar(found)?;
    match humantime::parse_duration(text.trim()) {
        Ok(duration) if duration <= LONGEST => Ok(duration),
        Ok(_) => wrong(format!("{} is too long, the longest is a year", cited(&text))),
        Err(_) if text.trim().bytes().all(|byte| byte.is_ascii_digit()) && !text.trim().is_empty() => {
            wrong_hint(format!("{} has no unit of time", cited(&text)), HINT)
        }
        Err(_) => wrong_hint(format!("{} is not a duration", cited(&text)), HINT),
    }
}

fn show_duration(duration: &Duration) -> String {
    quoted(&humantime::format_duration(*duration).to_string())
}

/// A duration, which may be zero.
pub(super) const DURATION: Form<Duration> = Form { read: duration, show: show_duration };

/// A duration of at least a second.
pub(super) const PERIOD: Form<Duration> = Form {
    read: |found| match duration(found)? {
        short if short < Duration::from_secs(1) => wrong("it must be at least one second"),
        long => Ok(long),
    },
    show: show_duration,
};

/// True, false, or until when.
pub(super) const CATCH_UP: Form<CatchUp> = Form {
    read: |found| match found.value {
        Value::String(_, text) if !matches!(text.trim(), "true" | "false") => duration(found).map(CatchUp::Within),
        Value::Bool(..) | Value::String(..) => {
            (FLAG.read)(found).map(|yes| if yes { CatchUp::Yes } else { CatchUp::No })
        }
        other => wrong_hint(
            format!("true, false or a duration is expected, not {}", describe(other)),
            "Write true, false, or until when: \"6h\".",
        ),
    },
    show: |catch_up| match catch_up {
        CatchUp::No => "false".to_owned(),
        CatchUp::Yes => "true".to_owned(),
        CatchUp::Within(limit) => show_duration(limit),
    },
};

/// An absolute path. The value is not repeated in messages: someone may have written a secret there.
pub(super) const PATH: Form<PathBuf> = Form {
    read: |found| {
        let path = PathBuf::from(line(found)?);
        if !path.is_absolute() {
            return wrong_hint("it must be an absolute path", "Write the whole path, beginning with `/`.");
        }
        if path.components().any(|part| part == Component::ParentDir) {
            return wrong("it must not contain `..`");
        }
        // Collected anew, so that `/a//b/.` and `/a/b` are the same.
        let path: PathBuf = path.components().collect();
        match path.parent() {
            Some(_) => Ok(path),
            None => wrong("it must not be the root folder"),
        }
    },
    show: |path| quoted(&path.to_string_lossy()),
};

/// The path of a unix socket.
pub(super) const SOCKET: Form<PathBuf> = Form {
    read: |found| match (PATH.read)(found)? {
        // The kernel's limit: sun_path has 108 bytes, one of them for the end.
        long if long.as_os_str().len() > 107 => wrong("the path of a socket must not be longer than 107 bytes"),
        path => Ok(path),
    },
    show: PATH.show,
};

/// A word that is put into a command line of ours: no spaces, no quotes, and not the look of an option.
pub(super) const WORD: Form<String> = Form {
    read: |found| {
        let text = line(found)?;
        let odd = |c: char| c.is_whitespace() || "'\"\\`$;&|<>(){}*?!#%,".contains(c);
        if text.starts_with('-') || text.len() > 255 || text.contains(odd) {
            return wrong(format!(
                "{} cannot stand here: letters, digits, `.`, `_`, `-`, `:` and `@` can",
                cited(&text)
            ));
        }
        Ok(text)
    },
    show: TEXT.show,
};

/// A TCP port.
pub(super) const PORT: Form<u16> = Form {
    read: |found| {
        let number = match found.value {
            Value::String(_, text) if found.loose => text.trim().parse::<u128>().ok(),
            value => value.to_u128().or_else(|| value.to_i128()?.try_into().ok()),
        };
        match number {
            Some(port @ 1..=65_535) => Ok(port as u16),
            _ => wrong("a port from 1 to 65535 is expected"),
        }
    },
    show: u16::to_string,
};

/// A number of sessions; None: as many as the link asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sessions(pub Option<u8>);

/// `auto`, or a number from 1 to 8.
pub(super) const SESSIONS: Form<Sessions> = Form {
    read: |found| {
        let text = scalar(found)?;
        match text.trim() {
            "auto" => Ok(Sessions(None)),
            number => match number.parse() {
                Ok(number @ 1..=8) => Ok(Sessions(Some(number))),
                _ => wrong(format!("{} is not \"auto\" or a number from 1 to 8", cited(&text))),
            },
        }
    },
    show: |sessions| sessions.0.map_or_else(|| quoted("auto"), |number| number.to_string()),
};

/// A host key: `TYPE BASE64` as in a .pub file, its comment left out, or a fingerprint.
pub(super) const HOST_KEY: Form<String> = Form {
    read: |found| {
        let text = line(found)?;
        let base64 =
            |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b));
        let words: Vec<&str> = text.split_whitespace().collect();
        let plain = |word: &str| word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.@".contains(&b));
        match words[..] {
            [fingerprint] if fingerprint.strip_prefix("SHA256:").is_some_and(base64) => Ok(text),
            [kind, key] | [kind, key, _] if plain(kind) && base64(key) && key.len() > 40 => Ok(format!("{kind} {key}")),
            _ => wrong_hint(
                "this is no host key",
                "Write what stands in the host's /etc/ssh/ssh_host_ed25519_key.pub, or its fingerprint, SHA256:….",
            ),
        }
    },
    show: TEXT.show,
};

/// A list of texts. From the environment or a flag a single one may stand without brackets.
pub(super) const WORDS: Form<Vec<String>> = Form {
    read: |found| match found.value {
        Value::Array(_, items) => items.iter().map(|value| line(&Found { value, loose: found.loose })).collect(),
        Value::String(..) if found.loose => Ok(vec![line(found)?]),
        other => wrong_hint(
            format!("an array is expected, not {}", describe(other)),
            "Write it in brackets, like [\"one\", \"two\"].",
        ),
    },
    show: |words| format!("[{}]", words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(", ")),
};

/// A program and its arguments.
pub(super) const COMMAND: Form<Vec<String>> = Form {
    read: |found| match (WORDS.read)(found)? {
        none if none.is_empty() => wrong("the program is missing"),
        words => Ok(words),
    },
    show: WORDS.show,
};

/// Names at the top of a datadir, each with an optional `*` at its end.
pub(super) const PATTERNS: Form<Vec<String>> = Form {
    read: |found| {
        let patterns = (WORDS.read)(found)?;
        for pattern in &patterns {
            let name = pattern.strip_suffix('*').unwrap_or(pattern);
            if name.is_empty() || name.contains(['/', '*']) || name == "." || name == ".." {
                return wrong_hint(
                    format!("{} is not a name at the top of a datadir", cited(pattern)),
                    "Write a plain name, or the beginning of one followed by `*`.",
                );
            }
        }
        Ok(patterns)
    },
    show: WORDS.show,
};

/// One word of a list.
pub(super) const fn choice<T: Choice + std::fmt::Display>() -> Form<T> {
    Form {
        read: |found| {
            let text = scalar(found)?;
            if let Some((_, choice)) = T::WORDS.iter().find(|(word, _)| *word == text) {
                return Ok(*choice);
            }
            let words: Vec<&str> = T::WORDS.iter().map(|(word, _)| *word).collect();
            if T::LATER.contains(&text.as_str()) {
                return wrong_hint(
                    format!("{} is not in this version", cited(&text)),
                    format!("Write \"{}\".", words.join("\" or \"")),
                );
            }
            one_of(&text, &words)
        },
        show: |choice| quoted(choice.word()),
    }
}

fn one_of<T>(text: &str, words: &[&str]) -> Read<T> {
    let problem = format!("{} is not one of {}", cited(text), words.join(", "));
    match nearest(text, words.iter().copied()) {
        Some(near) => wrong_hint(problem, format!("Did you mean `{near}`?")),
        None => wrong(problem),
    }
}

/// How much is logged.
pub(super) const LOG_LEVEL: Form<String> = Form {
    read: |found| {
        const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];
        let text = scalar(found)?;
        if LEVELS.contains(&text.as_str()) { Ok(text) } else { one_of(&text, &LEVELS) }
    },
    show: TEXT.show,
};

/// An IANA time zone.
pub(super) const ZONE: Form<Tz> = Form {
    read: |found| {
        let text = scalar(found)?;
        text.parse().or_else(|_| {
            let names = chrono_tz::TZ_VARIANTS.iter().map(|zone| zone.name());
            let hint = match nearest(&text, names) {
                Some(near) => format!("Did you mean `{near}`?"),
                None => "Write an IANA name, like `Europe/Berlin` or `UTC`.".to_owned(),
            };
            wrong_hint(format!("{} is not a time zone", cited(&text)), hint)
        })
    },
    show: |zone| quoted(zone.name()),
};

/// A systemd service; the ending may be left out.
pub(super) const UNIT: Form<String> = Form {
    read: |found| {
        let text = line(found)?;
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b":_.\\@-".contains(&byte);
        if text.starts_with('-') || text.len() > 255 || !text.bytes().all(allowed) {
            return wrong(format!("{} is not the name of a systemd unit", cited(&text)));
        }
        let others = [".socket", ".target", ".timer", ".path", ".mount", ".slice", ".scope", ".device"];
        if others.iter().any(|end| text.ends_with(end)) {
            return wrong_hint(format!("{} is not a service", cited(&text)), "Name the server's `.service` unit.");
        }
        Ok(if text.ends_with(".service") { text } else { format!("{text}.service") })
    },
    show: TEXT.show,
};

/// How blocks are compressed.
pub(super) const COMPRESSION: Form<Compression> = Form {
    read: |found| {
        let text = scalar(found)?;
        let problem = || format!("{} is not \"auto\", \"none\" or a level from 1 to 19", cited(&text));
        Compression::parse(text.trim()).map_or_else(|| wrong(problem()), Ok)
    },
    show: |compression| match compression {
        Compression::Level(level) => level.to_string(),
        word => quoted(&word.to_string()),
    },
};

/// A share or a size to be left free.
pub(super) const RESERVE: Form<Reserve> = Form {
    read: |found| {
        let text = scalar(found)?;
        match Reserve::parse(text.trim()) {
            Some(reserve) => Ok(reserve),
            None => wrong_hint(
                format!("{} is neither a share from 0% to 99% nor a size", cited(&text)),
                "Write it like \"5%\", \"2GiB\" or \"500MB\".",
            ),
        }
    },
    show: |reserve| quoted(&reserve.to_string()),
};

/// Bytes a second.
pub(super) const RATE: Form<u64> = Form {
    read: |found| {
        let text = scalar(found)?;
        match parse_size(text.trim()).filter(|rate| *rate >= 1 << 20) {
            Some(rate) => Ok(rate),
            None => wrong_hint(
                format!("{} is no number of bytes a second from 1 MiB on", cited(&text)),
                "Write it like \"50MB\" or \"100MiB\"; without it there is no limit.",
            ),
        }
    },
    show: |rate| quoted(&show_size(*rate)),
};

/// The name of a systemd credential: a plain file name.
pub(super) const CREDENTIAL: Form<String> = Form {
    read: |found| match line(found)? {
        path if path.contains('/') || path == "." || path == ".." => wrong("it must be a plain name, not a path"),
        name => Ok(name),
    },
    show: TEXT.show,
};

/// The value of a server variable. Booleans are written as the server shows them.
pub(super) const SETTING: Form<String> = Form {
    read: |found| {
        let text = match found.value {
            Value::Bool(_, true) => "ON".to_owned(),
            Value::Bool(_, false) => "OFF".to_owned(),
            _ => scalar(found)?,
        };
        if text.chars().any(char::is_control) {
            return wrong("it must not contain control characters or line breaks");
        }
        Ok(text)
    },
    show: TEXT.show,
};

/// The value of a server variable that holds a secret.
pub(super) const SECRET_SETTING: Form<String> = Form { read: SETTING.read, show: |_| quoted("(hidden)") };
