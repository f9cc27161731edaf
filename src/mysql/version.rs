//! Server flavours and versions, and which pairs of them may exchange a datadir. Pure; asks no server.

use std::cmp::Ordering;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Whose server it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Flavour {
    /// MariaDB.
    MariaDb,
    /// Oracle's MySQL.
    MySql,
    /// Percona Server: a MySQL with a build number of its own.
    Percona,
}

impl Flavour {
    /// Whether the data dictionary, the redo folder and the options are MySQL's.
    pub fn is_mysql(self) -> bool {
        !matches!(self, Self::MariaDb)
    }
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MariaDb => "MariaDB",
            Self::MySql => "MySQL",
            Self::Percona => "Percona Server",
        })
    }
}

/// A server's version. Two flavours have no order.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Version {
    /// Whose.
    pub flavour: Flavour,
    /// `10` of `10.11.19`.
    pub major: u32,
    /// `11` of `10.11.19`.
    pub minor: u32,
    /// `19` of `10.11.19`.
    pub patch: u32,
    /// Percona's build number (`28` or `28.1`); empty for the others, whose suffix is only the packager's.
    pub suffix: String,
}

/// What a pair of versions allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PairVerdict {
    /// The datadir can be used as it is.
    Same,
    /// The destination is newer: the copy is upgraded at its first start. A source that stops with `innodb_fast_shutdown = 1`
    /// will do (MariaDB documentation, upgrading between major versions: 0 or 1); its outage does not pay for the upgrade.
    Upgrade,
    /// No copy between these two, and why.
    Refused(String),
}

impl Version {
    /// From `@@version` and `@@version_comment`, both as the server prints them. A handshake's `5.5.5-` before a MariaDB
    /// version is cut off.
    pub fn parse(version: &str, comment: &str) -> Option<Version> {
        let text = version.trim();
        let (lower, comment) = (text.to_ascii_lowercase(), comment.to_ascii_lowercase());
        let flavour = if lower.contains("mariadb") || comment.contains("mariadb") {
            Flavour::MariaDb
        } else if comment.contains("percona") {
            Flavour::Percona
        } else {
            Flavour::MySql
        };
        let text = if flavour == Flavour::MariaDb { text.strip_prefix("5.5.5-").unwrap_or(text) } else { text };
        let numbers_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (numbers, rest) = text.split_at(numbers_end);
        let mut parts = numbers.split('.').map(str::parse::<u32>);
        let (major, minor, patch) = (parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?);
        if parts.next().is_some() {
            return None;
        }
        let suffix = if flavour == Flavour::Percona { build_number(rest) } else { String::new() };
        Some(Version { flavour, major, minor, patch, suffix })
    }

    /// Major and minor.
    pub fn series(&self) -> (u32, u32) {
        (self.major, self.minor)
    }

    fn numbers(&self) -> (u32, u32, u32) {
        (self.major, self.minor, self.patch)
    }
}

/// `28.1` of `-28.1-log`.
fn build_number(rest: &str) -> String {
    let number = rest.strip_prefix('-').unwrap_or("");
    number.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect::<String>().trim_end_matches('.').to_owned()
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}.{}.{}", self.flavour, self.major, self.minor, self.patch)?;
        if self.suffix.is_empty() { Ok(()) } else { write!(f, "-{}", self.suffix) }
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        if self.flavour != other.flavour {
            return None;
        }
        let build = |v: &Version| v.suffix.split('.').map(|n| n.parse::<u64>().unwrap_or(0)).collect::<Vec<_>>();
        let by_number = self.numbers().cmp(&other.numbers()).then_with(|| build(self).cmp(&build(other)));
        Some(by_number.then_with(|| self.suffix.cmp(&other.suffix)))
    }
}

/// Whether `destination` may run on a copy of `source`'s datadir. No server protects us here: MariaDB 10.11.19 starts on an
/// 11.8 datadir and writes to it (verified), so what is not known to work is refused.
pub fn judge_pair(source: &Version, destination: &Version) -> PairVerdict {
    if source.flavour.is_mysql() != destination.flavour.is_mysql() {
        return PairVerdict::Refused(format!(
            "{destination} cannot use a datadir of {source}: MySQL and MariaDB have different data dictionaries and redo logs"
        ));
    }
    let verdict =
        if source.flavour.is_mysql() { judge_mysql(source, destination) } else { judge_mariadb(source, destination) };
    verdict.unwrap_or_else(|why| PairVerdict::Refused(format!("{destination} cannot use a datadir of {source}: {why}")))
}

/// Within one series `mariadb-upgrade --check-if-upgrade-is-needed` answers "no need ... because they're both 10.11", for a
/// newer and for an older patch; from 10.6 it answers "Major version upgrade", from 11.4 it fails (verified on MariaDB
/// 10.11.19). Any older series may be upgraded after a clean stop, none downgraded (MariaDB documentation).
fn judge_mariadb(source: &Version, destination: &Version) -> Result<PairVerdict, String> {
    match destination.series().cmp(&source.series()) {
        Ordering::Equal => Ok(PairVerdict::Same),
        Ordering::Greater => Ok(PairVerdict::Upgrade),
        Ordering::Less => Err("it is older, and MariaDB does not support going back to an older series".into()),
    }
}

/// MySQL's long-term series, in order. Calendar versions (26.7 and later) do not tell by number which of them are.
const LONG_TERM: [(u32, u32); 3] = [(8, 0), (8, 4), (9, 7)];

/// From this patch on 8.0 can go back within its series: "[MY-013171] Cannot boot server version 80034 on data directory
/// built by version 80035" (MySQL 8.0 documentation, downgrading; the same in Vitess's table).
const GOES_BACK_FROM: u32 = 35;

/// MySQL's documented upgrade paths: within a series, to the next long-term series, to an innovation series before it.
fn judge_mysql(source: &Version, destination: &Version) -> Result<PairVerdict, String> {
    if source.major < 8 || destination.major < 8 {
        return Err("before 8.0 the files are laid out in another way, which is not known here".into());
    }
    let (from, to) = (source.series(), destination.series());
    match to.cmp(&from) {
        Ordering::Less => Err("it is older, and MySQL does not support going back to an older series".into()),
        Ordering::Equal => judge_mysql_series(source, destination),
        Ordering::Greater => match LONG_TERM.iter().find(|lts| from < **lts && **lts < to) {
            Some((major, minor)) => Err(format!("the upgrade has to stop at {major}.{minor} first")),
            None => Ok(PairVerdict::Upgrade),
        },
    }
}

fn judge_mysql_series(source: &Version, destination: &Version) -> Result<PairVerdict, String> {
    let series = source.series();
    let both_ways = match series {
        (8, 0) => source.patch.min(destination.patch) >= GOES_BACK_FROM,
        _ => LONG_TERM.contains(&series),
    };
    match destination.patch.cmp(&source.patch) {
        _ if both_ways => Ok(PairVerdict::Same),
        Ordering::Equal => Ok(PairVerdict::Same),
        Ordering::Greater => Ok(PairVerdict::Upgrade),
        Ordering::Less if series == (8, 0) => {
            Err(format!("8.0 goes back within its series only down to 8.0.{GOES_BACK_FROM}"))
        }
        Ordering::Less => Err("it is older, and only a long-term series is known to go back within itself".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn version(text: &str) -> Version {
        let comment =
            if text.contains("-p") { "Percona Server (GPL), Release 28" } else { "MySQL Community Server - GPL" };
        Version::parse(&text.replace("-p", "-"), comment).unwrap()
    }

    #[test]
    fn versions_as_servers_print_them() {
        for (text, comment, shown) in [
            ("10.11.19-MariaDB-0+deb12u1", "Debian 12", "MariaDB 10.11.19"),
            ("10.11.19-MariaDB-0+deb12u1-log", "Debian 12", "MariaDB 10.11.19"),
            ("5.5.5-10.4.8-MariaDB", "", "MariaDB 10.4.8"),
            ("11.8.6", "MariaDB Server", "MariaDB 11.8.6"),
            ("9.7.4-0+deb", "(Debian)", "MySQL 9.7.4"),
            ("8.0.36-28", "Percona Server (GPL), Release 28, Revision 47601f19", "Percona Server 8.0.36-28"),
            ("8.0.36-28.1-log", "Percona Server (GPL)", "Percona Server 8.0.36-28.1"),
            ("26.7.0", "MySQL Community Server - GPL", "MySQL 26.7.0"),
        ] {
            assert_eq!(Version::parse(text, comment).unwrap().to_string(), shown);
        }
        for bad in ["", "8", "8.0", "8.0.mysql_aurora.3.04", "x.y.z", "8.0.1.2", "8..1", "99999999999.0.0"] {
            assert_eq!(Version::parse(bad, ""), None, "{bad:?}");
        }
    }

    #[test]
    fn order_is_within_a_flavour() {
        assert!(version("8.0.36-p9") < version("8.0.36-p28"));
        assert!(version("8.4.0") < version("26.7.0"));
        assert_eq!(version("8.0.36").partial_cmp(&version("8.0.36-p28")), None);
        let [a, b] = ["10.11.19-MariaDB-0+deb12u1", "10.11.19-MariaDB-log"].map(|v| Version::parse(v, ""));
        assert_eq!(a, b);
    }

    #[test]
    fn mysql_pairs() {
        use PairVerdict::{Same, Upgrade};
        for (from, to, verdict) in [
            ("8.0.36", "8.0.36", Some(Same)),
            ("8.0.23", "8.0.34", Some(Upgrade)),
            ("8.0.34", "8.0.23", None),
            ("8.0.34", "8.0.35", Some(Upgrade)),
            ("8.0.35", "8.0.34", None),
            ("8.0.35", "8.0.36", Some(Same)),
            ("8.0.36", "8.0.35", Some(Same)),
            ("8.4.0", "8.4.1", Some(Same)),
            ("8.4.1", "8.4.0", Some(Same)),
            ("8.0.32", "8.4.0", Some(Upgrade)),
            ("8.4.0", "8.0.36", None),
            ("5.7.44", "8.4.0", None),
            ("5.7.35", "8.0.23", None),
            ("8.0.23", "5.7.35", None),
            ("8.0.36", "8.3.0", Some(Upgrade)),
            ("8.3.0", "8.4.0", Some(Upgrade)),
            ("8.3.0", "9.0.0", None),
            ("8.0.36", "9.0.0", None),
            ("8.4.0", "9.5.0", Some(Upgrade)),
            ("9.1.0", "9.1.1", Some(Upgrade)),
            ("9.1.1", "9.1.0", None),
            ("8.4.0", "9.7.4", Some(Upgrade)),
            ("9.7.4", "9.7.0", Some(Same)),
            ("8.4.0", "26.7.0", None),
            ("9.6.0", "26.7.0", None),
            ("9.7.4", "26.7.0", Some(Upgrade)),
            ("26.7.0", "26.10.1", Some(Upgrade)),
            ("26.10.0", "26.7.3", None),
            ("26.7.1", "26.7.0", None),
            ("26.7.0", "9.7.4", None),
            ("8.0.36", "8.0.36-p28", Some(Same)),
            ("8.0.36-p28", "8.4.0", Some(Upgrade)),
        ] {
            let found = judge_pair(&version(from), &version(to));
            match verdict {
                Some(verdict) => assert_eq!(found, verdict, "{from} -> {to}"),
                None => assert!(matches!(found, PairVerdict::Refused(_)), "{from} -> {to}: {found:?}"),
            }
        }
    }

    #[test]
    fn mariadb_pairs() {
        let judge = |from: &str, to: &str| {
            judge_pair(&Version::parse(from, "MariaDB").unwrap(), &Version::parse(to, "MariaDB").unwrap())
        };
        assert_eq!(judge("10.11.19", "10.11.19"), PairVerdict::Same);
        assert_eq!(judge("10.11.2", "10.11.19"), PairVerdict::Same);
        assert_eq!(judge("10.11.19", "10.11.2"), PairVerdict::Same);
        assert_eq!(judge("10.6.20", "10.11.19"), PairVerdict::Upgrade);
        assert_eq!(judge("10.11.19", "11.8.6"), PairVerdict::Upgrade);
        let PairVerdict::Refused(why) = judge("11.8.6", "10.11.19") else { panic!() };
        assert_eq!(
            why,
            "MariaDB 10.11.19 cannot use a datadir of MariaDB 11.8.6: it is older, and MariaDB does not support going back to an older series"
        );
    }

    #[test]
    fn mysql_and_mariadb_never_mix() {
        let mariadb = Version::parse("11.8.6-MariaDB", "").unwrap();
        for other in ["8.0.36", "9.7.4", "8.0.36-p28"] {
            assert!(matches!(judge_pair(&mariadb, &version(other)), PairVerdict::Refused(_)));
            assert!(matches!(judge_pair(&version(other), &mariadb), PairVerdict::Refused(_)));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken_without_panic(text in ".{0,30}", comment in ".{0,20}") {
            let _ = Version::parse(&text, &comment);
        }

        #[test]
        fn same_version_is_same_and_never_both_up(a in (8u32..30, 0u32..12, 0u32..50), b in (8u32..30, 0u32..12, 0u32..50), maria: bool) {
            let comment = if maria { "MariaDB" } else { "" };
            let [a, b] = [a, b].map(|(x, y, z)| Version::parse(&format!("{x}.{y}.{z}"), comment).unwrap());
            prop_assert_eq!(judge_pair(&a, &a), PairVerdict::Same);
            if judge_pair(&a, &b) == PairVerdict::Upgrade {
                prop_assert!(a < b && matches!(judge_pair(&b, &a), PairVerdict::Refused(_)));
            }
        }
    }
}
