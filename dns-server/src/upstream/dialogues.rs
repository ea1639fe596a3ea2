//! The dialogues of one resolution that are under way, and what they and the resolution tell each other.
//!
//! One dialogue is the rule and a few are the most, and all of them belong to one task. So whenever that task is woken, all of
//! them are looked at: that costs less than to know whom it was about, and nobody has to be woken for what is told.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use super::plan::{DIALOGUES_MAX, Hint};

/// Hints that may wait for the plan: one that says the same again is not missed.
const HINTS_WAITING: usize = 8;

/// The dialogues that have not ended.
pub(super) struct Dialogues<F>(Vec<Pin<Box<F>>>);

impl<F: Future> Dialogues<F> {
    /// None yet.
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    /// Begins one.
    pub(super) fn push(&mut self, dialogue: F) {
        self.0.push(Box::pin(dialogue));
    }

    /// What the next one ends with. Cancelling this future loses nothing.
    pub(super) async fn next(&mut self) -> F::Output {
        poll_fn(|context| {
            for at in 0..self.0.len() {
                if let Poll::Ready(end) = self.0[at].as_mut().poll(context) {
                    drop(self.0.swap_remove(at));
                    return Poll::Ready(end);
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// What a resolution and its dialogues tell each other.
#[derive(Default)]
pub(super) struct Told {
    /// Of each dialogue, whether it is to send its query once more.
    again: [AtomicBool; DIALOGUES_MAX],
    hints: Mutex<VecDeque<(usize, Hint)>>,
}

impl Told {
    /// Has a dialogue send its query once more.
    pub(super) fn ask_again(&self, number: usize) {
        self.again[number].store(true, Ordering::Relaxed);
    }

    /// Resolves when a dialogue is to send its query once more.
    pub(super) async fn again(&self, number: usize) {
        let again = &self.again[number];
        poll_fn(|_| if again.swap(false, Ordering::Relaxed) { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    /// A dialogue suspects something. When too much waits, the like was said before.
    pub(super) fn hint(&self, number: usize, hint: Hint) {
        let mut hints = self.hints();
        if hints.len() < HINTS_WAITING {
            hints.push_back((number, hint));
        }
    }

    /// The oldest hint that was not heard.
    pub(super) async fn hinted(&self) -> (usize, Hint) {
        poll_fn(|_| self.hints().pop_front().map_or(Poll::Pending, Poll::Ready)).await
    }

    fn hints(&self) -> MutexGuard<'_, VecDeque<(usize, Hint)>> {
        self.hints.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use futures_util::FutureExt as _;
    use futures_util::future::Either;

    use super::*;

    #[test]
    fn dialogues_end_in_whatever_order_and_the_others_go_on() {
        let mut dialogues = Dialogues::new();
        assert_eq!(dialogues.next().now_or_never(), None, "where there is none, none ends");
        dialogues.push(Either::Left(pending()));
        dialogues.push(Either::Right(ready(1)));
        dialogues.push(Either::Right(ready(2)));
        let mut ended = [dialogues.next().now_or_never(), dialogues.next().now_or_never()];
        ended.sort_unstable();
        assert_eq!(ended, [Some(1), Some(2)]);
        assert_eq!(dialogues.next().now_or_never(), None);
    }

    #[test]
    fn what_is_told_is_heard_once_by_whom_it_is_for() {
        let told = Told::default();
        told.ask_again(1);
        assert_eq!([told.again(0).now_or_never(), told.again(1).now_or_never()], [None, Some(())]);
        assert_eq!(told.again(1).now_or_never(), None);
        for _ in 0..2 * HINTS_WAITING {
            told.hint(3, Hint::Unreachable);
        }
        let heard = std::iter::from_fn(|| told.hinted().now_or_never());
        assert_eq!(heard.collect::<Vec<_>>(), [(3, Hint::Unreachable); HINTS_WAITING]);
    }
}
