//! What the mesh costs: `heimdall-bench --mesh …`.
//!
//! Everything is measured on whole clusters of real processes with mTLS between the agents. CPU time is that of all processes
//! that take part, as the kernel counts it. Wrong and lost answers and counts that are exceeded make the run fail; times and
//! costs stand beside their targets and fail nothing.

mod asker;
mod burst;
mod cross_hit;
mod fill;
mod ideal;
mod idle;
mod instructions;
mod miss;
mod names;
mod player;
mod redis;
mod storm;
mod system;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use super::figures::Figures;
use super::machine;
use super::workload::rule;
use crate::binaries::{Binaries, binaries};
use crate::upstream::Upstream;

use burst::Bursts;
use cross_hit::CrossHit;
use idle::Idle;
use miss::Misses;
use redis::Redis;
use storm::Storms;

/// One thing to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// A hit that crosses replicas, and Redis beside it
    CrossHit,
    /// What the mesh adds to a miss
    Miss,
    /// Everybody asks for one cold name at once
    Storm,
    /// Thousands of cold names at once
    Burst,
    /// Upstream queries for each that is needed, with the edge and k8s workloads
    Ideal,
    /// The same, and half-way one replica is killed and another one joins
    Change,
    /// Memory and CPU time of ten replicas that do nothing
    Idle,
    /// Instructions of a miss and of a cross-replica hit, by callgrind; needs valgrind and no quiet machine
    Instructions,
}

/// Options of the mesh's benchmark.
#[derive(Clone, Debug, Args)]
pub struct MeshOptions {
    /// Measure the mesh in place of a cached answer; may be given several times
    #[arg(long, value_name = "WHAT", value_enum)]
    pub mesh: Vec<What>,
    /// Names asked for per round and candidate
    #[arg(long, value_name = "N", default_value_t = 20_000, requires = "mesh", value_parser = clap::value_parser!(u32).range(64..=200_000))]
    pub mesh_names: u32,
    /// Storms of 200 clients per replica
    #[arg(long, value_name = "N", default_value_t = 20, requires = "mesh")]
    pub storms: u32,
    /// Cold names of a burst
    #[arg(long, value_name = "N", default_value_t = 10_000, requires = "mesh", value_parser = clap::value_parser!(u32).range(3..=100_000))]
    pub burst: u32,
    /// Seconds for which a workload is played
    #[arg(long, value_name = "N", default_value_t = 60, requires = "mesh")]
    pub play: u32,
    /// Replicas of the clusters of ideal and change, one after the other, separated by commas
    #[arg(long, value_name = "N", default_value = "3,5,10", value_delimiter = ',', requires = "mesh", value_parser = clap::value_parser!(u32).range(2..=32))]
    pub replicas: Vec<u32>,
    /// Folder with another build of both servers, measured in the same rounds
    #[arg(long, value_name = "DIR", requires = "mesh")]
    pub beside: Option<PathBuf>,
}

/// What every measurement of a run needs to know.
#[derive(Clone, Debug)]
pub(super) struct Run {
    /// Names per round.
    pub(super) names: usize,
    /// Storms.
    pub(super) storms: u32,
    /// Names of a burst.
    pub(super) burst: usize,
    /// How long a workload is played.
    pub(super) span: Duration,
    /// Seed of the workloads.
    pub(super) seed: u64,
}

/// One build of the servers.
#[derive(Clone, Debug)]
pub(super) struct Build {
    /// How it is called in the figures, behind what is measured; empty for this build.
    pub(super) label: &'static str,
    /// Its programs.
    pub(super) binaries: Binaries,
}

/// Runs the measurements that the options name.
///
/// # Errors
/// What kept it from running; a wrong or lost answer; a count that was exceeded.
pub(super) fn run(options: &MeshOptions, rounds: u32, seed: u64, shared_network: bool) -> Result<()> {
    eprintln!("making sure that heimdall-dns and heimdall-agent are built");
    let mut builds = vec![Build { label: "", binaries: binaries()? }];
    if let Some(folder) = &options.beside {
        builds.push(Build { label: " (beside)", binaries: beside(folder)? });
    }
    if !shared_network && let Err(error) = machine::leave_shared_network() {
        eprintln!("measuring in the shared network ({error:#}): other programs' packets may count");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting a runtime")?;
    runtime.block_on(async {
        let mut terminated = signal(SignalKind::terminate()).context("listening for signals")?;
        // What a signal interrupts is dropped, and with it the processes that were started.
        tokio::select! {
            measured = measure(options, &builds, rounds, seed) => measured,
            _ = terminated.recv() => bail!("stopped by a signal"),
            _ = tokio::signal::ctrl_c() => bail!("stopped by a signal"),
        }
    })
}

fn beside(folder: &Path) -> Result<Binaries> {
    let found = Binaries { dns: folder.join("heimdall-dns"), agent: folder.join("heimdall-agent") };
    for program in [&found.dns, &found.agent] {
        ensure!(program.is_file(), "{} does not exist", program.display());
    }
    Ok(found)
}

async fn measure(options: &MeshOptions, builds: &[Build], rounds: u32, seed: u64) -> Result<()> {
    let run = Run {
        names: options.mesh_names as usize,
        storms: options.storms,
        burst: options.burst as usize,
        span: Duration::from_secs(options.play.into()),
        seed,
    };
    let mut figures = Figures::new("mesh");
    for &what in &options.mesh {
        match what {
            What::CrossHit => cross_hits(builds, rounds, &run, &mut figures).await?,
            What::Miss => misses(builds, rounds, &run, &mut figures).await?,
            What::Storm => {
                let mut storms = Storms::start(&builds[0]).await?;
                for storm in 0..run.storms {
                    storms.round("storm", storm, &mut figures).await?;
                }
            }
            What::Burst => {
                let mut bursts = Bursts::start(&builds[0]).await?;
                for round in 0..rounds {
                    bursts.round("burst", round, run.burst, &mut figures).await?;
                }
            }
            What::Ideal | What::Change => {
                for play in ideal::PLAYS {
                    for &replicas in &options.replicas {
                        ideal::play(&builds[0], replicas, play, what == What::Change, &run, &mut figures).await?;
                    }
                }
            }
            What::Instructions => instructions::count(builds, &upstream().await?, &mut figures).await?,
            What::Idle => {
                let mut idle = Idle::start(&builds[0]).await?;
                for round in 0..rounds {
                    idle.round("idle", round, &mut figures).await?;
                }
            }
        }
    }
    println!("\n{}: {rounds} rounds, {} names per round; median (range)\n", machine::description(), run.names);
    println!("{}", figures.table());
    Ok(())
}

/// An upstream that knows every workload and answers at once.
async fn upstream() -> Result<Arc<Upstream>> {
    let upstream = Upstream::start().await.context("starting the upstream")?;
    upstream.otherwise(rule());
    upstream.journal().count_only();
    Ok(Arc::new(upstream))
}

/// The order of the builds in a round: another one begins each time, since the first after a pause is favoured.
fn turns(count: usize, round: u32) -> impl Iterator<Item = usize> {
    (0..count).map(move |step| (step + round as usize) % count)
}

async fn cross_hits(builds: &[Build], rounds: u32, run: &Run, figures: &mut Figures) -> Result<()> {
    let folder = tempfile::tempdir().context("making a folder")?;
    let upstream = upstream().await?;
    let redis = Redis::start(folder.path()).await?;
    if redis.is_none() {
        eprintln!("redis-server is not installed and not measured");
    }
    let mut candidates = Vec::new();
    for build in builds {
        candidates.push(CrossHit::start(build, &upstream).await?);
    }
    for round in 0..rounds {
        for at in turns(candidates.len(), round) {
            let id = format!("cross-replica hit{}", builds[at].label);
            candidates[at].round(&id, round, run, figures).await?;
        }
        if let Some(redis) = &redis {
            redis.round(round, run.names, figures).await?;
        }
    }
    Ok(())
}

async fn misses(builds: &[Build], rounds: u32, run: &Run, figures: &mut Figures) -> Result<()> {
    let upstream = upstream().await?;
    let mut candidates = Vec::new();
    for build in builds {
        candidates.push(Misses::start(build, &upstream).await?);
    }
    for round in 0..rounds {
        for at in turns(candidates.len(), round) {
            let id = format!("miss{}", builds[at].label);
            candidates[at].round(&id, round, run, figures).await?;
        }
    }
    Ok(())
}
