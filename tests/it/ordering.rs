//! What is on the disk before what, in a swap: the system calls of a whole run, as strace sees them. A power cut keeps a rename that was
//! made durable, and may lose or keep any other; so the order is the promise.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::world::{PROGRAM, Server, World, content, is_root, wait_for};

/// The calls of a run, or a rollback, that matter, in the order in which they began, as `fsync PATH`, `rename FROM TO`, `unlink PATH`,
/// `exec PATH`, `mode PATH`, `owner PATH`.
fn calls(world: &World, arguments: &[&str]) -> Vec<String> {
    let trace = world.root().join("trace");
    let mut command = Command::new("strace");
    // as a process beside the program, which may end before the servers that it has started
    command.args(["-D", "-f", "-y", "-s", "400", "--seccomp-bpf"]);
    command.args([
        "-e",
        "trace=fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,execve,chmod,fchmodat,lchown,fchownat",
    ]);
    command.arg("-o").arg(&trace).arg(PROGRAM).env_clear();
    let like = world.call(arguments);
    let status =
        like.like(&mut command).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    assert!(status.success(), "{status}\n{}", world.program_log());
    let read = || -> Vec<String> { fs::read_to_string(&trace).unwrap().lines().filter_map(call).collect() };
    wait_for("the trace's end", Duration::from_secs(20), || !places(&read(), "unlink ", "swap.json").is_empty());
    read()
}

fn call(line: &str) -> Option<String> {
    let line = line.split_once(' ')?.1.trim_start();
    // one that did not do anything
    if line.contains(" = -1 ") || line.starts_with("<...") {
        return None;
    }
    let quoted: Vec<&str> = line.split('"').skip(1).step_by(2).collect();
    let path_of_fd = || line.split_once('<')?.1.split_once('>').map(|(path, _)| path);
    Some(match line.split_once('(')?.0 {
        "fsync" | "fdatasync" => format!("fsync {}", path_of_fd()?),
        "rename" | "renameat" | "renameat2" => format!("rename {} {}", quoted.first()?, quoted.get(1)?),
        "unlink" | "unlinkat" => format!("unlink {}", quoted.first()?),
        "execve" => format!("exec {}", quoted.first()?),
        "chmod" | "fchmodat" => format!("mode {}", quoted.first()?),
        "lchown" | "fchownat" => format!("owner {}", quoted.first()?),
        _ => return None,
    })
}

/// The places of a call in the order of all, where it begins and ends so.
fn places(calls: &[String], begin: &str, end: &str) -> Vec<usize> {
    let fits = |call: &String| call.starts_with(begin) && call.ends_with(end);
    calls.iter().enumerate().filter(|(_, call)| fits(call)).map(|(n, _)| n).collect()
}

/// A file replaced: itself before the rename, its folder right after, and before anything else of ours happens.
fn durably(calls: &[String], file: &Path, nth: usize) -> (usize, usize) {
    let named = file.display().to_string();
    let renames = places(calls, "rename ", &format!(" {named}"));
    let at =
        *renames.get(nth).unwrap_or_else(|| panic!("{named} is not written {} times\n{}", nth + 1, calls.join("\n")));
    let temporary = calls[at].split(' ').nth(1).unwrap();
    let before = places(calls, &format!("fsync {temporary}"), "");
    assert!(before.iter().any(|n| *n < at), "{named} is renamed before it is on the disk");
    let folder = file.parent().unwrap().display().to_string();
    let after = places(calls, &format!("fsync {folder}"), &folder).into_iter().find(|n| *n > at);
    (at, after.unwrap_or_else(|| panic!("the folder of {named} is not made durable")))
}

#[test]
fn a_swap_is_on_the_disk_in_an_order_that_leaves_one_generation() {
    let world = World::builder().over("local").build();
    let server: &Server = world.destination();
    world.refresh().run().expect(0);
    world.stamp(3);
    let calls = calls(&world, &["--now", "nightly"]);
    assert_eq!(content(server), "prod-3");
    let (work, data) = (server.work(), server.datadir());
    let exchange = places(&calls, &format!("rename {}", data.display()), &format!(" {}", work.join("stage").display()));
    let [exchange] = exchange[..] else { panic!("one exchange, not {exchange:?}\n{}", calls.join("\n")) };

    // 1: the stage, every file and folder of it, before the journal
    let (journal, journalled) = durably(&calls, &work.join("swap.json"), 0);
    let stage = work.join("stage").display().to_string();
    let whole = places(&calls, &format!("fsync {stage}"), &stage).into_iter().rfind(|n| *n < journal);
    let whole = whole.expect("the stage itself is not made durable before the swap");
    for name in ["ibdata1", "ib_logfile0", "mysql", "shop", "shop/wide.ibd"] {
        let path = format!("{stage}/{name}");
        let last = places(&calls, &format!("fsync {path}"), &path).into_iter().rfind(|n| *n < journal);
        assert!(last.is_some(), "{name} of the stage is not made durable");
    }
    // 2 and 3: journal and drop-in before the exchange
    let (_, settings) = durably(&calls, &server.dropin(), 0);
    assert!(whole < journal && journalled < settings && settings < exchange, "{whole} {journal} {settings} {exchange}");
    // 4: the exchange is on the disk on both sides before anyone starts a server on it
    let start =
        places(&calls, "exec ", "/mariadbd").into_iter().find(|n| *n > exchange).expect("a start after the exchange");
    for folder in [&work, &server.dir] {
        let folder = folder.display().to_string();
        let synced = places(&calls, &format!("fsync {folder}"), &folder).into_iter().find(|n| *n > exchange);
        assert!(synced.is_some_and(|n| n < start), "{folder} is not made durable between exchange and start");
    }
    // 5 and 6: committed, then the old one is the previous one, then that is on record, then the journal goes
    let (committed, on_disk) = durably(&calls, &work.join("swap.json"), 1);
    let previous = places(&calls, &format!("rename {stage}"), &format!(" {}", work.join("previous").display()));
    let (_, recorded) = durably(
        &calls,
        &work.join("generation.json"),
        places(&calls, "rename ", &format!(" {}", work.join("generation.json").display())).len() - 1,
    );
    let gone = *places(&calls, "unlink ", "swap.json").last().unwrap();
    assert!(
        start < committed && on_disk < previous[0] && previous[0] < recorded && recorded < gone,
        "{committed} {previous:?} {recorded} {gone}"
    );
}

/// Else whoever may write into the datadir could put links in the way of root's hands.
#[test]
fn nobody_gets_into_a_stage_before_all_of_it_has_changed_hands() {
    if !is_root() {
        eprintln!("nothing tested: without root nothing changes hands");
        return;
    }
    let world = World::builder().over("local").build();
    let server = world.destination();
    fs::set_permissions(server.datadir(), fs::Permissions::from_mode(0o777)).unwrap();
    let calls = calls(&world, &["--now", "nightly"]);
    assert_eq!(fs::metadata(server.datadir()).unwrap().permissions().mode() & 0o7777, 0o777);
    let stage = server.work().join("stage").display().to_string();
    let opened = places(&calls, &format!("mode {stage}"), &stage);
    let [opened] = opened[..] else { panic!("opened once, not {opened:?}\n{}", calls.join("\n")) };
    let isolated = places(&calls, "exec ", "/mariadbd").into_iter().find(|n| *n > opened).expect("an isolated start");
    let handed = places(&calls, &format!("owner {stage}"), "").into_iter().rfind(|n| *n < isolated);
    assert!(handed.expect("files change hands") < opened, "{}", calls.join("\n"));
}

#[test]
fn a_dropin_that_goes_is_gone_for_good_before_the_journal_is() {
    let world = World::builder().over("local").build();
    let dropin = world.destination().dropin();
    assert!(!dropin.exists());
    world.refresh().run().expect(0);
    assert!(dropin.exists());
    let calls = calls(&world, &["rollback", "rnd/r1"]);
    assert_eq!(content(world.destination()), "r1");
    let gone = *places(&calls, "unlink ", &dropin.display().to_string()).last().expect("the drop-in is removed");
    let folder = dropin.parent().unwrap().display().to_string();
    let synced = places(&calls, &format!("fsync {folder}"), &folder).into_iter().find(|n| *n > gone);
    let committed =
        places(&calls, "rename ", "swap.json").into_iter().find(|n| *n > gone).expect("the swap is committed");
    assert!(synced.is_some_and(|n| n < committed), "its removal is not made durable\n{}", calls.join("\n"));
}
