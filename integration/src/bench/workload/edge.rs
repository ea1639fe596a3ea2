//! Arrivals of single queries: plain Zipf, and what the resolver of an access network sees.

use rand::RngExt as _;
use rand::rngs::StdRng;

use super::subject::qtype::{A, AAAA, HTTPS, MX, TXT};
use super::zipf::Zipf;
use super::{Event, Named, Poisson, Subject, Terms, scattered};

/// TTL in seconds that every name of the plain workload has.
const PLAIN_TTL: u32 = 300;

/// Names of the edge workload.
const NAMES: u32 = 200_000;

/// Exponent of their Zipf distribution.
const EXPONENT: f64 = 0.95;

/// The first rank whose names are asked for once only: 30 % of the names, the rarest.
const FIRST_ONCE: u32 = NAMES / 10 * 7;

/// Share of the queries for names that do not exist.
const MISSING: f64 = 0.10;

/// TTLs in seconds of names that exist, with the share of names that have at most this one: what a survey of 6 million
/// names saw (0.16 % none at all, 9.84 % to a minute, 16.3 % to two, 39.9 % to five, 70.1 % to an hour).
const TTLS: [(f64, u32); 7] =
    [(0.0016, 0), (0.0984, 60), (0.163, 120), (0.399, 300), (0.55, 600), (0.701, 3_600), (1.0, 14_400)];

/// Negative TTLs in seconds, least and most.
const NEGATIVE_TTLS: (u32, u32) = (60, 900);

/// The plain workload.
pub(super) struct Plain {
    terms: Terms,
    random: StdRng,
    arrivals: Poisson,
    ranks: Zipf,
}

impl Plain {
    pub(super) fn new(terms: Terms) -> Self {
        let ranks = Zipf::new(terms.names, terms.exponent);
        Self { random: terms.random(), arrivals: Poisson::new(terms.rate), ranks, terms }
    }
}

impl Iterator for Plain {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        let at = self.arrivals.next(&mut self.random);
        let replica = self.random.random_range(0..self.terms.replicas);
        let name = Named::Ranked(self.ranks.draw(&mut self.random));
        Some(Event { at, replica, subject: Subject { name, qtype: A, ttl: self.terms.ttl(PLAIN_TTL) } })
    }
}

/// The edge workload.
pub(super) struct Edge {
    terms: Terms,
    random: StdRng,
    arrivals: Poisson,
    ranks: Zipf,
    /// Names that were asked for once.
    used: u64,
}

impl Edge {
    pub(super) fn new(terms: Terms) -> Self {
        let ranks = Zipf::new(NAMES, EXPONENT);
        Self { random: terms.random(), arrivals: Poisson::new(terms.rate), ranks, used: 0, terms }
    }

    fn subject(&mut self) -> Subject {
        let qtype = match self.random.random_range(0..100) {
            0..45 => A,
            45..85 => AAAA,
            85..90 => HTTPS,
            90..95 => TXT,
            _ => MX,
        };
        let missing = self.random.random::<f64>() < MISSING;
        let rank = self.ranks.draw(&mut self.random);
        if missing {
            let (least, most) = NEGATIVE_TTLS;
            let model = least + (scattered(rank.into()) % u64::from(most - least + 1)) as u32;
            return Subject { name: Named::Missing(rank), qtype, ttl: self.terms.negative_ttl(model) };
        }
        let (name, number) = if rank < FIRST_ONCE {
            (Named::Ranked(rank), u64::from(rank))
        } else {
            self.used += 1;
            (Named::Once(self.used), u64::from(NAMES) + self.used)
        };
        Subject { name, qtype, ttl: self.terms.ttl(model_ttl(number)) }
    }
}

impl Iterator for Edge {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        let at = self.arrivals.next(&mut self.random);
        let replica = self.random.random_range(0..self.terms.replicas);
        Some(Event { at, replica, subject: self.subject() })
    }
}

/// The TTL of the name with this number, all of whose types have the same.
fn model_ttl(number: u64) -> u32 {
    let share = scattered(number) as f64 / u64::MAX as f64;
    TTLS.iter().find(|(most, _)| share <= *most).map_or(0, |(_, ttl)| *ttl)
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::super::samples::terms;
    use super::*;

    #[test]
    fn an_edge_has_its_shares_of_types_and_of_names_that_are_missing_or_new() {
        const COUNT: usize = 100_000;
        let subjects: Vec<_> = Edge::new(terms()).take(COUNT).map(|event| event.subject).collect();
        let share = |is: &dyn Fn(&Subject) -> bool| subjects.iter().filter(|subject| is(subject)).count() * 100 / COUNT;
        assert!((44..=46).contains(&share(&|subject| subject.qtype == A)));
        assert!((39..=41).contains(&share(&|subject| subject.qtype == AAAA)));
        assert!((9..=11).contains(&share(&|subject| matches!(subject.name, Named::Missing(_)))));
        let once: Vec<_> = subjects.iter().filter(|subject| matches!(subject.name, Named::Once(_))).collect();
        assert!((2..=5).contains(&(once.len() * 100 / COUNT)), "{}", once.len());
        assert_eq!(once.iter().map(|subject| subject.name).collect::<HashSet<_>>().len(), once.len());
    }

    #[test]
    fn a_name_always_has_the_same_ttl_and_all_names_together_have_those_of_the_table() {
        let mut ttls = HashMap::new();
        for event in Edge::new(terms()).take(50_000) {
            let ttl = event.subject.ttl;
            assert_eq!(*ttls.entry(event.subject.name).or_insert(ttl), ttl);
            if matches!(event.subject.name, Named::Missing(_)) {
                assert!((60..=900).contains(&ttl), "{ttl}");
            }
        }
        const NUMBERS: u64 = 100_000;
        let mut below = 0.0;
        for (most, ttl) in TTLS {
            let count = (0..NUMBERS).filter(|&number| model_ttl(number) == ttl).count() as f64;
            let share = count / NUMBERS as f64;
            assert!((share - (most - below)).abs() < 0.005, "{ttl}: {share}");
            below = most;
        }
    }
}
