//! A limit in bytes means memory: what the first-level cache takes from the allocator, not only what is in it.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use heimdall_dns::cache::Cache;
use heimdall_shared::clock::Moment;
use heimdall_shared::entry::Entry;
use heimdall_shared::key::{Flags, Key};

/// What else the process takes meanwhile: a thread's stack, pages that the allocator keeps.
const BESIDE: u64 = 256 << 10;

/// Memory is the process's, so one test at a time may take some.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes of memory that this process alone has, its code not counted. Counted page by page; `statm` is late by some.
fn held() -> u64 {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = rollup.lines().find(|line| line.starts_with("Anonymous:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// The key and the answer, of 90 octets, for one of many names.
fn sample(index: u32) -> (Key, Entry) {
    let name = format!("\x08{index:08}\x17some-name-a-and-a-bit-m\x07example\x03com\x00").into_bytes();
    let key = Key::new(&name, 1, 1, Flags::default(), "").unwrap();
    let mut packet = vec![0, 0, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
    packet.extend_from_slice(&name);
    packet.extend_from_slice(&[0, 1, 0, 1]);
    packet.extend_from_slice(&[0xC0, 0x0C, 0, 28, 0, 1, 0, 0, 0, 60, 0, 16]);
    packet.extend_from_slice(&[7; 16]);
    assert_eq!(packet.len(), 90);
    (
        key,
        Entry { packet: Bytes::from(packet), born: Moment::from_nanos(0), lifetime: Duration::from_secs(60), since: 0 },
    )
}

/// A cache of `limit` bytes that was given `count` names, and the bytes of memory that came with it.
fn fill(limit: u64, count: u32) -> (u64, Cache) {
    let before = held();
    let cache = Cache::new(limit).unwrap();
    for index in 0..count {
        let (key, entry) = sample(index);
        cache.insert(&key, &entry, Moment::from_nanos(0));
    }
    (held().saturating_sub(before), cache)
}

#[test]
fn an_answer_of_90_octets_takes_at_most_300_bytes() {
    let _alone = alone();
    let (few, _few) = fill(64 << 20, 10_000);
    let (many, _many) = fill(64 << 20, 100_000);
    let each = (many - few) / 90_000;
    println!("{each} bytes for each of 90,000 answers, {} with the index for each of 100,000", many / 100_000);
    assert!(each <= 300 && many / 100_000 <= 300);
}

#[test]
fn a_flood_of_names_stays_within_the_limit() {
    let _alone = alone();
    for limit in [1 << 20, 5_000_000, 8 << 20] {
        let (taken, cache) = fill(limit, 60_000);
        assert!(taken <= limit + BESIDE, "{taken} bytes of {limit}");
        assert!(taken >= limit / 2, "{taken} bytes of {limit}: it must have been filled");
        assert!(cache.bytes() <= limit && cache.len() as u64 > limit / 300, "{} in {limit}", cache.len());
    }
}

#[test]
fn a_limit_beyond_all_memory_is_an_error() {
    assert!(Cache::new(1 << 60).is_err());
}
