//! A lookup of this replica's own dns-server on its way through the cluster: from one member to the next, word for word.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;

use heimdall_shared::clock::Moment;
use heimdall_shared::link::{Lookup, LookupMode, Message, Reply};
use heimdall_shared::telemetry::Span;
use tokio::time::{Instant, sleep_until};

use super::route::Route;
use super::{FIRST_WORD_WITHIN, OUTCOME, ReplyTo, answer, reply, span};
use crate::agent::Agent;
use crate::ask_first::{Grant, Unfollowed};
use crate::links::Peer;
use crate::metrics::Routed;
use crate::publish;
use crate::request::Request;

/// A lookup of this replica's own dns-server on its way through the cluster. Replies go to whoever asked as they come: a peer that
/// holds the asker back is relayed, so that ticks can be waited for.
pub struct Way {
    agent: Arc<Agent>,
    to: ReplyTo,
    lookup: Lookup,
    arrived: Moment,
    /// Nobody waits for the answer any more.
    until: Instant,
    span: Option<Span>,
    route: Route,
    /// The member that is asked, or will be next.
    member: Arc<str>,
    peer: Arc<Peer>,
}

impl fmt::Debug for Way {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Way").field("to", &self.to).field("member", &self.member).finish_non_exhaustive()
    }
}

/// What follows from a peer's word.
pub(super) enum Then {
    /// Nothing: whoever asked has what there is.
    Over,
    /// The peer says more.
    Listen,
    /// Another member is asked.
    Next,
    /// Somebody is asked before the lease is used.
    Follow(Unfollowed),
}

/// Where a task takes a lookup up.
pub(super) enum From {
    /// Its member is to be asked.
    Member,
    /// Its first peer was asked then, when it arrived, and is silent so far.
    Silence(Request, Instant),
    /// Its peer has said something; and may say more, when there is a request.
    Word(Then, Option<Request>),
}

impl Way {
    /// Begins at the first member that can be asked. `None` when that is this replica, whose granter now has the lookup, or when
    /// there is nobody: then nothing is left to wait for.
    pub fn begin(agent: &Arc<Agent>, to: ReplyTo, lookup: Lookup, arrived: Moment, until: Instant) -> Option<Self> {
        let mut span = span(agent, &lookup, "agent.lookup");
        let lookup = Lookup { trace: span.as_ref().map(|span| span.context()).or(lookup.trace), ..lookup };
        let mut route = Route::new(agent, &lookup);
        let (member, peer) = route.next_peer(agent, to, &lookup, &mut span)?;
        Some(Self { agent: Arc::clone(agent), to, lookup, arrived, until, span, route, member, peer })
    }

    /// Asks one member after the other until there is an answer.
    pub async fn go(self) {
        self.go_on(From::Member).await;
    }

    pub(super) async fn go_on(mut self, from: From) {
        let mut then = match from {
            From::Member => self.ask().await,
            From::Silence(request, sent) => self.bear_silence(request, self.arrived, sent).await,
            From::Word(Then::Listen, Some(request)) => self.listen(request).await,
            From::Word(then, _) => then,
        };
        loop {
            match then {
                Then::Over | Then::Listen => return,
                Then::Next if self.turn() => then = self.ask().await,
                Then::Next => return,
                // Boxed: it is rare, and no other lookup's task must have room for it.
                Then::Follow(grant) => return Box::pin(grant.follow()).await,
            }
        }
    }

    /// Its number on the stream that asked.
    pub(super) const fn number(&self) -> u64 {
        self.to.request
    }

    pub(super) fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// What is said to its peer at `now`.
    pub(super) fn question(&self, now: Moment) -> Lookup {
        let deadline = self.lookup.deadline.saturating_sub(now.since(self.arrived));
        Lookup { skipped: self.route.skipped.clone(), deadline, ..self.lookup.clone() }
    }

    /// Turns to the next member that can be asked.
    fn turn(&mut self) -> bool {
        let next = self.route.next_peer(&self.agent, self.to, &self.lookup, &mut self.span);
        let is_there = next.is_some();
        if let Some((member, peer)) = next {
            (self.member, self.peer) = (member, peer);
        }
        is_there
    }

    /// The question could not be sent.
    pub(super) fn unsent(&mut self) -> Then {
        if self.peer.link.is_closed() {
            return self.skip();
        }
        // Too many requests are under way on the link.
        self.agent.metrics.routed(Routed::Limit);
        answer(&self.agent, self.to, self.span.take(), Reply::Proceed);
        Then::Over
    }

    /// The member has nothing to say to this key, or what it says is no answer.
    fn skip(&mut self) -> Then {
        self.route.skip(Arc::clone(&self.member));
        Then::Next
    }

    async fn ask(&mut self) -> Then {
        let asked = Moment::now();
        let lookup = self.question(asked);
        let Some(mut request) = Request::send(&self.peer, |id| Message::Lookup { id, lookup }) else {
            return self.unsent();
        };
        let sent = Instant::now();
        match by(sleep_until(sent + FIRST_WORD_WITHIN), request.replies().recv()).await {
            Some(word) => self.heard(word, request).await,
            None => self.bear_silence(request, asked, sent).await,
        }
    }

    /// Nothing was heard for long enough that whoever asked must hear something: from now on silence means that something is wrong.
    async fn bear_silence(&mut self, mut request: Request, asked: Moment, sent: Instant) -> Then {
        reply(&self.agent, self.to, Reply::Working);
        let borne = self.until.min(sent + self.peer.budget(self.agent.budgets.peer));
        if let Some(word) = by(sleep_until(borne), request.replies().recv()).await {
            return self.heard(word, request).await;
        }
        if Instant::now() >= self.until {
            return Then::Over;
        }
        self.peer.was_silent(asked, Moment::now());
        self.agent.metrics.peer_silent.inc();
        self.skip()
    }

    async fn heard(&mut self, word: Option<Reply>, request: Request) -> Then {
        match self.hear(word) {
            Then::Listen => self.listen(request).await,
            then => then,
        }
    }

    /// Hears more. Silence is judged by the dns-server, which has one timer for the whole miss.
    async fn listen(&mut self, mut request: Request) -> Then {
        let mut end = pin!(sleep_until(self.until));
        loop {
            let Some(word) = by(end.as_mut(), request.replies().recv()).await else { return Then::Over };
            match self.hear(word) {
                Then::Listen => {}
                then => return then,
            }
        }
    }

    /// The peer says something, or its link broke.
    pub(super) fn hear(&mut self, word: Option<Reply>) -> Then {
        let (agent, key) = (&self.agent, &self.lookup.key);
        match word {
            None => self.skip(),
            Some(Reply::Elsewhere(other)) => {
                self.route.redirect(Arc::clone(&self.member), other);
                Then::Next
            }
            // It has no entry.
            Some(Reply::Proceed) if self.lookup.mode.only_looks() => Then::Next,
            Some(Reply::Stale(entry)) => {
                let accepted = match self.lookup.mode {
                    LookupMode::Stale { .. } if agent.store.admits(key, &entry) => agent.check(key, &entry).ok(),
                    _ => None,
                };
                let Some(entry) = accepted else {
                    agent.metrics.refused_entries.inc();
                    return self.skip();
                };
                self.answered(Reply::Stale(entry));
                Then::Over
            }
            Some(Reply::Entry(entry)) if !agent.store.admits(key, &entry) => {
                // Its sender had not heard of the purge: what it has is none.
                agent.metrics.overtaken.inc();
                self.skip()
            }
            Some(Reply::Entry(entry)) => {
                let Ok(entry) = agent.check(key, &entry) else {
                    agent.metrics.refused_entries.inc();
                    return self.skip();
                };
                agent.store.keep_fetched(key, &entry, &self.peer.member, &agent.view(), Moment::now());
                agent.trust.taken(key, &entry, &self.peer.member);
                agent.metrics.peer_entries.inc();
                self.answered(Reply::Entry(entry));
                Then::Over
            }
            Some(Reply::Granted { token, takeover, ask_first: Some(first) }) => {
                agent.metrics.routed(Routed::Peer);
                if let Some(mut span) = self.span.take() {
                    span.attribute(OUTCOME, "granted");
                }
                let grant = Grant { to: self.to, key: key.clone(), token, takeover, first };
                Then::Follow(Unfollowed::new(Arc::clone(agent), grant))
            }
            Some(word) => {
                // Who does not join gets no result after the token.
                let is_held = matches!(word, Reply::Held { .. });
                if word.is_final() || is_held && self.lookup.mode == LookupMode::Acquire {
                    let granted = match &word {
                        Reply::Granted { token, .. } => Some(token.clone()),
                        _ => None,
                    };
                    if !self.answered(word) {
                        // Whoever asked is gone or takes no more messages: the lease must not wait for him.
                        granted.into_iter().for_each(|token| publish::release(&self.agent, token));
                    }
                    return Then::Over;
                }
                if let Some(span) = self.span.as_mut().filter(|_| is_held) {
                    span.event("held");
                }
                reply(agent, self.to, word);
                Then::Listen
            }
        }
    }

    /// The last reply comes from the peer. Whether it is on its way.
    fn answered(&mut self, last: Reply) -> bool {
        self.agent.metrics.routed(Routed::Peer);
        answer(&self.agent, self.to, self.span.take(), last)
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
