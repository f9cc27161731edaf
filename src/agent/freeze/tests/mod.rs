//! Freezing real filesystems: XFS, btrfs and ext4 images behind loop devices.
//!
//! Mounts need root; without it, or without a filesystem's programs, there is nothing here to test, which the output says.

mod deaths;
mod lvm;
mod volume;
mod ways;
