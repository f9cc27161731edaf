//! Finding the servers that run on this machine, and how each is kept: for hosts that nobody has described.
//!
//! Looks at processes and asks the servers over their own sockets; changes nothing.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use secrecy::SecretString;

use super::sql::Sql;
use super::{runtime, server};
use crate::authority::{self, STATE_DIR};
use crate::instance::{Instance, Service};
use crate::mysql::Flavour;
use crate::problem::{Outcome, Problem};

/// A server that was found.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its process.
    pub pid: u32,
    /// What could be told; or why not.
    pub instance: Outcome<Instance>,
}

/// Programs that serve.
const SERVERS: [&str; 2] = ["mariadbd", "mysqld"];

/// Every server whose process this account may look into. Blocking; runs a runtime of its own if there is none.
pub fn all(password: Option<&SecretString>) -> Vec<Found> {
    let listening = listening();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        // the isolated server on a stage is none
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let isolated = line.split(|b| *b == 0).any(|word| word == b"--no-defaults");
        if !SERVERS.contains(&comm.trim()) || isolated || line.is_empty() {
            continue;
        }
        let sockets: Vec<&PathBuf> = inodes(pid).filter_map(|inode| listening.get(&inode)).collect();
        found.push(Found { pid, instance: describe(pid, &sockets, password) });
    }
    found
}

/// The only server here.
pub fn only(password: Option<&SecretString>) -> Outcome<Instance> {
    let mut found = all(password);
    match found.len() {
        1 => found.remove(0).instance,
        0 => Err(Problem::refused("no MySQL or MariaDB server that this account may look into runs on this host")
            .hint("Start it; or describe the host in a configuration.")),
        n => {
            let mut problem = Problem::refused(format!("{n} servers run on this host; it is not clear which is meant"));
            for one in found {
                problem.causes.push(match one.instance {
                    Ok(instance) => format!("process {}: {}", one.pid, instance.datadir.display()),
                    Err(why) => format!("process {}: {why}", one.pid),
                });
            }
            Err(problem.hint("Describe the host in a configuration."))
        }
    }
}

/// Listening unix sockets by inode. Source: proc(5), /proc/net/unix; flag 00010000 is __SO_ACCEPTCON.
fn listening() -> HashMap<u64, PathBuf> {
    let table = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let parse = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let path = fields.get(7).filter(|path| path.starts_with('/'))?;
        (fields.get(3) == Some(&"00010000")).then_some((fields[6].parse().ok()?, PathBuf::from(path)))
    };
    table.lines().skip(1).filter_map(parse).collect()
}

/// Inodes of a process's sockets.
fn inodes(pid: u32) -> impl Iterator<Item = u64> {
    std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().filter_map(|fd| {
        let link = std::fs::read_link(fd.path()).ok()?;
        link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    })
}

fn describe(pid: u32, sockets: &[&PathBuf], password: Option<&SecretString>) -> Outcome<Instance> {
    let user = account();
    let mut last = Problem::refused(format!("process {pid} has no unix socket that this account can see"));
    // MySQL's X plugin listens on a socket of its own
    for socket in sockets.iter().filter(|path| !path.to_string_lossy().ends_with("x.sock")) {
        let probe = probe(socket, &user);
        match block_on(async {
            let mut sql = Sql::open(&probe, password).await?;
            let variables = sql.variables().await?;
            sql.close().await;
            Ok(variables)
        }) {
            Ok(variables) => return from_variables(pid, probe, &variables),
            Err(problem) => last = problem,
        }
    }
    Err(last.hint("Give the SQL account root unix_socket authentication, or a password."))
}

/// SQL account that a server of this account's lets in.
fn account() -> String {
    let me = rustix::process::geteuid();
    if me.is_root() {
        return "root".to_owned();
    }
    std::env::var("USER").unwrap_or_else(|_| "root".to_owned())
}

fn probe(socket: &Path, user: &str) -> Instance {
    Instance {
        datadir: PathBuf::new(),
        socket: socket.to_owned(),
        user: user.to_owned(),
        service: Service::Commands { start: Vec::new(), stop: Vec::new() },
        dropin: None,
        state_dir: PathBuf::from(STATE_DIR),
        start_timeout_s: 300,
        stop_timeout_s: 900,
    }
}

fn from_variables(pid: u32, probe: Instance, variables: &BTreeMap<String, String>) -> Outcome<Instance> {
    let get = |name: &str| variables.get(name).map(String::as_str).filter(|value| !value.is_empty());
    let datadir = get("datadir").ok_or_else(|| Problem::refused("the server does not say where its datadir is"))?;
    let datadir: PathBuf = Path::new(datadir).components().collect();
    // what it says of itself is not enough: it must hold that datadir's files
    if server::find(&datadir)?.is_none_or(|process| process.pid != pid) {
        return Err(Problem::refused(format!(
            "process {pid} says that it serves {}, but does not hold its files",
            datadir.display()
        )));
    }
    let flavour = runtime::version(variables)?.flavour;
    let service = service(pid).ok_or_else(|| {
        Problem::refused(format!("process {pid} is kept by no systemd unit, and was started without --defaults-file"))
            .hint("Describe the host's `service` yourself.")
    })?;
    let state_dir = match &service {
        // a server of this account's own: so is the state of its agents
        Service::Process { .. } if !rustix::process::geteuid().is_root() => {
            let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from);
            home.join(".local/state/mysql-refreshd/host")
        }
        _ => probe.state_dir.clone(),
    };
    Ok(Instance { datadir, dropin: dropin(flavour, &service), service, state_dir, ..probe })
}

/// The systemd unit of a process, by its control group; else its own command line.
fn service(pid: u32) -> Option<Service> {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let unit = groups.lines().filter_map(|line| line.rsplit('/').find(|part| part.ends_with(".service"))).next();
    let booted = Path::new("/run/systemd/system").is_dir();
    // a server started from a login session lies in that session's unit, which is not its own
    let own = groups.contains("/user.slice/");
    if let Some(unit) = unit.filter(|unit| booted && !own && !unit.starts_with("ssh")) {
        return Some(Service::Systemd { unit: unit.to_owned() });
    }
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut words = line.split(|b| *b == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    let defaults_file = words.find_map(|word| word.strip_prefix("--defaults-file=").map(PathBuf::from))?;
    let server = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    // root starts nothing that others could have changed
    authority::only_ours(&server).and(authority::only_ours(&defaults_file)).ok()?;
    defaults_file.is_absolute().then_some(Service::Process { server, defaults_file })
}

/// An option file that the server of a distribution's package reads last, by the folders that are there.
fn dropin(flavour: Flavour, service: &Service) -> Option<PathBuf> {
    if let Service::Process { .. } = service {
        return None;
    }
    let folders: &[&str] = if flavour.is_mysql() {
        &["/etc/mysql/mysql.conf.d", "/etc/my.cnf.d"]
    } else {
        &["/etc/mysql/mariadb.conf.d", "/etc/my.cnf.d"]
    };
    let there = |folder: &&&str| std::fs::metadata(folder).is_ok_and(|meta| meta.is_dir() && meta.uid() == 0);
    folders.iter().find(there).map(|folder| Path::new(folder).join("zz-mysql-refreshd.cnf"))
}

/// Runs a future to its end, from a thread that may block.
fn block_on<T>(work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    match tokio::runtime::Handle::try_current() {
        Ok(handle) => handle.block_on(work),
        Err(_) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map_err(|e| Problem::failed("cannot start a runtime").because(e))?.block_on(work)
        }
    }
}
