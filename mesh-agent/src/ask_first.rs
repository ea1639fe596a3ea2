//! Somebody else who is asked before the upstream: the holder's side of a grant from an owner that lacks entries still.
//!
//! The one asked gives its entry, or lets the asker wait for a lease of its own that is at work; it never grants. What
//! comes of it is published under the lease like an upstream's answer. Else the lease goes to the dns-server, as ever.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use heimdall_shared::clock::Moment;
use heimdall_shared::entry::Entry;
use heimdall_shared::key::Key;
use heimdall_shared::link::{Lookup, LookupMode, Message, Publish, Reply};
use heimdall_shared::token::Token;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agent::Agent;
use crate::granter::{Event, Publication};
use crate::lease::Holder;
use crate::links::Peer;
use crate::lookup::{ReplyTo, reply};
use crate::publish;
use crate::request::Request;

/// Grants to this replica's own dns-server that may be under way here at a time, and that may wait for their turn. One more
/// goes to the dns-server at once.
const AT_ONCE: usize = 1_024;

/// Longest wait for a lease of another granter: the usual length of one. The dns-server gives up its patience long before
/// when that lease is not at work.
const WAIT_WITHIN: Duration = Duration::from_secs(5);

/// A lease that is this replica's dns-server's to be, once somebody else was asked.
#[derive(Debug)]
pub struct Grant {
    /// Who asked for it.
    pub to: ReplyTo,
    /// The key.
    pub key: Key,
    /// The lease.
    pub token: Token,
    /// Whether others wait for it already.
    pub takeover: bool,
    /// Who is asked.
    pub first: Arc<str>,
}

/// A grant that is still to be followed. Dropped, its lease goes back to its granter.
pub struct Unfollowed {
    agent: Arc<Agent>,
    grant: Option<Grant>,
}

impl Unfollowed {
    /// Nobody was asked yet.
    pub const fn new(agent: Arc<Agent>, grant: Grant) -> Self {
        Self { agent, grant: Some(grant) }
    }

    /// Follows it.
    pub async fn follow(mut self) {
        if let Some(grant) = self.grant.take() {
            follow(&self.agent, grant).await;
        }
    }
}

impl Drop for Unfollowed {
    fn drop(&mut self) {
        if let Some(grant) = self.grant.take() {
            publish::release(&self.agent, grant.token);
        }
    }
}

/// Leases that are waited for on behalf of leases that this replica holds: a sign of work on the one is one on the other.
#[derive(Debug, Default)]
pub struct Relays(Mutex<HashMap<Token, Token>>);

impl Relays {
    /// The leases held here on whose behalf any of `working` is waited for.
    pub fn behind(&self, working: &[Token]) -> Vec<Token> {
        let relays = self.relays();
        if relays.is_empty() {
            return Vec::new();
        }
        working.iter().filter_map(|token| relays.get(token).cloned()).collect()
    }

    fn relays(&self) -> MutexGuard<'_, HashMap<Token, Token>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A lease in this module's hands: dropped, it goes back to its granter.
struct InHand<'a> {
    agent: &'a Agent,
    token: Option<Token>,
    relayed: Option<Token>,
}

impl InHand<'_> {
    fn wait_for(&mut self, other: &Token) {
        if let Some(token) = &self.token {
            self.agent.relays.relays().insert(other.clone(), token.clone());
            self.relayed = Some(other.clone());
        }
    }

    /// It is somebody else's from now on.
    fn pass(mut self) {
        self.token = None;
    }
}

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        if let Some(other) = self.relayed.take() {
            self.agent.relays.relays().remove(&other);
        }
        if let Some(token) = self.token.take() {
            publish::release(self.agent, token);
        }
    }
}

/// Asks, publishes what is found, and tells the dns-server.
pub async fn follow(agent: &Agent, grant: Grant) {
    let Grant { to, key, token, takeover, first } = grant;
    let mut in_hand = InHand { agent, token: Some(token.clone()), relayed: None };
    // Those who may be waiting see that it is at work; a takeover is confirmed by it.
    publish::tick(agent, std::slice::from_ref(&token), &[]);
    agent.metrics.asked_first.inc();
    let found = match whom(agent, &key, &first, &token.granter) {
        Some(peer) => timeout(WAIT_WITHIN, find(agent, to, &key, &peer, &mut in_hand)).await.ok().flatten(),
        None => None,
    };
    match found {
        Some((peer, entry)) => {
            agent.metrics.asked_first_found.inc();
            in_hand.pass();
            share(agent, &peer, &key, &entry, token);
            reply(agent, to, Reply::Entry(entry));
        }
        None if reply(agent, to, Reply::Granted { token, takeover, ask_first: None }) => in_hand.pass(),
        // Whoever asked is gone or takes no more messages: the lease must not wait for him.
        None => drop(in_hand),
    }
}

/// The first from `named` on in the key's order to whom this replica has a link: the granter may have none to the one that it
/// names, and then does not know whether that one is there. A member that leaves is not asked for anything else, but still
/// for this.
fn whom(agent: &Agent, key: &Key, named: &str, granter: &str) -> Option<Arc<Peer>> {
    let view = agent.view();
    let linked = |name: &str| agent.links.peer(name).filter(|peer| peer.is_usable());
    let order = view.ring().order(key.slot()).skip_while(|name| ***name != *named);
    order.filter(|name| ***name != *granter).find_map(|name| linked(name)).or_else(|| linked(named))
}

async fn find(
    agent: &Agent,
    to: ReplyTo,
    key: &Key,
    peer: &Arc<Peer>,
    in_hand: &mut InHand<'_>,
) -> Option<(Arc<Peer>, Entry)> {
    let lookup = Lookup {
        key: key.clone(),
        deadline: WAIT_WITHIN,
        skipped: Vec::new(),
        stream: to.link,
        trace: None,
        mode: LookupMode::JoinOnly,
    };
    let asked = Moment::now();
    let mut request = Request::send(peer, |id| Message::Lookup { id, lookup })?;
    let Ok(mut word) = timeout(peer.budget(agent.budgets.peer), request.replies().recv()).await else {
        peer.was_silent(asked, Moment::now());
        agent.metrics.peer_silent.inc();
        return None;
    };
    loop {
        match word? {
            Reply::Entry(entry) if !agent.store.admits(key, &entry) => {
                agent.metrics.overtaken.inc();
                return None;
            }
            Reply::Entry(entry) => {
                let entry = agent.check(key, &entry).ok()?;
                agent.trust.taken(key, &entry, &peer.member);
                return Some((Arc::clone(peer), entry));
            }
            Reply::Held { token, holder } => {
                in_hand.wait_for(&token);
                reply(agent, to, Reply::Held { token, holder });
            }
            Reply::Working => {}
            Reply::Granted { token, .. } => {
                // A release that does not know this question. Nobody works on that lease.
                let _ = peer.link.push(Message::Release { token });
                return None;
            }
            _ => return None,
        }
        // From here on silence is judged by the dns-server, which has one timer for the whole miss.
        word = request.replies().recv().await;
    }
}

/// Publishes an entry of `peer`'s under the lease `token`.
fn share(agent: &Agent, peer: &Peer, key: &Key, entry: &Entry, token: Token) {
    agent.store.keep_fetched(key, entry, &peer.member, &agent.view(), Moment::now());
    if *token.granter == *agent.name {
        let from = Holder { member: Arc::clone(&agent.name), incarnation: agent.incarnation };
        let publication = Publication {
            key: key.clone(),
            entry: entry.clone(),
            token: Some(token),
            from,
            level: None,
            reply_to: None,
        };
        if agent.granter.send(Event::Publish(publication)).is_err() {
            agent.metrics.granter_full.inc();
        }
    } else if let Some(granter) = agent.links.peer(&token.granter) {
        let publish = Publish { key: key.clone(), entry: entry.clone(), token: Some(token), level: None };
        if granter.link.push(Message::Publish { id: 0, publish }).is_err() {
            agent.metrics.undelivered.inc();
        }
    }
}

/// The queue of grants to this replica's own dns-server.
pub fn channel() -> (mpsc::Sender<Grant>, mpsc::Receiver<Grant>) {
    mpsc::channel(AT_ONCE)
}

/// Follows the grants that this replica's own granter made to its own dns-server, until `stop` is cancelled.
pub async fn run(agent: Arc<Agent>, mut grants: mpsc::Receiver<Grant>, tasks: TaskTracker, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    while let Some(Some(grant)) = stop.run_until_cancelled(grants.recv()).await {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { break };
        let agent = Arc::clone(&agent);
        let stop = stop.clone();
        tasks.spawn(async move {
            stop.run_until_cancelled(follow(&agent, grant)).await;
            drop(place);
        });
    }
}
