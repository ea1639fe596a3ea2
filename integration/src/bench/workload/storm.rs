//! Everybody asks for the same new name at once.

use std::time::Duration;

use super::subject::qtype::A;
use super::{Event, Named, Subject, Terms};

/// Clients per replica that ask.
const CLIENTS: u32 = 200;

/// TTL in seconds of the name.
const TTL: u32 = 300;

/// The storm workload: the first storm at once, then one each `1 / rate` seconds.
pub(super) struct Storm {
    terms: Terms,
    sent: u64,
}

impl Storm {
    pub(super) const fn new(terms: Terms) -> Self {
        Self { terms, sent: 0 }
    }
}

impl Iterator for Storm {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        let all = u64::from(CLIENTS * self.terms.replicas);
        let (storm, nth) = (self.sent / all, self.sent % all);
        self.sent += 1;
        let at = Duration::try_from_secs_f64(storm as f64 / self.terms.rate).unwrap_or(Duration::MAX);
        let replica = (nth % u64::from(self.terms.replicas)) as u32;
        Some(Event { at, replica, subject: Subject { name: Named::Cold(storm), qtype: A, ttl: self.terms.ttl(TTL) } })
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::terms;
    use super::*;

    #[test]
    fn two_hundred_clients_of_each_replica_ask_for_one_name_at_once() {
        let mut terms = terms();
        terms.rate = 4.0;
        let events: Vec<_> = Storm::new(terms).take(1_200).collect();
        let of = |range: std::ops::Range<usize>, replica| {
            let first = events[range.start];
            let same =
                |event: &&Event| event.replica == replica && (event.at, event.subject) == (first.at, first.subject);
            events[range].iter().filter(same).count()
        };
        for replica in 0..3 {
            assert_eq!((of(0..600, replica), of(600..1_200, replica)), (200, 200));
        }
        assert_eq!((events[0].at, events[600].at), (Duration::ZERO, Duration::from_millis(250)));
        assert_ne!(events[0].subject, events[600].subject);
    }
}
