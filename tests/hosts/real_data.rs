//! Real data from the package registries: fetched once, kept beside the bench's images, never part of the project.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::fleet::{Host, Ran};

/// Loads it into a server: schemas `flights`, `chinook` and `geo`, about 45 MB of SQL.
#[track_caller]
pub fn load(host: Host<'_>) {
    let client = "$(command -v mariadb || command -v mysql) --default-character-set=utf8mb4";
    let mut command = host.shell(client);
    command.stdin(Stdio::from(File::open(file()).unwrap()));
    Ran::of(command, "load").expect(0);
    assert_eq!(host.sql("SELECT COUNT(*) FROM flights.flights"), "336776");
}

/// The file of SQL; one process fetches it, the others wait.
#[track_caller]
fn file() -> PathBuf {
    let root =
        std::env::var_os("BENCH_ROOT").map_or_else(|| PathBuf::from("/var/cache/mysql-refreshd-bench"), PathBuf::from);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/hosts/real_data.py");
    // named by what makes it, as the images are
    let name = blake3::hash(&fs::read(script).unwrap()).to_hex();
    let file = root.join(format!("data/{}.sql", &name[..12]));
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    let lock = File::create(file.with_extension("lock")).unwrap();
    fs2::FileExt::lock_exclusive(&lock).unwrap();
    let mut command = Command::new("python3");
    command.arg(script).arg(&file);
    Ran::of(command, "real_data.py").expect(0);
    file
}
