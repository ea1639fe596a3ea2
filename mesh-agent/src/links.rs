//! Who is connected right now: peers, dns-server streams, unary calls that wait. Readers take snapshots.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use foldhash::fast::RandomState;
use heimdall_shared::breaker::Breaker;
use heimdall_shared::clock::Moment;
use heimdall_shared::link::{Full, Link, Message, Replier, Replies, Reply, Requests, replies};

use crate::lease::LinkId;
use crate::lookup::Asleep;

/// A peer's silence is never waited for longer than this, however slow its link is: part of the 100 ms that a miss may
/// lose to silence in all.
const PEER_BUDGET_MAX: Duration = Duration::from_millis(80);

/// The budget is this many smoothed round trips.
const BUDGET_ROUND_TRIPS: u32 = 3;

/// Unary calls that may wait for a result at the same time. People and tests use them, the data path does not.
const CALLS_MAX: usize = 256;

/// A link to another replica's agent, and what waits on it.
#[derive(Debug)]
pub struct Peer {
    /// Names this connection; a peer that comes back gets a new one.
    pub id: LinkId,
    /// The member at the other end, proven by its certificate.
    pub member: Arc<str>,
    /// That member's incarnation.
    pub incarnation: u64,
    /// Where it is.
    pub address: SocketAddr,
    /// Where it says that it can be dialled.
    pub advertised: Option<Arc<str>>,
    /// Whether this side dialled.
    pub dialled: bool,
    /// The stream.
    pub link: Arc<Link>,
    /// Our requests on it.
    pub requests: Requests<Box<Asleep>>,
    /// Since when it is connected.
    pub since: Moment,
    /// Opens when the peer is silent.
    pub breaker: Mutex<Breaker>,
}

impl Peer {
    /// Whether requests may go to it.
    pub fn is_usable(&self) -> bool {
        !self.link.is_closed() && !self.breaker().is_open(self.link.heard())
    }

    /// The peer did not answer from `since` to `now`.
    pub fn was_silent(&self, since: Moment, now: Moment) {
        self.breaker().silence(since, now, self.link.heard());
    }

    /// How long its first word is waited for.
    pub fn budget(&self, floor: Duration) -> Duration {
        let measured = self.link.round_trip().unwrap_or_default() * BUDGET_ROUND_TRIPS;
        // A floor above the cap was asked for by the operator, and is kept.
        measured.clamp(floor, PEER_BUDGET_MAX.max(floor))
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream of this replica's own dns-server.
#[derive(Debug)]
pub struct LocalStream {
    /// Names the stream, here and in lookups to peers.
    pub id: LinkId,
    /// The stream.
    pub link: Arc<Link>,
    /// Our requests on it.
    pub requests: Requests,
    /// Whether the dns-server says that none of its upstreams answers.
    pub upstreams_failing: AtomicBool,
}

/// All connections of this agent.
#[derive(Debug, Default)]
pub struct Links {
    next: AtomicU64,
    /// When the newest link to a peer came up, in nanoseconds.
    newest: AtomicU64,
    connected: ArcSwap<Connected>,
    calls: Mutex<HashMap<LinkId, Arc<Replier>>>,
}

/// One consistent picture of the connections.
#[derive(Clone, Debug, Default)]
pub struct Connected {
    /// At most one link per member.
    pub peers: HashMap<Arc<str>, Arc<Peer>, RandomState>,
    /// The streams of this replica's dns-server.
    pub streams: HashMap<LinkId, Arc<LocalStream>, RandomState>,
}

/// What became of a new link to a peer.
#[derive(Debug)]
pub enum Registered {
    /// It is the link to that member now.
    Kept {
        /// The link that it replaces, to be closed once membership knows of the new one.
        replaced: Option<Arc<Peer>>,
    },
    /// There is one already, and that one stays.
    Superseded,
}

impl Links {
    /// A name for a new connection.
    pub fn next_id(&self) -> LinkId {
        self.next.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The connections right now.
    pub fn connected(&self) -> Arc<Connected> {
        self.connected.load_full()
    }

    /// The link to a member, if there is one that is open.
    pub fn peer(&self, member: &str) -> Option<Arc<Peer>> {
        self.connected.load().peers.get(member).filter(|peer| !peer.link.is_closed()).cloned()
    }

    /// Makes `peer` the link to its member, unless there is a better one: of two links of one incarnation, the one dialled
    /// by the smaller name stays, so that both ends choose the same. The caller closes the one that was replaced.
    pub fn register(&self, own_name: &str, peer: &Arc<Peer>) -> Registered {
        self.newest.fetch_max(peer.since.as_nanos(), Ordering::Relaxed);
        let mut outcome = Registered::Superseded;
        self.connected.rcu(|connected| {
            let mut connected = Connected::clone(connected);
            let existing = connected.peers.get(&peer.member).filter(|existing| !existing.link.is_closed()).cloned();
            if existing.as_ref().is_some_and(|existing| existing.stays_before(peer, own_name)) {
                outcome = Registered::Superseded;
            } else {
                connected.peers.insert(Arc::clone(&peer.member), Arc::clone(peer));
                outcome = Registered::Kept { replaced: existing };
            }
            connected
        });
        outcome
    }

    /// When the newest link to a peer came up: what is younger than that came when everybody was there.
    pub fn newest_link(&self) -> Moment {
        Moment::from_nanos(self.newest.load(Ordering::Relaxed))
    }

    /// Forgets a link that ended.
    pub fn unregister(&self, peer: &Peer) {
        self.connected.rcu(|connected| {
            let mut connected = Connected::clone(connected);
            if connected.peers.get(&peer.member).is_some_and(|current| current.id == peer.id) {
                connected.peers.remove(&peer.member);
            }
            connected
        });
    }

    /// Adds a stream of the own dns-server.
    pub fn add_stream(&self, stream: &Arc<LocalStream>) {
        self.connected.rcu(|connected| {
            let mut connected = Connected::clone(connected);
            connected.streams.insert(stream.id, Arc::clone(stream));
            connected
        });
    }

    /// Whether the connection is a stream of the own dns-server.
    pub fn is_stream(&self, id: LinkId) -> bool {
        self.connected.load().streams.contains_key(&id)
    }

    /// Forgets a stream that ended.
    pub fn remove_stream(&self, id: LinkId) {
        self.connected.rcu(|connected| {
            let mut connected = Connected::clone(connected);
            connected.streams.remove(&id);
            connected
        });
    }

    /// Opens a place where the replies to a unary call arrive. `None` when `CALLS_MAX` wait already.
    pub fn open_call(self: &Arc<Self>) -> Option<Call> {
        let mut calls = self.calls();
        if calls.len() >= CALLS_MAX {
            return None;
        }
        let id = self.next_id();
        let (replier, replies) = replies();
        calls.insert(id, Arc::new(replier));
        Some(Call { id, replies, links: Arc::clone(self) })
    }

    /// Sends a reply to whoever asked over connection `to`. A reply for a connection that is gone, or whose queue is full,
    /// is lost: the asker then goes on by itself.
    pub fn reply(&self, to: LinkId, request: u64, reply: Reply) -> Result<(), Undelivered> {
        // The data path first: it takes no lock.
        if let Some(link) = self.connected.load().link(to) {
            return link.push(Message::Reply { id: request, reply }).map_err(Undelivered::Full);
        }
        let call = self.calls().get(&to).cloned();
        call.ok_or(Undelivered::Gone)?.send(reply).map_err(|_| Undelivered::Gone)
    }

    /// Sends a message over connection `to`.
    pub fn push(&self, to: LinkId, message: Message) -> Result<(), Undelivered> {
        let Some(link) = self.connected.load().link(to) else { return Err(Undelivered::Gone) };
        link.push(message).map_err(Undelivered::Full)
    }

    /// Sends a message to every stream of the own dns-server: each takes what concerns it.
    pub fn push_to_streams(&self, message: &Message) {
        for stream in self.connected.load().streams.values() {
            // A stream too full for a tick is silent, and its misses go on by themselves.
            let _ = stream.link.push(message.clone());
        }
    }

    fn calls(&self) -> MutexGuard<'_, HashMap<LinkId, Arc<Replier>>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a message did not go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undelivered {
    /// The connection ended.
    Gone,
    /// Its lane is full.
    Full(Full),
}

impl Connected {
    fn link(&self, id: LinkId) -> Option<Arc<Link>> {
        if let Some(stream) = self.streams.get(&id) {
            return Some(Arc::clone(&stream.link));
        }
        // A cluster has few members: a scan costs less than a second map to keep.
        self.peers.values().find(|peer| peer.id == id).map(|peer| Arc::clone(&peer.link))
    }
}

impl Peer {
    fn stays_before(&self, newcomer: &Self, own_name: &str) -> bool {
        if self.incarnation != newcomer.incarnation || self.dialled == newcomer.dialled {
            // A restarted member, or one that dialled again because it lost the old link: the old one is of no use.
            return false;
        }
        // Dialled by the smaller name.
        if self.dialled { own_name < &*self.member } else { &*self.member < own_name }
    }
}

/// A unary call that waits for replies; they end with it.
#[derive(Debug)]
pub struct Call {
    /// Names the call like a connection.
    pub id: LinkId,
    /// Replies in the order in which they came.
    pub replies: Replies,
    links: Arc<Links>,
}

impl Drop for Call {
    fn drop(&mut self) {
        self.links.calls().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use heimdall_shared::link::{Beats, Side};

    use super::*;

    fn peer(links: &Links, member: &str, incarnation: u64, dialled: bool) -> Arc<Peer> {
        Arc::new(Peer {
            id: links.next_id(),
            member: member.into(),
            incarnation,
            address: "127.0.0.1:1".parse().unwrap(),
            advertised: None,
            dialled,
            link: Link::new(Moment::now(), &Beats::default()),
            requests: Requests::new(Side::Dialler),
            since: Moment::from_nanos(0),
            breaker: Mutex::default(),
        })
    }

    #[test]
    fn of_two_links_the_one_dialled_by_the_smaller_name_stays_in_whichever_order_they_come() {
        for dialled_first in [true, false] {
            let links = Links::default();
            let first = peer(&links, "b", 1, dialled_first);
            let second = peer(&links, "b", 1, !dialled_first);
            links.register("a", &first);
            links.register("a", &second);
            assert!(links.peer("b").unwrap().dialled, "a is the smaller name, and dialled");
        }
    }

    #[test]
    fn a_new_incarnation_replaces_the_link_of_the_old_one() {
        let links = Links::default();
        let old = peer(&links, "b", 1, true);
        let new = peer(&links, "b", 2, false);
        links.register("a", &old);
        let Registered::Kept { replaced: Some(replaced) } = links.register("a", &new) else {
            panic!("it must replace")
        };
        assert_eq!(replaced.id, old.id);
        links.unregister(&old);
        assert_eq!(links.peer("b").unwrap().id, new.id);
    }

    #[test]
    fn a_superseded_link_does_not_take_the_other_one_with_it() {
        let links = Links::default();
        let stays = peer(&links, "b", 1, true);
        let goes = peer(&links, "b", 1, false);
        links.register("a", &stays);
        assert!(matches!(links.register("a", &goes), Registered::Superseded));
        links.unregister(&goes);
        assert!(links.peer("b").is_some());
    }

    #[test]
    fn the_budget_of_a_peer_follows_its_round_trip_between_floor_and_cap() {
        let links = Links::default();
        let peer = peer(&links, "b", 1, true);
        assert_eq!(peer.budget(Duration::from_millis(10)), Duration::from_millis(10));
        assert_eq!(peer.budget(Duration::from_millis(500)), Duration::from_millis(500));
    }

    #[test]
    fn calls_are_bounded_and_end_with_their_drop() {
        let links = Arc::new(Links::default());
        let calls: Vec<_> = (0..CALLS_MAX).map(|_| links.open_call().unwrap()).collect();
        assert!(links.open_call().is_none());
        drop(calls);
        let mut call = links.open_call().unwrap();
        links.reply(call.id, 0, Reply::Proceed).unwrap();
        assert_eq!(call.replies.try_recv(), Some(Reply::Proceed));
    }
}
