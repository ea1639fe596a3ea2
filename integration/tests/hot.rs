//! A key that everybody asks for all the time: what it costs its owner.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use heimdall_integration::cluster::{Cluster, Part};
use heimdall_integration::upstream::Upstream;
use tokio::task::JoinSet;

const REPLICAS: usize = 5;

/// Pause of each replica's client between an answer and its next question.
const PAUSE: Duration = Duration::from_millis(20);

/// Lifetimes of the key that a run lasts for.
const LIFETIMES: usize = 3;

/// Seconds that an answer lives: enough to be fetched anew before its end, as popular names are. One that is not may cost a second
/// lookup: a copy ends a little before its original, and who asks in between is given what is over a moment later.
const TTL: u32 = 15;

/// Lookups that a machine which stops for 0.3 s, just when the name is to be fetched anew, may add.
const BY_CHANCE: usize = 1;

/// What the agents count: lookups of peers that reached the owner, and lookups that each other replica sent to a peer.
async fn lookups(cluster: &Cluster, owner: usize) -> (usize, Vec<usize>) {
    let mut asked = Vec::new();
    for replica in (0..REPLICAS).filter(|replica| *replica != owner) {
        let metrics = cluster.metrics(replica, Part::Agent).await.unwrap();
        asked.push(metrics.sum("heimdall_agent_routed_total", &["by=\"Peer\""]) as usize);
    }
    let metrics = cluster.metrics(owner, Part::Agent).await.unwrap();
    (metrics.sum("heimdall_agent_peer_lookups_total", &[]) as usize, asked)
}

/// Has the clients of all replicas ask for one name until it has lived so often, with so many copies of it kept.
async fn ask_all_the_time(copies: usize) {
    let upstream = Upstream::start().await.unwrap();
    let builder = Cluster::builder().replicas(REPLICAS).replication_factor(copies).long_budgets();
    let cluster = Arc::new(builder.start(&upstream).await.unwrap());
    let name = (0..).map(|number| format!("hot-{number}.ttl-{TTL}.example.")).find(|name| cluster.order(name)[0] == 0);
    let name = name.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for replica in 0..REPLICAS {
        let (client, name, stop) = (cluster.client(replica), name.clone(), Arc::clone(&stop));
        clients.spawn(async move {
            let mut answers = 0;
            while !stop.load(Ordering::Relaxed) {
                client.ask_address(&name).await.unwrap();
                answers += 1;
                tokio::time::sleep(PAUSE).await;
            }
            answers
        });
    }
    upstream.journal().wait_for(&name, "A", LIFETIMES).await;
    stop.store(true, Ordering::Relaxed);
    let answers: usize = clients.join_all().await.into_iter().sum();
    let lifetimes = upstream.journal().count(&name, "A").resolutions;
    let (at_owner, asked) = lookups(&cluster, 0).await;
    let per_lifetime = at_owner as f64 / (lifetimes * (REPLICAS - 1)) as f64;
    println!(
        "{copies} copies: {answers} answers at {REPLICAS} replicas in {lifetimes} lifetimes; the owner was asked {at_owner} \
         times, by the others {asked:?}: {per_lifetime:.2} per replica and lifetime"
    );
    // Without caches of their own each of them would ask some 600 times per lifetime.
    let once_each = lifetimes * (REPLICAS - 1);
    assert!(at_owner <= once_each + BY_CHANCE, "{at_owner} lookups in {lifetimes} lifetimes, of {asked:?}");
    assert!(at_owner > 0, "nobody asked the owner");
    Arc::into_inner(cluster).unwrap().shut_down().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hot_key_that_nobody_else_keeps_costs_its_owner_one_fetch_per_replica_and_lifetime() {
    ask_all_the_time(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hot_key_with_copies_costs_its_owner_no_more() {
    ask_all_the_time(3).await;
}
