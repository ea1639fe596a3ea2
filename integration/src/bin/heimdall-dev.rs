//! `heimdall-dev`: a whole cluster on one machine, for trying it out.

use clap::Parser;
use heimdall_integration::dev;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    dev::run(dev::Options::parse()).await
}
