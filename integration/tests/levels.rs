//! Copies that serve: write levels, an owner that came up empty.

#![allow(clippy::unwrap_used)]

use futures_util::future::join_all;
use heimdall_integration::cluster::{Cluster, Part};
use heimdall_integration::process::Signal;
use heimdall_integration::unary::{address, entry, key};
use heimdall_integration::upstream::Upstream;
use heimdall_proto::v1::lock_answer::Kind;
use heimdall_proto::v1::{
    AcquireQueryLockRequest, LeaseToken, SetCacheEntryRequest, SetCacheEntryResponse, WriteLevel,
};
use tonic::{Code, Status};

/// Longer than any machine takes for a copy and its receipt.
const PATIENT: (&str, &str) = ("--write-timeout", "30s");

async fn start(replicas: usize, copies: usize) -> (Upstream, Cluster) {
    let upstream = Upstream::start().await.unwrap();
    let builder = Cluster::builder().replicas(replicas).replication_factor(copies).long_budgets();
    let cluster = builder.agent_option(PATIENT.0, PATIENT.1).start(&upstream).await.unwrap();
    (upstream, cluster)
}

async fn publish(
    cluster: &Cluster,
    asked: usize,
    name: &str,
    level: WriteLevel,
    token: Option<LeaseToken>,
) -> Result<SetCacheEntryResponse, Status> {
    let request =
        SetCacheEntryRequest { key: key(name), entry: entry(name, &[address(name)]), token, level: level.into() };
    cluster.agent(asked).await.unwrap().set_cache_entry(request).await.map(tonic::Response::into_inner)
}

/// Copies made and needed, as the error of a level that was not reached tells them.
fn not_reached(status: &Status) -> (u64, u64) {
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    let trailer = |name| status.metadata().get(name).unwrap().to_str().unwrap().parse().unwrap();
    (trailer("heimdall-copies"), trailer("heimdall-needed"))
}

async fn found(cluster: &Cluster, asked: usize, name: &str) -> usize {
    let located = cluster.locate(asked, name).await.unwrap();
    located.holdings.iter().filter(|holding| holding.found).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_level_is_of_the_configured_copies_wherever_the_publish_comes_from() {
    let (_upstream, mut cluster) = start(5, 3).await;
    let order = [1, 3, 0, 4, 2];
    // From the owner itself, from a member of the set, from one outside it.
    for asked in [1, 3, 4] {
        for (level, needed) in [(WriteLevel::Eventual, 1), (WriteLevel::Quorum, 2), (WriteLevel::Strong, 3)] {
            let name = cluster.name_ordered(&order, &format!("level-{asked}-{}", level as i32));
            let answer = publish(&cluster, asked, &name, level, None).await.unwrap();
            assert!(answer.stored && answer.needed == needed && answer.copies >= needed, "{name}: {answer:?}");
            if level == WriteLevel::Strong {
                // Not a moment later: they are there when the publisher hears.
                assert_eq!(found(&cluster, 2, &name).await, 3, "{name}");
            }
        }
    }
    // One of three gone: a quorum is left, and all three are not. It never counts only those that answer.
    cluster.kill(0, Part::Agent).await.unwrap();
    cluster.sees(1, 0, false).await.unwrap();
    let [quorum, strong] = ["one-gone-q", "one-gone-s"].map(|label| cluster.name_ordered(&order, label));
    let answer = publish(&cluster, 4, &quorum, WriteLevel::Quorum, None).await.unwrap();
    assert_eq!((answer.stored, answer.copies, answer.needed), (true, 2, 2));
    let refused = publish(&cluster, 4, &strong, WriteLevel::Strong, None).await.unwrap_err();
    assert_eq!(not_reached(&refused), (2, 3));
    assert_eq!(found(&cluster, 2, &strong).await, 2, "the copies stay");
    // The owner gone too: the next one acts for it, and promises no more than it can keep.
    cluster.kill(1, Part::Agent).await.unwrap();
    for other in [3, 4] {
        cluster.sees(other, 1, false).await.unwrap();
    }
    for level in [WriteLevel::Quorum, WriteLevel::Strong] {
        let name = cluster.name_ordered(&order, &format!("two-gone-{}", level as i32));
        let refused = publish(&cluster, 4, &name, level, None).await.unwrap_err();
        assert_eq!(not_reached(&refused).0, 1, "{refused}");
        assert_eq!(found(&cluster, 2, &name).await, 1, "the copy stays");
    }
    let metrics = cluster.metrics(3, Part::Agent).await.unwrap();
    let counted = metrics.sum("heimdall_agent_level_writes_total", &["outcome=\"not_reached\""]);
    assert!(counted > 1.5, "the granter counts what was not reached: {counted}");
    cluster.shut_down().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_for_the_answer_never_waits_for_its_copies() {
    let (_upstream, cluster) = start(3, 3).await;
    let name = cluster.name_owned_by(1, "waiters");
    let mut holder = cluster.agent(0).await.unwrap();
    let asked = holder.acquire_query_lock(AcquireQueryLockRequest { key: key(&name) }).await.unwrap().into_inner();
    let Some(Kind::Granted(lease)) = asked.answer.and_then(|answer| answer.kind) else { panic!("no lease") };
    let client = cluster.client(1);
    let waiting = tokio::spawn({
        let name = name.clone();
        async move { client.ask_address(&name).await }
    });
    cluster
        .until("the client to wait", async || {
            let metrics = cluster.metrics(1, Part::Agent).await.unwrap_or_default();
            metrics.sum("heimdall_agent_granter_holds", &["\"waiters\""]) > 0.0
        })
        .await
        .unwrap();
    // A third copy is out of reach as long as this agent is stopped.
    cluster.signal(2, Part::Agent, Signal::SIGSTOP);
    let cluster = std::sync::Arc::new(cluster);
    let publishing = tokio::spawn({
        let (cluster, name) = (std::sync::Arc::clone(&cluster), name.clone());
        async move { publish(&cluster, 0, &name, WriteLevel::Strong, lease.token).await }
    });
    waiting.await.unwrap().unwrap();
    cluster.signal(2, Part::Agent, Signal::SIGCONT);
    match publishing.await.unwrap() {
        Ok(answer) => assert_eq!((answer.copies, answer.needed), (3, 3)),
        // On a machine that took seconds for all this the stopped one was skipped by then.
        Err(refused) => assert_eq!(not_reached(&refused), (2, 3)),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn too_few_members_for_the_default_level_are_an_error_for_publishers_and_nothing_for_clients() {
    let upstream = Upstream::start().await.unwrap();
    let builder = Cluster::builder().replicas(2).replication_factor(3).long_budgets();
    let builder = builder.agent_option("--write-consistency", "strong").agent_option(PATIENT.0, PATIENT.1);
    let cluster = builder.start(&upstream).await.unwrap();
    for replica in cluster.replicas() {
        let log = std::fs::read_to_string(&replica.layout.agent_log).unwrap();
        assert!(log.contains("no write can reach the configured level"), "{log}");
    }
    let name = cluster.name_owned_by(0, "too-few");
    let refused = publish(&cluster, 1, &name, WriteLevel::Unspecified, None).await.unwrap_err();
    assert_eq!(not_reached(&refused), (2, 3));
    let eventual = publish(&cluster, 1, &cluster.name_owned_by(0, "enough"), WriteLevel::Eventual, None).await.unwrap();
    assert!(eventual.stored, "a request's own level goes first: {eventual:?}");
    // What dns-servers publish has the default level: counted, and no client knows.
    let before = cluster.total(Part::Agent, "heimdall_agent_level_writes_total", &["\"not_reached\""]).await;
    let names: Vec<String> = (0..20).map(|number| format!("client-{number}.example.")).collect();
    for answer in join_all(names.iter().map(|name| async { cluster.client(0).ask_address(name).await })).await {
        answer.unwrap();
    }
    cluster
        .until("the writes of the dns-servers to be counted", async || {
            let now = cluster.total(Part::Agent, "heimdall_agent_level_writes_total", &["\"not_reached\""]).await;
            now - before > 19.5
        })
        .await
        .unwrap();
    assert_eq!(upstream.journal().total().resolutions, names.len());
    cluster.shut_down().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_restarted_gets_back_what_its_replicas_still_have() {
    let (upstream, mut cluster) = start(4, 2).await;
    let name = cluster.name_ordered(&[1, 2], "repaired");
    // Asked where no copy stays, so that the replica's own dns-server does not have it.
    cluster.client(3).ask_address(&name).await.unwrap();
    cluster.replicated(0, &name, 2).await.unwrap();
    cluster.kill(1, Part::Agent).await.unwrap();
    cluster.start(1, Part::Agent).unwrap();
    cluster.ready(1, Part::Agent).await.unwrap();
    cluster.whole().await.unwrap();
    cluster.client(2).ask_address(&name).await.unwrap();
    cluster.replicated(0, &name, 2).await.unwrap();
    let repairs = cluster.metrics(2, Part::Agent).await.unwrap().sum("heimdall_agent_owner_repairs_total", &[]);
    assert!((repairs - 1.0).abs() < 0.5, "once: {repairs}");
    // So it serves whoever keeps no copy, and nobody fetches it again.
    cluster.client(0).ask_address(&name).await.unwrap();
    assert_eq!(upstream.journal().total().resolutions, 1, "{:?}", upstream.journal().repeated());
    cluster.shut_down().await.unwrap();
}
