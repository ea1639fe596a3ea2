//! Whether this agent is degraded, judged by what it measures on itself. Pure.
//!
//! A sign must be there for a while before it counts, and gone for longer before it counts no more: nobody is helped by a
//! state that changes every second.

use std::time::Duration;

use heimdall_shared::clock::Moment;
use heimdall_shared::link::DegradedReason;

/// A sign counts when it was there for this long without a break: longer than a burst or a compaction.
pub const RAISE_AFTER: Duration = Duration::from_secs(5);

/// It counts no more when it was gone for this long.
pub const LOWER_AFTER: Duration = Duration::from_secs(10);

/// What was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Part of the memory that this process may use which it does use; none when there is no limit.
    pub memory: Option<f64>,
    /// Part of the store that is taken.
    pub store: f64,
    /// How much later than asked for this process was woken.
    pub late: Duration,
    /// Whether the own dns-server says that no upstream answers.
    pub upstreams_failing: bool,
}

/// Bad from the first of two values on, good again below the second: between them everything stays as it is.
const MEMORY: (f64, f64) = (0.9, 0.8);
/// A store evicts when it is full; one that stays full is too small.
const STORE: (f64, f64) = (0.98, 0.9);
/// Twice a tick late, those who wait for this replica's leases begin to notice.
const LATE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(20));

const REASONS: [DegradedReason; 4] =
    [DegradedReason::Memory, DegradedReason::Cpu, DegradedReason::StoreFull, DegradedReason::Upstreams];

#[derive(Clone, Copy, Debug, Default)]
struct Sign {
    counts: bool,
    /// Since when what is measured contradicts `counts`.
    contradicted: Option<Moment>,
}

/// Remembers which signs count.
#[derive(Debug, Default)]
pub struct Judge {
    signs: [Sign; REASONS.len()],
}

impl Judge {
    /// Takes in what was measured at `now`; gives the reasons that count from now on.
    pub fn step(&mut self, sample: &Sample, now: Moment) -> Vec<DegradedReason> {
        let readings = [
            sample.memory.and_then(|part| between(part, MEMORY)).or((sample.memory.is_none()).then_some(false)),
            between(sample.late, LATE),
            between(sample.store, STORE),
            Some(sample.upstreams_failing),
        ];
        for (sign, reading) in self.signs.iter_mut().zip(readings) {
            sign.step(reading, now);
        }
        REASONS.into_iter().zip(&self.signs).filter(|(_, sign)| sign.counts).map(|(reason, _)| reason).collect()
    }
}

impl Sign {
    fn step(&mut self, bad: Option<bool>, now: Moment) {
        if bad.is_none_or(|bad| bad == self.counts) {
            self.contradicted = None;
            return;
        }
        let since = *self.contradicted.get_or_insert(now);
        if now.since(since) >= if self.counts { LOWER_AFTER } else { RAISE_AFTER } {
            *self = Self { counts: !self.counts, contradicted: None };
        }
    }
}

/// Bad, good, or neither.
fn between<T: PartialOrd + Copy>(value: T, (bad, good): (T, T)) -> Option<bool> {
    if value >= bad {
        Some(true)
    } else if value < good {
        Some(false)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Moment {
        Moment::from_nanos(1) + Duration::from_secs(secs)
    }

    fn full(store: f64) -> Sample {
        Sample { store, ..Sample::default() }
    }

    #[test]
    fn a_sign_counts_after_a_while_and_stays_for_a_longer_one() {
        let mut judge = Judge::default();
        for secs in 0..5 {
            assert_eq!(judge.step(&full(0.99), at(secs)), []);
        }
        assert_eq!(judge.step(&full(0.99), at(5)), [DegradedReason::StoreFull]);
        for secs in 6..16 {
            assert_eq!(judge.step(&full(0.5), at(secs)), [DegradedReason::StoreFull]);
        }
        assert_eq!(judge.step(&full(0.5), at(16)), []);
    }

    #[test]
    fn between_the_two_values_nothing_changes_and_a_break_begins_anew() {
        let mut judge = Judge::default();
        judge.step(&full(0.99), at(0));
        judge.step(&full(0.95), at(4));
        assert_eq!(judge.step(&full(0.99), at(5)), []);
        assert_eq!(judge.step(&full(0.99), at(10)), [DegradedReason::StoreFull]);
        judge.step(&full(0.1), at(11));
        judge.step(&full(0.95), at(20));
        assert_eq!(judge.step(&full(0.1), at(22)), [DegradedReason::StoreFull]);
    }

    #[test]
    fn each_reason_has_its_own_sign() {
        let bad = [
            (Sample { memory: Some(0.95), ..Sample::default() }, DegradedReason::Memory),
            (Sample { late: Duration::from_millis(60), ..Sample::default() }, DegradedReason::Cpu),
            (full(1.0), DegradedReason::StoreFull),
            (Sample { upstreams_failing: true, ..Sample::default() }, DegradedReason::Upstreams),
        ];
        for (sample, reason) in bad {
            let mut judge = Judge::default();
            judge.step(&sample, at(0));
            assert_eq!(judge.step(&sample, at(5)), [reason]);
        }
        let mut judge = Judge::default();
        let none = Sample::default();
        assert!((0..60).all(|secs| judge.step(&none, at(secs)).is_empty()));
    }
}
