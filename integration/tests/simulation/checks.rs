//! What must hold at every step, judged from outside with true time.

use std::collections::BTreeMap;
use std::time::Duration;

use heimdall_agent::lease::Table;
use heimdall_shared::clock::Moment;
use heimdall_shared::entry::Entry;

use super::clock::{MILLI, SECOND, Time};
use super::dns::BUDGET;
use super::plan::{Kind, Plan};

/// What an anchor may cost a copy at its owner: a ping interval, a round trip, and what is rounded.
const ANCHOR_COST: Time = 400 * MILLI;

/// While nothing fails every purge has arrived everywhere after this time, and everybody knows of it.
const ARRIVES: Time = 20 * MILLI;

/// Scheduling of the simulation itself.
const SLACK: Time = 30 * MILLI;

/// One upstream query.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fetch {
    pub(crate) key: usize,
    pub(crate) node: usize,
    pub(crate) generation: u64,
    pub(crate) started: Time,
    pub(crate) done: Option<Time>,
    pub(crate) answered: bool,
    /// The purges that its process had applied.
    pub(crate) since: u64,
}

/// A purge that an operator asked for.
#[derive(Debug)]
struct Purge {
    origin: (usize, u64),
    key: usize,
    position: u64,
    asked: Time,
    /// Since when each node is known to be done with it.
    done: BTreeMap<usize, Time>,
}

/// One client's question.
#[derive(Clone, Copy, Debug)]
struct Client {
    node: usize,
    key: usize,
    asked: Time,
    waits: bool,
}

/// Everything that was asked and answered.
#[derive(Default)]
pub(crate) struct Checks {
    pub(crate) fetches: Vec<Fetch>,
    pub(crate) answers: u64,
    /// How often a replica was done with a purge.
    pub(crate) purges_done: u64,
    clients: Vec<Client>,
    purges: Vec<Purge>,
    /// When a node's dns-server was stopped or started again, and until when its uplink is no excuse any more.
    excused_until: BTreeMap<usize, Time>,
}

impl Checks {
    /// A client asks; gives its number.
    pub(crate) fn asks(&mut self, node: usize, key: usize, now: Time) -> usize {
        self.clients.push(Client { node, key, asked: now, waits: true });
        self.clients.len() - 1
    }

    /// A dns-server's failures and delays have a reason of their own until then.
    pub(crate) fn excuse(&mut self, node: usize, until: Time) {
        let excused = self.excused_until.entry(node).or_default();
        *excused = until.max(*excused);
    }

    /// Those who waited at a process that died are not answered, and ask again elsewhere.
    pub(crate) fn died(&mut self, node: usize) {
        self.clients.iter_mut().filter(|client| client.node == node).for_each(|client| client.waits = false);
    }

    /// A query leaves for the upstream; gives its number.
    pub(crate) fn fetches(
        &mut self,
        plan: &Plan,
        node: usize,
        generation: u64,
        (key, since): (usize, u64),
        now: Time,
    ) -> usize {
        let ttl = plan.ttls[key] * SECOND;
        let fetch = Fetch { key, node, generation, started: now, done: None, answered: false, since };
        if plan.kind == Kind::Calm {
            for earlier in self.fetches.iter().filter(|earlier| earlier.key == key) {
                if self.is_purged_since(earlier) {
                    continue;
                }
                let done = earlier.done.unwrap_or_else(|| panic!("{fetch:?} while {earlier:?} is under way"));
                let lives_until = (earlier.started + ttl).saturating_sub(SECOND + ANCHOR_COST);
                assert!(
                    now >= done && now >= lives_until,
                    "{fetch:?} while the answer of {earlier:?} lives, ttl {ttl}"
                );
            }
        }
        // Whatever fails: a process that has an answer does not ask again while it lives.
        let own =
            self.fetches.iter().filter(|f| f.key == key && f.node == node && f.generation == generation && f.answered);
        // A purge may come late to it: it has applied one more by now.
        let is_purged = |earlier: &&Fetch| earlier.since < since && self.purges.iter().any(|purge| purge.key == key);
        for earlier in own.filter(|earlier| !is_purged(earlier)) {
            let life = (ttl as f64 * (1.0 - plan.worst_error())) as Time;
            let lives_until = (earlier.started + life).saturating_sub(SECOND + 2 * MILLI);
            assert!(now >= lives_until, "{fetch:?} though this process has the answer of {earlier:?}");
        }
        self.fetches.push(fetch);
        self.fetches.len() - 1
    }

    /// A client is answered with an entry, or with SERVFAIL.
    pub(crate) fn answered(
        &mut self,
        plan: &Plan,
        client: usize,
        entry: Option<&Entry>,
        hit: bool,
        now: Time,
        local: Moment,
    ) {
        let Client { node, key, asked, waits } = self.clients[client];
        assert!(waits, "client {client} is answered twice");
        self.clients[client].waits = false;
        self.answers += 1;
        let excused = self.excused_until.get(&node).is_some_and(|&until| asked <= until);
        let budget = BUDGET.as_nanos() as f64 * (1.0 + plan.worst_error()) + SLACK as f64;
        assert!(excused || (now - asked) as f64 <= budget, "client {client} of node {node} waited {} ns", now - asked);
        let Some(entry) = entry else {
            assert!(
                excused,
                "client {client} of node {node} got a SERVFAIL for key {key}, asked at {asked}, told at {now}"
            );
            return;
        };
        let version = u64::from_be_bytes((*entry.packet).try_into().expect("a packet must hold its version"));
        let fetch = &self.fetches[version as usize];
        assert_eq!(fetch.key, key, "client {client} got the answer to another question");
        assert!(fetch.answered, "client {client} got an answer that no upstream gave");
        for purge in self.purges.iter().filter(|purge| purge.key == key && fetch.started < purge.asked) {
            let promised = purge.done.get(&node).is_some_and(|&done| asked >= done);
            assert!(!promised, "{fetch:?} comes back at {now} to who asked node {node} at {asked}: {purge:?}");
        }
        // Life counts from the start of the exchange; a clock that runs slow by so much may count it so much longer.
        let ttl = Duration::from_secs(plan.ttls[key]);
        let given = entry.remaining(local).as_secs();
        let until = now + given * SECOND;
        let life = (ttl.as_nanos() as f64 * (1.0 + 2.0 * plan.worst_error())) as Time + MILLI;
        assert!(
            until <= fetch.started + life || given == 0 && !hit,
            "{fetch:?} is given {given} s at {now}, ttl {ttl:?}"
        );
        assert!(!hit || given > 0, "a hit with no second left");
    }

    /// An operator asks for a purge.
    pub(crate) fn purges(&mut self, node: usize, generation: u64, key: usize, position: u64, now: Time) {
        let origin = (node, generation);
        self.purges.push(Purge { origin, key, position, asked: now, done: BTreeMap::new() });
    }

    /// Looks which nodes have told an origin that its purges are done there.
    pub(crate) fn look_at_purges(
        &mut self,
        node: usize,
        generation: u64,
        now: Time,
        is_done: impl Fn(usize, u64) -> bool,
        nodes: usize,
    ) {
        for purge in self.purges.iter_mut().filter(|purge| purge.origin == (node, generation)) {
            for other in 0..nodes {
                if !purge.done.contains_key(&other) && is_done(other, purge.position) {
                    purge.done.insert(other, now);
                    self.purges_done += 1;
                }
            }
        }
    }

    /// Both processes of a node are gone: what they promised is forgotten with them.
    pub(crate) fn forgets(&mut self, node: usize) {
        for purge in &mut self.purges {
            // Not to be promised again for that purge either.
            purge.done.insert(node, Time::MAX);
        }
    }

    /// Whether the key of a fetch was purged since it began, or a moment before it: the purge may not have arrived then.
    fn is_purged_since(&self, fetch: &Fetch) -> bool {
        let all_know = |purge: &Purge| purge.asked + ARRIVES;
        self.purges.iter().any(|purge| purge.key == fetch.key && fetch.started <= all_know(purge))
    }

    /// The lease table of one granter.
    pub(crate) fn leases(&self, table: &Table) {
        let leases: Vec<_> = table.leases().collect();
        for (at, lease) in leases.iter().enumerate() {
            let same = leases[at + 1..].iter().filter(|other| other.key == lease.key);
            for other in same {
                assert_ne!(lease.holder.member, other.holder.member, "two leases for one key on one replica");
            }
            let of_key = leases.iter().filter(|other| other.key == lease.key).count();
            assert!(of_key <= 2, "{of_key} leases for one key of one granter");
        }
    }

    /// Whether everybody was answered who was not cut off by the death of the process that was asked.
    pub(crate) fn all_answered(&self) {
        for (number, client) in self.clients.iter().enumerate() {
            assert!(!client.waits, "client {number} was never answered: {client:?}");
        }
    }

    /// Queries for a key since then.
    pub(crate) fn fetched_since(&self, key: usize, since: Time) -> usize {
        self.fetches.iter().filter(|fetch| fetch.key == key && fetch.started >= since).count()
    }
}
