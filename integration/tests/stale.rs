//! What clients get when upstreams give nothing: answers that are over, from whichever tier has one, and never as fresh. And
//! names so popular that they are fetched anew before they end.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use heimdall_integration::cluster::{Builder, Cluster, Part};
use heimdall_integration::replica::AgentSocket;
use heimdall_integration::upstream::{Gate, Rule, Upstream};
use heimdall_integration::wire::Message;

/// TTL of every stale record (RFC 8767 section 4).
const STALE_TTL: u32 = 30;

/// Option code of extended errors (RFC 8914).
const EXTENDED_ERROR: u16 = 15;

const STALE_ANSWER: u16 = 3;
const STALE_NXDOMAIN: u16 = 19;
const NO_REACHABLE_AUTHORITY: u16 = 22;

fn extended_error(reply: &Message) -> Option<u16> {
    let options = &reply.opt.as_ref()?.options;
    options.iter().find(|(code, _)| *code == EXTENDED_ERROR).map(|(_, data)| u16::from_be_bytes([data[0], data[1]]))
}

fn is_stale(reply: &Message) -> bool {
    matches!(extended_error(reply), Some(STALE_ANSWER | STALE_NXDOMAIN))
}

/// A stale answer says so, and its records live for thirty seconds.
fn assert_stale(reply: &Message, error: u16) {
    assert_eq!(extended_error(reply), Some(error), "{reply:?}");
    assert!(reply.records().count() > 0 && reply.records().all(|record| record.ttl == STALE_TTL), "{reply:?}");
}

/// Upstreams that do not answer fail after the usual time, and whatever else may be slow has all the time that it needs.
fn cluster(replicas: usize) -> Builder {
    Cluster::builder()
        .replicas(replicas)
        .replication_factor(replicas.max(2) - 1)
        .dns_option("--silence", "20s")
        .agent_option("--peer-budget", "5s")
        .dns_option("--attempt-timeout", "1s")
        .dns_option("--query-budget", "3s")
        .dns_option("--stale-after", "500ms")
}

/// Asks until the answer is over: upstreams are silent by then, so that what comes is stale or nothing.
async fn until_stale(cluster: &Cluster, index: usize, name: &str) -> Message {
    let mut last = None;
    cluster
        .until("a stale answer", async || {
            last = Some(cluster.client(index).ask(name, "A").await.unwrap());
            last.as_ref().is_some_and(is_stale)
        })
        .await
        .unwrap();
    last.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_agent_answers_that_are_over_are_given_while_upstreams_are_silent() {
    let upstream = Upstream::start().await.unwrap();
    let cluster = cluster(1).standalone(AgentSocket::Off).start(&upstream).await.unwrap();
    let (name, gone) = ("ttl-2.stale.example.", "gone.example.");
    upstream.rule(
        gone,
        "A",
        Rule::message(|received| {
            let soa = "example. 2 IN SOA ns.example. root.example. 1 2 3 4 2";
            let soa = heimdall_integration::wire::Record::parse(soa).unwrap();
            received.query.response().with_rcode(3).with_authority(soa)
        }),
    );
    let client = cluster.client(0);
    client.ask_address(name).await.unwrap();
    assert_eq!(client.ask(gone, "A").await.unwrap().rcode(), 3);
    upstream.blackhole(true);
    let reply = until_stale(&cluster, 0, name).await;
    assert_stale(&reply, STALE_ANSWER);
    let reply = until_stale(&cluster, 0, gone).await;
    assert_stale(&reply, STALE_NXDOMAIN);
    assert_eq!(reply.rcode(), 3);
    let reply = client.ask("unknown.example.", "A").await.unwrap();
    assert_eq!((reply.rcode(), extended_error(&reply)), (2, Some(NO_REACHABLE_AUTHORITY)));
    // Nothing stale was kept with a new life: what comes next is stale too.
    assert_stale(&client.ask(name, "A").await.unwrap(), STALE_ANSWER);
    assert!(cluster.figure(0, "stale").await.unwrap() >= 3);

    upstream.blackhole(false);
    // A question that nothing is known of is asked at once; its answer shows that upstreams are back.
    cluster
        .until("an answer of the upstream", async || {
            client.ask("back.example.", "A").await.is_ok_and(|reply| reply.rcode() == 0)
        })
        .await
        .unwrap();
    cluster
        .until("a fresh answer", async || client.ask(name, "A").await.is_ok_and(|reply| !is_stale(&reply)))
        .await
        .unwrap();
    client.ask_address(name).await.unwrap();
    cluster.shut_down().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_too_long_gets_what_is_over_while_the_upstream_is_still_asked() {
    let upstream = Upstream::start().await.unwrap();
    let builder = Cluster::builder().replicas(1).standalone(AgentSocket::Off).patient();
    let cluster = builder.dns_option("--stale-after", "500ms").start(&upstream).await.unwrap();
    let (name, gate) = ("ttl-2.slow.example.", Gate::default());
    let client = cluster.client(0);
    client.ask_address(name).await.unwrap();
    upstream.rule(name, "A", Rule::addresses().held_by(&gate));
    assert_stale(&until_stale(&cluster, 0, name).await, STALE_ANSWER);
    assert_eq!(upstream.journal().count(name, "A").resolutions, 2, "it is still being asked");
    assert_stale(&client.ask(name, "A").await.unwrap(), STALE_ANSWER);
    assert_eq!(upstream.journal().count(name, "A").resolutions, 2);
    upstream.rule(name, "A", Rule::addresses());
    gate.open();
    cluster
        .until("the new answer", async || client.ask(name, "A").await.is_ok_and(|reply| !is_stale(&reply)))
        .await
        .unwrap();
    cluster.shut_down().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_has_nothing_gets_what_is_over_from_its_agent_or_from_another_replica() {
    let upstream = Upstream::start().await.unwrap();
    let mut cluster = cluster(3).start(&upstream).await.unwrap();
    let name = not_kept_by_the_first(&cluster);
    cluster.client(1).ask_address(&name).await.unwrap();
    cluster.replicated(1, &name, 2).await.unwrap();
    upstream.blackhole(true);
    assert_stale(&until_stale(&cluster, 1, &name).await, STALE_ANSWER);

    // Its own cache is empty; its agent has a copy.
    cluster.kill(1, Part::Dns).await.unwrap();
    cluster.start(1, Part::Dns).unwrap();
    cluster.ready(1, Part::Dns).await.unwrap();
    cluster.linked(1).await.unwrap();
    assert_stale(&until_stale(&cluster, 1, &name).await, STALE_ANSWER);

    // Replica 0 never had one.
    assert_stale(&until_stale(&cluster, 0, &name).await, STALE_ANSWER);
    assert!(cluster.total(Part::Agent, "heimdall_agent_stale_given_total", &[]).await >= 1.0);
    upstream.blackhole(false);
    cluster
        .until("a fresh answer", async || {
            let _ = cluster.client(0).ask("any.example.", "A").await;
            cluster.client(0).ask(&name, "A").await.is_ok_and(|reply| reply.rcode() == 0 && !is_stale(&reply))
        })
        .await
        .unwrap();
    cluster.shut_down().await.unwrap();
}

/// A name with a TTL of 4 s of which replica 0 keeps no copy.
fn not_kept_by_the_first(cluster: &Cluster) -> String {
    (0..).map(|number| format!("n{number}.ttl-4.example.")).find(|name| cluster.order(name)[2] == 0).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_popular_name_is_fetched_once_per_life_and_nobody_ever_waits_for_it() {
    const LIVES: usize = 4;
    /// Between two questions to a replica.
    const PACE: Duration = Duration::from_millis(20);
    let upstream = Upstream::start().await.unwrap();
    let builder = Cluster::builder().replicas(3).long_budgets().workers(1).dns_option("--refresh-ahead", "40");
    let cluster = builder.start(&upstream).await.unwrap();
    let name = "ttl-6.popular.example.";
    for index in 0..3 {
        cluster.client(index).ask_address(name).await.unwrap();
    }
    let before = cluster.figures("l1_misses").await.unwrap();
    let asking = async {
        let clients: Vec<_> = (0..3).map(|index| cluster.client(index)).collect();
        loop {
            for client in &clients {
                client.ask_address(name).await.unwrap();
            }
            tokio::time::sleep(PACE).await;
        }
    };
    tokio::select! {
        () = asking => {}
        () = upstream.journal().wait_for(name, "A", 1 + LIVES) => {}
    }
    let count = upstream.journal().count(name, "A");
    let misses = cluster.figures("l1_misses").await.unwrap() - before;
    let (refreshes, mesh) = (cluster.figures("refreshes").await.unwrap(), Part::Agent);
    let leases = cluster.total(mesh, "heimdall_agent_refresh_leases_total", &[]).await;
    let joined = cluster.total(mesh, "heimdall_agent_refresh_joined_total", &[]).await;
    println!(
        "{} resolutions in {} lives, {misses} misses; {refreshes} refreshes, {leases} leases, {joined} joined",
        count.resolutions,
        1 + LIVES
    );
    let arrived: Vec<_> = upstream.journal().received_for(name, "A").iter().map(|received| received.at).collect();
    // An answer of six seconds is not asked for again before 60 % of it are over: one query per life, in the whole cluster.
    for pair in arrived.windows(2) {
        assert!(pair[1].since(pair[0]) >= Duration::from_secs(2), "{arrived:?}");
    }
    // A machine that stands still for two seconds lets an answer end.
    assert!(misses <= 3, "{misses} misses");
    assert!(refreshes >= 1 && leases >= 1.0);
    cluster.shut_down().await.unwrap();
}
