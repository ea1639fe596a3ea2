//! What the agent counts. One observation per event; no label takes more values than there are members.

mod figures;

use std::sync::{Arc, Mutex, PoisonError};

use heimdall_shared::link::{Condition, WriteLevel};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use self::figures::Figures;
use crate::lease::{Sizes, Stats};
use crate::store::Store;
use crate::trust;

/// Where a lookup of the own dns-server that missed the own store was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Routed {
    /// By this replica, which owns the key or stands in for its owner.
    Own,
    /// By a peer.
    Peer,
    /// By nobody: every member before the end of the order was out of reach.
    Nobody,
    /// By nobody: the link to the owner has its limit of requests under way.
    Limit,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LevelLabels {
    level: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NodeStateLabels {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RoutedLabels {
    by: Routed,
}

impl Routed {
    /// All of them, in the order of their declaration.
    const ALL: [Self; 4] = [Self::Own, Self::Peer, Self::Nobody, Self::Limit];
}

/// One counter for each [`Routed`], which is its index: to look it up by its label would cost more than the rest of counting.
#[derive(Debug)]
struct RoutedCounters {
    family: Family<RoutedLabels, Counter>,
    counters: [Counter; Routed::ALL.len()],
}

impl Default for RoutedCounters {
    fn default() -> Self {
        let family = Family::<RoutedLabels, Counter>::default();
        let counters = Routed::ALL.map(|by| family.get_or_create_owned(&RoutedLabels { by }));
        Self { family, counters }
    }
}

/// The unary calls of both surfaces. The data path makes none.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CallLabels {
    /// The method's name.
    pub method: &'static str,
}

/// What bulk copies move.
#[derive(Debug, Default)]
pub struct TransferMetrics {
    /// Entries given to members that fetched them.
    pub given: Counter,
    /// Entries fetched from others.
    pub fetched: Counter,
    /// Bytes of those, their keys included.
    pub bytes: Counter,
    /// Transfers that broke before their end.
    pub broken: Counter,
}

/// The agent's counters. The handles are what the code holds; the registry only reads them.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Lookups of the own dns-server that the own store answered.
    pub store_hits: Counter,
    /// Lookups of the own dns-server that it could not answer.
    pub store_misses: Counter,
    routed: RoutedCounters,
    levels: Family<LevelLabels, Counter>,
    /// Lookups of peers.
    pub peer_lookups: Counter,
    node_state: Family<NodeStateLabels, Gauge>,
    /// Lookups of peers that the own store answered.
    pub peer_lookups_hit: Counter,
    /// Lookups of peers that were sent to a member before this one.
    pub elsewhere: Counter,
    /// Entries that came from peers in answer to a lookup.
    pub peer_entries: Counter,
    /// Dead entries given to peers whose clients nobody else can answer.
    pub stale_given: Counter,
    /// Leases granted here for keys whose entry still lives.
    pub refresh_leases: Counter,
    /// Refreshes that met somebody else's and wait for its result.
    pub refresh_joined: Counter,
    /// Peers that said nothing within their budget.
    pub peer_silent: Counter,
    leases: Arc<Mutex<(Stats, Sizes)>>,
    /// Grants that came when nobody waited for them any more, and went back.
    pub late_grants: Counter,
    /// Copies sent to the other replicas of a key.
    pub copies_sent: Counter,
    /// Copies that were dropped because the link's lane of copies was full or the link was gone.
    pub copies_dropped: Counter,
    /// Copies sent to owners that came up after the entry was fetched.
    pub owner_repairs: Counter,
    /// Copies from members that do not both keep the key.
    pub refused_copies: Counter,
    /// Publishes without a lease of keys that this replica neither keeps nor owns.
    pub refused_publishes: Counter,
    /// Entries whose packet is no answer to their key.
    pub refused_entries: Counter,
    /// Purges applied.
    pub purges: Counter,
    /// Purges in the log now.
    pub purges_remembered: Gauge,
    /// Entries of peers that a purge had overtaken.
    pub overtaken: Counter,
    /// Messages lost to a full lane or a link that was gone.
    pub undelivered: Counter,
    /// Lookups answered "proceed" because the granter had too much to do.
    pub granter_full: Counter,
    /// Lookups answered "proceed" because too many of their stream were on their way.
    pub routes_full: Counter,
    /// Messages that their sender has no business to send.
    pub unexpected_messages: Counter,
    /// Frames of a kind, or with content, that this release cannot read.
    pub unreadable_frames: Counter,
    /// Grants before which another member was asked.
    pub asked_first: Counter,
    /// Those for which it had the answer, or somebody who fetched it.
    pub asked_first_found: Counter,
    /// Bulk copies.
    pub transfer: TransferMetrics,
    /// Peers that connected with another view of the members.
    pub view_disagreements: Counter,
    /// Dials of peers that failed.
    pub dial_failures: Counter,
    /// Streams of peers that were refused after their handshake.
    pub refused_streams: Counter,
    /// What checks of peers' answers brought.
    pub trust: trust::Metrics,
    /// Unary calls answered.
    pub calls: Family<CallLabels, Counter>,
}

impl Metrics {
    /// Counts where a lookup was answered.
    pub fn routed(&self, by: Routed) {
        self.routed.counters[by as usize].inc();
    }

    /// Counts a write that asked for more than the owner's copy.
    pub fn level(&self, level: WriteLevel, reached: bool) {
        let outcome = if reached { "reached" } else { "not_reached" };
        self.levels.get_or_create(&LevelLabels { level: level.as_str(), outcome }).inc();
    }

    /// Shows how this replica is.
    pub fn node_state(&self, now: Condition) {
        for condition in [Condition::Starting, Condition::Healthy, Condition::Degraded, Condition::Leaving] {
            let label = NodeStateLabels { state: condition.as_str() };
            self.node_state.get_or_create(&label).set(i64::from(condition == now));
        }
    }

    /// Notes what happened to leases since start, as the table counts it, and what it holds now.
    pub fn leases(&self, stats: &Stats, sizes: Sizes) {
        *self.leases.lock().unwrap_or_else(PoisonError::into_inner) = (*stats, sizes);
    }

    /// Leases that run now.
    pub fn leases_live(&self) -> usize {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner).1.leases
    }

    /// Shows the counters under `heimdall_agent_…`.
    pub fn register(&self, store: &Arc<Store>, registry: &mut Registry) {
        registry.register_collector(Box::new(Figures { leases: Arc::clone(&self.leases), store: Arc::clone(store) }));
        let mut counter = |name: &str, help: &str, counter: &Counter| registry.register(name, help, counter.clone());
        counter("store_hits", "Lookups of the own dns-server answered by the own store", &self.store_hits);
        counter(
            "store_misses",
            "Lookups of the own dns-server that the own store could not answer",
            &self.store_misses,
        );
        counter("peer_lookups", "Lookups of peers", &self.peer_lookups);
        counter("peer_lookups_hit", "Lookups of peers answered by the own store", &self.peer_lookups_hit);
        counter("elsewhere", "Lookups of peers sent to a member before this one", &self.elsewhere);
        counter("peer_entries", "Entries that came from peers in answer to a lookup", &self.peer_entries);
        counter("stale_given", "Dead entries given to peers that nobody else could answer", &self.stale_given);
        counter("refresh_leases", "Leases granted for keys whose entry still lived", &self.refresh_leases);
        counter("refresh_joined", "Refreshes that met somebody else's and waited for it", &self.refresh_joined);
        counter("peer_silent", "Peers that said nothing within their budget", &self.peer_silent);
        counter("late_grants", "Grants that nobody waited for any more", &self.late_grants);
        counter("copies_sent", "Copies sent to the other replicas of a key", &self.copies_sent);
        counter("copies_dropped", "Copies dropped because a lane was full or a link gone", &self.copies_dropped);
        counter("owner_repairs", "Copies sent to owners that came up without the entry", &self.owner_repairs);
        counter("refused_copies", "Copies from members that do not both keep the key", &self.refused_copies);
        counter("refused_publishes", "Publishes without a lease to who does not keep the key", &self.refused_publishes);
        counter("refused_entries", "Entries whose packet is no answer to their key", &self.refused_entries);
        counter("purges", "Purges applied, each once", &self.purges);
        counter("overtaken", "Entries that a purge had overtaken", &self.overtaken);
        counter("undelivered", "Messages lost to a full lane or a link that was gone", &self.undelivered);
        counter("granter_full", "Events that the granter had no room for", &self.granter_full);
        counter("routes_full", "Lookups answered with proceed since too many were on their way", &self.routes_full);
        counter("unexpected_messages", "Messages that their sender has no business to send", &self.unexpected_messages);
        counter("frames_unreadable", "Frames that were skipped", &self.unreadable_frames);
        counter(
            "view_disagreements",
            "Peers that connected with another view of the members",
            &self.view_disagreements,
        );
        counter("dial_failures", "Dials of peers that failed", &self.dial_failures);
        counter("refused_streams", "Streams of peers refused after their handshake", &self.refused_streams);
        counter("asked_first", "Grants before which another member was asked", &self.asked_first);
        counter("asked_first_found", "Grants that another member's answer made needless", &self.asked_first_found);
        counter("transfer_entries_given", "Entries given to members that fetched them", &self.transfer.given);
        counter("transfer_entries_fetched", "Entries fetched from other members", &self.transfer.fetched);
        counter("transfer_bytes_fetched", "Bytes of those entries and their keys", &self.transfer.bytes);
        counter("transfers_broken", "Transfers that broke before their end", &self.transfer.broken);
        self.trust.register(registry);
        let help = "Purges in the log; more than it has room for are replaced by one of everything";
        registry.register("purges_remembered", help, self.purges_remembered.clone());
        registry.register("node_state", "1 for the state that this replica is in", self.node_state.clone());
        registry.register("routed", "Lookups that missed the own store, by who answered", self.routed.family.clone());
        let help = "Writes that asked for more than the owner's copy, by level and whether it was reached";
        registry.register("level_writes", help, self.levels.clone());
        registry.register("calls", "Unary calls answered, by method; the data path makes none", self.calls.clone());
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn each_way_of_a_lookup_is_counted_under_its_own_name() {
        let metrics = Metrics::default();
        for (times, by) in Routed::ALL.into_iter().enumerate() {
            (0..times).for_each(|_| metrics.routed(by));
        }
        let mut registry = Registry::default();
        registry.register("routed", "", metrics.routed.family.clone());
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for (times, by) in ["Own", "Peer", "Nobody", "Limit"].into_iter().enumerate() {
            let line = format!("routed_total{{by=\"{by}\"}} {times}\n");
            assert!(text.contains(&line), "{line} is missing in\n{text}");
        }
    }
}
