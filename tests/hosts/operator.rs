//! What the operator does by the README: installs the program, makes keys, rights, policies and consents with the project's own
//! scripts, writes the configuration, and calls the program on the controller.

use std::path::{Path, PathBuf};

use crate::fleet::{Fleet, Host, Ran};

/// Of a refresh: everything travels, and while the source is down. Only that takes long enough for something to happen in its middle.
pub const WHOLE: &str = "freeze = \"none\"\nprecopy = false\nbasis = \"none\"\n";

/// Where the operator has the project on the controller, built.
pub const CHECKOUT: &str = "/home/deploy/mysql-refreshd";

/// The program to install: what this was built with, or a copy of it (`MR_PROGRAM`) where the suite has built it anew since then,
/// with fail points.
fn program() -> PathBuf {
    std::env::var_os("MR_PROGRAM").map_or_else(|| env!("CARGO_BIN_EXE_mysql-refreshd").into(), PathBuf::from)
}

/// The operator of a fleet, sitting at its controller.
#[derive(Clone, Copy)]
pub struct Operator<'a> {
    /// The machine that runs the program.
    pub controller: Host<'a>,
}

impl<'a> Operator<'a> {
    /// Sits down at the host `ctl`: with a checkout that has been built, and a login on every host.
    #[track_caller]
    pub fn at(fleet: &'a Fleet) -> Operator<'a> {
        Operator::sits_at(fleet, "ctl")
    }

    /// Sits down at another controller.
    #[track_caller]
    pub fn sits_at(fleet: &'a Fleet, name: &'a str) -> Operator<'a> {
        let controller = fleet.host(name);
        let project = Path::new(env!("CARGO_MANIFEST_DIR"));
        controller.put(&program(), &format!("{CHECKOUT}/target/release/mysql-refreshd"));
        for folder in ["utils", "systemd", "config"] {
            controller.put(&project.join(folder), &format!("{CHECKOUT}/{folder}"));
        }
        // the state of the fleet lies two folders above a host's root
        let state = controller.root().join("../..");
        controller.put(&state.join("id_ed25519"), "/home/deploy/.ssh/id_ed25519");
        controller.put(&state.join("known_hosts"), "/home/deploy/.ssh/known_hosts");
        controller.sh("chown -R deploy: /home/deploy && chmod 600 /home/deploy/.ssh/id_ed25519");
        Operator { controller }
    }

    /// A script of the operator's own, in the checkout.
    pub fn does(&self, script: &str) -> Ran {
        self.controller.ssh(&format!("cd {CHECKOUT}\n{script}"))
    }

    /// The program with its service on the controller, and with its repair unit on these hosts.
    #[track_caller]
    pub fn install(&self, hosts: &[&str]) {
        self.does("sudo utils/install.sh").expect(0);
        for host in hosts {
            self.does(&format!(
                "scp -q target/release/mysql-refreshd systemd/mysql-refreshd-repair.service {host}:\n\
                 ssh {host} 'sudo install -o root -g root -m 0755 mysql-refreshd /usr/local/bin/ && sudo install -o root -g root \
                     -m 0644 mysql-refreshd-repair.service /etc/systemd/system/ && sudo systemctl enable -q mysql-refreshd-repair'"
            ))
            .expect(0);
        }
    }

    /// A host becomes a source: account, key and sudoers line, and the policy.
    #[track_caller]
    pub fn source(&self, host: &str, options: &str) {
        self.does(&format!(
            "sudo utils/copy-all-keys.sh --prepare --yes --role source {host}\n\
             ssh {host} sudo /usr/local/bin/mysql-refreshd host init --role source {options}"
        ))
        .expect(0);
    }

    /// A host becomes a destination that consents to data from `prod`.
    #[track_caller]
    pub fn destination(&self, host: &str, options: &str) {
        self.does(&format!(
            "sudo utils/copy-all-keys.sh --prepare --yes --role destination {host}\n\
             ssh {host} sudo /usr/local/bin/mysql-refreshd host init --role destination {options}\n\
             ssh {host} sudo /usr/local/bin/mysql-refreshd consent grant --from prod --expires 90d"
        ))
        .expect(0);
    }

    /// The key of this controller is let in by a host that is set up already.
    #[track_caller]
    pub fn is_let_in_by(&self, host: &str, role: &str) {
        self.does(&format!("sudo utils/copy-all-keys.sh --prepare --yes --role {role} {host}")).expect(0);
    }

    /// Writes the configuration: the refresh `nightly` from the host `source` of `prod` to all hosts of `rnd`.
    #[track_caller]
    pub fn configure(&self, source: (&str, &str), destinations: &[(&str, &str)], more: &str) {
        let mut text = "[ssh]\nuser = \"mysql-refreshd\"\nidentity = \"/etc/mysql-refreshd/id_ed25519\"\n\
            known_hosts = \"/etc/mysql-refreshd/known_hosts\"\n[environments.prod]\nprotected = true\n"
            .to_owned();
        let mut host = |environment: &str, (name, transport): (&str, &str)| {
            text += &format!(
                "[environments.{environment}.hosts.{name}]\ntransport = \"{transport}\"\naddress = \"{name}\"\n"
            );
        };
        host("prod", source);
        destinations.iter().for_each(|one| host("rnd", *one));
        text += "[refreshes.nightly]\nsource = \"prod\"\ndestinations = [\"rnd\"]\n";
        self.controller.write("/etc/mysql-refreshd/config.toml", text + more);
    }

    /// Calls the program on the controller through sudo.
    pub fn refreshd(&self, arguments: &str) -> Ran {
        self.controller.ssh(&format!("sudo mysql-refreshd {arguments}"))
    }

    /// Everything from installing to the configuration, for one source and its destinations, each with its transport.
    #[track_caller]
    pub fn sets_up(fleet: &'a Fleet, source: (&str, &str), destinations: &[(&str, &str)], more: &str) -> Operator<'a> {
        let operator = Operator::at(fleet);
        let names: Vec<&str> = std::iter::once(source.0).chain(destinations.iter().map(|(name, _)| *name)).collect();
        operator.install(&names);
        operator.source(source.0, "");
        destinations.iter().for_each(|(name, _)| operator.destination(name, ""));
        operator.configure(source, destinations, more);
        operator
    }
}
