//! What a seed decides before anything runs.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::clock::{Clock, MILLI, SECOND, Time};

/// How long clients ask while things go wrong.
const SPAN: Time = 20 * SECOND;

/// What kind of run it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing fails.
    Calm,
    /// Much fails; at the end it is mended.
    Faulty,
    /// Ten to fifty members, with faults.
    Large,
}

impl Kind {
    /// The test that runs it.
    pub(crate) const fn test(self) -> &'static str {
        match self {
            Self::Calm => "while_nothing_fails",
            Self::Faulty => "whatever_fails",
            Self::Large => "a_large_cluster",
        }
    }
}

/// One process of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Dns,
    Agent,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// The process does not run for a while and then goes on.
    Pause { node: usize, part: Part, until: Time },
    /// The process dies, and starts again with nothing.
    Crash { node: usize, part: Part, until: Time },
    /// Messages from one node to another are kept until it is over, or lost.
    Cut { from: usize, to: usize, until: Time, lost: bool },
    /// Links between two nodes break.
    Break { a: usize, b: usize },
    /// The node's upstream queries are not answered.
    Uplink { node: usize, until: Time },
}

/// How bad the network between agents is, in parts per thousand of the messages.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weather {
    pub(crate) lost: u32,
    pub(crate) twice: u32,
    pub(crate) late: u32,
}

impl Weather {
    /// Whether messages arrive once each and in order.
    pub(crate) const fn is_fair(self) -> bool {
        self.lost == 0 && self.twice == 0 && self.late == 0
    }
}

/// Everything about a run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) kind: Kind,
    pub(crate) seed: u64,
    pub(crate) clocks: Vec<Clock>,
    pub(crate) replication_factor: usize,
    /// Lifetimes of the keys' answers, seconds.
    pub(crate) ttls: Vec<u64>,
    /// When clients of a node ask for a key.
    pub(crate) asks: Vec<(Time, usize, usize)>,
    pub(crate) faults: Vec<(Time, Fault)>,
    /// When an operator purges a key, and at which node.
    pub(crate) purges: Vec<(Time, usize, usize)>,
    pub(crate) weather: Weather,
    /// When the last member is known to each node: a joiner that some know of earlier than others.
    pub(crate) joiner_known: Option<Vec<Time>>,
    /// One upstream answer in so many takes seconds.
    pub(crate) slow_one_in: u32,
    /// When everything is mended.
    pub(crate) mended: Time,
}

impl Plan {
    /// What `seed` decides.
    pub(crate) fn drawn(kind: Kind, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ (kind as u64) << 60);
        let nodes = match kind {
            Kind::Large => rng.random_range(10..=50),
            _ => rng.random_range(3..=5),
        };
        let faulty = kind != Kind::Calm;
        // Ten percent is no quartz, but a virtual machine's clock that is slewed may be that bad for a while.
        let worst = if faulty && rng.random_ratio(1, 4) { 100_000 } else { 200 };
        let clocks = (0..nodes)
            .map(|_| Clock {
                offset: rng.random_range(SECOND..1_000_000 * SECOND),
                error_ppm: rng.random_range(-worst..=worst),
            })
            .collect();
        let ttls: Vec<u64> = (0..rng.random_range(2..=6)).map(|_| rng.random_range(1..=12)).collect();
        let asks = asks(&mut rng, nodes, ttls.len(), kind);
        let faults = if faulty { faults(&mut rng, nodes) } else { Vec::new() };
        let weather = match (faulty, rng.random_range(0..3)) {
            (true, 0) => {
                Weather { lost: rng.random_range(0..50), twice: rng.random_range(0..50), late: rng.random_range(0..50) }
            }
            _ => Weather::default(),
        };
        let joiner_known = (faulty && rng.random_ratio(1, 3))
            .then(|| (0..nodes).map(|_| rng.random_range(5 * SECOND..10 * SECOND)).collect());
        let purges = (0..rng.random_range(0..=6))
            .map(|_| {
                (2 * SECOND + rng.random_range(0..SPAN), rng.random_range(0..nodes), rng.random_range(0..ttls.len()))
            })
            .collect();
        Self {
            kind,
            seed,
            clocks,
            replication_factor: rng.random_range(1..=3),
            ttls,
            asks,
            faults,
            purges,
            weather,
            joiner_known,
            slow_one_in: if faulty { 20 } else { u32::MAX },
            mended: 2 * SECOND + SPAN,
        }
    }

    /// How many replicas.
    pub(crate) fn nodes(&self) -> usize {
        self.clocks.len()
    }

    /// The largest error of a clock's rate.
    pub(crate) fn worst_error(&self) -> f64 {
        self.clocks.iter().map(|clock| clock.error_ppm.unsigned_abs()).max().unwrap_or_default() as f64 / 1e6
    }
}

fn asks(rng: &mut StdRng, nodes: usize, keys: usize, kind: Kind) -> Vec<(Time, usize, usize)> {
    let mut asks = Vec::new();
    let each = if kind == Kind::Large { 12 } else { 60 };
    for node in 0..nodes {
        for _ in 0..each {
            asks.push((2 * SECOND + rng.random_range(0..SPAN), node, rng.random_range(0..keys)));
        }
    }
    // Storms: all nodes ask for one key within a few milliseconds, several clients each.
    for _ in 0..4 {
        let (at, key) = (2 * SECOND + rng.random_range(0..SPAN), rng.random_range(0..keys));
        for node in 0..nodes {
            for _ in 0..rng.random_range(1..4) {
                asks.push((at + rng.random_range(0..5 * MILLI), node, key));
            }
        }
    }
    asks
}

fn faults(rng: &mut StdRng, nodes: usize) -> Vec<(Time, Fault)> {
    let count = rng.random_range(1..=8);
    (0..count)
        .map(|_| {
            let at = 2 * SECOND + rng.random_range(0..SPAN - 3 * SECOND);
            let node = rng.random_range(0..nodes);
            let other = (node + rng.random_range(1..nodes)) % nodes;
            let part = if rng.random() { Part::Dns } else { Part::Agent };
            let until = at + [10 * MILLI, 150 * MILLI, 900 * MILLI, 3 * SECOND][rng.random_range(0..4)];
            let fault = match rng.random_range(0..6) {
                0 => Fault::Pause { node, part, until },
                1 => Fault::Crash { node, part, until },
                2 | 3 => Fault::Cut { from: node, to: other, until, lost: rng.random() },
                4 => Fault::Break { a: node, b: other },
                _ => Fault::Uplink { node, until },
            };
            (at, fault)
        })
        .collect()
}
