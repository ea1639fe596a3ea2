//! What checks have said about each member, and who is cut off for it. Pure.
//!
//! A check may be wrong about an honest member: origins change between two queries. So it takes several lies, about
//! different names, and they must be a good part of what was checked. Who passes on what another one made up is blamed
//! by half: whoever has the same data from honest members and from a liar is not cut off, and whoever puts its own
//! lies on others is, before it has put them on three.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use heimdall_shared::clock::Moment;

/// Lies about different names before a member is cut off.
pub const LIES: u32 = 3;

/// They must be at least this part (one in so many) of what was checked. Origins that give each asker other addresses make
/// up less than that.
const SHARE: u32 = 3;

/// Checks that are kept in mind per member, and for how long.
const CHECKS_MAX: usize = 64;
const REMEMBERED: Duration = Duration::from_secs(3_600);

/// For how long a member is cut off. It comes back by itself, and is then watched.
pub const CUT_OFF: Duration = Duration::from_secs(300);

/// Members that are kept in mind: twice as many as a ring has room for, since pods come and go.
const MEMBERS_MAX: usize = 512;

/// How much of a lie is a member's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Blame {
    /// It passed on what another member is said to have made up.
    Relayed,
    /// It made it up, as far as anybody can say.
    Own,
}

impl Blame {
    /// A lie of one's own counts twice as much as one that was passed on.
    const fn points(self) -> u32 {
        match self {
            Self::Relayed => 1,
            Self::Own => 2,
        }
    }
}

/// A member from which nothing is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutOff {
    /// Who.
    pub member: Arc<str>,
    /// Until when.
    pub until: Moment,
    /// Names about which it lied.
    pub lies: usize,
    /// Its answers that were checked.
    pub checked: usize,
}

impl fmt::Display for CutOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lies, checked, .. } = self;
        write!(f, "cut off: {lies} of {checked} of its answers that were checked contradict the upstreams")
    }
}

/// All members that were checked.
#[derive(Debug, Default)]
pub struct Ledger {
    members: HashMap<Arc<str>, Record>,
}

#[derive(Debug, Default)]
struct Record {
    checks: VecDeque<Check>,
    cut_off: Option<CutOff>,
}

#[derive(Debug)]
struct Check {
    at: Moment,
    /// A hash of the name about which it lied, and how much of that was its own doing.
    lie: Option<(u64, Blame)>,
}

impl Ledger {
    /// An answer of `member` was checked and may be true.
    pub fn agreed(&mut self, member: &Arc<str>, now: Moment) {
        if let Some(record) = self.record(member, now) {
            record.note(Check { at: now, lie: None });
        }
    }

    /// An answer of `member` for the name with this hash was checked and is wrong. Gives what there is to report when the
    /// member is cut off by it.
    pub fn lied(&mut self, member: &Arc<str>, name: u64, blame: Blame, now: Moment) -> Option<CutOff> {
        let record = self.record(member, now)?;
        record.note(Check { at: now, lie: Some((name, blame)) });
        if record.cut_off.as_ref().is_some_and(|cut_off| now < cut_off.until) {
            return None;
        }
        let lies = record.lies();
        let points: u32 = lies.values().map(|blame| blame.points()).sum();
        let checked: u32 =
            record.checks.iter().map(|check| check.lie.map_or(Blame::Own, |(_, how)| how).points()).sum();
        if points < LIES * Blame::Own.points() || points * SHARE < checked {
            return None;
        }
        let cut_off =
            CutOff { member: Arc::clone(member), until: now + CUT_OFF, lies: lies.len(), checked: record.checks.len() };
        record.cut_off = Some(cut_off.clone());
        // It starts again with nothing but the memory that it was cut off.
        record.checks.clear();
        Some(cut_off)
    }

    /// Who is cut off at `now`.
    pub fn cut_off(&self, now: Moment) -> Vec<CutOff> {
        self.members.values().filter_map(|record| record.cut_off.clone()).filter(|cut| now < cut.until).collect()
    }

    /// Whose answers are checked more often than the others': a lie of theirs is remembered, or they were cut off.
    pub fn watched(&self, now: Moment) -> Vec<Arc<str>> {
        let is_watched = |record: &Record| {
            record.checks.iter().any(|check| check.lie.is_some() && now.since(check.at) < REMEMBERED)
                || record.cut_off.as_ref().is_some_and(|cut| now < cut.until + REMEMBERED)
        };
        self.members.iter().filter(|(_, record)| is_watched(record)).map(|(name, _)| Arc::clone(name)).collect()
    }

    /// What is known of `member`. `None` when there is no room for one more.
    fn record(&mut self, member: &Arc<str>, now: Moment) -> Option<&mut Record> {
        if !self.members.contains_key(member) {
            if self.members.len() >= MEMBERS_MAX {
                self.members.retain(|_, record| !record.is_forgotten(now));
            }
            if self.members.len() >= MEMBERS_MAX {
                return None;
            }
            self.members.insert(Arc::clone(member), Record::default());
        }
        let record = self.members.get_mut(member)?;
        record.forget(now);
        Some(record)
    }
}

impl Record {
    fn note(&mut self, check: Check) {
        if self.checks.len() >= CHECKS_MAX {
            self.checks.pop_front();
        }
        self.checks.push_back(check);
    }

    /// The names about which it lied, each once, with the greater blame.
    fn lies(&self) -> BTreeMap<u64, Blame> {
        let mut lies = BTreeMap::new();
        for (name, blame) in self.checks.iter().filter_map(|check| check.lie) {
            lies.entry(name).and_modify(|known: &mut Blame| *known = blame.max(*known)).or_insert(blame);
        }
        lies
    }

    fn forget(&mut self, now: Moment) {
        while self.checks.front().is_some_and(|check| now.since(check.at) >= REMEMBERED) {
            self.checks.pop_front();
        }
    }

    fn is_forgotten(&self, now: Moment) -> bool {
        self.checks.iter().all(|check| now.since(check.at) >= REMEMBERED)
            && self.cut_off.as_ref().is_none_or(|cut| now >= cut.until + REMEMBERED)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(secs: u64) -> Moment {
        Moment::from_nanos(1) + Duration::from_secs(10_000 + secs)
    }

    fn member(name: &str) -> Arc<str> {
        name.into()
    }

    /// Lies about `names` different names, at one moment.
    fn lie(ledger: &mut Ledger, who: &str, names: u64, blame: Blame, now: Moment) -> Option<CutOff> {
        (0..names).filter_map(|name| ledger.lied(&member(who), name, blame, now)).last()
    }

    #[test]
    fn three_lies_about_different_names_cut_a_member_off_for_a_while() {
        let mut ledger = Ledger::default();
        assert_eq!(lie(&mut ledger, "b", 2, Blame::Own, at(0)), None);
        assert_eq!(ledger.lied(&member("b"), 1, Blame::Own, at(0)), None, "the same name once more");
        assert_eq!(ledger.watched(at(0)), [member("b")]);
        let cut = ledger.lied(&member("b"), 7, Blame::Own, at(1)).unwrap();
        assert_eq!((cut.lies, cut.checked, cut.until), (3, 4, at(1) + CUT_OFF));
        assert_eq!(ledger.cut_off(at(1)), [cut]);
        assert_eq!(ledger.lied(&member("b"), 8, Blame::Own, at(2)), None, "it is cut off already");
        assert_eq!(ledger.cut_off(at(1) + CUT_OFF), [], "and comes back by itself");
    }

    #[test]
    fn who_comes_back_is_watched_and_begins_anew() {
        let mut ledger = Ledger::default();
        let until = lie(&mut ledger, "b", 3, Blame::Own, at(0)).unwrap().until;
        assert_eq!(ledger.watched(until), [member("b")]);
        assert_eq!(lie(&mut ledger, "b", 2, Blame::Own, until), None);
        assert!(lie(&mut ledger, "b", 3, Blame::Own, until).is_some());
        assert_eq!(ledger.watched(until + CUT_OFF + REMEMBERED + REMEMBERED), Vec::<Arc<str>>::new());
    }

    #[test]
    fn some_contradictions_among_many_agreements_are_no_lies() {
        let mut ledger = Ledger::default();
        (0..20).for_each(|_| ledger.agreed(&member("b"), at(0)));
        assert_eq!(lie(&mut ledger, "b", 9, Blame::Own, at(1)), None);
        assert!(ledger.lied(&member("b"), 9, Blame::Own, at(1)).is_some(), "10 of 30");
    }

    #[test]
    fn lies_of_an_hour_ago_are_forgotten() {
        let mut ledger = Ledger::default();
        assert_eq!(lie(&mut ledger, "b", 2, Blame::Own, at(0)), None);
        assert_eq!(ledger.lied(&member("b"), 9, Blame::Own, at(3_600)), None);
    }

    #[test]
    fn who_passes_lies_on_is_blamed_by_half_and_cannot_hide_behind_others_for_long() {
        let mut ledger = Ledger::default();
        // Each lie is somebody else's, as the one in the middle says: three on each, until it is cut off itself.
        let told =
            (0..100).take_while(|&name| ledger.lied(&member("b"), name, Blame::Relayed, at(name)).is_none()).count();
        assert!(told < 2 * LIES as usize, "at most two others are cut off in its place");
        let mut honest = Ledger::default();
        for name in 0..u64::from(LIES) {
            honest.agreed(&member("b"), at(name));
            honest.lied(&member("b"), name, Blame::Relayed, at(name));
            honest.lied(&member("c"), name, Blame::Own, at(name));
        }
        assert_eq!(honest.cut_off(at(9)).iter().map(|cut| &*cut.member).collect::<Vec<_>>(), ["c"]);
    }

    #[test]
    fn names_that_come_and_go_take_no_more_than_their_room() {
        let mut ledger = Ledger::default();
        (0..2 * MEMBERS_MAX).for_each(|number| ledger.agreed(&format!("m{number}").into(), at(0)));
        assert_eq!(ledger.members.len(), MEMBERS_MAX);
        ledger.agreed(&member("new"), at(3_600));
        assert_eq!(ledger.members.len(), 1);
        (0..2 * CHECKS_MAX).for_each(|_| ledger.agreed(&member("new"), at(3_600)));
        assert_eq!(ledger.members["new"].checks.len(), CHECKS_MAX);
    }

    proptest! {
        /// Whatever is said about it: nobody is cut off without three lies about different names within an hour, nor for longer
        /// than the time, and what is said of one member concerns no other.
        #[test]
        fn nobody_is_cut_off_without_reason_or_for_ever(
            events in proptest::collection::vec((any::<bool>(), 0..6u64, any::<bool>(), 0..400u64), 1..200)
        ) {
            let mut ledger = Ledger::default();
            let (mut now, mut said) = (0, Vec::new());
            for (is_lie, name, is_own, pause) in events {
                now += pause;
                if !is_lie {
                    ledger.agreed(&member("b"), at(now));
                    continue;
                }
                said.push((now, name));
                let blame = if is_own { Blame::Own } else { Blame::Relayed };
                if let Some(cut) = ledger.lied(&member("b"), name, blame, at(now)) {
                    let lately: std::collections::BTreeSet<_> =
                        said.iter().filter(|(when, _)| now - when < 3_600).map(|(_, name)| name).collect();
                    prop_assert!(lately.len() >= LIES as usize);
                    prop_assert_eq!(cut.until, at(now) + CUT_OFF);
                }
                prop_assert!(ledger.cut_off(at(now)).iter().all(|cut| &*cut.member == "b"));
            }
            prop_assert_eq!(ledger.cut_off(at(now) + CUT_OFF), []);
        }

        /// A member whose answers are nearly all true is never cut off.
        #[test]
        fn an_honest_member_stays(lies in proptest::collection::vec(0..1_000u64, 1..100)) {
            let mut ledger = Ledger::default();
            for name in lies {
                (0..3).for_each(|_| ledger.agreed(&member("b"), at(0)));
                prop_assert_eq!(ledger.lied(&member("b"), name, Blame::Own, at(0)), None);
            }
        }
    }
}
