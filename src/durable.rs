//! Files that are replaced whole or not at all, also by a power cut. Knows nothing of what is in them.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Replaces a file: temporary file beside it, fsync, rename, fsync of the folder. The permission bits are `mode`'s, whatever
/// the umask.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let folder = path.parent().ok_or_else(|| std::io::Error::other("it has no folder"))?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = folder.join(name);
    let write = || -> std::io::Result<()> {
        // what stands there is left from an interrupted write, or is somebody's trap
        let _ = std::fs::remove_file(&temporary);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        sync_dir(folder)
    };
    write().inspect_err(|_| {
        let _ = std::fs::remove_file(&temporary);
    })
}

/// Makes names in a folder durable.
pub fn sync_dir(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.sync_all()
}

/// A text with a last line that proves it: a bit that went wrong on a disk must not be taken for another wish.
pub fn sealed(mut text: Vec<u8>) -> Vec<u8> {
    let proof = blake3::hash(&text).to_hex();
    text.extend_from_slice(format!("\n{proof}\n").as_bytes());
    text
}

/// The text of a sealed one; None: it is damaged, or not whole.
pub fn unsealed(bytes: &[u8]) -> Option<&[u8]> {
    let at = bytes.len().checked_sub(blake3::OUT_LEN * 2 + 2)?;
    let (text, proof) = bytes.split_at(at);
    (proof == format!("\n{}\n", blake3::hash(text).to_hex()).as_bytes()).then_some(text)
}
