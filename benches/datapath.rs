//! How fast blocks are hashed, packed, unpacked and framed, on one core. Figures only; no verdicts.

use criterion::{Criterion, Throughput, criterion_main};
use mysql_refreshd::delta::pack::{Encoding, Place, pack_whole, unpack};

const PLACE: Place = Place { file: 1, offset: 0 };
use mysql_refreshd::delta::{BLOCK, CHUNK, hash};
use mysql_refreshd::wire::frame::{self, Frame, FrameKind};

/// A chunk that compresses about as well as InnoDB pages do: half text-like, half noise, one zero block.
fn chunk() -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    let mut bytes: Vec<u8> =
        (0..CHUNK).map(|i| if i % 512 < 340 { b'a' + (i % 23) as u8 } else { random.u8(..) }).collect();
    bytes[3 * BLOCK..4 * BLOCK].fill(0);
    bytes
}

fn hashing(c: &mut Criterion) {
    let bytes = chunk();
    let mut group = c.benchmark_group("hash");
    group.throughput(Throughput::Bytes(CHUNK as u64));
    group.bench_function("blake3 64 KiB blocks", |b| {
        b.iter(|| bytes.chunks(BLOCK).map(|block| hash::block(block).0[0]).fold(0u8, u8::wrapping_add));
    });
    group.bench_function("zero test", |b| b.iter(|| bytes.chunks(BLOCK).filter(|block| hash::is_zero(block)).count()));
    group.finish();
}

fn packing(c: &mut Criterion) {
    let bytes = chunk();
    let mut group = c.benchmark_group("pack");
    group.throughput(Throughput::Bytes(CHUNK as u64));
    for (name, encoding) in [("plain", Encoding::Plain), ("zstd 1", Encoding::Zstd(1)), ("zstd 3", Encoding::Zstd(3))] {
        group.bench_function(format!("pack {name}"), |b| b.iter(|| pack_whole(PLACE, &bytes, encoding).len()));
        let packed = pack_whole(PLACE, &bytes, encoding);
        group.bench_function(format!("unpack and verify {name}"), |b| {
            b.iter(|| unpack(&packed).map(|chunk| chunk.raw.len()).unwrap_or(0));
        });
    }
    group.finish();
}

fn wire(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let payload = pack_whole(PLACE, &chunk(), Encoding::Plain);
    let size = payload.len() as u64;
    let one = Frame { kind: FrameKind::Chunk, payload };
    let mut group = c.benchmark_group("wire");
    group.throughput(Throughput::Bytes(size));
    group.bench_function("frame written and read", |b| {
        let mut buffer = Vec::with_capacity(2 * CHUNK);
        b.iter(|| {
            runtime.block_on(async {
                buffer.clear();
                frame::write(&mut buffer, &one).await.expect("written");
                frame::read(&mut buffer.as_slice()).await.expect("read").payload.len()
            })
        });
    });
    group.finish();
}

mod group {
    #![allow(missing_docs, reason = "criterion's macro documents nothing")]
    criterion::criterion_group!(benches, super::hashing, super::packing, super::wire);
}
criterion_main!(group::benches);
