//! What one fetch has, and what it still lacks. Pure: sources and results in, whom to ask next out.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Taken;
use super::plan::Sources;
use super::slots::Slots;

/// When a source fails, its part is shared out among the others so many times. What is missing after that comes as queries do.
const VAIN_ROUNDS_MAX: usize = 3;

/// One fetch.
#[derive(Debug)]
pub(super) struct Progress {
    left: Slots,
    /// Who gave what. While a member that comes before it in a slot's order was not reached yet, that slot is still missing.
    given: BTreeMap<Arc<str>, Slots>,
    failed: Vec<Arc<str>>,
    vain_rounds: usize,
    sum: Taken,
}

/// What is to be done next.
#[derive(Debug)]
pub(super) struct Round {
    /// Slots of which everything is here.
    pub(super) whole: Slots,
    /// Slots of which everything is here but what a member may have that was not reached yet.
    pub(super) but_late: Slots,
    /// Whom to ask for which, in turn.
    pub(super) asked: Vec<(Arc<str>, Slots)>,
}

/// What a source that was asked for slots gave.
#[derive(Debug)]
pub(super) struct Pulled {
    /// Who was asked.
    pub(super) source: Arc<str>,
    /// For which slots.
    pub(super) slots: Slots,
    /// What came.
    pub(super) taken: Taken,
    /// Whether it has a link here. Whoever has none sends no copies of what comes to it from now on.
    pub(super) is_linked: bool,
}

impl Progress {
    /// Nothing of `slots` is here yet.
    pub(super) fn of(slots: Slots) -> Self {
        Self { left: slots, given: BTreeMap::new(), failed: Vec::new(), vain_rounds: 0, sum: Taken::default() }
    }

    /// What is missing.
    pub(super) const fn left(&self) -> &Slots {
        &self.left
    }

    /// Who could not give what it was asked for.
    pub(super) fn failed(&self) -> &[Arc<str>] {
        &self.failed
    }

    /// What came, complete when nothing is missing.
    pub(super) fn sum(&self) -> Taken {
        Taken { complete: self.left.is_empty(), ..self.sum }
    }

    /// Whether anybody gave anything.
    pub(super) fn has_some(&self) -> bool {
        !self.given.is_empty()
    }

    /// Whether nothing is missing, or was asked for in vain too often.
    pub(super) fn is_over(&self) -> bool {
        self.left.is_empty() || self.vain_rounds >= VAIN_ROUNDS_MAX
    }

    /// Who is asked by `me` for what, where `sources` have what is missing. Each agent begins with whose name follows its own:
    /// those that start together do not all begin with the same one.
    pub(super) fn next(&mut self, sources: Sources, me: &str) -> Round {
        let Sources { parts, late } = sources;
        let mut round = Round { whole: Slots::none(), but_late: Slots::none(), asked: Vec::new() };
        for (source, mut slots) in parts {
            let mut here = self.given.get(&source).cloned().unwrap_or_else(Slots::none);
            here.retain_all(&slots);
            slots.remove_all(&here);
            if !slots.is_empty() {
                round.asked.push((source, slots));
            }
            round.but_late.insert_all(&here);
        }
        let after_me = round.asked.partition_point(|(source, _)| **source < *me);
        round.asked.rotate_left(after_me);
        round.whole.insert_all(&round.but_late);
        round.whole.remove_all(&late);
        round.but_late.retain_all(&late);
        self.left.remove_all(&round.whole);
        round
    }

    /// What came of a round.
    pub(super) fn took(&mut self, pulled: impl IntoIterator<Item = Pulled>) {
        let mut all_came = true;
        for Pulled { source, slots, taken, is_linked } in pulled {
            self.sum.entries += taken.entries;
            self.sum.kept += taken.kept;
            all_came &= taken.complete && is_linked;
            if !taken.complete {
                self.failed.push(source);
            } else if is_linked {
                self.given.entry(source).or_insert_with(Slots::none).insert_all(&slots);
            }
        }
        self.vain_rounds += usize::from(!all_came);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: &str = "a";

    fn slots(numbers: &[u16]) -> Slots {
        let mut slots = Slots::none();
        numbers.iter().for_each(|&slot| slots.insert(slot));
        slots
    }

    fn sources(parts: &[(&str, &[u16])], late: &[u16]) -> Sources {
        let parts = parts.iter().map(|&(name, numbers)| (name.into(), slots(numbers))).collect();
        Sources { parts, late: slots(late) }
    }

    fn pulled((source, slots): (Arc<str>, Slots), complete: bool, is_linked: bool) -> Pulled {
        Pulled { source, slots, taken: Taken { entries: 3, kept: 2, complete }, is_linked }
    }

    #[test]
    fn what_was_given_is_here_and_nobody_is_asked_twice() {
        let mut progress = Progress::of(slots(&[1, 2, 3]));
        let round = progress.next(sources(&[("b", &[1, 2]), ("c", &[3])], &[]), ME);
        assert_eq!(round.asked, [("b".into(), slots(&[1, 2])), ("c".into(), slots(&[3]))]);
        assert!(round.whole.is_empty() && !progress.has_some());
        progress.took(round.asked.into_iter().map(|asked| pulled(asked, true, true)));
        let round = progress.next(sources(&[("b", &[1, 2]), ("c", &[3])], &[]), ME);
        assert_eq!((round.asked.len(), round.whole, round.but_late), (0, slots(&[1, 2, 3]), Slots::none()));
        assert!(progress.is_over() && progress.has_some());
        assert_eq!(progress.sum(), Taken { entries: 6, kept: 4, complete: true });
    }

    #[test]
    fn a_slot_is_missing_until_whoever_comes_first_in_its_order_was_reached() {
        let mut progress = Progress::of(slots(&[1, 2]));
        let round = progress.next(sources(&[("b", &[1, 2])], &[2]), ME);
        progress.took(round.asked.into_iter().map(|asked| pulled(asked, true, true)));
        let round = progress.next(sources(&[("b", &[1, 2])], &[2]), ME);
        assert_eq!((round.asked.len(), round.whole, round.but_late), (0, slots(&[1]), slots(&[2])));
        assert!(!progress.is_over() && *progress.left() == slots(&[2]));
        let round = progress.next(sources(&[("a", &[2])], &[]), ME);
        assert_eq!(round.asked, [("a".into(), slots(&[2]))], "it may have more");
    }

    #[test]
    fn who_fails_is_told_and_who_has_no_link_is_asked_again_but_not_for_ever() {
        let mut progress = Progress::of(slots(&[1, 2]));
        let round = progress.next(sources(&[("b", &[1]), ("c", &[2])], &[]), ME);
        let [b, c] = round.asked.try_into().unwrap();
        progress.took([pulled(b, false, true), pulled(c, true, false)]);
        assert_eq!(progress.failed(), ["b".into()]);
        for _ in 1..VAIN_ROUNDS_MAX {
            assert!(!progress.is_over());
            let round = progress.next(sources(&[("c", &[1, 2])], &[]), ME);
            assert_eq!(round.asked, [("c".into(), slots(&[1, 2]))]);
            progress.took(round.asked.into_iter().map(|asked| pulled(asked, true, false)));
        }
        assert!(progress.is_over() && !progress.sum().complete);
    }

    #[test]
    fn agents_that_start_together_begin_with_different_members() {
        let first = |me: &str| {
            let parts: Vec<_> =
                [("a", &[1][..]), ("b", &[2]), ("c", &[3])].into_iter().filter(|part| part.0 != me).collect();
            let asked = Progress::of(slots(&[1, 2, 3])).next(sources(&parts, &[]), me).asked;
            asked.into_iter().map(|(source, _)| source.to_string()).collect::<String>()
        };
        assert_eq!(["a", "b", "c"].map(first), ["bc", "ca", "ab"]);
    }
}
