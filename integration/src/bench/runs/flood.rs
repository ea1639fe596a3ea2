//! Memory while nobody asks the same twice: the cache fills with answers that nobody wants again.

use anyhow::{Result, ensure};

use super::super::accounting;
use super::super::figures::{Figures, Target};
use super::super::mix::{Mix, Shape};
use super::super::paced::Loss;
use super::served::Served;
use super::{Bench, MIB};

/// Bytes of the first-level cache.
const CACHE_BYTES: u64 = 8 << 20;

/// Bytes by which memory may grow beyond the cache's: 4,096 misses of a worker with some 10 KiB each, as this run showed, and
/// what the allocator leaves between them.
const MEMORY_BEYOND: u64 = 48 << 20;

pub(super) async fn measure(bench: &Bench<'_>, figures: &mut Figures) -> Result<()> {
    for round in 0..bench.rounds() {
        // A new one each time: what a process has had once, it keeps.
        let options = [("--workers", "1".to_owned()), ("--cache-bytes", CACHE_BYTES.to_string())];
        let server = Served::heimdall(bench, &format!("heimdall-dns-{round}"), &options).await?;
        let shape = Shape {
            count: bench.options.unique,
            rate: f64::from(bench.options.rate),
            new: 1.0,
            seed: bench.options.seed,
            first_new: 0,
        };
        let seen = server.ask(Mix::new(&bench.workload, round, shape), Loss::Counted).await?;
        let pid = server.pid;
        let most = accounting::peak(pid)?;
        let grown = most.saturating_sub(server.candidate.resident_at_first);
        let wall = seen.wall.as_secs_f64();
        figures.round(
            "flood",
            round,
            &[
                ("names", Target::None, seen.sent() as f64),
                ("verified answers", Target::None, seen.answered() as f64),
                ("refused", Target::None, seen.misses.refused as f64),
                ("lost", Target::None, seen.misses.lost() as f64),
                ("offered per second", Target::None, seen.sent() as f64 / wall),
                ("load's share of a CPU", Target::None, seen.cpu.as_secs_f64() / wall),
                ("bytes of the cache's limit", Target::None, CACHE_BYTES as f64),
                ("bytes resident at first", Target::None, server.candidate.resident_at_first as f64),
                ("bytes resident at most", Target::None, most as f64),
                ("bytes resident in the end", Target::None, accounting::resident(pid)? as f64),
                ("MiB grown", Target::AtMost((CACHE_BYTES + MEMORY_BEYOND) as f64 / MIB), grown as f64 / MIB),
            ],
        );
        ensure!(
            grown <= CACHE_BYTES + MEMORY_BEYOND,
            "heimdall-dns grew by {grown} bytes; its cache may have {CACHE_BYTES} and misses under way {MEMORY_BEYOND}"
        );
    }
    Ok(())
}
