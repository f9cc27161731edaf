//! Damage for tests: bytes and texts made wrong in the ways in which disks, networks and people make them wrong, and the loop that
//! feeds them to whatever must bear it until its time is over. Not in what is installed.
//!
//! `FUZZ_SECONDS` sets the time for each target. A failure names its seed: `FUZZ_SEED=… cargo nextest run --features failpoints NAME`
//! repeats that one case. `FUZZ_REPORT` names a file to which each target adds a line with the number of its cases.
#![cfg(any(test, feature = "failpoints"))]

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

pub use fastrand::Rng;

/// A single case that takes longer than this hangs, for whoever waits for it.
const HUNG: Duration = Duration::from_secs(30);

/// So many cases at least, however slow the machine is: fewer have shown nothing.
const LEAST: u64 = 10;

/// The longest run of one byte that is put in: longer than any limit on a name, a path or a line.
const LONG: usize = 70_000;

/// How many tables are put into each other: deeper than any stack bears that has no limit of its own.
const DEEP: usize = 3_000;

/// Numbers at which things go over, as they stand in texts.
const NUMBERS: [&str; 18] = [
    "0",
    "-1",
    "1",
    "24",
    "60",
    "255",
    "65536",
    "2147483648",
    "4294967295",
    "9223372036854775807",
    "-9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "340282366920938463463374607431768211456",
    "1e400",
    "-0.5",
    "nan",
    "262142",
];

/// What people, and those who wish them ill, write where something else is expected.
const WORDS: [&str; 20] = [
    "",
    "/",
    ".",
    "..",
    "../../../../etc/passwd",
    "/dev/zero",
    "a\0b",
    "a\nb",
    "\u{feff}",
    "\u{202e}x",
    "é",
    "%s%n",
    "'; DROP TABLE t; --",
    "$(id)",
    "-rf",
    "null",
    "true",
    "+262142-12-31..+262142-12-31",
    "-262143-01-01T00:00:00Z",
    "* * * * * * *",
];

/// Feeds damaged input to `body` for a while, each case with a random generator of its own. Every panic, and every case that does not
/// end, fails with the seed that brings it back.
pub fn run(target: &str, mut body: impl FnMut(&mut Rng) + Send + 'static) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let only = number("FUZZ_SEED");
    let time = Duration::from_secs_f64(number("FUZZ_SECONDS").map_or(1.2, |seconds| seconds as f64));
    let first = only.unwrap_or_else(|| fastrand::u64(..));
    let (tell, told) = channel();
    let worker = std::thread::Builder::new().name(format!("fuzz {target}")).spawn(move || {
        let begun = Instant::now();
        let mut cases = 0u64;
        while cases == 0 || (only.is_none() && (begun.elapsed() < time || cases < LEAST)) {
            let seed = first.wrapping_add(cases);
            if tell.send(Ok(seed)).is_err() {
                return;
            }
            let case = catch_unwind(AssertUnwindSafe(|| body(&mut Rng::with_seed(seed))));
            if let Err(panic) = case {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                let _ = tell.send(Err(text.unwrap_or_default()));
                return;
            }
            cases += 1;
        }
    });
    if let Err(error) = worker {
        panic!("{target}: no thread: {error}");
    }
    let (mut seed, mut cases) = (first, 0u64);
    loop {
        match told.recv_timeout(HUNG) {
            Ok(Ok(next)) => (seed, cases) = (next, cases + 1),
            Ok(Err(text)) => panic!("{target}: FUZZ_SEED={seed} (case {cases}): {text}"),
            Err(RecvTimeoutError::Timeout) => panic!("{target}: FUZZ_SEED={seed} (case {cases}) does not end"),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    if let Some(file) = std::env::var_os("FUZZ_REPORT")
        && let Ok(mut file) = std::fs::OpenOptions::new().append(true).create(true).open(file)
    {
        let _ = writeln!(file, "{target}: {cases} cases");
    }
}

/// One of several; `None` of none.
pub fn pick<'a, T>(rng: &mut Rng, from: &'a [T]) -> Option<&'a T> {
    if from.is_empty() { None } else { from.get(rng.usize(..from.len())) }
}

/// A place and a length within `len`.
fn span(rng: &mut Rng, len: usize) -> std::ops::Range<usize> {
    let from = rng.usize(..=len);
    // mostly short: what is cut out of the middle of a thing finds it still standing
    let most = if rng.u8(..4) == 0 { len - from } else { (len - from).min(16) };
    from..from + rng.usize(..=most)
}

/// One to a few kinds of damage to one of the samples.
pub fn bytes(rng: &mut Rng, samples: &[Vec<u8>]) -> Vec<u8> {
    let mut out = pick(rng, samples).cloned().unwrap_or_default();
    for _ in 0..1 + rng.usize(..4) * rng.usize(..2) {
        damage(rng, &mut out, samples);
    }
    out
}

/// One kind of damage.
pub fn damage(rng: &mut Rng, out: &mut Vec<u8>, samples: &[Vec<u8>]) {
    let len = out.len();
    match rng.u8(..13) {
        0..=2 if len > 0 => out[rng.usize(..len)] ^= 1 << rng.u8(..8),
        3 if len > 0 => out[rng.usize(..len)] = [0, 1, 0x7f, 0x80, 0xff][rng.usize(..5)],
        4 => out.truncate(rng.usize(..=len)),
        5 => drop(out.drain(span(rng, len))),
        // twice the same
        6 => {
            let piece = out[span(rng, len)].to_vec();
            insert(out, rng.usize(..=len), &piece);
        }
        // the begin of one, the end of another
        7 => {
            if let Some(other) = pick(rng, samples) {
                let (to, from) = (rng.usize(..=len), rng.usize(..=other.len()));
                out.truncate(to);
                out.extend_from_slice(&other[from..]);
            }
        }
        8 => number(rng, out),
        // no UTF-8, and what ends a text in C
        9 => insert(out, rng.usize(..=len), [&b"\xff\xfe"[..], b"\xc0\x80", b"\0", b"\xed\xa0\x80"][rng.usize(..4)]),
        // as many bytes as postcard's numbers may have, and more
        10 => insert(out, rng.usize(..=len), &[0xff; 20][..rng.usize(1..20)]),
        11 => {
            let run = vec![[0, b'a', 0xff, b'['][rng.usize(..4)]; rng.usize(..LONG)];
            insert(out, rng.usize(..=len), &run);
        }
        _ => {
            let noise: Vec<u8> = (0..1 + rng.usize(..40)).map(|_| rng.u8(..)).collect();
            insert(out, rng.usize(..=len), &noise);
        }
    }
}

fn insert(out: &mut Vec<u8>, at: usize, piece: &[u8]) {
    drop(out.splice(at..at, piece.iter().copied()));
}

/// A number at a limit in the place of what stands there, in either order of bytes.
fn number(rng: &mut Rng, out: &mut [u8]) {
    let width = [2, 4, 8][rng.usize(..3)];
    if out.len() < width {
        return;
    }
    let at = rng.usize(..=out.len() - width);
    let near =
        [0, u64::MAX, u64::MAX >> 1, 1 << 63, 1 << 32, u64::from(u32::MAX) >> 1, 1 << 20, 1 << 16][rng.usize(..8)];
    let value = near.wrapping_add(u64::from(rng.u8(..3))).wrapping_sub(1);
    let bytes =
        if rng.bool() { value.to_le_bytes()[..width].to_vec() } else { value.to_be_bytes()[8 - width..].to_vec() };
    out[at..at + width].copy_from_slice(&bytes);
}

/// One to a few kinds of damage to one of the texts: what stands for something is changed into something else of the same kind more
/// often than letters are. Now and then it is no text afterwards.
pub fn text(rng: &mut Rng, samples: &[String]) -> Vec<u8> {
    let mut out = pick(rng, samples).cloned().unwrap_or_default();
    for _ in 0..1 + rng.usize(..4) * rng.usize(..2) {
        out = retouch(rng, out, samples);
    }
    let mut out = out.into_bytes();
    if rng.u8(..4) == 0 {
        let samples: Vec<Vec<u8>> = samples.iter().map(|sample| sample.clone().into_bytes()).collect();
        damage(rng, &mut out, &samples);
    }
    out
}

fn retouch(rng: &mut Rng, text: String, samples: &[String]) -> String {
    match rng.u8(..12) {
        0 | 1 => replaced(rng, &text, &tokens(&text, |c| c.is_ascii_digit()), &NUMBERS),
        2 | 3 => replaced(rng, &text, &quoted(&text), &WORDS),
        4 => replaced(rng, &text, &tokens(&text, |c| c.is_alphanumeric() || c == '_' || c == '-'), &WORDS),
        // keys and lines twice, left out, or in another order
        5 => pieces(rng, &text, "\n"),
        6 => pieces(rng, &text, ","),
        7 => pieces(rng, &text, " "),
        8 => {
            let (open, close) = [("[", "]"), ("{\"a\":", "}"), ("{a=", "}"), ("a.", ""), ("(", ")")][rng.usize(..5)];
            let depth = rng.usize(..DEEP);
            put(rng, text, &format!("{}0{}", open.repeat(depth), close.repeat(depth)))
        }
        9 => {
            let long = ["a", " ", "\n", "é", "\"", "\\", "a.", "0"][rng.usize(..8)].repeat(rng.usize(..LONG / 2));
            put(rng, text, &long)
        }
        10 => {
            let other = pick(rng, samples).map_or("", String::as_str);
            let (to, from) = (boundary(rng, &text), boundary(rng, other));
            format!("{}{}", &text[..to], &other[from..])
        }
        _ => {
            let end = boundary(rng, &text);
            text[..end].to_owned()
        }
    }
}

/// A place between two letters.
fn boundary(rng: &mut Rng, text: &str) -> usize {
    let mut at = rng.usize(..=text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

fn put(rng: &mut Rng, mut text: String, piece: &str) -> String {
    let at = boundary(rng, &text);
    text.insert_str(at, piece);
    text
}

fn replaced(rng: &mut Rng, text: &str, places: &[std::ops::Range<usize>], by: &[&str]) -> String {
    let (Some(place), Some(word)) = (pick(rng, places), pick(rng, by)) else { return text.to_owned() };
    // or by what stands elsewhere in the same text
    let other = pick(rng, places).cloned().unwrap_or_default();
    let word = if rng.u8(..3) == 0 { &text[other] } else { *word };
    format!("{}{word}{}", &text[..place.start], &text[place.end..])
}

/// Runs of letters of one kind.
fn tokens(text: &str, kind: impl Fn(char) -> bool) -> Vec<std::ops::Range<usize>> {
    let mut found: Vec<std::ops::Range<usize>> = Vec::new();
    for (at, letter) in text.char_indices().filter(|(_, letter)| kind(*letter)) {
        let end = at + letter.len_utf8();
        match found.last_mut().filter(|last| last.end == at) {
            Some(last) => last.end = end,
            None => found.push(at..end),
        }
    }
    found
}

/// What stands between double quotes.
fn quoted(text: &str) -> Vec<std::ops::Range<usize>> {
    let quotes: Vec<usize> = text.match_indices('"').map(|(at, _)| at).collect();
    quotes.chunks_exact(2).map(|pair| pair[0] + 1..pair[1]).collect()
}

fn pieces(rng: &mut Rng, text: &str, between: &str) -> String {
    let mut all: Vec<&str> = text.split(between).collect();
    let (one, other) = (rng.usize(..all.len()), rng.usize(..all.len()));
    match rng.u8(..3) {
        0 => drop(all.remove(one)),
        1 => all.insert(other, all[one]),
        _ => all.swap(one, other),
    }
    all.join(between)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_does_the_same_damage() {
        let samples = vec![b"one sample".to_vec(), b"and another".to_vec()];
        let texts = vec!["a = 1\nb = \"x\"\n".to_owned()];
        for seed in 0..300 {
            let twice = || {
                let mut rng = Rng::with_seed(seed);
                (bytes(&mut rng, &samples), text(&mut rng, &texts))
            };
            assert_eq!(twice(), twice());
        }
    }

    #[test]
    fn a_case_that_fails_names_its_seed() {
        let failed = std::panic::catch_unwind(|| run("itself", |_| panic!("no")));
        let text = *failed.unwrap_err().downcast::<String>().unwrap();
        assert!(text.starts_with("itself: FUZZ_SEED=") && text.ends_with(": no"), "{text}");
    }
}
