//! Answers to misses on their way to their socket's loop, which writes the replies and sends all that are ready with one system call.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use super::envelope::Envelope;
use crate::answer::Outcome;
use crate::worker::{Miss, Place};

/// A datagram that the cache could not answer. There are as many as there are places for misses.
#[derive(Debug)]
pub(crate) struct LateQuery {
    /// What is asked.
    pub(crate) miss: Miss,
    /// Who asks, and which of our addresses.
    pub(crate) envelope: Envelope,
    /// Its place among the misses of its worker.
    _place: Place,
    /// Where its answer goes.
    late: Arc<Late>,
}

impl LateQuery {
    /// A query whose answer `late` waits for.
    pub(crate) fn new(miss: Miss, envelope: Envelope, place: Place, late: &Arc<Late>) -> Self {
        late.state().under_way += 1;
        Self { miss, envelope, _place: place, late: Arc::clone(late) }
    }

    /// Here is its answer.
    pub(crate) fn answered(self, outcome: Outcome) {
        let late = Arc::clone(&self.late);
        let waker = {
            let mut state = late.state();
            state.answered.push_back((self, outcome));
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for LateQuery {
    /// With its reply, or without one: then whoever had it is gone, and nobody must wait for it.
    fn drop(&mut self) {
        let waker = {
            let mut state = self.late.state();
            state.under_way -= 1;
            if state.under_way == 0 { state.waker.take() } else { None }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The way from whoever has an answer, on any thread, to one socket.
#[derive(Debug, Default)]
pub(crate) struct Late(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    answered: VecDeque<(LateQuery, Outcome)>,
    /// Queries without a reply.
    under_way: usize,
    waker: Option<Waker>,
}

impl Late {
    /// Resolves when there is an answer to send.
    pub(super) async fn ready(&self) {
        self.until(|state| !state.answered.is_empty()).await;
    }

    /// Resolves when there is an answer to send, or nobody who waits for one. Says whether there is somebody.
    pub(super) async fn ready_or_over(&self) -> bool {
        self.until(|state| !state.answered.is_empty() || state.under_way == 0).await;
        self.state().under_way > 0
    }

    async fn until(&self, is_there: impl Fn(&State) -> bool) {
        poll_fn(|context| {
            let mut state = self.state();
            if is_there(&state) {
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
        self.state().answered.pop_front()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::query::{KeyBuf, Query};

    /// A query with that ID for `a.` A IN.
    fn query(id: u8, places: &TaskTracker, late: &Arc<Late>) -> LateQuery {
        let packet = [0, id, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 0, 0, 1, 0, 1];
        let mut key = KeyBuf::new();
        let query = Query::parse(&packet, &mut key).unwrap();
        LateQuery::new(Miss::new(&query, &key).unwrap(), Envelope::NONE, places.token(), late)
    }

    #[tokio::test]
    async fn what_is_answered_on_any_thread_waits_for_the_loop_in_order() {
        let (late, places) = (Arc::new(Late::default()), TaskTracker::new());
        let (first, second) = (query(1, &places, &late), query(2, &places, &late));
        assert!(late.ready().now_or_never().is_none());
        let waits = tokio::spawn({
            let late = Arc::clone(&late);
            async move { late.ready().await }
        });
        tokio::task::yield_now().await;
        std::thread::spawn(move || first.answered(Outcome::Failed)).join().unwrap();
        waits.await.unwrap();
        second.answered(Outcome::Refused);
        for (id, outcome) in [(1, Outcome::Failed), (2, Outcome::Refused)] {
            assert!(late.ready_or_over().await);
            let (query, answer) = late.take().unwrap();
            assert_eq!((query.miss.query().head.id, answer), (id, outcome));
        }
        assert!(late.take().is_none() && !late.ready_or_over().await);
        assert_eq!(places.len(), 0, "a place is free when its reply is written");
    }

    #[tokio::test]
    async fn a_query_that_is_lost_is_not_waited_for() {
        let (late, places) = (Arc::new(Late::default()), TaskTracker::new());
        let lost = query(1, &places, &late);
        let ends = tokio::spawn({
            let late = Arc::clone(&late);
            async move { late.ready_or_over().await }
        });
        tokio::task::yield_now().await;
        assert!(!ends.is_finished());
        drop(lost);
        assert!(!ends.await.unwrap());
        assert_eq!(places.len(), 0);
    }
}
