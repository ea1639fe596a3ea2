//! The agent's side of a miss: one link per worker over the local socket, and the conversations on it.
//!
//! ```text
//!  ask_for(key, asker) ─► sleeps with its request ── the first word, or none for a while ──► the asker
//!  ask(key) ─► Conversation ── words: Held, Entry, Granted(Lease), … ──► the miss
//!                   │ meter of silence ◄── ticks that list the lease waited for
//!  Lease: ticks while somebody watches it, ends by publish, fail or drop
//!  session: dials, says Hello, reads; dials again with a jittered backoff when the stream ends
//! ```
//!
//! A missing agent is no error but an outcome: [`Off`] is the mesh of a server that has none.

mod asleep;
mod checks;
mod conversation;
mod hearing;
mod lease;
mod session;

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use heimdall_shared::clock::Moment;
use heimdall_shared::entry::Entry;
use heimdall_shared::key::Key;
use heimdall_shared::link::{Beats, Full, Link, Lookup, LookupMode, Message, Publish, Requests};
use heimdall_shared::token::Token;
use heimdall_shared::trace::TraceContext;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

use self::asleep::{Asleep, FIRST_WORD_WITHIN, FirstWords};
pub use self::checks::Check;
use self::checks::Checks;
use self::conversation::Listeners;
pub use self::conversation::{Conversation, Silence, Word};
pub use self::hearing::Hearing;
pub use self::lease::Lease;
use self::lease::Work;
use crate::metrics::MissOutcome;
use crate::purge::Purges;

/// The cluster's answers, as far as a miss is concerned.
pub trait Mesh: Debug + Send + Sync {
    /// Asks for the answer to `key`, or for the right to fetch it, or for what else `mode` says. Never waits.
    ///
    /// # Errors
    /// [`Absent`] when there is nobody to ask: the miss goes on without the mesh.
    fn ask(&self, key: &Key, question: Question) -> Result<Conversation, Absent>;

    /// The same at `now` for an asker that has nothing to do before the first word.
    ///
    /// # Errors
    /// The asker, and [`Absent`].
    fn ask_for(
        &self,
        key: &Key,
        question: Question,
        now: Instant,
        asker: Box<dyn Asker>,
    ) -> Result<(), (Box<dyn Asker>, Absent)>;

    /// Gives an answer that was fetched without a lease to the key's owner. Never waits.
    fn publish(&self, key: &Key, entry: &Entry);
}

/// What is asked about a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// What is wanted when there is no live entry.
    pub mode: LookupMode,
    /// What is left of the asker's time.
    pub deadline: Duration,
    /// The asker's span.
    pub trace: Option<TraceContext>,
}

/// Somebody who sleeps until the mesh says the first word to his question. At most one of these is called, once.
pub trait Asker: Debug + Send {
    /// Here it is; what else there may be to hear is said in `more`.
    fn hear(self: Box<Self>, word: Word<Lease>, more: Option<Conversation>);

    /// It is long in coming: from now on silence must be watched.
    fn wait(self: Box<Self>, conversation: Conversation);

    /// Nobody could be asked.
    fn absent(self: Box<Self>, absent: Absent);
}

/// Why nobody is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// This server has no agent.
    Off,
    /// The link is down, its breaker open, or a limit full.
    Unable(MissOutcome),
}

/// The mesh of a server without an agent.
#[derive(Clone, Copy, Debug)]
pub struct Off;

impl Mesh for Off {
    fn ask(&self, _: &Key, _: Question) -> Result<Conversation, Absent> {
        Err(Absent::Off)
    }

    fn ask_for(&self, _: &Key, _: Question, _: Instant, asker: Box<dyn Asker>) -> Result<(), (Box<dyn Asker>, Absent)> {
        Err((asker, Absent::Off))
    }

    fn publish(&self, _: &Key, _: &Entry) {}
}

/// Where the agent is, and how patient to be with it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its Unix socket.
    pub socket: PathBuf,
    /// Time between two signs of work on a lease that somebody waits for.
    pub tick: Duration,
    /// Silence that a miss bears in all.
    pub silence: Duration,
}

/// What happens on the links of all workers.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    links: Gauge,
    sessions: Counter,
    undelivered: Counter,
    unreadable: Counter,
    late_grants: Counter,
    refused_entries: Counter,
}

impl Metrics {
    pub(crate) fn refuse_entry(&self) {
        self.refused_entries.inc();
    }

    /// Entries that did not answer their key.
    pub fn refused_entries(&self) -> u64 {
        self.refused_entries.get()
    }

    /// Links that are up.
    pub fn links(&self) -> i64 {
        self.links.get()
    }

    /// Names the metrics in `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("agent_links", "Links to the agent that are up, one per worker", self.links.clone());
        registry.register("agent_sessions", "Times that a link to the agent came up", self.sessions.clone());
        let help = "Messages to the agent that were dropped at a full limit";
        registry.register("agent_messages_dropped", help, self.undelivered.clone());
        registry.register(
            "agent_frames_unreadable",
            "Frames from the agent that were skipped",
            self.unreadable.clone(),
        );
        let help = "Entries from the agent that did not answer their key";
        registry.register("agent_entries_refused", help, self.refused_entries.clone());
        let help = "Leases that were granted too late and given back";
        registry.register("late_grants", help, self.late_grants.clone());
    }
}

/// One worker's link to the agent.
#[derive(Debug)]
pub struct Agent {
    settings: Settings,
    /// The worker's number, which names its stream.
    worker: usize,
    metrics: Metrics,
    work: Work,
    checks: Checks,
    hearing: Arc<Hearing>,
    purges: Arc<Purges>,
    beats: Beats,
    first_words: Arc<FirstWords>,
    live: Mutex<Option<Arc<Live>>>,
}

/// A link that is up.
#[derive(Debug)]
struct Live {
    link: Arc<Link>,
    /// Tells the purges of this link from those of others.
    purges: Purging,
    requests: Requests<Asleep>,
    listeners: Listeners,
    /// The agent is shutting down: it is asked nothing new.
    leaving: AtomicBool,
    /// What the agent was told last of the upstreams: that none answers.
    upstreams_failing: AtomicBool,
}

/// What is known of the purges at the other end of one link; forgotten with it.
#[derive(Debug)]
struct Purging {
    purges: Arc<Purges>,
    link: u64,
}

impl Purging {
    /// Tells the agent what is purged here.
    fn begin(purges: &Arc<Purges>, link: &Arc<Link>) -> Self {
        let id = purges.next_link();
        purges.ledger().connect(id, Purges::KIND, link);
        Self { purges: Arc::clone(purges), link: id }
    }
}

impl Drop for Purging {
    fn drop(&mut self) {
        self.purges.ledger().disconnect(self.link);
    }
}

impl Agent {
    /// A link that is still down: [`Agent::run`] brings it up.
    pub fn new(
        settings: Settings,
        worker: usize,
        metrics: &Metrics,
        hearing: &Arc<Hearing>,
        purges: &Arc<Purges>,
    ) -> Arc<Self> {
        let (metrics, hearing, purges) = (metrics.clone(), Arc::clone(hearing), Arc::clone(purges));
        let (work, checks, beats, live) = (Work::default(), Checks::default(), Beats::default(), Mutex::default());
        let first_words = Arc::new(FirstWords::new(FIRST_WORD_WITHIN.min(settings.silence)));
        Arc::new(Self { settings, worker, metrics, work, checks, hearing, purges, beats, first_words, live })
    }

    /// Tells the agent whether none of the upstreams answers, unless it knows.
    pub fn tell_upstreams(&self, failing: bool) {
        let Some(live) = self.live().clone() else { return };
        if live.upstreams_failing.load(Ordering::Relaxed) != failing
            && live.link.push(Message::UpstreamState { failing }).is_ok()
        {
            live.upstreams_failing.store(failing, Ordering::Relaxed);
        }
    }

    /// The next question that the agent wants to be asked of an upstream. There is one reader.
    pub async fn next_check(&self) -> Check {
        self.checks.next().await
    }

    /// Whether the link is up.
    pub fn is_up(&self) -> bool {
        self.live().is_some()
    }

    /// Queues a message on the link that is up now; counts it when there is none or no room.
    fn push(&self, message: Message) {
        self.push_by(|link| link.push(message));
    }

    fn push_by(&self, push: impl FnOnce(&Link) -> Result<(), Full>) {
        let live = self.live().clone();
        if live.is_none_or(|live| push(&live.link).is_err()) {
            self.metrics.undelivered.inc();
        }
    }

    /// Gives an answer to the cluster. When nobody waits for it there, it may leave together with others.
    fn send_publish(&self, key: &Key, entry: &Entry, token: Option<Token>, urgent: bool) {
        // No reply is asked for: the client has its answer, and nothing here would act on one.
        let publish = Publish { key: key.clone(), entry: entry.clone(), token, level: None };
        let message = Message::Publish { id: 0, publish };
        self.push_by(|link| if urgent { link.push(message) } else { link.push_idly(message) });
    }

    /// The link, if it is up and good for a new question.
    fn whom_to_ask(&self) -> Result<Arc<Live>, Absent> {
        let up = self.live().clone().filter(|live| !live.leaving.load(Ordering::Relaxed));
        let live = up.ok_or(Absent::Unable(MissOutcome::link_down))?;
        if self.hearing.is_open() {
            return Err(Absent::Unable(MissOutcome::breaker_open));
        }
        Ok(live)
    }

    fn lookup(&self, id: u64, key: &Key, question: Question) -> Message {
        let Question { mode, deadline, trace } = question;
        let stream = self.worker as u64;
        let lookup = Lookup { key: key.clone(), deadline, skipped: Vec::new(), stream, trace, mode };
        Message::Lookup { id, lookup }
    }

    fn live(&self) -> MutexGuard<'_, Option<Arc<Live>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The mesh of one worker.
#[derive(Clone, Debug)]
pub struct Linked(pub Arc<Agent>);

impl Mesh for Linked {
    fn ask(&self, key: &Key, question: Question) -> Result<Conversation, Absent> {
        let live = self.0.whom_to_ask()?;
        let pending = live.requests.open().ok_or(Absent::Unable(MissOutcome::limit))?;
        let message = self.0.lookup(pending.id, key, question);
        let conversation = Conversation::new(Arc::clone(&self.0), live, pending, Moment::now());
        conversation.begin(message).map_err(|_full| Absent::Unable(MissOutcome::limit))
    }

    fn ask_for(
        &self,
        key: &Key,
        question: Question,
        now: Instant,
        asker: Box<dyn Asker>,
    ) -> Result<(), (Box<dyn Asker>, Absent)> {
        let live = match self.0.whom_to_ask() {
            Ok(live) => live,
            Err(absent) => return Err((asker, absent)),
        };
        self.0.lay_down(live, key, question, now, asker).map_err(|asker| (asker, Absent::Unable(MissOutcome::limit)))
    }

    fn publish(&self, key: &Key, entry: &Entry) {
        self.0.send_publish(key, entry, None, false);
    }
}

#[cfg(test)]
pub(crate) mod scripted;
#[cfg(test)]
mod tests;
