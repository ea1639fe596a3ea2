//! What happens to the store's entries, counted.

use std::sync::atomic::{AtomicU64, Ordering};

use super::admission::Decision;
use crate::updates::Cause;

/// What is kept, and what happened since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Keys kept.
    pub entries: u64,
    /// Bytes that they take.
    pub bytes: u64,
    /// Reads that found a live entry.
    pub hits: u64,
    /// Reads that did not.
    pub misses: u64,
    /// Entries stored.
    pub stored: u64,
    /// Entries that wait behind one fetched by this replica.
    pub behind: u64,
    /// Entries dropped in favour of what was there.
    pub kept_existing: u64,
    /// Entries dropped because what was there is at least as young.
    pub older: u64,
    /// Entries dropped because their sender made them younger than it had said before.
    pub rejuvenated: u64,
    /// Entries that arrived without a whole second left.
    pub dead_on_arrival: u64,
    /// Entries that a purge had overtaken before they came.
    pub overtaken: u64,
    /// Keys that were removed because they are purged.
    pub purged: u64,
    /// Entries thrown out to make room.
    pub evicted: u64,
    /// Entries whose life ended here.
    pub expired: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    stored: AtomicU64,
    behind: AtomicU64,
    kept_existing: AtomicU64,
    older: AtomicU64,
    rejuvenated: AtomicU64,
    dead_on_arrival: AtomicU64,
    overtaken: AtomicU64,
    purged: AtomicU64,
    evicted: AtomicU64,
    expired: AtomicU64,
}

impl Counters {
    pub(super) fn looked_up(&self, found: bool) {
        count(if found { &self.hits } else { &self.misses });
    }

    pub(super) fn decided(&self, decision: Decision) {
        count(match decision {
            Decision::Store => &self.stored,
            Decision::Behind => &self.behind,
            Decision::KeepExisting => &self.kept_existing,
            Decision::Older => &self.older,
            Decision::Rejuvenated => &self.rejuvenated,
            Decision::DeadOnArrival => &self.dead_on_arrival,
            Decision::Overtaken => &self.overtaken,
        });
    }

    pub(super) fn purged(&self) {
        count(&self.purged);
    }

    pub(super) fn gone(&self, cause: Cause) {
        count(match cause {
            Cause::Size => &self.evicted,
            Cause::Expired => &self.expired,
        });
    }

    pub(super) fn snapshot(&self, entries: u64, bytes: u64) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            entries,
            bytes,
            hits: read(&self.hits),
            misses: read(&self.misses),
            stored: read(&self.stored),
            behind: read(&self.behind),
            kept_existing: read(&self.kept_existing),
            older: read(&self.older),
            rejuvenated: read(&self.rejuvenated),
            dead_on_arrival: read(&self.dead_on_arrival),
            overtaken: read(&self.overtaken),
            purged: read(&self.purged),
            evicted: read(&self.evicted),
            expired: read(&self.expired),
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
