//! What users see while a run is under way: one who commits on the source without a pause, and one who looks at a destination all
//! the time.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::fleet::{Host, eventually};

/// The lines that a command prints, each with the time it came at. A command that ends by itself, as it does when its host loses
/// power, is begun again.
struct Lines {
    child: Arc<Mutex<Option<Child>>>,
    seen: Arc<Mutex<Vec<(Instant, String)>>>,
    enough: Arc<AtomicBool>,
}

impl Lines {
    fn of(command: Command) -> Lines {
        let lines = Lines { child: Arc::default(), seen: Arc::default(), enough: Arc::default() };
        let (child, into, enough) = (lines.child.clone(), lines.seen.clone(), lines.enough.clone());
        std::thread::spawn(move || {
            while !enough.load(Ordering::Relaxed) {
                let mut begun = same(&command).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
                let out = BufReader::new(begun.stdout.take().unwrap());
                *child.lock().unwrap() = Some(begun);
                for line in out.lines().map_while(Result::ok).take_while(|_| !enough.load(Ordering::Relaxed)) {
                    into.lock().unwrap().push((Instant::now(), line));
                }
                end(&child);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        lines
    }

    fn all(&self) -> Vec<(Instant, String)> {
        self.seen.lock().unwrap().clone()
    }
}

/// A command once more: one of the standard library's cannot be copied.
fn same(command: &Command) -> Command {
    let mut copy = Command::new(command.get_program());
    copy.args(command.get_args()).envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    copy.stdin(Stdio::null());
    copy
}

fn end(child: &Mutex<Option<Child>>) {
    if let Some(mut child) = child.lock().unwrap().take() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        // what runs inside the host is no child of ours: it ends when nobody reads its next line, or with its host
        self.enough.store(true, Ordering::Relaxed);
        end(&self.child);
    }
}

/// Commits rows to `ledger.commits` one after the other.
pub struct Writer {
    lines: Lines,
}

impl Writer {
    /// Begins, after the last row that is there, and again so when the host is back after a power cut. A commit whose answer was
    /// lost is asked for before the next.
    #[track_caller]
    pub fn on(host: Host<'_>) -> Writer {
        Writer::every(host, "0.05")
    }

    /// The same with a pause of so many seconds after each commit: a client for each of them costs more than the commit.
    #[track_caller]
    pub fn every(host: Host<'_>, pause: &str) -> Writer {
        let line = "client=$(command -v mariadb || command -v mysql); n=
            until n=$($client -N -B -e 'SELECT COALESCE(MAX(n), 0) FROM ledger.commits' 2>/dev/null) && [ -n \"$n\" ]; do sleep 0.05; done
            echo \"from $n\"
            there() { [ \"$($client -N -B -e \"SELECT COUNT(*) FROM ledger.commits WHERE n = $n\" 2>/dev/null)\" = 1 ]; }
            while :; do
                n=$((n + 1))
                until $client -e \"INSERT INTO ledger.commits (n) VALUES ($n)\" 2>/dev/null || there; do sleep 0.02; done
                echo $n
                [ PAUSE = 0 ] || sleep PAUSE
            done";
        let writer = Writer { lines: Lines::of(host.shell(&line.replace("PAUSE", pause))) };
        eventually("the first commits", Duration::from_secs(20), || writer.commits().len() > 3);
        writer
    }

    /// Every commit that was answered, and when.
    fn commits(&self) -> Vec<(Instant, u64)> {
        self.lines.all().into_iter().filter_map(|(at, line)| Some((at, line.parse().ok()?))).collect()
    }

    /// The greatest number that was committed.
    pub fn committed(&self) -> u64 {
        self.commits().iter().map(|(_, n)| *n).max().unwrap_or(0)
    }

    /// The longest time without a commit until now.
    pub fn longest_gap(&self) -> Duration {
        self.commits().windows(2).map(|two| two[1].0 - two[0].0).max().unwrap_or_default()
    }

    /// The same since some time, with what is still going on.
    pub fn longest_gap_since(&self, since: Instant) -> Duration {
        let now = Instant::now();
        let mut times: Vec<Instant> = self.commits().into_iter().map(|(at, _)| at).filter(|at| *at >= since).collect();
        times.insert(0, since);
        times.push(now);
        times.windows(2).map(|two| two[1] - two[0]).max().unwrap_or_default()
    }

    /// Ends it. On the source everything must be there that was answered; on a destination the commits up to one point in time,
    /// without a hole, and that point is not before `at_least`.
    #[track_caller]
    pub fn check(self, source: Host<'_>, destinations: &[Host<'_>], at_least: u64) {
        // after each power cut, too: what it began from then must hold all that was answered before
        let mut answered = 0;
        for (_, line) in self.lines.all() {
            match line.strip_prefix("from ") {
                Some(n) => assert!(n.parse::<u64>().unwrap() >= answered, "{answered} were committed, {n} came back"),
                None => answered = line.parse().unwrap(),
            }
        }
        let committed = self.committed();
        drop(self);
        let rows = |host: Host<'_>| -> (u64, u64) {
            let row = host.sql("SELECT COUNT(*), COALESCE(MAX(n), 0) FROM ledger.commits");
            let (count, last) = row.split_once('\t').unwrap();
            (count.parse().unwrap(), last.parse().unwrap())
        };
        let (count, last) = rows(source);
        assert!(
            count == last && last >= committed,
            "{}: {count} rows up to {last}, {committed} were committed",
            source.name
        );
        for host in destinations {
            let (count, last) = rows(*host);
            assert!(
                count == last && last >= at_least && last <= committed,
                "{}: {count} rows up to {last}; {at_least} were committed before the run, {committed} after it",
                host.name
            );
        }
    }
}

/// Asks a destination all the time which of its schemas it has.
pub struct Onlooker {
    lines: Lines,
    name: String,
}

impl Onlooker {
    /// Begins to look. Before a refresh the destination has the schema `mine` and not `shop`, after it `shop` and not `mine`.
    pub fn at(host: Host<'_>) -> Onlooker {
        let line = "client=$(command -v mariadb || command -v mysql)
            while :; do
                $client -N -B -e \"SELECT COALESCE(GROUP_CONCAT(schema_name ORDER BY 1), '-') FROM information_schema.schemata
                    WHERE schema_name IN ('mine', 'shop')\" 2>/dev/null || echo down
                sleep 0.1
            done";
        Onlooker { lines: Lines::of(host.shell(line)), name: host.name.to_owned() }
    }

    /// Ends. It must have seen the old data, perhaps nothing for a while, then the new data, and nothing else.
    #[track_caller]
    pub fn saw_old_then_new(self) {
        eventually("a last look", Duration::from_secs(30), || {
            self.lines.all().last().is_some_and(|(_, l)| l == "shop")
        });
        let mut seen: Vec<String> = self.lines.all().into_iter().map(|(_, line)| line).collect();
        seen.dedup();
        seen.retain(|line| line != "down");
        assert_eq!(seen, ["mine", "shop"], "{}", self.name);
    }

    /// Ends. It must have seen the old data, and nothing else, all the time.
    #[track_caller]
    pub fn saw_old_only(self) {
        let mut seen: Vec<String> = self.lines.all().into_iter().map(|(_, line)| line).collect();
        seen.dedup();
        assert_eq!(seen, ["mine"], "{}", self.name);
    }
}

/// Stamps on the source what the next image will be known by: the same number in tables of three kinds.
#[track_caller]
pub fn stamp(source: Host<'_>, n: u64) {
    source.sql(&format!(
        "CREATE TABLE IF NOT EXISTS ledger.stamp (n BIGINT) ENGINE=InnoDB; CREATE TABLE IF NOT EXISTS ledger.stamp_isam (n BIGINT) ENGINE=MyISAM;
         CREATE TABLE IF NOT EXISTS ledger.stamp_too (n BIGINT) ENGINE=InnoDB;
         DELETE FROM ledger.stamp; DELETE FROM ledger.stamp_isam; DELETE FROM ledger.stamp_too;
         INSERT INTO ledger.stamp VALUES ({n}); INSERT INTO ledger.stamp_isam VALUES ({n}); INSERT INTO ledger.stamp_too VALUES ({n});
         FLUSH TABLES"
    ));
}

/// Asks a destination all the time which stamped image it serves, and tries to get in as production's people do.
pub struct Witness {
    lines: Lines,
    name: String,
}

impl Witness {
    /// Begins to look.
    pub fn at(host: Host<'_>) -> Witness {
        host.write(
            "/root/production.cnf",
            "[client]\nuser=app\npassword=of-production\nhost=127.0.0.1\nprotocol=tcp\nconnect_timeout=5\n",
        );
        // a server that is going down or up, or is not there, is no image at all
        let line = "client=$(command -v mariadb || command -v mysql); look=0
            while :; do
                if out=$($client -N -B -e \"SELECT CONCAT_WS(' ', 'is', (SELECT n FROM ledger.stamp), (SELECT n FROM ledger.stamp_isam),
                    (SELECT n FROM ledger.stamp_too), (SELECT COUNT(*) FROM information_schema.events WHERE status = 'ENABLED'))\" 2>&1); then
                    echo \"$out\"
                else
                    case $out in
                        *'ERROR 2'[0-9][0-9][0-9]\\ * | *'ERROR 1053 '* | *'ERROR 1040 '* | *'ERROR 1927 '* | *'ERROR 3169 '*) echo down ;;
                        *) echo failed $out ;;
                    esac
                fi
                look=$(((look + 1) % 3))
                [ $look != 0 ] || ! $client --defaults-file=/root/production.cnf -e 'SELECT 1' >/dev/null 2>&1 || echo production was let in
                sleep 0.3
            done";
        Witness { lines: Lines::of(host.shell(line)), name: host.name.to_owned() }
    }

    /// The images that it has served since, in order; two looks in a row at the same one count once. Anything else that was seen
    /// fails; with `broken` errors of a server whose disk does not answer are let pass.
    #[track_caller]
    pub fn saw(&self, since: Instant, broken: bool) -> Vec<u64> {
        let mut seen = Vec::new();
        for (_, line) in self.lines.all().into_iter().filter(|(at, _)| *at >= since) {
            let words: Vec<&str> = line.split(' ').collect();
            match words.as_slice() {
                ["down"] => {}
                ["is", a, b, c, "0"] if a == b && b == c => seen.push(a.parse().unwrap()),
                ["failed", ..] if broken => {}
                _ => panic!("{}: {line}", self.name),
            }
        }
        seen.dedup();
        seen
    }

    /// What it serves now: a look that was begun after this was called.
    #[track_caller]
    pub fn serves(&self) -> u64 {
        let (begun, mut last) = (Instant::now(), None);
        eventually(&format!("{} serves", self.name), Duration::from_secs(60), || {
            // the first one after now may have been begun before
            last = self.saw_twice_since(begun);
            last.is_some()
        });
        last.unwrap()
    }

    fn saw_twice_since(&self, since: Instant) -> Option<u64> {
        let all = self.lines.all();
        let looks = all.iter().filter(|(at, line)| *at >= since && line.starts_with("is "));
        looks.skip(1).last().map(|(_, line)| line.split(' ').nth(1).unwrap().parse().unwrap())
    }
}
