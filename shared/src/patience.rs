//! One timer for all who wait equally long.
//!
//! Each request is given a few milliseconds, and nearly none needs them. A timer of the runtime for each of them costs more than the
//! request itself: it is put into a wheel and taken out again, and the first ones that are due before all others wake the runtime's own
//! thread with a system call each. Who waits equally long is due in the order of coming: a queue is enough, and a timer for its head. Whoever comes
//! with a slightly older clock than the one before waits for that one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// Who may be in the queue, those included who have what they waited for: three million requests per second, for 5 ms. Whoever
/// comes when it is full has waited long enough.
const WAITING_MAX: usize = 16_384;

/// Waits of always the same length. `W` says who waits.
#[derive(Debug)]
pub struct Patience<W> {
    length: Duration,
    queue: Mutex<VecDeque<(Instant, W)>>,
    /// The queue is empty no longer.
    begun: Notify,
}

impl<W> Patience<W> {
    /// Of that length. [`Patience::run`] ends the waits.
    pub fn new(length: Duration) -> Self {
        Self { length, queue: Mutex::default(), begun: Notify::new() }
    }

    /// Somebody waits from `now` on.
    ///
    /// # Errors
    /// Whoever it is, when too many wait: the wait is over.
    pub fn begin(&self, now: Instant, who: W) -> Result<(), W> {
        let is_first = {
            let mut queue = self.queue();
            if queue.len() >= WAITING_MAX {
                return Err(who);
            }
            queue.push_back((now + self.length, who));
            queue.len() == 1
        };
        if is_first {
            self.begun.notify_one();
        }
        Ok(())
    }

    /// Calls `over` with each whose wait is over, until `stop` is cancelled. Without this no wait ends.
    pub async fn run(self: Arc<Self>, over: impl Fn(W), stop: CancellationToken) {
        let ending = async {
            loop {
                let next = self.queue().front().map(|(due, _)| *due);
                match next {
                    None => self.begun.notified().await,
                    Some(due) => {
                        sleep_until(due).await;
                        let now = Instant::now();
                        while let Some(who) = self.pop_due(now) {
                            over(who);
                        }
                    }
                }
            }
        };
        stop.run_until_cancelled(ending).await;
    }

    fn pop_due(&self, now: Instant) -> Option<W> {
        let mut queue = self.queue();
        if queue.front()?.0 > now {
            return None;
        }
        queue.pop_front().map(|(_, who)| who)
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<(Instant, W)>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    const LENGTH: Duration = Duration::from_millis(5);

    fn running() -> (Arc<Patience<u32>>, mpsc::Receiver<u32>) {
        let patience = Arc::new(Patience::new(LENGTH));
        let (over, ends) = mpsc::channel(8);
        tokio::spawn(Arc::clone(&patience).run(move |who| over.try_send(who).unwrap(), CancellationToken::new()));
        (patience, ends)
    }

    #[tokio::test(start_paused = true)]
    async fn each_waits_as_long_as_the_others() {
        let (patience, mut ends) = running();
        let begun = Instant::now();
        patience.begin(Instant::now(), 1).unwrap();
        tokio::time::advance(Duration::from_millis(2)).await;
        patience.begin(Instant::now(), 2).unwrap();
        assert_eq!((ends.recv().await, begun.elapsed()), (Some(1), LENGTH));
        assert!(ends.try_recv().is_err());
        assert_eq!((ends.recv().await, begun.elapsed()), (Some(2), LENGTH + Duration::from_millis(2)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_empty_queue_begins_anew() {
        let (patience, mut ends) = running();
        for who in 0..3 {
            let begun = Instant::now();
            patience.begin(Instant::now(), who).unwrap();
            assert_eq!((ends.recv().await, begun.elapsed()), (Some(who), LENGTH));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
    }

    #[test]
    fn a_full_queue_makes_nobody_wait() {
        let patience = Patience::new(LENGTH);
        let now = Instant::now();
        for who in 0..WAITING_MAX {
            patience.begin(now, who).unwrap();
        }
        assert_eq!(patience.begin(now, WAITING_MAX), Err(WAITING_MAX));
    }
}
