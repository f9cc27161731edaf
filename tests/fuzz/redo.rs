//! The judges of redo logs: whatever the bytes, an answer; and where a checksum covers them, a bit that has turned over never makes a
//! log that holds changes look like one that holds none.

use mysql_refreshd::mutate::{self, Rng};
use mysql_refreshd::mysql::redo::{MARIADB_HEAD, MYSQL_HEAD, RedoFile, RedoVerdict, judge_mariadb, judge_mysql};

use crate::{alone, measured};

fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

fn seal(block: &mut [u8]) {
    let end = block.len() - 4;
    let sum = crc32c::crc32c(&block[..end]).to_be_bytes();
    block[end..].copy_from_slice(&sum);
}

/// A log of MariaDB as it is built up.
struct MariaDb {
    file: Vec<u8>,
    lsn: u64,
}

impl MariaDb {
    const FIRST: u64 = 0x3000;
    const CAPACITY: u64 = 4000;

    fn new(begin: u64) -> Self {
        let mut file = vec![0; MARIADB_HEAD + Self::CAPACITY as usize];
        put(&mut file, 0, b"Phys");
        put(&mut file, 8, &Self::FIRST.to_be_bytes());
        seal(&mut file[..512]);
        Self { file, lsn: Self::FIRST + begin }
    }

    /// One mini-transaction.
    fn write(&mut self, record: &[u8]) {
        let mut at = self.lsn - Self::FIRST;
        let marker = u8::from(((at + record.len() as u64) / Self::CAPACITY).is_multiple_of(2));
        for byte in record.iter().copied().chain([marker]).chain(crc32c::crc32c(record).to_be_bytes()) {
            self.file[MARIADB_HEAD + (at % Self::CAPACITY) as usize] = byte;
            at += 1;
        }
        self.lsn = Self::FIRST + at;
    }

    fn change(&mut self) {
        self.write(&[0x32, 5, 6]);
        self.write(&[&[0x30, 0x05][..], &[7; 19]].concat());
    }

    /// A checkpoint in one of the two places: up to `lsn` everything is in the data files.
    fn checkpoint(&mut self, at: usize, lsn: u64) {
        let end = self.lsn;
        put(&mut self.file, at, &lsn.to_be_bytes());
        put(&mut self.file, at + 8, &end.to_be_bytes());
        seal(&mut self.file[at..at + 64]);
        self.write(&[&[0xfa, 0, 0][..], &lsn.to_be_bytes()].concat());
    }

    fn judge(file: &[u8]) -> RedoVerdict {
        let mut reads = 0;
        let mut read = |at: u64, len: usize| {
            reads += len;
            assert!(len <= 1 << 20 && reads <= 16 << 20, "it reads without end");
            file.get(at as usize..(at as usize).checked_add(len)?).map(<[u8]>::to_vec)
        };
        judge_mariadb(&file[..file.len().min(MARIADB_HEAD)], file.len() as u64, &mut read)
    }
}

/// Logs after a clean stop, and logs that hold changes.
fn mariadb() -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let (mut clean, mut not_clean) = (Vec::new(), Vec::new());
    for begin in [0, 500, MariaDb::CAPACITY * 3 - 30] {
        let mut log = MariaDb::new(begin);
        log.change();
        log.checkpoint(4096, log.lsn);
        log.change();
        log.checkpoint(8192, log.lsn);
        clean.push(log.file.clone());
        log.change();
        not_clean.push(log.file.clone());
        // and a stop in the middle of things
        let behind = log.lsn;
        log.change();
        log.checkpoint(4096, behind);
        not_clean.push(log.file);
    }
    (clean, not_clean)
}

#[test]
fn a_flipped_bit_makes_no_log_of_mariadb_clean() {
    let (clean, not_clean) = mariadb();
    clean.iter().for_each(|file| assert_eq!(MariaDb::judge(file), RedoVerdict::Clean));
    for file in not_clean {
        assert!(matches!(MariaDb::judge(&file), RedoVerdict::NotClean(_)));
        for bit in (0..512 * 8).chain(4096 * 8..4160 * 8).chain(8192 * 8..8256 * 8) {
            let mut damaged = file.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(MariaDb::judge(&damaged), RedoVerdict::Clean, "bit {} of byte {}", bit % 8, bit / 8);
        }
    }
}

/// One redo file of MySQL: its blocks from `START` on, the last one filled up to `used`, and its checkpoint.
struct MySql {
    used: u16,
    checkpoint: u64,
    follows: bool,
    sums: bool,
}

impl MySql {
    const START: u64 = 51_200;
    const BLOCKS: u64 = 4;

    fn file(&self) -> Vec<u8> {
        let mut bytes = vec![0; MYSQL_HEAD + 512 * (Self::BLOCKS as usize + 3)];
        put(&mut bytes, 0, &6u32.to_be_bytes());
        put(&mut bytes, 8, &Self::START.to_be_bytes());
        put(&mut bytes, 16, b"MySQL 9.7.4");
        put(&mut bytes, 512 + 8, &self.checkpoint.to_be_bytes());
        put(&mut bytes, 1536 + 8, &(Self::START + 512).to_be_bytes());
        for at in [0, 512, 1536] {
            seal(&mut bytes[at..at + 512]);
        }
        for n in 0..Self::BLOCKS + u64::from(self.follows) {
            let at = MYSQL_HEAD + 512 * n as usize;
            let used = if n + 1 < Self::BLOCKS { 512 } else { self.used };
            put(&mut bytes, at, &(n as u32 + 1).to_be_bytes());
            put(&mut bytes, at + 4, &used.to_be_bytes());
            bytes[at + 12..at + 500].fill(0x2a);
            match self.sums {
                true => seal(&mut bytes[at..at + 512]),
                false => put(&mut bytes, at + 508, &0xdead_beef_u32.to_be_bytes()),
            }
        }
        bytes
    }

    fn judge(bytes: &[u8]) -> RedoVerdict {
        let head = bytes[..bytes.len().min(MYSQL_HEAD)].to_vec();
        let file = RedoFile { name: "#ib_redo7".into(), head, size: bytes.len() as u64 };
        judge_mysql(&[file], &mut |_, at, len| {
            assert!(len <= 1 << 20);
            bytes.get(usize::try_from(at).ok()?..usize::try_from(at).ok()?.checked_add(len)?).map(<[u8]>::to_vec)
        })
    }
}

fn mysql(sums: bool) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let last = MySql::START + 512 * (MySql::BLOCKS - 1);
    let clean =
        [69, 12, 507].map(|used| MySql { used, checkpoint: last + u64::from(used), follows: false, sums }.file());
    let mut not_clean = vec![MySql { used: 69, checkpoint: last + 69, follows: true, sums }.file()];
    // a bit away from what a clean stop leaves: in the checkpoint, and in what is used of the block
    for bit in 0..9 {
        not_clean.push(MySql { used: 69 ^ (1 << bit), checkpoint: last + 69, follows: false, sums }.file());
    }
    (clean.to_vec(), not_clean)
}

#[test]
fn a_flipped_bit_makes_no_log_of_mysql_clean() {
    let (clean, not_clean) = mysql(true);
    clean.iter().for_each(|file| assert_eq!(MySql::judge(file), RedoVerdict::Clean));
    for file in not_clean {
        assert!(matches!(MySql::judge(&file), RedoVerdict::NotClean(_)), "{:?}", MySql::judge(&file));
        // the header, both checkpoints, and the blocks at the log's end
        let end = MYSQL_HEAD + 512 * (MySql::BLOCKS as usize - 1);
        for bit in (0..1024 * 8).chain(1536 * 8..2048 * 8).chain(end * 8..(end + 1024) * 8) {
            let mut damaged = file.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(MySql::judge(&damaged), RedoVerdict::Clean, "bit {} of byte {}", bit % 8, bit / 8);
        }
    }
    // without checksums (innodb_log_checksums = OFF) a log is judged as well
    let (clean, not_clean) = mysql(false);
    clean.iter().for_each(|file| assert_eq!(MySql::judge(file), RedoVerdict::Clean));
    not_clean.iter().for_each(|file| assert!(matches!(MySql::judge(file), RedoVerdict::NotClean(_))));
}

/// Damage, with some of the checksums put right again, so that what is behind them is reached.
fn damaged(rng: &mut Rng, samples: &[Vec<u8>], sealed: &[(usize, usize)]) -> Vec<u8> {
    let mut bytes = mutate::bytes(rng, samples);
    if rng.bool() {
        for (at, len) in sealed {
            if let Some(block) = bytes.get_mut(*at..at + len) {
                seal(block);
            }
        }
    }
    bytes
}

#[test]
fn damaged_redo_logs_of_mariadb() {
    let _alone = alone();
    let (clean, not_clean) = mariadb();
    let samples = [clean, not_clean].concat();
    mutate::run("redo of MariaDB", move |rng| {
        let mut bytes = damaged(rng, &samples, &[(0, 512), (4096, 64), (8192, 64)]);
        if rng.u8(..4) == 0 && bytes.len() >= MARIADB_HEAD {
            let mut head = bytes[4096..8256].to_vec();
            mutate::damage(rng, &mut head, &[]);
            head.resize(8256 - 4096, 0);
            put(&mut bytes, 4096, &head);
            seal(&mut bytes[4096..4160]);
            seal(&mut bytes[8192..8256]);
        }
        let (_, most) = measured(|| MariaDb::judge(&bytes));
        assert!(most < 32 << 20, "{most}");
    });
}

#[test]
fn damaged_redo_logs_of_mysql() {
    let _alone = alone();
    let samples: Vec<Vec<u8>> = [mysql(true), mysql(false)].into_iter().flat_map(|(a, b)| [a, b].concat()).collect();
    mutate::run("redo of MySQL", move |rng| {
        let sealed = [(0, 512), (512, 512), (1536, 512), (MYSQL_HEAD + 3 * 512, 512), (MYSQL_HEAD + 4 * 512, 512)];
        let bytes = damaged(rng, &samples, &sealed);
        let (_, most) = measured(|| MySql::judge(&bytes));
        assert!(most < 1 << 20, "{most}");
    });
}
