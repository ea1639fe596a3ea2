//! One timer for all who wait equally long.
//!
//! Each lookup at a peer is given a few milliseconds, and nearly none needs them. A timer of the runtime for each of them costs more
//! than asking the peer: it is put into a wheel and taken out again, and the first ones that are due before all others wake the
//! runtime's own thread with a system call each. Who waits equally long is due in the order of coming: a queue is enough, and a
//! timer for its head.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Poll;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// Who may be in the queue, those included who have what they waited for: three million lookups per second, for 5 ms. Whoever
/// comes when it is full has waited long enough.
const WAITING_MAX: usize = 16_384;

/// A wait of always the same length.
#[derive(Debug)]
pub struct Patience {
    length: Duration,
    queue: Mutex<VecDeque<(Instant, Weak<Shared>)>>,
    /// The queue is empty no longer.
    begun: Notify,
}

/// One who waits.
#[derive(Debug)]
pub struct Waiting(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    is_over: AtomicBool,
    waker: AtomicWaker,
}

impl Shared {
    fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        self.waker.wake();
    }
}

impl Patience {
    /// Of that length. [`Patience::run`] ends the waits.
    pub fn new(length: Duration) -> Self {
        Self { length, queue: Mutex::default(), begun: Notify::new() }
    }

    /// Somebody waits from `now` on.
    pub fn begin(&self, now: Instant) -> Waiting {
        let shared = Arc::<Shared>::default();
        let is_first = {
            let mut queue = self.queue();
            if queue.len() < WAITING_MAX {
                queue.push_back((now + self.length, Arc::downgrade(&shared)));
            } else {
                shared.end();
            }
            queue.len() == 1
        };
        if is_first {
            self.begun.notify_one();
        }
        Waiting(shared)
    }

    /// Ends waits as they come due, until `stop` is cancelled. Without this none ever ends.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let ending = async {
            loop {
                let next = self.queue().front().map(|(due, _)| *due);
                match next {
                    None => self.begun.notified().await,
                    Some(due) => {
                        sleep_until(due).await;
                        self.end_due(Instant::now());
                    }
                }
            }
        };
        stop.run_until_cancelled(ending).await;
    }

    fn end_due(&self, now: Instant) {
        let mut queue = self.queue();
        while let Some((due, _)) = queue.front()
            && *due <= now
        {
            // Who is gone has what it waited for.
            if let Some(shared) = queue.pop_front().and_then(|(_, shared)| shared.upgrade()) {
                shared.end();
            }
        }
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<(Instant, Weak<Shared>)>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Resolves when the wait is over. Cancelling this future loses nothing.
    pub async fn over(&self) {
        poll_fn(|context| {
            if self.0.is_over.load(Ordering::Acquire) {
                return Poll::Ready(());
            }
            self.0.waker.register(context.waker());
            // It may have ended in between.
            if self.0.is_over.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const LENGTH: Duration = Duration::from_millis(5);

    fn running() -> Arc<Patience> {
        let patience = Arc::new(Patience::new(LENGTH));
        tokio::spawn(Arc::clone(&patience).run(CancellationToken::new()));
        patience
    }

    #[tokio::test(start_paused = true)]
    async fn each_waits_as_long_as_the_others() {
        let patience = running();
        let begun = Instant::now();
        let first = patience.begin(Instant::now());
        tokio::time::advance(Duration::from_millis(2)).await;
        let second = patience.begin(Instant::now());
        assert!(first.over().now_or_never().is_none());
        first.over().await;
        assert_eq!(begun.elapsed(), LENGTH);
        assert!(second.over().now_or_never().is_none());
        second.over().await;
        assert_eq!(begun.elapsed(), LENGTH + Duration::from_millis(2));
        second.over().await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_went_away_holds_nobody_up_and_an_empty_queue_begins_anew() {
        let patience = running();
        for _ in 0..3 {
            let begun = Instant::now();
            drop(patience.begin(Instant::now()));
            let stays = patience.begin(Instant::now());
            stays.over().await;
            assert_eq!(begun.elapsed(), LENGTH);
            assert!(patience.queue().is_empty());
            tokio::time::advance(Duration::from_secs(1)).await;
        }
    }

    #[tokio::test]
    async fn a_full_queue_makes_nobody_wait() {
        let patience = Patience::new(LENGTH);
        let now = Instant::now();
        let waiting: Vec<_> = (0..=WAITING_MAX).map(|_| patience.begin(now)).collect();
        let over = waiting.iter().filter(|waiting| waiting.over().now_or_never().is_some()).count();
        assert_eq!(over, 1, "the last one");
        assert_eq!(patience.queue().len(), WAITING_MAX);
    }
}
