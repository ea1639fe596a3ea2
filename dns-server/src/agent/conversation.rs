//! One lookup on the link, from its question to its final reply.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::quality::RandomState;
use heimdall_shared::clock::Moment;
use heimdall_shared::entry::Entry;
use heimdall_shared::link::{Full, Message, Pending, Reply};
use heimdall_shared::token::Token;
use heimdall_shared::trace::TraceContext;
use tokio::time::Instant;

use super::{Agent, Lease, Live};
use crate::silence::{Meter, Reading};

/// What the mesh says to a miss. `L` is a lease.
#[derive(Debug, PartialEq, Eq)]
pub enum Word<L> {
    /// Somebody else fetches the answer; its span, when it is traced.
    Held(Option<TraceContext>),
    /// The answer.
    Entry(Entry),
    /// The upstreams themselves failed; how long that holds.
    Failure(Duration),
    /// The right to fetch the answer, at once or after its last holder was lost.
    Granted {
        /// The lease.
        lease: L,
        /// Whether others have been waiting for it.
        takeover: bool,
    },
    /// No lease, just ask.
    Proceed,
    /// An answer that is dead.
    Stale(Entry),
    /// The link broke.
    LinkDown,
}

/// A lookup under way. Dropped before its final reply, it is cancelled.
#[derive(Debug)]
pub struct Conversation {
    agent: Arc<Agent>,
    live: Arc<Live>,
    pending: Pending,
    meter: SharedMeter,
    /// The lease of somebody else that is waited for.
    awaited: Option<Token>,
}

/// The meter of one miss: its task reads it, the link's reader writes the signs into it.
type SharedMeter = Arc<Mutex<Meter>>;

impl Conversation {
    pub(super) fn new(agent: Arc<Agent>, live: Arc<Live>, pending: Pending, now: Moment) -> Self {
        let meter = Meter::new(agent.settings.silence, agent.settings.tick, now);
        Self { agent, live, pending, meter: Arc::new(Mutex::new(meter)), awaited: None }
    }

    /// Sends the question.
    pub(super) fn begin(self, question: Message) -> Result<Self, Full> {
        match self.live.link.push(question) {
            Ok(()) => Ok(self),
            Err(full) => {
                // Nothing was sent, so there is nothing to cancel.
                self.live.requests.close(self.pending.id);
                Err(full)
            }
        }
    }

    /// The next word of the mesh. Cancelling this future loses nothing.
    pub async fn next(&mut self) -> Word<Lease> {
        loop {
            let Some(reply) = self.pending.replies.recv().await else { return Word::LinkDown };
            if let Some(word) = self.hear(reply) {
                return word;
            }
        }
    }

    /// What a reply says; nothing but that somebody is at work, when it says no more.
    pub(super) fn hear(&mut self, reply: Reply) -> Option<Word<Lease>> {
        lock(&self.meter).sign(Moment::now());
        match reply {
            Reply::Working => None,
            Reply::Held { token, holder } => {
                self.listen(token);
                Some(Word::Held(holder))
            }
            last => Some(said(&self.agent, last)),
        }
    }

    /// The silence of this conversation.
    pub fn silence(&self) -> Silence {
        Silence { agent: Arc::clone(&self.agent), meter: Arc::clone(&self.meter) }
    }

    fn listen(&mut self, token: Token) {
        self.live.listeners.replace(self.awaited.take(), &token, &self.meter);
        self.awaited = Some(token);
    }
}

/// What a final reply says.
pub(super) fn said(agent: &Arc<Agent>, reply: Reply) -> Word<Lease> {
    match reply {
        Reply::Entry(entry) => Word::Entry(entry),
        Reply::Stale(entry) => Word::Stale(entry),
        Reply::Failure { remaining } => Word::Failure(remaining),
        Reply::Granted { token, takeover, .. } => {
            Word::Granted { lease: Lease::new(Arc::clone(agent), token), takeover }
        }
        // The agent follows redirects itself, and the rest answers no lookup or ends none.
        Reply::Proceed
        | Reply::Elsewhere(_)
        | Reply::Stored { .. }
        | Reply::Refused(_)
        | Reply::Checked { .. }
        | Reply::Working
        | Reply::Held { .. } => Word::Proceed,
    }
}

/// Watches over the silence of one conversation.
#[derive(Debug)]
pub struct Silence {
    agent: Arc<Agent>,
    meter: SharedMeter,
}

impl Silence {
    /// When it will be spent if nothing is heard.
    pub fn expires_at(&self) -> Moment {
        lock(&self.meter).expires_at()
    }

    /// The same for a timer.
    pub fn due(&self) -> Instant {
        Instant::now() + self.expires_at().since(Moment::now())
    }

    /// The miss has nobody left but the mesh: it is borne anew.
    pub fn renew(&self) {
        lock(&self.meter).renew(Moment::now());
    }

    /// Whether the mesh has been silent for as long as this miss bears it; to be asked when that should be so. The link's
    /// breaker hears of it.
    pub fn is_spent(&self) -> bool {
        let now = Moment::now();
        let mut meter = lock(&self.meter);
        let is_spent = meter.fired(now) == Reading::Spent;
        if is_spent {
            self.agent.hearing.silence(meter.silent_since(), now);
        }
        is_spent
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        if let Some(token) = self.awaited.take() {
            self.live.listeners.forget(&token, &self.meter);
        }
        if self.live.requests.close(self.pending.id) {
            // On this link and no other: ids are those of their link.
            if self.live.link.push(Message::Cancel { id: self.pending.id }).is_err() {
                self.agent.metrics.undelivered.inc();
            }
        }
        // A grant that arrived and was not read.
        self.pending.replies.close();
        while let Some(reply) = self.pending.replies.try_recv() {
            if let Reply::Granted { token, .. } = reply {
                self.agent.metrics.late_grants.inc();
                drop(Lease::new(Arc::clone(&self.agent), token));
            }
        }
    }
}

/// Whom the ticks of others' leases concern. A process has one miss per key, so a lease has one listener.
#[derive(Debug, Default)]
pub(super) struct Listeners(Mutex<HashMap<Token, SharedMeter, RandomState>>);

impl Listeners {
    /// Somebody works on these leases.
    pub(super) fn sign(&self, tokens: &[Token], now: Moment) {
        let listeners = self.listeners();
        for meter in tokens.iter().filter_map(|token| listeners.get(token)) {
            lock(meter).sign(now);
        }
    }

    fn replace(&self, old: Option<Token>, new: &Token, meter: &SharedMeter) {
        let mut listeners = self.listeners();
        if let Some(old) = old {
            listeners.remove(&old);
        }
        listeners.insert(new.clone(), Arc::clone(meter));
    }

    fn forget(&self, token: &Token, meter: &SharedMeter) {
        let mut listeners = self.listeners();
        // A later miss for the same key may wait for the same lease.
        if listeners.get(token).is_some_and(|listener| Arc::ptr_eq(listener, meter)) {
            listeners.remove(token);
        }
    }

    fn listeners(&self) -> MutexGuard<'_, HashMap<Token, SharedMeter, RandomState>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lock(meter: &Mutex<Meter>) -> MutexGuard<'_, Meter> {
    meter.lock().unwrap_or_else(PoisonError::into_inner)
}
