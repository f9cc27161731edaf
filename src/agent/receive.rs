//! Taking the image's stream into the stage, and proving each file from the stage: it is read back and hashed anew, and
//! the source's proof must come out. Blocks are verified as they arrive, files as they end, the image at its end.
//!
//! Writes below the stage only. Two threads: one writes, one reads back.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use tokio::sync::mpsc::UnboundedReceiver;

use super::session::{Piece, Session};
use crate::delta::hash::{self, FileHasher, Hash, ImageHasher, Totals};
use crate::delta::pack::{Chunk, unpack};
use crate::delta::path::RelPath;
use crate::delta::{BLOCK, CHUNK};
use crate::failpoint;
use crate::mysql::Flavour;
use crate::mysql::files::foreign;
use crate::problem::{Explain, Outcome, Problem};
use crate::wire::message::Entry;

/// Files that wait for being read back.
const QUEUE: usize = 64;

/// A file that is complete and waits for its proof.
struct Landed {
    path: RelPath,
    full: PathBuf,
    len: u64,
    proof: Hash,
}

enum Step {
    Dir(RelPath),
    File(Landed),
    End(Totals, Hash),
}

/// Who owns the files of the stage.
#[derive(Debug, Clone, Copy)]
pub struct Owner {
    /// User id of the datadir.
    pub uid: u32,
    /// Group id of the datadir.
    pub gid: u32,
}

struct Open {
    file: File,
    full: PathBuf,
    path: RelPath,
    len: u64,
    next: u64,
}

/// Receives the image. Blocking.
pub fn receive(
    stage: &Path,
    flavour: Flavour,
    from_disk: bool,
    pieces: &mut UnboundedReceiver<Piece>,
    session: &Session,
) -> Outcome<(Totals, Hash)> {
    let (tx, rx) = sync_channel(QUEUE);
    std::thread::scope(|scope| {
        let prover = scope.spawn(move || prove_all(&rx, from_disk));
        let mut writer = Writer { stage, flavour, open: HashMap::new(), proofs: tx };
        let written = writer.take_all(pieces, session);
        drop(writer);
        let proven = prover.join().unwrap_or_else(|_| Err(Problem::failed("the proving thread failed")));
        match (written, proven) {
            // a writer that could not hand over a file only saw that the prover had given up
            (_, Err(problem)) | (Err(problem), Ok(_)) => Err(problem),
            (Ok(()), Ok(Some(result))) => Ok(result),
            (Ok(()), Ok(None)) => Err(Problem::failed("the image's stream ended early")),
        }
    })
}

struct Writer<'a> {
    stage: &'a Path,
    flavour: Flavour,
    open: HashMap<u32, Open>,
    proofs: SyncSender<Step>,
}

impl Writer<'_> {
    fn take_all(&mut self, pieces: &mut UnboundedReceiver<Piece>, session: &Session) -> Outcome<()> {
        let mut ungranted = 0u64;
        loop {
            session.check()?;
            match pieces.blocking_recv() {
                None => return Err(Problem::new(crate::problem::Kind::Lost, "the controller is gone")),
                Some(Piece::Chunk(bytes)) => {
                    self.chunk(unpack(&bytes).map_err(|e| Problem::failed("the stream is damaged").because(e))?)?;
                    ungranted += bytes.len() as u64;
                    if ungranted >= CHUNK as u64 {
                        session.grant_blocking(std::mem::take(&mut ungranted))?;
                    }
                }
                Some(Piece::Entry(Entry::End { totals, image })) => {
                    failpoint::hit("receive:end")?;
                    // no proof covers a file that has not ended: it would stay on the stage beside the proven ones
                    if let Some(open) = self.open.values().next() {
                        return Err(out_of_order(&format!("the image ended before {}", open.path)));
                    }
                    return self.hand_over(Step::End(totals, image));
                }
                Some(Piece::Entry(entry)) => self.entry(entry)?,
            }
        }
    }

    fn entry(&mut self, entry: Entry) -> Outcome<()> {
        if let Entry::Dir { path, .. } | Entry::File { path, .. } = &entry
            && let Some(why) = foreign(self.flavour, &path.under(Path::new("")))
        {
            return Err(Problem::failed(format!("the image holds {path}, which is not taken in: {why}")));
        }
        match entry {
            Entry::Dir { path, mode } => {
                let full = path.under(self.stage);
                std::fs::DirBuilder::new().mode(mode | 0o700).create(&full).map_err(|e| write_error(&full, &e))?;
                self.hand_over(Step::Dir(path))
            }
            Entry::File { number, path, mode, len } => {
                if number == 1 {
                    failpoint::hit("receive:first")?;
                }
                if self.open.contains_key(&number) {
                    return Err(out_of_order("a file under the number of one that is open"));
                }
                let full = path.under(self.stage);
                let file = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(mode & 0o666)
                    .open(&full)
                    .map_err(|e| write_error(&full, &e))?;
                file.set_len(len).map_err(|e| write_error(&full, &e))?;
                // the umask may have taken bits that the source's file had
                let _ = file.set_permissions(std::fs::Permissions::from_mode(mode & 0o666));
                self.open.insert(number, Open { file, full, path, len, next: 0 });
                Ok(())
            }
            Entry::FileEnd { number, proof } => {
                let open = self.open.remove(&number).ok_or_else(|| out_of_order("end of a file that is not open"))?;
                if open.next != open.len {
                    return Err(out_of_order("a file ended early"));
                }
                self.hand_over(Step::File(Landed { path: open.path, full: open.full, len: open.len, proof }))
            }
            Entry::End { .. } => Ok(()),
        }
    }

    fn chunk(&mut self, chunk: Chunk) -> Outcome<()> {
        let open = self.open.get_mut(&chunk.file).ok_or_else(|| out_of_order("a chunk of a file that is not open"))?;
        let end = chunk.offset + chunk.raw.len() as u64;
        if chunk.offset != open.next || end > open.len {
            return Err(out_of_order("a chunk out of order"));
        }
        for (n, block) in chunk.raw.chunks(BLOCK).enumerate() {
            if chunk.zero & (1 << n) == 0 {
                open.file
                    .write_all_at(block, chunk.offset + (n * BLOCK) as u64)
                    .map_err(|e| write_error(&open.full, &e))?;
            }
        }
        open.next = end;
        Ok(())
    }

    fn hand_over(&self, step: Step) -> Outcome<()> {
        self.proofs.send(step).map_err(|_| Problem::failed("the stage could not be proven"))
    }
}

/// Proves file after file; None when the writer gave up before the image was complete.
fn prove_all(steps: &Receiver<Step>, from_disk: bool) -> Outcome<Option<(Totals, Hash)>> {
    let mut image = ImageHasher::default();
    for step in steps {
        match step {
            Step::Dir(path) => image.dir(&path),
            Step::File(landed) => {
                let found = read_back(&landed.full, landed.len, from_disk)?;
                if found != landed.proof {
                    return Err(Problem::failed(format!("{} is not on this disk what the source sent", landed.path))
                        .hint("Suspect this host's memory, disk or filesystem; the old generation keeps serving."));
                }
                image.file(&landed.path, landed.len, &found);
            }
            Step::End(totals, proof) => {
                let (found_totals, found) = image.finish();
                if (found_totals, found) == (totals, proof) {
                    return Ok(Some((totals, found)));
                }
                return Err(Problem::failed("the stage does not hold the image the source sent"));
            }
        }
    }
    Ok(None)
}

/// Hashes a file as it stands on this host.
fn read_back(full: &Path, len: u64, from_disk: bool) -> Outcome<Hash> {
    let file = File::open(full).explain(|| format!("cannot open {}", full.display()))?;
    if from_disk {
        file.sync_data().map_err(|e| write_error(full, &e))?;
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    }
    let mut hasher = FileHasher::default();
    let mut buffer = vec![0u8; CHUNK];
    while hasher.bytes() < len {
        let want = (len - hasher.bytes()).min(CHUNK as u64) as usize;
        file.read_exact_at(&mut buffer[..want], hasher.bytes())
            .explain(|| format!("cannot read back {}", full.display()))?;
        buffer[..want].chunks(BLOCK).for_each(|block| hasher.add(&hash::block(block), block.len()));
    }
    Ok(hasher.finish())
}

/// Whether the agent runs as root, and files must change hands.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Gives a file to the owner of the datadir; needed only where the agent is root. Follows no symlink.
pub fn chown(path: &Path, owner: Owner) -> Outcome<()> {
    if !is_root() {
        return Ok(());
    }
    std::os::unix::fs::lchown(path, Some(owner.uid), Some(owner.gid))
        .explain(|| format!("cannot change the owner of {}", path.display()))
}

/// An error while writing, with what can be done about it.
pub fn write_error(path: &Path, error: &std::io::Error) -> Problem {
    let problem = Problem::failed(format!("cannot write {}", path.display())).because(error);
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            problem.hint("Make room on the destination's filesystem; the old generation keeps serving.")
        }
        _ => problem,
    }
}

fn out_of_order(what: &str) -> Problem {
    Problem::failed(format!("the image's stream is out of order: {what}"))
}
