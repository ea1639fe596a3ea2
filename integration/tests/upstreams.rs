//! Several upstreams inside one query's budget, and clients on connections.

#![allow(clippy::unwrap_used)]

use heimdall_integration::client::{Conversation, question, verify_address, verify_reply};
use heimdall_integration::cluster::Cluster;
use heimdall_integration::replica::AgentSocket;
use heimdall_integration::upstream::{Gate, Rule, Transport, Upstream};
use heimdall_shared::clock::Moment;

/// One dns-server without an agent that knows `first`, and an upstream where every name has an address.
async fn with_first(first: &str) -> (Cluster, Upstream) {
    let good = Upstream::start().await.unwrap();
    let builder = Cluster::builder().replicas(1).standalone(AgentSocket::Off);
    let cluster = builder.first_upstreams(0, &[first.to_owned()]).start(&good).await.unwrap();
    (cluster, good)
}

async fn all_are_answered(cluster: &Cluster, label: &str) {
    for number in 0..10 {
        let begun = Moment::now();
        cluster.client(0).ask_address(&format!("{label}-{number}.example.")).await.unwrap();
        println!("{label}, name {number}: answered after {:?}", Moment::now().since(begun));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servfail_of_one_upstream_is_no_answer_as_long_as_there_is_another() {
    let bad = Upstream::start().await.unwrap();
    bad.otherwise(Rule::rcode(2));
    let (cluster, good) = with_first(&bad.address().to_string()).await;
    // One resolution in 32 begins with the other upstream, by chance; if the first one of all does, its fast answer keeps
    // that one in front until the next such chance.
    let mut asked = 0;
    while bad.journal().total().packets == 0 {
        assert!(asked < 1_000, "the first one is worth a try");
        cluster.client(0).ask_address(&format!("earlier-{asked}.example.")).await.unwrap();
        asked += 1;
    }
    all_are_answered(&cluster, "servfail").await;
    let names = asked + 10;
    assert_eq!(good.journal().total().resolutions, names);
    assert!(bad.journal().total().packets <= names, "{:?}", bad.journal().total());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_upstream_costs_nobody_an_answer() {
    let silent = Upstream::start().await.unwrap();
    silent.otherwise(Rule::silence());
    let (cluster, good) = with_first(&silent.address().to_string()).await;
    all_are_answered(&cluster, "silent").await;
    assert_eq!(good.journal().total().resolutions, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_where_nobody_listens_costs_nobody_an_answer() {
    let gone = Upstream::start().await.unwrap().address();
    let (cluster, good) = with_first(&gone.to_string()).await;
    all_are_answered(&cluster, "gone").await;
    assert_eq!(good.journal().total().resolutions, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_can_be_asked_over_tcp_alone() {
    let upstream = Upstream::start().await.unwrap();
    let (cluster, other) = with_first(&format!("tcp://{}", upstream.address())).await;
    // Its only upstream over TCP: the other one fails.
    other.otherwise(Rule::rcode(2));
    all_are_answered(&cluster, "tcp").await;
    let received = upstream.journal().received();
    assert_eq!(received.len(), 10);
    assert!(received.iter().all(|received| received.transport == Transport::Tcp), "{received:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_every_upstream_fails_the_client_is_told() {
    let bad = Upstream::start().await.unwrap();
    bad.otherwise(Rule::rcode(2));
    let (cluster, other) = with_first(&bad.address().to_string()).await;
    other.otherwise(Rule::rcode(2));
    let reply = cluster.client(0).ask("fails.example.", "A").await.unwrap();
    assert_eq!((reply.rcode(), reply.answers.len()), (2, 0));
    assert_eq!((bad.journal().total().packets, other.journal().total().packets), (1, 1), "each is asked once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_query_does_not_hold_up_the_next_one_on_its_connection() {
    let upstream = Upstream::start().await.unwrap();
    let builder = Cluster::builder().replicas(1).standalone(AgentSocket::Off);
    let cluster = builder.start(&upstream).await.unwrap();
    let gate = Gate::default();
    upstream.rule("slow.example.", "A", Rule::addresses().held_by(&gate));
    let mut connection = Conversation::tcp(cluster.replica(0).layout.dns).await.unwrap();
    let (slow, fast) = (question("slow.example.", "A").unwrap(), question("fast.example.", "A").unwrap());
    connection.send(&slow.encode()).await.unwrap();
    upstream.journal().wait_for("slow.example.", "A", 1).await;
    connection.send(&fast.encode()).await.unwrap();
    let first = verify_reply(&fast, &connection.receive().await.unwrap()).unwrap();
    verify_address(&first, "fast.example.").unwrap();
    gate.open();
    let second = verify_reply(&slow, &connection.receive().await.unwrap()).unwrap();
    verify_address(&second, "slow.example.").unwrap();
}
