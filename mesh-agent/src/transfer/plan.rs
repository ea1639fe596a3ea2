//! Who fetches which entries from whom: pure rules over ring and view.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::membership::{State, View};
use crate::ring::Ring;
use crate::transfer::Slots;

/// The slots of which `member` keeps copies.
pub fn share(ring: &Ring, member: &str) -> Slots {
    Slots::where_(|slot| ring.is_replica(slot, member))
}

/// The slots of which this agent keeps copies in `now` and did not in `before`.
pub fn gained(before: &Ring, now: &Ring, me: &str) -> Slots {
    Slots::where_(|slot| now.is_replica(slot, me) && !before.is_replica(slot, me))
}

/// The slots for which this agent has to stand in when `leaver` is gone, and does not yet: it comes among the first that
/// answer, as many as there should be copies.
pub fn inherited(view: &View, leaver: &str) -> Slots {
    let (ring, me) = (view.ring(), view.self_name());
    let up: Vec<&Arc<str>> =
        ring.members().iter().filter(|name| *name == me || ***name != *leaver && view.is_up(name)).collect();
    Slots::where_(|slot| {
        if !ring.is_replica(slot, leaver) || ring.is_replica(slot, me) {
            return false;
        }
        let mut standing = ring.order(slot).filter(|name| up.contains(name)).take(ring.replication_factor());
        standing.any(|name| name == me)
    })
}

/// From whom slots are fetched.
#[derive(Debug)]
pub struct Sources {
    /// The slots of each source.
    pub parts: BTreeMap<Arc<str>, Slots>,
    /// Those that somebody may have who has no link yet and comes before their source in the order: what was published to that
    /// one alone is nowhere else.
    pub late: Slots,
}

/// What can be had of a member now.
#[derive(Clone, Copy)]
enum Standing {
    /// All that it keeps.
    Settled,
    /// It lacks entries itself.
    Starting,
    /// Nothing yet.
    Late,
    /// Nothing.
    Out,
}

/// From whom each of the `wanted` slots is fetched: from the first in its order that answers, since that one owned it
/// before this agent came, or has a copy. Who starts itself is asked only for what nobody else has. Slots that nobody can
/// give are left out.
pub fn sources(view: &View, wanted: &Slots, excluded: &[Arc<str>]) -> Sources {
    let standing = |name: &str| match view.member(name) {
        Some(member) if !excluded.contains(&member.name) => match member.state {
            _ if member.is_linked() && view.is_starting(name) => Standing::Starting,
            _ if member.is_linked() => Standing::Settled,
            State::Silent => Standing::Out,
            _ => Standing::Late,
        },
        _ => Standing::Out,
    };
    let standings: BTreeMap<&str, Standing> =
        view.ring().members().iter().map(|name| (&**name, standing(name))).collect();
    let mut sources = Sources { parts: BTreeMap::new(), late: Slots::none() };
    for slot in wanted.iter() {
        let (mut source, mut is_late) = (None, false);
        for name in view.ring().order(slot) {
            match standings.get(&**name) {
                Some(Standing::Settled) => {
                    source = Some(name);
                    break;
                }
                Some(Standing::Starting) => source = source.or(Some(name)),
                Some(Standing::Late) => is_late = true,
                Some(Standing::Out) | None => {}
            }
        }
        if let Some(source) = source {
            sources.parts.entry(Arc::clone(source)).or_insert_with(Slots::none).insert(slot);
        }
        if is_late {
            sources.late.insert(slot);
        }
    }
    sources
}

#[cfg(test)]
mod tests {
    use heimdall_shared::clock::Moment;

    use super::*;
    use crate::membership::{Discovered, Event, Membership, Update};

    const ALL: [&str; 5] = ["a", "b", "c", "d", "e"];

    fn ring(members: &[&str], copies: usize) -> Ring {
        Ring::new(&members.iter().map(|&name| name.into()).collect::<Vec<_>>(), copies)
    }

    /// Member `me` of a to e, linked to `linked`; `leaving` has announced that it leaves.
    fn view(me: &str, copies: usize, linked: &[&str], leaving: Option<&str>) -> Arc<View> {
        let now = Moment::from_nanos(1);
        let discovered = |name: &str| Discovered { name: name.into(), address: "host:1".into() };
        let mut membership = Membership::new(discovered(me), copies, now);
        membership.step(Event::Discovered(Update::Reset(ALL.map(discovered).to_vec())), now);
        for (link, &member) in (1..).zip(linked) {
            let member: Arc<str> = member.into();
            let is_leaving = leaving == Some(&*member);
            let up = Event::LinkUp { member: Arc::clone(&member), incarnation: 1, link, advertised: None };
            membership.step(up, now);
            if is_leaving {
                membership.step(Event::Leaving { member, link }, now);
            }
        }
        membership.view()
    }

    #[test]
    fn a_newcomer_gains_what_it_keeps_and_an_old_member_what_another_one_left() {
        let (before, now) = (ring(&["a", "b", "c"], 2), ring(&["b", "c", "d"], 2));
        assert_eq!(gained(&before, &now, "d"), share(&now, "d"));
        let mine = gained(&before, &now, "b");
        assert!(!mine.is_empty());
        assert!(mine.iter().all(|slot| before.is_replica(slot, "a")), "only a's places became free");
    }

    #[test]
    fn every_slot_of_a_share_is_fetched_from_the_first_in_its_order_that_answers() {
        let view = view("a", 2, &["b", "c", "d"], None);
        let wanted = share(view.ring(), "a");
        let Sources { parts, late } = sources(&view, &wanted, &["c".into()]);
        assert_eq!(parts.keys().map(|name| &**name).collect::<Vec<_>>(), ["b", "d"]);
        let mut together = Slots::none();
        for (source, slots) in &parts {
            assert!(slots.iter().all(|slot| !together.contains(slot)), "no slot is fetched twice");
            together.insert_all(slots);
            for slot in slots.iter() {
                let first = view.ring().order(slot).find(|name| ["b", "d"].contains(&&***name));
                assert_eq!(first, Some(source));
            }
        }
        assert_eq!(together, wanted);
        for slot in wanted.iter() {
            let first = view.ring().order(slot).find(|name| ["b", "d", "e"].contains(&&***name));
            assert_eq!(
                late.contains(slot),
                first.is_some_and(|name| **name == *"e"),
                "e was not reached yet: slot {slot}"
            );
        }
    }

    #[test]
    fn after_one_came_and_one_was_lost_the_source_is_one_that_had_a_copy() {
        // Before: a, b, c with two copies; then c died and d came.
        let before = ring(&["a", "b", "c"], 2);
        let after = ring(&["a", "b", "d"], 2);
        for slot in share(&after, "d").iter() {
            let survivors = after.order(slot).filter(|name| ***name != *"d");
            let first = survivors.take(1).next().unwrap();
            assert!(before.is_replica(slot, first), "slot {slot}: {first} had no copy");
        }
    }

    #[test]
    fn heirs_are_those_who_come_among_the_first_without_the_leaver() {
        for copies in 1..=4 {
            let views = ["b", "c", "d", "e"].map(|me| {
                let others: Vec<&str> = ALL.into_iter().filter(|name| *name != me).collect();
                (me, view(me, copies, &others, Some("a")))
            });
            let heirs = views.each_ref().map(|(me, view)| (*me, inherited(view, "a")));
            let ring = views[0].1.ring();
            for slot in 0..=u16::MAX {
                let taken: Vec<&str> =
                    heirs.iter().filter(|(_, slots)| slots.contains(slot)).map(|(me, _)| *me).collect();
                let next = ring.order(slot).nth(copies).map(|name| vec![&**name]);
                let expected = if ring.is_replica(slot, "a") { next.unwrap_or_default() } else { Vec::new() };
                assert_eq!(taken, expected, "slot {slot} with {copies} copies");
            }
        }
    }

    #[test]
    fn with_as_many_copies_as_members_nobody_inherits() {
        assert!(inherited(&view("b", 5, &["a", "c", "d", "e"], Some("a")), "a").is_empty());
    }
}
