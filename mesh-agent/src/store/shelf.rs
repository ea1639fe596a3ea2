//! The store's memory: what quick_cache keeps, what it weighs, and what goes when there is no room.
//!
//! quick_cache has two queues, much as S3-FIFO. What comes when the hot one is full goes to the end of the cold one. Room is made
//! before a newcomer is put there, at the head of the cold queue: what was asked for since it came moves to the hot one, what was not
//! goes. Of the hot queue the first goes that was not asked for since a clock's hand last passed, when others move in. So a new
//! answer always finds its place, whatever fills the store, and stays for as long as a whole cold queue of others takes to come.

use std::hash::{BuildHasher as _, BuildHasherDefault, Hash, Hasher};
use std::sync::Arc;

use foldhash::quality::RandomState;
use heimdall_shared::clock::Moment;
use heimdall_shared::key::Key;
use quick_cache::sync::Cache;
use quick_cache::{Equivalent, Lifecycle, OptionsBuilder, Weighter};

use super::held::{Held, Sourced};

/// Memory in bytes that an entry takes besides its key's and packet's bytes: its [`Slot`], its place in quick_cache's list and in the
/// table, what `bytes` needs to share key and packet, and what the allocator adds. Counted at glibc's with 1,000 to 900,000
/// entries, each of which was read and listed: 336 to 366 bytes each, and once 392; list and table grow by doubling. With mimalloc an
/// agent with 304,000 small answers took 410 bytes for each in all, where 482 are counted. It has four sizes to each doubling, so
/// that a store of large packets alone may take a tenth more than is counted.
pub(super) const OVERHEAD: usize = 384;

/// The same for one that waits behind another: itself, two allocations' heads, and what its packet needs to be shared.
const OVERHEAD_BEHIND: usize = size_of::<Sourced>() + 64;

/// Bytes of a part of the store. A part has a table and a lock of its own. The table grows, and is cleared of what was removed, in
/// one step for which the data path waits: some 0.1 ms with the 4,000 entries of a nearly full part. An empty part takes some 200
/// bytes. The largest answer, with another that waits behind it, takes an eighth of the smallest part.
const PART: u64 = 2 << 20;

/// Part of the store that is hot. Its oldest go only when others move in, so a large one keeps what came first: of what an agent
/// keeps, most is dead and waits for the day on which no upstream answers. With answers that live for 30 s to an hour and names asked
/// for by Zipf's law, some only once (five such runs of four million queries), half and half found what lives 0 to 9 % more often than
/// a list by last use. 0.97, which is quick_cache's own choice, did 1 to 10 % less often.
const HOT: f64 = 0.5;

/// What is kept for a key, in one piece.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) key: Key,
    pub(super) held: Held,
    /// From then on it is of no use to anybody.
    pub(super) over: Moment,
}

/// A key that is looked for, with its hash: it is computed once for all that is done about it.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) key: &'a Key,
    pub(super) hash: u64,
}

/// The entries, with nothing decided about them.
#[derive(Debug)]
pub(super) struct Shelf {
    cache: Cache<Label, Arc<Slot>, Weight, BuildHasherDefault<AsGiven>, Room>,
    hasher: RandomState,
}

impl Shelf {
    /// Room for so many bytes.
    pub(super) fn new(bytes: u64) -> Self {
        let parts = usize::try_from(bytes / PART).unwrap_or(usize::MAX).max(1);
        // It takes the next power of two: parts never become smaller than half of what they should be.
        let options = OptionsBuilder::new()
            .shards(parts)
            .weight_capacity(bytes)
            .estimated_items_capacity(usize::try_from(bytes).unwrap_or(usize::MAX) / OVERHEAD)
            .hot_allocation(HOT)
            // It can remember hashes of what went, to take it for hot when it comes back. Beside a cold queue of half the store that
            // finds no more, each takes an entry's place in the list, and what comes back so could itself be what goes for room.
            .ghost_allocation(0.0)
            .build()
            .expect("a cache with a capacity must be possible");
        let cache = Cache::with_options(options, Weight, BuildHasherDefault::default(), Room);
        Self { cache, hasher: RandomState::default() }
    }

    pub(super) fn wanted<'a>(&self, key: &'a Key) -> Wanted<'a> {
        Wanted { key, hash: self.hasher.hash_one(key) }
    }

    /// What is kept for a key, which counts as a use of it.
    pub(super) fn get(&self, wanted: &Wanted<'_>) -> Option<Arc<Slot>> {
        self.cache.get(wanted)
    }

    /// The same for nobody who asked.
    pub(super) fn peek(&self, wanted: &Wanted<'_>) -> Option<Arc<Slot>> {
        self.cache.peek(wanted)
    }

    /// Keeps `slot`, whose key has that hash. Gives what had to go, and what stood in its place.
    pub(super) fn put(&self, hash: u64, slot: Slot) -> Displaced {
        let (slot, mut displaced) = (Arc::new(slot), Displaced::default());
        let this = Arc::as_ptr(&slot);
        self.insert(hash, slot, &mut displaced);
        // One that takes another's place and is larger has room made afterwards, and may itself be what goes: at the head of the cold
        // queue, when all that is hot was asked for. Where nothing is in its place, room is made before.
        if let Some(slot) = displaced.take(this) {
            self.insert(hash, slot, &mut displaced);
        }
        displaced
    }

    fn insert(&self, hash: u64, slot: Arc<Slot>, displaced: &mut Displaced) {
        self.cache.insert_with_lifecycle(Label { hash, slot: Arc::clone(&slot) }, slot, displaced);
    }

    pub(super) fn remove(&self, wanted: &Wanted<'_>) {
        self.cache.remove(wanted);
    }

    /// Removes `slot`, unless it is gone or replaced. Says whether it did.
    pub(super) fn remove_this(&self, slot: &Arc<Slot>) -> bool {
        self.cache.remove_if(&self.wanted(&slot.key), |there| Arc::ptr_eq(there, slot)).is_some()
    }

    /// All that is kept, for a walk during which others may read and write: each step alone takes a lock.
    pub(super) fn iter(&self) -> impl Iterator<Item = Arc<Slot>> + use<'_> {
        self.cache.iter().map(|(_, slot)| slot)
    }

    pub(super) fn entries(&self) -> usize {
        self.cache.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.cache.weight()
    }
}

/// What left the shelf by a write.
#[derive(Debug, Default)]
pub(super) struct Displaced {
    /// Most often there is one, or none.
    first: Option<Arc<Slot>>,
    more: Vec<Arc<Slot>>,
}

impl Displaced {
    fn take(&mut self, this: *const Slot) -> Option<Arc<Slot>> {
        let is_this = |slot: &Arc<Slot>| Arc::as_ptr(slot) == this;
        if self.first.as_ref().is_some_and(is_this) {
            return self.first.take();
        }
        self.more.iter().position(is_this).map(|at| self.more.swap_remove(at))
    }
}

impl IntoIterator for Displaced {
    type Item = Arc<Slot>;
    type IntoIter = std::iter::Chain<std::option::IntoIter<Arc<Slot>>, std::vec::IntoIter<Arc<Slot>>>;

    fn into_iter(self) -> Self::IntoIter {
        self.first.into_iter().chain(self.more)
    }
}

/// How a slot is found: its key, which is the slot's own, and the hash, so that a table that grows reads no keys.
struct Label {
    hash: u64,
    slot: Arc<Slot>,
}

impl Hash for Label {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl PartialEq for Label {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.slot.key == other.slot.key
    }
}

impl Eq for Label {}

impl Clone for Label {
    fn clone(&self) -> Self {
        Self { hash: self.hash, slot: Arc::clone(&self.slot) }
    }
}

impl Hash for Wanted<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl Equivalent<Label> for Wanted<'_> {
    fn equivalent(&self, label: &Label) -> bool {
        self.hash == label.hash && *self.key == label.slot.key
    }
}

/// Takes hashes that are computed already.
#[derive(Default)]
struct AsGiven(u64);

impl Hasher for AsGiven {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn write(&mut self, bytes: &[u8]) {
        // Nothing here has any: a hash is written as one number.
        self.0 = bytes.iter().fold(self.0, |hash, byte| hash.rotate_left(8) ^ u64::from(*byte));
    }
}

/// Bytes that an entry takes.
#[derive(Clone, Debug)]
struct Weight;

impl Weighter<Label, Arc<Slot>> for Weight {
    fn weight(&self, _label: &Label, slot: &Arc<Slot>) -> u64 {
        let Held { front, behind } = &slot.held;
        let behind = behind.as_ref().map_or(0, |behind| behind.entry.packet.len() + OVERHEAD_BEHIND);
        (slot.key.as_bytes().len() + front.entry.packet.len() + behind + OVERHEAD) as u64
    }
}

/// Hands over what goes, so that it is dropped, counted and told of when no lock is held.
#[derive(Clone, Debug)]
struct Room;

impl Lifecycle<Label, Arc<Slot>> for Room {
    type RequestState = Displaced;

    fn on_evict(&self, displaced: &mut Displaced, _label: Label, slot: Arc<Slot>) {
        if displaced.first.is_none() {
            displaced.first = Some(slot);
        } else {
            displaced.more.push(slot);
        }
    }
}
