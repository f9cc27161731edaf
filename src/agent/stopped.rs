//! That a server has stopped, and cleanly: all of what proves it, and nothing else does.
//!
//! Only reads.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{server, tree};
use crate::mysql::Flavour;
use crate::mysql::files::Names;
use crate::mysql::redo::{RedoFile, RedoVerdict, judge_mariadb, judge_mysql};
use crate::problem::{Explain, Outcome, Problem};

/// All proofs that a server stopped cleanly: no process holds its files, no marker of an unclean stop, and the redo log
/// itself ends at its last checkpoint.
pub fn prove_stopped(datadir: &Path, flavour: Flavour, names: &Names) -> Outcome<()> {
    let not_clean = |why: String| Problem::failed("the server did not stop cleanly").cause(why);
    if let Some(process) = server::find(datadir)? {
        return Err(not_clean(format!("process {} still holds its files", process.pid)));
    }
    if let Some(reason) = tree::walk(datadir, flavour, names)?.unclean.first() {
        return Err(not_clean(reason.clone()));
    }
    match judge_redo(datadir, flavour)? {
        RedoVerdict::Clean => Ok(()),
        RedoVerdict::NotClean(why) => Err(not_clean(why)),
        RedoVerdict::Unknown(why) => Err(not_clean(format!("the redo log cannot be judged: {why}"))),
    }
}

fn judge_redo(datadir: &Path, flavour: Flavour) -> Outcome<RedoVerdict> {
    const HEAD: usize = 16 * 1024;
    let read_at = |file: &File, offset: u64, len: usize| {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, offset).ok().map(|()| bytes)
    };
    let open = |path: &Path| File::open(path).explain(|| format!("cannot open {}", path.display()));
    if flavour == Flavour::MariaDb {
        let file = open(&datadir.join("ib_logfile0"))?;
        let Some(head) = read_at(&file, 0, HEAD) else {
            return Ok(RedoVerdict::Unknown("ib_logfile0 is too short".into()));
        };
        let size = file.metadata().map(|meta| meta.len()).unwrap_or(0);
        return Ok(judge_mariadb(&head, size, &mut |offset, len| read_at(&file, offset, len)));
    }
    let folder = datadir.join("#innodb_redo");
    let mut files = Vec::new();
    let mut judged = Vec::new();
    for entry in std::fs::read_dir(&folder).explain(|| format!("cannot read {}", folder.display()))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("#ib_redo") && !name.ends_with("_tmp") {
            let file = open(&entry.path())?;
            let size = file.metadata().map(|m| m.len()).unwrap_or(0);
            judged.push(RedoFile { name, head: read_at(&file, 0, 2048).unwrap_or_default(), size });
            files.push(file);
        }
    }
    Ok(judge_mysql(&judged, &mut |n, offset, len| files.get(n).and_then(|file| read_at(file, offset, len))))
}
