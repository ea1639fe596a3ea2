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
use tracing::error;

use crate::answer::{Outcome, Resolver};
use crate::cache::Ready;
use crate::listener::batch::Desk;
use crate::listener::late::Late;
use crate::listener::mmsg::Address;
use crate::listener::{tcp, udp};
use crate::metrics::Metrics;
use crate::query::{Head, KeyBuf, Query};
use crate::reply::{self, Ede, SHORT_MAX};

/// Misses in flight per worker. Each holds some 6 KiB with its flight; beyond it datagrams are dropped
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

impl Worker {
    /// Serves `sockets` on this thread until `stop`, then until every query under way has its reply.
    ///
    /// # Errors
    /// When the runtime cannot be made or a socket cannot be registered with it.
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
    pub(crate) fn miss(&self) -> Option<&TaskTracker> {
        if self.misses.len() < MISSES_MAX {
            Some(&self.misses)
        } else {
            self.desk.tallies.dropped.add(1);
            None
        }
    }

    /// Begins a task that answers a datagram which the cache could not.
    pub(crate) fn miss_over_udp(self: &Rc<Self>, packet: &[u8], peer: Address, late: &Rc<Late>) {
        let mut key = KeyBuf::new();
        let Ok(query) = Query::parse(packet, &mut key) else { return };
        let Some(miss) = Miss::new(&query, &key) else { return };
        let Some(tasks) = self.miss() else { return };
        let limit = query.udp_limit();
        let (worker, late) = (Rc::clone(self), Rc::clone(late));
        tasks.spawn_local(async move {
            let reply = worker.answer(&miss, limit, 0).await;
            if late.send(reply, peer).await.is_err() {
                worker.desk.tallies.send_errors.add(1);
            }
        });
    }

    /// Fetches the answer to a datagram's question anew, though it still lives. Nobody waits for it.
    pub(crate) fn refresh(&self, packet: &[u8]) {
        let mut key = KeyBuf::new();
        if Query::parse(packet, &mut key).is_ok()
            && let Ok(key) = Key::from_bytes(Bytes::copy_from_slice(key.as_bytes()))
        {
            self.resolver.refresh(&key);
        }
    }

    /// The reply to a miss, of at most `limit` octets, behind `front` octets left free.
    pub(crate) async fn answer(&self, miss: &Miss, limit: usize, front: usize) -> Vec<u8> {
        let query = miss.query();
        let short = |write: &dyn Fn(&mut [u8]) -> usize| written(SHORT_MAX, front, write);
        if !query.head.recursion_desired {
            // Without RD the client wants what we have, and we have nothing: asking for it would be recursion.
            self.desk.tallies.rejected.add(1);
            return short(&|out| reply::failure(&query, u16::from(rcode::REFUSED), Some(Ede::Prohibited), out));
        }
        let outcome = self.resolver.resolve(&miss.key).await;
        let tallies = &self.desk.tallies;
        match outcome {
            Outcome::Answer { entry, fresh } => match Ready::new(&miss.key, &entry) {
                Some(ready) => {
                    tallies.answered.add(1);
                    let room = reply::room(ready.packet().len()).min(limit).max(SHORT_MAX);
                    let elapsed = ready.elapsed(Moment::now());
                    written(room, front, &|out| reply::answer(&query, &ready, elapsed, fresh, limit, out))
                }
                None => {
                    tallies.failed.add(1);
                    short(&|out| reply::failure(&query, u16::from(rcode::SERVFAIL), None, out))
                }
            },
            Outcome::Stale(entry) => match Ready::new(&miss.key, &entry) {
                Some(ready) => {
                    tallies.answered.add(1);
                    tallies.stale.add(1);
                    let room = reply::room(ready.packet().len()).min(limit).max(SHORT_MAX);
                    written(room, front, &|out| reply::stale(&query, &ready, limit, out))
                }
                None => {
                    tallies.failed.add(1);
                    short(&|out| reply::failure(&query, u16::from(rcode::SERVFAIL), None, out))
                }
            },
            Outcome::Rcode(rcode) => {
                tallies.failed.add(1);
                short(&|out| reply::failure(&query, u16::from(rcode), None, out))
            }
            Outcome::Failed => {
                tallies.failed.add(1);
                let ede = Some(Ede::NoReachableAuthority);
                short(&|out| reply::failure(&query, u16::from(rcode::SERVFAIL), ede, out))
            }
            Outcome::Refused => {
                tallies.failed.add(1);
                short(&|out| reply::overloaded(&query, out))
            }
        }
    }
}

/// A buffer with `front` free octets and what `write` puts into `room` octets behind them.
fn written(room: usize, front: usize, write: &dyn Fn(&mut [u8]) -> usize) -> Vec<u8> {
    let mut out = vec![0; front + room];
    let length = write(&mut out[front..]);
    out.truncate(front + length);
    out
}
