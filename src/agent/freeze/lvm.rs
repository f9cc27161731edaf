//! A snapshot of the logical volume that the datadir's filesystem is on: thin where the volume is thin, else classic, with room for the
//! changes of a while.
//!
//! Removes no volume but one of our name, with our tag, made from the recorded origin.
//!
//! The snapshot stays writable as a device, though it is mounted read-only: then the filesystem's journal is replayed in the snapshot,
//! and nothing depends on how much of it the freeze had written back. `norecovery` and `noload` would show what is not in place yet.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::mounts::{self, Mount};
use super::programs::{self, CHANGE, LOOK};
use crate::agent::receive::is_root;
use crate::problem::{Explain, Outcome, Problem};

/// The tag on every volume of ours.
const TAG: &str = "mysql-refreshd";

/// Filesystems whose copy may be mounted beside the original, with the options that this needs. Not btrfs: it takes both for one.
const FILESYSTEMS: [(&str, &str); 3] = [("xfs", "nouuid"), ("ext4", ""), ("ext3", "")];

/// A classic snapshot holds this part of the origin if the group has room for it.
const USUAL_PART: u64 = 5;

/// And at least this part.
const LEAST_PART: u64 = 20;

/// How full a thin pool's metadata may be: it is small, and a pool whose metadata is full takes no more writes.
const METADATA_LIMIT: f64 = 90.0;

/// What is asked of volumes.
const FIELDS: &str =
    "vg_name,lv_name,lv_attr,lv_size,vg_free,vg_extent_size,pool_lv,origin,data_percent,metadata_percent,lv_tags";

/// A volume that can be frozen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its group.
    pub vg: String,
    /// Its name.
    pub lv: String,
    /// The filesystem on it.
    pub filesystem: String,
    /// How much room a snapshot gets.
    pub room: Room,
}

/// Where a snapshot's blocks come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Room {
    /// From the volume's thin pool.
    Thin {
        /// Its name.
        pool: String,
    },
    /// From what is free in the group.
    Classic {
        /// This many extents.
        extents: u64,
        /// The same in bytes.
        bytes: u64,
    },
}

/// One row of lvs.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Row {
    vg_name: String,
    lv_name: String,
    lv_attr: String,
    lv_size: String,
    vg_free: String,
    vg_extent_size: String,
    pool_lv: String,
    origin: String,
    data_percent: String,
    metadata_percent: String,
    lv_tags: String,
}

#[derive(Deserialize)]
struct Answer {
    report: Vec<Report>,
}

#[derive(Deserialize)]
struct Report {
    #[serde(default)]
    lv: Vec<Row>,
}

impl Row {
    fn attribute(&self, at: usize) -> char {
        self.lv_attr.chars().nth(at).unwrap_or('-')
    }
    fn size(&self) -> u64 {
        self.lv_size.parse().unwrap_or(0)
    }
    /// Whether a pool has room for what production writes, and for us.
    fn pool_is_roomy(&self) -> Result<(), String> {
        let pool = format!("the thin pool {}/{}", self.vg_name, self.lv_name);
        // out of data, metadata read-only, failed
        if matches!(self.attribute(8), 'D' | 'M' | 'F') {
            return Err(format!("{pool} is full, or has failed (attributes {})", self.lv_attr));
        }
        let (Ok(data), Ok(metadata)) = (self.data_percent.parse::<f64>(), self.metadata_percent.parse::<f64>()) else {
            return Err(format!("how full {pool} is cannot be told"));
        };
        let free = (self.size() as f64 * (100.0 - data.clamp(0.0, 100.0)) / 100.0) as u64;
        mounts::enough(free, self.size()).map_err(|why| format!("{pool} could run full: {why}"))?;
        match metadata <= METADATA_LIMIT {
            true => Ok(()),
            false => Err(format!("the metadata of {pool} could run full: {metadata} % are used")),
        }
    }
}

/// The rows of some volumes, or of all in a group.
fn rows(which: &[&str]) -> Outcome<Vec<Row>> {
    let words = [&["--reportformat", "json", "--units", "b", "--nosuffix", "-o", FIELDS], which].concat();
    parse(&programs::run("lvs", &words, LOOK)?)
}

fn group(vg: &str) -> Outcome<Vec<Row>> {
    // a selection, not the group's name: one that is gone is an empty answer then, and no error
    rows(&["--select", &format!("vg_name={vg}")])
}

fn parse(said: &[u8]) -> Outcome<Vec<Row>> {
    let answer: Answer = serde_json::from_slice(said).explain(|| "cannot understand what lvs says")?;
    Ok(answer.report.into_iter().flat_map(|report| report.lv).collect())
}

/// Names as LVM allows them.
pub fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('-')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '_' | '.' | '-'))
}

/// The volume under a mount, thin or classic; an error says why it cannot be frozen.
pub fn possible(mount: &Mount) -> Outcome<Result<Volume, String>> {
    let Some((name, _)) = mount.mapped().filter(|(_, uuid)| uuid.starts_with("LVM-")) else {
        return Ok(Err(format!("{mount} is no LVM volume")));
    };
    if !FILESYSTEMS.iter().any(|(kind, _)| *kind == mount.kind) {
        return Ok(Err(format!("a copy of {mount} may not be mounted beside it")));
    }
    if let Some(elsewhere) = mount.option("logdev=").or(mount.option("rtdev=")) {
        return Ok(Err(format!("{mount} is not on one volume alone ({elsewhere})")));
    }
    if !is_root() {
        return Ok(Err("LVM snapshots need root".to_owned()));
    }
    if let Some(missing) = ["lvs", "lvcreate", "lvremove"].iter().find(|program| programs::find(program).is_none()) {
        return Ok(Err(format!("{mount} is an LVM volume, but this host has no program `{missing}`")));
    }
    let Some(row) = rows(&[&format!("/dev/mapper/{name}")])?.into_iter().next() else {
        return Ok(Err(format!("lvs does not know {mount}")));
    };
    if !is_name(&row.vg_name) || !is_name(&row.lv_name) {
        return Ok(Err(format!("{}/{} is not the name of a volume", row.vg_name, row.lv_name)));
    }
    let pool = match row.pool_lv.as_str() {
        "" => None,
        pool => group(&row.vg_name)?.into_iter().find(|row| row.lv_name == pool),
    };
    Ok(judge(&row, pool.as_ref()).map(|room| Volume {
        vg: row.vg_name.clone(),
        lv: row.lv_name.clone(),
        filesystem: mount.kind.clone(),
        room,
    }))
}

/// What room there is for a snapshot of a volume.
fn judge(row: &Row, pool: Option<&Row>) -> Result<Room, String> {
    let shown = format!("{}/{}", row.vg_name, row.lv_name);
    if row.attribute(0) == 'V' {
        let pool = pool.ok_or_else(|| format!("the thin pool of {shown} cannot be found"))?;
        pool.pool_is_roomy()?;
        return Ok(Room::Thin { pool: pool.lv_name.clone() });
    }
    if matches!(row.attribute(0), 's' | 'S' | 'O' | 'v' | 'p') {
        return Err(format!("no snapshot can be made of {shown} (attributes {})", row.lv_attr));
    }
    let number = |text: &str| text.parse::<u64>().unwrap_or(0);
    let extent = number(&row.vg_extent_size);
    if extent == 0 || row.size() == 0 {
        return Err(format!("the size of {shown} cannot be told"));
    }
    let (whole, free) = (row.size().div_ceil(extent), number(&row.vg_free) / extent);
    let extents = free.min(whole.div_ceil(USUAL_PART));
    if extents < whole.div_ceil(LEAST_PART).max(1) {
        let mib = |extents: u64| extents.saturating_mul(extent) >> 20;
        return Err(format!(
            "the volume group {} has {} MiB free; a snapshot of {shown} ({} MiB) needs {} MiB at least",
            row.vg_name,
            mib(free),
            mib(whole),
            mib(whole.div_ceil(LEAST_PART).max(1))
        ));
    }
    Ok(Room::Classic { extents, bytes: extents.saturating_mul(extent) })
}

/// What makes the snapshot.
fn words(volume: &Volume, name: &str) -> Vec<String> {
    let mut words: Vec<String> =
        ["--yes", "--snapshot", "--monitor", "n", "--addtag", TAG, "--name", name].map(str::to_owned).into();
    match &volume.room {
        // a thin snapshot is skipped by activations, also by a boot's, unless this one is told not to
        Room::Thin { .. } => words.extend(["--activate", "y", "--ignoreactivationskip"].map(str::to_owned)),
        Room::Classic { extents, .. } => words.extend(["--extents".to_owned(), extents.to_string()]),
    }
    words.push(format!("{}/{}", volume.vg, volume.lv));
    words
}

/// Makes the snapshot. The device mapper freezes the filesystem for that moment.
pub fn snapshot(datadir: &Path, volume: &Volume, name: &str) -> Outcome<()> {
    if ![&volume.vg, &volume.lv].into_iter().all(|name| is_name(name)) {
        return Err(Problem::failed("not the name of a volume"));
    }
    // what is written out now does not have to be while production's volume is suspended
    let folder = std::fs::File::open(datadir).explain(|| format!("cannot open {}", datadir.display()))?;
    rustix::fs::syncfs(&folder).explain(|| "cannot write out the datadir's filesystem")?;
    programs::run("lvcreate", &words(volume, name), CHANGE).map(|_| ())
}

/// The device of a snapshot: the device mapper doubles hyphens inside names.
fn device(volume: &Volume, name: &str) -> PathBuf {
    Path::new("/dev/mapper").join(mapper_name(volume, name))
}

fn mapper_name(volume: &Volume, name: &str) -> String {
    format!("{}-{}", volume.vg.replace('-', "--"), name.replace('-', "--"))
}

/// Mounts the snapshot, read-only.
pub fn attach(volume: &Volume, name: &str, point: &Path) -> Outcome<()> {
    let options = FILESYSTEMS.iter().find(|(kind, _)| *kind == volume.filesystem).map_or("", |(_, options)| options);
    mounts::attach(device(volume, name).as_os_str(), point, &volume.filesystem, options, true)
}

/// An error: the snapshot holds no longer what it held, or its pool could run full.
pub fn check(volume: &Volume, name: &str) -> Outcome<()> {
    judge_snapshot(&group(&volume.vg)?, volume, name).map_err(Problem::failed)
}

fn judge_snapshot(rows: &[Row], volume: &Volume, name: &str) -> Result<(), String> {
    let shown = format!("{}/{name}", volume.vg);
    let find = |name: &str| rows.iter().find(|row| row.lv_name == name);
    let snapshot = find(name).ok_or_else(|| format!("the snapshot {shown} is gone"))?;
    match &volume.room {
        Room::Thin { pool } => {
            // failed, or without a device
            if snapshot.attribute(8) == 'F' || snapshot.attribute(4) != 'a' {
                return Err(format!("the snapshot {shown} cannot be read any more (attributes {})", snapshot.lv_attr));
            }
            find(pool).ok_or_else(|| format!("the thin pool {}/{pool} is gone", volume.vg))?.pool_is_roomy()
        }
        Room::Classic { .. } => {
            let used = snapshot.data_percent.parse::<f64>();
            if snapshot.attribute(4) != 'a' || used.as_ref().is_ok_and(|used| *used >= 100.0) {
                return Err(format!(
                    "the snapshot {shown} is full: more was written on {}/{} than it had room for",
                    volume.vg, volume.lv
                ));
            }
            used.map(|_| ()).map_err(|_| format!("how full the snapshot {shown} is cannot be told"))
        }
    }
}

/// Unmounts and removes the snapshot; Ok if there is none.
pub fn remove(volume: &Volume, name: &str, point: &Path) -> Outcome<()> {
    mounts::detach(point, |mount| mount.mapped().is_some_and(|(of, _)| of == mapper_name(volume, name)))?;
    let rows = group(&volume.vg)?;
    let Some(row) = rows.iter().find(|row| row.lv_name == name) else { return Ok(()) };
    if row.origin != volume.lv || !row.lv_tags.split(',').any(|tag| tag == TAG) {
        return Err(Problem::failed(format!(
            "{}/{name} is not the snapshot of {} that this program has made; it is left alone",
            volume.vg, volume.lv
        ))
        .hint("Look at it, and take it away."));
    }
    programs::run("lvremove", &["--yes", "--force", &format!("{}/{name}", volume.vg)], CHANGE).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    /// As lvs 2.03.16 wrote it.
    const SAID: &str = r#"  {
      "report": [
          {
              "lv": [
                  {"vg_name":"vg", "lv_name":"data", "lv_attr":"Vwi-aotz--", "lv_size":"1258291200", "vg_free":"566231040", "vg_extent_size":"4194304", "pool_lv":"pool", "origin":"", "data_percent":"5.37", "metadata_percent":"", "lv_tags":""},
                  {"vg_name":"vg", "lv_name":"pool", "lv_attr":"twi-aotz--", "lv_size":"1572864000", "vg_free":"566231040", "vg_extent_size":"4194304", "pool_lv":"", "origin":"", "data_percent":"4.30", "metadata_percent":"11.52", "lv_tags":""},
                  {"vg_name":"vg", "lv_name":"mysql-refreshd-1", "lv_attr":"Vri-aotz-k", "lv_size":"1258291200", "vg_free":"566231040", "vg_extent_size":"4194304", "pool_lv":"pool", "origin":"data", "data_percent":"5.37", "metadata_percent":"", "lv_tags":"mysql-refreshd,x"}
              ]
          }
      ]
  }"#;

    fn plain(size_mib: u64, free_mib: u64) -> Row {
        let mut row = parse(SAID.as_bytes()).unwrap().remove(0);
        row.lv_attr = "-wi-ao----".into();
        row.pool_lv = String::new();
        row.lv_size = (size_mib * MIB).to_string();
        row.vg_free = (free_mib * MIB).to_string();
        row
    }

    fn thin() -> Volume {
        let room = Room::Thin { pool: "pool".into() };
        Volume { vg: "vg".into(), lv: "data".into(), filesystem: "xfs".into(), room }
    }

    #[test]
    fn a_thin_volume_needs_a_roomy_pool() {
        let rows = parse(SAID.as_bytes()).unwrap();
        assert_eq!(judge(&rows[0], Some(&rows[1])), Ok(Room::Thin { pool: "pool".into() }));
        assert!(judge(&rows[0], None).unwrap_err().contains("cannot be found"));
        let with = |change: fn(&mut Row)| {
            let mut pool = rows[1].clone();
            change(&mut pool);
            judge(&rows[0], Some(&pool)).unwrap_err()
        };
        assert!(with(|pool| pool.data_percent = "95.00".into()).contains("could run full: 75 MiB of 1500 MiB"));
        assert!(with(|pool| pool.metadata_percent = "90.01".into()).contains("the metadata of"));
        assert!(with(|pool| pool.lv_attr = "twi-aotzD-".into()).contains("is full"));
        assert!(with(|pool| pool.data_percent = String::new()).contains("cannot be told"));
    }

    #[test]
    fn a_classic_one_gets_a_fifth_and_at_least_a_twentieth() {
        let extents = |size, free| match judge(&plain(size, free), None) {
            Ok(Room::Classic { extents, bytes }) => {
                assert_eq!(bytes, extents * 4 * MIB);
                Ok(extents)
            }
            Ok(other) => panic!("{other:?}"),
            Err(why) => Err(why),
        };
        assert_eq!(extents(1000, 5000), Ok(50));
        assert_eq!(extents(1000, 100), Ok(25));
        assert_eq!(extents(1000, 52), Ok(13));
        assert!(
            extents(1000, 48).unwrap_err().contains("has 48 MiB free; a snapshot of vg/data (1000 MiB) needs 52 MiB")
        );
        assert_eq!(extents(4, 4), Ok(1));
        assert!(extents(4, 0).is_err());
        for of in ["swi-a-s---", "Owi-a-----"] {
            let row = Row { lv_attr: of.into(), ..plain(1000, 5000) };
            assert!(judge(&row, None).unwrap_err().starts_with("no snapshot can be made of vg/data"));
        }
    }

    #[test]
    fn a_snapshot_that_is_full_is_told() {
        let rows = parse(SAID.as_bytes()).unwrap();
        assert_eq!(judge_snapshot(&rows, &thin(), "mysql-refreshd-1"), Ok(()));
        assert!(judge_snapshot(&rows[..2], &thin(), "mysql-refreshd-1").unwrap_err().ends_with("is gone"));
        let mut full = rows.clone();
        full[1].data_percent = "100.00".into();
        assert!(judge_snapshot(&full, &thin(), "mysql-refreshd-1").unwrap_err().contains("could run full"));

        let room = Room::Classic { extents: 50, bytes: 200 * MIB };
        let classic = Volume { room, ..thin() };
        let with = |attr: &str, used: &str| {
            let mut rows = rows.clone();
            rows[2].lv_attr = attr.into();
            rows[2].data_percent = used.into();
            judge_snapshot(&rows, &classic, "mysql-refreshd-1")
        };
        assert_eq!(with("swi-aos---", "12.00"), Ok(()));
        assert!(with("swi-Ios---", "100.00").unwrap_err().contains("is full"));
        assert!(with("swi-aos---", "100.00").unwrap_err().contains("is full"));
        assert!(with("swi-aos---", "").unwrap_err().contains("cannot be told"));
    }

    #[test]
    fn nothing_but_what_was_asked_for_is_said_to_lvm() {
        assert!(["vg", "my-vg_0.1+x"].iter().all(|name| is_name(name)));
        assert!(["", "-f", "a b", "a/b", "a|b", "a\"b", "ä"].iter().all(|name| !is_name(name)));
        assert_eq!(
            words(&thin(), "mysql-refreshd-1").join(" "),
            "--yes --snapshot --monitor n --addtag mysql-refreshd --name mysql-refreshd-1 --activate y --ignoreactivationskip vg/data"
        );
        let classic = Volume { room: Room::Classic { extents: 7, bytes: 28 * MIB }, vg: "v-g".into(), ..thin() };
        assert!(words(&classic, "n").join(" ").ends_with("--name n --extents 7 v-g/data"));
        assert_eq!(device(&classic, "a-b"), Path::new("/dev/mapper/v--g-a--b"));
    }

    proptest! {
        #[test]
        fn room_is_within_what_is_free_and_what_is_sensible(size in 1u64..100_000, free in 0u64..100_000) {
            let (whole, free_extents) = (size.div_ceil(4), free / 4);
            match judge(&plain(size, free), None) {
                Ok(Room::Classic { extents, .. }) => {
                    prop_assert!(extents <= free_extents && extents <= whole.div_ceil(5));
                    prop_assert!(extents * 20 >= whole);
                }
                Ok(other) => prop_assert!(false, "{other:?}"),
                Err(_) => prop_assert!(free_extents * 20 < whole + 20),
            }
        }
        #[test]
        fn anything_lvs_says_is_read_without_a_panic(said in ".{0,200}") {
            let _ = parse(said.as_bytes());
        }
    }
}
