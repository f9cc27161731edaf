//! Refusals: pure functions from facts to reasons. Whatever is in doubt is refused here, before anything is touched.
//!
//! No I/O, no order of steps. All reasons are reported at once.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::config::{Accounts, Events, HostId, Layout, Policy, Refresh, XaPrepared};
use crate::mysql::Version;
use crate::mysql::dropin::denied;
use crate::mysql::variables::{
    cluster_reasons, effective, encryption_reasons, layout_differences, outside_datadir, same_setting, secret_setting,
};
use crate::mysql::version::{PairVerdict, judge_pair};
use crate::report::human_bytes;
use crate::wire::facts::{Facts, ServerFacts};
use crate::wire::message::Role;

/// One side of a run.
pub struct Side<'a> {
    /// Its name.
    pub id: &'a HostId,
    /// Its facts.
    pub facts: &'a Facts,
    /// Settings that are to be pushed.
    pub settings: &'a BTreeMap<String, String>,
}

impl Side<'_> {
    fn has_dropin(&self) -> bool {
        self.facts.instance.dropin.is_some()
    }
}

/// A reason to refuse, or to warn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// What is wrong, with the host.
    pub what: String,
    /// What to do.
    pub hint: String,
}

/// What the rules said.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Any of these stops the run.
    pub refusals: Vec<Reason>,
    /// Worth reading.
    pub warnings: Vec<String>,
}

impl Verdict {
    fn refuse(&mut self, id: &HostId, what: impl Into<String>, hint: impl Into<String>) {
        self.refusals.push(Reason { what: format!("{id}: {}", what.into()), hint: hint.into() });
    }
    fn warn(&mut self, id: &HostId, what: impl Into<String>) {
        self.warnings.push(format!("{id}: {}", what.into()));
    }
}

/// A host of the configuration that is the source of some refresh, with its datadir resolved where that could be done.
pub struct OtherSource {
    /// Its name.
    pub id: HostId,
    /// The refresh it is the source of.
    pub refresh: String,
    /// Its datadir.
    pub datadir: PathBuf,
}

/// All rules.
pub fn judge(
    refresh: &Refresh,
    source: &Side<'_>,
    destinations: &[Side<'_>],
    other_sources: &[OtherSource],
) -> Verdict {
    let mut verdict = Verdict::default();
    identities(&mut verdict, source, destinations, other_sources);
    source_rules(&mut verdict, refresh, source);
    for destination in destinations {
        destination_rules(&mut verdict, destination);
        lets_in(&mut verdict, &refresh.policy, destination);
        pair(&mut verdict, refresh, source, destination);
    }
    space(&mut verdict, &refresh.policy, source, destinations);
    verdict
}

/// What can be said about one host alone.
pub fn judge_alone(role: Role, side: &Side<'_>) -> Verdict {
    let mut verdict = Verdict::default();
    match role {
        Role::Source => {
            if server_rules(&mut verdict, side).is_some() {
                side.facts
                    .tree
                    .refusals
                    .iter()
                    .for_each(|refusal| verdict.refuse(side.id, refusal.clone(), FILES_HINT));
            }
        }
        Role::Destination => destination_rules(&mut verdict, side),
    }
    verdict
}

/// Nobody is refreshed from itself, twice, or if it is somebody's source.
fn identities(verdict: &mut Verdict, source: &Side<'_>, destinations: &[Side<'_>], others: &[OtherSource]) {
    const HINT: &str = "Two names of the configuration lead to one server; check `datadir` and the host's address.";
    let mut sides = vec![source];
    sides.extend(destinations);
    for (n, a) in sides.iter().enumerate() {
        for b in &sides[n + 1..] {
            if same_server(a.facts, b.facts) {
                verdict.refuse(b.id, format!("is the same server as {}", a.id), HINT);
            }
        }
    }
    for destination in destinations {
        let identity = &destination.facts.identity;
        for other in
            others.iter().filter(|o| o.datadir == identity.datadir && o.id != *destination.id && o.id != *source.id)
        {
            verdict.refuse(
                destination.id,
                format!(
                    "its datadir {} is that of {}, the source of {:?}",
                    identity.datadir.display(),
                    other.id,
                    other.refresh
                ),
                HINT,
            );
        }
    }
}

fn same_server(a: &Facts, b: &Facts) -> bool {
    if a.identity.machine != b.identity.machine {
        return false;
    }
    let pid = |facts: &Facts| facts.server.as_ref().map(|s| s.pid).filter(|pid| *pid != 0);
    a.identity.datadir == b.identity.datadir
        || a.identity.inode == b.identity.inode
        || (a.identity.hostname == b.identity.hostname && pid(a).is_some() && pid(a) == pid(b))
}

fn source_rules(verdict: &mut Verdict, refresh: &Refresh, source: &Side<'_>) {
    let Some(server) = server_rules(verdict, source) else { return };
    let (id, policy, stops) = (source.id, &refresh.policy, refresh.method.stops());
    if stops && !server.replicas.is_empty() && !policy.allow_primary_stop {
        verdict.refuse(
            id,
            format!("is a primary with {} connected replica(s): {}", server.replicas.len(), server.replicas.join(", ")),
            "Take a replica as the source, or set `allow_primary_stop = true` in the refresh.",
        );
    }
    if !server.prepared_xa.is_empty() && policy.xa_prepared == XaPrepared::Refuse {
        verdict.refuse(
            id,
            format!(
                "has {} prepared XA transaction(s), which a copy would carry: {}",
                server.prepared_xa.len(),
                server.prepared_xa.join(", ")
            ),
            "Commit or roll them back, or set `xa_prepared = \"rollback\"` to roll them back in the copy.",
        );
    }
    for refusal in &source.facts.tree.refusals {
        verdict.refuse(id, refusal.clone(), FILES_HINT);
    }
    if let Some(why) = source.facts.not_at_boot.as_ref().filter(|_| stops) {
        verdict.refuse(
            id,
            format!("would stay down if its host booted in the middle of the run: {why}"),
            "`systemctl enable` it there, or install and enable mysql-refreshd-repair.service.",
        );
    }
    for file in &server.outside_files {
        verdict.refuse(
            id,
            format!("has a tablespace outside the datadir: {file}"),
            "A copy would open and write this very file. Move the table into the datadir (ALTER TABLE without DATA DIRECTORY).",
        );
    }
    if !server.memory_tables.is_empty() {
        let whose = if stops { "lose their rows when the server stops" } else { "have no rows in the copy" };
        verdict.warn(id, format!("MEMORY tables {whose}: {}", server.memory_tables.join(", ")));
    }
    if !server.remote_tables.is_empty() {
        verdict.warn(
            id,
            format!("reaches out to other servers; check what the copy would do: {}", server.remote_tables.join(", ")),
        );
    }
}

const FILES_HINT: &str = "See `copy_files` and `drop_files` of the refresh for top-level files that nobody knows.";

/// What holds for both sides. The server's facts, if it answers.
fn server_rules<'a>(verdict: &mut Verdict, side: &Side<'a>) -> Option<&'a ServerFacts> {
    let id = side.id;
    let Some(server) = &side.facts.server else {
        let why = side.facts.server_problem.clone().unwrap_or_else(|| "unknown".into());
        verdict.refuse(
            id,
            format!("the server is not usable: {why}"),
            "Start it, and check `socket`, `user`, `password` and `datadir` of the host.",
        );
        return None;
    };
    let Some(version) = version(server) else {
        verdict.refuse(id, "the server's version is not understood", SUPPORTED);
        return None;
    };
    if let Some(why) = too_old(&version) {
        verdict.refuse(id, format!("{version} is too old: {why}"), SUPPORTED);
        return None;
    }
    if server.executable_replaced {
        verdict.refuse(
            id,
            "the server's executable on disk is not the one that runs: an upgrade waits for a restart",
            "Restart the server at a time of your choosing, then refresh.",
        );
    }
    if let Some(problem) = &server.settings_problem {
        verdict.refuse(
            id,
            format!("the server would not start with its settings on disk: {problem}"),
            "Mend its option files first.",
        );
    }
    for outside in outside_datadir(version.flavour, &side.facts.identity.datadir, &server.variables) {
        verdict.refuse(
            id,
            format!("{} lies outside the datadir: {}", outside.variable, outside.path.display()),
            "Data outside the datadir is not part of a copy; move it inside.",
        );
    }
    for reason in cluster_reasons(version.flavour, &server.variables) {
        verdict.refuse(id, format!("is a member of a cluster: {reason}"), "Clustered servers cannot take part.");
    }
    for reason in encryption_reasons(version.flavour, &server.variables, &server.plugins) {
        verdict.refuse(
            id,
            format!("is encrypted: {reason}"),
            "Encrypted data needs its keys at the destination, which is not supported.",
        );
    }
    if !server.encrypted.is_empty() {
        verdict.refuse(
            id,
            format!("has encrypted tablespaces: {}", server.encrypted.join(", ")),
            "Encrypted data needs its keys at the destination, which is not supported.",
        );
    }
    Some(server)
}

const SUPPORTED: &str = "MariaDB 10.8 and newer, and MySQL 8.0.30 and newer are supported.";

/// Before these, the redo log has another format, and a clean stop could not be proven.
fn too_old(version: &Version) -> Option<&'static str> {
    const WHY: &str = "its redo log's format is not known here";
    let first = if version.flavour.is_mysql() { (8, 0, 30) } else { (10, 8, 0) };
    ((version.major, version.minor, version.patch) < first).then_some(WHY)
}

fn version(server: &ServerFacts) -> Option<Version> {
    version_in(&server.variables)
}

fn version_in(variables: &BTreeMap<String, String>) -> Option<Version> {
    let get = |name: &str| variables.get(name).map_or("", String::as_str);
    Version::parse(get("version"), get("version_comment"))
}

/// Whether a copy of a server with these variables has to be brought up to this destination's version.
pub fn upgrades(source: &BTreeMap<String, String>, destination: &Facts) -> bool {
    let to = destination.server.as_ref().and_then(version);
    matches!((version_in(source), to), (Some(from), Some(to)) if judge_pair(&from, &to) == PairVerdict::Upgrade)
}

fn destination_rules(verdict: &mut Verdict, destination: &Side<'_>) {
    if let Some(problem) = &destination.facts.no_consent {
        verdict.refuse(destination.id, problem.to_string(), problem.hints.join(" "));
    }
    let Some(server) = server_rules(verdict, destination) else { return };
    if !server.replicates_from.is_empty() {
        verdict.warn(destination.id, "is a replica now; its replication ends with the refresh");
    }
    for name in destination.settings.keys().filter(|name| effective(&server.variables, name).is_none()) {
        verdict.refuse(
            destination.id,
            format!("has no variable {name}, which its settings name"),
            "Check `settings` of the environment and of the host.",
        );
    }
    let (id, disk) = (destination.id, &destination.facts.disk);
    for (name, wanted) in destination.settings {
        if let Some(value) = effective(&server.persisted, name).filter(|value| !same_setting(name, wanted, value)) {
            // what is persisted may be a secret
            let shown = if secret_setting(name) { "another value".to_owned() } else { format!("{value:?}") };
            verdict.refuse(
                id,
                format!(
                    "{name} was set to {shown} by SET PERSIST, which overrides option files and the settings pushed"
                ),
                format!("RESET PERSIST {name} there, or leave it out of the settings."),
            );
        }
    }
    if destination.facts.installed {
        for (name, why) in destination.settings.keys().filter_map(|name| Some((name, denied(name)?))) {
            verdict.refuse(id, format!("the setting {name} may not be pushed to it"), format!("{why}."));
        }
    }
    if !disk.immovable.is_empty() {
        verdict.refuse(
            id,
            format!(
                "the datadir is a mount point, and so are entries of it, which cannot be moved: {}",
                disk.immovable.join(", ")
            ),
            "Mount the volume one level higher and make the datadir a folder in it.",
        );
    }
    if disk.lower_layer {
        verdict.refuse(
            id,
            "the datadir came with a lower layer of an overlay (a container's image) and cannot be renamed",
            "Put it on a volume, or copy it to a new folder while the server is stopped.",
        );
    }
    if let Some(problem) = &disk.unguarded {
        // the datadir itself is the server's account's; what is above it must not be
        verdict.refuse(id, problem.to_string(), problem.hints.join(" "));
    }
    if !disk.writable {
        verdict.refuse(
            id,
            format!("the folder beside {} cannot be written", destination.facts.identity.datadir.display()),
            "The agent's account must be able to create and rename folders there.",
        );
    }
    if let Some(run) = &disk.interrupted_swap {
        verdict.refuse(id, format!("run {run} was interrupted while it swapped here"), "Run `mysql-refreshd recover`.");
    }
    if !destination.facts.socket_path_fits {
        verdict.refuse(
            id,
            "the datadir's path is too long for the socket of the isolated start (107 bytes)",
            "Use a datadir with a shorter path.",
        );
    }
    if !destination.settings.is_empty() && !destination.has_dropin() {
        verdict.refuse(
            id,
            "has settings to be pushed, but no drop-in",
            "Set `dropin` of the host to a file that its server reads last.",
        );
    }
    if disk.dropin_writable == Some(false) {
        verdict.refuse(id, "the drop-in's folder is missing or cannot be written", "Check `dropin` of the host.");
    }
    for refusal in destination.facts.tree.refusals.iter().filter(|r| r.contains("filesystem")) {
        verdict.refuse(
            id,
            refusal.clone(),
            "Part of the datadir lies on another filesystem and would not change places with it.",
        );
    }
}

/// What the owner of a destination lets a refresh bring along.
fn lets_in(verdict: &mut Verdict, policy: &Policy, destination: &Side<'_>) {
    let (accounts, events) = destination.facts.lets_in;
    if policy.accounts == Accounts::Source && !accounts {
        let hint = "Set `accounts = \"destination\"`, or let its owner set `accounts = \"source\"` in host.toml.";
        verdict.refuse(destination.id, "the host's policy does not let the source's accounts in", hint);
    }
    if policy.events == Events::Keep && !events {
        let hint = "Set `events = \"disable\"`, or let its owner set `events = \"keep\"` in host.toml.";
        verdict.refuse(destination.id, "the host's policy does not let events stay enabled", hint);
    }
}

/// Room for old and new generation at once, on the filesystem of each stage; several stages may share one.
fn space(verdict: &mut Verdict, policy: &Policy, source: &Side<'_>, destinations: &[Side<'_>]) {
    let filesystem = |side: &Side<'_>| (side.facts.identity.machine.clone(), side.facts.identity.inode.0);
    for destination in destinations {
        let disk = &destination.facts.disk;
        let sharing: Vec<_> = destinations.iter().filter(|d| filesystem(d) == filesystem(destination)).collect();
        let need = sharing.iter().map(|d| source.facts.tree.copy_bytes + first_start(d.facts)).sum::<u64>();
        let gained: u64 = sharing.iter().map(|d| available(policy, d.facts) - d.facts.disk.free).sum();
        let (room, reserve) = (disk.free + gained, policy.space_reserve.bytes_of(disk.total));
        if need + reserve > room {
            let stages = if sharing.len() > 1 { format!("{} stages", sharing.len()) } else { "the stage".to_owned() };
            verdict.refuse(
                destination.id,
                format!(
                    "not enough space for {stages}: {} needed and {} to remain free, {} available",
                    human_bytes(need),
                    human_bytes(reserve),
                    human_bytes(room)
                ),
                "Make room, lower `space_reserve`, or set `keep_previous` to \"until_stage\" or \"none\".",
            );
        }
        let files = (source.facts.tree.copy_files + source.facts.tree.copy_dirs) * sharing.len() as u64;
        if disk.free_inodes.is_some_and(|free| free < files + 1000) {
            let what = format!("not enough inodes for {files} files");
            verdict.refuse(destination.id, what, "Use a filesystem with more inodes.");
        }
    }
}

/// Bytes that the first start of a copy needs beside it: a redo log of the destination's size, temporary tablespaces.
fn first_start(facts: &Facts) -> u64 {
    let size = |name| facts.server.as_ref().and_then(|s| s.variables.get(name)).and_then(|v| v.parse::<u64>().ok());
    let redo = size("innodb_redo_log_capacity").or(size("innodb_log_file_size"));
    redo.unwrap_or(96 << 20) + (64 << 20)
}

/// Bytes a stage may use: what is free, and what goes before it is made.
pub fn available(policy: &Policy, facts: &Facts) -> u64 {
    let goes = match policy.keep_previous {
        crate::config::KeepPrevious::UntilStage => facts.disk.previous_bytes,
        _ => 0,
    };
    facts.disk.free + facts.disk.stage_bytes + goes
}

/// Versions and layout of both ends.
fn pair(verdict: &mut Verdict, refresh: &Refresh, source: &Side<'_>, destination: &Side<'_>) {
    let policy = &refresh.policy;
    let (Some(from), Some(to)) = (&source.facts.server, &destination.facts.server) else { return };
    let (Some(from_version), Some(to_version)) = (version(from), version(to)) else { return };
    let id = destination.id;
    match judge_pair(&from_version, &to_version) {
        PairVerdict::Same => {}
        PairVerdict::Upgrade if to_version.flavour.is_mysql() => verdict.refuse(
            id,
            format!("runs {to_version}, newer than the source's {from_version}: upgrades of MySQL on the way were never tried"),
            "Bring both to the same series.",
        ),
        // "Upgrade after a crash is not supported" (MariaDB 11.8.9 on a redo log of 10.11)
        PairVerdict::Upgrade if !refresh.method.stops() => verdict.refuse(
            id,
            format!("runs {to_version}, newer than the source's {from_version}: only a copy of a stopped server can be upgraded"),
            "Set `method = \"cold\"`, or bring both to the same series.",
        ),
        PairVerdict::Upgrade if !to.upgrade_tool => verdict.refuse(
            id,
            format!("runs {to_version}, newer than the source's {from_version}, and has no mariadb-upgrade beside its server"),
            "Install the client programs of the same version there.",
        ),
        PairVerdict::Upgrade => verdict.warn(
            id,
            format!("runs {to_version}, newer than the source's {from_version}: the copy is upgraded in isolation"),
        ),
        PairVerdict::Refused(reason) => verdict.refuse(id, reason, "Bring the destination to the source's version."),
    }
    let differences = layout_differences(from_version.flavour, &from.variables, &to.variables);
    if policy.layout == Layout::Refuse {
        for d in &differences {
            verdict.refuse(
                id,
                format!("{} is {:?}, but {:?} on {}", d.name, d.destination, d.source, source.id),
                "Make them equal, or set `layout = \"follow\"` to push the source's value with the data.",
            );
        }
    } else if !differences.is_empty() && !destination.has_dropin() {
        verdict.refuse(
            id,
            "layout settings must follow the data, but there is no drop-in",
            "Set `dropin` of the host.",
        );
    }
    let uuid = |server: &ServerFacts| server.variables.get("server_uuid").cloned().filter(|uuid| !uuid.is_empty());
    if uuid(from).is_some() && uuid(from) == uuid(to) {
        verdict
            .warn(id, format!("has the server_uuid of {}: its auto.cnf was copied at some time; remove it", source.id));
    }
    let missing: Vec<&str> = from.plugins.iter().filter(|p| !to.plugins.contains(p)).map(String::as_str).collect();
    if !missing.is_empty() {
        verdict.warn(id, format!("lacks plugins that {} has active: {}", source.id, missing.join(", ")));
    }
}
