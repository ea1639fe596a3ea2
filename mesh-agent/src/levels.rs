//! Writes whose publisher waits for copies: who still owes a receipt, and when there are enough. Pure.
//!
//! A level says when the publisher is told, and nothing else: whoever waits for the answer itself has it by then.

use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use heimdall_shared::clock::Moment;
use heimdall_shared::link::WriteLevel;

/// Writes that may wait at a time, about 300 bytes each: what 10,000 writes per second and receipts after 400 ms need.
/// Beyond it a publisher is told at once that its level was not reached.
pub const WRITES_MAX: usize = 4_096;

/// What an agent promises to publishers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// The level of a write that names none.
    pub level: WriteLevel,
    /// The longest that a publisher waits for copies.
    pub within: Duration,
}

impl Default for Promise {
    fn default() -> Self {
        Self { level: WriteLevel::Eventual, within: Duration::from_millis(400) }
    }
}

/// The writes that wait. `R` says whom to tell.
#[derive(Debug)]
pub struct Writes<R> {
    /// Number of the write begun last.
    last: u64,
    waiting: HashMap<u64, Write<R>>,
    due: BTreeSet<(Moment, u64)>,
}

#[derive(Debug)]
struct Write<R> {
    outcome: Outcome<R>,
    /// Members that were sent a copy and have not said what became of it.
    owing: Vec<Arc<str>>,
    deadline: Moment,
}

/// What came of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome<R> {
    /// Who is told.
    pub whom: R,
    /// The level that was asked for.
    pub level: WriteLevel,
    /// Copies that are known to exist, this agent's included.
    pub copies: usize,
    /// Copies that the level asked for.
    pub needed: usize,
}

impl<R> Outcome<R> {
    /// Whether there are enough copies.
    pub const fn is_reached(&self) -> bool {
        self.copies >= self.needed
    }
}

impl<R> Default for Writes<R> {
    fn default() -> Self {
        Self { last: 0, waiting: HashMap::new(), due: BTreeSet::new() }
    }
}

impl<R> Writes<R> {
    /// The number for the copies of a write that is about to be sent out. `None`: too many wait already.
    pub fn number(&mut self) -> Option<NonZeroU64> {
        if self.waiting.len() >= WRITES_MAX {
            return None;
        }
        self.last += 1;
        NonZeroU64::new(self.last)
    }

    /// Copies of a write went to the members in `owing`, each named once. Gives its outcome if that is known already.
    pub fn begin(
        &mut self,
        number: NonZeroU64,
        outcome: Outcome<R>,
        owing: Vec<Arc<str>>,
        deadline: Moment,
    ) -> Option<Outcome<R>> {
        if outcome.is_reached() || owing.is_empty() {
            return Some(outcome);
        }
        self.due.insert((deadline, number.get()));
        self.waiting.insert(number.get(), Write { outcome, owing, deadline });
        None
    }

    /// A member says what became of its copy. Only who was sent one is heard, and only once.
    pub fn receipt(&mut self, number: NonZeroU64, from: &str, held: bool) -> Option<Outcome<R>> {
        let write = self.waiting.get_mut(&number.get())?;
        let at = write.owing.iter().position(|member| **member == *from)?;
        write.owing.swap_remove(at);
        write.outcome.copies += usize::from(held);
        if write.outcome.is_reached() || write.owing.is_empty() { self.end(number.get()) } else { None }
    }

    /// A member is gone: nobody waits for its receipts any longer.
    pub fn gone(&mut self, member: &str) -> Vec<Outcome<R>> {
        let owed = |write: &Write<R>| write.owing.iter().any(|owing| **owing == *member);
        let numbers: Vec<u64> =
            self.waiting.iter().filter(|(_, write)| owed(write)).map(|(&number, _)| number).collect();
        numbers
            .into_iter()
            .filter_map(NonZeroU64::new)
            .filter_map(|number| self.receipt(number, member, false))
            .collect()
    }

    /// Ends what is over at `now`.
    pub fn expire(&mut self, now: Moment) -> Vec<Outcome<R>> {
        let mut over = Vec::new();
        while let Some(&(deadline, number)) = self.due.first()
            && deadline <= now
        {
            over.extend(self.end(number));
        }
        over
    }

    /// When [`Self::expire`] has something to do.
    pub fn next_deadline(&self) -> Option<Moment> {
        self.due.first().map(|(deadline, _)| *deadline)
    }

    fn end(&mut self, number: u64) -> Option<Outcome<R>> {
        let write = self.waiting.remove(&number)?;
        self.due.remove(&(write.deadline, number));
        Some(write.outcome)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const MEMBERS: [&str; 5] = ["a", "b", "c", "d", "e"];

    #[test]
    fn the_copies_of_a_level_are_of_the_configured_factor() {
        for (factor, quorum) in [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (16, 9)] {
            assert_eq!(WriteLevel::Eventual.copies(factor), 1);
            assert_eq!(WriteLevel::Quorum.copies(factor), quorum, "of {factor}");
            assert_eq!(WriteLevel::Strong.copies(factor), factor);
        }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Begin { needed: usize, owing: usize },
        Receipt { write: u64, member: usize, held: bool },
        Gone { member: usize },
        Pass,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (1..6_usize, 0..6_usize).prop_map(|(needed, owing)| Op::Begin { needed, owing }),
            (1..40_u64, 0..5_usize, any::<bool>()).prop_map(|(write, member, held)| Op::Receipt {
                write,
                member,
                held
            }),
            (0..5_usize).prop_map(|member| Op::Gone { member }),
            Just(Op::Pass),
        ]
    }

    proptest! {
        /// Whatever is said in whatever order: each write ends exactly once, with no more copies than members held it, as
        /// reached only with enough of them, and at its deadline at the latest.
        #[test]
        fn every_write_ends_once_and_counts_only_receipts_that_were_owed(ops in vec(op(), 1..80)) {
            let within = Duration::from_millis(3);
            let mut now = Moment::from_nanos(0);
            let mut writes = Writes::<u64>::default();
            // Per write: its deadline, and what its members said, once each.
            let mut open = BTreeMap::<u64, (Moment, usize, BTreeMap<usize, Option<bool>>)>::new();
            let mut ended = Vec::new();
            for op in ops {
                match op {
                    Op::Begin { needed, owing } => {
                        let number = writes.number().expect("there must be room");
                        let owed = &MEMBERS[..owing.min(MEMBERS.len())];
                        let outcome =
                            Outcome { whom: number.get(), level: WriteLevel::Quorum, copies: 1, needed };
                        let members = owed.iter().map(|name| Arc::from(*name)).collect();
                        open.insert(number.get(), (now + within, needed, (0..owed.len()).map(|m| (m, None)).collect()));
                        ended.extend(writes.begin(number, outcome, members, now + within));
                    }
                    Op::Receipt { write, member, held } => {
                        if let Some((_, _, said)) = open.get_mut(&write) && let Some(said) = said.get_mut(&member) {
                            said.get_or_insert(held);
                        }
                        ended.extend(NonZeroU64::new(write).and_then(|w| writes.receipt(w, MEMBERS[member], held)));
                    }
                    Op::Gone { member } => {
                        for (_, _, said) in open.values_mut() {
                            if let Some(said) = said.get_mut(&member) {
                                said.get_or_insert(false);
                            }
                        }
                        ended.extend(writes.gone(MEMBERS[member]));
                    }
                    Op::Pass => {
                        now = now + Duration::from_millis(1);
                        ended.extend(writes.expire(now));
                    }
                }
                for outcome in ended.drain(..) {
                    let (deadline, needed, said) = open.remove(&outcome.whom).expect("a write must end once");
                    let held = said.values().filter(|said| **said == Some(true)).count();
                    prop_assert_eq!(outcome.copies, 1 + held);
                    prop_assert_eq!(outcome.needed, needed);
                    let all_said = said.values().all(Option::is_some);
                    prop_assert!(outcome.is_reached() || all_said || deadline <= now);
                }
                prop_assert_eq!(writes.waiting.len(), open.len());
                prop_assert_eq!(writes.due.len(), open.len());
                prop_assert!(open.values().all(|(deadline, ..)| *deadline > now));
                prop_assert_eq!(writes.next_deadline(), open.values().map(|(deadline, ..)| *deadline).min());
            }
        }
    }

    #[test]
    fn a_full_table_gives_no_more_numbers() {
        let mut writes = Writes::default();
        let deadline = Moment::from_nanos(5);
        for _ in 0..WRITES_MAX {
            let number = writes.number().expect("there must be room");
            let outcome = Outcome { whom: (), level: WriteLevel::Strong, copies: 1, needed: 2 };
            assert_eq!(writes.begin(number, outcome, vec!["b".into()], deadline), None);
        }
        assert_eq!(writes.number(), None);
        assert_eq!(writes.expire(deadline).len(), WRITES_MAX);
        assert!(writes.number().is_some());
    }
}
