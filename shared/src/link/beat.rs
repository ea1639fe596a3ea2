//! When an idle link says that it is there.

use std::sync::OnceLock;
use std::time::Duration;

use tokio::time::Instant;

/// An idle link sends a batch without content this often: often enough that an anchor costs a short-lived entry little, and
/// that silence of a peer shows within a second or two.
pub const BEAT_EVERY: Duration = Duration::from_millis(250);

/// The next beat after `now`. All links of a process beat together, and what is to be looked at that often is looked at then:
/// it is woken once for all of them.
pub fn next_beat(now: Instant) -> Instant {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    after(*FIRST.get_or_init(|| now), now)
}

fn after(first: Instant, now: Instant) -> Instant {
    let into_this_one = now.saturating_duration_since(first).as_nanos() % BEAT_EVERY.as_nanos();
    now + BEAT_EVERY - Duration::from_nanos(into_this_one as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_asks_at_whatever_time_gets_the_same_beats_and_never_waits_longer_than_one() {
        let first = Instant::now();
        for millis in [0, 1, 100, 249] {
            assert_eq!(after(first, first + Duration::from_millis(millis)), first + BEAT_EVERY, "{millis}");
        }
        assert_eq!(after(first, first + BEAT_EVERY), first + BEAT_EVERY * 2, "at a beat it is the one after");
    }
}
