//! Many misses at once: each is answered, once, and no link breaks.

#![allow(clippy::unwrap_used)]

use heimdall_integration::cluster::{Cluster, Part};
use heimdall_integration::upstream::{Gate, Rule, Upstream};

/// Names per replica, and those that are sent without waiting: a socket's buffer holds them, however slow the machine is.
const NAMES: usize = 600;
const AT_ONCE: usize = 50;

/// Every replica is asked for names of its own, and the upstream answers none before all have arrived there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_misses_under_way_are_all_answered_and_break_no_link() {
    let upstream = Upstream::start().await.unwrap();
    let gate = Gate::default();
    upstream.otherwise(Rule::addresses().held_by(&gate));
    let cluster = Cluster::builder().replicas(3).long_budgets().start(&upstream).await.unwrap();
    let sessions = cluster.total(Part::Dns, "heimdall_agent_sessions_total", &[]).await;
    let mut asked = Vec::new();
    while asked.len() < 3 * NAMES {
        for _ in 0..3 * AT_ONCE {
            let (number, client) = (asked.len(), cluster.client(asked.len() % 3));
            asked.push(tokio::spawn(async move { client.ask_address(&format!("burst-{number}.example.")).await }));
        }
        let sent = asked.len();
        upstream.journal().wait_until("all names", |journal| journal.total().resolutions >= sent).await;
    }
    gate.open();
    for asked in asked {
        asked.await.unwrap().unwrap();
    }
    assert_eq!(upstream.journal().total().resolutions, 3 * NAMES);
    assert_eq!(cluster.total(Part::Dns, "heimdall_agent_sessions_total", &[]).await, sessions);
    for replica in cluster.replicas() {
        assert!(!replica.process(Part::Agent).unwrap().output().contains("peer disconnected"));
    }
    cluster.shut_down().await.unwrap();
}
