//! An entry as it stands in the cache's memory: a few words that say what it is, its key, what follows the question in its
//! packet, the places of its TTLs. The question is in the key; a client gets back its own anyhow.

use std::sync::atomic::{AtomicU64, Ordering};

use heimdall_shared::clock::Moment;
use heimdall_shared::dns::message::HEADER;

use super::Sought;
use super::memory::WORD;

/// Words in front: the key's hash, birth, end, the lengths, the header.
pub(super) const FRONT: usize = 5;

/// The one of them that holds the lengths.
pub(super) const LENGTHS: usize = 3;

/// TTL offsets in a word.
const OFFSETS: usize = 4;

/// The lengths of an entry's parts in octets, as one word keeps them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lengths {
    pub(super) key: u16,
    /// The question, of which the key has a copy.
    pub(super) question: u16,
    /// What follows the question in the packet.
    pub(super) tail: u16,
}

impl Lengths {
    /// The word: the three, and the words of the whole entry with `ttls` TTLs, so that a reader need not count them.
    pub(super) const fn to_word(self, ttls: usize) -> u64 {
        let words = FRONT + self.key_words() + self.tail_words() + ttls.div_ceil(OFFSETS);
        self.key as u64 | (self.question as u64) << 16 | (self.tail as u64) << 32 | (words as u64) << 48
    }

    #[inline]
    pub(super) const fn from_word(word: u64) -> Self {
        Self { key: word as u16, question: (word >> 16) as u16, tail: (word >> 32) as u16 }
    }

    /// Words of the key.
    #[inline]
    pub(super) const fn key_words(self) -> usize {
        (self.key as usize).div_ceil(WORD)
    }

    /// Words of what follows the question.
    #[inline]
    pub(super) const fn tail_words(self) -> usize {
        (self.tail as usize).div_ceil(WORD)
    }

    /// Where in the packet the question ends.
    #[inline]
    pub(super) const fn question_end(self) -> usize {
        HEADER + self.question as usize
    }

    /// Octets of the packet.
    #[inline]
    pub(super) const fn packet(self) -> usize {
        self.question_end() + self.tail as usize
    }
}

/// Words of the whole entry that has these lengths.
#[inline]
pub(super) const fn words_of(lengths: u64) -> usize {
    (lengths >> 48) as usize
}

/// A packet's header but for its ID and its number of questions, which is 1: flags, numbers of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head(pub [u8; WORD]);

impl Head {
    /// That of a packet; zeros where there is none.
    pub fn of(packet: &[u8]) -> Self {
        match packet.first_chunk() {
            Some(&[_, _, f0, f1, _, _, an0, an1, ns0, ns1, ar0, ar1]) => Self([f0, f1, an0, an1, ns0, ns1, ar0, ar1]),
            None => Self([0; WORD]),
        }
    }

    /// The header, with ID 0.
    pub fn header(self) -> [u8; HEADER] {
        let [f0, f1, an0, an1, ns0, ns1, ar0, ar1] = self.0;
        [0, 0, f0, f1, 0, 1, an0, an1, ns0, ns1, ar0, ar1]
    }
}

/// A packet whose part behind the question was copied out of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Octets of the whole packet. Where the buffer holds fewer, nothing was copied.
    pub length: usize,
    /// What to write in front.
    pub head: Head,
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
    head: &'m AtomicU64,
    rest: &'m [AtomicU64],
}

impl<'m> Stored<'m> {
    /// The entry at the beginning of `words`.
    #[inline(always)]
    pub(super) fn of(words: &'m [AtomicU64]) -> Option<Self> {
        let ([_, born, until, lengths, head], rest) = words.split_first_chunk::<FRONT>()?;
        let lengths = lengths.load(Ordering::Relaxed);
        let rest = rest.get(..words_of(lengths).saturating_sub(FRONT))?;
        Some(Self { born, until, lengths: Lengths::from_word(lengths), head, rest })
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

    #[inline]
    pub(super) fn head(self) -> Head {
        Head(self.head.load(Ordering::Relaxed).to_ne_bytes())
    }

    /// The words of the key, of what follows the question, and of the places of TTLs, where there is a zero for none.
    #[inline(always)]
    pub(super) fn parts(self) -> [&'m [AtomicU64]; 3] {
        let (key, behind_key) = self.rest.split_at_checked(self.lengths.key_words()).unwrap_or_default();
        let (tail, ttls) = behind_key.split_at_checked(self.lengths.tail_words()).unwrap_or_default();
        [key, tail, ttls]
    }

    /// Whether its key is this one.
    #[inline(always)]
    pub(super) fn answers(self, key: Sought<'_>) -> bool {
        if usize::from(self.lengths.key) != key.length {
            return false;
        }
        let count = self.lengths.key_words();
        let sought = key.pieces.as_flattened().as_chunks().0.get(..count);
        let (Some(stored), Some(sought)) = (self.rest.get(..count), sought) else { return false };
        let differs = |(stored, &sought): (&AtomicU64, _)| stored.load(Ordering::Relaxed) ^ u64::from_ne_bytes(sought);
        // All words without a branch: nearly always they are the same.
        stored.iter().zip(sought).map(differs).fold(0, |a, b| a | b) == 0
    }

    /// Copies what follows the question to its place in `out` and takes `elapsed` seconds off each TTL.
    #[inline(always)]
    pub(super) fn copy(self, (born, until): (Moment, Moment), elapsed: u32, out: &mut [u8]) -> Copied {
        let [_, tail, ttls] = self.parts();
        let copied = Copied { length: self.lengths.packet(), head: self.head(), born, until };
        let room = out.get_mut(self.lengths.question_end()..).unwrap_or_default().as_chunks_mut::<WORD>().0;
        if tail.len() > room.len() {
            return copied;
        }
        for (out, word) in room.iter_mut().zip(tail) {
            *out = word.load(Ordering::Relaxed).to_ne_bytes();
        }
        for word in ttls {
            let mut word = word.load(Ordering::Relaxed).to_le();
            while word != 0 {
                age(out, word as u16, elapsed);
                word >>= u16::BITS;
            }
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
