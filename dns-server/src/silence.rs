//! How long the mesh has been silent towards one miss. Pure: every moment is an argument.
//!
//! Not the wait is bounded but the silence in it. A slow upstream is waited for as long as the holder's ticks say that
//! somebody works on it; a sick mesh costs the budget once, however its silences are spread over the miss.

use std::time::Duration;

use heimdall_shared::clock::Moment;

/// A timer that fires later than this was not late because of the mesh: this process was stopped or starved.
const LATE: Duration = Duration::from_millis(25);

/// Ticks that one gap may span: one may be on its way, one may be lost to scheduling.
const FORGIVEN_TICKS: u32 = 2;

/// Adds up the silences of one miss.
#[derive(Clone, Debug)]
pub struct Meter {
    budget: Duration,
    forgiven: Duration,
    spent: Duration,
    last: Moment,
    restarted: bool,
}

/// What a timer that fired means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Somebody was heard since the timer was set: it is due again at [`Meter::expires_at`].
    Early,
    /// This process was not running when the timer was due; the silence starts anew, once per miss.
    Restarted,
    /// The budget is spent.
    Spent,
}

impl Meter {
    /// A meter that starts at `now`, with the lookup. `tick` is the time between two signs of a working mesh.
    pub fn new(budget: Duration, tick: Duration, now: Moment) -> Self {
        Self { budget, forgiven: tick * FORGIVEN_TICKS, spent: Duration::ZERO, last: now, restarted: false }
    }

    /// A sign of work: a tick that lists the lease that is waited for, or any message for this miss.
    pub fn sign(&mut self, now: Moment) {
        if self.was_asleep(now) {
            self.restart(now);
            return;
        }
        let gap = now.since(self.last);
        // The gaps of normal working cost nothing; a longer one is silence from its first moment.
        if gap > self.forgiven {
            self.spent += gap;
        }
        self.last = self.last.max(now);
    }

    /// When the budget will be spent if nothing is heard.
    pub fn expires_at(&self) -> Moment {
        self.last + self.budget.saturating_sub(self.spent)
    }

    /// When the silence that may be spending the budget now began.
    pub const fn silent_since(&self) -> Moment {
        self.last
    }

    /// Reads the meter when a timer that was set to [`Meter::expires_at`] fires.
    pub fn fired(&mut self, now: Moment) -> Reading {
        if now < self.expires_at() {
            Reading::Early
        } else if self.was_asleep(now) {
            self.restart(now);
            Reading::Restarted
        } else {
            Reading::Spent
        }
    }

    /// A new silence begins at `now`, with a whole budget.
    pub fn renew(&mut self, now: Moment) {
        self.spent = Duration::ZERO;
        self.last = now;
    }

    fn was_asleep(&self, now: Moment) -> bool {
        !self.restarted && now.since(self.expires_at()) > LATE
    }

    fn restart(&mut self, now: Moment) {
        self.restarted = true;
        self.renew(now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BUDGET: Duration = Duration::from_millis(100);
    const TICK: Duration = Duration::from_millis(25);

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    fn meter() -> Meter {
        Meter::new(BUDGET, TICK, at(0))
    }

    #[test]
    fn unbroken_silence_is_borne_for_the_whole_budget() {
        let mut meter = meter();
        assert_eq!(meter.expires_at(), at(100));
        assert_eq!(meter.fired(at(99)), Reading::Early);
        assert_eq!(meter.fired(at(100)), Reading::Spent);
    }

    #[test]
    fn ticks_at_their_pace_are_waited_for_without_end() {
        let mut meter = meter();
        for tick in 1..10_000 {
            assert_eq!(meter.fired(at(tick * 25)), Reading::Early);
            meter.sign(at(tick * 25));
        }
        // Every second one lost.
        for tick in 5_000..10_000 {
            meter.sign(at(tick * 50));
        }
        assert_eq!(meter.expires_at(), at(9_999 * 50 + 100));
    }

    #[test]
    fn silences_add_up_over_a_miss() {
        let mut meter = meter();
        meter.sign(at(60));
        assert_eq!(meter.expires_at(), at(100));
        meter.sign(at(80));
        assert_eq!(meter.expires_at(), at(120));
        assert_eq!(meter.fired(at(120)), Reading::Spent);
    }

    #[test]
    fn a_stopped_process_blames_nobody_once() {
        let mut late = meter();
        assert_eq!(late.fired(at(5_000)), Reading::Restarted);
        assert_eq!(late.expires_at(), at(5_100));
        assert_eq!(late.fired(at(9_000)), Reading::Spent);

        // What had arrived in the meantime is read before the timer.
        let mut signed = meter();
        signed.sign(at(5_000));
        assert_eq!(signed.expires_at(), at(5_100));
        signed.sign(at(5_090));
        assert_eq!(signed.fired(at(5_100)), Reading::Spent);
    }

    #[test]
    fn a_timer_that_is_a_little_late_is_taken_as_it_is() {
        assert_eq!(meter().fired(at(125)), Reading::Spent);
    }

    proptest! {
        /// Signs at arbitrary moments: the time until the budget is spent is never more than the gaps that count, plus
        /// what was forgiven, plus one restart.
        #[test]
        fn silence_is_bounded_whatever_the_pattern(gaps in prop::collection::vec(0u64..150, 0..200)) {
            let mut meter = meter();
            let (mut now, mut silent) = (0, 0);
            for gap in gaps {
                if now + gap > meter.expires_at().as_nanos() / 1_000_000 {
                    break;
                }
                now += gap;
                if gap > 50 {
                    silent += gap;
                }
                meter.sign(at(now));
                prop_assert!(silent <= 100);
            }
            let due = meter.expires_at();
            prop_assert_eq!(due, at(now + 100 - silent));
            prop_assert_eq!(meter.fired(due), Reading::Spent);
        }

        /// Hearing more never ends a wait earlier.
        #[test]
        fn one_more_sign_never_shortens_the_wait(
            mut signs in prop::collection::vec(1u64..100, 1..20),
            extra in 1u64..100,
        ) {
            signs.sort_unstable();
            let mut fewer = meter();
            for &sign in &signs {
                fewer.sign(at(sign));
            }
            signs.push(extra);
            signs.sort_unstable();
            let mut more = meter();
            for &sign in &signs {
                more.sign(at(sign));
            }
            prop_assert!(more.expires_at() >= fewer.expires_at());
        }

        /// At most one restart per miss, however often the process sleeps.
        #[test]
        fn restarts_happen_once(naps in prop::collection::vec(126u64..10_000, 2..10)) {
            let mut meter = meter();
            let mut now = 0;
            let readings: Vec<Reading> = naps
                .into_iter()
                .map(|nap| {
                    now += nap;
                    meter.fired(at(now))
                })
                .collect();
            prop_assert!(readings.iter().filter(|&&reading| reading == Reading::Restarted).count() <= 1);
        }
    }
}
