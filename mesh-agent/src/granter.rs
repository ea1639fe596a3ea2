//! The one task that grants leases: it owns the table, looks into the store once more before it grants, and sends what the
//! table decides.

mod copies;
mod events;

use std::sync::Arc;
use std::time::Duration;

use heimdall_shared::clock::Moment;
use heimdall_shared::entry::Entry;
use heimdall_shared::key::Key;
use heimdall_shared::link::{Message, Reply};
use heimdall_shared::token::Token;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{Level, debug, enabled, warn};

use crate::ask_first::Grant;
use crate::lease::{Action, Claim, Holder, Join, LinkId, Table};
use crate::levels::{Promise, Writes};
use crate::links::Links;
use crate::lookup::{OUTCOME, ReplyTo};
use crate::membership::View;
use crate::metrics::Metrics;
use crate::permissions::may_publish;
use crate::store::{Store, Write};
use crate::transfer::Warmth;

pub use self::events::{Ask, Event, Full, Handle, Publication, channel};

/// Events taken at once: what a few batches bring, so that ticks and deadlines never wait long.
const AT_ONCE: usize = 256;

/// Whoever was heard so lately was not stopped while its lease ran out: idle links beat four times as often.
const HEARD_WITHIN: Duration = Duration::from_secs(1);

/// Log target of grants: `--log info,leases=debug` shows them.
const LEASES: &str = "leases";

/// What the task works with.
#[derive(Debug)]
pub struct Granter {
    /// The state.
    pub table: Table,
    /// What happens.
    pub events: mpsc::Receiver<Event>,
    /// The entries of this replica.
    pub store: Arc<Store>,
    /// Who is connected.
    pub links: Arc<Links>,
    /// The members.
    pub view: watch::Receiver<Arc<View>>,
    /// Which entries this replica may lack.
    pub warmth: Arc<Warmth>,
    /// Where grants to the own dns-server go before which somebody else is asked.
    pub ask_first: mpsc::Sender<Grant>,
    /// What publishers are promised.
    pub promise: Promise,
    /// Writes that wait for copies.
    pub writes: Writes<Option<ReplyTo>>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

impl Granter {
    /// Runs until `stop` is cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut events = Vec::with_capacity(AT_ONCE);
        let mut actions = Vec::new();
        loop {
            let deadline = [self.table.next_deadline(), self.writes.next_deadline()].into_iter().flatten().min();
            tokio::select! {
                () = stop.cancelled() => break,
                taken = self.events.recv_many(&mut events, AT_ONCE) => if taken == 0 { break },
                () = sleep_until(deadline) => {}
            }
            let now = Moment::now();
            for event in events.drain(..) {
                self.take(event, now, &mut actions);
            }
            self.table.expire(now, &mut actions);
            self.judge_hoarders(now);
            for outcome in self.writes.expire(now) {
                self.told(&outcome);
            }
            self.send(&mut actions, now);
            self.metrics.leases(self.table.stats(), self.table.sizes());
        }
    }

    /// Leases ran out. Of who was heard meanwhile, and not of who was stopped or cut off, this is its own doing.
    fn judge_hoarders(&mut self, now: Moment) {
        for Holder { member, .. } in self.table.take_overdue() {
            let is_here = self.links.peer(&member).is_some_and(|peer| now.since(peer.link.heard()) < HEARD_WITHIN);
            if is_here && let Some(pause) = self.table.hoarded(&member, now) {
                warn!(%member, for_secs = pause.as_secs(), "member lets its leases run out and gets no more for a while");
            }
        }
    }

    /// Sends what the table decided. A grant that cannot be delivered is nobody's: the next one gets the lease.
    fn send(&mut self, actions: &mut Vec<Action>, now: Moment) {
        // Each round ends leases for good, so there are at most as many as there were waiters.
        while !actions.is_empty() {
            for action in std::mem::take(actions) {
                if let Some(token) = self.act(action) {
                    self.table.undelivered(&token, now, actions);
                }
            }
        }
    }

    fn take(&mut self, event: Event, now: Moment, actions: &mut Vec<Action>) {
        match event {
            Event::Ask(ask) => self.ask(*ask, now, actions),
            Event::Wait { key, token, asker } => self.table.wait(&key, &token, asker, now, actions),
            Event::Tick { from, working, struggling } => {
                self.table.tick(&from, &working, &struggling, now, actions);
            }
            Event::Publish(publication) => self.publish(publication, now, actions),
            Event::Fail { token, kind, from } => {
                self.table.fail(&token, kind, &from, now, actions);
            }
            Event::Release { token, from, answer } => {
                let claim = self.table.release(&token, &from, now, actions);
                if let Some(answer) = answer {
                    // A caller that went away does not need to know.
                    let _ = answer.send(claim == Claim::Live);
                }
            }
            Event::Cancel { link, request } => self.table.cancel(link, request, now, actions),
            Event::StreamGone { member, incarnation, stream } => {
                self.table.stream_gone(&member, incarnation, stream, now, actions);
            }
            Event::MemberGone { member, incarnation } => {
                self.table.member_gone(&member, incarnation, now, actions);
                for outcome in self.writes.gone(&member) {
                    self.told(&outcome);
                }
            }
            Event::Receipt { member, write, held } => {
                if let Some(outcome) = self.writes.receipt(write, &member, held) {
                    self.told(&outcome);
                }
            }
            Event::Purged(purge) => self.table.purge(&purge.scope, now, actions),
            Event::LinkClosed { link } => self.table.link_closed(link, now, actions),
        }
    }

    fn ask(&mut self, ask: Ask, now: Moment, actions: &mut Vec<Action>) {
        let Ask { key, asker, margin, join, refresh, span } = ask;
        let first = actions.len();
        // Look again: the answer may have been published between the asker's look and now.
        let entry = match refresh {
            Some(held) => self.store.younger(&key, held, now + margin),
            None => self.store.get(&key, now + margin),
        };
        if let Some(entry) = entry {
            actions.push(Action::Reply { link: asker.link, request: asker.request, reply: Reply::Entry(entry) });
        } else {
            match join {
                Join::Now => self.table.ask(&key, asker, now, actions),
                Join::Later => self.table.ask_without_joining(&key, asker, now, actions),
                Join::Only => self.table.join_only(&key, asker, now, actions),
            }
        }
        // What was due at the same time may stand before it; the answer to this request is the last one.
        let answer = actions[first..].iter().rev().find_map(|action| match action {
            Action::Reply { reply, .. } => Some(reply),
            _ => None,
        });
        if refresh.is_some() {
            match answer {
                Some(Reply::Granted { .. }) => drop(self.metrics.refresh_leases.inc()),
                Some(Reply::Held { .. }) => drop(self.metrics.refresh_joined.inc()),
                _ => {}
            }
        }
        if let Some(mut span) = span {
            span.attribute(OUTCOME, answer.map_or("ignored", Reply::as_str));
        }
    }

    fn publish(&mut self, publication: Publication, now: Moment, actions: &mut Vec<Action>) {
        let Publication { key, entry, token, from, level, reply_to } = publication;
        let holds = token.as_ref().is_some_and(|token| self.table.holds(&key, token, &from, now));
        let view = Arc::clone(&self.view.borrow());
        let is_own = from.member == *view.self_name();
        if !holds && !is_own && !may_publish(&view, key.slot(), &from.member) {
            self.metrics.refused_publishes.inc();
            if let Some(to) = reply_to {
                let why = "without a lease an answer is published to its owner or a replica".to_owned();
                self.reply(to.link, to.request, Reply::Refused(why));
            }
            return;
        }
        if !self.store.admits(&key, &entry) {
            self.overtaken(&key, token.as_ref().filter(|_| holds), &from, &entry, now, actions);
            if let Some(to) = reply_to {
                self.reply(to.link, to.request, Reply::Refused("it was purged while it was fetched".to_owned()));
            }
            return;
        }
        let write = if holds { Write::WithToken } else { Write::WithoutToken };
        let stored = self.store.publish(&key, &entry, &from.member, write, &view, now);
        // Who waits gets what is served from now on; what is dead on arrival goes to them and is stored nowhere.
        let served = if stored { None } else { self.store.get(&key, now) };
        if holds || stored || !entry.is_live(now) {
            let told = served.as_ref().unwrap_or(&entry);
            self.table.publish(&key, token.as_ref(), &from, told, now, actions);
        }
        if stored {
            // Who waits was told above: a level is between the mesh and the publisher.
            let level = level.unwrap_or(self.promise.level);
            self.replicate(&view, (&key, &entry), &from.member, (level, reply_to), now);
        } else if let Some(to) = reply_to {
            let why = "the owner keeps the entry that it has".to_owned();
            self.reply(to.link, to.request, Reply::Refused(why));
        }
    }

    /// A purge overtook what was fetched: it goes to those who wait for that very fetch, and is stored nowhere.
    fn overtaken(
        &mut self,
        key: &Key,
        token: Option<&Token>,
        from: &Holder,
        entry: &Entry,
        now: Moment,
        actions: &mut Vec<Action>,
    ) {
        self.metrics.overtaken.inc();
        if token.is_some() {
            self.table.publish(key, token, from, &entry.overtaken(), now, actions);
        }
    }

    /// Sends one message. Gives back the token of a grant that could not be delivered.
    fn act(&self, action: Action) -> Option<Token> {
        match action {
            Action::Reply { link, request, reply: Reply::Granted { token, takeover, .. } } => {
                self.log_grant(&token);
                return self.grant(ReplyTo { link, request }, token, takeover);
            }
            Action::Reply { link, request, reply } => {
                self.reply(link, request, reply);
            }
            // The table passes ticks to whoever waits; the streams of the own dns-server are such connections too.
            Action::Tick { link, tokens } => {
                let tick = Message::Tick { working: tokens, struggling: Vec::new() };
                if self.links.push(link, tick).is_err() {
                    self.metrics.undelivered.inc();
                }
            }
            Action::Watch { holder, stream, token } => {
                let watch = Message::Watch { token };
                let pushed = if holder.member == *self.view.borrow().self_name() {
                    self.links.push(stream, watch).is_ok()
                } else {
                    self.links.peer(&holder.member).is_some_and(|peer| peer.link.push(watch).is_ok())
                };
                if !pushed {
                    self.metrics.undelivered.inc();
                }
            }
        }
        None
    }

    /// For whoever wants to know afterwards who was to fetch what. Names stand in logs of this level only.
    fn log_grant(&self, token: &Token) {
        if !enabled!(target: LEASES, Level::DEBUG) {
            return;
        }
        if let Some(lease) = self.table.leases().find(|lease| lease.token == *token) {
            let holders: Vec<_> =
                self.table.leases_of(&lease.key).iter().map(|l| l.holder.member.to_string()).collect();
            debug!(target: LEASES, key = %lease.key, %token, holders = holders.join(","), "granted");
        }
    }

    /// Sends a grant, with the advice whom to ask before the upstream. That is the business of the asker's agent: when the
    /// asker is the own dns-server, of this one. Gives the token back when it could not be delivered.
    fn grant(&self, to: ReplyTo, token: Token, takeover: bool) -> Option<Token> {
        let key = self.table.key_of(&token);
        let first = key.and_then(|key| self.warmth.now().ask_first(key.slot(), &self.view.borrow(), Moment::now()));
        if let (Some(key), Some(first)) = (key, &first)
            && self.links.is_stream(to.link)
        {
            // Cut out of a received message the key would keep all of that in memory meanwhile.
            let grant = Grant { to, key: key.detached(), token: token.clone(), takeover, first: Arc::clone(first) };
            if self.ask_first.try_send(grant).is_ok() {
                return None;
            }
        }
        let reply = Reply::Granted { token: token.clone(), takeover, ask_first: first };
        (!self.reply(to.link, to.request, reply)).then_some(token)
    }

    /// Whether the reply is on its way.
    fn reply(&self, link: LinkId, request: u64, reply: Reply) -> bool {
        let sent = self.links.reply(link, request, reply).is_ok();
        if !sent {
            self.metrics.undelivered.inc();
        }
        sent
    }
}

async fn sleep_until(deadline: Option<Moment>) {
    match deadline {
        Some(deadline) => tokio::time::sleep(deadline.since(Moment::now())).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use bytes::Bytes;
    use futures_util::StreamExt as _;
    use heimdall_shared::key::Flags;

    use heimdall_shared::link::{Beats, Link, Requests, Side};

    use super::*;
    use crate::lease::{Asker, Limits};
    use crate::membership::{Discovered, Membership, Update};

    /// The granter of member a among a to e, one copy of each key, linked to all of them.
    fn granter(now: Moment) -> Granter {
        let discovered = |name: &str| Discovered { name: name.into(), address: "host:1".into() };
        let mut membership = Membership::new(discovered("a"), 1, now);
        let all = ["b", "c", "d", "e"].map(discovered).to_vec();
        membership.step(crate::membership::Event::Discovered(Update::Reset(all)), now);
        for (link, member) in (1..).zip(["b", "c", "d", "e"]) {
            let member = member.into();
            membership.step(crate::membership::Event::LinkUp { member, incarnation: 1, link, advertised: None }, now);
        }
        Granter {
            table: Table::new("a".into(), 9, Limits::default()),
            events: channel().1,
            store: Arc::new(Store::new(1 << 20)),
            links: Arc::new(Links::default()),
            view: watch::channel(membership.view()).1,
            warmth: Arc::new(Warmth::starting(now)),
            ask_first: mpsc::channel(1).0,
            promise: Promise::default(),
            writes: Writes::default(),
            metrics: Arc::new(Metrics::default()),
        }
    }

    /// A key that member a owns, or one that it does not keep.
    fn key(granter: &Granter, owned: bool) -> Key {
        let keys = (b'a'..=b'z').map(|letter| Key::new(&[1, letter, 0], 1, 1, Flags::default(), "").unwrap());
        let view = granter.view.borrow();
        keys.into_iter().find(|key| view.ring().is_replica(key.slot(), "a") == owned).unwrap()
    }

    fn publish(granter: &mut Granter, key: &Key, token: Option<Token>, from: &str, now: Moment) -> Vec<Action> {
        let entry = Entry { packet: Bytes::from_static(b"x"), born: now, lifetime: Duration::from_secs(60), since: 0 };
        let from = Holder { member: from.into(), incarnation: 1 };
        let mut actions = Vec::new();
        let publication = Publication { key: key.clone(), entry, token, from, level: None, reply_to: None };
        granter.publish(publication, now, &mut actions);
        actions
    }

    fn ask(granter: &mut Granter, key: &Key, member: &str, now: Moment) -> Vec<Action> {
        let mut actions = Vec::new();
        let asker = Asker { link: 1, request: 1, member: member.into(), incarnation: 1, stream: 1, trace: None };
        granter.ask(
            Ask { key: key.clone(), asker, margin: Duration::ZERO, join: Join::Now, refresh: None, span: None },
            now,
            &mut actions,
        );
        actions
    }

    #[tokio::test]
    async fn what_the_table_decides_reaches_those_who_asked() {
        let now = Moment::now();
        let mut granter = granter(now);
        let key = key(&granter, true);
        let link = Link::new(now, &Beats::default());
        granter.links.add_stream(&Arc::new(crate::links::LocalStream {
            id: 1,
            link: Arc::clone(&link),
            requests: Requests::new(Side::Acceptor),
            upstreams_failing: false.into(),
        }));
        let mut actions = ask(&mut granter, &key, "a", now);
        let [Action::Reply { reply: Reply::Granted { token, .. }, .. }] = &actions[..] else { panic!("{actions:?}") };
        let token = token.clone();
        let asker = Asker { link: 1, request: 2, member: "a".into(), incarnation: 1, stream: 1, trace: None };
        granter.ask(
            Ask { key: key.clone(), asker, margin: Duration::ZERO, join: Join::Now, refresh: None, span: None },
            now,
            &mut actions,
        );
        granter.send(&mut actions, now);
        actions = publish(&mut granter, &key, Some(token), "a", now);
        granter.send(&mut actions, now);
        link.close();
        let far = Link::new(now, &Beats::default());
        let batches: Vec<_> = link.outgoing().collect().await;
        let said: Vec<_> = batches
            .into_iter()
            .flat_map(|batch| far.receive(batch, now))
            .map(|message| match message {
                Message::Reply { id, reply } => (id, reply.as_str()),
                Message::Watch { .. } => (0, "watch"),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(said, [(1, "granted"), (2, "held"), (0, "watch"), (2, "entry")]);
    }

    #[test]
    fn a_lease_whose_asker_cannot_be_reached_is_not_kept_for_him() {
        let now = Moment::now();
        let mut granter = granter(now);
        let key = key(&granter, true);
        let mut actions = ask(&mut granter, &key, "b", now);
        // One who waits gets it next, and cannot be reached either.
        let asker = Asker { link: 2, request: 1, member: "c".into(), incarnation: 1, stream: 1, trace: None };
        granter.ask(
            Ask { key: key.clone(), asker, margin: Duration::ZERO, join: Join::Now, refresh: None, span: None },
            now,
            &mut actions,
        );
        granter.send(&mut actions, now);
        assert_eq!(granter.table.sizes(), crate::lease::Sizes::default());
        assert_eq!(granter.table.stats().orphaned, 2);
    }

    #[test]
    fn without_a_lease_a_peer_writes_only_where_the_ring_lets_it() {
        let now = Moment::now();
        let mut granter = granter(now);
        let (owned, foreign) = (key(&granter, true), key(&granter, false));
        for (key, from, is_stored) in [
            (&foreign, "b", false),
            (&owned, "stranger", false),
            (&owned, "b", true),
            // The own dns-server may always.
            (&foreign, "a", true),
        ] {
            publish(&mut granter, key, None, from, now);
            assert_eq!(granter.store.get(key, now).is_some(), is_stored, "{key} from {from}");
        }
        assert_eq!(granter.metrics.refused_publishes.get(), 2);
    }

    #[test]
    fn with_a_lease_of_this_granter_its_holder_publishes_whatever_the_ring_says_by_now() {
        let now = Moment::now();
        let mut granter = granter(now);
        let foreign = key(&granter, false);
        let granted = ask(&mut granter, &foreign, "b", now);
        let [Action::Reply { reply: Reply::Granted { token, .. }, .. }] = &granted[..] else { panic!("{granted:?}") };
        publish(&mut granter, &foreign, Some(token.clone()), "c", now);
        assert_eq!(granter.store.get(&foreign, now), None, "c does not hold it");
        publish(&mut granter, &foreign, Some(token.clone()), "b", now);
        assert!(granter.store.get(&foreign, now).is_some());
    }
}
