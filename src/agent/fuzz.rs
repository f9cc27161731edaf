//! Damage to what an agent takes in and to what it reads back from its own disk: the image's stream, and the records beside a
//! generation. Nothing is written outside of the stage, no other image than the source's is taken for it, and a record that is not
//! understood moves nothing.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::sync::mpsc::unbounded_channel;

use super::receive::receive;
use super::session::{Piece, Session};
use super::source::kept;
use super::stage::{Generation, Generations, Work};
use super::stock::Stock;
use super::{guard, swap};
use crate::delta::hash::{FileHasher, Hash, ImageHasher, block};
use crate::delta::pack::{Encoding, Place, pack_whole};
use crate::delta::path::RelPath;
use crate::delta::{BLOCK, CHUNK};
use crate::durable::sealed;
use crate::instance::{Instance, Service};
use crate::lock::{self, Taken};
use crate::mutate::{self, Rng};
use crate::mysql::Flavour;
use crate::wire::message::{
    Down, Entry, Holder, Origin, Pass, ReceiveOptions, Runtime, RuntimeVariable, SourceRequest, decode, encode,
};

/// A piece of the stream that can be had more than once.
#[derive(Clone)]
enum Sent {
    Entry(Entry),
    Chunk(Bytes),
}

/// What an image holds: folders and files by their paths.
type Content = BTreeMap<String, Option<Vec<u8>>>;

fn path(text: &str) -> RelPath {
    RelPath::try_from(text.as_bytes()).unwrap()
}

/// An image as a source sends it, and its proof.
fn sent(content: &Content, encoding: Encoding) -> (Vec<Sent>, Hash) {
    let (mut pieces, mut image, mut number) = (Vec::new(), ImageHasher::default(), 0);
    for (name, bytes) in content {
        let Some(bytes) = bytes else {
            pieces.push(Sent::Entry(Entry::Dir { path: path(name), mode: 0o750 }));
            image.dir(&path(name));
            continue;
        };
        number += 1;
        let len = bytes.len() as u64;
        pieces.push(Sent::Entry(Entry::File { number, path: path(name), mode: 0o660, len }));
        let mut hasher = FileHasher::default();
        for (n, piece) in bytes.chunks(CHUNK).enumerate() {
            let place = Place { file: number, offset: (n * CHUNK) as u64 };
            piece.chunks(BLOCK).for_each(|bytes| hasher.add(&block(bytes), bytes.len()));
            pieces.push(Sent::Chunk(pack_whole(place, piece, encoding)));
        }
        let proof = hasher.finish();
        pieces.push(Sent::Entry(Entry::FileEnd { number, proof }));
        image.file(&path(name), len, &proof);
    }
    let (totals, image) = image.finish();
    pieces.push(Sent::Entry(Entry::End { totals, image }));
    (pieces, image)
}

fn contents() -> Vec<Content> {
    let bytes = |len: usize, seed: usize| Some((0..len).map(|n| (n / 7 + seed) as u8).collect::<Vec<u8>>());
    let usual = [
        ("ib_logfile0", bytes(5000, 1)),
        ("ibdata1", bytes(BLOCK + 100, 2)),
        ("mysql", None),
        ("mysql/db.MAI", bytes(0, 0)),
        ("shop", None),
        ("shop/a.ibd", bytes(3, 3)),
        ("shop/b.ibd", Some(vec![0; BLOCK * 2 + 1])),
    ];
    let large = [("ibdata1", bytes(CHUNK + BLOCK, 9)), ("shop", None), ("shop/a.ibd", bytes(3, 4))];
    let owned = |pairs: &[(&str, Option<Vec<u8>>)]| pairs.iter().map(|(n, b)| ((*n).to_owned(), b.clone())).collect();
    vec![owned(&usual), owned(&large)]
}

/// One to a few kinds of damage to a stream.
fn damaged(rng: &mut Rng, mut pieces: Vec<Sent>, other: &[Sent]) -> Vec<Sent> {
    for _ in 0..1 + rng.usize(..3) * rng.usize(..2) {
        let len = pieces.len();
        let (one, two) = (rng.usize(..len.max(1)), rng.usize(..=len));
        match rng.u8(..9) {
            0 if len > 0 => drop(pieces.remove(one)),
            1 if len > 0 => pieces.insert(two, pieces[one].clone()),
            2 if len > 0 => pieces.swap(one, two.min(len - 1)),
            3 => pieces.insert(two, other[rng.usize(..other.len())].clone()),
            4 => pieces.truncate(two),
            // a begin of something that never ends, a name that leads elsewhere, a length beyond everything
            5 | 6 => pieces.insert(two, Sent::Entry(begun(rng))),
            7 | 8 if len > 0 => match &pieces[one] {
                Sent::Chunk(bytes) => {
                    pieces[one] = Sent::Chunk(mutate::bytes(rng, &[bytes.to_vec()]).into());
                }
                Sent::Entry(entry) => pieces[one] = Sent::Entry(touched(rng, entry.clone())),
            },
            _ => {}
        }
    }
    pieces
}

fn begun(rng: &mut Rng) -> Entry {
    let names = ["shop/new.ibd", "new", "shop", "ibdata1", "shop/a.ibd/x", "a/b/c", "x.ibd"];
    let path = path(names[rng.usize(..names.len())]);
    match rng.u8(..8) {
        0..3 => Entry::Dir { path, mode: rng.u32(..) },
        3 => Entry::Same { path, mode: rng.u32(..), len: rng.u64(..9), proof: block(&[]) },
        4 => Entry::Ask { number: rng.u32(..9), offset: rng.u64(..3) * BLOCK as u64, hashes: vec![block(&[]); 1] },
        5 => [Entry::PassEnd, Entry::Gone { number: rng.u32(..9) }][rng.usize(..2)].clone(),
        _ => {
            let len = [0, 5, 1 << 20, u64::MAX, 1 << 62, i64::MAX as u64][rng.usize(..6)];
            Entry::File { number: [0, 1, 2, 77, u32::MAX][rng.usize(..5)], path, mode: rng.u32(..), len }
        }
    }
}

/// Something else in the place of one of its parts; or the message that carries it is damaged on its way.
fn touched(rng: &mut Rng, entry: Entry) -> Entry {
    if rng.bool() {
        let payload = encode(&Down::<SourceRequest>::Entry(entry.clone())).unwrap().payload.to_vec();
        return match decode::<Down<SourceRequest>>(&mutate::bytes(rng, &[payload]).into()) {
            Ok(Down::Entry(entry)) => entry,
            _ => entry,
        };
    }
    match entry {
        Entry::Dir { .. } => begun(rng),
        Entry::File { number, path, mode, .. } if rng.bool() => {
            Entry::File { number, path, mode, len: [0, 1, 3, u64::MAX][rng.usize(..4)] }
        }
        Entry::File { path, mode, len, .. } => Entry::File { number: rng.u32(..9), path, mode, len },
        Entry::FileEnd { number, mut proof } if rng.bool() => {
            proof.0[rng.usize(..32)] ^= 1;
            Entry::FileEnd { number, proof }
        }
        Entry::FileEnd { proof, .. } => Entry::FileEnd { number: rng.u32(..9), proof },
        Entry::End { mut totals, image } if rng.bool() => {
            totals.bytes = rng.u64(..);
            Entry::End { totals, image }
        }
        Entry::Same { path, mode, proof, .. } if rng.bool() => Entry::Same { path, mode, len: rng.u64(..), proof },
        Entry::Same { path, mode, len, .. } => Entry::Same { path, mode, len, proof: block(&[rng.u8(..)]) },
        Entry::Ask { number, hashes, .. } if rng.bool() => Entry::Ask { number, offset: rng.u64(..), hashes },
        Entry::Ask { number, offset, mut hashes } => {
            hashes.resize(rng.usize(..40), block(&[1]));
            Entry::Ask { number, offset, hashes }
        }
        Entry::Gone { .. } => Entry::Gone { number: rng.u32(..9) },
        Entry::PassEnd => begun(rng),
        Entry::End { totals, .. } => Entry::End { totals, image: block(&[rng.u8(..)]) },
    }
}

/// What a folder holds; nothing but regular files and folders may be there.
fn found(folder: &Path, below: &str, all: &mut Content) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let name = format!("{below}{}", entry.file_name().to_str().unwrap());
        let kind = entry.file_type().unwrap();
        assert!(kind.is_dir() || kind.is_file(), "{name}");
        if kind.is_dir() {
            all.insert(name.clone(), None);
            found(&entry.path(), &format!("{name}/"), all);
        } else {
            // a length beyond everything leaves a file of holes
            let small = entry.metadata().unwrap().len() < 8 << 20;
            all.insert(name, Some(if small { std::fs::read(entry.path()).unwrap() } else { vec![1] }));
        }
    }
}

#[test]
fn a_damaged_stream_is_no_image() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    // a controller that is there, and silent
    let (near, far) = tokio::io::duplex(1 << 20);
    let session = {
        let _in = runtime.enter();
        Session::start::<SourceRequest>(far, tokio::io::sink()).0
    };
    let contents = contents();
    let images: Vec<Vec<(Vec<Sent>, Hash)>> = contents
        .iter()
        .map(|content| [Encoding::Plain, Encoding::Zstd(1)].map(|encoding| sent(content, encoding)).to_vec())
        .collect();
    let taken = move |pieces: Vec<Sent>, stage: &Path| {
        let (give, mut take) = unbounded_channel();
        for piece in pieces {
            let piece = match piece {
                Sent::Entry(entry) => Piece::Entry(entry),
                Sent::Chunk(bytes) => Piece::Chunk(bytes),
            };
            give.send(piece).unwrap();
        }
        drop(give);
        let outside = tempfile::tempdir().unwrap();
        let mut stock = Stock::new(stage, outside.path()).unwrap();
        let options = ReceiveOptions { pass: Pass::Cold, from_disk: false };
        receive(&mut stock, Flavour::MariaDb, options, &mut take, &session)
    };
    // undamaged, each is taken
    for (n, image) in images.iter().enumerate() {
        for (pieces, proof) in image {
            let folder = tempfile::tempdir().unwrap();
            assert_eq!(taken(pieces.clone(), folder.path()).unwrap().unwrap().1, *proof);
            let mut content = Content::new();
            found(folder.path(), "", &mut content);
            assert!(content == contents[n]);
        }
    }
    // the whole image, its proof, and one more file of which nobody has said that it has ended
    let (pieces, _) = &images[0][0];
    let more = |number, at: usize| {
        let mut pieces = pieces.clone();
        let entry = Entry::File { number, path: path("shop/new.ibd"), mode: 0o660, len: 5 };
        pieces.insert(pieces.len() - at, Sent::Entry(entry));
        taken(pieces, tempfile::tempdir().unwrap().path())
    };
    assert!(more(77, 1).unwrap_err().to_string().contains("shop/new.ibd"));
    // under the number of one that is open it would take that one's place
    assert!(more(5, 2).is_err() && more(5, 3).is_err());
    mutate::run("receive", move |rng| {
        let _alive = (&near, &runtime);
        let outer = tempfile::tempdir().unwrap();
        let stage = outer.path().join("stage");
        std::fs::create_dir(&stage).unwrap();
        let n = rng.usize(..contents.len());
        let (pieces, proof) = images[n][rng.usize(..2)].clone();
        let result = taken(damaged(rng, pieces, &images[1 - n][0].0), &stage);
        let names: Vec<_> = std::fs::read_dir(outer.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["stage"]);
        let mut content = Content::new();
        found(&stage, "", &mut content);
        match result {
            Ok(Some((_, image))) if image == proof => {
                assert!(content == contents[n], "another image under the same proof");
            }
            Ok(Some((_, image))) => assert!(image == images[1 - n][0].1 && content == contents[1 - n]),
            Ok(None) => panic!("a cold pass without an image"),
            Err(problem) => assert!(problem.to_string().len() > 10, "{problem}"),
        }
    });
}

/// A destination in the middle of a swap, in a folder of its own. Its server is one that never starts: whoever tries leaves `asked`.
struct Bench {
    folder: tempfile::TempDir,
    work: Work,
    instance: Instance,
}

const RUN: &str = "20261127T023000Z-0001";

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let datadir = root.join("data");
        for name in ["data", "state", "state/guard", "state/locks"] {
            std::fs::create_dir(root.join(name)).unwrap();
        }
        std::fs::write(datadir.join("old"), "old").unwrap();
        let work = Work::of(&datadir).unwrap();
        std::fs::create_dir(&work.folder).unwrap();
        std::fs::set_permissions(&work.folder, std::fs::Permissions::from_mode(0o700)).unwrap();
        std::fs::create_dir(work.stage()).unwrap();
        std::fs::write(work.stage().join("new"), "new").unwrap();
        let asked = format!("echo >> {}", root.join("asked").display());
        let instance = Instance {
            datadir,
            socket: root.join("sock"),
            user: "root".into(),
            service: Service::Commands {
                start: vec!["/bin/sh".into(), "-c".into(), asked],
                stop: vec!["/bin/false".into()],
            },
            dropin: Some(root.join("dropin.cnf")),
            state_dir: root.join("state"),
            start_timeout_s: 0,
            stop_timeout_s: 0,
        };
        Self { folder, work, instance }
    }

    fn inode(path: &Path) -> u64 {
        std::fs::metadata(path).unwrap().ino()
    }

    /// Every file with its content, and every folder, by inode: what was, and where.
    fn all(&self) -> BTreeMap<PathBuf, (u64, Vec<u8>)> {
        let mut all = BTreeMap::new();
        let mut pending = vec![self.folder.path().to_owned()];
        while let Some(folder) = pending.pop() {
            for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
                let (path, meta) = (entry.path(), entry.metadata().unwrap());
                let lock = path.extension().is_some_and(|end| end == "lock");
                if meta.is_dir() {
                    all.insert(path.clone(), (meta.ino(), Vec::new()));
                    pending.push(path);
                } else if !lock {
                    all.insert(path.clone(), (meta.ino(), std::fs::read(&path).unwrap()));
                }
            }
        }
        all
    }
}

fn origin(run: &str) -> Origin {
    let taken = "2026-11-27T02:31:00Z".into();
    Origin { run: run.into(), refresh: "n".into(), source: "prod/db1".into(), taken, image: Hash([7; 32]) }
}

/// The swap's journal as it stands on disk between the stop and the exchange.
fn journal(bench: &Bench) -> String {
    serde_json::to_string_pretty(&serde_json::json!({
        "run": RUN,
        "old": Bench::inode(&bench.work.datadir),
        "new": Bench::inode(&bench.work.stage()),
        "other": bench.work.stage(),
        "dropin_before": "before",
        "dropin_after": null,
        "origin": origin(RUN),
        "was_running": false,
        "committed": null,
    }))
    .unwrap()
}

#[test]
fn a_damaged_journal_of_a_swap() {
    let bench = Bench::new();
    let sample = journal(&bench);
    std::fs::write(bench.work.swap(), sealed(sample.into())).unwrap();
    assert_eq!(swap::journal(&bench.work).unwrap().unwrap().run, RUN);
    mutate::run("swap.json", move |rng| {
        let bench = Bench::new();
        // what a disk does to it is found by its last line; what a program might write has to be borne, too
        let whole = journal(&bench);
        let by_disk = rng.bool();
        let bytes = if by_disk {
            mutate::text(rng, &[String::from_utf8(sealed(whole.clone().into())).unwrap()])
        } else {
            sealed(mutate::text(rng, std::slice::from_ref(&whole)))
        };
        let same = bytes == sealed(whole.into());
        std::fs::write(bench.work.swap(), &bytes).unwrap();
        std::fs::write(bench.folder.path().join("dropin.cnf"), "after").unwrap();
        let before = bench.all();
        let understood = swap::journal(&bench.work);
        let undone = swap::undo(&bench.work, &bench.instance, "key", RUN);
        let after = bench.all();
        assert!(same || !by_disk || understood.is_err(), "damage was not noticed");
        match understood {
            Ok(Some(journal)) if journal.run == RUN => {
                // it may say something else now, but not take a generation away
                let kept = |inode: u64| after.values().any(|(other, _)| *other == inode);
                let [old, new] = [&bench.work.datadir, &bench.work.stage()].map(|path| before[path].0);
                assert!(kept(old) && (kept(new) || undone == Ok(true)), "a generation is gone");
            }
            Ok(Some(_)) => assert!(before == after, "a swap of another run was touched"),
            Ok(None) => panic!("a journal that is there was taken for none"),
            Err(problem) => {
                assert!(problem.to_string().contains("swap.json"), "{problem}");
                assert!(undone.is_err() && before == after, "what is not understood has moved something");
                assert!(swap::commit(&bench.work, crate::wire::message::Keep::Never, RUN).is_err());
                assert!(bench.all() == before);
            }
        }
        // unless it says now that the server ran
        let ran = String::from_utf8_lossy(&bytes).contains("\"was_running\": true");
        assert!(ran || !bench.folder.path().join("asked").exists(), "a server that was down was started");
    });
}

#[test]
fn a_damaged_record_of_the_generations() {
    let bench = Bench::new();
    let generation = |run: &str| Generation { origin: Some(origin(run)), dropin: Some("[mysqld]\n".into()) };
    let generations =
        Generations { current: generation("r2"), previous: Some(generation("r1")), committed_by: Some("r2".into()) };
    bench.work.record(&generations).unwrap();
    let file = bench.work.folder.join("generation.json");
    let sample = std::fs::read_to_string(&file).unwrap();
    std::fs::create_dir(bench.work.previous()).unwrap();
    mutate::run("generation.json", move |rng| {
        let bytes = mutate::text(rng, std::slice::from_ref(&sample));
        std::fs::write(&file, &bytes).unwrap();
        let before = bench.all();
        match bench.work.generations() {
            Ok(read) => {
                assert!(
                    serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).is_ok(),
                    "half a record was taken for one"
                );
                bench.work.record(&read).unwrap();
                assert_eq!(bench.work.generations().unwrap(), read);
            }
            Err(problem) => {
                assert!(problem.to_string().contains("generation.json"), "{problem}");
                // what is not understood is not written over, and takes nothing along
                assert!(bench.work.forget_previous().is_err());
                assert!(swap::commit(&bench.work, crate::wire::message::Keep::Never, "r2").is_err());
                assert!(swap::undo(&bench.work, &bench.instance, "key", "r2").is_err());
                assert!(bench.all() == before);
            }
        }
    });
}

#[test]
fn a_damaged_record_of_a_guard() {
    let bench = Bench::new();
    let states =
        [r#""Arming""#, r#""Armed""#, r#""Disarmed""#, r#"{"Fired":{"reason":"x","started":true,"problem":null}}"#];
    let record = |state: &str| {
        format!(
            r#"{{"run":"{RUN}","key":"key","instance":{},"agent":1,"lease_s":30,"max_outage_s":1800,"state":{state},"guard":{{"pid":4000000,"started":7}},"dismissed":false}}"#,
            serde_json::to_string(&bench.instance).unwrap()
        )
    };
    let samples: Vec<String> = states.map(record).to_vec();
    let file = bench.instance.state_dir.join("guard/key.json");
    std::fs::write(&file, &samples[3]).unwrap();
    assert!(guard::has_fired(&bench.instance, "key", RUN) && guard::repair(&bench.instance, "key") == Ok(None));
    mutate::run("guard's record", move |rng| {
        let bytes = mutate::text(rng, &samples);
        std::fs::write(&file, &bytes).unwrap();
        let json = serde_json::from_slice::<serde::de::IgnoredAny>(&bytes);
        // none of these guards lives: no stop leans on one
        assert!(guard::stands(&bench.instance, "key", RUN).is_err());
        let fired = guard::has_fired(&bench.instance, "key", RUN);
        if json.is_err() {
            assert!(!fired);
            let problem = guard::disarm(&bench.instance, "key", RUN).unwrap_err();
            assert!(problem.to_string().contains("key.json"), "{problem}");
            assert!(guard::repair(&bench.instance, "key").is_err());
            assert_eq!(std::fs::read(&file).unwrap(), bytes);
            assert!(!bench.folder.path().join("asked").exists(), "a server was started on the word of a broken record");
        }
    });
}

#[test]
fn a_damaged_record_of_runtime_state() {
    let runtime = Runtime {
        variables: vec![RuntimeVariable { name: "max_connections".into(), value: "500".into(), bare: true }],
        replication: vec![("c1".into(), true, false)],
        essential: [("read_only".to_owned(), "OFF".to_owned())].into(),
        server: (4711, 99),
        recorded_s: -1,
        ..Runtime::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key.runtime");
    let sample = serde_json::to_string(&(RUN, &runtime)).unwrap();
    std::fs::write(&file, &sample).unwrap();
    assert_eq!(kept(&file), Some((RUN.to_owned(), runtime)));
    mutate::run("runtime record", move |rng| {
        let bytes = mutate::text(rng, std::slice::from_ref(&sample));
        std::fs::write(&file, &bytes).unwrap();
        let whole = serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).is_ok();
        if let Some(read) = kept(&file) {
            assert!(whole, "half a record was taken for one");
            std::fs::write(&file, serde_json::to_vec(&read).unwrap()).unwrap();
            assert_eq!(kept(&file), Some(read));
        }
    });
}

#[test]
fn damaged_texts_in_lock_files() {
    let folder = tempfile::tempdir().unwrap();
    let holder = Holder {
        run: RUN.into(),
        refresh: "n".into(),
        pid: 1,
        host: "h".into(),
        since: "2026-11-27T02:31:00Z".into(),
        step: "copy".into(),
    };
    let sample = serde_json::to_string(&holder).unwrap();
    mutate::run("lock files", move |rng| {
        let file = lock::path(folder.path(), "key");
        let free = lock::take_within(&file, std::time::Duration::ZERO).unwrap().expect("nobody has it");
        std::fs::write(&file, mutate::text(rng, std::slice::from_ref(&sample))).unwrap();
        // whatever stands in it, it is taken as long as somebody holds it
        assert!(matches!(lock::try_take(&file, &holder).unwrap(), Taken::Theirs(_)));
        drop(free);
        assert!(matches!(lock::try_take(&file, &holder).unwrap(), Taken::Ours(_)));
    });
}
