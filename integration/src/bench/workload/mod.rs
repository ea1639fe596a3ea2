//! What is asked, when, and what must come back.
//!
//! ```text
//! Kind + Terms ─► events(): (time, replica, subject), without an end, the same for the same seed
//!                     subject ─► question ─► Truth ◄─ question ─ rule(), for the upstream
//! ```
//!
//! A name says in its labels what the answers to it are, so that the upstream and whoever checks an answer need no table.
//!
//! - **zipf**: names that all exist, by the frequencies of a Zipf distribution.
//! - **edge**: an access network. 200,000 names (Zipf 0.95), the last 30 % of which are asked for once and never again; half A,
//!   less AAAA, some HTTPS, TXT and MX; TTLs from nothing to hours; 10 % of the queries for names that do not exist.
//! - **k8s**: a cluster. 300 services and 500 external names, the latter looked for under every search suffix first, and pods
//!   that start together.
//! - **storm**: everybody asks for the same new name at once.

mod edge;
mod k8s;
mod lifetimes;
mod storm;
mod subject;
mod table;
mod truth;
mod zipf;

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

pub use lifetimes::Windows;
pub use subject::{Named, Subject};
pub use table::{Asked, Workload};
pub use truth::{Truth, rule};

/// TTL in seconds of what must not expire while it is measured: a day, which no server shortens.
pub(super) const PINNED_TTL: u32 = 86_400;

/// The same for negative answers: an hour, beyond which servers do not keep them (RFC 2308 5).
const PINNED_NEGATIVE_TTL: u32 = 3_600;

/// Which workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Names that exist, by the frequencies of a Zipf distribution
    Zipf,
    /// An access network: names asked for once, several types, names that do not exist
    Edge,
    /// A cluster: services, external names under every search suffix, pods that start together
    K8s,
    /// Everybody asks for the same new name at once
    Storm,
}

/// How long answers live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lives {
    /// As in the model, divided by this; so are the model's periods. At least a second, unless it is 0 in the model.
    Compressed(u32),
    /// Longer than any run.
    Pinned,
}

/// What shapes a workload beside its kind.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// The same seed makes the same events.
    pub seed: u64,
    /// Replicas among which events are spread.
    pub replicas: u32,
    /// Arrivals per second of the run, after compression: queries (zipf, edge), look-ups of 2 to 10 queries (k8s), storms.
    pub rate: f64,
    /// TTLs.
    pub lives: Lives,
    /// Names of zipf.
    pub names: u32,
    /// Exponent of zipf.
    pub exponent: f64,
}

/// One query that somebody sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// When, since the beginning.
    pub at: Duration,
    /// To which replica, of those in the terms.
    pub replica: u32,
    /// What it asks.
    pub subject: Subject,
}

/// The events of a workload in the order of their times, without an end.
pub fn events(kind: Kind, terms: &Terms) -> Box<dyn Iterator<Item = Event> + Send> {
    match kind {
        Kind::Zipf => Box::new(edge::Plain::new(*terms)),
        Kind::Edge => Box::new(edge::Edge::new(*terms)),
        Kind::K8s => Box::new(k8s::K8s::new(*terms)),
        Kind::Storm => Box::new(storm::Storm::new(*terms)),
    }
}

impl Terms {
    fn random(&self) -> StdRng {
        StdRng::seed_from_u64(self.seed)
    }

    fn ttl(&self, seconds: u32) -> u32 {
        self.lived(seconds, PINNED_TTL)
    }

    fn negative_ttl(&self, seconds: u32) -> u32 {
        self.lived(seconds, PINNED_NEGATIVE_TTL)
    }

    fn lived(&self, seconds: u32, pinned: u32) -> u32 {
        match self.lives {
            Lives::Compressed(_) if seconds == 0 => 0,
            Lives::Compressed(factor) => (seconds / factor.max(1)).max(1),
            Lives::Pinned => pinned,
        }
    }

    /// A time of the model.
    fn span(&self, span: Duration) -> Duration {
        match self.lives {
            Lives::Compressed(factor) => span / factor.max(1),
            Lives::Pinned => span,
        }
    }
}

/// Arrivals that know nothing of each other: the times between them are distributed exponentially.
struct Poisson {
    rate: f64,
    last: Duration,
}

impl Poisson {
    const fn new(rate: f64) -> Self {
        Self { rate, last: Duration::ZERO }
    }

    fn next(&mut self, random: &mut StdRng) -> Duration {
        // 1 − u, for a logarithm of 0 is no number.
        let pause = -(1.0 - random.random::<f64>()).ln() / self.rate;
        self.last += Duration::try_from_secs_f64(pause).unwrap_or(Duration::MAX / 2);
        self.last
    }
}

/// A number that follows from `value` and looks like a random one, for what belongs to a name and not to a query.
const fn scattered(value: u64) -> u64 {
    // The finisher of splitmix64.
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

#[cfg(test)]
mod samples {
    use super::*;

    /// Terms for tests: three replicas, a thousand arrivals per second, TTLs as in the model.
    pub(super) const fn terms() -> Terms {
        Terms { seed: 1, replicas: 3, rate: 1_000.0, lives: Lives::Compressed(1), names: 100, exponent: 1.0 }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::samples::terms;
    use super::*;

    const ALL: [Kind; 4] = [Kind::Zipf, Kind::Edge, Kind::K8s, Kind::Storm];

    #[test]
    fn the_same_seed_makes_the_same_events_and_another_one_others() {
        for kind in ALL {
            let of = |seed| events(kind, &Terms { seed, ..terms() }).take(20_000).collect::<Vec<_>>();
            assert_eq!(of(1), of(1), "{kind:?}");
            if kind != Kind::Storm {
                assert_ne!(of(1), of(2), "{kind:?}");
            }
        }
    }

    #[test]
    fn events_come_in_the_order_of_their_times_and_go_to_all_replicas() {
        for kind in ALL {
            let events: Vec<_> = events(kind, &terms()).take(20_000).collect();
            assert!(events.is_sorted_by_key(|event| event.at), "{kind:?}");
            for replica in 0..3 {
                let share = events.iter().filter(|event| event.replica == replica).count();
                assert!((5_000..9_000).contains(&share), "{kind:?}: {share} of 20,000 go to replica {replica}");
            }
            assert!(events.iter().all(|event| event.replica < 3));
        }
    }

    #[test]
    fn a_compressed_time_makes_lives_shorter_but_for_those_of_nothing() {
        let short = Terms { lives: Lives::Compressed(60), ..terms() };
        assert_eq!([0, 30, 60, 300].map(|ttl| short.ttl(ttl)), [0, 1, 1, 5]);
        assert_eq!(short.span(Duration::from_secs(60)), Duration::from_secs(1));
        let pinned = Terms { lives: Lives::Pinned, ..terms() };
        assert_eq!((pinned.ttl(0), pinned.negative_ttl(60)), (86_400, 3_600));
    }

    #[test]
    fn arrivals_have_their_rate() {
        let mut arrivals = Poisson::new(1_000.0);
        let mut random = terms().random();
        let last = (0..100_000).map(|_| arrivals.next(&mut random)).last().unwrap();
        assert!((95.0..105.0).contains(&last.as_secs_f64()), "{last:?}");
    }
}
