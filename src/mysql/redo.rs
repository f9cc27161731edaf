//! Proof of a clean stop from the redo log itself. Pure: the bytes come from the caller.
//!
//! A stop with `innodb_fast_shutdown = 2` leaves a directory and an error log that look exactly like a clean stop's, and a
//! copy of it has lost updates. Only the redo log tells: after a clean stop it holds nothing that is not in the data files.
//! The proof is about the log, not about the process: an idle server that has just written everything passes it too.

use serde::{Deserialize, Serialize};

/// What the redo log says about the last stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RedoVerdict {
    /// Everything in the log is in the data files.
    Clean,
    /// The log holds changes that are not in the data files; where they begin.
    NotClean(String),
    /// The log cannot be judged; why.
    Unknown(String),
}

/// Bytes of `ib_logfile0` that must be handed in: header and checkpoints.
pub const MARIADB_HEAD: usize = 12288;
/// Bytes of each `#ib_redoN` that must be handed in: header and checkpoints.
pub const MYSQL_HEAD: usize = 2048;

/// `Phys`, the format since MariaDB 10.8.
const PHYSICAL: [u8; 4] = *b"Phys";
/// The same, encrypted (`innodb_encrypt_log`).
const PHYSICAL_ENCRYPTED: [u8; 4] = [0xf0, 0x9f, 0x97, 0x9d];
/// `PHYS`, MariaDB 10.5 to 10.7.
const BLOCKS_10_5: [u8; 4] = *b"PHYS";
/// Where the two checkpoints are.
const CHECKPOINTS: [usize; 2] = [4096, 8192];
/// The first byte of the record that closes each checkpoint: its type, and that 10 bytes follow.
const FILE_CHECKPOINT: u8 = 0xfa;
/// The type of the record that names a file.
const FILE_MODIFY: u8 = 0xb0;
/// No mini-transaction is longer: MariaDB 10.8 and newer writes and recovers less than 1 MiB (`MTR_SIZE_MAX`).
const LONGEST: usize = 4 << 20;
/// No server gets this far; damaged numbers do.
const GREATEST_LSN: u64 = 1 << 62;
/// Read at a time.
const WINDOW: usize = 4096;

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn unknown<T>(why: impl Into<String>) -> Result<T, RedoVerdict> {
    Err(RedoVerdict::Unknown(why.into()))
}

fn not_clean<T>(why: impl Into<String>) -> Result<T, RedoVerdict> {
    Err(RedoVerdict::NotClean(why.into()))
}

/// Judges MariaDB's `ib_logfile0` (10.8 and newer, not encrypted): `head` its first [`MARIADB_HEAD`] bytes, `size` the
/// file's, `read_at(offset, len)` any other part of it, `None` where it cannot be read.
///
/// The format, verified on MariaDB 10.11.19 with logs of 4 MiB to 96 MiB, up to 21 times around, numbers big-endian:
/// - header: magic at 0, the LSN of the first byte behind the header at 8, creator at 16, CRC-32C of all before it at 508;
/// - checkpoints of 64 bytes at 4096 and 8192: the LSN up to which all is in the data files, the LSN at which the log ended
///   when the checkpoint was made, zeroes, CRC-32C at 60; the one with the greater LSN counts;
/// - from 12288 on mini-transactions, around and around the rest of the file: records, then a byte 1 on even rounds or 0 on
///   odd ones, then the records' CRC-32C. A 0 or 1 where a record should begin, a wrong byte or a wrong sum end the log;
/// - a checkpoint ends with a mini-transaction at its second LSN, whose last record, `FILE_CHECKPOINT`, repeats the first.
///
/// After `innodb_fast_shutdown` 0, 1 and 3 the two LSNs are equal and nothing follows that mini-transaction (27 of 27
/// stops). After 2 and after kill -9 there is a gap between the LSNs or mini-transactions follow (19 of 19).
pub fn judge_mariadb(head: &[u8], size: u64, read_at: &mut dyn FnMut(u64, usize) -> Option<Vec<u8>>) -> RedoVerdict {
    mariadb(head, size, read_at).err().unwrap_or(RedoVerdict::Clean)
}

fn mariadb(head: &[u8], size: u64, read_at: &mut dyn FnMut(u64, usize) -> Option<Vec<u8>>) -> Result<(), RedoVerdict> {
    let first_lsn = mariadb_header(head)?;
    let Some((lsn, end)) = CHECKPOINTS.iter().filter_map(|at| mariadb_checkpoint(head, *at)).max() else {
        return unknown("neither checkpoint of ib_logfile0 has a right checksum");
    };
    let Some(capacity) = size.checked_sub(MARIADB_HEAD as u64).filter(|rest| *rest > 0) else {
        return unknown("ib_logfile0 is too short");
    };
    if lsn < first_lsn || end < lsn || end > GREATEST_LSN {
        return unknown(format!("checkpoint {lsn} to {end} does not fit a log that begins at {first_lsn}"));
    }
    if lsn != end {
        return not_clean(format!("changes from LSN {lsn} to {end} are only in the redo log"));
    }
    let mut ring = Ring { first_lsn, capacity, read_at };
    let Some(closing) = ring.mini_transaction(end)? else {
        return unknown(format!("there is no checkpoint record at LSN {end}"));
    };
    if !closing.is_checkpoint(lsn) {
        return not_clean(format!("changes from LSN {end} on are only in the redo log"));
    }
    match ring.mini_transaction(closing.next)? {
        Some(_) => not_clean(format!("changes from LSN {} on are only in the redo log", closing.next)),
        None => Ok(()),
    }
}

/// The LSN of the first byte behind the header.
fn mariadb_header(head: &[u8]) -> Result<u64, RedoVerdict> {
    if head.len() < MARIADB_HEAD {
        return unknown("ib_logfile0 is too short");
    }
    match head[..4] {
        ref magic if *magic == PHYSICAL => {}
        ref magic if *magic == PHYSICAL_ENCRYPTED => return unknown("the redo log is encrypted"),
        ref magic if *magic == BLOCKS_10_5 => return unknown("the redo log is in the format of MariaDB 10.5 to 10.7"),
        _ => return unknown("ib_logfile0 is not a redo log of MariaDB 10.8 or newer"),
    }
    match (u32_at(head, 508), u64_at(head, 8)) {
        (Some(sum), Some(lsn)) if sum == crc32c::crc32c(&head[..508]) => Ok(lsn),
        _ => unknown("the header of ib_logfile0 has a wrong checksum"),
    }
}

fn mariadb_checkpoint(head: &[u8], at: usize) -> Option<(u64, u64)> {
    let block = head.get(at..at + 64)?;
    let right = u32_at(block, 60)? == crc32c::crc32c(&block[..60]);
    if right { Some((u64_at(block, 0)?, u64_at(block, 8)?)) } else { None }
}

/// One mini-transaction: its records, and the LSN behind it.
struct MiniTransaction {
    /// First byte of the last record, and where it begins.
    last: Option<(u8, usize)>,
    /// The records before it only name files.
    names: bool,
    bytes: Vec<u8>,
    next: u64,
}

impl MiniTransaction {
    /// Whether it only closes the checkpoint at `lsn`.
    fn is_checkpoint(&self, lsn: u64) -> bool {
        let Some((last, at)) = self.last else { return false };
        // behind the first byte: space 0, page 0, the LSN
        last == FILE_CHECKPOINT && u64_at(&self.bytes, at + 3) == Some(lsn) && self.names
    }
}

/// The circular part of `ib_logfile0`.
struct Ring<'r> {
    first_lsn: u64,
    capacity: u64,
    read_at: &'r mut dyn FnMut(u64, usize) -> Option<Vec<u8>>,
}

impl Ring<'_> {
    /// The mini-transaction at `lsn`, or `None` where the log ends.
    fn mini_transaction(&mut self, lsn: u64) -> Result<Option<MiniTransaction>, RedoVerdict> {
        let mut window = Vec::new();
        // a list of all records would be many times as large as the records, where a damaged log seems to hold millions
        let (mut last, mut names): (Option<(u8, usize)>, bool) = (None, true);
        let mut at = 0;
        loop {
            // the longest head of a record and the end of a mini-transaction are 5 bytes
            self.fill(&mut window, lsn, at + 5)?;
            let first = window[at];
            if first <= 1 {
                break;
            }
            let Some(length) = record_length(&window[at..]) else { return Ok(None) };
            names &= last.is_none_or(|(before, _)| before & 0xf0 == FILE_MODIFY);
            last = Some((first, at));
            at += length;
            // what an earlier round left is read from the middle of a record, and may look like the head of one of megabytes
            if at > LONGEST {
                return Ok(None);
            }
        }
        let round = (lsn + at as u64 - self.first_lsn) / self.capacity;
        let marker = u8::from(round.is_multiple_of(2));
        if at == 0 || window[at] != marker || u32_at(&window, at + 1) != Some(crc32c::crc32c(&window[..at])) {
            return Ok(None);
        }
        window.truncate(at);
        Ok(Some(MiniTransaction { last, names, bytes: window, next: lsn + at as u64 + 5 }))
    }

    /// Makes `window`, which begins at `lsn`, at least `len` bytes long.
    fn fill(&mut self, window: &mut Vec<u8>, lsn: u64, len: usize) -> Result<(), RedoVerdict> {
        while window.len() < len {
            let into = (lsn + window.len() as u64 - self.first_lsn) % self.capacity;
            let step = (self.capacity - into).min(WINDOW as u64) as usize;
            match (self.read_at)(MARIADB_HEAD as u64 + into, step) {
                Some(bytes) if bytes.len() == step => window.extend_from_slice(&bytes),
                _ => return unknown("ib_logfile0 cannot be read"),
            }
        }
        Ok(())
    }
}

/// How long the record is that begins with these bytes: the low half of the first byte counts what follows; 0 means that a
/// number of 1 to 4 bytes follows, to which 15 are added, itself included. `None` for a length no record has.
fn record_length(bytes: &[u8]) -> Option<usize> {
    let byte = |at: usize| bytes.get(at).map(|b| *b as usize);
    let short = byte(0)? & 0xf;
    if short != 0 {
        return Some(1 + short);
    }
    let first = byte(1)?;
    let long = match first {
        0x00..=0x7f => first,
        0x80..=0xbf => 0x80 + ((first & 0x3f) << 8 | byte(2)?),
        0xc0..=0xdf => 0x4080 + ((first & 0x1f) << 16 | byte(2)? << 8 | byte(3)?),
        0xe0..=0xef => 0x20_4080 + ((first & 0xf) << 24 | byte(2)? << 16 | byte(3)? << 8 | byte(4)?),
        _ => return None,
    };
    Some(1 + 15 + long)
}

/// One file of MySQL's `#innodb_redo` (`#ib_redoN`, never a `_tmp`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedoFile {
    /// Its name, for messages.
    pub name: String,
    /// Its first [`MYSQL_HEAD`] bytes.
    pub head: Vec<u8>,
    /// Its size in bytes.
    pub size: u64,
}

/// The format since MySQL 8.0.30.
const MYSQL_FORMAT: u32 = 6;
/// Where the two checkpoints are.
const MYSQL_CHECKPOINTS: [usize; 2] = [512, 1536];
const BLOCK: u64 = 512;
/// What stands in the place of a log block's checksum with `innodb_log_checksums = OFF`; header and checkpoints have theirs always.
const NO_CHECKSUM: u32 = 0xdead_beef;
/// Bytes of a block's header: its number, how many of its bytes are used, ...
const BLOCK_HEAD: u64 = 12;
/// Marks, in a block's number, the first block of a flush.
const FLUSH_BIT: u32 = 0x8000_0000;

/// Judges MySQL's `#innodb_redo` (8.0.30 and newer). `read_at(file, offset, len)` reads from the file with that index.
///
/// The check of a real MySQL 9.7.4, where `innodb_fast_shutdown` 0 and 1 pass, and 2, kill -9 and a running server do not:
/// the block that holds the greatest checkpoint must end exactly there, and no block may follow. Header, checkpoints and blocks of 512
/// bytes end with the CRC-32C of what is before it (seen on 9.7.4); one that is wrong is not believed.
pub fn judge_mysql(files: &[RedoFile], read_at: &mut dyn FnMut(usize, u64, usize) -> Option<Vec<u8>>) -> RedoVerdict {
    mysql(files, read_at).err().unwrap_or(RedoVerdict::Clean)
}

fn mysql(files: &[RedoFile], read_at: &mut dyn FnMut(usize, u64, usize) -> Option<Vec<u8>>) -> Result<(), RedoVerdict> {
    let mut starts = Vec::new();
    for file in files {
        match (u32_at(&file.head, 0), u64_at(&file.head, 8)) {
            (Some(MYSQL_FORMAT), Some(_)) if file.head.len() >= MYSQL_HEAD && !sealed(&file.head[..512]) => {
                return unknown(format!("the header of {} has a wrong checksum", file.name));
            }
            (Some(MYSQL_FORMAT), Some(start)) if file.head.len() >= MYSQL_HEAD && start % BLOCK == 0 => {
                starts.push(start)
            }
            (Some(format), Some(_)) if format != MYSQL_FORMAT => {
                return unknown(format!(
                    "{} is in format {format}, known is {MYSQL_FORMAT} (MySQL 8.0.30 and newer)",
                    file.name
                ));
            }
            _ => return unknown(format!("{} is no redo file", file.name)),
        }
    }
    let checkpoints = files.iter().flat_map(|file| MYSQL_CHECKPOINTS.iter().map(|at| &file.head[*at..*at + 512]));
    let Some(lsn) = checkpoints
        .filter(|block| sealed(block))
        .filter_map(|block| u64_at(block, 8))
        .max()
        .filter(|lsn| (1..=GREATEST_LSN).contains(lsn))
    else {
        return unknown("the redo log has no checkpoint");
    };
    let mut block = |lsn: u64| -> Option<Result<Vec<u8>, RedoVerdict>> {
        let holds = |(start, file): (&u64, &RedoFile)| {
            lsn >= *start && lsn - *start < file.size.saturating_sub(MYSQL_HEAD as u64)
        };
        let index = starts.iter().zip(files).position(holds)?;
        let bytes = read_at(index, MYSQL_HEAD as u64 + (lsn - starts[index]), BLOCK as usize)
            .filter(|b| b.len() == BLOCK as usize);
        Some(bytes.ok_or_else(|| RedoVerdict::Unknown(format!("{} cannot be read", files[index].name))))
    };
    let at = lsn - lsn % BLOCK;
    let Some(last) = block(at) else { return unknown(format!("no redo file holds the checkpoint at LSN {lsn}")) };
    let last = last?;
    if !sealed_or_off(&last) {
        return unknown(format!("the block with LSN {lsn} has a wrong checksum"));
    }
    let (number, used) = mysql_block(&last);
    if u64::from(used) != lsn % BLOCK || lsn % BLOCK < BLOCK_HEAD {
        return not_clean(format!("changes from LSN {lsn} on are only in the redo log"));
    }
    let next = block(at + BLOCK).transpose()?.filter(|next| next.iter().any(|byte| *byte != 0));
    if next.as_ref().is_some_and(|next| !sealed_or_off(next)) {
        return unknown(format!("the block with LSN {} has a wrong checksum", at + BLOCK));
    }
    match next.map(|next| mysql_block(&next).0) {
        None | Some(0) => Ok(()),
        Some(next) if next == number + 1 => {
            not_clean(format!("changes from LSN {} on are only in the redo log", at + BLOCK))
        }
        // the file was used before: a block of an earlier round, which is the log's end for the server as well (seen on 9.7.4)
        Some(next) if (1..BLOCK_NUMBERS / 2).contains(&(number.wrapping_sub(next) % BLOCK_NUMBERS)) => Ok(()),
        Some(next) => unknown(format!("the block after the checkpoint has number {next}, not 0")),
    }
}

/// Blocks are numbered from 1 to this and then from 1 again (LOG_BLOCK_MAX_NO of MySQL; the turn itself, at 512 GiB of log, was not
/// tried: a log that ends there is judged as unknown or not clean, never wrongly as clean).
const BLOCK_NUMBERS: u32 = 1 << 30;

/// Whether a block ends with its checksum.
fn sealed(block: &[u8]) -> bool {
    block.split_last_chunk().is_some_and(|(content, sum)| u32::from_be_bytes(*sum) == crc32c::crc32c(content))
}

/// The same of a block of the log, whose checksum may be switched off.
fn sealed_or_off(block: &[u8]) -> bool {
    sealed(block) || block.last_chunk() == Some(&NO_CHECKSUM.to_be_bytes())
}

/// A block's number and how many of its bytes are used.
fn mysql_block(block: &[u8]) -> (u32, u16) {
    let number = u32_at(block, 0).unwrap_or(0) & !FLUSH_BIT;
    (number, u32_at(block, 4).map_or(0, |word| (word >> 16) as u16))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Pieces of real files of 4 MiB, MariaDB 10.11.19: where, and the bytes in hexadecimal. All else is taken as 0.
    type Pieces = &'static [(usize, &'static str)];
    const HEADER: Pieces =
        &[(0, "5068797300000000000000000000ad744d6172696144422031302e31312e3139"), (508, "810fc319")];
    const FIRST_ROUND: Pieces = &[
        (4096, "000000000000aed8000000000000aed8"),
        (4156, "fa982018"),
        (8192, "000000000000ad74000000000000ad74"),
        (8252, "c4a76434"),
    ];
    const CLEAN: Pieces = &[(12644, "fa0000000000000000aed801763b3a16")];
    const MODE_2: Pieces = &[(12644, "fa0000000000000000aed801763b3a16340007351201a94e24d83400074105019c0932073400")];
    const FOURTH_ROUND: Pieces = &[
        (4096, "0000000000c06f6b0000000000c06f6b"),
        (4156, "178442f6"),
        (8192, "0000000000c06f8c0000000000c06f8c"),
        (8252, "45308bfb"),
        // behind the end lies an earlier round's log
        (33304, "fa00000000000000c06f8c00bbb024ca000000014f0f32787878787878787878787878787878787878787878787878"),
    ];
    const KILLED: Pieces = &[
        (4096, "0000000000c06fcc0000000000c6a96d"),
        (4156, "cb000935"),
        (8192, "0000000000c6a99f0000000000c6a9e3"),
        (8252, "0352e0a4"),
        (441455, "b00107002e2f73686f702f74312e696264fa00000000000000c6a99f007b320bc434000075ad36008073aa79acc308"),
    ];

    fn file(parts: &[Pieces]) -> Vec<u8> {
        let mut file = vec![0; 4 << 20];
        for (at, hex) in parts.iter().flat_map(|pieces| pieces.iter()) {
            for (i, pair) in hex.as_bytes().chunks(2).enumerate() {
                file[at + i] = u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
            }
        }
        file
    }

    fn judge(file: &[u8]) -> RedoVerdict {
        let mut read = |at: u64, len: usize| file.get(at as usize..at as usize + len).map(<[u8]>::to_vec);
        judge_mariadb(&file[..file.len().min(MARIADB_HEAD)], file.len() as u64, &mut read)
    }

    #[test]
    fn real_clean_stops() {
        for parts in [&[HEADER, FIRST_ROUND, CLEAN][..], &[HEADER, FOURTH_ROUND]] {
            assert_eq!(judge(&file(parts)), RedoVerdict::Clean);
        }
    }

    #[test]
    fn real_other_stops() {
        let why = |text: &str| RedoVerdict::NotClean(text.into());
        assert_eq!(
            judge(&file(&[HEADER, FIRST_ROUND, MODE_2])),
            why("changes from LSN 44776 on are only in the redo log")
        );
        assert_eq!(
            judge(&file(&[HEADER, KILLED])),
            why("changes from LSN 13019551 to 13019619 are only in the redo log")
        );
    }

    #[test]
    fn what_cannot_be_judged_is_said() {
        let damaged = |at: usize, value: u8| {
            let mut bytes = file(&[HEADER, FIRST_ROUND, CLEAN]);
            bytes[at] = value;
            judge(&bytes)
        };
        let unknown = |text: &str| RedoVerdict::Unknown(text.into());
        assert_eq!(damaged(0, b'p'), unknown("ib_logfile0 is not a redo log of MariaDB 10.8 or newer"));
        assert_eq!(damaged(9, 1), unknown("the header of ib_logfile0 has a wrong checksum"));
        assert_eq!(damaged(12645, 1), unknown("there is no checkpoint record at LSN 44760"));
        assert_eq!(judge(&[]), unknown("ib_logfile0 is too short"));
        let encrypted = [&PHYSICAL_ENCRYPTED[..], &[0; MARIADB_HEAD]].concat();
        assert_eq!(judge(&encrypted), unknown("the redo log is encrypted"));
    }

    /// A log with `rounds` behind it whose last checkpoint is `back` bytes before the end of the file.
    fn synthetic(capacity: u64, rounds: u64, into: u64, follows: Option<u8>, garbage: &[u8]) -> Vec<u8> {
        let first = 0x3000_u64;
        let mut file = vec![0; MARIADB_HEAD + capacity as usize];
        for (i, byte) in file[MARIADB_HEAD..].iter_mut().enumerate() {
            *byte = garbage[i % garbage.len()];
        }
        let lsn = first + capacity * rounds + into % capacity;
        file[..4].copy_from_slice(&PHYSICAL);
        file[8..16].copy_from_slice(&first.to_be_bytes());
        let sum = crc32c::crc32c(&file[..508]);
        file[508..512].copy_from_slice(&sum.to_be_bytes());
        file[4096..4104].copy_from_slice(&lsn.to_be_bytes());
        file[4104..4112].copy_from_slice(&lsn.to_be_bytes());
        let sum = crc32c::crc32c(&file[4096..4156]);
        file[4156..4160].copy_from_slice(&sum.to_be_bytes());
        let mut at = lsn - first;
        let closing = [&[FILE_CHECKPOINT, 0, 0][..], &lsn.to_be_bytes()].concat();
        let long = [&[0x30, 0x05][..], &[7; 19]].concat();
        let records = [Some(closing), follows.map(|n| if n % 2 == 0 { long } else { vec![0x32, n, n] })];
        for record in records.into_iter().flatten() {
            let marker = u8::from(((at + record.len() as u64) / capacity).is_multiple_of(2));
            let sum = crc32c::crc32c(&record).to_be_bytes();
            for byte in record.into_iter().chain([marker]).chain(sum) {
                file[MARIADB_HEAD + (at % capacity) as usize] = byte;
                at += 1;
            }
        }
        file[MARIADB_HEAD + (at % capacity) as usize] = 0;
        file
    }

    proptest! {
        #[test]
        fn around_and_around(
            capacity in 100u64..9000, rounds in 0u64..5, into: u64, follows in proptest::option::of(any::<u8>()), garbage in proptest::collection::vec(any::<u8>(), 1..50),
        ) {
            let verdict = judge(&synthetic(capacity, rounds, into, follows, &garbage));
            match follows {
                None => prop_assert_eq!(verdict, RedoVerdict::Clean),
                Some(_) => prop_assert!(matches!(verdict, RedoVerdict::NotClean(_)), "{:?}", verdict),
            }
        }

        #[test]
        fn any_bytes_are_judged_without_panic(at in 0usize..13000, bytes: [u8; 64], sums: bool) {
            let mut damaged = file(&[HEADER, FIRST_ROUND, CLEAN])[..13000].to_vec();
            damaged[at..].iter_mut().zip(&bytes).for_each(|(place, byte)| *place = *byte);
            if sums {
                let sum = crc32c::crc32c(&damaged[4096..4156]).to_be_bytes();
                damaged[4156..4160].copy_from_slice(&sum);
            }
            let _ = judge(&damaged);
            let redo = RedoFile { name: "#ib_redo1".into(), head: damaged[..at].to_vec(), size: 13000 };
            let _ = judge_mysql(&[redo], &mut |_, at, len| damaged.get(at as usize..at as usize + len).map(<[u8]>::to_vec));
        }
    }

    /// Seen in a nightly run: a source that had stopped cleanly was refused, since its log had gone around.
    #[test]
    fn what_an_earlier_round_left_may_look_like_a_record_of_megabytes() {
        let long = [0x30, 0xe7, 0xff, 0xff, 0xff, 0x35];
        for (into, capacity) in [(0, 5 << 20), (3 << 20, 4 << 20), (17, 9000)] {
            let mut bytes = synthetic(capacity, 3, into, None, &long);
            let behind = MARIADB_HEAD + ((into + 16) % capacity) as usize;
            bytes[behind..behind + long.len()].copy_from_slice(&long);
            assert_eq!(judge(&bytes), RedoVerdict::Clean, "{into} of {capacity}");
        }
    }

    /// One redo file of three blocks.
    fn mysql_file(start: u64, checkpoint: u64, used: u16, next: u32) -> (RedoFile, Vec<u8>) {
        let mut bytes = vec![0; MYSQL_HEAD + 3 * BLOCK as usize];
        bytes[..4].copy_from_slice(&MYSQL_FORMAT.to_be_bytes());
        bytes[8..16].copy_from_slice(&start.to_be_bytes());
        bytes[520..528].copy_from_slice(&(checkpoint.saturating_sub(600)).to_be_bytes());
        bytes[1544..1552].copy_from_slice(&checkpoint.to_be_bytes());
        let at = MYSQL_HEAD + (checkpoint - checkpoint % BLOCK - start) as usize;
        bytes[at..at + 4].copy_from_slice(&(FLUSH_BIT | 77).to_be_bytes());
        bytes[at + 4..at + 6].copy_from_slice(&used.to_be_bytes());
        if let Some(place) = bytes.get_mut(at + BLOCK as usize..at + BLOCK as usize + 4) {
            place.copy_from_slice(&next.to_be_bytes());
        }
        let follows = (next != 0).then_some(at + BLOCK as usize);
        for at in [0, 512, 1536, at].into_iter().chain(follows) {
            if let Some((content, sum)) = bytes.get_mut(at..at + 512).and_then(|block| block.split_last_chunk_mut()) {
                *sum = crc32c::crc32c(content).to_be_bytes();
            }
        }
        (RedoFile { name: "#ib_redo7".into(), head: bytes[..MYSQL_HEAD].to_vec(), size: bytes.len() as u64 }, bytes)
    }

    #[test]
    fn mysql_ends_in_the_block_of_the_checkpoint() {
        let judge = |(file, bytes): (RedoFile, Vec<u8>)| {
            judge_mysql(&[file], &mut |_, at, len| bytes.get(at as usize..at as usize + len).map(<[u8]>::to_vec))
        };
        assert_eq!(judge(mysql_file(51200, 51200 + 100, 100, 0)), RedoVerdict::Clean);
        assert_eq!(judge(mysql_file(51200, 51200 + 1024 + 100, 100, 0)), RedoVerdict::Clean);
        for (used, next) in [(512, 78), (132, 0), (100, 78)] {
            assert!(matches!(judge(mysql_file(51200, 51200 + 100, used, next)), RedoVerdict::NotClean(_)));
        }
        // a checkpoint, or a block, that is not as it was written
        let (mut file, bytes) = mysql_file(51200, 51200 + 100, 132, 0);
        file.head[1551] ^= 100 ^ 132;
        assert!(!matches!(judge((file, bytes)), RedoVerdict::Clean));
        let (file, mut bytes) = mysql_file(51200, 51200 + 100, 101, 0);
        bytes[MYSQL_HEAD + 5] ^= 1;
        assert!(matches!(judge((file, bytes)), RedoVerdict::Unknown(_)));
        // left by an earlier use of the file; and what no server writes
        assert_eq!(judge(mysql_file(51200, 51200 + 100, 100, 5)), RedoVerdict::Clean);
        assert!(matches!(judge(mysql_file(51200, 51200 + 100, 100, 500)), RedoVerdict::Unknown(_)));
        let (mut file, bytes) = mysql_file(51200, 51200 + 100, 100, 0);
        file.head[3] = 5;
        let why = "#ib_redo7 is in format 5, known is 6 (MySQL 8.0.30 and newer)";
        assert_eq!(judge((file, bytes)), RedoVerdict::Unknown(why.into()));
        assert!(matches!(judge_mysql(&[], &mut |_, _, _| None), RedoVerdict::Unknown(_)));
    }
}
