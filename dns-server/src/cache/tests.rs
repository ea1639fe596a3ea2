#![allow(clippy::unwrap_used)]

use std::hash::Hasher;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use foldhash::fast::FixedState;
use heimdall_shared::key::Flags;

use super::*;

/// A key and an answer with these TTLs, in normal form.
fn sample(name: &[u8], ttls: &[u32]) -> (Key, Bytes) {
    let key = Key::new(name, 1, 1, Flags::default(), "").unwrap();
    let mut packet = vec![0, 0, 0x81, 0x80, 0, 1, 0, ttls.len() as u8, 0, 0, 0, 0];
    packet.extend_from_slice(name);
    packet.extend_from_slice(&[0, 1, 0, 1]);
    for ttl in ttls {
        packet.extend_from_slice(&[0xC0, 0x0C, 0, 1, 0, 1]);
        packet.extend_from_slice(&ttl.to_be_bytes());
        packet.extend_from_slice(&[0, 4, 10, 0, 0, 1]);
    }
    (key, packet.into())
}

fn at(millis: u64) -> Moment {
    Moment::from_nanos(millis * 1_000_000)
}

fn entry(packet: Bytes, born: Moment, lifetime: u64) -> Entry {
    Entry { packet, born, lifetime: Duration::from_secs(lifetime), since: 0 }
}

#[test]
fn an_answer_is_gone_when_less_than_a_second_of_its_life_is_left() {
    let (key, packet) = sample(b"\x01a\x00", &[3, 60]);
    let cache = Cache::new(1 << 20).unwrap();
    cache.insert(&key, &entry(packet, at(10_000), 3), at(10_000));
    assert_eq!(cache.get(key.as_bytes(), at(12_000)).unwrap().elapsed(at(12_000)), 2);
    assert!(cache.get(key.as_bytes(), at(12_001)).is_none());
    assert!(cache.get(&key.as_bytes()[1..], at(12_000)).is_none());
}

#[test]
fn a_ttl_is_given_out_as_the_floor_of_what_is_left() {
    let (key, packet) = sample(b"\x01a\x00", &[60]);
    let ready = Ready::new(&key, &entry(packet, at(1_000), 60)).unwrap();
    assert_eq!([1_000, 1_001, 2_000, 2_001].map(|millis| ready.elapsed(at(millis))), [0, 1, 1, 2]);
}

#[test]
fn a_life_cut_short_on_the_way_shows_in_the_ttls() {
    let (key, packet) = sample(b"\x01a\x00", &[60]);
    let ready = Ready::new(&key, &entry(packet, at(100_000), 20)).unwrap();
    assert_eq!(ready.elapsed(at(100_000)), 40);
    assert!(ready.is_live(at(119_000)) && !ready.is_live(at(119_001)));
}

#[test]
fn what_is_dead_or_older_is_not_kept() {
    let cache = Cache::new(1 << 20).unwrap();
    let (key, packet) = sample(b"\x01a\x00", &[60]);
    cache.insert(&key, &entry(packet.clone(), at(0), 0), at(0));
    assert!(cache.is_empty());
    cache.insert(&key, &entry(packet.clone(), at(9_000), 60), at(9_000));
    cache.insert(&key, &entry(packet.clone(), at(5_000), 60), at(9_000));
    assert_eq!(cache.get(key.as_bytes(), at(9_000)).unwrap().born(), at(9_000));
    cache.insert(&key, &entry(packet, at(9_500), 60), at(10_000));
    assert_eq!(cache.get(key.as_bytes(), at(10_000)).unwrap().born(), at(9_500));
}

#[test]
fn an_answer_that_died_is_there_for_those_who_take_it_and_only_so_long() {
    let (key, packet) = sample(b"\x01a\x00", &[3]);
    let cache = Cache::new(1 << 20).unwrap();
    cache.insert(&key, &entry(packet, at(10_000), 3), at(10_000));
    let stale = |millis| cache.get_stale(key.as_bytes(), at(millis), Duration::from_secs(60));
    assert!(cache.get(key.as_bytes(), at(13_000)).is_none());
    assert!(stale(11_000).is_some_and(|ready| ready.is_live(at(11_000))));
    assert_eq!(stale(72_000).unwrap().born(), at(10_000));
    assert!(stale(72_001).is_none());
}

#[test]
fn what_is_not_to_be_kept_is_gone() {
    let cache = Cache::new(1 << 20).unwrap();
    let (a, packet) = sample(b"\x01a\x03com\x00", &[60]);
    cache.insert(&a, &entry(packet, at(0), 60), at(0));
    let (b, packet) = sample(b"\x01b\x03com\x00", &[60]);
    cache.insert(&b, &entry(packet, at(0), 60), at(0));
    cache.retain(|ready| ready.name() != b"\x01a\x03com\x00" || ready.qtype() != 1);
    assert!(cache.get(a.as_bytes(), at(0)).is_none());
    assert!(cache.get(b.as_bytes(), at(0)).is_some());
    assert_eq!(cache.len(), 1);
}

#[test]
fn an_answer_to_another_question_is_not_kept() {
    let cache = Cache::new(1 << 20).unwrap();
    let (key, _) = sample(b"\x01a\x00", &[60]);
    let (_, packet) = sample(b"\x01b\x00", &[60]);
    cache.insert(&key, &entry(packet, at(0), 60), at(0));
    assert!(cache.is_empty());
}

#[test]
fn equal_hashes_alone_never_make_a_hit() {
    /// Every key collides with every other.
    #[derive(Clone)]
    struct Same;
    impl BuildHasher for Same {
        type Hasher = SameHasher;
        fn build_hasher(&self) -> SameHasher {
            SameHasher
        }
    }
    struct SameHasher;
    impl Hasher for SameHasher {
        fn finish(&self) -> u64 {
            7
        }
        fn write(&mut self, _: &[u8]) {}
    }

    let cache = Cache::with_hasher(1 << 20, Same).unwrap();
    let (a, packet) = sample(b"\x01a\x00", &[60]);
    cache.insert(&a, &entry(packet.clone(), at(0), 60), at(0));
    let (b, _) = sample(b"\x01b\x00", &[60]);
    assert!(cache.get(b.as_bytes(), at(0)).is_none());
    let wants = Flags { dnssec_ok: true, checking_disabled: false };
    let dnssec = Key::new(b"\x01a\x00", 1, 1, wants, "").unwrap();
    assert!(cache.get(dnssec.as_bytes(), at(0)).is_none());
    assert!(cache.get(a.as_bytes(), at(0)).is_some());
}

#[test]
fn the_cache_stays_within_its_bytes() {
    let cache = Cache::new(64 << 10).unwrap();
    for index in 0..2_000_u32 {
        let name = format!("\x08{index:08}\x00");
        let (key, packet) = sample(name.as_bytes(), &[60]);
        cache.insert(&key, &entry(packet, at(0), 60), at(0));
    }
    assert!(cache.bytes() <= 64 << 10);
    assert!(cache.len() > 100);
}

/// The key and the answer for one of many names; its address is its number.
fn numbered(index: u32, born: Moment) -> (Key, Entry) {
    let (key, packet) = sample(format!("\x08{index:08}\x00").as_bytes(), &[60]);
    let mut packet = packet.to_vec();
    let at = packet.len() - 4;
    packet[at..].copy_from_slice(&index.to_be_bytes());
    (key, entry(packet.into(), born, 60))
}

fn number_in(ready: &Ready) -> u32 {
    u32::from_be_bytes(*ready.packet().last_chunk().unwrap())
}

#[test]
fn a_flood_of_names_does_not_drive_out_what_is_asked_for() {
    let cache = Cache::with_hasher(1 << 20, FixedState::with_seed(1)).unwrap();
    let known: Vec<_> = (0..500).map(|index| numbered(index, at(0))).collect();
    for (key, entry) in &known {
        cache.insert(key, entry, at(0));
    }
    let mut missed = 0;
    for index in 0..100_000 {
        let (key, entry) = numbered(1_000 + index, at(0));
        cache.insert(&key, &entry, at(0));
        // Every known name once in 2,500 of the others, of which the cache holds some 7,000.
        let (key, entry) = &known[index as usize / 5 % 500];
        if index % 5 == 0 && cache.get(key.as_bytes(), at(0)).is_none() {
            missed += 1;
            cache.insert(key, entry, at(0));
        }
    }
    // Too many entries in one bucket drive each other out.
    assert!(missed <= 200, "{missed} of 20,000");
    assert!(cache.bytes() <= 1 << 20);
    assert!(cache.len() > 5_000, "{}", cache.len());
}

#[test]
fn an_entry_that_comes_back_soon_after_it_was_driven_out_stays() {
    let cache = Cache::with_hasher(1 << 20, FixedState::with_seed(1)).unwrap();
    let (key, first) = numbered(0, at(0));
    cache.insert(&key, &first, at(0));
    let mut next = 1;
    let mut flood = |until_gone: bool| {
        for _ in 0..20_000 {
            let (other, entry) = numbered(next, at(0));
            cache.insert(&other, &entry, at(0));
            next += 1;
            if until_gone && cache.get_stale(key.as_bytes(), at(0), Duration::ZERO).is_none() {
                return;
            }
        }
    };
    flood(true);
    assert!(cache.get(key.as_bytes(), at(0)).is_none());
    cache.insert(&key, &first, at(0));
    flood(false);
    assert!(cache.get(key.as_bytes(), at(0)).is_some());
}

#[test]
fn entries_that_come_again_take_no_more_memory() {
    let cache = Cache::new(64 << 20).unwrap();
    for round in 0..2_000 {
        for index in 0..100 {
            let (key, entry) = numbered(index, at(round * 1_000));
            cache.insert(&key, &entry, at(round * 1_000));
        }
    }
    assert_eq!(cache.len(), 100);
    let once = Cache::new(64 << 20).unwrap().bytes();
    assert!(cache.bytes() - once <= 1 << 20, "{}", cache.bytes() - once);
    let (key, _) = numbered(7, at(0));
    assert_eq!(number_in(&cache.get(key.as_bytes(), at(1_999_000)).unwrap()), 7);
}

#[test]
fn long_answers_are_kept_where_they_fit() {
    let (key, packet) = sample(b"\x01a\x00", &[60; 4_000]);
    for (bytes, kept) in [(16 << 20, true), (256 << 10, false)] {
        let cache = Cache::new(bytes).unwrap();
        cache.insert(&key, &entry(packet.clone(), at(0), 60), at(0));
        assert_eq!(
            cache.get(key.as_bytes(), at(0)).map(|ready| ready.packet().to_vec()),
            kept.then(|| packet.to_vec())
        );
        assert_eq!(cache.len(), usize::from(kept));
    }
}

#[test]
fn readers_see_whole_entries_while_everything_moves() {
    /// Inserts in all: the memory is given up some dozens of times.
    const INSERTS: u32 = 100_000;
    let cache = Cache::new(256 << 10).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|threads| {
        for _ in 0..2 {
            threads.spawn(|| {
                let keys: Vec<_> = (0..2_000).map(|index| numbered(index, at(0)).0).collect();
                while !done.load(Ordering::Relaxed) {
                    for (index, key) in (0..).zip(&keys) {
                        if let Some(ready) = cache.get(key.as_bytes(), at(0)) {
                            assert_eq!((number_in(&ready), ready.key()), (index, key.as_bytes()));
                        }
                    }
                }
            });
        }
        for insert in 0..INSERTS {
            let (key, entry) = numbered(insert.wrapping_mul(2_654_435_761) % 2_000, at(u64::from(insert)));
            cache.insert(&key, &entry, at(0));
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(cache.bytes() <= 256 << 10);
}
