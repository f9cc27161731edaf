//! The bench itself: it comes and goes without a trace, twice at once, and also when whoever wanted it was killed.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::fleet::{Fleet, Ran, eventually, script};

/// Everything on this machine that carries a fleet's name: mounts, namespaces, cgroups, processes, folders, loop devices.
fn traces(fleet: &str) -> BTreeSet<String> {
    let line = format!(
        "grep -F '{fleet}' /proc/self/mounts; ls /run/netns; find /sys/fs/cgroup -name '{fleet}*'; losetup -a
         pgrep -af '{fleet}'; ls /run/systemd/nspawn/* /run/systemd/machines; ls \"${{BENCH_ROOT:-/var/cache/mysql-refreshd-bench}}/fleets\""
    );
    let mut command = Command::new("bash");
    command.args(["-c", &line]);
    let own = |line: &&str| line.contains(fleet) && !line.contains("pgrep");
    Ran::of(command, "traces").stdout.lines().filter(own).map(str::to_owned).collect()
}

#[test]
fn it_leaves_no_trace() {
    let fleet = Fleet::up(&["a=plain,xfs:400M", "b=plain"]);
    let name = fleet.name().to_owned();
    assert!(traces(&name).len() > 5, "{:?}", traces(&name));
    // what runs already is left as it is
    let boot = fleet.host("a").sh("cat /proc/sys/kernel/random/boot_id; cat /proc/1/stat | cut -d' ' -f22");
    fleet.grow(&["a=plain,xfs:400M", "b=plain"]);
    assert_eq!(fleet.host("a").sh("cat /proc/sys/kernel/random/boot_id; cat /proc/1/stat | cut -d' ' -f22"), boot);
    // a name stands for one host only
    let other = Ran::of(fleet.command(&["up", "a=mysql"]), "up").expect(1);
    assert!(other.stderr.contains("there already"), "{other}");
    // taken down in any state: off, frozen, full
    fleet.hosts(&["crash", "b"]);
    fleet.hosts(&["disk", "a", "freeze"]);
    fleet.hosts(&["down", "--all"]);
    fleet.hosts(&["down", "--all"]);
    assert_eq!(traces(&name), BTreeSet::new());
}

#[test]
fn two_fleets_do_not_meet() {
    let (one, two) = (Fleet::up(&["a=plain", "b=plain"]), Fleet::up(&["a=plain", "b=plain"]));
    let key = |fleet: &Fleet| fleet.host("a").sh("cat /etc/ssh/ssh_host_ed25519_key.pub /etc/machine-id");
    assert_ne!(key(&one), key(&two));
    one.host("a").write("/root/mark", "one");
    assert_eq!(two.host("a").try_sh("cat /root/mark").code, Some(1));
    // the same addresses, and each is its own fleet's
    for fleet in [&one, &two] {
        let seen =
            fleet.host("b").sh("timeout 5 bash -c 'exec 3<>/dev/tcp/a/22; head -c 4 <&3' && grep -c . /etc/hosts");
        assert_eq!(seen, "SSH-3");
    }
    // and no way out of it
    assert!(one.host("a").sh("ip -4 -o addr show scope global | wc -l; ip route show default").starts_with('1'));
    assert_eq!(one.host("a").sh("ip route show default"), "");
    let name = one.name().to_owned();
    drop(one);
    assert_eq!(traces(&name), BTreeSet::new());
    assert_eq!(two.host("a").ssh("hostname").expect(0).stdout, "a");
}

#[test]
fn it_goes_with_its_owner() {
    // the one command, killed in the middle of what it runs
    let name = format!("k{}", std::process::id());
    let mut command = Command::new(script());
    command.args(["run", "a=plain", "b=plain", "--", "sleep", "600"]).env("BENCH_FLEET", &name).stdin(Stdio::null());
    let mut run = command.spawn().unwrap();
    let listed = || {
        Ran::of(
            {
                let mut c = Command::new(script());
                c.arg("list").env("BENCH_FLEET", &name);
                c
            },
            "list",
        )
        .stdout
    };
    eventually("two hosts", Duration::from_secs(60), || {
        listed().lines().filter(|line| line.contains("running")).count() == 2
    });
    run.kill().unwrap();
    run.wait().unwrap();
    let _ = Command::new("pkill").args(["-x", "-f", "sleep 600"]).status();
    eventually("no trace", Duration::from_secs(60), || traces(&name).is_empty());
    // and one that ends by itself hands on how
    let ends = |line: &str| {
        let mut command = Command::new(script());
        command.args(["run", "a=plain", "--", "bash", "-c", line]).env("BENCH_FLEET", &name);
        Ran::of(command, line)
    };
    assert_eq!(ends("\"$0\" >/dev/null; exit 7").code, Some(7));
    let said = ends(&format!("{} ssh a hostname", script().display())).expect(0);
    assert_eq!(said.stdout, "a");
    assert_eq!(traces(&name), BTreeSet::new());
}

#[test]
fn bad_words_are_refused_before_anything_is_made() {
    for (arguments, why) in [
        (["up", "a"], "is not NAME=KIND"),
        (["up", "A=plain"], "is no name"),
        (["up", "a=oracle"], "unknown kind"),
        (["up", "a=plain,zfs:1G"], "is not KIND"),
        (["exec", "nobody"], "does not run"),
        (["nonsense", "x"], "unknown verb"),
    ] {
        let name = format!("w{}", std::process::id());
        let mut command = Command::new(script());
        command.args(arguments).env("BENCH_FLEET", &name);
        Ran::of(command, why).expect(1).says(&[why]);
        assert_eq!(traces(&name), BTreeSet::new());
    }
}
