//! One key's story from its first lease to its result.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use heimdall_shared::clock::Moment;
use heimdall_shared::key::Key;
use heimdall_shared::trace::TraceContext;

use super::{Asker, Holder};

/// A lease; its token's counter names it.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) key: Key,
    pub(super) holder: Holder,
    pub(super) stream: u64,
    pub(super) trace: Option<TraceContext>,
    pub(super) granted: Moment,
    pub(super) expires: Moment,
    pub(super) confirmation: Confirmation,
    pub(super) struggling: bool,
    pub(super) watched: Option<Moment>,
    pub(super) ticked: Option<Moment>,
    pub(super) relayed: Option<Moment>,
    /// Somebody was told of this lease who has not joined the wait: its result is kept for them.
    pub(super) result_wanted: bool,
}

/// Whether the holder is known to work on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Confirmation {
    /// It asked by itself a moment ago, or has ticked.
    Given,
    /// It inherited the lease and must tick until then.
    Due(Moment),
    /// It did not tick in time, but nobody else wanted the lease; the next who asks gets it.
    Overdue,
}

impl Lease {
    /// Whether the holder has to be told that somebody waits: it does not tick, and was not told just now.
    pub(super) fn needs_watch(&self, tick: Duration, now: Moment) -> bool {
        let is_quiet = self.ticked.is_none_or(|ticked| now.since(ticked) > tick * 2);
        is_quiet && self.watched.is_none_or(|watched| now.since(watched) > tick)
    }

    pub(super) fn is_held_by(&self, holder: &Holder) -> bool {
        self.holder == *holder
    }
}

/// A request that waits, and the lease that it was told of: ticks name that one, whoever works on the key by then.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) asker: Asker,
    pub(super) told: u64,
}

/// What happens to one key: never without a live lease.
#[derive(Debug, Default)]
pub(super) struct Episode {
    /// Counters of the live leases, oldest first: one, or two while the first one's holder struggles.
    pub(super) leases: Vec<u64>,
    /// Longest wait first.
    pub(super) waiters: VecDeque<Waiter>,
    /// Members whose own attempts failed, or that did not take up a lease passed on to them: no more leases for these.
    pub(super) failed: Vec<Arc<str>>,
}

impl Episode {
    pub(super) fn mark_failed(&mut self, member: &Arc<str>) {
        if !self.has_failed(member) {
            self.failed.push(Arc::clone(member));
        }
    }

    pub(super) fn has_failed(&self, member: &Arc<str>) -> bool {
        self.failed.contains(member)
    }

    pub(super) fn remove_waiter(&mut self, link: u64, request: u64) -> Option<Waiter> {
        let at = self.waiters.iter().position(|waiter| waiter.asker.link == link && waiter.asker.request == request)?;
        self.waiters.remove(at)
    }
}
