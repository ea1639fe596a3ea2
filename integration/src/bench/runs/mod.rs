//! Kinds of run beside cached answers over UDP: `heimdall-bench --run …`.
//!
//! All of them work in rounds, compare figures of one round only, and verify every answer. Counts and bytes that are exceeded
//! make a run fail; times and costs stand beside their targets and fail nothing.

mod flood;
mod mixed;
mod overload;
mod served;
mod tcp;
mod workers;

use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use tempfile::TempDir;

use super::candidate::HOST;
use super::figures::{Figures, Target};
use super::load::Tally;
use super::machine::{self, Cpus};
use super::options::Options;
use super::workload::{Workload, rule};
use crate::binaries::Binaries;
use crate::upstream::Upstream;

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Run {
    /// What a cached answer over UDP costs, beside the bare limit and peers
    Hits,
    /// What a cached answer over pipelined TCP connections costs, beside Unbound
    Tcp,
    /// What two workers on two CPUs do, beside one
    Workers,
    /// How long a cached answer takes while others are fetched
    Mixed,
    /// What is answered at twice the load that can be
    Overload,
    /// Memory while nobody asks the same twice
    Flood,
    /// One after the other
    All,
}

impl Run {
    const EACH: [Self; 6] = [Self::Hits, Self::Tcp, Self::Workers, Self::Mixed, Self::Overload, Self::Flood];

    /// The kinds that somebody asked for, each once.
    pub(super) fn chosen(asked: &[Self]) -> impl Iterator<Item = Self> {
        Self::EACH.into_iter().filter(|run| asked.contains(run) || asked.contains(&Self::All))
    }
}

/// What every kind of run has.
struct Bench<'r> {
    options: &'r Options,
    binaries: &'r Binaries,
    cpus: Cpus,
    folder: TempDir,
    upstream: Upstream,
    /// Questions that are cached before anything is measured.
    workload: Arc<Workload>,
}

/// Measures one kind.
///
/// # Errors
/// What kept it from running; a wrong answer, or a lost one where none may be; a limit of memory that was exceeded.
pub(super) async fn measure(run: Run, options: &Options, binaries: &Binaries, cpus: Cpus) -> Result<()> {
    let workload = Workload::cached(options.workload, options.names, options.zipf, options.seed)?;
    let upstream = Upstream::start_at(HOST, 0).await.context("starting the upstream")?;
    upstream.otherwise(rule());
    upstream.journal().count_only();
    let folder = tempfile::tempdir().context("making a folder")?;
    let bench = Bench { options, binaries, cpus, folder, upstream, workload: Arc::new(workload) };
    let mut figures = Figures::new("run");
    match run {
        Run::Tcp => tcp::measure(&bench, &mut figures).await?,
        Run::Workers => workers::measure(&bench, &mut figures).await?,
        Run::Mixed => mixed::measure(&bench, &mut figures).await?,
        Run::Overload => overload::measure(&bench, &mut figures).await?,
        Run::Flood => flood::measure(&bench, &mut figures).await?,
        Run::Hits | Run::All => bail!("{run:?} is not measured here"),
    }
    println!("\n{}: {} rounds; median (range)\n", machine::description(), options.rounds);
    println!("{}", figures.table());
    Ok(())
}

impl Bench<'_> {
    fn upstream_address(&self) -> Result<SocketAddrV4> {
        match self.upstream.address() {
            SocketAddr::V4(address) => Ok(address),
            SocketAddr::V6(address) => bail!("the upstream must have an IPv4 address, not {address}"),
        }
    }

    fn rounds(&self) -> u32 {
        self.options.rounds.get()
    }

    /// Length of a turn.
    fn span(&self) -> Duration {
        Duration::from_secs(self.options.seconds.get().into())
    }
}

/// The order of `count` turns in a round: another one begins each time, since the first after a pause is favoured.
fn turns(count: usize, round: u32) -> impl Iterator<Item = usize> {
    (0..count).map(move |step| (step + round as usize) % count)
}

/// What a turn under a load without pauses cost.
#[derive(Clone, Copy, Debug)]
struct Cost {
    tally: Tally,
    server: Duration,
}

impl Cost {
    /// CPU microseconds of the server per answer.
    fn per_answer(self) -> f64 {
        self.server.as_secs_f64() * 1e6 / self.tally.answers as f64
    }

    fn rate(self) -> f64 {
        self.tally.answers as f64 / self.tally.wall.as_secs_f64()
    }

    fn server_share(self) -> f64 {
        self.server.as_secs_f64() / self.tally.wall.as_secs_f64()
    }

    fn load_share(self) -> f64 {
        self.tally.cpu.as_secs_f64() / self.tally.wall.as_secs_f64()
    }

    /// What every kind says about a turn.
    fn figures(self) -> [(&'static str, f64); 5] {
        [
            ("CPU µs per answer", self.per_answer()),
            ("verified answers", self.tally.answers as f64),
            ("answers per second", self.rate()),
            ("server's share of a CPU", self.server_share()),
            ("load's share of a CPU", self.load_share()),
        ]
    }
}

/// Figures of several turns side by side, each under the name of its turn.
fn named(turns: &[(&str, Cost)]) -> Vec<(String, Target, f64)> {
    let mut all = Vec::new();
    for (name, cost) in turns {
        all.extend(cost.figures().map(|(what, figure)| (format!("{name}: {what}"), Target::None, figure)));
    }
    all
}

/// Keeps figures whose names were made.
fn keep(figures: &mut Figures, run: &str, round: u32, of_round: &[(String, Target, f64)]) {
    let of_round: Vec<_> = of_round.iter().map(|(what, target, figure)| (what.as_str(), *target, *figure)).collect();
    figures.round(run, round, &of_round);
}

const MIB: f64 = (1 << 20) as f64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_measured_once_each_in_a_fixed_order() {
        let of = |asked: &[Run]| Run::chosen(asked).collect::<Vec<_>>();
        assert_eq!(of(&[Run::Flood, Run::Tcp, Run::Flood]), [Run::Tcp, Run::Flood]);
        assert_eq!(of(&[Run::All, Run::Tcp]), Run::EACH);
    }
}
