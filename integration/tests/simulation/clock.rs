//! Clocks of machines that disagree: each started at another time and runs a little fast or slow.

use heimdall_shared::clock::Moment;

/// True time in nanoseconds, which only the simulation knows.
pub(crate) type Time = u64;

/// Nanoseconds in a millisecond.
pub(crate) const MILLI: Time = 1_000_000;

/// Nanoseconds in a second.
pub(crate) const SECOND: Time = 1_000_000_000;

/// One machine's clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// What it shows at true time 0.
    pub(crate) offset: u64,
    /// How much too fast it runs, in parts per million.
    pub(crate) error_ppm: i64,
}

impl Clock {
    /// What it shows.
    pub(crate) fn read(self, now: Time) -> Moment {
        let error = i128::from(now) * i128::from(self.error_ppm) / 1_000_000;
        Moment::from_nanos((i128::from(self.offset) + i128::from(now) + error) as u64)
    }

    /// The first true time at which it shows `moment` or more, not before `now`.
    pub(crate) fn when(self, moment: Moment, now: Time) -> Time {
        let local = i128::from(moment.as_nanos()) - i128::from(self.offset);
        let time = (local * 1_000_000).div_euclid(1_000_000 + i128::from(self.error_ppm)) + 1;
        (time.max(0) as Time).max(now)
    }
}

#[test]
fn a_timer_fires_when_its_own_clock_says_so() {
    for error_ppm in [-100_000, -37, 0, 412, 100_000] {
        let clock = Clock { offset: 77 * SECOND, error_ppm };
        for time in [0, 1, 999, SECOND, 3_600 * SECOND] {
            let fires = clock.when(clock.read(time), 0);
            assert!(fires.abs_diff(time) <= 2 && clock.read(fires) >= clock.read(time), "{error_ppm} {time} {fires}");
        }
    }
}
