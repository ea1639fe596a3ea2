#![allow(clippy::unwrap_used)]

use heimdall_shared::key::Flags;
use tokio_util::sync::CancellationToken;

use super::shelf::OVERHEAD;
use super::tidy::Walk;
use super::*;
use crate::updates::{Next, Reader};

/// Bytes of a small store, which has room for some 180 answers of [`PACKET`] bytes.
const BYTES: u64 = 256 * 1_024;
const PACKET: usize = 1_000;

fn at(seconds: u64) -> Moment {
    Moment::from_nanos(0) + Duration::from_secs(seconds)
}

fn key(name: &str) -> Key {
    let wire = [&[name.len() as u8], name.as_bytes(), &[0]].concat();
    Key::new(&wire, 1, 1, Flags::default(), "").unwrap()
}

fn keeping(stale: u64) -> Store {
    Store::keeping_stale(BYTES, Duration::from_secs(stale), Arc::new(purge::ledger(Duration::ZERO)))
}

/// Offers an answer of so many bytes for `name`, fetched just now, with a minute to live.
fn fetch_large(store: &Store, name: &str, bytes: usize, now: Moment) {
    let packet = Bytes::from(vec![0; bytes]);
    let incoming = Entry { packet, born: now, lifetime: Duration::from_secs(60), since: 0 };
    assert_eq!(store.offer(&key(name), &incoming, &Origin::Local, How::Local, now), Decision::Store);
}

fn fetch(store: &Store, name: &str, now: Moment) {
    fetch_large(store, name, PACKET, now);
}

/// As many answers as fill the store, and more.
fn fill(store: &Store, names: &str, now: Moment) {
    for number in 0..500 {
        fetch(store, &format!("{names}{number}"), now);
    }
}

fn found(store: &Store, names: &str, now: Moment) -> usize {
    (0..500).filter(|number| store.get(&key(&format!("{names}{number}")), now).is_some()).count()
}

async fn told(reader: &mut Reader) -> What {
    match reader.next().await.unwrap() {
        Next::Update(update) => update.what.clone(),
        Next::Missed(missed) => panic!("{missed} missed"),
    }
}

#[test]
fn the_store_stays_within_its_bytes_and_counts_what_it_throws_out() {
    let store = keeping(0);
    for number in 0..2_000 {
        fetch(&store, &format!("name{number}"), at(2));
    }
    let stats = store.stats();
    assert!(stats.bytes <= BYTES, "{stats:?}");
    assert!(stats.entries >= 100 && stats.entries * (PACKET + OVERHEAD) as u64 <= BYTES, "{stats:?}");
    assert_eq!((stats.stored, stats.evicted, stats.expired), (2_000, 2_000 - stats.entries, 0));
}

#[test]
fn a_new_answer_is_found_in_a_store_that_is_full_of_anything() {
    // Of what nobody asked for, of what was asked for again and again, and of what is dead and kept all the same.
    for (asked, later) in [(0, 3), (3, 3), (0, 70), (3, 70)] {
        let store = keeping(86_400);
        fill(&store, "old", at(2));
        for _ in 0..asked {
            found(&store, "old", at(2));
        }
        for number in 0..1_000 {
            let name = format!("new{number}");
            fetch(&store, &name, at(later));
            assert!(store.get(&key(&name), at(later)).is_some(), "{name} when asked {asked} times, at {later}");
        }
    }
}

#[test]
fn the_largest_answer_finds_its_place_in_the_smallest_store() {
    let store = Store::new(1 << 20);
    for number in 0..100 {
        let name = format!("large{number}");
        fetch_large(&store, &name, usize::from(u16::MAX), at(2));
        assert!(store.get(&key(&name), at(2)).is_some(), "{name}");
    }
    assert!(store.stats().entries >= 10, "{:?}", store.stats());
}

#[test]
fn an_answer_that_is_replaced_by_a_larger_one_is_still_there() {
    let store = keeping(0);
    for round in 1..=40 {
        for number in 0..20 {
            let name = format!("grows{number}");
            fetch_large(&store, &name, 300 * round, at(2 + round as u64));
            assert!(store.get(&key(&name), at(2 + round as u64)).is_some(), "{name} in round {round}");
        }
    }
    assert!(store.stats().bytes <= BYTES);
}

#[test]
fn an_answer_that_is_replaced_by_a_larger_one_is_there_though_all_others_are_wanted_more() {
    // The store is filled: one half is hot. The first of the other half is the next to go.
    let each = (PACKET + key("name100").as_bytes().len() + OVERHEAD) as u64;
    let (hot, all) = (BYTES / 2 / each, BYTES / each);
    for next in hot - 2..hot + 3 {
        let store = keeping(0);
        for number in 100..100 + all {
            fetch(&store, &format!("name{number}"), at(2));
        }
        for number in 100..100 + hot {
            assert!(store.get(&key(&format!("name{number}")), at(2)).is_some());
        }
        let name = format!("name{}", 100 + next);
        fetch_large(&store, &name, 5 * PACKET, at(3));
        assert!(store.get(&key(&name), at(3)).is_some(), "{name}");
        let stats = store.stats();
        assert_eq!((stats.entries + stats.evicted, stats.expired), (all, 0), "{stats:?}");
    }
}

#[test]
fn what_is_asked_for_stays_when_room_is_made() {
    let store = keeping(0);
    fill(&store, "once", at(2));
    for number in 0..20 {
        fetch(&store, &format!("wanted{number}"), at(2));
    }
    for number in 0..2_000 {
        fetch(&store, &format!("new{number}"), at(3));
        // Each is asked for once while the store takes in some 80 others.
        let wanted = format!("wanted{}", number / 4 % 20);
        assert!(store.get(&key(&wanted), at(3)).is_some(), "{wanted} after {number}");
    }
}

#[test]
fn what_came_first_gives_way_to_what_is_asked_for() {
    let store = keeping(86_400);
    fill(&store, "dead", at(2));
    let kept = store.stats().entries;
    // The dead fill it, and are of use for a day. What is asked for twice takes the place of all of them.
    for _ in 0..4 {
        for number in 0..kept * 3 / 4 {
            let name = format!("wanted{number}");
            if store.get(&key(&name), at(100)).is_none() {
                fetch(&store, &name, at(100));
            }
        }
    }
    let wanted = (0..kept * 3 / 4).filter(|number| store.get(&key(&format!("wanted{number}")), at(100)).is_some());
    assert!(wanted.count() as u64 >= kept / 2);
}

#[tokio::test]
async fn who_follows_is_told_what_went_and_why() {
    let store = keeping(30);
    let mut reader = store.updates().follow().unwrap();
    let first = key("first");
    fetch(&store, "first", at(2));
    assert!(matches!(told(&mut reader).await, What::Insert(key, _) if key == first));
    let mut number = 0;
    while store.stats().evicted == 0 {
        fetch(&store, &format!("other{number}"), at(2));
        number += 1;
    }
    for _ in 1..number {
        assert!(matches!(told(&mut reader).await, What::Insert(..)));
    }
    assert!(matches!(told(&mut reader).await, What::Evict(_, Cause::Size)));
    assert!(matches!(told(&mut reader).await, What::Insert(..)));
    // It died at 62, and was kept for another 30 s.
    fetch(&store, "new", at(92));
    assert!(matches!(told(&mut reader).await, What::Evict(_, Cause::Expired)));
    assert_eq!((store.stats().evicted, store.stats().expired), (1, 1));
}

#[test]
fn what_takes_the_place_of_one_that_is_over_counts_that_one_as_expired() {
    let store = keeping(30);
    fetch(&store, "example", at(2));
    fetch(&store, "example", at(70));
    assert_eq!(store.stats().expired, 0, "it was of use still");
    fetch(&store, "example", at(160));
    let stats = store.stats();
    assert_eq!((stats.entries, stats.expired, stats.evicted), (1, 1, 0));
}

#[tokio::test]
async fn what_is_over_is_removed_step_by_step() {
    let store = keeping(30);
    for number in 0..10 {
        fetch(&store, &format!("early{number}"), at(2));
        fetch(&store, &format!("late{number}"), at(3));
    }
    let mut reader = store.updates().follow().unwrap();
    let whole = |now| {
        let (mut walk, mut steps) = (Walk::new(&store), 1);
        while walk.step(8, now) {
            steps += 1;
        }
        assert_eq!(steps, 3, "20 entries at most 8 at a time");
    };
    whole(at(92).minus(Duration::from_nanos(1)));
    assert_eq!((store.stats().entries, store.stats().expired), (20, 0));
    whole(at(92));
    let stats = store.stats();
    assert_eq!((stats.entries, stats.expired, stats.evicted), (10, 10, 0));
    assert!(store.stale(&key("late0"), Duration::from_secs(30), at(92)).is_some());
    for _ in 0..10 {
        assert!(matches!(told(&mut reader).await, What::Evict(_, Cause::Expired)));
    }
}

#[test]
fn a_walk_beside_writes_counts_each_entry_once() {
    let store = keeping(0);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            for number in 0..20_000 {
                fetch(&store, &format!("name{number}"), at(number));
            }
        });
        for number in (0..20_000).step_by(50) {
            while Walk::new(&store).step(10, at(number)) {}
        }
    });
    let stats = store.stats();
    assert_eq!(stats.stored, stats.entries + stats.expired + stats.evicted, "{stats:?}");
}

#[tokio::test(start_paused = true)]
async fn nobody_needs_to_ask_for_what_is_over_to_go() {
    let (store, stop) = (Arc::new(keeping(0)), CancellationToken::new());
    let long_ago = Moment::now().minus(Duration::from_secs(3_600));
    fill(&store, "old", long_ago);
    fetch(&store, "new", Moment::now());
    let task = tokio::spawn(tidy::run(Arc::clone(&store), stop.clone()));
    while store.stats().entries > 1 {
        // On the paused clock: it takes no time, and the task has its turns.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(store.get(&key("new"), Moment::now()).is_some());
    stop.cancel();
    task.await.unwrap();
}
