//! Tests of the configuration as a whole: here the example files, beside it the layers and the refusals.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;

mod layering;
mod refusals;

/// A folder with a main file, and what comes on top of it.
struct World {
    folder: tempfile::TempDir,
    sources: Sources,
}

const HOSTS: &str = r#"
[environments.prod]
protected = true
hosts.db1 = { datadir = "/srv/p", socket = "/srv/p.sock", service = { unit = "p" } }
[environments.rnd]
hosts.r1 = { datadir = "/srv/r1", socket = "/srv/r1.sock", service = { start = ["up", "1"], stop = ["down"] } }
hosts.r2 = { datadir = "/srv/r2/", socket = "/srv/r2.sock", service = { server = "/bin/s", defaults_file = "/r2" } }
"#;

impl World {
    fn new(main: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        fs::write(&file, main).unwrap();
        fs::create_dir(folder.path().join("conf.d")).unwrap();
        Self { folder, sources: Sources { file, ..Sources::default() } }
    }

    /// The usual hosts, and one refresh with these keys besides its hosts.
    fn refresh(keys: &str) -> Self {
        Self::new(&format!("{HOSTS}\n[refreshes.n]\nsource = \"prod\"\ndestinations = [\"rnd\"]\n{keys}\n"))
    }

    fn part(self, name: &str, text: &str) -> Self {
        fs::write(self.folder.path().join("conf.d").join(name), text).unwrap();
        self
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.sources.env.push((format!("MYSQL_REFRESHD_{name}"), value.to_owned()));
        self
    }

    fn set(mut self, flag: &str) -> Self {
        self.sources.set.push(flag.to_owned());
        self
    }

    fn load(&self) -> Result<Config, ConfigErrors> {
        load(&self.sources)
    }

    fn config(&self) -> Config {
        self.load().unwrap_or_else(|errors| panic!("{errors}"))
    }

    /// All errors as text, the folder's path cut.
    fn errors(&self) -> Vec<String> {
        let folder = format!("{}/", self.folder.path().display());
        let errors = self.load().expect_err("the configuration should be refused");
        errors.0.iter().map(|error| error.to_string().replace(&folder, "")).collect()
    }

    fn origin(&self, key: &str) -> String {
        let found = self.config().effective.into_iter().find(|effective| effective.key == key).unwrap();
        found.origin.replace(&format!("{}/", self.folder.path().display()), "")
    }
}

fn example(name: &str) -> Config {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name);
    load(&Sources { file, ..Sources::default() }).unwrap_or_else(|errors| panic!("{errors}"))
}

fn id(text: &str) -> HostId {
    text.parse().unwrap()
}

#[test]
fn the_minimal_example_loads_with_defaults() {
    let config = example("minimal.toml");
    let refresh = config.refresh("nightly").unwrap();
    assert_eq!((refresh.source.to_string(), refresh.destinations.len()), ("prod/db1".to_owned(), 1));
    assert_eq!((refresh.policy.clone(), refresh.enabled), (Policy::default(), true));
    assert!(refresh.schedule.is_none());
    let host = config.host(&id("rnd/r1")).unwrap();
    assert_eq!(host.target.described().unwrap().state_dir, PathBuf::from("/var/lib/mysql-refreshd/host"));
    assert_eq!(
        (host.target.described().unwrap().start_timeout_s, host.target.described().unwrap().stop_timeout_s),
        (300, 900)
    );
    assert_eq!(config.hosts().count(), 2);
}

#[test]
fn the_full_example_shows_every_key_with_its_default() {
    let (full, minimal) = (example("config.toml"), example("minimal.toml"));
    assert_eq!(full.refreshes["nightly"].policy, Policy::default());
    assert_eq!(full.daemon, minimal.daemon);
    assert_eq!(full.refreshes["nightly"].schedule.as_ref().unwrap().zone(), chrono_tz::UTC);
    for effective in &full.effective {
        assert_ne!(effective.origin, "default", "config.toml does not show {}", effective.key);
    }
    // What the minimal file leaves at its default has the same value in the full one.
    for effective in minimal.effective.iter().filter(|effective| effective.origin == "default") {
        let shown = full.effective.iter().find(|other| other.key == effective.key);
        assert_eq!(shown.map(|shown| &shown.value), Some(&effective.value), "{}", effective.key);
    }
}

/// What stands commented out in the full example is right too.
#[test]
fn the_alternatives_in_the_full_example_are_valid() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/config.toml");
    let text = fs::read_to_string(file).unwrap();
    let alternatives: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# "))
        .filter(|line| line.starts_with("password = ") || line.starts_with("service = "))
        .collect();
    assert_eq!(alternatives.len(), 5);
    for line in alternatives {
        let mut host = "[environments.a.hosts.b]\ndatadir = \"/d\"\nsocket = \"/s\"\n".to_owned();
        if line.starts_with("password") {
            host += "service.unit = \"u\"\n";
        }
        World::new(&format!("{host}{line}\n")).config();
    }
}

#[test]
fn an_empty_file_is_a_configuration() {
    let config = World::new("").config();
    assert_eq!((config.environments.len(), config.refreshes.len()), (0, 0));
    assert_eq!(config.daemon.host_timeout, Duration::from_secs(30));
}

#[test]
fn reserves_are_shares_and_sizes() {
    for (text, reserve, shown) in [
        ("\"0%\"", Reserve::Percent(0), "\"0%\""),
        ("\"2GiB\"", Reserve::Bytes(2 << 30), "\"2GiB\""),
        ("\"1500 mb\"", Reserve::Bytes(1_500_000_000), "\"1500MB\""),
        ("1025", Reserve::Bytes(1025), "\"1025B\""),
        ("0", Reserve::Bytes(0), "\"0B\""),
    ] {
        let config = World::refresh(&format!("space_reserve = {text}")).config();
        assert_eq!(config.refreshes["n"].policy.space_reserve, reserve);
        let effective = config.effective.iter().find(|effective| effective.key == "refreshes.n.space_reserve");
        assert_eq!(effective.unwrap().value, shown);
    }
    assert_eq!(Reserve::Percent(5).bytes_of(u64::MAX), u64::MAX / 20);
}

#[test]
fn what_is_stored_reads_back() {
    let keys = "schedule = '@daily'\ntime_zone = 'Europe/Berlin'\nblackout = ['mon-fri 08:00-18:00']\ncatch_up = '6h'";
    let config = World::refresh(keys).config();
    let refresh = config.refresh("n").unwrap();
    let text = serde_json::to_string(refresh).unwrap();
    assert_eq!(&serde_json::from_str::<Refresh>(&text).unwrap(), refresh);
    assert_eq!(postcard::from_bytes::<Refresh>(&postcard::to_stdvec(refresh).unwrap()).unwrap(), *refresh);
    let host = config.host(&id("rnd/r2")).unwrap();
    assert_eq!(host.target.described().unwrap().datadir.to_str(), Some("/srv/r2"));
    assert_eq!(&serde_json::from_str::<Host>(&serde_json::to_string(host).unwrap()).unwrap(), host);
    for wrong in ["a", "a/", "/b", "a/b/c", "A/b", "../b"] {
        assert!(wrong.parse::<HostId>().is_err() && serde_json::from_str::<HostId>(&format!("{wrong:?}")).is_err());
    }
}

#[test]
fn the_example_of_a_host_policy_is_one() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/host.toml");
    let text = fs::read_to_string(file).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.toml");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let policy = crate::authority::Policy::read(&path).unwrap().unwrap();
    assert!(policy.instances["main"].instance().unwrap().is_some());
}
