//! What controller and agent say to each other: frames, messages, handshake. Bytes in, values out; the two async functions
//! only read and write the streams they are given.
//!
//! Any bytes at all decode to a value or an error, in memory that is bounded by the frame's: `tests/fuzz` counts it.

pub mod facts;
pub mod frame;
pub mod image;
pub mod message;
pub mod stripe;
