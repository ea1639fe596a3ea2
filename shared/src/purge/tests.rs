//! Processes that purge, fetch and pass entries on, in any order of events; links keep their order and may break.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::key::Flags;

const KEEP: Duration = Duration::from_secs(1_000);
const NAMES: [&[u8]; 3] = [b"\x01a\x03com\x00", b"\x01b\x03com\x00", b"\x01a\x03org\x00"];

fn at(millis: u64) -> Moment {
    Moment::from_nanos(millis * 1_000_000)
}

fn key(name: usize) -> Key {
    Key::new(NAMES[name], 1, 1, Flags::default(), "").unwrap()
}

fn scope(number: usize) -> Scope {
    match number {
        0..=2 => Scope::Name { name: Bytes::from_static(NAMES[number]), qtype: None },
        3 => Scope::Suffix { suffix: Bytes::from_static(b"\x03com\x00"), qtype: Some(1) },
        4 => Scope::Suffix { suffix: Bytes::from_static(b"\x03com\x00"), qtype: Some(28) },
        5 => Scope::Key(key(0)),
        _ => Scope::Everything,
    }
}

#[test]
fn scopes_cover_what_they_say() {
    let covered = |number| (0..3).filter(|&name| scope(number).covers(&key(name))).collect::<Vec<_>>();
    assert_eq!(covered(1), [1]);
    assert_eq!(covered(3), [0, 1]);
    assert!(covered(4).is_empty(), "of another type");
    assert_eq!(covered(5), [0]);
    assert_eq!(covered(6), [0, 1, 2]);
    let touches = |a, b| scope(a).touches(&scope(b)) && scope(b).touches(&scope(a));
    assert!(touches(0, 3) && touches(3, 4) && touches(5, 0) && touches(2, 6));
    assert!(!touches(2, 3) && !touches(0, 1));
    let below = Scope::Suffix { suffix: Bytes::from_static(b"\x03com\x00"), qtype: None };
    let lookalike = Key::new(b"\x04acom\x00", 1, 1, Flags::default(), "").unwrap();
    let itself = Key::new(b"\x03com\x00", 1, 1, Flags::default(), "").unwrap();
    assert!(!below.covers(&lookalike) && below.covers(&itself));
    let root = Scope::Suffix { suffix: Bytes::from_static(b"\x00"), qtype: None };
    assert!(root.covers(&lookalike));
}

#[test]
fn the_log_finds_the_newest_purge_of_a_key_and_forgets_what_is_too_old() {
    let mut log = Log::new(KEEP);
    let purge = |sequence, number, issued| {
        let id = PurgeId { origin: "a".into(), incarnation: 1, sequence };
        Arc::new(Purge { id, scope: scope(number), issued, folds: Vec::new(), injected: None })
    };
    for (sequence, number) in (1..).zip([0, 3, 1]) {
        assert_eq!(log.apply(&purge(sequence, number, at(sequence)), at(10)), Some(sequence));
    }
    assert_eq!([0, 1, 2].map(|name| log.covers(&key(name))), [2, 3, 0]);
    assert_eq!(log.apply(&purge(3, 6, at(3)), at(11)), None, "each is applied once");
    assert_eq!(log.apply(&purge(4, 6, at(0)), at(2_000_000)), None, "it covers nothing that still lives");
    log.expire(at(2_000_000));
    assert!(log.is_empty());
    assert_eq!(log.covers(&key(0)), 0);
}

#[test]
fn a_purge_of_everything_takes_the_place_of_those_before_it() {
    let mut book = Book::new(KEEP);
    let issue = |book: &mut Book, sequence, number| {
        let id = PurgeId { origin: "a".into(), incarnation: 1, sequence };
        let folds = if number == 6 { book.log().marks() } else { Vec::new() };
        book.issue(&Arc::new(Purge { id, scope: scope(number), issued: at(1), folds, injected: None }), at(1));
    };
    for sequence in 1..=20 {
        issue(&mut book, sequence, sequence as usize % 3);
    }
    issue(&mut book, 21, 6);
    assert_eq!((book.log().len(), book.log().position()), (1, 21));
    assert_eq!(book.log().covers(&key(2)), 21);
}

/// What travels on a link.
#[derive(Clone, Debug)]
enum Item {
    Purges(Purges),
    Done(Position),
    Entry { name: usize, since: Position, fetched: u64 },
}

#[derive(Debug)]
struct Process {
    book: Book,
    incarnation: u64,
    sequence: u64,
    /// When the fetch of what it keeps began, in true time, and what that is newer than.
    store: BTreeMap<usize, (u64, Position)>,
    /// Read from the store and not yet sent.
    held: Vec<(usize, Position, u64)>,
}

#[derive(Debug)]
struct World {
    now: u64,
    processes: Vec<Process>,
    /// Both directions of each link that is up, by its two ends.
    links: BTreeMap<(usize, usize), VecDeque<Item>>,
    /// When each purge began.
    issued: Vec<(u64, Scope, PurgeId)>,
}

#[derive(Clone, Debug)]
enum Op {
    Issue { at: usize, scope: usize },
    Fetch { at: usize, name: usize },
    Read { at: usize, name: usize },
    Send { from: usize, to: usize },
    Deliver { from: usize, to: usize },
    Cut { a: usize, b: usize },
    Link { a: usize, b: usize },
    Restart { at: usize },
}

const PROCESSES: usize = 4;

fn op() -> impl Strategy<Value = Op> {
    let at = || 0..PROCESSES;
    prop_oneof![
        2 => (at(), 0..8_usize).prop_map(|(at, scope)| Op::Issue { at, scope }),
        3 => (at(), 0..3_usize).prop_map(|(at, name)| Op::Fetch { at, name }),
        4 => (at(), 0..3_usize).prop_map(|(at, name)| Op::Read { at, name }),
        6 => (at(), at()).prop_map(|(from, to)| Op::Send { from, to }),
        12 => (at(), at()).prop_map(|(from, to)| Op::Deliver { from, to }),
        1 => (at(), at()).prop_map(|(a, b)| Op::Cut { a, b }),
        2 => (at(), at()).prop_map(|(a, b)| Op::Link { a, b }),
        1 => at().prop_map(|at| Op::Restart { at }),
    ]
}

impl World {
    fn new() -> Self {
        let process = |incarnation| Process {
            book: Book::new(KEEP),
            incarnation,
            sequence: 0,
            store: BTreeMap::new(),
            held: Vec::new(),
        };
        let mut world = Self {
            now: 1,
            processes: (0..PROCESSES as u64).map(process).collect(),
            links: BTreeMap::new(),
            issued: Vec::new(),
        };
        for a in 0..PROCESSES {
            for b in a + 1..PROCESSES {
                world.link(a, b);
            }
        }
        world
    }

    fn link(&mut self, a: usize, b: usize) {
        if a == b || self.links.contains_key(&(a, b)) {
            return;
        }
        for (from, to) in [(a, b), (b, a)] {
            let said = self.processes[from].book.connect(to as u64, LinkKind::Beside);
            self.links.insert((from, to), said.into_iter().map(Item::Purges).collect());
        }
    }

    fn cut(&mut self, a: usize, b: usize) {
        for (from, to) in [(a, b), (b, a)] {
            if self.links.remove(&(from, to)).is_some() {
                self.processes[from].book.disconnect(to as u64);
            }
        }
    }

    fn tell_on(&mut self, at: usize, fresh: Vec<Applied>) {
        for applied in fresh {
            self.processes[at].store.retain(|&name, _| !applied.purge.scope.covers(&key(name)));
            for ((from, _), queue) in &mut self.links {
                if *from == at {
                    queue.push_back(Item::Purges(Purges::Next(applied.clone())));
                    queue.push_back(Item::Done(applied.position));
                }
            }
        }
    }

    fn deliver(&mut self, from: usize, to: usize) {
        let Some(item) = self.links.get_mut(&(from, to)).and_then(VecDeque::pop_front) else { return };
        let book = &mut self.processes[to].book;
        match item {
            Item::Purges(purges) => {
                let fresh = book.hear(from as u64, &purges, at(self.now)).expect("a link keeps the order");
                self.tell_on(to, fresh);
            }
            Item::Done(position) => book.hear_done(from as u64, position).expect("it was at that position"),
            Item::Entry { name, since, fetched } => {
                let vouched = book.vouched(from as u64, since).expect("it has said what it remembers");
                if book.log().covers(&key(name)) > vouched {
                    return;
                }
                self.check(to, name, fetched);
                self.processes[to].store.insert(name, (fetched, vouched));
            }
        }
    }

    /// What is accepted was fetched after every purge that is known here and covers it had begun.
    fn check(&self, at: usize, name: usize, fetched: u64) {
        for (begun, scope, id) in &self.issued {
            let known = self.processes[at].book.log().knows(id);
            assert!(!(known && scope.covers(&key(name)) && fetched < *begun), "{name} of {fetched} after {id:?}");
        }
    }

    fn step(&mut self, op: &Op) {
        self.now += 1;
        match *op {
            Op::Issue { at: origin, scope: number } => {
                let process = &mut self.processes[origin];
                process.sequence += 1;
                let id = PurgeId {
                    origin: origin.to_string().into(),
                    incarnation: process.incarnation,
                    sequence: process.sequence,
                };
                let folds = if scope(number) == Scope::Everything { process.book.log().marks() } else { Vec::new() };
                self.issued.push((self.now, scope(number), id.clone()));
                let purge = Purge { id, scope: scope(number), issued: at(self.now), folds, injected: None };
                let applied = process.book.issue(&Arc::new(purge), at(self.now)).expect("it is new");
                self.tell_on(origin, vec![applied]);
            }
            Op::Fetch { at, name } => {
                let since = self.processes[at].book.log().position();
                self.processes[at].store.insert(name, (self.now, since));
            }
            Op::Read { at, name } => {
                let process = &mut self.processes[at];
                if let Some(&(fetched, _)) = process.store.get(&name) {
                    process.held.push((name, process.book.log().position(), fetched));
                }
            }
            Op::Send { from, to } => {
                let held = self.processes[from].held.first().copied();
                if let (Some((name, since, fetched)), Some(queue)) = (held, self.links.get_mut(&(from, to))) {
                    self.processes[from].held.remove(0);
                    queue.push_back(Item::Entry { name, since, fetched });
                }
            }
            Op::Deliver { from, to } => self.deliver(from, to),
            Op::Cut { a, b } => self.cut(a, b),
            Op::Link { a, b } => self.link(a, b),
            Op::Restart { at } => {
                (0..PROCESSES).for_each(|other| self.cut(at, other));
                let incarnation = self.now + 100;
                self.processes[at] = Process {
                    book: Book::new(KEEP),
                    incarnation,
                    sequence: 0,
                    store: BTreeMap::new(),
                    held: Vec::new(),
                };
            }
        }
    }

    /// All links come up, and all that is on its way arrives.
    fn settle(&mut self) {
        for a in 0..PROCESSES {
            for b in a + 1..PROCESSES {
                self.link(a, b);
            }
        }
        while let Some(&(from, to)) = self.links.iter().find(|(_, queue)| !queue.is_empty()).map(|(ends, _)| ends) {
            self.deliver(from, to);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_process_takes_what_was_fetched_before_a_purge_that_it_has_applied(ops in vec(op(), 1..120)) {
        let mut world = World::new();
        for op in &ops {
            world.step(op);
            for at in 0..PROCESSES {
                let kept: Vec<_> = world.processes[at].store.iter().map(|(&name, &(fetched, _))| (name, fetched)).collect();
                kept.into_iter().for_each(|(name, fetched)| world.check(at, name, fetched));
            }
        }
        world.settle();
        // Whoever was away knows as much as the others, and everybody vouches for everything: nothing fresh is refused.
        for at in 0..PROCESSES {
            let book = &world.processes[at].book;
            for other in (0..PROCESSES).filter(|&other| other != at) {
                let theirs = world.processes[other].book.log().position();
                prop_assert_eq!(book.vouched(other as u64, theirs), Some(book.log().position()));
            }
            for name in 0..3 {
                let covered = |at: usize| world.processes[at].book.log().covers(&key(name)) > 0;
                prop_assert_eq!(covered(at), covered(0));
            }
        }
    }

    #[test]
    fn what_was_purged_everywhere_is_known_as_done_everywhere(scopes in vec(0..8_usize, 1..30)) {
        let mut world = World::new();
        for (number, &scope) in scopes.iter().enumerate() {
            world.step(&Op::Issue { at: number % PROCESSES, scope });
        }
        let position = world.processes[0].book.log().position();
        prop_assert!((1..PROCESSES as u64).all(|other| world.processes[0].book.done_at(other) < position));
        world.settle();
        let book = &world.processes[0].book;
        prop_assert!((1..PROCESSES as u64).all(|other| book.done_at(other) == book.log().position()));
    }
}

#[test]
fn who_leaves_a_purge_out_is_found_out() {
    let mut book = Book::new(KEEP);
    book.connect(1, LinkKind::Beside);
    let next = |position, sequence| {
        let id = PurgeId { origin: "b".into(), incarnation: 1, sequence };
        let purge = Purge { id, scope: scope(0), issued: at(1), folds: Vec::new(), injected: None };
        Purges::Next(Applied { position, purge: Arc::new(purge) })
    };
    assert_eq!(book.hear(1, &next(1, 1), at(1)), Err(Gap), "what it remembers comes first");
    book.hear(1, &Purges::Whole { position: 0, marks: Vec::new() }, at(1)).unwrap();
    book.hear(1, &next(1, 1), at(1)).unwrap();
    assert_eq!(book.hear(1, &next(3, 3), at(1)), Err(Gap));
    assert_eq!(book.hear_done(1, 2), Err(Gap));
    assert_eq!(book.hear(2, &next(1, 1), at(1)), Err(Gap), "there is no such link");
}
