//! The end of a process: what was asked is answered, and nobody is kept waiting who insists.

#![allow(clippy::unwrap_used)]

use heimdall_integration::cluster::{Cluster, Part};
use heimdall_integration::crowd::Crowd;
use heimdall_integration::http;
use heimdall_integration::process::Signal;
use heimdall_integration::replica::AgentSocket;
use heimdall_integration::upstream::{Gate, Rule, Upstream};

const SLOW: &str = "slow.example.";

/// A drain that a test cannot outwait: what ends sooner did not end by it.
const ENDLESS_DRAIN: &str = "60s";

/// Waits until a process has begun to drain: it is not ready any more.
async fn drains(cluster: &Cluster, index: usize, part: Part) {
    let address = cluster.replica(index).http(part);
    cluster
        .until("the drain to begin", async || !matches!(http::get(address, "/readyz").await, Ok((200, _))))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_told_to_end_answers_what_it_was_asked_and_exits_with_0() {
    let upstream = Upstream::start().await.unwrap();
    let mut cluster = Cluster::builder().replicas(3).start(&upstream).await.unwrap();
    let gate = Gate::default();
    upstream.rule(SLOW, "A", Rule::addresses().held_by(&gate));
    let asked = Crowd::ask(&cluster, &[0], 10, SLOW);
    upstream.journal().wait_for(SLOW, "A", 1).await;
    for part in [Part::Dns, Part::Agent] {
        cluster.signal(0, part, Signal::SIGTERM);
    }
    drains(&cluster, 0, Part::Dns).await;
    gate.open();
    let last = asked.all_answered().await;
    println!("the last of its clients was answered after {last:?}");
    for part in [Part::Dns, Part::Agent] {
        let status = cluster.replica_mut(0).process_mut(part).unwrap().ended().await.unwrap();
        assert!(status.success(), "{part:?} ended with {status}");
    }
    // The others go on, with what it had fetched and without it.
    Crowd::ask(&cluster, &[1, 2], 10, SLOW).all_answered().await;
    Crowd::ask(&cluster, &[1, 2], 10, "after.example.").all_answered().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_a_dns_server_at_once() {
    let upstream = Upstream::start().await.unwrap();
    let builder = Cluster::builder().replicas(1).standalone(AgentSocket::Off).dns_option("--drain", ENDLESS_DRAIN);
    // A query that outlives the test: as long as it may, the drain waits for it.
    let builder = builder.dns_option("--query-budget", "50s");
    let mut cluster = builder.start(&upstream).await.unwrap();
    upstream.rule(SLOW, "A", Rule::silence());
    let asked = Crowd::ask(&cluster, &[0], 1, SLOW);
    upstream.journal().wait_for(SLOW, "A", 1).await;
    cluster.signal(0, Part::Dns, Signal::SIGTERM);
    drains(&cluster, 0, Part::Dns).await;
    let process = cluster.replica_mut(0).process_mut(Part::Dns).unwrap();
    assert!(process.has_ended().is_none(), "the drain must wait for the query");
    process.signal(Signal::SIGTERM);
    let status = process.ended().await.unwrap();
    assert!(!status.success(), "an aborted drain must not look like a finished one: {status}");
    asked.leave();
}
