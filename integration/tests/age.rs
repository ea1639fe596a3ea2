//! No answer outlives its origin, whichever copy it comes from and however long that copy lay before a stopped process.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use heimdall_integration::cluster::{Cluster, LOOK_AGAIN, Part};
use heimdall_integration::process::Signal;
use heimdall_integration::upstream::{Gate, Rule, Upstream};
use heimdall_shared::clock::Moment;

/// TTL of the names, seconds: long enough to see it fall on every replica, short enough to see its end.
const TTL: u64 = 8;

/// How long the owner's agent is stopped while the answer is on its way to it.
const STOPPED: Duration = Duration::from_secs(2);

/// The name's answer is published to a stopped owner. What every replica then serves (its own first-level cache, the owner's
/// store, a replica's copy, a copy forwarded to a replica that keeps none) never lives longer than the origin allows.
async fn nothing_outlives_its_origin(replicas: usize, factor: usize) {
    let upstream = Upstream::start().await.unwrap();
    let builder = Cluster::builder().replicas(replicas).replication_factor(factor).long_budgets();
    let cluster = builder.start(&upstream).await.unwrap();
    let name = (0..)
        .map(|n| format!("aged-{n}.ttl-{TTL}.example."))
        .find(|name| cluster.order(name)[0] == 0 && cluster.order(name)[replicas - 1] != 1)
        .unwrap();
    let gate = Gate::default();
    upstream.rule(&name, "A", Rule::addresses().held_by(&gate));
    let holder = tokio::spawn({
        let (client, name) = (cluster.client(1), name.clone());
        async move { client.ask_address(&name).await }
    });
    upstream.journal().wait_for(&name, "A", 1).await;
    // The exchange has begun by now: from here on the answer is at least as old as we say.
    let born = Moment::now();
    cluster.signal(0, Part::Agent, Signal::SIGSTOP);
    gate.open();
    holder.await.unwrap().unwrap();
    tokio::time::sleep(STOPPED).await;
    cluster.signal(0, Part::Agent, Signal::SIGCONT);
    cluster.replicated(0, &name, factor).await.unwrap();

    let mut served = vec![0; replicas];
    loop {
        for (replica, served) in served.iter_mut().enumerate() {
            let asked = Moment::now();
            let reply = cluster.client(replica).ask_address(&name).await.unwrap();
            if upstream.journal().count(&name, "A").resolutions > 1 {
                continue;
            }
            let (given, age) = (Duration::from_secs(reply.answers[0].ttl.into()), asked.since(born));
            assert!(given + age <= Duration::from_secs(TTL), "replica {replica}: TTL {given:?} at the age of {age:?}");
            *served += 1;
        }
        if upstream.journal().count(&name, "A").resolutions > 1 {
            break;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    println!("{replicas} replicas, {factor} copies: answers before the end of the origin's life: {served:?}");
    assert!(served.iter().all(|&served| served > 0), "every replica served the one answer that was fetched");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_never_outlives_its_origin_on_any_replica() {
    nothing_outlives_its_origin(3, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forwarded_answer_never_outlives_its_origin_either() {
    nothing_outlives_its_origin(5, 2).await;
}
