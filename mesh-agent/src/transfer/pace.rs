//! How fast bulk copies come in: one budget for all transfers of this agent.

use std::time::Duration;

use heimdall_shared::clock::Moment;

/// Lets so many bytes through per second. Pure.
#[derive(Debug)]
pub struct Pace {
    bytes_per_second: u64,
    next: Moment,
}

impl Pace {
    /// Nothing was let through yet.
    pub const fn new(bytes_per_second: u64, now: Moment) -> Self {
        Self { bytes_per_second, next: now }
    }

    /// `bytes` came at `now`; gives the moment from which more may be asked for.
    pub fn took(&mut self, bytes: usize, now: Moment) -> Moment {
        // What was not used is not saved up: a burst would hit whoever gives.
        let nanos = (bytes as u128 * 1_000_000_000).div_ceil(u128::from(self.bytes_per_second.max(1)));
        self.next = self.next.max(now) + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_transfers_take_together_keeps_to_the_rate() {
        let at = |millis: u64| Moment::from_nanos(1) + Duration::from_millis(millis);
        let mut pace = Pace::new(1_000_000, at(0));
        assert_eq!(pace.took(500_000, at(0)), at(500));
        assert_eq!(pace.took(500_000, at(10)), at(1_000), "another transfer waits behind the first");
        assert_eq!(pace.took(1_000, at(5_000)), at(5_001), "idle time is not saved up");
    }
}
