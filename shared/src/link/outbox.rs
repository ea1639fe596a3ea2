//! What waits to be sent on a link: bounded lanes, never blocking.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::Message;

/// Messages in one batch: enough to fill large DATA frames, few enough that a result never waits long behind others.
pub(super) const BATCH_MESSAGES: usize = 64;
/// A batch is closed when it reaches this many bytes: well below what a receiver decodes, so that the last and
/// largest message still fits.
const BATCH_BYTES: usize = 256 << 10;

/// A message that nobody waits for leaves with the next one that somebody does wait for, or after this time at the latest:
/// alone it would cost a system call and a wake-up on either side. Far below a tick, and what a write to disk takes.
const LINGER: Duration = Duration::from_millis(2);

/// Kinds of messages that have room of their own, in the order in which they leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Ticks, results, publishes, releases, cancels: what ends somebody's wait.
    Results,
    /// Lookups and waits.
    Requests,
    /// Replication: dropped first.
    Copies,
}

impl Lane {
    /// Messages that may wait in the lane: 8 answers for each of 1,024 requests in flight, those requests themselves, and
    /// as many copies as a link sends in a few milliseconds.
    const fn messages_max(self) -> usize {
        match self {
            Self::Results => 8_192,
            Self::Requests => 1_024,
            Self::Copies => 4_096,
        }
    }

    /// Bytes that may wait in the lane: a peer that reads nothing costs at most the sum of the three.
    const fn bytes_max(self) -> usize {
        match self {
            Self::Results => 8 << 20,
            Self::Requests => 1 << 20,
            Self::Copies => 2 << 20,
        }
    }
}

/// A message was not queued: its lane was full, or the link is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the link's {0:?} lane takes no more messages")]
pub struct Full(pub Lane);

#[derive(Debug, Default)]
pub(super) struct Outbox {
    lanes: Mutex<Lanes>,
    /// Written under the lock: who pushes looks at it there, who only wants to know looks at it alone.
    closed: AtomicBool,
    ready: Notify,
    closing: Notify,
}

#[derive(Debug, Default)]
struct Lanes {
    lanes: [Queue; 3],
    /// Messages in all lanes.
    count: usize,
    /// Whether one of them must not linger.
    due: bool,
    /// Whether a batch must leave, with or without messages.
    beat: bool,
}

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<Message>,
    bytes: usize,
}

impl Queue {
    fn drop_where(&mut self, is_over: impl Fn(&Message) -> bool) {
        self.messages.retain(|message| {
            let over = is_over(message);
            if over {
                self.bytes -= message.weight();
            }
            !over
        });
    }
}

impl Outbox {
    /// Queues a message; one that is not `due` may linger.
    pub(super) fn push(&self, message: Message, due: bool) -> Result<(), Full> {
        let lane = message.lane();
        let weight = message.weight();
        let changed = {
            let mut lanes = self.lanes();
            if self.is_closed() {
                return Err(Full(lane));
            }
            if lanes.take_back(&message) {
                return Ok(());
            }
            let queue = &mut lanes.lanes[lane as usize];
            // An empty lane takes a message of any size: no answer is too large to be sent at all.
            let fits = queue.bytes == 0 || queue.bytes + weight <= lane.bytes_max();
            if queue.messages.len() >= lane.messages_max() || !fits {
                return Err(Full(lane));
            }
            queue.bytes += weight;
            queue.messages.push_back(message);
            lanes.count += 1;
            let was_due = lanes.due;
            lanes.due |= due || lanes.count >= BATCH_MESSAGES;
            // The first one that lingers starts its time.
            lanes.due != was_due || lanes.count == 1
        };
        if changed {
            self.ready.notify_one();
        }
        Ok(())
    }

    /// Has a batch leave at once, also when there is nothing to be sent. Returns whether it will: not when the link is closed.
    pub(super) fn beat(&self) -> bool {
        {
            let mut lanes = self.lanes();
            if self.is_closed() {
                return false;
            }
            lanes.beat = true;
        }
        self.ready.notify_one();
        true
    }

    pub(super) fn close(&self) {
        {
            let _nobody_pushes = self.lanes();
            self.closed.store(true, Ordering::Release);
        }
        self.ready.notify_one();
        self.closing.notify_waiters();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(super) async fn closed(&self) {
        let closing = self.closing.notified();
        tokio::pin!(closing);
        // Registered before the check, so that a close in between is not missed.
        closing.as_mut().enable();
        if !self.is_closed() {
            closing.await;
        }
    }

    /// What is ready, up to a batch; waits while nothing is and there is no beat. `None` when the link is closed and all is
    /// sent. Cancelling this future loses nothing.
    pub(super) async fn next_batch(&self) -> Option<Vec<Message>> {
        loop {
            let lingers = {
                let mut lanes = self.lanes();
                let closed = self.is_closed();
                if lanes.due || lanes.beat || closed {
                    let beat = std::mem::take(&mut lanes.beat);
                    let batch = lanes.take();
                    if !batch.is_empty() || beat && !closed {
                        return Some(batch);
                    }
                    if closed {
                        return None;
                    }
                }
                lanes.count > 0
            };
            if !lingers {
                self.ready.notified().await;
            } else if tokio::time::timeout(LINGER, self.ready.notified()).await.is_err() {
                self.lanes().due = true;
            }
        }
    }

    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lanes {
    /// Takes requests back that have not left and that `message` ends: in its own lane it would overtake them. Whether the
    /// message itself need not be sent any more.
    fn take_back(&mut self, message: &Message) -> bool {
        let requests = &mut self.lanes[Lane::Requests as usize];
        let before = requests.messages.len();
        match *message {
            Message::Cancel { id: cancelled } if before > 0 => requests.drop_where(
                |request| matches!(request, Message::Lookup { id, .. } | Message::Wait { id, .. } if *id == cancelled),
            ),
            Message::StreamGone { stream: gone } if before > 0 => requests.drop_where(|request| match request {
                Message::Lookup { lookup, .. } => lookup.stream == gone,
                Message::Wait { wait, .. } => wait.stream == gone,
                _ => false,
            }),
            _ => {}
        }
        // What the other side never heard of needs no cancelling; of a stream it may know other requests.
        matches!(message, Message::Cancel { .. }) && requests.messages.len() < before
    }

    fn take(&mut self) -> Vec<Message> {
        let mut batch = Vec::with_capacity(self.count.min(BATCH_MESSAGES));
        let mut bytes = 0;
        for queue in &mut self.lanes {
            // Counted first, then moved together: messages are large.
            let room = BATCH_MESSAGES - batch.len();
            let (before, mut count) = (bytes, 0);
            for message in queue.messages.iter().take(room) {
                if bytes >= BATCH_BYTES {
                    break;
                }
                bytes += message.weight();
                count += 1;
            }
            queue.bytes -= bytes - before;
            batch.extend(queue.messages.drain(..count));
        }
        self.count -= batch.len();
        self.due = self.count > 0;
        batch
    }
}
