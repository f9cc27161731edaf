//! Packed chunks and the paths that files travel under: what is accepted is what was hashed, in the room of one chunk, inside one
//! folder.

use std::path::Path;

use mysql_refreshd::delta::hash::{self, is_zero};
use mysql_refreshd::delta::pack::{Chunk, Encoding, Place, hashes, pack, raw_len, unpack};
use mysql_refreshd::delta::path::RelPath;
use mysql_refreshd::delta::{BLOCK, CHUNK, PAGE};
use mysql_refreshd::mutate;

use crate::{alone, measured};

/// Where in a packed chunk its block hashes begin.
const HEAD: usize = 37;

/// Chunks of a few blocks, some of them zero, as each encoding packs them.
fn corpus() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for (blocks, tail, zero) in
        [(0, 100, 0u64), (1, 0, 0), (1, 0, 1), (3, 77, 0b0101), (16, 0, 0), (16, 0, 0xffff_ffff_ffff_fffe)]
    {
        let mut raw: Vec<u8> = (0..blocks * BLOCK + tail).map(|n| (n / 300) as u8 | 1).collect();
        for (n, block) in raw.chunks_mut(PAGE).enumerate() {
            if zero & (1 << n) != 0 {
                block.fill(0);
            }
        }
        for encoding in [Encoding::Plain, Encoding::Zstd(1)] {
            for absent in [0, 0b1_0010, 0xf0] {
                let place = Place { file: 7, offset: 3 * BLOCK as u64 };
                all.push(pack(place, &raw, &hashes(&raw), absent, encoding).to_vec());
            }
        }
    }
    all
}

/// A chunk whose body would unpack to much more than it says.
fn bomb(says: usize, holds: usize) -> Vec<u8> {
    let body = zstd::bulk::compress(&vec![1; holds], 1).unwrap();
    let mut bytes = vec![1];
    bytes.extend_from_slice(&7u32.to_le_bytes());
    bytes.extend_from_slice(&0u64.to_le_bytes());
    bytes.extend_from_slice(&(says as u32).to_le_bytes());
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&[0; 16]);
    for block in vec![1; says].chunks(BLOCK) {
        bytes.extend_from_slice(&hash::block(block).0);
    }
    bytes.extend_from_slice(&body);
    bytes
}

fn judge(bytes: &[u8]) -> bool {
    let _ = raw_len(bytes);
    let (unpacked, most) = measured(|| unpack(bytes));
    // the whole, and where it has zero blocks its body beside it
    assert!(most <= 2 * CHUNK + 4096, "{most} bytes for a chunk");
    let Ok(chunk) = unpacked else { return false };
    assert!(chunk.zero | chunk.absent != 0 || most <= CHUNK + 4096, "{most} bytes for a chunk without holes");
    assert!((1..=CHUNK).contains(&chunk.raw.len()) && chunk.offset.checked_add(chunk.raw.len() as u64).is_some());
    assert_eq!(raw_len(bytes), chunk.raw.len() as u64);
    let hashes = bytes[HEAD..].chunks_exact(32);
    for ((n, block), announced) in chunk.raw.chunks(BLOCK).enumerate().zip(hashes) {
        let whole = chunk.absent & Chunk::pages_of(n) == 0;
        assert!(!whole || hash::block(block).0 == announced, "block {n} is not what was announced");
    }
    for (n, page) in chunk.raw.chunks(PAGE).enumerate() {
        assert!((chunk.zero | chunk.absent) & (1 << n) == 0 || is_zero(page), "page {n} is not zero");
    }
    true
}

#[test]
fn damaged_chunks() {
    let _alone = alone();
    let mut corpus = corpus();
    corpus.iter().for_each(|bytes| assert!(judge(bytes)));
    corpus.extend([bomb(CHUNK, 20 * CHUNK), bomb(100, 20 * CHUNK), bomb(BLOCK, BLOCK + 1)]);
    mutate::run("chunks", move |rng| {
        judge(&mutate::bytes(rng, &corpus));
    });
}

#[test]
fn a_body_that_swells_is_refused_in_the_room_of_a_chunk() {
    let _alone = alone();
    assert!(judge(&bomb(CHUNK, CHUNK)) && judge(&bomb(100, 100)));
    for (says, holds) in [(CHUNK, CHUNK + 1), (CHUNK, 20 * CHUNK), (1, 20 * CHUNK), (BLOCK, BLOCK - 1)] {
        assert!(!judge(&bomb(says, holds)), "{says} {holds}");
    }
}

#[test]
fn damaged_paths() {
    let _alone = alone();
    let corpus: Vec<Vec<u8>> = [
        &b"shop/orders.ibd"[..],
        b"ibdata1",
        b"../../etc/passwd",
        b"/etc/passwd",
        b"a/../../b",
        b"a/./b//c/",
        b"a\0b/c",
        b"....//....//etc",
        &[b'a'; 5000],
        b"a/\xff\xfe/..",
    ]
    .into_iter()
    .map(<[u8]>::to_vec)
    .collect();
    mutate::run("paths", move |rng| {
        let bytes = mutate::bytes(rng, &corpus);
        let Ok(path) = RelPath::try_from(bytes.as_slice()) else { return };
        assert_eq!(path.as_bytes(), bytes);
        assert!(!bytes.is_empty() && bytes.len() <= 4096 && !bytes.contains(&0));
        let parts: Vec<&[u8]> = bytes.split(|byte| *byte == b'/').collect();
        assert!(parts.iter().all(|part| !part.is_empty() && *part != b"." && *part != b".."));
        assert_eq!(path.under(Path::new("/s")).strip_prefix("/s").unwrap(), path.as_path());
    });
}
