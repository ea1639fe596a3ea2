//! A cluster: services, external names that are looked for under every search suffix, and pods that start together.

use std::collections::VecDeque;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng, RngExt as _};

use super::subject::NAMESPACES;
use super::subject::qtype::{A, AAAA};
use super::zipf::Zipf;
use super::{Event, Named, Poisson, Subject, Terms, scattered};

/// Names of services; their TTL is that of the cluster's own DNS.
const SERVICES: u16 = 300;
const SERVICE_TTL: u32 = 5;

/// Names outside of the cluster, and their TTLs in seconds.
const EXTERNALS: u16 = 500;
const EXTERNAL_TTLS: [u32; 4] = [30, 60, 300, 3_600];

/// Negative TTL in seconds of what the search suffixes make of an external name.
const MISSING_TTL: u32 = 30;

/// Exponent of the Zipf distribution of all names, which are mixed.
const EXPONENT: f64 = 1.0;

/// Pods that start together so often, within so much time, and the look-ups of each.
const BURST_EVERY: Duration = Duration::from_secs(10);
const BURST_WITHIN: Duration = Duration::from_millis(100);
const BURST_PODS: u32 = 50;
const BURST_LOOK_UPS: u32 = 20;

/// The k8s workload, one period between bursts after the other.
pub(super) struct K8s {
    terms: Terms,
    random: StdRng,
    arrivals: Poisson,
    /// The look-up that came after the end of the last period.
    early: Duration,
    period: u32,
    ranks: Zipf,
    /// Numbers below [`SERVICES`] are those, the others external names. By rank.
    names: Vec<u16>,
    ready: VecDeque<Event>,
}

impl K8s {
    pub(super) fn new(terms: Terms) -> Self {
        let mut random = terms.random();
        let mut names: Vec<u16> = (0..SERVICES + EXTERNALS).collect();
        names.shuffle(&mut random);
        let ranks = Zipf::new(u32::from(SERVICES + EXTERNALS), EXPONENT);
        let mut arrivals = Poisson::new(terms.rate);
        let early = arrivals.next(&mut random);
        Self { terms, random, arrivals, early, period: 0, ranks, names, ready: VecDeque::new() }
    }

    fn next_period(&mut self) {
        let (every, within) = (self.terms.span(BURST_EVERY), self.terms.span(BURST_WITHIN));
        let (start, end) = (every * self.period, every * (self.period + 1));
        let mut events = Vec::new();
        while self.early < end {
            let pod = self.random.next_u64();
            self.look_up(self.early, pod, &mut events);
            self.early = self.arrivals.next(&mut self.random);
        }
        let burst = start + (every - within).mul_f64(self.random.random());
        for _ in 0..BURST_PODS {
            let pod = self.random.next_u64();
            for _ in 0..BURST_LOOK_UPS {
                let at = burst + within.mul_f64(self.random.random());
                self.look_up(at, pod, &mut events);
            }
        }
        // Queries of one look-up stay together: the order of equals is kept.
        events.sort_by_key(|event| event.at);
        self.ready.extend(events);
        self.period += 1;
    }

    /// The queries that a pod sends to find a name of its program: A and AAAA side by side, under all suffixes.
    fn look_up(&mut self, at: Duration, pod: u64, events: &mut Vec<Event>) {
        let replica = (scattered(pod) % u64::from(self.terms.replicas)) as u32;
        let namespace = (pod % u64::from(NAMESPACES)) as u8;
        let number = self.names[self.ranks.draw(&mut self.random) as usize];
        let mut both = |name, ttl| {
            events.extend([A, AAAA].map(|qtype| Event { at, replica, subject: Subject { name, qtype, ttl } }));
        };
        let Some(external) = number.checked_sub(SERVICES) else {
            return both(Named::Service(number), self.terms.ttl(SERVICE_TTL));
        };
        // Every other namespace's nodes have a domain of their cloud in the list.
        let suffixes = 3 + namespace % 2;
        for suffix in 0..suffixes {
            // Only the first suffix holds the namespace.
            let namespace = if suffix == 0 { namespace } else { 0 };
            both(Named::Searched { external, namespace, suffix }, self.terms.negative_ttl(MISSING_TTL));
        }
        let ttl = EXTERNAL_TTLS[(scattered(external.into()) % EXTERNAL_TTLS.len() as u64) as usize];
        both(Named::External(external), self.terms.ttl(ttl));
    }
}

impl Iterator for K8s {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            // A period has a burst, so it is never empty.
            self.next_period();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::Lives;
    use super::super::samples::terms;
    use super::*;

    #[test]
    fn an_external_look_up_asks_under_three_or_four_suffixes_and_for_the_name_itself() {
        let mut workload = K8s::new(terms());
        let mut seen = HashSet::new();
        for pod in 0..2_000 {
            let mut events = Vec::new();
            workload.look_up(Duration::ZERO, pod, &mut events);
            seen.insert(events.len());
            let missing = events.iter().filter(|event| matches!(event.subject.name, Named::Searched { .. })).count();
            assert!(events.len() == 2 || missing == events.len() - 2, "{events:?}");
            assert!(events.iter().all(|event| event.replica == events[0].replica), "one pod asks one replica");
            assert_eq!(events.iter().filter(|event| event.subject.qtype == A).count() * 2, events.len());
        }
        assert_eq!(seen, HashSet::from([2, 8, 10]));
    }

    #[test]
    fn fifty_pods_start_within_a_hundred_milliseconds_of_every_ten_seconds() {
        // Hardly any other look-up, so that bursts are what is left.
        let mut terms = terms();
        terms.rate = 0.001;
        for (factor, every, within) in [(1, 10_000, 100), (10, 1_000, 10)] {
            terms.lives = Lives::Compressed(factor);
            let mut workload = K8s::new(terms);
            workload.next_period();
            workload.ready.clear();
            workload.next_period();
            let times: Vec<_> = workload.ready.iter().map(|event| event.at.as_millis()).collect();
            let (first, last) = (times[0], times[times.len() - 1]);
            assert!(first >= every && last <= 2 * every && last - first <= within, "{first} to {last}");
            assert!((2_000..=10_000).contains(&times.len()), "{}", times.len());
        }
    }
}
