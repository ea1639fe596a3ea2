//! When to stop asking somebody who does not answer.

use std::time::Duration;

use crate::clock::Moment;

/// Non-overlapping silent windows after which a breaker opens. One may be a pause of the scheduler, two an unlucky
/// repetition; many queries that wait at the same time see one and the same silence.
const WINDOWS_TO_OPEN: u32 = 3;

/// The breaker of a peer or of the local socket. It opens after three silent windows in a row and closes when anything is
/// heard again; the link's own pings are its probe, so no client's query is ever spent on one.
#[derive(Debug, Default)]
pub struct Breaker {
    windows: u32,
    silent_until: Moment,
}

impl Breaker {
    /// Somebody waited in vain from `since` to `now`, and the other side was last heard at `heard`.
    pub fn silence(&mut self, since: Moment, now: Moment, heard: Moment) {
        self.note(heard);
        let overlaps = self.windows > 0 && since < self.silent_until;
        // Words for others came through: the silence was about one request, not about the other side.
        let was_silent = heard <= since;
        if !overlaps && was_silent {
            self.windows = self.windows.saturating_add(1);
            self.silent_until = now;
        }
    }

    /// Whether to go on without the other side, which was last heard at `heard`.
    pub fn is_open(&mut self, heard: Moment) -> bool {
        self.note(heard);
        self.windows >= WINDOWS_TO_OPEN
    }

    /// The longest that a breaker takes to open when every window lasts `window`.
    pub const fn opens_within(window: Duration) -> Duration {
        window.saturating_mul(WINDOWS_TO_OPEN)
    }

    fn note(&mut self, heard: Moment) {
        if heard > self.silent_until {
            self.windows = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEARD: Moment = Moment::from_nanos(1);

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn opens_after_three_silent_windows_that_do_not_overlap() {
        let mut breaker = Breaker::default();
        breaker.silence(at(0) + Duration::from_nanos(2), at(100), HEARD);
        for since in 1..100 {
            breaker.silence(at(since), at(since + 100), HEARD);
        }
        assert!(!breaker.is_open(HEARD), "queries that wait together see one silence");
        breaker.silence(at(100), at(200), HEARD);
        assert!(!breaker.is_open(HEARD));
        breaker.silence(at(200), at(300), HEARD);
        assert!(breaker.is_open(HEARD));
    }

    #[test]
    fn closes_when_anything_is_heard() {
        let mut breaker = Breaker::default();
        for since in [100, 200, 300] {
            breaker.silence(at(since), at(since + 100), HEARD);
        }
        assert!(breaker.is_open(HEARD));
        assert!(!breaker.is_open(at(401)));
        assert!(!breaker.is_open(at(401)));
    }

    #[test]
    fn a_window_in_which_something_was_heard_does_not_count() {
        let mut breaker = Breaker::default();
        for since in [100, 200, 300, 400] {
            breaker.silence(at(since), at(since + 100), at(since + 50));
        }
        assert!(!breaker.is_open(at(450)));
    }
}
