//! UNIX accounts of this machine: whose file it is, who asks. Looks them up and changes nothing.

use std::path::PathBuf;

use uzers::os::unix::UserExt;

/// An account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its name.
    pub name: String,
    /// Its number.
    pub uid: u32,
    /// The number of its first group.
    pub gid: u32,
    /// Its home.
    pub home: PathBuf,
}

/// The account of this number, if there is one.
pub fn of_uid(uid: u32) -> Option<Account> {
    let user = uzers::get_user_by_uid(uid)?;
    Some(Account {
        name: user.name().to_string_lossy().into_owned(),
        uid,
        gid: user.primary_group_id(),
        home: user.home_dir().to_owned(),
    })
}

/// The account that this process acts as.
pub fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_known_and_nobodys_number_is_not() {
        let root = of_uid(0).unwrap();
        assert_eq!((root.name.as_str(), root.gid), ("root", 0));
        assert_eq!(of_uid(4_000_000_000), None);
    }
}
