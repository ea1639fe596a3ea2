//! A lookup of this replica's own dns-server on its way through the cluster.

use std::pin::pin;
use std::sync::Arc;

use heimdall_shared::clock::Moment;
use heimdall_shared::link::{Lookup, LookupMode, Message, Reply};
use heimdall_shared::telemetry::Span;
use tokio::time::{Instant, sleep_until};

use super::route::Route;
use super::{OUTCOME, ReplyTo, answer, reply, span};
use crate::agent::Agent;
use crate::ask_first::{self, Grant};
use crate::links::Peer;
use crate::metrics::Routed;
use crate::publish;
use crate::request::Request;

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
