//! What is mounted where, how much room is left there, and mounts of our own in root's folder.
//!
//! Unmounts nothing but what it is told to be ours. Mounts are read-only unless a snapshot has to be made in them, and nobody but root can
//! reach them.

use std::ffi::{CString, OsStr, OsString};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::agent::stage;
use crate::problem::{Explain, Outcome, Problem};

/// How often an unmount is tried: who has just read there may be closing the last file.
const TRIES: u32 = 40;

/// What statfs says of btrfs.
const BTRFS: rustix::fs::FsWord = 0x9123_683e;

/// With less room than this many reserves btrfs is asked for the truth.
const NEAR: u64 = 8;

/// One line of the kernel's table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    id: u64,
    /// Major and minor number of its device.
    pub device: String,
    /// The folder of the filesystem that is mounted.
    root: PathBuf,
    /// Where.
    pub point: PathBuf,
    /// The filesystem's kind, as the kernel calls it.
    pub kind: String,
    /// What is mounted: a device's path, a dataset's name.
    pub source: OsString,
    /// The filesystem's own options.
    options: String,
}

impl Mount {
    /// The mount that a path lies in.
    pub fn of(path: &Path) -> Outcome<Self> {
        let of = || format!("cannot tell what filesystem {} is on", path.display());
        let fd = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).explain(of)?;
        // by its number, not by its path: mounts may lie on top of each other
        let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).explain(of)?;
        let id = about.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse::<u64>().ok());
        table()?
            .into_iter()
            .find(|mount| Some(mount.id) == id)
            .ok_or_else(|| Problem::failed(of()).cause("it is not among this process's mounts"))
    }
    /// Where a path below the mount point lies in the filesystem itself, from its top.
    pub fn inside(&self, path: &Path) -> Outcome<PathBuf> {
        let below = path
            .strip_prefix(&self.point)
            .explain(|| format!("{} is not below {}", path.display(), self.point.display()))?;
        let root = self.root.strip_prefix("/").unwrap_or(&self.root);
        Ok(root.join(below))
    }
    /// The top of the filesystem is what is mounted.
    pub fn is_whole(&self) -> bool {
        self.root == Path::new("/")
    }
    /// An option of the filesystem, by its beginning.
    pub fn option(&self, begin: &str) -> Option<&str> {
        self.options.split(',').find(|option| option.starts_with(begin))
    }
    /// The device mapper's name and uuid of the device, if it is one of its.
    pub fn mapped(&self) -> Option<(String, String)> {
        let read = |what: &str| std::fs::read_to_string(format!("/sys/dev/block/{}/dm/{what}", self.device)).ok();
        Some((read("name")?.trim_end().to_owned(), read("uuid")?.trim_end().to_owned()))
    }
}

impl std::fmt::Display for Mount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} on {}", self.kind, self.source.to_string_lossy())
    }
}

fn table() -> Outcome<Vec<Mount>> {
    let text = std::fs::read("/proc/self/mountinfo").explain(|| "cannot read what is mounted")?;
    Ok(parse(&text))
}

/// The kernel's table; lines that are not understood are passed over.
pub(super) fn parse(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n').filter_map(line).collect()
}

fn line(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|byte| *byte == b' ');
    let word = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let id = word(words.next()?).parse().ok()?;
    let device = word(words.nth(1)?);
    let (root, point) = (plain(words.next()?).into(), plain(words.next()?).into());
    // options of the mount and any number of tags, up to a dash of its own
    words.by_ref().find(|word| *word == b"-")?;
    let (kind, source) = (word(words.next()?), plain(words.next()?));
    Some(Mount { id, device, root, point, kind, source, options: words.next().map(word).unwrap_or_default() })
}

/// The kernel writes blanks, tabs, newlines and backslashes as octal numbers.
fn plain(bytes: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((first, after)) = rest.split_first() {
        let code = (*first == b'\\').then(|| after.get(..3)).flatten();
        let code = code.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        plain.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    OsString::from_vec(plain)
}

/// What has to stay free on a filesystem (or in a thin pool) of this size while there is something frozen: production must never find it
/// full because of us. The larger of 1 GiB and 2 %; on a small one a tenth of it.
pub fn reserve(size: u64) -> u64 {
    const GIB: u64 = 1 << 30;
    GIB.max(size / 50).min(size / 10)
}

/// An error in words: what lies beside `path` could run full.
pub fn roomy(path: &Path) -> Outcome<Result<(), String>> {
    let of = || format!("cannot tell the room in {}", path.display());
    let room = || -> Outcome<(u64, u64)> {
        let stat = rustix::fs::statvfs(path).explain(of)?;
        Ok((stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_blocks.saturating_mul(stat.f_frsize)))
    };
    let (mut free, mut size) = room()?;
    // btrfs tells the room that there was at its last commit (seen on Linux 6.18: 60 MiB free, 120 MiB further on still 60, then none)
    if free < reserve(size).saturating_mul(NEAR) && rustix::fs::statfs(path).explain(of)?.f_type == BTRFS {
        let folder = std::fs::File::open(path).explain(of)?;
        rustix::fs::syncfs(&folder).explain(of)?;
        (free, size) = room()?;
    }
    Ok(enough(free, size))
}

/// Whether this much may be left of this size.
pub fn enough(free: u64, size: u64) -> Result<(), String> {
    let reserve = reserve(size);
    if free >= reserve {
        return Ok(());
    }
    let mib = |bytes: u64| bytes >> 20;
    Err(format!("{} MiB of {} MiB are free, and {} MiB have to stay free", mib(free), mib(size), mib(reserve)))
}

/// Mounts a filesystem on a folder in root's own, which is made.
pub fn attach(source: &OsStr, point: &Path, kind: &str, options: &str, read_only: bool) -> Outcome<()> {
    stage::make_dir(point)?;
    let of = || format!("cannot mount {} on {}", source.to_string_lossy(), point.display());
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOATIME;
    if read_only {
        flags |= MountFlags::RDONLY;
    }
    let options = CString::new(options).explain(of)?;
    rustix::mount::mount(source, point, kind, flags, options.as_c_str()).map_err(std::io::Error::from).explain(of)
}

/// Something is where only this program should have put anything.
pub fn not_ours(what: String) -> Problem {
    Problem::failed(format!("{what}, which this program has not put there; it is left alone"))
        .hint("Look at it, and take it away.")
}

/// Unmounts everything on one of our folders, and removes it. `ours` tells whether a mount is; one that is not is left alone.
pub fn detach(point: &Path, ours: impl Fn(&Mount) -> bool) -> Outcome<()> {
    while let Some(mount) = table()?.into_iter().rfind(|mount| mount.point == point) {
        if !ours(&mount) {
            return Err(not_ours(format!("{mount} is mounted on {}", point.display())));
        }
        let mut tries = 0;
        while let Err(error) = rustix::mount::unmount(point, UnmountFlags::NOFOLLOW) {
            tries += 1;
            if error != rustix::io::Errno::BUSY || tries >= TRIES {
                return Err(Problem::failed(format!("cannot unmount {}", point.display()))
                    .because(std::io::Error::from(error))
                    .hint("`fuser -vm` on it says who uses it."));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    match std::fs::remove_dir(point) {
        Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {
            Err(not_ours(format!("{} holds something", point.display())))
        }
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).explain(|| format!("cannot remove {}", point.display()))
        }
        _ => Ok(()),
    }
}

/// What is mounted on a folder, on top of everything else there.
pub fn at(point: &Path) -> Outcome<Option<Mount>> {
    Ok(table()?.into_iter().rfind(|mount| mount.point == point))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TABLE: &[u8] = b"\
22 29 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n\
36 29 253:4 /base /var/lib/my\\040sql rw,relatime shared:1 master:2 - xfs /dev/mapper/vg-my\\134sql rw,attr2,logdev=/dev/sdb\n\
37 29 0:44 /@mysql /srv/mysql rw - btrfs /dev/sdc rw,space_cache=v2,subvolid=257,subvol=/@mysql\n\
38 29 0:50 / /tank/mysql rw,noatime - zfs tank/mysql rw,xattr\n\
garbage\n";

    #[test]
    fn the_table_is_read() {
        let all = parse(TABLE);
        assert_eq!(all.len(), 4);
        let xfs = &all[1];
        assert_eq!((xfs.id, xfs.device.as_str(), xfs.kind.as_str()), (36, "253:4", "xfs"));
        assert_eq!(xfs.point, Path::new("/var/lib/my sql"));
        assert_eq!(xfs.source, "/dev/mapper/vg-my\\sql");
        assert_eq!((xfs.option("logdev="), xfs.option("rtdev=")), (Some("logdev=/dev/sdb"), None));
        assert_eq!(xfs.inside(Path::new("/var/lib/my sql/data")).unwrap(), Path::new("base/data"));
        assert!(xfs.inside(Path::new("/var/lib")).is_err());
        assert!(!all[2].is_whole() && all[3].is_whole());
        assert_eq!(all[3].source, "tank/mysql");
        assert_eq!(xfs.to_string(), "xfs on /dev/mapper/vg-my\\sql");
    }

    #[test]
    fn the_mount_of_a_path_is_found_here() {
        assert_eq!(Mount::of(Path::new("/proc/self")).unwrap().kind, "proc");
        assert!(Mount::of(Path::new("/no/such/place")).is_err());
    }

    #[test]
    fn the_reserve_fits_the_size() {
        const GIB: u64 = 1 << 30;
        assert_eq!(reserve(GIB), GIB / 10);
        assert_eq!(reserve(20 * GIB), GIB);
        assert_eq!(reserve(1000 * GIB), 20 * GIB);
        assert!(enough(GIB, 20 * GIB).is_ok());
        let text = enough(GIB - 1, 20 * GIB).unwrap_err();
        assert_eq!(text, "1023 MiB of 20480 MiB are free, and 1024 MiB have to stay free");
    }

    proptest! {
        #[test]
        fn any_table_is_read_without_a_panic(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse(&text);
        }
        #[test]
        fn what_the_kernel_escapes_comes_back(name in proptest::collection::vec(1u8.., 1..20)) {
            let escaped: Vec<u8> = name.iter().flat_map(|byte| match byte {
                b' ' | b'\t' | b'\n' | b'\\' => format!("\\{byte:03o}").into_bytes(),
                other => vec![*other],
            }).collect();
            prop_assert_eq!(plain(&escaped), OsString::from_vec(name));
        }
        #[test]
        fn the_reserve_is_never_all(size in 0u64..) {
            prop_assert!(reserve(size) <= size / 10);
        }
    }
}
