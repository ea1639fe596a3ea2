//! Questions of a workload by number, made before anything is measured, and the order in which they are asked.

use std::collections::HashMap;

use anyhow::{Result, ensure};

use super::{Event, Kind, Lives, Subject, Terms, Truth, events, truth};
use crate::wire::{Message, Name};

/// Draws that are made before anything is measured and then used again and again: enough that no name of a million keeps a
/// wrong share of the load for long, few enough to stay out of the way (4 MiB).
const DRAWS: usize = 1 << 20;

/// Draws between the places at which two rounds begin: a prime, so that many rounds pass before one is met again.
const ROUND_STEP: usize = 104_729;

/// One question and what must come back.
#[derive(Clone, Debug)]
pub struct Asked {
    /// A query for it, ID 0.
    pub query: Vec<u8>,
    /// The answer.
    pub truth: Truth,
    /// The owner of the SOA record in a negative answer.
    pub zone: Name,
}

impl Asked {
    /// The question of a subject.
    pub fn new(subject: &Subject) -> Self {
        let question = subject.question();
        let (truth, zone) = (Truth::of(&question), truth::zone(&question.name));
        Self { query: Message::query(0, question).encode(), truth, zone }
    }
}

/// Questions and the order in which they are asked.
#[derive(Debug)]
pub struct Workload {
    asked: Vec<Asked>,
    draws: Vec<u32>,
}

impl Workload {
    /// Questions that stay cached, with their shares of the load: the first `names` different ones of this kind.
    ///
    /// # Errors
    /// The exponent is no number that makes a distribution.
    pub fn cached(kind: Kind, names: u32, exponent: f64, seed: u64) -> Result<Self> {
        Self::drawn(kind, names, exponent, seed, DRAWS)
    }

    fn drawn(kind: Kind, names: u32, exponent: f64, seed: u64, count: usize) -> Result<Self> {
        ensure!((0.0..=10.0).contains(&exponent), "a Zipf exponent of {exponent} is not between 0 and 10");
        // The rate does not matter where times are not looked at.
        let terms = Terms { seed, replicas: 1, rate: 1_000.0, lives: Lives::Pinned, names, exponent };
        let mut numbers = HashMap::new();
        let mut asked = Vec::new();
        let mut draws = Vec::with_capacity(count);
        if kind == Kind::Zipf {
            // All of them, those that are never drawn too.
            for rank in 0..names {
                let subject = Subject { name: super::Named::Ranked(rank), qtype: 1, ttl: super::PINNED_TTL };
                numbers.insert(subject, rank);
                asked.push(Asked::new(&subject));
            }
        }
        for Event { subject, .. } in events(kind, &terms).take(count) {
            let number = match numbers.get(&subject) {
                Some(&number) => number,
                None if asked.len() == names as usize => break,
                None => {
                    let number = asked.len() as u32;
                    numbers.insert(subject, number);
                    asked.push(Asked::new(&subject));
                    number
                }
            };
            draws.push(number);
        }
        Ok(Self { asked, draws })
    }

    /// Questions, and the order in which they are asked by their numbers.
    pub(in crate::bench) fn of(asked: Vec<Asked>, draws: Vec<u32>) -> Self {
        Self { asked, draws }
    }

    /// The question of this number.
    pub fn name(&self, index: u32) -> &Asked {
        &self.asked[index as usize]
    }

    /// All questions by their numbers.
    pub fn asked(&self) -> &[Asked] {
        &self.asked
    }

    /// The order in which they are asked.
    pub fn order(&self) -> &[u32] {
        &self.draws
    }

    /// All questions, each once.
    pub fn all(&self) -> impl Iterator<Item = u32> {
        0..self.asked.len() as u32
    }

    /// Questions by their frequency, without an end. Every round begins at another place.
    pub fn draws(&self, round: u32) -> impl Iterator<Item = u32> + use<'_> {
        let start = (round as usize).wrapping_mul(ROUND_STEP) % self.draws.len();
        self.draws[start..].iter().chain(&self.draws[..start]).copied().cycle()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_the_order() {
        let of = |seed| Workload::drawn(Kind::Zipf, 100, 1.0, seed, 1_000).unwrap().draws;
        assert_eq!(of(7).len(), 1_000);
        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
    }

    #[test]
    fn as_many_different_questions_as_wanted_stay_cached() {
        for kind in [Kind::Zipf, Kind::Edge, Kind::K8s, Kind::Storm] {
            let workload = Workload::drawn(kind, 500, 1.0, 1, 200_000).unwrap();
            assert_eq!(workload.all().count(), 500, "{kind:?}");
            assert!(workload.draws.iter().all(|&number| number < 500));
            assert!(workload.asked.iter().all(|asked| asked.truth.ttl >= 3_600), "{kind:?}: nothing may expire");
        }
    }

    #[test]
    fn an_exponent_that_makes_no_distribution_is_refused() {
        for exponent in [f64::NAN, -1.0, f64::INFINITY] {
            assert!(Workload::cached(Kind::Zipf, 10, exponent, 1).is_err());
        }
    }
}
