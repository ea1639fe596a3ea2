//! Which answers are fetched anew before they end, so that popular names never miss. Pure, and without an allocation.
//!
//! A hit must touch nothing shared, so popularity is no mark in the entry, which other workers read: each worker counts by
//! itself, in a small table, and only hits shortly before an answer's end.

use std::time::Duration;

use heimdall_shared::clock::Moment;

/// No answer is fetched anew earlier than this before its end: longer than any query takes that the client would wait for.
const LONGEST_AHEAD: Duration = Duration::from_secs(2);

/// Answers that live shorter than this are not fetched anew: what is left of them when they near their end is no longer than a
/// query to an upstream takes.
const LEAST_LIFETIME: Duration = Duration::from_secs(4);

/// Hits near the end that make a name popular: one may be chance, two come from somebody who is likely to ask again soon.
const POPULAR: u8 = 2;

/// Names that one worker counts at a time. Names near their end are few; of two in one place the later one stays.
const PLACES: usize = 1_024;

/// How much of its life an answer must have left to be left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// Of the lifetime, in percent.
    percent: u8,
    /// The cap, in nanoseconds; 0 when nothing is fetched anew.
    longest: u64,
}

impl Ahead {
    /// Nothing is fetched anew.
    pub const OFF: Self = Self { percent: 0, longest: 0 };

    /// The last `percent` of a lifetime, at most `LONGEST_AHEAD`.
    pub const fn percent(percent: u8) -> Self {
        if percent == 0 {
            return Self::OFF;
        }
        Self { percent, longest: LONGEST_AHEAD.as_nanos() as u64 }
    }

    /// Whether an answer, born then and served until then, is near its end.
    #[inline]
    pub(crate) const fn is_due(&self, born: Moment, until: Moment, now: Moment) -> bool {
        let left = until.as_nanos().saturating_sub(now.as_nanos());
        // Nearly always decided here.
        left < self.longest && self.covers(left, until.as_nanos().saturating_sub(born.as_nanos()))
    }

    /// Whether an answer with `left` of `lifetime` left, both in nanoseconds and without the last second, is near its end.
    const fn covers(self, left: u64, lifetime: u64) -> bool {
        // The last second of a life is never served.
        const LEAST: u64 = LEAST_LIFETIME.as_nanos() as u64 - 1_000_000_000;
        lifetime >= LEAST && left < lifetime / 100 * self.percent as u64
    }
}

/// The hits near their end that one worker sees.
#[derive(Debug)]
pub struct Popular {
    places: Box<[Place; PLACES]>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Place {
    /// Of key and birth: the next answer for a key is counted anew.
    hash: u64,
    hits: u8,
}

impl Popular {
    /// No hit so far.
    pub fn new() -> Self {
        let places = vec![Place::default(); PLACES].into_boxed_slice();
        Self { places: places.try_into().expect("the vector must hold PLACES places") }
    }

    /// A hit on an answer near its end; `hash` is the cache's of its key. True once per answer: when it is to be fetched anew.
    pub fn hit(&mut self, hash: u64, born: Moment) -> bool {
        // Births differ in their low bits, which alone choose the place.
        let hash = hash ^ born.as_nanos();
        let place = &mut self.places[hash as usize % PLACES];
        if place.hash != hash {
            *place = Place { hash, hits: 0 };
        }
        place.hits = place.hits.saturating_add(1);
        place.hits == POPULAR
    }
}

impl Default for Popular {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn the_last_part_of_a_life_is_near_its_end() {
        let ahead = Ahead::percent(5);
        assert!(ahead.covers(SECOND, 30 * SECOND) && !ahead.covers(2 * SECOND, 30 * SECOND));
        assert!(!ahead.covers(0, 2 * SECOND), "too short a life");
        assert!(!Ahead::OFF.covers(0, 30 * SECOND));
        assert_eq!(Ahead::percent(0), Ahead::OFF);
    }

    #[test]
    fn the_second_hit_says_so_and_no_other() {
        let mut popular = Popular::new();
        let hits: Vec<bool> = (0..600).map(|_| popular.hit(0xA, Moment::from_nanos(1))).collect();
        assert_eq!(hits.iter().filter(|&&hit| hit).count(), 1);
        assert!(hits[1]);
        assert!(!popular.hit(0xB, Moment::from_nanos(1)));
        assert!(!popular.hit(0xA, Moment::from_nanos(2)), "the next answer is another one");
        assert!(popular.hit(0xA, Moment::from_nanos(2)));
    }
}
