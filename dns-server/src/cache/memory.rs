//! The memory of the entries: words in segments, which are read without a lock while one writer fills them.
//!
//! A reader copies an entry and then looks whether the segment is still the one that it read from: it is numbered anew before
//! anything is overwritten. Words are atomic, so that a reader who comes too late reads octets without a meaning, not undefined
//! ones; on the usual processors such a read is a plain one.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::pages::Pages;

/// Bytes of a word.
pub(super) const WORD: usize = 8;

/// Where an entry begins: words since the beginning of the first segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place(pub(super) usize);

/// The number of a segment's edition, which changes whenever the entries in it are given up.
#[derive(Debug, Default)]
pub(super) struct Edition(AtomicU64);

impl Edition {
    /// The number, to be compared after reading.
    #[inline]
    pub(super) fn number(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Whether what was read since then is of that edition.
    #[inline]
    pub(super) fn is_still(&self, number: u64) -> bool {
        fence(Ordering::Acquire);
        self.0.load(Ordering::Relaxed) == number
    }
}

/// All segments, one behind the other. Each is given up at once.
#[derive(Debug)]
pub(super) struct Memory {
    pages: Pages,
    /// Of each segment.
    editions: Box<[Edition]>,
    /// Words of a segment, as a power of two.
    shift: u32,
}

impl Memory {
    /// Room for `segments` segments of two to the power of `shift` words.
    ///
    /// # Errors
    /// The system does not promise as much memory.
    pub(super) fn new(segments: usize, shift: u32) -> io::Result<Self> {
        let words = segments.checked_mul(1 << shift).ok_or(io::ErrorKind::OutOfMemory)?;
        let editions = (0..segments).map(|_| Edition::default()).collect();
        Ok(Self { pages: Pages::reserve(words)?, editions, shift })
    }

    /// Number of segments.
    pub(super) fn len(&self) -> usize {
        self.editions.len()
    }

    /// Words in each.
    #[inline]
    pub(super) fn segment_words(&self) -> usize {
        1 << self.shift
    }

    /// The segment that holds `place`.
    #[inline]
    pub(super) fn segment_of(&self, place: Place) -> usize {
        place.0 >> self.shift
    }

    /// The place of a word of a segment.
    pub(super) fn place(&self, segment: usize, word: usize) -> Place {
        Place((segment << self.shift) + word)
    }

    /// The edition that holds `place`.
    #[inline]
    pub(super) fn edition(&self, place: Place) -> Option<&Edition> {
        self.editions.get(self.segment_of(place))
    }

    /// The words from `place` on.
    #[inline]
    pub(super) fn at(&self, place: Place) -> &[AtomicU64] {
        self.pages.words().get(place.0..).unwrap_or_default()
    }

    /// Gives up what a segment holds. Nobody may be able to find it any more.
    pub(super) fn renew(&self, segment: usize) {
        let Edition(number) = &self.editions[segment];
        number.store(number.load(Ordering::Relaxed) + 1, Ordering::Release);
        // Words that are written from now on are not seen before the edition.
        fence(Ordering::Release);
    }

    /// Writes `words` at `place`; they must fit into its segment.
    pub(super) fn write(&self, place: Place, words: &[u64]) {
        for (word, &value) in self.at(place).iter().zip(words) {
            word.store(value, Ordering::Relaxed);
        }
    }
}
