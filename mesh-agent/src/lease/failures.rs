//! Failures of the upstreams themselves, remembered so that not everybody asks again at once (RFC 9520).

use std::collections::HashMap;
use std::time::Duration;

use foldhash::quality::RandomState;
use heimdall_shared::clock::Moment;
use heimdall_shared::key::Key;
use heimdall_shared::purge::Scope;

use super::deadlines::Deadlines;

/// How long a first failure is remembered. RFC 9520 3.2: "Resolvers MUST cache resolution failures for at least 1 second."
const FIRST: Duration = Duration::from_secs(1);

/// How long at most, for a key that keeps failing. RFC 9520 allows 5 minutes; recovery is noticed sooner like this.
const LONGEST: Duration = Duration::from_secs(5);

/// A key that fails again within this after its failure ran out keeps failing: the next one is remembered twice as long.
const RELAPSE_WITHIN: Duration = Duration::from_secs(5);

/// Remembered failures, at most `max` of them.
#[derive(Debug)]
pub(super) struct Failures {
    failures: HashMap<Key, Failure, RandomState>,
    forget: Deadlines<Key>,
    max: usize,
}

#[derive(Debug)]
struct Failure {
    until: Moment,
    span: Duration,
    forget: Moment,
}

impl Failures {
    pub(super) fn new(max: usize) -> Self {
        Self { failures: HashMap::default(), forget: Deadlines::default(), max }
    }

    /// What is left of the failure of `key`, if it is to be believed now.
    pub(super) fn remaining(&self, key: &Key, now: Moment) -> Option<Duration> {
        let remaining = self.failures.get(key)?.until.since(now);
        (!remaining.is_zero()).then_some(remaining)
    }

    /// Remembers a failure. Returns for how long it counts, and whether there was room to remember it.
    pub(super) fn record(&mut self, key: &Key, now: Moment) -> (Duration, bool) {
        let previous = self.failures.remove(key);
        let span = previous.map_or(FIRST, |failure| {
            self.forget.clear(failure.forget, key.clone());
            // Another word about a failure that still counts is no new failure.
            if failure.until > now { failure.span } else { (failure.span * 2).min(LONGEST) }
        });
        if self.failures.len() >= self.max {
            return (span, false);
        }
        let until = now + span;
        let forget = until + RELAPSE_WITHIN;
        self.failures.insert(key.clone(), Failure { until, span, forget });
        self.forget.set(forget, key.clone());
        (span, true)
    }

    /// The key was answered: it does not keep failing.
    pub(super) fn clear(&mut self, key: &Key) {
        if let Some(failure) = self.failures.remove(key) {
            self.forget.clear(failure.forget, key.clone());
        }
    }

    /// What is purged does not keep failing.
    pub(super) fn purge(&mut self, scope: &Scope) {
        let forget = &mut self.forget;
        self.failures.retain(|key, failure| {
            let covered = scope.covers(key);
            if covered {
                forget.clear(failure.forget, key.clone());
            }
            !covered
        });
    }

    pub(super) fn expire(&mut self, now: Moment) {
        while let Some(key) = self.forget.pop_due(now) {
            self.failures.remove(&key);
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Moment> {
        self.forget.next()
    }

    pub(super) fn len(&self) -> usize {
        self.failures.len()
    }
}
