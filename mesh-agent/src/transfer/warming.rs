//! For which slots this agent may lack entries that others have: until they were fetched, or for a bounded time.

use std::sync::Arc;
use std::time::Duration;

use heimdall_shared::clock::Moment;

use crate::membership::{State, View};
use crate::transfer::Slots;

/// A slot is warm after this time, fetched or not: what a full store of the default size takes at the default rate is
/// half of it. Beyond it a miss is a miss.
pub const WARM_WITHIN: Duration = Duration::from_secs(60);

/// The slots that are still being fetched. Pure.
#[derive(Clone, Debug)]
pub struct Warming {
    slots: Slots,
    /// Slots that somebody gave, while one who comes before that one in their order, and may have more, was not reached yet.
    late: Slots,
    until: Moment,
    /// Whether this agent has not had its share once yet. One that has, and fetches what a change of the members gave it, lacks
    /// that alone: taken for one that has nothing, it would not be asked for what nobody else has.
    starting: bool,
}

impl Warming {
    /// An agent that starts: nothing is there yet.
    pub fn starting(now: Moment) -> Self {
        Self { slots: Slots::all(), late: Slots::none(), until: now + WARM_WITHIN, starting: true }
    }

    /// Begins to fetch `slots`, which this agent is to keep from now on, and nothing that it is not: `share` is all of it.
    #[must_use]
    pub fn fetching(&self, slots: &Slots, share: &Slots, now: Moment) -> Self {
        let mut still = if now < self.until { self.clone() } else { self.fetched(&Slots::all()) };
        still.slots.insert_all(slots);
        let mut foreign = Slots::all();
        foreign.remove_all(share);
        let Self { slots, late, .. } = still.fetched(&foreign);
        Self { slots, late, until: now + WARM_WITHIN, starting: self.is_starting(now) }
    }

    /// `slots` were fetched, or cannot be.
    #[must_use]
    pub fn fetched(&self, slots: &Slots) -> Self {
        let mut still = self.clone();
        still.slots.remove_all(slots);
        still.late.remove_all(slots);
        still.starting &= !still.slots.is_empty();
        still
    }

    /// `slots` were fetched from who has them, but for what a member may have that was not reached yet and comes first.
    #[must_use]
    pub fn given(&self, slots: &Slots) -> Self {
        let mut still = self.fetched(slots);
        still.late.insert_all(slots);
        still
    }

    /// Whether this agent is still fetching the share with which it starts.
    pub fn is_starting(&self, now: Moment) -> bool {
        self.starting && now < self.until && !self.slots.is_empty()
    }

    /// Whom the holder of a lease on a key of `slot` asks before the upstream. While the slot is warming: the next in its
    /// order after this agent, who owned it before or has a copy, and whom the holder may reach though this agent does not
    /// yet. When this agent only stands in for a member that leaves and is still there: that one, whose leases go on to their
    /// end.
    pub fn ask_first(&self, slot: u16, view: &View, now: Moment) -> Option<Arc<str>> {
        let me = view.self_name();
        let leaves = |name: &Arc<str>| view.member(name).is_some_and(|member| member.state == State::Leaving);
        let mut order = view.ring().order(slot);
        if let Some(leaver) = order.by_ref().take_while(|name| *name != me).find(|name| leaves(name)) {
            return Some(Arc::clone(leaver));
        }
        // Those before this agent are skipped: it would not have been asked otherwise.
        if now >= self.until || !self.slots.contains(slot) && !self.late.contains(slot) {
            return None;
        }
        order.find(|name| view.member(name).is_some_and(|member| member.state != State::Silent)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::{Discovered, Event, Membership, Update};
    use crate::transfer::plan;

    fn at(secs: u64) -> Moment {
        Moment::from_nanos(1) + Duration::from_secs(secs)
    }

    /// Member a of a, b, c with two copies; the given ones are linked, and one of them may be leaving.
    fn view(linked: &[&str], leaving: Option<&str>) -> Arc<View> {
        let discovered = |name: &str| Discovered { name: name.into(), address: "host:1".into() };
        let mut membership = Membership::new(discovered("a"), 2, at(0));
        membership.step(Event::Discovered(Update::Reset(["b", "c"].map(discovered).to_vec())), at(0));
        for (link, &member) in (1..).zip(linked) {
            let member: Arc<str> = member.into();
            let up = Event::LinkUp { member: Arc::clone(&member), incarnation: 1, link, advertised: None };
            membership.step(up, at(0));
            if leaving == Some(&*member) {
                membership.step(Event::Leaving { member, link }, at(0));
            }
        }
        membership.view()
    }

    fn owned_by(view: &View, owner: &str) -> u16 {
        (0..).find(|&slot| &**view.ring().owner(slot).unwrap() == owner).unwrap()
    }

    #[test]
    fn a_starting_owner_asks_the_next_in_the_order_whether_it_has_a_link_to_it_or_not() {
        let view = view(&["c"], None);
        let warming = Warming::starting(at(0));
        for slot in (0..500).filter(|&slot| &**view.ring().owner(slot).unwrap() == "a") {
            assert_eq!(warming.ask_first(slot, &view, at(1)), view.ring().order(slot).nth(1).cloned());
        }
    }

    #[test]
    fn who_was_not_reached_yet_is_asked_first_though_another_one_gave_what_it_has() {
        let view = view(&["c"], None);
        let share = plan::share(view.ring(), "a");
        let slot = owned_by(&view, "a");
        let given = Warming::starting(at(0)).fetching(&share, &share, at(1)).given(&share);
        assert!(!given.is_starting(at(1)), "whoever wants entries may ask this agent");
        assert_eq!(given.ask_first(slot, &view, at(1)), view.ring().order(slot).nth(1).cloned());
        assert_eq!(given.fetched(&share).ask_first(slot, &view, at(1)), None);
        assert_eq!(given.ask_first(slot, &view, at(61)), None, "it does not come any more");
    }

    #[test]
    fn a_slot_is_warm_when_it_was_fetched_or_the_time_is_over() {
        let view = view(&["b", "c"], None);
        let share = plan::share(view.ring(), "a");
        let warming = Warming::starting(at(0)).fetching(&share, &share, at(2));
        let slot = owned_by(&view, "a");
        let next = view.ring().order(slot).nth(1).cloned();
        assert_eq!(warming.ask_first(slot, &view, at(61)), next);
        assert_eq!(warming.ask_first(slot, &view, at(62)), None);
        let mut part = Slots::none();
        part.insert(slot);
        let partly = warming.fetched(&part);
        assert_eq!(partly.ask_first(slot, &view, at(3)), None);
        assert!(partly.is_starting(at(3)) && !partly.fetched(&share).is_starting(at(3)) && !partly.is_starting(at(62)));
    }

    #[test]
    fn who_has_had_its_share_is_not_starting_again_when_the_members_change() {
        let view = view(&["b", "c"], None);
        let share = plan::share(view.ring(), "a");
        let slot = owned_by(&view, "a");
        let mut gained = Slots::none();
        gained.insert(slot);
        let starting = Warming::starting(at(0)).fetching(&share, &share, at(1));
        assert!(starting.fetching(&gained, &share, at(2)).is_starting(at(2)), "its first share is not there yet");
        let again = starting.fetched(&share).fetching(&gained, &share, at(2));
        assert!(!again.is_starting(at(2)), "it can be asked for all the rest");
        assert_eq!(again.ask_first(slot, &view, at(2)), view.ring().order(slot).nth(1).cloned(), "and lacks that");
        let late = starting.fetching(&gained, &share, at(70));
        assert!(!late.is_starting(at(70)), "its time to start is over");
    }

    #[test]
    fn what_this_agent_does_not_keep_is_never_warming_once_its_share_is_known() {
        let view = view(&["b", "c"], None);
        let share = plan::share(view.ring(), "a");
        let warming = Warming::starting(at(0)).fetching(&share, &share, at(1));
        let foreign = (0..).find(|&slot| !share.contains(slot)).unwrap();
        assert!(Warming::starting(at(0)).ask_first(foreign, &view, at(1)).is_none(), "nobody comes after the last one");
        assert_eq!(warming.ask_first(foreign, &view, at(1)), None);
    }

    #[test]
    fn who_stands_in_for_a_leaver_asks_that_one_whether_warm_or_not() {
        let view = view(&["b", "c"], Some("b"));
        let warm = Warming::starting(at(0)).fetched(&Slots::all());
        for slot in 0..500 {
            let before: Vec<_> = view.ring().order(slot).take_while(|name| &***name != "a").collect();
            let expected = before.iter().any(|name| &***name == "b").then_some("b");
            assert_eq!(warm.ask_first(slot, &view, at(1)).as_deref(), expected, "slot {slot}");
        }
    }
}
