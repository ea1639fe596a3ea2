//! L1: ready wire answers, looked up by borrowed key octets, shared by all workers of the process.
//!
//! ```text
//! key ─hash─► index: bucket of 8 slots ─place─► memory: segment of words ─copy─► Ready
//!                    readers: no lock, no write                 ▲
//!                                     log: one writer, which decides what stays
//! ```

mod index;
mod log;
mod memory;
mod pages;
mod prefetch;
mod ready;
mod stored;

use std::hash::{BuildHasher, Hasher as _};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use heimdall_shared::clock::Moment;
use heimdall_shared::entry::Entry;
use heimdall_shared::key::Key;

use index::{Cell, Index, Slot};
use log::Log;
use memory::{Edition, Memory, WORD};
use prefetch::prefetch;

use stored::Stored;

pub use ready::Ready;
pub(crate) use stored::age;
pub use stored::{Copied, Head};

/// One byte in so many is for the index: eight for each slot, and nearly twice as many slots as there is room for entries of 140
/// bytes. Then a bucket has a slot for all but one in a hundred of its entries.
const INDEX_SHARE: u64 = 10;

/// Largest segment in words, as a power of two: 128 KiB, more than the longest answer.
const SEGMENT_SHIFT_MAX: u32 = 14;

/// Fewest segments, where the limit leaves the choice: what is given up at once should be a small part of all.
const SEGMENTS_MIN: u64 = 16;

/// Fewest segments in any case: one being filled in each queue, one to be given up, one for what moves.
const SEGMENTS_LEAST: u64 = 4;

/// Times that a key is looked for: it may be moved away under a reader, but hardly twice.
const LOOKS: usize = 2;

/// Words of a cache line.
const LINE: usize = 8;

/// Buckets that are looked through in one go while the writer is kept waiting: some tens of microseconds.
const BUCKETS_AT_ONCE: usize = 256;

/// The cache. `S` hashes keys; its seed is drawn at random, so that nobody can prepare names that collide.
#[derive(Debug)]
pub struct Cache<S = foldhash::fast::RandomState> {
    hasher: S,
    index: Index,
    memory: Memory,
    log: Mutex<Log>,
}

/// Octets of a key that are hashed at once.
pub const PIECE: usize = 16;

/// A key that is looked for, in whole pieces, its last one filled up with zeros.
#[derive(Clone, Copy, Debug)]
pub struct Sought<'k> {
    /// Its octets and zeros. What stands in further pieces means nothing.
    pub pieces: &'k [[u8; PIECE]],
    /// Number of its octets.
    pub length: usize,
}

/// Where something with a key's hash stands.
#[derive(Clone, Copy, Debug)]
pub struct Found<'c> {
    cell: Cell<'c>,
    slot: Slot,
}

impl Cache {
    /// A cache of at most `bytes` bytes of memory, which are reserved at once and taken as answers come.
    ///
    /// # Errors
    /// The system does not promise as much memory.
    pub fn new(bytes: u64) -> io::Result<Self> {
        Self::with_hasher(bytes, foldhash::fast::RandomState::default())
    }
}

impl<S: BuildHasher> Cache<S> {
    /// A cache of at most `bytes` bytes that hashes with `hasher`.
    ///
    /// # Errors
    /// As [`Cache::new`].
    pub fn with_hasher(bytes: u64, hasher: S) -> io::Result<Self> {
        let index = Index::new(usize::try_from(bytes / INDEX_SHARE).unwrap_or(usize::MAX))?;
        let left = bytes.saturating_sub(index.bytes());
        let words = left / SEGMENTS_MIN / WORD as u64;
        let shift = words.checked_ilog2().map_or(0, |shift| shift.min(SEGMENT_SHIFT_MAX));
        let segments = (left / ((WORD as u64) << shift)).max(SEGMENTS_LEAST);
        let memory = Memory::new(usize::try_from(segments).unwrap_or(usize::MAX), shift)?;
        Ok(Self { hasher, index, memory, log: Mutex::default() })
    }

    /// The live answer for a key's octets.
    pub fn get(&self, key: &[u8], now: Moment) -> Option<Ready> {
        let (found, ready) = self.lookup(key)?;
        ready.is_live(now).then(|| {
            found.cell.ask(found.slot);
            ready
        })
    }

    /// Copies what follows the question in the live answer for a key to its place in `out`, with the TTLs of now.
    #[inline(always)]
    pub fn copy(&self, found: Found<'_>, key: Sought<'_>, now: Moment, out: &mut [u8]) -> Option<Copied> {
        let (edition, number, stored) = self.open(found)?;
        let (born, until) = (stored.born(), stored.until());
        if now > until || !stored.answers(key) {
            return None;
        }
        let copied = stored.copy((born, until), stored::elapsed(born, now), out);
        if !edition.is_still(number) {
            return None;
        }
        found.cell.ask(found.slot);
        Some(copied)
    }

    /// The same after [`Cache::copy`] did not find it where [`Cache::find`] led: there may be another key whose hash is nearly
    /// the same, or the entry was moved.
    #[cold]
    pub fn copy_anywhere(&self, hash: u64, key: Sought<'_>, now: Moment, out: &mut [u8]) -> Option<Copied> {
        let mut cells = self.index.cells(hash);
        cells.find_map(|(cell, slot)| self.copy(Found { cell, slot }, key, now, out))
    }

    /// Looks for the live answer for a key, and does as [`Cache::copy`].
    pub fn hit(&self, key: Sought<'_>, now: Moment, out: &mut [u8]) -> Option<Copied> {
        let hash = self.hash(key);
        let found = self.find(hash)?;
        self.copy(found, key, now, out).or_else(|| self.copy_anywhere(hash, key, now, out))
    }

    /// The answer for a key's octets, also if it died, but not longer than `beyond` ago. Does not count as a use of it.
    pub fn get_stale(&self, key: &[u8], now: Moment, beyond: Duration) -> Option<Ready> {
        let (_, ready) = self.lookup(key)?;
        ready.is_live(now.minus(beyond)).then_some(ready)
    }

    /// Keeps `entry` if it lives at `now` and no younger one is there.
    pub fn insert(&self, key: &Key, entry: &Entry, now: Moment) {
        if !entry.is_live(now) {
            return;
        }
        let Some(ready) = Ready::new(key, entry) else { return };
        let hash = self.hash_octets(key.as_bytes());
        let words = ready.words(hash);
        let mut log = self.log();
        let held = self.lookup_hashed(hash, key.as_bytes());
        if held.as_ref().is_none_or(|(_, held)| !held.is_live(now) || held.born() < ready.born()) {
            log.insert((&self.memory, &self.index), held.map(|(found, _)| found.cell), hash, &words);
        }
    }

    /// Keeps an entry that died, but not longer than `beyond` ago, to be found by [`Cache::get_stale`] alone. It takes the
    /// place of nothing younger.
    pub fn insert_stale(&self, key: &Key, entry: &Entry, now: Moment, beyond: Duration) {
        let Some(ready) = Ready::new(key, entry).filter(|ready| ready.is_live(now.minus(beyond))) else { return };
        let hash = self.hash_octets(key.as_bytes());
        let words = ready.words(hash);
        let mut log = self.log();
        let held = self.lookup_hashed(hash, key.as_bytes());
        if held.as_ref().is_none_or(|(_, held)| held.born() < ready.born()) {
            log.insert((&self.memory, &self.index), held.map(|(found, _)| found.cell), hash, &words);
        }
    }

    /// Removes the answer for a key's octets.
    pub fn remove(&self, key: &[u8]) {
        let mut log = self.log();
        // Under the lock nothing moves; entries of other keys may have the same hash.
        let hash = self.hash_octets(key);
        for (cell, slot) in self.index.cells(hash) {
            let is_it = slot.place().and_then(|place| Stored::of(self.memory.at(place)));
            if is_it.is_some_and(|stored| Ready::copy_of(stored).key() == key) {
                log.remove(&self.memory, cell);
            }
        }
    }

    /// Removes all answers but those for which `keep` says true.
    pub fn retain(&self, keep: impl Fn(&Ready) -> bool) {
        // By the index: an entry that moves meanwhile stays in its bucket.
        for first in (0..self.index.len()).step_by(BUCKETS_AT_ONCE) {
            let mut log = self.log();
            for cell in (first..self.index.len().min(first + BUCKETS_AT_ONCE)).flat_map(|at| self.index.bucket(at)) {
                let place = cell.get().place();
                let stored = place.and_then(|place| Stored::of(self.memory.at(place)));
                if stored.is_some_and(|stored| !keep(&Ready::copy_of(stored))) {
                    log.remove(&self.memory, cell);
                }
            }
        }
    }

    /// Number of answers, dead ones included.
    pub fn len(&self) -> usize {
        self.log().entries()
    }

    /// Whether nothing is cached.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of memory that answers have taken. The index, which is there from the beginning, takes a tenth of the limit.
    pub fn bytes(&self) -> u64 {
        self.log().bytes(&self.memory)
    }

    /// The hash of a key. Nothing tells its length: keys of different lengths differ before that.
    #[inline(always)]
    pub fn hash(&self, key: Sought<'_>) -> u64 {
        self.hash_pieces(key.pieces.iter().take(key.length.div_ceil(PIECE)))
    }

    /// Begins to bring near what [`Cache::find`] will read.
    #[inline(always)]
    pub fn prefetch(&self, hash: u64) {
        self.index.prefetch(hash);
    }

    /// Where something with this hash stands, which [`Cache::copy`] then reads; begins to bring that near.
    #[inline(always)]
    pub fn find(&self, hash: u64) -> Option<Found<'_>> {
        let (cell, slot) = self.index.find(hash)?;
        let words = self.memory.at(slot.place()?);
        [0, LINE, 2 * LINE].into_iter().filter_map(|nth| words.get(nth)).for_each(prefetch);
        Some(Found { cell, slot })
    }

    /// An entry that may be read, unless it has just been moved away. It may be overwritten meanwhile: what was read of it has a
    /// meaning only if the segment is still of that edition afterwards.
    #[inline(always)]
    fn open(&self, found: Found<'_>) -> Option<(&Edition, u64, Stored<'_>)> {
        let place = found.slot.place()?;
        let edition = self.memory.edition(place)?;
        let number = edition.number();
        // Only what the slot says after that is about that edition.
        if !found.cell.get().is_same(found.slot) {
            return None;
        }
        Some((edition, number, Stored::of(self.memory.at(place))?))
    }

    /// A copy of the entry of a key, and where it was found. Compares the whole key: equal hashes alone never make a hit.
    fn lookup(&self, key: &[u8]) -> Option<(Found<'_>, Ready)> {
        self.lookup_hashed(self.hash_octets(key), key)
    }

    fn lookup_hashed(&self, hash: u64, key: &[u8]) -> Option<(Found<'_>, Ready)> {
        for _ in 0..LOOKS {
            let mut moved = false;
            for (cell, slot) in self.index.cells(hash) {
                let found = Found { cell, slot };
                let copy = self.open(found).and_then(|(edition, number, stored)| {
                    let ready = Ready::copy_of(stored);
                    edition.is_still(number).then_some(ready)
                });
                match copy {
                    Some(ready) if ready.key() == key => return Some((found, ready)),
                    Some(_) => {}
                    // Its slot, which stays where it is, says by now where to.
                    None => moved = true,
                }
            }
            if !moved {
                break;
            }
        }
        None
    }

    /// The same of a key that does not stand in whole pieces.
    fn hash_octets(&self, key: &[u8]) -> u64 {
        let (whole, rest) = key.as_chunks();
        let mut last = [0; PIECE];
        last[..rest.len()].copy_from_slice(rest);
        self.hash_pieces(whole.iter().chain((!rest.is_empty()).then_some(&last)))
    }

    #[inline(always)]
    fn hash_pieces<'p>(&self, pieces: impl Iterator<Item = &'p [u8; PIECE]>) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        for &piece in pieces {
            hasher.write_u128(u128::from_ne_bytes(piece));
        }
        hasher.finish()
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
