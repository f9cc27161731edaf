//! Reading the image of a stopped server: every file in blocks, hashed, packed, sent. Two threads: one reads and packs,
//! one sends, so that disk and wire overlap; memory stays flat whatever the datadir's size.
//!
//! Only reads. What was walked before must be found unchanged after, or the image is not one moment's.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::server;
use super::session::Session;
use super::tree::{Item, Tree};
use crate::delta::hash::{FileHasher, Hash, ImageHasher, Totals};
use crate::delta::pack::{Encoding, pack};
use crate::delta::{BLOCK, CHUNK};
use crate::failpoint;
use crate::problem::{Explain, Outcome, Problem};
use crate::wire::message::Entry;

/// Chunks between reader and sender.
const QUEUE: usize = 4;

enum Out {
    Entry(Entry),
    Chunk(bytes::Bytes),
}

/// Streams the image. Blocking; ends early when the controller is gone.
pub fn send(datadir: &Path, tree: &Tree, level: Option<i32>, session: &Session) -> Outcome<(Totals, Hash)> {
    let runtime = tokio::runtime::Handle::current();
    let (tx, rx) = sync_channel(QUEUE);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| forward(rx, session, &runtime));
        let read = read_all(datadir, &tree.items, level, &tx);
        drop(tx);
        let sent = sender.join().unwrap_or_else(|_| Err(Problem::failed("the sending thread failed")));
        // the sender's failure is the cause when both fail: the reader then only saw a closed queue
        sent.and(read)
    })
}

fn forward(queue: Receiver<Out>, session: &Session, runtime: &tokio::runtime::Handle) -> Outcome<()> {
    for out in queue {
        session.check()?;
        match out {
            Out::Entry(entry) => session.send_entry_blocking(entry)?,
            Out::Chunk(chunk) => session.send_chunk_blocking(runtime, chunk)?,
        }
    }
    Ok(())
}

fn read_all(datadir: &Path, items: &[Item], level: Option<i32>, out: &SyncSender<Out>) -> Outcome<(Totals, Hash)> {
    let encoding = level.map_or(Encoding::Plain, Encoding::Zstd);
    let mut image = ImageHasher::default();
    let mut number = 0u32;
    let half = items.len() / 2;
    for (n, item) in items.iter().enumerate() {
        if n == half {
            failpoint::hit("stream:half")?;
        }
        if item.dir {
            put(out, Out::Entry(Entry::Dir { path: item.path.clone(), mode: item.mode }))?;
            image.dir(&item.path);
            continue;
        }
        number += 1;
        let proof = read_file(datadir, item, number, encoding, out)?;
        image.file(&item.path, item.len, &proof);
    }
    let (totals, proof) = image.finish();
    put(out, Out::Entry(Entry::End { totals, image: proof }))?;
    Ok((totals, proof))
}

fn read_file(datadir: &Path, item: &Item, number: u32, encoding: Encoding, out: &SyncSender<Out>) -> Outcome<Hash> {
    put(out, Out::Entry(Entry::File { number, path: item.path.clone(), mode: item.mode, len: item.len }))?;
    let path = item.path.under(datadir);
    let file = server::open_beneath(datadir, &item.path.under(Path::new("")))
        .explain(|| format!("cannot open {}", path.display()))?;
    let mut hasher = FileHasher::default();
    let mut buffer = vec![0u8; CHUNK];
    let mut offset = 0;
    while offset < item.len {
        let want = (item.len - offset).min(CHUNK as u64) as usize;
        file.read_exact_at(&mut buffer[..want], offset).explain(|| format!("cannot read {}", path.display()))?;
        let packed = pack(number, offset, &buffer[..want], encoding);
        for (n, hash) in packed.hashes.iter().enumerate() {
            hasher.add(hash, BLOCK.min(want - n * BLOCK));
        }
        put(out, Out::Chunk(packed.bytes))?;
        offset += want as u64;
    }
    let proof = hasher.finish();
    put(out, Out::Entry(Entry::FileEnd { number, proof }))?;
    Ok(proof)
}

fn put(out: &SyncSender<Out>, piece: Out) -> Outcome<()> {
    out.send(piece).map_err(|_| Problem::failed("the image could not be sent on"))
}

/// Whether a later walk shows the very same files: nobody started the server or wrote into the datadir meanwhile.
pub fn unchanged(before: &Tree, after: &Tree) -> Outcome<()> {
    if let Some(reason) = after.unclean.first() {
        return Err(changed(reason.clone()));
    }
    if before.items.len() != after.items.len() {
        return Err(changed(format!("{} entries before, {} after", before.items.len(), after.items.len())));
    }
    match before.items.iter().zip(&after.items).find(|(a, b)| a != b) {
        Some((a, _)) => Err(changed(format!("{} was touched", a.path))),
        None => Ok(()),
    }
}

fn changed(what: String) -> Problem {
    Problem::failed("the source's datadir changed while it was read; the image is thrown away").cause(what).hint(
        "Something else started the server or wrote into its datadir: monitoring, a service manager, an administrator.",
    )
}
