//! A key that is being fetched, and who waits for it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use heimdall_shared::clock::Moment;
use heimdall_shared::key::Key;
use heimdall_shared::link::LookupMode;
use heimdall_shared::purge::Position;
use heimdall_shared::telemetry::Span;
use heimdall_shared::trace::TraceContext;

use super::{Core, Outcome};
use crate::agent::Question;

/// Clients that wait for one flight: a storm on one name must not fill the process. Beyond it a query fails at once.
pub(super) const WAITERS_MAX: usize = 4_096;

/// The position of a flight that has asked no upstream: whatever it brings is judged by where it comes from.
const NOT_FETCHING: u64 = u64::MAX;

/// Holders that one flight's span links to: leases that were lost one after the other within its time.
const HOLDERS_MAX: usize = 8;

/// A key that is being fetched.
#[derive(Debug)]
pub(super) struct Flight {
    waiting: Mutex<Waiting>,
    /// The purges that were applied when it asked the upstreams; none later than [`NOT_FETCHING`] while it has not.
    pub(super) since: AtomicU64,
    /// When the entry was born that this flight is to replace, while that still lives.
    pub(super) refreshes: Option<Moment>,
    /// The span of the query that began it.
    pub(super) trace: Option<TraceContext>,
    /// Spans of other replicas that it waited for.
    holders: Mutex<Vec<TraceContext>>,
}

/// Who waits for a flight.
#[derive(Debug, Default)]
struct Waiting {
    /// What those get who come before the flight has landed: a stale answer, for which its first clients have waited long enough; and
    /// the purges that were applied when it was looked for.
    meanwhile: Option<(Position, Outcome)>,
    waiters: Vec<Waiter>,
}

/// Somebody who waits for an answer.
pub(super) struct Waiter {
    /// The span of the query.
    pub(super) span: Option<Span>,
    /// Called once, by whoever has the answer: it must only pass it on.
    pub(super) answered: Box<dyn FnOnce(Outcome) + Send>,
}

impl fmt::Debug for Waiter {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Waiter").finish_non_exhaustive()
    }
}

impl Waiter {
    /// Where its query's span stands.
    pub(super) fn context(&self) -> Option<TraceContext> {
        self.span.as_ref().map(Span::context)
    }
}

impl Flight {
    /// One for whoever waits.
    pub(super) fn of(waiter: Waiter) -> Self {
        let trace = waiter.context();
        Self::new(trace, Waiting { meanwhile: None, waiters: vec![waiter] }, None)
    }

    /// One that replaces the entry that was born then. Nobody waits.
    pub(super) fn refresh(born: Moment) -> Self {
        Self::new(None, Waiting::default(), Some(born))
    }

    fn new(trace: Option<TraceContext>, waiting: Waiting, refreshes: Option<Moment>) -> Self {
        let (waiting, since, holders) = (Mutex::new(waiting), AtomicU64::new(NOT_FETCHING), Mutex::default());
        Self { waiting, since, refreshes, trace, holders }
    }

    /// What it asks of the mesh.
    pub(super) fn question(&self, deadline: Duration) -> Question {
        let mode = self.refreshes.map_or(LookupMode::Join, |held| LookupMode::Refresh { held });
        Question { mode, deadline, trace: self.trace }
    }

    /// Whether it is for whoever asks at the position of a purge of its key: what began to be fetched before that is for those who
    /// asked before it.
    pub(super) fn is_since(&self, purged: Position) -> bool {
        self.since.load(Ordering::Relaxed) >= purged
    }

    /// Adds somebody who waits, unless there is something for him already, which the last purge of its key does not cover, or too many
    /// wait.
    pub(super) fn join(&self, waiter: Waiter, purged: Option<Position>) -> Result<(), (Waiter, Outcome)> {
        let mut waiting = self.waiting();
        if let Some((since, outcome)) = &waiting.meanwhile
            && purged.is_none_or(|purged| *since >= purged)
        {
            return Err((waiter, outcome.clone()));
        }
        if waiting.waiters.len() >= WAITERS_MAX {
            return Err((waiter, Outcome::Refused));
        }
        waiting.waiters.push(waiter);
        Ok(())
    }

    /// Tells everybody who waits, and those who come from now on. It was looked for after the purges up to `since` were applied.
    pub(super) fn meanwhile(&self, core: &Core, key: &Key, since: Position, outcome: Outcome) {
        let waiters = {
            let mut waiting = self.waiting();
            waiting.meanwhile = Some((since, outcome.clone()));
            std::mem::take(&mut waiting.waiters)
        };
        self.tell(core, key, waiters, outcome);
    }

    /// Tells everybody who waits. Nobody comes any more.
    pub(super) fn land(&self, core: &Core, key: &Key, outcome: Outcome) {
        let waiters = std::mem::take(&mut self.waiting().waiters);
        self.tell(core, key, waiters, outcome);
    }

    fn tell(&self, core: &Core, key: &Key, mut waiters: Vec<Waiter>, outcome: Outcome) {
        // The one whose query began it waited for what others did, too.
        let mut spans = waiters.iter_mut().filter_map(|waiter| waiter.span.as_mut());
        if let Some(span) = spans.find(|span| Some(span.context()) == self.trace) {
            for holder in &*self.holders() {
                span.link(holder);
            }
        }
        let last = waiters.pop();
        for waiter in waiters {
            core.tell(key, waiter, outcome.clone());
        }
        if let Some(last) = last {
            core.tell(key, last, outcome);
        }
    }

    /// Whether there is a client.
    pub(super) fn is_waited_for(&self) -> bool {
        !self.waiting().waiters.is_empty()
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another replica's query, with this span, holds the lease.
    pub(super) fn held_by(&self, holder: TraceContext) {
        let mut holders = self.holders();
        if holders.len() < HOLDERS_MAX {
            holders.push(holder);
        }
    }

    fn holders(&self) -> MutexGuard<'_, Vec<TraceContext>> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
