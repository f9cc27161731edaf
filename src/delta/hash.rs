//! BLAKE3 over blocks, files and the whole image. A file's proof is the hash over its block hashes, so that it can be made
//! in one pass with flat memory on both ends and compared block by block where a basis is to be found. No I/O.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::path::RelPath;

/// A BLAKE3 hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Hash(pub [u8; 32]);

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The hash of one block.
pub fn block(bytes: &[u8]) -> Hash {
    Hash(*blake3::hash(bytes).as_bytes())
}

/// A short hash of one page, never 0: tells pages apart, proves nothing.
pub fn page(bytes: &[u8]) -> u64 {
    let hash = blake3::hash(bytes);
    let (words, _) = hash.as_bytes().as_chunks::<8>();
    u64::from_le_bytes(words[0]).max(1)
}

/// Whether a block is all zero and so can be a hole.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (words, tail) = bytes.as_chunks::<16>();
    words.iter().all(|word| *word == [0; 16]) && tail.iter().all(|byte| *byte == 0)
}

/// Makes a file's proof from its block hashes, in order.
#[derive(Default)]
pub struct FileHasher {
    inner: blake3::Hasher,
    bytes: u64,
}

impl FileHasher {
    /// Takes the next block's hash and length.
    pub fn add(&mut self, hash: &Hash, len: usize) {
        self.inner.update(&hash.0);
        self.bytes += len as u64;
    }
    /// Bytes covered so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
    /// The file's proof: covers length and content.
    pub fn finish(mut self) -> Hash {
        self.inner.update(&self.bytes.to_le_bytes());
        Hash(*self.inner.finalize().as_bytes())
    }
}

/// Makes the image's proof from its entries, in the order they are sent (byte order of paths).
#[derive(Default, Clone)]
pub struct ImageHasher {
    inner: blake3::Hasher,
    totals: Totals,
}

/// How much an image holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Regular files.
    pub files: u64,
    /// Folders.
    pub dirs: u64,
    /// Bytes of all files.
    pub bytes: u64,
}

impl ImageHasher {
    fn path(&mut self, tag: u8, path: &RelPath) {
        let bytes = path.as_bytes();
        self.inner.update(&[tag]);
        self.inner.update(&(bytes.len() as u64).to_le_bytes());
        self.inner.update(bytes);
    }
    /// Takes a folder.
    pub fn dir(&mut self, path: &RelPath) {
        self.path(b'd', path);
        self.totals.dirs += 1;
    }
    /// Takes a file with its length and proof.
    pub fn file(&mut self, path: &RelPath, len: u64, proof: &Hash) {
        self.path(b'f', path);
        self.inner.update(&len.to_le_bytes());
        self.inner.update(&proof.0);
        self.totals.files += 1;
        self.totals.bytes += len;
    }
    /// What was taken, and the proof over it.
    pub fn finish(&self) -> (Totals, Hash) {
        (self.totals, Hash(*self.inner.finalize().as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proof_depends_on_length_order_and_content() {
        let make = |blocks: &[&[u8]]| {
            let mut h = FileHasher::default();
            blocks.iter().for_each(|b| h.add(&block(b), b.len()));
            h.finish()
        };
        assert_ne!(make(&[b"a", b"b"]), make(&[b"b", b"a"]));
        assert_ne!(make(&[]), make(&[b""]));
        assert_ne!(make(&[b"a"]), make(&[b"a", b"a"]));
        assert_eq!(make(&[b"a", b"b"]), make(&[b"a", b"b"]));
    }

    #[test]
    fn zero_blocks_are_found() {
        assert!(is_zero(&[0; 65536]) && is_zero(&[]) && is_zero(&[0; 17]));
        for at in [0, 1, 15, 16, 40] {
            let mut bytes = [0u8; 41];
            bytes[at] = 1;
            assert!(!is_zero(&bytes), "{at}");
        }
    }
}
