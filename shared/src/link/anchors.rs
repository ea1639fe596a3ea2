//! From which moment the ages in a received batch count.

use std::collections::VecDeque;

use crate::clock::Moment;

/// Batches remembered as sent and not yet seen by the other side. At one batch per millisecond this is four seconds of an
/// other side that says nothing; beyond it an older anchor serves, which only shortens lives.
const UNSEEN_MAX: usize = 4_096;

/// When each outgoing batch left. A batch that arrives names the newest batch that its sender had seen; ages in it were
/// computed after that one left here, so counting them from then never lengthens a life, whatever delay, stopped process
/// or full buffer lay between.
#[derive(Debug)]
pub struct Anchors {
    unseen: VecDeque<(u64, Moment)>,
    newest_seen: Moment,
}

impl Anchors {
    /// Anchors of a stream that was opened at `opened`.
    pub fn new(opened: Moment) -> Self {
        Self { unseen: VecDeque::new(), newest_seen: opened }
    }

    /// Batch `number` leaves at `now`. Numbers rise.
    pub fn sent(&mut self, number: u64, now: Moment) {
        if self.unseen.len() < UNSEEN_MAX {
            self.unseen.push_back((number, now));
        }
    }

    /// The other side had seen batches up to `number`: the moment from which its ages count.
    pub fn seen(&mut self, number: u64) -> Moment {
        while let Some(&(sent, at)) = self.unseen.front() {
            if sent > number {
                break;
            }
            self.newest_seen = at;
            self.unseen.pop_front();
        }
        self.newest_seen
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::entry::Entry;

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn ages_count_from_the_newest_batch_that_the_sender_had_seen() {
        let mut anchors = Anchors::new(at(1));
        assert_eq!(anchors.seen(0), at(1));
        anchors.sent(1, at(10));
        anchors.sent(2, at(20));
        anchors.sent(3, at(30));
        assert_eq!(anchors.seen(2), at(20));
        assert_eq!(anchors.seen(2), at(20));
        assert_eq!(anchors.seen(3), at(30));
    }

    #[test]
    fn a_side_that_acknowledges_nothing_costs_bounded_memory_and_only_shortens_lives() {
        let mut anchors = Anchors::new(at(0));
        for number in 1..=10_000 {
            anchors.sent(number, at(number));
        }
        assert_eq!(anchors.unseen.len(), UNSEEN_MAX);
        assert_eq!(anchors.seen(10_000), at(UNSEEN_MAX as u64));
    }

    proptest! {
        /// An entry wanders over hops with arbitrary delays, pauses and acknowledgements, every hop on a clock of its
        /// own; its age on the last one is never below its true age, and its life never outlasts its origin's.
        #[test]
        fn an_entry_never_outlives_its_origin(
            lifetime in 0u64..100_000,
            hops in prop::collection::vec((0u64..5_000, 0u64..5_000, 0u64..5_000, 0u64..1_000_000), 1..6),
        ) {
            // True time in milliseconds; each hop's clock is true time plus an offset of its own.
            let mut now = 1_000_000u64;
            let born = now;
            let mut offset = 0;
            let mut entry = Entry {
                packet: bytes::Bytes::new(),
                born: at(now),
                lifetime: Duration::from_millis(lifetime),
                since: 0,
            };
            for (ack_travel, hold, travel, next_offset) in hops {
                // The receiver sends a batch; the sender sees it after `ack_travel`, holds the entry, then sends it.
                let mut anchors = Anchors::new(at(now + next_offset));
                anchors.sent(1, at(now + next_offset));
                now += ack_travel + hold;
                let frame = crate::wire::entry_to_proto(&entry, at(now + offset));
                // Delay on the way: a full buffer, a stopped process.
                now += travel;
                offset = next_offset;
                let anchor = anchors.seen(1);
                entry = crate::wire::entry_from_proto(frame, anchor).unwrap();
                let true_age = Duration::from_millis(now - born);
                prop_assert!(entry.age(at(now + offset)) >= true_age);
                prop_assert!(entry.remaining(at(now + offset)) <= Duration::from_millis(lifetime).saturating_sub(true_age));
            }
        }
    }
}
