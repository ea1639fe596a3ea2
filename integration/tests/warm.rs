//! A replica that comes has what it keeps before it is ready; one that goes leaves its entries behind.

#![allow(clippy::unwrap_used)]

use std::net::Ipv4Addr;

use heimdall_integration::cluster::{Cluster, Part};
use heimdall_integration::net::free_ports;
use heimdall_integration::process::Signal;
use heimdall_integration::upstream::{Gate, Rule, Upstream};
use heimdall_proto::v1::HandOffRequest;

/// Names asked for before anything happens.
const NAMES: usize = 60;

fn names(label: &str) -> Vec<String> {
    (0..NAMES).map(|number| format!("{label}-{number}.example.")).collect()
}

/// Asks `replica` for each name, and gives how many upstream queries that took.
async fn ask_all(upstream: &Upstream, cluster: &Cluster, replica: usize, names: &[String]) -> usize {
    let count = || names.iter().map(|name| upstream.journal().count(name, "A").resolutions).sum::<usize>();
    let before = count();
    for name in names {
        cluster.client(replica).ask_address(name).await.unwrap();
    }
    count() - before
}

async fn restart_agent(cluster: &mut Cluster, replica: usize) {
    cluster.kill(replica, Part::Agent).await.unwrap();
    cluster.start(replica, Part::Agent).unwrap();
    cluster.ready(replica, Part::Agent).await.unwrap();
    cluster.linked(replica).await.unwrap();
    cluster.whole().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_lost_everything_has_its_share_again_before_it_is_ready() {
    let upstream = Upstream::start().await.unwrap();
    let builder = Cluster::builder().replicas(3).replication_factor(2).long_budgets();
    let mut cluster = builder.start(&upstream).await.unwrap();
    let names = names("share");
    assert_eq!(ask_all(&upstream, &cluster, 0, &names).await, NAMES);
    for name in &names {
        cluster.replicated(0, name, 2).await.unwrap();
    }
    restart_agent(&mut cluster, 1).await;
    let metrics = cluster.metrics(1, Part::Agent).await.unwrap();
    let fetched = metrics.sum("heimdall_agent_transfer_entries_fetched_total", &[]) as usize;
    let kept = names.iter().filter(|name| cluster.order(name)[..2].contains(&1)).count();
    assert_eq!(fetched, kept, "it fetches what it keeps and nothing else, each entry once");
    for name in names.iter().filter(|name| cluster.order(name)[..2].contains(&1)) {
        let located = cluster.locate(1, name).await.unwrap();
        let own = located.holdings.iter().find(|holding| holding.replica == "replica-1").unwrap();
        assert!(own.found, "{name}: {located:?}");
        assert!(own.age_ms > 0, "an age travels, and does not start again: {own:?}");
    }
    assert_eq!(ask_all(&upstream, &cluster, 1, &names).await, 0, "the cluster has every name");
    cluster.shut_down().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaver_s_entries_are_with_those_who_stand_in_for_it() {
    let upstream = Upstream::start().await.unwrap();
    // One copy: whatever the leaver keeps, nobody else has.
    let builder = Cluster::builder().replicas(3).replication_factor(1).long_budgets();
    let mut cluster = builder.start(&upstream).await.unwrap();
    let names = names("heritage");
    // Asked through the replica that leaves, whose dns-server has them in its own cache too.
    assert_eq!(ask_all(&upstream, &cluster, 1, &names).await, NAMES);
    let owned = names.iter().filter(|name| cluster.order(name)[0] == 1).count();
    assert!(owned > 0);
    // First as an operator's wish, which says what became of it.
    let answer = cluster.agent(1).await.unwrap().hand_off(HandOffRequest { leave: false }).await.unwrap().into_inner();
    println!("{:?}", answer.results);
    assert_eq!(answer.results.len(), 2);
    assert!(answer.results.iter().all(|result| result.complete && result.kept == result.entries));
    assert_eq!(answer.results.iter().map(|result| result.kept as usize).sum::<usize>(), owned);
    let again = cluster.agent(1).await.unwrap().hand_off(HandOffRequest { leave: false }).await.unwrap().into_inner();
    assert_eq!(again.results.iter().map(|result| result.kept).sum::<u64>(), 0, "they have it: {again:?}");
    // Then by leaving.
    let more: Vec<String> = (0..NAMES).map(|number| format!("later-{number}.example.")).collect();
    assert_eq!(ask_all(&upstream, &cluster, 1, &more).await, NAMES);
    for part in [Part::Dns, Part::Agent] {
        let status = cluster.stop(1, part).await.unwrap();
        assert!(status.success(), "{part:?}: {status}");
    }
    for name in names.iter().chain(&more) {
        cluster.client(2).ask_address(name).await.unwrap();
        assert_eq!(upstream.journal().count(name, "A").resolutions, 1, "{name}");
    }
    // It comes back with nothing, and has its part from who stood in for it.
    for part in [Part::Agent, Part::Dns] {
        cluster.start(1, part).unwrap();
    }
    for part in [Part::Agent, Part::Dns] {
        cluster.ready(1, part).await.unwrap();
    }
    cluster.linked(1).await.unwrap();
    cluster.whole().await.unwrap();
    assert_eq!(ask_all(&upstream, &cluster, 1, &names).await, 0);
    assert_eq!(ask_all(&upstream, &cluster, 1, &more).await, 0);
    cluster.shut_down().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stands_in_for_a_leaver_joins_the_wait_there() {
    let upstream = Upstream::start().await.unwrap();
    let mut cluster = Cluster::builder().replicas(3).long_budgets().start(&upstream).await.unwrap();
    let gate = Gate::default();
    let name = cluster.name_ordered(&[1, 2, 0], "handed");
    upstream.rule(&name, "A", Rule::addresses().held_by(&gate));
    let first = heimdall_integration::crowd::Crowd::ask(&cluster, &[0], 5, &name);
    upstream.journal().wait_for(&name, "A", 1).await;
    // Its granter leaves in the middle; the others ask the next in the order, who grants and names the leaver.
    cluster.signal(1, Part::Agent, Signal::SIGTERM);
    cluster.sees(2, 1, false).await.unwrap();
    let second = heimdall_integration::crowd::Crowd::ask(&cluster, &[2], 5, &name);
    cluster.misses(2, 5).await.unwrap();
    let waits = "heimdall_agent_asked_first_total";
    cluster
        .until("the stand-in's lease to ask the leaver first", async || {
            cluster.metrics(2, Part::Agent).await.is_ok_and(|metrics| metrics.sum(waits, &[]) >= 1.0)
        })
        .await
        .unwrap();
    gate.open();
    first.all_answered().await;
    second.all_answered().await;
    assert_eq!(upstream.journal().count(&name, "A").resolutions, 1);
    let status = cluster.replica_mut(1).process_mut(Part::Agent).unwrap().ended().await.unwrap();
    assert!(status.success(), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_names_whom_it_has_not_reached_yet_and_fetches_that_one_s_part_when_it_has() {
    let upstream = Upstream::start().await.unwrap();
    let builder = Cluster::builder().replicas(3).spares(1).replication_factor(2).long_budgets();
    let mut cluster = builder.start(&upstream).await.unwrap();
    let names = names("known-to-one");
    // Asked through the replica that is killed: no other dns-server has them in its own cache.
    assert_eq!(ask_all(&upstream, &cluster, 2, &names).await, NAMES);
    for name in &names {
        cluster.replicated(0, name, 2).await.unwrap();
    }
    for part in [Part::Agent, Part::Dns] {
        cluster.kill(2, part).await.unwrap();
    }
    let members = [0, 1, 3];
    let order = |cluster: &Cluster, name: &str| -> Vec<usize> {
        cluster.order(name).into_iter().filter(|replica| members.contains(replica)).collect()
    };
    // Replica 1 alone has these, and the newcomer comes before it.
    let late: Vec<String> = names.iter().filter(|name| order(&cluster, name) == [3, 1, 0]).cloned().collect();
    assert!(!late.is_empty());
    cluster.tell_members(&[0, 3], &members).unwrap();
    // Nobody listens where the newcomer looks for replica 1, and replica 1 does not know it.
    let [nowhere] = free_ports(Ipv4Addr::LOCALHOST);
    let peers = &mut cluster.replica_mut(3).settings.peers;
    peers.iter_mut().find(|(name, _)| name == "replica-1").unwrap().1 = (Ipv4Addr::LOCALHOST, nowhere).into();
    for part in [Part::Agent, Part::Dns] {
        cluster.start(3, part).unwrap();
    }
    for part in [Part::Agent, Part::Dns] {
        cluster.ready(3, part).await.unwrap();
    }
    cluster.linked(3).await.unwrap();
    cluster.sees(0, 3, true).await.unwrap();
    // Replica 0 has a link to each of the others.
    assert_eq!(ask_all(&upstream, &cluster, 0, &late).await, 0, "replica 1 has them");

    cluster.tell_members(&[1, 3], &members).unwrap();
    cluster.whole().await.unwrap();
    for name in names.iter().filter(|name| order(&cluster, name)[..2].contains(&3)) {
        cluster
            .until(&format!("the newcomer to have {name}"), async || {
                let located = cluster.locate(3, name).await.unwrap();
                located.holdings.iter().any(|holding| holding.replica == "replica-3" && holding.found)
            })
            .await
            .unwrap();
    }
    cluster.shut_down().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_peers_do_not_answer_becomes_ready_all_the_same() {
    let upstream = Upstream::start().await.unwrap();
    let mut cluster = Cluster::builder().replicas(3).patient().start(&upstream).await.unwrap();
    // Stopped, not dead: connections open and nothing comes.
    for replica in [0, 2] {
        cluster.signal(replica, Part::Agent, Signal::SIGSTOP);
    }
    cluster.kill(1, Part::Agent).await.unwrap();
    cluster.start(1, Part::Agent).unwrap();
    cluster.ready(1, Part::Agent).await.unwrap();
    cluster.client(1).ask_address("alone.example.").await.unwrap();
    for replica in [0, 2] {
        cluster.signal(replica, Part::Agent, Signal::SIGCONT);
    }
    cluster.whole().await.unwrap();
    cluster.shut_down().await.unwrap();
}
