//! The source role: drain, guard, stop, read, start. Has no request that writes into a datadir.
//!
//! Whatever it stopped, it starts again when the controller is gone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::engage::Engaged;
use super::serve::Serve;
use super::session::{Inbox, Session, blocking};
use super::sql::Sql;
use super::stopped::prove_stopped;
use super::{drain, facts, freeze, guard, runtime, server, snapshot, stream, tree};
use crate::durable;
use crate::lock::{self, Lock, Taken};
use crate::mysql::files::Names;
use crate::mysql::{Flavour, Version};
use crate::problem::{Explain, Kind, Outcome, Problem};
use crate::wire::facts::Identity;
use crate::wire::message::{Extra, Holder, Open, Pass, Reply, Role, Runtime, SourceRequest, StreamOptions};

/// Fail points inside requests.
pub const INNER_POINTS: [&str; 4] = ["stop-server:stopped", "stream:half", "stream:hot-half", "snapshot:held"];

/// An opened source agent.
pub struct Source {
    session: Session,
    open: Engaged,
    identity: Identity,
    variables: BTreeMap<String, String>,
    runtime: Option<Runtime>,
    lock: Option<Lock>,
    /// This run's earlier agent hangs and keeps the lock: what brings the source back is done all the same.
    without_lock: bool,
    guarded: bool,
    drained: bool,
    stopped: bool,
    renewer: Option<tokio::task::JoinHandle<()>>,
    /// What hot passes have sent.
    sent: Option<stream::Sent>,
    /// How this agent would freeze the datadir.
    way: Option<freeze::Way>,
    frozen: Option<freeze::Watched>,
    /// What was there to be frozen: it must be what is found frozen.
    to_be_frozen: Option<tree::Tree>,
    /// It is of a running server.
    running: bool,
    /// Something may be frozen, or on its way to be.
    to_thaw: bool,
}

impl Serve for Source {
    type Request = SourceRequest;

    async fn open(open: Engaged, session: Session) -> Outcome<(Self, Reply)> {
        let identity = facts::identity(&open.instance)?;
        let reply = Reply::Opened(identity.clone());
        let source = Self {
            session,
            identity,
            open,
            variables: BTreeMap::new(),
            runtime: None,
            lock: None,
            without_lock: false,
            guarded: false,
            drained: false,
            stopped: false,
            renewer: None,
            sent: None,
            way: None,
            frozen: None,
            running: false,
            to_be_frozen: None,
            to_thaw: false,
        };
        Ok((source, reply))
    }

    fn as_open(request: SourceRequest) -> Result<Box<Open>, SourceRequest> {
        match request {
            SourceRequest::Open(open) => Ok(open),
            other => Err(other),
        }
    }

    async fn serve(&mut self, request: SourceRequest, inbox: &mut Inbox<SourceRequest>) -> Outcome<Reply> {
        let looks = matches!(
            request,
            SourceRequest::Open(_) | SourceRequest::Facts(_) | SourceRequest::Lock(_) | SourceRequest::CanFreeze(_)
        );
        let brings_back = matches!(
            request,
            SourceRequest::StartServer(_)
                | SourceRequest::Undrain(_)
                | SourceRequest::DisarmGuard
                | SourceRequest::Thaw
        );
        if !looks && self.lock.is_none() && !(self.without_lock && brings_back) {
            return Err(Problem::failed("no change to a source without its lock"));
        }
        match request {
            SourceRequest::Open(_) => Err(Problem::failed("already open")),
            SourceRequest::Facts(extra) => self.facts(&extra).await,
            SourceRequest::Lock(holder) => {
                let reply = take_lock(Role::Source, &mut self.lock, &self.open, &self.identity.key, &holder).await?;
                self.without_lock = matches!(reply, Reply::Locked(None)) && self.lock.is_none();
                Ok(reply)
            }
            SourceRequest::RecordRuntime => self.record_runtime().await,
            SourceRequest::Drain(options) => {
                if self.runtime.is_none() {
                    return Err(Problem::failed("no drain before the runtime state is recorded"));
                }
                self.drained = true;
                let mut sql = self.sql().await?;
                let drained = drain::drain(&mut sql, &options, &self.session).await?;
                if self.way.is_some() {
                    // what is written out now need not be when the server is down
                    let place = freeze::Place::new(&self.open.instance, &self.identity.key);
                    let way = self.way.clone();
                    blocking(move || way.map_or(Ok(()), |way| freeze::prepare(&place, &way))).await?;
                }
                Ok(Reply::Drained(drained))
            }
            SourceRequest::Undrain(runtime) => {
                let runtime = self.to_restore(&runtime).await?;
                self.undrain(&runtime).await.map(|()| Reply::Done)
            }
            SourceRequest::ArmGuard { max_outage_s, lease_s } => self.arm(max_outage_s, lease_s).await,
            SourceRequest::StopServer => self.stop().await,
            SourceRequest::Stream(options) => self.stream(options, inbox).await,
            SourceRequest::StartServer(runtime) => {
                let runtime = self.to_restore(&runtime).await?;
                let ours = self.start(&runtime).await?;
                let process = server::find(&self.open.instance.datadir)?;
                Ok(Reply::Started { ours, up_ms: process.map_or(0, |process| process.age_ms()) })
            }
            SourceRequest::DisarmGuard => self.disarm().await.map(Reply::Disarmed),
            SourceRequest::CatchUp { runtime, limit_s } => {
                self.catch_up(&runtime, Duration::from_secs(limit_s)).await.map(Reply::CaughtUp)
            }
            SourceRequest::CanFreeze(wish) => {
                let datadir = self.open.instance.datadir.clone();
                let way = blocking(move || freeze::choose(&datadir, wish)).await?;
                self.way = way.as_ref().ok().cloned();
                Ok(Reply::Freezable(way.map(|way| way.to_string())))
            }
            SourceRequest::Freeze(extra) => self.freeze(&extra).await,
            SourceRequest::Snapshot { extra, wait_ms } => self.snapshot(&extra, Duration::from_millis(wait_ms)).await,
            SourceRequest::Thaw => self.thaw().await.map(|()| Reply::Done),
        }
    }

    async fn abandoned(mut self) {
        let runtime = self.runtime.clone().unwrap_or_default();
        // nobody is left to tell: the guard stands behind us should this fail
        let up = !self.stopped || self.start(&runtime).await.is_ok();
        if up && self.drained {
            let _ = self.undrain(&runtime).await;
        }
        if up && self.guarded {
            let _ = self.disarm().await;
        }
        if self.to_thaw {
            let _ = self.thaw().await;
        }
    }
}

impl Source {
    fn flavour(&self) -> Outcome<Flavour> {
        runtime::version(&self.variables).map(|version: Version| version.flavour)
    }

    fn run(&self) -> Outcome<&str> {
        self.open.run.as_deref().ok_or_else(|| Problem::failed("this connection belongs to no run"))
    }

    async fn sql(&self) -> Outcome<Sql> {
        Sql::open(&self.open.instance, self.open.password.as_ref()).await
    }

    async fn facts(&mut self, extra: &Extra) -> Outcome<Reply> {
        let facts = facts::gather(&self.open, Role::Source, extra).await?;
        if let Some(server) = &facts.server {
            self.variables = server.variables.clone();
        }
        Ok(Reply::Facts(Box::new(facts)))
    }

    async fn record_runtime(&mut self) -> Outcome<Reply> {
        let mut sql = self.sql().await?;
        self.variables = sql.variables().await?;
        let process =
            server::find(&self.open.instance.datadir)?.ok_or_else(|| Problem::failed("the server is not running"))?;
        let runtime = runtime::record(&mut sql, self.flavour()?, &self.variables, process.identity()).await?;
        sql.close().await;
        self.keep_record(&runtime)?;
        self.runtime = Some(runtime.clone());
        Ok(Reply::Runtime(runtime))
    }

    fn record_file(&self) -> PathBuf {
        self.open.instance.state_dir.join("guard").join(format!("{}.runtime", self.identity.key))
    }

    /// The host's own copy of what it has recorded.
    fn keep_record(&self, runtime: &Runtime) -> Outcome<()> {
        let path = self.record_file();
        let folder = path.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(folder).explain(|| format!("cannot create {}", folder.display()))?;
        let text = serde_json::to_vec(&(self.run()?, runtime)).explain(|| "cannot write the runtime state")?;
        durable::replace(&path, &text, 0o600).explain(|| format!("cannot write {}", path.display()))
    }

    /// What is put back. To an installed agent the host's own record counts, not what came over the wire: statements are made
    /// from it.
    async fn to_restore(&self, sent: &Runtime) -> Outcome<Runtime> {
        if self.open.authority.is_trusting() {
            return Ok(sent.clone());
        }
        match kept(&self.record_file()) {
            Some((run, runtime)) if run == self.run()? => Ok(runtime),
            _ => {
                if *sent != Runtime::default() {
                    self.session
                        .warn("this host has no record of its runtime state for this run; none is restored")
                        .await;
                }
                Ok(Runtime::default())
            }
        }
    }

    /// Puts back what the drain set; a server that was restarted since has its own settings again.
    async fn undrain(&mut self, runtime: &Runtime) -> Outcome<()> {
        let process = server::find(&self.open.instance.datadir)?;
        if runtime.server.0 != 0 && process.is_some_and(|p| p.identity() == runtime.server) {
            let mut sql = self.sql().await?;
            drain::undrain(&mut sql, runtime).await?;
            sql.close().await;
        }
        self.drained = false;
        Ok(())
    }

    async fn arm(&mut self, max_outage_s: u64, lease_s: u64) -> Outcome<Reply> {
        let (instance, key, run) = (self.open.instance.clone(), self.identity.key.clone(), self.run()?.to_owned());
        let (mut max_outage_s, mut lease_s) = (max_outage_s, lease_s);
        if let Some(bounds) = self.open.bounds {
            if max_outage_s > bounds.max_outage_s {
                let cap = humantime::format_duration(Duration::from_secs(bounds.max_outage_s));
                self.session
                    .warn(format!("the host's policy allows an outage of {cap}; the guard starts the server then"))
                    .await;
            }
            max_outage_s = max_outage_s.min(bounds.max_outage_s);
            lease_s = lease_s.min(LONGEST_LEASE_S);
        }
        let at = instance.clone();
        // not when the server is down and waits
        blocking(move || server::prepare_hold(&at)).await?;
        self.guarded = true;
        let what = blocking(move || guard::arm(&instance, &key, &run, max_outage_s, lease_s)).await?;
        self.session.note(format!("the guard stands: {what}")).await;
        let (place, pulse) = (guard::Place::new(&self.open.instance, &self.identity.key), self.session.pulse.clone());
        self.renewer = Some(tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(500)).await;
                // an unchanged pulse leaves the lease as it is: only progress and the controller's signs of life renew it
                place.renew(pulse.load(Ordering::Relaxed));
            }
        }));
        Ok(Reply::Done)
    }

    async fn disarm(&mut self) -> Outcome<Option<String>> {
        let (instance, key, run) = (self.open.instance.clone(), self.identity.key.clone(), self.run()?.to_owned());
        if let Some(renewer) = self.renewer.take() {
            renewer.abort();
        }
        let fired = blocking(move || guard::disarm(&instance, &key, &run)).await?;
        self.guarded = false;
        Ok(fired)
    }

    /// Clean stop, proven. The guard must stand.
    async fn stop(&mut self) -> Outcome<Reply> {
        // everything that the proof needs is at hand before the stop
        let (datadir, flavour, run) = (self.open.instance.datadir.clone(), self.flavour()?, self.run()?.to_owned());
        let names = Names::from_variables(&datadir, &self.variables, &[], &[]);
        self.runtime.as_ref().ok_or_else(|| Problem::failed("no stop before the runtime state is recorded"))?;
        let mut sql = self.sql().await?;
        // 2 would leave a datadir that looks clean and is not; 1 is the default on both
        sql.execute("SET GLOBAL innodb_fast_shutdown = 1").await?;
        sql.close().await;
        let (instance, key) = (self.open.instance.clone(), self.identity.key.clone());
        guard::stands(&instance, &key, &run).map_err(|p| p.during("no stop without a guard"))?;
        self.stopped = true;
        let at = instance.clone();
        blocking(move || server::stop(&at)).await?;
        crate::failpoint::reach("stop-server:stopped").await?;
        blocking(move || prove_stopped(&datadir, flavour, &names)).await?;
        guard::stands(&instance, &key, &run).map_err(|p| p.during("the guard did not stand through the stop"))?;
        Ok(Reply::Done)
    }

    /// Freezes the files of the stopped server, so that it can be started before they are read.
    async fn freeze(&mut self, extra: &Extra) -> Outcome<Reply> {
        let way = self.way.clone().filter(|_| self.stopped && self.frozen.is_none());
        let way = way.ok_or_else(|| Problem::failed("nothing is frozen but what a stopped server has left, once"))?;
        let place = freeze::Place::new(&self.open.instance, &self.identity.key);
        let (names, flavour, run) = (self.names(extra), self.flavour()?, self.run()?.to_owned());
        self.to_thaw = true;
        let frozen = blocking(move || {
            let before = tree::walk(&place.datadir, flavour, &names)?;
            before.copyable()?;
            let frozen = freeze::take(&way, &place, &run, &before.items)?;
            still(&place.datadir, &before, &tree::walk(&place.datadir, flavour, &names)?)?;
            Ok((freeze::Watched::new(frozen), before))
        })
        .await?;
        self.guard_stands("while the files were frozen")?;
        let (frozen, before) = frozen;
        (self.frozen, self.to_be_frozen) = (Some(frozen), Some(before));
        Ok(Reply::Done)
    }

    /// Freezes the files of the running server as they are at one moment, with its writes held for as long as that takes.
    async fn snapshot(&mut self, extra: &Extra, wait: Duration) -> Outcome<Reply> {
        let way = self.way.clone().filter(|way| way.is_atomic() && !self.stopped && self.frozen.is_none());
        let way = way.ok_or_else(|| Problem::failed("a running server is frozen at one moment or not at all, once"))?;
        (self.running, self.to_thaw) = (true, true);
        let wish = snapshot::Wish {
            way,
            place: freeze::Place::new(&self.open.instance, &self.identity.key),
            run: self.run()?.to_owned(),
            names: self.names(extra),
            flavour: self.flavour()?,
            wait,
        };
        let (frozen, held) = snapshot::take(wish, self.sql().await?, &self.variables, &self.session).await?;
        self.frozen = Some(frozen);
        Ok(Reply::Snapped(held.as_millis() as u64))
    }

    async fn thaw(&mut self) -> Outcome<()> {
        self.frozen = None;
        let place = freeze::Place::new(&self.open.instance, &self.identity.key);
        blocking(move || freeze::sweep(&place)).await?;
        self.to_thaw = false;
        Ok(())
    }

    /// What the names in the datadir mean.
    fn names(&self, extra: &Extra) -> Names {
        let names = Names::from_variables(&self.open.instance.datadir, &self.variables, &extra.copy, &extra.drop);
        if self.running { names.of_running() } else { names }
    }

    fn guard_stands(&self, when: &str) -> Outcome<()> {
        guard::stands(&self.open.instance, &self.identity.key, self.run()?)
            .map_err(|p| p.during(format!("the guard did not stand {when}; the image is thrown away")))
    }

    async fn stream(&mut self, options: StreamOptions, inbox: &mut Inbox<SourceRequest>) -> Outcome<Reply> {
        let (cold, frozen) = (options.pass == Pass::Cold, self.frozen.take());
        // what is read where the server writes is an image only while it is down
        let down = cold && frozen.is_none();
        if down != self.stopped {
            return Err(Problem::failed(if down {
                "the image is read from a stopped server, or from what was frozen of it"
            } else {
                "a server that is down has no time for this"
            }));
        }
        let (session, flavour, names) = (self.session.clone(), self.flavour()?, self.names(&options.extra));
        let datadir = frozen.as_ref().map_or(&*self.open.instance.datadir, freeze::Watched::datadir).to_owned();
        let (_, closed) = tokio::sync::mpsc::unbounded_channel();
        let mut lacks = std::mem::replace(&mut inbox.lacks, closed);
        let (sent, folder) = (self.sent.take(), self.open.instance.state_dir.clone());
        let to_be_frozen = self.to_be_frozen.take();
        let (result, sent, lacks, frozen) = blocking(move || {
            let mut sent = match sent {
                Some(sent) => sent,
                None => {
                    std::fs::create_dir_all(&folder).explain(|| format!("cannot create {}", folder.display()))?;
                    stream::Sent::new(&folder)?
                }
            };
            let before = tree::walk(&datadir, flavour, &names)?;
            if cold {
                before.copyable()?;
            }
            // only now: while the files were frozen, the server was down
            if let Some(stopped) = to_be_frozen {
                let same = |(a, b): (&tree::Item, &tree::Item)| (&a.path, a.dir, a.len) == (&b.path, b.dir, b.len);
                if before.items.len() != stopped.items.len() || !before.items.iter().zip(&stopped.items).all(same) {
                    return Err(Problem::failed("what was frozen is not all that the datadir held"));
                }
            }
            let watch = || frozen.as_ref().map_or(Ok(()), freeze::Watched::still);
            let reading = stream::Reading {
                datadir: &datadir,
                tree: &before,
                options: &options,
                down,
                lacks: &mut lacks,
                watch: &watch,
            };
            let result = stream::send(reading, &mut sent, &session);
            // a reader that failed because everything had gone did not see why
            watch()?;
            let result = result?;
            frozen.as_ref().map_or(Ok(()), freeze::Watched::held)?;
            if down {
                still(&datadir, &before, &tree::walk(&datadir, flavour, &names)?)?;
            }
            Ok((result, sent, lacks, frozen))
        })
        .await?;
        (self.sent, self.frozen, inbox.lacks) = (Some(sent), frozen, lacks);
        if down {
            self.guard_stands("through the copy")?;
        }
        let (passed, image) = result;
        Ok(Reply::Streamed { passed, image })
    }

    /// Starts the server unless it runs; proves by a query that it is back, with the runtime state it had.
    async fn start(&mut self, runtime: &Runtime) -> Outcome<bool> {
        let begin = async |this: &Self| {
            let (instance, key) = (this.open.instance.clone(), this.identity.key.clone());
            let up = blocking(move || server::ensure_started(&instance, &key)).await;
            let up = up.map_err(|p| p.with_kind(Kind::Human))?;
            for problem in up.failed {
                this.session.warn(format!("the source did not start at once: {problem}")).await;
            }
            Ok::<_, Problem>(up.started)
        };
        let mut started = begin(self).await?;
        let mut sql = match self.sql().await {
            Ok(sql) => sql,
            // it still greeted while it was stopping: now it is down, and is started
            Err(_) => {
                started |= begin(self).await?;
                self.sql().await?
            }
        };
        if self.variables.is_empty() {
            self.variables = sql.variables().await?;
        }
        let find = || server::find(&self.open.instance.datadir).map(|p| p.map(|p| p.identity()));
        let mut process = find()?;
        if process == Some(runtime.server) && !started {
            // it was perhaps told to stop by an agent that died, and greets still
            tokio::time::sleep(Duration::from_millis(1500)).await;
            if begin(self).await? {
                started = true;
                sql = self.sql().await?;
                process = find()?;
            }
        }
        if process == Some(runtime.server) && runtime.server.0 != 0 {
            // never stopped: only the drain has to be taken back
            drain::undrain(&mut sql, runtime).await?;
        } else if !self.restored(&mut sql, started, runtime).await? {
            for warning in runtime::restore(&mut sql, self.flavour()?, runtime).await? {
                self.session.warn(warning).await;
            }
            self.mark_restored();
        }
        sql.close().await;
        self.stopped = false;
        self.drained = false;
        Ok(started)
    }

    /// Waits for replication that ran before. What is still behind when the time is over, or the controller gone.
    async fn catch_up(&self, runtime: &Runtime, limit: Duration) -> Outcome<Option<String>> {
        if runtime.lag_s.is_empty() {
            return Ok(None);
        }
        let (mut sql, begun) = (self.sql().await?, std::time::Instant::now());
        loop {
            let behind = runtime::behind(&mut sql, self.flavour()?, runtime).await?;
            if behind.is_none() || begun.elapsed() >= limit || self.session.is_gone() {
                sql.close().await;
                return Ok(behind);
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    fn restored_file(&self) -> PathBuf {
        self.open.instance.state_dir.join("guard").join(format!("{}.restored", self.identity.key))
    }

    /// Whether the runtime state is to be left alone: this run has restored it already, or somebody else started the server
    /// so long ago that its state is theirs by now.
    async fn restored(&self, sql: &mut Sql, started: bool, runtime: &Runtime) -> Outcome<bool> {
        let run = self.run()?;
        if std::fs::read_to_string(self.restored_file()).is_ok_and(|done| done == run) {
            return Ok(true);
        }
        let age_s = chrono::Utc::now().timestamp() - runtime.recorded_s;
        let ours = started || (guard::has_fired(&self.open.instance, &self.identity.key, run) && age_s < FORGOTTEN_S);
        let theirs = !ours && sql.status("Uptime").await? > STALE_S;
        if theirs {
            self.session
                .warn("somebody started the server some time ago; the runtime state that this run had recorded was not restored")
                .await;
        }
        Ok(theirs)
    }

    /// For a later recovery of the same run; at worst the state is restored twice.
    fn mark_restored(&self) {
        let _ = std::fs::write(self.restored_file(), self.run().unwrap_or_default());
    }
}

/// The longest silence that a controller can have a guard wait for.
const LONGEST_LEASE_S: u64 = 600;

/// Seconds after which recorded runtime state is not forced on a server that somebody else has started.
const STALE_S: u64 = 15 * 60;

/// Seconds after which it is not forced on a server that the guard has started.
const FORGOTTEN_S: i64 = 6 * 3600;

/// How long the same run's earlier agent may take to put back what it had begun.
const PREDECESSOR: Duration = Duration::from_secs(120);

/// Takes the host's lock for a run. The same run may come back on another connection: it waits until its earlier agent has
/// ended, since both would put the same things back. On a source one that hangs does not stop it: the server must come up. On
/// a destination two at once could destroy a generation: there it is refused in the end.
pub async fn take_lock(
    role: Role,
    slot: &mut Option<Lock>,
    open: &Engaged,
    key: &str,
    holder: &Holder,
) -> Outcome<Reply> {
    if let Some(lock) = slot {
        lock.describe(holder)?;
        return Ok(Reply::Locked(None));
    }
    let path = lock::path(&open.instance.state_dir, key);
    let begun = std::time::Instant::now();
    loop {
        match lock::try_take(&path, holder)? {
            // its holder is just about to say who it is
            Taken::Theirs(None) if begun.elapsed() < Duration::from_secs(2) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Taken::Ours(lock) => {
                *slot = Some(lock);
                return Ok(Reply::Locked(None));
            }
            // this run's earlier agent, or what the host itself does at a boot: both end soon
            Taken::Theirs(Some(theirs)) if theirs.run == holder.run || theirs.run == super::repair::RUN => {
                let switching = u64::from(open.instance.stop_timeout_s) + u64::from(open.instance.start_timeout_s);
                match role {
                    Role::Source if begun.elapsed() >= PREDECESSOR => return Ok(Reply::Locked(None)),
                    Role::Destination if begun.elapsed() >= PREDECESSOR + Duration::from_secs(switching) => {
                        return Ok(Reply::Locked(Some(theirs)));
                    }
                    _ => {}
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Taken::Theirs(theirs) => {
                let unknown = || Holder { run: "unknown".into(), ..holder.clone() };
                return Ok(Reply::Locked(Some(theirs.unwrap_or_else(unknown))));
            }
        }
    }
}

/// Whether a datadir is as it was, and no server was started on it meanwhile.
fn still(datadir: &Path, before: &tree::Tree, after: &tree::Tree) -> Outcome<()> {
    stream::unchanged(before, after)?;
    match server::find(datadir)? {
        Some(_) => Err(Problem::failed("a server was started on the source's datadir while it was read")),
        None => Ok(()),
    }
}

/// The run and its runtime state, as this host has recorded them; None: there is no record, or none that is understood.
pub(super) fn kept(record: &Path) -> Option<(String, Runtime)> {
    std::fs::read(record).ok().and_then(|text| serde_json::from_slice(&text).ok())
}
