//! The unary RPCs: the same leases, results and entries as on the data path, for programs and people.

#![allow(clippy::unwrap_used)]

use heimdall_integration::cluster::{Cluster, Part};
use heimdall_integration::unary::{address, entry, key};
use heimdall_integration::upstream::Upstream;
use heimdall_proto::v1::lock_answer::Kind;
use heimdall_proto::v1::{
    AcquireQueryLockRequest, CacheEntry, GetCacheEntryRequest, LeaseToken, ReleaseQueryLockRequest,
    SetCacheEntryRequest, WaitForResultRequest,
};

async fn start() -> (Upstream, Cluster) {
    let upstream = Upstream::start().await.unwrap();
    let cluster = Cluster::builder().replicas(3).long_budgets().start(&upstream).await.unwrap();
    (upstream, cluster)
}

async fn acquire(cluster: &Cluster, asked: usize, name: &str) -> Kind {
    let request = AcquireQueryLockRequest { key: key(name) };
    let answer = cluster.agent(asked).await.unwrap().acquire_query_lock(request).await.unwrap().into_inner();
    answer.answer.and_then(|answer| answer.kind).unwrap()
}

async fn granted(cluster: &Cluster, asked: usize, name: &str) -> LeaseToken {
    match acquire(cluster, asked, name).await {
        Kind::Granted(granted) => granted.token.unwrap(),
        other => panic!("{name} at {asked}: {other:?} in place of a lease"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_gets_the_lease_another_waits_and_both_have_the_published_answer() {
    let (upstream, cluster) = start().await;
    let name = cluster.name_owned_by(1, "unary");
    let mut holder = cluster.agent(0).await.unwrap();
    let request = AcquireQueryLockRequest { key: key(&name) };
    let answer = holder.acquire_query_lock(request).await.unwrap().into_inner();
    let Some(Kind::Granted(lease)) = answer.answer.and_then(|answer| answer.kind) else { panic!("no lease") };
    let Kind::Held(held) = acquire(&cluster, 2, &name).await else { panic!("a second lease for {name}") };
    let mut waiter = cluster.agent(2).await.unwrap();
    let request = WaitForResultRequest { key: key(&name), token: held.token };
    let waiting = tokio::spawn(async move { waiter.wait_for_result(request).await });
    // The result comes to those who already wait, and not only to those who come later.
    cluster
        .until("the other one to wait", async || {
            let metrics = cluster.metrics(1, Part::Agent).await.unwrap_or_default();
            metrics.sum("heimdall_agent_granter_holds", &["\"waiters\""]) > 0.0
        })
        .await
        .unwrap();
    assert!(!waiting.is_finished(), "there is no result yet");
    let request =
        SetCacheEntryRequest { key: key(&name), entry: entry(&name, &[address(&name)]), token: lease.token, level: 0 };
    let stored = holder.set_cache_entry(request).await.unwrap().into_inner();
    assert!(stored.stored, "{stored:?}");
    let result = waiting.await.unwrap().unwrap().into_inner().answer.and_then(|answer| answer.kind);
    assert!(matches!(result, Some(Kind::Entry(_))), "{result:?}");
    for asked in 0..3 {
        let request = GetCacheEntryRequest { key: key(&name) };
        let got = cluster.agent(asked).await.unwrap().get_cache_entry(request).await.unwrap().into_inner();
        assert!(got.found, "as {asked} sees it: {got:?}");
    }
    // DNS clients get it too, and nobody asks the upstream.
    for asked in 0..3 {
        cluster.client(asked).ask_address(&name).await.unwrap();
    }
    assert_eq!(upstream.journal().total().packets, 0);
    cluster.shut_down().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_released_lease_is_granted_again() {
    let (upstream, cluster) = start().await;
    // Owned by the agent that is called, so that the answer is the granter's own word.
    let name = cluster.name_owned_by(0, "released");
    let mut holder = cluster.agent(0).await.unwrap();
    let request = AcquireQueryLockRequest { key: key(&name) };
    let answer = holder.acquire_query_lock(request).await.unwrap().into_inner();
    let Some(Kind::Granted(lease)) = answer.answer.and_then(|answer| answer.kind) else { panic!("no lease") };
    assert!(matches!(acquire(&cluster, 2, &name).await, Kind::Held(_)));
    let released =
        holder.release_query_lock(ReleaseQueryLockRequest { token: lease.token.clone() }).await.unwrap().into_inner();
    assert!(released.released);
    let again = holder.release_query_lock(ReleaseQueryLockRequest { token: lease.token }).await.unwrap().into_inner();
    assert!(!again.released, "a lease ends once");
    granted(&cluster, 2, &name).await;
    assert_eq!(upstream.journal().total().packets, 0);
    cluster.shut_down().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_answer_to_its_key_is_not_stored() {
    let (_upstream, cluster) = start().await;
    let name = cluster.name_owned_by(1, "refused");
    let mut agent = cluster.agent(0).await.unwrap();
    let other = entry("other.example.", &[address("other.example.")]);
    let cut = entry(&name, &[address(&name)])
        .map(|entry| CacheEntry { packet: entry.packet.slice(..entry.packet.len() - 1), ..entry });
    for wrong in [other, cut] {
        let request = SetCacheEntryRequest { key: key(&name), entry: wrong, token: None, level: 0 };
        // Refused in words or with a status: either way nothing is there afterwards.
        if let Ok(answer) = agent.set_cache_entry(request).await {
            assert!(!answer.into_inner().stored);
        }
        let got = agent.get_cache_entry(GetCacheEntryRequest { key: key(&name) }).await.unwrap().into_inner();
        assert!(!got.found, "{got:?}");
    }
    cluster.shut_down().await.unwrap();
}
