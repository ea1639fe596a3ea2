//! Members that take leases and bring nothing: their grants stop for a while. Pure.
//!
//! Whoever waits for such a lease goes upstream by itself after one bounded wait, so a hoarder costs time and no answer;
//! this bounds on how many keys. A member whose grants are stopped is told to go on without a lease.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use foldhash::quality::RandomState;
use heimdall_shared::clock::Moment;

/// Leases that must run out before a member's grants stop: one or two are lost by a member in trouble.
const OVERDUE: u32 = 8;

/// And they must be at least this part (one in so many) of the leases that ended: a member that answers thousands of misses
/// may lose some.
const SHARE: u32 = 4;

/// Over which both are counted.
const WINDOW: Duration = Duration::from_secs(60);

/// For how long grants stop the first time; each further time takes twice as long.
const STOPPED: Duration = Duration::from_secs(60);

/// But not longer than `STOPPED` doubled this many times: a quarter of an hour.
const DOUBLINGS: u32 = 4;

/// After this long without another time it counts as the first one again.
const FORGIVEN: Duration = Duration::from_secs(3_600);

/// Members that are kept in mind: twice as many as a ring has room for, since pods come and go.
const MEMBERS_MAX: usize = 512;

/// How the leases of each member end.
#[derive(Debug, Default)]
pub struct Hoards {
    members: HashMap<Arc<str>, Record, RandomState>,
}

#[derive(Debug)]
struct Record {
    /// When the window began.
    since: Moment,
    overdue: u32,
    ended: u32,
    /// Until when nothing is granted.
    stopped: Moment,
    times: u32,
}

impl Hoards {
    /// A lease of `member` ended by its own word: with an answer, a failure, or unused.
    pub fn ended(&mut self, member: &Arc<str>, now: Moment) {
        if let Some(record) = self.record(member, now) {
            record.ended = record.ended.saturating_add(1);
        }
    }

    /// A lease of `member`, which was there all the time, ran out without a word. Says for how long its grants stop, if
    /// they do from now on.
    pub fn overdue(&mut self, member: &Arc<str>, now: Moment) -> Option<Duration> {
        let record = self.record(member, now)?;
        record.overdue = record.overdue.saturating_add(1);
        let is_much = record.overdue.saturating_mul(SHARE) >= record.overdue.saturating_add(record.ended);
        if record.overdue < OVERDUE || !is_much || now < record.stopped {
            return None;
        }
        if now.since(record.stopped) > FORGIVEN {
            record.times = 0;
        }
        let pause = STOPPED * 2_u32.pow(record.times.min(DOUBLINGS));
        record.times = record.times.saturating_add(1);
        record.stopped = now + pause;
        record.overdue = 0;
        record.ended = 0;
        Some(pause)
    }

    /// Whether `member` may be granted a lease.
    pub fn may_hold(&self, member: &str, now: Moment) -> bool {
        // Nearly always nobody is in here whose leases ran out.
        self.members.get(member).is_none_or(|record| now >= record.stopped)
    }

    /// What is known of `member` in the present window. `None` when there is no room for one more.
    fn record(&mut self, member: &Arc<str>, now: Moment) -> Option<&mut Record> {
        if !self.members.contains_key(member) {
            if self.members.len() >= MEMBERS_MAX {
                self.members.retain(|_, record| now.since(record.since) <= WINDOW || now < record.stopped);
            }
            if self.members.len() >= MEMBERS_MAX {
                return None;
            }
            let new = Record { since: now, overdue: 0, ended: 0, stopped: Moment::default(), times: 0 };
            self.members.insert(Arc::clone(member), new);
        }
        let record = self.members.get_mut(member)?;
        if now.since(record.since) > WINDOW {
            record.since = now;
            record.overdue = 0;
            record.ended = 0;
        }
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(secs: u64) -> Moment {
        Moment::from_nanos(1) + Duration::from_secs(10_000 + secs)
    }

    fn run_out(hoards: &mut Hoards, member: &Arc<str>, count: u32, now: Moment) -> Vec<Duration> {
        (0..count).filter_map(|_| hoards.overdue(member, now)).collect()
    }

    #[test]
    fn after_some_leases_that_ran_out_nothing_more_is_granted_for_a_while() {
        let (mut hoards, member) = (Hoards::default(), Arc::from("b"));
        assert_eq!(run_out(&mut hoards, &member, OVERDUE - 1, at(0)), Vec::<Duration>::new());
        assert!(hoards.may_hold("b", at(0)));
        assert_eq!(run_out(&mut hoards, &member, 1, at(1)), [STOPPED]);
        assert!(!hoards.may_hold("b", at(60)) && hoards.may_hold("b", at(61)));
        assert!(hoards.may_hold("c", at(1)), "the others are not concerned");
    }

    #[test]
    fn each_further_time_is_twice_as_long_up_to_a_bound_and_forgiven_after_an_hour() {
        let (mut hoards, member) = (Hoards::default(), Arc::from("b"));
        let mut now = at(0);
        let mut pauses = Vec::new();
        for _ in 0..7 {
            let pause = run_out(&mut hoards, &member, OVERDUE, now)[0];
            pauses.push(pause.as_secs());
            now = now + pause;
        }
        assert_eq!(pauses, [60, 120, 240, 480, 960, 960, 960]);
        assert_eq!(run_out(&mut hoards, &member, OVERDUE, now + FORGIVEN + WINDOW), [STOPPED]);
    }

    #[test]
    fn who_answers_most_of_its_leases_may_lose_some() {
        let (mut hoards, member) = (Hoards::default(), Arc::from("b"));
        (0..OVERDUE * SHARE).for_each(|_| hoards.ended(&member, at(0)));
        assert_eq!(run_out(&mut hoards, &member, OVERDUE, at(1)), Vec::<Duration>::new());
        assert!(hoards.may_hold("b", at(1)));
        // In the next window those answers are long ago.
        assert_eq!(run_out(&mut hoards, &member, OVERDUE, at(62)), [STOPPED]);
    }

    #[test]
    fn names_that_come_and_go_take_no_more_than_their_room() {
        let mut hoards = Hoards::default();
        for number in 0..2 * MEMBERS_MAX {
            hoards.overdue(&format!("m{number}").into(), at(number as u64));
        }
        assert!(hoards.members.len() <= MEMBERS_MAX);
    }

    proptest! {
        /// Whatever happens: a member is stopped only after enough leases ran out, and comes back by itself.
        #[test]
        fn nobody_is_stopped_without_reason_or_for_ever(
            events in proptest::collection::vec((any::<bool>(), 0..5u64), 1..300)
        ) {
            let (mut hoards, member): (_, Arc<str>) = (Hoards::default(), "b".into());
            let (mut now, mut run_out) = (0, 0);
            for (good, pause) in events {
                now += pause;
                if good {
                    hoards.ended(&member, at(now));
                } else {
                    run_out += 1;
                    hoards.overdue(&member, at(now));
                }
                prop_assert!(run_out >= OVERDUE || hoards.may_hold("b", at(now)));
            }
            prop_assert!(hoards.may_hold("b", at(now) + STOPPED * 2_u32.pow(DOUBLINGS)));
        }
    }
}
