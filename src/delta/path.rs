//! A path inside a datadir: relative, without `..`, so that nothing that arrives over a wire can leave the stage. No I/O.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Longest accepted path in bytes; PATH_MAX on Linux.
const MAX_BYTES: usize = 4096;

/// A checked relative path. Every value of this type is non-empty and has only normal components.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "PathBuf", into = "PathBuf")]
pub struct RelPath(PathBuf);

/// Why a path is no `RelPath`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a relative path inside a datadir: {0}")]
pub struct BadPath(String);

impl RelPath {
    /// The path below `root`.
    pub fn under(&self, root: &Path) -> PathBuf {
        root.join(&self.0)
    }
    /// As a path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
    /// As raw bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_os_str().as_bytes()
    }
}

/// In byte order, as an image's proof takes its entries; a folder comes before what is in it.
impl Ord for RelPath {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl PartialOrd for RelPath {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl TryFrom<PathBuf> for RelPath {
    type Error = BadPath;

    fn try_from(path: PathBuf) -> Result<Self, BadPath> {
        let bytes = path.as_os_str().as_bytes();
        let normal = path.components().all(|part| matches!(part, Component::Normal(_)));
        // `a//b` and `a/./b` have normal components only, but are second names of one file
        let rebuilt: PathBuf = path.components().collect();
        if bytes.is_empty()
            || bytes.len() > MAX_BYTES
            || bytes.contains(&0)
            || !normal
            || rebuilt.as_os_str() != path.as_os_str()
        {
            return Err(BadPath(path.display().to_string()));
        }
        Ok(Self(path))
    }
}

impl TryFrom<&[u8]> for RelPath {
    type Error = BadPath;

    fn try_from(bytes: &[u8]) -> Result<Self, BadPath> {
        Self::try_from(PathBuf::from(OsStr::from_bytes(bytes)))
    }
}

impl From<RelPath> for PathBuf {
    fn from(path: RelPath) -> PathBuf {
        path.0
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn leaving_the_datadir_is_refused() {
        for bad in ["", "/etc/passwd", "..", "a/../b", "./a", "a//b", "a/./b", "a/", "a\0b"] {
            assert!(RelPath::try_from(PathBuf::from(bad)).is_err(), "{bad:?}");
        }
        for good in ["ibdata1", "shop/orders.ibd", "a@0020b/x.ibd", ".hidden", "..x/y"] {
            assert!(RelPath::try_from(PathBuf::from(good)).is_ok(), "{good:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_stays_inside(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(path) = RelPath::try_from(bytes.as_slice()) {
                let full = path.under(Path::new("/root"));
                prop_assert!(full.starts_with("/root") && full.components().all(|c| c != Component::ParentDir));
                prop_assert_eq!(path.as_bytes(), bytes.as_slice());
            }
        }
    }
}
