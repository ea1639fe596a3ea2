//! One consistent picture of the members: what readers take instead of a lock.

use std::sync::Arc;
use std::time::Duration;

use heimdall_shared::clock::Moment;
use heimdall_shared::link::{Condition, NodeState};

use super::{Reason, SETTLE_WITHIN, State};
use crate::ring::Ring;

/// Another member, as seen from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: Arc<str>,
    /// Where discovery says it can be dialled.
    pub address: Arc<str>,
    /// Where it said so itself, over a link whose certificate carries its name.
    pub learned: Option<Arc<str>>,
    /// Whether it answers.
    pub state: State,
    /// Since when it is in that state.
    pub since: Moment,
    /// Why.
    pub reason: Reason,
    /// How it says it is. Its keys stay with it whatever it says.
    pub said: NodeState,
    /// The incarnation of its newest link, past or present.
    pub incarnation: Option<u64>,
}

impl Member {
    /// For how long it has been in its state.
    pub fn for_how_long(&self, now: Moment) -> Duration {
        now.since(self.since)
    }

    /// Whether there is a link to it that is heard, be it leaving or not.
    pub const fn is_linked(&self) -> bool {
        match self.state {
            State::Up | State::Leaving => true,
            // Its link ended right after it came up: it may not know this agent yet, and refuse it.
            State::Suspected => !matches!(self.reason, Reason::LinkEnded),
            State::Joining | State::Silent | State::Down => false,
        }
    }

    /// Whether it may get a link soon: nothing says that it cannot be reached.
    pub const fn is_coming(&self) -> bool {
        !self.is_linked() && !matches!(self.state, State::Silent) && !matches!(self.reason, Reason::DialFailed(_))
    }
}

/// The members and their order at one moment. Immutable.
#[derive(Debug)]
pub struct View {
    self_name: Arc<str>,
    ring: Arc<Ring>,
    members: Vec<Member>,
    leaving: bool,
    made: Moment,
}

impl View {
    pub(super) const fn new(
        self_name: Arc<str>,
        ring: Arc<Ring>,
        members: Vec<Member>,
        leaving: bool,
        made: Moment,
    ) -> Self {
        Self { self_name, ring, members, leaving, made }
    }

    /// This agent's name.
    pub const fn self_name(&self) -> &Arc<str> {
        &self.self_name
    }

    /// The placement over all discovered members, this agent included, whether they answer or not.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// The placement, to be kept beyond this view.
    pub fn ring_shared(&self) -> Arc<Ring> {
        Arc::clone(&self.ring)
    }

    /// The other members, sorted by name.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The other member of that name.
    pub fn member(&self, name: &str) -> Option<&Member> {
        let at = self.members.binary_search_by(|member| (*member.name).cmp(name)).ok()?;
        Some(&self.members[at])
    }

    /// Whether `name` can be asked: it is heard, or this agent itself and not leaving.
    pub fn is_up(&self, name: &str) -> bool {
        if *name == *self.self_name {
            return !self.leaving;
        }
        self.member(name).is_some_and(|member| matches!(member.state, State::Up | State::Suspected))
    }

    /// Whether the member says that it does not have its share of the entries yet.
    pub fn is_starting(&self, name: &str) -> bool {
        self.member(name).is_some_and(|member| member.said.condition == Condition::Starting)
    }

    /// Whether this agent is draining.
    pub const fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// Who acts as owner for `slot`: the first in its order that can be asked and is not among `skipped`, the members that
    /// the sender of a request (or this agent, in an earlier attempt) could not reach. This agent's own name means: act as
    /// owner. `None`: nobody is left, go on without a lease.
    pub fn target(&self, slot: u16, skipped: &[impl AsRef<str>]) -> Option<&Arc<str>> {
        let is_skipped = |name: &str| skipped.iter().any(|skipped| skipped.as_ref() == name);
        self.ring.order(slot).find(|name| self.is_up(name) && !is_skipped(name))
    }

    /// The members before `target` in the order of `slot`: those that a request to it names as skipped.
    pub fn skipped_before(&self, slot: u16, target: &str) -> Vec<Arc<str>> {
        self.ring.order(slot).take_while(|name| &***name != target).cloned().collect()
    }

    /// Whether every member had its chance to connect: none is waiting for its first link, or only for too long.
    /// Before that a lookup would needlessly act as if alone.
    pub fn is_settled(&self, now: Moment) -> bool {
        let is_joining = |member: &Member| member.state == State::Joining && member.for_how_long(now) < SETTLE_WITHIN;
        !self.members.iter().any(is_joining)
    }

    /// When this view was made.
    pub const fn made(&self) -> Moment {
        self.made
    }
}
