//! The work folder beside a destination's datadir: stage, previous generation, the record of both, and durable writes.
//!
//! Everything here lies in one folder, `.NAME.refreshd` next to the datadir `NAME`, on the same filesystem, so that
//! generations change places by rename. Where the datadir is a mount point there is no such place beside it: there it is
//! `.refreshd/work` inside (MySQL passes over folders whose name begins with a dot; MariaDB is told to). Removes nothing
//! outside that folder.

use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::adopt;
use super::anchor;
use super::receive::{Owner, chown, is_root, write_error};
use crate::authority;
use crate::durable;
use crate::lock::{self, Lock};
use crate::problem::{Explain, Outcome, Problem};
use crate::wire::message::{Installed, Origin};

/// How long an act waits for another agent's: a swap that stops and starts a server.
const EXCLUSIVE: Duration = Duration::from_secs(1800);

/// Our folder in a datadir that is a mount point.
pub const INSIDE: &str = ".refreshd";

/// The work folder of a datadir.
#[derive(Debug, Clone)]
pub struct Work {
    /// The datadir, symlinks resolved.
    pub datadir: PathBuf,
    /// The folder itself.
    pub folder: PathBuf,
    /// The datadir is a mount point, and the folder lies inside.
    pub inside: bool,
}

/// What is known of the generations, on disk beside them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generations {
    /// The one that serves.
    pub current: Generation,
    /// The one kept.
    pub previous: Option<Generation>,
    /// The run whose swap was committed last.
    #[serde(default)]
    pub committed_by: Option<String>,
}

/// A stage that is whole, for another agent of the same run: on disk beside it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kept {
    run: String,
    /// The boot in which it was received: until it is written out, it does not outlive that.
    boot: Option<String>,
    /// What the isolated start did; None: it was not begun.
    pub installed: Option<Installed>,
}

/// The machine's current boot.
fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

/// One generation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// Where it came from; None: it was here before the first refresh.
    pub origin: Option<Origin>,
    /// The drop-in that belongs to it; None: there was none.
    pub dropin: Option<String>,
}

impl Work {
    /// The work folder for a datadir; nothing is created. A datadir that an interrupted exchange has left without its name is
    /// found by the work folder beside it.
    pub fn of(datadir: &Path) -> Outcome<Self> {
        let interrupted = |datadir: &Path| {
            let parent = datadir.parent()?.canonicalize().ok()?;
            let folder = parent.join(format!(".{}.refreshd", datadir.file_name()?.to_string_lossy()));
            folder.join("swap.json").exists().then(|| parent.join(datadir.file_name().unwrap_or_default()))
        };
        let datadir = datadir
            .canonicalize()
            .or_else(|error| interrupted(datadir).ok_or(error))
            .explain(|| format!("cannot resolve the datadir {}", datadir.display()))?;
        match (datadir.parent(), datadir.file_name()) {
            (Some(_), Some(_)) if is_mount_point(&datadir) => {
                Ok(Self { folder: datadir.join(INSIDE).join("work"), datadir, inside: true })
            }
            (Some(parent), Some(name)) => {
                let folder = parent.join(format!(".{}.refreshd", name.to_string_lossy()));
                Ok(Self { folder, datadir, inside: false })
            }
            _ => Err(Problem::refused(format!("{} cannot be a datadir", datadir.display()))),
        }
    }
    /// Whether root can work here: the folders above are its own, and so is the work folder. Otherwise the server's account
    /// could put something else in the place of what root reads back, removes or gives away.
    pub fn guarded(&self) -> Outcome<()> {
        if !is_root() {
            return Ok(());
        }
        authority::only_ours(self.datadir.parent().unwrap_or(Path::new("/")))?;
        if self.inside && !anchor::holds(&self.datadir)? {
            return Ok(());
        }
        match std::fs::symlink_metadata(&self.folder) {
            Ok(meta) if meta.is_dir() && meta.uid() != 0 && self.inside => {
                Err(Problem::refused(format!("{} is not root's folder any more", self.folder.display())).hint(
                    "A script that gives everything in the datadir to the server's account (packages have one) may have done that: look at \
                     what is in there, then `chown root` it; or `chattr -i` the folder above and remove both.",
                ))
            }
            Ok(meta) if !meta.is_dir() || meta.uid() != 0 => {
                Err(Problem::refused(format!("{} is not root's folder", self.folder.display()))
                    .hint("Somebody else has put it there: look at it, and remove it."))
            }
            _ => Ok(()),
        }
    }
    /// Whether what lies in the folder is ours: inside a datadir that belongs to the server's account only behind its anchor.
    pub fn held(&self) -> Outcome<bool> {
        Ok(!self.inside || anchor::holds(&self.datadir)?)
    }
    /// The staged datadir.
    pub fn stage(&self) -> PathBuf {
        self.folder.join("stage")
    }
    /// The previous generation.
    pub fn previous(&self) -> PathBuf {
        self.folder.join("previous")
    }
    /// The swap's journal.
    pub fn swap(&self) -> PathBuf {
        self.folder.join("swap.json")
    }
    /// What is frozen of a source's datadir.
    pub fn frozen(&self) -> PathBuf {
        self.folder.join("frozen")
    }
    /// Sockets, logs and the init file of the isolated start.
    pub fn isolated(&self) -> PathBuf {
        self.folder.join("isolated")
    }
    /// What is being removed.
    fn trash(&self) -> PathBuf {
        self.folder.join("trash")
    }
    /// The run whose stage this is.
    fn stage_run(&self) -> PathBuf {
        self.folder.join("stage.run")
    }
    fn kept_file(&self) -> PathBuf {
        self.folder.join("stage.json")
    }
    /// The stage is whole, but perhaps not on the disk. Costs no fsync: the source is down meanwhile.
    pub fn keep_received(&self, run: &str) -> Outcome<()> {
        let kept = Kept { run: run.to_owned(), boot: Some(boot()), installed: None };
        let bytes = serde_json::to_vec(&kept).explain(|| "cannot note the stage")?;
        std::fs::write(self.kept_file(), bytes).map_err(|error| write_error(&self.kept_file(), &error))
    }
    /// The stage is whole and on the disk.
    pub fn keep_stage(&self, run: &str, installed: Option<Installed>) -> Outcome<()> {
        let kept = Kept { run: run.to_owned(), boot: None, installed };
        write_durably(&self.kept_file(), &serde_json::to_vec(&kept).explain(|| "cannot note the stage")?)
    }
    /// The stage is about to be changed: nobody goes on with it.
    pub fn unkeep(&self) -> Outcome<()> {
        match std::fs::remove_file(self.kept_file()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).explain(|| format!("cannot remove {}", self.kept_file().display()))
            }
            _ => durable::sync_dir(&self.folder).explain(|| format!("cannot make {} durable", self.folder.display())),
        }
    }
    /// A run's stage, if another agent can go on with it.
    pub fn kept(&self, run: &str) -> Option<Kept> {
        let kept: Kept = serde_json::from_slice(&std::fs::read(self.kept_file()).ok()?).ok()?;
        let same_boot = kept.boot.as_ref().is_none_or(|of| *of == boot());
        let ours = std::fs::read_to_string(self.stage_run()).is_ok_and(|of| of == run);
        (kept.run == run && ours && same_boot && self.stage().is_dir()).then_some(kept)
    }
    /// Who owns the datadir.
    pub fn owner(&self) -> Outcome<Owner> {
        let meta = std::fs::metadata(&self.datadir).explain(|| format!("cannot read {}", self.datadir.display()))?;
        Ok(Owner { uid: meta.uid(), gid: meta.gid() })
    }
    /// Creates the folder itself. It belongs to the agent's account, and the server's group may only pass through: what is
    /// read back from it (journals, records) must not be the server's account's to write.
    pub fn create(&self) -> Outcome<()> {
        self.guarded()?;
        let owner = self.owner()?;
        if self.inside {
            anchor::drop(&self.datadir)?;
        }
        make_dir(&self.folder)?;
        let mode = std::fs::Permissions::from_mode(if is_root() { 0o710 } else { 0o700 });
        if is_root() {
            chown(&self.folder, Owner { uid: 0, gid: owner.gid })?;
        }
        std::fs::set_permissions(&self.folder, mode).explain(|| format!("cannot protect {}", self.folder.display()))
    }
    /// One at a time: whoever changes anything here holds this.
    pub fn exclusive(&self) -> Outcome<Lock> {
        self.guarded()?;
        if !self.held()? {
            return Err(Problem::failed(format!("{} is not ours", self.folder.display())));
        }
        lock::take_within(&self.folder.join("act.lock"), EXCLUSIVE)?
            .ok_or_else(|| Problem::failed(format!("another agent is at work in {}", self.folder.display())))
    }
    /// An empty stage of a run; an abandoned one is removed. The agent's own until `hand_over`.
    pub fn fresh_stage(&self, run: &str) -> Outcome<()> {
        self.unkeep()?;
        self.throw_away(&self.stage())?;
        write_durably(&self.stage_run(), run.as_bytes())?;
        make_dir(&self.stage())
    }
    /// Gives the stage to the owner of the datadir, with the datadir's own permission bits.
    pub fn hand_over(&self) -> Outcome<()> {
        let meta = std::fs::metadata(&self.datadir).explain(|| format!("cannot read {}", self.datadir.display()))?;
        // nobody gets in before all of it has changed hands: what is inside may have any mode
        chown_tree(&self.stage(), self.owner()?)?;
        std::fs::set_permissions(self.stage(), meta.permissions())
            .explain(|| format!("cannot set the permissions of {}", self.stage().display()))
    }
    /// Forgets and removes the previous generation: first on record, then by one rename, so that a half-removed one is never
    /// rolled back to.
    pub fn forget_previous(&self) -> Outcome<()> {
        self.disown_previous()?;
        self.throw_away(&self.previous())
    }
    /// Only the first of both: nobody goes back to it any more.
    pub fn disown_previous(&self) -> Outcome<()> {
        let mut generations = self.generations()?;
        generations.previous = None;
        self.record(&generations)
    }
    /// Removes a folder of ours by way of `trash`: its name is free at once, and never holds a half-removed tree.
    pub fn throw_away(&self, folder: &Path) -> Outcome<()> {
        remove(&self.trash())?;
        match std::fs::rename(folder, self.trash()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            renamed => renamed.explain(|| format!("cannot remove {}", folder.display()))?,
        }
        durable::sync_dir(&self.folder).explain(|| format!("cannot make {} durable", self.folder.display()))?;
        remove(&self.trash())
    }
    /// The record of the generations.
    pub fn generations(&self) -> Outcome<Generations> {
        if !self.held()? {
            return Ok(Generations::default());
        }
        let path = self.folder.join("generation.json");
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).explain(|| format!("cannot understand {}", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Generations::default()),
            Err(error) => Err(error).explain(|| format!("cannot read {}", path.display())),
        }
    }
    /// Writes the record of the generations.
    pub fn record(&self, generations: &Generations) -> Outcome<()> {
        let bytes = serde_json::to_vec_pretty(generations).explain(|| "cannot record the generations")?;
        write_durably(&self.folder.join("generation.json"), &bytes)
    }
    /// Removes the work folder's transient parts: stage and isolated start. A stage of another run is left alone.
    pub fn discard_stage(&self, run: &str) -> Outcome<()> {
        match std::fs::read(self.stage_run()) {
            Ok(of) if of != run.as_bytes() => return Ok(()),
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).explain(|| format!("cannot read {}", self.stage_run().display()));
            }
            _ => {}
        }
        self.unkeep()?;
        self.throw_away(&self.stage())?;
        // one that was given up to the stage goes with it; where the record is lost nobody can say that it was
        let given_up = |known: Generations| known.previous.is_none() && known != Generations::default();
        if self.generations().is_ok_and(given_up) {
            self.throw_away(&self.previous())?;
        }
        remove(&self.isolated())?;
        remove(&self.trash())?;
        let _ = std::fs::remove_dir_all(adopt::quarantine(&self.previous()));
        let _ = std::fs::remove_file(self.stage_run());
        Ok(())
    }
}

/// Also bind mounts, which have the device of their parent.
pub fn is_mount_point(path: &Path) -> bool {
    let escaped = path
        .to_string_lossy()
        .replace('\\', "\\134")
        .replace(' ', "\\040")
        .replace('\t', "\\011")
        .replace('\n', "\\012");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(4) == Some(&escaped))
}

/// A folder that nobody else may enter.
pub fn make_dir(path: &Path) -> Outcome<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(write_error(path, &error)),
    }
}

/// Removes a folder and all below; Ok if it is not there.
pub fn remove(path: &Path) -> Outcome<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).explain(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Replaces a file so that after a power cut it is the old one or the new one: temporary file, fsync, rename, fsync of
/// the folder. Readable by the agent's account only.
pub fn write_durably(path: &Path, bytes: &[u8]) -> Outcome<()> {
    write_with_mode(path, bytes, 0o600)
}

/// The same with other permission bits, for a drop-in that the server's account reads.
pub fn write_with_mode(path: &Path, bytes: &[u8], mode: u32) -> Outcome<()> {
    durable::replace(path, bytes, mode).map_err(|error| write_error(path, &error))
}

/// Gives a tree to an owner; nobody else may be able to reach it meanwhile.
fn chown_tree(path: &Path, owner: Owner) -> Outcome<()> {
    if !is_root() {
        return Ok(());
    }
    let entries = std::fs::read_dir(path).explain(|| format!("cannot read {}", path.display()))?;
    for entry in entries {
        let entry = entry.explain(|| format!("cannot read {}", path.display()))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            chown_tree(&entry.path(), owner)?;
        } else {
            chown(&entry.path(), owner)?;
        }
    }
    chown(path, owner)
}

/// Writes a whole tree out to the disk: every file, then every folder.
pub fn sync_tree(folder: &Path) -> Outcome<()> {
    let entries = std::fs::read_dir(folder).explain(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let path = entry.explain(|| format!("cannot read {}", folder.display()))?.path();
        let meta = path.symlink_metadata().explain(|| format!("cannot read {}", path.display()))?;
        if meta.is_dir() {
            sync_tree(&path)?;
        } else if meta.is_file() {
            File::open(&path).and_then(|file| file.sync_all()).map_err(|e| write_error(&path, &e))?;
        }
    }
    durable::sync_dir(folder).map_err(|e| write_error(folder, &e))
}
