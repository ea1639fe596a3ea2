//! Whether the agent is heard at all, on whichever link: the breaker of its socket.

use std::sync::{Mutex, PoisonError};

use heimdall_shared::breaker::Breaker;
use heimdall_shared::clock::Moment;

/// What all links of the process hear of one agent. A stopped agent is silent on every link, so each worker profits from
/// what the others bore; a word on any of them closes the breaker for all.
#[derive(Debug, Default)]
pub struct Hearing(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    breaker: Breaker,
    heard: Moment,
}

impl Hearing {
    /// A batch arrived on one of the links.
    pub(super) fn heard(&self, now: Moment) {
        self.with(|state| state.heard = state.heard.max(now));
    }

    /// A miss waited in vain from `since` to `now`.
    pub(super) fn silence(&self, since: Moment, now: Moment) {
        self.with(|state| state.breaker.silence(since, now, state.heard));
    }

    /// Whether to go on without the agent.
    pub(super) fn is_open(&self) -> bool {
        self.with(|state| state.breaker.is_open(state.heard))
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn silences_on_different_links_add_up_and_one_word_ends_them() {
        let hearing = Hearing::default();
        hearing.heard(at(50));
        // Two links in the same silence, then each once more.
        for since in [100, 120, 200, 320] {
            assert!(!hearing.is_open());
            hearing.silence(at(since), at(since + 100));
        }
        assert!(hearing.is_open());
        hearing.heard(at(500));
        assert!(!hearing.is_open());
    }
}
