//! An entry as it stands in the cache's memory: a few words that say what it is, its key, its packet, the places of its TTLs.

use std::sync::atomic::{AtomicU64, Ordering};

use heimdall_shared::clock::Moment;

use super::Sought;
use super::memory::WORD;

/// Words in front: the key's hash, birth, end, and the lengths.
pub(super) const FRONT: usize = 4;

/// Words that hold a header.
const HEADER_WORDS: usize = 2;

/// TTL offsets in a word.
const OFFSETS: usize = 4;

/// The lengths of an entry's parts, as one word keeps them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lengths {
    /// Octets of the key.
    pub(super) key: u16,
    /// Octets of the packet.
    pub(super) packet: u16,
    /// Number of TTLs.
    pub(super) ttls: u16,
}

impl Lengths {
    /// The word: the three, and the words of the whole entry, so that a reader need not count them.
    pub(super) const fn to_word(self) -> u64 {
        self.key as u64 | (self.packet as u64) << 16 | (self.ttls as u64) << 32 | (self.words() as u64) << 48
    }

    #[inline]
    pub(super) const fn from_word(word: u64) -> Self {
        Self { key: word as u16, packet: (word >> 16) as u16, ttls: (word >> 32) as u16 }
    }

    /// Words of the key.
    #[inline]
    pub(super) const fn key_words(self) -> usize {
        (self.key as usize).div_ceil(WORD)
    }

    /// Words of the packet.
    #[inline]
    pub(super) const fn packet_words(self) -> usize {
        (self.packet as usize).div_ceil(WORD)
    }

    const fn words(self) -> usize {
        FRONT + self.key_words() + self.packet_words() + (self.ttls as usize).div_ceil(OFFSETS)
    }
}

/// Words of the whole entry that has these lengths.
#[inline]
pub(super) const fn words_of(lengths: u64) -> usize {
    (lengths >> 48) as usize
}

/// A packet that was copied out of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Its octets. Where the buffer holds fewer, it holds the header alone.
    pub length: usize,
    /// When the exchange that fetched it began.
    pub born: Moment,
    /// The last moment at which a whole second of its life is left.
    pub until: Moment,
}

/// An entry in memory that may be overwritten while it is read: what is read has a meaning only if the segment's edition is
/// the same afterwards.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stored<'m> {
    born: &'m AtomicU64,
    until: &'m AtomicU64,
    lengths: Lengths,
    rest: &'m [AtomicU64],
}

impl<'m> Stored<'m> {
    /// The entry at the beginning of `words`.
    #[inline(always)]
    pub(super) fn of(words: &'m [AtomicU64]) -> Option<Self> {
        let ([_, born, until, lengths], rest) = words.split_first_chunk::<FRONT>()?;
        let lengths = lengths.load(Ordering::Relaxed);
        let rest = rest.get(..words_of(lengths).saturating_sub(FRONT))?;
        Some(Self { born, until, lengths: Lengths::from_word(lengths), rest })
    }

    pub(super) const fn lengths(self) -> Lengths {
        self.lengths
    }

    #[inline]
    pub(super) fn born(self) -> Moment {
        Moment::from_nanos(self.born.load(Ordering::Relaxed))
    }

    /// The last moment at which a whole second of its life is left.
    #[inline]
    pub(super) fn until(self) -> Moment {
        Moment::from_nanos(self.until.load(Ordering::Relaxed))
    }

    /// All that stands behind the front.
    pub(super) fn octets(self) -> impl Iterator<Item = [u8; WORD]> {
        self.rest.iter().map(|word| word.load(Ordering::Relaxed).to_ne_bytes())
    }

    /// Whether its key is this one.
    #[inline(always)]
    pub(super) fn answers(self, key: Sought<'_>) -> bool {
        let count = self.lengths.key_words();
        let (Some(stored), Some(sought)) =
            (self.rest.get(..count), key.pieces.as_flattened().as_chunks().0.get(..count))
        else {
            return false;
        };
        let differs = |(stored, &sought): (&AtomicU64, _)| stored.load(Ordering::Relaxed) ^ u64::from_ne_bytes(sought);
        // All words without a branch: nearly always they are the same.
        usize::from(self.lengths.key) == key.length && stored.iter().zip(sought).map(differs).fold(0, |a, b| a | b) == 0
    }

    /// Copies the packet to `out` and takes `elapsed` seconds off each TTL.
    #[inline(always)]
    pub(super) fn copy(self, (born, until): (Moment, Moment), elapsed: u32, out: &mut [u8]) -> Copied {
        let behind_key = self.rest.get(self.lengths.key_words()..).unwrap_or_default();
        let (packet, offsets) = behind_key.split_at_checked(self.lengths.packet_words()).unwrap_or_default();
        let copied = Copied { length: usize::from(self.lengths.packet), born, until };
        let out_words = out.as_chunks_mut::<WORD>().0;
        if copied.length > out_words.len() * WORD {
            for (out, word) in out_words.iter_mut().zip(packet).take(HEADER_WORDS) {
                *out = word.load(Ordering::Relaxed).to_ne_bytes();
            }
            return copied;
        }
        for (out, word) in out_words.iter_mut().zip(packet) {
            *out = word.load(Ordering::Relaxed).to_ne_bytes();
        }
        let mut left = usize::from(self.lengths.ttls);
        for word in offsets {
            let mut word = word.load(Ordering::Relaxed);
            for _ in 0..left.min(OFFSETS) {
                age(out, word as u16, elapsed);
                word >>= 16;
            }
            left = left.saturating_sub(OFFSETS);
        }
        copied
    }
}

/// Takes `elapsed` seconds off the TTL at an offset in a packet.
#[inline(always)]
pub(crate) fn age(packet: &mut [u8], at: u16, elapsed: u32) {
    if let Some(field) = packet.get_mut(usize::from(at)..).and_then(<[u8]>::first_chunk_mut::<4>) {
        *field = u32::from_be_bytes(*field).saturating_sub(elapsed).to_be_bytes();
    }
}

/// Whole seconds (rounded up) to take off the TTLs of what was born at `born`, so that what is given out is the floor of what
/// is left.
#[inline(always)]
pub(crate) fn elapsed(born: Moment, now: Moment) -> u32 {
    const SECOND: u64 = 1_000_000_000;
    let age = now.as_nanos().saturating_sub(born.as_nanos());
    (age.saturating_add(SECOND - 1) / SECOND).min(u64::from(u32::MAX)) as u32
}
