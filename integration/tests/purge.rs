//! Purges and injected answers with real processes: what is forgotten stays forgotten, and costs one upstream query.

#![allow(clippy::unwrap_used)]

use heimdall_integration::cluster::{Cluster, Part};
use heimdall_integration::unary::key;
use heimdall_integration::upstream::{Gate, Rule, Upstream};
use heimdall_integration::wire::{Name, Record};
use heimdall_proto::v1::purge_cache_request::What;
use heimdall_proto::v1::{InjectEntryRequest, PurgeCacheRequest, ReplicaOutcome, ReplicaResult};
use tonic::Code;

/// Longer than any machine needs for a purge.
const PATIENT_MS: u32 = 30_000;

async fn start(replicas: usize) -> (Upstream, Cluster) {
    let upstream = Upstream::start().await.unwrap();
    let cluster = Cluster::builder().replicas(replicas).long_budgets().start(&upstream).await.unwrap();
    (upstream, cluster)
}

async fn purge(cluster: &Cluster, at: usize, what: What, r#type: &str) -> Vec<ReplicaResult> {
    let request = PurgeCacheRequest { what: Some(what), r#type: r#type.to_owned(), wait_ms: PATIENT_MS };
    cluster.agent(at).await.unwrap().purge_cache(request).await.unwrap().into_inner().results
}

fn outcomes(results: &[ReplicaResult]) -> Vec<ReplicaOutcome> {
    results.iter().map(ReplicaResult::outcome).collect()
}

fn all_done(results: &[ReplicaResult], replicas: usize) {
    assert_eq!(outcomes(results), vec![ReplicaOutcome::Done; replicas], "{results:?}");
}

/// A client of every replica asks, and all are told what the upstream says.
async fn ask_everywhere(cluster: &Cluster, replicas: usize, name: &str) {
    for asked in 0..replicas {
        cluster.client(asked).ask_address(name).await.unwrap();
    }
}

/// Queries that the upstream had. With attempts as long as these none is ever repeated.
fn queries(upstream: &Upstream, name: &str) -> usize {
    upstream.journal().count(name, "A").packets
}

async fn told(cluster: &Cluster, asked: usize, name: &str) -> (Vec<u8>, u32) {
    let reply = cluster.client(asked).ask(name, "A").await.unwrap();
    (reply.answers[0].rdata.clone(), reply.answers[0].ttl)
}

/// The promise of the purge: after it reported done, the next query costs one upstream query, and those after it none,
/// whichever replica owns the name, is told to purge, and is asked first.
#[tokio::test(flavor = "multi_thread")]
async fn the_next_query_after_a_purge_that_is_done_costs_exactly_one_upstream_query() {
    let (upstream, cluster) = start(3).await;
    for owner in 0..3 {
        let name = cluster.name_owned_by(owner, "purged");
        ask_everywhere(&cluster, 3, &name).await;
        assert_eq!(queries(&upstream, &name), 1);
        for round in 0..6 {
            let told = (owner + round) % 3;
            all_done(&purge(&cluster, told, What::Name(name.clone()), "").await, 3);
            // At once, and at each replica first in turn: no clock has had time to pass.
            for asked in 0..3 {
                cluster.client((asked + round) % 3).ask_address(&name).await.unwrap();
            }
            assert_eq!(queries(&upstream, &name), 2 + round, "{name}, owned by {owner}, purged at {told}");
        }
    }
    cluster.shut_down().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_covers_what_it_says_and_nothing_else() {
    let (upstream, cluster) = start(3).await;
    let names = ["www.one.example.", "api.one.example.", "one.example.", "www.two.example.", "none.example."];
    let count = |name: &str| queries(&upstream, name);
    let counts = || names.map(count);
    for name in names {
        ask_everywhere(&cluster, 3, name).await;
    }
    assert_eq!(counts(), [1; 5]);
    all_done(&purge(&cluster, 0, What::Suffix("one.example.".to_owned()), "AAAA").await, 3);
    for name in names {
        ask_everywhere(&cluster, 3, name).await;
    }
    assert_eq!(counts(), [1; 5], "another type");
    all_done(&purge(&cluster, 1, What::Suffix("ONE.example".to_owned()), "A").await, 3);
    for name in names {
        ask_everywhere(&cluster, 3, name).await;
    }
    assert_eq!(counts(), [2, 2, 2, 1, 1]);
    all_done(&purge(&cluster, 2, What::Everything(true), "").await, 3);
    for name in names {
        ask_everywhere(&cluster, 3, name).await;
    }
    assert_eq!(counts(), [3, 3, 3, 2, 2]);
    let again = PurgeCacheRequest { what: Some(What::Everything(true)), ..PurgeCacheRequest::default() };
    let refused = cluster.agent(2).await.unwrap().purge_cache(again).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    cluster.shut_down().await.unwrap();
}

/// An answer that is being fetched when its name is purged goes to those who wait for it, and comes back nowhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_a_purge_overtakes_is_kept_nowhere() {
    let (upstream, cluster) = start(3).await;
    for owner in 0..2 {
        let name = cluster.name_owned_by(owner, "overtaken");
        let parsed = Name::parse(&name).unwrap();
        // The old answer is held back until the new one is known everywhere.
        let gate = Gate::default();
        let answer = |last: u8| {
            let parsed = parsed.clone();
            Rule::message(move |received| {
                let reply = received.query.response();
                reply.with_answer(Record::a(&parsed, 300, [192, 0, 2, last].into()))
            })
        };
        upstream.rule(&name, "A", answer(1).held_by(&gate));
        let client = cluster.client(0);
        let waiting = tokio::spawn({
            let name = name.clone();
            async move { client.ask(&name, "A").await }
        });
        upstream.journal().wait_for(&name, "A", 1).await;
        upstream.rule(&name, "A", answer(2));
        all_done(&purge(&cluster, 2, What::Name(name.clone()), "").await, 3);
        for asked in 0..3 {
            assert_eq!(
                told(&cluster, asked, &name).await.0,
                [192, 0, 2, 2],
                "at {asked}, while the old one is under way"
            );
        }
        assert!(!waiting.is_finished(), "the old answer must still be on its way");
        gate.open();
        let old = waiting.await.unwrap().unwrap();
        assert_eq!(old.answers[0].ttl, 0, "nobody may keep it: {old:?}");
        for asked in 0..3 {
            assert_eq!(told(&cluster, asked, &name).await.0, [192, 0, 2, 2], "at {asked}, after the old one came");
        }
        assert_eq!(queries(&upstream, &name), 2);
    }
    cluster.shut_down().await.unwrap();
}

/// A replica whose agent is gone serves its copies on; it forgets them as soon as its agent is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_away_catches_up_when_it_is_back() {
    let (upstream, mut cluster) = start(3).await;
    let name = cluster.name_owned_by(1, "away");
    ask_everywhere(&cluster, 3, &name).await;
    cluster.kill(2, Part::Agent).await.unwrap();
    cluster.sees(0, 2, false).await.unwrap();
    let results = purge(&cluster, 0, What::Name(name.clone()), "").await;
    let expected = [ReplicaOutcome::Done, ReplicaOutcome::Done, ReplicaOutcome::NotReached];
    assert_eq!(outcomes(&results), expected, "{results:?}");
    cluster.client(2).ask_address(&name).await.unwrap();
    assert_eq!(queries(&upstream, &name), 1, "its copy lives");
    cluster.start(2, Part::Agent).unwrap();
    cluster.ready(2, Part::Agent).await.unwrap();
    cluster.whole().await.unwrap();
    cluster.linked(2).await.unwrap();
    cluster
        .until("the copy to be forgotten", async || {
            cluster.client(2).ask_address(&name).await.unwrap();
            queries(&upstream, &name) == 2
        })
        .await
        .unwrap();
    ask_everywhere(&cluster, 3, &name).await;
    assert_eq!(queries(&upstream, &name), 2);
    cluster.shut_down().await.unwrap();
}

/// An operator's answer takes the place of the upstream's at every replica, and a purge takes it away again.
#[tokio::test(flavor = "multi_thread")]
async fn an_injected_answer_is_served_by_every_replica_until_it_is_purged() {
    let (upstream, cluster) = start(3).await;
    for name in [cluster.name_owned_by(0, "known"), cluster.name_owned_by(1, "unknown")] {
        let known = name.starts_with("known");
        if known {
            ask_everywhere(&cluster, 3, &name).await;
        }
        let key = key(&name);
        let data = vec!["198.51.100.7".to_owned()];
        let request = InjectEntryRequest { key, ttl: 600, data, packet: Vec::new().into(), wait_ms: PATIENT_MS };
        let results = cluster.agent(2).await.unwrap().inject_entry(request).await.unwrap().into_inner().results;
        all_done(&results, 3);
        for asked in 0..3 {
            let (address, ttl) = told(&cluster, asked, &name).await;
            assert_eq!(address, [198, 51, 100, 7], "{name} at {asked}");
            assert!((1..=600).contains(&ttl), "{ttl}");
        }
        assert_eq!(queries(&upstream, &name), usize::from(known));
        all_done(&purge(&cluster, 0, What::Name(name.clone()), "").await, 3);
        ask_everywhere(&cluster, 3, &name).await;
        assert_eq!(queries(&upstream, &name), 1 + usize::from(known));
    }
    let key = key("a.example.");
    let wrong = InjectEntryRequest { key, ttl: 60, data: vec!["x".to_owned()], ..InjectEntryRequest::default() };
    let refused = cluster.agent(0).await.unwrap().inject_entry(wrong).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    cluster.shut_down().await.unwrap();
}
