//! Heimdall's harness: real processes, a scripted upstream, a DNS client, and the local cluster `heimdall-dev`.
//!
//! Tests in `tests/` use it to start whole clusters; nothing in it replaces a part of Heimdall.

use std::process::ExitCode;

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
pub mod service;
pub mod unary;
pub mod upstream;
pub mod wire;

/// How a tool ends: with what went wrong in one line, for the person who ran it. Where in the code that was is nothing to them, also
/// when their shell asks for backtraces.
pub fn ended(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
