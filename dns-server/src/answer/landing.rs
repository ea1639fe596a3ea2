//! What a flight does with what it has found, and how it ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use heimdall_shared::clock::Moment;
use heimdall_shared::dns::answer::{self, Answer};
use heimdall_shared::entry::Entry;
use heimdall_shared::key::Key;
use heimdall_shared::purge::Position;
use tracing::debug;

use super::life::{Action, Life, Memory};
use super::waiting::Flight;
use super::{Core, Outcome};
use crate::agent::{Lease, Mesh, Word};
use crate::metrics::MissOutcome;
use crate::upstream;

/// Tells everybody who waits and takes the flight off the list, whatever happens to whoever has it.
#[derive(Debug)]
pub(super) struct Landing {
    pub(super) core: Arc<Core>,
    pub(super) key: Key,
    pub(super) flight: Arc<Flight>,
    landed: bool,
}

/// What is left to do of an action when it takes time.
#[derive(Debug)]
pub(super) enum Left {
    /// Ask the upstreams.
    Resolve,
    /// Ask the mesh once more.
    AskAgain,
    /// Find what is second best, or tell everybody that it failed.
    Fail(Outcome),
}

impl From<Left> for Action<Lease> {
    fn from(left: Left) -> Self {
        match left {
            Left::Resolve => Self::Resolve,
            Left::AskAgain => Self::AskAgain,
            Left::Fail(outcome) => Self::Finish(outcome),
        }
    }
}

impl Landing {
    /// Nobody is told anything yet.
    pub(super) const fn new(core: Arc<Core>, key: Key, flight: Arc<Flight>) -> Self {
        Self { core, key, flight, landed: false }
    }

    /// The mesh spoke.
    pub(super) fn heard(&self, life: &mut Life<Lease>, word: Word<Lease>) -> Vec<Action<Lease>> {
        if let Word::Held(Some(holder)) = word {
            self.flight.held_by(holder);
        }
        life.heard(self.core.checked(&self.key, word))
    }

    /// Does what can be done at once.
    pub(super) fn act(&mut self, mesh: &dyn Mesh, action: Action<Lease>, now: Moment) -> Option<Left> {
        let (core, key) = (&*self.core, &self.key);
        match action {
            Action::Resolve => return Some(Left::Resolve),
            Action::AskAgain => return Some(Left::AskAgain),
            Action::Keep(entry) => {
                core.purges.keep(key, &entry, now);
                core.failures().answered(key);
            }
            Action::Remember(Memory::Own(known)) => core.failures().failed(key, known, now),
            Action::Remember(Memory::Told(remaining)) => core.failures().told(key, remaining, now),
            Action::Finish(outcome) if outcome.is_failure() => return Some(Left::Fail(outcome)),
            Action::Finish(outcome) => self.land(outcome),
            Action::Publish(entry, Some(lease)) => lease.publish(key, &entry),
            Action::Publish(entry, None) => mesh.publish(key, &entry),
            Action::Fail(lease, kind) => lease.fail(kind),
            // A lease that is dropped goes back.
            Action::Release(lease) => drop(lease),
            // A refresh is no miss.
            Action::Count(_) | Action::CountFallback if self.flight.refreshes.is_some() => {}
            Action::Count(outcome) => {
                if matches!(outcome, MissOutcome::entry | MissOutcome::held_entry) {
                    core.metrics.mesh_hits.inc();
                }
                core.metrics.outcome(outcome);
            }
            Action::CountFallback => {
                core.metrics.fallbacks.inc();
            }
        }
        None
    }

    /// What those get who have waited long enough, and those who come before the flight has landed.
    pub(super) fn meanwhile(&self, since: Position, outcome: Outcome) {
        self.flight.meanwhile(&self.core, &self.key, since, outcome);
    }

    pub(super) fn land(&mut self, outcome: Outcome) {
        self.landed = true;
        // Off the list first: whoever comes now finds the answer in L1, or begins anew when it is kept nowhere. After a purge
        // another flight may be there.
        let mut flights = self.core.flights();
        if flights.get(&self.key).is_some_and(|listed| Arc::ptr_eq(listed, &self.flight)) {
            flights.remove(&self.key);
        }
        drop(flights);
        self.flight.land(&self.core, &self.key, outcome);
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        if !self.landed {
            self.land(Outcome::Failed);
        }
        if self.flight.refreshes.is_some() {
            self.core.refreshing.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Core {
    /// What the upstreams said. When a purge has overtaken it, it is for those alone who wait for it.
    pub(super) fn in_time(&self, key: &Key, since: Position, outcome: upstream::Outcome) -> upstream::Outcome {
        match outcome {
            upstream::Outcome::Answer { answer, born } if !self.purges.ledger().admits(key, since) => {
                self.metrics.overtaken.inc();
                let answer = Answer { packet: answer::with_ttl(&answer.packet, 0), lifetime: Duration::ZERO };
                upstream::Outcome::Answer { answer, born }
            }
            outcome => outcome,
        }
    }

    /// An entry must answer the question of its key, whoever sent it, and a failure must not be the second one in a row that this
    /// process is only told of: a mesh that lies is one that has nothing.
    pub(super) fn checked(&self, key: &Key, word: Word<Lease>) -> Word<Lease> {
        let (entry, is_stale) = match word {
            Word::Entry(entry) => (entry, false),
            Word::Stale(entry) => (entry, true),
            Word::Failure(_) if !self.failures().believes(key, Moment::now()) => return Word::Proceed,
            word => return word,
        };
        if !self.purges.ledger().admits(key, entry.since) {
            // Its sender had not heard of the purge, or it was on its way: it is no answer any more.
            self.metrics.overtaken.inc();
            return Word::Proceed;
        }
        match answer::check(key, &entry.packet, self.upstreams.limits()) {
            Ok(longest) => {
                // Cut out of a received message, it would keep all of that in memory for as long as L1 keeps it.
                let packet = Bytes::copy_from_slice(&entry.packet);
                let entry = Entry { packet, lifetime: entry.lifetime.min(longest), ..entry };
                if is_stale { Word::Stale(entry) } else { Word::Entry(entry) }
            }
            Err(refused) => {
                self.metrics.agent.refuse_entry();
                debug!(%refused, "the agent sent an entry that does not answer its key");
                Word::Proceed
            }
        }
    }
}
