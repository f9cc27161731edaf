//! A client that looks at every server of a world all the time, from the world's beginning to its end, as a researcher or an
//! application would: does it answer, which content does it show, are its accounts and its settings those that belong to it?
//! Whatever a test is about, at its end the world fails it if anybody could have seen a mix, production's accounts, a generation
//! with the other one's settings, or a source that was away for longer than its run may keep it down.
//!
//! Nothing is assumed of a world's content but that a destination shows, whenever it comes up, either what it has shown before or
//! what the source has shown; what a running server shows later is the test's own doing. A source that the test itself stops
//! (`Server::stop`) owes nothing until it is started again.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Error, OptsBuilder};
use tokio::time::timeout;

use crate::template;
use crate::world::{Server, World, me, signal, wait_for};

/// How often a server that answers is asked.
const PERIOD: Duration = Duration::from_millis(250);

/// How often one that does not: it must be seen as soon as it is up.
const DOWN_PERIOD: Duration = Duration::from_millis(60);

/// Every so many questions content, accounts and settings are looked at anew, though a running server's can only be changed by the
/// test: so that what tests change is known before the next stop.
const LOOK_EVERY: u32 = 4;

/// How long a server may take over one answer; one that is frozen must not keep the others from being asked.
const ANSWER: Duration = Duration::from_secs(3);

/// What a source's outage may last beyond `max_outage`: the guard counts until it begins to start the server, and the machine is
/// shared with other tests.
const MARGIN: Duration = Duration::from_secs(15);

/// What a client sees of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Look {
    /// Which of the two schemas, and what all the tables that carry a mark say.
    content: String,
    /// How many of research's and of production's accounts.
    accounts: String,
    /// A setting that belongs to the generation.
    settings: String,
}

/// One life of a server, or a part of it: what was seen over one connection.
type Life = Vec<Look>;

/// What is not to be judged, and only where a test is about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Spare {
    /// Whose accounts a destination has.
    Accounts,
    /// Which settings a generation has.
    Settings,
}

#[derive(Debug)]
struct State {
    end: bool,
    blind: bool,
    /// Looks that were asked for; which of them the last round of questions knew of; which each server has answered.
    asked: u64,
    rounds: u64,
    answered: Vec<u64>,
    up: Vec<bool>,
    max_outage: Duration,
    margin: Duration,
    longest: Duration,
    pushed: BTreeSet<String>,
    spared: BTreeSet<Spare>,
    source: BTreeSet<String>,
    destinations: Vec<(String, Vec<Life>)>,
    outages: Vec<String>,
    told: BTreeSet<String>,
}

struct Shared {
    state: Mutex<State>,
    wake: tokio::sync::Notify,
    // while the test changes the source's tables one after the other, it is a mix by right
    stamping: tokio::sync::Mutex<()>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The client at work.
pub struct Poller {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// The content of a source that is stamped with this number.
fn stamped(number: u32) -> String {
    let tables: Vec<_> = template::STAMPED.iter().map(|table| format!("{table}/{number}/{number}/1")).collect();
    format!("shop {}", tables.join(" "))
}

impl Poller {
    /// Begins, and returns when every server was looked at.
    pub fn start(source: &Server, destinations: &[Server]) -> Poller {
        let servers: Vec<Server> = std::iter::once(source).chain(destinations).cloned().collect();
        let state = State {
            end: false,
            blind: false,
            asked: 0,
            rounds: 0,
            answered: vec![0; servers.len()],
            up: vec![true; servers.len()],
            max_outage: Duration::from_secs(45),
            margin: MARGIN,
            longest: Duration::ZERO,
            pushed: BTreeSet::from(["77".to_owned()]),
            spared: BTreeSet::new(),
            source: BTreeSet::new(),
            destinations: destinations.iter().map(|server| (server.name.clone(), Vec::new())).collect(),
            outages: Vec::new(),
            told: BTreeSet::new(),
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            wake: tokio::sync::Notify::new(),
            stamping: tokio::sync::Mutex::new(()),
        });
        let thread = std::thread::Builder::new().name("poller".into()).spawn({
            let shared = shared.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(watch(&shared, servers));
            }
        });
        let poller = Poller { shared, thread: Some(thread.unwrap()) };
        poller.look();
        poller
    }

    /// Returns when every server that answers was looked at once more: what the test has just changed there is its own doing.
    pub fn look(&self) {
        let mut state = self.shared.state();
        state.asked += 1;
        let asked = state.asked;
        drop(state);
        self.shared.wake.notify_one();
        wait_for("a look at every server", Duration::from_secs(20), || {
            let state = self.shared.state();
            state.rounds >= asked && state.answered.iter().zip(&state.up).all(|(done, up)| !up || *done >= asked)
        });
    }

    /// Looks away until the guard is dropped, and does not know what was changed meanwhile.
    pub fn look_away(&self) -> Away<'_> {
        self.look();
        self.shared.state().blind = true;
        self.shared.wake.notify_one();
        wait_for("closed eyes", Duration::from_secs(20), || self.shared.state().up.iter().all(|up| !up));
        Away(self)
    }

    /// The test changes the source's content to this number.
    pub fn stamping(&self, number: u32, change: impl FnOnce()) {
        let _changing = self.shared.stamping.blocking_lock();
        change();
        self.shared.state().source.insert(stamped(number));
    }

    /// Something of this is not judged in this world; `why` is for the reader.
    pub fn spare(&self, what: Spare, why: &str) {
        assert!(!why.is_empty());
        self.shared.state().spared.insert(what);
    }

    /// What an outage may last beyond `max_outage`.
    pub fn margin(&self, margin: Duration) {
        self.shared.state().margin = margin;
    }

    /// A key of the configuration was set: some of them say what is to be expected.
    pub fn configured(&self, key: &str, value: &str) {
        let mut state = self.shared.state();
        let value = value.trim_matches('"');
        match key.rsplit('.').next() {
            Some("max_outage") => state.max_outage = humantime::parse_duration(value).unwrap(),
            Some("max_connections") => {
                state.pushed.insert(value.to_owned());
            }
            Some("accounts") if value != "destination" => {
                state.spared.insert(Spare::Accounts);
            }
            _ => {}
        }
    }

    /// What was wrong until now, each of it once.
    pub fn verdicts(&self) -> Vec<String> {
        let mut state = self.shared.state();
        let new: Vec<String> = state.judge().into_iter().filter(|verdict| !state.told.contains(verdict)).collect();
        state.told.extend(new.iter().cloned());
        new
    }

    /// Fails if anything was wrong.
    #[track_caller]
    pub fn judge(&self) {
        let verdicts = self.verdicts();
        assert!(verdicts.is_empty(), "a client has seen what nobody may see:\n{}", verdicts.join("\n"));
    }

    /// Ends; returns what was wrong and was not told yet.
    pub fn finish(&mut self) -> Vec<String> {
        self.shared.state().end = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            return vec!["the poller itself has failed".to_owned()];
        }
        let longest = self.shared.state().longest;
        if longest > Duration::from_secs(5) {
            eprintln!("the source's longest outage: {longest:.1?}");
        }
        self.verdicts()
    }
}

/// While it lives, the poller sees nothing.
pub struct Away<'p>(&'p Poller);

impl Drop for Away<'_> {
    fn drop(&mut self) {
        self.0.shared.state().blind = false;
        self.0.shared.wake.notify_one();
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        self.finish();
    }
}

impl State {
    /// All that is wrong with what was seen.
    fn judge(&self) -> Vec<String> {
        let mut verdicts = self.outages.clone();
        for (name, lives) in &self.destinations {
            let found = judge(name, lives, &self.source, &self.pushed);
            let spared = |what: Option<Spare>| what.is_some_and(|what| self.spared.contains(&what));
            verdicts.extend(found.into_iter().filter(|(what, _)| !spared(*what)).map(|(_, text)| text));
        }
        verdicts
    }
}

/// What a content is made of, without its marks: which of the two schemas are there.
fn kind(content: &str) -> &str {
    content.split(' ').next().unwrap_or_default()
}

/// Judges what a destination has shown, life after life; with each complaint what a test may have spared.
fn judge(
    name: &str,
    lives: &[Life],
    source: &BTreeSet<String>,
    pushed: &BTreeSet<String>,
) -> Vec<(Option<Spare>, String)> {
    let mut wrong = Vec::new();
    let Some(home) = lives.first().and_then(|life| life.first()) else { return wrong };
    let (mut contents, mut accounts) = (BTreeSet::new(), BTreeSet::new());
    for (n, life) in lives.iter().enumerate() {
        let Some(first) = life.first() else { continue };
        let known = n == 0 || contents.contains(&first.content) || source.contains(&first.content);
        if !known {
            let all: Vec<_> = contents.iter().chain(source).cloned().collect();
            let text = format!("{name}: neither its own content nor the source's: {}\nbut {all:#?}", first.content);
            wrong.push((None, text));
        } else {
            contents.extend(life.iter().map(|look| look.content.clone()));
        }
        if kind(&first.content) == "error" {
            continue;
        }
        if n > 0 && !accounts.contains(&first.accounts) {
            let text = format!("{name}: reachable with accounts (research's/production's) {}", first.accounts);
            wrong.push((Some(Spare::Accounts), format!("{text}, had {accounts:?} ({})", first.content)));
        } else {
            accounts.extend(life.iter().map(|look| look.accounts.clone()));
        }
        // where the source's content looks like its own, nobody can say which generation it is
        let ours = kind(&first.content) == kind(&home.content);
        let theirs = source.iter().any(|content| kind(content) == kind(&first.content));
        let fits = match (ours, theirs) {
            (true, false) => first.settings == home.settings,
            (false, true) => pushed.contains(&first.settings),
            _ => true,
        };
        if !fits {
            let text = format!("{name}: the other generation's settings: max_connections is {}", first.settings);
            wrong.push((Some(Spare::Settings), format!("{text} with {}", first.content)));
        }
    }
    wrong
}

/// The client's view of one server.
struct Eye {
    server: Server,
    /// None: the source.
    destination: Option<usize>,
    conn: Option<Conn>,
    /// Not looked at since it was connected.
    fresh: bool,
    asked: u32,
    /// When it was asked last, and for how long it has not answered since it last did.
    last: Instant,
    away: Duration,
    overdue: bool,
    /// What was complained of at the last look; a server that is about to end says all kinds of things.
    complaint: Option<String>,
}

async fn watch(shared: &Shared, servers: Vec<Server>) {
    let mut eyes: Vec<Eye> = servers
        .into_iter()
        .enumerate()
        .map(|(n, server)| Eye {
            server,
            destination: n.checked_sub(1),
            conn: None,
            fresh: true,
            asked: 0,
            last: Instant::now(),
            away: Duration::ZERO,
            overdue: false,
            complaint: None,
        })
        .collect();
    loop {
        let (end, blind, asked) = {
            let state = shared.state();
            (state.end, state.blind, state.asked)
        };
        if end || blind {
            for eye in &mut eyes {
                if let Some(conn) = eye.conn.take() {
                    let _ = timeout(ANSWER, conn.disconnect()).await;
                }
                (eye.last, eye.away) = (Instant::now(), Duration::ZERO);
            }
            shared.state().up.fill(false);
        }
        if end {
            return;
        }
        if !blind {
            let up = futures_util::future::join_all(eyes.iter_mut().map(|eye| eye.ask(shared, asked))).await;
            let mut state = shared.state();
            (state.up, state.rounds) = (up, asked);
        }
        let pause = if eyes.iter().all(|eye| eye.conn.is_some()) { PERIOD } else { DOWN_PERIOD };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shared.wake.notified() => {}
        }
    }
}

impl Eye {
    /// Asks once. True: it answers, and may be looked at.
    async fn ask(&mut self, shared: &Shared, wanted: u64) -> bool {
        let answers = self.answers().await;
        self.time(shared, answers);
        if !answers {
            self.conn = None;
            return false;
        }
        self.asked += 1;
        let place = self.destination.map_or(0, |n| n + 1);
        let due = self.fresh || self.asked.is_multiple_of(LOOK_EVERY) || shared.state().answered[place] < wanted;
        if due && self.look_at(shared).await {
            shared.state().answered[place] = wanted;
        }
        self.conn.is_some()
    }

    async fn answers(&mut self) -> bool {
        if let Some(conn) = &mut self.conn {
            return matches!(timeout(ANSWER, conn.ping()).await, Ok(Ok(())));
        }
        let options = OptsBuilder::default()
            .ip_or_hostname("localhost")
            .socket(Some(self.server.socket().to_string_lossy()))
            .prefer_socket(Some(true))
            .user(Some(me()))
            .stmt_cache_size(0)
            // a table that somebody has locked must not hold us
            .init(vec!["SET SESSION lock_wait_timeout = 1"]);
        if let Ok(Ok(conn)) = timeout(ANSWER, Conn::new(options)).await {
            (self.conn, self.fresh, self.complaint) = (Some(conn), true, None);
        }
        self.conn.is_some()
    }

    /// Keeps account of how long a source was away.
    fn time(&mut self, shared: &Shared, answers: bool) {
        // a machine that stands still, poller and all, says nothing of the source
        let gap = self.away + self.last.elapsed().min(2 * ANSWER);
        let told = self.overdue;
        (self.last, self.away) = (Instant::now(), gap);
        if answers || self.server.is_held() {
            (self.away, self.overdue) = (Duration::ZERO, false);
        }
        if self.destination.is_some() || self.server.is_held() {
            return;
        }
        let mut state = shared.state();
        state.longest = state.longest.max(gap);
        let allowed = state.max_outage + state.margin;
        if gap > allowed && !told {
            self.overdue = !answers;
            state.outages.push(format!("{}: no answer for {gap:.1?}; {allowed:?} are allowed", self.server.name));
        }
    }

    /// Looks, and keeps what was seen. False: it could not be seen now.
    async fn look_at(&mut self, shared: &Shared) -> bool {
        let still = shared.stamping.try_lock();
        if self.destination.is_none() && still.is_err() {
            return false;
        }
        let Some(conn) = &mut self.conn else { return false };
        let look = match timeout(ANSWER, look(conn)).await {
            Ok(Ok(look)) => look,
            // tables that are not there, or broken: said twice, it is what this server shows
            Ok(Err(Error::Server(error))) if ![1205, 1047, 1053, 1317, 1927].contains(&error.code) => {
                let content = format!("error {} {}", error.code, error.message);
                if self.complaint.as_ref() != Some(&content) {
                    self.complaint = Some(content);
                    return false;
                }
                Look { content, accounts: String::new(), settings: String::new() }
            }
            // busy: somebody holds a table's lock
            Ok(Err(Error::Server(_))) => return true,
            _ => {
                self.conn = None;
                return false;
            }
        };
        let mut state = shared.state();
        match self.destination {
            None => {
                state.source.insert(look.content);
            }
            Some(n) => {
                let lives = &mut state.destinations[n].1;
                if self.fresh || lives.is_empty() {
                    lives.push(Vec::new());
                }
                if let Some(life) = lives.last_mut()
                    && life.last() != Some(&look)
                {
                    life.push(look);
                }
            }
        }
        self.fresh = false;
        true
    }
}

async fn look(conn: &mut Conn) -> Result<Look, Error> {
    let head: Option<(String, String, String)> = conn
        .query_first(
            "SELECT CONCAT((SELECT IFNULL(GROUP_CONCAT(schema_name ORDER BY schema_name), '') \
             FROM information_schema.schemata WHERE schema_name IN ('shop', 'research')), ''), \
             CONCAT(@@GLOBAL.max_connections, ''), \
             (SELECT CONCAT(SUM(User = 'analyst'), '/', SUM(User LIKE 'prod%')) FROM mysql.global_priv)",
        )
        .await?;
    let (schemas, settings, accounts) = head.unwrap_or_default();
    let mut content = schemas.clone();
    if schemas.split(',').any(|schema| schema == "research") {
        let marks: Option<String> = conn
            .query_first(
                "SELECT CONCAT(IFNULL(GROUP_CONCAT(DISTINCT content ORDER BY content), ''), '/', \
                 (SELECT COUNT(*) FROM research.results)) FROM research.stamp",
            )
            .await?;
        content += &format!(" {}", marks.unwrap_or_default());
    }
    if schemas.split(',').any(|schema| schema == "shop") {
        let of = |table: &&str| {
            format!(
                "SELECT CONCAT('{table}/', IFNULL(MIN(stamp), ''), '/', IFNULL(MAX(stamp), ''), '/', COUNT(*) >= 100) FROM shop.{table}"
            )
        };
        let all: Vec<String> = template::STAMPED.iter().map(of).collect();
        let marks: Vec<String> = conn.query(all.join(" UNION ALL ")).await?;
        content += &format!(" {}", marks.join(" "));
    }
    Ok(Look { content, accounts, settings })
}

#[test]
fn a_poller_knows_what_belongs_together() {
    let look = |content: &str, accounts: &str, settings: &str| {
        vec![Look { content: content.into(), accounts: accounts.into(), settings: settings.into() }]
    };
    let (source, pushed) =
        (BTreeSet::from([stamped(1), stamped(2), "research,shop x".into()]), BTreeSet::from(["77".to_owned()]));
    let judged = |lives: &[Life]| -> Vec<Option<Spare>> {
        judge("r1", lives, &source, &pushed).into_iter().map(|(what, _)| what).collect()
    };
    let home = look("research r1/1000", "2/0", "40");
    let new = look(&stamped(2), "2/0", "77");
    assert_eq!(judged(&[]), []);
    assert_eq!(judged(&[home.clone(), new.clone(), home.clone(), look(&stamped(1), "2/0", "77"), new.clone()]), []);
    assert_eq!(judged(&[home.clone(), look(&stamped(3), "2/0", "77")]), [None], "never on the source");
    assert_eq!(judged(&[home.clone(), look("shop orders/1/2/1", "2/0", "77")]), [None], "a mix");
    assert_eq!(judged(&[home.clone(), look("", "2/0", "77")]), [None], "nothing");
    assert_eq!(judged(&[home.clone(), look("error 1146 no such table", "", "")]), [None]);
    assert_eq!(judged(&[home.clone(), look(&stamped(2), "0/2", "77")]), [Some(Spare::Accounts)]);
    assert_eq!(judged(&[home.clone(), look(&stamped(2), "2/0", "40")]), [Some(Spare::Settings)]);
    assert_eq!(judged(&[home.clone(), look("research r1/1000", "2/0", "77")]), [Some(Spare::Settings)]);
    // a mix that stays is not its own for that
    let mix = look("shop orders/1/2/1", "2/0", "77");
    assert_eq!(judged(&[home.clone(), mix.clone(), mix]), [None, None]);
    // what the test changes on a running server, and what was there at the beginning, is
    let changed = [home.clone(), look("research r9/1000", "2/1", "33")].concat();
    assert_eq!(judged(&[changed, look("research r9/1000", "2/1", "40")]), []);
    assert_eq!(judged(&[look("", "0/0", "40"), look("", "0/0", "40"), look(&stamped(1), "0/0", "77")]), []);
}

#[test]
fn a_poller_sees_what_nobody_may_see() {
    let world = World::new();
    let server = world.destination();
    let unseen = |sql: &str| {
        let away = world.poller().look_away();
        server.sql(sql);
        drop(away);
        world.poller().look();
        world.poller().verdicts()
    };
    let one =
        |verdicts: Vec<String>, word: &str| assert!(verdicts.len() == 1 && verdicts[0].contains(word), "{verdicts:?}");
    assert!(unseen("SELECT 1").is_empty());
    one(unseen("INSERT INTO research.stamp VALUES ('other')"), "neither its own content nor the source's");
    one(
        unseen("DELETE FROM research.stamp WHERE content = 'other'; CREATE USER prod_x@localhost"),
        "reachable with accounts",
    );
    one(unseen("DROP USER prod_x@localhost; SET GLOBAL max_connections = 77"), "the other generation's settings");
    one(unseen("SET GLOBAL max_connections = 40; DROP DATABASE research"), "neither its own");
    one(unseen("CREATE DATABASE shop"), "neither its own");
}

#[test]
fn a_poller_takes_the_time_of_an_outage() {
    let world = World::builder().destinations(0).build();
    world.set("refreshes.nightly.max_outage", "\"1s\"");
    world.poller().margin(Duration::from_secs(1));
    world.source.stop();
    std::thread::sleep(Duration::from_secs(3));
    world.source.start();
    world.poller().look();
    assert_eq!(world.poller().verdicts(), Vec::<String>::new(), "the test has stopped it");
    signal(world.source.process().unwrap().pid, "-KILL");
    std::thread::sleep(Duration::from_secs(3));
    let verdicts = world.poller().verdicts();
    assert!(verdicts.len() == 1 && verdicts[0].contains("db1: no answer for"), "{verdicts:?}");
    world.source.start();
    world.poller().look();
    assert_eq!(world.poller().verdicts(), Vec::<String>::new(), "told twice");
}
