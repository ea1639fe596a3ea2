//! What the unary calls carry: the readable form of a key, and an answer to it.

use heimdall_proto::v1::{CacheEntry, CacheKey};

use crate::upstream::address_of;
use crate::wire::{Flags, Message, Name, Question, Record};

/// Seconds that an entry made here lives.
const TTL: u32 = 300;

/// The question for a name's address. Every request has it as an option.
#[allow(clippy::unnecessary_wraps, reason = "a field of a message is an option")]
pub fn key(name: &str) -> Option<CacheKey> {
    Some(CacheKey { name: name.to_owned(), r#type: "A".to_owned(), ..CacheKey::default() })
}

/// The record that the scripted upstream gives for a name.
///
/// # Panics
/// `name` is none.
pub fn address(name: &str) -> Record {
    let name = Name::parse(name).expect("a name in a test must parse");
    Record::a(&name, TTL, address_of(&name))
}

/// An answer with these records to the question for a name's address, just fetched, as a dns-server publishes it.
///
/// # Panics
/// `name` is none.
pub fn entry(name: &str, records: &[Record]) -> Option<CacheEntry> {
    let question = Question::parse(name, "A").expect("a name in a test must parse");
    let mut answer = Message { answers: records.to_vec(), ..Message::query(0, question).response() };
    answer.flags = Flags(Flags::QR | Flags::RD | Flags::RA);
    let lifetime_ms = u64::from(TTL) * 1_000;
    Some(CacheEntry { packet: answer.encode().into(), age_ms: 0, lifetime_ms, purges: 0 })
}
