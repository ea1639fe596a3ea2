//! The way of a lookup through the cluster: own store → owner → the next in the key's order → the upstream.
//!
//! At most one hop: what a peer asks is answered from here or from nowhere ([`for_peer`]); only what this replica's own
//! dns-server asks is routed ([`Way`]).

mod route;
mod under_way;
mod way;

use std::sync::Arc;
use std::time::Duration;

use heimdall_shared::clock::Moment;
use heimdall_shared::link::{Lookup, LookupMode, Reply};
use heimdall_shared::telemetry::Span;

pub use self::under_way::{Asleep, UnderWay, bear_silence};
pub use self::way::Way;
use crate::agent::Agent;
use crate::granter::{Ask, Event};
use crate::lease::{Asker, Holder, Join, LinkId};
use crate::repair;

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
