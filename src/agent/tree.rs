//! A datadir on disk, walked without following anything and sorted into classes.
//!
//! Reads names and metadata only; what a name means is `mysql::files`' business.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::delta::path::RelPath;
use crate::mysql::Flavour;
use crate::mysql::files::{Class, EntryKind, Names, classify};
use crate::problem::{Explain, Outcome, Problem};
use crate::wire::facts::TreeFacts;

/// Names listed in a report at most; a datadir may hold thousands of binary logs.
const MAX_LISTED: usize = 50;

/// One entry of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Its path.
    pub path: RelPath,
    /// A folder, else a regular file.
    pub dir: bool,
    /// Permission bits.
    pub mode: u32,
    /// Length of a file.
    pub len: u64,
    /// Inode, mtime and ctime (seconds, nanoseconds): differ when anyone touched it.
    stamp: (u64, i64, i64, i64, i64),
}

impl Item {
    /// Whether this is the same file as then, and nobody has touched it since.
    pub fn untouched_since(&self, then: &Item) -> bool {
        self == then
    }

    /// Its inode's number.
    pub fn inode(&self) -> u64 {
        self.stamp.0
    }

    /// When anybody touched it last, in nanoseconds since 1970 by the filesystem's clock.
    pub fn touched_ns(&self) -> i128 {
        let (_, mtime, mtime_ns, ctime, ctime_ns) = self.stamp;
        let ns = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
        ns(mtime, mtime_ns).max(ns(ctime, ctime_ns))
    }
}

/// A walked datadir.
#[derive(Debug, Default)]
pub struct Tree {
    /// The image, in byte order of the paths.
    pub items: Vec<Item>,
    /// Top-level entries that each host keeps of its own.
    pub keep: Vec<RelPath>,
    /// What is left behind, why a copy is forbidden.
    pub facts: TreeFacts,
    /// Entries that prove an unclean stop, with the reason.
    pub unclean: Vec<String>,
}

/// Walks a datadir. Entries that vanish meanwhile are left out: the tree is authoritative only of a stopped server.
pub fn walk(datadir: &Path, flavour: Flavour, names: &Names) -> Outcome<Tree> {
    let top = std::fs::symlink_metadata(datadir).explain(|| format!("cannot read {}", datadir.display()))?;
    let mut tree = Tree::default();
    let mut pending = vec![Path::new("").to_owned()];
    while let Some(folder) = pending.pop() {
        let full = datadir.join(&folder);
        let entries = match std::fs::read_dir(&full) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && folder.as_os_str() != "" => continue,
            Err(error) => return Err(error).explain(|| format!("cannot read {}", full.display())),
        };
        for entry in entries {
            let entry = entry.explain(|| format!("cannot read {}", full.display()))?;
            let path = folder.join(entry.file_name());
            let meta = match std::fs::symlink_metadata(entry.path()) {
                Ok(meta) => meta,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error).explain(|| format!("cannot read {}", entry.path().display())),
            };
            if tree.take(flavour, names, &path, &meta, top.dev())? {
                pending.push(path);
            }
        }
    }
    tree.items.sort_by(|a, b| a.path.as_bytes().cmp(b.path.as_bytes()));
    tree.facts.dropped.sort();
    tree.facts.dropped.truncate(MAX_LISTED);
    tree.facts.refusals.sort();
    tree.facts.refusals.truncate(MAX_LISTED);
    tree.facts.keep = tree.keep.iter().map(ToString::to_string).collect();
    Ok(tree)
}

impl Tree {
    /// Whether the datadir may be copied at all.
    pub fn copyable(&self) -> Outcome<()> {
        match self.facts.refusals.first() {
            Some(refusal) => Err(Problem::failed("the datadir holds what may not be copied").cause(refusal.clone())),
            None => Ok(()),
        }
    }

    /// Sorts one entry; true if it is a folder to descend into.
    fn take(&mut self, flavour: Flavour, names: &Names, path: &Path, meta: &Metadata, device: u64) -> Outcome<bool> {
        let shown = path.display();
        let kind = match meta.file_type() {
            t if t.is_file() => EntryKind::File,
            t if t.is_dir() => EntryKind::Dir,
            t if t.is_symlink() => EntryKind::Symlink,
            _ => EntryKind::Other,
        };
        let dir = meta.is_dir();
        match classify(flavour, names, path, kind) {
            Class::Copy if meta.dev() != device => {
                self.facts.refusals.push(format!("{shown}: lies on another filesystem"));
                Ok(false)
            }
            Class::Copy if matches!(kind, EntryKind::Symlink | EntryKind::Other) => {
                self.facts.refusals.push(format!("{shown}: neither a regular file nor a folder"));
                Ok(false)
            }
            Class::Copy => {
                let path = RelPath::try_from(path.to_owned()).map_err(|e| Problem::refused(e.to_string()))?;
                let len = if dir { 0 } else { meta.len() };
                self.facts.copy_dirs += u64::from(dir);
                self.facts.copy_files += u64::from(!dir);
                self.facts.copy_bytes += len;
                let stamp = (meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec());
                self.items.push(Item { path, dir, mode: meta.mode() & 0o777, len, stamp });
                Ok(dir)
            }
            Class::Keep => {
                self.keep.push(RelPath::try_from(path.to_owned()).map_err(|e| Problem::refused(e.to_string()))?);
                Ok(false)
            }
            Class::Drop => {
                self.facts.dropped.push(shown.to_string());
                Ok(false)
            }
            Class::Unclean(reason) => {
                self.unclean.push(format!("{shown}: {reason}"));
                self.facts.dropped.push(shown.to_string());
                Ok(false)
            }
            Class::Refuse(reason) => {
                self.facts.refusals.push(format!("{shown}: {reason}"));
                Ok(false)
            }
        }
    }
}

/// Bytes in a folder and all below, as sizes say; 0 if it is not there.
pub fn bytes_below(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.path().symlink_metadata() {
            Ok(meta) if meta.is_dir() => bytes_below(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}
