//! References to secrets, and how they are resolved at the moment of use.
//!
//! A reference may be shown, logged and stored; a secret never is: it exists only as a `SecretString`, and no error
//! text carries a byte of it.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use secrecy::SecretString;
use secrecy::zeroize::Zeroizing;
use serde::{Deserialize, Serialize};

/// How long a command may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);

/// How much is read at most; no password is nearly as long.
const MOST_BYTES: usize = 64 * 1024;

/// Where a secret is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SecretRef {
    /// In a file that only its owner and group can read.
    File(PathBuf),
    /// On the standard output of a program, given with its arguments.
    Command(Vec<String>),
    /// In a systemd credential: a file of this name in `$CREDENTIALS_DIRECTORY`.
    Credential(String),
}

/// Why a secret could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read.
    #[error("the secret's file {path} cannot be read")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The path is a folder, a pipe or a device.
    #[error("the secret's file {0} is not a regular file")]
    NotAFile(PathBuf),
    /// Everyone on the machine can read or change the file.
    #[error("the secret's file {path} is open to everyone (mode {mode:03o})")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The program cannot be started.
    #[error("the secret's command {program} cannot be run")]
    NotRun {
        /// The program.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// The program ended with a failure.
    #[error("the secret's command {program} failed ({status}){complaint}")]
    CommandFailed {
        /// The program.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The last line of its standard error after a colon, or nothing.
        complaint: String,
    },
    /// The program took too long and was killed.
    #[error("the secret's command {program} did not end within {}", humantime::format_duration(*limit))]
    CommandTimeout {
        /// The program.
        program: String,
        /// The limit.
        limit: Duration,
    },
    /// There are no credentials.
    #[error("there is no credential {0:?}: CREDENTIALS_DIRECTORY is not set")]
    NoCredentials(String),
    /// What was read is no password.
    #[error("the secret from {place} {problem}")]
    Unusable {
        /// Where it was read from.
        place: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl SecretError {
    /// What to do about it, as a sentence.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Exposed { path, .. } => Some(format!("Run `chmod 600 {}`.", path.display())),
            Self::NoCredentials(name) => {
                Some(format!("Add `LoadCredential={name}:/path/to/file` to the unit that runs this program."))
            }
            Self::NotRun { .. } => Some("Write the program's whole path.".to_owned()),
            Self::CommandTimeout { .. } => {
                Some("Take care that the command asks for nothing: its standard input is empty.".to_owned())
            }
            _ => None,
        }
    }
}

impl SecretRef {
    /// Fetches the secret. Blocks: a command may take up to 30 seconds.
    pub fn resolve(&self) -> Result<SecretString, SecretError> {
        let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        self.resolve_with(credentials.as_deref(), COMMAND_LIMIT)
    }

    fn resolve_with(&self, credentials: Option<&Path>, limit: Duration) -> Result<SecretString, SecretError> {
        match self {
            Self::File(path) => read_file(path),
            Self::Command(words) => run(words, limit),
            Self::Credential(name) => match credentials {
                Some(folder) => read_file(&folder.join(name)),
                None => Err(SecretError::NoCredentials(name.clone())),
            },
        }
    }
}

fn read_file(path: &Path) -> Result<SecretString, SecretError> {
    let unreadable = |source| SecretError::Unreadable { path: path.to_owned(), source };
    // Without blocking, since opening a pipe would wait for a writer for ever.
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(unreadable)?;
    let facts = file.metadata().map_err(unreadable)?;
    if !facts.is_file() {
        return Err(SecretError::NotAFile(path.to_owned()));
    }
    let mode = facts.permissions().mode() & 0o777;
    if mode & 0o006 != 0 {
        return Err(SecretError::Exposed { path: path.to_owned(), mode });
    }
    let bytes = read_all(file).map_err(unreadable)?;
    secret(&bytes, || path.display().to_string())
}

/// Reads to the end, or one byte more than may be.
fn read_all(from: impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    // Room for everything at once: a buffer that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MOST_BYTES + 1));
    from.take(MOST_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Bytes as a password: one line of text, its line end cut.
fn secret(bytes: &[u8], place: impl Fn() -> String) -> Result<SecretString, SecretError> {
    let unusable = |problem| Err(SecretError::Unusable { place: place(), problem });
    if bytes.len() > MOST_BYTES {
        return unusable("is too long");
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return unusable("is not valid UTF-8");
    };
    let text = text.strip_suffix('\n').map_or(text, |text| text.strip_suffix('\r').unwrap_or(text));
    if text.is_empty() {
        return unusable("is empty");
    }
    if text.contains(['\n', '\0']) {
        return unusable("has more than one line");
    }
    Ok(SecretString::from(text))
}

/// Runs a command and takes its standard output. Its standard input is empty; of its standard error the last line is
/// kept for the error.
fn run(words: &[String], limit: Duration) -> Result<SecretString, SecretError> {
    let program = words.first().cloned().unwrap_or_default();
    let not_run = |source| SecretError::NotRun { program: program.clone(), source };
    let deadline = Instant::now() + limit;
    // A process group of its own, so that whatever the command starts can be ended with it.
    let mut child = Command::new(&program)
        .args(words.iter().skip(1))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(not_run)?;
    let pipes = collect(child.stdout.take()).and_then(|out| Ok((out, collect(child.stderr.take())?)));
    let (output, complaints) = match pipes {
        Ok(pipes) => pipes,
        Err(error) => {
            end(&mut child);
            return Err(not_run(error));
        }
    };
    let place = || format!("the command {program}");
    let bytes = output.recv_timeout(limit).ok();
    if let Some(Ok(long)) = bytes.as_ref().filter(|bytes| bytes.as_ref().is_ok_and(|bytes| bytes.len() > MOST_BYTES)) {
        end(&mut child);
        return secret(long, place);
    }
    let Some((bytes, status)) = bytes.and_then(|bytes| Some((bytes, wait(&mut child, deadline)?))) else {
        end(&mut child);
        return Err(SecretError::CommandTimeout { program, limit });
    };
    if !status.success() {
        // Something in the background may keep the pipe open: what is there after a second must do.
        let said = complaints.recv_timeout(Duration::from_secs(1)).ok().and_then(Result::ok).unwrap_or_default();
        return Err(SecretError::CommandFailed { program, status, complaint: last_line(&said) });
    }
    secret(&bytes.map_err(not_run)?, place)
}

type Collected = io::Result<Zeroizing<Vec<u8>>>;

/// Reads a pipe in a thread of its own.
fn collect(pipe: Option<impl Read + Send + 'static>) -> io::Result<Receiver<Collected>> {
    let (give, take) = sync_channel(1);
    let pipe = pipe.ok_or_else(|| io::Error::other("the command has no pipe"))?;
    std::thread::Builder::new().name("secret".to_owned()).spawn(move || {
        // Nobody listens any more after a timeout.
        let _ = give.send(read_all(pipe));
    })?;
    Ok(take)
}

fn wait(child: &mut Child, deadline: Instant) -> Option<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait().ok()? {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Kills the command with all it has started, and takes note of its end. Errors mean that it is gone already.
fn end(child: &mut Child) {
    let _ = rustix::process::kill_process_group(rustix::process::Pid::from_child(child), rustix::process::Signal::KILL);
    let _ = child.wait();
}

fn last_line(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    match text.lines().rev().map(str::trim).find(|line| !line.is_empty()) {
        Some(line) => format!(": {}", line.chars().filter(|letter| !letter.is_control()).take(200).collect::<String>()),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    const LIMIT: Duration = Duration::from_secs(20);

    fn written(text: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        (folder, path)
    }

    fn shell(script: &str) -> SecretRef {
        SecretRef::Command(["/bin/sh", "-c", script].map(str::to_owned).to_vec())
    }

    #[test]
    fn a_file_gives_its_line_without_the_line_end() {
        for (text, expected) in [("s3cret\n", "s3cret"), ("s3cret\r\n", "s3cret"), (" s ", " s ")] {
            let (_folder, path) = written(text.as_bytes(), 0o640);
            let secret = SecretRef::File(path).resolve().unwrap();
            assert_eq!(secret.expose_secret(), expected);
        }
    }

    #[test]
    fn a_file_that_everyone_can_read_is_refused_with_the_remedy() {
        let (_folder, path) = written(b"s3cret", 0o644);
        let error = SecretRef::File(path.clone()).resolve().unwrap_err();
        assert_eq!(error.to_string(), format!("the secret's file {} is open to everyone (mode 644)", path.display()));
        assert_eq!(error.hint().unwrap(), format!("Run `chmod 600 {}`.", path.display()));
    }

    #[test]
    fn what_is_no_password_is_refused_without_being_shown() {
        let long = vec![b'x'; MOST_BYTES + 1];
        for bytes in [&b""[..], b"\n", b"two\nlines", b"s3cret\xff", b"nul\0", &long] {
            let (_folder, path) = written(bytes, 0o600);
            let error = SecretRef::File(path).resolve().unwrap_err();
            assert!(matches!(error, SecretError::Unusable { .. }), "{error}");
            assert!(!error.to_string().contains("s3cret"));
        }
        let folder = tempfile::tempdir().unwrap();
        let error = SecretRef::File(folder.path().to_owned()).resolve().unwrap_err();
        assert!(matches!(error, SecretError::NotAFile(_)), "{error}");
    }

    #[test]
    fn a_pipe_does_not_hang() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        let error = SecretRef::File(pipe).resolve().unwrap_err();
        assert!(matches!(error, SecretError::NotAFile(_)), "{error}");
    }

    #[test]
    fn a_command_gives_its_output() {
        let secret = shell("cat; echo s3cret").resolve().unwrap();
        assert_eq!(secret.expose_secret(), "s3cret");
    }

    #[test]
    fn a_failed_command_tells_its_last_complaint_and_never_its_output() {
        let error = shell("echo s3cret; echo one >&2; echo 'vault is sealed' >&2; exit 3").resolve().unwrap_err();
        assert_eq!(error.to_string(), "the secret's command /bin/sh failed (exit status: 3): vault is sealed");
        let missing = SecretRef::Command(vec!["/nonexistent/program".to_owned()]).resolve().unwrap_err();
        assert!(matches!(missing, SecretError::NotRun { .. }), "{missing}");
        let none = SecretRef::Command(Vec::new()).resolve().unwrap_err();
        assert!(matches!(none, SecretError::NotRun { .. }), "{none}");
    }

    #[test]
    fn a_command_that_does_not_end_is_killed_with_its_children() {
        let begun = Instant::now();
        for script in ["sleep 600", "sleep 600 & echo s3cret", "exec >&-; sleep 600"] {
            let error = shell(script).resolve_with(None, Duration::from_millis(300)).unwrap_err();
            assert!(matches!(error, SecretError::CommandTimeout { .. }), "{script}: {error}");
        }
        let error = shell("yes").resolve().unwrap_err();
        assert_eq!(error.to_string(), "the secret from the command /bin/sh is too long");
        assert!(begun.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_credential_is_a_file_in_the_credentials_folder() {
        let (folder, _) = written(b"s3cret\n", 0o400);
        let credential = SecretRef::Credential("password".to_owned());
        let secret = credential.resolve_with(Some(folder.path()), LIMIT).unwrap();
        assert_eq!(secret.expose_secret(), "s3cret");
        let error = credential.resolve_with(None, LIMIT).unwrap_err();
        assert_eq!(error.to_string(), "there is no credential \"password\": CREDENTIALS_DIRECTORY is not set");
        assert!(error.hint().unwrap().contains("LoadCredential=password:"));
    }

    #[test]
    fn a_reference_survives_storing() {
        let reference = SecretRef::Command(vec!["a".to_owned(), "b".to_owned()]);
        let text = serde_json::to_string(&reference).unwrap();
        assert_eq!(serde_json::from_str::<SecretRef>(&text).unwrap(), reference);
    }
}
