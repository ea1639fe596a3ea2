//! The one clock: `CLOCK_BOOTTIME`, which neither steps with the wall clock nor stands still while a machine sleeps.

use std::cell::Cell;
use std::ops::Add;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// A point in time on this machine: nanoseconds since boot, suspended time included.
///
/// Never sent to another machine: on the wire time travels as durations (an entry's age, what is left of a deadline).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

thread_local! {
    /// What this thread reads instead of the machine's clock.
    static SIMULATED: Cell<Option<fn() -> Moment>> = const { Cell::new(None) };
}

/// Has this thread read `clock` from now on: for a simulation that drives the time of everything that runs in it.
pub fn simulate(clock: fn() -> Moment) {
    SIMULATED.set(Some(clock));
}

impl Moment {
    /// Reads the clock (a vDSO call, about 25 ns).
    pub fn now() -> Self {
        if let Some(simulated) = SIMULATED.get() {
            return simulated();
        }
        let time = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("CLOCK_BOOTTIME must exist on Linux 2.6.39 and later");
        Self(Duration::from(time).as_nanos() as u64)
    }

    /// The moment `nanos` nanoseconds after boot.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since boot.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time passed since `earlier`; zero when `earlier` lies ahead.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The moment `span` earlier, or boot when there was no such moment.
    pub const fn minus(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(span)))
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(nanos(span)))
    }
}

/// `span` in nanoseconds, capped at what a [`Moment`] can hold (584 years).
const fn nanos(span: Duration) -> u64 {
    let nanos = span.as_nanos();
    if nanos > u64::MAX as u128 { u64::MAX } else { nanos as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_never_runs_backwards() {
        let first = Moment::now();
        assert!(Moment::now() >= first);
    }

    #[test]
    fn arithmetic_saturates_instead_of_wrapping() {
        let early = Moment::from_nanos(5);
        assert_eq!(early.minus(Duration::from_secs(1)), Moment::from_nanos(0));
        assert_eq!(early.since(Moment::from_nanos(9)), Duration::ZERO);
        assert_eq!(early + Duration::MAX, Moment::from_nanos(u64::MAX));
    }
}
