//! A worker: one OS thread with a runtime of its own, which serves one socket per address and its share of connections.

use std::io;
use std::net::{TcpListener, UdpSocket as StdUdpSocket};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use heimdall_shared::clock::Moment;
use heimdall_shared::dns::rr::rcode;
use heimdall_shared::key::Key;
use tokio::sync::Semaphore;
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::error;

use crate::answer::{Outcome, Resolver};
use crate::cache::Ready;
use crate::listener::batch::Desk;
use crate::listener::envelope::Envelope;
use crate::listener::late::{Late, LateQuery};
use crate::listener::{tcp, udp};
use crate::metrics::Metrics;
use crate::query::{Head, KeyBuf, Query};
use crate::reply::{self, Ede, SHORT_MAX, TCP_LIMIT};

/// Misses in flight per worker. Each holds less than 6 KiB with its flight; beyond it datagrams are dropped
/// (their clients ask again), so that a flood of new names costs memory within bounds and no hit waits behind it.
const MISSES_MAX: usize = 4_096;

/// The sockets of one worker, bound before anything is served.
#[derive(Debug)]
pub(crate) struct Sockets {
    pub(crate) udp: Vec<StdUdpSocket>,
    pub(crate) tcp: Vec<TcpListener>,
}

/// What the tasks of one worker share.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) desk: Desk,
    pub(crate) metrics: Arc<Metrics>,
    resolver: Resolver,
    misses: TaskTracker,
}

/// A place among the misses in flight. Free again when it is dropped.
pub(crate) type Place = TaskTrackerToken;

/// A query that the cache could not answer, with octets of its own.
#[derive(Debug)]
pub(crate) struct Miss {
    head: Head,
    question: Box<[u8]>,
    key: Key,
}

impl Miss {
    /// Copies a query and its key.
    pub(crate) fn new(query: &Query<'_>, key: &KeyBuf) -> Option<Self> {
        let key = Key::from_bytes(Bytes::copy_from_slice(key.as_bytes())).ok()?;
        Some(Self { head: query.head, question: query.question.into(), key })
    }

    pub(crate) fn query(&self) -> Query<'_> {
        Query { head: self.head, question: &self.question }
    }
}

/// What a client gets for its miss.
enum Reply {
    /// The answer, and whether an upstream was just asked for it.
    Answer(Ready, bool),
    /// An answer that died.
    Stale(Ready),
    /// A return code, and the reason where there is one to tell.
    Code(u8, Option<Ede>),
}

impl Reply {
    /// Octets that it may need, of `limit`.
    fn room(&self, limit: usize) -> usize {
        match self {
            Self::Answer(ready, _) | Self::Stale(ready) => reply::room(ready.packet().len()).min(limit).max(SHORT_MAX),
            Self::Code(..) => SHORT_MAX,
        }
    }

    /// Writes it as of `now`, within `limit` octets, and gives its length.
    fn write(&self, query: &Query<'_>, now: Moment, limit: usize, out: &mut [u8]) -> usize {
        match self {
            Self::Answer(ready, fresh) => reply::answer(query, ready, ready.elapsed(now), *fresh, limit, out),
            Self::Stale(ready) => reply::stale(query, ready, limit, out),
            Self::Code(rcode, ede) => reply::failure(query, u16::from(*rcode), *ede, out),
        }
    }
}

impl Worker {
    /// Serves `sockets` on this thread until `stop`, then until every query under way has its reply.
    ///
    /// # Errors
    /// When the runtime cannot be made.
    pub(crate) fn run(
        sockets: Sockets,
        desk: Desk,
        metrics: Arc<Metrics>,
        resolver: impl FnOnce() -> Resolver,
        permits: &Arc<Semaphore>,
        stop: &CancellationToken,
    ) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let local = LocalSet::new();
        local.block_on(&runtime, async {
            let misses = TaskTracker::new();
            let worker = Rc::new(Self { desk, metrics, resolver: resolver(), misses });
            let listeners = TaskTracker::new();
            let connections = TaskTracker::new();
            for socket in sockets.udp {
                let (worker, stop) = (Rc::clone(&worker), stop.clone());
                listeners.spawn_local(async move {
                    if let Err(error) = udp::serve(socket, worker, stop).await {
                        error!(%error, "a UDP socket is not served");
                    }
                });
            }
            for listener in sockets.tcp {
                let serve =
                    tcp::serve(listener, Rc::clone(&worker), Arc::clone(permits), connections.clone(), stop.clone());
                listeners.spawn_local(async move {
                    if let Err(error) = serve.await {
                        error!(%error, "a TCP listener is not served");
                    }
                });
            }
            // In the order in which each can still make work for the next.
            for tasks in [&listeners, &connections, &worker.misses] {
                tasks.close();
                tasks.wait().await;
            }
            worker.resolver.drain().await;
        });
        Ok(())
    }

    /// A place for one more miss, unless too many are in flight.
    pub(crate) fn place(&self) -> Option<Place> {
        if self.misses.len() < MISSES_MAX {
            Some(self.misses.token())
        } else {
            self.desk.tallies.dropped.add(1);
            None
        }
    }

    /// Asks for what the cache could not answer. The answer comes to `late`.
    pub(crate) fn miss_over_udp(&self, query: &Query<'_>, key: &KeyBuf, envelope: Envelope, late: &Arc<Late>) {
        let Some(miss) = Miss::new(query, key) else { return };
        let Some(place) = self.place() else { return };
        let key = miss.key.clone();
        let query = LateQuery::new(miss, envelope, place, late);
        if query.miss.head.recursion_desired {
            self.resolver.ask(&key, move |outcome| query.answered(outcome));
        } else {
            query.answered(Outcome::Refused);
        }
    }

    /// Writes the reply to a datagram as of `now`, and gives its length. `out` holds the longest one over UDP.
    pub(crate) fn reply_over_udp(&self, miss: &Miss, outcome: Outcome, now: Moment, out: &mut [u8]) -> usize {
        let query = miss.query();
        self.reply(miss, outcome).write(&query, now, query.udp_limit(), out)
    }

    /// Fetches the answer to a key anew, though it still lives. Nobody waits for it.
    pub(crate) fn refresh(&self, key: &KeyBuf) {
        if let Ok(key) = Key::from_bytes(Bytes::copy_from_slice(key.as_bytes())) {
            self.resolver.refresh(&key);
        }
    }

    /// The reply to a miss, behind `front` octets left free.
    pub(crate) async fn answer_over_tcp(&self, miss: &Miss, front: usize) -> Vec<u8> {
        let recursion = miss.head.recursion_desired;
        let outcome = if recursion { self.resolver.resolve(&miss.key).await } else { Outcome::Refused };
        let reply = self.reply(miss, outcome);
        let mut out = vec![0; front + reply.room(TCP_LIMIT)];
        let length = reply.write(&miss.query(), Moment::now(), TCP_LIMIT, &mut out[front..]);
        out.truncate(front + length);
        out
    }

    fn reply(&self, miss: &Miss, outcome: Outcome) -> Reply {
        let tallies = &self.desk.tallies;
        if !miss.head.recursion_desired {
            // Without RD the client wants what we have, and we have nothing: asking for it would be recursion.
            tallies.rejected.add(1);
            return Reply::Code(rcode::REFUSED, Some(Ede::Prohibited));
        }
        let ready = |entry| {
            let ready = Ready::new(&miss.key, &entry);
            let tally = if ready.is_some() { &tallies.answered } else { &tallies.failed };
            tally.add(1);
            ready
        };
        let reply = match outcome {
            Outcome::Answer { entry, fresh } => ready(entry).map(|ready| Reply::Answer(ready, fresh)),
            Outcome::Stale(entry) => ready(entry).map(|ready| {
                tallies.stale.add(1);
                Reply::Stale(ready)
            }),
            Outcome::Rcode(rcode) => {
                tallies.failed.add(1);
                Some(Reply::Code(rcode, None))
            }
            Outcome::Failed => {
                tallies.failed.add(1);
                Some(Reply::Code(rcode::SERVFAIL, Some(Ede::NoReachableAuthority)))
            }
            // SERVFAIL, so that the client asks another server.
            Outcome::Refused => {
                tallies.failed.add(1);
                Some(Reply::Code(rcode::SERVFAIL, Some(Ede::NotReady)))
            }
        };
        reply.unwrap_or(Reply::Code(rcode::SERVFAIL, None))
    }
}
