//! How queries come in and replies go out.

pub mod batch;
pub(crate) mod late;
pub mod tcp;
pub mod udp;
