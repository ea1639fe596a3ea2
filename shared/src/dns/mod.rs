//! DNS wire format: the one parser for what clients, upstreams and peers send.
//!
//! Everything here is pure: bytes in, values out. Nothing trusts a length, a count or a compression pointer before it
//! has been checked (RFC 9267), and every walk visits each byte of a packet a bounded number of times.

pub mod answer;
mod encode;
pub mod message;
pub mod name;
mod rdata;
mod reach;
pub mod rr;
