//! What is refused, with the exact words.

use std::fs;

use super::{World, id};

#[test]
fn unknown_keys_are_reported_with_the_nearest_known_one() {
    let world = World::refresh("drain_timout = \"5m\"\nzzz = 1\n[daemn]\nx = 1\n")
        .part("a.toml", "[environments.rnd.hosts.r1]\nsockets = 1\nservice.units = 1\n")
        .env("DAEMON__LOG_LEVLE", "debug")
        .env("DAEMON_LOG_LEVEL", "debug")
        .set("daemon.LOG_LEVEL=debug");
    let errors = world.errors().join("\n");
    for expected in [
        "config.toml: refreshes.n.drain_timout: there is no such key (hint: Did you mean `drain_timeout`?)",
        "config.toml: refreshes.n.zzz: there is no such key (hint: The keys known here are source, ",
        "config.toml: daemn: there is no such key (hint: Did you mean `daemon`?)",
        "conf.d/a.toml: environments.rnd.hosts.r1.sockets: there is no such key (hint: Did you mean `socket`?)",
        "conf.d/a.toml: environments.rnd.hosts.r1.service.units: there is no such key (hint: Did you mean `unit`?)",
        "environment variable MYSQL_REFRESHD_DAEMON__LOG_LEVLE: daemon.log_levle: there is no such key (hint: \
         Did you \
         mean `log_level`?)",
        "environment variable MYSQL_REFRESHD_DAEMON_LOG_LEVEL: daemon_log_level: there is no such key",
        "--set daemon.LOG_LEVEL: daemon.LOG_LEVEL: there is no such key",
    ] {
        assert!(errors.contains(expected), "{expected}\nis not in\n{errors}");
    }
    assert_eq!(world.errors().len(), 8, "{errors}");
}

#[test]
fn all_errors_come_at_once() {
    let world = World::new(
        r#"
[daemon]
log_keep = 0
log_level = "inf"
log_dir = "logs"
[environments.prod.hosts.db1]
transport = "sssh"
socket = "/s"
service = { unit = "a", start = ["b"] }
password = "hunter2"
[environments.prod.hosts.Db2]
datadir = 5
[refreshes.n]
source = "prd"
destinations = ["prod/db", "prod/db1"]
method = "logical"
max_outage = 30
enabled = "yes"
schedule = "0 0 31 2 *"
space_reserve = "100%"
"#,
    )
    .part("a.toml", "[refreshes.n]\nschedule = '61 * * * *'\ntime_zone = 'Europe/Berlim'\n")
    .env("REFRESHES__N__LOCK_TIMEOUT", "soon");
    let errors = world.errors();
    assert!(!errors.join("\n").contains("hunter2"));
    let expected = [
        "config.toml: daemon.log_dir: it must be an absolute path (hint: Write the whole path, beginning with `/`.)",
        "config.toml: daemon.log_level: \"inf\" is not one of error, warn, info, debug, trace (hint: Did you \
         mean `info`?)",
        "config.toml: daemon.log_keep: a whole number from 1 to 10000 is expected",
        "config.toml: environments.prod.hosts.Db2: \"Db2\" is not a valid name (hint: Use at most 64 \
         lower-case letters, \
         digits, `-` and `_`, beginning with a letter or digit.)",
        "config.toml: environments.prod.hosts.Db2.datadir: it must be an absolute path (hint: Write the whole path, \
         beginning with `/`.)",
        "config.toml: environments.prod.hosts.Db2.socket: this key is missing",
        "config.toml: environments.prod.hosts.Db2.service: this is missing (hint: Give `unit`, or `start` and \
         `stop`, or \
         `server` and `defaults_file`.)",
        "config.toml: environments.prod.hosts.db1.transport: \"sssh\" is not one of local, ssh, openssh (hint: Did you mean `ssh`?)",
        "config.toml: environments.prod.hosts.db1.datadir: this key is missing",
        "config.toml: environments.prod.hosts.db1.service: only one of these can be used: `unit` in \
         config.toml, `start` \
         in config.toml (hint: Keep one of them; tables of several layers are merged key by key.)",
        "config.toml: environments.prod.hosts.db1.password: a table is expected here, not a text (hint: Write \
         its keys in \
         braces, like { key = \"value\" }, or below a [heading].)",
        "conf.d/a.toml: refreshes.n.time_zone: \"Europe/Berlim\" is not a time zone (hint: Did you mean \
         `Europe/Berlin`?)",
        "conf.d/a.toml: refreshes.n.schedule: \"61 * * * *\" is not a schedule: number out of bounds (hint: \
         Write `minute hour day month weekday`, like \"30 2 * * *\", or \
         `@daily`.)",
        "config.toml: refreshes.n.enabled: true or false is expected, not \"yes\" (hint: Write true or false, \
         without \
         quotes.)",
        "config.toml: refreshes.n.method: \"logical\" is not in this version (hint: Write \"cold\" or \"snapshot\".)",
        "environment variable MYSQL_REFRESHD_REFRESHES__N__LOCK_TIMEOUT: refreshes.n.lock_timeout: \"soon\" is not a \
         duration (hint: Write a number and a unit, like \"30s\", \"5m\" or \"2h\".)",
        "config.toml: refreshes.n.max_outage: \"30\" has no unit of time (hint: Write a number and a unit, \
         like \"30s\", \
         \"5m\" or \"2h\".)",
        "config.toml: refreshes.n.space_reserve: \"100%\" is neither a share from 0% to 99% nor a size (hint: \
         Write it \
         like \"5%\", \"2GiB\" or \"500MB\".)",
        "config.toml: refreshes.n.source: there is no environment \"prd\" (hint: Did you mean `prod`?)",
        "config.toml: refreshes.n.destinations: there is no host \"db\" in the environment prod (hint: Did you mean \
         `prod/db1`?)",
    ];
    for (error, expected) in errors.iter().zip(expected) {
        assert_eq!(error, expected);
    }
    assert_eq!(errors.len(), expected.len(), "{errors:#?}");
}

#[test]
fn broken_files_are_all_reported_and_absences_are_not() {
    let world = World::new("[daemon]\nlog_keep = 0\n\nlog_dir = = 1\npassword = \"hunter2\n")
        .part("a.toml", "[refreshes.n]\nsource = \"prod\"\nevnts = 1\n")
        .part("b.toml", "x = 1\nx = 2\n")
        .set("daemon.log_dir")
        .set("daemon..log_dir=x")
        .set("refreshes.n.copy_files=[1");
    fs::write(world.folder.path().join("conf.d/c.toml"), b"x = \"\xff\"").unwrap();
    let errors = world.errors();
    let starts = [
        "config.toml: line 4: ",
        "conf.d/b.toml: line 2: duplicate key `x`",
        "conf.d/c.toml: the file is not valid UTF-8",
        "--set daemon.log_dir: there is no `=`",
        "--set daemon..log_dir: this is not a key",
        "--set refreshes.n.copy_files: the value is not valid TOML: ",
        "conf.d/a.toml: refreshes.n.evnts: there is no such key (hint: Did you mean `events`?)",
    ];
    for (error, start) in errors.iter().zip(starts) {
        assert!(error.starts_with(start), "{error}");
        assert!(!error.contains("hunter2") && !error.contains('\n'), "{error}");
    }
    assert_eq!(errors.len(), starts.len(), "{errors:#?}");
}

#[test]
fn schedules_are_accepted_in_every_form() {
    for text in ["30 2 * * *", "0 30 2 * * *", "0 30 2 * * * 2099", "@daily", " @weekly ", "0 9 * * MON-FRI"] {
        let world = World::refresh(&format!("schedule = \"{text}\"\ntime_zone = \"Europe/Berlin\""));
        assert!(world.config().refreshes["n"].schedule.is_some(), "{text}");
    }
    for text in ["0 0 31 2 *", "0 0 0 1 1 * 2001"] {
        let errors = World::refresh(&format!("schedule = \"{text}\"")).errors();
        assert_eq!(errors, ["config.toml: refreshes.n.schedule: this schedule never comes round"]);
    }
    for text in ["every night", "* * * *", "@never", "ü", "0 0 * * 9", "1-", "+ + + + +", "@@daily"] {
        let errors = World::refresh(&format!("schedule = \"{text}\"")).errors();
        assert!(errors.len() == 1 && errors[0].contains("is not a schedule: "), "{text}: {errors:?}");
    }
}

#[test]
fn places_that_two_servers_share_are_refused() {
    let world = World::refresh("")
        .set("environments.rnd.hosts.r2.datadir=/srv//r1/.")
        .set("environments.rnd.hosts.r2.socket=/srv/r1.sock")
        .set("environments.rnd.hosts.r1.dropin=/srv/x.cnf")
        .set("environments.rnd.hosts.r2.dropin=/srv/x.cnf");
    let hint = " (hint: Describe each server once, with places of its own.)";
    let line = |key: &str| {
        let full = format!("environments.rnd.hosts.r2.{key}");
        format!("--set {full}: {full}: this is the {key} of rnd/r1 too{hint}")
    };
    assert_eq!(world.errors(), [line("datadir"), line("socket"), line("dropin")]);

    let world = World::refresh("")
        .set("environments.rnd.hosts.r2.datadir=/srv/r1/deep")
        .set("environments.rnd.hosts.r1.state_dir=/srv/p/state")
        .set("daemon.log_dir=/srv/p");
    let errors = world.errors().join("\n");
    assert!(errors.contains("r2.datadir: this lies inside the datadir of rnd/r1"), "{errors}");
    assert!(errors.contains("r1.state_dir: this lies inside the datadir of prod/db1"), "{errors}");
    assert!(errors.contains("daemon.log_dir: this lies inside the datadir of prod/db1"), "{errors}");
}

#[test]
fn no_refresh_can_harm_a_source() {
    let more = "[refreshes.m]\nsource = \"rnd/r1\"\ndestinations = [\"rnd\", \"prod\", \"rnd/r2\"]\n";
    assert_eq!(
        World::refresh(more).errors(),
        [
            "config.toml: refreshes.m.destinations: rnd/r2 is named twice",
            "config.toml: refreshes.m.destinations: rnd/r1 is the source of this refresh",
            "config.toml: refreshes.m.destinations: prod/db1 must never be overwritten (hint: The environment \
             prod is \
             protected: name another destination.)",
            "config.toml: refreshes.m.destinations: prod/db1 is the source of the refresh n (hint: A host is \
             either a \
             source or a destination.)",
            "config.toml: refreshes.n.destinations: rnd/r1 is the source of the refresh m (hint: A host is either a \
             source or a destination.)",
        ]
    );
    let more = "[environments.none]\n[refreshes.m]\nsource = \"rnd\"\ndestinations = [\"none\"]\n\
                [refreshes.l]\nsource = \"none\"\ndestinations = []\n";
    assert_eq!(
        World::refresh(more).errors(),
        [
            "config.toml: refreshes.l.source: the environment none has no hosts",
            "config.toml: refreshes.l.destinations: there must be at least one",
            "config.toml: refreshes.m.source: the environment rnd has 2 hosts (hint: Name one of them, like \
             \"rnd/r1\".)",
            "config.toml: refreshes.m.destinations: the environment none has no hosts",
        ]
    );
}

#[test]
fn settings_are_server_variables_and_secrets_stay_hidden() {
    let world = World::refresh("[environments.rnd.settings]\nmax-connections = 10\nwsrep_sst_auth = \"a:hunter2\"\n")
        .set("environments.rnd.hosts.r1.dropin=/etc/r1.cnf")
        .set("environments.rnd.hosts.r2.dropin=/etc/r2.cnf");
    let config = world.config();
    let shown: Vec<_> = config.effective.iter().filter(|effective| effective.key.contains("settings")).collect();
    assert_eq!(shown[0].key, "environments.rnd.settings.max-connections");
    assert_eq!((&shown[0].value[..], &shown[1].value[..]), ("\"10\"", "\"(hidden)\""));
    assert_eq!(config.host(&id("rnd/r1")).unwrap().settings["wsrep_sst_auth"], "a:hunter2");

    let world = World::refresh(
        "[environments.rnd.settings]\na-b = 1\na_b = 1\nPort = 1\n\"x]\\n[mysqld\" = 1\ndatadir = \"/x\"\n\
         init_connect = \"a\\nb\"\nplugins = [1]\n",
    );
    let errors = world.errors();
    for (error, expected) in errors.iter().zip([
        "settings.Port: this is not the name of a server variable",
        "settings.a_b: this variable is set twice, also as `a-b`",
        "settings.datadir: this belongs to the host: its key `datadir` says where it is",
        "settings.init_connect: it must not contain control characters or line breaks",
        "settings.plugins: a text is expected, not an array",
        "settings.\"x]\\n[mysqld\": this is not the name of a server variable",
        "refreshes.n.destinations: rnd/r1 has settings, but no dropin to push them with",
        "refreshes.n.destinations: rnd/r2 has settings, but no dropin to push them with",
    ]) {
        assert!(error.contains(expected), "{error}\ndoes not say\n{expected}");
    }
    assert_eq!(errors.len(), 8, "{errors:#?}");
}

#[test]
fn single_values_are_checked() {
    let long = format!("socket = \"/{}\"", "s".repeat(107));
    for (host, expected) in [
        ("datadir = \"/\"", "it must not be the root folder"),
        ("datadir = \"/a/../b\"", "it must not contain `..`"),
        ("datadir = 2026-11-01", "a text is expected, not a date"),
        (&long, "must not be longer than 107 bytes"),
        ("service.unit = \"x.socket\"", "is not a service"),
        ("service.unit = \"--now\"", "is not the name of a systemd unit"),
        ("service.unit = \"\"", "it must not be empty"),
        (
            "service = {}",
            "this is missing (hint: Give `unit`, or `start` and `stop`, or `server` and `defaults_file`.)",
        ),
        ("service.start = [\"a\"]", "service.stop: this key is missing"),
        ("service = { start = [], stop = [\"a\"] }", "the program is missing"),
        ("password = {}", "this is missing"),
        ("password = { file = \"/a\", credential = \"b\" }", "only one of these can be used"),
        ("password.credential = \"../a\"", "it must be a plain name, not a path"),
        ("start_timeout = \"0s\"", "it must be at least one second"),
        ("stop_timeout = \"1000y\"", "is too long"),
    ] {
        let mut keys = vec!["datadir = \"/d\"", "socket = \"/s\"", "service.unit = \"u\""];
        keys.retain(|key| key.split([' ', '.']).next() != host.split([' ', '.']).next());
        keys.push(host);
        let errors = World::new(&format!("[environments.a.hosts.b]\n{}\n", keys.join("\n"))).errors();
        assert!(errors.len() == 1 && errors[0].contains(expected), "{host}: {errors:#?}");
    }
    for (key, expected) in [
        ("copy_files = [\"*\"]", "is not a name at the top of a datadir"),
        ("drop_files = [\"a/b\"]", "is not a name at the top of a datadir"),
        ("copy_files = [\"a\"]\ndrop_files = [\"a\"]", "stands in copy_files too"),
        ("copy_files = \"a\"", "an array is expected, not a text"),
        ("compression = 20", "is not \"auto\", \"none\" or a level from 1 to 19"),
        ("space_reserve = \"99999999TiB\"", "is neither a share"),
        ("keep_previous = \"until_staged\"", "Did you mean `until_stage`?"),
    ] {
        let errors = World::refresh(key).errors();
        assert!(errors.len() == 1 && errors[0].contains(expected), "{key}: {errors:#?}");
    }
}

#[test]
fn hosts_that_are_reached_by_ssh() {
    let world = World::new(
        r#"
[environments.prod.hosts.a]
transport = "ssh"
address = "a b"
datadir = "/srv/x"
[environments.prod.hosts.b]
transport = "openssh"
address = "b"
ssh = { host_key = "SHA256:abc", passphrase = { file = "/p" } }
agent = "own"
[environments.prod.hosts.c]
address = "c"
datadir = "/srv/c"
socket = "/s"
service = { unit = "c" }
agent_path = "/x"
[environments.prod.hosts.d]
transport = "ssh"
address = "d"
agent = "uploaded"
ssh = { port = 70000, host_key = "hunter" }
[environments.prod.hosts.e]
transport = "ssh"
address = "e"
[environments.rnd.hosts.e]
transport = "openssh"
address = "e"
"#,
    );
    let errors = world.errors().join("\n");
    for expected in [
        "hosts.a.address: \"a b\" cannot stand here",
        "hosts.a.datadir: an installed agent takes this from its host's own policy (hint: Write it into /etc/mysql-refreshd/host.toml",
        "hosts.b: the transport openssh cannot pin a key by its fingerprint",
        "hosts.b: the transport openssh cannot be given a `passphrase`",
        "hosts.b.agent: this is nothing for the transport openssh (hint: Write \"installed\" or \"uploaded\".)",
        "hosts.c.address: a host on this machine has no address",
        "hosts.c.agent_path: this has no meaning for `agent = \"own\"`",
        "hosts.d.ssh.port: a port from 1 to 65535 is expected",
        "hosts.d.ssh.host_key: this is no host key",
        "hosts.d.datadir: this key is missing",
        "rnd.hosts.e.instance: this is the instance of prod/e too",
    ] {
        assert!(errors.contains(expected), "{expected}\nis not in\n{errors}");
    }
}

#[test]
fn what_follows_another_refresh_leads_somewhere() {
    let more =
        |name: &str, keys: &str| format!("\n[refreshes.{name}]\nsource = \"prod\"\ndestinations = [\"rnd\"]\n{keys}\n");
    let world = World::refresh(&format!(
        "after = \"m\"{}{}{}{}",
        more("m", "after = \"n\""),
        more("o", "after = \"nn\""),
        more("p", "after = \"o\"\nschedule = \"@daily\""),
        more("q", "after = \"q\"")
    ));
    let errors = world.errors().join("\n");
    for expected in [
        "refreshes.n.after: these refreshes follow one another in a circle",
        "refreshes.m.after: these refreshes follow one another in a circle",
        "refreshes.o.after: there is no refresh \"nn\" (hint: Did you mean `n`?)",
        "refreshes.p.after: this refresh has a schedule, too",
        "refreshes.q.after: these refreshes follow one another in a circle",
    ] {
        assert!(errors.contains(expected), "{expected}\nis not in\n{errors}");
    }
    assert_eq!(world.errors().len(), 5, "{errors}");
}

#[test]
fn windows_and_catching_up_are_read() {
    let of = |keys: &str| World::refresh(keys).config().refreshes["n"].clone();
    assert_eq!(of("catch_up = true").catch_up, crate::config::CatchUp::Yes);
    assert_eq!(
        of("catch_up = \"6h\"").catch_up,
        crate::config::CatchUp::Within(std::time::Duration::from_secs(21_600))
    );
    assert_eq!(of("blackout = [\"mon-fri 08:00-18:00\"]").blackout.texts(), ["mon-fri 08:00-18:00"]);
    let errors = World::refresh("blackout = [\"8-18\"]\ncatch_up = \"yes\"").errors().join("\n");
    assert!(
        errors.contains("refreshes.n.blackout: \"8-18\" is not a window: a time is written like 08:30"),
        "{errors}"
    );
    assert!(errors.contains("refreshes.n.catch_up: \"yes\" is not a duration"), "{errors}");
}

#[test]
fn a_schedule_must_come_round() {
    let errors = |keys: &str| World::refresh(keys).errors().join("\n");
    let never = errors("schedule = \"30 2 * * *\"\nblackout = [\"02:00-03:00\"]");
    assert!(never.contains("refreshes.n.blackout: the schedule never comes round outside these windows"), "{never}");
    World::refresh("schedule = \"30 2 * * *\"\nblackout = [\"02:00-03:00\"]\ncatch_up = \"1h\"").config();
    World::refresh("schedule = \"30 2 * * *\"\nblackout = [\"mon 02:00-03:00\"]").config();
    // a freeze has an end, and so has a week-end
    World::refresh("schedule = \"0 * * * *\"\nblackout = [\"2020-01-01..2090-01-01\"]").config();
    World::refresh("schedule = \"*/5 * * * *\"\nblackout = [\"sat,sun 00:00-24:00\", \"mon-fri 01:00-24:00\"]")
        .config();
    // one that has had its last occurrence takes nothing down
    World::refresh("schedule = \"0 0 2 2 1 * 2026\"").config();
    let often = errors("schedule = \"*/10 * * * *\"\njitter = \"10m\"");
    assert!(often.contains("refreshes.n.jitter: it is not shorter than the time"), "{often}");
    let more = "\n[refreshes.m]\nsource = \"prod\"\ndestinations = [\"rnd\"]\n";
    let idle = errors(&format!("after = \"m\"{more}"));
    assert!(idle.contains("refreshes.n.after: the refresh m has no schedule"), "{idle}");
    let hours = errors("catch_up = 6");
    assert!(hours.contains("true, false or a duration is expected, not a number"), "{hours}");
    let socket = errors(&format!("[daemon]\nstate_dir = \"/{}\"", "x".repeat(100)));
    assert!(socket.contains("daemon.socket: the path of a socket must not be longer than 107 bytes"), "{socket}");
}

#[test]
fn no_refusal_speaks_to_the_terminal() {
    let errors = World::new("[daemon]\n\"a\\u009b31m\\u007f\" = 1\n").errors();
    assert!(errors[0].contains(r#"daemon."a\u009b31m\u007f""#), "{errors:?}");
    assert!(!errors[0].contains(char::is_control));
}
