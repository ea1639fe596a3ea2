//! A member that is degraded says so, and why, and goes on: its keys stay with it, and nobody loses an answer.

#![allow(clippy::unwrap_used)]

use futures_util::{StreamExt as _, stream};
use heimdall_integration::cluster::{Cluster, Part};
use heimdall_integration::upstream::Upstream;
use heimdall_proto::v1::{DegradedReason, ListMembersRequest, ListMembersResponse, Member, MemberState};

/// The replica that is degraded, and the others.
const DEGRADED: usize = 0;
const OTHERS: [usize; 2] = [1, 2];

/// The smallest store that there is, and more names than it has room for: each takes more than 384 bytes.
const STORE: &str = "1MiB";
const MANY: usize = 4_000;

/// Questions under way at a time.
const AT_ONCE: usize = 32;

/// Names that only the degraded replica owns.
const OWNED: usize = 40;

async fn members(cluster: &Cluster, asked: usize) -> ListMembersResponse {
    cluster.agent(asked).await.unwrap().list_members(ListMembersRequest {}).await.unwrap().into_inner()
}

async fn seen(cluster: &Cluster, asked: usize) -> Member {
    let name = &cluster.replica(DEGRADED).layout.name;
    members(cluster, asked).await.members.into_iter().find(|member| member.name == *name).unwrap()
}

/// Waits until all replicas, that one included, say that it is degraded, for this reason. A machine that has no time for it may
/// be another one.
async fn all_say(cluster: &Cluster, reason: DegradedReason, in_words: &str) {
    for asked in OTHERS.into_iter().chain([DEGRADED]) {
        cluster
            .until("it is shown as degraded", async || {
                let member = seen(cluster, asked).await;
                member.state() == MemberState::Degraded && member.degraded.contains(&reason.into())
            })
            .await
            .unwrap();
        let member = seen(cluster, asked).await;
        let says = member.reason.starts_with("degraded: ") && member.reason.contains(in_words);
        assert!(says, "as {asked} says it: {member:?}");
    }
    let metrics = cluster.metrics(DEGRADED, Part::Agent).await.unwrap();
    assert_eq!(metrics.sum("heimdall_agent_node_state", &["state=\"degraded\""]), 1.0);
}

/// Names that the replica owns are asked for everywhere: it is asked about them, grants their leases, and all are answered.
async fn it_keeps_its_keys(cluster: &Cluster, upstream: &Upstream, label: &str) {
    let counted = async |metric, labels: &[&str]| {
        cluster.metrics(DEGRADED, Part::Agent).await.unwrap().sum(metric, labels) as usize
    };
    let granted = counted("heimdall_agent_leases_total", &["event=\"granted\""]).await;
    let asked = counted("heimdall_agent_peer_lookups_total", &[]).await;
    for number in 0..OWNED {
        let name = cluster.name_owned_by(DEGRADED, &format!("{label}-{number}"));
        for replica in [1, 2, 0] {
            cluster.client(replica).ask_address(&name).await.unwrap();
        }
        let located = cluster.locate(1, &name).await.unwrap();
        assert_eq!(located.order[0], cluster.replica(DEGRADED).layout.name, "{name}");
        assert_eq!(upstream.journal().count(&name, "A").resolutions, 1, "{name}");
    }
    assert!(counted("heimdall_agent_peer_lookups_total", &[]).await >= asked + OWNED);
    assert_eq!(counted("heimdall_agent_leases_total", &["event=\"granted\""]).await, granted + OWNED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_store_is_full_says_so_and_keeps_its_keys() {
    let upstream = Upstream::start().await.unwrap();
    let mut cluster = Cluster::builder().replicas(3).long_budgets().start(&upstream).await.unwrap();
    let digest = members(&cluster, 1).await.view_digest;
    cluster.kill(DEGRADED, Part::Agent).await.unwrap();
    let options = &mut cluster.replica_mut(DEGRADED).settings.agent_options;
    options.push(("--store-bytes".to_owned(), STORE.to_owned()));
    cluster.start(DEGRADED, Part::Agent).unwrap();
    cluster.ready(DEGRADED, Part::Agent).await.unwrap();
    cluster.whole().await.unwrap();
    cluster.linked(DEGRADED).await.unwrap();
    assert!(!seen(&cluster, 1).await.degraded.contains(&DegradedReason::StoreFull.into()));
    it_keeps_its_keys(&cluster, &upstream, "before").await;

    let asking = stream::iter(0..MANY).map(async |number: usize| {
        let name = format!("many-{number}.example.");
        cluster.client(number % 3).ask_address(&name).await.unwrap();
    });
    asking.buffer_unordered(AT_ONCE).collect::<()>().await;
    all_say(&cluster, DegradedReason::StoreFull, "store_full").await;
    it_keeps_its_keys(&cluster, &upstream, "degraded").await;
    for asked in 0..3 {
        assert_eq!(members(&cluster, asked).await.view_digest, digest, "no key changes its owner");
    }
    // What it has no room for any more the others still have: nothing is asked for again.
    for number in 0..MANY {
        cluster.client(number % 2 + 1).ask_address(&format!("many-{number}.example.")).await.unwrap();
    }
    let resolutions = upstream.journal().total().resolutions;
    assert_eq!(resolutions, MANY + 2 * OWNED, "{:?}", upstream.journal().repeated());
    cluster.shut_down().await.unwrap();
}
