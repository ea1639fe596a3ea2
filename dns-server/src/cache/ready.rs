//! An answer that can be sent as it is, with octets of its own.

use std::time::Duration;

use bytes::Bytes;
use heimdall_shared::clock::Moment;
use heimdall_shared::dns::message::{HEADER, Message, Question};
use heimdall_shared::entry::Entry;
use heimdall_shared::key::Key;

use super::memory::WORD;
use super::stored::{Lengths, Stored, elapsed};

/// Octets of a key that are no part of the question: its version, in front of it.
const KEY_FRONT: usize = 1;

/// An answer that can be sent as it is, but for ID, flags, question case and TTLs.
#[derive(Clone, Debug)]
pub struct Ready {
    lengths: Lengths,
    /// The key, the packet, the offset of each TTL in it; each filled up with zeros to whole words.
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
        for part in [key.as_bytes(), packet] {
            octets.extend_from_slice(part);
            octets.resize(octets.len().next_multiple_of(WORD), 0);
        }
        let mut smallest = u32::MAX;
        let mut ttls = 0_u16;
        for record in message.records() {
            let record = record.ok()?;
            octets.extend(u16::try_from(record.ttl_at).ok()?.to_ne_bytes());
            smallest = smallest.min(record.ttl);
            ttls += 1;
        }
        octets.resize(octets.len().next_multiple_of(WORD), 0);
        let lengths =
            Lengths { key: u16::try_from(key.as_bytes().len()).ok()?, packet: u16::try_from(packet.len()).ok()?, ttls };
        // A life cut short on the way must show in the TTLs, which count from the birth.
        let cut = Duration::from_secs(u64::from(smallest)).saturating_sub(entry.lifetime);
        let born = if entry.lifetime.is_zero() || ttls == 0 { entry.born } else { entry.born.minus(cut) };
        let until = (entry.born + entry.lifetime).minus(Duration::from_secs(1));
        Some(Self { lengths, octets, born, until })
    }

    /// A copy of what is stored.
    pub(super) fn copy_of(stored: Stored<'_>) -> Self {
        let octets = stored.octets().flatten().collect();
        Self { lengths: stored.lengths(), octets, born: stored.born(), until: stored.until() }
    }

    /// What is stored of it.
    pub(super) fn words(&self, hash: u64) -> impl Iterator<Item = u64> {
        let front = [hash, self.born.as_nanos(), self.until.as_nanos(), self.lengths.to_word()];
        front.into_iter().chain(self.octets.as_chunks().0.iter().map(|&word| u64::from_ne_bytes(word)))
    }

    /// The entry that this was made of, with a life of the same end.
    pub fn entry(&self) -> Entry {
        let lifetime = (self.until + Duration::from_secs(1)).since(self.born);
        Entry { packet: Bytes::copy_from_slice(self.packet()), born: self.born, lifetime }
    }

    /// The octets of the key that it answers.
    pub fn key(&self) -> &[u8] {
        self.octets.get(..usize::from(self.lengths.key)).unwrap_or_default()
    }

    /// The packet in normal form.
    pub fn packet(&self) -> &[u8] {
        let start = self.lengths.key_words() * WORD;
        self.octets.get(start..start + usize::from(self.lengths.packet)).unwrap_or_default()
    }

    /// Offsets of the TTLs in it.
    pub fn ttls(&self) -> impl Iterator<Item = u16> {
        let start = (self.lengths.key_words() + self.lengths.packet_words()) * WORD;
        let offsets = self.octets.get(start..).unwrap_or_default().as_chunks().0;
        offsets.iter().take(usize::from(self.lengths.ttls)).map(|&offset| u16::from_ne_bytes(offset))
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
