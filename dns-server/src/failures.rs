//! Questions that failed a moment ago and are not asked again yet (RFC 9520). Pure: every moment is an argument.

use std::collections::HashMap;
use std::time::Duration;

use heimdall_shared::clock::Moment;
use heimdall_shared::key::Key;

/// How long a first failure is remembered. RFC 9520 3.2: "Resolvers MUST cache resolution failures for at least 1 second."
const FIRST: Duration = Duration::from_secs(1);

/// How long a repeated failure is remembered at most: doubling from [`FIRST`], as RFC 9520 3.2 asks for a backoff, and far
/// below its limit of 5 minutes, so that a repaired upstream shows at once.
const LONGEST: Duration = Duration::from_secs(5);

/// A failure counts as repeated when it comes within this time after the last one was forgotten. So does one that the mesh tells.
const STREAK: Duration = Duration::from_secs(10);

/// Keys remembered, some 150 bytes each. Beyond it failures are not remembered: their queries cost an attempt each.
const KEYS_MAX: usize = 10_000;

/// Failed keys of this process.
#[derive(Debug, Default)]
pub struct Failures {
    keys: HashMap<Key, Failure>,
    /// No key is forgotten before this moment: there is nothing to sweep.
    sweep_at: Moment,
    /// When an upstream was last heard.
    heard: Moment,
}

/// What is known of a failed key.
#[derive(Clone, Copy, Debug)]
struct Failure {
    at: Moment,
    until: Moment,
    span: Duration,
    known: Known,
    /// The mesh said so; this process did not find it out.
    told: bool,
}

/// A failure that is still remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// The upstreams themselves failed: true for everybody, so nobody is asked.
    Shared,
    /// This process got no answer, or this return code. Others may have: the mesh can still be asked.
    Local(Option<u8>),
}

impl Failures {
    /// What is remembered of `key` at `now`.
    pub fn known(&self, key: &Key, now: Moment) -> Option<Known> {
        self.keys.get(key).filter(|failure| now < failure.until).map(|failure| failure.known)
    }

    /// A resolution of this process failed at `now`.
    pub fn failed(&mut self, key: &Key, known: Known, now: Moment) {
        let span = match self.keys.get(key) {
            Some(last) if now.since(last.until) < STREAK => (last.span * 2).min(LONGEST),
            _ => FIRST,
        };
        self.insert(key, Failure { at: now, until: now + span, span, known, told: false }, now);
    }

    /// The mesh says that the upstreams failed, and for how long that holds.
    pub fn told(&mut self, key: &Key, remaining: Duration, now: Moment) {
        let until = now + remaining.min(LONGEST);
        self.insert(key, Failure { at: now, until, span: FIRST, known: Known::Shared, told: true }, now);
    }

    /// Whether a failure of `key` that the mesh tells of is to be believed. Not twice in a row: a member that lies would keep a
    /// key from all clients of this replica for as long as it likes, and no sample of its answers would show that.
    pub fn believes(&self, key: &Key, now: Moment) -> bool {
        // Most processes have no failure at all.
        self.keys.is_empty() || !self.keys.get(key).is_some_and(|last| last.told && now.since(last.until) < STREAK)
    }

    /// Whether `key` failed so short a time ago that a stale answer is good enough: less than `recheck`, and where no upstream
    /// was heard then, none has been heard since, whatever it was about.
    pub fn is_hopeless(&self, key: &Key, recheck: Duration, now: Moment) -> bool {
        self.keys.get(key).is_some_and(|failure| {
            let still_so = failure.known != Known::Local(None) || self.heard <= failure.at;
            now < failure.at + recheck && still_so
        })
    }

    /// An upstream said something at `now`.
    pub fn heard(&mut self, now: Moment) {
        self.heard = self.heard.max(now);
    }

    /// `key` was purged at `purged`: a failure before that is forgotten.
    pub fn forget_before(&mut self, key: &Key, purged: Moment) {
        if self.keys.get(key).is_some_and(|failure| failure.at <= purged) {
            self.keys.remove(key);
        }
    }

    /// `key` has an answer.
    pub fn answered(&mut self, key: &Key) {
        // Most processes have no failure at all.
        if !self.keys.is_empty() {
            self.keys.remove(key);
        }
    }

    /// Keys remembered, forgotten ones that were not swept yet included.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    fn insert(&mut self, key: &Key, failure: Failure, now: Moment) {
        if self.keys.len() >= KEYS_MAX && now >= self.sweep_at {
            self.keys.retain(|_, failure| now < failure.until);
            // Nothing is worth another sweep before the shortest memory ends.
            self.sweep_at = now + FIRST;
        }
        if self.keys.len() < KEYS_MAX || self.keys.contains_key(key) {
            self.keys.insert(key.clone(), failure);
        }
    }
}

#[cfg(test)]
mod tests {
    use heimdall_shared::key::Flags;

    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    fn key(number: usize) -> Key {
        let name = format!("\x08{number:08}\x00");
        Key::new(name.as_bytes(), 1, 1, Flags::default(), "").unwrap()
    }

    #[test]
    fn a_failure_is_remembered_for_a_second_and_longer_when_it_repeats() {
        let mut failures = Failures::default();
        let key = key(0);
        let mut now = 0;
        for span in [1_000, 2_000, 4_000, 5_000, 5_000] {
            failures.failed(&key, Known::Shared, at(now));
            assert_eq!(failures.known(&key, at(now + span - 1)), Some(Known::Shared));
            assert_eq!(failures.known(&key, at(now + span)), None);
            now += span;
        }
        failures.failed(&key, Known::Shared, at(now + 10_000));
        assert_eq!(failures.known(&key, at(now + 11_000)), None, "after a quiet time it starts anew");
    }

    #[test]
    fn an_answer_ends_the_memory_and_the_streak() {
        let mut failures = Failures::default();
        failures.failed(&key(0), Known::Local(None), at(0));
        failures.failed(&key(0), Known::Local(None), at(1_000));
        failures.answered(&key(0));
        assert_eq!(failures.known(&key(0), at(1_001)), None);
        failures.failed(&key(0), Known::Local(Some(5)), at(1_002));
        assert_eq!(failures.known(&key(0), at(2_001)), Some(Known::Local(Some(5))));
        assert_eq!(failures.known(&key(0), at(2_002)), None);
    }

    #[test]
    fn what_the_mesh_tells_holds_as_long_as_it_says_and_never_longer_than_our_own() {
        let mut failures = Failures::default();
        failures.told(&key(0), Duration::from_millis(300), at(0));
        assert_eq!(failures.known(&key(0), at(299)), Some(Known::Shared));
        assert_eq!(failures.known(&key(0), at(300)), None);
        failures.told(&key(1), Duration::from_secs(3_600), at(0));
        assert_eq!(failures.known(&key(1), at(5_000)), None);
    }

    #[test]
    fn the_mesh_is_not_believed_twice_in_a_row() {
        let mut failures = Failures::default();
        assert!(failures.believes(&key(0), at(0)));
        failures.told(&key(0), Duration::from_secs(1), at(0));
        assert!(!failures.believes(&key(0), at(1_000)) && failures.believes(&key(1), at(1_000)));
        assert!(failures.believes(&key(0), at(11_000)), "after a quiet time it starts anew");
        // What this process found out itself may well be true again.
        failures.failed(&key(0), Known::Shared, at(1_000));
        assert!(failures.believes(&key(0), at(2_000)));
    }

    #[test]
    fn what_failed_is_hopeless_for_a_while_or_until_an_upstream_is_heard() {
        const RECHECK: Duration = Duration::from_secs(30);
        let mut failures = Failures::default();
        failures.heard(at(500));
        failures.failed(&key(0), Known::Local(None), at(1_000));
        failures.failed(&key(1), Known::Shared, at(1_000));
        assert!(
            failures.is_hopeless(&key(0), RECHECK, at(30_999)) && !failures.is_hopeless(&key(0), RECHECK, at(31_000))
        );
        assert!(!failures.is_hopeless(&key(2), RECHECK, at(1_001)));
        failures.heard(at(2_000));
        assert!(!failures.is_hopeless(&key(0), RECHECK, at(2_001)), "upstreams answer again");
        assert!(failures.is_hopeless(&key(1), RECHECK, at(2_001)), "they did so all the time");
        failures.answered(&key(1));
        assert!(!failures.is_hopeless(&key(1), RECHECK, at(2_001)));
    }

    #[test]
    fn memory_is_bounded_and_what_is_over_makes_room() {
        let mut failures = Failures::default();
        for number in 0..2 * KEYS_MAX {
            failures.failed(&key(number), Known::Shared, at(0));
        }
        assert_eq!(failures.len(), KEYS_MAX);
        assert_eq!(failures.known(&key(2 * KEYS_MAX - 1), at(1)), None);
        failures.failed(&key(2 * KEYS_MAX), Known::Shared, at(1_000));
        assert_eq!(failures.known(&key(2 * KEYS_MAX), at(1_001)), Some(Known::Shared));
        assert_eq!(failures.len(), 1);
    }
}
