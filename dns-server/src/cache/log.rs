//! Which entries are in memory: two queues of segments, written at one end and given up at the other (S3-FIFO).
//!
//! A new entry goes into the small queue. Asked for again before that queue's oldest segment is given up, it moves into the main
//! one, where it stays as long as it is asked for between two turns of that queue. So a flood of names that nobody asks for
//! twice passes through a tenth of the memory.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use super::index::{Cell, Index, Slot};
use super::memory::{Memory, Place, WORD};
use super::stored::{LENGTHS, words_of};

/// One segment in so many is for entries that were not asked for since they came.
const SMALL_SHARE: usize = 10;

/// Segments that are looked through for one new entry before what was asked for is given up, too: the bound of the time that an
/// insert takes.
const LOOKED_THROUGH_MAX: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Queue {
    Small,
    Main,
}

/// What the writer knows of a segment.
#[derive(Clone, Copy, Debug)]
struct Filling {
    queue: Queue,
    /// Words that were written.
    used: usize,
    /// Words of entries that can still be found.
    live: usize,
}

/// What may be given up in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spare {
    /// All entries move.
    All,
    /// Those that were asked for move.
    Asked,
    /// None does.
    None,
}

/// The writer of the cache's memory. There is one, behind a lock.
#[derive(Debug, Default)]
pub(super) struct Log {
    small: VecDeque<usize>,
    main: VecDeque<usize>,
    /// Segments without entries. One is kept for entries that move.
    free: Vec<usize>,
    fillings: Vec<Filling>,
    live: usize,
    entries: usize,
}

impl Log {
    /// Number of entries.
    pub(super) fn entries(&self) -> usize {
        self.entries
    }

    /// Bytes of memory that were taken so far.
    pub(super) fn bytes(&self, memory: &Memory) -> u64 {
        (self.fillings.len() * memory.segment_words() * WORD) as u64
    }

    /// Writes an entry, in the place of the one in `held` if there is one. What is longer than a segment is not kept.
    pub(super) fn insert(
        &mut self,
        (memory, index): (&Memory, &Index),
        held: Option<Cell<'_>>,
        hash: u64,
        words: &[u64],
    ) {
        if words.len() <= memory.segment_words() {
            // An entry that comes again stays what it was.
            let before = held.map(Cell::get);
            let queue = match before.and_then(Slot::place) {
                Some(place) => self.fillings[memory.segment_of(place)].queue,
                None if index.is_buried(hash) => Queue::Main,
                None => Queue::Small,
            };
            let mut looked_through = 0;
            while !self.has_room(memory, queue, words.len()) {
                if !self.take_segment(memory, queue, 1) {
                    self.give_up(memory, index, looked_through >= LOOKED_THROUGH_MAX);
                    looked_through += 1;
                }
            }
            // What was held may have been given up meanwhile.
            let cell = held.filter(|cell| cell.get().place().is_some()).unwrap_or_else(|| index.vacancy(hash));
            self.forget(memory, cell.get());
            let place = self.append(memory, queue, words);
            cell.set(Slot::new(hash, place, before.is_some_and(Slot::is_asked), queue == Queue::Main));
        }
    }

    /// Removes the entry in `cell`.
    pub(super) fn remove(&mut self, memory: &Memory, cell: Cell<'_>) {
        self.forget(memory, cell.get());
        cell.clear();
    }

    /// Counts the entry of a slot as gone.
    fn forget(&mut self, memory: &Memory, slot: Slot) {
        if let Some(place) = slot.place() {
            let words = entry_words(memory, place);
            self.fillings[memory.segment_of(place)].live -= words;
            self.live -= words;
            self.entries -= 1;
        }
    }

    fn queue(&mut self, queue: Queue) -> &mut VecDeque<usize> {
        match queue {
            Queue::Small => &mut self.small,
            Queue::Main => &mut self.main,
        }
    }

    fn has_room(&mut self, memory: &Memory, queue: Queue, words: usize) -> bool {
        let last = self.queue(queue).back().copied();
        last.is_some_and(|last| self.fillings[last].used + words <= memory.segment_words())
    }

    /// Puts an empty segment at the end of a queue, if there are more than `reserve`.
    fn take_segment(&mut self, memory: &Memory, queue: Queue, reserve: usize) -> bool {
        let empty = Filling { queue, used: 0, live: 0 };
        let segment = if self.free.len() > reserve {
            self.free.pop()
        } else if self.fillings.len() + reserve.saturating_sub(self.free.len()) < memory.len()
            && (reserve == 0 || !self.is_mostly_dead(memory))
        {
            self.fillings.push(empty);
            Some(self.fillings.len() - 1)
        } else {
            None
        };
        let Some(segment) = segment else { return false };
        self.fillings[segment] = empty;
        self.queue(queue).push_back(segment);
        true
    }

    /// Whether more is lost in places of entries that came again or were removed than is used: then segments are made dense
    /// instead of more being taken.
    fn is_mostly_dead(&self, memory: &Memory) -> bool {
        let used = (self.small.len() + self.main.len()).saturating_sub(2) * memory.segment_words();
        self.live * 2 < used
    }

    fn append(&mut self, memory: &Memory, queue: Queue, words: &[u64]) -> Place {
        let segment = self.queue(queue).back().copied().unwrap_or_default();
        let filling = &mut self.fillings[segment];
        let place = memory.place(segment, filling.used);
        filling.used += words.len();
        filling.live += words.len();
        self.live += words.len();
        self.entries += 1;
        memory.write(place, words);
        place
    }

    /// Empties one segment. `force` also gives up what was asked for.
    fn give_up(&mut self, memory: &Memory, index: &Index, force: bool) {
        let (victim, spare) = if self.is_mostly_dead(memory)
            && let Some(victim) = self.sparsest()
        {
            (victim, Spare::All)
        } else {
            let small = self.small.len() * SMALL_SHARE > memory.len() || self.main.is_empty();
            let victim = if small { self.small.pop_front() } else { self.main.pop_front() };
            let Some(victim) = victim else { return };
            (victim, if force { Spare::None } else { Spare::Asked })
        };
        let Filling { queue, used, .. } = self.fillings[victim];
        let target = if spare == Spare::All { queue } else { Queue::Main };
        let mut words = Vec::new();
        let mut at = 0;
        while at < used {
            let place = memory.place(victim, at);
            words.clear();
            words
                .extend(memory.at(place)[..entry_words(memory, place)].iter().map(|word| word.load(Ordering::Relaxed)));
            at += words.len();
            let hash = words[0];
            let Some((cell, slot)) = index.cells(hash).find(|(_, slot)| slot.place() == Some(place)) else { continue };
            self.forget(memory, slot);
            let stays = spare == Spare::All || spare == Spare::Asked && slot.is_asked();
            let fits = stays
                && (self.has_room(memory, target, words.len()) || self.take_segment(memory, target, 0))
                && self.has_room(memory, target, words.len());
            if fits {
                let moved = self.append(memory, target, &words);
                cell.set(Slot::new(hash, moved, spare == Spare::All && slot.is_asked(), target == Queue::Main));
            } else if queue == Queue::Small {
                cell.bury();
            } else {
                cell.clear();
            }
        }
        memory.renew(victim);
        self.free.push(victim);
    }

    /// Takes the segment with the fewest live words out of its queue. Those that are being filled stay.
    fn sparsest(&mut self) -> Option<usize> {
        let closed = |queue: &VecDeque<usize>| queue.iter().copied().rev().skip(1).collect::<Vec<_>>();
        let segments = closed(&self.small).into_iter().chain(closed(&self.main));
        let victim = segments.min_by_key(|&segment| self.fillings[segment].live)?;
        let queue = self.queue(self.fillings[victim].queue);
        queue.retain(|&segment| segment != victim);
        Some(victim)
    }
}

/// Words of the entry at `place`.
fn entry_words(memory: &Memory, place: Place) -> usize {
    let lengths = memory.at(place).get(LENGTHS).map_or(0, |lengths| lengths.load(Ordering::Relaxed));
    words_of(lengths)
}
