//! One agent: the real cores, and a shell without sockets that carries what they decide.
//!
//! The shell does what `lookup`, `publish`, `granter` and `session` of the agent do, in one thread and without waiting.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use heimdall_agent::lease::{Action, Asker, Holder, Limits, LinkId, Table};
use heimdall_agent::membership::{Changes, Discovered, Event, Membership, Update, View};
use heimdall_agent::permissions::{may_copy, may_publish};
use heimdall_agent::replicate;
use heimdall_agent::store::admission::{Decision, How, admit};
use heimdall_agent::store::{Held, Newer, Origin, Sourced};
use heimdall_shared::clock::Moment;
use heimdall_shared::entry::Entry;
use heimdall_shared::key::Key;
use heimdall_shared::link::{Lookup, Message, Publish, Reply};
use heimdall_shared::purge::{Applied, Book, LinkKind, Position, Purge, PurgeId, Purges, Scope};
use heimdall_shared::token::Token;

/// How long a peer's first word is waited for.
const PEER_BUDGET: Duration = Duration::from_millis(30);

/// How long a purge is remembered: longer than a run.
pub(crate) const KEEP: Duration = Duration::from_secs(1_000);

/// A message to send.
pub(crate) type Out = Vec<(LinkId, Message)>;

/// One agent.
pub(crate) struct Agent {
    pub(crate) me: Arc<str>,
    pub(crate) incarnation: u64,
    pub(crate) membership: Membership,
    pub(crate) table: Table,
    purges: Book,
    purges_begun: u64,
    done: Position,
    /// Links on which something was left out: they end.
    pub(crate) broken: Vec<LinkId>,
    store: HashMap<Key, Held>,
    local: Option<LinkId>,
    peers: BTreeMap<Arc<str>, (LinkId, u64)>,
    routes: BTreeMap<u64, Route>,
    requests: BTreeMap<(LinkId, u64), u64>,
    next_request: u64,
}

/// A lookup of the own dns-server on its way.
struct Route {
    lookup: Lookup,
    ahead: VecDeque<Arc<str>>,
    skipped: Vec<Arc<str>>,
    redirected: bool,
    /// The peer that was asked, and until when its first word is waited for.
    asked: Option<(Arc<str>, LinkId, u64, Option<Moment>)>,
}

impl Agent {
    pub(crate) fn new(me: &Arc<str>, incarnation: u64, replication_factor: usize, now: Moment) -> Self {
        let discovered = Discovered { name: Arc::clone(me), address: "host:1".into() };
        Self {
            me: Arc::clone(me),
            incarnation,
            membership: Membership::new(discovered, replication_factor, now),
            table: Table::new(Arc::clone(me), incarnation, Limits::default()),
            purges: Book::new(KEEP),
            purges_begun: 0,
            done: 0,
            broken: Vec::new(),
            store: HashMap::new(),
            local: None,
            peers: BTreeMap::new(),
            routes: BTreeMap::new(),
            requests: BTreeMap::new(),
            next_request: 0,
        }
    }

    pub(crate) fn view(&self) -> Arc<View> {
        self.membership.view()
    }

    /// A live entry of its store.
    pub(crate) fn stored(&self, key: &Key, now: Moment) -> Option<Entry> {
        let held = self.sound(key)?;
        let entry = held.live(now)?.entry.clone();
        Some(Entry { since: self.purges.log().position(), ..entry })
    }

    /// What it keeps for a key and is not purged.
    fn sound(&self, key: &Key) -> Option<Held> {
        let held = self.store.get(key)?;
        match held.newer_than(self.purges.log().covers(key)) {
            Newer::All => Some(held.clone()),
            Newer::Some(held) => Some(held),
            Newer::None => None,
        }
    }

    fn admits(&self, key: &Key, entry: &Entry) -> bool {
        admitted(&self.purges, key, entry)
    }

    /// An operator purges a key here. Gives the purge's position.
    pub(crate) fn purge(&mut self, key: &Key, now: Moment, out: &mut Out) -> Position {
        self.purges_begun += 1;
        let id = PurgeId { origin: Arc::clone(&self.me), incarnation: self.incarnation, sequence: self.purges_begun };
        let scope = Scope::Name { name: key.name().to_vec().into(), qtype: None };
        let purge = Purge { id, scope, issued: now, folds: Vec::new(), injected: None };
        let applied = self.purges.issue(&Arc::new(purge), now);
        self.tell_on(applied.into_iter().collect(), now, out);
        self.purges.log().position()
    }

    /// Whether a replica has said that a purge that began here is done there.
    pub(crate) fn is_done(&self, member: &Arc<str>, position: Position) -> bool {
        if *member == self.me {
            return self.done >= position;
        }
        self.peers.get(member).is_some_and(|&(link, _)| self.purges.done_at(link) >= position)
    }

    fn all_links(&self) -> Vec<LinkId> {
        self.local.into_iter().chain(self.peers.values().map(|&(link, _)| link)).collect()
    }

    fn connect(&mut self, link: LinkId, kind: LinkKind, out: &mut Out) {
        out.extend(self.purges.connect(link, kind).into_iter().map(|said| (link, Message::Purges(said))));
        out.push((link, Message::PurgesDone { position: self.done }));
    }

    /// What is to be done about purges that have just been applied.
    fn tell_on(&mut self, fresh: Vec<Applied>, now: Moment, out: &mut Out) {
        for applied in fresh {
            let links = self.all_links();
            out.extend(links.into_iter().map(|link| (link, Message::Purges(Purges::Next(applied.clone())))));
            let scope = applied.purge.scope.clone();
            self.with_table(now, out, |table, now, actions| table.purge(&scope, now, actions));
        }
    }

    /// Turns the sender's position in a message into one of this agent's, and takes what is about purges.
    fn hear(&mut self, link: LinkId, mut message: Message, now: Moment, out: &mut Out) -> Option<Message> {
        if let Some(entry) = message.entry_mut() {
            entry.since = self.purges.vouched(link, entry.since).unwrap_or_default();
        }
        let gap = match message {
            Message::Purges(said) => match self.purges.hear(link, &said, now) {
                Ok(fresh) => {
                    self.tell_on(fresh, now, out);
                    false
                }
                Err(_gap) => true,
            },
            Message::PurgesDone { position } => self.purges.hear_done(link, position).is_err(),
            other => return Some(other),
        };
        if gap {
            self.broken.push(link);
        }
        self.settle(out);
        None
    }

    /// Says when the dns-server has emptied its cache.
    fn settle(&mut self, out: &mut Out) {
        let done = self.purges.done_below().unwrap_or_default();
        if done > self.done {
            self.done = done;
            let links: Vec<_> = self.peers.values().map(|&(link, _)| link).collect();
            out.extend(links.into_iter().map(|link| (link, Message::PurgesDone { position: done })));
        }
    }

    /// When it has something to do by itself.
    pub(crate) fn next_deadline(&self) -> Option<Moment> {
        let words = self.routes.values().filter_map(|route| route.asked.as_ref()?.3);
        words.chain(self.table.next_deadline()).chain(self.membership.next_deadline()).min()
    }

    /// Lets time pass.
    pub(crate) fn pass(&mut self, now: Moment, out: &mut Out) {
        let changes = self.membership.pass(now);
        self.changed(changes, now, out);
        self.with_table(now, out, |table, now, actions| table.expire(now, actions));
        let late = self.routes.iter().filter_map(|(&id, route)| {
            route.asked.as_ref().is_some_and(|asked| asked.3.is_some_and(|until| until <= now)).then_some(id)
        });
        for id in late.collect::<Vec<_>>() {
            self.unreachable(id, now, out);
        }
    }

    pub(crate) fn discovered(&mut self, names: &[Arc<str>], now: Moment, out: &mut Out) {
        let named = |name: &Arc<str>| Discovered { name: Arc::clone(name), address: "host:1".into() };
        let update = Update::Reset(names.iter().map(named).collect());
        let changes = self.membership.step(Event::Discovered(update), now);
        self.changed(changes, now, out);
    }

    pub(crate) fn local_up(&mut self, link: LinkId, out: &mut Out) {
        self.local = Some(link);
        self.connect(link, LinkKind::Below, out);
    }

    pub(crate) fn local_down(&mut self, now: Moment, out: &mut Out) {
        let Some(link) = self.local.take() else { return };
        self.purges.disconnect(link);
        self.routes.clear();
        self.requests.clear();
        for &(peer, _) in self.peers.values() {
            out.push((peer, Message::StreamGone { stream: link }));
        }
        let (me, incarnation) = (Arc::clone(&self.me), self.incarnation);
        self.with_table(now, out, |table, now, actions| {
            table.stream_gone(&me, incarnation, link, now, actions);
            table.link_closed(link, now, actions);
        });
    }

    pub(crate) fn link_up(&mut self, member: &Arc<str>, incarnation: u64, link: LinkId, now: Moment, out: &mut Out) {
        if !self.view().ring().contains(member) {
            return;
        }
        self.peers.insert(Arc::clone(member), (link, incarnation));
        self.connect(link, LinkKind::Beside, out);
        let up = Event::LinkUp { member: Arc::clone(member), incarnation, link, advertised: None };
        let changes = self.membership.step(up, now);
        self.changed(changes, now, out);
    }

    pub(crate) fn link_down(&mut self, member: &Arc<str>, link: LinkId, now: Moment, out: &mut Out) {
        if self.peers.get(member).is_some_and(|&(current, _)| current == link) {
            self.peers.remove(member);
        }
        self.purges.disconnect(link);
        let changes = self.membership.step(Event::LinkDown { member: Arc::clone(member), link }, now);
        self.changed(changes, now, out);
        self.with_table(now, out, |table, now, actions| table.link_closed(link, now, actions));
        let broken: Vec<u64> = self.requests.iter().filter(|((over, _), _)| *over == link).map(|(_, &id)| id).collect();
        for id in broken {
            self.unreachable(id, now, out);
        }
    }

    /// A message of the own dns-server.
    pub(crate) fn hear_dns(&mut self, message: Message, now: Moment, out: &mut Out) {
        let Some(local) = self.local else { return };
        let Some(message) = self.hear(local, message, now, out) else { return };
        match message {
            Message::Lookup { id, lookup } => {
                if let Some(entry) = self.stored(&lookup.key, now) {
                    out.push((local, Message::Reply { id, reply: Reply::Entry(entry) }));
                    return;
                }
                out.push((local, Message::Reply { id, reply: Reply::Working }));
                let ahead = self.view().ring().order(lookup.key.slot()).cloned().collect();
                let lookup = Lookup { stream: local, ..lookup };
                let route = Route { lookup, ahead, skipped: Vec::new(), redirected: false, asked: None };
                self.routes.insert(id, route);
                self.advance(id, now, out);
            }
            Message::Cancel { id } => {
                if let Some((_, link, request, _)) = self.routes.remove(&id).and_then(|route| route.asked) {
                    self.requests.remove(&(link, request));
                    out.push((link, Message::Cancel { id: request }));
                }
                self.with_table(now, out, |table, now, actions| table.cancel(local, id, now, actions));
            }
            Message::Publish { publish, .. } => self.publish_of_dns(publish, now, out),
            Message::Fail { token, kind } => {
                self.send_granter(&token.clone(), Message::Fail { token, kind }, now, out);
            }
            Message::Release { token } => self.send_granter(&token.clone(), Message::Release { token }, now, out),
            Message::Tick { working, struggling } => {
                for token in working.iter().chain(&struggling) {
                    let of = |tokens: &[Token]| tokens.iter().filter(|other| *other == token).cloned().collect();
                    let tick = Message::Tick { working: of(&working), struggling: of(&struggling) };
                    self.send_granter(token, tick, now, out);
                }
            }
            other => panic!("a dns-server never sends {other:?}"),
        }
    }

    /// A message of a peer.
    pub(crate) fn hear_peer(&mut self, from: &Holder, link: LinkId, message: Message, now: Moment, out: &mut Out) {
        let Some(message) = self.hear(link, message, now, out) else { return };
        match message {
            Message::Ping { .. } => {
                self.membership.heard(&from.member, link, now);
                let changes = self.membership.pass(now);
                self.changed(changes, now, out);
            }
            Message::Lookup { id, lookup } => self.lookup_of_peer(from, link, id, &lookup, now, out),
            Message::Reply { id, reply } => self.reply_of_peer(link, id, reply, now, out),
            Message::Cancel { id } => {
                self.with_table(now, out, |table, now, actions| table.cancel(link, id, now, actions));
            }
            Message::Publish { publish, .. } => self.granter_publish(publish, from, now, out),
            Message::Copy { key, entry, .. } if may_copy(self.view().ring(), key.slot(), &from.member, &self.me) => {
                self.offer(&key, &entry, Origin::Replica(Arc::clone(&from.member)), How::Copy, now);
            }
            Message::StreamGone { stream } => self.with_table(now, out, |table, now, actions| {
                table.stream_gone(&from.member, from.incarnation, stream, now, actions);
            }),
            Message::Watch { token } if token.granter == from.member => self.tell_dns(Message::Watch { token }, out),
            Message::Tick { working, struggling } => {
                let (mine, theirs): (Vec<_>, Vec<_>) =
                    working.into_iter().partition(|token| *token.granter == *self.me);
                self.with_table(now, out, |table, now, actions| table.tick(from, &mine, &struggling, now, actions));
                let theirs: Vec<_> = theirs.into_iter().filter(|token| token.granter == from.member).collect();
                if !theirs.is_empty() {
                    self.tell_dns(Message::Tick { working: theirs, struggling: Vec::new() }, out);
                }
            }
            Message::Fail { .. } | Message::Release { .. } => self.granter_word(message, from, now, out),
            _ => {}
        }
    }

    fn lookup_of_peer(&mut self, from: &Holder, link: LinkId, id: u64, lookup: &Lookup, now: Moment, out: &mut Out) {
        if let Some(entry) = self.stored(&lookup.key, now) {
            out.push((link, Message::Reply { id, reply: Reply::Entry(entry) }));
            return;
        }
        let view = self.view();
        if let Some(before) = view.target(lookup.key.slot(), &lookup.skipped).filter(|first| **first != self.me) {
            out.push((link, Message::Reply { id, reply: Reply::Elsewhere(Arc::clone(before)) }));
            return;
        }
        let asker = Asker {
            link,
            request: id,
            member: Arc::clone(&from.member),
            incarnation: from.incarnation,
            stream: lookup.stream,
            trace: None,
        };
        self.with_table(now, out, |table, now, actions| table.ask(&lookup.key, asker, now, actions));
    }

    fn reply_of_peer(&mut self, link: LinkId, request: u64, reply: Reply, now: Moment, out: &mut Out) {
        let Some(&id) = self.requests.get(&(link, request)) else {
            // Nobody waits for it any more: a grant goes back at once.
            if let Reply::Granted { token, .. } = reply {
                out.push((link, Message::Release { token }));
            }
            return;
        };
        let route = self.routes.get_mut(&id).expect("a request must have its route");
        let asked = route.asked.as_mut().expect("a request must have been asked");
        asked.3 = None;
        let member = Arc::clone(&asked.0);
        match reply {
            Reply::Elsewhere(other) => {
                self.requests.remove(&(link, request));
                route.asked = None;
                if route.redirected || route.skipped.contains(&other) {
                    route.ahead.clear();
                } else {
                    route.redirected = true;
                    route.skipped.push(member);
                    route.ahead.retain(|ahead| *ahead != other);
                    route.ahead.push_front(other);
                }
                self.advance(id, now, out);
            }
            Reply::Working | Reply::Held { .. } => self.tell_dns(Message::Reply { id, reply }, out),
            // Its sender had not heard of the purge: what it has is none.
            Reply::Entry(entry) if !admitted(&self.purges, &route.lookup.key, &entry) => self.unreachable(id, now, out),
            last => {
                self.requests.remove(&(link, request));
                let key = self.routes.remove(&id).expect("it was there").lookup.key;
                if let Reply::Entry(entry) = &last
                    && self.view().ring().is_replica(key.slot(), &self.me)
                {
                    self.offer(&key, entry, Origin::Replica(member), How::Copy, now);
                }
                self.tell_dns(Message::Reply { id, reply: last }, out);
            }
        }
    }

    fn unreachable(&mut self, id: u64, now: Moment, out: &mut Out) {
        let Some(route) = self.routes.get_mut(&id) else { return };
        if let Some((member, link, request, _)) = route.asked.take() {
            route.skipped.push(member);
            self.requests.remove(&(link, request));
            out.push((link, Message::Cancel { id: request }));
        }
        self.advance(id, now, out);
    }

    /// Asks the next member in a route.
    fn advance(&mut self, id: u64, now: Moment, out: &mut Out) {
        let view = self.view();
        loop {
            let Some(route) = self.routes.get_mut(&id) else { return };
            let Some(member) = route.ahead.pop_front() else {
                self.routes.remove(&id);
                self.tell_dns(Message::Reply { id, reply: Reply::Proceed }, out);
                return;
            };
            if member == self.me {
                let route = self.routes.remove(&id).expect("it was there");
                let local = self.local.expect("a route must have a dns-server");
                let asker = Asker {
                    link: local,
                    request: id,
                    member,
                    incarnation: self.incarnation,
                    stream: local,
                    trace: None,
                };
                let key = route.lookup.key;
                if let Some(entry) = self.stored(&key, now) {
                    self.tell_dns(Message::Reply { id, reply: Reply::Entry(entry) }, out);
                } else {
                    self.with_table(now, out, |table, now, actions| table.ask(&key, asker, now, actions));
                }
                return;
            }
            let Some(&(link, _)) = self.peers.get(&member).filter(|_| view.is_up(&member)) else {
                route.skipped.push(member);
                continue;
            };
            self.next_request += 1;
            let request = self.next_request;
            let lookup = Lookup { skipped: route.skipped.clone(), ..route.lookup.clone() };
            route.asked = Some((member, link, request, Some(now + PEER_BUDGET)));
            self.requests.insert((link, request), id);
            out.push((link, Message::Lookup { id: request, lookup }));
            return;
        }
    }

    fn publish_of_dns(&mut self, publish: Publish, now: Moment, out: &mut Out) {
        let view = self.view();
        let slot = publish.key.slot();
        let usable = |name: &Arc<str>| self.peers.get(name).filter(|_| view.is_up(name)).map(|&(link, _)| link);
        let granter = publish.token.as_ref().map(|token| Arc::clone(&token.granter));
        let is_mine = granter.as_ref().is_some_and(|granter| *granter == self.me);
        let to_granter = granter.filter(|_| !is_mine).and_then(|granter| usable(&granter));
        let to_owner = || view.ring().order(slot).take_while(|name| **name != self.me).find_map(usable);
        let target = to_granter.map(|link| (link, publish.token.clone()));
        let target = target.or_else(|| (!is_mine).then(to_owner).flatten().map(|link| (link, None)));
        if let Some((link, token)) = target {
            if view.ring().is_replica(slot, &self.me) {
                self.offer(&publish.key, &publish.entry, Origin::Local, How::Local, now);
            }
            out.push((link, Message::Publish { id: 0, publish: Publish { token, ..publish } }));
        } else {
            let from = Holder { member: Arc::clone(&self.me), incarnation: self.incarnation };
            self.granter_publish(publish, &from, now, out);
        }
    }

    fn granter_publish(&mut self, publish: Publish, from: &Holder, now: Moment, out: &mut Out) {
        let Publish { key, entry, token, .. } = publish;
        let view = self.view();
        let holds = token.as_ref().is_some_and(|token| self.table.holds(&key, token, from, now));
        let is_own = from.member == self.me;
        if !holds && !is_own && !may_publish(&view, key.slot(), &from.member) {
            return;
        }
        if !self.admits(&key, &entry) {
            if holds {
                let told = overtaken(&entry);
                self.with_table(now, out, |table, now, actions| {
                    table.publish(&key, token.as_ref(), from, &told, now, actions);
                });
            }
            return;
        }
        let (origin, how) = match (is_own, holds) {
            (true, _) => (Origin::Local, How::Local),
            (false, true) => (Origin::Publisher(Arc::clone(&from.member)), How::PublishWithToken),
            (false, false) => (Origin::Publisher(Arc::clone(&from.member)), How::PublishWithoutToken),
        };
        let stored = self.offer(&key, &entry, origin, how, now).is_kept();
        let served = if stored { None } else { self.stored(&key, now) };
        if holds || stored || !entry.is_live(now) {
            let told = served.as_ref().unwrap_or(&entry).clone();
            self.with_table(now, out, |table, now, actions| {
                table.publish(&key, token.as_ref(), from, &told, now, actions);
            });
        }
        if stored {
            for member in replicate::plan(&view, key.slot(), &entry, &from.member, now).to {
                if let Some(&(link, _)) = self.peers.get(&member) {
                    out.push((link, Message::Copy { key: key.clone(), entry: entry.clone(), write: None }));
                }
            }
        }
    }

    fn send_granter(&mut self, token: &Token, message: Message, now: Moment, out: &mut Out) {
        if *token.granter == *self.me {
            let from = Holder { member: Arc::clone(&self.me), incarnation: self.incarnation };
            self.granter_word(message, &from, now, out);
        } else if let Some(&(link, _)) = self.peers.get(&token.granter) {
            out.push((link, message));
        }
    }

    fn granter_word(&mut self, message: Message, from: &Holder, now: Moment, out: &mut Out) {
        self.with_table(now, out, |table, now, actions| match message {
            Message::Fail { token, kind } => {
                table.fail(&token, kind, from, now, actions);
            }
            Message::Release { token } => {
                table.release(&token, from, now, actions);
            }
            Message::Tick { working, struggling } => table.tick(from, &working, &struggling, now, actions),
            other => panic!("{other:?} is no word for a granter"),
        });
    }

    fn offer(&mut self, key: &Key, entry: &Entry, origin: Origin, how: How, now: Moment) -> Decision {
        if !self.admits(key, entry) {
            return Decision::Overtaken;
        }
        match self.sound(key) {
            Some(held) => drop(self.store.insert(key.clone(), held)),
            None => drop(self.store.remove(key)),
        }
        let decision = admit(self.store.get(key), entry, &origin, how, now);
        let sourced = Sourced { entry: entry.clone(), origin, taken: now };
        match decision {
            Decision::Store => {
                self.store.insert(key.clone(), Held { front: sourced, behind: None });
            }
            Decision::Behind => {
                self.store.get_mut(key).expect("there must be one to wait behind").behind = Some(Box::new(sourced));
            }
            Decision::KeepExisting
            | Decision::Older
            | Decision::Rejuvenated
            | Decision::Overtaken
            | Decision::DeadOnArrival => {}
        }
        decision
    }

    fn changed(&mut self, changes: Changes, now: Moment, out: &mut Out) {
        for (member, incarnation) in changes.gone {
            self.with_table(now, out, |table, now, actions| table.member_gone(&member, incarnation, now, actions));
        }
    }

    fn with_table(&mut self, now: Moment, out: &mut Out, work: impl FnOnce(&mut Table, Moment, &mut Vec<Action>)) {
        let mut actions = Vec::new();
        work(&mut self.table, now, &mut actions);
        while !actions.is_empty() {
            for action in std::mem::take(&mut actions) {
                if let Some(token) = self.act(action, out) {
                    self.table.undelivered(&token, now, &mut actions);
                }
            }
        }
    }

    /// Gives back the token of a grant that has nobody to go to.
    fn act(&self, action: Action, out: &mut Out) -> Option<Token> {
        let is_open = |link| self.local == Some(link) || self.peers.values().any(|&(peer, _)| peer == link);
        match action {
            Action::Reply { link, request, reply } if is_open(link) => {
                out.push((link, Message::Reply { id: request, reply }));
            }
            Action::Reply { reply: Reply::Granted { token, .. }, .. } => return Some(token),
            Action::Tick { link, tokens } if is_open(link) => {
                out.push((link, Message::Tick { working: tokens, struggling: Vec::new() }));
            }
            Action::Watch { holder, stream, token } => {
                let link = if holder.member == self.me {
                    Some(stream)
                } else {
                    self.peers.get(&holder.member).map(|&(link, _)| link)
                };
                out.extend(link.filter(|&link| is_open(link)).map(|link| (link, Message::Watch { token })));
            }
            Action::Reply { .. } | Action::Tick { .. } => {}
        }
        None
    }

    fn tell_dns(&self, message: Message, out: &mut Out) {
        out.extend(self.local.map(|local| (local, message)));
    }
}

fn admitted(purges: &Book, key: &Key, entry: &Entry) -> bool {
    purges.log().covers(key) <= entry.since
}

/// An answer for those alone who wait for it. The packets here are no DNS messages: only the life goes.
pub(crate) fn overtaken(entry: &Entry) -> Entry {
    Entry { lifetime: Duration::ZERO, ..entry.clone() }
}
