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
    until: Moment,
}

impl Warming {
    /// An agent that starts: nothing is there yet.
    pub fn starting(now: Moment) -> Self {
        Self { slots: Slots::all(), until: now + WARM_WITHIN }
    }

    /// Begins to fetch `slots`, which this agent is to keep from now on, and nothing that it is not: `share` is all of it.
    #[must_use]
    pub fn fetching(&self, slots: &Slots, share: &Slots, now: Moment) -> Self {
        let mut still = if now < self.until { self.slots.clone() } else { Slots::none() };
        still.insert_all(slots);
        let mut foreign = Slots::all();
        foreign.remove_all(share);
        still.remove_all(&foreign);
        Self { slots: still, until: now + WARM_WITHIN }
    }

    /// `slots` were fetched, or cannot be.
    #[must_use]
    pub fn fetched(&self, slots: &Slots) -> Self {
        let mut still = self.slots.clone();
        still.remove_all(slots);
        Self { slots: still, until: self.until }
    }

    /// Whether anything is being fetched.
    pub fn is_over(&self, now: Moment) -> bool {
        now >= self.until || self.slots.is_empty()
    }

    /// Whom the holder of a lease on a key of `slot` asks before the upstream. While the slot is warming: the next in its
    /// order after this agent that answers, who owned it before or has a copy. When this agent only stands in for a
    /// member that leaves and is still there: that one, whose leases go on to their end.
    pub fn ask_first(&self, slot: u16, view: &View, now: Moment) -> Option<Arc<str>> {
        let me = view.self_name();
        let leaves = |name: &Arc<str>| view.member(name).is_some_and(|member| member.state == State::Leaving);
        let mut order = view.ring().order(slot);
        if let Some(leaver) = order.by_ref().take_while(|name| *name != me).find(|name| leaves(name)) {
            return Some(Arc::clone(leaver));
        }
        // Those before this agent are skipped: it would not have been asked otherwise.
        if now >= self.until || !self.slots.contains(slot) {
            return None;
        }
        order.find(|name| view.is_up(name)).cloned()
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
    fn a_starting_owner_asks_the_next_in_the_order_that_answers() {
        let view = view(&["c"], None);
        let warming = Warming::starting(at(0));
        for slot in (0..500).filter(|&slot| &**view.ring().owner(slot).unwrap() == "a") {
            assert_eq!(warming.ask_first(slot, &view, at(1)).as_deref(), Some("c"));
        }
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
        assert!(!partly.is_over(at(3)) && partly.fetched(&share).is_over(at(3)) && partly.is_over(at(62)));
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
