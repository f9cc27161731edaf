//! Typed calls to one machine's agent. Connects when first needed, connects anew after a loss, and lets the operator's wish
//! to stop through, except while something is put back. Knows one machine, not that there are two.

use std::time::Duration;

use crate::config::{Host, SecretRef};
use crate::delta::hash::{Hash, Totals};
use crate::instance::Target;
use crate::problem::{Kind, Outcome, Problem};
use crate::report::{Event, Reporter};
use crate::run::Cancel;
use secrecy::SecretString;

use crate::transport::connection::{self, Aside, Connection};
use crate::transport::{self, Secrets, Transport};
use crate::wire::facts::{Facts, Identity};
use crate::wire::message::{
    DestinationRequest, DrainOptions, Drained, Extra, FreezeWish, Holder, InstallOptions, Installed, Keep, Open,
    Origin, Passed, ReceiveOptions, Reply, Role, Room, Runtime, SeedOptions, Seeded, SourceRequest, StreamOptions,
    SwapOptions, VerifyOptions, WireSecret,
};

/// What every call needs to know of its run.
#[derive(Clone)]
pub struct Context {
    /// The run; None: only a look.
    pub run: Option<String>,
    /// Where notes and progress go.
    pub report: Reporter,
    /// The wish to stop.
    pub cancel: Cancel,
    /// The silence after which an agent counts as lost.
    pub silence: Duration,
    /// Top-level names the operator decided on.
    pub extra: Extra,
    /// The environment whose data is to come; None: nobody's.
    pub from: Option<String>,
    /// What was typed.
    pub typed: Typed,
}

/// Secrets that a person gave on the command line, for hosts that have none of their own in the configuration.
#[derive(Debug, Clone, Default)]
pub struct Typed {
    /// The password of SQL accounts.
    pub password: Option<SecretString>,
    /// What sudo is answered.
    pub sudo: Option<SecretString>,
}

/// One machine's agent in one role.
pub struct Remote {
    host: Host,
    role: Role,
    transport: Option<Box<dyn Transport>>,
    context: Context,
    connection: Option<Connection>,
    identity: Option<Identity>,
    // while something is put back: the wish to stop is not heard, and the host's lock is taken on every new connection
    undoing: Option<Holder>,
}

/// Requests and roles that belong together.
trait RoleRequest: serde::Serialize {
    fn open(open: Open) -> Self;
    fn lock(holder: Holder) -> Self;
}

impl RoleRequest for SourceRequest {
    fn open(open: Open) -> Self {
        Self::Open(Box::new(open))
    }
    fn lock(holder: Holder) -> Self {
        Self::Lock(holder)
    }
}

impl RoleRequest for DestinationRequest {
    fn open(open: Open) -> Self {
        Self::Open(Box::new(open))
    }
    fn lock(holder: Holder) -> Self {
        Self::Lock(holder)
    }
}

impl Remote {
    fn new(host: Host, role: Role, context: Context) -> Self {
        Self { host, role, transport: None, context, connection: None, identity: None, undoing: None }
    }

    /// Its name in the configuration.
    pub fn name(&self) -> String {
        self.host.id.to_string()
    }

    /// Its description.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// What was found on a host that nobody has described is what this run goes on with: while its server is down, nobody
    /// could find it again.
    fn pin(&mut self, facts: &Facts) {
        if self.host.target == Target::Only && !facts.installed {
            self.host.target = Target::Described(Box::new(facts.instance.clone()));
        }
    }

    /// Which machine and datadir it is; known after the first call.
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// From here on the wish to stop is not heard, and new connections take the host's lock.
    pub fn begin_undo(&mut self, holder: &Holder) {
        self.undoing = Some(holder.clone());
    }

    /// Closes the connection; the agent puts back what it had begun before this returns.
    pub async fn close(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.beating(connection.close()).await;
        }
    }

    /// Waits for something that is bounded but silent, and lives.
    async fn beating<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                result = &mut work => return result,
                () = tokio::time::sleep(Duration::from_secs(5)) => self.context.report.beat(),
            }
        }
    }

    /// Starts an agent and greets it, nothing more.
    async fn reach(&mut self) -> Outcome<Connection> {
        let (report, name) = (self.context.report.clone(), self.name());
        let asides = move |aside| match aside {
            Aside::Alive => report.beat(),
            Aside::Note(text) => report.note(&name, text),
            Aside::Warning(text) => report.warn(&name, text),
            Aside::Progress { done, total, what } => report.tell(Event::Progress { done, total, what }),
        };
        if self.transport.is_none() {
            let passphrase = self.secret(self.host.passphrase.as_ref(), "passphrase of the key").await?;
            let sudo = match (&self.host.sudo_password, &self.context.typed.sudo) {
                (Some(own), _) => self.secret(Some(own), "password for sudo").await?,
                (None, typed) => typed.clone().filter(|_| self.host.route.sudo),
            };
            self.transport = Some(transport::to(&self.host.route, Secrets { passphrase, sudo }));
        }
        let transport = self.transport.as_ref().ok_or_else(|| Problem::failed("no transport"))?;
        self.beating(connection::open(transport.as_ref(), self.role, self.context.silence, asides))
            .await
            .map_err(|p| p.during(format!("cannot open an agent on {}", self.host.id)))
    }

    /// Whether an agent can be started there at all; it is ended again.
    pub async fn can_be_reached(&mut self) -> Outcome<()> {
        self.reach().await?.close().await;
        Ok(())
    }

    async fn connect<Q: RoleRequest>(&mut self) -> Outcome<()> {
        if self.connection.as_ref().is_some_and(|c| c.lost().is_none()) {
            return Ok(());
        }
        if let (None, Some(lost)) = (&self.undoing, self.connection.as_ref().and_then(Connection::lost)) {
            // an agent has state, and the host's lock: the run cannot go on with another one, only put things back
            return Err(lost);
        }
        self.close().await;
        let connection = self.reach().await?;
        let password = match &self.host.password {
            Some(secret) => self.secret(Some(secret), "password").await?,
            None => self.context.typed.password.clone(),
        };
        let open = Open {
            host: self.name(),
            target: self.host.target.clone(),
            password: password.map(WireSecret),
            run: self.context.run.clone(),
            from: self.context.from.clone(),
        };
        match connection.call(Q::open(open)).await? {
            Reply::Opened(identity) => self.identity = Some(identity),
            other => return Err(unexpected(&other)),
        }
        if let Some(holder) = &self.undoing {
            match connection.call(Q::lock(holder.clone())).await? {
                Reply::Locked(None) => {}
                Reply::Locked(Some(other)) => return Err(locked(&self.host.id.to_string(), Some(&other))),
                other => return Err(unexpected(&other)),
            }
        }
        self.connection = Some(connection);
        Ok(())
    }

    /// A secret at the moment of its use.
    async fn secret(&self, reference: Option<&SecretRef>, what: &str) -> Outcome<Option<SecretString>> {
        let Some(secret) = reference.cloned() else { return Ok(None) };
        let resolved = tokio::task::spawn_blocking(move || secret.resolve()).await;
        let of = || Problem::new(Kind::Usage, format!("no {what} for {}", self.host.id));
        match resolved.map_err(|e| of().because(e))? {
            Ok(secret) => Ok(Some(secret)),
            // starting a server and exchanging folders need no password: try
            Err(error) if self.undoing.is_some() => {
                self.context.report.warn(self.name(), format!("going on without its {what}: {error}"));
                Ok(None)
            }
            Err(error) => Err(error.hint().into_iter().fold(of().because(&error), Problem::hint)),
        }
    }

    async fn ask<Q: RoleRequest>(&mut self, request: Q) -> Outcome<Reply> {
        let cancel = self.context.cancel.clone();
        let hear = self.undoing.is_none();
        if hear && cancel.is_cancelled() {
            return Err(Problem::cancelled());
        }
        let name = self.host.id.to_string();
        let work = async {
            self.connect::<Q>().await?;
            let connection = self.connection.as_ref().ok_or_else(|| Problem::new(Kind::Lost, "no connection"))?;
            connection.call(request).await
        };
        let result = tokio::select! {
            result = work => result,
            () = cancel.cancelled(), if hear => Err(Problem::cancelled()),
        };
        match result {
            Err(problem) if problem.kind == Kind::Cancelled => {
                // the agent ends what is under way and puts it back
                self.close().await;
                Err(problem)
            }
            Err(problem) => Err(problem.on(name)),
            Ok(reply) => Ok(reply),
        }
    }

    fn live(&self) -> Outcome<&Connection> {
        let name = self.host.id.to_string();
        self.connection.as_ref().ok_or_else(|| Problem::new(Kind::Lost, format!("{name}: no connection")))
    }

    async fn done<Q: RoleRequest>(&mut self, request: Q) -> Outcome<()> {
        match self.ask(request).await? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    async fn identify<Q: RoleRequest>(&mut self) -> Outcome<Identity> {
        let (cancel, hear) = (self.context.cancel.clone(), self.undoing.is_none());
        tokio::select! {
            connected = self.connect::<Q>() => connected?,
            () = cancel.cancelled(), if hear => return Err(Problem::cancelled()),
        }
        self.identity.clone().ok_or_else(|| Problem::failed("the agent did not say who it is"))
    }
}

/// Someone else has the lock.
pub fn locked(host: &str, holder: Option<&Holder>) -> Problem {
    let problem = Problem::new(Kind::Locked, format!("{host} is locked by another run"));
    match holder {
        Some(h) => problem.cause(format!(
            "run {} of {} on {} (process {}), since {}, in step {}",
            h.run, h.refresh, h.host, h.pid, h.since, h.step
        )),
        None => problem,
    }
    .hint("Wait for it (the default), or look at it with `mysql-refreshd history`.")
}

fn unexpected(reply: &Reply) -> Problem {
    Problem::failed(format!("the agent gave an answer that does not fit: {reply:?}"))
}

/// The source's agent.
pub struct SourceHost(pub Remote);

/// A destination's agent.
pub struct DestinationHost(pub Remote);

macro_rules! typed {
    ($remote:expr, $request:expr, $pattern:pat => $value:expr) => {
        match $remote.ask($request).await? {
            $pattern => Ok($value),
            other => Err(unexpected(&other)),
        }
    };
}

impl SourceHost {
    /// For one run.
    pub fn new(host: Host, context: Context) -> Self {
        Self(Remote::new(host, Role::Source, context))
    }
    /// Which machine and datadir.
    pub async fn identify(&mut self) -> Outcome<Identity> {
        self.0.identify::<SourceRequest>().await
    }
    /// Looks; changes nothing.
    pub async fn facts(&mut self) -> Outcome<Facts> {
        let extra = self.0.context.extra.clone();
        let facts = typed!(self.0, SourceRequest::Facts(extra), Reply::Facts(facts) => *facts)?;
        self.0.pin(&facts);
        Ok(facts)
    }
    /// Takes the host's lock; who has it otherwise.
    pub async fn lock(&mut self, holder: &Holder) -> Outcome<Option<Holder>> {
        typed!(self.0, SourceRequest::Lock(holder.clone()), Reply::Locked(other) => other)
    }
    /// What a restart would lose.
    pub async fn record_runtime(&mut self) -> Outcome<Runtime> {
        typed!(self.0, SourceRequest::RecordRuntime, Reply::Runtime(runtime) => runtime)
    }
    /// Drains.
    pub async fn drain(&mut self, options: DrainOptions) -> Outcome<Drained> {
        typed!(self.0, SourceRequest::Drain(options), Reply::Drained(drained) => drained)
    }
    /// Puts back what the drain set.
    pub async fn undrain(&mut self, runtime: &Runtime) -> Outcome<()> {
        self.0.done(SourceRequest::Undrain(runtime.clone())).await
    }
    /// Arms the guard.
    pub async fn arm_guard(&mut self, max_outage_s: u64, lease_s: u64) -> Outcome<()> {
        self.0.done(SourceRequest::ArmGuard { max_outage_s, lease_s }).await
    }
    /// Stops the server and proves it.
    pub async fn stop_server(&mut self) -> Outcome<()> {
        self.0.done(SourceRequest::StopServer).await
    }
    /// Reads and streams one pass into `connection`. Not cancelled by itself: the transfer is.
    pub async fn stream(&self, options: StreamOptions) -> Outcome<(Passed, Option<(Totals, Hash)>)> {
        match self.connection()?.call(SourceRequest::Stream(options)).await {
            Ok(Reply::Streamed { passed, image }) => Ok((passed, image)),
            Ok(other) => Err(unexpected(&other)),
            Err(problem) => Err(problem.on(self.0.name())),
        }
    }
    /// How the files of the stopped server would be frozen, or why they cannot be; in words.
    pub async fn can_freeze(&mut self, wish: FreezeWish) -> Outcome<Result<String, String>> {
        typed!(self.0, SourceRequest::CanFreeze(wish), Reply::Freezable(way) => way)
    }
    /// Freezes them.
    pub async fn freeze(&mut self) -> Outcome<()> {
        self.0.done(SourceRequest::Freeze(self.0.context.extra.clone())).await
    }
    /// Freezes the files of the running server at one moment. `wait`: how long to try to have its writes held. For how long they were.
    pub async fn snapshot(&mut self, wait: Duration) -> Outcome<Duration> {
        let request = SourceRequest::Snapshot { extra: self.0.context.extra.clone(), wait_ms: wait.as_millis() as u64 };
        typed!(self.0, request, Reply::Snapped(ms) => Duration::from_millis(ms))
    }
    /// Removes what was frozen.
    pub async fn thaw(&mut self) -> Outcome<()> {
        self.0.done(SourceRequest::Thaw).await
    }
    /// Starts the server unless it runs; proves that it is back.
    pub async fn start_server(&mut self, runtime: &Runtime) -> Outcome<(bool, Duration)> {
        let request = SourceRequest::StartServer(runtime.clone());
        typed!(self.0, request, Reply::Started { ours, up_ms } => (ours, Duration::from_millis(up_ms)))
    }
    /// Disarms the guard; why it had fired, if it had.
    pub async fn disarm_guard(&mut self) -> Outcome<Option<String>> {
        typed!(self.0, SourceRequest::DisarmGuard, Reply::Disarmed(fired) => fired)
    }
    /// Waits for replication that ran before; what is still behind after `limit`.
    pub async fn catch_up(&mut self, runtime: &Runtime, limit: Duration) -> Outcome<Option<String>> {
        let request = SourceRequest::CatchUp { runtime: runtime.clone(), limit_s: limit.as_secs() };
        typed!(self.0, request, Reply::CaughtUp(behind) => behind)
    }
    /// The connection, for streams.
    pub fn connection(&self) -> Outcome<&Connection> {
        self.0.live()
    }
}

impl DestinationHost {
    /// For one run.
    pub fn new(host: Host, context: Context) -> Self {
        Self(Remote::new(host, Role::Destination, context))
    }
    /// Which machine and datadir.
    pub async fn identify(&mut self) -> Outcome<Identity> {
        self.0.identify::<DestinationRequest>().await
    }
    /// Looks; changes nothing.
    pub async fn facts(&mut self) -> Outcome<Facts> {
        let extra = self.0.context.extra.clone();
        let facts = typed!(self.0, DestinationRequest::Facts(extra), Reply::Facts(facts) => *facts)?;
        self.0.pin(&facts);
        Ok(facts)
    }
    /// Takes the host's lock; who has it otherwise.
    pub async fn lock(&mut self, holder: &Holder) -> Outcome<Option<Holder>> {
        typed!(self.0, DestinationRequest::Lock(holder.clone()), Reply::Locked(other) => other)
    }
    /// An empty stage.
    pub async fn prepare_stage(&mut self) -> Outcome<()> {
        self.0.done(DestinationRequest::PrepareStage).await
    }
    /// The previous generation is given up, if it may go before the new one comes.
    pub async fn make_room(&mut self, room: Room) -> Outcome<()> {
        self.0.done(DestinationRequest::MakeRoom(room)).await
    }
    /// The connection, for streams.
    pub fn connection(&self) -> Outcome<&Connection> {
        self.0.live()
    }
    /// Brings the current generation into the stage, as a basis.
    pub async fn seed(&mut self, options: SeedOptions) -> Outcome<Seeded> {
        let request = DestinationRequest::Seed(options);
        typed!(self.0, request, Reply::Seeded(seeded) => seeded)
    }
    /// Receives the pass that the transfer feeds over `connection`, and proves it; after a cold one, the image. Not cancelled by
    /// itself: the transfer is.
    pub async fn receive(&self, options: ReceiveOptions) -> Outcome<Option<(Totals, Hash)>> {
        match self.connection()?.call(DestinationRequest::Receive(options)).await {
            Ok(Reply::Image { totals, image }) => Ok(Some((totals, image))),
            Ok(Reply::Done) => Ok(None),
            Ok(other) => Err(unexpected(&other)),
            Err(problem) => Err(problem.on(self.0.name())),
        }
    }
    /// Writes the stage out.
    pub async fn sync_stage(&mut self) -> Outcome<()> {
        self.0.done(DestinationRequest::SyncStage).await
    }
    /// Another agent goes on with the stage that an earlier one of this run has left whole: what the isolated start did, if that
    /// was over.
    pub async fn resume(&mut self, holder: &Holder) -> Outcome<Option<Installed>> {
        self.0.close().await;
        if let Some(other) = self.lock(holder).await? {
            return Err(locked(&self.0.name(), Some(&other)));
        }
        self.facts().await?;
        typed!(self.0, DestinationRequest::Resume, Reply::Resumed(installed) => installed)
    }
    /// The isolated first start.
    pub async fn install(&mut self, options: InstallOptions) -> Outcome<Installed> {
        typed!(self.0, DestinationRequest::Install(Box::new(options)), Reply::Installed(installed) => installed)
    }
    /// Swaps.
    pub async fn swap(&mut self, options: SwapOptions) -> Outcome<()> {
        self.0.done(DestinationRequest::Swap(Box::new(options))).await
    }
    /// Verifies what the server serves.
    pub async fn verify(&mut self, options: VerifyOptions) -> Outcome<()> {
        self.0.done(DestinationRequest::Verify(Box::new(options))).await
    }
    /// The new generation stays.
    pub async fn commit(&mut self, keep: Keep) -> Outcome<()> {
        self.0.done(DestinationRequest::Commit(keep)).await
    }
    /// The old generation serves again; true: the swap had been committed and stays.
    pub async fn undo_swap(&mut self) -> Outcome<bool> {
        typed!(self.0, DestinationRequest::UndoSwap, Reply::Undone(committed) => committed)
    }
    /// The stage goes.
    pub async fn discard_stage(&mut self) -> Outcome<()> {
        self.0.done(DestinationRequest::DiscardStage).await
    }
    /// Current and previous generation change places.
    pub async fn rollback(&mut self) -> Outcome<Option<Origin>> {
        typed!(self.0, DestinationRequest::Rollback, Reply::RolledBack(origin) => origin)
    }
}
