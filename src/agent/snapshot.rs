//! The files of a running server as they are at one moment: its writes held for as long as the snapshot takes, and proof that nothing is missing
//! in it.
//!
//! Stops nothing and writes nothing into the datadir. What is made has its record with `freeze`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::session::{Session, blocking};
use super::sql::Sql;
use super::tree::{self, Tree};
use super::{freeze, hold};
use crate::failpoint;
use crate::mysql::Flavour;
use crate::mysql::files::Names;
use crate::problem::{Outcome, Problem};

/// Of what, and how.
pub struct Wish {
    /// One that is of one moment.
    pub way: freeze::Way,
    /// The datadir.
    pub place: freeze::Place,
    /// The run.
    pub run: String,
    /// What names in the datadir mean, of a running server.
    pub names: Names,
    /// The server's.
    pub flavour: Flavour,
    /// How long to try to have its writes held.
    pub wait: Duration,
}

/// Takes the snapshot. For how long writes were held.
pub async fn take(
    wish: Wish,
    mut sql: Sql,
    variables: &BTreeMap<String, String>,
    session: &Session,
) -> Outcome<(freeze::Watched, Duration)> {
    let Wish { way, place, run, names, flavour, wait } = wish;
    hold::recoverable(&mut sql, variables, &way).await?;
    let datadir = place.datadir.clone();
    let (at, by, mean) = (place.clone(), way.clone(), names.clone());
    let before = blocking(move || {
        let before = tree::walk(&at.datadir, flavour, &mean)?;
        before.copyable()?;
        freeze::prepare(&at, &by)?;
        Ok(before)
    })
    .await?;
    let held = hold::hold(sql, flavour, wait, session).await?;
    failpoint::reach("snapshot:held").await?;
    let (made, is_made) = tokio::sync::oneshot::channel();
    let mut made = Some(made);
    let mut tell = move || {
        if let Some(made) = made.take() {
            let _ = made.send(());
        }
    };
    let frozen = tokio::spawn(blocking(move || freeze::take_at(&way, &place, &run, &[], &mut tell)));
    // whatever becomes of it, nobody waits any longer
    let _ = is_made.await;
    let held = held.release().await;
    let frozen = frozen.await.unwrap_or_else(|_| Err(Problem::failed("work on this host failed")))?;
    let held = held?;
    let frozen = freeze::Watched::new(frozen);
    let at = frozen.datadir().to_owned();
    blocking(move || {
        let (frozen, after) = (tree::walk(&at, flavour, &names)?, tree::walk(&datadir, flavour, &names)?);
        holds_all(&before, &after, &frozen)
    })
    .await?;
    Ok((frozen, held))
}

/// Whether what was there before and is there afterwards is in the snapshot, as the same file or folder: what is mounted on a folder of the
/// datadir would be missing.
fn holds_all(before: &Tree, after: &Tree, frozen: &Tree) -> Outcome<()> {
    let all = |tree: &Tree| -> BTreeSet<(Vec<u8>, u64)> {
        tree.items.iter().map(|item| (item.path.as_bytes().to_vec(), item.inode())).collect()
    };
    let (after, frozen) = (all(after), all(frozen));
    let missing = before.items.iter().find(|item| {
        let one = (item.path.as_bytes().to_vec(), item.inode());
        after.contains(&one) && !frozen.contains(&one)
    });
    match missing {
        None => Ok(()),
        Some(item) => Err(Problem::failed("what was frozen is not all that the datadir holds")
            .cause(format!("{} is not in the snapshot: is it a mount of its own?", item.path))),
    }
}
