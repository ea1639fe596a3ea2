//! Who exists and who answers: discovery names the members, links and their frames say who is alive.
//!
//! Pure: events and `now` in, an immutable [`View`] and a list of changes out. The one task that owns membership feeds
//! it and publishes the views. Discovery alone decides the ring; liveness only skips.

mod liveness;
mod view;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use heimdall_shared::clock::Moment;
use heimdall_shared::link::NodeState;

use self::liveness::Peer;
use crate::lease::LinkId;
use crate::ring::{MEMBERS_MAX, Ring};

pub use self::liveness::{Reason, State};
pub use self::view::{Member, View};

/// How long the last members stay when discovery names none at all: longer than an API server's restart or a
/// rolling update of it, short enough that a cluster that was really emptied does not haunt.
pub const EMPTY_GRACE: Duration = Duration::from_secs(30);

/// A link without any frame for this long is silent. Idle links beat every 250 ms, so ten beats were lost; with the
/// detection's own delay a silent member is skipped within 3 s.
pub const SILENT_AFTER: Duration = Duration::from_millis(2_500);

/// How long a newly discovered member may take to get its first link before [`View::is_settled`] stops waiting for it.
pub const SETTLE_WITHIN: Duration = Duration::from_secs(3);

/// A member as discovery names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovered {
    /// The member's name, the same as in its certificate.
    pub name: Arc<str>,
    /// `host:port` to dial; the host is looked up again at each dial.
    pub address: Arc<str>,
}

/// What discovery found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// These and no others exist.
    Reset(Vec<Discovered>),
    /// These exist too, or have a new address.
    Add(Vec<Discovered>),
    /// These exist no longer.
    Remove(Vec<Arc<str>>),
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Discovery has news. Errors of discovery are not events: they keep what is known.
    Discovered(Update),
    /// A link to or from `member` finished its Hello. A pair may have several for a moment.
    LinkUp {
        /// The authenticated name.
        member: Arc<str>,
        /// The incarnation in its Hello.
        incarnation: u64,
        /// The link.
        link: LinkId,
        /// Where it says it can be dialled, as far as its certificate vouches for its name.
        advertised: Option<Arc<str>>,
    },
    /// A link ended, for whatever reason.
    LinkDown {
        /// The name given at its `LinkUp`.
        member: Arc<str>,
        /// The link.
        link: LinkId,
    },
    /// An attempt to dial failed.
    DialFailed {
        /// Who was dialled.
        member: Arc<str>,
        /// What went wrong and at which address, for people.
        error: Arc<str>,
    },
    /// A member announced over a link that it leaves.
    Leaving {
        /// The name given at the link's `LinkUp`.
        member: Arc<str>,
        /// The link.
        link: LinkId,
    },
    /// A member says over a link how it is.
    Says {
        /// The name given at the link's `LinkUp`.
        member: Arc<str>,
        /// The link.
        link: LinkId,
        /// How it is.
        said: NodeState,
    },
    /// This agent drains: it grants nothing new and names its successors.
    SelfLeaving,
}

/// What an event changed.
#[derive(Debug, Default)]
pub struct Changes {
    /// The new view, if anything in it differs from the last one.
    pub view: Option<Arc<View>>,
    /// Whether the new view's ring differs from the last one's.
    pub ring_changed: bool,
    /// Members that are new, or have another address: to be dialled.
    pub discovered: Vec<Discovered>,
    /// Members that exist no longer: their links are to be closed.
    pub removed: Vec<Arc<str>>,
    /// Members whose state changed, with the new one.
    pub states: Vec<(Arc<str>, State)>,
    /// Incarnations whose last link closed: their leases end.
    pub gone: Vec<(Arc<str>, u64)>,
    /// Members named by discovery that the ring has no room for ([`MEMBERS_MAX`]).
    pub left_out: usize,
}

impl Changes {
    /// Adds what a later event changed.
    pub fn merge(&mut self, later: Self) {
        self.view = later.view.or(self.view.take());
        self.ring_changed |= later.ring_changed;
        self.discovered.extend(later.discovered);
        self.removed.extend(later.removed);
        self.states.extend(later.states);
        self.gone.extend(later.gone);
        self.left_out += later.left_out;
    }
}

/// Tells who exists and who answers.
#[derive(Debug)]
pub struct Membership {
    me: Discovered,
    replication_factor: usize,
    silent_after: Duration,
    /// As discovery names them, without this agent.
    discovered: BTreeMap<Arc<str>, Arc<str>>,
    /// Discovered members, and peers that have a link though discovery does not name them (yet).
    peers: BTreeMap<Arc<str>, Peer>,
    /// When an empty discovery started to be doubted.
    empty_since: Option<Moment>,
    leaving: bool,
    view: Arc<View>,
}

impl Membership {
    /// An agent that knows nobody but itself yet.
    pub fn new(me: Discovered, replication_factor: usize, now: Moment) -> Self {
        let ring = Arc::new(Ring::new(&[Arc::clone(&me.name)], replication_factor));
        let view = Arc::new(View::new(Arc::clone(&me.name), ring, Vec::new(), false, now));
        Self {
            me,
            replication_factor,
            silent_after: SILENT_AFTER,
            discovered: BTreeMap::new(),
            peers: BTreeMap::new(),
            empty_since: None,
            leaving: false,
            view,
        }
    }

    /// The same with another [`SILENT_AFTER`], for machines that stop for longer than that without being gone.
    #[must_use]
    pub const fn with_silence(mut self, silent_after: Duration) -> Self {
        self.silent_after = silent_after;
        self
    }

    /// The present view.
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view)
    }

    /// Takes in one event.
    pub fn step(&mut self, event: Event, now: Moment) -> Changes {
        let mut changes = Changes::default();
        match event {
            Event::Discovered(update) => self.take_discovery(update, now, &mut changes),
            Event::LinkUp { member, incarnation, link, advertised } => {
                // This agent's own name from outside is a misconfiguration, not a peer.
                if member != self.me.name {
                    self.peers.entry(member).or_insert_with(|| Peer::new(now)).link_up(
                        link,
                        incarnation,
                        advertised,
                        now,
                    );
                }
            }
            Event::LinkDown { member, link } => {
                if let Some(peer) = self.peers.get_mut(&member)
                    && let Some(incarnation) = peer.link_down(link, now)
                {
                    changes.gone.push((member, incarnation));
                }
            }
            Event::DialFailed { member, error } => {
                if let Some(peer) = self.peers.get_mut(&member) {
                    peer.dial_failed(error, now);
                }
            }
            Event::Leaving { member, link } => {
                if let Some(peer) = self.peers.get_mut(&member) {
                    peer.leaving(link);
                }
            }
            Event::Says { member, link, said } => {
                if let Some(peer) = self.peers.get_mut(&member) {
                    peer.says(link, said);
                }
            }
            Event::SelfLeaving => self.leaving = true,
        }
        self.settle(now, &mut changes);
        changes
    }

    /// A frame arrived over a link, at a moment that is not in the future. What follows from that shows at the next
    /// [`Self::step`] or [`Self::pass`]: with many links heard at once it is worked out once.
    pub fn heard(&mut self, member: &str, link: LinkId, at: Moment) {
        if let Some(peer) = self.peers.get_mut(member) {
            peer.heard(link, at);
        }
    }

    /// Lets time pass: finds who fell silent. To be called at [`Self::next_deadline`] at the latest.
    pub fn pass(&mut self, now: Moment) -> Changes {
        let mut changes = Changes::default();
        self.settle(now, &mut changes);
        changes
    }

    /// When [`Self::pass`] has something to do, if nothing happens before.
    pub fn next_deadline(&self) -> Option<Moment> {
        let silent = self.peers.values().filter_map(|peer| peer.next_deadline(self.silent_after));
        silent.chain(self.empty_since.map(|since| since + EMPTY_GRACE)).min()
    }

    fn take_discovery(&mut self, update: Update, now: Moment, changes: &mut Changes) {
        match update {
            Update::Reset(members) if members.is_empty() => {
                // An empty list is more often an answer that went wrong than a cluster that is gone.
                if !self.discovered.is_empty() && self.empty_since.is_none() {
                    self.empty_since = Some(now);
                }
            }
            Update::Reset(members) => {
                let names: Vec<_> = members.iter().map(|member| &member.name).collect();
                let gone = self.discovered.keys().filter(|name| !names.contains(name)).cloned().collect();
                self.remove(gone, changes);
                self.add(members, now, changes);
            }
            Update::Add(members) => self.add(members, now, changes),
            Update::Remove(names) => {
                if self.discovered.keys().all(|name| names.contains(name)) && !self.discovered.is_empty() {
                    // As doubtful as an empty list when it leaves nobody.
                    self.empty_since.get_or_insert(now);
                } else {
                    self.remove(names, changes);
                }
            }
        }
    }

    fn add(&mut self, members: Vec<Discovered>, now: Moment, changes: &mut Changes) {
        self.empty_since = None;
        for member in members {
            if member.name == self.me.name || self.discovered.get(&member.name) == Some(&member.address) {
                continue;
            }
            if !self.discovered.contains_key(&member.name) && self.discovered.len() + 1 >= MEMBERS_MAX {
                changes.left_out += 1;
                continue;
            }
            self.peers.entry(Arc::clone(&member.name)).or_insert_with(|| Peer::new(now));
            self.discovered.insert(Arc::clone(&member.name), Arc::clone(&member.address));
            changes.discovered.push(member);
        }
    }

    fn remove(&mut self, names: Vec<Arc<str>>, changes: &mut Changes) {
        for name in names {
            if self.discovered.remove(&name).is_some() {
                changes.removed.push(name);
            }
        }
    }

    /// Brings states and view up to date with what is known at `now`.
    fn settle(&mut self, now: Moment, changes: &mut Changes) {
        if self.empty_since.is_some_and(|since| now >= since + EMPTY_GRACE) {
            self.empty_since = None;
            self.remove(self.discovered.keys().cloned().collect(), changes);
        }
        for (name, peer) in &mut self.peers {
            changes.gone.extend(peer.take_ended(now).map(|incarnation| (Arc::clone(name), incarnation)));
        }
        // A peer that discovery does not name is remembered only while it has a link: discovery may be slower than it.
        self.peers.retain(|name, peer| peer.has_links() || self.discovered.contains_key(name));
        for (name, peer) in &mut self.peers {
            if peer.update(now, self.silent_after) && self.discovered.contains_key(name) {
                changes.states.push((Arc::clone(name), peer.state()));
            }
        }
        let members: Vec<Member> = self.discovered.iter().map(|(name, address)| self.member(name, address)).collect();
        if members == self.view.members() && self.leaving == self.view.is_leaving() {
            return;
        }
        let mut ring = self.view.ring_shared();
        let same_names = members.iter().map(|member| &member.name).eq(self.view.members().iter().map(|m| &m.name));
        if !same_names {
            let names: Vec<_> = members.iter().map(|m| &m.name).chain([&self.me.name]).cloned().collect();
            ring = Arc::new(Ring::new(&names, self.replication_factor));
            changes.ring_changed = true;
        }
        self.view = Arc::new(View::new(Arc::clone(&self.me.name), ring, members, self.leaving, now));
        changes.view = Some(Arc::clone(&self.view));
    }

    fn member(&self, name: &Arc<str>, address: &Arc<str>) -> Member {
        let peer = self.peers.get(name).expect("a discovered member must have a peer");
        peer.describe(Arc::clone(name), Arc::clone(address))
    }
}

#[cfg(test)]
mod tests;
