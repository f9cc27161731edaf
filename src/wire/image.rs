//! The image's stream beside its chunks: passes, entries, questions and answers, and the figures of a pass. No I/O.

use serde::{Deserialize, Serialize};

use super::message::Extra;
use crate::delta::BLOCK_PAGES;
use crate::delta::hash::{Hash, Totals};
use crate::delta::path::RelPath;

/// One pass over the source's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pass {
    /// While the server runs: what is read may be torn, and is nobody's image. What has not changed since an earlier pass is left
    /// out.
    Hot,
    /// Of the stopped server, or of its frozen files: the image.
    Cold,
}

/// How files are read and sent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StreamOptions {
    /// Which pass.
    pub pass: Pass,
    /// zstd level; None: not compressed.
    pub level: Option<i32>,
    /// Extra top-level names to copy and to leave.
    pub extra: Extra,
    /// Some receiver has a basis: ask which blocks are lacking before they are sent.
    pub ask: bool,
    /// Cold: read again what nobody has touched since it was sent, too.
    pub paranoid: bool,
    /// Bytes read in a second at most, while the server runs.
    pub max_rate: Option<u64>,
}

/// What a pass over the source's files did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passed {
    /// Files that were read.
    pub files: u64,
    /// Bytes that were read.
    pub read: u64,
    /// Bytes of what had to travel, before compression.
    pub changed: u64,
}

/// A receiver's answer to `Entry::Ask`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lack {
    /// The file's number in the stream.
    pub number: u32,
    /// As asked.
    pub offset: u64,
    /// Bit n: the n-th block that was asked for is lacking.
    pub blocks: u16,
    /// For each of those blocks, in order, the short hashes of the pages that are there in its place; 0: none.
    pub pages: Vec<[u64; BLOCK_PAGES]>,
}

impl Lack {
    /// What either receiver lacks. Pages in which they differ count as lacking.
    pub fn or(&self, other: &Self) -> Self {
        let (mut mine, mut theirs) = (self.pages.iter(), other.pages.iter());
        let mut pages = Vec::new();
        for n in 0..u16::BITS {
            let bit = |blocks: u16| blocks & (1 << n) != 0;
            let pair =
                (bit(self.blocks).then(|| mine.next()).flatten(), bit(other.blocks).then(|| theirs.next()).flatten());
            match pair {
                (Some(a), Some(b)) => pages.push(std::array::from_fn(|i| if a[i] == b[i] { a[i] } else { 0 })),
                (Some(one), None) | (None, Some(one)) => pages.push(*one),
                (None, None) => {}
            }
        }
        Self { blocks: self.blocks | other.blocks, pages, ..*self }
    }
}

/// How the stage is proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiveOptions {
    /// Which pass.
    pub pass: Pass,
    /// Write out and drop each file from the page cache before it is read back.
    pub from_disk: bool,
}

/// How a basis is brought in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeedOptions {
    /// Write out and drop what is brought in from the page cache before it is hashed.
    pub from_disk: bool,
    /// When it is copied (where it cannot be shared) and hashed.
    pub filled: Filled,
}

/// When a basis is copied and hashed: before the answer, or beside the first pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Filled {
    /// Before: a stopped source waits for the first pass.
    Before,
    /// Before, if it has to be copied: the source's files are frozen, and cost it room until the first pass is over.
    CopiesBefore,
    /// Beside.
    Beside,
}

impl Filled {
    /// Whether all is to be there before the answer.
    pub fn at_once(self, seeded: Seeded) -> bool {
        match self {
            Filled::Before => true,
            Filled::CopiesBefore => !seeded.shared,
            Filled::Beside => false,
        }
    }
}

/// The basis in a stage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seeded {
    /// Files.
    pub files: u64,
    /// Bytes of those files, as far as they come in.
    pub bytes: u64,
    /// All of them share their blocks with the current generation.
    pub shared: bool,
    /// Some of them are the previous generation's, of which what differs is replaced.
    pub reused: bool,
}

/// The image's stream, beside chunks; from the source and, forwarded, to every destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// A folder.
    Dir {
        /// Its path.
        path: RelPath,
        /// Permission bits.
        mode: u32,
    },
    /// A file begins; its chunks follow in order.
    File {
        /// Its number in the stream; chunks name it.
        number: u32,
        /// Its path.
        path: RelPath,
        /// Permission bits.
        mode: u32,
        /// Its length.
        len: u64,
    },
    /// A file is complete.
    FileEnd {
        /// Its number.
        number: u32,
        /// The source's proof.
        proof: Hash,
    },
    /// A file that is now what an earlier pass has sent: nothing of it follows.
    Same {
        /// Its path.
        path: RelPath,
        /// Permission bits.
        mode: u32,
        /// Its length.
        len: u64,
        /// The source's proof.
        proof: Hash,
    },
    /// Which of these neighbouring blocks are lacking? Answered by a `Lack`, in order.
    Ask {
        /// The file's number.
        number: u32,
        /// Where the first block begins.
        offset: u64,
        /// Their hashes; `CHUNK_BLOCKS` at most.
        hashes: Vec<Hash>,
    },
    /// A file that had begun has vanished, or shrunk, while it was read.
    Gone {
        /// Its number.
        number: u32,
    },
    /// A hot pass is over.
    PassEnd,
    /// The image is complete.
    End {
        /// How much it holds.
        totals: Totals,
        /// The source's proof.
        image: Hash,
    },
}
