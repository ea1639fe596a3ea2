//! Heimdall's harness: real processes, a scripted upstream, a DNS client, and the local cluster `heimdall-dev`.
//!
//! Tests in `tests/` use it to start whole clusters; nothing in it replaces a part of Heimdall.

pub mod bench;
pub mod binaries;
pub mod client;
pub mod cluster;
pub mod collector;
pub mod crowd;
pub mod dev;
pub mod history;
pub mod http;
pub mod net;
pub mod network;
pub mod ownership;
pub mod process;
pub mod replica;
pub mod scenario;
pub mod upstream;
pub mod wire;
