#![allow(clippy::unwrap_used)]

use proptest::collection::hash_set;
use proptest::prelude::*;
use proptest::sample::subsequence;

use super::*;

fn names(names: &[&str]) -> Vec<Arc<str>> {
    names.iter().map(|&name| name.into()).collect()
}

fn numbered(count: usize) -> Vec<Arc<str>> {
    (0..count).map(|number| format!("heimdall-{number}").into()).collect()
}

fn order(ring: &Ring, slot: u16) -> Vec<&str> {
    ring.order(slot).map(|name| &**name).collect()
}

/// The rule itself, without a table.
fn ranked(members: &[Arc<str>], slot: u16) -> Vec<&str> {
    let score = |name: &str| xxh3_64(&[&slot.to_be_bytes(), name.as_bytes()].concat());
    let mut order: Vec<&str> = members.iter().map(|name| &**name).collect();
    order.sort_by(|a, b| score(b).cmp(&score(a)).then(a.cmp(b)));
    order
}

#[test]
fn placement_is_the_same_on_every_build() {
    // Golden vectors, computed with the reference implementation of xxHash: agents of different releases must agree on who owns a slot, or say by their digest that they do not.
    let ring = Ring::new(&names(&["heimdall-0", "heimdall-1", "heimdall-2"]), 3);
    let orders =
        [0, 1, 23_100, 48_268, 50_251, u16::MAX].map(|slot| order(&ring, slot).concat().replace("heimdall-", ""));
    assert_eq!(orders, GOLDEN_ORDERS);
    assert_eq!(ring.digest(), GOLDEN_DIGEST);
    assert_eq!(ring.slots_owned(), GOLDEN_SHARES);
}

const GOLDEN_ORDERS: [&str; 6] = ["210", "201", "201", "102", "012", "120"];
const GOLDEN_DIGEST: u64 = 0x5981_2f6b_4639_ce42;
const GOLDEN_SHARES: [u32; 3] = [21_916, 21_969, 21_651];

#[test]
fn the_digest_covers_factor_and_names_and_keeps_them_apart() {
    let digest = |members: &[&str], factor| Ring::new(&names(members), factor).digest();
    let ab = digest(&["a", "b"], 2);
    assert_eq!(ab, digest(&["b", "a", "b"], 2));
    let others = [digest(&["a", "b"], 3), digest(&["ab"], 2), digest(&["a"], 2), digest(&["a", "b", ""], 2)];
    assert!(!others.contains(&ab), "{others:x?}");
}

#[test]
fn an_empty_ring_has_no_owner_and_one_member_owns_all() {
    let empty = Ring::new(&[], 3);
    assert_eq!((empty.owner(7), empty.replicas(7).count(), empty.slots_owned()), (None, 0, vec![]));
    let alone = Ring::new(&names(&["a"]), 3);
    assert_eq!(order(&alone, 7), ["a"]);
    assert_eq!(alone.slots_owned(), [SLOTS as u32]);
}

#[test]
fn a_replication_factor_of_zero_still_has_an_owner() {
    let ring = Ring::new(&numbered(3), 0);
    assert_eq!(ring.replicas(9).collect::<Vec<_>>(), [ring.owner(9).unwrap()]);
}

#[test]
fn beyond_the_table_the_order_goes_on_by_the_same_rule() {
    let members = numbered(25);
    let ring = Ring::new(&members, 20);
    assert_eq!(ring.ranks.len(), SLOTS * (20 + RANKS_BEHIND));
    for slot in [0, 1, 999, u16::MAX] {
        assert_eq!(order(&ring, slot), ranked(&members, slot));
        assert_eq!(ring.replicas(slot).count(), 20);
    }
}

#[test]
fn of_too_many_members_every_agent_leaves_out_the_same() {
    let mut members = numbered(MEMBERS_MAX + 5);
    let forwards = canonical(&members);
    members.reverse();
    assert_eq!(forwards.len(), MEMBERS_MAX);
    assert_eq!(forwards, canonical(&members));
}

#[test]
fn slots_are_spread_evenly() {
    for count in [3, 5, 20] {
        let ring = Ring::new(&numbered(count), 3);
        let owned = ring.slots_owned();
        assert_eq!(owned.iter().sum::<u32>() as usize, SLOTS);
        let mean = SLOTS as f64 / count as f64;
        let fullest = f64::from(*owned.iter().max().unwrap());
        assert!(fullest <= mean * 1.05, "{count} members: {owned:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn the_order_of_a_list_changes_nothing(members in hash_set("[a-z0-9-]{1,12}", 1..7), slots: [u16; 32]) {
        // A hash set gives its members in another order each time.
        let members: Vec<Arc<str>> = members.into_iter().map(Into::into).collect();
        let mut sorted = members.clone();
        sorted.sort();
        let (one, other) = (Ring::new(&members, 3), Ring::new(&sorted, 3));
        prop_assert_eq!(one.digest(), other.digest());
        prop_assert_eq!(&one.ranks, &other.ranks);
        for slot in slots {
            prop_assert_eq!(order(&one, slot), ranked(&members, slot));
        }
    }

    #[test]
    fn removing_members_moves_only_their_keys(kept in subsequence(numbered(7), 1..7), factor in 1usize..4) {
        let (all, rest) = (Ring::new(&numbered(7), factor), Ring::new(&kept, factor));
        for slot in (0..=u16::MAX).step_by(7) {
            // Who stays keeps its rank among those who stay: the owner is the old one, or the first of those after it.
            prop_assert!(rest.order(slot).eq(all.order(slot).filter(|name| kept.contains(name))));
        }
    }

    #[test]
    fn membership_and_sets_agree_with_the_order(count in 1usize..9, factor in 1usize..5, slot: u16) {
        let ring = Ring::new(&numbered(count), factor);
        for name in ring.members() {
            let rank = ring.order(slot).position(|ranked| ranked == name).unwrap();
            prop_assert_eq!(ring.is_replica(slot, name), rank < factor);
            prop_assert!(ring.contains(name));
        }
        prop_assert!(!ring.contains("heimdall"));
        prop_assert!(!ring.is_replica(slot, "heimdall"));
    }
}
