//! `heimdall-dev`: a whole cluster on one machine, for trying it out.

use std::process::ExitCode;

use clap::Parser;
use heimdall_integration::{dev, ended};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    ended(dev::run(dev::Options::parse()).await)
}
