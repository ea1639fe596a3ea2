//! A storm of purges while clients ask: nobody loses an answer, and what is remembered of purges is bounded, and so is memory.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use heimdall_integration::cluster::{Cluster, LOOK_AGAIN, Part};
use heimdall_integration::upstream::Upstream;
use heimdall_proto::v1::PurgeCacheRequest;
use heimdall_proto::v1::purge_cache_request::What;
use heimdall_shared::clock::Moment;
use heimdall_shared::purge::RECORDS_MAX;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

const REPLICAS: usize = 3;

/// More than a replica remembers.
const PURGES: usize = RECORDS_MAX + RECORDS_MAX / 8;

/// Purges in a second, at all replicas together: as many as they take when that is less.
const PER_SECOND: u32 = 1_000;

/// Calls under way at a time. Each ends when all replicas have done what it asks.
const CALLERS: usize = 128;

/// Names that are asked for and purged, and clients of each replica.
const NAMES: usize = 200;
const CLIENTS: usize = 3;

/// What a log may hold beyond its bound until everything is purged in its place: what arrives between two looks of that task.
const BETWEEN_LOOKS: usize = 2_048;

/// What the processes may grow by, bytes: full logs of both, with what finds their purges, and what allocators keep.
const GROWTH_MAX: u64 = 64 << 20;

fn name(number: usize) -> String {
    format!("stormy-{}.example.", number % NAMES)
}

/// Resident bytes of a replica's two processes.
fn resident(cluster: &Cluster, replica: usize) -> u64 {
    let of = |part| {
        let pid = cluster.replica(replica).process(part).unwrap().pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix("kB").unwrap().trim().parse::<u64>().unwrap() * 1_024
    };
    of(Part::Agent) + of(Part::Dns)
}

async fn remembered(cluster: &Cluster, replica: usize) -> usize {
    cluster.metrics(replica, Part::Agent).await.unwrap().sum("heimdall_agent_purges_remembered", &[]) as usize
}

async fn applied(cluster: &Cluster, replica: usize) -> usize {
    cluster.metrics(replica, Part::Agent).await.unwrap().sum("heimdall_agent_purges_total", &[]) as usize
}

/// Purges names at all replicas in turn, at the given pace or as fast as they do it.
async fn storm(cluster: Arc<Cluster>) {
    let next = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let mut agent = cluster.agent(caller % REPLICAS).await.unwrap();
        let next = Arc::clone(&next);
        let mut pace = interval(Duration::from_secs(1) * CALLERS as u32 / PER_SECOND);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        callers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= PURGES {
                    return;
                }
                pace.tick().await;
                let what = Some(What::Name(name(number)));
                agent.purge_cache(PurgeCacheRequest { what, ..PurgeCacheRequest::default() }).await.unwrap();
            }
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn purges_by_the_thousand_lose_no_answer_and_take_bounded_room() {
    let upstream = Upstream::start().await.unwrap();
    upstream.journal().count_only();
    let cluster = Arc::new(Cluster::builder().replicas(REPLICAS).long_budgets().start(&upstream).await.unwrap());
    for replica in 0..REPLICAS {
        for number in 0..NAMES {
            cluster.client(replica).ask_address(&name(number)).await.unwrap();
        }
    }
    let before: Vec<u64> = (0..REPLICAS).map(|replica| resident(&cluster, replica)).collect();
    let over = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for client in 0..REPLICAS * CLIENTS {
        let (server, over) = (cluster.client(client % REPLICAS), Arc::clone(&over));
        clients.spawn(async move {
            let mut asked = 0;
            while !over.load(Ordering::Relaxed) {
                // The right answer, or the test fails.
                server.ask_address(&name(client * 7 + asked)).await.unwrap();
                asked += 1;
            }
            asked
        });
    }
    let watching = tokio::spawn({
        let (cluster, over) = (Arc::clone(&cluster), Arc::clone(&over));
        async move {
            let mut most = 0;
            while !over.load(Ordering::Relaxed) {
                for replica in 0..REPLICAS {
                    most = most.max(remembered(&cluster, replica).await);
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            most
        }
    });
    let begun = Moment::now();
    storm(Arc::clone(&cluster)).await;
    let took = Moment::now().since(begun);
    over.store(true, Ordering::Relaxed);
    let asked: usize = clients.join_all().await.into_iter().sum();
    let most = watching.await.unwrap();
    println!("{PURGES} purges in {took:?}, {asked} questions meanwhile, 0 lost, at most {most} purges remembered");
    assert!(asked > 0 && most > 0);
    assert!(most <= RECORDS_MAX + BETWEEN_LOOKS, "{most} purges were remembered");
    // One more than fits, and everything was purged in their place. All have applied all of it.
    cluster
        .until("all have applied the same purges", async || {
            let first = applied(&cluster, 0).await;
            first > PURGES && applied(&cluster, 1).await == first && applied(&cluster, 2).await == first
        })
        .await
        .unwrap();
    for (replica, before) in before.into_iter().enumerate() {
        let kept = remembered(&cluster, replica).await;
        let grown = resident(&cluster, replica).saturating_sub(before);
        println!("replica {replica}: {kept} purges remembered, {} KiB more in memory", grown / 1_024);
        assert!(kept < PURGES - RECORDS_MAX + BETWEEN_LOOKS, "replica {replica} remembers {kept}");
        assert!(grown < GROWTH_MAX, "replica {replica} has grown by {grown} bytes");
        for number in 0..NAMES {
            cluster.client(replica).ask_address(&name(number)).await.unwrap();
        }
    }
    Arc::into_inner(cluster).unwrap().shut_down().await.unwrap();
}
