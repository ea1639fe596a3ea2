//! A cluster under measurement: its processes, what they used, what they counted.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use super::super::accounting;
use super::asker::{Asker, Seen};
use super::names::Owned;
use crate::cluster::{Builder, Cluster, Part};
use crate::upstream::Upstream;

/// A cluster and its upstream.
pub(super) struct System {
    pub(super) cluster: Cluster,
    /// Shared by all systems of a run.
    pub(super) upstream: Arc<Upstream>,
}

impl System {
    /// Starts a cluster.
    ///
    /// # Errors
    /// It does not start.
    pub(super) async fn start(builder: Builder, upstream: &Arc<Upstream>) -> Result<Self> {
        let cluster = builder.start(upstream).await.context("starting a cluster")?;
        Ok(Self { cluster, upstream: Arc::clone(upstream) })
    }

    /// Names of the members, in the order of the replicas.
    pub(super) fn members(&self) -> Vec<String> {
        self.cluster.replicas().iter().map(|replica| replica.layout.name.clone()).collect()
    }

    /// CPU time of all processes of one kind together.
    ///
    /// # Errors
    /// One of them is gone.
    pub(super) fn cpu_of(&self, part: Part) -> Result<Duration> {
        let processes = self.cluster.replicas().iter().filter_map(|replica| replica.process(part));
        processes.map(|process| accounting::process(process.pid())).sum()
    }

    /// Bytes of its own that a process of one kind has resident, on average.
    ///
    /// # Errors
    /// One of them is gone.
    pub(super) fn memory_of(&self, part: Part) -> Result<f64> {
        let processes: Vec<_> = self.cluster.replicas().iter().filter_map(|replica| replica.process(part)).collect();
        let bytes: u64 = processes.iter().map(|process| accounting::own(process.pid())).sum::<Result<_>>()?;
        Ok(bytes as f64 / processes.len() as f64)
    }

    /// Has a client of replica `index` ask for each name once. The runtime goes on meanwhile: it serves the upstream.
    ///
    /// # Errors
    /// A wrong or lost answer; then with what the servers said.
    pub(super) async fn asked(&self, index: usize, names: &Arc<Vec<Owned>>, outstanding: u16) -> Result<Seen> {
        let (address, names) = (self.cluster.replica(index).layout.dns, Arc::clone(names));
        let run = move || Asker::new(address)?.ask(&names, outstanding);
        let asked = tokio::task::spawn_blocking(run).await.context("a client must not panic")?;
        asked.with_context(|| self.shown_output())
    }

    /// The last lines of every process.
    pub(super) fn shown_output(&self) -> String {
        let processes = self.cluster.replicas().iter().flat_map(|replica| {
            [Part::Dns, Part::Agent].into_iter().filter_map(|part| replica.process(part)).collect::<Vec<_>>()
        });
        processes.map(|process| process.shown_output()).collect()
    }
}
