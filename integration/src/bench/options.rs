//! What `heimdall-bench` can be told.

use std::net::SocketAddrV4;
use std::num::NonZero;
use std::path::PathBuf;

use clap::Parser;

use super::candidate::Custom;
use super::mesh::MeshOptions;
use super::runs::Run;
use super::workload::Kind;

/// Measures what a cached UDP answer costs: Heimdall, the bare limit of the kernel and installed peers, side by side. Other
/// kinds of run measure TCP, several workers, misses, overload and memory.
///
/// Every candidate serves from one worker on one CPU, the load comes from another one. Candidates take turns in rounds, and
/// only figures of one round are compared with each other. Each round is a line of JSON; a table ends the output. A wrong or
/// lost answer makes the run fail.
#[derive(Clone, Debug, Parser)]
#[command(name = "heimdall-bench", version)]
pub struct Options {
    /// What to measure; may be given several times
    #[arg(long, value_name = "RUN", value_enum, default_value = "hits")]
    pub run: Vec<Run>,
    /// Rounds, in each of which every candidate has its turn
    #[arg(long, value_name = "N", default_value = "7")]
    pub rounds: NonZero<u32>,
    /// Length of a turn in seconds
    #[arg(long, value_name = "N", default_value = "3")]
    pub seconds: NonZero<u32>,
    /// What is asked
    #[arg(long, value_name = "KIND", value_enum, default_value_t = Kind::Zipf)]
    pub workload: Kind,
    /// Cached names; of the workloads other than zipf, the first so many different questions
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub names: u32,
    /// Exponent of the workload zipf
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    pub zipf: f64,
    /// Queries on their way at any time, in whole sixteens, one for each source port. A receive buffer of the usual size holds
    /// 250, and not every server asks for a larger one: above 200, dnsmasq and Knot Resolver lose queries
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(16..=512))]
    pub outstanding: u32,
    /// Queries per second, of the runs mixed and flood; of overload, a first guess at what can be answered
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate: u32,
    /// Names that are asked for once, of the run flood
    #[arg(long, value_name = "N", default_value_t = 300_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub unique: u32,
    /// Seed of the order in which names are asked for
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Candidates to measure, by name, separated by commas; the echo is always one. Of the run hits alone: the other kinds of
    /// run and --mesh choose for themselves and ignore this
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Candidates to leave out. Of the run hits alone, too
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub without: Vec<String>,
    /// One more candidate: a command for the shell that stays in the foreground. {listen}, {host}, {port}, {upstream},
    /// {upstream_host}, {upstream_port} and {folder} in it are replaced; may be given several times. Of the run hits alone, too
    #[arg(long, value_name = "NAME=COMMAND")]
    pub candidate: Vec<Custom>,
    /// First install the Debian packages of candidates that are missing, without starting their services
    #[arg(long)]
    pub install_peers: bool,
    /// Where to write the plot; otherwise to heimdall-bench.svg, in the folder target where there is one. Only the run hits has
    /// one
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
    /// Stay in the network namespace that the command was started in
    #[arg(long)]
    pub shared_network: bool,
    /// What the mesh costs
    #[command(flatten)]
    pub mesh: MeshOptions,
    /// Be the bare echo, which the command starts for itself
    #[arg(long, value_name = "ADDR:PORT", hide = true)]
    pub echo: Option<SocketAddrV4>,
}
