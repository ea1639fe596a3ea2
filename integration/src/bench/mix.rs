//! A load of known times: cached questions, and among them some that nobody asked before.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::workload::{Asked, Named, PINNED_TTL, Subject, Workload};

/// What a mix is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Queries.
    pub(super) count: u32,
    /// Queries per second, at random times.
    pub(super) rate: f64,
    /// Share of them that are new, of 1.
    pub(super) new: f64,
    /// The same seed makes the same mix.
    pub(super) seed: u64,
    /// Number of the first new question; those before it were asked in earlier mixes.
    pub(super) first_new: u64,
}

/// A load.
pub(super) struct Mix {
    /// All questions, and the order in which they are asked.
    pub(super) workload: Workload,
    /// When each is asked.
    pub(super) times: Vec<Duration>,
    /// Questions from this number on are new.
    cached: u32,
}

impl Mix {
    /// Draws cached questions from a workload, other ones each round, and puts new ones between them.
    pub(super) fn new(cached: &Workload, round: u32, shape: Shape) -> Self {
        let mut random = StdRng::seed_from_u64(shape.seed ^ u64::from(round) << 32);
        let mut asked = cached.asked().to_vec();
        let known = asked.len() as u32;
        let mut draws = cached.draws(round);
        let mut at = 0.0;
        let (mut order, mut times) = (Vec::new(), Vec::new());
        for _ in 0..shape.count {
            let next = if random.random::<f64>() < shape.new { None } else { draws.next() };
            order.push(next.unwrap_or(asked.len() as u32));
            if next.is_none() {
                let number = shape.first_new + u64::from(asked.len() as u32 - known);
                asked.push(Asked::new(&Subject { name: Named::New(number), qtype: 1, ttl: PINNED_TTL }));
            }
            at -= (1.0 - random.random::<f64>()).ln() / shape.rate;
            times.push(Duration::from_secs_f64(at));
        }
        Self { workload: Workload::of(asked, order), times, cached: known }
    }

    /// Whether the question of this number is one that nobody asked before.
    pub(super) const fn is_new(&self, number: u32) -> bool {
        number >= self.cached
    }

    /// How many are.
    pub(super) fn count_new(&self) -> u64 {
        self.workload.asked().len() as u64 - u64::from(self.cached)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::HashSet;

    use super::super::workload::Kind;
    use super::*;

    fn mix(round: u32, new: f64, first_new: u64) -> Mix {
        let workload = Workload::cached(Kind::Zipf, 50, 1.0, 1).unwrap();
        Mix::new(&workload, round, Shape { count: 10_000, rate: 1_000.0, new, seed: 1, first_new })
    }

    #[test]
    fn a_tenth_is_new_and_no_new_one_is_asked_twice() {
        let mix = mix(0, 0.1, 0);
        let new: Vec<_> = mix.workload.order().iter().filter(|&&number| mix.is_new(number)).collect();
        assert!((900..1_100).contains(&new.len()), "{}", new.len());
        assert_eq!(new.iter().collect::<HashSet<_>>().len(), new.len());
        assert_eq!(new.len() as u64, mix.count_new());
    }

    #[test]
    fn mixes_that_begin_where_the_last_one_ended_share_no_new_question() {
        let queries = |mix: &Mix| -> HashSet<_> {
            let new = mix.workload.order().iter().filter(|&&number| mix.is_new(number));
            new.map(|&number| mix.workload.name(number).query.clone()).collect()
        };
        let first = mix(0, 0.1, 0);
        let second = mix(1, 0.1, first.count_new());
        assert!(queries(&first).is_disjoint(&queries(&second)));
        assert_eq!(queries(&first), queries(&mix(0, 0.1, 0)));
    }

    #[test]
    fn queries_have_their_rate() {
        let mix = mix(0, 0.0, 0);
        assert!(mix.times.is_sorted() && mix.count_new() == 0);
        let last = mix.times.last().unwrap().as_secs_f64();
        assert!((9.0..11.0).contains(&last), "{last}");
    }
}
