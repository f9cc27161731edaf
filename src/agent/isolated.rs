//! The isolated first start: a server on the staged datadir that reads no option file, has no network, runs no events and
//! replicates from nobody. Everything that names production dies here, before anyone can reach the copy.
//!
//! Touches the stage only. What fails here leaves the old generation serving, untouched.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use secrecy::SecretString;

use super::accounts::Accounts;
use super::receive::{chown, is_root};
use super::session::Session;
use super::sql::Sql;
use super::stage::{Work, make_dir, remove};
use super::{defuse, runtime, server, tree, upgrade};
use crate::failpoint;
use crate::mysql::files::Names;
use crate::mysql::identifier::quote_string;
use crate::mysql::{Flavour, errorlog, isolated};
use crate::problem::{Explain, Outcome, Problem};
use crate::wire::message::{InstallOptions, Installed};

/// The account that exists only in the copy and only until its accounts are restored.
const ADMIN: &str = "refreshd_install";

/// What the start needs.
pub struct Plan<'a> {
    /// The work folder.
    pub work: &'a Work,
    /// The server's executable: the one that will serve.
    pub executable: PathBuf,
    /// Its flavour.
    pub flavour: Flavour,
    /// Its variables, for file names.
    pub variables: &'a BTreeMap<String, String>,
    /// What to do.
    pub options: &'a InstallOptions,
    /// The destination's accounts; None: leave the source's.
    pub accounts: Option<Accounts>,
    /// The vendor's upgrade tool, where there is one.
    pub upgrade_tool: Option<PathBuf>,
    /// Longest time for start and stop.
    pub limit: Duration,
}

impl Plan<'_> {
    fn upgrade_tool(&self) -> Outcome<&Path> {
        self.upgrade_tool.as_deref().ok_or_else(|| {
            Problem::failed("the copy is of an older series, and this host has no mariadb-upgrade beside its server")
        })
    }
}

/// A running isolated server. Killed when dropped: its datadir is then thrown away.
struct Server {
    child: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Starts, changes, checks and cleanly stops the copy.
pub async fn install(plan: Plan<'_>, session: &Session) -> Outcome<Installed> {
    let place = plan.work.isolated();
    remove(&place)?;
    make_dir(&place)?;
    let password = random_password()?;
    if plan.options.recover {
        recover(&plan, &place, &password, session).await.map_err(|problem| with_log(problem, &place))?;
        remove(&place)?;
        make_dir(&place)?;
    }
    let mut server = start(&plan, &place, &password, isolated::POOL)?;
    failpoint::reach("install:started").await?;
    let result = async {
        let mut sql = connect(&place, &mut server, &password, plan.limit, session).await?;
        let _ = std::fs::remove_file(place.join("init.sql"));
        if plan.options.upgrade && plan.flavour == Flavour::MariaDb {
            upgrade::run(plan.upgrade_tool()?, &place, plan.work.owner()?, session).await?;
        }
        change(&mut sql, &plan, session).await
    }
    .await
    .map_err(|problem| with_log(problem, &place))?;
    failpoint::reach("install:changed").await?;
    stop(&mut server, plan.limit, session).await.map_err(|problem| with_log(problem, &place))?;
    check_stopped(&plan, &place)?;
    remove(&place)?;
    Ok(result)
}

/// A start for the recovery alone, and a clean stop: from there on the copy is like one of a stopped server, and held to the same rules.
async fn recover(plan: &Plan<'_>, place: &Path, password: &str, session: &Session) -> Outcome<()> {
    session.note("the copy is of a running server and recovers as from a crash").await;
    let mut server = start(plan, place, password, recovery_pool())?;
    failpoint::reach("install:recovering").await?;
    let limit = plan.limit.max(RECOVERY);
    connect(place, &mut server, password, limit, session).await?.close().await;
    stop(&mut server, limit, session).await?;
    check_log(place, |log| errorlog::problems_of_recovery(plan.flavour, log))
}

/// How long a recovery may take at least: it depends on production's redo log, not on how long this host's server takes to start.
const RECOVERY: Duration = Duration::from_secs(3600);

/// Bytes of buffer pool for a recovery: a quarter of the memory that is available, within limits.
fn recovery_pool() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.trim().split(' ').next()?.parse().ok());
    (kib.unwrap_or(0) * 1024 / 4_u64).clamp(isolated::POOL, 1 << 30)
}

fn start(plan: &Plan<'_>, place: &Path, password: &str, pool: u64) -> Outcome<Server> {
    let owner = plan.work.owner()?;
    let socket = place.join("s.sock");
    let init = place.join("init.sql");
    let mut text = isolated::init_statements(plan.flavour, ADMIN, &quote_string(password)).join(";\n");
    text.push_str(";\n");
    write_private(&init, &text)?;
    let options = place.join(upgrade::OPTIONS);
    write_private(&options, &upgrade::options(&socket, ADMIN, password))?;
    let temporary = place.join("tmp");
    make_dir(&temporary)?;
    // the folder changes hands last: nobody else writes here before, and root writes nothing here afterwards
    for path in [&init, &options, &temporary, &place.to_owned()] {
        chown(path, owner)?;
    }
    // as the server's account from the first instruction; only a datadir that is root's is served by root
    let drop_rights = is_root() && owner.uid != 0;
    let user = (is_root() && owner.uid == 0).then_some("root");
    let arguments = isolated::arguments(&isolated::Isolated {
        flavour: plan.flavour,
        datadir: &plan.work.stage(),
        socket: &socket,
        pid_file: &place.join("server.pid"),
        log_error: &place.join("error.log"),
        init_file: &init,
        tmpdir: &temporary,
        user,
        layout: &plan.options.layout,
        pool,
    });
    let stderr_file = stderr_of(place);
    let _ = std::fs::remove_file(&stderr_file);
    let stderr = std::fs::File::create(stderr_file).explain(|| "cannot create a log for the isolated start")?;
    let mut command = Command::new(&plan.executable);
    if drop_rights {
        command.uid(owner.uid).gid(owner.gid);
    }
    let child = command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .process_group(0)
        .spawn()
        .explain(|| format!("cannot execute {}", plan.executable.display()))?;
    Ok(Server { child })
}

fn write_private(path: &Path, text: &str) -> Outcome<()> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .explain(|| format!("cannot write {}", path.display()))
}

async fn connect(
    place: &Path,
    server: &mut Server,
    password: &str,
    limit: Duration,
    session: &Session,
) -> Outcome<Sql> {
    let begun = Instant::now();
    let password = SecretString::from(password.to_owned());
    loop {
        session.check()?;
        if let Ok(Some(status)) = server.child.try_wait() {
            return Err(Problem::failed(format!("the isolated server ended at its start ({status})")));
        }
        if server::greets(&place.join("s.sock")) {
            match Sql::at(&place.join("s.sock"), ADMIN, Some(&password)).await {
                Ok(sql) => return Ok(sql),
                // the greeting can be there before the init file has run
                Err(problem) if begun.elapsed() > limit.min(Duration::from_secs(15)) => return Err(problem),
                Err(_) => {}
            }
        }
        if begun.elapsed() > limit {
            return Err(Problem::failed(format!("the isolated server did not answer within {} s", limit.as_secs())));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// All changes to the copy; the accounts come last, as the session's own account goes with them.
async fn change(sql: &mut Sql, plan: &Plan<'_>, session: &Session) -> Outcome<Installed> {
    let version = runtime::version(&sql.variables().await?)?;
    let xa = defuse::roll_back_xa(sql, version.flavour, plan.options.rollback_xa).await?;
    let mut done = Installed { xa, ..Installed::default() };
    done.defused = defuse::disconnect(sql, &version).await?;
    if plan.options.disable_events {
        done.events = defuse::disable_events(sql, version.flavour).await?;
    }
    done.counts = runtime::counts(sql, version.flavour).await?;
    failpoint::reach("install:accounts").await?;
    session.check()?;
    match &plan.accounts {
        Some(accounts) => {
            accounts.restore(sql).await?;
            done.accounts = Some(accounts.number());
        }
        None => sql.execute(&format!("DROP USER {ADMIN}@localhost")).await?,
    }
    if version.flavour.is_mysql() && sql.number("SELECT @@GLOBAL.gtid_executed <> ''").await? > 0 {
        return Err(Problem::failed("the copy still counts GTIDs as executed"));
    }
    if plan.options.upgrade {
        // the next start finds nothing of the older version left to do; only this server's time is spent
        sql.execute("SET GLOBAL innodb_fast_shutdown = 0").await?;
    }
    Ok(done)
}

async fn stop(server: &mut Server, limit: Duration, session: &Session) -> Outcome<()> {
    let pid = rustix::process::Pid::from_child(&server.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).explain(|| "cannot stop the isolated server")?;
    let begun = Instant::now();
    loop {
        session.check()?;
        match server.child.try_wait().explain(|| "cannot wait for the isolated server")? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => {
                return Err(Problem::failed(format!("the isolated server did not stop cleanly ({status})")));
            }
            None if begun.elapsed() > limit => {
                return Err(Problem::failed(format!("the isolated server did not stop within {} s", limit.as_secs())));
            }
            None => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// The copy must be as cleanly stopped as the source was, and its log without complaint.
fn check_stopped(plan: &Plan<'_>, place: &Path) -> Outcome<()> {
    check_log(place, |log| errorlog::problems(plan.flavour, log))?;
    let names =
        Names::from_variables(&plan.work.stage(), plan.variables, &plan.options.extra.copy, &plan.options.extra.drop);
    let tree = tree::walk(&plan.work.stage(), plan.flavour, &names)?;
    match tree.unclean.first() {
        Some(reason) => Err(Problem::failed("the copy was not cleanly stopped").cause(reason.clone())),
        None => Ok(()),
    }
}

fn check_log(place: &Path, problems: impl Fn(&str) -> Vec<String>) -> Outcome<()> {
    // all of it: what it says first may be what matters
    let log = std::fs::read(place.join("error.log")).explain(|| "cannot read the isolated server's log")?;
    let log = String::from_utf8_lossy(&log);
    match problems(&log).first() {
        Some(problem) => Err(Problem::failed("the isolated start wrote an error into its log").cause(problem.clone())),
        None => Ok(()),
    }
}

/// What the server prints before it has its log; in the work folder, which its account cannot write.
fn stderr_of(place: &Path) -> PathBuf {
    place.with_extension("stderr")
}

fn with_log(problem: Problem, place: &Path) -> Problem {
    let log = server::tail(&place.join("error.log"), 8);
    let said = if log.is_empty() { server::tail(&stderr_of(place), 8) } else { log };
    if said.is_empty() { problem } else { problem.cause(format!("its log ends with:\n{said}")) }
}

fn random_password() -> Outcome<String> {
    let mut bytes = [0u8; 24];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .explain(|| "cannot read /dev/urandom")?;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    // what a password check that travels with MySQL's copy wants to see (verified: validate_password's rows do travel)
    Ok(format!("{hex}-Aa1"))
}
