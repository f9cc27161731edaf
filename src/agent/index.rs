//! Block hashes of many files, on disk: one for each block of a large datadir would not fit into an agent's memory. The file has
//! no name and goes with the agent.
//!
//! Knows nothing of what the hashes are compared with.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::receive::write_error;
use crate::delta::BLOCK;
use crate::delta::hash::Hash;
use crate::problem::{Explain, Outcome, Problem};

/// Bytes of a hash.
const HASH: u64 = 32;

/// What stands where no hash was written: a hole in the file.
pub const UNKNOWN: Hash = Hash([0; 32]);

/// Hashes that are read at once.
const BATCH: u64 = 4096;

/// The hashes.
pub struct Index {
    file: File,
    end: AtomicU64,
}

/// Where one file's hashes are.
#[derive(Debug, Clone, Copy, Default)]
pub struct Span {
    at: u64,
    room: u64,
}

/// How many blocks a file of this length has.
pub fn blocks(len: u64) -> u64 {
    len.div_ceil(BLOCK as u64)
}

impl Index {
    /// An empty one, in a folder that exists.
    pub fn new(folder: &Path) -> Outcome<Self> {
        let path = folder.join(format!("index-{}", std::process::id()));
        let open = || OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = match open() {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                // of an agent that died between this line and the next
                std::fs::remove_file(&path).explain(|| format!("cannot remove {}", path.display()))?;
                open()
            }
            opened => opened,
        }
        .map_err(|error| write_error(&path, &error))?;
        std::fs::remove_file(&path).explain(|| format!("cannot remove {}", path.display()))?;
        Ok(Self { file, end: AtomicU64::new(0) })
    }

    /// Room for the hashes of a file of this length, all of them unknown.
    pub fn span(&self, len: u64) -> Span {
        let room = blocks(len);
        Span { at: self.end.fetch_add(room * HASH, Ordering::Relaxed), room }
    }

    /// Room for a file that has changed its length from `old` to `len`; keeps the hashes of blocks that are whole in both.
    pub fn resized(&self, span: Span, old: u64, len: u64) -> Outcome<Span> {
        let whole = old.min(len) / BLOCK as u64;
        let (from, to) = (span, if blocks(len) <= span.room { span } else { self.span(len) });
        if to.at != from.at {
            let mut first = 0;
            while first < whole {
                let count = (whole - first).min(BATCH);
                self.write(to, first, &self.read(from, first, count)?)?;
                first += count;
            }
        }
        // the block that was cut or has grown, and whatever stood behind it
        let mut first = whole;
        while first < blocks(old.max(len)).min(to.room) {
            let count = (blocks(old.max(len)).min(to.room) - first).min(BATCH);
            self.write(to, first, &vec![UNKNOWN; count as usize])?;
            first += count;
        }
        Ok(to)
    }

    /// The hashes of neighbouring blocks; unknown beyond what was written.
    pub fn read(&self, span: Span, first: u64, count: u64) -> Outcome<Vec<Hash>> {
        let known = count.min(span.room.saturating_sub(first));
        let mut bytes = vec![0; (known * HASH) as usize];
        let (mut done, at) = (0, span.at + first * HASH);
        while done < bytes.len() {
            match self.file.read_at(&mut bytes[done..], at + done as u64).explain(|| "cannot read block hashes")? {
                // nothing was ever written there
                0 => break,
                n => done += n,
            }
        }
        let (hashes, _) = bytes.as_chunks::<32>();
        let mut hashes: Vec<Hash> = hashes.iter().map(|hash| Hash(*hash)).collect();
        hashes.resize(count as usize, UNKNOWN);
        Ok(hashes)
    }

    /// Writes the hashes of neighbouring blocks.
    pub fn write(&self, span: Span, first: u64, hashes: &[Hash]) -> Outcome<()> {
        if first + hashes.len() as u64 > span.room {
            return Err(Problem::failed("a block beyond its file's end"));
        }
        let bytes: Vec<u8> = hashes.iter().flat_map(|hash| hash.0).collect();
        self.file
            .write_all_at(&bytes, span.at + first * HASH)
            .explain(|| "cannot note block hashes")
            .map_err(|problem| problem.hint("The agent's state folder, or the filesystem of the stage, may be full."))
    }

    /// All hashes of a file of this length, in order, with the lengths of their blocks; false if one is unknown.
    pub fn each(&self, span: Span, len: u64, mut take: impl FnMut(&Hash, usize)) -> Outcome<bool> {
        let (all, mut first) = (blocks(len), 0);
        while first < all {
            let count = (all - first).min(BATCH);
            for (n, hash) in self.read(span, first, count)?.iter().enumerate() {
                if *hash == UNKNOWN {
                    return Ok(false);
                }
                let begin = (first + n as u64) * BLOCK as u64;
                take(hash, (len - begin).min(BLOCK as u64) as usize);
            }
            first += count;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delta::hash::block;

    #[test]
    fn hashes_stay_with_their_blocks_when_files_grow_and_shrink() {
        let folder = tempfile::tempdir().unwrap();
        let index = Index::new(folder.path()).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let (b, hash) = (BLOCK as u64, |n: u8| block(&[n]));
        let one = index.span(2 * b + 1);
        let other = index.span(b);
        index.write(one, 0, &[hash(1), hash(2), hash(3)]).unwrap();
        index.write(other, 0, &[hash(9)]).unwrap();
        assert!(index.write(other, 1, &[hash(9)]).is_err());
        // longer than its room: moved; its last block was not whole
        let grown = index.resized(one, 2 * b + 1, 5 * b).unwrap();
        assert_eq!(index.read(grown, 0, 5).unwrap(), [hash(1), hash(2), UNKNOWN, UNKNOWN, UNKNOWN]);
        index.write(grown, 2, &[hash(3), hash(4), hash(5)]).unwrap();
        // cut within a block, and grown again within its room
        let cut = index.resized(grown, 5 * b, 3 * b + 7).unwrap();
        assert_eq!(index.read(cut, 0, 4).unwrap(), [hash(1), hash(2), hash(3), UNKNOWN]);
        let again = index.resized(cut, 3 * b + 7, 5 * b).unwrap();
        assert_eq!(index.read(again, 2, 3).unwrap(), [hash(3), UNKNOWN, UNKNOWN]);
        assert_eq!(index.read(other, 0, 2).unwrap(), [hash(9), UNKNOWN]);
        let mut seen = Vec::new();
        assert!(index.each(cut, 2 * b + 5, |hash, len| seen.push((*hash, len))).unwrap());
        assert!(!index.each(again, 5 * b, |_, _| ()).unwrap());
        assert_eq!(seen, [(hash(1), BLOCK), (hash(2), BLOCK), (hash(3), 5)]);
    }
}
