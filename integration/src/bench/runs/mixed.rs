//! How long a cached answer takes while one query in ten has to be fetched.

use std::time::Duration;

use anyhow::Result;

use super::super::figures::{Figures, Target};
use super::super::mix::{Mix, Shape};
use super::super::paced::{Loss, Seen};
use super::super::workload::rule;
use super::served::Served;
use super::{Bench, turns};

/// Share of the queries that are new.
const NEW: f64 = 0.1;

/// What the upstream takes for them.
const UPSTREAM_TIME: Duration = Duration::from_millis(20);

/// The p99 of a cached answer among misses ÷ that of the round's load without misses.
const TARGET: Target = Target::AtMost(1.5);

/// A turn: what the load saw, and the server's CPU time.
struct Turn {
    seen: Seen,
    server: Duration,
}

pub(super) async fn measure(bench: &Bench<'_>, figures: &mut Figures) -> Result<()> {
    let server = Served::heimdall(bench, "heimdall-dns", &[("--workers", "1".to_owned())]).await?;
    server.warm(bench).await?;
    bench.upstream.otherwise(rule().after(UPSTREAM_TIME));
    let mut first_new = 0;
    for round in 0..bench.rounds() {
        let mut both = [None, None];
        for at in turns(2, round) {
            let rate = f64::from(bench.options.rate);
            let shape = Shape {
                count: bench.options.rate * bench.options.seconds.get(),
                rate,
                new: if at == 0 { 0.0 } else { NEW },
                seed: bench.options.seed,
                first_new,
            };
            let mix = Mix::new(&bench.workload, round, shape);
            first_new += mix.count_new();
            both[at] = Some(turn(&server, mix).await?);
        }
        let [Some(alone), Some(mixed)] = &both else { continue };
        let share = |used: Duration, seen: &Seen| used.as_secs_f64() / seen.wall.as_secs_f64();
        let (p99_alone, p99) = (alone.seen.hits.quantile(0.99), mixed.seen.hits.quantile(0.99));
        figures.round(
            "mixed",
            round,
            &[
                ("hits alone: verified answers", Target::None, alone.seen.answered() as f64),
                ("hits alone: p50 µs", Target::None, alone.seen.hits.quantile(0.5)),
                ("hits alone: p99 µs", Target::None, p99_alone),
                ("hits alone: server's share of a CPU", Target::None, share(alone.server, &alone.seen)),
                ("hits alone: load's share of a CPU", Target::None, share(alone.seen.cpu, &alone.seen)),
                ("among misses: verified answers", Target::None, mixed.seen.answered() as f64),
                ("among misses: p50 µs of a hit", Target::None, mixed.seen.hits.quantile(0.5)),
                ("among misses: p99 µs of a hit", Target::None, p99),
                ("among misses: p50 µs of a miss", Target::None, mixed.seen.misses.quantile(0.5)),
                ("among misses: server's share of a CPU", Target::None, share(mixed.server, &mixed.seen)),
                ("among misses: load's share of a CPU", Target::None, share(mixed.seen.cpu, &mixed.seen)),
                ("p99 of a hit, among misses ÷ alone", TARGET, p99 / p99_alone),
            ],
        );
    }
    Ok(())
}

async fn turn(server: &Served, mix: Mix) -> Result<Turn> {
    let before = server.candidate.usage()?;
    let seen = server.ask(mix, Loss::Fails).await?;
    Ok(Turn { seen, server: server.candidate.usage()?.since(&before) })
}
