//! What is answered at twice the load that can be.
//!
//! Three queries in ten are new: that makes the server the limit and not the load, which pays about as much for a cached answer as
//! the server does. With one in ten it could offer 1.3 times what the server can answer where system calls are dear.

use std::sync::Arc;

use anyhow::{Result, ensure};

use super::super::accounting;
use super::super::figures::{Figures, Target};
use super::super::mix::{Mix, Shape};
use super::super::paced::Loss;
use super::served::Served;
use super::{Bench, MIB};

/// Share of the queries that are new.
const NEW: f64 = 0.3;

/// What is offered ÷ what can be answered.
const OVERLOAD: f64 = 2.0;

/// Queries on their way while the capacity is measured: enough that the server never waits for an upstream.
const OUTSTANDING: u32 = 512;

/// Answers per second under overload ÷ the capacity.
const TARGET: Target = Target::AtLeast(0.9);

/// Answered hits ÷ those that a server would answer which serves all alike.
const HITS_TARGET: Target = Target::AtLeast(0.9);

/// Bytes of the first-level cache.
const CACHE_BYTES: u64 = 32 << 20;

/// Bytes by which memory may grow beyond the cache's: 4,096 misses of a worker with some 10 KiB each, as this run showed, and
/// what the allocator leaves between them.
const MEMORY_BEYOND: u64 = 48 << 20;

pub(super) async fn measure(bench: &Bench<'_>, figures: &mut Figures) -> Result<()> {
    let options = [("--workers", "1".to_owned()), ("--cache-bytes", CACHE_BYTES.to_string())];
    let server = Served::heimdall(bench, "heimdall-dns", &options).await?;
    server.warm(bench).await?;
    let mut load = Drawn { bench, first_new: 0, guess: bench.options.rate.into() };
    for round in 0..bench.rounds() {
        load.round(&server, round, figures).await?;
    }
    Ok(())
}

/// Mixes that never ask the same new question twice.
struct Drawn<'b> {
    bench: &'b Bench<'b>,
    first_new: u64,
    /// The last capacity; at first what the options say.
    guess: f64,
}

impl Drawn<'_> {
    fn mix(&mut self, round: u32, rate: f64) -> Mix {
        let options = self.bench.options;
        let count = (rate * f64::from(options.seconds.get())) as u32;
        let shape = Shape { count, rate, new: NEW, seed: options.seed, first_new: self.first_new };
        let mix = Mix::new(&self.bench.workload, round, shape);
        self.first_new += mix.count_new();
        mix
    }

    async fn round(&mut self, server: &Served, round: u32, figures: &mut Figures) -> Result<()> {
        let pid = server.pid;
        let workload = Arc::new(self.mix(round, self.guess).workload);
        let capacity = server.cost(&workload, OUTSTANDING, |load| load.ask_in_order()).await?;
        self.guess = capacity.rate();
        let resident = accounting::resident(pid)?;
        let mix = self.mix(round, capacity.rate() * OVERLOAD);
        let before = server.candidate.usage()?;
        let seen = server.ask(mix, Loss::Counted).await?;
        let used = server.candidate.usage()?.since(&before);
        let most = accounting::peak(pid)?;
        let wall = seen.wall.as_secs_f64();
        let (offered, answered) = (seen.sent() as f64 / wall, seen.answered() as f64 / wall);
        let fair = (capacity.rate() / offered).min(1.0);
        figures.round(
            "overload",
            round,
            &[
                ("capacity: answers per second", Target::None, capacity.rate()),
                ("capacity: CPU µs per answer", Target::None, capacity.per_answer()),
                ("capacity: server's share of a CPU", Target::None, capacity.server_share()),
                ("capacity: load's share of a CPU", Target::None, capacity.load_share()),
                ("offered ÷ capacity", Target::None, offered / capacity.rate()),
                ("load's share of a CPU", Target::None, seen.cpu.as_secs_f64() / wall),
                ("verified answers", Target::None, seen.answered() as f64),
                ("CPU µs per answer", Target::None, used.as_secs_f64() * 1e6 / seen.answered() as f64),
                ("answered ÷ capacity", TARGET, answered / capacity.rate()),
                ("share of hits answered", Target::None, seen.hits.share()),
                ("share of misses answered", Target::None, seen.misses.share()),
                ("answered hits ÷ their part", HITS_TARGET, seen.hits.share() / fair),
                ("refused", Target::None, (seen.hits.refused + seen.misses.refused) as f64),
                ("resident MiB before", Target::None, resident as f64 / MIB),
                ("resident MiB at most", Target::None, most as f64 / MIB),
            ],
        );
        let limit = server.candidate.resident_at_first + CACHE_BYTES + MEMORY_BEYOND;
        ensure!(
            most <= limit,
            "{} had {most} bytes resident under overload, and {limit} are its cache, its start and what misses under way may take",
            server.candidate.name
        );
        Ok(())
    }
}
