//! The replies to one request, from the link's reader to whoever asked.
//!
//! Nearly every request has one or two replies. A general channel allocates and clears room for 32 of them, which cost more
//! than everything else about a request.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use super::Reply;

/// Replies that may wait for the asker of one request: working, held, and the final one, with room to spare.
const REPLIES_WAITING: usize = 8;

/// Hands replies over. When it is dropped, no more come.
#[derive(Debug)]
pub struct Replier(Arc<Shared>);

/// Where the replies to one request arrive, in the order in which they came.
#[derive(Debug)]
pub struct Replies(Arc<Shared>);

/// A place for replies.
pub fn replies() -> (Replier, Replies) {
    let shared = Arc::<Shared>::default();
    (Replier(Arc::clone(&shared)), Replies(shared))
}

#[derive(Debug, Default)]
struct Shared(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The oldest reply, which costs no allocation.
    next: Option<Reply>,
    /// Those behind it.
    more: VecDeque<Reply>,
    waker: Option<Waker>,
    /// Nothing comes any more, or nobody takes it.
    closed: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) -> Option<Waker> {
        let mut state = self.state();
        state.closed = true;
        state.waker.take()
    }
}

impl State {
    fn waiting(&self) -> usize {
        usize::from(self.next.is_some()) + self.more.len()
    }

    fn pop(&mut self) -> Option<Reply> {
        let next = self.next.take();
        self.next = self.more.pop_front();
        next
    }
}

impl Replier {
    /// Hands over a reply. Never waits.
    ///
    /// # Errors
    /// The reply, when nobody waits for it any more or `REPLIES_WAITING` were not taken yet.
    pub fn send(&self, reply: Reply) -> Result<(), Reply> {
        let waker = {
            let mut state = self.0.state();
            if state.closed || state.waiting() >= REPLIES_WAITING {
                return Err(reply);
            }
            match &state.next {
                None => state.next = Some(reply),
                Some(_) => state.more.push_back(reply),
            }
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }
}

impl Drop for Replier {
    fn drop(&mut self) {
        if let Some(waker) = self.0.close() {
            waker.wake();
        }
    }
}

impl Replies {
    /// The next reply; `None` when no more come. Cancelling this future loses nothing.
    pub async fn recv(&mut self) -> Option<Reply> {
        poll_fn(|context| {
            let mut state = self.0.state();
            match state.pop() {
                Some(reply) => Poll::Ready(Some(reply)),
                None if state.closed => Poll::Ready(None),
                None => {
                    match &mut state.waker {
                        Some(waker) => waker.clone_from(context.waker()),
                        waker => *waker = Some(context.waker().clone()),
                    }
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// The next reply, if it is here.
    pub fn try_recv(&mut self) -> Option<Reply> {
        self.0.state().pop()
    }

    /// Takes no more; what is here can still be read.
    pub fn close(&mut self) {
        self.0.close();
    }
}

impl Drop for Replies {
    fn drop(&mut self) {
        let _nobody_else_waits = self.0.close();
        // Replies may be the last owners of large packets: they go now, and not when the sender does.
        let mut state = self.0.state();
        state.next = None;
        state.more.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn replies_come_in_order_and_end_with_their_sender() {
        let (replier, mut replies) = replies();
        replier.send(Reply::Working).unwrap();
        replier.send(Reply::Proceed).unwrap();
        assert_eq!(replies.recv().await, Some(Reply::Working));
        let waits = tokio::spawn(async move { (replies.recv().await, replies.recv().await, replies.recv().await) });
        tokio::task::yield_now().await;
        replier.send(Reply::Refused("late".to_owned())).unwrap();
        drop(replier);
        let last = (Some(Reply::Proceed), Some(Reply::Refused("late".to_owned())), None);
        assert_eq!(waits.await.unwrap(), last);
    }

    #[test]
    fn a_reply_that_nobody_takes_comes_back() {
        let (replier, mut replies) = replies();
        for _ in 0..REPLIES_WAITING {
            replier.send(Reply::Working).unwrap();
        }
        assert_eq!(replier.send(Reply::Proceed), Err(Reply::Proceed));
        assert_eq!(replies.try_recv(), Some(Reply::Working));
        replies.close();
        assert_eq!(replier.send(Reply::Proceed), Err(Reply::Proceed));
        assert_eq!(std::iter::from_fn(|| replies.try_recv()).count(), REPLIES_WAITING - 1);
    }
}
