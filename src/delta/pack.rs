//! A chunk: up to `CHUNK_BLOCKS` neighbouring blocks of one file with their hashes, packed for the wire. No I/O.
//!
//! Pages that are all zero travel as a bit, and so do pages that the receiver has already. Unpacking checks every block that
//! travels whole against its hash; any bytes at all give a value or an error.

use bytes::Bytes;

use super::hash::{self, Hash};
use super::{BLOCK, BLOCK_PAGES, CHUNK, PAGE};

/// encoding u8, file u32, offset u64, raw length u32, body length u32, zero pages u64, absent pages u64
const HEADER: usize = 1 + 4 + 8 + 4 + 4 + 8 + 8;
const PLAIN: u8 = 0;
const ZSTD: u8 = 1;

/// How a chunk's body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Not at all.
    Plain,
    /// zstd at this level; falls back to plain where it would not shrink.
    Zstd(i32),
}

/// Where a chunk belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The file's number in the stream.
    pub file: u32,
    /// Where the chunk begins in the file, in bytes; a multiple of `BLOCK`.
    pub offset: u64,
}

/// An unpacked chunk. Blocks that have no absent page are verified.
#[derive(Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The file's number in the stream.
    pub file: u32,
    /// Where the chunk begins in the file.
    pub offset: u64,
    /// The bytes: zero pages included, absent ones as zeros.
    pub raw: Vec<u8>,
    /// The block hashes, in order.
    pub hashes: Vec<Hash>,
    /// Bit n: page n is all zero.
    pub zero: u64,
    /// Bit n: page n does not travel, the receiver has it.
    pub absent: u64,
}

impl Chunk {
    /// The pages of a block, as bits of `zero` and `absent`.
    pub fn pages_of(block: usize) -> u64 {
        ((1 << BLOCK_PAGES) - 1) << (block * BLOCK_PAGES)
    }
}

/// Why bytes are no chunk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadChunk {
    /// Lengths or tags contradict each other.
    #[error("malformed chunk: {0}")]
    Malformed(&'static str),
    /// A block does not have the hash that was announced for it.
    #[error("block at offset {0} does not match its hash")]
    Mismatch(u64),
}

/// The hashes of a chunk's blocks, in order.
pub fn hashes(raw: &[u8]) -> Vec<Hash> {
    raw.chunks(BLOCK).map(hash::block).collect()
}

/// Packs `raw` (1 byte to `CHUNK` bytes) with its block `hashes`, without the pages that are `absent` (bit n: page n).
pub fn pack(place: Place, raw: &[u8], hashes: &[Hash], absent: u64, encoding: Encoding) -> Bytes {
    debug_assert!(!raw.is_empty() && raw.len() <= CHUNK && place.offset.is_multiple_of(BLOCK as u64));
    debug_assert_eq!(hashes.len(), raw.len().div_ceil(BLOCK));
    let pages = raw.len().div_ceil(PAGE);
    let absent = if pages < 64 { absent & ((1 << pages) - 1) } else { absent };
    let mut zero = 0u64;
    let mut body = Vec::with_capacity(raw.len());
    for (n, page) in raw.chunks(PAGE).enumerate() {
        if absent & (1 << n) != 0 {
            continue;
        }
        if hash::is_zero(page) {
            zero |= 1 << n;
        } else {
            body.extend_from_slice(page);
        }
    }
    let (tag, body) = compress(body, encoding);
    let mut out = Vec::with_capacity(HEADER + hashes.len() * 32 + body.len());
    out.push(tag);
    out.extend_from_slice(&place.file.to_le_bytes());
    out.extend_from_slice(&place.offset.to_le_bytes());
    out.extend_from_slice(&(raw.len() as u32).to_le_bytes());
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(&zero.to_le_bytes());
    out.extend_from_slice(&absent.to_le_bytes());
    hashes.iter().for_each(|hash| out.extend_from_slice(&hash.0));
    out.extend_from_slice(&body);
    out.into()
}

/// Packs all of `raw`, for whoever has no use for the hashes.
pub fn pack_whole(place: Place, raw: &[u8], encoding: Encoding) -> Bytes {
    pack(place, raw, &hashes(raw), 0, encoding)
}

fn compress(body: Vec<u8>, encoding: Encoding) -> (u8, Vec<u8>) {
    if let Encoding::Zstd(level) = encoding
        && !body.is_empty()
        && let Ok(small) = zstd::bulk::compress(&body, level)
        && small.len() < body.len()
    {
        return (ZSTD, small);
    }
    (PLAIN, body)
}

/// How many bytes of the file a packed chunk stands for, without unpacking it; for progress.
pub fn raw_len(bytes: &[u8]) -> u64 {
    bytes.get(13..17).map_or(0, |b| u64::from(u32::from_le_bytes([b[0], b[1], b[2], b[3]])))
}

/// Unpacks and verifies a chunk. Allocates one chunk for it at most, and as much again for what is unpacked beside pages that do
/// not travel.
pub fn unpack(bytes: &[u8]) -> Result<Chunk, BadChunk> {
    let (head, rest) = bytes.split_at_checked(HEADER).ok_or(BadChunk::Malformed("too short"))?;
    let u32_at = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
    let (file, offset) = (u32_at(1), u64_at(5));
    let (raw_len, body_len) = (u32_at(13) as usize, u32_at(17) as usize);
    let (zero, absent) = (u64_at(21), u64_at(29));
    if raw_len == 0
        || raw_len > CHUNK
        || !offset.is_multiple_of(BLOCK as u64)
        || offset.checked_add(raw_len as u64).is_none()
    {
        return Err(BadChunk::Malformed("length or offset out of range"));
    }
    let pages = raw_len.div_ceil(PAGE);
    if pages < 64 && (zero | absent) >> pages != 0 {
        return Err(BadChunk::Malformed("bits beyond the last page"));
    }
    if zero & absent != 0 {
        return Err(BadChunk::Malformed("pages that are zero and absent"));
    }
    let blocks = raw_len.div_ceil(BLOCK);
    let (hashes, body) = rest.split_at_checked(blocks * 32).ok_or(BadChunk::Malformed("hashes missing"))?;
    if body.len() != body_len {
        return Err(BadChunk::Malformed("body length"));
    }
    let len_of = |n: usize| PAGE.min(raw_len - n * PAGE);
    let left_out = zero | absent;
    let solid: usize = (0..pages).filter(|n| left_out & (1 << n) == 0).map(len_of).sum();
    let body = match head[0] {
        PLAIN => std::borrow::Cow::Borrowed(body),
        ZSTD => zstd::bulk::decompress(body, solid).map_err(|_| BadChunk::Malformed("zstd"))?.into(),
        _ => return Err(BadChunk::Malformed("unknown encoding")),
    };
    if body.len() != solid {
        return Err(BadChunk::Malformed("body does not fill its pages"));
    }
    let raw = spread(body, raw_len, left_out);
    let (hashes, _) = hashes.as_chunks::<32>();
    let hashes: Vec<Hash> = hashes.iter().map(|hash| Hash(*hash)).collect();
    for (n, (block, hash)) in raw.chunks(BLOCK).zip(&hashes).enumerate() {
        if absent & Chunk::pages_of(n) == 0 && hash::block(block) != *hash {
            return Err(BadChunk::Mismatch(offset + (n * BLOCK) as u64));
        }
    }
    Ok(Chunk { file, offset, raw, hashes, zero, absent })
}

fn spread(body: std::borrow::Cow<'_, [u8]>, raw_len: usize, left_out: u64) -> Vec<u8> {
    if left_out == 0 {
        return body.into_owned();
    }
    let mut raw = vec![0; raw_len];
    let mut from = &body[..];
    for (n, page) in raw.chunks_mut(PAGE).enumerate() {
        if left_out & (1 << n) == 0 {
            let (now, later) = from.split_at(page.len());
            page.copy_from_slice(now);
            from = later;
        }
    }
    raw
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn data(len: usize, seed: u8, holes: u64) -> Vec<u8> {
        let mut raw: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed) | 1).collect();
        for (n, page) in raw.chunks_mut(PAGE).enumerate() {
            if holes & (1 << n) != 0 {
                page.fill(0);
            }
        }
        raw
    }

    fn packed(file: u32, offset: u64, raw: &[u8], absent: u64, encoding: Encoding) -> Bytes {
        pack(Place { file, offset }, raw, &hashes(raw), absent, encoding)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn round_trip(len in 1..=CHUNK, seed: u8, holes: u64, absent: u64, file: u32, block in 0u64..1 << 40, level in 0..4) {
            let raw = data(len, seed, holes);
            let encoding = if level == 0 { Encoding::Plain } else { Encoding::Zstd(level) };
            let chunk = unpack(&packed(file, block * BLOCK as u64, &raw, absent, encoding)).unwrap();
            prop_assert_eq!((chunk.file, chunk.offset), (file, block * BLOCK as u64));
            // what is absent is the receiver's to fill in
            let mut left = raw.clone();
            for (n, page) in left.chunks_mut(PAGE).enumerate() {
                if absent & (1 << n) != 0 {
                    prop_assert!(chunk.absent & (1 << n) != 0);
                    page.fill(0);
                }
            }
            prop_assert!(chunk.raw == left);
            prop_assert_eq!(chunk.hashes, hashes(&raw));
        }

        #[test]
        fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = unpack(&bytes);
        }

        #[test]
        fn a_flipped_bit_is_noticed(at in 0usize..70_000, bit in 0u8..8) {
            let raw = data(66_000, 3, 0);
            let mut bytes = packed(7, 0, &raw, 0, Encoding::Plain).to_vec();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            // file number and offset are not covered here: the frame's checksum and the file's proof cover them
            if let Ok(chunk) = unpack(&bytes) {
                prop_assert!((1..13).contains(&at) && chunk.raw == raw);
            }
        }
    }
}
