//! What faults cost: at most an upstream query more, never an answer.
//!
//! The budgets of the mesh are the defaults. A slow machine may so fall back where a fast one does not; fallbacks are
//! counted, and the bounds allow for them. Upstreams have more time than by default, but where an attempt's end is the point.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use heimdall_integration::cluster::{Builder, Cluster, Part};
use heimdall_integration::crowd::Crowd;
use heimdall_integration::http;
use heimdall_integration::process::Signal;
use heimdall_integration::upstream::{Gate, Rule, Upstream};

/// Clients of each replica.
const CLIENTS: usize = 10;

/// The default length of an attempt.
const ATTEMPT: Duration = Duration::from_millis(1_200);

/// A cluster with its upstream, and what the bounds need to know.
struct Stage {
    upstream: Upstream,
    cluster: Cluster,
    /// The replica whose agent is stopped: it cannot be asked.
    stopped: Option<usize>,
    fallbacks: Fallbacks,
}

type Fallbacks = BTreeMap<(usize, &'static str), u64>;

impl Stage {
    async fn set(replicas: usize, copies: usize) -> Self {
        Self::build(Cluster::builder().replicas(replicas).replication_factor(copies).patient()).await
    }

    async fn build(builder: Builder) -> Self {
        let upstream = Upstream::start().await.unwrap();
        let cluster = builder.start(&upstream).await.unwrap();
        Self { upstream, cluster, stopped: None, fallbacks: Fallbacks::new() }
    }

    fn everybody(&self) -> Vec<usize> {
        (0..self.cluster.replicas().len()).collect()
    }

    /// A name whose answer waits for the gate, fetched by replica `holder` for its own clients, with clients of all other
    /// replicas waiting. Gives the name and both crowds.
    async fn held(&self, owner: usize, holder: usize, label: &str, gate: &Gate) -> (String, Crowd, Crowd) {
        let name = self.cluster.name_owned_by(owner, label);
        self.upstream.rule(&name, "A", Rule::addresses().held_by(gate));
        let others: Vec<usize> = self.everybody().into_iter().filter(|&replica| replica != holder).collect();
        let mut misses = Vec::new();
        for &replica in &others {
            misses.push(self.cluster.figure(replica, "l1_misses").await.unwrap());
        }
        let holders = Crowd::ask(&self.cluster, &[holder], CLIENTS, &name);
        self.upstream.journal().wait_for(&name, "A", 1).await;
        let waiters = Crowd::ask(&self.cluster, &others, CLIENTS, &name);
        for (&replica, before) in others.iter().zip(misses) {
            self.cluster.misses(replica, before + u64::try_from(CLIENTS).unwrap()).await.unwrap();
        }
        (name, holders, waiters)
    }

    async fn count_from_here(&mut self) {
        self.fallbacks = self.fallbacks().await;
    }

    /// Times that the mesh was not waited for: by dns-servers that asked the upstream without a lease, and by agents that
    /// went on to the next member, who may grant a lease of its own. By process: one that is killed takes its count along.
    async fn fallbacks(&self) -> Fallbacks {
        let mut fallbacks = Fallbacks::new();
        for replica in self.everybody() {
            let runs = |part| self.cluster.replica(replica).process(part).is_some();
            if runs(Part::Dns) {
                fallbacks.insert((replica, "dns"), self.cluster.figure(replica, "fallbacks").await.unwrap());
            }
            if runs(Part::Agent) && self.stopped != Some(replica) {
                let metrics = self.cluster.metrics(replica, Part::Agent).await.unwrap();
                fallbacks.insert((replica, "agent"), metrics.sum("heimdall_agent_peer_silent_total", &[]) as u64);
            }
        }
        fallbacks
    }

    fn stop_agent(&mut self, replica: usize) {
        self.cluster.signal(replica, Part::Agent, Signal::SIGSTOP);
        self.stopped = Some(replica);
    }

    async fn continue_agent(&mut self) {
        if let Some(replica) = self.stopped.take() {
            self.cluster.signal(replica, Part::Agent, Signal::SIGCONT);
        }
        self.cluster.whole().await.unwrap();
    }

    /// Upstream queries for the name are at most min(1 + faults + fallbacks since the count began, replicas).
    async fn within_bounds(&self, what: &str, name: &str, faults: u64, last: Duration) {
        let now = self.fallbacks().await;
        let before = |process| self.fallbacks.get(process).copied().unwrap_or_default();
        let fallbacks: u64 = now.iter().map(|(process, count)| count.saturating_sub(before(process))).sum();
        let replicas = u64::try_from(self.cluster.replicas().len()).unwrap();
        let resolutions = u64::try_from(self.upstream.journal().count(name, "A").resolutions).unwrap();
        println!("{what}, {name} {resolutions} resolution(s), {fallbacks} fallback(s), last answer after {last:?}");
        let bound = (1 + faults + fallbacks).min(replicas);
        if resolutions > bound {
            let asked: Vec<_> = self
                .upstream
                .journal()
                .received_for(name, "A")
                .iter()
                .map(|received| (received.door, received.at))
                .collect();
            for replica in self.everybody() {
                let stats = http::get(self.cluster.replica(replica).layout.dns_http, "/stats").await;
                println!("replica {replica}: {stats:?}");
            }
            panic!(
                "{what}: {resolutions} resolutions of {name}, at most {bound} are right; by door and time: {asked:?}"
            );
        }
    }
}

async fn owners_agent_is_killed(replicas: usize, copies: usize) {
    let mut stage = Stage::set(replicas, copies).await;
    stage.count_from_here().await;
    let gate = Gate::default();
    let (name, holders, waiters) = stage.held(1, 0, "owner-killed", &gate).await;
    stage.cluster.kill(1, Part::Agent).await.unwrap();
    gate.open();
    let last = holders.all_answered().await.max(waiters.all_answered().await);
    stage.within_bounds(&format!("{replicas} replicas, owner's agent killed"), &name, 1, last).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owners_agent_is_killed_in_mid_query() {
    owners_agent_is_killed(3, 3).await;
    owners_agent_is_killed(5, 2).await;
}

async fn holders_dns_server_is_killed(replicas: usize, copies: usize) {
    let mut stage = Stage::set(replicas, copies).await;
    stage.count_from_here().await;
    let gate = Gate::default();
    let (name, holders, waiters) = stage.held(1, 0, "holder-killed", &gate).await;
    stage.cluster.kill(0, Part::Dns).await.unwrap();
    holders.leave();
    // Somebody takes over: only then there is anything for the upstream to answer.
    let what = "the lease to be taken over";
    let journal = stage.upstream.journal();
    journal.wait_until(what, |journal| journal.count(&name, "A").resolutions > 1).await;
    gate.open();
    let last = waiters.all_answered().await;
    stage.within_bounds(&format!("{replicas} replicas, holder's dns-server killed"), &name, 1, last).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holders_dns_server_is_killed_in_mid_query() {
    holders_dns_server_is_killed(3, 3).await;
    holders_dns_server_is_killed(5, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_agent_is_killed_and_found_again() {
    let mut stage = Stage::set(3, 3).await;
    stage.count_from_here().await;
    let gate = Gate::default();
    let (name, holders, waiters) = stage.held(1, 0, "all-killed", &gate).await;
    for replica in stage.everybody() {
        stage.cluster.kill(replica, Part::Agent).await.unwrap();
    }
    gate.open();
    let last = holders.all_answered().await.max(waiters.all_answered().await);
    stage.within_bounds("every agent killed", &name, 3, last).await;
    // Each one for itself: no agent, no waiting, no error.
    let last = Crowd::ask(&stage.cluster, &stage.everybody(), CLIENTS, "alone.example.").all_answered().await;
    let count = stage.upstream.journal().count("alone.example.", "A");
    println!("without agents: {} resolution(s), last answer after {last:?}", count.resolutions);
    assert_eq!(count.resolutions, 3);
    for replica in stage.everybody() {
        stage.cluster.start(replica, Part::Agent).unwrap();
    }
    for replica in stage.everybody() {
        stage.cluster.ready(replica, Part::Agent).await.unwrap();
        stage.cluster.linked(replica).await.unwrap();
    }
    stage.cluster.whole().await.unwrap();
    stage.count_from_here().await;
    let last = Crowd::ask(&stage.cluster, &stage.everybody(), CLIENTS, "again.example.").all_answered().await;
    stage.within_bounds("agents started again", "again.example.", 0, last).await;
    stage.cluster.shut_down().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owners_agent_is_stopped_in_mid_query() {
    let mut stage = Stage::set(3, 3).await;
    stage.count_from_here().await;
    let gate = Gate::default();
    let (name, holders, waiters) = stage.held(1, 0, "owner-stopped", &gate).await;
    stage.stop_agent(1);
    gate.open();
    let last = holders.all_answered().await.max(waiters.all_answered().await);
    stage.within_bounds("owner's agent stopped", &name, 1, last).await;
    // Names that it owns, asked of the others: delayed until they know, and answered.
    for turn in 0..10 {
        let name = stage.cluster.name_owned_by(1, &format!("owner-stopped-turn-{turn}"));
        stage.count_from_here().await;
        let last = Crowd::ask(&stage.cluster, &[0, 2], 1, &name).all_answered().await;
        stage.within_bounds(&format!("owner's agent stopped, name {turn}"), &name, 1, last).await;
    }
    stage.continue_agent().await;
    stage.cluster.shut_down().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_own_agent_is_stopped() {
    let mut stage = Stage::set(3, 3).await;
    stage.stop_agent(0);
    for turn in 0..10 {
        let name = format!("own-stopped-{turn}.example.");
        stage.count_from_here().await;
        let last = Crowd::ask(&stage.cluster, &[0], 1, &name).all_answered().await;
        stage.within_bounds(&format!("own agent stopped, name {turn}"), &name, 1, last).await;
    }
    // The others do without it too.
    let last = Crowd::ask(&stage.cluster, &[1, 2], CLIENTS, "own-stopped-0.example.").all_answered().await;
    println!("the others: last answer after {last:?}");
    stage.continue_agent().await;
    stage.cluster.shut_down().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_uplink_drops_everything_harms_nobody_else() {
    let mut stage = Stage::build(Cluster::builder().replicas(3).patient_with_upstreams(ATTEMPT)).await;
    stage.cluster.replica(0).door.blackhole(true);
    for owner in 0..3 {
        let name = stage.cluster.name_owned_by(owner, "uplink");
        stage.count_from_here().await;
        // Its own clients first, so that it is the holder.
        let own = Crowd::ask(&stage.cluster, &[0], CLIENTS, &name);
        stage.upstream.journal().wait_for(&name, "A", 1).await;
        let last = Crowd::ask(&stage.cluster, &[1, 2], CLIENTS, &name).all_answered().await;
        stage.within_bounds(&format!("one uplink dead, owner {owner}"), &name, 1, last).await;
        let told = own.told().await;
        let answered = told.iter().filter(|told| told.reply.is_ok()).count();
        println!("its own clients: {answered} of {} answered", told.len());
        // The answer is in the mesh by now, and the mesh is whole.
        Crowd::ask(&stage.cluster, &[0], CLIENTS, &name).all_answered().await;
    }
    stage.cluster.shut_down().await.unwrap();
}
