//! A consent: the owner of a server allows that its data be replaced, by data from named environments only, on this machine
//! only, perhaps for a while only.
//!
//! `judge` is pure. A consent that came here with a copied datadir, a copied policy or a cloned disk does not count.

use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::Policy;
use super::document::{edit, instance_table};
use crate::problem::{Explain, Kind, Outcome, Problem};

/// What tells this machine from its clones: machine-id, host name and the hardware's own id, as one hash. Any of them
/// changes, and consents have to be given anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Machine(pub String);

impl Machine {
    /// This machine, as this account sees it (the hardware's id is root's to read).
    pub fn this() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        Self::of(&read("/etc/machine-id"), &read("/proc/sys/kernel/hostname"), &read("/sys/class/dmi/id/product_uuid"))
    }

    fn of(machine_id: &str, hostname: &str, hardware: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in [machine_id, hostname, hardware] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        Self(hasher.finalize().to_hex()[..32].to_owned())
    }
}

/// As it stands in the policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Consent {
    /// The machine on which it was given.
    pub machine: Machine,
    /// The instance it was given for.
    pub instance: String,
    /// The datadir it was given for, symlinks resolved.
    pub datadir: PathBuf,
    /// The environments whose data is accepted.
    pub from: Vec<String>,
    /// When it ends; None: never.
    #[serde(default, with = "rfc3339")]
    pub expires: Option<DateTime<Utc>>,
    /// When and by whom it was given, for people.
    pub granted: String,
}

/// Times as texts, so that other tools may write them.
mod rfc3339 {
    use chrono::{DateTime, Utc};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(time: &Option<DateTime<Utc>>, out: S) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => out.serialize_str(&time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)),
            None => out.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Option<DateTime<Utc>>, D::Error> {
        let text = String::deserialize(input)?;
        let parsed = DateTime::parse_from_rfc3339(&text).map_err(D::Error::custom)?;
        Ok(Some(parsed.with_timezone(&Utc)))
    }
}

impl Consent {
    /// Whether it covers this; the reason if not.
    pub fn judge(
        &self,
        instance: &str,
        datadir: &Path,
        machine: &Machine,
        from: Option<&str>,
        now: DateTime<Utc>,
    ) -> Result<(), String> {
        if self.machine != *machine {
            return Err(
                "it was given on another machine, or this one has got another name or identity since".to_owned()
            );
        }
        if self.instance != instance {
            return Err(format!("it was given for the instance {:?}", self.instance));
        }
        if self.datadir != datadir {
            return Err(format!("it was given for the datadir {}", self.datadir.display()));
        }
        if let Some(end) = self.expires.filter(|end| *end <= now) {
            return Err(format!("it ended at {}", end.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)));
        }
        match from.filter(|from| !self.from.iter().any(|name| name == from)) {
            Some(from) => Err(format!("it accepts data from {} only, not from {from}", self.from.join(", "))),
            None => Ok(()),
        }
    }
}

/// What an owner grants.
#[derive(Debug, Clone)]
pub struct Grant {
    /// The instance, by its name in the policy.
    pub instance: String,
    /// Its datadir, where the policy does not have the instance yet.
    pub datadir: Option<PathBuf>,
    /// The environments whose data is accepted.
    pub from: Vec<String>,
    /// When it ends.
    pub expires: Option<DateTime<Utc>>,
}

/// Writes a consent into the policy.
pub fn grant(path: &Path, grant: &Grant) -> Outcome<Consent> {
    let known = Policy::read(path)?.and_then(|policy| policy.instances.get(&grant.instance).cloned());
    if known.as_ref().is_some_and(|entry| entry.protected) {
        return Err(Problem::refused(format!(
            "the instance {:?} is protected; no consent overrides that",
            grant.instance
        )));
    }
    if let (Some(datadir), Some(policy)) = (&grant.datadir, Policy::read(path)?)
        && let Some((other, _)) = policy.on(datadir).filter(|(other, _)| **other != grant.instance)
    {
        return Err(Problem::new(Kind::Usage, format!("{} has this datadir already, as {other:?}", path.display()))
            .hint(format!("Use --instance {other}.")));
    }
    let datadir = match (&known, &grant.datadir) {
        (Some(entry), None) => entry.datadir.clone(),
        (Some(entry), Some(wanted)) if entry.datadir == *wanted => wanted.clone(),
        (Some(entry), Some(_)) => {
            return Err(Problem::new(
                Kind::Usage,
                format!("the policy's instance {:?} has the datadir {}", grant.instance, entry.datadir.display()),
            )
            .hint("Name the instance only, or choose another name with --instance."));
        }
        (None, Some(wanted)) if wanted.is_absolute() => wanted.clone(),
        (None, Some(_)) => return Err(Problem::new(Kind::Usage, "--datadir must be an absolute path")),
        (None, None) => {
            return Err(Problem::new(
                Kind::Usage,
                format!("{} knows no instance {:?}", path.display(), grant.instance),
            )
            .hint("As root: mysql-refreshd host init --role destination; or name its --datadir."));
        }
    };
    let real = datadir.canonicalize().explain(|| format!("cannot find the datadir {}", datadir.display()))?;
    let by = std::env::var("SUDO_USER").map_or_else(|_| "the owner".to_owned(), |user| format!("{user}, through sudo"));
    let consent = Consent {
        machine: Machine::this(),
        instance: grant.instance.clone(),
        datadir: real,
        from: grant.from.clone(),
        expires: grant.expires,
        granted: format!("{} by {by}", Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true)),
    };
    edit(path, |document| {
        let table = instance_table(document, &grant.instance)?;
        if known.is_none() {
            table["datadir"] = toml_edit::value(datadir.to_string_lossy().into_owned());
        }
        let mut written = toml_edit::Table::new();
        written["machine"] = toml_edit::value(&consent.machine.0);
        written["instance"] = toml_edit::value(&consent.instance);
        written["datadir"] = toml_edit::value(consent.datadir.to_string_lossy().into_owned());
        written["from"] = toml_edit::value(consent.from.iter().collect::<toml_edit::Array>());
        if let Some(end) = consent.expires {
            written["expires"] = toml_edit::value(end.to_rfc3339_opts(chrono::SecondsFormat::Secs, true));
        }
        written["granted"] = toml_edit::value(&consent.granted);
        table["consent"] = toml_edit::Item::Table(written);
        Ok(())
    })?;
    Ok(consent)
}

/// Takes a consent back; false where there was none.
pub fn revoke(path: &Path, instance: &str) -> Outcome<bool> {
    let known =
        Policy::read(path)?.is_some_and(|policy| policy.instances.get(instance).is_some_and(|e| e.consent.is_some()));
    if !known {
        return Ok(false);
    }
    edit(path, |document| Ok(instance_table(document, instance)?.remove("consent").is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn consent() -> Consent {
        Consent {
            machine: Machine::of("m", "h", "u"),
            instance: "main".into(),
            datadir: "/var/lib/mysql".into(),
            from: vec!["prod".into()],
            expires: Some("2027-01-01T00:00:00Z".parse().unwrap()),
            granted: "2026-11-22 by root".into(),
        }
    }

    #[test]
    fn it_is_bound_to_everything() {
        let now: DateTime<Utc> = "2026-12-31T23:59:59Z".parse().unwrap();
        let (here, datadir) = (Machine::of("m", "h", "u"), Path::new("/var/lib/mysql"));
        let judge = |instance: &str, datadir: &Path, machine: &Machine, from: &str, now| {
            consent().judge(instance, datadir, machine, Some(from), now)
        };
        assert_eq!(judge("main", datadir, &here, "prod", now), Ok(()));
        for clone in [Machine::of("n", "h", "u"), Machine::of("m", "clone", "u"), Machine::of("m", "h", "v")] {
            assert!(judge("main", datadir, &clone, "prod", now).unwrap_err().contains("another machine"));
        }
        assert!(judge("other", datadir, &here, "prod", now).unwrap_err().contains("instance"));
        assert!(judge("main", Path::new("/srv"), &here, "prod", now).unwrap_err().contains("datadir"));
        assert!(judge("main", datadir, &here, "stage", now).unwrap_err().contains("prod only"));
        assert!(
            judge("main", datadir, &here, "prod", now + chrono::Duration::seconds(1)).unwrap_err().contains("ended")
        );
    }

    #[test]
    fn parts_of_a_machine_do_not_run_into_each_other() {
        assert_ne!(Machine::of("ab", "c", ""), Machine::of("a", "bc", ""));
    }

    #[test]
    fn it_survives_being_written() {
        let text = toml::to_string(&consent()).unwrap();
        assert_eq!(toml::from_str::<Consent>(&text).unwrap(), consent());
        let endless = Consent { expires: None, ..consent() };
        assert_eq!(toml::from_str::<Consent>(&toml::to_string(&endless).unwrap()).unwrap(), endless);
    }
}
