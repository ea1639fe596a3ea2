//! A burst: thousands of different cold names at once. It must break no link, and memory stays within its limits.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};

use super::super::accounting;
use super::super::figures::{Figures, Target};
use super::super::verify::{Expected, Wrong};
use super::super::workload::rule;
use super::names::{Owned, Supply};
use super::system::System;
use super::{Build, upstream};
use crate::cluster::{Cluster, Part};

const REPLICAS: usize = 3;

/// What the upstream takes for an answer: long enough that all misses are under way at the same time.
const UPSTREAM_TAKES: Duration = Duration::from_millis(500);

/// After this time without a word a client asks again, as a stub resolver does, so often at most.
const ASK_AGAIN: Duration = Duration::from_secs(2);
const TRIES: u32 = 5;

/// Receive buffer of the clients, bytes: all answers may come at once.
const RECEIVE_BUFFER: usize = 16 << 20;

/// What an agent may hold for this burst: the lanes of its three links at their limits, and the entries.
const AGENT_MEGABYTES: Target = Target::AtMost(3.0 * 11.5 + 10.0);

/// What a replica's agent logs when a link to a peer ended.
const PEER_LOST: &str = "peer disconnected";

/// A cluster and its slow upstream.
pub(super) struct Bursts {
    system: System,
    supply: Supply,
}

/// What the clients of one replica saw.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    answered: usize,
    asked_again: usize,
    failed: usize,
}

impl Bursts {
    /// Starts the cluster.
    ///
    /// # Errors
    /// It does not start.
    pub(super) async fn start(build: &Build) -> Result<Self> {
        let upstream = upstream().await?;
        upstream.otherwise(rule().after(UPSTREAM_TAKES));
        let builder = Cluster::builder().replicas(REPLICAS).patient().binaries(build.binaries.clone());
        Ok(Self { system: System::start(builder, &upstream).await?, supply: Supply::default() })
    }

    /// One burst of so many names.
    ///
    /// # Errors
    /// A wrong or lost answer; a link that broke.
    pub(super) async fn round(&mut self, id: &str, round: u32, names: usize, figures: &mut Figures) -> Result<()> {
        let Self { system, supply } = self;
        let before = Counters::read(system).await?;
        let resolutions = system.upstream.journal().total().resolutions;
        let together = Arc::new(Barrier::new(REPLICAS));
        let crowds = (0..REPLICAS).map(|index| {
            let (server, together) = (system.cluster.replica(index).layout.dns, Arc::clone(&together));
            let names = supply.take(names / REPLICAS);
            tokio::task::spawn_blocking(move || crowd(server, &names, &together))
        });
        let mut seen = Seen::default();
        for crowd in crowds.collect::<Vec<_>>() {
            let more = crowd.await.context("a client must not panic")?.with_context(|| system.shown_output())?;
            seen.answered += more.answered;
            seen.asked_again += more.asked_again;
            seen.failed += more.failed;
        }
        let names = names / REPLICAS * REPLICAS;
        let resolutions = system.upstream.journal().total().resolutions - resolutions;
        let mut counted = Counters::read(system).await?;
        counted.since(&before);
        eprintln!("burst {}: {}", round + 1, counted.shown());
        figures.round(
            id,
            round,
            &[
                ("names asked for at once", Target::None, names as f64),
                ("links that broke", Target::AtMost(0.0), counted.broken as f64),
                ("names without an answer", Target::AtMost(0.0), (names - seen.answered) as f64),
                ("queries that were sent again", Target::None, seen.asked_again as f64),
                ("answers that said failure", Target::None, seen.failed as f64),
                ("upstream queries ÷ names", Target::None, resolutions as f64 / names as f64),
                ("upstream queries without a lease", Target::None, counted.without_lease()),
                ("largest agent's peak, MB more than before the first", AGENT_MEGABYTES, counted.agent_growth),
                ("largest dns-server's peak, MB more than before the first", Target::None, counted.dns_growth),
            ],
        );
        ensure!(counted.broken == 0, "a burst broke {} links", counted.broken);
        ensure!(seen.answered == names, "{} of {names} names have no answer", names - seen.answered);
        Ok(())
    }
}

/// The clients of one server: all ask at once, and again what was not answered.
fn crowd(server: SocketAddr, names: &[Owned], together: &Barrier) -> Result<Seen> {
    let open = || {
        let socket = UdpSocket::bind((server.ip(), 0))?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(ASK_AGAIN))?;
        // Beyond the system's limit where that is allowed, else up to it.
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)
            .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER))?;
        std::io::Result::Ok(socket)
    };
    let socket = open().context("opening a socket");
    together.wait();
    let socket = socket?;
    let mut seen = Seen::default();
    let mut open: BTreeMap<u16, &Owned> = (0..).zip(names).collect();
    let mut packet = [0; 600];
    for again in 0..TRIES {
        seen.asked_again += if again == 0 { 0 } else { open.len() };
        for (id, name) in &open {
            let mut query = name.asked.query.clone();
            query[..2].copy_from_slice(&id.to_be_bytes());
            socket.send(&query).with_context(|| format!("asking {server}"))?;
        }
        while !open.is_empty() {
            // Silence: ask again.
            let Ok(length) = socket.recv(&mut packet) else { break };
            let answer = &packet[..length];
            let id = answer.first_chunk().map(|id| u16::from_be_bytes(*id)).context("an answer without an ID")?;
            // The second answer to a question that was asked twice.
            let Some(name) = open.get(&id) else { continue };
            match Expected::Answer.check(&name.asked, answer) {
                Ok(()) => {
                    seen.answered += 1;
                    open.remove(&id);
                }
                Err(Wrong::Rcode) => seen.failed += 1,
                Err(wrong) => return Err(wrong).with_context(|| format!("{server} answered wrongly")),
            }
        }
        if open.is_empty() {
            break;
        }
    }
    Ok(seen)
}

/// What the processes counted.
#[derive(Clone, Debug)]
struct Counters {
    /// By the outcome of misses, and the agents' limits.
    counts: BTreeMap<String, f64>,
    /// Links that ended, between agents and to dns-servers.
    broken: usize,
    agent_growth: f64,
    dns_growth: f64,
}

impl Counters {
    async fn read(system: &System) -> Result<Self> {
        let mut counts = BTreeMap::<String, f64>::new();
        let (mut broken, mut agent, mut dns) = (0, 0, 0);
        for index in 0..REPLICAS {
            for part in [Part::Dns, Part::Agent] {
                for (series, value) in system.cluster.metrics(index, part).await?.series() {
                    if WATCHED.iter().any(|name| series.starts_with(name)) {
                        *counts.entry(series.to_owned()).or_default() += value;
                    }
                }
                let process = system.cluster.replica(index).process(part).context("the process must run")?;
                let peak = accounting::peak(process.pid())?;
                match part {
                    Part::Dns => dns = dns.max(peak),
                    Part::Agent => agent = agent.max(peak),
                }
                broken += process.output().matches(PEER_LOST).count();
            }
        }
        broken += counts.get("heimdall_agent_sessions_total").copied().unwrap_or_default() as usize;
        Ok(Self { counts, broken, agent_growth: agent as f64 / 1e6, dns_growth: dns as f64 / 1e6 })
    }

    /// Leaves what was counted since `before`.
    fn since(&mut self, before: &Self) {
        for (series, value) in &mut self.counts {
            *value -= before.counts.get(series).copied().unwrap_or_default();
        }
        self.broken -= before.broken;
        self.agent_growth -= before.agent_growth;
        self.dns_growth -= before.dns_growth;
    }

    fn without_lease(&self) -> f64 {
        let outcomes = ["proceed", "silence", "link_down", "breaker_open", "limit", "late"];
        let of = |outcome: &&str| self.counts.get(&format!("heimdall_miss_outcome_total{{outcome=\"{outcome}\"}}"));
        outcomes.iter().filter_map(of).sum()
    }

    /// What is not zero.
    fn shown(&self) -> String {
        let counts = self.counts.iter().filter(|(_, value)| **value != 0.0);
        counts.map(|(series, value)| format!("{series} {value}")).collect::<Vec<_>>().join(", ")
    }
}

/// Series that say what became of misses, and which limit was met.
const WATCHED: [&str; 8] = [
    "heimdall_miss_outcome_total",
    "heimdall_agent_sessions_total",
    "heimdall_agent_messages_dropped_total",
    "heimdall_agent_undelivered_total",
    "heimdall_agent_granter_full_total",
    "heimdall_agent_routes_full_total",
    "heimdall_agent_routed_total",
    "heimdall_agent_copies_",
];
