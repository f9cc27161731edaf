//! The swap: the new generation takes the datadir's place by rename, and the way back is on disk before anything happens.
//!
//! Generations are told apart by their inodes, which a rename keeps. Undo and the end of a commit are idempotent and read
//! nothing but the journal and the folders. A datadir that can be renamed changes places in one exchange (`exchange`); one that
//! is a mount point keeps its name, and its entries are moved (`entries`).
//!
//! What is on the disk before what, so that a loss of power at any moment leaves one whole generation that can be told:
//!
//! 1. the stage: every file, then every folder, before the swap is asked for;
//! 2. the journal (file, rename, folder), before the stop;
//! 3. the drop-in (file, rename, folder), before the exchange;
//! 4. the exchange (the folders on both sides), before the start: last of all what makes the new generation startable;
//! 5. the commit's mark in the journal, before the old generation is called the previous one;
//! 6. the record of the generations, before the journal goes.

mod entries;
mod exchange;

pub use entries::NOBODYS;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::server;
use super::stage::{Generation, Work, write_durably, write_with_mode};
use crate::durable::{sealed, sync_dir, unsealed};
use crate::failpoint;
use crate::instance::Instance;
use crate::problem::{Explain, Kind, Outcome, Problem};
use crate::wire::message::{Keep, Origin};

/// The journal of a swap, on disk from before the stop until the commit is complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// The run, or what else swaps.
    pub run: String,
    old: u64,
    new: u64,
    /// The folder the new generation comes from and the old one goes to.
    other: PathBuf,
    dropin_before: Option<String>,
    dropin_after: Option<String>,
    origin: Option<Origin>,
    was_running: bool,
    committed: Option<Keep>,
    /// What is moved where the datadir is a mount point; None: nothing is, or all is back.
    #[serde(default)]
    moves: Option<entries::Moves>,
}

/// A swap in this work folder that is not finished.
pub fn journal(work: &Work) -> Outcome<Option<Journal>> {
    if work.folder.exists() {
        work.guarded()?;
        if !work.held()? {
            return Ok(None);
        }
    }
    match std::fs::read(work.swap()) {
        Ok(bytes) => {
            let damaged =
                || Problem::failed(format!("{} is damaged; nothing is done on its word", work.swap().display()));
            serde_json::from_slice(unsealed(&bytes).ok_or_else(damaged)?)
                .map(Some)
                .explain(|| format!("cannot understand {}", work.swap().display()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).explain(|| format!("cannot read {}", work.swap().display())),
    }
}

/// What to swap in.
pub struct Wish {
    /// The run.
    pub run: String,
    /// Where the new generation stands.
    pub other: PathBuf,
    /// The drop-in that belongs to it; None: no drop-in.
    pub dropin: Option<String>,
    /// Where it came from.
    pub origin: Option<Origin>,
    /// The server's error log, for the error text; relative to the datadir or absolute.
    pub log: Option<PathBuf>,
}

impl Journal {
    /// Whether this swap is in place: the new generation has the datadir's name.
    pub fn in_place(&self, work: &Work) -> bool {
        match work.inside {
            true => self.moves.as_ref().is_some_and(entries::Moves::placed),
            false => inode(&work.datadir).ok() == Some(self.new),
        }
    }
}

/// Stops the server, exchanges the generations, starts the server. Blocking. On failure everything is put back before the
/// error is returned; a way back that fails, too, makes it a case for a human.
pub fn swap(work: &Work, instance: &Instance, key: &str, wish: Wish) -> Outcome<()> {
    let _act = work.exclusive()?;
    if let Some(journal) = journal(work)? {
        return Err(Problem::refused(format!("run {} was interrupted while it swapped here", journal.run))
            .hint("Run `mysql-refreshd recover` first."));
    }
    let log = wish.log;
    let mut journal = Journal {
        run: wish.run,
        old: inode(&work.datadir)?,
        new: inode(&wish.other)?,
        other: wish.other,
        dropin_before: read_dropin(instance)?,
        dropin_after: wish.dropin,
        origin: wish.origin,
        was_running: server::find(&work.datadir)?.is_some(),
        committed: None,
        moves: None,
    };
    write(work, &journal)?;
    forward(work, instance, key, &mut journal, log.as_deref()).map_err(|problem| {
        match back(work, instance, key, journal) {
            Ok(()) => problem,
            Err(undo) => {
                problem.cause(format!("and the old generation could not be put back: {undo}")).with_kind(Kind::Human)
            }
        }
    })
}

fn forward(work: &Work, instance: &Instance, key: &str, journal: &mut Journal, wish_log: Option<&Path>) -> Outcome<()> {
    failpoint::hit("swap:journalled")?;
    server::stop(instance)?;
    failpoint::hit("swap:stopped")?;
    put_dropin(instance, journal.dropin_after.as_deref())?;
    failpoint::hit("swap:dropin")?;
    if server::find(&work.datadir)?.is_some() {
        return Err(Problem::failed("somebody started the server again in the middle of the swap"));
    }
    // last: the rename that makes the new generation startable
    if work.inside {
        entries::forward(work, journal)?;
    } else {
        exchange::place(work, &journal.other, journal.new, journal.old)?;
    }
    failpoint::hit("swap:exchanged")?;
    server::ensure_started(instance, key).map_err(|problem| {
        let said = wish_log.map(|log| server::tail_of(&work.datadir.join(log), &work.datadir, 8)).unwrap_or_default();
        if said.is_empty() { problem } else { problem.cause(format!("its log ends with:\n{said}")) }
    })?;
    failpoint::hit("swap:started")
}

/// Puts the old generation back, unless the swap was committed; then finishes the commit and says so. Idempotent; a swap of
/// another run is left alone.
pub fn undo(work: &Work, instance: &Instance, key: &str, run: &str) -> Outcome<bool> {
    if !work.folder.is_dir() {
        // a run makes it long before it swaps
        return Err(Problem::failed(format!("{} is not there", work.folder.display()))
            .hint("Is the datadir's volume mounted? Mount it, then run `mysql-refreshd recover`."));
    }
    let _act = work.exclusive()?;
    match journal(work)? {
        Some(journal) if journal.run == run && journal.committed.is_some() => finish(work, &journal).map(|()| true),
        Some(journal) if journal.run == run => back(work, instance, key, journal).map(|()| false),
        _ => Ok(work.generations()?.committed_by.as_deref() == Some(run)),
    }
}

fn back(work: &Work, instance: &Instance, key: &str, mut journal: Journal) -> Outcome<()> {
    // a server that a boot has started on the old data may run with the new settings
    if read_dropin(instance).is_ok_and(|now| now != journal.dropin_before) {
        server::stop(instance)?;
    }
    if work.inside {
        if journal.moves.is_some() {
            server::stop(instance)?;
            entries::back(work, &mut journal)?;
        }
    } else if inode(&work.datadir).ok() != Some(journal.old) {
        // before the server is stopped for nothing
        if ![journal.other.clone(), work.folder.join("aside")].iter().any(|at| inode(at).ok() == Some(journal.old)) {
            return Err(Problem::failed("the old generation is not where the journal says"));
        }
        server::stop(instance)?;
        exchange::place(work, &journal.other, journal.old, journal.new)?;
    }
    put_dropin(instance, journal.dropin_before.as_deref())?;
    if journal.was_running {
        server::ensure_started(instance, key)?;
    } else {
        server::release(instance)?;
    }
    end(work)
}

/// The new generation stays. From here on the swap is never undone, only finished.
pub fn commit(work: &Work, keep: Keep, run: &str) -> Outcome<()> {
    let _act = work.exclusive()?;
    match journal(work)? {
        Some(mut journal) if journal.run == run && journal.in_place(work) => {
            journal.committed = Some(keep);
            write(work, &journal)?;
            failpoint::hit("commit:journalled")?;
            finish(work, &journal)
        }
        None if work.generations()?.committed_by.as_deref() == Some(run) => Ok(()),
        _ => Err(Problem::failed("the swap of this run is no longer in place")),
    }
}

fn finish(work: &Work, journal: &Journal) -> Outcome<()> {
    let mut generations = work.generations()?;
    let mine = |origin: &Option<Origin>| *origin == journal.origin;
    let before =
        if mine(&generations.current.origin) { generations.previous.take() } else { Some(generations.current) };
    generations.current = Generation { origin: journal.origin.clone(), dropin: journal.dropin_after.clone() };
    let old = before.unwrap_or_default();
    let previous = work.previous();
    if work.inside {
        entries::keep_old(work, &journal.other)?;
    } else if journal.other != previous && inode(&journal.other).ok() == Some(journal.old) {
        work.throw_away(&previous)?;
        std::fs::rename(&journal.other, &previous).explain(|| format!("cannot rename {}", journal.other.display()))?;
        sync(&work.folder)?;
    }
    generations.previous = Some(Generation { dropin: journal.dropin_before.clone(), ..old });
    generations.committed_by = Some(journal.run.clone());
    work.record(&generations)?;
    if journal.committed == Some(Keep::Never) {
        work.forget_previous()?;
    }
    end(work)
}

fn end(work: &Work) -> Outcome<()> {
    match std::fs::remove_file(work.swap()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).explain(|| format!("cannot remove {}", work.swap().display()))
        }
        _ => sync(&work.folder),
    }
}

fn write(work: &Work, journal: &Journal) -> Outcome<()> {
    let bytes = serde_json::to_vec_pretty(journal).explain(|| "cannot write the swap's journal")?;
    write_durably(&work.swap(), &sealed(bytes))
}

fn sync(folder: &Path) -> Outcome<()> {
    sync_dir(folder).explain(|| format!("cannot make {} durable", folder.display()))
}

fn inode(path: &Path) -> Outcome<u64> {
    std::fs::symlink_metadata(path).map(|meta| meta.ino()).explain(|| format!("cannot read {}", path.display()))
}

/// The drop-in as it is; None: there is none.
pub fn read_dropin(instance: &Instance) -> Outcome<Option<String>> {
    let Some(path) = &instance.dropin else { return Ok(None) };
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).explain(|| format!("cannot read {}", path.display())),
    }
}

fn put_dropin(instance: &Instance, text: Option<&str>) -> Outcome<()> {
    let Some(path) = &instance.dropin else { return Ok(()) };
    match text {
        Some(text) => write_with_mode(path, text.as_bytes(), 0o644),
        None => match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).explain(|| format!("cannot remove {}", path.display()))
            }
            // it may lie on another filesystem than the journal, which is not to be gone before it
            _ => path.parent().filter(|folder| folder.is_dir()).map_or(Ok(()), sync),
        },
    }
}
