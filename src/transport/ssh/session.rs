//! One SSH session: connect, prove the host, be let in. Whatever fails here is told apart.
//!
//! A session belongs to one agent and is thrown away when anything went wrong on it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_ssh2_lite::ssh2::MethodType;
use async_ssh2_lite::{AsyncSession, SessionConfiguration};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};
use tokio::net::TcpStream;

use super::stream::SshStream;
use crate::problem::{Explain, Kind, Outcome, Problem};
use crate::route::Address;
use crate::transport::known_hosts::{Known, Verdict, shown};
use crate::transport::reasons;

/// What is asked for where nothing is known of a host. Certificates are not: see `known_hosts`.
const HOST_KEYS: &str =
    "ssh-ed25519,ecdsa-sha2-nistp256,ecdsa-sha2-nistp384,ecdsa-sha2-nistp521,rsa-sha2-512,rsa-sha2-256";

/// AES-GCM does not rekey every GiB as ChaCha20 does, and is the fastest (measured).
const CIPHERS: &str =
    "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,aes256-ctr,aes192-ctr,aes128-ctr";

/// Connects and authenticates, within the address's time.
pub(super) async fn connect(address: &Address, passphrase: Option<&SecretString>) -> Outcome<AsyncSession<SshStream>> {
    let limit = Duration::from_secs(address.connect_timeout_s.max(1).into());
    let place = address.shown();
    match tokio::time::timeout(limit, attempt(address, passphrase)).await {
        Ok(session) => session,
        Err(_) => Err(reasons::unreachable(&place, format!("no connection within {} s", limit.as_secs()))),
    }
}

async fn attempt(address: &Address, passphrase: Option<&SecretString>) -> Outcome<AsyncSession<SshStream>> {
    let place = address.shown();
    // before anything is sent: a file that is missing is no reason to knock
    let known = Known::of(address)?;
    let stream = TcpStream::connect((address.host.as_str(), address.port.unwrap_or(22))).await;
    let stream = stream.map_err(|error| match error.kind() {
        std::io::ErrorKind::ConnectionRefused => reasons::refused(&place),
        _ => reasons::unreachable(&place, error.to_string()),
    })?;
    tune(&stream, address).explain(|| format!("cannot set up the connection to {place}"))?;
    let mut configuration = SessionConfiguration::new();
    configuration.set_compress(false);
    let failed = |what: &str, error: async_ssh2_lite::Error| {
        Problem::new(Kind::Lost, format!("{place}: {what}")).cause(said(&error))
    };
    let mut session = AsyncSession::new(SshStream::new(stream), configuration)
        .map_err(|error| failed("cannot begin an SSH session", error))?;
    for (kind, wanted) in [(MethodType::CryptCs, CIPHERS), (MethodType::CryptSc, CIPHERS)] {
        session.method_pref(kind, wanted).await.map_err(|error| failed("cannot begin an SSH session", error))?;
    }
    let types = known.preference();
    session
        .method_pref(MethodType::HostKey, types.as_deref().unwrap_or(HOST_KEYS))
        .await
        .map_err(|error| failed("cannot begin an SSH session", error))?;
    session.handshake().await.map_err(|error| {
        let problem = failed("the SSH handshake failed", error)
            .hint("Does an SSH server listen there, and does it share ciphers and host key types with this client? `transport = \"openssh\"` knows more of them.");
        match &types {
            Some(types) => problem.hint(format!("Of this host only keys of these types are known, and were asked for: {types}. If it has others now, compare and pin them with utils/copy-all-keys.sh.")),
            None => problem,
        }
    })?;
    let offered = session.host_key().map(|(key, _)| key.to_vec()).unwrap_or_default();
    match known.judge(&offered) {
        Verdict::Known => {}
        Verdict::Unknown => return Err(reasons::unknown_key(&place, &shown(&offered))),
        Verdict::Changed => return Err(reasons::changed_key(&place, &shown(&offered))),
        Verdict::Revoked => return Err(reasons::revoked_key(&place, &shown(&offered))),
    }
    log_in(&session, address, passphrase).await?;
    Ok(session)
}

/// No delay for small frames; data that nobody acknowledges ends the connection.
fn tune(stream: &TcpStream, address: &Address) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    let silence = Duration::from_secs(address.silence_s.max(1).into());
    socket.set_tcp_user_timeout(Some(silence))?;
    socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(silence).with_interval(silence))
}

/// libssh2's words, without its numbers.
pub(super) fn said(error: &async_ssh2_lite::Error) -> String {
    match error {
        async_ssh2_lite::Error::Ssh2(error) => error.message().to_owned(),
        async_ssh2_lite::Error::Io(error) => error.to_string(),
        async_ssh2_lite::Error::Other(error) => error.to_string(),
    }
}

/// The configured key; or what the key agent has, then the account's usual files.
async fn log_in(
    session: &AsyncSession<SshStream>,
    address: &Address,
    passphrase: Option<&SecretString>,
) -> Outcome<()> {
    let user = match &address.user {
        Some(user) => user.clone(),
        None => account()?,
    };
    let mut tried: Vec<String> = Vec::new();
    let agent = address.use_agent && std::env::var_os("SSH_AUTH_SOCK").is_some();
    let files = match &address.identity {
        Some(file) => vec![file.clone()],
        None => usual_keys(),
    };
    // a key that was named is tried first, so that an agent full of others does not use up the server's patience
    let agent_first = agent && address.identity.is_none();
    if agent_first && by_agent(session, &user, &mut tried).await {
        return Ok(());
    }
    for file in &files {
        match by_file(session, &user, file, passphrase).await {
            Ok(()) => return Ok(()),
            Err(why) => tried.push(format!("{}: {why}", file.display())),
        }
    }
    if agent && !agent_first && by_agent(session, &user, &mut tried).await {
        return Ok(());
    }
    if tried.is_empty() {
        tried.push("there is no key: set `identity`, or run a key agent".to_owned());
    }
    Err(reasons::authentication(&address.shown(), &format!("as {user}: {}", tried.join("; "))))
}

async fn by_agent(session: &AsyncSession<SshStream>, user: &str, tried: &mut Vec<String>) -> bool {
    match session.userauth_agent_with_try_next(user).await {
        Ok(()) => true,
        Err(error) => {
            tried.push(format!("the key agent: {}", said(&error)));
            false
        }
    }
}

async fn by_file(
    session: &AsyncSession<SshStream>,
    user: &str,
    file: &Path,
    passphrase: Option<&SecretString>,
) -> Result<(), String> {
    let meta = std::fs::metadata(file).map_err(|error| error.to_string())?;
    std::fs::File::open(file)
        .map_err(|error| format!("{error}; run this as the account that owns it, or with sudo"))?;
    if meta.mode() & 0o077 != 0 {
        return Err(format!("it is open to others (mode {:03o}); run `chmod 600` on it", meta.mode() & 0o777));
    }
    let text = Zeroizing::new(std::fs::read_to_string(file).unwrap_or_default());
    // the older forms say it in a line of their own
    let encrypted = ssh_key::PrivateKey::from_openssh(text.as_bytes())
        .map_or_else(|_| text.contains("ENCRYPTED"), |key| key.is_encrypted());
    if encrypted && passphrase.is_none() {
        return Err("it has a passphrase, and none is configured (`passphrase` in [ssh])".to_owned());
    }
    let passphrase = passphrase.filter(|_| encrypted).map(ExposeSecret::expose_secret);
    session.userauth_pubkey_file(user, None, file, passphrase).await.map_err(|error| said(&error))
}

fn account() -> Outcome<String> {
    let known = ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok()).filter(|name| !name.is_empty());
    known.or_else(|| rustix::process::geteuid().is_root().then(|| "root".to_owned())).ok_or_else(|| {
        Problem::new(Kind::Usage, "the name of the account on the host is not known").hint("Set `user` in [ssh].")
    })
}

/// The daemon's own key, made by utils/copy-all-keys.sh, then this account's.
fn usual_keys() -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let file = |name| home.as_ref().map(|home| home.join(".ssh").join(name));
    let own = ["id_ed25519", "id_ecdsa", "id_rsa"].into_iter().filter_map(file);
    std::iter::once(PathBuf::from("/etc/mysql-refreshd/id_ed25519")).chain(own).filter(|path| path.exists()).collect()
}
