//! An answer with its age: the unit that every cache of Heimdall keeps.

use std::time::Duration;

use bytes::Bytes;

use crate::clock::Moment;
use crate::dns::answer::with_ttl;
use crate::purge::Position;

/// A cached answer. Its life counts from the start of the exchange that fetched it, on whichever replica that was;
/// passing it on can only shorten the life that is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The answer in normal form (see [`crate::dns::answer`]): DNS wire format with the TTLs it had at birth.
    pub packet: Bytes,
    /// When the exchange that fetched it began, on this machine's clock.
    pub born: Moment,
    /// How long the origin allows it to live, counted from `born`.
    pub lifetime: Duration,
    /// It is known to be newer than the purges of this process up to this one (see [`crate::purge`]): its fetch began after
    /// they were applied. In a message that has just come it is the sender's position still.
    pub since: Position,
}

impl Entry {
    /// How old the entry is.
    pub fn age(&self, now: Moment) -> Duration {
        now.since(self.born)
    }

    /// What is left of its life; zero when it is over.
    pub fn remaining(&self, now: Moment) -> Duration {
        self.lifetime.saturating_sub(self.age(now))
    }

    /// Whether it may be given to somebody who did not wait for it. A TTL given out is the floor of what remains, and an
    /// entry whose TTL reached 0 is gone: so at least one whole second must be left.
    pub fn is_live(&self, now: Moment) -> bool {
        self.remaining(now) >= Duration::from_secs(1)
    }

    /// The same answer for those alone who wait for it: a purge overtook its fetch, so nobody may keep it. Every TTL in it is 0.
    #[must_use]
    pub fn overtaken(&self) -> Self {
        Self { packet: with_ttl(&self.packet, 0), lifetime: Duration::ZERO, ..*self }
    }

    /// Whether `self` was born after `other`: of two entries for a key, the younger wins.
    pub fn is_younger_than(&self, other: &Self) -> bool {
        self.born > other.born
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(born: u64, lifetime: u64) -> Entry {
        Entry {
            packet: Bytes::new(),
            born: Moment::from_nanos(born),
            lifetime: Duration::from_secs(lifetime),
            since: 0,
        }
    }

    #[test]
    fn an_entry_is_gone_when_less_than_a_second_is_left() {
        let entry = entry(0, 3);
        let at = |millis: u64| Moment::from_nanos(millis * 1_000_000);
        assert!(entry.is_live(at(2_000)));
        assert!(!entry.is_live(at(2_001)));
        assert_eq!(entry.remaining(at(9_000)), Duration::ZERO);
    }

    #[test]
    fn an_answer_with_ttl_zero_is_never_live() {
        assert!(!entry(0, 0).is_live(Moment::from_nanos(0)));
    }
}
