//! How queries come in and replies go out.

pub mod batch;
pub(crate) mod envelope;
pub(crate) mod late;
mod mailbox;
mod mmsg;
pub mod tcp;
pub mod udp;
