//! The figures of `/stats`: what a person, a live line or a test wants to know, summed over the workers.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::metrics::{Metrics, MissOutcome};

/// A snapshot of the process's counters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Messages received, over UDP and TCP.
    pub queries: u64,
    /// Queries answered from L1.
    pub l1_hits: u64,
    /// Queries that L1 could not answer.
    pub l1_misses: u64,
    /// Misses whose answer came from the agent.
    pub mesh_hits: u64,
    /// Resolutions started: keys for which this process asked upstreams.
    pub resolutions: u64,
    /// Packets to upstreams.
    pub upstream_packets: u64,
    /// Misses that were answered without a resolution of our own: by the mesh, or by the resolution of another client's query.
    pub saved: u64,
    /// Misses that got an answer.
    pub answered: u64,
    /// Those of them that got a stale answer.
    pub stale: u64,
    /// Answers that were begun to be fetched anew before their end.
    pub refreshes: u64,
    /// Misses that ended in an error code.
    pub failed: u64,
    /// Messages rejected or refused by a rule.
    pub rejected: u64,
    /// Misses dropped at a full limit.
    pub dropped: u64,
    /// Misses that went upstream without the mesh.
    pub fallbacks: u64,
    /// Events in the life of misses.
    pub outcomes: BTreeMap<&'static str, u64>,
}

impl Stats {
    /// Reads the counters. They go on counting meanwhile: sums that should agree may be off by what is under way.
    pub fn read(metrics: &Metrics) -> Self {
        let answered = metrics.sum(|worker| &worker.answered);
        let resolutions = metrics.upstream.resolutions();
        let outcomes = MissOutcome::ALL.map(|outcome| (outcome.as_str(), metrics.outcome_count(outcome)));
        Self {
            queries: metrics.sum(|worker| &worker.udp_queries) + metrics.sum(|worker| &worker.tcp_queries),
            l1_hits: metrics.sum(|worker| &worker.l1_hits),
            l1_misses: metrics.sum(|worker| &worker.l1_misses),
            mesh_hits: metrics.mesh_hits.get(),
            resolutions,
            upstream_packets: metrics.upstream.packets(),
            // A refresh answers no miss.
            saved: answered.saturating_sub(resolutions.saturating_sub(metrics.refresh_resolutions.get())),
            answered,
            stale: metrics.sum(|worker| &worker.stale),
            refreshes: metrics.refreshes.get(),
            failed: metrics.sum(|worker| &worker.failed),
            rejected: metrics.sum(|worker| &worker.rejected),
            dropped: metrics.sum(|worker| &worker.dropped),
            fallbacks: metrics.fallbacks.get(),
            outcomes: outcomes.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_snapshot_has_the_names_that_tools_read() {
        let metrics = Metrics::new(2);
        metrics.workers[0].udp_queries.add(3);
        metrics.workers[1].tcp_queries.add(4);
        metrics.workers[1].answered.add(5);
        metrics.outcome(MissOutcome::held_entry);
        let json = serde_json::to_value(Stats::read(&metrics)).unwrap();
        assert_eq!((&json["queries"], &json["saved"]), (&7.into(), &5.into()));
        assert_eq!((&json["outcomes"]["held_entry"], &json["outcomes"]["takeover"]), (&1.into(), &0.into()));
        for name in ["l1_hits", "l1_misses", "mesh_hits", "resolutions", "upstream_packets", "fallbacks"] {
            assert_eq!(json[name], 0, "{name}");
        }
    }
}
