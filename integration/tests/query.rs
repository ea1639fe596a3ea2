//! One upstream query per key in the whole cluster, and the right answer for everybody who asks.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::future::join_all;
use heimdall_integration::client::{Client, verify_address};
use heimdall_integration::cluster::{Cluster, Part};
use heimdall_integration::upstream::{Rule, Upstream};
use heimdall_integration::wire::Message;
use heimdall_shared::clock::Moment;

/// How long the upstream takes for the name of a storm.
const UPSTREAM_TIME: Duration = Duration::from_millis(100);

/// Clients of one replica that ask at the same time.
const CLIENTS: usize = 60;

/// Names of the long run.
const NAMES: usize = 1_000;

/// Kinds of answers that must all be fetched once.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Address,
    NxDomain,
    ServFail,
    TcpOnly,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Address, Self::NxDomain, Self::ServFail, Self::TcpOnly];

    fn rule(self) -> Rule {
        let rule = match self {
            Self::Address => Rule::addresses(),
            Self::NxDomain => Rule::nxdomain(),
            Self::ServFail => Rule::rcode(2),
            Self::TcpOnly => Rule::addresses().tcp_only(),
        };
        rule.after(UPSTREAM_TIME)
    }

    fn check(self, reply: &Message, name: &str) -> Result<()> {
        match self {
            Self::Address | Self::TcpOnly => verify_address(reply, name),
            Self::NxDomain => {
                ensure!(reply.rcode() == 3 && reply.answers.is_empty(), "{name}: not NXDOMAIN: {reply:?}");
                ensure!(reply.authority.len() == 1, "{name}: no SOA: {reply:?}");
                Ok(())
            }
            Self::ServFail => {
                ensure!(reply.rcode() == 2 && reply.answers.is_empty(), "{name}: not SERVFAIL: {reply:?}");
                Ok(())
            }
        }
    }

    /// Packets that one resolution takes.
    const fn packets(self) -> usize {
        match self {
            Self::TcpOnly => 2,
            _ => 1,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_on_a_cold_name_costs_one_upstream_query_whoever_owns_it() {
    let upstream = Upstream::start().await.unwrap();
    let cluster = Cluster::builder().replicas(3).long_budgets().start(&upstream).await.unwrap();
    for kind in Kind::ALL {
        for owner in 0..3 {
            let name = cluster.name_owned_by(owner, &format!("storm-{kind:?}").to_lowercase());
            upstream.rule(&name, "A", kind.rule());
            let begun = Moment::now();
            let clients = (0..3).flat_map(|replica| (0..CLIENTS).map(move |_| replica));
            let asked = clients.map(|replica| {
                let (client, name) = (cluster.client(replica), &name);
                async move { kind.check(&client.ask(name, "A").await?, name) }
            });
            let answers = join_all(asked).await;
            let last = Moment::now().since(begun);
            for answer in &answers {
                assert!(answer.is_ok(), "{kind:?} owned by {owner}: {answer:?}");
            }
            let count = upstream.journal().count(&name, "A");
            println!(
                "{kind:?}, owner {owner}: {} answers, {} resolution(s), {} packet(s), last after {last:?}",
                answers.len(),
                count.resolutions,
                count.packets
            );
            assert_eq!((count.resolutions, count.packets), (1, kind.packets()), "{kind:?} owned by {owner}");
        }
    }
    cluster.shut_down().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_names_asked_of_random_replicas_are_fetched_once_each() {
    let upstream = Upstream::start().await.unwrap();
    let cluster = Cluster::builder().replicas(3).long_budgets().start(&upstream).await.unwrap();
    ask_all(&cluster, &upstream, 3).await;
    let calls = cluster.total(Part::Agent, "heimdall_agent_calls_total", &[]).await;
    let asked_by_the_test = cluster.total(Part::Agent, "heimdall_agent_calls_total", &["ListMembers"]).await;
    assert_eq!(calls, asked_by_the_test, "no unary call ran but the test's own look at the members");
    cluster.shut_down().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_five_replicas_and_two_copies_a_thousand_names_are_still_fetched_once_each() {
    let upstream = Upstream::start().await.unwrap();
    let builder = Cluster::builder().replicas(5).replication_factor(2).long_budgets();
    let cluster = builder.start(&upstream).await.unwrap();
    ask_all(&cluster, &upstream, 5).await;
    cluster.shut_down().await.unwrap();
}

/// Asks for each name three times, each time a random replica, many at a time, and checks the count at the upstream.
async fn ask_all(cluster: &Cluster, upstream: &Upstream, replicas: usize) {
    let clients: Arc<Vec<Client>> = Arc::new((0..replicas).map(|replica| cluster.client(replica)).collect());
    let at_a_time = Arc::new(tokio::sync::Semaphore::new(64));
    let asked = (0..NAMES * 3).map(|turn| {
        let (clients, at_a_time) = (Arc::clone(&clients), Arc::clone(&at_a_time));
        let client = rand::random_range(0..replicas);
        tokio::spawn(async move {
            let _place = at_a_time.acquire().await.unwrap();
            let name = format!("name-{}.thousand.example.", turn % NAMES);
            clients[client].ask_address(&name).await.with_context(|| format!("{name} of replica {client}"))
        })
    });
    for answer in join_all(asked).await {
        answer.unwrap().unwrap();
    }
    assert_eq!(upstream.journal().repeated(), [], "asked more than once");
    let total = upstream.journal().total();
    println!("{NAMES} names, {} answers: {} resolutions, {} packets", NAMES * 3, total.resolutions, total.packets);
    assert_eq!((total.resolutions, total.packets), (NAMES, NAMES));
}
