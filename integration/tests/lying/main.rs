//! A member that lies: it has a certificate, it keeps to the protocol, and what it says is wrong.

#![allow(clippy::unwrap_used)]

mod hoards;
mod liar;
mod lies;
