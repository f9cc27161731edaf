//! The image as data: relative paths, block and file hashes, packed chunks. Bytes in, bytes out; no I/O.

pub mod hash;
pub mod pack;
pub mod path;

/// Bytes in one block, the unit that is hashed and, later, compared with a basis. The last block of a file may be shorter.
pub const BLOCK: usize = 64 * 1024;

/// Blocks in one chunk, the unit that is read, packed and sent.
pub const CHUNK_BLOCKS: usize = 16;

/// Bytes in one chunk at most.
pub const CHUNK: usize = BLOCK * CHUNK_BLOCKS;
