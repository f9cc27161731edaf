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
use super::runtime::counts;
use super::session::Session;
use super::sql::Sql;
use super::stage::{Work, make_dir, remove};
use super::{server, tree};
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
    /// Longest time for start and stop.
    pub limit: Duration,
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
    let mut server = start(&plan, &place, &password)?;
    failpoint::reach("install:started").await?;
    let result = async {
        let mut sql = connect(&plan, &place, &mut server, &password, session).await?;
        let _ = std::fs::remove_file(place.join("init.sql"));
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

fn start(plan: &Plan<'_>, place: &Path, password: &str) -> Outcome<Server> {
    let owner = plan.work.owner()?;
    let init = place.join("init.sql");
    let mut text = isolated::init_statements(plan.flavour, ADMIN, &quote_string(password)).join(";\n");
    text.push_str(";\n");
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&init)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .explain(|| format!("cannot write {}", init.display()))?;
    let temporary = place.join("tmp");
    make_dir(&temporary)?;
    // the folder changes hands last: nobody else writes here before
    for path in [&init, &temporary, &place.to_owned()] {
        chown(path, owner)?;
    }
    // as the server's account from the first instruction; only a datadir that is root's is served by root
    let drop_rights = is_root() && owner.uid != 0;
    let user = (is_root() && owner.uid == 0).then_some("root");
    let arguments = isolated::arguments(&isolated::Isolated {
        flavour: plan.flavour,
        datadir: &plan.work.stage(),
        socket: &place.join("s.sock"),
        pid_file: &place.join("server.pid"),
        log_error: &place.join("error.log"),
        init_file: &init,
        tmpdir: &temporary,
        user,
        layout: &plan.options.layout,
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

async fn connect(
    plan: &Plan<'_>,
    place: &Path,
    server: &mut Server,
    password: &str,
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
                Err(problem) if begun.elapsed() > plan.limit.min(Duration::from_secs(15)) => return Err(problem),
                Err(_) => {}
            }
        }
        if begun.elapsed() > plan.limit {
            return Err(Problem::failed(format!(
                "the isolated server did not answer within {} s",
                plan.limit.as_secs()
            )));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// All changes to the copy; the accounts come last, as the session's own account goes with them.
async fn change(sql: &mut Sql, plan: &Plan<'_>, session: &Session) -> Outcome<Installed> {
    let mut done = Installed { xa: roll_back_xa(sql, plan).await?, ..Installed::default() };
    done.defused = defuse(sql).await?;
    if plan.options.disable_events {
        // not ALTER EVENT, which would make its own account the definer
        done.events = sql.number("SELECT COUNT(*) FROM mysql.event WHERE status <> 'DISABLED'").await?;
        sql.execute("UPDATE mysql.event SET status = 'DISABLED' WHERE status <> 'DISABLED'").await?;
    }
    done.counts = counts(sql).await?;
    failpoint::reach("install:accounts").await?;
    session.check()?;
    match &plan.accounts {
        Some(accounts) => {
            accounts.restore(sql).await?;
            done.accounts = Some(accounts.number());
        }
        None => sql.execute(&format!("DROP USER {ADMIN}@localhost")).await?,
    }
    Ok(done)
}

/// Prepared XA transactions survive a clean stop and a copy, and hold their row locks for ever.
async fn roll_back_xa(sql: &mut Sql, plan: &Plan<'_>) -> Outcome<u64> {
    let prepared = sql.named("XA RECOVER FORMAT='SQL'").await?;
    if !prepared.is_empty() && !plan.options.rollback_xa {
        return Err(Problem::failed(format!("the copy holds {} prepared XA transaction(s)", prepared.len()))
            .hint("Set `xa_prepared = \"rollback\"` to roll them back in the copy; the source keeps them."));
    }
    for row in &prepared {
        let id = row.get("data").map_or("", String::as_str);
        sql.execute(&format!("XA ROLLBACK {id}")).await?;
    }
    Ok(prepared.len() as u64)
}

/// Removes everything that would make the copy talk to production. MariaDB only, as the caller's preflight guarantees.
async fn defuse(sql: &mut Sql) -> Outcome<u64> {
    let connections = sql.named("SHOW ALL SLAVES STATUS").await?;
    sql.execute("STOP ALL SLAVES").await?;
    for row in &connections {
        let name = row.get("Connection_name").map_or("", String::as_str);
        sql.execute(&format!("RESET SLAVE {} ALL", quote_string(name))).await?;
    }
    sql.execute("SET GLOBAL gtid_slave_pos = ''").await?;
    let servers = sql.number("SELECT COUNT(*) FROM mysql.servers").await?;
    sql.execute("DELETE FROM mysql.servers").await?;
    Ok(connections.len() as u64 + servers)
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
    let log = server::tail(&place.join("error.log"), 100_000);
    if let Some(problem) = errorlog::problems(plan.flavour, &log).first() {
        return Err(Problem::failed("the isolated start wrote an error into its log").cause(problem.clone()));
    }
    let names =
        Names::from_variables(&plan.work.stage(), plan.variables, &plan.options.extra.copy, &plan.options.extra.drop);
    let tree = tree::walk(&plan.work.stage(), plan.flavour, &names)?;
    match tree.unclean.first() {
        Some(reason) => Err(Problem::failed("the copy was not cleanly stopped").cause(reason.clone())),
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
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
