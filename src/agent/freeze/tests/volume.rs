//! A filesystem of its own for one test, a datadir on it, and what is in that.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::agent::freeze::{Place, Way, Wish, choose};
use crate::agent::receive::is_root;
use crate::agent::tree::{Item, walk};
use crate::mysql::Flavour;
use crate::mysql::files::Names;

pub const MIB: u64 = 1 << 20;

/// A mounted image.
pub struct Volume {
    dir: tempfile::TempDir,
    mounted: Vec<PathBuf>,
}

impl Drop for Volume {
    fn drop(&mut self) {
        // what a failed test has left mounted lies below
        let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let points =
            table.lines().filter_map(|line| line.split(' ').nth(1)).map(|at| PathBuf::from(at.replace("\\040", " ")));
        let mut all: Vec<PathBuf> = points.filter(|at| at.starts_with(self.dir.path())).collect();
        all.sort();
        for at in all.iter().rev() {
            let _ = Command::new("umount").arg(at).status();
        }
    }
}

/// Runs a command of the test; its output.
pub fn output(command: &mut Command) -> String {
    let done = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

impl Volume {
    /// A new filesystem of this size.
    pub fn new(kind: &str, mib: u64) -> Option<Self> {
        if !is_root() {
            eprintln!("nothing tested: mounts need root");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(mib * MIB).unwrap();
        let quiet = if kind == "ext4" { ["-q", "-F"] } else { ["-q", "-f"] };
        match Command::new(format!("/usr/sbin/mkfs.{kind}")).args(quiet).arg(&image).output() {
            Ok(done) if done.status.success() => {}
            other => {
                eprintln!("nothing tested: no {kind} can be made: {other:?}");
                return None;
            }
        }
        let mut volume = Self { dir, mounted: Vec::new() };
        volume.mount("vol", "loop")?;
        Some(volume)
    }
    /// Mounts the image once more.
    pub fn mount(&mut self, name: &str, options: &str) -> Option<PathBuf> {
        let point = self.dir.path().join(name);
        std::fs::create_dir(&point).unwrap();
        let image = match self.mounted.first() {
            Some(first) => PathBuf::from(output(Command::new("findmnt").args(["-nvo", "SOURCE"]).arg(first)).trim()),
            None => self.dir.path().join("image"),
        };
        let done = Command::new("mount").args(["-o", options]).arg(image).arg(&point).output().unwrap();
        if !done.status.success() {
            eprintln!("nothing tested: nothing can be mounted: {}", String::from_utf8_lossy(&done.stderr));
            return None;
        }
        self.mounted.push(point.clone());
        Some(point)
    }
    pub fn top(&self) -> &Path {
        &self.mounted[0]
    }
    /// A datadir on it.
    pub fn datadir(&self) -> PathBuf {
        let datadir = self.top().join("data");
        std::fs::create_dir(&datadir).unwrap();
        fill(&datadir);
        datadir
    }
    /// Where records about a datadir lie: on another filesystem.
    pub fn place(&self, datadir: &Path) -> Place {
        Place { state_dir: self.dir.path().join("state"), key: "0123456789abcdef".into(), datadir: datadir.to_owned() }
    }
}

/// What a datadir holds: sizes, holes, modes and depths of many kinds.
pub fn fill(datadir: &Path) {
    let file = |name: &str, mode: u32, bytes: &[u8]| {
        let path = datadir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let bytes = |len: usize, seed: u8| (0..len).map(|n| (n / 7) as u8 ^ seed).collect::<Vec<u8>>();
    file("ibdata1", 0o660, &bytes(5 << 20, 1));
    file("ib_logfile0", 0o640, &bytes(1 << 20, 2));
    file("mysql/user.frm", 0o600, &bytes(17, 3));
    file("mysql/empty.MAI", 0o666, &[]);
    file("mysql/readonly.MAD", 0o400, &bytes(70_000, 4));
    for n in 0..40 {
        file(&format!("shop/t{n}.ibd"), 0o660, &bytes(4096 * n + n, n as u8));
    }
    file("shop@0020two/t#P#p0.ibd", 0o644, &bytes(4096, 9));
    let sparse = std::fs::File::create(datadir.join("shop/sparse.ibd")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"in the middle", 3 << 20).unwrap();
    sparse.set_len(6 << 20).unwrap();
    std::fs::set_permissions(datadir.join("shop"), std::fs::Permissions::from_mode(0o777)).unwrap();
}

/// The image as the agent sees it.
pub fn items(datadir: &Path) -> Vec<Item> {
    walk(datadir, Flavour::MariaDb, &Names::from_variables(datadir, &BTreeMap::new(), &[], &[])).unwrap().items
}

/// Entries with their modes, and of files lengths and hashes.
pub type Content = BTreeMap<PathBuf, (u32, Option<(usize, String)>)>;

/// Every entry below a folder, read without any of our code.
pub fn content(folder: &Path) -> Content {
    let mut all = BTreeMap::new();
    let mut pending = vec![folder.to_owned()];
    while let Some(next) = pending.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let bytes = meta.is_file().then(|| std::fs::read(&path).unwrap());
            let bytes = bytes.map(|bytes| (bytes.len(), blake3::hash(&bytes).to_string()));
            all.insert(path.strip_prefix(folder).unwrap().to_owned(), (meta.permissions().mode() & 0o7777, bytes));
            if meta.is_dir() {
                pending.push(path);
            }
        }
    }
    all
}

/// What a server would do once it runs again: overwrite, grow, cut off, remove, make.
pub fn live_on(datadir: &Path) {
    for (path, (_, bytes)) in content(datadir) {
        let path = datadir.join(path);
        match bytes.map(|(len, _)| len) {
            Some(_) if path.metadata().unwrap().permissions().mode() & 0o200 == 0 => {
                std::fs::remove_file(&path).unwrap()
            }
            Some(len) if len % 3 == 0 => std::fs::write(&path, vec![0xee; len + 5000]).unwrap(),
            Some(len) if len % 3 == 1 => {
                let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
                std::os::unix::fs::FileExt::write_all_at(&file, b"changed", len as u64 / 2).unwrap();
                file.sync_all().unwrap();
            }
            Some(_) => std::fs::remove_file(&path).unwrap(),
            None => std::fs::write(path.join("new.ibd"), b"new").unwrap(),
        }
    }
    output(Command::new("sync").arg("-f").arg(datadir));
}

/// Two contents are the same; what differs is named, not all.
#[track_caller]
pub fn same(found: &Content, expected: &Content, what: &str) {
    let differs = |path: &&PathBuf| found.get(*path) != expected.get(*path);
    let different: Vec<_> = found.keys().chain(expected.keys()).filter(differs).take(5).collect();
    assert!(different.is_empty(), "{what}: {different:?} differ, among others");
}

/// The way that is chosen.
pub fn way(datadir: &Path, wish: Wish) -> Way {
    choose(datadir, wish).unwrap().unwrap()
}

/// Why there is none.
pub fn no_way(datadir: &Path, wish: Wish) -> String {
    choose(datadir, wish).unwrap().unwrap_err()
}

/// The names in a folder.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
