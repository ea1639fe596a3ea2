//! The way of an answer from this replica's dns-server to the granter of its lease, or to the key's owner.

use std::sync::Arc;

use heimdall_shared::clock::Moment;
use heimdall_shared::link::{FailureKind, Message, Publish};
use heimdall_shared::token::Token;

use crate::agent::Agent;
use crate::granter::{self, Event};
use crate::lease::Holder;
use crate::links::Peer;
use crate::lookup::ReplyTo;

/// Takes an answer from this replica's dns-server. With `reply_to`, what became of it is said there when it stays here;
/// an answer that goes to another replica is acknowledged by that one.
///
/// # Errors
/// The reason why it was refused, for the caller to report.
pub fn from_stream(agent: &Agent, publish: Publish, reply_to: Option<ReplyTo>) -> Result<Destination, String> {
    let Publish { key, entry, token, level } = publish;
    let level = Some(level.unwrap_or(agent.promise.level));
    let entry = agent.check(&key, &entry).map_err(|why| {
        agent.metrics.refused_entries.inc();
        format!("the packet is no answer to {key}: {why}")
    })?;
    let now = Moment::now();
    let view = agent.view();
    let granter = token.as_ref().map(|token| &token.granter);
    // Also one that leaves: it finishes what it granted.
    let linked = |name: &Arc<str>| agent.links.peer(name).filter(|peer| peer.is_usable());
    if let Some(peer) = granter.filter(|granter| ***granter != *agent.name).and_then(linked) {
        agent.store.keep_own(&key, &entry, &agent.name, &view, now);
        return Ok(Destination::Peer(peer, Publish { key, entry, token, level }));
    }
    if granter.is_none_or(|granter| **granter != *agent.name) {
        // No lease, or its granter is gone: an ordinary write to whoever owns the key now.
        let mut before_self = view.ring().order(key.slot()).take_while(|member| **member != agent.name);
        if let Some(peer) = before_self.find_map(|member| agent.usable_peer(member)) {
            agent.store.keep_own(&key, &entry, &agent.name, &view, now);
            return Ok(Destination::Peer(peer, Publish { key, entry, token: None, level }));
        }
    }
    let from = Holder { member: Arc::clone(&agent.name), incarnation: agent.incarnation };
    let event = Event::Publish(granter::Publication { key, entry, token, from, level, reply_to });
    agent.granter.send(event).map_err(|_full| {
        agent.metrics.granter_full.inc();
        "this agent has too much to do; the answer was not shared".to_owned()
    })?;
    Ok(Destination::Here)
}

/// Where a publish goes.
#[derive(Debug)]
pub enum Destination {
    /// This replica's own granter has it.
    Here,
    /// It is for this peer; nothing was sent yet.
    Peer(Arc<Peer>, Publish),
}

/// Takes a holder's word that it has no answer to where the lease was granted.
pub fn fail(agent: &Agent, token: Token, kind: FailureKind) {
    to_granter(agent, token, |token| Message::Fail { token, kind }, |token, from| Event::Fail { token, kind, from });
}

/// Takes an unused lease back to where it was granted.
pub fn release(agent: &Agent, token: Token) {
    to_granter(
        agent,
        token,
        |token| Message::Release { token },
        |token, from| Event::Release { token, from, answer: None },
    );
}

/// Takes the ticks of this replica's holders to the granters.
pub fn tick(agent: &Agent, working: &[Token], struggling: &[Token]) {
    let mut granters: Vec<&Arc<str>> = working.iter().chain(struggling).map(|token| &token.granter).collect();
    granters.sort_unstable();
    granters.dedup();
    for granter in granters {
        let of =
            |tokens: &[Token]| tokens.iter().filter(|token| token.granter == *granter).cloned().collect::<Vec<_>>();
        let (working, struggling) = (of(working), of(struggling));
        if **granter == *agent.name {
            let from = Holder { member: Arc::clone(&agent.name), incarnation: agent.incarnation };
            count_full(agent, agent.granter.send(Event::Tick { from, working, struggling }));
        } else if let Some(peer) = agent.links.peer(granter)
            && peer.link.push(Message::Tick { working, struggling }).is_err()
        {
            agent.metrics.undelivered.inc();
        }
    }
}

fn to_granter(
    agent: &Agent,
    token: Token,
    message: impl FnOnce(Token) -> Message,
    event: impl FnOnce(Token, Holder) -> Event,
) {
    if *token.granter == *agent.name {
        let from = Holder { member: Arc::clone(&agent.name), incarnation: agent.incarnation };
        count_full(agent, agent.granter.send(event(token, from)));
    } else if let Some(peer) = agent.links.peer(&token.granter)
        && peer.link.push(message(token)).is_err()
    {
        agent.metrics.undelivered.inc();
    }
    // Without a link the granter has ended the lease already: it ends with the holder's last link.
}

fn count_full(agent: &Agent, sent: Result<(), granter::Full>) {
    if sent.is_err() {
        agent.metrics.granter_full.inc();
    }
}
