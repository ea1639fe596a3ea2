//! Who owns what, where copies are, and members that come and go.

#![allow(clippy::unwrap_used)]

use futures_util::future::join_all;
use heimdall_integration::cluster::{Cluster, Part};
use heimdall_integration::crowd::Crowd;
use heimdall_integration::net;
use heimdall_integration::upstream::Upstream;

/// Names that are asked for before their owner dies.
const NAMES: usize = 200;

async fn an_owners_names_outlive_it(replicas: usize, copies: usize) {
    let upstream = Upstream::start().await.unwrap();
    let builder = Cluster::builder().replicas(replicas).replication_factor(copies).long_budgets();
    let mut cluster = builder.start(&upstream).await.unwrap();
    let names: Vec<String> = (0..NAMES).map(|number| cluster.name_owned_by(1, &format!("outlives-{number}"))).collect();
    let client = cluster.client(0);
    for answer in join_all(names.iter().map(|name| client.ask_address(name))).await {
        answer.unwrap();
    }
    for name in &names {
        cluster.replicated(0, name, copies).await.unwrap();
    }
    assert_eq!(upstream.journal().total().resolutions, NAMES);
    cluster.kill(1, Part::Agent).await.unwrap();
    // A replica that has not asked for them yet.
    let client = cluster.client(2);
    for answer in join_all(names.iter().map(|name| client.ask_address(name))).await {
        answer.unwrap();
    }
    println!("{replicas} replicas, {copies} copies: {NAMES} names of a dead owner, 0 upstream queries more");
    assert_eq!(upstream.journal().total().resolutions, NAMES, "{:?}", upstream.journal().repeated());
    cluster.shut_down().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_a_killed_owner_had_replicated_cost_no_upstream_query() {
    an_owners_names_outlive_it(3, 3).await;
    an_owners_names_outlive_it(5, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agents_and_the_protocols_text_agree_about_owners() {
    let upstream = Upstream::start().await.unwrap();
    let cluster = Cluster::builder().replicas(5).replication_factor(2).start(&upstream).await.unwrap();
    for number in 0..20 {
        let name = format!("agree-{number}.example.");
        let wanted: Vec<String> =
            cluster.order(&name).into_iter().map(|index| cluster.replica(index).layout.name.clone()).collect();
        for asked in 0..5 {
            let located = cluster.locate(asked, &name).await.unwrap();
            assert_eq!((located.order, located.replication_factor), (wanted.clone(), 2), "{name} as {asked} sees it");
        }
    }
    cluster.shut_down().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_where_the_order_says_and_nowhere_else() {
    let upstream = Upstream::start().await.unwrap();
    let builder = Cluster::builder().replicas(5).replication_factor(2).long_budgets();
    let cluster = builder.start(&upstream).await.unwrap();
    let name = cluster.name_ordered(&[3, 1], "copies");
    cluster.client(3).ask_address(&name).await.unwrap();
    cluster.replicated(0, &name, 2).await.unwrap();
    let located = cluster.locate(0, &name).await.unwrap();
    let holders: Vec<String> =
        located.holdings.into_iter().filter(|holding| holding.found).map(|holding| holding.replica).collect();
    assert_eq!(holders.len(), 2, "{holders:?}");
    for index in [3, 1] {
        assert!(holders.contains(&cluster.replica(index).layout.name), "{holders:?}");
    }
    cluster.shut_down().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_member_is_skipped_and_returns_at_its_old_and_at_a_new_address() {
    let upstream = Upstream::start().await.unwrap();
    let mut cluster = Cluster::builder().replicas(3).long_budgets().start(&upstream).await.unwrap();
    for round in 0..2 {
        cluster.kill(1, Part::Agent).await.unwrap();
        for other in [0, 2] {
            cluster.sees(other, 1, false).await.unwrap();
        }
        // The next in the order acts as owner: still one upstream query for all who ask.
        let name = cluster.name_owned_by(1, &format!("skipped-{round}"));
        Crowd::ask(&cluster, &[0, 2], 10, &name).all_answered().await;
        assert_eq!(upstream.journal().count(&name, "A").resolutions, 1, "{name} while its owner is dead");
        if round == 1 {
            // Nobody is told the new address: the others' configuration stays as it was.
            let host = net::own_loopback();
            let [peer, http] = net::free_ports(host);
            cluster.replica_mut(1).layout.peer = (host, peer).into();
            cluster.replica_mut(1).layout.agent_http = (host, http).into();
        }
        cluster.start(1, Part::Agent).unwrap();
        cluster.ready(1, Part::Agent).await.unwrap();
        cluster.whole().await.unwrap();
        cluster.linked(1).await.unwrap();
        let name = cluster.name_owned_by(1, &format!("returned-{round}"));
        Crowd::ask(&cluster, &[0, 1, 2], 10, &name).all_answered().await;
        assert_eq!(upstream.journal().count(&name, "A").resolutions, 1, "{name} after its owner returned");
    }
    cluster.shut_down().await.unwrap();
}
