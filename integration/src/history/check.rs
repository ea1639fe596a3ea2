//! The rules that every history must keep, whatever went wrong in it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::{Events, Given, Told};

/// What a copy may lose of its life on its way: the second in which an entry is not given out any more, the age of anchors.
const LOST_LIFE: Duration = Duration::from_millis(2_000);

/// When all replicas reach each other again, they agree within this time on what is purged.
const AGREE_WITHIN: Duration = Duration::from_secs(5);

/// What a run may cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bounds {
    /// Questions without an answer.
    pub lost: usize,
    /// Upstream queries for a name while an answer of it lived.
    pub extra: usize,
    /// How much faster or slower than true time a clock in it ran.
    pub clock_error: f64,
}

/// What a history shows.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Questions.
    pub asked: usize,
    /// Answers, stale ones included.
    pub answered: usize,
    /// Stale answers.
    pub stale: usize,
    /// Exchanges with the upstream.
    pub fetched: usize,
    /// Questions without an answer.
    pub lost: Vec<String>,
    /// Upstream queries for a name while an answer of it lived.
    pub extra: Vec<String>,
    /// What may never be.
    pub violations: Vec<String>,
    /// The longest wait for an answer.
    pub longest: Duration,
    /// The 99th percentile of the waits.
    pub p99: Duration,
}

impl Verdict {
    /// Judges a history.
    pub fn of(events: &Events, bounds: &Bounds) -> Self {
        let mut verdict = Self { asked: events.asked.len(), fetched: events.given.len(), ..Self::default() };
        let mut waits = Vec::with_capacity(events.asked.len());
        for asked in &events.asked {
            let wait = asked.told_at.since(asked.at);
            let Told::Answer { number, ttl, stale } = asked.told else {
                verdict.lost.push(format!("{:?} for {} at {} after {wait:?}", asked.told, asked.name, asked.replica));
                continue;
            };
            waits.push(wait);
            verdict.answered += 1;
            verdict.stale += usize::from(stale);
            // V1: whatever is served was once given by the upstream for that very question.
            let Some(given) =
                events.given.get(number as usize).filter(|given| given.name == asked.name.to_ascii_lowercase())
            else {
                verdict.violations.push(format!("V1 {} was told {number}, which nobody gave for it", asked.name));
                continue;
            };
            // V2: no answer is given a life beyond its origin's. It was given after it was asked for.
            let life = given.ttl.mul_f64(1.0 + bounds.clock_error);
            if !stale && !ttl.is_zero() && asked.at + ttl > given.at + life {
                let over = (asked.at + ttl).since(given.at + life);
                verdict.violations.push(format!(
                    "V2 {} at {}: TTL {ttl:?} of {:?}, {over:?} too long",
                    asked.name, asked.replica, given.ttl
                ));
            }
            // V3: what was fetched before a purge never comes back on a replica that said that it is done.
            for purged in events.purged.iter().filter(|purged| purged.name == asked.name) {
                let promised = asked.at >= purged.told && purged.done.contains(&asked.replica);
                let before = given.at < purged.asked && !ttl.is_zero();
                if promised && before {
                    verdict.violations.push(format!("V3 {} at {}: {number} came back", asked.name, asked.replica));
                }
                // V8: once all reach each other again, no replica lacks a purge that another one has.
                let agreed = events.healed.is_some_and(|healed| asked.at >= healed.max(purged.told) + AGREE_WITHIN);
                if agreed && before {
                    verdict.violations.push(format!("V8 {} at {}: {number} is still there", asked.name, asked.replica));
                }
            }
        }
        verdict.extra = extra(&events.given);
        waits.sort_unstable();
        verdict.longest = waits.last().copied().unwrap_or_default();
        verdict.p99 = waits.get(waits.len() * 99 / 100).copied().unwrap_or_default();
        verdict
    }

    /// Fails unless the history keeps the rules and the bounds.
    ///
    /// # Panics
    /// With what it breaks.
    pub fn assert(&self, what: &str, bounds: &Bounds) {
        println!("{what}: {self}");
        let some = |list: &[String]| list.iter().take(10).cloned().collect::<Vec<_>>().join("\n  ");
        assert!(self.asked > 0, "{what}: nobody asked");
        assert!(self.violations.is_empty(), "{what}:\n  {}", some(&self.violations));
        assert!(self.lost.len() <= bounds.lost, "{what}: lost\n  {}", some(&self.lost));
        assert!(self.extra.len() <= bounds.extra, "{what}: more than {} extra\n  {}", bounds.extra, some(&self.extra));
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} asked, {} answered ({} stale), {} lost, {} upstream queries, {} of them extra, p99 {:?}, longest {:?}",
            self.asked,
            self.answered,
            self.stale,
            self.lost.len(),
            self.fetched,
            self.extra.len(),
            self.p99,
            self.longest
        )
    }
}

/// V4: queries for a name while an earlier answer of it lived.
fn extra(given: &[Given]) -> Vec<String> {
    let mut newest: BTreeMap<&str, &Given> = BTreeMap::new();
    let mut extra = Vec::new();
    for given in given {
        if let Some(before) = newest.get(given.name.as_str()) {
            let over = before.at + before.ttl.saturating_sub(LOST_LIFE);
            if given.at < over {
                extra.push(format!(
                    "{} through door {} {:?} after door {}, TTL {:?}",
                    given.name,
                    given.door,
                    given.at.since(before.at),
                    before.door,
                    given.ttl
                ));
            }
        }
        newest.insert(&given.name, given);
    }
    extra
}

#[cfg(test)]
mod tests {
    use heimdall_shared::clock::Moment;

    use super::super::{Asked, Purged};
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::from_nanos(seconds * 1_000_000_000)
    }

    fn given(name: &str, seconds: u64, ttl: u64) -> Given {
        Given { name: name.to_owned(), door: 0, at: at(seconds), ttl: Duration::from_secs(ttl) }
    }

    fn asked(name: &str, seconds: u64, number: u32, ttl: u64) -> Asked {
        let told = Told::Answer { number, ttl: Duration::from_secs(ttl), stale: false };
        Asked { replica: 1, name: name.to_owned(), at: at(seconds), told_at: at(seconds), told }
    }

    fn violations(events: &Events) -> Vec<String> {
        Verdict::of(events, &Bounds::default()).violations
    }

    #[test]
    fn an_answer_within_its_life_is_right() {
        let events =
            Events { given: vec![given("a.", 10, 9)], asked: vec![asked("a.", 12, 0, 7)], ..Events::default() };
        assert!(violations(&events).is_empty());
    }

    #[test]
    fn an_answer_out_of_thin_air_is_found() {
        for number in [0, 1] {
            let events = Events {
                given: vec![given("b.", 10, 9)],
                asked: vec![asked("a.", 12, number, 7)],
                ..Events::default()
            };
            assert!(violations(&events)[0].starts_with("V1"));
        }
    }

    #[test]
    fn a_life_that_was_lengthened_is_found_and_a_clock_s_error_is_allowed_for() {
        let events =
            Events { given: vec![given("a.", 10, 9)], asked: vec![asked("a.", 12, 0, 8)], ..Events::default() };
        assert!(violations(&events)[0].starts_with("V2"));
        let bounds = Bounds { clock_error: 0.2, ..Bounds::default() };
        assert!(Verdict::of(&events, &bounds).violations.is_empty());
    }

    #[test]
    fn what_comes_back_after_a_purge_is_found_where_it_was_done() {
        for (done, wrong) in [(1, true), (2, false)] {
            let purged = Purged { name: "a.".to_owned(), asked: at(11), told: at(12), done: vec![done] };
            let (given, asked) = (vec![given("a.", 10, 9)], vec![asked("a.", 12, 0, 7)]);
            let events = Events { given, asked, purged: vec![purged], healed: None };
            assert_eq!(violations(&events).iter().any(|violation| violation.starts_with("V3")), wrong);
        }
    }

    #[test]
    fn a_replica_that_lacks_a_purge_long_after_the_network_was_whole_is_found() {
        for (healed, wrong) in [(13, true), (17, false)] {
            let purged = Purged { name: "a.".to_owned(), asked: at(11), told: at(12), done: vec![2] };
            let (given, asked) = (vec![given("a.", 10, 30)], vec![asked("a.", 20, 0, 20)]);
            let events = Events { given, asked, purged: vec![purged], healed: Some(at(healed)) };
            assert_eq!(violations(&events).iter().any(|violation| violation.starts_with("V8")), wrong);
        }
    }

    #[test]
    fn a_query_while_an_answer_lives_is_extra_and_one_after_it_is_not() {
        assert_eq!(extra(&[given("a.", 10, 9), given("b.", 11, 9), given("a.", 14, 9)]).len(), 1);
        assert_eq!(extra(&[given("a.", 10, 9), given("a.", 18, 9)]).len(), 0);
    }
}
