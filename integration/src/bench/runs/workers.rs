//! What two workers on two CPUs do, beside one on one.
//!
//! On a machine with two CPUs the load takes what the second worker would need, and answers per second say nothing about it.
//! What keeps workers from doing twice as much is what they share; it shows as CPU time per answer, and as waits for one another.

use std::sync::Arc;

use anyhow::Result;

use super::super::accounting;
use super::super::figures::{Figures, Target};
use super::served::Served;
use super::{Bench, Cost, keep, named, turns};

/// Answers per second of two workers ÷ those of one, were each worker's CPU its own: twice the CPU time for as much each.
const TARGET: Target = Target::AtLeast(1.8);

/// Most queries on their way that the load takes.
const OUTSTANDING_MAX: u32 = 512;

/// What one turn says beside its cost.
#[derive(Clone, Copy, Debug)]
struct Turn {
    cost: Cost,
    /// Times that a thread of the server waited, per thousand answers.
    waits: f64,
    /// Share of the workers' CPU time that was the busiest one's.
    busiest: f64,
}

pub(super) async fn measure(bench: &Bench<'_>, figures: &mut Figures) -> Result<()> {
    let workers = |count: u32| [("--workers", count.to_string())];
    let one = Served::heimdall(bench, "one worker", &workers(1)).await?;
    let two = Served::heimdall(bench, "two workers", &workers(2)).await?;
    bench.cpus.bind_workers_apart(two.pid)?;
    let servers = [one, two];
    for server in &servers {
        server.warm(bench).await?;
    }
    for round in 0..bench.rounds() {
        let mut both = [None; 2];
        for at in turns(2, round) {
            both[at] = Some(turn(bench, &servers[at], at as u32 + 1, round).await?);
        }
        let [Some(one), Some(two)] = both else { continue };
        let mut of_round = named(&[("one", one.cost), ("two", two.cost)]);
        let ratio = two.cost.per_answer() / one.cost.per_answer();
        of_round.extend([
            ("CPU per answer, two ÷ one".to_owned(), Target::None, ratio),
            ("answers per second, two ÷ one, here".to_owned(), Target::None, two.cost.rate() / one.cost.rate()),
            ("the same by CPU time, were both CPUs theirs".to_owned(), TARGET, 2.0 / ratio),
            ("one: waits per 1,000 answers".to_owned(), Target::None, one.waits),
            ("two: waits per 1,000 answers".to_owned(), Target::None, two.waits),
            ("two: the busier worker's share".to_owned(), Target::None, two.busiest),
        ]);
        keep(figures, "workers", round, &of_round);
    }
    Ok(())
}

/// The load stays on its CPU beside one worker; beside two it goes where there is room, and has twice as many queries on their
/// way: each worker's batches are then as full as those of one alone.
async fn turn(bench: &Bench<'_>, server: &Served, workers: u32, round: u32) -> Result<Turn> {
    let (span, cpus, pid) = (bench.span(), bench.cpus, server.pid);
    let (waits, before) = (accounting::waits(pid)?, accounting::workers(pid)?);
    let workload = Arc::clone(&bench.workload);
    let outstanding = (bench.options.outstanding * workers).min(OUTSTANDING_MAX);
    let cost = server.cost(&workload, outstanding, move |load| {
        if workers > 1 {
            cpus.bind_anywhere()?;
        }
        let tally = load.ask_for(span, round);
        cpus.bind_load()?;
        tally
    });
    let cost = cost.await?;
    let used: Vec<_> =
        accounting::workers(pid)?.iter().zip(&before).map(|(after, before)| after.1 - before.1).collect();
    let all: f64 = used.iter().map(|used| used.as_secs_f64()).sum();
    let busiest = used.iter().max().map_or(f64::NAN, |used| used.as_secs_f64() / all);
    let waits = (accounting::waits(pid)? - waits) as f64 * 1e3 / cost.tally.answers as f64;
    Ok(Turn { cost, waits, busiest })
}
