//! The cores of the mesh under deterministic simulation: ring, membership, leases, copies, ages, purges.
//!
//! A seed decides everything: how many replicas, how their clocks run, what clients ask, and what goes wrong: messages lost,
//! late, twice and out of order, links that break, partitions in one and in both directions, processes that stop or die,
//! uplinks that are dead, a member that only some know of. The code under test is the code of the servers; what is written
//! here is the world around it: sockets, clocks, upstreams, and the shells that carry what the cores decide.
//!
//! ```sh
//! cargo test -p heimdall-integration --test simulation                              # a thousand seeds
//! HEIMDALL_SIM_SEEDS=10000 cargo test --release -p heimdall-integration --test simulation
//! HEIMDALL_SIM_SEED=4711 cargo test -p heimdall-integration --test simulation -- --nocapture
//! ```
//!
//! The last one repeats a failing seed and prints what happened.

#![allow(clippy::unwrap_used)]

mod agent;
mod checks;
mod clock;
mod dns;
mod plan;
mod wire;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use plan::{Kind, Plan};
use world::World;

/// Seeds of each kind per run of the tests, unless `HEIMDALL_SIM_SEEDS` says otherwise.
const SEEDS: u64 = 1_000;

/// Threads that work through the seeds: what the smallest machine that runs the tests has.
const THREADS: usize = 2;

#[allow(clippy::disallowed_methods, reason = "a test's own switch, not an option of a server")]
fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

fn run(kind: Kind, share: u64) {
    if let Some(seed) = number("HEIMDALL_SIM_SEED") {
        let plan = Plan::drawn(kind, seed);
        println!("{plan:#?}");
        let summary = World::new(plan, true).run();
        println!("{kind:?} seed {seed}: {summary}");
        return;
    }
    let seeds = (number("HEIMDALL_SIM_SEEDS").unwrap_or(SEEDS) / share).max(1);
    let next = AtomicU64::new(0);
    let (fetches, answers, purged) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        break;
                    }
                    let ran = catch_unwind(AssertUnwindSafe(|| World::new(Plan::drawn(kind, seed), false).run()));
                    let Ok(summary) = ran else {
                        next.store(seeds, Ordering::Relaxed);
                        panic!(
                            "{kind:?} seed {seed} fails; repeat it with HEIMDALL_SIM_SEED={seed} cargo test \
                             -p heimdall-integration --test simulation {} -- --nocapture",
                            kind.test()
                        );
                    };
                    fetches.fetch_add(summary.fetches, Ordering::Relaxed);
                    answers.fetch_add(summary.answers, Ordering::Relaxed);
                    purged.fetch_add(summary.purged, Ordering::Relaxed);
                }
            });
        }
    });
    println!("{kind:?}: {seeds} seeds, {fetches:?} upstream queries, {answers:?} answers, {purged:?} purges done");
    assert!(answers.into_inner() > seeds, "clients must have asked");
    assert!(purged.into_inner() > seeds, "replicas must have been done with purges");
}

#[test]
fn while_nothing_fails_each_lifetime_of_a_key_costs_one_upstream_query() {
    run(Kind::Calm, 3);
}

#[test]
fn whatever_fails_clients_are_answered_and_no_entry_outlives_its_origin_or_its_purge() {
    run(Kind::Faulty, 1);
}

#[test]
fn a_large_cluster_keeps_the_same_promises() {
    run(Kind::Large, 100);
}
