//! A live client that writes numbered commits while a run goes on, and the check that a copy holds exactly the right ones:
//! every commit acknowledged before the stop and none after the restart.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep};
use std::time::Duration;

use crate::world::{Incarnation, SERVER_LIMIT, Server, me, wait_for};

/// One commit: its number, and in which life of the server it was made (0: before the first restart).
type Commit = (u64, u32);

/// What the client knows.
#[derive(Debug, Clone, Default)]
pub struct Book {
    /// Commits the server has acknowledged.
    pub acknowledged: BTreeSet<Commit>,
    /// Commits that were sent and never answered: they may be there or not.
    pub unsure: BTreeSet<Commit>,
    lives: Vec<Incarnation>,
}

/// The client at work.
pub struct Ledger {
    end: Arc<AtomicBool>,
    book: Arc<Mutex<Book>>,
    thread: Option<JoinHandle<()>>,
}

impl Ledger {
    /// Begins to write, and returns when the first commits are acknowledged.
    pub fn start(server: &Server) -> Ledger {
        let (end, book) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Book::default())));
        let thread = {
            let (end, book, server) = (end.clone(), book.clone(), server.clone());
            std::thread::spawn(move || {
                let mut next = 1;
                while !end.load(Ordering::Relaxed) {
                    write_until_broken(&server, &end, &book, &mut next);
                    sleep(Duration::from_millis(5));
                }
            })
        };
        let ledger = Ledger { end, book, thread: Some(thread) };
        ledger.wait_for_commits_in_life(0);
        ledger
    }

    /// Waits until commits were acknowledged in this life of the server.
    pub fn wait_for_commits_in_life(&self, life: u32) {
        let enough = || self.book.lock().unwrap().acknowledged.iter().filter(|c| c.1 == life).count() > 20;
        wait_for(&format!("commits in life {life}"), SERVER_LIMIT, enough);
    }

    /// Ends the client.
    pub fn finish(mut self) -> Book {
        self.end.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        self.book.lock().unwrap().clone()
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
    }
}

fn write_until_broken(server: &Server, end: &AtomicBool, book: &Mutex<Book>, next: &mut u64) {
    let mut command = Command::new("mariadb");
    command.args([
        "--no-defaults",
        "--batch",
        "--skip-column-names",
        "--unbuffered",
        "--skip-reconnect",
        "--connect-timeout=5",
    ]);
    command.arg(format!("--socket={}", server.socket().display())).arg(format!("--user={}", me()));
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the mariadb client");
    let mut stdin = child.stdin.take().unwrap();
    let mut answers = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut ask = |sql: String| -> Option<String> {
        stdin.write_all(sql.as_bytes()).and_then(|()| stdin.flush()).ok()?;
        answers.next()?.ok()
    };
    if ask("SELECT 'hello';\n".into()).is_some() {
        // Connected, so the process that serves is the one whose life this is; if it has ended since, no commit will pass.
        if let Some(life) = server.process().map(|p| book.lock().unwrap().life(p)) {
            while !end.load(Ordering::Relaxed) {
                let commit = (*next, life);
                *next += 1;
                let answer =
                    ask(format!("INSERT INTO ledger.commits VALUES ({}, {life}); SELECT {};\n", commit.0, commit.0));
                let mut book = book.lock().unwrap();
                if answer.as_deref() == Some(&commit.0.to_string()) {
                    book.acknowledged.insert(commit);
                } else {
                    book.unsure.insert(commit);
                    break;
                }
                drop(book);
                sleep(Duration::from_millis(1));
            }
        }
    }
    let _ = child.kill();
    let _ = child.wait();
}

impl Book {
    fn life(&mut self, process: Incarnation) -> u32 {
        if let Some(at) = self.lives.iter().position(|p| *p == process) {
            return at as u32;
        }
        self.lives.push(process);
        self.lives.len() as u32 - 1
    }

    fn rows(server: &Server) -> BTreeSet<Commit> {
        let parse = |line: &str| {
            let (n, life) = line.split_once('\t').unwrap();
            (n.parse().unwrap(), life.parse().unwrap())
        };
        server.sql("SELECT n, life FROM ledger.commits").lines().map(parse).collect()
    }

    /// Checks a copy that was taken at the end of a life of the source.
    #[track_caller]
    pub fn check_copy(&self, copy: &Server, last_life: u32) {
        let rows = Book::rows(copy);
        let due: BTreeSet<Commit> = self.acknowledged.iter().copied().filter(|c| c.1 <= last_life).collect();
        let lost: Vec<_> = due.difference(&rows).collect();
        assert!(
            lost.is_empty(),
            "{}: {} acknowledged commits are missing: {:?}",
            copy.name,
            lost.len(),
            &lost[..lost.len().min(5)]
        );
        let late: Vec<_> = rows.iter().filter(|c| c.1 > last_life).collect();
        assert!(late.is_empty(), "{}: commits from after the restart: {:?}", copy.name, &late[..late.len().min(5)]);
        let strange: Vec<_> = rows.iter().filter(|c| !due.contains(c) && !self.unsure.contains(c)).collect();
        assert!(strange.is_empty(), "{}: commits nobody made: {strange:?}", copy.name);
    }

    /// Checks that the source has lost nothing.
    #[track_caller]
    pub fn check_source(&self, source: &Server) {
        let rows = Book::rows(source);
        let lost = self.acknowledged.difference(&rows).count();
        assert!(lost == 0, "{}: {lost} acknowledged commits are missing", source.name);
    }

    /// In how many lives of the server commits were made.
    pub fn lives(&self) -> usize {
        self.lives.len()
    }
}
