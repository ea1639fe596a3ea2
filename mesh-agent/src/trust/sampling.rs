//! Which of the peers' answers are checked, and how many in a second. Pure.

use std::time::Duration;

use heimdall_shared::clock::Moment;

/// A watched member's answers are checked this many times as often: what is suspected is soon known, either way.
const WATCHED: u32 = 16;

/// Checks in a second at most: a thousandth of more peer answers than a replica takes. They are this replica's upstream
/// queries, and peers can make it check ([`crate::trust::Trust::accused`]).
const PER_SECOND: u32 = 50;

/// Checks at once after a quiet time.
const AT_ONCE: u32 = 50;

/// Whether an answer is checked: one in `one_in`, by `dice`, which is evenly spread. A member that could foresee it would lie
/// about the others only. 0 is never.
pub const fn is_due(one_in: u32, is_watched: bool, dice: u32) -> bool {
    if one_in == 0 {
        return false;
    }
    let one_in = match one_in / WATCHED {
        _ if !is_watched => one_in,
        0 => 1,
        rarer => rarer,
    };
    dice.is_multiple_of(one_in)
}

/// Room for checks that fills up with time.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    left: u32,
    filled: Moment,
}

impl Allowance {
    /// Full.
    pub const fn new(now: Moment) -> Self {
        Self { left: AT_ONCE, filled: now }
    }

    /// Takes one, if there is one.
    pub fn take(&mut self, now: Moment) -> bool {
        let each = Duration::from_secs(1) / PER_SECOND;
        let gained = u32::try_from(now.since(self.filled).as_nanos() / each.as_nanos()).unwrap_or(u32::MAX);
        if gained > 0 {
            self.left = self.left.saturating_add(gained).min(AT_ONCE);
            // What is left of a part counts for the next one.
            self.filled = if self.left == AT_ONCE { now } else { self.filled + each * gained };
        }
        let has_one = self.left > 0;
        self.left = self.left.saturating_sub(1);
        has_one
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_in_so_many_is_checked_and_more_of_who_is_watched() {
        let checked = |one_in, is_watched| (0..16_000).filter(|&dice| is_due(one_in, is_watched, dice)).count();
        assert_eq!((checked(1_000, false), checked(1_000, true)), (16, 259));
        assert_eq!((checked(1, false), checked(1, true), checked(10, true)), (16_000, 16_000, 16_000));
        assert_eq!((checked(0, false), checked(0, true)), (0, 0));
    }

    proptest! {
        #[test]
        fn no_second_has_more_checks_than_it_may(pauses in proptest::collection::vec(0..100_u64, 1..500)) {
            let start = Moment::from_nanos(1);
            let mut allowance = Allowance::new(start);
            let (mut millis, mut taken) = (0, 0_u64);
            for pause in pauses {
                millis += pause;
                taken += u64::from(allowance.take(start + Duration::from_millis(millis)));
                prop_assert!(taken <= u64::from(AT_ONCE) + millis * u64::from(PER_SECOND) / 1_000);
            }
            prop_assert!(allowance.take(start + Duration::from_millis(millis + 1_000)));
        }
    }
}
