//! What every part of the agent works with: handles and snapshots, no state of its own.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use heimdall_shared::clock::Moment;
use heimdall_shared::dns::answer::{self, Refused, TtlLimits};
use heimdall_shared::entry::Entry;
use heimdall_shared::key::Key;
use heimdall_shared::link::{Beats, Condition, DegradedReason, Hello, Message, NodeState, PROTOCOL_VERSION};
use heimdall_shared::patience::Patience;
use heimdall_shared::purge::Ledger;
use heimdall_shared::telemetry::Tracer;
use tokio::sync::{mpsc, watch};

use crate::ask_first::Relays;
use crate::granter;
use crate::levels::Promise;
use crate::links::{Links, Peer};
use crate::membership::{self, View};
use crate::metrics::Metrics;
use crate::repair::Repairs;
use crate::store::Store;
use crate::transfer::{HandOver, Warmth};
use crate::trust::Trust;

/// Times that the mesh keeps. Defaults and reasons stand in the option table.
#[derive(Clone, Copy, Debug)]
pub struct Budgets {
    /// The least that a peer's first word is waited for.
    pub peer: Duration,
}

/// One replica's agent.
#[derive(Debug)]
pub struct Agent {
    /// This member's name.
    pub name: Arc<str>,
    /// Random number drawn at start: a restarted agent is another one.
    pub incarnation: u64,
    /// Where peers can dial this agent, `host:port`.
    pub advertise: Arc<str>,
    /// The members as of now.
    pub view: watch::Receiver<Arc<View>>,
    /// Who is connected.
    pub links: Arc<Links>,
    /// When idle links say that they are there.
    pub beats: Beats,
    /// The shared tier's entries on this replica.
    pub store: Arc<Store>,
    /// What is purged, and who knows of it.
    pub purges: Arc<Ledger>,
    /// The task that grants leases.
    pub granter: granter::Handle,
    /// Which entries this replica may lack.
    pub warmth: Arc<Warmth>,
    /// Why this replica is degraded, if it is.
    pub degraded: ArcSwap<Vec<DegradedReason>>,
    /// Leases that are waited for on behalf of others.
    pub relays: Relays,
    /// Members that want their entries to be taken over.
    pub leavers: mpsc::Sender<Arc<str>>,
    /// Who has taken this replica's entries over.
    pub hand_over: HandOver,
    /// The task that owns membership.
    pub cluster: mpsc::Sender<membership::Event>,
    /// Times that the mesh keeps.
    pub budgets: Budgets,
    /// How long askers wait for the first word to a request at a peer before they are told that somebody works on it.
    pub first_words: Arc<Patience<(Arc<Peer>, u64)>>,
    /// What publishers are promised.
    pub promise: Promise,
    /// What was sent back to owners that came up empty.
    pub repairs: Repairs,
    /// What this replica thinks of the others.
    pub trust: Trust,
    /// What an answer may promise.
    pub ttl_limits: TtlLimits,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Spans of sampled queries.
    pub tracer: Tracer,
}

impl Agent {
    /// The members as of now.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// What this agent says first on each link.
    pub fn hello(&self) -> Hello {
        Hello {
            version: PROTOCOL_VERSION,
            name: Arc::clone(&self.name),
            incarnation: self.incarnation,
            view_digest: self.view().ring().digest(),
            advertise: Some(Arc::clone(&self.advertise)),
            state: Some(self.state()),
        }
    }

    /// How this agent is.
    pub fn state(&self) -> NodeState {
        if self.view().is_leaving() {
            return NodeState::of(Condition::Leaving);
        }
        if self.warmth.now().is_starting(Moment::now()) {
            return NodeState::of(Condition::Starting);
        }
        let reasons = self.degraded.load();
        let condition = if reasons.is_empty() { Condition::Healthy } else { Condition::Degraded };
        NodeState { condition, reasons: reasons.to_vec() }
    }

    /// Announces that this agent leaves: it grants nothing new from now on, and its peers ask others.
    pub async fn leave(&self) {
        self.tell_cluster(membership::Event::SelfLeaving).await;
        for peer in self.links.connected().peers.values() {
            let _ = peer.link.push(Message::Leaving);
        }
    }

    /// Tells the task that owns membership. Waits for room: that task never waits for its senders.
    pub async fn tell_cluster(&self, event: membership::Event) {
        // A closed channel means that the agent is going down, and membership with it.
        let _ = self.cluster.send(event).await;
    }

    /// The link to a member that can be asked: connected, heard, and not silent so often that its breaker is open.
    pub fn usable_peer(&self, member: &str) -> Option<Arc<Peer>> {
        self.links.peer(member).filter(|peer| peer.is_usable() && self.view().is_up(member))
    }

    /// A live entry of this replica's store.
    pub fn stored(&self, key: &Key, now: Moment) -> Option<Entry> {
        self.store.get(key, now)
    }

    /// Checks an entry that came from another process: its packet must parse as an answer to `key`, and it may live no
    /// longer than that packet allows. The packet is copied: cut out of a received message it would keep all of that in
    /// memory for as long as it waits somewhere.
    ///
    /// # Errors
    /// [`Refused`] when the packet is no answer to the key.
    pub fn check(&self, key: &Key, entry: &Entry) -> Result<Entry, Refused> {
        let entry = self.check_in_place(key, entry)?;
        Ok(Entry { packet: Bytes::copy_from_slice(&entry.packet), ..entry })
    }

    /// The same for what goes no further than into the store, which makes a copy of its own.
    ///
    /// # Errors
    /// As [`Agent::check`].
    pub fn check_in_place(&self, key: &Key, entry: &Entry) -> Result<Entry, Refused> {
        let longest = answer::check(key, &entry.packet, &self.ttl_limits)?;
        Ok(Entry { lifetime: entry.lifetime.min(longest), ..entry.clone() })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]

    use heimdall_shared::link::WriteLevel;

    use super::*;
    use crate::lookup::FIRST_WORD_WITHIN;
    use crate::membership::{Discovered, Event, Membership, Update};
    use crate::{purge, transfer, trust};

    /// An agent with the name `a`, to whom a peer with the name `b` is linked by `link`; nobody grants, and nothing else runs.
    pub(crate) fn linked_to_b(link: crate::lease::LinkId) -> Arc<Agent> {
        let now = Moment::now();
        let member = |name: &str| Discovered { name: name.into(), address: "127.0.0.1:1".into() };
        let mut membership = Membership::new(member("a"), 2, now);
        membership.step(Event::Discovered(Update::Reset(vec![member("a"), member("b")])), now);
        membership.step(Event::LinkUp { member: "b".into(), incarnation: 1, link, advertised: None }, now);
        let metrics = Arc::<Metrics>::default();
        let purges = Arc::new(purge::ledger(Duration::ZERO));
        let (cluster, _) = mpsc::channel(1);
        let trust = Trust::new(0, trust::checks::channel().0, &metrics.trust);
        Arc::new(Agent {
            name: "a".into(),
            incarnation: 1,
            advertise: "127.0.0.1:1".into(),
            view: watch::channel(membership.view()).1,
            links: Arc::default(),
            beats: Beats::default(),
            store: Arc::new(Store::keeping_stale(1 << 20, Duration::ZERO, Arc::clone(&purges))),
            purges,
            granter: granter::channel().0,
            warmth: Arc::new(Warmth::starting(now)),
            degraded: ArcSwap::default(),
            relays: Relays::default(),
            leavers: transfer::channel().0,
            hand_over: HandOver::default(),
            cluster,
            budgets: Budgets { peer: Duration::from_millis(10) },
            first_words: Arc::new(Patience::new(FIRST_WORD_WITHIN)),
            promise: Promise { level: WriteLevel::Eventual, within: Duration::from_secs(1) },
            repairs: Repairs::default(),
            trust,
            ttl_limits: TtlLimits::default(),
            metrics,
            tracer: Tracer::off(),
        })
    }
}
