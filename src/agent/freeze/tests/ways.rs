//! Each way on a real filesystem: what is frozen stays what it was, production never finds its filesystem full, nothing is left.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use super::volume::{MIB, Volume, content, fill, items, live_on, names, no_way, output, same, way};
use crate::agent::freeze::{Place, Way, Wish, choose, prepare, sweep, take};
use crate::agent::receive::is_root;

/// Freezes a datadir, lives on, and looks at what is frozen; everything is gone in the end.
fn freeze_and_live_on(place: &Place, way: &Way) {
    let datadir = &place.datadir;
    let (before, beside) = (content(datadir), names(datadir.parent().unwrap()));
    prepare(place, way).unwrap();
    let frozen = take(way, place, "20260101-000000-aa", &items(datadir)).unwrap();
    same(&content(datadir), &before, "nothing is written in the datadir");
    same(&content(frozen.datadir()), &before, &way.to_string());
    live_on(datadir);
    assert!(content(datadir) != before);
    same(&content(frozen.datadir()), &before, &way.to_string());
    frozen.check().unwrap();
    assert!(sweep(place).unwrap());
    assert!(!frozen.datadir().exists());
    assert!(frozen.check().unwrap_err().to_string().contains("was removed meanwhile"));
    assert!(!sweep(place).unwrap(), "once");
    assert_eq!(names(datadir.parent().unwrap()), beside, "nothing is left beside the datadir");
    assert_eq!(names(&place.state_dir.join("freeze")), [""; 0]);
}

#[test]
fn clones_on_xfs() {
    let Some(volume) = Volume::new("xfs", 400) else { return };
    let datadir = volume.datadir();
    let place = volume.place(&datadir);
    let found = way(&datadir, Wish::Auto);
    assert_eq!(found, Way::Reflink { filesystem: "xfs".into() });
    assert_eq!(found.to_string(), "reflink clone beside the datadir (XFS)");
    assert_eq!(way(&datadir, Wish::Reflink), found);
    assert_eq!(names(volume.top()), ["data"], "choosing changes nothing");
    freeze_and_live_on(&place, &found);
    // nobody else may look into what is frozen
    let frozen = take(&found, &place, "r2", &items(&datadir)).unwrap();
    let folder = frozen.datadir().parent().unwrap();
    assert_eq!((folder.metadata().unwrap().mode() & 0o777, folder.metadata().unwrap().uid()), (0o700, 0));
    assert_eq!(frozen.datadir(), volume.top().join(".data.refreshd/frozen/mysql-refreshd-r2"));
    // the next one takes its place
    let next = take(&found, &place, "r3", &items(&datadir)).unwrap();
    assert!(!frozen.datadir().exists() && next.datadir().exists());
    assert!(frozen.check().is_err());
    next.check().unwrap();
    // a destination's work folder stays
    std::fs::write(volume.top().join(".data.refreshd/act.lock"), "").unwrap();
    assert!(sweep(&place).unwrap());
    assert_eq!(names(&volume.top().join(".data.refreshd")), ["act.lock"]);
    let text = no_way(&datadir, Wish::Btrfs);
    assert!(text.starts_with("xfs on /dev/loop") && text.ends_with("is not btrfs"), "{text}");
    assert!(no_way(&datadir, Wish::Zfs).ends_with("is not ZFS"));
    assert!(no_way(&datadir, Wish::Lvm).ends_with("is no LVM volume"));
    assert!(choose(&datadir, Wish::None).unwrap().is_err());
}

#[test]
fn where_nothing_can_be_frozen_it_is_said_why() {
    if let Some(volume) = Volume::new("ext4", 64) {
        let datadir = volume.top().join("data");
        std::fs::create_dir(&datadir).unwrap();
        std::fs::write(datadir.join("ibdata1"), "x").unwrap();
        let text = no_way(&datadir, Wish::Auto);
        let device = output(Command::new("findmnt").args(["-nvo", "SOURCE"]).arg(volume.top()));
        let device = device.trim();
        assert_eq!(text, format!("ext4 on {device} has no reflinks; ext4 on {device} is no LVM volume"));
        assert_eq!(names(volume.top()), ["data", "lost+found"]);
        assert!(no_way(volume.top(), Wish::Reflink).contains("is a mount point"));
    }
    if let Some(volume) = Volume::new("xfs", 400) {
        let text = no_way(volume.top(), Wish::Auto);
        assert!(text.contains("vol is a mount point: on its filesystem there is no place beside it"), "{text}");
        // a folder that others could change is no place for root
        let datadir = volume.top().join("open/data");
        std::fs::create_dir_all(&datadir).unwrap();
        output(Command::new("chmod").args(["0777"]).arg(datadir.parent().unwrap()));
        let text = no_way(&datadir, Wish::Reflink);
        assert!(text.contains("others can change"), "{text}");
    }
}

#[test]
fn snapshots_and_clones_on_btrfs() {
    let Some(mut volume) = Volume::new("btrfs", 400) else { return };
    let subvolume = |path: &Path| output(Command::new("btrfs").args(["subvolume", "create"]).arg(path));
    // a plain folder
    let datadir = volume.datadir();
    assert_eq!(way(&datadir, Wish::Auto), Way::Reflink { filesystem: "btrfs".into() });
    assert!(no_way(&datadir, Wish::Btrfs).ends_with("is a folder, not a btrfs subvolume"));
    freeze_and_live_on(&volume.place(&datadir), &way(&datadir, Wish::Auto));
    // files that are not copied on write
    let nocow = volume.top().join("nocow");
    std::fs::create_dir(&nocow).unwrap();
    output(Command::new("chattr").arg("+C").arg(&nocow));
    fill(&nocow);
    let attributes = output(Command::new("lsattr").arg(nocow.join("ibdata1")));
    assert!(attributes.split(' ').next().unwrap().contains('C'), "{attributes}");
    freeze_and_live_on(&volume.place(&nocow), &way(&nocow, Wish::Auto));
    // a subvolume
    let datadir = volume.top().join("sub");
    subvolume(&datadir);
    fill(&datadir);
    let found = way(&datadir, Wish::Auto);
    assert!(matches!(&found, Way::Btrfs { beside: true, .. }), "{found:?}");
    freeze_and_live_on(&volume.place(&datadir), &found);
    // the same by clones
    freeze_and_live_on(&volume.place(&datadir), &way(&datadir, Wish::Reflink));
    // a subvolume that is mounted by itself: nothing can lie beside it
    subvolume(&volume.top().join("@mysql"));
    let datadir = volume.mount("my sql", "subvol=@mysql").unwrap();
    fill(&datadir);
    let found = way(&datadir, Wish::Auto);
    assert!(matches!(&found, Way::Btrfs { beside: false, .. }), "{found:?}");
    assert_eq!(found.to_string(), "btrfs snapshot at the top of the datadir's filesystem");
    let top = names(volume.top());
    freeze_and_live_on(&volume.place(&datadir), &found);
    assert_eq!(names(volume.top()), top);
    // the top itself: a snapshot would be in the datadir
    assert!(no_way(volume.top(), Wish::Auto).contains("would lie inside the datadir"));
}

#[test]
fn production_never_finds_its_filesystem_full() {
    for kind in ["xfs", "btrfs"] {
        let Some(volume) = Volume::new(kind, 600) else { continue };
        let datadir = volume.top().join("data");
        std::fs::create_dir(&datadir).unwrap();
        let table = std::fs::File::create(datadir.join("ibdata1")).unwrap();
        let write = |n: u64, byte: u8| {
            table.write_all_at(&vec![byte; 4 << 20], n * 4 * MIB).unwrap();
            table.sync_all().unwrap();
        };
        // more than half: it cannot be there twice
        (0..85).for_each(|n| write(n, 1));
        let place = volume.place(&datadir);
        let found = way(&datadir, Wish::Auto);
        let frozen = take(&found, &place, "r1", &items(&datadir)).unwrap();
        let mut given_up = None;
        for n in 0..85 {
            write(n, 2);
            if given_up.is_none()
                && let Err(problem) = frozen.check()
            {
                assert!(problem.to_string().contains("have to stay free"), "{problem}");
                assert!(sweep(&place).unwrap());
                given_up = Some(n);
            }
        }
        let at = given_up.unwrap_or_else(|| panic!("{kind}: there was never too little room"));
        assert!(at > 10, "{kind}: given up at {at}");
        // and while there is so little, nothing is begun
        let rest = std::fs::File::create(volume.top().join("rest")).unwrap();
        let mut len = 0;
        while choose(&datadir, Wish::Auto).unwrap().is_ok() {
            if let Err(error) = rest.write_all_at(&vec![3; 4 << 20], len) {
                panic!(
                    "{kind}: {error} at {} MiB\n{}",
                    len / MIB,
                    output(Command::new("df").arg("-m").arg(volume.top()))
                );
            }
            rest.sync_all().unwrap();
            len += 4 * MIB;
        }
        let text = no_way(&datadir, Wish::Reflink);
        assert!(text.contains("could run full while something is frozen"), "{text}");
        let problem = take(&found, &place, "r1", &items(&datadir)).unwrap_err();
        assert!(problem.to_string().contains("could run full"), "{problem}");
        assert_eq!(names(volume.top()), ["data", "rest"]);
    }
}

#[test]
fn a_datadir_that_is_not_as_it_was_walked_is_not_frozen() {
    let Some(volume) = Volume::new("xfs", 400) else { return };
    let datadir = volume.datadir();
    let (place, found) = (volume.place(&datadir), way(&datadir, Wish::Auto));
    let walked = items(&datadir);
    let shop = datadir.join("shop/t7.ibd");
    let refused = |what: &str| {
        let problem = take(&found, &place, "r1", &walked).unwrap_err();
        assert!(problem.to_string().contains(what), "{problem}");
        assert_eq!(names(volume.top()), ["data", "elsewhere"]);
        assert!(!sweep(&place).unwrap());
    };
    std::fs::create_dir(volume.top().join("elsewhere")).unwrap();
    std::fs::write(&shop, "shorter").unwrap();
    refused("shop/t7.ibd was changed after the server's stop");
    std::fs::remove_file(&shop).unwrap();
    refused("cannot clone shop/t7.ibd: No such file");
    std::os::unix::fs::symlink("/etc/passwd", &shop).unwrap();
    refused("cannot clone shop/t7.ibd");
    // a folder that leads elsewhere
    std::fs::rename(datadir.join("shop"), volume.top().join("elsewhere/shop")).unwrap();
    std::os::unix::fs::symlink(volume.top().join("elsewhere/shop"), datadir.join("shop")).unwrap();
    refused("cannot open");
    assert!(take(&found, &place, "../r1", &[]).unwrap_err().to_string().contains("cannot be the name"));
}

#[test]
fn thousands_of_files_are_all_there() {
    for kind in ["xfs", "btrfs"] {
        let Some(volume) = Volume::new(kind, 600) else { continue };
        let datadir = volume.top().join("data");
        for schema in 0..5 {
            let folder = datadir.join(format!("schema{schema}"));
            std::fs::create_dir_all(&folder).unwrap();
            (0..500).for_each(|n| {
                std::fs::write(folder.join(format!("t{n}.ibd")), format!("{schema}.{n}").repeat(700)).unwrap()
            });
        }
        let (place, walked) = (volume.place(&datadir), items(&datadir));
        prepare(&place, &Way::Reflink { filesystem: "x".into() }).unwrap();
        let frozen = take(&way(&datadir, Wish::Reflink), &place, "r1", &walked).unwrap();
        same(&content(frozen.datadir()), &content(&datadir), kind);
        assert!(sweep(&place).unwrap());
    }
}

/// What an agent without root does; run by the test below as another account.
const AS_ACCOUNT: &str = "MYSQL_REFRESHD_TEST_DATADIR";

#[test]
fn an_account_without_root_clones_too() {
    if let Some(datadir) = std::env::var_os(AS_ACCOUNT) {
        assert!(!is_root());
        let datadir = Path::new(&datadir);
        let place = Place { state_dir: datadir.with_file_name("state"), key: "k".into(), datadir: datadir.to_owned() };
        std::fs::create_dir(&place.state_dir).unwrap();
        freeze_and_live_on(&place, &way(datadir, Wish::Auto));
        assert!(no_way(datadir, Wish::Lvm).contains("is no LVM volume"));
        // where it may not create anything
        let text = no_way(&datadir.with_file_name("closed").join("data"), Wish::Auto);
        assert!(text.contains("this account cannot create anything beside the datadir"), "{text}");
        return;
    }
    let Some(volume) = Volume::new("xfs", 400) else { return };
    let home = volume.top().join("home");
    let (datadir, closed) = (home.join("data"), home.join("closed/data"));
    std::fs::create_dir_all(&datadir).unwrap();
    fill(&datadir);
    output(Command::new("chown").args(["-R", "12345:12345"]).arg(&home));
    std::fs::create_dir_all(&closed).unwrap();
    output(Command::new("chmod").arg("0711").arg(volume.top().parent().unwrap()));
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=12345", "--regid=12345", "--clear-groups", "--"]).arg(&program);
    if !command.arg("--list").output().is_ok_and(|done| done.status.success()) {
        eprintln!("nothing tested: no other account can execute {}", program.display());
        return;
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=12345", "--regid=12345", "--clear-groups", "--"]).arg(&program).env(AS_ACCOUNT, &datadir);
    let name = "agent::freeze::tests::ways::an_account_without_root_clones_too";
    let said = output(command.args(["--exact", name, "--nocapture"]));
    assert!(said.contains("1 passed"), "{said}");
}
