//! How a miss is answered: one flight per key in the process, whoever asks.
//!
//! ```text
//! ask(key, answered) ─► join the key's flight, or look in L1 again and begin one
//!                            flight: mesh.ask ─► life (pure) ◄─ silence, upstreams
//!                                                 └─► L1, everybody who waits, then the cluster
//! ```
//!
//! A flight belongs to nobody who waits for it: clients may go away, the answer is fetched and kept all the same. What the mesh has is
//! landed by the task that reads the link; any other flight becomes a task. Both are tasks of the runtime, behind the loops that read
//! sockets, which are local to the thread: hits have their turn before them.

mod flight;
mod landing;
mod life;
mod sample;
mod second_best;
mod waiting;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::quality::RandomState;
use heimdall_shared::clock::Moment;
use heimdall_shared::dns::rr::class;
use heimdall_shared::entry::Entry;
use heimdall_shared::key::Key;
use heimdall_shared::telemetry::Tracer;
use heimdall_shared::trace::TraceContext;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agent::{self, Agent, Hearing, Linked, Mesh, Off};
use crate::cache::Cache;
use crate::failures::{Failures, Known};
use crate::metrics::{Metrics, MissOutcome};
use crate::purge::Purges;
use crate::upstream::{self, Upstreams};

use self::waiting::{Flight, Waiter};

/// Flights of this process. Each holds some 4 KiB; a client that goes away leaves its flight, so this is more than the
/// misses that workers let in. Beyond it a query fails at once.
const FLIGHTS_MAX: usize = 16_384;

/// How often the agent may be told how the upstreams are: it judges over several seconds.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// Refreshes under way in this process: what a few hundred popular names that end in the same second need. Beyond it they end,
/// and the next client waits.
const REFRESHES_MAX: usize = 256;

/// What a miss ends in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An answer.
    Answer {
        /// The answer in normal form.
        entry: Entry,
        /// Whether an upstream was just asked for it; only then its AA bit is passed on.
        fresh: bool,
    },
    /// An answer that is dead, since nobody has a live one in time.
    Stale(Entry),
    /// The upstreams' other return code, to be relayed.
    Rcode(u8),
    /// No upstream had an answer: SERVFAIL.
    Failed,
    /// A limit was full: nobody was asked.
    Refused,
}

/// When a dead answer is better than none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale {
    /// How long ago it may have died; zero when none is ever given.
    pub limit: Duration,
    /// After how long without an answer.
    pub after: Duration,
    /// How long it is given at once after a failure, instead of asking again.
    pub recheck: Duration,
}

impl Stale {
    /// Whether there is any.
    pub(crate) const fn is_on(&self) -> bool {
        !self.limit.is_zero()
    }
}

impl Outcome {
    /// Whether the client would get no answer. RFC 8767 5: NOERROR and NXDOMAIN refresh what is known; any other return code
    /// does not.
    const fn is_failure(&self) -> bool {
        matches!(self, Self::Rcode(_) | Self::Failed | Self::Refused)
    }

    /// What it is, in the words of a span's attribute.
    const fn as_str(&self) -> &'static str {
        match self {
            Self::Answer { fresh: true, .. } => "fetched",
            Self::Answer { fresh: false, .. } => "shared",
            Self::Stale(_) => "stale",
            Self::Rcode(_) => "rcode",
            Self::Failed => "failed",
            Self::Refused => "refused",
        }
    }
}

/// What all workers share to answer misses.
#[derive(Debug)]
pub struct Core {
    upstreams: Arc<Upstreams>,
    cache: Arc<Cache>,
    purges: Arc<Purges>,
    metrics: Arc<Metrics>,
    tracer: Tracer,
    hearing: Arc<Hearing>,
    budget: Duration,
    stale: Stale,
    refreshing: AtomicUsize,
    flights: Mutex<HashMap<Key, Arc<Flight>, RandomState>>,
    failures: Mutex<Failures>,
}

/// Answers the misses of one worker.
#[derive(Debug)]
pub struct Resolver {
    core: Arc<Core>,
    mesh: Arc<dyn Mesh>,
    flights: TaskTracker,
    link: TaskTracker,
    stop: CancellationToken,
}

impl Core {
    /// Nothing is under way. A query takes at most `budget`; dead answers are given as `stale` says.
    pub fn new(
        upstreams: Arc<Upstreams>,
        cache: Arc<Cache>,
        purges: Arc<Purges>,
        metrics: Arc<Metrics>,
        tracer: Tracer,
        budget: Duration,
        stale: Stale,
    ) -> Arc<Self> {
        let (flights, failures, refreshing) = (Mutex::default(), Mutex::default(), AtomicUsize::new(0));
        let hearing = Arc::default();
        Arc::new(Self {
            upstreams,
            cache,
            purges,
            metrics,
            tracer,
            hearing,
            budget,
            stale,
            refreshing,
            flights,
            failures,
        })
    }

    /// The dead answer that this process has for a key, if it may be given.
    fn stale(&self, key: &Key, now: Moment) -> Option<Outcome> {
        if !self.stale.is_on() {
            return None;
        }
        let ready = self.cache.get_stale(key.as_bytes(), now, self.stale.limit)?;
        let entry = ready.entry();
        Some(if ready.is_live(now) { Outcome::Answer { entry, fresh: false } } else { Outcome::Stale(entry) })
    }

    /// A flight that replaces the live answer for `key`, unless somebody is at it, or it was replaced, or it failed a moment ago.
    fn board_to_refresh(&self, key: &Key, now: Moment) -> Option<Arc<Flight>> {
        let mut flights = self.flights();
        if flights.contains_key(key) || self.failures().is_hopeless(key, self.stale.recheck, now) {
            return None;
        }
        let born = self.cache.get(key.as_bytes(), now)?.born();
        if flights.len() >= FLIGHTS_MAX || self.refreshing.load(Ordering::Relaxed) >= REFRESHES_MAX {
            self.metrics.refreshes_dropped.inc();
            return None;
        }
        self.refreshing.fetch_add(1, Ordering::Relaxed);
        self.metrics.refreshes.inc();
        let flight = Arc::new(Flight::refresh(born));
        flights.insert(key.clone(), Arc::clone(&flight));
        Some(flight)
    }

    /// A way to the answer of `key`; a new flight must then be begun by the caller.
    fn board(&self, key: &Key, mut waiter: Waiter, now: Moment) -> Boarding {
        let mut flights = self.flights();
        // A refresh is nothing to wait for while what it is to replace still lives.
        let waits = |flight: &&Arc<Flight>| flight.refreshes.is_none() || self.cache.get(key.as_bytes(), now).is_none();
        let newest = self.purges.ledger().newest(key);
        let sound = |flight: &&Arc<Flight>| newest.is_none_or(|(purged, _)| flight.is_since(purged));
        if let Some((_, arrived)) = newest {
            self.failures().forget_before(key, arrived);
        }
        if let Some(flight) = flights.get(key).filter(sound).filter(waits) {
            if let (Some(span), Some(fetching)) = (&mut waiter.span, &flight.trace) {
                span.link(fetching);
            }
            // Under the lock: a flight that is on the list has not landed.
            return match flight.join(waiter, newest.map(|(purged, _)| purged)) {
                Ok(()) => Boarding::Waits,
                Err((waiter, outcome)) => Boarding::Over(waiter, outcome),
            };
        }
        // Another flight may have landed since the worker looked: it fills L1 before it leaves the list.
        if let Some(ready) = self.cache.get(key.as_bytes(), now) {
            return Boarding::Over(waiter, Outcome::Answer { entry: ready.entry(), fresh: false });
        }
        if self.failures().is_hopeless(key, self.stale.recheck, now)
            && let Some(stale) = self.stale(key, now)
        {
            return Boarding::Over(waiter, stale);
        }
        let failed = match self.failures().known(key, now) {
            Some(Known::Shared) => return Boarding::Over(waiter, Outcome::Failed),
            Some(Known::Local(rcode)) => Some(Failed(rcode)),
            None => None,
        };
        if flights.len() >= FLIGHTS_MAX {
            return Boarding::Over(waiter, Outcome::Refused);
        }
        let flight = Arc::new(Flight::of(waiter));
        flights.insert(key.clone(), Arc::clone(&flight));
        Boarding::Begin(flight, failed)
    }

    /// Tells one who waits; that it failed only where there is nothing better.
    fn tell(&self, key: &Key, waiter: Waiter, mut outcome: Outcome) {
        if outcome.is_failure() && key.qclass() == class::IN {
            // Whatever stood in the way: a full limit, a failure that is remembered.
            outcome = self.stale(key, Moment::now()).unwrap_or(outcome);
        }
        let Waiter { span, answered } = waiter;
        if let Some(mut span) = span {
            span.attribute("dns.question.type", i64::from(key.qtype()));
            span.attribute("heimdall.outcome", outcome.as_str());
        }
        answered(outcome);
    }

    /// The upstreams' answer, for this query alone.
    async fn ask_alone(&self, key: &Key, trace: Option<TraceContext>) -> Outcome {
        let deadline = Instant::now() + self.budget;
        match self.upstreams.resolve(key, deadline, trace, || {}).await.outcome {
            upstream::Outcome::Answer { answer, born } => {
                let entry = Entry { packet: answer.packet, born, lifetime: answer.lifetime, since: 0 };
                Outcome::Answer { entry, fresh: true }
            }
            upstream::Outcome::Rcode(rcode) => Outcome::Rcode(rcode),
            upstream::Outcome::ServFail | upstream::Outcome::NoAnswer => Outcome::Failed,
            upstream::Outcome::Overload => Outcome::Refused,
        }
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<Key, Arc<Flight>, RandomState>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failures(&self) -> MutexGuard<'_, Failures> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Boarding {
    /// Nothing to wait for.
    Over(Waiter, Outcome),
    /// Somebody is fetching it.
    Waits,
    /// Nobody is; with the failure of this process that is still remembered.
    Begin(Arc<Flight>, Option<Failed>),
}

/// What this process found out a moment ago: no upstream answered, or all did with this return code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failed(Option<u8>);

impl From<Failed> for Outcome {
    fn from(Failed(rcode): Failed) -> Self {
        rcode.map_or(Self::Failed, Self::Rcode)
    }
}

/// Tells the agent how the upstreams are, until `stop` is cancelled.
async fn report_upstreams(core: Arc<Core>, agent: Arc<Agent>, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(REPORT_EVERY)).await.is_some() {
        agent.tell_upstreams(core.upstreams.all_failing());
    }
}

impl Resolver {
    /// A worker's resolver, to be made in its runtime: with the settings of a link it begins to look for the agent.
    pub fn new(core: &Arc<Core>, agent: Option<agent::Settings>, worker: usize) -> Self {
        let (link, stop) = (TaskTracker::new(), CancellationToken::new());
        let mesh: Arc<dyn Mesh> = match agent {
            None => Arc::new(Off),
            Some(settings) => {
                let agent = Agent::new(settings, worker, &core.metrics.agent, &core.hearing, &core.purges);
                link.spawn(Arc::clone(&agent).run(stop.clone()));
                link.spawn(sample::run(Arc::clone(core), Arc::clone(&agent), stop.clone()));
                link.spawn(report_upstreams(Arc::clone(core), Arc::clone(&agent), stop.clone()));
                Arc::new(Linked(agent))
            }
        };
        Self { core: Arc::clone(core), mesh, flights: TaskTracker::new(), link, stop }
    }

    /// Begins to fetch the answer to `key` anew, which still lives. Nobody waits for it.
    pub fn refresh(&self, key: &Key) {
        if let Some(flight) = self.core.board_to_refresh(key, Moment::now()) {
            flight::begin(&self.core, &self.mesh, key, flight, None, self.flights.token());
        }
    }

    /// Finds the answer to `key`.
    pub async fn resolve(&self, key: &Key) -> Outcome {
        let (answered, answer) = oneshot::channel();
        self.ask(key, move |outcome| {
            // Whoever is gone needs no answer.
            let _ = answered.send(outcome);
        });
        answer.await.unwrap_or(Outcome::Failed)
    }

    /// Begins to find the answer to `key`. `answered` is called with it once, at once or later and then by any thread: it must only
    /// pass it on.
    pub fn ask(&self, key: &Key, answered: impl FnOnce(Outcome) + Send + 'static) {
        let waiter = Waiter { span: self.core.tracer.root("dns.query"), answered: Box::new(answered) };
        // Other classes are forwarded and neither kept nor shared: their few queries need no machinery.
        if key.qclass() != class::IN {
            let (core, key) = (Arc::clone(&self.core), key.clone());
            self.flights.spawn(async move {
                let outcome = core.ask_alone(&key, waiter.context()).await;
                core.tell(&key, waiter, outcome);
            });
            return;
        }
        match self.core.board(key, waiter, Moment::now()) {
            Boarding::Over(waiter, outcome) => {
                match outcome {
                    Outcome::Refused => self.core.metrics.outcome(MissOutcome::refused),
                    Outcome::Failed => self.core.metrics.outcome(MissOutcome::remembered),
                    // L1 had it by now.
                    Outcome::Answer { .. } | Outcome::Stale(_) | Outcome::Rcode(_) => {}
                }
                self.core.tell(key, waiter, outcome);
            }
            Boarding::Waits => {}
            Boarding::Begin(flight, failed) => {
                flight::begin(&self.core, &self.mesh, key, flight, failed, self.flights.token());
            }
        }
    }

    /// Waits for the flights that this worker began, then lets what they published leave and closes the link.
    pub async fn drain(&self) {
        self.flights.close();
        self.flights.wait().await;
        self.stop.cancel();
        self.link.close();
        self.link.wait().await;
    }
}

#[cfg(test)]
mod tests;
