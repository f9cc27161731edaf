//! What controller and agent say to each other: frames, messages, handshake. Bytes in, values out; the two async functions
//! only read and write the streams they are given.
//!
//! Any bytes at all decode to a value or an error, and nothing is allocated beyond the frame limit.

pub mod facts;
pub mod frame;
pub mod message;
pub mod stripe;
