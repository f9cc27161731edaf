//! What users see while a run is under way: one who commits on the source without a pause, and one who looks at a destination all
//! the time.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::fleet::{Host, eventually};

/// The lines that a command prints, each with the time it came at.
struct Lines {
    child: Child,
    seen: Arc<Mutex<Vec<(Instant, String)>>>,
    enough: Arc<AtomicBool>,
}

impl Lines {
    fn of(mut command: Command) -> Lines {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (out, into) = (BufReader::new(child.stdout.take().unwrap()), seen.clone());
        let enough = Arc::new(AtomicBool::new(false));
        let ends = enough.clone();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok).take_while(|_| !ends.load(Ordering::Relaxed)) {
                into.lock().unwrap().push((Instant::now(), line));
            }
        });
        Lines { child, seen, enough }
    }

    fn all(&self) -> Vec<(Instant, String)> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        // what runs inside the host is no child of ours: it ends when nobody reads its next line, or with its host
        self.enough.store(true, Ordering::Relaxed);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Commits rows to `ledger.commits` one after the other, as fast as a client for each of them can.
pub struct Writer {
    lines: Lines,
}

impl Writer {
    /// Begins. A commit whose answer was lost is asked for before the next.
    #[track_caller]
    pub fn on(host: Host<'_>) -> Writer {
        let line = "client=$(command -v mariadb || command -v mysql); n=0
            there() { [ \"$($client -N -B -e \"SELECT COUNT(*) FROM ledger.commits WHERE n = $n\" 2>/dev/null)\" = 1 ]; }
            while :; do
                n=$((n + 1))
                until $client -e \"INSERT INTO ledger.commits (n) VALUES ($n)\" 2>/dev/null || there; do sleep 0.02; done
                echo $n
            done";
        let writer = Writer { lines: Lines::of(host.shell(line)) };
        eventually("the first commits", Duration::from_secs(20), || writer.committed() > 3);
        writer
    }

    /// How many commits were answered.
    pub fn committed(&self) -> u64 {
        self.lines.all().last().map_or(0, |(_, line)| line.parse().unwrap())
    }

    /// The longest time without a commit until now.
    pub fn longest_gap(&self) -> Duration {
        let all = self.lines.all();
        all.windows(2).map(|two| two[1].0 - two[0].0).max().unwrap_or_default()
    }

    /// Ends it. On the source everything must be there that was answered; on a destination the commits up to one point in time,
    /// without a hole, and that point is not before `at_least`.
    #[track_caller]
    pub fn check(self, source: Host<'_>, destinations: &[Host<'_>], at_least: u64) {
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
                sleep 0.02
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
