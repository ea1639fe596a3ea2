//! Purges in this process: they come from the agent, empty the first-level cache, and keep out of it what was fetched before.
//!
//! An answer that is about to be kept is judged by the position of its fetch ([`heimdall_shared::purge`]); what is in the cache
//! is removed by one task, which then says that it is done. Hits know nothing of all this.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::quality::RandomState;
use heimdall_shared::clock::Moment;
use heimdall_shared::dns::answer::TtlLimits;
use heimdall_shared::entry::Entry;
use heimdall_shared::key::Key;
use heimdall_shared::purge::{Ledger, LinkKind, Position, Purge, Scope};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::cache::{Cache, Ready};

/// Longer than any answer lives are purges remembered, by this much: ages grow a little on their way.
const MARGIN: Duration = Duration::from_secs(60);

/// Kinds of answers (type, class, flags, view) that are remembered as having been in the cache, so that a name is removed
/// without a walk through all of it. Clients ask for a few dozen; beyond this the cache is walked through.
const KINDS_MAX: usize = 256;

/// Scopes for which the cache is walked through at a time; more of them at once, and all of it is emptied.
const WALKED_MAX: usize = 64;

/// What is purged in this process.
#[derive(Debug)]
pub struct Purges {
    ledger: Ledger,
    cache: Arc<Cache>,
    kinds: Mutex<HashSet<Box<[u8]>, RandomState>>,
    links: AtomicU64,
}

impl Purges {
    /// Nothing is purged so far. Answers are kept for at most `stale` after their end.
    pub fn new(cache: Arc<Cache>, stale: Duration) -> Self {
        let keep = TtlLimits::default().max + stale + MARGIN;
        Self { ledger: Ledger::new(keep), cache, kinds: Mutex::default(), links: AtomicU64::new(0) }
    }

    /// What is known of purges.
    pub const fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// A name for a new link.
    pub(crate) fn next_link(&self) -> u64 {
        self.links.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// What this process's links are to it.
    pub(crate) const KIND: LinkKind = LinkKind::Beside;

    /// Keeps a live answer, unless a purge has overtaken it.
    pub fn keep(&self, key: &Key, entry: &Entry, now: Moment) {
        self.keep_by(key, entry.since, || self.cache.insert(key, entry, now));
    }

    /// Keeps an answer that died, but not longer than `beyond` ago, unless it was purged.
    pub fn keep_stale(&self, key: &Key, entry: &Entry, now: Moment, beyond: Duration) {
        self.keep_by(key, entry.since, || self.cache.insert_stale(key, entry, now, beyond));
    }

    fn keep_by(&self, key: &Key, since: Position, keep: impl FnOnce()) {
        // Known before it is kept: who removes a name by its kinds finds it.
        self.remember_kind(key);
        self.ledger.keep(key, since, keep);
    }

    fn remember_kind(&self, key: &Key) {
        let kind = &key.as_bytes()[1 + key.name().len()..];
        let mut kinds = self.kinds();
        if !kinds.contains(kind) && kinds.len() <= KINDS_MAX {
            kinds.insert(kind.into());
        }
    }

    /// Empties the cache of what is purged, until `stop` is cancelled.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut changes = self.ledger.changes();
        let mut emptied = 0;
        loop {
            let (position, purges) = self.ledger.look(|book| (book.log().position(), book.log().after(emptied)));
            if position > emptied {
                let purger = Arc::clone(&self);
                // A walk takes some tens of milliseconds: on a thread that nobody waits for.
                let walk = tokio::task::spawn_blocking(move || purger.empty(&purges));
                if let Err(error) = walk.await {
                    debug!(%error, "emptying the cache was cut off");
                    return;
                }
                emptied = position;
                if self.ledger.look(|book| book.log().is_full()) {
                    // What is in the cache now is newer than all of them.
                    self.ledger.give_up(Moment::now());
                }
                self.ledger.finish(position);
            }
            if !matches!(stop.run_until_cancelled(changes.changed()).await, Some(Ok(()))) {
                return;
            }
        }
    }

    /// Removes what `purges` cover, and keeps what they inject.
    fn empty(&self, purges: &[(Position, Arc<Purge>)]) {
        let mut walked = Vec::new();
        for (_, purge) in purges {
            match &purge.scope {
                Scope::Key(key) => self.cache.remove(key.as_bytes()),
                Scope::Name { name, qtype } if self.remove_name(name, *qtype) => {}
                scope => walked.push(scope),
            }
        }
        if walked.len() > WALKED_MAX {
            walked = vec![&Scope::Everything];
        }
        if !walked.is_empty() {
            let is_covered = |ready: &Ready| {
                walked.iter().any(|scope| scope.covers_octets(ready.key(), ready.name(), ready.qtype()))
            };
            self.cache.retain(|ready| !is_covered(ready));
        }
        for (position, purge) in purges {
            if let Some((key, entry)) = purge.entry(*position) {
                self.keep(key, &entry, Moment::now());
            }
        }
    }

    fn kinds(&self) -> MutexGuard<'_, HashSet<Box<[u8]>, RandomState>> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes a name in all kinds that were ever kept. False when they are too many to be known.
    fn remove_name(&self, name: &[u8], qtype: Option<u16>) -> bool {
        let kinds = self.kinds();
        if kinds.len() > KINDS_MAX {
            return false;
        }
        let of_type = |kind: &&[u8]| qtype.is_none_or(|qtype| kind.starts_with(&qtype.to_be_bytes()));
        for kind in kinds.iter().map(|kind| &**kind).filter(of_type) {
            let key = [&[Key::VERSION], name, kind].concat();
            self.cache.remove(&key);
        }
        true
    }
}

#[cfg(test)]
mod tests;
