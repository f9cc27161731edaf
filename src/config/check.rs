//! What must hold across the whole configuration: hosts that do not share what is one server's own, refreshes that
//! cannot harm a source.
//!
//! Pure: compares what `load` has read, touches no host. What only the hosts know is refused before a run.

use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::form::{cited, nearest};
use super::model::{Config, Host, HostId, Refresh};
use super::reader::Reader;
use super::timing::CatchUp;
use crate::instance::{Service, Target};
use crate::route::Way;

/// Reports everything that does not fit together.
pub(super) fn config(reader: &mut Reader<'_>, config: &Config) {
    let hosts: Vec<&Host> = config.hosts().collect();
    for (index, host) in hosts.iter().enumerate() {
        for other in &hosts[..index] {
            distinct(reader, host, other);
        }
        places(reader, config, host);
    }
    // sun_path has 108 bytes, one of them for the end
    if config.daemon.socket.as_os_str().len() > 107 {
        let hint = "Set it to a shorter path.".to_owned();
        reader.fail_absent("daemon.socket", "the path of a socket must not be longer than 107 bytes", Some(hint));
    }
    for refresh in config.refreshes.values() {
        destinations(reader, config, refresh);
        files(reader, refresh);
        order(reader, config, refresh);
        times(reader, refresh);
    }
}

/// The full key of a host's entry.
fn key(id: &HostId, entry: &str) -> String {
    format!("environments.{}.hosts.{}.{entry}", id.environment(), id.name())
}

/// As far as addresses tell; aliases are found by asking the hosts.
fn same_machine(host: &Host, other: &Host) -> bool {
    match (host.route.address(), other.route.address()) {
        (None, None) => true,
        (Some(mine), Some(theirs)) => mine.host.eq_ignore_ascii_case(&theirs.host) && mine.port == theirs.port,
        _ => false,
    }
}

/// Two hosts have nothing in common that belongs to one server.
fn distinct(reader: &mut Reader<'_>, host: &Host, other: &Host) {
    if !same_machine(host, other) {
        return;
    }
    if let (Target::Named(mine), Target::Named(theirs)) = (&host.target, &other.target)
        && mine == theirs
    {
        let hint = "Describe each server once.".to_owned();
        reader.fail(&key(&host.id, "instance"), format!("this is the instance of {} too", other.id), Some(hint));
    }
    let (Some(mine), Some(theirs)) = (host.target.described(), other.target.described()) else { return };
    let mut clashes = Vec::new();
    if mine.datadir == theirs.datadir {
        clashes.push(("datadir", format!("this is the datadir of {} too", other.id)));
    } else if mine.datadir.starts_with(&theirs.datadir) {
        clashes.push(("datadir", format!("this lies inside the datadir of {}", other.id)));
    } else if theirs.datadir.starts_with(&mine.datadir) {
        clashes.push(("datadir", format!("the datadir of {} lies inside this one", other.id)));
    }
    if mine.socket == theirs.socket {
        clashes.push(("socket", format!("this is the socket of {} too", other.id)));
    }
    if mine.dropin.is_some() && mine.dropin == theirs.dropin {
        clashes.push(("dropin", format!("this is the dropin of {} too", other.id)));
    }
    match (&mine.service, &theirs.service) {
        (Service::Systemd { unit }, Service::Systemd { unit: same }) if unit == same => {
            clashes.push(("service.unit", format!("this is the unit of {} too", other.id)));
        }
        (Service::Process { defaults_file, .. }, Service::Process { defaults_file: same, .. })
            if defaults_file == same =>
        {
            clashes.push(("service.defaults_file", format!("this is the defaults file of {} too", other.id)));
        }
        _ => {}
    }
    for (entry, problem) in clashes {
        let hint = "Describe each server once, with places of its own.".to_owned();
        reader.fail(&key(&host.id, entry), problem, Some(hint));
    }
}

/// Nothing that must outlive a swap lies inside a datadir, and the log's folder holds nothing but the log.
fn places(reader: &mut Reader<'_>, config: &Config, host: &Host) {
    let Some(instance) = host.target.described().filter(|_| host.route.way == Way::Local) else { return };
    let mut inside = |key: &str, path: &Path| {
        if path.starts_with(&instance.datadir) {
            let hint = "A refresh replaces the datadir as a whole; choose a place outside it.".to_owned();
            reader.fail(key, format!("this lies inside the datadir of {}", host.id), Some(hint));
        }
    };
    inside("daemon.state_dir", &config.daemon.state_dir);
    inside("daemon.log_dir", &config.daemon.log_dir);
    for other in config.hosts().filter(|other| other.route.way == Way::Local) {
        let Some(theirs) = other.target.described() else { continue };
        inside(&key(&other.id, "state_dir"), &theirs.state_dir);
        if let Some(dropin) = &theirs.dropin {
            inside(&key(&other.id, "dropin"), dropin);
        }
    }
    if instance.state_dir == config.daemon.log_dir {
        let hint = "Choose another folder: old files of the log's folder are deleted.".to_owned();
        reader.fail(&key(&host.id, "state_dir"), "this is the log's folder", Some(hint));
    }
}

/// No refresh overwrites what it must not.
fn destinations(reader: &mut Reader<'_>, config: &Config, refresh: &Refresh) {
    let list = format!("refreshes.{}.destinations", refresh.name);
    for id in &refresh.destinations {
        if *id == refresh.source {
            reader.fail(&list, format!("{id} is the source of this refresh"), None);
            continue;
        }
        if config.environments.get(id.environment()).is_some_and(|environment| environment.protected) {
            let hint = format!("The environment {} is protected: name another destination.", id.environment());
            reader.fail(&list, format!("{id} must never be overwritten"), Some(hint));
        }
        for other in config.refreshes.values().filter(|other| other.source == *id) {
            let hint = "A host is either a source or a destination.".to_owned();
            reader.fail(&list, format!("{id} is the source of the refresh {}", other.name), Some(hint));
        }
        let Some(host) = config.host(id) else {
            continue;
        };
        if host.target.described().is_some_and(|instance| instance.dropin.is_none()) && !host.settings.is_empty() {
            let hint = format!("Set {} to an option file that the server reads last.", key(id, "dropin"));
            reader.fail_absent(&list, format!("{id} has settings, but no dropin to push them with"), Some(hint));
        }
    }
}

/// A schedule leaves room for what is said about its occurrences. Looked at in weeks that lie fixed in time, and without windows that
/// are dates: what is valid today must be valid tomorrow.
fn times(reader: &mut Reader<'_>, refresh: &Refresh) {
    let Some(schedule) = &refresh.schedule else { return };
    let next = |at: DateTime<Utc>| schedule.next_after(at).map(|next| next.with_timezone(&Utc));
    let key = |name: &str| format!("refreshes.{}.{name}", refresh.name);
    // a Monday, far from any change of the clock
    let begin = DateTime::UNIX_EPOCH + TimeDelta::days(20_458);
    let first: Vec<_> = std::iter::successors(next(begin), |at| next(*at)).take(60).collect();
    let shortest = first.windows(2).filter_map(|two| (two[1] - two[0]).to_std().ok()).min();
    if refresh.jitter > Duration::ZERO && shortest.is_some_and(|shortest| refresh.jitter >= shortest) {
        let hint = "Choose a shorter one, or a rarer schedule.".to_owned();
        reader.fail(&key("jitter"), "it is not shorter than the time from one occurrence to the next", Some(hint));
    }
    let weekly = refresh.blackout.weekly();
    let mut at = first.first().copied();
    for _ in 0..OCCURRENCES {
        let Some(occurrence) = at else { return };
        let Some(end) = weekly.until(occurrence) else { return };
        if refresh.catch_up.allows((end - occurrence).to_std().unwrap_or_default()) {
            return;
        }
        // none before the window ends
        at = next(occurrence.max(end - TimeDelta::seconds(1)));
    }
    let hint = "Choose another time, or let `catch_up` make it good after the window.".to_owned();
    reader.fail(&key("blackout"), "the schedule never comes round outside these windows", Some(hint));
}

/// How many occurrences are looked at: one a day for more than a year.
const OCCURRENCES: usize = 400;

/// A refresh that follows another one has no schedule, and does not lead back to itself.
fn order(reader: &mut Reader<'_>, config: &Config, refresh: &Refresh) {
    let Some(first) = &refresh.after else { return };
    let key = format!("refreshes.{}.after", refresh.name);
    if !config.refreshes.contains_key(first) {
        let near = nearest(first, config.refreshes.keys().map(String::as_str));
        let hint = near.map(|near| format!("Did you mean `{near}`?"));
        reader.fail_absent(&key, format!("there is no refresh {}", cited(first)), hint);
        return;
    }
    if refresh.catch_up != CatchUp::No {
        let hint = "Leave it out: what follows another refresh has no time of its own that it could miss.".to_owned();
        reader.fail(&format!("refreshes.{}.catch_up", refresh.name), "this refresh follows another one", Some(hint));
    }
    if refresh.schedule.is_some() {
        let hint = "A refresh runs by a schedule or after another one; leave one of the two out.".to_owned();
        reader.fail(&key, "this refresh has a schedule, too", Some(hint));
    }
    let mut root = first;
    for _ in 0..config.refreshes.len() {
        match config.refreshes.get(root).and_then(|other| other.after.as_ref()) {
            Some(next) => root = next,
            None => break,
        }
    }
    let runs = |other: &Refresh| other.schedule.is_some() || other.after.is_some();
    if !config.refreshes.get(root).is_none_or(runs) {
        let hint = format!("Only scheduled runs are followed: give {first} a schedule.");
        reader.fail(&key, format!("the refresh {first} has no schedule"), Some(hint));
    }
    let mut at = first;
    for _ in 0..config.refreshes.len() {
        if *at == refresh.name {
            let hint = "Let one of them have a schedule instead.".to_owned();
            reader.fail(&key, "these refreshes follow one another in a circle", Some(hint));
            return;
        }
        match config.refreshes.get(at).and_then(|other| other.after.as_ref()) {
            Some(next) => at = next,
            None => return,
        }
    }
}

/// No name is to be copied and left behind.
fn files(reader: &mut Reader<'_>, refresh: &Refresh) {
    for pattern in &refresh.policy.drop_files {
        if refresh.policy.copy_files.contains(pattern) {
            let key = format!("refreshes.{}.drop_files", refresh.name);
            reader.fail(&key, format!("{pattern:?} stands in copy_files too"), None);
        }
    }
}
