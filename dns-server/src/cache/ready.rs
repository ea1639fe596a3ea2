//! An answer that can be sent as it is, with octets of its own.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use heimdall_shared::clock::Moment;
use heimdall_shared::dns::message::{HEADER, Message, Question};
use heimdall_shared::entry::Entry;
use heimdall_shared::key::Key;

use super::memory::WORD;
use super::stored::{Head, Lengths, Stored, elapsed, words_of};

/// Octets of a key that are no part of the question: its version, in front of it.
const KEY_FRONT: usize = 1;

/// An answer that can be sent as it is, but for ID, flags, question case and TTLs.
#[derive(Clone, Debug)]
pub struct Ready {
    lengths: Lengths,
    /// The key, the packet, the offset of each TTL in it.
    octets: Vec<u8>,
    born: Moment,
    /// The last moment at which a whole second of its life is left.
    until: Moment,
}

impl Ready {
    /// Makes an answer of an entry whose packet is in normal form.
    ///
    /// Gives nothing for a packet that does not parse or that does not answer `key`; what [`heimdall_shared::dns::answer`]
    /// accepted always does.
    pub fn new(key: &Key, entry: &Entry) -> Option<Self> {
        let packet = &*entry.packet;
        let message = Message::parse(packet).ok()?;
        let question = packet.get(HEADER..message.question()?.end())?;
        if !key.as_bytes().get(KEY_FRONT..)?.starts_with(question) {
            return None;
        }
        let mut octets = Vec::with_capacity(key.as_bytes().len() + packet.len() + 4 * WORD);
        octets.extend_from_slice(key.as_bytes());
        octets.extend_from_slice(packet);
        let mut smallest = u32::MAX;
        let mut ttls = 0_u16;
        for record in message.records() {
            let record = record.ok()?;
            octets.extend(u16::try_from(record.ttl_at).ok()?.to_le_bytes());
            smallest = smallest.min(record.ttl);
            ttls += 1;
        }
        let lengths = Lengths {
            key: u16::try_from(key.as_bytes().len()).ok()?,
            question: u16::try_from(question.len()).ok()?,
            tail: u16::try_from(packet.len() - HEADER - question.len()).ok()?,
        };
        // A life cut short on the way must show in the TTLs, which count from the birth.
        let cut = Duration::from_secs(u64::from(smallest)).saturating_sub(entry.lifetime);
        let born = if entry.lifetime.is_zero() || ttls == 0 { entry.born } else { entry.born.minus(cut) };
        let until = (entry.born + entry.lifetime).minus(Duration::from_secs(1));
        Some(Self { lengths, octets, born, until })
    }

    /// A copy of what is stored.
    pub(super) fn copy_of(stored: Stored<'_>) -> Self {
        let lengths = stored.lengths();
        let [key, tail, ttls] = stored
            .parts()
            .map(|words| words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes()).collect::<Vec<_>>());
        let part = |octets: &[u8], length: u16| octets.get(..length.into()).unwrap_or_default().to_vec();
        let key = part(&key, lengths.key);
        let question = part(key.get(KEY_FRONT..).unwrap_or_default(), lengths.question);
        let header = stored.head().header();
        let octets = [&*key, &header, &question, &part(&tail, lengths.tail), &ttls].concat();
        Self { lengths, octets, born: stored.born(), until: stored.until() }
    }

    /// What is stored of it.
    pub(super) fn words(&self, hash: u64) -> Vec<u64> {
        let lengths = self.lengths.to_word(self.ttls().count());
        let head = u64::from_ne_bytes(Head::of(self.packet()).0);
        let mut words = Vec::with_capacity(words_of(lengths));
        words.extend([hash, self.born.as_nanos(), self.until.as_nanos(), lengths, head]);
        let tail = self.packet().get(self.lengths.question_end()..).unwrap_or_default();
        for part in [self.key(), tail, self.offsets()] {
            let (whole, rest) = part.as_chunks();
            words.extend(whole.iter().map(|&word| u64::from_ne_bytes(word)));
            if !rest.is_empty() {
                let mut last = [0; WORD];
                last[..rest.len()].copy_from_slice(rest);
                words.push(u64::from_ne_bytes(last));
            }
        }
        words
    }

    /// The entry that this was made of, with a life of the same end. It is for clients: nobody vouches for it.
    pub fn entry(&self) -> Entry {
        let lifetime = (self.until + Duration::from_secs(1)).since(self.born);
        Entry { packet: Bytes::copy_from_slice(self.packet()), born: self.born, lifetime, since: 0 }
    }

    /// The octets of the key that it answers.
    pub fn key(&self) -> &[u8] {
        self.octets.get(..usize::from(self.lengths.key)).unwrap_or_default()
    }

    /// The packet in normal form.
    pub fn packet(&self) -> &[u8] {
        let start = usize::from(self.lengths.key);
        self.octets.get(start..start + self.lengths.packet()).unwrap_or_default()
    }

    /// Offsets of the TTLs in it.
    pub fn ttls(&self) -> impl Iterator<Item = u16> {
        // No TTL stands at the front: such an offset fills up a word.
        let offsets = self.offsets().as_chunks().0.iter().map(|&offset| u16::from_le_bytes(offset));
        offsets.take_while(|&offset| offset != 0)
    }

    fn offsets(&self) -> &[u8] {
        let start = usize::from(self.lengths.key) + self.lengths.packet();
        self.octets.get(start..).unwrap_or_default()
    }

    /// The name that it answers for, in lower-case wire form.
    pub fn name(&self) -> &[u8] {
        self.question().map_or(&[], |question| &self.packet()[question.name])
    }

    /// The type that it answers for.
    pub fn qtype(&self) -> u16 {
        self.question().map_or(0, |question| question.qtype)
    }

    fn question(&self) -> Option<Question> {
        Question::parse(self.packet(), HEADER).ok()
    }

    /// When the exchange that fetched it began; earlier, where its life was cut short on the way.
    pub fn born(&self) -> Moment {
        self.born
    }

    /// Seconds to take off each TTL at `now`: the age rounded up, so that what is given out is the floor of what is left.
    pub fn elapsed(&self, now: Moment) -> u32 {
        elapsed(self.born, now)
    }

    /// Whether it may still be given out from the cache: an answer whose TTL reached 0 is gone.
    pub fn is_live(&self, now: Moment) -> bool {
        now <= self.until
    }
}
