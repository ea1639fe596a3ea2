//! The world around the replicas: true time, networks, upstreams, clients, and what goes wrong.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use heimdall_agent::lease::{Holder, LinkId};
use heimdall_proto::v1::SessionBatch;
use heimdall_shared::clock::Moment;
use heimdall_shared::entry::Entry;
use heimdall_shared::key::{Flags, Key};
use heimdall_shared::link::{BEAT_EVERY, Message};
use heimdall_shared::wire::Received;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::agent::{Agent, Out};
use super::checks::Checks;
use super::clock::{MILLI, SECOND, Time};
use super::dns::{ATTEMPT, BUDGET, Dns, Effect};
use super::plan::{Fault, Part, Plan, Weather};
use super::wire::End;

/// After everything is mended: longer than a lease, and than the longest lifetime on the slowest clock.
const QUIET: Time = 15 * SECOND;

/// How long the last questions may take.
const AFTER: Time = 5 * SECOND;

/// The most that an upstream takes for one answer: less than one attempt.
const UPSTREAM_MAX: Time = 1_100 * MILLI;

/// What happens at some time.
#[derive(Debug)]
enum Happening {
    Ask { node: usize, key: usize },
    Purge { node: usize, key: usize },
    Wake { node: usize, part: Part, generation: u64 },
    Deliver { link: LinkId, to: usize, batch: SessionBatch },
    Local { node: usize, to: Part, link: LinkId, batch: SessionBatch },
    Fetched { node: usize, generation: u64, fetch: usize, answered: bool },
    Dial { a: usize, b: usize },
    Ping { link: LinkId },
    Ended { node: usize, member: usize, link: LinkId },
    LocalLink { node: usize },
    Discover { node: usize },
    Begin { fault: usize },
    Start { node: usize, part: Part },
    Mended,
    Probe,
}

/// One replica.
struct Node {
    name: Arc<str>,
    agent: Option<Agent>,
    dns: Option<Dns>,
    /// Counts the starts of each process.
    generations: [u64; 2],
    paused_until: [Time; 2],
    wakes: [Option<Time>; 2],
    uplink_dead_until: Time,
    /// The socket between the two: its name, and the ends of the dns-server and of the agent.
    socket: Option<(LinkId, [End; 2])>,
}

/// A link between two agents.
struct PeerLink {
    nodes: [usize; 2],
    incarnations: [u64; 2],
    ends: [End; 2],
    /// When the last message towards each end arrives.
    last: [Time; 2],
}

/// What a run came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Summary {
    pub(crate) answers: u64,
    pub(crate) fetches: u64,
    pub(crate) purged: u64,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} answers, {} upstream queries, {} purges done", self.answers, self.fetches, self.purged)
    }
}

/// A run.
pub(crate) struct World {
    plan: Plan,
    rng: StdRng,
    now: Time,
    sequence: u64,
    queue: BTreeMap<(Time, u64), Happening>,
    nodes: Vec<Node>,
    links: BTreeMap<LinkId, PeerLink>,
    next_link: LinkId,
    cuts: Vec<(usize, usize, Time, bool)>,
    weather: Weather,
    checks: Checks,
    keys: Vec<Key>,
    shown: bool,
}

impl World {
    pub(crate) fn new(plan: Plan, shown: bool) -> Self {
        let name = |index: usize| -> Arc<str> { format!("node-{index:02}").into() };
        let node = |index| Node {
            name: name(index),
            agent: None,
            dns: None,
            generations: [0; 2],
            paused_until: [0; 2],
            wakes: [None; 2],
            uplink_dead_until: 0,
            socket: None,
        };
        let key = |index: usize| {
            let name = format!("\u{4}k{index:03}\0");
            Key::new(name.as_bytes(), 1, 1, Flags::default(), "").unwrap()
        };
        Self {
            rng: StdRng::seed_from_u64(!plan.seed),
            now: 0,
            sequence: 0,
            queue: BTreeMap::new(),
            nodes: (0..plan.nodes()).map(node).collect(),
            links: BTreeMap::new(),
            next_link: 0,
            cuts: Vec::new(),
            weather: plan.weather,
            checks: Checks::default(),
            keys: (0..plan.ttls.len()).map(key).collect(),
            shown,
            plan,
        }
    }

    /// Runs to the end.
    pub(crate) fn run(mut self) -> Summary {
        for node in 0..self.nodes.len() {
            self.start(node, Part::Agent);
            self.start(node, Part::Dns);
        }
        for (at, node, key) in self.plan.asks.clone() {
            self.at(at, Happening::Ask { node, key });
        }
        for (at, node, key) in self.plan.purges.clone() {
            self.at(at, Happening::Purge { node, key });
        }
        for (fault, (at, _)) in self.plan.faults.clone().into_iter().enumerate() {
            self.at(at, Happening::Begin { fault });
        }
        for (node, at) in self.plan.joiner_known.clone().into_iter().flatten().enumerate() {
            self.at(at, Happening::Discover { node });
        }
        self.at(self.plan.mended, Happening::Mended);
        let probed = self.plan.mended + QUIET;
        self.at(probed, Happening::Probe);
        while let Some(((at, _), happening)) = self.queue.pop_first() {
            if at > probed + AFTER {
                break;
            }
            self.now = at;
            self.happen(happening);
        }
        self.checks.all_answered();
        for key in 0..self.keys.len() {
            let fetched = self.checks.fetched_since(key, probed);
            assert_eq!(fetched, 1, "all nodes asked for key {key} at the end, when everything was whole again");
        }
        Summary {
            answers: self.checks.answers,
            fetches: self.checks.fetches.len() as u64,
            purged: self.checks.purges_done,
        }
    }

    fn at(&mut self, time: Time, happening: Happening) {
        self.sequence += 1;
        self.queue.insert((time.max(self.now), self.sequence), happening);
    }

    fn soon(&mut self, happening: Happening) {
        let delay = self.rng.random_range(50_000..2 * MILLI);
        self.at(self.now + delay, happening);
    }

    fn local(&self, node: usize) -> Moment {
        self.plan.clocks[node].read(self.now)
    }

    fn say(&self, what: impl FnOnce() -> String) {
        if self.shown {
            println!("{:>9.3} ms {}", self.now as f64 / MILLI as f64, what());
        }
    }

    fn happen(&mut self, happening: Happening) {
        // What a stopped process would do, it does when it goes on.
        let concerns = match &happening {
            Happening::Deliver { to, .. } => Some((*to, Part::Agent)),
            Happening::Local { node, to, .. } => Some((*node, *to)),
            Happening::Wake { node, part, .. } => Some((*node, *part)),
            Happening::Ask { node, .. } | Happening::Fetched { node, .. } => Some((*node, Part::Dns)),
            Happening::Ended { node, .. } | Happening::Discover { node } | Happening::Purge { node, .. } => {
                Some((*node, Part::Agent))
            }
            _ => None,
        };
        if let Some((node, part)) = concerns {
            let until = self.nodes[node].paused_until[part as usize];
            if until > self.now {
                self.at(until, happening);
                return;
            }
        }
        match happening {
            Happening::Ask { node, key } => self.ask(node, key),
            Happening::Purge { node, key } => self.purge(node, key),
            Happening::Wake { node, part, generation } => self.wake(node, part, generation),
            Happening::Deliver { link, to, batch } => self.deliver(link, to, batch),
            Happening::Local { node, to, link, batch } => self.deliver_local(node, to, link, batch),
            Happening::Fetched { node, generation, fetch, answered } => self.fetched(node, generation, fetch, answered),
            Happening::Dial { a, b } => self.dial(a, b),
            Happening::Ping { link } => self.ping(link),
            Happening::Ended { node, member, link } => {
                let (name, now) = (Arc::clone(&self.nodes[member].name), self.local(node));
                self.with_agent(node, |agent, out| agent.link_down(&name, link, now, out));
                if node < member || self.nodes[member].agent.is_none() {
                    self.dial_later(node, member);
                }
            }
            Happening::LocalLink { node } => self.connect_socket(node),
            Happening::Discover { node } => self.discover(node),
            Happening::Begin { fault } => self.begin(fault),
            Happening::Start { node, part } => self.start(node, part),
            Happening::Mended => self.mended(),
            Happening::Probe => self.probe(),
        }
    }

    fn start(&mut self, node: usize, part: Part) {
        let runs = match part {
            Part::Dns => self.nodes[node].dns.is_some(),
            Part::Agent => self.nodes[node].agent.is_some(),
        };
        if runs {
            // It died twice, and was started again after the first time.
            return;
        }
        self.say(|| format!("node {node}: {part:?} starts"));
        let now = self.local(node);
        let replica = &mut self.nodes[node];
        replica.generations[part as usize] += 1;
        match part {
            Part::Dns => replica.dns = Some(Dns::default()),
            Part::Agent => {
                let incarnation = self.rng.random();
                replica.agent = Some(Agent::new(&replica.name, incarnation, self.plan.replication_factor, now));
                self.discover(node);
                for other in (0..self.nodes.len()).filter(|&other| other != node) {
                    self.dial_later(node, other);
                }
            }
        }
        self.soon(Happening::LocalLink { node });
    }

    fn discover(&mut self, node: usize) {
        let known = |joiner: usize| match &self.plan.joiner_known {
            Some(times) => joiner + 1 < self.nodes.len() || self.now >= times[node],
            None => true,
        };
        let names: Vec<_> = (0..self.nodes.len())
            .filter(|&index| known(index))
            .map(|index| Arc::clone(&self.nodes[index].name))
            .collect();
        let now = self.local(node);
        self.with_agent(node, |agent, out| agent.discovered(&names, now, out));
        for other in (0..self.nodes.len()).filter(|&other| other != node) {
            self.dial_later(node, other);
        }
    }

    fn dial_later(&mut self, a: usize, b: usize) {
        let delay = self.rng.random_range(MILLI..200 * MILLI);
        self.at(self.now + delay, Happening::Dial { a: a.min(b), b: a.max(b) });
    }

    fn dial(&mut self, a: usize, b: usize) {
        if self.links.values().any(|link| link.nodes == [a, b]) {
            return;
        }
        let members = |node: usize, other: usize| {
            let known = self.nodes[node].agent.as_ref()?.view().ring().contains(&self.nodes[other].name);
            let stopped = self.nodes[node].paused_until[Part::Agent as usize] > self.now;
            (known && !stopped && !self.is_cut(node, other)).then_some(())
        };
        let (Some(()), Some(())) = (members(a, b), members(b, a)) else {
            // A dialler tries for as long as both exist.
            if self.nodes[a].agent.is_some() && self.nodes[b].agent.is_some() {
                self.at(self.now + 200 * MILLI, Happening::Dial { a, b });
            }
            return;
        };
        self.next_link += 1;
        let id = self.next_link;
        let incarnation =
            |node: usize| self.nodes[node].agent.as_ref().map(|agent| agent.incarnation).unwrap_or_default();
        let incarnations = [incarnation(a), incarnation(b)];
        let ends = [End::new(self.local(a)), End::new(self.local(b))];
        self.links.insert(id, PeerLink { nodes: [a, b], incarnations, ends, last: [0; 2] });
        self.say(|| format!("link {id} between {a} and {b}"));
        for (node, other, theirs) in [(a, b, incarnations[1]), (b, a, incarnations[0])] {
            let (name, now) = (Arc::clone(&self.nodes[other].name), self.local(node));
            self.with_agent(node, |agent, out| agent.link_up(&name, theirs, id, now, out));
        }
        self.soon(Happening::Ping { link: id });
    }

    fn ping(&mut self, id: LinkId) {
        let Some(link) = self.links.get(&id) else { return };
        let nodes = link.nodes;
        for node in nodes {
            let stopped = self.nodes[node].paused_until[Part::Agent as usize] > self.now;
            if !stopped {
                self.send(node, vec![(id, Message::Ping { nonce: 1 })]);
            }
        }
        self.at(self.now + BEAT_EVERY.as_nanos() as u64, Happening::Ping { link: id });
    }

    fn break_link(&mut self, id: LinkId) {
        let Some(link) = self.links.remove(&id) else { return };
        self.say(|| format!("link {id} breaks"));
        let [a, b] = link.nodes;
        self.soon(Happening::Ended { node: a, member: b, link: id });
        self.soon(Happening::Ended { node: b, member: a, link: id });
    }

    fn connect_socket(&mut self, node: usize) {
        let now = self.local(node);
        let replica = &mut self.nodes[node];
        if replica.socket.is_some() || replica.dns.is_none() || replica.agent.is_none() {
            return;
        }
        self.next_link += 1;
        replica.socket = Some((self.next_link, [End::new(now), End::new(now)]));
        let link = self.next_link;
        self.with_agent(node, |agent, out| agent.local_up(link, out));
        self.with_dns(node, |dns, _, _, effects| dns.link_up(effects));
    }

    fn close_socket(&mut self, node: usize) {
        if self.nodes[node].socket.take().is_none() {
            return;
        }
        let now = self.local(node);
        self.with_agent(node, |agent, out| agent.local_down(now, out));
        self.with_dns(node, |dns, _, now, effects| dns.link_down(now, effects));
        self.soon(Happening::LocalLink { node });
    }

    fn ask(&mut self, node: usize, key: usize) {
        if self.nodes[node].dns.is_none() {
            return;
        }
        let client = self.checks.asks(node, key, self.now);
        self.with_dns(node, |dns, keys, now, effects| dns.ask(client, key, &keys[key], now, effects));
    }

    fn purge(&mut self, node: usize, key: usize) {
        self.say(|| format!("node {node} is told to purge key {key}"));
        let (now, wanted) = (self.local(node), self.keys[key].clone());
        let mut position = None;
        self.with_agent(node, |agent, out| position = Some(agent.purge(&wanted, now, out)));
        if let Some(position) = position {
            let generation = self.nodes[node].generations[Part::Agent as usize];
            self.checks.purges(node, generation, key, position, self.now);
            self.look_at_purges(node);
        }
    }

    /// Notes which replicas have told this one that its purges are done there.
    fn look_at_purges(&mut self, origin: usize) {
        let Some(agent) = &self.nodes[origin].agent else { return };
        let generation = self.nodes[origin].generations[Part::Agent as usize];
        let names: Vec<_> = self.nodes.iter().map(|node| Arc::clone(&node.name)).collect();
        self.checks.look_at_purges(
            origin,
            generation,
            self.now,
            |node, position| agent.is_done(&names[node], position),
            names.len(),
        );
    }

    fn wake(&mut self, node: usize, part: Part, generation: u64) {
        if self.nodes[node].generations[part as usize] != generation {
            return;
        }
        self.nodes[node].wakes[part as usize] = None;
        let now = self.local(node);
        match part {
            Part::Agent => self.with_agent(node, |agent, out| agent.pass(now, out)),
            Part::Dns => self.with_dns(node, |dns, keys, now, effects| {
                dns.pass(now, |index| keys[index].clone(), effects);
            }),
        }
    }

    fn deliver(&mut self, id: LinkId, to: usize, batch: SessionBatch) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let side = usize::from(link.nodes[1] == to);
        let is_about_purges = about_purges(&batch);
        let messages = link.ends[side].unpack(batch);
        if messages.is_empty() && is_about_purges {
            // A stream that loses something is one that ends.
            self.break_link(id);
            return;
        }
        let from = link.nodes[1 - side];
        let holder = Holder { member: Arc::clone(&self.nodes[from].name), incarnation: link.incarnations[1 - side] };
        let now = self.local(to);
        for message in messages {
            self.say(|| format!("{from} → {to}: {message:?}"));
            self.with_agent(to, |agent, out| agent.hear_peer(&holder, id, message, now, out));
        }
    }

    fn deliver_local(&mut self, node: usize, to: Part, link: LinkId, batch: SessionBatch) {
        let now = self.local(node);
        let Some((current, ends)) = &mut self.nodes[node].socket else { return };
        if *current != link {
            return;
        }
        let messages = ends[usize::from(to == Part::Agent)].unpack(batch);
        for message in messages {
            self.say(|| format!("{node}, to its {to:?}: {message:?}"));
            match to {
                Part::Agent => self.with_agent(node, |agent, out| agent.hear_dns(message, now, out)),
                Part::Dns => self.with_dns(node, |dns, keys, now, effects| {
                    dns.heard(message, |index| keys[index].clone(), now, effects);
                }),
            }
        }
    }

    fn fetched(&mut self, node: usize, generation: u64, number: usize, answered: bool) {
        if self.nodes[node].generations[Part::Dns as usize] != generation {
            return;
        }
        let fetch = &mut self.checks.fetches[number];
        fetch.done = Some(self.now);
        fetch.answered = answered;
        let (key, started, since) = (fetch.key, fetch.started, fetch.since);
        let entry = answered.then(|| Entry {
            packet: Bytes::copy_from_slice(&(number as u64).to_be_bytes()),
            born: self.plan.clocks[node].read(started),
            lifetime: std::time::Duration::from_secs(self.plan.ttls[key]),
            since,
        });
        self.with_dns(node, |dns, keys, now, effects| dns.fetched(key, &keys[key], since, entry, now, effects));
    }

    fn fetch(&mut self, node: usize, key: usize, since: u64) {
        let generation = self.nodes[node].generations[Part::Dns as usize];
        let number = self.checks.fetches(&self.plan, node, generation, (key, since), self.now);
        self.say(|| format!("node {node} asks the upstream for key {key}"));
        let dead = self.nodes[node].uplink_dead_until > self.now;
        let takes = if dead {
            3 * ATTEMPT.as_nanos() as u64
        } else if self.rng.random_ratio(1, self.plan.slow_one_in) {
            self.rng.random_range(200 * MILLI..UPSTREAM_MAX)
        } else {
            self.rng.random_range(5 * MILLI..150 * MILLI)
        };
        self.at(self.now + takes, Happening::Fetched { node, generation, fetch: number, answered: !dead });
    }

    fn begin(&mut self, fault: usize) {
        let fault = self.plan.faults[fault].1;
        self.say(|| format!("{fault:?}"));
        match fault {
            Fault::Pause { node, part, until } => {
                self.nodes[node].paused_until[part as usize] = until;
                if part == Part::Dns {
                    self.checks.excuse(node, until);
                }
            }
            Fault::Crash { node, part, until } => self.crash(node, part, until),
            Fault::Cut { from, to, until, lost } => self.cuts.push((from, to, until, lost)),
            Fault::Break { a, b } => {
                let between = [a.min(b), a.max(b)];
                if let Some((&id, _)) = self.links.iter().find(|(_, link)| link.nodes == between) {
                    self.break_link(id);
                }
            }
            Fault::Uplink { node, until } => {
                self.nodes[node].uplink_dead_until = until;
                // An attempt that began then may take its time, and its failure is remembered.
                self.checks.excuse(node, until + BUDGET.as_nanos() as u64 + 2 * SECOND);
            }
        }
    }

    fn crash(&mut self, node: usize, part: Part, until: Time) {
        let other_runs = match part {
            Part::Dns => self.nodes[node].agent.is_some(),
            Part::Agent => self.nodes[node].dns.is_some(),
        };
        if !other_runs {
            // Nobody of the replica remembers its purges: it is a new one, which knows what its peers know.
            self.checks.forgets(node);
        }
        self.close_socket(node);
        self.nodes[node].paused_until[part as usize] = 0;
        self.nodes[node].wakes[part as usize] = None;
        match part {
            Part::Dns => {
                self.nodes[node].dns = None;
                self.checks.died(node);
            }
            Part::Agent => {
                self.nodes[node].agent = None;
                let of_node = self.links.iter().filter(|(_, link)| link.nodes.contains(&node));
                for id in of_node.map(|(&id, _)| id).collect::<Vec<_>>() {
                    self.break_link(id);
                }
            }
        }
        self.nodes[node].generations[part as usize] += 1;
        self.at(until, Happening::Start { node, part });
    }

    fn mended(&mut self) {
        self.say(|| "everything is mended".to_owned());
        self.cuts.clear();
        self.weather = Weather::default();
    }

    fn probe(&mut self) {
        for (index, node) in self.nodes.iter().enumerate() {
            let agent = node.agent.as_ref().expect("every process runs again");
            let sizes = agent.table.sizes();
            assert_eq!((sizes.leases, sizes.waiters), (0, 0), "node {index} at the end");
            let view = agent.view();
            assert_eq!(view.members().len(), self.nodes.len() - 1);
            assert!(view.members().iter().all(|member| view.is_up(&member.name)), "node {index}: {:?}", view.members());
            assert_eq!(view.ring().digest(), self.nodes[0].agent.as_ref().unwrap().view().ring().digest());
        }
        for key in 0..self.keys.len() {
            for node in 0..self.nodes.len() {
                self.soon(Happening::Ask { node, key });
            }
        }
    }

    fn is_cut(&self, from: usize, to: usize) -> bool {
        let cuts = |a: usize, b: usize| self.cuts.iter().any(|&(f, t, until, _)| f == a && t == b && until > self.now);
        cuts(from, to) || cuts(to, from)
    }

    /// Has an agent do something, and sends what it wants to say.
    fn with_agent(&mut self, node: usize, work: impl FnOnce(&mut Agent, &mut Out)) {
        let Some(agent) = &mut self.nodes[node].agent else { return };
        let mut out = Vec::new();
        work(agent, &mut out);
        self.checks.leases(&agent.table);
        let due = agent.next_deadline();
        let broken = std::mem::take(&mut agent.broken);
        self.send(node, out);
        self.set_wake(node, Part::Agent, due);
        for link in broken {
            self.break_link(link);
        }
        self.look_at_purges(node);
    }

    /// Has a dns-server do something, and does what it wants.
    fn with_dns(&mut self, node: usize, work: impl FnOnce(&mut Dns, &[Key], Moment, &mut Vec<Effect>)) {
        let now = self.local(node);
        let Some(dns) = &mut self.nodes[node].dns else { return };
        let mut effects = Vec::new();
        work(dns, &self.keys, now, &mut effects);
        let due = dns.next_deadline();
        for effect in effects {
            match effect {
                Effect::Tell(message) => self.send_local(node, Part::Agent, message),
                Effect::Fetch { key, since } => self.fetch(node, key, since),
                Effect::Broken => self.close_socket(node),
                Effect::Answer { client, entry, hit } => {
                    self.checks.answered(&self.plan, client, entry.as_ref(), hit, self.now, now);
                }
            }
        }
        self.set_wake(node, Part::Dns, due);
    }

    fn set_wake(&mut self, node: usize, part: Part, due: Option<Moment>) {
        let Some(due) = due else { return };
        let at = self.plan.clocks[node].when(due, self.now + 1);
        if self.nodes[node].wakes[part as usize].is_some_and(|set| set <= at && set > self.now) {
            return;
        }
        self.nodes[node].wakes[part as usize] = Some(at);
        let generation = self.nodes[node].generations[part as usize];
        self.at(at, Happening::Wake { node, part, generation });
    }

    fn send(&mut self, from: usize, out: Out) {
        for (id, message) in out {
            if self.nodes[from].socket.as_ref().is_some_and(|(socket, _)| *socket == id) {
                self.send_local(from, Part::Dns, message);
                continue;
            }
            let now = self.local(from);
            let Some(link) = self.links.get_mut(&id) else { continue };
            let side = usize::from(link.nodes[1] == from);
            let to = link.nodes[1 - side];
            let purges = matches!(message, Message::Purges(_) | Message::PurgesDone { .. });
            let batch = link.ends[side].pack(&[message], now);
            let mut delay = self.rng.random_range(50_000..2 * MILLI);
            if self.rng.random_ratio(self.weather.late, 1_000) {
                delay = self.rng.random_range(2 * MILLI..3 * SECOND);
            }
            let cut = self.cuts.iter().find(|&&(f, t, until, _)| f == from && t == to && until > self.now);
            match cut {
                Some(&(_, _, _, true)) => {
                    if purges {
                        self.break_link(id);
                    }
                    continue;
                }
                Some(&(_, _, until, false)) => delay += until - self.now,
                None => {}
            }
            let mut arrives = self.now + delay;
            if self.weather.is_fair() || self.rng.random() {
                // A stream keeps the order. In bad weather not even that is relied on.
                arrives = arrives.max(link.last[1 - side] + 1);
                link.last[1 - side] = arrives;
            }
            if self.rng.random_ratio(self.weather.lost, 1_000) {
                if purges {
                    self.break_link(id);
                }
                continue;
            }
            if self.rng.random_ratio(self.weather.twice, 1_000) && !purges {
                let again = arrives + self.rng.random_range(0..SECOND);
                self.at(again, Happening::Deliver { link: id, to, batch: batch.clone() });
            }
            self.at(arrives, Happening::Deliver { link: id, to, batch });
        }
    }

    fn send_local(&mut self, node: usize, to: Part, message: Message) {
        let now = self.local(node);
        let Some((link, ends)) = &mut self.nodes[node].socket else { return };
        let batch = ends[usize::from(to == Part::Dns)].pack(&[message], now);
        let link = *link;
        // A socket keeps the order.
        self.at(self.now + 20_000, Happening::Local { node, to, link, batch });
    }
}

/// Whether there is something in a batch that is lost only with its stream.
fn about_purges(batch: &SessionBatch) -> bool {
    let received = Received::new(batch.clone());
    let mut messages = received.messages(Moment::from_nanos(0));
    messages.any(|message| matches!(message, Ok(Message::Purges(_) | Message::PurgesDone { .. })))
}
