//! Replicas that come and go under load, one at a time: no query is lost, and the upstream hardly notices.
//!
//! Queries go where a Kubernetes Service would send them: to replicas that are ready, and for a moment to one that has
//! just said that it leaves.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use heimdall_integration::cluster::{Cluster, Part};
use heimdall_integration::service::{GRACE, Service};
use heimdall_integration::upstream::Upstream;
use tokio::task::JoinHandle;

/// Names that everybody asks for all the time.
const NAMES: usize = 400;

/// Clients at a time. Each waits for its answer before it asks again.
const CLIENTS: usize = 4;

/// Of so many questions of a client one is for a name that nobody has asked for before.
const FRESH_EVERY: usize = 16;

/// Pause of a client between two questions: the machine has more to do than to be asked.
const PAUSE: Duration = Duration::from_millis(4);

fn names() -> Vec<String> {
    (0..NAMES).map(|number| format!("popular-{number}.example.")).collect()
}

/// Clients behind a Service.
struct Load {
    stop: Arc<AtomicBool>,
    fresh: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<(usize, Vec<String>)>>,
}

impl Load {
    fn start(service: &Service) -> Self {
        let mut load = Self { stop: Arc::default(), fresh: Arc::default(), clients: Vec::new() };
        for client in 0..CLIENTS {
            let (service, stop, fresh) = (service.clone(), Arc::clone(&load.stop), Arc::clone(&load.fresh));
            load.clients.push(tokio::spawn(async move {
                let names = names();
                let (mut answered, mut lost) = (0, Vec::new());
                for turn in client * 97.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let (replica, server) = service.pick();
                    let name = if turn % FRESH_EVERY == 0 {
                        format!("fresh-{}.example.", fresh.fetch_add(1, Ordering::Relaxed))
                    } else {
                        names[turn % NAMES].clone()
                    };
                    match server.ask_address(&name).await {
                        Ok(_) => answered += 1,
                        Err(error) => lost.push(format!("{name} at replica {replica}: {error:#}")),
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                (answered, lost)
            }));
        }
        load
    }

    /// Ends it; gives the number of answers and of names that were asked for the first time.
    async fn end(self) -> (usize, usize) {
        self.stop.store(true, Ordering::Relaxed);
        let mut answered = 0;
        for client in self.clients {
            let (told, lost) = client.await.unwrap();
            assert!(lost.is_empty(), "{} queries were lost: {lost:#?}", lost.len());
            answered += told;
        }
        (answered, self.fresh.load(Ordering::Relaxed))
    }
}

fn resolutions(upstream: &Upstream, fresh: usize) -> usize {
    let fresh = (0..fresh).map(|number| format!("fresh-{number}.example."));
    names().into_iter().chain(fresh).map(|name| upstream.journal().count(&name, "A").resolutions).sum()
}

/// Every replica has been asked for a part of the names, and every name is where it belongs.
async fn fill(cluster: &Cluster, copies: usize) {
    for (number, name) in names().iter().enumerate() {
        cluster.client(number % cluster.replicas().len().min(3)).ask_address(name).await.unwrap();
    }
    for name in names().iter().step_by(7) {
        cluster.replicated(0, name, copies).await.unwrap();
    }
}

async fn roll(replicas: usize, rounds: usize) {
    let upstream = Upstream::start().await.unwrap();
    let builder = Cluster::builder().replicas(replicas).long_budgets().dns_option(GRACE.0, GRACE.1);
    let mut cluster = builder.start(&upstream).await.unwrap();
    fill(&cluster, 3).await;
    let service = Service::new(&cluster, 0..replicas);
    let load = Load::start(&service);
    for _ in 0..rounds {
        for replica in 0..replicas {
            service.restart(&mut cluster, replica).await.unwrap();
        }
    }
    let (answered, fresh) = load.end().await;
    let (ideal, asked) = (NAMES + fresh, resolutions(&upstream, fresh));
    println!(
        "{replicas} replicas, {rounds} rounds: {answered} answered, 0 lost, {asked} upstream queries for {ideal} names"
    );
    assert!(asked * 100 <= ideal * 102, "{asked} upstream queries for {ideal} names");
    cluster.shut_down().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn three_replicas_are_restarted_one_by_one() {
    roll(3, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_replicas_are_restarted_one_by_one() {
    roll(5, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_replica_is_killed_and_another_joins() {
    let upstream = Upstream::start().await.unwrap();
    let builder = Cluster::builder().replicas(3).spares(1).replication_factor(2).long_budgets();
    let mut cluster = builder.start(&upstream).await.unwrap();
    fill(&cluster, 2).await;
    let service = Service::new(&cluster, [0, 1]);
    let load = Load::start(&service);
    for part in [Part::Agent, Part::Dns] {
        cluster.kill(2, part).await.unwrap();
    }
    cluster.set_members(&[0, 1, 3]).unwrap();
    cluster.start_replica(3).await.unwrap();
    cluster.whole().await.unwrap();
    service.joins(&cluster, 3);
    for name in names() {
        cluster.client(3).ask_address(&name).await.unwrap();
    }
    let (answered, fresh) = load.end().await;
    let (ideal, asked) = (NAMES + fresh, resolutions(&upstream, fresh));
    println!("one killed, another joined: {answered} answered, {asked} upstream queries for {ideal} names");
    assert!(asked * 100 <= ideal * 103, "{asked} upstream queries for {ideal} names");
    cluster.shut_down().await.unwrap();
}
