//! `heimdall-bench`: what a cached answer costs, beside what the kernel alone costs.

use clap::Parser;
use heimdall_integration::bench;

fn main() -> anyhow::Result<()> {
    bench::run(&bench::Options::parse())
}
