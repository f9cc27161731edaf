//! The swap of a datadir that is a mount point: its name cannot change, so its top-level entries are moved, each by a rename.
//!
//! Each generation has a home in the work folder (`aside` for the old one, where the new one was staged for the new one), and an
//! entry is either there or in the datadir. Which entry belongs to whom is in the journal, by inode, before the first move. No
//! server can start on what lies there in between: what it cannot do without goes out first and comes in last. A start that is
//! tried all the same leaves files that nobody knows: they are thrown away on the way back.

use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};

use super::{Journal, inode, sync, write};
use crate::agent::destination::MOVING_POINT;
use crate::agent::stage::{self, INSIDE, Work};
use crate::failpoint;
use crate::problem::{Explain, Outcome, Problem};

/// What no server starts without, in the order in which it goes: MySQL's dictionary, the schema with the accounts, the system
/// tablespace. Verified by starts between the moves: MariaDB 10.11 (tests/it/mounts.rs), MySQL 9.7 (tests/hosts/filesystems.rs).
const VITAL: [&str; 3] = ["mysql.ibd", "mysql", "ibdata1"];

/// What belongs to no generation: our own folder, and the filesystem's.
pub const NOBODYS: [&str; 2] = [INSIDE, "lost+found"];

/// The entries of both generations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moves {
    old: Vec<Entry>,
    new: Vec<Entry>,
    /// All were moved: a server may have run on the new generation since.
    placed: bool,
}

impl Moves {
    /// The new generation is in place.
    pub fn placed(&self) -> bool {
        self.placed
    }
}

/// One top-level entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    name: String,
    inode: u64,
}

impl Entry {
    fn vital(&self) -> bool {
        VITAL.contains(&self.name.as_str())
    }
}

fn aside(work: &Work) -> PathBuf {
    work.folder.join("aside")
}

/// The top-level entries of a generation, what is vital first.
fn list(folder: &Path) -> Outcome<Vec<Entry>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).explain(|| format!("cannot read {}", folder.display()))? {
        let entry = entry.explain(|| format!("cannot read {}", folder.display()))?;
        let name = entry.file_name().into_string().map_err(|name| {
            Problem::failed(format!("{} has an entry whose name is not UTF-8: {}", folder.display(), name.display()))
        })?;
        if !NOBODYS.contains(&name.as_str()) {
            all.push(Entry { inode: inode(&entry.path())?, name });
        }
    }
    all.sort_by_key(|entry| VITAL.iter().position(|vital| *vital == entry.name).unwrap_or(VITAL.len()));
    Ok(all)
}

/// Moves one entry, unless it has been moved already. Never replaces anything.
fn shift(entry: &Entry, from: &Path, to: &Path) -> Outcome<()> {
    let (from, to) = (from.join(&entry.name), to.join(&entry.name));
    if inode(&to).ok() == Some(entry.inode) {
        return Ok(());
    }
    failpoint::hit(MOVING_POINT)?;
    renameat_with(CWD, &from, CWD, &to, RenameFlags::NOREPLACE)
        .explain(|| format!("cannot move {} to {}", from.display(), to.display()))
}

/// The same for several: those that are vital before all others, or after them, with the disk in between.
fn shift_all(entries: &[Entry], from: &Path, to: &Path, vital_first: bool) -> Outcome<()> {
    let (vital, rest): (Vec<_>, Vec<_>) = entries.iter().partition(|entry| entry.vital());
    let both = || sync(from).and_then(|()| sync(to));
    if vital_first {
        vital.iter().try_for_each(|entry| shift(entry, from, to))?;
        both()?;
    }
    rest.iter().try_for_each(|entry| shift(entry, from, to))?;
    both()?;
    if !vital_first {
        vital.iter().rev().try_for_each(|entry| shift(entry, from, to))?;
        both()?;
    }
    Ok(())
}

/// The old generation goes aside, the new one comes in. The server is stopped.
pub fn forward(work: &Work, journal: &mut Journal) -> Outcome<()> {
    work.throw_away(&aside(work))?;
    stage::make_dir(&aside(work))?;
    sync(&work.folder)?;
    // what a stop leaves, not what was there before it
    let moves = Moves { old: list(&work.datadir)?, new: list(&journal.other)?, placed: false };
    for (which, entries) in [("old", &moves.old), ("new", &moves.new)] {
        for vital in ["mysql", "ibdata1"] {
            if !entries.iter().any(|entry| entry.name == vital) {
                return Err(Problem::failed(format!("the {which} generation has no {vital}")));
            }
        }
    }
    journal.moves = Some(moves.clone());
    write(work, journal)?;
    shift_all(&moves.old, &work.datadir, &aside(work), true)?;
    shift_all(&moves.new, &journal.other, &work.datadir, false)?;
    journal.moves = Some(Moves { placed: true, ..moves });
    write(work, journal)
}

/// Whether everything of a generation that no server starts without is in the datadir. It goes first and comes in last: so all of the
/// generation is there, and a server may have run on it, and replaced what else it likes.
fn whole(generation: &[Entry], here: &[Entry]) -> bool {
    generation.iter().filter(|entry| entry.vital()).all(|entry| here.contains(entry))
}

/// The new generation goes back to where it came from, the old one comes in again. The server is stopped.
pub fn back(work: &Work, journal: &mut Journal) -> Outcome<()> {
    let Some(mut moves) = journal.moves.clone() else { return Ok(()) };
    let here = list(&work.datadir)?;
    let stray = work.folder.join("stray");
    if !whole(&moves.old, &here) {
        if moves.placed || whole(&moves.new, &here) {
            // what is there now is the new generation, whatever a server has made of it; from here on exactly that
            moves.new = here.iter().filter(|entry| !moves.old.contains(entry)).cloned().collect();
            moves.placed = false;
            journal.moves = Some(moves.clone());
            write(work, journal)?;
        }
        // a start that was tried in between may have replaced what it could not do anything with
        let at_home = |entry: &Entry| inode(&aside(work).join(&entry.name)).ok() == Some(entry.inode);
        let (coming, replaced): (Vec<Entry>, Vec<Entry>) =
            moves.old.iter().cloned().partition(|entry| here.contains(entry) || at_home(entry));
        if let Some(vital) = replaced.iter().find(|entry| entry.vital()) {
            return Err(Problem::failed(format!("{} of the old generation is nowhere", vital.name)));
        }
        let (mut new, mut strays) = (Vec::new(), Vec::new());
        for entry in here.into_iter().filter(|entry| !moves.old.contains(entry)) {
            if moves.new.iter().any(|of| of.inode == entry.inode) {
                new.push(entry);
            } else if !replaced.iter().any(|of| of.name == entry.name) {
                strays.push(entry);
            }
        }
        work.throw_away(&stray)?;
        stage::make_dir(&stray)?;
        shift_all(&strays, &work.datadir, &stray, true)?;
        shift_all(&new, &work.datadir, &journal.other, true)?;
        shift_all(&coming, &aside(work), &work.datadir, false)?;
    }
    // from here on what is in the datadir is the old generation, whatever its server makes of it
    journal.moves = None;
    write(work, journal)?;
    work.throw_away(&aside(work))?;
    work.throw_away(&stray)
}

/// After the commit: the old generation becomes the previous one; the folder that the new one came from is empty.
pub fn keep_old(work: &Work, other: &Path) -> Outcome<()> {
    let (aside, previous) = (aside(work), work.previous());
    // done already
    if !aside.is_dir() {
        return Ok(());
    }
    work.throw_away(other)?;
    work.throw_away(&previous)?;
    std::fs::rename(&aside, &previous).explain(|| format!("cannot rename {}", aside.display()))?;
    sync(&work.folder)
}
