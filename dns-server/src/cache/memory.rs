//! The memory of the entries: words in segments, which are read without a lock while one writer fills them.
//!
//! A reader copies an entry and then looks whether the segment is still the one that it read from: it is numbered anew before
//! anything is overwritten. Words are atomic, so that a reader who comes too late reads octets without a meaning, not undefined
//! ones; on the usual processors such a read is a plain one.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Bytes of a word.
pub(super) const WORD: usize = 8;

/// Where an entry begins: words since the beginning of the first segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place(pub(super) usize);

/// A part of the memory that is given up at once.
#[derive(Debug, Default)]
pub(super) struct Segment {
    /// Allocated when it is first needed.
    words: OnceLock<Box<[AtomicU64]>>,
    /// Changes whenever its entries are given up.
    edition: AtomicU64,
}

impl Segment {
    /// The edition, to be compared after reading.
    #[inline]
    pub(super) fn edition(&self) -> u64 {
        self.edition.load(Ordering::Acquire)
    }

    /// Whether what was read since then is of that edition.
    #[inline]
    pub(super) fn is_still(&self, edition: u64) -> bool {
        fence(Ordering::Acquire);
        self.edition.load(Ordering::Relaxed) == edition
    }

    /// The words from `word` on.
    #[inline]
    pub(super) fn from(&self, word: usize) -> &[AtomicU64] {
        self.words.get().and_then(|words| words.get(word..)).unwrap_or_default()
    }
}

/// All segments.
#[derive(Debug)]
pub(super) struct Memory {
    segments: Box<[Segment]>,
    /// Words of a segment, as a power of two.
    shift: u32,
    /// The bits of a place that say where in its segment it is.
    within: usize,
}

impl Memory {
    /// Room for `segments` segments of two to the power of `shift` words.
    pub(super) fn new(segments: usize, shift: u32) -> Self {
        let segments = (0..segments).map(|_| Segment::default()).collect();
        Self { segments, shift, within: (1 << shift) - 1 }
    }

    /// Number of segments.
    pub(super) fn len(&self) -> usize {
        self.segments.len()
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

    /// The segment and the word in it that a place is.
    #[inline]
    pub(super) fn resolve(&self, place: Place) -> Option<(&Segment, usize)> {
        Some((self.segments.get(place.0 >> self.shift)?, place.0 & self.within))
    }

    /// The words from `place` to the end of its segment.
    pub(super) fn at(&self, place: Place) -> &[AtomicU64] {
        self.resolve(place).map_or(&[], |(segment, word)| segment.from(word))
    }

    /// Gives up what a segment holds. Nobody may be able to find it any more.
    pub(super) fn renew(&self, segment: usize) {
        let edition = &self.segments[segment].edition;
        edition.store(edition.load(Ordering::Relaxed) + 1, Ordering::Release);
        // Words that are written from now on are not seen before the edition.
        fence(Ordering::Release);
    }

    /// Writes `words` at `place`; they must fit into its segment.
    pub(super) fn write(&self, place: Place, words: &[u64]) {
        let segment = &self.segments[self.segment_of(place)];
        segment.words.get_or_init(|| (0..self.segment_words()).map(|_| AtomicU64::new(0)).collect());
        for (word, &value) in self.at(place).iter().zip(words) {
            word.store(value, Ordering::Relaxed);
        }
    }
}
