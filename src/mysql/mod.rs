//! What is known about MySQL and MariaDB: versions, files, variables, the redo log, error logs and command lines.
//!
//! Pure knowledge: strings, bytes and maps in, values out. Opens no file, starts no process, talks to no server. Each fact
//! says where it comes from: seen on a server ("verified on MariaDB 10.11.19"), or the vendor's documentation.

pub mod version;

pub mod files;
pub mod redo;
pub mod setting;
pub mod variables;

pub mod identifier;
pub mod isolated;

pub mod dropin;
pub mod errorlog;
pub mod xa;

pub use version::{Flavour, Version};
