//! Whom an agent serves: what the controller asks for, as far as the host's owner allows it.
//!
//! The only place where a request becomes an instance. Changes nothing.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use secrecy::SecretString;
use secrecy::zeroize::Zeroizing;

use super::discover;
use crate::authority::{Authority, Bounds};
use crate::instance::Instance;
use crate::problem::{Explain, Outcome, Problem};
use crate::wire::message::{Open, Role};

/// What the host has agreed to.
#[derive(Clone)]
pub struct Engaged {
    /// The instance.
    pub instance: Instance,
    /// The password of its SQL account.
    pub password: Option<SecretString>,
    /// The run; None: only a look.
    pub run: Option<String>,
    /// The environment whose data is to come; None: nobody's.
    pub from: Option<String>,
    /// What this agent may rely on.
    pub authority: Authority,
    /// How far the controller may go; None: as far as it likes.
    pub bounds: Option<Bounds>,
}

/// Takes the first request. Blocking: a look around may ask servers.
pub fn engage(open: Open, role: Role, authority: &Authority) -> Outcome<Engaged> {
    let given = open.password.map(|secret| secret.0);
    let entitled = authority.instance(role, &open.target, || discover::only(given.as_ref()))?;
    let password = match (given, &entitled.password_file) {
        (Some(password), _) => Some(password),
        (None, Some(file)) => Some(read_password(file)?),
        (None, None) => None,
    };
    Ok(Engaged {
        instance: entitled.instance,
        password,
        run: open.run,
        from: open.from,
        authority: authority.clone(),
        bounds: entitled.bounds,
    })
}

impl Engaged {
    /// Whether the owner of this instance allows it to be overwritten with what is to come.
    pub fn consent(&self) -> Outcome<()> {
        self.authority.consent(&self.instance.datadir, self.from.as_deref())
    }

    /// Whether the owner lets the source's accounts, or its events, come along.
    pub fn allows(&self, own_accounts: bool, disable_events: bool) -> Outcome<()> {
        let Some(bounds) = self.bounds else { return Ok(()) };
        if !own_accounts && !bounds.source_accounts {
            return Err(Problem::refused("the host's policy does not let the source's accounts in")
                .hint("Its owner can set `accounts = \"source\"` for the instance in host.toml."));
        }
        if !disable_events && !bounds.keep_events {
            return Err(Problem::refused("the host's policy does not let events stay enabled")
                .hint("Its owner can set `events = \"keep\"` for the instance in host.toml."));
        }
        Ok(())
    }
}

/// One line; open to nobody but its owner and group.
fn read_password(path: &Path) -> Outcome<SecretString> {
    let what = || format!("cannot read the password's file {}", path.display());
    let mut file = std::fs::File::open(path).explain(what)?;
    if file.metadata().explain(what)?.mode() & 0o006 != 0 {
        return Err(Problem::refused(format!("the password's file {} is open to everyone", path.display()))
            .hint(format!("Run `chmod 600 {}`.", path.display())));
    }
    let mut text = Zeroizing::new(String::with_capacity(4096));
    file.by_ref().take(4096).read_to_string(&mut text).explain(what)?;
    Ok(SecretString::from(text.trim_end_matches(['\n', '\r'])))
}
