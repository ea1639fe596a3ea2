//! Whether one peer answers, judged by its links alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use heimdall_shared::clock::Moment;
use heimdall_shared::link::{Condition, NodeState};

use super::Member;
use crate::lease::LinkId;

/// A link that ends sooner than this after it came up was probably one of two.
const YOUNG: Duration = Duration::from_millis(500);

/// How long the other one of two links is then waited for: both were opened at the same time, so it is a matter of a round
/// trip.
const ANOTHER_WITHIN: Duration = Duration::from_millis(250);

/// A member is suspected after this part of the time after which it is silent: with the usual 2.5 s after four missed
/// beats, so that people see it coming and one lost packet shows nothing.
const fn suspect_after(silent_after: Duration) -> Duration {
    silent_after.saturating_mul(2).checked_div(5).expect("a fixed divisor must not be zero")
}

/// Whether a member answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Was discovered and neither had a link nor failed to be dialled yet.
    Joining,
    /// Has a link that is heard.
    Up,
    /// Nothing was heard for several beats, or its link ended right after it came up. It is still asked.
    Suspected,
    /// Has links, but nothing was heard over them for a while.
    Silent,
    /// Has no link.
    Down,
    /// Has said that it leaves.
    Leaving,
}

/// Why a member is in its state, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Discovery named it and nothing happened since.
    Discovered,
    /// Its link finished the Hello, or was heard again.
    Heard,
    /// Nothing was heard over its links.
    NotHeard,
    /// Its last link ended.
    LinkEnded,
    /// The last attempt to dial it failed.
    DialFailed(Arc<str>),
    /// It announced that it leaves.
    Announced,
}

/// What is known of one peer.
#[derive(Debug)]
pub(super) struct Peer {
    links: BTreeMap<LinkId, Link>,
    /// The incarnation of the link that came up last.
    incarnation: Option<u64>,
    /// The incarnation that announced that it leaves.
    leaving: Option<u64>,
    learned: Option<Arc<str>>,
    /// The incarnation whose last link ended while it was young, and until when another one is waited for.
    ending: Option<(u64, Moment)>,
    /// What the incarnation of the newest link says of itself.
    said: NodeState,
    state: State,
    since: Moment,
    reason: Reason,
}

#[derive(Debug)]
struct Link {
    incarnation: u64,
    up: Moment,
    heard: Moment,
}

impl Peer {
    pub(super) const fn new(now: Moment) -> Self {
        Self {
            links: BTreeMap::new(),
            incarnation: None,
            leaving: None,
            learned: None,
            ending: None,
            said: NodeState::of(Condition::Healthy),
            state: State::Joining,
            since: now,
            reason: Reason::Discovered,
        }
    }

    pub(super) fn link_up(&mut self, link: LinkId, incarnation: u64, advertised: Option<Arc<str>>, now: Moment) {
        self.links.insert(link, Link { incarnation, up: now, heard: now });
        if self.incarnation.replace(incarnation) != Some(incarnation) {
            self.said = NodeState::of(Condition::Healthy);
        }
        self.learned = advertised.or(self.learned.take());
        if self.ending.is_some_and(|(ending, _)| ending == incarnation) {
            self.ending = None;
        }
    }

    /// Returns the incarnation that has no link any more, if this was its last one. When that one was young it says so only
    /// later ([`Self::take_ended`]): of two links that were dialled at the same time one ends, and the end of the one
    /// may be seen before the beginning of the other.
    pub(super) fn link_down(&mut self, link: LinkId, now: Moment) -> Option<u64> {
        let Link { incarnation: ended, up, .. } = self.links.remove(&link)?;
        if self.links.values().any(|link| link.incarnation == ended) {
            return None;
        }
        if self.links.is_empty() && now.since(up) < YOUNG && self.leaving != Some(ended) && self.ending.is_none() {
            self.ending = Some((ended, now + ANOTHER_WITHIN));
            return None;
        }
        Some(ended)
    }

    /// The incarnation whose last link ended young, once no other one came in time or another incarnation did.
    pub(super) fn take_ended(&mut self, now: Moment) -> Option<u64> {
        let (ended, until) = self.ending?;
        if now < until && self.links.is_empty() {
            return None;
        }
        self.ending = None;
        Some(ended)
    }

    pub(super) fn heard(&mut self, link: LinkId, now: Moment) {
        if let Some(link) = self.links.get_mut(&link) {
            link.heard = link.heard.max(now);
        }
    }

    pub(super) fn dial_failed(&mut self, error: Arc<str>, now: Moment) {
        if !self.links.is_empty() {
            return;
        }
        if self.state == State::Joining {
            self.state = State::Down;
            self.since = now;
        }
        self.reason = Reason::DialFailed(error);
    }

    pub(super) fn says(&mut self, link: LinkId, said: NodeState) {
        // An older incarnation's last words say nothing of the one that came after it.
        if self.links.get(&link).is_some_and(|link| Some(link.incarnation) == self.incarnation) {
            self.said = said;
        }
    }

    pub(super) fn leaving(&mut self, link: LinkId) {
        if let Some(link) = self.links.get(&link) {
            self.leaving = Some(link.incarnation);
        }
    }

    pub(super) fn has_links(&self) -> bool {
        !self.links.is_empty() || self.ending.is_some()
    }

    pub(super) const fn state(&self) -> State {
        self.state
    }

    /// Judges the state anew; true if it changed.
    pub(super) fn update(&mut self, now: Moment, silent_after: Duration) -> bool {
        // Links of an incarnation that leaves say nothing about one that came after it.
        let heard =
            self.links.values().filter(|link| Some(link.incarnation) != self.leaving).map(|link| link.heard).max();
        let state = match heard {
            Some(heard) if now.since(heard) < suspect_after(silent_after) => State::Up,
            Some(heard) if now.since(heard) < silent_after => State::Suspected,
            Some(_) => State::Silent,
            None if self.ending.is_some() => State::Suspected,
            None if self.has_links() => State::Leaving,
            None if self.state == State::Joining => State::Joining,
            None => State::Down,
        };
        if state == self.state {
            return false;
        }
        self.state = state;
        self.since = now;
        self.reason = match state {
            State::Joining => Reason::Discovered,
            State::Up => Reason::Heard,
            State::Suspected if self.ending.is_some() => Reason::LinkEnded,
            State::Suspected | State::Silent => Reason::NotHeard,
            State::Leaving => Reason::Announced,
            State::Down => Reason::LinkEnded,
        };
        true
    }

    /// When this peer falls silent if nothing is heard until then.
    pub(super) fn next_deadline(&self, silent_after: Duration) -> Option<Moment> {
        let after = match self.state {
            State::Up => suspect_after(silent_after),
            State::Suspected => silent_after,
            _ => return None,
        };
        let silent = self.links.values().map(|link| link.heard + after).max();
        silent.or(self.ending.map(|(_, until)| until))
    }

    pub(super) fn describe(&self, name: Arc<str>, address: Arc<str>) -> Member {
        Member {
            name,
            address,
            learned: self.learned.clone(),
            state: self.state,
            since: self.since,
            reason: self.reason.clone(),
            said: self.said.clone(),
            incarnation: self.incarnation,
        }
    }
}
