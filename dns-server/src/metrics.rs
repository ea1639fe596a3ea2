//! What the process counts. The hit path writes plain counters of its own worker; everything else uses shared ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Registry, Unit};

use crate::agent;
use crate::cache::Cache;
use crate::upstream;

/// A counter that one thread writes and any thread reads: a plain addition, without a locked instruction.
#[derive(Debug, Default)]
pub struct Tally(AtomicU64);

impl Tally {
    /// Adds `count`. Only the worker that owns the tally may call this; two writers could lose counts, nothing else.
    #[inline]
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of one worker, on cache lines that no other worker writes.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerTallies {
    /// Messages received over UDP.
    pub udp_queries: Tally,
    /// Messages received over TCP.
    pub tcp_queries: Tally,
    /// Queries answered from L1.
    pub l1_hits: Tally,
    /// Queries that L1 could not answer.
    pub l1_misses: Tally,
    /// Misses that got an answer, from wherever.
    pub answered: Tally,
    /// Misses that got a stale answer, which are among the answered ones.
    pub stale: Tally,
    /// Misses that ended in SERVFAIL or in an upstream's other return code.
    pub failed: Tally,
    /// Messages that were rejected or refused by a rule.
    pub rejected: Tally,
    /// Misses dropped because too many were in flight.
    pub dropped: Tally,
    /// Replies that the kernel did not take.
    pub send_errors: Tally,
}

/// How a miss went, in the words of its life: one event for each thing that happened to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the variants are the label's values")]
pub enum MissOutcome {
    /// The agent gave an entry.
    entry,
    /// The agent gave a shared failure.
    failure,
    /// A lease was granted.
    granted,
    /// An entry came after a wait for another holder.
    held_entry,
    /// The agent said: just ask.
    proceed,
    /// The mesh was silent for too long.
    silence,
    /// There was no link to the agent.
    link_down,
    /// The breaker of the link was open.
    breaker_open,
    /// A limit was full.
    limit,
    /// A lease was taken over from a holder that was lost.
    takeover,
    /// Others worked on the answer until only one attempt of our own still fitted into the query's time.
    late,
    /// Too many misses were under way, or too many clients waited for one: nobody was asked.
    refused,
    /// A failure of a moment ago was the answer: nobody was asked.
    remembered,
}

impl MissOutcome {
    /// All of them, in the order of their declaration, so that each is in the metrics from the start.
    pub const ALL: [Self; 13] = [
        Self::entry,
        Self::failure,
        Self::granted,
        Self::held_entry,
        Self::proceed,
        Self::silence,
        Self::link_down,
        Self::breaker_open,
        Self::limit,
        Self::takeover,
        Self::late,
        Self::refused,
        Self::remembered,
    ];

    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::entry => "entry",
            Self::failure => "failure",
            Self::granted => "granted",
            Self::held_entry => "held_entry",
            Self::proceed => "proceed",
            Self::silence => "silence",
            Self::link_down => "link_down",
            Self::breaker_open => "breaker_open",
            Self::limit => "limit",
            Self::takeover => "takeover",
            Self::late => "late",
            Self::refused => "refused",
            Self::remembered => "remembered",
        }
    }
}

/// Label of a miss's outcome.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: MissOutcome,
}

/// Everything that the process counts.
#[derive(Debug)]
pub struct Metrics {
    /// One set per worker.
    pub workers: Vec<Arc<WorkerTallies>>,
    /// Misses whose answer came from the agent.
    pub mesh_hits: Counter,
    /// Links to the agent.
    pub agent: agent::Metrics,
    /// Exchanges with upstreams.
    pub upstream: upstream::Metrics,
    miss_outcome: Family<OutcomeLabel, Counter>,
    /// The counters of `miss_outcome` by their outcome: looking one up costs more than the rest of counting.
    outcomes: [Counter; MissOutcome::ALL.len()],
    /// Misses that went upstream because the mesh could not help in time.
    pub fallbacks: Counter,
    /// Answers that a purge overtook.
    pub overtaken: Counter,
    /// TCP connections accepted.
    pub tcp_connections: Counter,
    /// Answers that were begun to be fetched anew before their end.
    pub refreshes: Counter,
    /// Those of them for which this process asked upstreams.
    pub refresh_resolutions: Counter,
    /// Those that were not begun because too many were under way.
    pub refreshes_dropped: Counter,
    /// Keys for which an upstream was asked so that the agent can compare a peer's answer.
    pub peer_checks: Counter,
}

impl Metrics {
    /// Metrics for this many workers, all at zero.
    pub fn new(workers: usize) -> Self {
        let miss_outcome = Family::<OutcomeLabel, Counter>::default();
        let outcomes = MissOutcome::ALL.map(|outcome| miss_outcome.get_or_create_owned(&OutcomeLabel { outcome }));
        Self {
            workers: (0..workers).map(|_| Arc::default()).collect(),
            mesh_hits: Counter::default(),
            agent: agent::Metrics::default(),
            upstream: upstream::Metrics::default(),
            miss_outcome,
            outcomes,
            fallbacks: Counter::default(),
            overtaken: Counter::default(),
            tcp_connections: Counter::default(),
            refreshes: Counter::default(),
            refresh_resolutions: Counter::default(),
            refreshes_dropped: Counter::default(),
            peer_checks: Counter::default(),
        }
    }

    /// Counts one event in the life of a miss.
    pub fn outcome(&self, outcome: MissOutcome) {
        self.outcomes[outcome as usize].inc();
    }

    /// How often that happened to a miss.
    pub fn outcome_count(&self, outcome: MissOutcome) -> u64 {
        self.outcomes[outcome as usize].get()
    }

    /// The sum of one tally over all workers.
    pub fn sum(&self, tally: impl Fn(&WorkerTallies) -> &Tally) -> u64 {
        self.workers.iter().map(|worker| tally(worker).get()).sum()
    }

    /// Names every metric in a registry, as `heimdall_…`.
    pub fn register(self: &Arc<Self>, cache: &Arc<Cache>, registry: &mut Registry) {
        registry.register("mesh_hits", "Misses answered by the agent", self.mesh_hits.clone());
        self.agent.register(registry);
        self.upstream.register(registry);
        registry.register("miss_outcome", "Events in the life of misses", self.miss_outcome.clone());
        let help = "Answers that a purge overtook: for those who waited for them, and kept nowhere";
        registry.register("answers_overtaken", help, self.overtaken.clone());
        registry.register("fallbacks", "Misses that went upstream without the mesh", self.fallbacks.clone());
        let help = "Answers that were begun to be fetched anew before their end";
        registry.register("refreshes", help, self.refreshes.clone());
        let help = "Refreshes for which this process asked upstreams";
        registry.register("refresh_resolutions", help, self.refresh_resolutions.clone());
        let help = "Refreshes not begun because too many were under way";
        registry.register("refreshes_dropped", help, self.refreshes_dropped.clone());
        let help = "Keys asked of an upstream to compare a peer's answer with";
        registry.register("peer_checks", help, self.peer_checks.clone());
        registry.register("tcp_connections", "TCP connections accepted", self.tcp_connections.clone());
        registry.register_collector(Box::new(Sums { metrics: Arc::clone(self), cache: Arc::clone(cache) }));
    }
}

/// Sums the workers' tallies when somebody scrapes.
#[derive(Debug)]
struct Sums {
    metrics: Arc<Metrics>,
    cache: Arc<Cache>,
}

impl Collector for Sums {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let metrics = &self.metrics;
        let mut queries = encoder.encode_descriptor("queries", "Messages received", None, MetricType::Counter)?;
        for (transport, count) in
            [("udp", metrics.sum(|worker| &worker.udp_queries)), ("tcp", metrics.sum(|worker| &worker.tcp_queries))]
        {
            queries.encode_family(&[("transport", transport)])?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        let counters: [(&str, &str, u64); 8] = [
            ("l1_hits", "Queries answered from the first-level cache", metrics.sum(|worker| &worker.l1_hits)),
            (
                "l1_misses",
                "Queries that the first-level cache could not answer",
                metrics.sum(|worker| &worker.l1_misses),
            ),
            ("misses_answered", "Misses that got an answer", metrics.sum(|worker| &worker.answered)),
            ("stale_answers", "Misses that got a stale answer", metrics.sum(|worker| &worker.stale)),
            ("misses_failed", "Misses that ended in an error code", metrics.sum(|worker| &worker.failed)),
            ("queries_rejected", "Messages rejected or refused by a rule", metrics.sum(|worker| &worker.rejected)),
            ("queries_dropped", "Misses dropped at a full limit", metrics.sum(|worker| &worker.dropped)),
            ("send_errors", "Replies that the kernel did not take", metrics.sum(|worker| &worker.send_errors)),
        ];
        for (name, help, count) in counters {
            encoder
                .encode_descriptor(name, help, None, MetricType::Counter)?
                .encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        let gauges: [(&str, &str, Option<&Unit>, u64); 2] = [
            ("l1_entries", "Answers in the first-level cache", None, self.cache.len() as u64),
            ("l1", "Memory of the first-level cache", Some(&Unit::Bytes), self.cache.bytes()),
        ];
        for (name, help, unit, value) in gauges {
            let value = i64::try_from(value).unwrap_or(i64::MAX);
            encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?.encode_gauge(&value)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;

    #[test]
    fn a_scrape_sums_the_workers_and_names_every_outcome() {
        let metrics = Arc::new(Metrics::new(2));
        metrics.workers[0].udp_queries.add(2);
        metrics.workers[1].udp_queries.add(3);
        metrics.workers[1].l1_hits.add(4);
        for (times, outcome) in MissOutcome::ALL.into_iter().enumerate() {
            (0..times).for_each(|_| metrics.outcome(outcome));
        }
        let mut registry = Registry::with_prefix("heimdall");
        metrics.register(&Arc::new(Cache::new(1 << 20).unwrap()), &mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "heimdall_queries_total{transport=\"udp\"} 5\n",
            "heimdall_l1_hits_total 4\n",
            "heimdall_upstream_resolutions_total 0\n",
            "heimdall_l1_bytes 0\n",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
        for (times, outcome) in MissOutcome::ALL.into_iter().enumerate() {
            let line = format!("heimdall_miss_outcome_total{{outcome=\"{}\"}} {times}\n", outcome.as_str());
            assert!(text.contains(&line), "{line} is missing in\n{text}");
            assert_eq!(metrics.outcome_count(outcome), times as u64);
        }
    }
}
