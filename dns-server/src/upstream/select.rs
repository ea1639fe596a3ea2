//! Which upstream is asked first: smoothed response times, recent failures last, now and then a look at the others.

use std::cmp::Reverse;
use std::time::Duration;

use heimdall_shared::clock::Moment;

/// Response time that an upstream is taken to have before it has answered: that of a resolver in the same region, so that
/// a nearer one keeps the queries that it gets and a farther one gives way.
const UNKNOWN: Duration = Duration::from_millis(50);

/// Weight of a new response time in the smoothed one (RFC 6298 2 uses 1/8).
const SMOOTHING: u32 = 8;

/// One resolution in this many starts with another upstream than the best, to notice that one became better.
const EXPLORE_EVERY: u32 = 32;

/// A throw of the dice that explores nothing.
pub(super) const NO_EXPLORATION: u32 = 1;

/// How long an upstream is asked last after one failure; doubles with each further failure in a row.
const PENALTY_MIN: Duration = Duration::from_secs(1);

/// An upstream that failed so many times in a row counts as dead to whoever asks how it is.
const DEAD_AFTER: u32 = 3;

/// The longest that an upstream is asked last: a recovered one gets its share back within this time.
const PENALTY_MAX: Duration = Duration::from_secs(30);

/// What is known of the upstreams, by their place in the configuration.
#[derive(Debug)]
pub(super) struct Ranking {
    records: Vec<Record>,
}

#[derive(Clone, Debug, Default)]
struct Record {
    smoothed: Option<Duration>,
    /// Failures since the last answer.
    failures: u32,
    last_until: Option<Moment>,
}

impl Ranking {
    /// Nothing is known of `servers` upstreams.
    pub(super) fn new(servers: usize) -> Self {
        Self { records: vec![Record::default(); servers] }
    }

    /// The upstreams in the order in which a resolution asks them. All are in it: when all fail, try anyway. `dice` is a
    /// uniformly random number.
    pub(super) fn order(&self, now: Moment, dice: u32) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.records.len()).collect();
        order.sort_by_key(|&server| self.records[server].rank(now));
        let well = order.iter().take_while(|&&server| !self.records[server].is_failing(now)).count();
        if well > 1 && dice.is_multiple_of(EXPLORE_EVERY) {
            let other = 1 + (dice / EXPLORE_EVERY) as usize % (well - 1);
            order[..=other].rotate_right(1);
        }
        order
    }

    /// Whether each upstream left the last queries to it without a word.
    pub(super) fn all_failing(&self) -> bool {
        !self.records.is_empty() && self.records.iter().all(|record| record.failures >= DEAD_AFTER)
    }

    /// `server` answered; `time` when it is known which packet it answered.
    pub(super) fn answered(&mut self, server: usize, time: Option<Duration>) {
        let record = &mut self.records[server];
        record.failures = 0;
        record.last_until = None;
        if let Some(time) = time {
            record.smoothed = Some(match record.smoothed {
                None => time,
                Some(old) => old - old / SMOOTHING + time / SMOOTHING,
            });
        }
    }

    /// An attempt at `server` ended without a word of it.
    pub(super) fn failed(&mut self, server: usize, now: Moment) {
        let record = &mut self.records[server];
        let penalty = PENALTY_MIN * 2_u32.saturating_pow(record.failures.min(5));
        record.failures = record.failures.saturating_add(1);
        record.last_until = Some(now + penalty.min(PENALTY_MAX));
    }
}

impl Record {
    fn is_failing(&self, now: Moment) -> bool {
        self.last_until.is_some_and(|until| now < until)
    }

    /// Sorts well ones by response time, then failing ones, the one that is free soonest first.
    fn rank(&self, now: Moment) -> (bool, Option<Reverse<Duration>>, Duration) {
        let failing = self.is_failing(now);
        let left = self.last_until.filter(|_| failing).map(|until| until.since(now));
        (failing, left.map(|left| Reverse(PENALTY_MAX.saturating_sub(left))), self.smoothed.unwrap_or(UNKNOWN))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn the_configured_order_holds_until_something_is_known() {
        assert_eq!(Ranking::new(3).order(at(0), NO_EXPLORATION), [0, 1, 2]);
    }

    #[test]
    fn all_are_failing_when_each_was_silent_several_times_and_none_answered_since() {
        let mut ranking = Ranking::new(2);
        for _ in 0..DEAD_AFTER {
            assert!(!ranking.all_failing());
            ranking.failed(0, at(0));
            ranking.failed(1, at(0));
        }
        assert!(ranking.all_failing());
        ranking.answered(1, None);
        assert!(!ranking.all_failing());
    }

    #[test]
    fn the_fastest_is_asked_first() {
        let mut ranking = Ranking::new(3);
        ranking.answered(0, Some(millis(80)));
        ranking.answered(2, Some(millis(10)));
        assert_eq!(ranking.order(at(0), NO_EXPLORATION), [2, 1, 0]);
    }

    #[test]
    fn one_slow_answer_does_not_dethrone_the_best() {
        let mut ranking = Ranking::new(2);
        ranking.answered(0, Some(millis(10)));
        ranking.answered(1, Some(millis(40)));
        ranking.answered(0, Some(millis(100)));
        assert_eq!(ranking.order(at(0), NO_EXPLORATION), [0, 1]);
        for _ in 0..20 {
            ranking.answered(0, Some(millis(100)));
        }
        assert_eq!(ranking.order(at(0), NO_EXPLORATION), [1, 0]);
    }

    #[test]
    fn a_failing_upstream_is_asked_last_for_a_time_that_grows_to_half_a_minute() {
        let mut ranking = Ranking::new(2);
        ranking.failed(0, at(0));
        assert_eq!(ranking.order(at(999), NO_EXPLORATION), [1, 0]);
        assert_eq!(ranking.order(at(1_000), NO_EXPLORATION), [0, 1]);
        for _ in 0..50 {
            ranking.failed(0, at(1_000));
        }
        assert_eq!(ranking.order(at(30_999), NO_EXPLORATION), [1, 0]);
        assert_eq!(ranking.order(at(31_000), NO_EXPLORATION), [0, 1]);
    }

    #[test]
    fn an_answer_ends_the_penalty() {
        let mut ranking = Ranking::new(2);
        ranking.failed(0, at(0));
        ranking.answered(0, None);
        assert_eq!(ranking.order(at(1), NO_EXPLORATION), [0, 1]);
    }

    #[test]
    fn when_all_fail_the_one_that_is_due_first_is_tried_first() {
        let mut ranking = Ranking::new(2);
        ranking.failed(0, at(0));
        ranking.failed(0, at(0));
        ranking.failed(1, at(0));
        assert_eq!(ranking.order(at(1), NO_EXPLORATION), [1, 0]);
    }

    #[test]
    fn exploration_puts_another_well_upstream_first_and_never_a_failing_one() {
        let mut ranking = Ranking::new(4);
        ranking.failed(3, at(0));
        let firsts: Vec<usize> = (0..3).map(|turn| ranking.order(at(1), turn * EXPLORE_EVERY)[0]).collect();
        assert_eq!(firsts, [1, 2, 1]);
    }

    proptest! {
        #[test]
        fn every_upstream_is_in_every_order_once(
            events in prop::collection::vec((0usize..4, prop::option::of(0u64..500), any::<bool>()), 0..40),
            now in 0u64..60_000,
            dice: u32,
        ) {
            let mut ranking = Ranking::new(4);
            for (server, time, answered) in events {
                if answered {
                    ranking.answered(server, time.map(millis));
                } else {
                    ranking.failed(server, at(time.unwrap_or(0)));
                }
            }
            let mut order = ranking.order(at(now), dice);
            order.sort_unstable();
            prop_assert_eq!(order, [0, 1, 2, 3]);
        }
    }
}
