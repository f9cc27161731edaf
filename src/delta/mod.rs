//! The image as data: relative paths, block and file hashes, packed chunks. Bytes in, bytes out; no I/O.

pub mod hash;
pub mod pack;
pub mod path;

/// Bytes in one page, the unit that travels: InnoDB's default page, of which scattered updates touch one in a block. The last
/// page of a file may be shorter.
pub const PAGE: usize = 16 * 1024;

/// Pages in one block.
pub const BLOCK_PAGES: usize = 4;

/// Bytes in one block, the unit that is hashed and compared with a basis. The last block of a file may be shorter.
pub const BLOCK: usize = PAGE * BLOCK_PAGES;

/// Blocks in one chunk, the unit that is read, packed and sent.
pub const CHUNK_BLOCKS: usize = 16;

/// Bytes in one chunk at most.
pub const CHUNK: usize = BLOCK * CHUNK_BLOCKS;

/// Pages in one chunk: as many as a mask has bits.
pub const CHUNK_PAGES: usize = CHUNK_BLOCKS * BLOCK_PAGES;
