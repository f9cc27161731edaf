//! The rules of the house that a machine can check: layers, headers, sizes, where one may print and start processes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The layers, highest first. A file imports `crate::` names from lower rows or its own module only.
const LAYERS: &[&[&str]] = &[
    &["cli", "daemon", "status", "failure", "logging"],
    &["refresh"],
    &["config", "host", "run"],
    &["transport", "agent", "authority", "store", "lock", "durable", "account"],
    &["wire", "delta", "mysql", "instance", "route", "report", "problem", "failpoint", "mutate"],
];

/// Imports within a row that are allowed: from, to.
const SAME_ROW: &[(&str, &str)] = &[
    // the edge of the program: one diagnostic, one exit code, one set-up of logs
    ("cli", "failure"),
    ("cli", "logging"),
    // the daemon is asked, or run; what goes on is shown
    ("cli", "daemon"),
    ("cli", "status"),
    ("daemon", "status"),
    ("daemon", "logging"),
    // the local transport's child process is the agent of this very program
    ("transport", "agent"),
    ("agent", "lock"),
    // what the host allows is asked on the host
    ("agent", "authority"),
    ("agent", "durable"),
    ("authority", "durable"),
    ("store", "lock"),
    ("logging", "failure"),
    // a host is a configured host, and its calls end when the run is cancelled
    ("host", "config"),
    ("host", "run"),
    // data that is made of other data
    ("wire", "delta"),
    ("wire", "instance"),
    ("wire", "problem"),
    ("report", "problem"),
    ("report", "wire"),
    ("failpoint", "problem"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<(PathBuf, String)> {
    let src = root().join("src");
    rust_files(&src)
        .into_iter()
        .map(|p| (p.strip_prefix(&src).unwrap().to_owned(), fs::read_to_string(&p).unwrap()))
        .collect()
}

/// True for unit tests in files of their own.
fn is_test(path: &Path) -> bool {
    path.components().any(|part| ["tests", "tests.rs", "fuzz.rs"].contains(&part.as_os_str().to_str().unwrap()))
}

/// The lines of a file that are neither comments nor its unit tests.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut skipping = false;
    text.lines().enumerate().map(|(n, line)| (n + 1, line)).filter(move |(_, line)| {
        skipping |= line.starts_with("#[cfg(test)]");
        let skipped = skipping || line.trim_start().starts_with("//");
        // a test module reaches to its closing brace at the left margin
        skipping &= *line != "}";
        !skipped
    })
}

/// The top-level module a file belongs to; None for lib.rs and main.rs.
fn module(path: &Path) -> Option<String> {
    let first = path.components().next()?.as_os_str().to_str()?.to_owned();
    let name = first.strip_suffix(".rs").unwrap_or(&first).to_owned();
    (!["lib", "main"].contains(&name.as_str())).then_some(name)
}

fn row(module: &str) -> Option<usize> {
    LAYERS.iter().position(|row| row.contains(&module))
}

/// Every `crate::NAME` of a line, those in braces included.
fn crate_names(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for part in text.split("crate::").skip(1) {
        let word = |s: &str| s.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        if let Some(list) = part.strip_prefix('{') {
            let list = list.split(';').next().unwrap();
            let mut depth = 0;
            let mut start = true;
            for (at, c) in list.char_indices() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' if depth == 0 => start = true,
                    c if start && c.is_alphabetic() => {
                        names.insert(word(&list[at..]));
                        start = false;
                    }
                    _ => {}
                }
                if depth < 0 {
                    break;
                }
            }
        } else {
            names.insert(word(part));
        }
    }
    names.retain(|n| !n.is_empty() && n.chars().next().is_some_and(char::is_lowercase));
    names
}

#[test]
fn imports_go_down() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let Some(from) = module(&path) else { continue };
        let Some(from_row) = row(&from) else {
            wrong.push(format!("{}: the module {from} has no layer", path.display()));
            continue;
        };
        let text: String = code(&text).map(|(_, line)| format!("{line}\n")).collect();
        for to in crate_names(&text) {
            let Some(to_row) = row(&to) else { continue };
            let allowed = to == from || to_row > from_row || SAME_ROW.contains(&(from.as_str(), to.as_str()));
            if !allowed {
                wrong.push(format!("{}: {from} imports {to}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "imports only go down:\n{}", wrong.join("\n"));
}

#[test]
fn modules_of_a_row_form_no_circle() {
    let mut left: Vec<_> = SAME_ROW.to_vec();
    loop {
        let before = left.len();
        // an edge whose end has no edge of its own leads nowhere back
        let starts: BTreeSet<_> = left.iter().map(|(from, _)| *from).collect();
        left.retain(|(_, to)| starts.contains(to));
        if left.len() == before {
            break;
        }
    }
    assert!(left.is_empty(), "{left:?}");
    for (from, to) in SAME_ROW {
        assert_eq!(row(from), row(to), "{from} and {to} are not of one row");
    }
}

#[test]
fn agents_know_nothing_of_transports_and_the_lowest_row_does_no_io() {
    for (path, text) in sources() {
        let Some(from) = module(&path) else { continue };
        for (n, line) in code(&text) {
            assert!(!(from == "agent" && line.contains("crate::transport")), "{}:{n}: {line}", path.display());
            if ["mysql", "delta"].contains(&from.as_str()) {
                for io in ["std::fs", "std::net", "tokio::", "std::env", "File::open"] {
                    assert!(!line.contains(io), "{}:{n}: {from} does no I/O: {line}", path.display());
                }
            }
        }
    }
}

#[test]
fn the_import_reader_reads_imports() {
    let names = |text: &str| crate_names(text).into_iter().collect::<Vec<_>>().join(" ");
    assert_eq!(names("use crate::wire::{a, b};"), "wire");
    assert_eq!(names("use crate::{lock::{self, Lock}, wire, delta::hash::Hash};"), "delta lock wire");
    assert_eq!(names("crate::failpoint::hit(x)?; crate::Thing"), "failpoint");
    let text = "a\n// b\n#[cfg(test)]\nmod tests {\n  x\n}\nc\n";
    assert_eq!(code(text).map(|l| l.1).collect::<Vec<_>>(), ["a", "c"]);
}

#[test]
fn no_room_for_odds_and_ends() {
    for (path, _) in sources() {
        for part in path.with_extension("").components() {
            let name = part.as_os_str().to_str().unwrap();
            let banned = ["common", "util", "utils", "helper", "helpers", "types", "misc"];
            assert!(!banned.contains(&name), "{} says nothing of what is in it", path.display());
        }
    }
}

#[test]
fn every_file_opens_by_saying_what_it_is_for() {
    let tests = rust_files(&root().join("tests")).into_iter().map(|p| (p.clone(), fs::read_to_string(&p).unwrap()));
    for (path, text) in sources().into_iter().chain(tests) {
        let first = text.lines().next().unwrap_or_default();
        assert!(
            first.starts_with("//! ") && first.len() > 20,
            "{} does not open with `//!` and a sentence",
            path.display()
        );
    }
}

#[test]
fn no_file_is_too_long() {
    for (path, text) in sources() {
        let lines = text.lines().count();
        assert!(lines <= 600, "{} has {lines} lines", path.display());
    }
}

#[test]
fn only_the_edge_prints() {
    for (path, text) in sources() {
        // a daemon's log, where no journal is; a test says what it could not test
        if path.starts_with("cli") || path == Path::new("logging.rs") || is_test(&path) {
            continue;
        }
        for (n, line) in code(&text) {
            for print in ["println!", "eprintln!", "print!(", "eprint!(", "dbg!", "std::io::stdout", "io::stderr"] {
                assert!(!line.contains(print), "src/{}:{n} prints: {line}", path.display());
            }
        }
    }
}

#[test]
fn processes_are_started_in_few_places() {
    for (path, text) in sources() {
        let allowed = path.starts_with("transport") || path.starts_with("agent") || path == Path::new("config/secret.rs")
            // becomes this program once more, without the password among its arguments
            || path == Path::new("cli/one_off.rs")
            // becomes this program once more, as the account that owns the state
            || path == Path::new("cli/own_account.rs")
            // asks the service manager for a lock against shutdown
            || path == Path::new("daemon/service.rs");
        for (n, line) in code(&text) {
            let starts =
                line.contains("process::Command") || line.contains("Command::new") || line.contains("tokio::process");
            assert!(allowed || !starts, "src/{}:{n} starts processes: {line}", path.display());
        }
    }
}

#[test]
fn nothing_ends_the_process_past_the_guards() {
    for (path, text) in sources() {
        if is_test(&path) {
            continue;
        }
        for (n, line) in code(&text) {
            for word in ["process::exit", "process::abort", "todo!(", "unimplemented!(", "unsafe "] {
                assert!(!line.contains(word), "src/{}:{n}: {line}", path.display());
            }
            for word in [".unwrap()", ".expect(\""] {
                assert!(!line.contains(word), "src/{}:{n} may panic: {line}", path.display());
            }
        }
    }
}

#[test]
fn main_is_a_door() {
    assert!(fs::read_to_string(root().join("src/main.rs")).unwrap().lines().count() < 20);
    let lib = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    for line in lib.lines().filter(|l| !l.is_empty()) {
        assert!(
            line.starts_with("//!") || line.starts_with("pub mod ") || line.starts_with("#!["),
            "lib.rs holds code: {line}"
        );
    }
    for module in LAYERS.iter().flat_map(|row| row.iter()) {
        assert!(lib.contains(&format!("pub mod {module};")), "the layer table names {module}, which is not in lib.rs");
    }
}

#[test]
fn no_test_file_is_forgotten() {
    for folder in ["tests/it", "tests/fuzz", "tests/hosts"] {
        let folder = root().join(folder);
        let main = fs::read_to_string(folder.join("main.rs")).unwrap();
        for path in rust_files(&folder) {
            let name = path.file_stem().unwrap().to_str().unwrap();
            assert!(name == "main" || main.contains(&format!("mod {name};")), "{name}.rs is not in main.rs");
        }
    }
}

#[test]
fn an_ignored_test_names_an_issue() {
    for path in rust_files(&root().join("tests")).into_iter().chain(rust_files(&root().join("src"))) {
        for (n, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            let attribute = line.trim().starts_with(concat!("#[", "ignore"));
            assert!(!attribute || line.contains("issue"), "{}:{}: {line}", path.display(), n + 1);
        }
    }
}

#[test]
fn what_is_long_is_the_same_for_both_runners() {
    let (nextest, script) = (
        fs::read_to_string(root().join(".config/nextest.toml")).unwrap(),
        fs::read_to_string(root().join("utils/test.sh")).unwrap(),
    );
    let value = |name: &str| {
        let line = script.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix("='")).unwrap();
        line.trim_end_matches('\'').to_owned()
    };
    let filter = format!(
        "default-filter = \"not (test(/^{}/) or (binary(hosts) and test(/^({})::/)))\"",
        value("LONG_POINTS"),
        value("LONG")
    );
    assert!(nextest.lines().any(|line| line == filter), "{filter}");
}

#[test]
fn the_top_level_is_as_agreed() {
    let allowed = [
        "Cargo.toml",
        "Cargo.lock",
        "src",
        "systemd",
        "config",
        "tests",
        "benches",
        "utils",
        "README.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "LICENSE",
        "LICENSE-MIT",
        "LICENSE-APACHE",
        "clippy.toml",
        "deny.toml",
        "rustfmt.toml",
        "target",
    ];
    for entry in fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(name.starts_with('.') || allowed.contains(&name.as_str()), "{name} at the top level");
    }
}
