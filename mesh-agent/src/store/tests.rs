#![allow(clippy::unwrap_used)]

use heimdall_shared::key::Flags;
use heimdall_shared::purge::Position;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::membership::{Discovered, Event, Membership, Update};

fn at(seconds: u64) -> Moment {
    Moment::from_nanos(0) + Duration::from_secs(seconds)
}

fn key(name: &str) -> Key {
    let wire = [&[name.len() as u8], name.as_bytes(), &[0]].concat();
    Key::new(&wire, 1, 1, Flags::default(), "").unwrap()
}

fn entry(text: &'static str, born: u64, lifetime: u64) -> Entry {
    Entry {
        packet: Bytes::from_static(text.as_bytes()),
        born: at(born),
        lifetime: Duration::from_secs(lifetime),
        since: 0,
    }
}

fn view(me: &str, all: &[&str], replication_factor: usize) -> Arc<View> {
    let discovered = |name: &&str| Discovered { name: (*name).into(), address: "host:1".into() };
    let mut membership = Membership::new(discovered(&me), replication_factor, at(0));
    membership.step(Event::Discovered(Update::Reset(all.iter().map(discovered).collect())), at(0));
    membership.view()
}

/// A store with one entry for `example`, from `origin`, born at 10 and living until 40.
fn store_with(origin: &Origin) -> Store {
    let store = Store::new(1 << 20);
    let decision = store.offer(&key("example"), &entry("first", 10, 30), origin, How::Local, at(11));
    assert_eq!(decision, Decision::Store);
    store
}

fn text(store: &Store, now: Moment) -> Option<String> {
    store.get(&key("example"), now).map(|entry| String::from_utf8(entry.packet.to_vec()).unwrap())
}

fn peer() -> Origin {
    Origin::Publisher("b".into())
}

#[test]
fn an_entry_is_found_while_a_whole_second_of_it_is_left() {
    let store = store_with(&peer());
    assert_eq!(text(&store, at(39)).as_deref(), Some("first"));
    assert_eq!(text(&store, at(39) + Duration::from_nanos(1)), None);
    let stats = store.stats();
    assert_eq!((stats.hits, stats.misses, stats.stored), (1, 1, 1));
}

#[test]
fn an_entry_comes_back_with_its_birth_and_origin() {
    let store = store_with(&peer());
    let found = store.find(&key("example"), at(20)).unwrap();
    assert_eq!(found, Sourced { entry: entry("first", 10, 30), origin: peer(), taken: at(11) });
    assert_eq!(store.find(&key("other"), at(20)), None);
}

#[test]
fn what_is_kept_keeps_no_message_in_memory() {
    let message = Bytes::from(vec![7; 65_536]);
    let incoming = Entry { packet: message.slice(100..160), ..entry("", 0, 60) };
    let store = Store::new(1 << 20);
    store.offer(&key("example"), &incoming, &peer(), How::Copy, at(1));
    drop(incoming);
    assert!(message.is_unique(), "the message must be free for others");
    assert_eq!(store.get(&key("example"), at(1)).unwrap().packet, message.slice(100..160));
}

#[test]
fn of_two_entries_of_peers_the_younger_wins() {
    for how in [How::PublishWithToken, How::Copy] {
        let store = store_with(&peer());
        let offer =
            |born, lifetime| store.offer(&key("example"), &entry("second", born, lifetime), &peer(), how, at(20));
        assert_eq!(offer(9, 900), Decision::Older);
        assert_eq!(offer(10, 900), Decision::Older);
        assert_eq!(offer(12, 15), Decision::Store, "younger, though it is over earlier");
        assert_eq!(text(&store, at(20)).as_deref(), Some("second"));
    }
}

#[test]
fn an_entry_that_its_sender_sends_again_only_gets_older() {
    let sender = Origin::Replica("b".into());
    let store = Store::new(1 << 20);
    // Sent at 20 as one that was fetched at 10.
    assert_eq!(store.offer(&key("example"), &entry("same", 10, 30), &sender, How::Copy, at(20)), Decision::Store);
    let again = |born, from: &str, text| {
        let origin = Origin::Replica(from.into());
        store.offer(&key("example"), &entry(text, born, 30), &origin, How::Copy, at(25))
    };
    assert_eq!(again(9, "b", "same"), Decision::Older);
    assert_eq!(again(15, "b", "same"), Decision::Rejuvenated);
    assert_eq!(store.find(&key("example"), at(25)).unwrap().entry.born, at(10));
    assert_eq!(store.stats().rejuvenated, 1);
    // What was fetched later may be the same answer; and another member, or another answer, contradicts nothing.
    assert_eq!(again(15, "c", "same"), Decision::Store);
    assert_eq!(again(16, "b", "other"), Decision::Store);
    assert_eq!(again(21, "b", "other"), Decision::Rejuvenated);
    assert_eq!(again(25, "b", "other"), Decision::Store, "fetched since");
}

#[test]
fn without_a_token_a_peer_stores_only_where_nothing_lives() {
    let store = store_with(&peer());
    let offer = |now| store.offer(&key("example"), &entry("second", 12, 900), &peer(), How::PublishWithoutToken, now);
    assert_eq!(offer(at(20)), Decision::KeepExisting);
    assert_eq!(offer(at(40)), Decision::Store);
    assert_eq!(text(&store, at(40)).as_deref(), Some("second"));
}

#[test]
fn a_younger_entry_of_a_peer_waits_behind_one_fetched_here_and_takes_over_when_that_is_over() {
    for how in [How::PublishWithToken, How::Copy] {
        let store = store_with(&Origin::Local);
        let offer =
            |text, born, lifetime| store.offer(&key("example"), &entry(text, born, lifetime), &peer(), how, at(20));
        assert_eq!(offer("older", 9, 900), Decision::Older);
        assert_eq!(offer("sooner over", 12, 20), Decision::KeepExisting);
        assert_eq!(offer("second", 12, 60), Decision::Behind);
        assert_eq!(offer("between", 11, 900), Decision::Older, "a younger one waits already");
        assert_eq!(text(&store, at(39)).as_deref(), Some("first"));
        assert_eq!(text(&store, at(40)).as_deref(), Some("second"));
        assert_eq!(text(&store, at(72)), None);
    }
}

#[test]
fn once_it_has_taken_over_an_entry_of_a_peer_is_replaced_like_any_other() {
    let store = store_with(&Origin::Local);
    store.offer(&key("example"), &entry("second", 12, 60), &peer(), How::Copy, at(20));
    let decision = store.offer(&key("example"), &entry("third", 41, 60), &peer(), How::Copy, at(45));
    assert_eq!(decision, Decision::Store);
    assert_eq!(text(&store, at(45)).as_deref(), Some("third"));
}

#[test]
fn an_entry_fetched_here_replaces_what_is_older_whatever_it_is() {
    for origin in [Origin::Local, peer(), Origin::Replica("c".into())] {
        let store = store_with(&origin);
        let offer = |born| store.offer(&key("example"), &entry("second", born, 20), &Origin::Local, How::Local, at(20));
        assert_eq!(offer(8), Decision::Older);
        assert_eq!(offer(15), Decision::Store);
        assert_eq!(store.find(&key("example"), at(20)).unwrap().origin, Origin::Local);
    }
}

#[test]
fn what_is_dead_on_arrival_is_stored_nowhere_and_disturbs_nothing() {
    let store = store_with(&peer());
    for lifetime in [0, 8] {
        let decision = store.offer(&key("example"), &entry("dead", 12, lifetime), &Origin::Local, How::Local, at(20));
        assert_eq!(decision, Decision::DeadOnArrival);
    }
    store.offer(&key("other"), &entry("dead", 20, 0), &peer(), How::Copy, at(20));
    assert_eq!(text(&store, at(20)).as_deref(), Some("first"));
    assert_eq!(store.find(&key("other"), at(20)), None);
    assert_eq!(store.stats().dead_on_arrival, 3);
}

#[test]
fn less_than_a_second_of_life_is_none() {
    let incoming = entry("x", 10, 30);
    assert_eq!(admit(None, &incoming, &peer(), How::Local, at(39)), Decision::Store);
    assert_eq!(admit(None, &incoming, &peer(), How::Local, at(39) + Duration::from_millis(1)), Decision::DeadOnArrival);
}

#[test]
fn what_is_kept_for_a_key_ends_with_the_last_of_its_entries() {
    let sourced = |lifetime| Sourced { entry: entry("x", 10, lifetime), origin: peer(), taken: at(10) };
    assert_eq!(Held { front: sourced(30), behind: None }.end(), at(40));
    assert_eq!(Held { front: sourced(30), behind: Some(Box::new(sourced(60))) }.end(), at(70));
}

#[test]
fn what_died_is_there_for_those_who_take_it_so_and_never_as_live() {
    let store = Store::keeping_stale(1 << 20, Duration::from_secs(100), Arc::new(purge::ledger(Duration::ZERO)));
    store.offer(&key("example"), &entry("first", 10, 30), &peer(), How::Copy, at(11));
    let stale = |within, now| store.stale(&key("example"), Duration::from_secs(within), at(now));
    assert_eq!(text(&store, at(41)), None);
    assert_eq!(store.younger(&key("example"), at(0), at(41)), None);
    assert_eq!(stale(60, 41), Some(entry("first", 10, 30)), "with the life that it had");
    assert_eq!(stale(60, 101), None);
    assert_eq!(stale(600, 140), Some(entry("first", 10, 30)));
    assert_eq!(stale(600, 141), None, "the store's own limit holds too");
    store.offer(&key("example"), &entry("second", 45, 30), &peer(), How::PublishWithoutToken, at(50));
    assert_eq!(text(&store, at(50)).as_deref(), Some("second"), "a dead entry is in nobody's way");
    store.remove(&key("example"));
    assert_eq!(stale(600, 51), None);
}

#[test]
fn younger_is_what_was_fetched_anew_also_while_it_waits() {
    let store = store_with(&Origin::Local);
    assert_eq!(store.younger(&key("example"), at(9), at(20)), None, "the same birth, dated differently");
    store.offer(&key("example"), &entry("second", 15, 60), &peer(), How::PublishWithToken, at(20));
    assert_eq!(text(&store, at(20)).as_deref(), Some("first"));
    assert_eq!(store.younger(&key("example"), at(10), at(20)), Some(entry("second", 15, 60)));
    assert_eq!(store.younger(&key("example"), at(15), at(20)), None);
}

#[test]
fn entries_are_kept_where_the_ring_places_them() {
    let all = ["a", "b", "c"];
    let names = (0..60).map(|number| format!("name{number}"));
    let views: Vec<_> = all.iter().map(|me| (Store::new(1 << 20), view(me, &all, 2))).collect();
    for name in names {
        let key = key(&name);
        for (store, view) in &views {
            let me = view.self_name();
            if &**me == "a" {
                store.keep_own(&key, &entry("x", 1, 60), me, view, at(2));
            } else {
                store.keep_fetched(&key, &entry("x", 1, 60), &"a".into(), view, at(2));
            }
            let is_kept = store.get(&key, at(2)).is_some();
            assert_eq!(is_kept, view.ring().is_replica(key.slot(), me), "{name} at {me}");
        }
    }
}

#[test]
fn a_publish_of_the_own_dns_server_counts_as_fetched_here() {
    let view = view("a", &["a", "b"], 2);
    let store = Store::new(1 << 20);
    let publish = |publisher: &str, write, born| {
        store.publish(&key("example"), &entry("x", born, 60), &publisher.into(), write, &view, at(20))
    };
    assert!(publish("a", Write::WithoutToken, 10));
    assert_eq!(store.find(&key("example"), at(20)).unwrap().origin, Origin::Local);
    assert!(publish("b", Write::WithToken, 15), "it waits behind");
    assert!(!publish("b", Write::WithoutToken, 16));
    assert!(publish("a", Write::WithoutToken, 17));
    assert_eq!(store.get(&key("example"), at(20)).unwrap().born, at(17));
}

#[test]
fn what_a_member_gave_is_forgotten_and_nothing_else() {
    let store = Store::new(1 << 20);
    let now = at(10);
    let from = |name: &str| Origin::Replica(name.into());
    for (name, origin, how) in [
        ("theirs", from("liar"), How::Copy),
        ("published", Origin::Publisher("liar".into()), How::PublishWithToken),
        ("other", from("b"), How::Copy),
        ("own", Origin::Local, How::Local),
    ] {
        assert_eq!(store.offer(&key(name), &entry(name, 9, 60), &origin, how, now), Decision::Store);
    }
    // It waits behind what this replica fetched, which stays.
    assert_eq!(store.offer(&key("own"), &entry("x", 10, 90), &from("liar"), How::Copy, now), Decision::Behind);
    assert_eq!(store.forget_from("liar"), 3);
    for (name, is_there) in [("theirs", false), ("published", false), ("other", true), ("own", true)] {
        assert_eq!(store.get(&key(name), now).is_some(), is_there, "{name}");
    }
    assert_eq!(store.get(&key("own"), at(80)), None, "nothing took over");
    assert_eq!(store.forget_from("liar"), 0);
}

#[test]
fn a_removed_entry_is_gone() {
    let store = store_with(&peer());
    store.remove(&key("example"));
    assert_eq!(text(&store, at(20)), None);
}

#[derive(Clone, Debug)]
struct Offer {
    how: How,
    born: u64,
    lifetime: u64,
    later: u64,
}

fn offers() -> impl Strategy<Value = Vec<Offer>> {
    let how =
        prop_oneof![Just(How::Local), Just(How::PublishWithToken), Just(How::PublishWithoutToken), Just(How::Copy)];
    // Ages of up to 30 s, lives of up to 60 s, a few seconds between two offers.
    let offer = (how, 0..30u64, 0..60u64, 0..8u64);
    vec(offer.prop_map(|(how, born, lifetime, later)| Offer { how, born, lifetime, later }), 1..40)
}

proptest! {
    #[test]
    fn nothing_outlives_its_origin_and_what_was_fetched_here_is_never_displaced_by_peers(offers in offers()) {
        let store = Store::new(1 << 20);
        let mut now = at(100);
        for Offer { how, born: age, lifetime, later } in offers {
            now = now + Duration::from_secs(later);
            let before = store.find(&key("example"), now);
            let incoming = Entry { born: now.minus(Duration::from_secs(age)), ..entry("x", 0, lifetime) };
            let origin = if how == How::Local { Origin::Local } else { peer() };
            let decision = store.offer(&key("example"), &incoming, &origin, how, now);
            let after = store.find(&key("example"), now);
            prop_assert!(after.as_ref().is_none_or(|found| found.entry.is_live(now)));
            prop_assert_eq!(decision == Decision::DeadOnArrival, !incoming.is_live(now));
            if decision == Decision::Store {
                prop_assert_eq!(after.as_ref().map(|found| &found.entry), Some(&incoming));
            } else {
                prop_assert_eq!(&after, &before);
            }
            if let (Some(before), Some(after)) = (&before, &after) {
                prop_assert!(after.entry.born >= before.entry.born, "what is served never gets older by a write");
                if before.origin == Origin::Local && how != How::Local {
                    prop_assert_eq!(before, after);
                }
                if how == How::PublishWithoutToken {
                    prop_assert_eq!(before, after);
                }
            }
            prop_assert!(before.is_none() || after.is_some(), "no offer takes away what is there");
            prop_assert!(!incoming.is_live(now) || after.is_some(), "what lives is served by something");
        }
    }
}

/// A store, and the ledger by which its entries are purged.
fn purged_store() -> (Store, Arc<Ledger>) {
    let ledger = Arc::new(purge::ledger(Duration::from_secs(100)));
    (Store::keeping_stale(1 << 20, Duration::from_secs(100), Arc::clone(&ledger)), ledger)
}

fn purge_name(ledger: &Ledger, name: &str) -> Position {
    let scope = heimdall_shared::purge::Scope::Name { name: Bytes::copy_from_slice(key(name).name()), qtype: None };
    ledger.issue((&"a".into(), 1), scope, None, at(12)).position
}

#[test]
fn what_is_purged_is_found_no_more_and_what_was_fetched_before_does_not_come_back() {
    let (store, ledger) = purged_store();
    let offer = |text, born, since| {
        let incoming = Entry { since, ..entry(text, born, 60) };
        store.offer(&key("example"), &incoming, &peer(), How::Copy, at(20))
    };
    assert_eq!(offer("first", 10, 0), Decision::Store);
    purge_name(&ledger, "other");
    assert_eq!(store.get(&key("example"), at(20)).unwrap().since, 1, "newer than all purges so far");
    let position = purge_name(&ledger, "example");
    assert_eq!(text(&store, at(20)), None);
    assert_eq!(store.stale(&key("example"), Duration::from_secs(50), at(75)), None);
    assert_eq!(store.look(&key("example"), at(20)), None);
    assert_eq!(offer("late", 15, position - 1), Decision::Overtaken);
    // One whose fetch began after the purge is taken, though it is dated before the one that is gone.
    assert_eq!(offer("second", 9, position), Decision::Store);
    assert_eq!(text(&store, at(20)).as_deref(), Some("second"));
}

#[test]
fn a_purge_takes_what_waits_behind_too_and_leaves_what_came_after_it() {
    let (store, ledger) = purged_store();
    let offer = |born, since, origin: &Origin, how| {
        store.offer(&key("example"), &Entry { since, ..entry("x", born, 60) }, origin, how, at(20))
    };
    offer(10, 0, &Origin::Local, How::Local);
    assert_eq!(offer(12, 0, &peer(), How::Copy), Decision::Behind);
    let position = purge_name(&ledger, "example");
    assert_eq!(offer(11, position, &peer(), How::Copy), Decision::Store, "nothing is before it any more");
    store.sweep();
    assert_eq!(store.get(&key("example"), at(20)).unwrap().born, at(11));
    purge_name(&ledger, "example");
    store.sweep();
    assert_eq!((store.stats().purged, store.stats().entries), (1, 0), "its memory is given back");
}

#[test]
fn an_injected_entry_takes_any_other_s_place() {
    let (store, ledger) = purged_store();
    store.offer(&key("example"), &entry("first", 10, 60), &Origin::Local, How::Local, at(11));
    let position = purge_name(&ledger, "example");
    store.inject(&key("example"), &Entry { since: position, ..entry("mine", 12, 60) }, at(12));
    assert_eq!(text(&store, at(20)).as_deref(), Some("mine"));
}
