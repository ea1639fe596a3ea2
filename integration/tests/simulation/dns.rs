//! One dns-server: a first-level cache, one flight per key, the meter of the mesh's silence.

use std::collections::BTreeMap;
use std::time::Duration;

use heimdall_dns::silence::{Meter, Reading};
use heimdall_shared::clock::Moment;
use heimdall_shared::entry::Entry;
use heimdall_shared::key::Key;
use heimdall_shared::link::{FailureKind, Lookup, LookupMode, Message, Publish, Reply};
use heimdall_shared::purge::{Book, LinkKind, Position, Purges};
use heimdall_shared::token::Token;

/// Silence of the mesh that a miss bears.
const SILENCE: Duration = Duration::from_millis(100);
/// Between two ticks.
const TICK: Duration = Duration::from_millis(25);
/// What clients wait for at most.
pub(crate) const BUDGET: Duration = Duration::from_secs(4);
/// One attempt at the upstream.
pub(crate) const ATTEMPT: Duration = Duration::from_millis(1_200);
/// How long a failure of its own is remembered.
const REMEMBERED: Duration = Duration::from_secs(1);

/// What it wants to happen.
#[derive(Debug)]
pub(crate) enum Effect {
    /// A message to its agent.
    Tell(Message),
    /// Something was left out on the socket: it ends.
    Broken,
    /// A query to the upstream, when so many purges were applied.
    Fetch { key: usize, since: Position },
    /// A client's answer; none is a SERVFAIL. `hit` when it was answered from the cache at once.
    Answer { client: usize, entry: Option<Entry>, hit: bool },
}

/// One dns-server.
/// The only link of a dns-server here.
const AGENT: u64 = 1;

pub(crate) struct Dns {
    purges: Book,
    linked: bool,
    cache: BTreeMap<usize, Entry>,
    failed: BTreeMap<usize, Moment>,
    flights: BTreeMap<usize, Flight>,
    /// Clients of fetches that a purge overtook, by key: they are told what comes.
    overtaken: BTreeMap<usize, Vec<usize>>,
    requests: BTreeMap<u64, usize>,
    next_request: u64,
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            purges: Book::new(super::agent::KEEP),
            linked: false,
            cache: BTreeMap::new(),
            failed: BTreeMap::new(),
            flights: BTreeMap::new(),
            overtaken: BTreeMap::new(),
            requests: BTreeMap::new(),
            next_request: 0,
        }
    }
}

struct Flight {
    clients: Vec<usize>,
    began: Moment,
    request: Option<u64>,
    meter: Meter,
    held: Option<Token>,
    lease: Option<Token>,
    watched_since: Option<Moment>,
    upstream: Upstream,
    /// The purges that were applied when it asked the upstream.
    since: Position,
    struggled: bool,
    finished: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Upstream {
    NotAsked,
    Asking(Moment),
    Failed,
}

impl Dns {
    pub(crate) fn link_up(&mut self, effects: &mut Vec<Effect>) {
        self.linked = true;
        let said = self.purges.connect(AGENT, LinkKind::Beside);
        effects.extend(said.into_iter().map(|said| Effect::Tell(Message::Purges(said))));
        let position = self.purges.log().position();
        effects.push(Effect::Tell(Message::PurgesDone { position }));
    }

    pub(crate) fn link_down(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        self.linked = false;
        self.purges.disconnect(AGENT);
        self.requests.clear();
        for key in self.flights.keys().copied().collect::<Vec<_>>() {
            let flight = self.flights.get_mut(&key).expect("it was there");
            flight.lease = None;
            flight.held = None;
            if flight.request.take().is_some() {
                let position = self.purges.log().position();
                Self::go(key, flight, position, now, effects);
            }
            self.settle(key, effects);
        }
    }

    /// A client asks.
    pub(crate) fn ask(&mut self, client: usize, index: usize, key: &Key, now: Moment, effects: &mut Vec<Effect>) {
        if let Some(entry) = self.cache.get(&index).filter(|entry| entry.is_live(now)) {
            effects.push(Effect::Answer { client, entry: Some(entry.clone()), hit: true });
            return;
        }
        let purged = self.purges.log().covers(key);
        if let Some(flight) = self.flights.get_mut(&index).filter(|flight| !flight.finished) {
            if flight.since >= purged {
                flight.clients.push(client);
                return;
            }
            // What it fetches is for those who asked before the purge.
            let waiting = std::mem::take(&mut flight.clients);
            let (lease, request) = (flight.lease.take(), flight.request.take());
            effects.extend(lease.map(|token| Effect::Tell(Message::Release { token })));
            if let Some(id) = request {
                self.requests.remove(&id);
                effects.push(Effect::Tell(Message::Cancel { id }));
            }
            self.overtaken.entry(index).or_default().extend(waiting);
        }
        let failed = self.failed.get(&index).is_some_and(|&until| now < until);
        let upstream = if failed { Upstream::Failed } else { Upstream::NotAsked };
        let mut flight = Flight {
            clients: vec![client],
            began: now,
            request: None,
            meter: Meter::new(SILENCE, TICK, now),
            held: None,
            lease: None,
            watched_since: None,
            upstream,
            since: Position::MAX,
            struggled: false,
            finished: false,
        };
        if self.linked {
            self.next_request += 1;
            flight.request = Some(self.next_request);
            self.requests.insert(self.next_request, index);
            effects.push(Effect::Tell(lookup(self.next_request, key)));
        } else {
            let position = self.purges.log().position();
            Self::go(index, &mut flight, position, now, effects);
        }
        // What an earlier flight for the key still has under way is adopted by nobody.
        self.flights.insert(index, flight);
        self.settle(index, effects);
    }

    /// A message of the agent.
    pub(crate) fn heard(
        &mut self,
        mut message: Message,
        key_of: impl Fn(usize) -> Key,
        now: Moment,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(entry) = message.entry_mut() {
            entry.since = self.purges.vouched(AGENT, entry.since).unwrap_or_default();
        }
        match message {
            Message::Purges(said) => self.purged(&said, key_of, now, effects),
            Message::PurgesDone { .. } => {}
            Message::Reply { id, reply } => self.reply(id, reply, key_of, now, effects),
            Message::Tick { working, .. } => {
                for flight in self.flights.values_mut() {
                    if flight.held.as_ref().is_some_and(|held| working.contains(held)) {
                        flight.meter.sign(now);
                    }
                }
            }
            Message::Watch { token } => {
                if let Some(flight) = self.flights.values_mut().find(|flight| flight.lease.as_ref() == Some(&token)) {
                    flight.watched_since.get_or_insert(now);
                    effects.push(Effect::Tell(Message::Tick { working: vec![token], struggling: Vec::new() }));
                }
            }
            other => panic!("an agent never sends {other:?} to its dns-server"),
        }
    }

    fn purged(&mut self, said: &Purges, key_of: impl Fn(usize) -> Key, now: Moment, effects: &mut Vec<Effect>) {
        let Ok(fresh) = self.purges.hear(AGENT, said, now) else {
            effects.push(Effect::Broken);
            return;
        };
        for applied in fresh {
            let covered = |index: usize| applied.purge.scope.covers(&key_of(index));
            self.cache.retain(|&index, _| !covered(index));
            self.failed.retain(|&index, _| !covered(index));
            let position = applied.position;
            effects.push(Effect::Tell(Message::Purges(Purges::Next(applied))));
            effects.push(Effect::Tell(Message::PurgesDone { position }));
        }
    }

    fn reply(&mut self, id: u64, reply: Reply, key_of: impl Fn(usize) -> Key, now: Moment, effects: &mut Vec<Effect>) {
        let position = self.purges.log().position();
        let Some(&key) = self.requests.get(&id) else {
            if let Reply::Granted { token, .. } = reply {
                effects.push(Effect::Tell(Message::Release { token }));
            }
            return;
        };
        if reply.is_final() {
            self.requests.remove(&id);
        }
        let flight = self.flights.get_mut(&key).expect("a request must have its flight");
        flight.meter.sign(now);
        if reply.is_final() {
            flight.request = None;
        }
        match reply {
            Reply::Working => {}
            Reply::Held { token, .. } => flight.held = Some(token),
            // A purge has overtaken it: it is no answer any more.
            Reply::Entry(entry) if self.purges.log().covers(&key_of(key)) > entry.since => {
                Self::go(key, flight, position, now, effects);
            }
            Reply::Entry(entry) => {
                effects.extend(flight.lease.take().map(|token| Effect::Tell(Message::Release { token })));
                self.keep(key, &entry, now);
                self.finish(key, Some(&entry), effects);
            }
            Reply::Granted { token, takeover, .. } => {
                flight.held = None;
                if takeover {
                    effects.push(Effect::Tell(Message::Tick { working: vec![token.clone()], struggling: Vec::new() }));
                    flight.watched_since = Some(now);
                }
                if let Some(old) = flight.lease.replace(token) {
                    effects.push(Effect::Tell(Message::Release { token: old }));
                }
                Self::go(key, flight, position, now, effects);
                if flight.upstream == Upstream::Failed {
                    let token = flight.lease.take().expect("it was just granted");
                    effects.push(Effect::Tell(Message::Fail { token, kind: FailureKind::Local }));
                }
            }
            _ => Self::go(key, flight, position, now, effects),
        }
        self.settle(key, effects);
    }

    /// The upstream answered, or all attempts ended without an answer.
    pub(crate) fn fetched(
        &mut self,
        index: usize,
        key: &Key,
        since: Position,
        entry: Option<Entry>,
        now: Moment,
        effects: &mut Vec<Effect>,
    ) {
        let is_overtaken = self.purges.log().covers(key) > since;
        let is_current = self.flights.get(&index).is_none_or(|flight| flight.since == since);
        if is_overtaken && !is_current {
            // Another flight is there for those who asked after the purge.
            for client in self.overtaken.remove(&index).unwrap_or_default() {
                let entry = entry.as_ref().map(super::agent::overtaken);
                effects.push(Effect::Answer { client, entry, hit: false });
            }
            return;
        }
        let entry = entry.map(|entry| if is_overtaken { super::agent::overtaken(&entry) } else { entry });
        let Some(entry) = entry else {
            self.failed.insert(index, now + REMEMBERED);
            if let Some(flight) = self.flights.get_mut(&index) {
                flight.upstream = Upstream::Failed;
                flight.meter.renew(now);
                let lease = flight.lease.take();
                effects.extend(lease.map(|token| Effect::Tell(Message::Fail { token, kind: FailureKind::Local })));
            }
            self.settle(index, effects);
            return;
        };
        self.keep(index, &entry, now);
        let lease = self.flights.get_mut(&index).and_then(|flight| flight.lease.take());
        self.finish(index, Some(&entry), effects);
        if self.linked && (lease.is_some() || entry.is_live(now)) {
            let publish = Publish { key: key.clone(), entry, token: lease, level: None };
            effects.push(Effect::Tell(Message::Publish { id: 0, publish }));
        }
    }

    /// When it has something to do by itself.
    pub(crate) fn next_deadline(&self) -> Option<Moment> {
        let of = |flight: &Flight| {
            let mut due = vec![flight.began + BUDGET];
            match flight.upstream {
                Upstream::NotAsked => due.push(flight.began + (BUDGET - ATTEMPT)),
                Upstream::Asking(since) if !flight.struggled => due.push(since + ATTEMPT),
                _ => {}
            }
            if flight.request.is_some() && !matches!(flight.upstream, Upstream::Asking(_)) {
                due.push(flight.meter.expires_at());
            }
            due.extend(flight.watched_since.filter(|_| flight.lease.is_some()).map(|since| since + TICK));
            due.into_iter().min()
        };
        self.flights.values().filter(|flight| !flight.finished).filter_map(of).min()
    }

    /// Lets time pass. `key_of` gives the key of an index.
    pub(crate) fn pass(&mut self, now: Moment, key_of: impl Fn(usize) -> Key, effects: &mut Vec<Effect>) {
        let position = self.purges.log().position();
        for index in self.flights.keys().copied().collect::<Vec<_>>() {
            let flight = self.flights.get_mut(&index).expect("it was there");
            if flight.finished {
                continue;
            }
            if let (Some(since), Some(token)) = (flight.watched_since, &flight.lease)
                && since + TICK <= now
            {
                flight.watched_since = Some(now);
                effects.push(Effect::Tell(Message::Tick { working: vec![token.clone()], struggling: Vec::new() }));
            }
            if flight.upstream == Upstream::NotAsked && flight.began + (BUDGET - ATTEMPT) <= now {
                Self::go(index, flight, position, now, effects);
            }
            if let Upstream::Asking(since) = flight.upstream
                && !flight.struggled
                && since + ATTEMPT <= now
            {
                flight.struggled = true;
                let struggling: Vec<_> = flight.lease.iter().cloned().collect();
                if !struggling.is_empty() {
                    effects.push(Effect::Tell(Message::Tick { working: struggling.clone(), struggling }));
                }
                if flight.request.is_none() && self.linked {
                    self.next_request += 1;
                    flight.request = Some(self.next_request);
                    self.requests.insert(self.next_request, index);
                    effects.push(Effect::Tell(lookup(self.next_request, &key_of(index))));
                }
            }
            if flight.request.is_some()
                && !matches!(flight.upstream, Upstream::Asking(_))
                && flight.meter.expires_at() <= now
                && flight.meter.fired(now) == Reading::Spent
            {
                if flight.upstream == Upstream::NotAsked {
                    Self::go(index, flight, position, now, effects);
                } else {
                    self.forget_request(index, effects);
                }
            }
            let flight = self.flights.get_mut(&index).expect("it was there");
            if flight.began + BUDGET <= now && !flight.finished {
                let lease = flight.lease.take();
                effects.extend(lease.map(|token| Effect::Tell(Message::Fail { token, kind: FailureKind::Local })));
                self.finish(index, None, effects);
            }
            self.settle(index, effects);
        }
    }

    /// Ends a flight that has nothing to wait for.
    fn settle(&mut self, index: usize, effects: &mut Vec<Effect>) {
        let Some(flight) = self.flights.get(&index) else { return };
        if flight.upstream == Upstream::Failed && flight.request.is_none() && !flight.finished {
            self.finish(index, None, effects);
        }
    }

    fn forget_request(&mut self, index: usize, effects: &mut Vec<Effect>) {
        if let Some(id) = self.flights.get_mut(&index).and_then(|flight| flight.request.take()) {
            self.requests.remove(&id);
            effects.push(Effect::Tell(Message::Cancel { id }));
        }
    }

    fn finish(&mut self, index: usize, entry: Option<&Entry>, effects: &mut Vec<Effect>) {
        self.forget_request(index, effects);
        for client in self.overtaken.remove(&index).unwrap_or_default() {
            effects.push(Effect::Answer { client, entry: entry.cloned(), hit: false });
        }
        let Some(flight) = self.flights.get_mut(&index) else { return };
        flight.finished = true;
        for client in flight.clients.drain(..) {
            effects.push(Effect::Answer { client, entry: entry.cloned(), hit: false });
        }
        if !matches!(flight.upstream, Upstream::Asking(_)) || entry.is_some() {
            self.flights.remove(&index);
        }
    }

    fn keep(&mut self, index: usize, entry: &Entry, now: Moment) {
        let younger = self.cache.get(&index).is_none_or(|kept| !kept.is_live(now) || entry.is_younger_than(kept));
        if entry.is_live(now) && younger {
            self.cache.insert(index, entry.clone());
        }
    }

    fn go(index: usize, flight: &mut Flight, position: Position, now: Moment, effects: &mut Vec<Effect>) {
        if flight.upstream == Upstream::NotAsked {
            flight.upstream = Upstream::Asking(now);
            flight.since = position;
            effects.push(Effect::Fetch { key: index, since: position });
        }
    }
}

fn lookup(id: u64, key: &Key) -> Message {
    let lookup = Lookup {
        key: key.clone(),
        deadline: BUDGET,
        skipped: Vec::new(),
        stream: 0,
        trace: None,
        mode: LookupMode::Join,
    };
    Message::Lookup { id, lookup }
}
