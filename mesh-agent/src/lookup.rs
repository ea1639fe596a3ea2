//! The way of a lookup through the cluster: own store → owner → the next in the key's order → the upstream.
//!
//! At most one hop: what a peer asks is answered from here or from nowhere ([`for_peer`]); only what this replica's own
//! dns-server asks is routed ([`Way`]).

use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use heimdall_shared::clock::Moment;
use heimdall_shared::link::{Lookup, LookupMode, Message, Reply};
use heimdall_shared::telemetry::Span;
use tokio::time::{Instant, sleep_until};

use crate::agent::Agent;
use crate::ask_first::{self, Grant};
use crate::granter::{Ask, Event};
use crate::lease::{Asker, Holder, Join, LinkId};
use crate::links::Peer;
use crate::metrics::Routed;
use crate::publish;
use crate::repair;
use crate::request::Request;
use crate::ring::Ring;

/// An asker whose answer takes longer than this is told that somebody works on it. Most answers take less, and then the
/// answer itself is the first word: another one would cost as much as the answer. A dns-server bears ten times as much
/// before it counts silence.
pub const FIRST_WORD_WITHIN: Duration = Duration::from_millis(5);

/// An answer may take a few smoothed round trips to arrive: machines have pauses.
const ARRIVAL_ROUND_TRIPS: u32 = 3;

/// But this much is allowed for at least and at most; it is what the entry's life loses for peers.
const ARRIVAL: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(80));

/// Where the replies to a lookup go.
#[derive(Clone, Copy, Debug)]
pub struct ReplyTo {
    /// The connection that asked.
    pub link: LinkId,
    /// The request's id there.
    pub request: u64,
}

/// The attribute of a lookup's span that says how it ended: the kind of its reply in one word.
pub const OUTCOME: &str = "heimdall.outcome";

/// A span of this replica's part in a lookup, if the asker's is recorded.
fn span(agent: &Agent, lookup: &Lookup, name: &'static str) -> Option<Span> {
    let mut span = agent.tracer.child(lookup.trace.as_ref()?, name)?;
    span.attribute("heimdall.replica", agent.name.to_string());
    Some(span)
}

/// Answers a lookup of this replica's own dns-server from the own store, if that can.
pub fn stored(agent: &Agent, to: ReplyTo, lookup: &Lookup, now: Moment) -> bool {
    let Some(reply) = from_store(agent, &agent.name, lookup, Duration::ZERO, now) else { return false };
    answer(agent, to, span(agent, lookup, "agent.lookup"), reply);
    true
}

/// What this replica's store has for a lookup, if it lives for `margin` more.
fn from_store(agent: &Agent, asker: &str, lookup: &Lookup, margin: Duration, now: Moment) -> Option<Reply> {
    let key = &lookup.key;
    if let LookupMode::Refresh { held } = lookup.mode {
        return agent.store.younger(key, held, now + margin).map(Reply::Entry);
    }
    match (agent.store.find(key, now + margin), lookup.mode) {
        (Some(found), _) => {
            repair::owner(agent, key, &found, now);
            if let (Some(from), true) = (found.origin.peer(), *asker == *agent.name) {
                agent.trust.taken(key, &found.entry, from);
            }
            Some(Reply::Entry(found.entry))
        }
        (None, LookupMode::Stale { within }) => agent.store.stale(key, within, now).map(Reply::Stale),
        (None, _) => None,
    }
}

/// Answers a peer's lookup from this replica alone.
pub fn for_peer(agent: &Agent, from: &Holder, to: ReplyTo, lookup: Lookup, now: Moment) {
    let span = span(agent, &lookup, "owner.lookup");
    agent.metrics.peer_lookups.inc();
    let margin = if lookup.mode.only_looks() { Duration::ZERO } else { arrival(agent, &from.member) };
    if let Some(reply) = from_store(agent, &from.member, &lookup, margin, now) {
        if matches!(reply, Reply::Stale(_)) {
            agent.metrics.stale_given.inc();
        } else {
            agent.metrics.peer_lookups_hit.inc();
        }
        answer(agent, to, span, reply);
        return;
    }
    if lookup.mode.only_looks() {
        answer(agent, to, span, Reply::Proceed);
        return;
    }
    if lookup.mode == LookupMode::JoinOnly {
        // The asker's owner is another one; only a lease that runs here is of interest.
        let asker = asker(from, to, &lookup);
        ask_granter(agent, to, Ask { key: lookup.key, asker, join: Join::Only, margin, refresh: None, span });
        return;
    }
    if let Some(before) = better_placed(agent, &lookup) {
        agent.metrics.elsewhere.inc();
        answer(agent, to, span, Reply::Elsewhere(before));
        return;
    }
    if agent.view().is_leaving() {
        // Nobody else is there to ask, and who leaves grants nothing new.
        answer(agent, to, span, Reply::Proceed);
        return;
    }
    let (asker, join, refresh) = (asker(from, to, &lookup), join(lookup.mode), refresh(lookup.mode));
    ask_granter(agent, to, Ask { key: lookup.key, asker, join, refresh, margin, span });
}

fn asker(from: &Holder, to: ReplyTo, lookup: &Lookup) -> Asker {
    Asker {
        link: to.link,
        request: to.request,
        member: Arc::clone(&from.member),
        incarnation: from.incarnation,
        stream: lookup.stream,
        trace: lookup.trace,
    }
}

const fn join(mode: LookupMode) -> Join {
    match mode {
        LookupMode::Join | LookupMode::Refresh { .. } => Join::Now,
        LookupMode::JoinOnly => Join::Only,
        LookupMode::Acquire | LookupMode::Peek | LookupMode::Stale { .. } => Join::Later,
    }
}

/// When the entry was born that the asker wants a younger one for.
const fn refresh(mode: LookupMode) -> Option<Moment> {
    match mode {
        LookupMode::Refresh { held } => Some(held),
        _ => None,
    }
}

/// How far on the peer's clock of an entry may be when our answer arrives: it counts from when it asked. What would be
/// dead by then is no answer to it, or it would ask again and again until the entry is over here too.
fn arrival(agent: &Agent, member: &str) -> Duration {
    let round_trip = agent.links.peer(member).and_then(|peer| peer.link.round_trip());
    round_trip.map_or(Duration::ZERO, |time| (time * ARRIVAL_ROUND_TRIPS).clamp(ARRIVAL.0, ARRIVAL.1))
}

/// The member to ask instead of this one: the first in the key's order that is neither skipped by the asker nor dead to
/// this replica. None when that is this replica, which then acts as the owner, or when there is nobody. A replica that is
/// leaving counts itself out.
fn better_placed(agent: &Agent, lookup: &Lookup) -> Option<Arc<str>> {
    let view = agent.view();
    let first = view.target(lookup.key.slot(), &lookup.skipped)?;
    (*first != agent.name).then(|| Arc::clone(first))
}

/// A lookup of this replica's own dns-server on its way through the cluster. Replies go to whoever asked as they come: a peer that
/// holds the asker back is relayed, so that ticks can be waited for.
pub struct Way {
    to: ReplyTo,
    lookup: Lookup,
    arrived: Moment,
    span: Option<Span>,
    route: Route,
    /// The member to be asked next.
    next: (Arc<str>, Arc<Peer>),
}

impl Way {
    /// Begins at the first member that can be asked. `None` when that is this replica, whose granter now has the lookup, or when
    /// there is nobody: then nothing is left to wait for.
    pub fn begin(agent: &Agent, to: ReplyTo, lookup: Lookup) -> Option<Self> {
        let arrived = Moment::now();
        let mut span = span(agent, &lookup, "agent.lookup");
        let lookup = Lookup { trace: span.as_ref().map(|span| span.context()).or(lookup.trace), ..lookup };
        let mut route = Route::new(agent, &lookup);
        let next = route.next_peer(agent, to, &lookup, &mut span)?;
        Some(Self { to, lookup, arrived, span, route, next })
    }

    /// Goes on, `until` nobody waits for the answer any more.
    pub async fn go(mut self, agent: &Agent, until: Instant) {
        loop {
            let (member, peer) = self.next;
            let deadline = self.lookup.deadline.saturating_sub(Moment::now().since(self.arrived));
            let hop = Lookup { skipped: self.route.skipped.clone(), deadline, ..self.lookup.clone() };
            match ask_peer(agent, &peer, self.to, hop, &mut self.span, until).await {
                Asked::Answered => {
                    agent.metrics.routed(Routed::Peer);
                    return;
                }
                Asked::Limit => {
                    agent.metrics.routed(Routed::Limit);
                    answer(agent, self.to, self.span, Reply::Proceed);
                    return;
                }
                Asked::Late => return,
                Asked::Nothing => {}
                Asked::Elsewhere(other) => self.route.redirect(member, other),
                Asked::Unreachable => self.route.skip(member),
            }
            let Some(next) = self.route.next_peer(agent, self.to, &self.lookup, &mut self.span) else { return };
            self.next = next;
        }
    }
}

/// The members still to be asked, in order, and those that could not be.
struct Route {
    ring: Arc<Ring>,
    slot: u16,
    /// The rank of the next one, and where they end.
    ranks: Range<usize>,
    skipped: Vec<Arc<str>>,
    /// Whom a member sent us to.
    redirect: Option<Arc<str>>,
    /// Whether it is to be asked next.
    redirected: bool,
}

impl Route {
    fn new(agent: &Agent, lookup: &Lookup) -> Self {
        let ring = agent.view().ring_shared();
        let end = match lookup.mode {
            // Nobody else was ever given a copy to keep.
            LookupMode::Stale { .. } => ring.replication_factor(),
            _ => usize::MAX,
        };
        let slot = lookup.key.slot();
        Self { ring, slot, ranks: 0..end, skipped: Vec::new(), redirect: None, redirected: false }
    }

    /// The next peer that can be asked. `None` when it is this replica's own turn and its granter has the lookup, or when nobody
    /// is left and the asker knows.
    fn next_peer(
        &mut self,
        agent: &Agent,
        to: ReplyTo,
        lookup: &Lookup,
        span: &mut Option<Span>,
    ) -> Option<(Arc<str>, Arc<Peer>)> {
        loop {
            let Some(member) = self.next() else {
                agent.metrics.routed(Routed::Nobody);
                answer(agent, to, span.take(), Reply::Proceed);
                return None;
            };
            if *member != *agent.name {
                match agent.usable_peer(&member) {
                    Some(peer) => return Some((member, peer)),
                    None => self.skip(member),
                }
            } else if lookup.mode.only_looks() || !agent.view().is_up(&member) {
                self.skip(member);
            } else {
                agent.metrics.routed(Routed::Own);
                let own = Holder { member, incarnation: agent.incarnation };
                let (asker, join, refresh) = (asker(&own, to, lookup), join(lookup.mode), refresh(lookup.mode));
                let (key, span) = (lookup.key.clone(), span.take());
                ask_granter(agent, to, Ask { key, asker, join, refresh, margin: Duration::ZERO, span });
                return None;
            }
        }
    }

    fn next(&mut self) -> Option<Arc<str>> {
        if self.redirected {
            self.redirected = false;
            return self.redirect.clone();
        }
        loop {
            let member = self.ring.order(self.slot).nth(self.ranks.next()?)?;
            if self.redirect.as_ref() != Some(member) {
                return Some(Arc::clone(member));
            }
        }
    }

    fn skip(&mut self, member: Arc<str>) {
        self.skipped.push(member);
    }

    /// One redirect is followed per miss: members that disagree about the order cost a duplicate, never a loop.
    fn redirect(&mut self, from: Arc<str>, to: Arc<str>) {
        if self.redirect.is_some() || self.skipped.contains(&to) {
            self.ranks = 0..0;
            return;
        }
        self.skipped.push(from);
        (self.redirect, self.redirected) = (Some(to), true);
    }
}

enum Asked {
    /// The final reply went to the asker.
    Answered,
    /// The peer has no entry (a peek).
    Nothing,
    /// The peer sends us to another member.
    Elsewhere(Arc<str>),
    /// No first word within the budget, the link broke, or what came was no answer to the key.
    Unreachable,
    /// Too many requests are under way on the link.
    Limit,
    /// Nobody waits any more.
    Late,
}

async fn ask_peer(
    agent: &Agent,
    peer: &Arc<Peer>,
    to: ReplyTo,
    lookup: Lookup,
    span: &mut Option<Span>,
    until: Instant,
) -> Asked {
    let asked = Moment::now();
    let mode = lookup.mode;
    let key = lookup.key.clone();
    let Some(mut request) = Request::send(peer, |id| Message::Lookup { id, lookup }) else {
        return if peer.link.is_closed() { Asked::Unreachable } else { Asked::Limit };
    };
    let sent = Instant::now();
    let first_word = agent.first_words.begin(sent);
    let mut word = by(first_word.over(), request.replies().recv()).await;
    drop(first_word);
    if word.is_none() {
        // The first word, unless it came before: from now on silence means that something is wrong.
        reply(agent, to, Reply::Working);
        let silence = sleep_until(until.min(sent + peer.budget(agent.budgets.peer)));
        word = by(silence, request.replies().recv()).await;
    }
    let Some(mut word) = word else {
        if Instant::now() >= until {
            return Asked::Late;
        }
        peer.was_silent(asked, Moment::now());
        agent.metrics.peer_silent.inc();
        return Asked::Unreachable;
    };
    // Set when it is first waited for: most lookups have ended by then.
    let mut end = pin!(sleep_until(until));
    loop {
        match word {
            None => return Asked::Unreachable,
            Some(Reply::Elsewhere(other)) => return Asked::Elsewhere(other),
            Some(Reply::Proceed) if mode.only_looks() => return Asked::Nothing,
            Some(Reply::Stale(entry)) => {
                let accepted = match mode {
                    LookupMode::Stale { .. } if agent.store.admits(&key, &entry) => agent.check(&key, &entry).ok(),
                    _ => None,
                };
                let Some(entry) = accepted else {
                    agent.metrics.refused_entries.inc();
                    return Asked::Unreachable;
                };
                answer(agent, to, span.take(), Reply::Stale(entry));
                return Asked::Answered;
            }
            Some(Reply::Entry(entry)) if !agent.store.admits(&key, &entry) => {
                // Its sender had not heard of the purge: what it has is none.
                agent.metrics.overtaken.inc();
                return Asked::Unreachable;
            }
            Some(Reply::Entry(entry)) => {
                let Ok(entry) = agent.check(&key, &entry) else {
                    agent.metrics.refused_entries.inc();
                    return Asked::Unreachable;
                };
                agent.store.keep_fetched(&key, &entry, &peer.member, &agent.view(), Moment::now());
                agent.trust.taken(&key, &entry, &peer.member);
                agent.metrics.peer_entries.inc();
                answer(agent, to, span.take(), Reply::Entry(entry));
                return Asked::Answered;
            }
            Some(word) => {
                // Who does not join gets no result after the token.
                let is_held = matches!(word, Reply::Held { .. });
                if let Reply::Granted { token, takeover, ask_first: Some(first) } = word {
                    if let Some(mut span) = span.take() {
                        span.attribute(OUTCOME, "granted");
                    }
                    // Boxed: it is rare, and no other lookup's task must have room for it.
                    Box::pin(ask_first::follow(agent, Grant { to, key, token, takeover, first })).await;
                    return Asked::Answered;
                }
                if word.is_final() || is_held && mode == LookupMode::Acquire {
                    let granted = match &word {
                        Reply::Granted { token, .. } => Some(token.clone()),
                        _ => None,
                    };
                    if !answer(agent, to, span.take(), word) {
                        // Whoever asked is gone or takes no more messages: the lease must not wait for him.
                        granted.into_iter().for_each(|token| publish::release(agent, token));
                    }
                    return Asked::Answered;
                }
                if let Some(span) = span.as_mut().filter(|_| is_held) {
                    span.event("held");
                }
                reply(agent, to, word);
            }
        }
        // From here on silence is judged by the dns-server, which has one timer for the whole miss.
        match by(end.as_mut(), request.replies().recv()).await {
            Some(next) => word = next,
            None => return Asked::Late,
        }
    }
}

/// What comes of `future`, unless `alarm` goes off before.
async fn by<T>(alarm: impl Future<Output = ()>, future: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        output = future => Some(output),
        () = alarm => None,
    }
}

fn ask_granter(agent: &Agent, to: ReplyTo, ask: Ask) {
    if agent.granter.send(Event::Ask(Box::new(ask))).is_err() {
        agent.metrics.granter_full.inc();
        reply(agent, to, Reply::Proceed);
    }
}

/// The last reply to a lookup, which also ends its span. Whether it is on its way.
fn answer(agent: &Agent, to: ReplyTo, span: Option<Span>, last: Reply) -> bool {
    if let Some(mut span) = span {
        span.attribute(OUTCOME, last.as_str());
    }
    reply(agent, to, last)
}

pub(crate) fn reply(agent: &Agent, to: ReplyTo, reply: Reply) -> bool {
    let sent = agent.links.reply(to.link, to.request, reply).is_ok();
    if !sent {
        agent.metrics.undelivered.inc();
    }
    sent
}
