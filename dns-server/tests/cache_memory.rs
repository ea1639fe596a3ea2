//! A limit in bytes means memory: what the first-level cache takes from the allocator, not only what is in it.

#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use bytes::Bytes;
use heimdall_dns::cache::Cache;
use heimdall_shared::clock::Moment;
use heimdall_shared::entry::Entry;
use heimdall_shared::key::{Flags, Key};

thread_local! {
    /// Bytes that this thread holds: the test runner's own threads must not count.
    static HELD: Cell<u64> = const { Cell::new(0) };
    /// The most that it ever held.
    static MOST: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// A global allocator cannot be written without it; every call is passed on unchanged.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.set(HELD.get() + layout.size() as u64);
        MOST.set(MOST.get().max(HELD.get()));
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.set(HELD.get().saturating_sub(layout.size() as u64));
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

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

/// Bytes held at most, beyond those that were held before, while a cache of `limit` bytes takes `count` names; and the cache.
fn fill(limit: u64, count: u32) -> (u64, Cache) {
    let before = HELD.get();
    MOST.set(before);
    let cache = Cache::new(limit);
    for index in 0..count {
        let (key, entry) = sample(index);
        cache.insert(&key, &entry, Moment::from_nanos(0));
    }
    (MOST.get() - before, cache)
}

#[test]
fn an_answer_of_90_octets_takes_at_most_300_bytes() {
    let (few, _few) = fill(64 << 20, 10_000);
    let (many, _many) = fill(64 << 20, 100_000);
    let each = (many - few) / 90_000;
    println!("{each} bytes for each of 90,000 answers, {} with the index for each of 100,000", many / 100_000);
    assert!(each <= 300 && many / 100_000 <= 300);
}

#[test]
fn a_flood_of_names_stays_within_the_limit() {
    for limit in [1 << 20, 5_000_000, 8 << 20] {
        let (most, cache) = fill(limit, 60_000);
        // What an insert holds while it lasts.
        assert!(most <= limit + 4_096, "{most} bytes of {limit}");
        assert!(cache.bytes() <= limit && cache.len() as u64 > limit / 300, "{} in {limit}", cache.len());
    }
}
