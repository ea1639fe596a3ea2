//! Answers to misses on their way to their socket's loop, which writes the replies and sends all that are ready with one system call.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use super::mmsg::Address;
use crate::answer::Outcome;
use crate::worker::{Miss, Place};

/// A datagram that the cache could not answer. There are as many as there are places for misses.
#[derive(Debug)]
pub(crate) struct LateQuery {
    /// What is asked.
    pub(crate) miss: Miss,
    /// Who asks.
    pub(crate) peer: Address,
    /// Its place among the misses of its worker.
    pub(crate) _place: Place,
}

/// The way from whoever has an answer, on any thread, to one socket.
#[derive(Debug, Default)]
pub(crate) struct Late(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    answered: VecDeque<(LateQuery, Outcome)>,
    /// Queries that were not taken from here yet.
    under_way: usize,
    waker: Option<Waker>,
}

impl Late {
    /// A query is on its way: [`Late::answered`] must follow.
    pub(crate) fn begin(&self) {
        self.state().under_way += 1;
    }

    /// Here is its answer.
    pub(crate) fn answered(&self, query: LateQuery, outcome: Outcome) {
        let waker = {
            let mut state = self.state();
            state.answered.push_back((query, outcome));
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Resolves when there is an answer to send.
    pub(super) async fn ready(&self) {
        poll_fn(|context| {
            let mut state = self.state();
            if !state.answered.is_empty() {
                return Poll::Ready(());
            }
            match &mut state.waker {
                Some(waker) => waker.clone_from(context.waker()),
                waker => *waker = Some(context.waker().clone()),
            }
            Poll::Pending
        })
        .await;
    }

    /// The oldest answer.
    pub(super) fn take(&self) -> Option<(LateQuery, Outcome)> {
        let mut state = self.state();
        let taken = state.answered.pop_front()?;
        state.under_way -= 1;
        Some(taken)
    }

    /// Whether nobody waits for an answer.
    pub(super) fn is_empty(&self) -> bool {
        self.state().under_way == 0
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt as _;
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::query::{KeyBuf, Query};

    /// A query with that ID for `a.` A IN.
    fn query(id: u8, places: &TaskTracker) -> LateQuery {
        let packet = [0, id, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 0, 0, 1, 0, 1];
        let mut key = KeyBuf::new();
        let query = Query::parse(&packet, &mut key).unwrap();
        LateQuery { miss: Miss::new(&query, &key).unwrap(), peer: Address::default(), _place: places.token() }
    }

    #[tokio::test]
    async fn what_is_answered_on_any_thread_waits_for_the_loop_in_order() {
        let (late, places) = (Arc::new(Late::default()), TaskTracker::new());
        assert!(late.ready().now_or_never().is_none() && late.is_empty());
        for _ in 0..2 {
            late.begin();
        }
        let (other, query_1) = (Arc::clone(&late), query(1, &places));
        let waits = tokio::spawn({
            let late = Arc::clone(&late);
            async move { late.ready().await }
        });
        tokio::task::yield_now().await;
        std::thread::spawn(move || other.answered(query_1, Outcome::Failed)).join().unwrap();
        waits.await.unwrap();
        late.answered(query(2, &places), Outcome::Refused);
        for (id, outcome) in [(1, Outcome::Failed), (2, Outcome::Refused)] {
            assert!(!late.is_empty());
            let (query, answer) = late.take().unwrap();
            assert_eq!((query.miss.query().head.id, answer), (id, outcome));
        }
        assert!(late.take().is_none() && late.is_empty());
        assert_eq!(places.len(), 0, "a place is free when its reply is written");
    }
}
