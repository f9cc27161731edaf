//! What lies in a stage, file by file, with the block hashes as they were read from it: what its agent answers by when it is asked for
//! blocks that are lacking, and what the proof is made from.
//!
//! Removes nothing outside of the stage.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::basis::Basis;
use super::index::{Index, Span};
use crate::delta::hash::{FileHasher, Hash};
use crate::delta::path::RelPath;
use crate::problem::{Explain, Outcome};

/// An entry of the stage.
#[derive(Debug, Clone, Copy)]
pub enum Known {
    /// A folder.
    Dir,
    /// A file.
    File {
        /// Its length.
        len: u64,
        /// Its block hashes.
        span: Span,
        /// The proof over them, once a pass has asked for it.
        proof: Option<Hash>,
    },
}

impl Known {
    /// Length of a file.
    pub fn len(&self) -> u64 {
        match self {
            Known::Dir => 0,
            Known::File { len, .. } => *len,
        }
    }
}

/// A stage and what is known of it.
pub struct Stock {
    /// The staged datadir.
    pub stage: PathBuf,
    /// Block hashes of all files.
    pub index: Index,
    /// All entries.
    pub known: BTreeMap<RelPath, Known>,
    /// What is still being filled of it, until the first pass is over.
    pub basis: Basis,
    /// A pass has been received: what it has not named is not there any more.
    pub passed: bool,
}

impl Stock {
    /// Of an empty stage; the index lies in `folder`.
    pub fn new(stage: &Path, folder: &Path) -> Outcome<Self> {
        Ok(Self {
            stage: stage.to_owned(),
            index: Index::new(folder)?,
            known: BTreeMap::new(),
            basis: Basis::default(),
            passed: false,
        })
    }

    /// The proof of a file, from its block hashes; None if not all of them are known.
    pub fn proof(index: &Index, span: Span, len: u64) -> Outcome<Option<Hash>> {
        let mut hasher = FileHasher::default();
        let all = index.each(span, len, |hash, len| hasher.add(hash, len))?;
        Ok(all.then(|| hasher.finish()))
    }
}

/// Removes what is not wanted from a stage, deepest entries first.
pub fn keep_only(
    stage: &Path,
    known: &mut BTreeMap<RelPath, Known>,
    wanted: impl Fn(&RelPath, &Known) -> bool,
) -> Outcome<()> {
    let gone: Vec<RelPath> =
        known.iter().filter(|(path, is)| !wanted(path, is)).map(|(path, _)| path.clone()).collect();
    for path in gone.iter().rev() {
        let full = path.under(stage);
        match known.remove(path) {
            Some(Known::Dir) => std::fs::remove_dir(&full),
            Some(Known::File { .. }) => std::fs::remove_file(&full),
            None => Ok(()),
        }
        .explain(|| format!("cannot remove {}", full.display()))?;
    }
    Ok(())
}
