//! What a cluster is made of.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Cluster, Part, Replica};
use crate::binaries::{Binaries, binaries};
use crate::net;
use crate::network::Network;
use crate::replica::{AgentSocket, Layout, Ports, STANDARD_PORTS, Settings, write_certificates};
use crate::upstream::Upstream;

/// Budgets of tests that count: so long that no slow machine can turn a wait into a fallback.
const LONG_PEER_BUDGET: Duration = Duration::from_secs(5);
const LONG_SILENCE: Duration = Duration::from_secs(20);
/// An attempt that ends makes the next packet and lets a second replica ask too: a starved upstream must not look dead.
const LONG_ATTEMPT: Duration = Duration::from_secs(20);
/// Room for two such attempts, and a lease that outlives it.
const LONG_QUERY: Duration = Duration::from_secs(45);
const LONG_LEASE: Duration = Duration::from_secs(50);

/// Peers' answers are not compared with the upstream's: each comparison is an upstream query.
const PEER_SAMPLE: (&str, &str) = ("--peer-sample", "0");

fn text(budget: Duration) -> String {
    format!("{}ms", budget.as_millis())
}

/// Describes a cluster.
#[derive(Default)]
pub struct Builder {
    replicas: usize,
    standalone: bool,
    settings: Settings,
    own_upstreams: Vec<Vec<String>>,
    workers: Option<usize>,
    binaries: Option<Binaries>,
    own_environments: Vec<Vec<(String, String)>>,
    hosts: Vec<(Ipv4Addr, PathBuf)>,
    spares: usize,
}

impl Builder {
    /// How many replicas.
    #[must_use]
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.replicas = replicas;
        self
    }

    /// So many more that are not started and that nobody knows yet. Members are then read from a file.
    #[must_use]
    pub fn spares(mut self, spares: usize) -> Self {
        self.spares = spares;
        self.settings.peers_in_file = true;
        self
    }

    /// No agents.
    #[must_use]
    pub fn standalone(mut self, agent_socket: AgentSocket) -> Self {
        self.standalone = true;
        self.settings.agent_socket = agent_socket;
        self
    }

    /// Budgets that a slow machine cannot exceed, for tests that count.
    #[must_use]
    pub fn long_budgets(self) -> Self {
        self.patient_with_upstreams(LONG_ATTEMPT)
            .dns_option("--silence", &text(LONG_SILENCE))
            .agent_option("--peer-budget", &text(LONG_PEER_BUDGET))
    }

    /// The mesh's own budgets, but upstreams have all the time that a starved machine may need: a fault of the mesh is what
    /// is measured, and no attempt that ends adds to it.
    #[must_use]
    pub fn patient(self) -> Self {
        self.patient_with_upstreams(LONG_ATTEMPT)
    }

    /// The same with attempts of this length.
    #[must_use]
    pub fn patient_with_upstreams(self, attempt: Duration) -> Self {
        self.dns_option("--attempt-timeout", &text(attempt))
            .dns_option("--query-budget", &text(LONG_QUERY))
            .agent_option("--lease", &text(LONG_LEASE))
    }

    /// Copies kept, the owner's included.
    #[must_use]
    pub fn replication_factor(self, factor: usize) -> Self {
        self.agent_option("--replication-factor", &factor.to_string())
    }

    /// Worker threads of every dns-server.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = Some(workers);
        self
    }

    /// The servers of another build.
    #[must_use]
    pub fn binaries(mut self, binaries: Binaries) -> Self {
        self.binaries = Some(binaries);
        self
    }

    /// One more option of every dns-server.
    #[must_use]
    pub fn dns_option(mut self, name: &str, value: &str) -> Self {
        self.settings.dns_options.push((name.to_owned(), value.to_owned()));
        self
    }

    /// One more option of every agent.
    #[must_use]
    pub fn agent_option(mut self, name: &str, value: &str) -> Self {
        self.settings.agent_options.push((name.to_owned(), value.to_owned()));
        self
    }

    /// One more variable in every process's environment.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.settings.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// One more variable in the environment of both processes of one replica.
    #[must_use]
    pub fn environment_of(mut self, index: usize, name: &str, value: &str) -> Self {
        self.own_environments.resize(self.own_environments.len().max(index + 1), Vec::new());
        self.own_environments[index].push((name.to_owned(), value.to_owned()));
        self
    }

    /// A replica on each host of a network.
    #[must_use]
    pub fn network(mut self, network: &Network) -> Self {
        self.replicas = network.len();
        self.hosts = (0..network.len()).map(|host| (network.address(host), network.namespace(host))).collect();
        self
    }

    /// Upstreams of one replica that are asked before the cluster's.
    #[must_use]
    pub fn first_upstreams(mut self, index: usize, upstreams: &[String]) -> Self {
        self.own_upstreams.resize(self.own_upstreams.len().max(index + 1), Vec::new());
        self.own_upstreams[index] = upstreams.to_vec();
        self
    }

    /// Starts the processes, each replica with its own door to `upstream`, and waits until they are ready and know each other.
    ///
    /// # Errors
    /// A process does not start or does not become ready.
    pub async fn start(self, upstream: &Upstream) -> Result<Cluster> {
        // Building may take minutes and must not hold up the test's own tasks.
        let binaries = match self.binaries {
            Some(binaries) => binaries,
            None => tokio::task::spawn_blocking(binaries).await.context("building the servers")??,
        };
        let workers = self.workers.unwrap_or(super::WORKERS);
        let folder = tempfile::Builder::new().prefix("heimdall-").tempdir().context("making a folder")?;
        let mut layouts = Vec::new();
        for index in 0..self.replicas + self.spares {
            let (host, ports) = match self.hosts.get(index) {
                Some((host, _)) => (*host, STANDARD_PORTS),
                None => {
                    let host = net::own_loopback();
                    let [dns, agent_http, dns_http, peer] = net::free_ports(host);
                    (host, Ports { dns, agent_http, dns_http, peer })
                }
            };
            layouts.push(Layout::new(&format!("replica-{index}"), host, ports, folder.path())?);
        }
        let ca = write_certificates(&layouts)?;
        let first = layouts.iter().take(self.replicas);
        let peers: Vec<_> = first.map(|layout| (layout.name.clone(), layout.peer)).collect();
        let mut replicas = Vec::new();
        for (index, layout) in layouts.into_iter().enumerate() {
            let door = upstream.new_door().await.context("opening a door of the upstream")?;
            let mut settings = Settings { peers: peers.clone(), ..self.settings.clone() };
            settings.dns_options.push(("--workers".to_owned(), workers.to_string()));
            // Tests that count say themselves when peers' answers are compared with the upstream's.
            if settings.agent_options.iter().all(|(name, _)| name != PEER_SAMPLE.0) {
                settings.agent_options.push((PEER_SAMPLE.0.to_owned(), PEER_SAMPLE.1.to_owned()));
            }
            settings.upstreams = self.own_upstreams.get(index).cloned().unwrap_or_default();
            settings.upstreams.push(door.address().to_string());
            settings.environment.extend(self.own_environments.get(index).cloned().unwrap_or_default());
            settings.namespace = self.hosts.get(index).map(|(_, namespace)| namespace.clone());
            replicas.push(Replica { layout, settings, door, dns: None, agent: None });
        }
        let mut cluster = Cluster { binaries, workers, replicas, ca, folder };
        let parts: &[Part] = if self.standalone { &[Part::Dns] } else { &[Part::Agent, Part::Dns] };
        for &part in parts {
            for index in 0..self.replicas {
                cluster.start(index, part)?;
            }
        }
        for &part in parts {
            for index in 0..self.replicas {
                cluster.ready(index, part).await?;
            }
        }
        cluster.whole().await?;
        if !self.standalone {
            for index in 0..self.replicas {
                cluster.linked(index).await?;
            }
        }
        Ok(cluster)
    }
}
