//! The destination role: stage, receive, install, swap, and the ways back. Touches its datadir, the work folder beside it,
//! its state folder and its drop-in, and nothing else.
//!
//! What was not committed is put back when the controller is gone.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use super::engage::Engaged;
use super::serve::Serve;
use super::session::{Inbox, Session, WINDOW, blocking};
use super::source::take_lock;
use super::sql::Sql;
use super::stage::{self, Work};
use super::stock::Stock;
use super::stopped::prove_stopped;
use super::{accounts, facts, isolated, receive, runtime, seed, server, swap, upgrade};
use crate::lock::Lock;
use crate::mysql::Flavour;
use crate::mysql::dropin;
use crate::mysql::files::Names;
use crate::mysql::isolated::own_values;
use crate::mysql::variables::{effective, layout_variables, same_setting, secret_setting, sound_layout};
use crate::problem::{Explain, Outcome, Problem};
use crate::wire::facts::Identity;
use crate::wire::message::{
    DestinationRequest, Extra, InstallOptions, Keep, Open, ReceiveOptions, Reply, Role, Room, SeedOptions, SwapOptions,
    Up, VerifyOptions,
};

/// Comes only where a datadir is a mount point, once for every entry that is moved.
pub const MOVING_POINT: &str = "swap:moving";

/// Fail points inside requests.
pub const INNER_POINTS: [&str; 15] = [
    "seed:half",
    "seed:hashing",
    "receive:first",
    "receive:asked",
    "receive:end",
    "install:recovering",
    "install:started",
    "install:accounts",
    "install:changed",
    "swap:journalled",
    "swap:stopped",
    "swap:dropin",
    "swap:exchanged",
    "swap:started",
    "commit:journalled",
];

/// An opened destination agent.
pub struct Destination {
    session: Session,
    open: Engaged,
    identity: Identity,
    work: Work,
    variables: BTreeMap<String, String>,
    executable: Option<std::path::PathBuf>,
    lock: Option<Lock>,
    staged: bool,
    stage: Stage,
    /// What is in it, while it is received.
    stock: Option<Stock>,
    /// The previous generation is nobody's, and its files may be had.
    reused: bool,
    swapped: bool,
}

impl Serve for Destination {
    type Request = DestinationRequest;

    async fn open(open: Engaged, session: Session) -> Outcome<(Self, Reply)> {
        let identity = facts::identity(&open.instance)?;
        let reply = Reply::Opened(identity.clone());
        let destination = Self {
            session,
            work: Work::of(&open.instance.datadir)?,
            identity,
            open,
            variables: BTreeMap::new(),
            executable: None,
            lock: None,
            staged: false,
            stage: Stage::None,
            stock: None,
            reused: false,
            swapped: false,
        };
        Ok((destination, reply))
    }

    fn as_open(request: DestinationRequest) -> Result<Box<Open>, DestinationRequest> {
        match request {
            DestinationRequest::Open(open) => Ok(open),
            other => Err(other),
        }
    }

    async fn serve(&mut self, request: DestinationRequest, inbox: &mut Inbox<DestinationRequest>) -> Outcome<Reply> {
        if needs_lock(&request) && self.lock.is_none() {
            return Err(Problem::failed("no change to a destination without its lock"));
        }
        if needs_consent(&request) {
            if self.open.from.is_none() && !matches!(request, DestinationRequest::Rollback) {
                return Err(Problem::refused("nobody said whose data is to come"));
            }
            self.open.consent()?;
        }
        match request {
            DestinationRequest::Open(_) => Err(Problem::failed("already open")),
            DestinationRequest::Facts(extra) => self.facts(&extra).await,
            DestinationRequest::Lock(holder) => {
                take_lock(Role::Destination, &mut self.lock, &self.open, &self.identity.key, &holder).await
            }
            DestinationRequest::PrepareStage => self.prepare().await,
            DestinationRequest::Seed(options) => self.seed(options).await,
            DestinationRequest::MakeRoom(keep) => self.make_room(keep).await,
            DestinationRequest::Receive(options) => self.receive(options, inbox).await,
            DestinationRequest::SyncStage => {
                let (work, run) = (self.work.clone(), self.run()?.to_owned());
                let received = self.stage == Stage::Received;
                blocking(move || {
                    stage::sync_tree(&work.stage())?;
                    if received { work.keep_stage(&run, None) } else { Ok(()) }
                })
                .await
                .map(|()| Reply::Done)
            }
            DestinationRequest::Resume => self.resume(),
            DestinationRequest::Install(options) => self.install(*options).await,
            DestinationRequest::Swap(options) => self.swap(*options).await,
            DestinationRequest::Verify(options) => self.verify(&options).await,
            DestinationRequest::Commit(keep) => self.commit(keep).await,
            DestinationRequest::UndoSwap => self.undo_swap().await.map(Reply::Undone),
            DestinationRequest::DiscardStage => self.discard().await.map(|()| Reply::Done),
            DestinationRequest::Rollback => self.rollback().await,
        }
    }

    async fn abandoned(mut self) {
        // nobody is left to tell; `recover` does the same again
        if self.swapped {
            let _ = self.undo_swap().await;
        }
        // a stage that is whole waits for this run's next agent; `recover` or the next run removes it if none comes
        let waits = matches!(self.stage, Stage::Received | Stage::Installed)
            && self.run().is_ok_and(|run| self.work.kept(run).is_some());
        if self.staged && !waits {
            let _ = self.discard().await;
        }
    }
}

/// Whether a request must not meet another agent's.
fn needs_lock(request: &DestinationRequest) -> bool {
    !matches!(
        request,
        DestinationRequest::Open(_)
            | DestinationRequest::Facts(_)
            | DestinationRequest::Lock(_)
            | DestinationRequest::Verify(_)
    )
}

/// How far this agent's stage is: each step once, and in order. From the second on the stage may belong to the server's account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    None,
    Fresh,
    Received,
    Installed,
}

/// Whether a request changes what is served, or prepares it. Ways back are always open.
fn needs_consent(request: &DestinationRequest) -> bool {
    match request {
        DestinationRequest::Open(_)
        | DestinationRequest::Facts(_)
        | DestinationRequest::Lock(_)
        | DestinationRequest::Commit(_)
        | DestinationRequest::UndoSwap
        | DestinationRequest::DiscardStage
        | DestinationRequest::Verify(_) => false,
        DestinationRequest::PrepareStage
        | DestinationRequest::Seed(_)
        | DestinationRequest::MakeRoom(_)
        | DestinationRequest::Receive(_)
        | DestinationRequest::SyncStage
        | DestinationRequest::Install(_)
        | DestinationRequest::Swap(_)
        | DestinationRequest::Resume
        | DestinationRequest::Rollback => true,
    }
}

impl Destination {
    async fn sql(&self) -> Outcome<Sql> {
        Sql::open(&self.open.instance, self.open.password.as_ref()).await
    }

    fn run(&self) -> Outcome<&str> {
        self.open.run.as_deref().ok_or_else(|| Problem::failed("this connection belongs to no run"))
    }

    async fn facts(&mut self, extra: &Extra) -> Outcome<Reply> {
        let facts = facts::gather(&self.open, Role::Destination, extra).await?;
        if let Some(server) = &facts.server {
            self.variables = server.variables.clone();
            self.executable = Some(server.executable.clone());
        }
        Ok(Reply::Facts(Box::new(facts)))
    }

    async fn prepare(&mut self) -> Outcome<Reply> {
        if let Some(journal) = swap::journal(&self.work)? {
            return Err(Problem::refused(format!("run {} was interrupted while it swapped here", journal.run))
                .hint("Run `mysql-refreshd recover` first."));
        }
        self.staged = true;
        let (work, run) = (self.work.clone(), self.run()?.to_owned());
        let stock = blocking(move || {
            work.create()?;
            kill_isolated(&work)?;
            let _act = work.exclusive()?;
            work.fresh_stage(&run)?;
            Stock::new(&work.stage(), &work.folder)
        })
        .await?;
        self.stock = Some(stock);
        self.stage = Stage::Fresh;
        self.session.send(&Up::Credit(WINDOW)).await?;
        Ok(Reply::Done)
    }

    /// Apart from the stage, since it cannot be taken back.
    async fn make_room(&mut self, room: Room) -> Outcome<Reply> {
        if self.stage != Stage::Fresh || self.stock.as_ref().is_none_or(|stock| !stock.known.is_empty()) {
            return Err(Problem::failed("requests out of order: room is made for an empty stage"));
        }
        let work = self.work.clone();
        self.reused = blocking(move || seed::make_room(&work, room)).await?;
        Ok(Reply::Done)
    }

    /// Goes on only from this step; a step that fails is not repeated.
    fn leave_stage(&mut self, from: Stage) -> Outcome<()> {
        match std::mem::replace(&mut self.stage, Stage::None) {
            now if now == from => Ok(()),
            now => Err(Problem::failed(format!("requests out of order: the stage is {now:?}, not {from:?}"))),
        }
    }

    /// The version of what runs here; without a server that answered there is none to tell by, and what is refused is nearly the
    /// same for all.
    fn flavour(&self) -> Flavour {
        runtime::version(&self.variables).map_or(Flavour::MariaDb, |version| version.flavour)
    }

    /// Brings the current generation into the stage, as a basis.
    async fn seed(&mut self, asked: SeedOptions) -> Outcome<Reply> {
        self.leave_stage(Stage::Fresh)?;
        let mut stock = self.stock.take().filter(|stock| stock.known.is_empty());
        let mut stock = stock.take().ok_or_else(|| Problem::failed("a basis belongs into an empty stage"))?;
        let (work, variables, flavour) = (self.work.clone(), self.variables.clone(), self.flavour());
        let (session, reused) = (self.session.clone(), std::mem::take(&mut self.reused));
        let (stock, seeded) = blocking(move || {
            let names = Names::from_variables(&work.datadir, &variables, &[], &[]);
            let items = super::tree::walk(&work.datadir, flavour, &names)?.items;
            let copies = work.generations()?.current.origin.is_some();
            let act = reused.then(|| work.exclusive()).transpose()?;
            let previous = work.previous();
            let previous = reused.then_some(previous.as_path());
            let options = seed::Options { flavour, copies, previous, from_disk: asked.from_disk };
            let seeded = seed::seed(&mut stock, &work.datadir, &items, options, &session)?;
            previous.map_or(Ok(()), |what_is_left| work.throw_away(what_is_left))?;
            drop(act);
            if asked.filled.at_once(seeded) {
                seed::fill(&stock, &session)?;
            }
            Ok((stock, seeded))
        })
        .await?;
        (self.stock, self.stage) = (Some(stock), Stage::Fresh);
        Ok(Reply::Seeded(seeded))
    }

    async fn receive(&mut self, options: ReceiveOptions, inbox: &mut Inbox<DestinationRequest>) -> Outcome<Reply> {
        self.leave_stage(Stage::Fresh)?;
        let flavour = self.flavour();
        let mut stock = self.stock.take().ok_or_else(|| Problem::failed("there is no stage to receive into"))?;
        let session = self.session.clone();
        let (_, closed) = tokio::sync::mpsc::unbounded_channel();
        let mut pieces = std::mem::replace(&mut inbox.pieces, closed);
        let (image, stock, pieces) = blocking(move || {
            let image = receive::receive(&mut stock, flavour, options, &mut pieces, &session)?;
            Ok((image, stock, pieces))
        })
        .await?;
        let Some((totals, image)) = image else {
            inbox.pieces = pieces;
            (self.stock, self.stage) = (Some(stock), Stage::Fresh);
            return Ok(Reply::Done);
        };
        self.stage = Stage::Received;
        self.work.keep_received(self.run()?)?;
        Ok(Reply::Image { totals, image })
    }

    /// Goes on where an earlier agent of this run stopped, if what it left is whole.
    fn resume(&mut self) -> Outcome<Reply> {
        let kept = self.work.kept(self.run()?).filter(|_| self.stage == Stage::None);
        let kept = kept.ok_or_else(|| Problem::failed("there is no whole stage of this run to go on with"))?;
        self.staged = true;
        self.stage = if kept.installed.is_some() { Stage::Installed } else { Stage::Received };
        Ok(Reply::Resumed(kept.installed))
    }

    /// Brings the destination's own files and accounts into the copy and runs the isolated first start.
    async fn install(&mut self, mut options: InstallOptions) -> Outcome<Reply> {
        self.leave_stage(Stage::Received)?;
        self.work.unkeep()?;
        self.open.allows(options.own_accounts, options.disable_events)?;
        // where this server's own program files are (a tarball's are not where they were compiled to be), and the size of its
        // redo log, which would be changed twice otherwise
        for name in own_values(&self.variables) {
            // the controller has no say in them
            options.layout.remove(name);
            if let Some(value) = self.variables.get(name) {
                options.layout.insert(name.to_owned(), value.clone());
            }
        }
        let executable =
            self.executable.clone().ok_or_else(|| Problem::failed("the server's executable is not known"))?;
        let flavour = runtime::version(&self.variables)?.flavour;
        self.carry_own_files(&options.extra).await?;
        let accounts = if options.own_accounts {
            let mut sql = self.sql().await.map_err(|p| p.during("cannot read the destination's own accounts"))?;
            let accounts = accounts::capture(&mut sql, flavour).await?;
            sql.close().await;
            Some(accounts)
        } else {
            None
        };
        let plan = isolated::Plan {
            work: &self.work,
            executable,
            flavour,
            variables: &self.variables,
            options: &options,
            accounts,
            upgrade_tool: upgrade::tool(
                self.executable.as_deref().unwrap_or(Path::new("/")),
                self.variables.get("basedir").map_or("", String::as_str),
            ),
            limit: Duration::from_secs(self.open.instance.start_timeout_s.into()),
        };
        let installed =
            isolated::install(plan, &self.session).await.map_err(|p| p.during("the isolated first start failed"))?;
        let (work, run, done) = (self.work.clone(), self.run()?.to_owned(), installed.clone());
        let (stage, variables) = (self.work.stage(), self.variables.clone());
        blocking(move || {
            let names = Names::from_variables(&stage, &variables, &options.extra.copy, &options.extra.drop);
            prove_stopped(&stage, flavour, &names)?;
            stage::sync_tree(&stage)?;
            work.keep_stage(&run, Some(done))
        })
        .await?;
        self.stage = Stage::Installed;
        Ok(Reply::Installed(installed))
    }

    /// Files that each host keeps of its own: identity, keys, persisted settings.
    async fn carry_own_files(&self, extra: &Extra) -> Outcome<()> {
        let (work, variables, extra) = (self.work.clone(), self.variables.clone(), extra.clone());
        blocking(move || {
            let flavour = runtime::version(&variables)?.flavour;
            let names = Names::from_variables(&work.datadir, &variables, &extra.copy, &extra.drop);
            for path in super::tree::walk(&work.datadir, flavour, &names)?.keep {
                let (from, to) = (path.under(&work.datadir), path.under(&work.stage()));
                carry(&from, &to).explain(|| format!("cannot carry {path} over"))?;
            }
            work.hand_over()
        })
        .await
    }

    async fn swap(&mut self, options: SwapOptions) -> Outcome<Reply> {
        let dropin = self.dropin(&options)?;
        self.leave_stage(Stage::Installed)?;
        self.work.unkeep()?;
        self.swapped = true;
        let (work, instance, key) = (self.work.clone(), self.open.instance.clone(), self.identity.key.clone());
        let run = self.run()?.to_owned();
        let log = self.variables.get("log_error").filter(|log| !log.is_empty()).map(std::path::PathBuf::from);
        blocking(move || {
            let dropin = match dropin {
                Some(text) => Some(text),
                None => swap::read_dropin(&instance)?,
            };
            let wish = swap::Wish { run, other: work.stage(), dropin, origin: Some(options.origin), log };
            swap::swap(&work, &instance, &key, wish)
        })
        .await?;
        Ok(Reply::Done)
    }

    /// The drop-in's text. An installed agent writes no setting that would give the controller more than data: a program to
    /// be run, a file to be written, a door to be opened.
    fn dropin(&self, options: &SwapOptions) -> Outcome<Option<String>> {
        let flavour = runtime::version(&self.variables)?.flavour;
        // where our folder lies inside the datadir, MariaDB would show it as a schema
        let hidden = self.work.inside && flavour == Flavour::MariaDb;
        if options.settings.is_empty() && !hidden {
            return Ok(None);
        }
        if !self.open.authority.is_trusting() {
            for (name, value) in &options.settings {
                let known = effective(&self.variables, name).is_some();
                let layout = layout_variables(runtime::version(&self.variables)?.flavour).contains(&name.as_str());
                let denied = if layout {
                    (!sound_layout(value)).then_some("its value leads out of the datadir")
                } else {
                    dropin::denied(name).or((!known).then_some("it is not a variable of this server"))
                };
                if let Some(why) = denied {
                    return Err(Problem::refused(format!("the setting {name} may not be pushed to this host: {why}")));
                }
            }
        }
        let origin = &options.origin;
        let header = dropin::Header { run: &origin.run, refresh: &origin.refresh, source: &origin.source };
        let mut text = dropin::render(flavour, &header, &options.settings);
        if hidden {
            for folder in swap::NOBODYS {
                text.push_str(&format!("ignore_db_dirs = {folder}\n"));
            }
        }
        Ok(Some(text))
    }

    /// Checks what the running server says of itself.
    async fn verify(&mut self, options: &VerifyOptions) -> Outcome<Reply> {
        let mut sql = self.sql().await.map_err(|p| p.during("the refreshed server does not let us in"))?;
        let variables = sql.variables().await?;
        if !swap::journal(&self.work)?
            .is_some_and(|j| j.run == self.run().unwrap_or_default() && j.in_place(&self.work))
        {
            return Err(Problem::failed("the swap of this run is no longer in place"));
        }
        let datadir = variables.get("datadir").map(std::path::PathBuf::from).unwrap_or_default();
        if datadir.canonicalize().ok() != Some(self.work.datadir.clone()) {
            return Err(Problem::failed(format!(
                "the server on this socket serves {}, not {}",
                datadir.display(),
                self.work.datadir.display()
            )));
        }
        let wrong: Vec<String> = options
            .settings
            .iter()
            .filter_map(|(name, wanted)| match effective(&variables, name) {
                Some(is) if same_setting(name, wanted, is) => None,
                // what is wanted may be a secret
                Some(_) if secret_setting(name) => Some(format!("{name} is not what was wanted")),
                Some(is) => Some(format!("{name} is {is:?}, not {wanted:?}")),
                None => Some(format!("{name} is not a variable of this server")),
            })
            .collect();
        if !wrong.is_empty() {
            return Err(Problem::failed(format!("settings are not in effect: {}", wrong.join(", ")))
                .hint("Is the drop-in's folder read by the server, and last? An option after it, on the command line or in mysqld-auto.cnf wins."));
        }
        let counts = runtime::counts(&mut sql, runtime::version(&variables)?.flavour).await?;
        if counts != options.counts {
            return Err(Problem::failed(format!(
                "the server shows other objects than the isolated start: {counts:?}, not {:?}",
                options.counts
            )));
        }
        if options.no_replication {
            let flavour = runtime::version(&variables)?.flavour;
            let connections = runtime::replication(&mut sql, flavour).await?;
            if let Some((name, ..)) = connections.first() {
                return Err(Problem::failed(format!(
                    "the refreshed server still has the replication connection {name:?}"
                )));
            }
        }
        sql.close().await;
        Ok(Reply::Done)
    }

    async fn commit(&mut self, keep: Keep) -> Outcome<Reply> {
        let (work, run) = (self.work.clone(), self.run()?.to_owned());
        blocking(move || {
            swap::commit(&work, keep, &run)?;
            let _act = work.exclusive()?;
            work.discard_stage(&run)
        })
        .await?;
        (self.swapped, self.staged) = (false, false);
        Ok(Reply::Done)
    }

    /// True: the swap had been committed and stays.
    async fn undo_swap(&mut self) -> Outcome<bool> {
        let (work, instance, key) = (self.work.clone(), self.open.instance.clone(), self.identity.key.clone());
        let run = self.run()?.to_owned();
        let committed = blocking(move || swap::undo(&work, &instance, &key, &run)).await?;
        self.swapped = false;
        Ok(committed)
    }

    async fn discard(&mut self) -> Outcome<()> {
        let (work, run) = (self.work.clone(), self.run()?.to_owned());
        blocking(move || {
            match std::fs::symlink_metadata(&work.folder) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
                // a disk that does not answer is no proof that nothing is there
                found => found.explain(|| format!("cannot read {}", work.folder.display()))?,
            };
            if !work.held()? {
                return Ok(());
            }
            let _act = work.exclusive()?;
            // while a swap is not undone, the folder named stage may be the old generation
            if let Some(journal) = swap::journal(&work)? {
                return Err(Problem::failed(format!("the swap of run {} is not undone; the stage stays", journal.run)));
            }
            kill_isolated(&work)?;
            work.discard_stage(&run)
        })
        .await?;
        self.staged = false;
        Ok(())
    }

    async fn rollback(&mut self) -> Outcome<Reply> {
        self.swapped = true;
        let (work, instance, key) = (self.work.clone(), self.open.instance.clone(), self.identity.key.clone());
        let run = self.run()?.to_owned();
        let origin = blocking(move || {
            let generations = work.generations()?;
            let previous = generations.previous.filter(|_| work.previous().is_dir()).ok_or_else(|| {
                Problem::refused("no previous generation is kept on this destination")
                    .hint("See `keep_previous` of the refresh.")
            })?;
            let wish = swap::Wish {
                run: run.clone(),
                other: work.previous(),
                dropin: previous.dropin,
                log: None,
                origin: previous.origin.clone(),
            };
            swap::swap(&work, &instance, &key, wish)?;
            swap::commit(&work, Keep::UntilStage, &run)?;
            Ok(previous.origin)
        })
        .await?;
        self.swapped = false;
        Ok(Reply::RolledBack(origin))
    }
}

/// Copies one of the host's own files into the stage; follows no symlink on either end.
fn carry(from: &Path, to: &Path) -> std::io::Result<()> {
    let mut source = server::open_no_follow(from)?;
    let mode = source.metadata()?.permissions().mode() & 0o777;
    let mut target = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(to)?;
    std::io::copy(&mut source, &mut target).map(drop)
}

/// A server that an agent which died left on the stage. It is ours alone and its datadir is about to be thrown away, so
/// this one may be killed.
fn kill_isolated(work: &Work) -> Outcome<()> {
    let begun = Instant::now();
    while let Some(process) = if work.stage().is_dir() { server::find(&work.stage())? } else { None } {
        // only a server that was started on the stage by us: its command line names the stage
        let line = std::fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
        let stage = work.stage();
        // a process that is ending has no command line any more, but may still hold its files
        let ours = line.is_empty() || line.split(|b| *b == 0).any(|word| word.ends_with(stage.as_os_str().as_bytes()));
        if !ours {
            return Err(Problem::failed(format!("process {} uses the stage, and is not ours", process.pid)));
        }
        if let Some(pid) = rustix::process::Pid::from_raw(process.pid as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        if begun.elapsed() > Duration::from_secs(20) {
            return Err(Problem::failed(format!("process {} on the stage does not end", process.pid)));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
