//! A bench on which one fault after the other is tried, and what each of them must leave: a source that was never down for longer
//! than it may be and has lost nothing, destinations that serve the old image or the new one and let nobody of production in,
//! nothing that stands in the way, and a history that says what is so.
//!
//! One fleet for many faults: each case stamps the source anew, so that every image is told from the others.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::accounts;
use crate::dump::{self, Content, EVENTS_DISABLED, FILES_REMADE, MEMORY_EMPTIED};
use crate::fleet::{Fleet, Host, Ran, eventually};
use crate::mariadb::production;
use crate::operator::{Operator, WHOLE};
use crate::watch::{Witness, Writer, stamp};

/// The longest that a source may be down, whatever becomes of its run: 5 s of silence, a stop that is waited for, a start; on a
/// busy machine.
pub const CAP: Duration = Duration::from_secs(40);

/// The steps of a run, as the locks on the controller name them.
const STEPS: [&str; 15] = [
    "lock",
    "preflight",
    "stage",
    "precopy",
    "drain",
    "guard",
    "stop",
    "copy",
    "prove",
    "start",
    "disarm",
    "install",
    "swap",
    "verify",
    "finish",
];

/// The same where the source's files are frozen.
const FROZEN_STEPS: [&str; 15] = [
    "lock",
    "preflight",
    "stage",
    "drain",
    "guard",
    "stop",
    "freeze",
    "start",
    "disarm",
    "copy",
    "prove",
    "install",
    "swap",
    "verify",
    "finish",
];

/// The bench.
pub struct Trial<'a> {
    fleet: &'a Fleet,
    // where the bench keeps its hosts
    state: PathBuf,
    /// Who sits at the controller.
    pub operator: Operator<'a>,
    /// Production.
    pub src: Host<'a>,
    destinations: Vec<Destination<'a>>,
    writer: Writer,
    stamp: u64,
    begun: Instant,
    expected: Content,
    report: Vec<String>,
}

struct Destination<'a> {
    host: Host<'a>,
    witness: Witness,
    accounts: String,
    serves: u64,
    run: String,
}

impl<'a> Trial<'a> {
    /// Sets up everything for `src`, the destinations with their transports, and the controller, and refreshes once.
    #[track_caller]
    pub fn new(fleet: &'a Fleet, source: &str, destinations: &[(&'a str, &str)]) -> Trial<'a> {
        let begun = Instant::now();
        let src = fleet.host("src");
        production(src);
        // a little of it in every part of the volume; and random, so that no compression makes it less
        for n in 1..=8 {
            src.sql(&format!(
                "CREATE DATABASE bulk{n}; CREATE TABLE bulk{n}.rows_ (id INT PRIMARY KEY, body VARBINARY(1024)) ENGINE=InnoDB;
                 INSERT INTO bulk{n}.rows_ SELECT n, RANDOM_BYTES(1024) FROM shop.numbers;
                 INSERT INTO bulk{n}.rows_ SELECT 5000 + n, RANDOM_BYTES(1024) FROM shop.numbers;"
            ));
        }
        stamp(src, 1);
        let hosts: Vec<Host<'a>> = destinations.iter().map(|(name, _)| fleet.host(name)).collect();
        for host in &hosts {
            accounts::make(*host);
            let own = "[client]\nuser=dev\npassword=\"of research's own\"\nhost=127.0.0.1\nprotocol=tcp\n";
            host.write("/root/own.cnf", own);
        }
        let quick = "[daemon]\nhost_timeout = \"5s\"\n[environments.prod.ssh]\nconnect_timeout = \"5s\"\n\
            [environments.rnd.ssh]\nconnect_timeout = \"5s\"\n";
        let operator = Operator::sets_up(fleet, ("src", source), destinations, &format!("{WHOLE}{quick}"));
        for host in std::iter::once(&src).chain(&hosts) {
            host.sh("sed -i '/^\\[instances.main\\]/a start_timeout = \"15s\"\\nstop_timeout = \"10s\"' /etc/mysql-refreshd/host.toml");
        }
        // the operator logs in for every word here: a user manager that stays makes that quick
        operator.controller.sh("loginctl enable-linger deploy");
        operator.refreshd("--now nightly").expect(0);
        let expected = dump::content(src);
        let destinations = hosts.into_iter().map(|host| Destination {
            witness: Witness::at(host),
            accounts: accounts::rows(host),
            serves: 1,
            run: String::new(),
            host,
        });
        let mut trial = Trial {
            fleet,
            state: operator.controller.root().join("../..").canonicalize().unwrap(),
            operator,
            src,
            destinations: destinations.collect(),
            writer: Writer::every(src, "0.15"),
            stamp: 1,
            begun,
            expected,
            report: Vec::new(),
        };
        trial.src.sh("sync");
        for (n, run) in trial.recovered(true).into_iter().enumerate() {
            assert_eq!(trial.destinations[n].witness.serves(), 1);
            trial.destinations[n].run = run;
        }
        trial.tell(format!("set up: {:.1} s", begun.elapsed().as_secs_f64()));
        trial
    }

    /// Destination number `n`.
    pub fn dst(&self, n: usize) -> Host<'a> {
        self.destinations[n].host
    }

    /// A host by its name.
    pub fn host(&self, name: &'a str) -> Host<'a> {
        self.fleet.host(name)
    }

    /// Calls another verb of the bench's script, e.g. `net d1 cut`.
    #[track_caller]
    pub fn hosts(&self, words: &str) {
        self.fleet.hosts(&words.split(' ').collect::<Vec<_>>());
    }

    /// A case: a run, and what happens to it.
    pub fn case(&mut self, what: impl Into<String>) -> Case<'_, 'a> {
        Case {
            trial: self,
            what: what.into(),
            options: String::new(),
            codes: vec![1],
            cap: CAP,
            broken: false,
            steps: &STEPS,
        }
    }

    fn tell(&mut self, line: String) {
        eprintln!("{line}");
        self.report.push(line);
    }

    /// Has everything put back that a run may have left, which must then leave nothing to do; gives which run's image each
    /// destination serves, by the history.
    #[track_caller]
    fn recovered(&self, at_once: bool) -> Vec<String> {
        let first = if at_once { "true" } else { "sudo mysql-refreshd recover >&2" };
        let again = "test \"$(sudo mysql-refreshd recover)\" = 'Nothing to recover.'";
        let told = self.operator.does(&format!("{first} && {again} && sudo mysql-refreshd status --json")).expect(0);
        let status: serde_json::Value = serde_json::from_str(&told.stdout).unwrap();
        assert_eq!(status["alarms"], serde_json::json!([]), "{told}");
        let all = status["refreshes"][0]["destinations"].as_array().unwrap();
        all.iter().map(|one| one["serves"]["run"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Ends with one more refresh that goes well, and compares all that there is.
    #[track_caller]
    pub fn finish(mut self) {
        let before = self.writer.committed();
        self.case("and once more, undisturbed").codes(&[0]).run(|_| {});
        let meant = [MEMORY_EMPTIED, FILES_REMADE];
        let expected = self.expected.with(&meant);
        let now = dump::content(self.src).with(&meant);
        expected.check_same(&now);
        for destination in &self.destinations {
            let host = destination.host;
            now.with(&[EVENTS_DISABLED]).check_same(&dump::content(host).with(&meant));
            assert_eq!(accounts::rows(host), destination.accounts, "{}: accounts", host.name);
            nothing_is_left(host, PROCESSES, "in the end");
        }
        nothing_is_left(self.src, PROCESSES, "in the end");
        let hosts: Vec<Host<'_>> = self.destinations.iter().map(|d| d.host).collect();
        self.writer.check(self.src, &hosts, before);
        eprintln!("{}\nall: {:.1} s", self.report.join("\n"), self.begun.elapsed().as_secs_f64());
    }
}

/// One run with its fault.
#[must_use = "a case is run"]
pub struct Case<'t, 'a> {
    trial: &'t mut Trial<'a>,
    what: String,
    options: String,
    codes: Vec<i32>,
    cap: Duration,
    broken: bool,
    steps: &'static [&'static str],
}

impl<'a> Case<'_, 'a> {
    /// More words for the run's command line.
    pub fn with(mut self, options: &str) -> Self {
        self.options = options.to_owned();
        self
    }

    /// How the run may end; by default it fails and everything is put back.
    pub fn codes(mut self, codes: &[i32]) -> Self {
        self.codes = codes.to_vec();
        self
    }

    /// How long the source may be down here, where that is not up to the program.
    pub fn cap(mut self, cap: Duration) -> Self {
        self.cap = cap;
        self
    }

    /// The source's files are frozen.
    pub fn freezes(mut self) -> Self {
        self.steps = &FROZEN_STEPS;
        self
    }

    /// A destination's disk is broken on the way: its server may say so.
    pub fn broken_disk(mut self) -> Self {
        self.broken = true;
        self
    }

    /// Runs it, with the fault beside it, and asks for all that must be so afterwards.
    #[track_caller]
    pub fn run(self, fault: impl FnOnce(&Live<'_, 'a>)) -> Ran {
        let Case { trial, what, options, codes, cap, broken, steps } = self;
        let began = Instant::now();
        trial.stamp += 1;
        stamp(trial.src, trial.stamp);
        // a source that lost power would lose what the server of MyISAM's tables has written and never made durable
        trial.src.sh("sync -f /srv/data");
        let watched = Instant::now();
        let over = AtomicBool::new(false);
        let live =
            Live { trial, earlier: where_it_is(trial).map(|(run, _)| run).unwrap_or_default(), over: &over, steps };
        let ran = std::thread::scope(|scope| {
            let run = scope.spawn(|| {
                let ran = trial.operator.refreshd(&format!("--now nightly {options}"));
                over.store(true, Ordering::Relaxed);
                ran
            });
            fault(&live);
            run.join().unwrap()
        });
        let code = ran.code.unwrap_or(-1);
        let took = began.elapsed();
        assert!(codes.contains(&code), "{what}: {codes:?} were expected\n{ran}");
        let src = trial.src;
        eventually(&format!("{what}: the source serves"), cap, || src.try_sql("", "SELECT 1").code == Some(0));
        let said = trial.recovered(code == 0);
        let mut shown = Vec::new();
        for (destination, said) in trial.destinations.iter_mut().zip(said) {
            let (old, new, name) = (destination.serves, trial.stamp, destination.host.name);
            let serves = destination.witness.serves();
            let seen = destination.witness.saw(watched, broken);
            assert!(
                seen.iter().all(|one| *one == old || *one == new),
                "{what}: {name} served {seen:?}, not {old} or {new}\n{ran}"
            );
            assert!(serves == old || serves == new, "{what}: {name} serves {serves}");
            assert_eq!(
                serves == new,
                said != destination.run,
                "{what}: {name} serves {serves}, and run {said} is said to have been\n{ran}"
            );
            assert!(code != 0 || serves == new, "{what}: {name} serves {serves}, and all was said to be well\n{ran}");
            // these promise that the old data serves
            assert!(![1, 3, 4, 130].contains(&code) || serves == old, "{what}: {name} serves {serves}\n{ran}");
            (destination.serves, destination.run) = (serves, said);
            shown.push(if serves == new { "new" } else { "old" });
        }
        let hosts: Vec<Host<'_>> = std::iter::once(src).chain(trial.destinations.iter().map(|d| d.host)).collect();
        for host in hosts {
            nothing_is_left(host, LEFT, &what);
        }
        let gap = trial.writer.longest_gap_since(watched);
        assert!(gap < cap, "{what}: the source was down for {gap:?}\n{ran}");
        trial.tell(format!(
            "{what}: code {code}, {}, source down {:.1} s, run {:.1} s, case {:.1} s",
            shown.join(" and "),
            gap.as_secs_f64(),
            took.as_secs_f64(),
            began.elapsed().as_secs_f64()
        ));
        ran
    }
}

/// What must not be on a host after a run, a line each: nothing that is held down, staged or half swapped, no server past its unit, and
/// no destination's own people that are not let in.
const LEFT: &str = "ls /run/systemd/system/*.d/mysql-refreshd.held 2>/dev/null || true
    ls -d /srv/data/.mysql.refreshd/{stage,swap.json,aside,frozen} /var/lib/mysql-refreshd/host/freeze/*.json 2>/dev/null || true
    unit=mysql.service
    [ ! -e /usr/sbin/mariadbd ] || unit=mariadb.service
    server=$(pgrep -o -x 'mariadbd|mysqld' || echo none) main=$(systemctl show -P MainPID $unit)
    [ \"$server\" = \"$main\" ] || echo \"the server is process $server, that of $unit is $main\"
    client=$(command -v mariadb || command -v mysql)
    [ ! -e /root/own.cnf ] || $client --defaults-file=/root/own.cnf -e 'SELECT 1' >/dev/null || echo 'dev is not let in'";

/// A guard stays for a while after it has fired, and an agent whose network died hears of that only by the silence.
const PROCESSES: &str = "pgrep -a -f '([m]ysql-refreshd|/proc/self/[e]xe) (agent|guard)' || true";

#[track_caller]
fn nothing_is_left(host: Host<'_>, what: &str, case: &str) {
    let (end, mut left) = (Instant::now() + Duration::from_secs(45), host.sh(what));
    while !left.is_empty() {
        assert!(Instant::now() < end, "{case}: on {} there is still\n{left}", host.name);
        std::thread::sleep(Duration::from_millis(300));
        left = host.sh(what);
    }
}

/// While a run is under way.
pub struct Live<'t, 'a> {
    trial: &'t Trial<'a>,
    earlier: String,
    over: &'t AtomicBool,
    steps: &'static [&'static str],
}

impl<'a> Live<'_, 'a> {
    /// The bench.
    pub fn trial(&self) -> &Trial<'a> {
        self.trial
    }

    /// Waits until the run is in this step or just past it; gives the one it is in.
    #[track_caller]
    pub fn until(&self, step: &str) -> String {
        let wanted = self.steps.iter().position(|known| *known == step).expect("a step's name");
        let end = Instant::now() + Duration::from_secs(90);
        // a run that has just begun says "start", too
        let mut begun = false;
        loop {
            let over = self.over();
            if let Some((run, now)) = where_it_is(self.trial)
                && run != self.earlier
            {
                begun |= now != "start";
                if begun && self.steps.iter().position(|known| *known == now).is_some_and(|at| at >= wanted) {
                    return now;
                }
            }
            assert!(!over && Instant::now() < end, "the run does not come to {step}: {:?}", where_it_is(self.trial));
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Until its copy is well under way.
    #[track_caller]
    pub fn until_it_copies(&self) {
        self.until("copy");
        self.until_bytes_arrive();
    }

    /// Until the stage of the first destination holds some.
    #[track_caller]
    pub fn until_bytes_arrive(&self) {
        let work = self.trial.volume(self.trial.dst(0)).join(".mysql.refreshd/stage/bulk1");
        eventually("bytes arrive", Duration::from_secs(60), || work.exists() || self.over());
        assert!(!self.over(), "the run ended before it copied");
    }

    /// Whether the run is over.
    pub fn over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Until it is over.
    #[track_caller]
    pub fn until_over(&self) {
        eventually("the run's end", Duration::from_secs(300), || self.over());
    }

    /// Until the source serves again, within the time that it may take.
    #[track_caller]
    pub fn until_the_source_is_back(&self) {
        let src = self.trial.src;
        eventually("the source", CAP, || src.try_sql("", "SELECT 1").code == Some(0));
    }
}

impl Trial<'_> {
    /// A host's data volume, as the machine below sees it.
    pub fn volume(&self, host: Host<'_>) -> PathBuf {
        self.state.join(host.name).join("vol")
    }

    /// Cuts a host's power: all that runs there is gone at once, without a word to anyone, and so is what its data volume
    /// has not made durable.
    #[track_caller]
    pub fn cut_power(&self, host: Host<'_>) {
        // not by the script, which needs longer than some steps last
        let leader = std::fs::read_to_string(self.state.join(host.name).join("leader")).unwrap();
        let link = std::fs::read_to_string(self.state.join(host.name).join("num")).unwrap();
        let outside = format!("{}-net", self.fleet.name());
        let did =
            |program: &str, words: &[&str]| assert!(Command::new(program).args(words).status().unwrap().success());
        did("ip", &["-n", &outside, "link", "set", &format!("v{}", link.trim()), "down"]);
        did("kill", &["-KILL", leader.trim()]);
        // the kernel ends everyone else inside first: nobody is left who could be told that the disk is gone
        eventually("nothing runs there", Duration::from_secs(20), || ended(leader.trim()));
        did("xfs_io", &["-x", "-c", "shutdown", self.volume(host).to_str().unwrap()]);
        // by now it may be gone already
        let _ = Ran::of(self.fleet.command(&["crash", host.name]), "crash");
    }

    /// Boots a host whose power was cut, until its server serves.
    #[track_caller]
    pub fn boot(&self, host: Host<'_>) {
        let recovers = || Ran::of(self.fleet.command(&["disk", host.name, "recover"]), "recover").code == Some(0);
        eventually("the volume is let go", Duration::from_secs(20), recovers);
        self.hosts(&format!("net {} heal", host.name));
        self.hosts(&format!("start {}", host.name));
        // what a controller wants put back there meanwhile is refused: the host's own repair has the lock
        let repair = || host.sh("systemctl is-active mysql-refreshd-repair || true");
        eventually("the repair at boot is over", Duration::from_secs(60), || repair() != "activating");
        assert_eq!(repair(), "inactive", "{}", host.sh("journalctl -b -u mysql-refreshd-repair --no-pager | tail -20"));
    }
}

/// Whether a process has ended, even if nobody has asked for its end yet.
fn ended(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with(['Z', 'X']))
}

/// The run that the controller's locks name, and its step: what whoever waits for one of them is told. Read as a file from
/// outside, since some steps are over in a hundredth of a second.
fn where_it_is(trial: &Trial<'_>) -> Option<(String, String)> {
    let folder = trial.state.join("ctl/root/var/lib/mysql-refreshd/controller/locks");
    let files = std::fs::read_dir(folder).ok()?.flatten();
    let said = |file: std::fs::DirEntry| -> Option<(String, String)> {
        let holder: serde_json::Value = serde_json::from_slice(&std::fs::read(file.path()).ok()?).ok()?;
        Some((holder["run"].as_str()?.to_owned(), holder["step"].as_str()?.to_owned()))
    };
    // ids sort by time
    files
        .filter(|file| file.file_name().to_string_lossy().starts_with("controller-"))
        .filter_map(said)
        .max_by(|a, b| a.0.cmp(&b.0))
}
