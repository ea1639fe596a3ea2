//! What is due when.

use std::collections::BTreeSet;

use heimdall_shared::clock::Moment;

/// A set of due times that forgets exactly what it is told to: a lease that ended early leaves nothing behind.
#[derive(Debug)]
pub(super) struct Deadlines<T>(BTreeSet<(Moment, T)>);

impl<T> Default for Deadlines<T> {
    fn default() -> Self {
        Self(BTreeSet::new())
    }
}

impl<T: Ord> Deadlines<T> {
    pub(super) fn set(&mut self, at: Moment, what: T) {
        self.0.insert((at, what));
    }

    pub(super) fn clear(&mut self, at: Moment, what: T) {
        self.0.remove(&(at, what));
    }

    pub(super) fn next(&self) -> Option<Moment> {
        self.0.first().map(|(at, _)| *at)
    }

    /// Takes out the earliest that is due.
    pub(super) fn pop_due(&mut self, now: Moment) -> Option<T> {
        if self.next()? > now {
            return None;
        }
        self.0.pop_first().map(|(_, what)| what)
    }
}
