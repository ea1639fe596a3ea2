//! The shared tier's entries on this replica: what it owns, replicates or fetched itself, bounded by bytes.
//!
//! Which of two entries stays is decided by pure rules ([`admission`]); the `shelf` keeps them and makes room. Neither has a
//! clock: whether an entry is live is judged anew at every read, and what is over for good is looked for now and then ([`tidy`]).

pub mod admission;
mod counters;
mod held;
mod shelf;
pub mod tidy;
mod turns;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use heimdall_shared::clock::Moment;
use heimdall_shared::entry::Entry;
use heimdall_shared::key::Key;
use heimdall_shared::purge::Ledger;

use self::admission::{Decision, How, admit};
use self::counters::Counters;
use self::shelf::{Shelf, Slot};
use self::turns::Turns;
use crate::membership::View;
use crate::purge;
use crate::updates::{Cause, Updates, What};

pub use self::counters::Stats;
pub use self::held::{Held, Newer, Origin, Sourced};

/// Two dates of one entry's birth may differ by the delay of each message that it came in. An entry that was fetched anew is
/// younger by more than that: nothing with less than a few seconds of life is refreshed.
const SAME_BIRTH: Duration = Duration::from_secs(1);

/// How somebody else's publish arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// With this granter's live token, from its holder.
    WithToken,
    /// Without one, or with one that ended.
    WithoutToken,
}

/// The entries. Safe to use from any task: each write decides and stores in one step per key.
#[derive(Debug)]
pub struct Store {
    shelf: Shelf,
    /// Who writes, writes alone.
    turns: Turns,
    /// How long entries are kept after their end, for when nobody has a live one.
    stale_limit: Duration,
    purges: Arc<Ledger>,
    updates: Arc<Updates>,
    counters: Counters,
}

/// What a write does.
enum Change {
    /// This is served from now on, with what waits behind it.
    Put(Sourced, Option<Box<Sourced>>),
    Remove,
    None,
}

impl Store {
    /// A store of at most `bytes` bytes, overhead included, that keeps no entry beyond its end.
    pub fn new(bytes: u64) -> Self {
        Self::keeping_stale(bytes, Duration::ZERO, Arc::new(purge::ledger(Duration::ZERO)))
    }

    /// A store of at most `bytes` bytes, overhead included, that keeps entries for `stale_limit` after their end, and gives
    /// none that `purges` cover.
    pub fn keeping_stale(bytes: u64, stale_limit: Duration, purges: Arc<Ledger>) -> Self {
        Self {
            shelf: Shelf::new(bytes),
            turns: Turns::default(),
            stale_limit,
            purges,
            updates: Arc::default(),
            counters: Counters::default(),
        }
    }

    /// What happens to the entries.
    pub const fn updates(&self) -> &Arc<Updates> {
        &self.updates
    }

    /// A live entry.
    pub fn get(&self, key: &Key, now: Moment) -> Option<Entry> {
        self.find(key, now).map(|sourced| sourced.entry)
    }

    /// A live entry and where it came from.
    pub fn find(&self, key: &Key, now: Moment) -> Option<Sourced> {
        let found = self.sound(key, |held| held.live(now).cloned());
        self.counters.looked_up(found.is_some());
        found
    }

    /// A live entry that was born after `held`: later than two dates of one birth can differ.
    pub fn younger(&self, key: &Key, held: Moment, now: Moment) -> Option<Entry> {
        let youngest = self.sound(key, |found| found.youngest(now).cloned())?;
        (youngest.entry.born > held + SAME_BIRTH).then_some(youngest.entry)
    }

    /// An entry that died at most `within` ago, or one that lives. Never to be kept or passed on as live.
    pub fn stale(&self, key: &Key, within: Duration, now: Moment) -> Option<Entry> {
        let within = within.min(self.stale_limit);
        self.sound(key, |held| held.stale(within, now).cloned()).map(|sourced| sourced.entry)
    }

    /// Whether no purge covers an entry whose fetch began when it says.
    pub fn admits(&self, key: &Key, entry: &Entry) -> bool {
        self.purges.admits(key, entry.since)
    }

    /// What `choose` chooses of what is kept for a key and not purged. It is newer than all purges up to now.
    fn sound(&self, key: &Key, choose: impl Fn(&Held) -> Option<Sourced>) -> Option<Sourced> {
        // Read before the entry: whatever is applied after this is not vouched for.
        let position = self.purges.position();
        let slot = self.shelf.get(&self.shelf.wanted(key))?;
        let purged = self.purges.covers(key);
        let mut chosen = match slot.held.newer_than(purged) {
            Newer::All => choose(&slot.held),
            Newer::Some(held) => choose(&held),
            Newer::None => None,
        }?;
        chosen.entry.since = position;
        Some(chosen)
    }

    /// Keeps what this replica's own dns-server fetched, if this replica is in the key's set: the others ask its owner,
    /// and the dns-server has it in its own cache. Says whether it is kept.
    pub fn keep_own(&self, key: &Key, entry: &Entry, me: &str, view: &View, now: Moment) -> bool {
        view.ring().is_replica(key.slot(), me) && self.offer(key, entry, &Origin::Local, How::Local, now).is_kept()
    }

    /// Keeps what a peer gave when asked, if this replica is in the key's set.
    pub fn keep_fetched(&self, key: &Key, entry: &Entry, from: &Arc<str>, view: &View, now: Moment) {
        if view.ring().is_replica(key.slot(), view.self_name()) {
            self.keep_copy(key, entry, from, now);
        }
    }

    /// Keeps a copy from a member that may send one.
    pub fn keep_copy(&self, key: &Key, entry: &Entry, from: &Arc<str>, now: Moment) -> Decision {
        self.offer(key, entry, &Origin::Replica(Arc::clone(from)), How::Copy, now)
    }

    /// Keeps an entry of a member that is not of the key's set, and only stood in for one of it: where there is nothing. Says
    /// whether it is kept.
    pub fn keep_where_empty(&self, key: &Key, entry: &Entry, from: &Arc<str>, now: Moment) -> bool {
        self.offer(key, entry, &Origin::Replica(Arc::clone(from)), How::PublishWithoutToken, now).is_kept()
    }

    /// A live entry, for what is no request of anybody and is not counted as one.
    pub fn look(&self, key: &Key, now: Moment) -> Option<Entry> {
        self.sound(key, |held| held.live(now).cloned()).map(|sourced| sourced.entry)
    }

    /// Keeps an operator's entry in place of whatever there is.
    pub fn inject(&self, key: &Key, entry: &Entry, now: Moment) {
        if entry.is_live(now) {
            self.write(key, |_| Change::Put(detached(entry, &Origin::Local, now), None));
            self.updates.tell(|| inserted(key, entry));
        }
    }

    /// Removes what is purged. Nobody finds it any more; this gives its memory back.
    pub fn sweep(&self) {
        for slot in self.shelf.iter() {
            let purged = self.purges.covers(&slot.key);
            if matches!(slot.held.newer_than(purged), Newer::All) {
                continue;
            }
            // It may have been replaced since it was looked at.
            self.write(&slot.key, |held| match held.map(|held| held.newer_than(purged)) {
                Some(Newer::None) => {
                    self.counters.purged();
                    Change::Remove
                }
                _ => Change::None,
            });
        }
    }

    /// Walks over all entries and gives the keys of those wanted, with the births of what is served for them.
    pub fn list(&self, wanted: impl Fn(&Key, &Entry) -> bool) -> Vec<(Key, Moment)> {
        let chosen = self.shelf.iter().filter_map(|slot| {
            let entry = &slot.held.front.entry;
            // What is purged meanwhile is not found when it is read.
            wanted(&slot.key, entry).then(|| (slot.key.clone(), entry.born))
        });
        chosen.collect()
    }

    /// Takes a publish as the key's granter or owner. Says whether it is kept, and so worth copying to others.
    pub fn publish(
        &self,
        key: &Key,
        entry: &Entry,
        publisher: &Arc<str>,
        write: Write,
        view: &View,
        now: Moment,
    ) -> bool {
        if publisher == view.self_name() {
            return self.offer(key, entry, &Origin::Local, How::Local, now).is_kept();
        }
        let how = match write {
            Write::WithToken => How::PublishWithToken,
            Write::WithoutToken => How::PublishWithoutToken,
        };
        self.offer(key, entry, &Origin::Publisher(Arc::clone(publisher)), how, now).is_kept()
    }

    /// Decides and stores. Key and packet are copied before they are kept: cut out of a received message they would keep
    /// all of it in memory.
    pub fn offer(&self, key: &Key, entry: &Entry, origin: &Origin, how: How, now: Moment) -> Decision {
        // The two outcomes that need no look at what is there. A purge that comes after this look covers it in the store.
        let mut decision = if entry.is_live(now) { Decision::Overtaken } else { Decision::DeadOnArrival };
        if entry.is_live(now) && self.admits(key, entry) {
            self.write(key, |held| {
                let purged = self.purges.covers(key);
                let sound = held.map(|held| held.newer_than(purged));
                let existing = match &sound {
                    None | Some(Newer::None) => None,
                    Some(Newer::All) => held,
                    Some(Newer::Some(held)) => Some(held),
                };
                decision = admit(existing, entry, origin, how, now);
                match decision {
                    Decision::Store => Change::Put(detached(entry, origin, now), None),
                    Decision::Behind => {
                        let front = existing.expect("an entry must have another to wait behind").front.clone();
                        Change::Put(front, Some(Box::new(detached(entry, origin, now))))
                    }
                    Decision::DeadOnArrival
                    | Decision::Overtaken
                    | Decision::KeepExisting
                    | Decision::Older
                    | Decision::Rejuvenated => Change::None,
                }
            });
        }
        if decision == Decision::Store {
            self.updates.tell(|| inserted(key, entry));
        }
        self.counters.decided(decision);
        decision
    }

    /// What is served for `key`, live or dead, with where it came from.
    pub fn origin(&self, key: &Key) -> Option<Sourced> {
        self.shelf.peek(&self.shelf.wanted(key)).map(|slot| slot.held.front.clone())
    }

    /// Forgets what `member` gave. Says of how many keys.
    pub fn forget_from(&self, member: &str) -> usize {
        let is_theirs = |sourced: &Sourced| sourced.origin.peer().is_some_and(|from| **from == *member);
        let mut keys = 0;
        for slot in self.shelf.iter().filter(|slot| slot.held.all().any(is_theirs)) {
            keys += 1;
            // Decided anew: something else may stand there by now.
            self.write(&slot.key, |held| match held {
                None => Change::None,
                Some(held) if is_theirs(&held.front) => Change::Remove,
                Some(held) => Change::Put(held.front.clone(), None),
            });
        }
        keys
    }

    /// Forgets what is kept for `key`.
    pub fn remove(&self, key: &Key) {
        self.write(key, |_| Change::Remove);
    }

    /// Decides by what there is, and does it, in one step. quick_cache's own step of this kind puts something into an empty place
    /// first, for others to wait for, which costs more than a lock of ours.
    fn write(&self, key: &Key, decide: impl FnOnce(Option<&Held>) -> Change) {
        let wanted = self.shelf.wanted(key);
        let _mine = self.turns.take(wanted.hash);
        let there = self.shelf.peek(&wanted);
        match decide(there.as_ref().map(|slot| &slot.held)) {
            Change::Put(front, behind) => {
                let held = Held { front, behind };
                // Nearly always a part of it has just come; else nothing grows, and nothing has to go.
                let now = held.all().map(|sourced| sourced.taken).max().unwrap_or_default();
                let slot = Slot { key: key.detached(), over: held.end() + self.stale_limit, held };
                for displaced in self.shelf.put(wanted.hash, slot) {
                    // What was replaced and could still be of use is told as what took its place.
                    if displaced.over <= now || displaced.key != *key {
                        self.gone(&displaced, now);
                    }
                }
            }
            Change::Remove => self.shelf.remove(&wanted),
            Change::None => {}
        }
    }

    /// Counts and tells that an entry is kept no more, though nobody asked for that.
    fn gone(&self, slot: &Slot, now: Moment) {
        let cause = if slot.over <= now { Cause::Expired } else { Cause::Size };
        self.counters.gone(cause);
        self.updates.tell(|| What::Evict(slot.key.clone(), cause));
    }

    /// What is kept and what happened since start.
    pub fn stats(&self) -> Stats {
        self.counters.snapshot(self.shelf.entries() as u64, self.shelf.bytes())
    }
}

fn detached(entry: &Entry, origin: &Origin, now: Moment) -> Sourced {
    let packet = Bytes::copy_from_slice(&entry.packet);
    Sourced { entry: Entry { packet, ..*entry }, origin: origin.clone(), taken: now }
}

/// An insert, with memory of its own.
fn inserted(key: &Key, entry: &Entry) -> What {
    let packet = Bytes::copy_from_slice(&entry.packet);
    What::Insert(key.detached(), Entry { packet, ..*entry })
}

#[cfg(test)]
mod room_tests;
#[cfg(test)]
mod tests;
