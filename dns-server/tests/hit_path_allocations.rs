//! A cached query costs no allocation: the worker's own function, driven with full batches under a counting allocator.

#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bytes::Bytes;
use heimdall_dns::cache::Cache;
use heimdall_dns::listener::batch::{BATCH, Batch};
use heimdall_dns::metrics::WorkerTallies;
use heimdall_dns::refresh::Ahead;
use heimdall_shared::clock::Moment;
use heimdall_shared::dns::answer::{TtlLimits, normalise};
use heimdall_shared::entry::Entry;
use heimdall_shared::key::{Flags, Key};

/// Times that the full batch is answered.
const ROUNDS: usize = 10_000;

thread_local! {
    /// Allocations of this thread alone: the test runner's own threads must not count.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// A global allocator cannot be written without it; every call is passed on unchanged.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The wire form of `host<index>.example.com`, in mixed case.
fn name(index: usize) -> Vec<u8> {
    format!("\x06hOst{index:02}\x07eXample\x03com\x00").into_bytes()
}

fn query(index: usize) -> Vec<u8> {
    // Every other client speaks EDNS, every fourth wants DNSSEC records.
    let edns = index % 2 == 1;
    let mut packet = vec![index as u8, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)];
    packet.extend(name(index));
    packet.extend([0, 1, 0, 1]);
    if edns {
        let flags = if index % 4 == 3 { 0x80 } else { 0 };
        packet.extend([0, 0, 41, 4, 208, 0, 0, flags, 0, 0, 0]);
    }
    packet
}

fn cache() -> Cache {
    let cache = Cache::new(1 << 20).unwrap();
    for index in 0..BATCH {
        let flags = Flags { dnssec_ok: index % 4 == 3, checking_disabled: false };
        let key = Key::new(&name(index), 1, 1, flags, "").unwrap();
        let mut packet = vec![0, 0, 0x81, 0x80, 0, 1, 0, 2, 0, 0, 0, 0];
        packet.extend(name(index));
        packet.extend([0, 1, 0, 1]);
        for last in 1..=2 {
            packet.extend([0xC0, 0x0C, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 0, index as u8, last]);
        }
        let answer = normalise(&key, &packet, &TtlLimits::default()).unwrap();
        let entry = Entry {
            packet: Bytes::from(answer.packet.to_vec()),
            born: Moment::from_nanos(0),
            lifetime: answer.lifetime,
            since: 0,
        };
        cache.insert(&key, &entry, Moment::from_nanos(0));
    }
    cache
}

fn fill(batch: &mut Batch, queries: &[Vec<u8>]) {
    batch.received.clear();
    for query in queries {
        batch.received.next_mut()[..query.len()].copy_from_slice(query);
        batch.received.push(query.len());
    }
}

#[test]
fn a_batch_of_cached_queries_is_answered_without_an_allocation() {
    let cache = cache();
    let tallies = WorkerTallies::default();
    let mut batch = Batch::new(Ahead::percent(50));
    let queries: Vec<_> = (0..BATCH).map(query).collect();

    let before = ALLOCATIONS.get();
    for round in 0..ROUNDS {
        fill(&mut batch, &queries);
        batch.answer(Moment::from_nanos(round as u64 * 1_000_000), &cache, &tallies);
        assert_eq!(batch.misses().count(), 0);
    }
    assert_eq!(ALLOCATIONS.get() - before, 0);

    assert_eq!(tallies.l1_hits.get(), (ROUNDS * BATCH) as u64);
    assert_eq!(batch.replies.len(), BATCH);
    for (index, query) in queries.iter().enumerate() {
        let reply = batch.replies.packet(index);
        assert_eq!(reply[..2], query[..2], "the client's ID");
        assert_eq!(reply[12..36], query[12..36], "the client's question");
        assert_eq!(reply[7], 2, "both addresses");
        let addresses: Vec<_> = reply.windows(4).filter(|window| window[..3] == [10, 0, index as u8]).collect();
        assert_eq!(addresses.len(), 2);
        assert_eq!(batch.replies.to(index), index);
    }
}

#[test]
fn the_counter_sees_an_allocation() {
    let before = ALLOCATIONS.get();
    drop(std::hint::black_box(Box::new(7)));
    assert_eq!(ALLOCATIONS.get() - before, 1);
}
