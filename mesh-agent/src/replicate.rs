//! Which members get a copy of an entry that was stored here. The queues themselves belong to the links: a copy that
//! finds its link's queue full is dropped and counted, never waited for.

use std::sync::Arc;
use std::time::Duration;

use heimdall_shared::clock::Moment;
use heimdall_shared::entry::Entry;

use crate::membership::View;

/// An entry with less than this left is not copied: it would arrive with a second or less to live, not worth its message.
pub const WORTH_COPYING: Duration = Duration::from_secs(2);

/// Where the copies of one entry go.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Members to send a copy to, in the key's order.
    pub to: Vec<Arc<str>>,
    /// Members of the key's set that should have one but do not answer now; they fetch it when they need it.
    pub skipped: usize,
}

/// Plans the copies of an entry of `slot` that this agent stored: the key's set without this agent and without the
/// publisher, whose own agent kept it on its way here.
pub fn plan(view: &View, slot: u16, entry: &Entry, publisher: &str, now: Moment) -> Plan {
    let mut plan = Plan::default();
    if entry.remaining(now) < WORTH_COPYING {
        return plan;
    }
    for member in view.ring().replicas(slot) {
        if &**member == publisher || member == view.self_name() {
            continue;
        }
        if view.is_up(member) {
            plan.to.push(Arc::clone(member));
        } else {
            plan.skipped += 1;
        }
    }
    plan
}

/// All members of the set of `slot` but this agent: whose copies count for a write level is asked of each of them, the
/// publisher included.
pub fn whole_set(view: &View, slot: u16) -> Plan {
    let others = view.ring().replicas(slot).filter(|member| *member != view.self_name());
    let (up, skipped): (Vec<_>, Vec<_>) = others.partition(|member| view.is_up(member));
    Plan { to: up.into_iter().cloned().collect(), skipped: skipped.len() }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::membership::{Discovered, Event, Membership, Update};

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(0) + Duration::from_millis(millis)
    }

    fn entry(lifetime: u64) -> Entry {
        Entry { packet: Bytes::new(), born: at(0), lifetime: Duration::from_secs(lifetime), since: 0 }
    }

    /// Member a of a, b, c, d with three copies of each key; `linked` answer.
    fn view_of(linked: &[&str]) -> Arc<View> {
        let discovered = |name: &str| Discovered { name: name.into(), address: "host:1".into() };
        let mut membership = Membership::new(discovered("a"), 3, at(0));
        membership.step(Event::Discovered(Update::Reset(["b", "c", "d"].map(discovered).to_vec())), at(0));
        for (link, member) in (1..).zip(linked) {
            let up = Event::LinkUp { member: (*member).into(), incarnation: 1, link, advertised: None };
            membership.step(up, at(0));
        }
        membership.view()
    }

    #[test]
    fn the_set_gets_copies_without_the_storing_agent_and_the_publisher() {
        let view = view_of(&["b", "c", "d"]);
        for slot in 0..200 {
            for publisher in ["a", "b", "c", "d"] {
                let expected: Vec<_> =
                    view.ring().replicas(slot).filter(|name| !["a", publisher].contains(&&***name)).cloned().collect();
                assert_eq!(plan(&view, slot, &entry(60), publisher, at(0)), Plan { to: expected, skipped: 0 });
            }
        }
    }

    #[test]
    fn who_does_not_answer_is_skipped_and_counted() {
        let (all, some) = (view_of(&["b", "c", "d"]), view_of(&["b"]));
        for slot in 0..200 {
            let whole = plan(&all, slot, &entry(60), "a", at(0)).to;
            let plan = plan(&some, slot, &entry(60), "a", at(0));
            assert_eq!(plan.to.len() + plan.skipped, whole.len());
            assert!(plan.to.iter().all(|name| &**name == "b"));
        }
    }

    #[test]
    fn what_is_nearly_over_is_not_worth_a_message() {
        let view = view_of(&["b", "c", "d"]);
        assert!(!plan(&view, 1, &entry(3), "a", at(1_000)).to.is_empty());
        assert_eq!(plan(&view, 1, &entry(3), "a", at(1_001)), Plan::default());
    }
}
