//! What every cell of the matrix begins and ends with.

use std::future::Future;
use std::time::Duration;

use heimdall_integration::cluster::{Builder, Cluster, Part};
use heimdall_integration::history::{Bounds, History, Load, Pace, Verdict, grants};
use heimdall_integration::network::{Network, OUTSIDE, in_own_network};
use heimdall_integration::service::Service;
use heimdall_integration::upstream::Upstream;

/// Replicas, unless a cell says otherwise.
const REPLICAS: usize = 3;

/// Names that are asked for, and their lifetimes in seconds: so short that a run holds several.
pub(crate) const NAMES: usize = 300;
const LIFETIMES: [u64; 4] = [3, 4, 6, 10];

/// Questions in a second, to all replicas together: what six processes and their clients do beside each other on two CPUs
/// without optimisation.
const PER_SECOND: u32 = 300;

/// How long the upstream takes.
const UPSTREAM: Duration = Duration::from_millis(20);

/// How long the load lasts before something goes wrong.
pub(crate) const QUIET: Duration = Duration::from_secs(3);

/// How long something is wrong.
pub(crate) const FAULT: Duration = Duration::from_secs(6);

/// A cluster on a network of its own, under load.
pub(crate) struct Stage {
    pub(crate) network: Network,
    pub(crate) upstream: Upstream,
    pub(crate) cluster: Cluster,
    pub(crate) history: History,
    /// Where clients are sent: to all replicas, unless a cell says otherwise.
    pub(crate) service: Service,
    load: Option<Load>,
}

/// Runs a cell: a test of its own name in a network of its own.
pub(crate) fn cell<F: Future<Output = ()>>(test: &str, body: impl FnOnce() -> F) {
    in_own_network(test, || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(body());
    });
}

impl Stage {
    /// Three replicas.
    pub(crate) async fn set() -> Self {
        Self::set_with(|builder| builder).await
    }

    /// Three replicas that are made as `change` says.
    pub(crate) async fn set_with(change: impl FnOnce(Builder) -> Builder) -> Self {
        Self::set_of(REPLICAS, change).await
    }

    /// So many replicas that are made as `change` says.
    pub(crate) async fn set_of(replicas: usize, change: impl FnOnce(Builder) -> Builder) -> Self {
        let network = Network::new(replicas).unwrap();
        let upstream = Upstream::start_at(OUTSIDE, 0).await.unwrap();
        let history = History::default();
        upstream.otherwise(history.numbered_answers().after(UPSTREAM));
        let cluster = change(Cluster::builder().network(&network).agent_option(grants::LOG.0, grants::LOG.1))
            .start(&upstream)
            .await
            .unwrap();
        let service = Service::new(&cluster, 0..replicas);
        Self { network, upstream, cluster, history, service, load: None }
    }

    /// The n-th most popular name.
    pub(crate) fn name(rank: usize) -> String {
        format!("name-{rank}.ttl-{}.example.", LIFETIMES[rank % LIFETIMES.len()])
    }

    /// Clients ask from now on, and nothing is wrong for a while.
    pub(crate) async fn begin(&mut self) {
        self.begin_with(Vec::new()).await;
    }

    /// The same, and clients ask for these names more often than for any other.
    pub(crate) async fn begin_with(&mut self, mut names: Vec<String>) {
        names.extend((0..NAMES).map(Self::name));
        self.ask(PER_SECOND, names);
        tokio::time::sleep(QUIET).await;
    }

    /// Clients ask for these names from now on.
    pub(crate) fn ask(&mut self, per_second: u32, names: Vec<String>) {
        let service = self.service.clone();
        self.load = Some(Load::begin(&self.history, Pace { per_second, names, service }));
    }

    /// Lets the clients end, and judges what they were told.
    pub(crate) async fn end(&mut self, what: &str, bounds: &Bounds) -> Verdict {
        if let Some(load) = self.load.take() {
            load.end().await;
        }
        let events = self.history.snapshot();
        let verdict = Verdict::of(&events, bounds);
        if !verdict.violations.is_empty() || verdict.lost.len() > bounds.lost {
            for replica in self.cluster.replicas() {
                for log in [&replica.layout.dns_log, &replica.layout.agent_log] {
                    let text = std::fs::read_to_string(log).unwrap_or_default();
                    let lines: Vec<&str> = text.lines().rev().take(30).collect();
                    println!("--- {}\n{}", log.display(), lines.into_iter().rev().collect::<Vec<_>>().join("\n"));
                }
            }
        }
        verdict.assert(what, bounds);
        let mut granted = 0;
        for replica in self.cluster.replicas() {
            let log = std::fs::read_to_string(&replica.layout.agent_log).unwrap();
            granted += grants::check(&log).unwrap_or_else(|wrong| panic!("{what}: {}", wrong.join("\n")));
        }
        println!("{what}: {granted} leases granted");
        assert!(granted > 0, "{what}: no agent granted anything");
        verdict
    }

    /// Times that the mesh was not waited for, over all processes: by dns-servers that asked without a lease, and by agents
    /// that went on to the next member, who may grant a lease of its own.
    pub(crate) async fn fallbacks(&self) -> usize {
        let silent = self.cluster.total(Part::Agent, "heimdall_agent_peer_silent_total", &[]).await;
        usize::try_from(self.cluster.figures("fallbacks").await.unwrap()).unwrap() + silent as usize
    }

    /// The same of one replica's processes.
    pub(crate) async fn fallbacks_of(&self, replica: usize) -> usize {
        let metrics = self.cluster.metrics(replica, Part::Agent).await.unwrap();
        let silent = metrics.sum("heimdall_agent_peer_silent_total", &[]);
        usize::try_from(self.cluster.figure(replica, "fallbacks").await.unwrap()).unwrap() + silent as usize
    }

    /// Every agent sees every other one, within the patience of the harness.
    pub(crate) async fn whole(&self) {
        self.cluster.whole().await.unwrap();
    }
}
