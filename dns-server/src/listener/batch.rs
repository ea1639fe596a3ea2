//! One received batch and the replies to it: the hit path. No task, no allocation, no wait, no log line.

use std::sync::Arc;

use heimdall_shared::clock::Moment;
use heimdall_shared::dns::message::HEADER;

use crate::cache::Cache;
use crate::metrics::WorkerTallies;
use crate::query::{Head, KeyBuf, Query, Reject, UDP_PAYLOAD};
use crate::refresh::{Ahead, Popular};
use crate::reply;

/// Datagrams per system call. The cost per datagram falls until 8 to 32 and not beyond.
pub const BATCH: usize = 32;

/// Octets kept of a received datagram: an Ethernet frame's worth, which no honest query exceeds. A longer one is cut, and
/// then refused as malformed.
pub const DATAGRAM_MAX: usize = 1_500;

/// Datagrams, in buffers that live as long as the worker.
#[derive(Debug)]
pub struct Slots<const SIZE: usize> {
    buffers: Box<[[u8; SIZE]; BATCH]>,
    lengths: [usize; BATCH],
    count: usize,
}

impl<const SIZE: usize> Slots<SIZE> {
    /// Empty slots.
    pub fn new() -> Self {
        let buffers = vec![[0; SIZE]; BATCH].into_boxed_slice();
        let buffers = buffers.try_into().expect("the vector must hold BATCH buffers");
        Self { buffers, lengths: [0; BATCH], count: 0 }
    }

    /// Number of datagrams.
    #[inline]
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether there is no datagram.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The octets of datagram `index`.
    #[inline]
    pub fn packet(&self, index: usize) -> &[u8] {
        &self.buffers[index][..self.lengths[index]]
    }

    /// The next buffer to fill.
    #[inline]
    pub fn next_mut(&mut self) -> &mut [u8; SIZE] {
        &mut self.buffers[self.count]
    }

    /// Takes the next buffer as filled with `length` octets.
    #[inline]
    pub fn push(&mut self, length: usize) {
        self.lengths[self.count] = length.min(SIZE);
        self.count += 1;
    }

    /// The buffers to receive into, and where the length (within the buffer) of each datagram belongs. [`Slots::set_len`] says
    /// how many there are.
    #[inline]
    pub(super) fn parts_mut(&mut self) -> (&mut [[u8; SIZE]; BATCH], &mut [usize; BATCH]) {
        (&mut self.buffers, &mut self.lengths)
    }

    /// Takes the first `count` slots as filled.
    #[inline]
    pub(super) fn set_len(&mut self, count: usize) {
        self.count = count.min(BATCH);
    }

    /// Forgets all datagrams.
    #[inline]
    pub const fn clear(&mut self) {
        self.count = 0;
    }
}

impl<const SIZE: usize> Default for Slots<SIZE> {
    fn default() -> Self {
        Self::new()
    }
}

/// What is to be sent, each to the sender of one of the datagrams that were received.
#[derive(Debug)]
pub struct Replies {
    slots: Slots<{ UDP_PAYLOAD as usize }>,
    to: [usize; BATCH],
}

impl Replies {
    /// None.
    pub fn new() -> Self {
        Self { slots: Slots::new(), to: [0; BATCH] }
    }

    /// Number of replies.
    #[inline]
    pub const fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there is nothing to send.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The octets of reply `index`.
    #[inline]
    pub fn packet(&self, index: usize) -> &[u8] {
        self.slots.packet(index)
    }

    /// The datagram to which reply `index` is one.
    #[inline]
    pub fn to(&self, index: usize) -> usize {
        self.to[index]
    }

    /// The next buffer to fill.
    #[inline]
    pub(super) fn next_mut(&mut self) -> &mut [u8; UDP_PAYLOAD as usize] {
        self.slots.next_mut()
    }

    /// Forgets all replies.
    pub(super) const fn clear(&mut self) {
        self.slots.clear();
    }

    /// Takes the next buffer as filled with `length` octets for the sender of datagram `to`.
    #[inline]
    pub(super) fn push(&mut self, length: usize, to: usize) {
        self.to[self.slots.len()] = to;
        self.slots.push(length);
    }
}

impl Default for Replies {
    fn default() -> Self {
        Self::new()
    }
}

/// A query of a batch.
#[derive(Clone, Copy, Debug)]
struct Asked {
    hash: u64,
    head: Head,
    /// Which datagram it was.
    index: usize,
    /// Octets of its question, which stands behind the header.
    question: u16,
}

impl Asked {
    const NOTHING: Self = Self { hash: 0, head: Head::NONE, index: 0, question: 0 };

    /// The query in datagram `index`, before its key is hashed.
    #[inline(always)]
    fn of(query: &Query<'_>, index: usize) -> Self {
        Self { hash: 0, head: query.head, index, question: query.question.len() as u16 }
    }
}

/// A worker's buffers: what was received, the replies to it, and which of it must be asked for elsewhere.
#[derive(Debug)]
pub struct Batch {
    /// What was received.
    pub received: Slots<DATAGRAM_MAX>,
    /// What is to be sent.
    pub replies: Replies,
    keys: Box<[KeyBuf; BATCH]>,
    asked: Box<[Asked; BATCH]>,
    /// Queries among what was received.
    count: usize,
    misses: [usize; BATCH],
    miss_count: usize,
    ahead: Ahead,
    popular: Popular,
    due: [usize; BATCH],
    due_count: usize,
}

/// A query of the batch that was answered last.
#[derive(Clone, Copy, Debug)]
pub struct Read<'a> {
    /// Which datagram it was.
    pub index: usize,
    /// The query.
    pub query: Query<'a>,
    /// Its key.
    pub key: &'a KeyBuf,
}

impl Batch {
    /// Empty buffers. Popular answers within `ahead` of their end are to be fetched anew.
    pub fn new(ahead: Ahead) -> Self {
        let keys = Box::new([const { KeyBuf::new() }; BATCH]);
        Self {
            received: Slots::new(),
            replies: Replies::new(),
            keys,
            asked: Box::new([Asked::NOTHING; BATCH]),
            count: 0,
            misses: [0; BATCH],
            miss_count: 0,
            ahead,
            popular: Popular::new(),
            due: [0; BATCH],
            due_count: 0,
        }
    }

    /// Answers all that can be answered at once. Compiled by itself: as a part of the loop that reads the socket, whose registers it
    /// would share, an answer takes 5 % more instructions.
    #[inline(never)]
    pub fn answer(&mut self, now: Moment, cache: &Cache, tallies: &WorkerTallies) {
        self.replies.clear();
        (self.miss_count, self.due_count) = (0, 0);
        // One step of all queries before the next one of any: the processor then waits for memory once for many of them.
        let (count, rejected) = self.parse(cache);
        self.count = count;
        let mut all_found = [None; BATCH];
        for (found, asked) in all_found.iter_mut().zip(&self.asked[..count]) {
            *found = cache.find(asked.hash);
        }
        #[expect(clippy::needless_range_loop, reason = "ten instructions less per answer than iterators")]
        for nth in 0..count.min(BATCH) {
            let (asked, found, key) = (&self.asked[nth], all_found[nth], self.keys[nth].sought());
            let out = self.replies.next_mut();
            let copied = match found.and_then(|found| cache.copy(found, key, now, out)) {
                Some(copied) => copied,
                None => match found.and_then(|_| cache.copy_anywhere(asked.hash, key, now, out)) {
                    Some(copied) => copied,
                    None => {
                        self.misses[self.miss_count] = asked.index;
                        self.miss_count += 1;
                        continue;
                    }
                },
            };
            if self.ahead.is_due(copied.born, copied.until, now) && self.popular.hit(asked.hash, copied.born) {
                self.due[self.due_count] = asked.index;
                self.due_count += 1;
            }
            let question = &self.received.buffers[asked.index][HEADER..][..asked.question.into()];
            let query = Query { head: asked.head, question };
            let length = reply::complete(&query, copied.head, copied.length, false, query.udp_limit(), out);
            self.replies.push(length, asked.index);
        }
        tallies.udp_queries.add(self.received.len() as u64);
        tallies.l1_hits.add((count - self.miss_count) as u64);
        tallies.l1_misses.add(self.miss_count as u64);
        tallies.rejected.add(rejected);
    }
}

impl Batch {
    /// Reads what was received, begins to bring near what the cache knows of it, and answers what is rejected. Gives the numbers
    /// of queries and of rejected messages.
    #[inline(always)]
    fn parse(&mut self, cache: &Cache) -> (usize, u64) {
        let Slots { buffers, lengths, count: received } = &self.received;
        let (mut count, mut rejected) = (0, 0);
        for index in 0..*received {
            let (buffer, length, key) = (&buffers[index], lengths[index], &mut self.keys[count]);
            let asked = &mut self.asked[count];
            if let Some(query) = Query::parse_usual(buffer, length, key) {
                *asked = Asked::of(&query, index);
            } else {
                match Query::parse(&buffer[..length], key) {
                    Ok(query) => *asked = Asked::of(&query, index),
                    Err(reject) => {
                        rejected += 1;
                        if reject != Reject::Silent {
                            let length = reply::rejection(&reject, self.replies.next_mut());
                            self.replies.push(length, index);
                        }
                        continue;
                    }
                }
            }
            asked.hash = cache.hash(key.sought());
            cache.prefetch(asked.hash);
            count += 1;
        }
        (count, rejected)
    }

    /// The queries that the last [`Batch::answer`] could not answer.
    #[inline]
    pub fn misses(&self) -> impl Iterator<Item = Read<'_>> {
        self.misses[..self.miss_count].iter().filter_map(|&index| self.read(index))
    }

    /// The queries of the last [`Batch::answer`] whose answers are to be fetched anew.
    #[inline]
    pub fn due(&self) -> impl Iterator<Item = Read<'_>> {
        self.due[..self.due_count].iter().filter_map(|&index| self.read(index))
    }

    /// The query that datagram `index` was. It stands at that place, or before it where messages were rejected.
    #[cold]
    fn read(&self, index: usize) -> Option<Read<'_>> {
        let nth = (0..self.count.min(index + 1)).rev().find(|&nth| self.asked[nth].index == index)?;
        let (asked, key) = (&self.asked[nth], &self.keys[nth]);
        let question = self.received.packet(index).get(HEADER..)?.get(..asked.question.into())?;
        Some(Read { index, query: Query { head: asked.head, question }, key })
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new(Ahead::OFF)
    }
}

/// What answering needs, one copy per worker.
#[derive(Clone, Debug)]
pub struct Desk {
    /// The first-level cache of the process.
    pub cache: Arc<Cache>,
    /// The worker's counters.
    pub tallies: Arc<WorkerTallies>,
    /// Which answers are fetched anew before they end.
    pub ahead: Ahead,
}
