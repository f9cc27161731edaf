//! Which host keys count for a host: from known_hosts files or from one that is pinned. Pure but for reading the files.
//!
//! Honours hashed names, patterns, negation and `@revoked`; certificate authorities are not (such a host is unknown here; the
//! system's `ssh` knows them). Format: sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT".

use std::path::{Path, PathBuf};

use hmac::{Hmac, Mac};
use sha1::Sha1;
use ssh_key::known_hosts::{HostPatterns, KnownHosts, Marker};
use ssh_key::{HashAlg, PublicKey};

use crate::problem::{Explain, Outcome};
use crate::route::Address;

/// What is known of one host.
#[derive(Debug, Default)]
pub(super) struct Known {
    keys: Vec<PublicKey>,
    revoked: Vec<PublicKey>,
    fingerprint: Option<String>,
}

/// The verdict on a key that a host offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is the host's.
    Known,
    /// Nothing is known of this host.
    Unknown,
    /// The host is known by another key.
    Changed,
    /// It must not be used.
    Revoked,
}

impl Known {
    /// What counts for an address.
    pub(super) fn of(address: &Address) -> Outcome<Self> {
        if let Some(pinned) = &address.host_key {
            return Self::pinned(pinned);
        }
        let files = match &address.known_hosts {
            Some(file) => vec![file.clone()],
            None => usual_files(),
        };
        let mut known = Self::default();
        for file in files {
            match std::fs::read(&file) {
                Ok(text) => known.add(&String::from_utf8_lossy(&text), &address.host, address.port.unwrap_or(22)),
                // the only file must be there
                Err(error) if address.known_hosts.is_some() => {
                    return Err(error)
                        .explain(|| format!("cannot read {}", file.display()))
                        .map_err(|problem| problem.hint("utils/copy-all-keys.sh pins the hosts' keys there."));
                }
                Err(_) => {}
            }
        }
        Ok(known)
    }

    fn pinned(text: &str) -> Outcome<Self> {
        if text.starts_with("SHA256:") {
            return Ok(Self { fingerprint: Some(text.to_owned()), ..Self::default() });
        }
        let key = PublicKey::from_openssh(text).explain(|| "`host_key` is neither a public key nor a fingerprint")?;
        Ok(Self { keys: vec![key], ..Self::default() })
    }

    /// Takes what a file says about a host; lines that are not understood say nothing.
    fn add(&mut self, text: &str, host: &str, port: u16) {
        for line in text.lines() {
            // any blanks part the fields, and may stand before the first
            let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
            let Some(Ok(entry)) = KnownHosts::new(&line).next() else { continue };
            if !matches(entry.host_patterns(), host, port) {
                continue;
            }
            match entry.marker() {
                None => self.keys.push(entry.public_key().clone()),
                Some(Marker::Revoked) => self.revoked.push(entry.public_key().clone()),
                Some(Marker::CertAuthority) => {}
            }
        }
    }

    /// The key types to be asked for, most wanted first; None: nothing is known, or only a fingerprint. A server has keys of
    /// several types and offers the one that is asked for first.
    pub(super) fn preference(&self) -> Option<String> {
        let mut types: Vec<&str> = Vec::new();
        for key in &self.keys {
            let algorithm = key.algorithm();
            let names: &[&str] = match algorithm.as_str() {
                // one key, three signatures
                "ssh-rsa" => &["rsa-sha2-512", "rsa-sha2-256", "ssh-rsa"],
                "ssh-ed25519" => &["ssh-ed25519"],
                "ecdsa-sha2-nistp256" => &["ecdsa-sha2-nistp256"],
                "ecdsa-sha2-nistp384" => &["ecdsa-sha2-nistp384"],
                "ecdsa-sha2-nistp521" => &["ecdsa-sha2-nistp521"],
                _ => &[],
            };
            types.extend(names.iter().filter(|name| !types.contains(name)).copied().collect::<Vec<_>>());
        }
        (!types.is_empty()).then(|| types.join(","))
    }

    /// Judges a key, given in its wire form.
    pub(super) fn judge(&self, offered: &[u8]) -> Verdict {
        let Ok(key) = PublicKey::from_bytes(offered) else { return Verdict::Unknown };
        let same = |known: &PublicKey| known.key_data() == key.key_data();
        if self.revoked.iter().any(same) {
            return Verdict::Revoked;
        }
        if let Some(fingerprint) = &self.fingerprint {
            let theirs = key.fingerprint(HashAlg::Sha256).to_string();
            return if theirs == *fingerprint { Verdict::Known } else { Verdict::Changed };
        }
        match self.keys.iter().any(same) {
            true => Verdict::Known,
            false if self.keys.is_empty() => Verdict::Unknown,
            false => Verdict::Changed,
        }
    }
}

/// A key as people compare it: type and fingerprint.
pub(super) fn shown(offered: &[u8]) -> String {
    match PublicKey::from_bytes(offered) {
        Ok(key) => format!("{} {}", key.algorithm(), key.fingerprint(HashAlg::Sha256)),
        Err(_) => "a key that is not understood".to_owned(),
    }
}

fn usual_files() -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".ssh/known_hosts"));
    let system = [super::openssh::PINNED, "/etc/ssh/ssh_known_hosts"].map(PathBuf::from);
    system.into_iter().chain(home).collect()
}

/// How a host is written in the file: with its port unless that is the usual one.
fn written(host: &str, port: u16) -> String {
    let host = host.to_lowercase();
    if port == 22 { host } else { format!("[{host}]:{port}") }
}

fn matches(patterns: &HostPatterns, host: &str, port: u16) -> bool {
    let name = written(host, port);
    match patterns {
        HostPatterns::HashedName { salt, hash } => {
            let Ok(mut mac) = Hmac::<Sha1>::new_from_slice(salt) else { return false };
            mac.update(name.as_bytes());
            mac.verify_slice(hash).is_ok()
        }
        HostPatterns::Patterns(patterns) => {
            let denied = |p: &String| p.strip_prefix('!').is_some_and(|p| wild(&p.to_lowercase(), &name));
            !patterns.iter().any(denied) && patterns.iter().any(|p| wild(&p.to_lowercase(), &name))
        }
    }
}

/// `*` stands for any characters, `?` for one.
fn wild(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(byte) if *byte == b'?' || *byte == text[t] => (p, t) = (p + 1, t + 1),
            _ => match &mut star {
                Some((at, taken)) => {
                    *taken += 1;
                    (p, t) = (*at + 1, *taken);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEXgZ5M1E8tq3T8y8mUe3Q4Bo3r0GvLk0Y2OaQ0Jm9rj";
    const ED2: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";

    fn bytes(text: &str) -> Vec<u8> {
        PublicKey::from_openssh(text).unwrap().to_bytes().unwrap()
    }

    fn known(text: &str, host: &str, port: u16) -> Known {
        let mut known = Known::default();
        known.add(text, host, port);
        known
    }

    #[test]
    fn names_ports_patterns_and_negation() {
        let text = format!("# c\ndb1,10.0.0.1 {ED}\n[db2]:2222 {ED2}\n*.prod,!bad.prod {ED2}\n");
        assert_eq!(known(&text, "DB1", 22).judge(&bytes(ED)), Verdict::Known);
        assert_eq!(known(&text, "10.0.0.1", 22).judge(&bytes(ED2)), Verdict::Changed);
        assert_eq!(known(&text, "db1", 2222).judge(&bytes(ED)), Verdict::Unknown);
        assert_eq!(known(&text, "db2", 2222).judge(&bytes(ED2)), Verdict::Known);
        assert_eq!(known(&text, "a.prod", 22).judge(&bytes(ED2)), Verdict::Known);
        assert_eq!(known(&text, "bad.prod", 22).judge(&bytes(ED2)), Verdict::Unknown);
    }

    #[test]
    fn revoked_and_authorities() {
        let text = format!("  db1\t{ED}\n@revoked\t*  {ED}\n@cert-authority db1 {ED2}\n");
        assert_eq!(known(&text, "db1", 22).judge(&bytes(ED)), Verdict::Revoked);
        assert_eq!(known(&text, "db1", 22).judge(&bytes(ED2)), Verdict::Changed);
    }

    #[test]
    fn a_fingerprint_or_a_key_can_be_pinned() {
        let key = PublicKey::from_openssh(ED).unwrap();
        let pinned = Known::pinned(&key.fingerprint(HashAlg::Sha256).to_string()).unwrap();
        assert_eq!((pinned.judge(&bytes(ED)), pinned.judge(&bytes(ED2))), (Verdict::Known, Verdict::Changed));
        let pinned = Known::pinned(ED).unwrap();
        assert_eq!((pinned.judge(&bytes(ED)), pinned.judge(&bytes(ED2))), (Verdict::Known, Verdict::Changed));
        assert_eq!(pinned.preference().unwrap(), "ssh-ed25519");
    }

    #[test]
    fn wildcards() {
        for (pattern, text, is) in [
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c", "abbd", false),
            ("?b*", "abx", true),
            ("a", "ab", false),
            ("*b*d", "abcbd", true),
        ] {
            assert_eq!(wild(pattern, text), is, "{pattern} {text}");
        }
    }
}
