//! The refreshes of the configuration: their keys, their defaults, and the hosts they name.
//!
//! A name is resolved here, so that nothing behind this file meets one that means no host. Whether a refresh may do
//! what it says is left to `check`.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta};
use chrono_tz::Tz;

use super::form::{self, Form, choice, cited, nearest};
use super::model::{Environment, HostId, Refresh};
use super::policy::{Freeze, Method, Policy};
use super::reader::{Reader, Section};
use super::schedule::Schedule;
use super::timing::{self, Blackout, CatchUp};

type Environments = BTreeMap<String, Environment>;

/// Every refresh that could be read.
pub(super) fn refreshes<'v>(
    reader: &mut Reader<'v>,
    root: &mut Section<'v>,
    environments: &Environments,
) -> BTreeMap<String, Refresh> {
    let table = reader.table(root, "refreshes");
    let mut refreshes = BTreeMap::new();
    for (name, mut section) in reader.named(&table) {
        let read = refresh(reader, &mut section, name, environments);
        refreshes.extend(read.map(|refresh| (name.to_owned(), refresh)));
        reader.close(section);
    }
    refreshes
}

fn refresh<'v>(
    reader: &mut Reader<'v>,
    section: &mut Section<'v>,
    name: &str,
    environments: &Environments,
) -> Option<Refresh> {
    let source = reader.required(section, "source", form::TEXT);
    let destinations = reader.required(section, "destinations", form::WORDS);
    let zone = reader.or(section, "time_zone", form::ZONE, chrono_tz::UTC);
    let schedule = schedule(reader, section, zone);
    let after = reader.optional(section, "after", form::TEXT);
    let catch_up = reader.or(section, "catch_up", form::CATCH_UP, CatchUp::default());
    let blackout = blackout(reader, section, zone);
    let jitter = reader.or(section, "jitter", form::DURATION, Duration::ZERO);
    let enabled = reader.or(section, "enabled", form::FLAG, true);
    let method = reader.or(section, "method", choice(), Method::default());
    let policy = policy(reader, section);
    if method == Method::Snapshot && matches!(policy.freeze, Freeze::None | Freeze::Reflink) {
        let what = format!(
            "a running server is copied from one snapshot of all its files, which `freeze = \"{}\"` does not make",
            policy.freeze
        );
        let hint = "Use `freeze = \"auto\"`, \"btrfs\", \"lvm\" or \"zfs\", or `method = \"cold\"`.".to_owned();
        reader.fail(&section.key("method"), what, Some(hint));
    }
    let source = source.and_then(|text| source_host(reader, &section.key("source"), &text, environments));
    let destinations =
        destinations.and_then(|list| destination_hosts(reader, &section.key("destinations"), &list, environments));
    Some(Refresh {
        name: name.to_owned(),
        source: source?,
        destinations: destinations?,
        schedule,
        after,
        enabled,
        catch_up,
        blackout,
        jitter,
        method,
        policy,
    })
}

/// The hosts a reference names: one for `environment/host`, all of them for `environment`.
fn resolve(reader: &mut Reader<'_>, key: &str, text: &str, environments: &Environments) -> Option<Vec<HostId>> {
    let (environment, host) = text.split_once('/').map_or((text, None), |(name, host)| (name, Some(host)));
    let suggest = |near: Option<&str>| near.map(|near| format!("Did you mean `{near}`?"));
    let Some(found) = environments.get(environment) else {
        let hint = suggest(nearest(environment, environments.keys().map(String::as_str)));
        reader.fail_absent(key, format!("there is no environment {}", cited(environment)), hint);
        return None;
    };
    let Some(host) = host else {
        return Some(found.hosts.clone());
    };
    let one = found.hosts.iter().find(|id| id.name() == host);
    if one.is_none() {
        let near = nearest(host, found.hosts.iter().map(HostId::name)).map(|near| format!("{environment}/{near}"));
        let problem = format!("there is no host {} in the environment {environment}", cited(host));
        reader.fail_absent(key, problem, suggest(near.as_deref()));
    }
    one.map(|id| vec![id.clone()])
}

fn source_host(reader: &mut Reader<'_>, key: &str, text: &str, environments: &Environments) -> Option<HostId> {
    let hosts = resolve(reader, key, text, environments)?;
    match &hosts[..] {
        [one] => return Some(one.clone()),
        [] => reader.fail_absent(key, format!("the environment {text} has no hosts"), None),
        many => {
            let hint = format!("Name one of them, like \"{}\".", many[0]);
            reader.fail(key, format!("the environment {text} has {} hosts", many.len()), Some(hint));
        }
    }
    None
}

fn destination_hosts(
    reader: &mut Reader<'_>,
    key: &str,
    list: &[String],
    environments: &Environments,
) -> Option<Vec<HostId>> {
    let mut hosts: Vec<HostId> = Vec::new();
    let mut sound = !list.is_empty();
    if list.is_empty() {
        reader.fail(key, "there must be at least one", None);
    }
    for text in list {
        let Some(named) = resolve(reader, key, text, environments) else {
            sound = false;
            continue;
        };
        if named.is_empty() {
            reader.fail_absent(key, format!("the environment {text} has no hosts"), None);
            sound = false;
        }
        for id in named {
            if hosts.contains(&id) {
                reader.fail(key, format!("{id} is named twice"), None);
            } else {
                hosts.push(id);
            }
        }
    }
    sound.then_some(hosts)
}

fn blackout<'v>(reader: &mut Reader<'v>, section: &mut Section<'v>, zone: Tz) -> Blackout {
    let windows = reader.or(section, "blackout", form::WORDS, Vec::new());
    Blackout::parse(&windows, zone).unwrap_or_else(|error| {
        reader.fail(&section.key("blackout"), error.to_string(), Some(timing::HINT.to_owned()));
        Blackout::none()
    })
}

fn schedule<'v>(reader: &mut Reader<'v>, section: &mut Section<'v>, zone: Tz) -> Option<Schedule> {
    let expression = reader.optional(section, "schedule", form::TEXT);
    let key = section.key("schedule");
    match Schedule::parse(&expression?, zone) {
        // one that has had its last occurrence was right once, and must not take all others down with it; one whose last was before
        // this program was there never was
        Ok(schedule) if schedule.next_after(DateTime::UNIX_EPOCH + TimeDelta::days(20_454)).is_some() => {
            return Some(schedule);
        }
        Ok(_) => reader.fail(&key, "this schedule never comes round", None),
        Err(error) => {
            let hint = "Write `minute hour day month weekday`, like \"30 2 * * *\", or `@daily`.".to_owned();
            reader.fail(&key, error.to_string(), Some(hint));
        }
    }
    None
}

fn policy<'v>(reader: &mut Reader<'v>, section: &mut Section<'v>) -> Policy {
    let default = Policy::default();
    let mut or = Ors { reader, section };
    Policy {
        allow_primary_stop: or.or("allow_primary_stop", form::FLAG, default.allow_primary_stop),
        on_busy: or.or("on_busy", choice(), default.on_busy),
        lock_timeout: or.or("lock_timeout", form::DURATION, default.lock_timeout),
        max_outage: or.or("max_outage", form::PERIOD, default.max_outage),
        drain_timeout: or.or("drain_timeout", form::DURATION, default.drain_timeout),
        long_transactions: or.or("long_transactions", choice(), default.long_transactions),
        long_transaction_age: or.or("long_transaction_age", form::DURATION, default.long_transaction_age),
        xa_prepared: or.or("xa_prepared", choice(), default.xa_prepared),
        accounts: or.or("accounts", choice(), default.accounts),
        events: or.or("events", choice(), default.events),
        layout: or.or("layout", choice(), default.layout),
        keep_previous: or.or("keep_previous", choice(), default.keep_previous),
        on_destination_failure: or.or("on_destination_failure", choice(), default.on_destination_failure),
        proof: or.or("proof", choice(), default.proof),
        freeze: or.or("freeze", choice(), default.freeze),
        precopy: or.or("precopy", form::FLAG, default.precopy),
        precopy_rounds: or.or("precopy_rounds", form::COUNT, default.precopy_rounds),
        paranoid: or.or("paranoid", form::FLAG, default.paranoid),
        max_rate: or.reader.optional(or.section, "max_rate", form::RATE),
        basis: or.or("basis", choice(), default.basis),
        compression: or.or("compression", form::COMPRESSION, default.compression),
        space_reserve: or.or("space_reserve", form::RESERVE, default.space_reserve),
        copy_files: or.or("copy_files", form::PATTERNS, default.copy_files),
        drop_files: or.or("drop_files", form::PATTERNS, default.drop_files),
    }
}

/// One reader and one table, so that a long list of keys stays a list of keys.
struct Ors<'r, 'v> {
    reader: &'r mut Reader<'v>,
    section: &'r mut Section<'v>,
}

impl Ors<'_, '_> {
    fn or<T>(&mut self, key: &'static str, form: Form<T>, default: T) -> T {
        self.reader.or(self.section, key, form, default)
    }
}
