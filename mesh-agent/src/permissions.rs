//! Which peer may write what here. Identity is settled before (certificate, discovery); this is about the ring alone.
//! Whether a token is live and belongs to its sender is the lease table's to say ([`crate::lease::Table::holds`]).

use crate::membership::View;
use crate::ring::Ring;

/// Whether `from` may send `to` a copy of a key of `slot`: both must belong to the key's set, so that a member that
/// lies reaches only the keys it is trusted with.
pub fn may_copy(ring: &Ring, slot: u16, from: &str, to: &str) -> bool {
    from != to && ring.is_replica(slot, from) && ring.is_replica(slot, to)
}

/// Whether `from` may publish to this agent without a live token: `from` must be a member, and this agent one of the
/// key's set or the one that acts as its owner now. Two agents may disagree for a while about who answers; what is
/// refused then costs a later miss.
pub fn may_publish(view: &View, slot: u16, from: &str) -> bool {
    let me = view.self_name();
    let acts_as_owner = || view.target(slot, &[""; 0]).is_some_and(|name| name == me);
    view.ring().contains(from) && (view.ring().is_replica(slot, me) || acts_as_owner())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use heimdall_shared::clock::Moment;

    use super::*;
    use crate::membership::{Discovered, Event, Membership, Update};

    fn view_of(me: &str, linked: &[&str]) -> Arc<View> {
        let now = Moment::from_nanos(1);
        let discovered = |name: &str| Discovered { name: name.into(), address: "host:1".into() };
        let mut membership = Membership::new(discovered(me), 2, now);
        let all = ["a", "b", "c", "d"].map(discovered).to_vec();
        membership.step(Event::Discovered(Update::Reset(all)), now);
        for (link, member) in (1..).zip(linked) {
            let up = Event::LinkUp { member: (*member).into(), incarnation: 1, link, advertised: None };
            membership.step(up, now);
        }
        membership.view()
    }

    #[test]
    fn copies_go_only_between_two_members_of_the_key_s_set() {
        let view = view_of("a", &["b", "c", "d"]);
        let ring = view.ring();
        for slot in 0..200 {
            for from in ["a", "b", "c", "d", "stranger"] {
                for to in ["a", "b", "c", "d"] {
                    let both = [from, to].iter().all(|name| ring.replicas(slot).any(|replica| &**replica == *name));
                    assert_eq!(may_copy(ring, slot, from, to), both && from != to, "{from} to {to} in {slot}");
                }
            }
        }
    }

    #[test]
    fn a_publish_without_a_lease_is_for_the_key_s_set_or_for_who_acts_as_owner() {
        let view = view_of("a", &["b", "c", "d"]);
        for slot in 0..200 {
            assert_eq!(may_publish(&view, slot, "b"), view.ring().is_replica(slot, "a"));
            assert!(!may_publish(&view, slot, "stranger"));
        }
        let alone = view_of("a", &[]);
        assert!((0..200).all(|slot| may_publish(&alone, slot, "b")), "nobody else answers here");
    }
}
