//! A chunk: up to `CHUNK_BLOCKS` neighbouring blocks of one file with their hashes, packed for the wire. No I/O.
//!
//! Zero blocks travel as a bit. Unpacking checks every block against its hash; any bytes at all give a value or an error.

use bytes::Bytes;

use super::hash::{self, Hash};
use super::{BLOCK, CHUNK, CHUNK_BLOCKS};

/// encoding u8, file u32, offset u64, raw length u32, body length u32, zero bits u16
const HEADER: usize = 1 + 4 + 8 + 4 + 4 + 2;
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

/// A packed chunk and the hashes of its blocks.
pub struct Packed {
    /// What is sent.
    pub bytes: Bytes,
    /// The block hashes, in order.
    pub hashes: Vec<Hash>,
}

/// An unpacked, verified chunk.
#[derive(Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The file's number in the stream.
    pub file: u32,
    /// Where the chunk begins in the file.
    pub offset: u64,
    /// The bytes, zero blocks included.
    pub raw: Vec<u8>,
    /// Bit n: block n is all zero.
    pub zero: u16,
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

/// Packs `raw` (1 byte to `CHUNK` bytes), which begins at `offset`, a multiple of `BLOCK`.
pub fn pack(file: u32, offset: u64, raw: &[u8], encoding: Encoding) -> Packed {
    debug_assert!(!raw.is_empty() && raw.len() <= CHUNK && offset.is_multiple_of(BLOCK as u64));
    let mut zero = 0u16;
    let mut hashes = Vec::with_capacity(CHUNK_BLOCKS);
    let mut solid = 0;
    for (n, block) in raw.chunks(BLOCK).enumerate() {
        hashes.push(hash::block(block));
        if hash::is_zero(block) {
            zero |= 1 << n;
        } else {
            solid += block.len();
        }
    }
    let mut body = Vec::with_capacity(solid);
    for (n, block) in raw.chunks(BLOCK).enumerate() {
        if zero & (1 << n) == 0 {
            body.extend_from_slice(block);
        }
    }
    let (tag, body) = compress(body, encoding);
    let mut out = Vec::with_capacity(HEADER + hashes.len() * 32 + body.len());
    out.push(tag);
    out.extend_from_slice(&file.to_le_bytes());
    out.extend_from_slice(&offset.to_le_bytes());
    out.extend_from_slice(&(raw.len() as u32).to_le_bytes());
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(&zero.to_le_bytes());
    hashes.iter().for_each(|hash| out.extend_from_slice(&hash.0));
    out.extend_from_slice(&body);
    Packed { bytes: out.into(), hashes }
}

fn compress(body: Vec<u8>, encoding: Encoding) -> (u8, Vec<u8>) {
    if let Encoding::Zstd(level) = encoding
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

/// Unpacks and verifies a chunk. Allocates one chunk for it at most, and as much again for what is unpacked beside zero blocks.
pub fn unpack(bytes: &[u8]) -> Result<Chunk, BadChunk> {
    let (head, rest) = bytes.split_at_checked(HEADER).ok_or(BadChunk::Malformed("too short"))?;
    let u32_at = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let file = u32_at(1);
    let offset = u64::from(u32_at(5)) | u64::from(u32_at(9)) << 32;
    let (raw_len, body_len) = (u32_at(13) as usize, u32_at(17) as usize);
    let zero = u16::from_le_bytes([head[21], head[22]]);
    if raw_len == 0
        || raw_len > CHUNK
        || !offset.is_multiple_of(BLOCK as u64)
        || offset.checked_add(raw_len as u64).is_none()
    {
        return Err(BadChunk::Malformed("length or offset out of range"));
    }
    let blocks = raw_len.div_ceil(BLOCK);
    if blocks < CHUNK_BLOCKS && zero >> blocks != 0 {
        return Err(BadChunk::Malformed("zero bits beyond the last block"));
    }
    let (hashes, body) = rest.split_at_checked(blocks * 32).ok_or(BadChunk::Malformed("hashes missing"))?;
    if body.len() != body_len {
        return Err(BadChunk::Malformed("body length"));
    }
    let len_of = |n: usize| BLOCK.min(raw_len - n * BLOCK);
    let solid: usize = (0..blocks).filter(|n| zero & (1 << n) == 0).map(len_of).sum();
    let body = match head[0] {
        PLAIN => std::borrow::Cow::Borrowed(body),
        ZSTD => zstd::bulk::decompress(body, solid).map_err(|_| BadChunk::Malformed("zstd"))?.into(),
        _ => return Err(BadChunk::Malformed("unknown encoding")),
    };
    if body.len() != solid {
        return Err(BadChunk::Malformed("body does not fill its blocks"));
    }
    let raw = spread(body, raw_len, zero);
    for (n, (block, hash)) in raw.chunks(BLOCK).zip(hashes.chunks_exact(32)).enumerate() {
        if hash::block(block).0 != hash {
            return Err(BadChunk::Mismatch(offset + (n * BLOCK) as u64));
        }
    }
    Ok(Chunk { file, offset, raw, zero })
}

fn spread(body: std::borrow::Cow<'_, [u8]>, raw_len: usize, zero: u16) -> Vec<u8> {
    if zero == 0 {
        return body.into_owned();
    }
    let mut raw = vec![0; raw_len];
    let mut from = &body[..];
    for (n, block) in raw.chunks_mut(BLOCK).enumerate() {
        if zero & (1 << n) == 0 {
            let (now, later) = from.split_at(block.len());
            block.copy_from_slice(now);
            from = later;
        }
    }
    raw
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn data(len: usize, seed: u8, holes: u16) -> Vec<u8> {
        let mut raw: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed) | 1).collect();
        for (n, block) in raw.chunks_mut(BLOCK).enumerate() {
            if holes & (1 << n) != 0 {
                block.fill(0);
            }
        }
        raw
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn round_trip(len in 1..=CHUNK, seed: u8, holes: u16, file: u32, block in 0u64..1 << 40, level in 0..4) {
            let raw = data(len, seed, holes);
            let encoding = if level == 0 { Encoding::Plain } else { Encoding::Zstd(level) };
            let packed = pack(file, block * BLOCK as u64, &raw, encoding);
            let chunk = unpack(&packed.bytes).unwrap();
            prop_assert_eq!((chunk.file, chunk.offset), (file, block * BLOCK as u64));
            prop_assert!(chunk.raw == raw);
            prop_assert_eq!(packed.hashes.len(), len.div_ceil(BLOCK));
        }

        #[test]
        fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = unpack(&bytes);
        }

        #[test]
        fn a_flipped_bit_is_noticed(at in 0usize..70_000, bit in 0u8..8) {
            let packed = pack(7, 0, &data(66_000, 3, 0), Encoding::Plain);
            let mut bytes = packed.bytes.to_vec();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            // file number and offset are not covered here: the frame's checksum and the file's proof cover them
            if let Ok(chunk) = unpack(&bytes) {
                prop_assert!((1..13).contains(&at) && chunk.raw == data(66_000, 3, 0));
            }
        }
    }
}
