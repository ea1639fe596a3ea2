//! How queries come in and replies go out.

pub mod batch;
pub mod tcp;
pub mod udp;
