//! Looking at a host without changing it: who it is, what its server says, what its datadir and filesystem hold.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use secrecy::SecretString;

use super::engage::Engaged;
use super::receive::is_root;
use super::server::{self, Process};
use super::sql::Sql;
use super::stage::{self, Work};
use super::{runtime, swap, tree, upgrade};
use crate::instance::{Instance, Service};
use crate::mysql::files::Names;
use crate::mysql::{Flavour, xa};
use crate::problem::{Explain, Outcome, Problem};
use crate::wire::facts::{DiskFacts, Facts, Identity, ServerFacts};
use crate::wire::message::{Extra, Role};

/// Longest path of a unix socket, the final zero not counted.
const MAX_SOCKET: usize = 107;

/// Who this host and this instance are.
pub fn identity(instance: &Instance) -> Outcome<Identity> {
    let work = Work::of(&instance.datadir)?;
    // a datadir that an interrupted exchange has left without its name has no inode now
    let inode = std::fs::metadata(&work.datadir).map_or((0, 0), |meta| (meta.dev(), meta.ino()));
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
    let id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default().trim().to_owned();
    let machine = if id.is_empty() { format!("host {hostname}") } else { id };
    let mut hasher = blake3::Hasher::new();
    hasher.update(machine.as_bytes()).update(&[0]).update(work.datadir.as_os_str().as_bytes());
    let key = hasher.finalize().to_hex()[..16].to_owned();
    let build = env!("CARGO_PKG_VERSION").to_owned();
    Ok(Identity { machine, hostname, datadir: work.datadir, inode, key, build })
}

/// Everything preflight needs.
pub async fn gather(engaged: &Engaged, role: Role, extra: &Extra) -> Outcome<Facts> {
    let (instance, password) = (&engaged.instance, engaged.password.as_ref());
    let identity = identity(instance)?;
    let work = Work::of(&instance.datadir)?;
    let (server, server_problem) = match look_at_server(instance, password).await {
        Ok(server) => (Some(server), None),
        Err(problem) => (None, Some(problem.to_string())),
    };
    let none = BTreeMap::new();
    let variables = server.as_ref().map_or(&none, |s| &s.variables);
    let flavour = runtime::version(variables).map_or(Flavour::MariaDb, |v| v.flavour);
    let names = Names::from_variables(&work.datadir, variables, &extra.copy, &extra.drop);
    let tree = tree::walk(&work.datadir, flavour, &names)?.facts;
    let socket = work.isolated().join("s.sock");
    Ok(Facts {
        identity,
        instance: instance.clone(),
        installed: !engaged.authority.is_trusting(),
        lets_in: engaged.bounds.map_or((true, true), |bounds| (bounds.source_accounts, bounds.keep_events)),
        no_consent: if role == Role::Destination { engaged.consent().err() } else { None },
        server,
        server_problem,
        tree,
        disk: disk(instance, &work)?,
        socket_path_fits: socket.as_os_str().len() <= MAX_SOCKET,
        not_at_boot: match role {
            Role::Source => {
                let service = instance.service.clone();
                super::session::blocking(move || Ok(not_at_boot(&service))).await?
            }
            Role::Destination => None,
        },
    })
}

/// A server that a run has stopped must come up when its host boots in the middle of the run: by its own unit, or by this program's
/// repair at boot.
fn not_at_boot(service: &Service) -> Option<String> {
    let Service::Systemd { unit } = service else { return None };
    let is_enabled = |unit: &str| {
        let output = Command::new("systemctl").args(["is-enabled", unit]).stdin(Stdio::null()).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    // systemctl(1), is-enabled: these alone are certain not to be started by a boot
    let never = ["disabled", "enabled-runtime", "linked", "linked-runtime", "masked", "masked-runtime"];
    let state = is_enabled(unit).filter(|state| never.contains(&state.as_str()))?;
    let repaired = is_enabled("mysql-refreshd-repair.service").is_some_and(|state| state == "enabled");
    (!repaired).then(|| format!("the unit {unit} is {state}"))
}

async fn look_at_server(instance: &Instance, password: Option<&SecretString>) -> Outcome<ServerFacts> {
    let process = server::find(&instance.datadir)?.ok_or_else(|| Problem::refused("no server runs on this datadir"))?;
    let mut sql = Sql::open(instance, password).await?;
    let variables = sql.variables().await?;
    let serves = variables.get("datadir").map(PathBuf::from).unwrap_or_default();
    if serves.canonicalize().ok() != Some(Work::of(&instance.datadir)?.datadir) {
        return Err(Problem::refused(format!(
            "the server on {} serves {}, not {}",
            instance.socket.display(),
            serves.display(),
            instance.datadir.display()
        )));
    }
    let flavour = runtime::version(&variables)?.flavour;
    let facts = ask(&mut sql, flavour, instance, &process, variables).await;
    sql.close().await;
    facts
}

async fn ask(
    sql: &mut Sql,
    flavour: Flavour,
    instance: &Instance,
    process: &Process,
    variables: BTreeMap<String, String>,
) -> Outcome<ServerFacts> {
    let (executable, executable_replaced) = server::executable(process.pid).unwrap_or_default();
    let executable = match &instance.service {
        Service::Process { server, .. } => server.clone(),
        _ => executable,
    };
    let maria = flavour == Flavour::MariaDb;
    let either = |a: &'static str, b: &'static str| if maria { a } else { b };
    let mut plugins =
        sql.column("SELECT PLUGIN_NAME FROM information_schema.PLUGINS WHERE PLUGIN_STATUS = 'ACTIVE'").await?;
    let mut persisted = BTreeMap::new();
    if !maria {
        plugins.extend(sql.column("SELECT component_urn FROM mysql.component").await?);
        persisted =
            sql.pairs("SELECT VARIABLE_NAME, VARIABLE_VALUE FROM performance_schema.persisted_variables").await?;
    }
    let basedir = variables.get("basedir").map_or("", String::as_str);
    Ok(ServerFacts {
        pid: process.pid,
        upgrade_tool: upgrade::tool(&executable, basedir).is_some(),
        persisted,
        settings_problem: validate(instance, flavour, &executable).await,
        executable,
        executable_replaced,
        replicates_from: runtime::replication(sql, flavour).await?.into_iter().map(|(name, ..)| name).collect(),
        replicas: replicas(sql).await?,
        prepared_xa: prepared_xa(sql, flavour).await?,
        memory_tables: sql
            .column("SELECT CONCAT(TABLE_SCHEMA, '.', TABLE_NAME) FROM information_schema.TABLES WHERE ENGINE = 'MEMORY' AND TABLE_TYPE = 'BASE TABLE' AND TABLE_SCHEMA NOT IN ('information_schema','performance_schema')")
            .await?,
        outside_files: outside_files(sql, maria, &variables).await?,
        encrypted: encrypted(sql, maria).await?,
        plugins,
        remote_tables: sql
            .column("SELECT CONCAT(TABLE_SCHEMA, '.', TABLE_NAME, ' (', ENGINE, ')') FROM information_schema.TABLES WHERE ENGINE IN ('FEDERATED','CONNECT','SPIDER','S3') UNION SELECT CONCAT('server ', Server_name) FROM mysql.servers")
            .await?,
        accounts: sql.number(either("SELECT COUNT(*) FROM mysql.global_priv WHERE User NOT IN ('mariadb.sys','PUBLIC')", "SELECT COUNT(*) FROM mysql.user WHERE User NOT LIKE 'mysql.%'")).await?,
        enabled_events: sql
            .number(either(
                "SELECT COUNT(*) FROM mysql.event WHERE status = 'ENABLED'",
                "SELECT COUNT(*) FROM information_schema.EVENTS WHERE STATUS = 'ENABLED'",
            )).await?,
        variables,
    })
}

/// Who reads this server's binary log. Not from information_schema.PROCESSLIST, which MySQL is about to drop.
async fn replicas(sql: &mut Sql) -> Outcome<Vec<String>> {
    let text = |row: &BTreeMap<String, String>, name: &str| row.get(name).cloned().unwrap_or_default();
    let all = sql.named("SHOW PROCESSLIST").await?;
    let dumps = all.iter().filter(|row| text(row, "Command").starts_with("Binlog Dump"));
    Ok(dumps.map(|row| format!("{}@{}", text(row, "User"), text(row, "Host"))).collect())
}

async fn prepared_xa(sql: &mut Sql, flavour: Flavour) -> Outcome<Vec<String>> {
    let listed = sql.named(xa::list(flavour)).await?;
    Ok(listed.iter().map(|row| xa::id(flavour, row).unwrap_or_else(|| format!("{row:?}"))).collect())
}

/// Tablespaces whose file is outside. MariaDB: names in INNODB_SYS_TABLESPACES; MySQL: information_schema.FILES, the only
/// detector there (verified on 9.7.4).
async fn outside_files(sql: &mut Sql, maria: bool, variables: &BTreeMap<String, String>) -> Outcome<Vec<String>> {
    if !maria {
        return sql.column("SELECT FILE_NAME FROM information_schema.FILES WHERE FILE_NAME LIKE '/%'").await;
    }
    let datadir = variables.get("datadir").map_or("/", |d| d.trim_end_matches('/'));
    let files =
        sql.column("SELECT FILENAME FROM information_schema.INNODB_SYS_TABLESPACES WHERE FILENAME LIKE '/%'").await?;
    Ok(files.into_iter().filter(|file| !file.starts_with(&format!("{datadir}/"))).collect())
}

async fn encrypted(sql: &mut Sql, maria: bool) -> Outcome<Vec<String>> {
    if maria {
        return sql
            .column("SELECT NAME FROM information_schema.INNODB_TABLESPACES_ENCRYPTION WHERE ENCRYPTION_SCHEME <> 0")
            .await;
    }
    sql.column("SELECT NAME FROM information_schema.INNODB_TABLESPACES WHERE ENCRYPTION = 'Y'").await
}

/// Whether a start would understand the settings on disk: MySQL has an option for that (its `--help` passes over what it
/// does not know, verified on 9.7.4); MariaDB's `--help --verbose` reads them all and ends. An empty datadir keeps both away
/// from the live one (MariaDB would read mysql.plugin there).
async fn validate(instance: &Instance, flavour: Flavour, executable: &Path) -> Option<String> {
    let executable = executable.to_owned();
    let file = match &instance.service {
        Service::Process { defaults_file, .. } => Some(defaults_file.clone()),
        _ => None,
    };
    let datadir = instance.datadir.clone();
    tokio::task::spawn_blocking(move || validate_blocking(&executable, flavour, file, &datadir)).await.unwrap_or(None)
}

fn validate_blocking(executable: &Path, flavour: Flavour, file: Option<PathBuf>, datadir: &Path) -> Option<String> {
    // nobody has such a folder, and nobody but root could make it
    let empty = Path::new("/nonexistent/mysql-refreshd");
    let mut command = Command::new(executable);
    if is_root() {
        // as the account that runs it anyway: a program of that account's gets no more than it has
        let Ok(owner) = std::fs::metadata(datadir) else { return Some("its datadir cannot be looked at".to_owned()) };
        if owner.uid() != 0 {
            command.uid(owner.uid()).gid(owner.gid());
        } else if !upgrade::root_only(executable) {
            return Some(format!("{} is not root's alone, and would be run by root", executable.display()));
        }
    }
    if let Some(file) = file {
        let mut option = std::ffi::OsString::from("--defaults-file=");
        option.push(file);
        command.arg(option);
    }
    let mut at = std::ffi::OsString::from("--datadir=");
    at.push(empty);
    let ask: &[&str] = if flavour.is_mysql() { &["--validate-config"] } else { &["--help", "--verbose"] };
    let output = command.arg(at).args(ask).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => None,
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let line =
                said.lines().rev().find(|l| l.contains("ERROR")).or(said.lines().last()).unwrap_or("it said nothing");
            Some(line.trim().to_owned())
        }
        Err(error) => Some(format!("{} cannot be executed: {error}", executable.display())),
    }
}

fn disk(instance: &Instance, work: &Work) -> Outcome<DiskFacts> {
    // where the work folder is, or will be
    let parent = if work.inside { &work.datadir } else { work.datadir.parent().unwrap_or(Path::new("/")) };
    let stat = rustix::fs::statvfs(parent).explain(|| format!("cannot ask the filesystem of {}", parent.display()))?;
    let unguarded = work.guarded().err();
    let place = if work.folder.is_dir() { &work.folder } else { parent };
    let writable =
        |folder: &Path| rustix::fs::access(folder, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).is_ok();
    Ok(DiskFacts {
        free: stat.f_bavail * stat.f_frsize,
        total: stat.f_blocks * stat.f_frsize,
        free_inodes: (stat.f_files > 0).then_some(stat.f_favail),
        unguarded,
        immovable: if work.inside { immovable(&work.datadir) } else { Vec::new() },
        lower_layer: !work.inside && in_lower_layer(&work.datadir),
        writable: writable(place) && writable(parent),
        previous_bytes: tree::bytes_below(&work.previous()),
        stage_bytes: tree::bytes_below(&work.stage()),
        interrupted_swap: swap::journal(work)?.map(|journal| journal.run),
        dropin_writable: instance.dropin.as_ref().map(|path| path.parent().is_some_and(writable)),
    })
}

/// Top-level entries of a datadir that no rename can move: mount points themselves.
fn immovable(datadir: &Path) -> Vec<String> {
    let device = std::fs::metadata(datadir).map(|meta| meta.dev()).ok();
    let entries = std::fs::read_dir(datadir).into_iter().flatten().flatten();
    let elsewhere = entries
        .filter(|entry| entry.metadata().ok().map(|meta| meta.dev()) != device || stage::is_mount_point(&entry.path()));
    elsewhere.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Whether a folder on overlayfs has a part in a lower layer, as one that came with a container's image: rename answers EXDEV
/// then. Such a folder, and on overlayfs only such a one, has one link (verified; kernel, fs/overlayfs/inode.c).
fn in_lower_layer(folder: &Path) -> bool {
    const OVERLAYFS: u64 = 0x794c_7630;
    let overlay = rustix::fs::statfs(folder).is_ok_and(|stat| stat.f_type as u64 == OVERLAYFS);
    overlay && std::fs::metadata(folder).is_ok_and(|meta| meta.nlink() == 1)
}
