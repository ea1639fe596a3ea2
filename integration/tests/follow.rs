//! `StreamCacheUpdates` of a real agent: what happens to its entries, seen from outside.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use heimdall_integration::cluster::Cluster;
use heimdall_integration::unary::{address, entry, key};
use heimdall_integration::upstream::Upstream;
use heimdall_proto::v1::cache_stream_request::Filter;
use heimdall_proto::v1::purge_cache_request::What;
use heimdall_proto::v1::{
    CacheAction, CacheStreamRequest, CacheUpdate, EvictionCause, PurgeCacheRequest, SetCacheEntryRequest,
};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::{Code, Streaming};

/// An update that has not come by then will not.
const PATIENCE: Duration = Duration::from_secs(40);

async fn start(store: &str) -> (Upstream, Cluster) {
    let upstream = Upstream::start().await.unwrap();
    let builder = Cluster::builder().replicas(1).long_budgets().agent_option("--store-bytes", store);
    let cluster = builder.start(&upstream).await.unwrap();
    (upstream, cluster)
}

async fn follow(cluster: &Cluster, snapshot: bool, filter: Option<Filter>) -> Streaming<CacheUpdate> {
    let request = CacheStreamRequest { snapshot, filter };
    cluster.agent(0).await.unwrap().stream_cache_updates(request).await.unwrap().into_inner()
}

async fn next(updates: &mut Streaming<CacheUpdate>) -> CacheUpdate {
    timeout(PATIENCE, updates.message()).await.expect("an update must come").unwrap().expect("the stream goes on")
}

fn name_of(update: &CacheUpdate) -> &str {
    update.key.as_ref().map_or("", |key| &key.name)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_gets_what_there_is_and_then_what_happens_to_the_names_that_it_asked_for() {
    let (_upstream, cluster) = start("128MiB").await;
    let client = cluster.client(0);
    for name in ["one.below.example.", "two.below.example.", "elsewhere.example."] {
        client.ask_address(name).await.unwrap();
        cluster.replicated(0, name, 1).await.unwrap();
    }
    let mut updates = follow(&cluster, true, Some(Filter::Suffix("below.example".to_owned()))).await;
    let mut found = Vec::new();
    let last = loop {
        let update = next(&mut updates).await;
        if update.action() == CacheAction::SnapshotEnd {
            break update.sequence;
        }
        assert!(update.in_snapshot && update.action() == CacheAction::Insert, "{update:?}");
        assert!(update.entry.as_ref().is_some_and(|entry| entry.lifetime_ms > 0), "{update:?}");
        found.push(name_of(&update).to_owned());
    };
    found.sort();
    assert_eq!(found, ["one.below.example.", "two.below.example."]);

    for name in ["other.example.", "three.below.example."] {
        client.ask_address(name).await.unwrap();
    }
    let inserted = next(&mut updates).await;
    assert_eq!((inserted.action(), name_of(&inserted)), (CacheAction::Insert, "three.below.example."));
    assert!(inserted.sequence > last && !inserted.in_snapshot, "{inserted:?} after {last}");
    let mut agent = cluster.agent(0).await.unwrap();
    for what in [What::Name("other.example.".to_owned()), What::Suffix("example.".to_owned())] {
        let request = PurgeCacheRequest { what: Some(what), ..PurgeCacheRequest::default() };
        agent.purge_cache(request).await.unwrap();
    }
    let purged = next(&mut updates).await;
    assert_eq!((purged.action(), purged.purged.as_str()), (CacheAction::Purge, "*.example."), "{purged:?}");
    assert!(purged.sequence > inserted.sequence, "{purged:?}");

    let wrong = CacheStreamRequest { snapshot: false, filter: Some(Filter::Name("a..b".to_owned())) };
    let refused = agent.stream_cache_updates(wrong).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    drop(updates);
    cluster.shut_down().await.unwrap();
}

/// Records of an answer of a kilobyte: large, as connections have room for 2 MiB that nobody reads.
const RECORDS: usize = 60;

/// More entries than a reader may be behind, and than the store has room for.
const MANY: usize = 6_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_lags_is_told_so_and_goes_on() {
    let (_upstream, cluster) = start("1MiB").await;
    let mut updates = follow(&cluster, false, None).await;
    let agent = cluster.agent(0).await.unwrap();
    let mut writers = JoinSet::new();
    for writer in 0..16 {
        let mut agent = agent.clone();
        writers.spawn(async move {
            for number in (writer..MANY).step_by(16) {
                let name = format!("many-{number}.example.");
                let entry = entry(&name, &vec![address(&name); RECORDS]);
                let request = SetCacheEntryRequest { key: key(&name), entry, token: None, level: 0 };
                agent.set_cache_entry(request).await.unwrap();
            }
        });
    }
    writers.join_all().await;
    // Only now does it begin to read.
    let (mut sequence, mut evicted, mut missed, mut resync) = (0, 0, 0, 0);
    while missed == 0 {
        let update = next(&mut updates).await;
        missed = update.missed;
        assert_eq!(missed > 0, update.action() == CacheAction::Resync, "{update:?}");
        if missed == 0 {
            assert_eq!(update.sequence, sequence + 1, "{update:?}");
            sequence = update.sequence;
        } else {
            resync = update.sequence;
        }
    }
    assert_eq!(resync, sequence + missed);
    // What it has missed is missing, and what comes after it is there.
    let first = next(&mut updates).await;
    assert_eq!(first.sequence, resync + 1);
    while evicted == 0 {
        let update = next(&mut updates).await;
        evicted += usize::from(update.action() == CacheAction::Evict && update.cause() == EvictionCause::Size);
    }
    cluster.shut_down().await.unwrap();
}
