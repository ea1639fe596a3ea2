//! The protocol of leases and purges as a model, every reachable state of which is visited.
//!
//! One key, two or three replicas; replica 0 owns the key. Messages wait in a network until they are delivered in any order,
//! which is more than a stream allows. One process may die and some messages may be lost. What the model leaves out are times:
//! whatever a timer may do, it may do at any moment at which the timer can run.
//!
//! The simulation (`simulation/`) runs the code itself, on paths that a seed draws; this looks at all paths of what the code
//! is meant to do.

use std::collections::BTreeSet;

use stateright::{Checker as _, Model, Property};

/// Whose replica, process and agent are called by the same number.
type Replica = usize;

/// Owns the key and grants its leases.
const OWNER: Replica = 0;

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Answer {
    /// Whether it is known to be newer than the purge: its fetch began where the purge had been applied, and everybody who passed
    /// it on since had applied it too.
    vouched: bool,
    /// Whether the purge had been asked for when its fetch began. Nobody can see that.
    fresh: bool,
}

/// What a dns-server does about its client's question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Process {
    /// Nobody has asked yet.
    Idle,
    /// The lookup is on its way; no word so far.
    Asked,
    /// Somebody else holds the lease.
    Waiting,
    /// Asks the upstream, with the lease or without one.
    Fetching { lease: Option<u8>, brings: Answer },
    /// Its client has the answer.
    Answered,
    /// Dead.
    Gone,
}

/// What is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Message {
    /// A process asks the owner.
    Lookup(Replica),
    /// The lease is the process's, first or after it had waited.
    Granted(Replica, u8),
    /// Another one has it.
    Held(Replica),
    /// The answer, for a process that asked or waits.
    Entry(Replica, Answer),
    /// A process's answer for the owner, with its lease's number.
    Publish(Replica, Option<u8>, Answer),
    /// The owner's copy for a replica.
    Copy(Replica, Answer),
    /// The purge, for a replica.
    Purge(Replica),
    /// A replica's word that the purge is done there.
    Done(Replica),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    processes: Vec<Process>,
    /// First-level caches, one a process.
    caches: Vec<Option<Answer>>,
    /// Stores of the agents.
    stores: Vec<Option<Answer>>,
    /// The lease: its number and holder. Numbers are never given twice.
    lease: Option<(u8, Replica)>,
    granted: u8,
    waiters: BTreeSet<Replica>,
    network: BTreeSet<Message>,
    purge_begun: bool,
    /// Where the purge has arrived, a bit each, and who said so to the operator.
    purged: u8,
    done: u8,
    /// Faults that may still happen.
    deaths: u8,
    losses: u8,
    /// Faults that happened.
    faults: u8,
    /// Upstream queries ever begun.
    fetches: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    /// A client asks.
    Ask(Replica),
    Deliver(Message),
    Lose(Message),
    /// The upstream answers.
    Fetched(Replica),
    /// The mesh was silent for too long: the process asks the upstream by itself.
    Silence(Replica),
    /// A process dies, and its agent tells the owner.
    Die(Replica),
    /// A lease that nobody uses reaches its end.
    Expire,
    /// The operator purges the key.
    Purge,
}

/// How large a world is looked at.
struct World {
    replicas: usize,
    deaths: u8,
    losses: u8,
    purge: bool,
}

const fn bit(replica: Replica) -> u8 {
    1 << replica
}

impl State {
    const fn is_purged(&self, replica: Replica) -> bool {
        self.purged & bit(replica) != 0
    }

    /// Whether `replica` takes an answer: once the purge has arrived there, only one that is vouched for.
    const fn takes(&self, replica: Replica, answer: Answer) -> bool {
        !self.is_purged(replica) || answer.vouched
    }

    /// An answer as `replica` passes it on: it vouches only for what it knows of itself.
    const fn passed_on(&self, replica: Replica, answer: Answer) -> Answer {
        Answer { vouched: answer.vouched && self.is_purged(replica), ..answer }
    }

    fn keep_in_store(&mut self, replica: Replica, answer: Answer) -> bool {
        let takes = self.takes(replica, answer);
        if takes {
            self.stores[replica] = Some(self.passed_on(replica, answer));
        }
        takes
    }

    /// A process is given an answer by its agent. One that the purge overtook is none: the process asks the upstream.
    fn tell(&mut self, replica: Replica, answer: Answer) {
        match self.processes[replica] {
            Process::Asked | Process::Waiting if !self.takes(replica, answer) => self.fetch(replica, None),
            Process::Asked | Process::Waiting | Process::Fetching { .. } if self.takes(replica, answer) => {
                self.caches[replica] = Some(answer);
                self.processes[replica] = Process::Answered;
            }
            _ => {}
        }
    }

    fn fetch(&mut self, replica: Replica, lease: Option<u8>) {
        self.fetches += 1;
        let brings = Answer { vouched: self.is_purged(replica), fresh: self.purge_begun };
        self.processes[replica] = Process::Fetching { lease, brings };
    }

    fn grant(&mut self, replica: Replica) {
        self.granted += 1;
        self.lease = Some((self.granted, replica));
        self.network.insert(Message::Granted(replica, self.granted));
    }

    /// The lease ended without an answer: the next one who waits gets it.
    fn pass_on(&mut self) {
        self.lease = None;
        if let Some(next) = self.waiters.pop_first() {
            self.grant(next);
        }
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Lookup(from) => match (self.stores[OWNER], self.lease) {
                (Some(answer), _) => {
                    // What is in a store is newer than the purge that is applied there.
                    let answer = Answer { vouched: self.is_purged(OWNER), ..answer };
                    self.network.insert(Message::Entry(from, answer));
                }
                (None, None) => self.grant(from),
                (None, Some(_)) => {
                    self.waiters.insert(from);
                    self.network.insert(Message::Held(from));
                }
            },
            Message::Granted(to, lease) => match self.processes[to] {
                Process::Asked | Process::Waiting => self.fetch(to, Some(lease)),
                // Comes too late: the query under way adopts it.
                Process::Fetching { lease: None, brings } => {
                    self.processes[to] = Process::Fetching { lease: Some(lease), brings };
                }
                // Nobody wants it any more: it goes back.
                _ => {
                    if self.lease == Some((lease, to)) {
                        self.pass_on();
                    }
                }
            },
            Message::Held(to) => {
                if self.processes[to] == Process::Asked {
                    self.processes[to] = Process::Waiting;
                }
            }
            Message::Entry(to, answer) => {
                if let Process::Fetching { lease: Some(lease), .. } = self.processes[to]
                    && self.lease == Some((lease, to))
                    && self.takes(to, answer)
                {
                    self.pass_on();
                }
                self.tell(to, answer);
            }
            Message::Publish(from, lease, answer) => {
                let holds = lease.is_some_and(|lease| self.lease == Some((lease, from)));
                // Without the lease an owner stores only where it has nothing.
                let stored = (holds || self.stores[OWNER].is_none()) && self.keep_in_store(OWNER, answer);
                if holds || stored {
                    let told = self.passed_on(OWNER, answer);
                    for waiter in std::mem::take(&mut self.waiters) {
                        self.network.insert(Message::Entry(waiter, told));
                    }
                }
                if holds {
                    self.lease = None;
                }
                if stored {
                    let copy = self.passed_on(OWNER, answer);
                    for replica in (0..self.stores.len()).filter(|&replica| replica != OWNER && replica != from) {
                        self.network.insert(Message::Copy(replica, copy));
                    }
                }
            }
            Message::Copy(to, answer) => {
                self.keep_in_store(to, answer);
            }
            Message::Purge(to) => {
                self.purged |= bit(to);
                self.caches[to] = None;
                self.stores[to] = None;
                if to == OWNER && self.lease.is_some() {
                    // What is fetched under it is not for those who ask from now on; who waits fetches anew.
                    self.pass_on();
                }
                self.network.insert(Message::Done(to));
            }
            Message::Done(from) => self.done |= bit(from),
        }
    }

    fn fetched(&mut self, replica: Replica) {
        let Process::Fetching { lease, brings } = self.processes[replica] else { return };
        // Its client gets it in any case, its cache only what may be kept.
        if self.takes(replica, brings) {
            self.caches[replica] = Some(brings);
        }
        self.processes[replica] = Process::Answered;
        // The own agent keeps it on its way to the granter.
        self.keep_in_store(replica, brings);
        self.network.insert(Message::Publish(replica, lease, brings));
    }

    fn die(&mut self, replica: Replica) {
        self.processes[replica] = Process::Gone;
        self.caches[replica] = None;
        self.waiters.remove(&replica);
        if self.lease.is_some_and(|(_, holder)| holder == replica) {
            self.pass_on();
        }
    }

    /// Whether nobody works under the lease: its holder has nothing to do with it, and nothing about it is on its way.
    fn lease_is_idle(&self) -> bool {
        let Some((number, holder)) = self.lease else { return false };
        let works = matches!(self.processes[holder], Process::Fetching { lease: Some(lease), .. } if lease == number);
        let travels = self.network.iter().any(|message| match *message {
            Message::Granted(_, lease) => lease == number,
            Message::Publish(_, lease, _) => lease == Some(number),
            _ => false,
        });
        !works && !travels
    }
}

impl Model for World {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            processes: vec![Process::Idle; self.replicas],
            caches: vec![None; self.replicas],
            stores: vec![None; self.replicas],
            lease: None,
            granted: 0,
            waiters: BTreeSet::new(),
            network: BTreeSet::new(),
            purge_begun: !self.purge,
            purged: 0,
            done: 0,
            deaths: self.deaths,
            losses: self.losses,
            faults: 0,
            fetches: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Step>) {
        for (replica, process) in state.processes.iter().enumerate() {
            match process {
                Process::Idle => actions.push(Step::Ask(replica)),
                Process::Fetching { .. } => actions.push(Step::Fetched(replica)),
                // While nothing fails there are signs of work, and nobody runs out of patience.
                Process::Asked | Process::Waiting if state.faults > 0 => actions.push(Step::Silence(replica)),
                _ => {}
            }
            if state.deaths > 0 && *process != Process::Gone && *process != Process::Idle {
                actions.push(Step::Die(replica));
            }
        }
        for &message in &state.network {
            actions.push(Step::Deliver(message));
            // A purge is delivered again until it is acknowledged.
            if state.losses > 0 && !matches!(message, Message::Purge(_) | Message::Done(_)) {
                actions.push(Step::Lose(message));
            }
        }
        if state.faults > 0 && state.lease_is_idle() {
            actions.push(Step::Expire);
        }
        if !state.purge_begun {
            actions.push(Step::Purge);
        }
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        let mut next = state.clone();
        match step {
            Step::Ask(replica) => {
                if let Some(answer) = next.caches[replica].or(next.stores[replica]) {
                    next.processes[replica] = Process::Asked;
                    next.tell(replica, answer);
                } else {
                    next.processes[replica] = Process::Asked;
                    next.network.insert(Message::Lookup(replica));
                }
            }
            Step::Deliver(message) => {
                next.network.remove(&message);
                next.deliver(message);
            }
            Step::Lose(message) => {
                next.network.remove(&message);
                next.losses -= 1;
                next.faults += 1;
            }
            Step::Fetched(replica) => next.fetched(replica),
            Step::Silence(replica) => next.fetch(replica, None),
            Step::Die(replica) => {
                next.deaths -= 1;
                next.faults += 1;
                next.die(replica);
            }
            Step::Expire => next.pass_on(),
            Step::Purge => {
                next.purge_begun = true;
                next.network.extend((0..self.replicas).map(Message::Purge));
            }
        }
        (next != *state).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "what was fetched before a purge is nowhere where the purge is done",
                |_, state: &State| {
                    let kept = state.caches.iter().zip(&state.stores).enumerate();
                    kept.into_iter().all(|(replica, (cache, store))| {
                        [cache, store].into_iter().flatten().all(|answer| answer.fresh || !state.is_purged(replica))
                    })
                },
            ),
            Property::always(
                "while nothing fails, a key and its purge cost one upstream query each",
                |world: &Self, state: &State| {
                    // A purge may come while an answer is under way at some replicas and is known at others: each of them asks
                    // again at most once.
                    let after_purge = if world.purge { world.replicas as u8 } else { 0 };
                    state.faults > 0 || state.fetches <= 1 + after_purge
                },
            ),
            Property::always("whatever fails, no replica asks more than twice", |world: &Self, state: &State| {
                state.fetches <= 2 * world.replicas as u8
            }),
            Property::always("a lease has one holder, who is not known to be dead", |_, state: &State| {
                state.lease.is_none_or(|(_, holder)| state.processes[holder] != Process::Gone || state.faults > 0)
            }),
            Property::eventually("everybody who asked is answered, but for who died", |_, state: &State| {
                let over = |process: &Process| matches!(process, Process::Answered | Process::Gone);
                state.processes.iter().all(over)
            }),
            Property::eventually("a purge is done everywhere", |world: &Self, state: &State| {
                !world.purge || state.done == (1 << world.replicas) - 1
            }),
            // That the model can do what it is about.
            Property::sometimes("an answer is overtaken by a purge", |world: &Self, state: &State| {
                let late = |message: &Message| matches!(message, Message::Publish(_, _, answer) if !state.takes(OWNER, *answer));
                !world.purge || state.network.iter().any(late)
            }),
            Property::sometimes("somebody waits for another one's answer", |_, state: &State| {
                state.processes.contains(&Process::Waiting)
            }),
        ]
    }
}

fn check(world: World) {
    let what = format!(
        "{} replicas, {} deaths, {} losses, purge: {}",
        world.replicas, world.deaths, world.losses, world.purge
    );
    let checker = world.checker().threads(2).spawn_bfs().join();
    println!("{what}: {} states, {} of them different", checker.state_count(), checker.unique_state_count());
    checker.assert_properties();
}

#[test]
fn leases_hold_while_nothing_fails() {
    check(World { replicas: 3, deaths: 0, losses: 0, purge: false });
}

#[test]
fn leases_hold_when_processes_die_and_messages_are_lost() {
    check(World { replicas: 3, deaths: 1, losses: 0, purge: false });
    check(World { replicas: 2, deaths: 1, losses: 1, purge: false });
}

#[test]
fn a_purge_wins_over_every_fill_that_is_under_way() {
    check(World { replicas: 2, deaths: 0, losses: 0, purge: true });
    check(World { replicas: 2, deaths: 1, losses: 1, purge: true });
    check(World { replicas: 3, deaths: 0, losses: 0, purge: true });
}
