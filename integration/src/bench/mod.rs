//! The benchmark: what a cached UDP answer costs in CPU time, in rounds in which every candidate has its turn.
//!
//! Figures of different rounds are never compared: what else a machine has to do changes from one to the next, and with it
//! what everything costs. A ratio within a round stays.

mod accounting;
mod candidate;
mod datagrams;
mod echo;
mod figures;
mod load;
mod machine;
mod mesh;
mod mix;
mod options;
mod paced;
mod peers;
mod plot;
mod report;
mod runs;
mod slots;
mod spread;
mod streams;
mod verify;
pub mod workload;

pub use options::Options;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use tokio::signal::unix::{SignalKind, signal};

use crate::binaries::{Binaries, binaries};
use crate::upstream::Upstream;

use candidate::{Candidate, Choice, Ground, HOST, Kind};
use load::{Load, Tally};
use machine::Cpus;
use report::{Report, Turn};
use runs::Run;
use workload::Workload;

/// Times that every name is asked for before anything is measured: once to have it cached, once more to be sure.
const WARM_UPS: u32 = 2;

/// Queries on their way while names are asked for that nobody has cached: what the upstream takes in one go. A candidate that
/// does not ask again would lose the rest.
const WARM_UP_OUTSTANDING: u32 = 64;

/// The plot's name, where no other is given.
const PLOT: &str = "heimdall-bench.svg";

/// Runs the benchmark.
///
/// # Errors
/// What kept it from running; a wrong or lost answer.
pub fn run(options: &Options) -> Result<()> {
    if let Some(address) = options.echo {
        return echo::serve(address);
    }
    if !options.mesh.mesh.is_empty() {
        return mesh::run(&options.mesh, options.rounds.get(), options.seed, options.shared_network);
    }
    let plot = plot_file(options)?;
    let choices = candidate::choose(&options.only, &options.without, &options.candidate)?;
    if options.install_peers {
        peers::install(choices.iter().filter_map(|choice| match choice.kind {
            Kind::Peer(peer) => Some(peer),
            _ => None,
        }))?;
    }
    // Before the network is left, which cargo may need, and on all CPUs.
    eprintln!("making sure that heimdall-dns and heimdall-agent are built");
    let binaries = binaries()?;
    if !options.shared_network
        && let Err(error) = machine::leave_shared_network()
    {
        eprintln!("measuring in the shared network ({error:#}): other programs' packets may count");
    }
    let cpus = Cpus::choose()?;
    cpus.bind_load()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting a runtime")?;
    runtime.block_on(async {
        let mut terminated = signal(SignalKind::terminate()).context("listening for signals")?;
        // What a signal interrupts is dropped, and with it the processes that were started.
        tokio::select! {
            measured = measure_all(options, &choices, &plot, &binaries, cpus) => measured,
            _ = terminated.recv() => bail!("stopped by a signal"),
            _ = tokio::signal::ctrl_c() => bail!("stopped by a signal"),
        }
    })
}

async fn measure_all(
    options: &Options,
    choices: &[Choice],
    plot: &Path,
    binaries: &Binaries,
    cpus: Cpus,
) -> Result<()> {
    for run in Run::chosen(&options.run) {
        match run {
            Run::Hits => measure(options, choices, plot, binaries, cpus).await?,
            run => runs::measure(run, options, binaries, cpus).await?,
        }
    }
    Ok(())
}

async fn measure(options: &Options, choices: &[Choice], plot: &Path, binaries: &Binaries, cpus: Cpus) -> Result<()> {
    let workload = Arc::new(Workload::cached(options.workload, options.names, options.zipf, options.seed)?);
    let folder = tempfile::tempdir().context("making a folder")?;
    let upstream = Upstream::start_at(HOST, 0).await.context("starting the upstream")?;
    upstream.otherwise(workload::rule());
    upstream.journal().count_only();

    let ground = Ground { binaries, upstream: &upstream, folder: folder.path(), workload: &workload, cpus };
    let (mut candidates, mut roles, mut versions) = (Vec::new(), Vec::new(), Vec::new());
    for choice in choices {
        let Some(candidate) = Candidate::start(choice, &ground).await? else {
            eprintln!("{} is not installed and not measured; --install-peers installs it", choice.name);
            continue;
        };
        if let Kind::Peer(peer) = choice.kind
            && let Some(version) = peer.version()
        {
            versions.push(format!("{} {version}", peer.name));
        }
        roles.push((choice.name.clone(), choice.kind.role()));
        candidates.push(candidate);
    }
    let mut slopes = Vec::new();
    for candidate in &candidates {
        // With many names and peers this takes minutes.
        eprintln!("having {} cache {} names", candidate.name, options.names);
        slopes.push(warm_up(candidate, &workload).await?);
    }

    let mut report = Report::new(roles);
    for round in 0..options.rounds.get() {
        let mut turns = vec![None; candidates.len()];
        for at in order(candidates.len(), options.seed, round) {
            turns[at] = Some(turn(&candidates[at], slopes[at], &workload, options, round).await?);
        }
        println!("{}", report.add(turns.into_iter().flatten().collect()));
    }
    let heading = heading(options, &versions);
    println!("\n{}\n\n{}\n{}", heading.join("\n"), report.table(), report.comparison());
    fs::write(plot, report.plot(&heading)).with_context(|| format!("writing the plot to {}", plot.display()))?;
    println!("plot: {}", plot.display());
    Ok(())
}

/// In which order the candidates have their turns, drawn for each round by the seed: the first after a pause is favoured, and whoever
/// always follows the same one has what that does to the machine in all its figures.
fn order(candidates: usize, seed: u64, round: u32) -> Vec<usize> {
    let mut order: Vec<_> = (0..candidates).collect();
    order.shuffle(&mut StdRng::seed_from_u64(seed.wrapping_add(round.into())));
    order
}

/// Where the plot goes. What cannot be written is better known before hours of measuring than after them.
fn plot_file(options: &Options) -> Result<PathBuf> {
    let target = Path::new("target");
    let file = match &options.plot {
        Some(file) => file.clone(),
        None if target.is_dir() => target.join(PLOT),
        None => PathBuf::from(PLOT),
    };
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    ensure!(folder.is_dir(), "the plot cannot be written to {}: {} is no folder", file.display(), folder.display());
    ensure!(!file.is_dir(), "the plot cannot be written to {}: it is a folder", file.display());
    Ok(file)
}

/// Has all names cached, and gives the bytes by which the candidate grew per name beyond the first tenth: what it allocates
/// once is there by then.
async fn warm_up(candidate: &Candidate, workload: &Arc<Workload>) -> Result<f64> {
    let all = workload.all().count() as u32;
    let first = all / 10;
    loaded(candidate, workload, WARM_UP_OUTSTANDING, move |load| load.ask_these(0..first)).await?;
    let before = candidate.resident()?;
    loaded(candidate, workload, WARM_UP_OUTSTANDING, move |load| load.ask_these(first..all)).await?;
    let slope = (candidate.resident()? as f64 - before as f64) / f64::from(all - first);
    for _ in 1..WARM_UPS {
        loaded(candidate, workload, WARM_UP_OUTSTANDING, |load| load.ask_all()).await?;
    }
    Ok(slope)
}

/// One candidate under load for as long as the options say.
async fn turn(
    candidate: &Candidate,
    bytes_per_further_name: f64,
    workload: &Arc<Workload>,
    options: &Options,
    round: u32,
) -> Result<Turn> {
    let span = Duration::from_secs(options.seconds.get().into());
    let before = candidate.usage()?;
    let tally = loaded(candidate, workload, options.outstanding, move |load| load.ask_for(span, round)).await?;
    let server_cpu = candidate.usage()?.since(&before);
    let grown = candidate.resident()?.saturating_sub(candidate.resident_at_first);
    Ok(Turn {
        answers: tally.answers,
        wall: tally.wall.as_secs_f64(),
        server_cpu: server_cpu.as_secs_f64(),
        load_cpu: tally.cpu.as_secs_f64(),
        bytes_per_name: grown as f64 / f64::from(options.names),
        bytes_per_further_name,
    })
}

/// Has a load of its own thread do `work` with a candidate. The runtime goes on meanwhile: it serves the upstream.
async fn loaded(
    candidate: &Candidate,
    workload: &Arc<Workload>,
    outstanding: u32,
    work: impl FnOnce(&mut Load<'_>) -> Result<Tally> + Send + 'static,
) -> Result<Tally> {
    let (workload, address, expected) = (Arc::clone(workload), candidate.address, candidate.expected);
    let run = move || work(&mut Load::new(&workload, address, expected, outstanding)?);
    let done = tokio::task::spawn_blocking(run).await.context("the load must not panic")?;
    done.with_context(|| format!("loading {}\n{}", candidate.name, candidate.shown_output()))
}

/// What was measured, on what, and when: a line each.
fn heading(options: &Options, versions: &[String]) -> Vec<String> {
    let mut lines = vec![
        format!("{}, {}", machine::description(), machine::today()),
        format!(
            "{} rounds of {} s per candidate, workload {:?}, {} names, Zipf {}, {} outstanding; median (range)",
            options.rounds,
            options.seconds,
            options.workload,
            options.names,
            options.zipf,
            options.outstanding / load::PORTS * load::PORTS,
        ),
    ];
    if !versions.is_empty() {
        lines.push(versions.join(", "));
    }
    lines
}
