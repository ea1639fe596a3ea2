//! The shared tier's entries on this replica: what it owns, replicates or fetched itself, bounded by bytes.
//!
//! Which of two entries stays is decided by pure rules ([`admission`]); moka keeps them and gives room. moka's own
//! clock may stand still while the machine sleeps: whether an entry is live is judged anew at every read.

pub mod admission;
mod counters;
mod turns;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use foldhash::quality::RandomState;
use heimdall_shared::clock::Moment;
use heimdall_shared::entry::Entry;
use heimdall_shared::key::Key;
use heimdall_shared::purge::{Ledger, Position};
use moka::Expiry;
use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use self::admission::{Decision, How, admit};
use self::counters::Counters;
use self::turns::Turns;
use crate::membership::View;
use crate::purge;
use crate::updates::{Cause, Updates, What};

pub use self::counters::Stats;

/// Memory in bytes that an entry takes besides its key's and packets' bytes: moka's nodes for order, expiry and frequency,
/// its bucket, this module's own parts, and the allocations' heads. Counted at the allocator with 20,000 to 420,000
/// entries: 662 to 668 bytes each; rounded up.
const OVERHEAD: usize = 704;

/// Two dates of one entry's birth may differ by the delay of each message that it came in. An entry that was fetched anew is
/// younger by more than that: nothing with less than a few seconds of life is refreshed.
const SAME_BIRTH: Duration = Duration::from_secs(1);

/// Where an entry came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This replica's own dns-server fetched it.
    Local,
    /// That member fetched it and published it here.
    Publisher(Arc<str>),
    /// That member sent a copy of what it has, or gave it when asked.
    Replica(Arc<str>),
}

impl Origin {
    /// The peer that it came from, if it did.
    pub const fn peer(&self) -> Option<&Arc<str>> {
        match self {
            Self::Local => None,
            Self::Publisher(from) | Self::Replica(from) => Some(from),
        }
    }
}

/// An entry with its origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sourced {
    /// The entry.
    pub entry: Entry,
    /// Where it came from.
    pub origin: Origin,
    /// When it came.
    pub taken: Moment,
}

impl Sourced {
    /// Whether the same sender now dates the same answer's fetch before the moment at which it had sent it as an older one.
    /// A later fetch may well bring the same octets; one that lies before that moment would have been sent then.
    fn is_contradicted_by(&self, incoming: &Entry, from: &Origin) -> bool {
        let is_same = self.origin == *from && self.entry.packet == incoming.packet;
        is_same && incoming.is_younger_than(&self.entry) && incoming.born < self.taken
    }
}

/// What is kept for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// What is served.
    pub front: Sourced,
    /// A younger entry of a peer's, which takes over when the front one, fetched by this replica, is over.
    pub behind: Option<Sourced>,
}

impl Held {
    /// What is to be served at `now`, if anything of it lives.
    pub fn live(&self, now: Moment) -> Option<&Sourced> {
        self.all().find(|sourced| sourced.entry.is_live(now))
    }

    /// The youngest of what lives at `now`, served or waiting.
    fn youngest(&self, now: Moment) -> Option<&Sourced> {
        self.all().filter(|sourced| sourced.entry.is_live(now)).max_by_key(|sourced| sourced.entry.born)
    }

    /// The youngest of what died at most `within` before `now`.
    fn stale(&self, within: Duration, now: Moment) -> Option<&Sourced> {
        let died_then = |sourced: &&Sourced| sourced.entry.age(now) <= sourced.entry.lifetime.saturating_add(within);
        self.all().filter(died_then).max_by_key(|sourced| sourced.entry.born)
    }

    /// What of it is newer than the purges up to a position.
    pub fn newer_than(&self, purged: Position) -> Newer {
        let is_newer = |sourced: &Sourced| sourced.entry.since >= purged;
        match (is_newer(&self.front), &self.behind) {
            (true, None) => Newer::All,
            (true, Some(behind)) if is_newer(behind) => Newer::All,
            (true, Some(_)) => Newer::Some(Self { front: self.front.clone(), behind: None }),
            (false, Some(behind)) if is_newer(behind) => Newer::Some(Self { front: behind.clone(), behind: None }),
            (false, _) => Newer::None,
        }
    }

    fn all(&self) -> impl Iterator<Item = &Sourced> {
        [Some(&self.front), self.behind.as_ref()].into_iter().flatten()
    }

    /// What is left until nothing of it lives.
    fn remaining(&self, now: Moment) -> Duration {
        let behind = self.behind.as_ref().map_or(Duration::ZERO, |behind| behind.entry.remaining(now));
        self.front.entry.remaining(now).max(behind)
    }

    fn packet_bytes(&self) -> usize {
        self.front.entry.packet.len() + self.behind.as_ref().map_or(0, |behind| behind.entry.packet.len())
    }
}

/// What is left of what is kept for a key when purges are taken out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Newer {
    /// All of it.
    All,
    /// This.
    Some(Held),
    /// Nothing.
    None,
}

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
    cache: Cache<Key, Slot, RandomState>,
    /// Who writes, writes alone.
    turns: Turns,
    /// How long entries are kept after their end, for when nobody has a live one.
    stale_limit: Duration,
    purges: Arc<Ledger>,
    updates: Arc<Updates>,
    counters: Arc<Counters>,
}

/// What moka keeps: how long is computed when it is written, since moka asks for a duration and knows no [`Moment`].
#[derive(Clone, Debug)]
struct Slot {
    held: Arc<Held>,
    /// Until its end; what is kept of it after that is the store's to say.
    left: Duration,
}

/// What a write does.
enum Change {
    Put(Slot),
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
        let counters = Arc::new(Counters::default());
        let updates = Arc::<Updates>::default();
        let (evictions, gone) = (Arc::clone(&counters), Arc::clone(&updates));
        let cache = Cache::builder()
            .max_capacity(bytes)
            .weigher(|key: &Key, slot: &Slot| weight(key, &slot.held))
            .expire_after(FromSlot { stale_limit })
            // A new answer always finds its place, and what was not asked for the longest time goes. By frequency, as moka does
            // by default, a store full of dead entries would turn new answers away, and each replica would fetch them again.
            .eviction_policy(EvictionPolicy::lru())
            .eviction_listener(move |key, _slot, cause| {
                evictions.removed(cause);
                if let Some(cause) = Cause::of(cause) {
                    gone.tell(|| What::Evict(Key::clone(&key), cause));
                }
            })
            .build_with_hasher(RandomState::default());
        Self { cache, turns: Turns::default(), stale_limit, purges, updates, counters }
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
        let slot = self.cache.get(key)?;
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
            self.write(key, |_| Change::Put(Slot::new(detached(entry, &Origin::Local, now), None, now)));
            self.updates.tell(|| inserted(key, entry));
        }
    }

    /// Removes what is purged. Nobody finds it any more; this gives its memory back.
    pub fn sweep(&self) {
        for (key, slot) in &self.cache {
            let purged = self.purges.covers(&key);
            if matches!(slot.held.newer_than(purged), Newer::All) {
                continue;
            }
            // It may have been replaced since it was looked at.
            self.write(&key, |held| match held.map(|held| held.newer_than(purged)) {
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
        let chosen = self.cache.iter().filter_map(|(key, slot)| {
            let entry = &slot.held.front.entry;
            // What is purged meanwhile is not found when it is read.
            wanted(&key, entry).then(|| (Key::clone(&key), entry.born))
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
                    Decision::Store => Change::Put(Slot::new(detached(entry, origin, now), None, now)),
                    Decision::Behind => {
                        let front = existing.expect("an entry must have another to wait behind").front.clone();
                        Change::Put(Slot::new(front, Some(detached(entry, origin, now)), now))
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
        self.cache.get(key).map(|slot| slot.held.front.clone())
    }

    /// Forgets what `member` gave. Says of how many keys.
    pub fn forget_from(&self, member: &str) -> usize {
        let is_theirs = |sourced: &Sourced| sourced.origin.peer().is_some_and(|from| **from == *member);
        let theirs = self.cache.iter().filter(|(_, slot)| slot.held.all().any(is_theirs)).map(|(key, _)| key);
        let keys: Vec<Arc<Key>> = theirs.collect();
        for key in &keys {
            // Decided anew: something else may stand there by now.
            self.write(key, |held| match held {
                None => Change::None,
                Some(held) if is_theirs(&held.front) => Change::Remove,
                Some(held) => Change::Put(Slot::new(held.front.clone(), None, held.front.taken)),
            });
        }
        keys.len()
    }

    /// Forgets what is kept for `key`.
    pub fn remove(&self, key: &Key) {
        self.write(key, |_| Change::Remove);
    }

    /// Decides by what there is, and does it, in one step. moka's own step of this kind keeps a list of who waits for which key,
    /// which costs as much again as the rest of a write.
    fn write(&self, key: &Key, decide: impl FnOnce(Option<&Held>) -> Change) {
        let _mine = self.turns.take(key);
        // A look at what there is counts as a use of it, and nearly always there is nothing.
        let there = if self.cache.contains_key(key) { self.cache.get(key) } else { None };
        match decide(there.as_ref().map(|slot| &*slot.held)) {
            Change::Put(slot) => self.cache.insert(key.detached(), slot),
            Change::Remove => self.cache.invalidate(key),
            Change::None => {}
        }
    }

    /// What is kept and what happened since start.
    pub fn stats(&self) -> Stats {
        self.counters.snapshot(self.cache.entry_count(), self.cache.weighted_size())
    }

    /// Lets moka finish its bookkeeping (expiry, eviction, sizes), which it otherwise does beside reads and writes. To be
    /// called now and then while nobody asks, so that memory is given back.
    pub fn tidy(&self) {
        self.cache.run_pending_tasks();
    }
}

impl Slot {
    fn new(front: Sourced, behind: Option<Sourced>, now: Moment) -> Self {
        let held = Held { front, behind };
        Self { left: held.remaining(now), held: Arc::new(held) }
    }
}

/// Bytes that an entry takes.
fn weight(key: &Key, held: &Held) -> u32 {
    u32::try_from(key.as_bytes().len() + held.packet_bytes() + OVERHEAD).unwrap_or(u32::MAX)
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

/// Expiry as computed when the slot was written.
struct FromSlot {
    stale_limit: Duration,
}

impl Expiry<Key, Slot> for FromSlot {
    fn expire_after_create(&self, _key: &Key, slot: &Slot, _at: Instant) -> Option<Duration> {
        Some(slot.left.saturating_add(self.stale_limit))
    }

    fn expire_after_update(&self, _key: &Key, slot: &Slot, _at: Instant, _left: Option<Duration>) -> Option<Duration> {
        Some(slot.left.saturating_add(self.stale_limit))
    }
}

impl Counters {
    fn removed(&self, cause: RemovalCause) {
        match cause {
            RemovalCause::Size => self.evicted(),
            RemovalCause::Expired => self.expired(),
            RemovalCause::Explicit | RemovalCause::Replaced => {}
        }
    }
}

#[cfg(test)]
mod tests;
