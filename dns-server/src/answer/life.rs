//! The life of one miss: what the mesh and the upstreams say goes in, what to do comes out. Pure.
//!
//! The mesh is asked first; the upstreams when it says so, or when it is silent or gone. From then on both may speak: a
//! late grant is adopted by the query under way, a late entry answers at once. When a first attempt brought nothing, the
//! mesh is asked once more: another replica may get what this one's network does not.

use std::time::Duration;

use heimdall_shared::clock::Moment;
use heimdall_shared::entry::Entry;
use heimdall_shared::link::FailureKind;
use heimdall_shared::purge::Position;

use super::Outcome;
use crate::agent::{Absent, Word};
use crate::failures::Known;
use crate::metrics::MissOutcome;
use crate::upstream;

/// What to do, in this order.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action<L> {
    /// Ask the upstreams.
    Resolve,
    /// Ask the mesh once more, and wait with the others; [`Life::not_asked`] when it cannot be.
    AskAgain,
    /// Keep the answer in the first-level cache, if it lives.
    Keep(Entry),
    /// Remember that the upstreams or this process failed.
    Remember(Memory),
    /// Tell everybody who waits here. Comes once, and ends the miss but for what follows it.
    Finish(Outcome),
    /// Give the answer to the cluster.
    Publish(Entry, Option<L>),
    /// The lease goes back: somebody else found the answer.
    Release(L),
    /// The lease ends without an answer.
    Fail(L, FailureKind),
    /// Count what happened.
    Count(MissOutcome),
    /// Count that the mesh could not help.
    CountFallback,
}

/// A failure to remember.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Memory {
    /// Of this process.
    Own(Known),
    /// From the mesh, with what is left of it.
    Told(Duration),
}

/// One miss.
#[derive(Debug)]
pub(super) struct Life<L> {
    mesh: Mesh,
    upstream: Upstream,
    /// The purges that were applied when the upstreams were asked.
    since: Position,
    lease: Option<L>,
    may_ask_again: bool,
    finished: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mesh {
    /// The lookup has no final answer yet; whether somebody else is known to hold the lease.
    Open { held: bool },
    /// Nothing more comes from there.
    Over,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Upstream {
    NotAsked,
    Asking,
    /// Failed, or failed a moment ago and must not be asked again.
    Failed(Outcome, FailureKind),
}

impl<L> Life<L> {
    /// A miss whose lookup was sent, or not. `failed` is a failure of this process that is still remembered: then the
    /// upstreams are not asked again.
    pub(super) fn begin(mesh: Result<(), Absent>, failed: Option<Outcome>) -> (Self, Vec<Action<L>>) {
        let upstream = match failed {
            Some(outcome) => Upstream::Failed(outcome, FailureKind::Local),
            None => Upstream::NotAsked,
        };
        let may_ask_again = mesh != Err(Absent::Off);
        let mesh_now = Mesh::Open { held: false };
        let mut life = Self { mesh: mesh_now, upstream, since: 0, lease: None, may_ask_again, finished: false };
        let mut actions = Vec::new();
        if let Err(why) = mesh {
            life.mesh = Mesh::Over;
            if let Absent::Unable(outcome) = why {
                actions.push(Action::Count(outcome));
            }
            life.go(why != Absent::Off, &mut actions);
        }
        (life, actions)
    }

    /// Whether the lookup may still be answered.
    pub(super) fn is_asking_mesh(&self) -> bool {
        !self.finished && self.mesh != Mesh::Over
    }

    /// Whether silence of the mesh would change anything.
    pub(super) fn minds_silence(&self) -> bool {
        self.is_asking_mesh() && self.upstream != Upstream::Asking
    }

    /// Whether everybody has been told.
    pub(super) const fn is_finished(&self) -> bool {
        self.finished
    }

    /// The upstreams are asked from now on, after so many purges.
    pub(super) const fn asks(&mut self, since: Position) {
        self.since = since;
    }

    /// The purges that were applied when the upstreams were asked.
    pub(super) const fn since(&self) -> Position {
        self.since
    }

    /// The lease that this miss holds.
    pub(super) const fn lease(&self) -> Option<&L> {
        self.lease.as_ref()
    }

    /// The mesh spoke.
    pub(super) fn heard(&mut self, word: Word<L>) -> Vec<Action<L>> {
        let mut actions = Vec::new();
        if !self.is_asking_mesh() {
            return actions;
        }
        let held = self.mesh == Mesh::Open { held: true };
        self.mesh = Mesh::Over;
        match word {
            Word::Held(_) => self.mesh = Mesh::Open { held: true },
            Word::Entry(entry) => {
                actions.push(Action::Count(if held { MissOutcome::held_entry } else { MissOutcome::entry }));
                actions.push(Action::Keep(entry.clone()));
                self.finish(Outcome::Answer { entry, fresh: false }, &mut actions);
                actions.extend(self.lease.take().map(Action::Release));
            }
            Word::Failure(remaining) => {
                actions.push(Action::Count(MissOutcome::failure));
                // Our own query may know better.
                if self.upstream != Upstream::Asking {
                    actions.push(Action::Remember(Memory::Told(remaining)));
                    self.finish(Outcome::Failed, &mut actions);
                }
            }
            Word::Granted { lease, takeover } => {
                actions.push(Action::Count(if takeover { MissOutcome::takeover } else { MissOutcome::granted }));
                actions.extend(self.lease.replace(lease).map(Action::Release));
                self.go(false, &mut actions);
            }
            // Nobody asked for a stale one: a mesh that lies is one that has nothing.
            Word::Proceed | Word::Stale(_) => {
                actions.push(Action::Count(MissOutcome::proceed));
                self.go(true, &mut actions);
            }
            Word::LinkDown => {
                actions.push(Action::Count(MissOutcome::link_down));
                self.go(true, &mut actions);
            }
        }
        actions
    }

    /// The mesh was silent for too long. The lookup stays open.
    pub(super) fn silent(&mut self) -> Vec<Action<L>> {
        let mut actions = Vec::new();
        if self.minds_silence() {
            actions.push(Action::Count(MissOutcome::silence));
            match self.upstream {
                Upstream::NotAsked => self.go(true, &mut actions),
                // Neither answers: waiting on would only make the failure slower.
                _ => self.give_up(&mut actions),
            }
        }
        actions
    }

    /// The upstreams were asked, and this came of it at `now`. When the miss is not finished by it, the mesh alone is left,
    /// and its silence is counted anew.
    pub(super) fn resolved(&mut self, outcome: upstream::Outcome, now: Moment) -> Vec<Action<L>> {
        let mut actions = Vec::new();
        let (outcome, kind, known) = match outcome {
            upstream::Outcome::Answer { answer, born } => {
                let entry = Entry { packet: answer.packet, born, lifetime: answer.lifetime, since: self.since };
                self.answered(entry, now, &mut actions);
                return actions;
            }
            upstream::Outcome::ServFail => (Outcome::Failed, FailureKind::Shared, Some(Known::Shared)),
            upstream::Outcome::NoAnswer => (Outcome::Failed, FailureKind::Local, Some(Known::Local(None))),
            upstream::Outcome::Rcode(code) => {
                (Outcome::Rcode(code), FailureKind::Local, Some(Known::Local(Some(code))))
            }
            // Nobody was asked, so there is nothing to remember.
            upstream::Outcome::Overload => (Outcome::Refused, FailureKind::Local, None),
        };
        if let Some(known) = known {
            actions.push(Action::Remember(Memory::Own(known)));
        }
        self.upstream = Upstream::Failed(outcome, kind);
        // A failure of our own says nothing about the others: as long as the lookup is open, one of them may answer it.
        if self.mesh == Mesh::Over || kind == FailureKind::Shared {
            self.give_up(&mut actions);
        } else {
            actions.extend(self.lease.take().map(|lease| Action::Fail(lease, kind)));
        }
        actions
    }

    /// The first attempt at the upstreams ended without an answer; the next ones go on.
    pub(super) fn struggled(&mut self) -> Vec<Action<L>> {
        let alone = self.mesh == Mesh::Over && self.upstream == Upstream::Asking && !self.finished;
        if !alone || !self.may_ask_again {
            return Vec::new();
        }
        self.may_ask_again = false;
        self.mesh = Mesh::Open { held: false };
        vec![Action::AskAgain]
    }

    /// The mesh could not be asked once more.
    pub(super) fn not_asked(&mut self) {
        self.mesh = Mesh::Over;
    }

    /// An attempt of our own only just fits into the time of those who wait. Whoever works on the answer has had the rest:
    /// signs of work alone, honest or not, must not cost a client its answer.
    pub(super) fn late(&mut self) -> Vec<Action<L>> {
        let mut actions = Vec::new();
        if self.is_asking_mesh() && self.upstream == Upstream::NotAsked {
            actions.push(Action::Count(MissOutcome::late));
            self.go(true, &mut actions);
        }
        actions
    }

    /// The time of everybody who waits is over.
    pub(super) fn expired(&mut self) -> Vec<Action<L>> {
        let mut actions = Vec::new();
        if !self.finished && self.upstream != Upstream::Asking {
            self.give_up(&mut actions);
        }
        actions
    }

    /// The mesh has no answer: ask the upstreams, unless they are being asked or have failed.
    fn go(&mut self, without_lease: bool, actions: &mut Vec<Action<L>>) {
        if self.upstream == Upstream::NotAsked {
            if without_lease {
                actions.push(Action::CountFallback);
            }
            self.upstream = Upstream::Asking;
            actions.push(Action::Resolve);
        } else if self.upstream != Upstream::Asking && self.mesh == Mesh::Over {
            self.give_up(actions);
        }
    }

    fn answered(&mut self, entry: Entry, now: Moment, actions: &mut Vec<Action<L>>) {
        actions.push(Action::Keep(entry.clone()));
        self.finish(Outcome::Answer { entry: entry.clone(), fresh: true }, actions);
        let lease = self.lease.take();
        // Without a lease nobody waits for it; a dead one would be stored nowhere.
        if lease.is_some() || entry.is_live(now) {
            actions.push(Action::Publish(entry, lease));
        }
    }

    fn give_up(&mut self, actions: &mut Vec<Action<L>>) {
        let (outcome, kind) = match &self.upstream {
            Upstream::Failed(outcome, kind) => (outcome.clone(), *kind),
            _ => (Outcome::Failed, FailureKind::Local),
        };
        self.finish(outcome, actions);
        if let Some(lease) = self.lease.take() {
            actions.push(Action::Fail(lease, kind));
        }
    }

    fn finish(&mut self, outcome: Outcome, actions: &mut Vec<Action<L>>) {
        self.mesh = Mesh::Over;
        self.finished = true;
        actions.push(Action::Finish(outcome));
    }
}

#[cfg(test)]
mod tests;
