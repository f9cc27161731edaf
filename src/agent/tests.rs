//! A source's passes into a destination's stage, over the real wire and real files, with whatever may happen to files between and during
//! them: what the stage holds at the end must be, byte for byte, what the source held when it was stopped, whatever the basis was.
//!
//! Tests only. The judge reads both trees by itself and knows nothing of blocks.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::sync::Mutex;

use super::basis::DAWDLE;
use super::receive::receive;
use super::seed::{Options, fill, seed};
use super::session::{Inbox, Session};
use super::stock::Stock;
use super::stream::{Reading, Sent, send};
use super::tree;
use crate::delta::hash::{Hash, Totals};
use crate::delta::{BLOCK, CHUNK, PAGE};
use crate::mutate::{self, Rng};
use crate::mysql::Flavour;
use crate::mysql::files::Names;
use crate::problem::{Outcome, Problem};
use crate::wire::frame::{self, FrameKind};
use crate::wire::message::{
    DestinationRequest, Down, Extra, Pass, Passed, ReceiveOptions, Seeded, SourceRequest, StreamOptions, Up, decode,
    encode,
};

/// How long a file may change unseen after it was touched, here: longer than a tick of the kernel's coarse clock.
const RACY: Duration = Duration::from_millis(30);

/// What a source holds: folders and files.
type Content = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// Source and destination, each with a session, and a controller between them that hands on what it hears.
struct Pair {
    runtime: tokio::runtime::Runtime,
    folder: tempfile::TempDir,
    source: (Session, Inbox<SourceRequest>),
    destination: (Session, Inbox<DestinationRequest>),
    sent: Sent,
    stock: Stock,
    wire: std::sync::Arc<std::sync::atomic::AtomicU64>,
}

impl Pair {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        for name in ["source", "basis", "stage", "state"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let wire = std::sync::Arc::<std::sync::atomic::AtomicU64>::default();
        let (near_source, far_source) = tokio::io::duplex(1 << 20);
        let (near_destination, far_destination) = tokio::io::duplex(1 << 20);
        let _in = runtime.enter();
        let (reader, writer) = tokio::io::split(far_source);
        let source = Session::start::<SourceRequest>(reader, writer);
        let (reader, writer) = tokio::io::split(far_destination);
        let destination = Session::start::<DestinationRequest>(reader, writer);
        let (mut from_source, to_source) = tokio::io::split(near_source);
        let (mut from_destination, mut to_destination) = tokio::io::split(near_destination);
        let to_source = std::sync::Arc::new(Mutex::new(to_source));
        let (back, carried) = (to_source.clone(), wire.clone());
        // everything the source says goes to the destination; room for chunks comes back at once
        runtime.spawn(async move {
            let open = encode(&Down::<SourceRequest>::Credit(64 << 20)).unwrap();
            frame::write(&mut *back.lock().await, &open).await.unwrap();
            while let Ok(frame) = frame::read(&mut from_source).await {
                let size = frame.payload.len() as u64;
                let on = match frame.kind {
                    FrameKind::Chunk => {
                        carried.fetch_add(size, Ordering::Relaxed);
                        let credit = encode(&Down::<SourceRequest>::Credit(size)).unwrap();
                        frame::write(&mut *back.lock().await, &credit).await.unwrap();
                        frame
                    }
                    _ => match decode::<Up>(&frame.payload) {
                        Ok(Up::Entry(entry)) => encode(&Down::<DestinationRequest>::Entry(entry)).unwrap(),
                        _ => continue,
                    },
                };
                frame::write(&mut to_destination, &on).await.unwrap();
                to_destination.flush().await.unwrap();
            }
        });
        runtime.spawn(async move {
            while let Ok(frame) = frame::read(&mut from_destination).await {
                if let Ok(Up::Lack(lack)) = decode::<Up>(&frame.payload) {
                    let on = encode(&Down::<SourceRequest>::Lack(lack)).unwrap();
                    let mut out = to_source.lock().await;
                    frame::write(&mut *out, &on).await.unwrap();
                    out.flush().await.unwrap();
                }
            }
        });
        let sent = Sent::racy_for(&folder.path().join("state"), RACY).unwrap();
        let stock = Stock::new(&folder.path().join("stage"), &folder.path().join("state")).unwrap();
        drop(_in);
        Self { runtime, source, destination, sent, stock, wire, folder }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn seed(&mut self, whole: bool) -> Seeded {
        let (basis, previous) = (self.at("basis"), self.at("previous"));
        let items = tree::walk(&basis, Flavour::MariaDb, &names(&basis)).unwrap().items;
        let previous = previous.exists().then_some(previous.as_path());
        let options = Options { flavour: Flavour::MariaDb, copies: true, previous, from_disk: false };
        let seeded = seed(&mut self.stock, &basis, &items, options, &self.destination.0).unwrap();
        if whole {
            fill(&self.stock, &self.destination.0).unwrap();
        }
        seeded
    }

    /// One pass; `during` happens to the source's files while it is under way.
    fn pass(
        &mut self,
        pass: Pass,
        ask: bool,
        paranoid: bool,
        during: impl FnOnce(&Path) + Send,
    ) -> Outcome<(Passed, Option<(Totals, Hash)>)> {
        let source = self.at("source");
        let tree = tree::walk(&source, Flavour::MariaDb, &names(&source)).unwrap();
        let options = StreamOptions { pass, level: Some(1), extra: Extra::default(), ask, paranoid, max_rate: None };
        let receiving = ReceiveOptions { pass, from_disk: false };
        let Self { runtime, source: (session, inbox), destination: (far, far_inbox), sent, stock, .. } = self;
        let handle = runtime.handle().clone();
        let (given, taken) = std::thread::scope(|scope| {
            let receiver = scope.spawn(|| receive(stock, Flavour::MariaDb, receiving, &mut far_inbox.pieces, far));
            let meddler = scope.spawn(|| during(&source));
            let _in = handle.enter();
            let reading = Reading {
                datadir: &source,
                tree: &tree,
                options: &options,
                down: pass == Pass::Cold,
                lacks: &mut inbox.lacks,
                watch: &|| Ok(()),
            };
            let given = send(reading, sent, session);
            meddler.join().unwrap();
            if given.is_err() {
                far.leave();
            }
            (given, receiver.join().unwrap())
        });
        let (passed, image) = given?;
        match (image, taken?) {
            (here, there) if here == there => Ok((passed, image)),
            _ => Err(Problem::failed("another image than the source's")),
        }
    }
}

fn names(datadir: &Path) -> Names {
    Names::from_variables(datadir, &BTreeMap::new(), &[], &[])
}

/// A tree as it is, read by nobody's code but this.
fn content(folder: &Path) -> Content {
    let mut all = Content::new();
    let mut pending = vec![folder.to_owned()];
    while let Some(at) = pending.pop() {
        for entry in std::fs::read_dir(&at).unwrap().map(Result::unwrap) {
            let path = entry.path().strip_prefix(folder).unwrap().to_owned();
            if entry.file_type().unwrap().is_dir() {
                all.insert(path, None);
                pending.push(entry.path());
            } else {
                all.insert(path, Some(std::fs::read(entry.path()).unwrap()));
            }
        }
    }
    all
}

/// Bytes that look like pages: some zero, some alike, some like nothing else.
fn bytes(rng: &mut Rng, len: usize) -> Vec<u8> {
    let mut bytes = vec![0u8; len];
    for page in bytes.chunks_mut(PAGE) {
        match rng.u8(..4) {
            0 => {}
            1 => page.fill(rng.u8(1..4)),
            _ => rng.fill(page),
        }
    }
    bytes
}

fn length(rng: &mut Rng) -> usize {
    let around = [0, 1, PAGE, BLOCK, CHUNK, 2 * CHUNK + 3 * PAGE][rng.usize(..6)];
    (around + rng.usize(..5)).saturating_sub(rng.usize(..3))
}

const PLACES: [&str; 8] =
    ["ibdata1", "undo001", "ib_logfile0", "shop/a.ibd", "shop/b.ibd", "shop/c.MYD", "other/d.ibd", "other/e.frm"];

fn place(rng: &mut Rng, root: &Path) -> PathBuf {
    let path = root.join(PLACES[rng.usize(..PLACES.len())]);
    // whatever others have made of yesterday's copy; a source that has folders in a schema's folder is refused
    if root.ends_with("basis") && rng.u8(..20) == 0 { path.join("deep.ibd") } else { path }
}

/// Something that a server may do to its files.
fn edit(rng: &mut Rng, root: &Path) {
    let path = place(rng, root);
    let parent = path.parent().unwrap();
    match rng.u8(..9) {
        0 => {
            if parent.is_file() {
                let _ = std::fs::remove_file(parent);
            }
            let _ = std::fs::create_dir_all(parent);
            let len = length(rng);
            let _ = std::fs::write(&path, bytes(rng, len));
        }
        1 => drop(std::fs::remove_file(&path)),
        2 => drop(std::fs::remove_dir_all(parent).and_then(|()| std::fs::create_dir_all(root))),
        3 => {
            if let Ok(file) = OpenOptions::new().write(true).open(&path) {
                let _ = file.set_len(length(rng) as u64);
            }
        }
        4 => drop(std::fs::rename(&path, place(rng, root))),
        5 => {
            if let Ok(mut file) = OpenOptions::new().append(true).open(&path) {
                let len = length(rng);
                let _ = file.write_all(&bytes(rng, len));
            }
        }
        6 => {
            // a page that becomes a hole
            if let Ok(file) = OpenOptions::new().write(true).open(&path) {
                let at = rng.u64(..40) * PAGE as u64;
                let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
                let _ = rustix::fs::fallocate(&file, flags, at, PAGE as u64);
            }
        }
        _ => scatter(rng, &path),
    }
}

/// Writes in the middle of a file, of pages or of a few bytes.
fn scatter(rng: &mut Rng, path: &Path) {
    let Ok(file) = OpenOptions::new().read(true).write(true).open(path) else { return };
    let len = file.metadata().unwrap().len();
    for _ in 0..rng.usize(1..6) {
        let size = if rng.bool() { PAGE } else { rng.usize(1..200) };
        let at = rng.u64(..len.max(1));
        let _ = file.write_all_at(&bytes(rng, size), at.min(len));
    }
}

fn settle() {
    std::thread::sleep(RACY + Duration::from_millis(15));
}

#[test]
fn whatever_happened_the_stage_is_the_stopped_source() {
    mutate::run("passes", |rng| {
        let mut pair = Pair::new();
        let (source, basis) = (pair.at("source"), pair.at("basis"));
        for _ in 0..rng.usize(4..30) {
            edit(rng, &source);
        }
        // yesterday's copy, on which others have worked; or another server altogether; or nothing
        match rng.u8(..3) {
            0 => {}
            1 => (0..rng.usize(4..20)).for_each(|_| edit(rng, &basis)),
            _ => {
                copy_tree(&source, &basis);
                (0..rng.usize(..8)).for_each(|_| edit(rng, &basis));
            }
        }
        // what the night before the last has left
        if rng.bool() {
            let previous = pair.at("previous");
            std::fs::create_dir(&previous).unwrap();
            copy_tree(&basis, &previous);
            (0..rng.usize(..8)).for_each(|_| edit(rng, &previous));
        }
        DAWDLE.store([0, 3, 30][rng.usize(..3)], Ordering::SeqCst);
        let seeded = rng.u8(..4) > 0 && pair.seed(rng.u8(..4) == 0).files > 0;
        let rounds = rng.usize(..3);
        for round in 0..rounds {
            if rng.bool() {
                settle();
            }
            let mut theirs = Rng::with_seed(rng.u64(..));
            let wild = rng.bool();
            let during = move |root: &Path| {
                if wild {
                    (0..theirs.usize(1..12)).for_each(|_| edit(&mut theirs, root));
                }
            };
            pair.pass(Pass::Hot, seeded && round == 0, false, during).unwrap();
            if rng.bool() {
                settle();
            }
            (0..rng.usize(..6)).for_each(|_| edit(rng, &source));
        }
        pair.pass(Pass::Cold, seeded && rounds == 0, rng.u8(..5) == 0, |_| ()).unwrap();
        let (here, there) = (content(&source), content(&pair.at("stage")));
        for (path, bytes) in &here {
            assert!(there.get(path) == Some(bytes), "{} is not what it should be", path.display());
        }
        assert!(here.len() == there.len(), "{:?} beside {:?}", there.keys(), here.keys());
    });
}

fn copy_tree(from: &Path, to: &Path) {
    for (path, bytes) in content(from) {
        match bytes {
            None => std::fs::create_dir_all(to.join(path)).unwrap(),
            Some(bytes) => {
                std::fs::create_dir_all(to.join(&path).parent().unwrap()).unwrap();
                std::fs::write(to.join(path), bytes).unwrap();
            }
        }
    }
}

/// A source of one table of 8 MiB and one of 1 MiB, and a basis that is the same.
fn nightly() -> (Pair, PathBuf) {
    let pair = Pair::new();
    let (source, basis) = (pair.at("source"), pair.at("basis"));
    std::fs::create_dir(source.join("shop")).unwrap();
    let mut rng = Rng::with_seed(7);
    let mut noise = vec![0; 8 << 20];
    rng.fill(&mut noise);
    std::fs::write(source.join("shop/a.ibd"), &noise).unwrap();
    std::fs::write(source.join("shop/b.ibd"), &noise[..1 << 20]).unwrap();
    copy_tree(&source, &basis);
    (pair, source)
}

#[test]
fn of_a_block_only_the_pages_travel_that_differ() {
    let (mut pair, source) = nightly();
    assert_eq!(pair.seed(false).bytes, 9 << 20);
    let table = OpenOptions::new().write(true).open(source.join("shop/a.ibd")).unwrap();
    for page in [3u64, 77, 400] {
        table.write_all_at(b"changed", page * PAGE as u64 + 100).unwrap();
    }
    let (passed, image) = pair.pass(Pass::Cold, true, false, |_| ()).unwrap();
    assert!(image.is_some());
    assert_eq!((passed.read, passed.changed), (9 << 20, 3 * PAGE as u64));
    let wire = pair.wire.load(Ordering::Relaxed);
    assert!(wire < 4 * (PAGE + 1000) as u64, "{wire} bytes for three pages");
    assert!(content(&source) == content(&pair.at("stage")));
}

#[test]
fn what_nobody_has_touched_is_not_read_while_the_source_is_down() {
    let (mut pair, source) = nightly();
    settle();
    let (passed, _) = pair.pass(Pass::Hot, false, false, |_| ()).unwrap();
    assert_eq!((passed.files, passed.read), (2, 9 << 20));
    settle();
    let table = OpenOptions::new().write(true).open(source.join("shop/b.ibd")).unwrap();
    table.write_all_at(b"changed", 5 * BLOCK as u64).unwrap();
    let (passed, _) = pair.pass(Pass::Hot, false, false, |_| ()).unwrap();
    assert_eq!((passed.files, passed.read, passed.changed), (1, 1 << 20, BLOCK as u64));
    settle();
    let (passed, _) = pair.pass(Pass::Cold, false, false, |_| ()).unwrap();
    // it was touched, and then read: nothing of it has changed since, but its time was too near to tell
    assert_eq!((passed.files.min(1), passed.changed), (passed.files, 0));
    assert!(content(&source) == content(&pair.at("stage")));
    // asked to trust nothing, it reads everything
    let (mut pair, _) = nightly();
    settle();
    pair.pass(Pass::Hot, false, false, |_| ()).unwrap();
    settle();
    let (passed, _) = pair.pass(Pass::Cold, false, true, |_| ()).unwrap();
    assert_eq!((passed.read, passed.changed), (9 << 20, 0));
}

/// Whoever needs what is still being brought in waits for it: what comes from the source is never written over by what came before it.
#[test]
fn a_basis_that_is_slow_to_come_spoils_nothing() {
    for reused in [false, true] {
        let (mut pair, source) = nightly();
        let (basis, stage, previous) = (pair.at("basis"), pair.at("stage"), pair.at("previous"));
        if reused {
            std::fs::create_dir(&previous).unwrap();
            copy_tree(&basis, &previous);
        }
        // of each file something differs, in length, too
        for (path, len) in [("shop/a.ibd", 5u64 << 20), ("shop/b.ibd", 3 << 20)] {
            let file = OpenOptions::new().write(true).open(basis.join(path)).unwrap();
            file.set_len(len).unwrap();
            (0..len / CHUNK as u64).for_each(|n| file.write_all_at(b"others", n * CHUNK as u64 + 7).unwrap());
        }
        DAWDLE.store(150, Ordering::SeqCst);
        let seeded = pair.seed(false);
        assert_eq!((seeded.files, seeded.bytes, seeded.reused), (2, 8 << 20, reused));
        let (passed, _) = pair.pass(Pass::Cold, true, false, |_| ()).unwrap();
        DAWDLE.store(0, Ordering::SeqCst);
        assert!(content(&source) == content(&stage), "reused: {reused}");
        // a page each of six that differ, and what one of them is longer by
        assert_eq!(passed.changed, 6 * PAGE as u64 + (3 << 20), "reused: {reused}");
    }
}

/// Who has a file of the generation before the last open could go on writing into it, whoever has it then.
#[test]
fn a_file_that_is_open_elsewhere_is_made_anew() {
    let (mut pair, source) = nightly();
    let (basis, stage, previous) = (pair.at("basis"), pair.at("stage"), pair.at("previous"));
    std::fs::create_dir(&previous).unwrap();
    copy_tree(&basis, &previous);
    let inode = |path: PathBuf| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());
    let files = ["shop/a.ibd", "shop/b.ibd"];
    let before = files.map(|name| inode(previous.join(name)));
    let held = File::open(previous.join(files[0])).unwrap();
    let mut holder = std::process::Command::new("sleep").arg("60").stdin(held).spawn().unwrap();
    let seeded = pair.seed(true);
    let after = files.map(|name| inode(stage.join(name)));
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!((seeded.files, seeded.reused), (2, true));
    assert!(after[0] != before[0] && after[1] == before[1], "{before:?} {after:?}");
    let (passed, _) = pair.pass(Pass::Cold, true, false, |_| ()).unwrap();
    assert_eq!(passed.changed, 0);
    assert!(content(&source) == content(&stage));
}

/// A destination's own world that is no basis goes when the first pass is over, and files of a pass that have gone leave nothing.
#[test]
fn what_the_source_does_not_have_makes_room_after_the_first_pass() {
    let (mut pair, source) = nightly();
    let (basis, stage) = (pair.at("basis"), pair.at("stage"));
    std::fs::create_dir(basis.join("research")).unwrap();
    std::fs::write(basis.join("research/own.ibd"), vec![7; 1 << 20]).unwrap();
    assert_eq!(pair.seed(false).files, 3);
    assert!(stage.join("research/own.ibd").exists());
    pair.pass(Pass::Hot, true, false, |_| ()).unwrap();
    assert!(!stage.join("research").exists());
    std::fs::remove_file(source.join("shop/b.ibd")).unwrap();
    pair.pass(Pass::Cold, false, false, |_| ()).unwrap();
    assert!(content(&source) == content(&stage));
}

/// What a stage holds is not believed but read: damage to it after it was proven shows in what is sent, or in the proof.
#[test]
fn a_stage_that_lies_is_found_out() {
    let (mut pair, source) = nightly();
    pair.seed(true);
    let stage = pair.at("stage");
    let file = OpenOptions::new().write(true).open(stage.join("shop/a.ibd")).unwrap();
    // a page that is to be kept, beside one that is to be replaced
    file.write_all_at(b"rotten", 0).unwrap();
    let table = OpenOptions::new().write(true).open(source.join("shop/a.ibd")).unwrap();
    table.write_all_at(b"changed", PAGE as u64).unwrap();
    let (passed, _) = pair.pass(Pass::Cold, true, false, |_| ()).unwrap();
    assert_eq!(passed.changed, 2 * PAGE as u64, "the rotten page travels, too");
    assert!(content(&source) == content(&stage));
    let _ = File::open(stage);
}
