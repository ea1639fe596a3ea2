//! Requests that wait for their replies on one link.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;

use super::{Replier, Replies, Reply, replies};

/// Requests in flight on one link, waits included. More would only queue behind each other; beyond it a query goes on
/// without a lease.
pub const REQUESTS_IN_FLIGHT: usize = 1_024;

/// Which ids a side gives its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Dialled the connection: odd ids.
    Dialler,
    /// Accepted the connection: even ids.
    Acceptor,
}

/// The requests that this side of a link sent and that have no final reply yet.
#[derive(Debug)]
pub struct Requests {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    next: u64,
    /// `None` when the link broke: nothing more is asked on it.
    waiting: Option<HashMap<u64, Replier, RandomState>>,
}

/// A request under way: its id, and where its replies arrive. The channel ends when the link does.
#[derive(Debug)]
pub struct Pending {
    /// Id to send the request with.
    pub id: u64,
    /// Replies in the order in which they came.
    pub replies: Replies,
}

impl Requests {
    /// No requests yet.
    pub fn new(side: Side) -> Self {
        let next = match side {
            Side::Dialler => 1,
            Side::Acceptor => 2,
        };
        Self { state: Mutex::new(State { next, waiting: Some(HashMap::default()) }) }
    }

    /// Opens a request. `None` when [`REQUESTS_IN_FLIGHT`] are under way already or the link broke.
    pub fn open(&self) -> Option<Pending> {
        let mut state = self.state();
        let id = state.next;
        let waiting = state.waiting.as_mut()?;
        if waiting.len() >= REQUESTS_IN_FLIGHT {
            return None;
        }
        let (replier, replies) = replies();
        waiting.insert(id, replier);
        state.next += 2;
        Some(Pending { id, replies })
    }

    /// Hands a reply to its asker. Gives it back when nobody waits for it any more: a grant must then be released.
    pub fn deliver(&self, id: u64, reply: Reply) -> Result<(), Reply> {
        let mut state = self.state();
        let Some(waiting) = state.waiting.as_mut() else { return Err(reply) };
        let Some(replier) = waiting.get(&id) else { return Err(reply) };
        let is_final = reply.is_final();
        let result = replier.send(reply);
        if is_final || result.is_err() {
            waiting.remove(&id);
        }
        result
    }

    /// Forgets a request, answered or not. Says whether it was still waiting for its final reply.
    pub fn close(&self, id: u64) -> bool {
        self.state().waiting.as_mut().is_some_and(|waiting| waiting.remove(&id).is_some())
    }

    /// The link broke: every asker learns it, and no request is opened any more.
    pub fn break_off(&self) {
        self.state().waiting = None;
    }

    /// Requests under way.
    pub fn in_flight(&self) -> usize {
        self.state().waiting.as_ref().map_or(0, HashMap::len)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_never_use_the_same_id() {
        let ids = |side| {
            let requests = Requests::new(side);
            [requests.open().unwrap().id, requests.open().unwrap().id]
        };
        assert_eq!(ids(Side::Dialler), [1, 3]);
        assert_eq!(ids(Side::Acceptor), [2, 4]);
    }

    #[test]
    fn requests_in_flight_are_bounded_and_a_final_reply_frees_one() {
        let requests = Requests::new(Side::Dialler);
        let mut open: Vec<_> = (0..REQUESTS_IN_FLIGHT).map(|_| requests.open().unwrap()).collect();
        assert!(requests.open().is_none());
        requests.deliver(open[0].id, Reply::Working).unwrap();
        assert!(requests.open().is_none());
        requests.deliver(open[0].id, Reply::Proceed).unwrap();
        assert!(requests.open().is_some());
        assert_eq!(open[0].replies.try_recv(), Some(Reply::Working));
        assert_eq!(open[0].replies.try_recv(), Some(Reply::Proceed));
    }

    #[test]
    fn a_reply_that_nobody_waits_for_comes_back() {
        let requests = Requests::new(Side::Dialler);
        assert_eq!(requests.deliver(7, Reply::Proceed), Err(Reply::Proceed));
        let dropped = requests.open().unwrap();
        let id = dropped.id;
        drop(dropped);
        assert_eq!(requests.deliver(id, Reply::Proceed), Err(Reply::Proceed));
    }

    #[tokio::test]
    async fn a_broken_link_ends_every_wait() {
        let requests = Requests::new(Side::Acceptor);
        let mut pending = requests.open().unwrap();
        requests.break_off();
        assert!(pending.replies.recv().await.is_none());
        assert!(requests.open().is_none());
    }
}
