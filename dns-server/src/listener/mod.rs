//! How queries come in and replies go out.

pub mod batch;
pub(crate) mod late;
mod mailbox;
pub(crate) mod mmsg;
pub mod tcp;
pub mod udp;
