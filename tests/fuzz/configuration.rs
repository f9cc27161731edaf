//! The configuration in all its layers, and a host's policy: a file that is wrong is refused with words that name it, one that is not
//! does what it says, and nobody consents to more by a file that is broken.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use mysql_refreshd::authority::consent::{self, Grant, Machine};
use mysql_refreshd::authority::{Authority, Policy};
use mysql_refreshd::config::{Config, ConfigErrors, Host, HostId, Refresh, Sources, load};
use mysql_refreshd::instance::{Service, Target};
use mysql_refreshd::mutate;
use mysql_refreshd::problem::Problem;
use mysql_refreshd::wire::message::Role;

use crate::{alone, samples};

/// Longer than any file takes that a person could have written.
const SLOW: Duration = Duration::from_secs(5);

fn shipped(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name)).unwrap()
}

/// The shipped files, and one that says what they leave out.
fn texts() -> Vec<String> {
    let more = r#"
[environments.a.hosts.x]
datadir = "/srv/x"
socket = "/srv/x.sock"
service = { start = ["/bin/up", "1"], stop = ["/bin/down"] }
password = { command = ["/usr/bin/pass", "x"] }
[environments.b.ssh]
port = 2222
sessions = 4
host_key = "SHA256:abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG"
[environments.b.hosts.y]
transport = "ssh"
address = "y.example.com"
[refreshes.one]
source = "a/x"
destinations = ["b"]
schedule = "0 30 2 1-7 * mon#1 2026-2030"
time_zone = "America/New_York"
blackout = ["mon-fri 08:00-18:00", "2026-12-24..2027-01-02", "22:00-04:00"]
catch_up = "6h"
jitter = "15m"
space_reserve = "2GiB"
compression = 3
[refreshes.two]
source = "a/x"
destinations = ["b/y"]
after = "one"
"#;
    vec![shipped("config.toml"), shipped("minimal.toml"), more.to_owned()]
}

/// Loads, and uses what has come out as the program does.
fn judge(sources: &Sources) -> bool {
    let begun = Instant::now();
    let good = match load(sources) {
        Ok(config) => {
            use_it(&config);
            true
        }
        Err(errors) => {
            refused(&errors);
            false
        }
    };
    assert!(begun.elapsed() < SLOW, "it took {:?}", begun.elapsed());
    good
}

fn refused(ConfigErrors(errors): &ConfigErrors) {
    assert!(!errors.is_empty());
    for error in errors {
        let text = error.to_string();
        assert!(!error.origin.is_empty() && !error.problem.is_empty(), "{text}");
        // a file, a variable or a flag; or the key that is missing everywhere
        assert!(error.origin != "default" || !error.key.is_empty(), "{text}");
        assert!(!text.chars().any(char::is_control), "{text:?}");
        assert!(text.len() < 200_000, "{} bytes of text", text.len());
    }
}

fn use_it(config: &Config) {
    let moments: [DateTime<Utc>; 4] =
        ["2026-11-27T02:30:00Z", "1970-01-01T00:00:00Z", "2027-03-28T01:00:00Z", "9999-12-31T23:59:59Z"]
            .map(|text| text.parse().unwrap());
    for refresh in config.refreshes.values() {
        for moment in moments {
            let next = refresh.schedule.as_ref().and_then(|schedule| schedule.next_after(moment));
            assert!(next.is_none_or(|next| next > moment));
            let _ = refresh.blackout.until(moment);
            assert!(refresh.blackout.weekly().until(moment).is_none_or(|end| end > moment));
        }
        assert!(config.host(&refresh.source).is_some() && !refresh.destinations.is_empty());
        assert!(!refresh.destinations.contains(&refresh.source));
        let protected = |id: &HostId| config.environments[id.environment()].protected;
        assert!(refresh.destinations.iter().all(|id| config.host(id).is_some() && !protected(id)));
        let text = serde_json::to_string(refresh).unwrap();
        assert_eq!(&serde_json::from_str::<Refresh>(&text).unwrap(), refresh);
    }
    for host in config.hosts() {
        let text = serde_json::to_string(host).unwrap();
        assert_eq!(&serde_json::from_str::<Host>(&text).unwrap(), host);
        if let Some(instance) = host.target.described() {
            assert!(instance.datadir.is_absolute() && instance.state_dir.is_absolute());
        }
    }
}

#[test]
fn damaged_configurations() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let sources = Sources { file: folder.path().join("config.toml"), ..Sources::default() };
    let texts = texts();
    for text in &texts {
        fs::write(&sources.file, text).unwrap();
        assert!(judge(&sources), "{}", load(&sources).unwrap_err());
    }
    mutate::run("configuration", move |rng| {
        fs::write(&sources.file, mutate::text(rng, &texts)).unwrap();
        judge(&sources);
        let _ = &folder;
    });
}

#[test]
fn damaged_layers_above_the_file() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    fs::create_dir(folder.path().join("conf.d")).unwrap();
    let texts = texts();
    let keys: Vec<(String, String)> = {
        fs::write(&file, &texts[2]).unwrap();
        let config = load(&Sources { file: file.clone(), ..Sources::default() }).unwrap();
        config.effective.into_iter().map(|value| (value.key, value.value)).collect()
    };
    let names: Vec<String> = keys.iter().map(|(key, _)| key.clone()).collect();
    let values: Vec<String> = keys.into_iter().map(|(_, value)| value).collect();
    mutate::run("layers", move |rng| {
        let lossy = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let value = |rng: &mut mutate::Rng| lossy(mutate::text(rng, &values));
        let key = |rng: &mut mutate::Rng| match rng.u8(..4) {
            0 => lossy(mutate::text(rng, &names)),
            _ => mutate::pick(rng, &names).cloned().unwrap_or_default(),
        };
        let mut sources = Sources { file: file.clone(), ..Sources::default() };
        for _ in 0..rng.usize(..4) {
            let name = key(rng).to_uppercase().replace('.', "__");
            sources.env.push((format!("MYSQL_REFRESHD_{name}"), value(rng)));
        }
        for _ in 0..rng.usize(..4) {
            sources.set.push(format!("{}={}", key(rng), value(rng)));
        }
        let part = folder.path().join("conf.d/10-part.toml");
        match rng.bool() {
            true => fs::write(part, mutate::text(rng, &texts)).unwrap(),
            false => drop(fs::remove_file(part)),
        }
        judge(&sources);
    });
}

/// A policy with a consent in it, and the folder of the server that it is about.
fn policy() -> (tempfile::TempDir, PathBuf, PathBuf, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.toml");
    let datadir = folder.path().canonicalize().unwrap().join("data");
    fs::create_dir(&datadir).unwrap();
    fs::write(&path, format!("{}\n[instances.copy]\ndatadir = {datadir:?}\nprotected = false\n", shipped("host.toml")))
        .unwrap();
    let expires = Some(Utc::now() + chrono::Duration::days(90));
    let grant = Grant { instance: "copy".into(), datadir: None, from: vec!["prod".into()], expires };
    consent::grant(&path, &grant).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    (folder, path, datadir, text)
}

fn nobody() -> Result<mysql_refreshd::instance::Instance, Problem> {
    Err(Problem::refused("nobody"))
}

/// What the text says, read by nothing of ours: the environments that may overwrite this datadir, on this machine.
fn allowed(text: &[u8], datadir: &Path) -> Vec<String> {
    let table: toml::Table = toml::from_str(std::str::from_utf8(text).unwrap()).unwrap();
    let text_of = |value: &toml::Value, key: &str| value.get(key).and_then(|v| v.as_str()).map(str::to_owned);
    let mut all = Vec::new();
    for (name, entry) in table["instances"].as_table().unwrap() {
        let here = text_of(entry, "datadir")
            .is_some_and(|path| Path::new(&path).canonicalize().ok().as_deref() == Some(datadir));
        let protected = entry.get("protected").and_then(|v| v.as_bool()) == Some(true);
        let Some(consent) = entry.get("consent").filter(|_| here && !protected) else { continue };
        let alive =
            text_of(consent, "expires").is_none_or(|end| DateTime::parse_from_rfc3339(&end).unwrap() > Utc::now());
        if text_of(consent, "machine") == Some(Machine::this().0)
            && text_of(consent, "instance").as_ref() == Some(name)
            && alive
        {
            let from = consent["from"].as_array().unwrap();
            all.extend(from.iter().filter_map(|name| name.as_str()).map(str::to_owned));
        }
    }
    all
}

#[test]
fn damaged_policies() {
    let _alone = alone();
    let (folder, path, datadir, text) = policy();
    let described = samples::instance(Service::Systemd { unit: "m.service".into() });
    let texts = vec![text, shipped("host.toml")];
    mutate::run("policy", move |rng| {
        let _ = &folder;
        let bytes = mutate::text(rng, &texts);
        fs::write(&path, &bytes).unwrap();
        let authority = Authority::trusting(Some(path.clone()));
        let asked = ["prod", "stage", "", "null", "true"];
        let consented = asked.map(|from| authority.consent(&datadir, Some(from)).is_ok());
        match Policy::read(&path) {
            Ok(policy) => {
                let policy = policy.expect("the file is there");
                for entry in policy.instances.values() {
                    let _ = entry.instance();
                }
                if consented.contains(&true) {
                    let allowed = allowed(&bytes, &datadir);
                    for (from, consented) in asked.iter().zip(consented) {
                        assert!(!consented || allowed.iter().any(|name| name == from), "{from:?} is let in");
                    }
                }
            }
            Err(problem) => {
                // no consent, no role, no instance: whatever is asked for, and by whom
                assert_eq!(consented, [false; 5]);
                assert!(authority.consent(&datadir, None).is_err());
                let shown = problem.to_string();
                assert!(shown.contains("host.toml") && !shown.is_empty(), "{shown}");
                for role in [Role::Source, Role::Destination] {
                    let targets =
                        [Target::Named("main".into()), Target::Only, Target::Described(Box::new(described.clone()))];
                    for target in targets {
                        assert!(authority.instance(role, &target, nobody).is_err());
                    }
                }
            }
        }
    });
}

#[test]
fn a_policy_that_is_cut_off_allows_no_more_than_the_whole() {
    let _alone = alone();
    let (_folder, path, datadir, text) = policy();
    let protected = text.replace("protected = false", "protected = true");
    for (whole, may) in [(&text, true), (&protected, false)] {
        fs::write(&path, whole).unwrap();
        let authority = Authority::trusting(Some(path.clone()));
        assert_eq!(authority.consent(&datadir, Some("prod")).is_ok(), may);
        // the comments before are long and all alike, and so are the letters within a text
        let from = whole.find("[instances.copy]").unwrap();
        let telling = |end: usize| {
            let at = end.saturating_sub(1)..(end + 1).min(whole.len());
            whole.as_bytes()[at].iter().any(|byte| b"\n[]=\",T-".contains(byte))
        };
        for end in (0..whole.len())
            .filter(|end| *end > from && telling(*end) || end % 500 == 0)
            .filter(|end| whole.is_char_boundary(*end))
        {
            fs::write(&path, &whole[..end]).unwrap();
            if authority.consent(&datadir, Some("prod")).is_ok() {
                let consent = Policy::read(&path).unwrap().unwrap().instances["copy"].consent.clone().unwrap();
                assert!(may && consent.expires.is_some(), "{end} bytes of {}", whole.len());
            }
            assert!(authority.consent(&datadir, Some("stage")).is_err());
            assert!(authority.instance(Role::Source, &Target::Named("main".into()), nobody).is_err());
        }
    }
}
