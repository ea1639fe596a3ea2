//! `heimdall-bench`: what a cached answer costs, beside what the kernel alone costs.

use std::process::ExitCode;

use clap::Parser;
use heimdall_integration::{bench, ended};

fn main() -> ExitCode {
    ended(bench::run(&bench::Options::parse()))
}
