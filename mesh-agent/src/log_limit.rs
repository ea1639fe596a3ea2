//! A brake for log lines that strangers can cause.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use heimdall_shared::clock::Moment;

/// Length of the window in which lines are counted.
const WINDOW: Duration = Duration::from_secs(1);

/// Lets a number of lines per second through and counts the others.
#[derive(Debug)]
pub struct LogLimit {
    lines_per_second: u32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    window: Option<Moment>,
    lines: u32,
    suppressed: u64,
}

impl LogLimit {
    /// A brake that lets `lines_per_second` through.
    pub const fn new(lines_per_second: u32) -> Self {
        let state = State { window: None, lines: 0, suppressed: 0 };
        Self { lines_per_second, state: Mutex::new(state) }
    }

    /// Whether a line may be written now, and how many were held back since the last one.
    pub fn allow(&self) -> Option<u64> {
        self.allow_at(Moment::now())
    }

    fn allow_at(&self, now: Moment) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.window.is_none_or(|begun| now.since(begun) >= WINDOW) {
            state.window = Some(now);
            state.lines = 0;
        }
        if state.lines < self.lines_per_second {
            state.lines += 1;
            Some(std::mem::take(&mut state.suppressed))
        } else {
            state.suppressed += 1;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_the_limit_are_counted_and_told_with_the_next_one() {
        let limit = LogLimit::new(2);
        let start = Moment::from_nanos(0);
        let lines: Vec<_> = (0..5).map(|_| limit.allow_at(start)).collect();
        assert_eq!(lines, [Some(0), Some(0), None, None, None]);
        assert_eq!(limit.allow_at(start + WINDOW), Some(3));
        assert_eq!(limit.allow_at(start + WINDOW), Some(0));
        assert_eq!(limit.allow_at(start + WINDOW), None);
    }
}
