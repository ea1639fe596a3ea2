//! Where entries stand: a set-associative table that is read without a lock. Each key has one bucket, a cache line of eight slots.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use super::memory::{Place, WORD};
use super::pages::Pages;
use super::prefetch::prefetch;

/// Slots in a bucket: those of a cache line.
const WAYS: usize = 8;

/// Bytes of the smallest page of any processor.
const PAGE_MIN: usize = 4 << 10;

/// Set when the entry was asked for since it was written or last spared.
const ASKED: u64 = 1 << 47;

/// A part of the key's hash.
const TAG: u64 = 0xFFFF << 48;

/// Set when the entry has proved that it is asked for more than once.
const PROVED: u64 = 1 << 46;

/// Where the entry stands, plus one; zero for an entry that is no more.
const PLACE: u64 = PROVED - 1;

/// The content of a slot. Zero is an empty one; a tag without a place remembers an entry that was evicted before anybody asked
/// for it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(u64);

impl Slot {
    const EMPTY: Self = Self(0);

    /// A slot for the entry at `place` of a key with `hash`.
    pub(super) fn new(hash: u64, place: Place, asked: bool, proved: bool) -> Self {
        let marks = if asked { ASKED } else { 0 } | if proved { PROVED } else { 0 };
        Self(tag(hash) | (place.0 as u64 + 1) & PLACE | marks)
    }

    /// Where the entry stands, if there is one.
    #[inline]
    pub(super) fn place(self) -> Option<Place> {
        (self.0 & PLACE).checked_sub(1).map(|place| Place(place as usize))
    }

    pub(super) const fn is_asked(self) -> bool {
        self.0 & ASKED != 0
    }

    /// Whether it is the same entry, asked for or not.
    #[inline]
    pub(super) const fn is_same(self, other: Self) -> bool {
        (self.0 ^ other.0) & !ASKED == 0
    }
}

/// A page begins with one, and so each is in a cache line of its own.
type Bucket = [AtomicU64; WAYS];

/// One slot of the table, to be read and written. Only the holder of the cache's lock writes anything but [`Cell::ask`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Cell<'a>(&'a AtomicU64);

impl Cell<'_> {
    /// Its content, and with it all that was written before that.
    #[inline]
    pub(super) fn get(self) -> Slot {
        Slot(self.0.load(Ordering::Acquire))
    }

    /// Lets readers see `slot` and all that was written before.
    pub(super) fn set(self, slot: Slot) {
        self.0.store(slot.0, Ordering::Release);
    }

    /// Forgets the entry.
    pub(super) fn clear(self) {
        self.set(Slot::EMPTY);
    }

    /// Remembers of the entry only that it was there.
    pub(super) fn bury(self) {
        self.set(Slot(self.get().0 & TAG));
    }

    /// Marks the entry as asked for. Writes once, so that many readers of one entry share its line.
    #[inline]
    pub(super) fn ask(self, seen: Slot) {
        if !seen.is_asked() {
            // Fails where the entry has just been moved or replaced, which forgets it.
            let _ = self.0.compare_exchange(seen.0, seen.0 | ASKED, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

/// The table.
#[derive(Debug)]
pub(super) struct Index(Pages);

impl Index {
    /// A table of at most `bytes` bytes, but of one bucket at least. All of it is in memory from now on: any key may be anywhere
    /// in it, and the first of them must not wait for it.
    ///
    /// # Errors
    /// The system does not promise as much memory.
    pub(super) fn new(bytes: usize) -> io::Result<Self> {
        let buckets = (bytes / (WAYS * WORD)).max(1);
        let pages = Pages::reserve(buckets * WAYS)?;
        pages.words().iter().step_by(PAGE_MIN / WORD).for_each(|word| word.store(0, Ordering::Relaxed));
        Ok(Self(pages))
    }

    /// Bytes of memory.
    pub(super) fn bytes(&self) -> u64 {
        size_of_val(self.buckets()) as u64
    }

    /// Number of buckets.
    pub(super) fn len(&self) -> usize {
        self.buckets().len()
    }

    #[inline(always)]
    fn buckets(&self) -> &[Bucket] {
        self.0.words().as_chunks().0
    }

    /// The slots of the bucket with this number.
    pub(super) fn bucket(&self, number: usize) -> impl Iterator<Item = Cell<'_>> {
        self.buckets().get(number).map_or(&[][..], |bucket| bucket).iter().map(Cell)
    }

    /// The first of [`Index::cells`].
    #[inline(always)]
    pub(super) fn find(&self, hash: u64) -> Option<(Cell<'_>, Slot)> {
        self.cells(hash).next()
    }

    /// The slots that may hold a key with this hash, from that where it was put if that was empty.
    #[inline(always)]
    pub(super) fn cells(&self, hash: u64) -> impl Iterator<Item = (Cell<'_>, Slot)> {
        let cells = self.in_turn(hash).map(|cell| (cell, cell.get()));
        cells.filter(move |(_, slot)| slot.0 & TAG == tag(hash) && slot.0 & PLACE != 0)
    }

    /// Whether an entry with this hash was evicted lately.
    pub(super) fn is_buried(&self, hash: u64) -> bool {
        tag(hash) != 0 && self.bucket(self.number(hash)).any(|cell| cell.get() == Slot(tag(hash)))
    }

    /// The slot for a new entry: the one that remembers it, an empty one, one that remembers another, one that was not
    /// asked for, any.
    pub(super) fn vacancy(&self, hash: u64) -> Cell<'_> {
        let rank = |slot: Slot| match slot {
            slot if slot == Slot(tag(hash)) => 0,
            Slot::EMPTY => 1,
            slot if slot.place().is_none() => 2,
            slot if slot.0 & (ASKED | PROVED) == 0 => 3,
            slot if !slot.is_asked() => 4,
            _ => 5,
        };
        // Where all are equal, the first: another one for each hash.
        self.in_turn(hash).min_by_key(|cell| rank(cell.get())).expect("a bucket must have slots")
    }

    /// Begins to bring the bucket of `hash` near.
    #[inline(always)]
    pub(super) fn prefetch(&self, hash: u64) {
        prefetch(&self.buckets()[self.number(hash)][0]);
    }

    /// The slots of a hash's bucket, beginning anywhere.
    #[inline(always)]
    fn in_turn(&self, hash: u64) -> impl Iterator<Item = Cell<'_>> {
        let bucket = &self.buckets()[self.number(hash)];
        let first = hash as usize >> 16;
        (0..WAYS).map(move |nth| Cell(&bucket[(first + nth) % WAYS]))
    }

    #[inline(always)]
    fn number(&self, hash: u64) -> usize {
        // The upper half of the hash as a fraction of the buckets; the tag is in the lower half.
        (((hash >> 32) * self.len() as u64) >> 32) as usize
    }
}

#[inline]
const fn tag(hash: u64) -> u64 {
    hash << 48
}
