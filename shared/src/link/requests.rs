//! Requests that wait for their replies on one link.
//!
//! An asker listens in one of two ways. One that is a task has a channel ([`Requests::open`]). One that has nothing to do before the
//! first reply is kept here meanwhile ([`Requests::open_for`]) and handed over with it: most requests have one reply, and then no task
//! was begun, woken and ended for it.

use std::collections::HashMap;
use std::convert::Infallible;
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

/// The requests that this side of a link sent and that have no final reply yet. `A` is an asker that is kept until its first one.
#[derive(Debug)]
pub struct Requests<A = Infallible> {
    state: Mutex<State<A>>,
}

#[derive(Debug)]
struct State<A> {
    next: u64,
    /// `None` when the link broke: nothing more is asked on it.
    waiting: Option<HashMap<u64, Waiting<A>, RandomState>>,
}

#[derive(Debug)]
enum Waiting<A> {
    Listening(Replier),
    Asleep(A),
}

/// A request under way: its id, and where its replies arrive. The channel ends when the link does.
#[derive(Debug)]
pub struct Pending {
    /// Id to send the request with.
    pub id: u64,
    /// Replies in the order in which they came.
    pub replies: Replies,
}

/// What became of a reply.
#[derive(Debug)]
pub enum Delivered<A> {
    /// Its asker has it.
    Heard,
    /// It is the first one for an asker that slept.
    First {
        /// The asker.
        asker: A,
        /// The reply.
        reply: Reply,
        /// Where others arrive, if this one is not final.
        more: Option<Pending>,
    },
    /// Nobody waits for it any more: a grant must then be released.
    Unwanted(Reply),
}

impl<A> Requests<A> {
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
        let id = state.place()?;
        Some(state.listen(id))
    }

    /// Opens a request whose asker sleeps until its first reply, and gives its id.
    ///
    /// # Errors
    /// The asker, when [`REQUESTS_IN_FLIGHT`] are under way already or the link broke.
    pub fn open_for(&self, asker: A) -> Result<u64, A> {
        let mut state = self.state();
        let Some(id) = state.place() else { return Err(asker) };
        state.insert(id, Waiting::Asleep(asker));
        Ok(id)
    }

    /// Hands a reply to its asker.
    pub fn deliver(&self, id: u64, reply: Reply) -> Delivered<A> {
        let mut state = self.state();
        let is_final = reply.is_final();
        let Some(waiting) = state.waiting.as_mut() else { return Delivered::Unwanted(reply) };
        match waiting.get(&id) {
            None => Delivered::Unwanted(reply),
            Some(Waiting::Listening(replier)) => {
                let result = replier.send(reply);
                if is_final || result.is_err() {
                    waiting.remove(&id);
                }
                result.map_or_else(Delivered::Unwanted, |()| Delivered::Heard)
            }
            Some(Waiting::Asleep(_)) => {
                let Some(Waiting::Asleep(asker)) = waiting.remove(&id) else { return Delivered::Unwanted(reply) };
                let more = (!is_final).then(|| state.listen(id));
                Delivered::First { asker, reply, more }
            }
        }
    }

    /// Wakes the asker of a request before its first reply, which arrives at the channel from now on. `None` when it has come, or the
    /// request is over.
    pub fn wake(&self, id: u64) -> Option<(A, Pending)> {
        let mut state = self.state();
        let asker = state.take_asleep(id)?;
        let pending = state.listen(id);
        Some((asker, pending))
    }

    /// Forgets a request that was not sent, and gives its asker back.
    pub fn take_back(&self, id: u64) -> Option<A> {
        self.state().take_asleep(id)
    }

    /// Forgets a request, answered or not. Says whether it was still waiting for its final reply.
    pub fn close(&self, id: u64) -> bool {
        // An asker may have much to end: not under the lock.
        let closed = self.state().waiting.as_mut().and_then(|waiting| waiting.remove(&id));
        closed.is_some()
    }

    /// The link broke: every asker that listens learns it, those that sleep are given back, and no request is opened any more.
    pub fn break_off(&self) -> Vec<A> {
        let waiting = self.state().waiting.take().unwrap_or_default();
        let asleep = |waiting| match waiting {
            Waiting::Listening(_) => None,
            Waiting::Asleep(asker) => Some(asker),
        };
        waiting.into_values().filter_map(asleep).collect()
    }

    /// Requests under way.
    pub fn in_flight(&self) -> usize {
        self.state().waiting.as_ref().map_or(0, HashMap::len)
    }

    fn state(&self) -> MutexGuard<'_, State<A>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<A> State<A> {
    /// The id of one more request, if there is room.
    fn place(&mut self) -> Option<u64> {
        let waiting = self.waiting.as_ref()?;
        if waiting.len() >= REQUESTS_IN_FLIGHT {
            return None;
        }
        let id = self.next;
        self.next += 2;
        Some(id)
    }

    fn insert(&mut self, id: u64, asker: Waiting<A>) {
        if let Some(waiting) = &mut self.waiting {
            waiting.insert(id, asker);
        }
    }

    fn listen(&mut self, id: u64) -> Pending {
        let (replier, replies) = replies();
        self.insert(id, Waiting::Listening(replier));
        Pending { id, replies }
    }

    fn take_asleep(&mut self, id: u64) -> Option<A> {
        let waiting = self.waiting.as_mut()?;
        if !matches!(waiting.get(&id), Some(Waiting::Asleep(_))) {
            return None;
        }
        match waiting.remove(&id) {
            Some(Waiting::Asleep(asker)) => Some(asker),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token::Token;

    fn requests() -> Requests<&'static str> {
        Requests::new(Side::Dialler)
    }

    fn is_heard(delivered: &Delivered<&str>) -> bool {
        matches!(delivered, Delivered::Heard)
    }

    fn held() -> Reply {
        Reply::Held { token: Token { granter: "a".into(), incarnation: 1, counter: 1 }, holder: None }
    }

    #[test]
    fn sides_never_use_the_same_id() {
        let ids = |side| {
            let requests = Requests::<Infallible>::new(side);
            [requests.open().unwrap().id, requests.open().unwrap().id]
        };
        assert_eq!(ids(Side::Dialler), [1, 3]);
        assert_eq!(ids(Side::Acceptor), [2, 4]);
    }

    #[test]
    fn requests_in_flight_are_bounded_and_a_final_reply_frees_one() {
        let requests = requests();
        let mut open: Vec<_> = (1..REQUESTS_IN_FLIGHT).map(|_| requests.open().unwrap()).collect();
        let asleep = requests.open_for("asleep").unwrap();
        assert!(requests.open().is_none());
        assert_eq!(requests.open_for("late"), Err("late"));
        assert!(is_heard(&requests.deliver(open[0].id, Reply::Working)));
        assert!(requests.open().is_none());
        assert!(is_heard(&requests.deliver(open[0].id, Reply::Proceed)));
        assert!(requests.open_for("in time").is_ok());
        assert_eq!(open[0].replies.try_recv(), Some(Reply::Working));
        assert_eq!(open[0].replies.try_recv(), Some(Reply::Proceed));
        assert!(matches!(requests.deliver(asleep, Reply::Proceed), Delivered::First { .. }));
        assert!(requests.open().is_some());
    }

    #[test]
    fn a_reply_that_nobody_waits_for_comes_back() {
        let requests = requests();
        assert!(matches!(requests.deliver(7, Reply::Proceed), Delivered::Unwanted(Reply::Proceed)));
        let dropped = requests.open().unwrap();
        let id = dropped.id;
        drop(dropped);
        assert!(matches!(requests.deliver(id, Reply::Proceed), Delivered::Unwanted(Reply::Proceed)));
        let closed = requests.open_for("gone").unwrap();
        assert!(requests.close(closed));
        assert!(matches!(requests.deliver(closed, Reply::Proceed), Delivered::Unwanted(Reply::Proceed)));
    }

    #[test]
    fn an_asker_that_sleeps_is_handed_over_with_its_first_reply_and_listens_for_others() {
        let requests = requests();
        let id = requests.open_for("sleeps").unwrap();
        let first = requests.deliver(id, held());
        let Delivered::First { asker: "sleeps", reply, more: Some(mut more) } = first else { panic!("{first:?}") };
        assert_eq!((reply, more.id), (held(), id));
        assert!(is_heard(&requests.deliver(id, Reply::Proceed)));
        assert_eq!(more.replies.try_recv(), Some(Reply::Proceed));
        assert_eq!(requests.in_flight(), 0);

        let id = requests.open_for("sleeps").unwrap();
        let only = requests.deliver(id, Reply::Proceed);
        assert!(matches!(only, Delivered::First { asker: "sleeps", reply: Reply::Proceed, more: None }), "{only:?}");
        assert_eq!(requests.in_flight(), 0);
    }

    #[test]
    fn an_asker_that_is_woken_hears_its_first_reply_from_the_channel() {
        let requests = requests();
        let id = requests.open_for("sleeps").unwrap();
        let (asker, mut pending) = requests.wake(id).unwrap();
        assert_eq!((asker, pending.id), ("sleeps", id));
        assert!(requests.wake(id).is_none() && requests.take_back(id).is_none());
        assert!(is_heard(&requests.deliver(id, Reply::Proceed)));
        assert_eq!(pending.replies.try_recv(), Some(Reply::Proceed));
    }

    #[tokio::test]
    async fn a_broken_link_ends_every_wait() {
        let requests = requests();
        let mut pending = requests.open().unwrap();
        let asleep = requests.open_for("sleeps").unwrap();
        assert_eq!(requests.break_off(), ["sleeps"]);
        assert!(pending.replies.recv().await.is_none());
        assert!(requests.open().is_none() && requests.open_for("late").is_err());
        assert!(requests.wake(asleep).is_none());
    }
}
