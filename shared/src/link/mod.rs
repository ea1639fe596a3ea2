//! One `Session` stream between two processes: dns-server worker and agent, or two agents.
//!
//! ```text
//!  push(Message) ─► Outbox (lanes) ─► outgoing(): numbered batches, ages computed now ─► gRPC stream
//!                                        │ remembers when each batch left
//!  Vec<Message> ◄─ receive(batch): ages dated from the batch that the other side had seen ◄─ gRPC stream
//! ```
//!
//! Both ends use the same [`Link`]. It never blocks: a full lane refuses, so a reader never waits for a writer.

mod anchors;
mod beat;
mod message;
mod outbox;
mod replies;
mod requests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, Stream};
use heimdall_proto::v1 as pb;
use tokio::time::Instant;

pub use self::anchors::Anchors;
pub use self::beat::{BEAT_EVERY, Beats};
pub use self::message::{
    Condition, DegradedReason, FailureKind, Hello, Lookup, LookupMode, Message, NodeState, Publish, Reply, Wait,
    WriteLevel,
};
pub use self::outbox::{Full, Lane};
pub use self::replies::{Replier, Replies, replies};
pub use self::requests::{Delivered, Pending, REQUESTS_IN_FLIGHT, Requests, Side};

use self::outbox::{BATCH_MESSAGES, Outbox};
use crate::clock::Moment;
use crate::wire::{Packing, Received};

/// Version of the session protocol, said in the Hello.
pub const PROTOCOL_VERSION: u32 = 1;

/// A link measures its round trip this often, busy or idle.
const MEASURE_EVERY: Duration = Duration::from_secs(1);

/// Weight of a new round trip in the smoothed one (RFC 6298 section 2.3 uses 1/8).
const SMOOTHING: u32 = 8;

/// h2 windows of a stream and of a connection, bytes. Small unread DATA frames use up a budget of half the window; with
/// 8 MiB a burst of more than 10,000 messages fits.
pub const H2_WINDOW: u32 = 8 << 20;

/// Largest batch that a receiver decodes, bytes: a batch is closed at 256 KiB, and the one message over that is an answer
/// of at most 64 KiB with its key and framing.
pub const BATCH_BYTES_MAX: usize = 1 << 20;

/// One end of a session stream.
#[derive(Debug)]
pub struct Link {
    outbox: Outbox,
    beats: Beats,
    state: Mutex<State>,
    heard: AtomicU64,
    round_trip: AtomicU64,
    unknown_frames: AtomicU64,
}

#[derive(Debug)]
struct State {
    anchors: Anchors,
    seen: u64,
    sent: u64,
    nonce: u64,
    ping: Option<(u64, Moment)>,
    pinged: Option<Moment>,
}

impl Link {
    /// A link whose stream is being opened at `now`. Idle, it says that it is there at each of `beats`.
    pub fn new(now: Moment, beats: &Beats) -> Arc<Self> {
        let link = Arc::new(Self {
            outbox: Outbox::default(),
            beats: beats.clone(),
            state: Mutex::new(State {
                anchors: Anchors::new(now),
                seen: 0,
                sent: 0,
                nonce: 0,
                ping: None,
                pinged: None,
            }),
            heard: AtomicU64::new(now.as_nanos()),
            round_trip: AtomicU64::new(0),
            unknown_frames: AtomicU64::new(0),
        });
        beats.join(Arc::downgrade(&link));
        link
    }

    /// Queues a message. Never waits.
    ///
    /// # Errors
    /// [`Full`] when its lane is full or the link is closed: nothing was queued, and the caller counts it.
    pub fn push(&self, message: Message) -> Result<(), Full> {
        self.outbox.push(message, true)
    }

    /// Queues a message that nobody waits for: it leaves with the next one, or a moment later. Never waits.
    ///
    /// # Errors
    /// As [`Link::push`].
    pub fn push_idly(&self, message: Message) -> Result<(), Full> {
        self.outbox.push(message, false)
    }

    /// Ends the outgoing stream after what is queued.
    pub fn close(&self) {
        self.outbox.close();
    }

    /// Whether [`Link::close`] was called or the stream broke.
    pub fn is_closed(&self) -> bool {
        self.outbox.is_closed()
    }

    /// Resolves when the link is closed.
    pub async fn closed(&self) {
        self.outbox.closed().await;
    }

    /// When a batch last arrived.
    pub fn heard(&self) -> Moment {
        Moment::from_nanos(self.heard.load(Ordering::Relaxed))
    }

    /// The smoothed round trip, once it was measured.
    pub fn round_trip(&self) -> Option<Duration> {
        match self.round_trip.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(Duration::from_nanos(nanos)),
        }
    }

    /// Frames of a kind, or with content, that this release could not read.
    pub fn unknown_frames(&self) -> u64 {
        self.unknown_frames.load(Ordering::Relaxed)
    }

    /// The batches to send, for the request or response side of the gRPC stream. Call it once per link.
    pub fn outgoing(self: &Arc<Self>) -> impl Stream<Item = pb::SessionBatch> + Send + use<> {
        stream::unfold(Arc::clone(self), |link| async move {
            let messages = link.outbox.next_batch().await?;
            let batch = link.batch(&messages, Moment::now());
            Some((batch, link))
        })
    }

    /// The next batch leaves at once, with whatever there is. Returns whether there will be one.
    fn beat(&self) -> bool {
        self.outbox.beat()
    }

    /// Numbers a batch and computes the ages in it. One without content says that this side is there, and what it has seen;
    /// now and then there is a ping in it.
    fn batch(&self, messages: &[Message], now: Moment) -> pb::SessionBatch {
        let mut state = self.state();
        state.sent += 1;
        let number = state.sent;
        let mut batch = Packing::new(number, state.seen, messages.iter().map(Message::weight).sum());
        for message in messages {
            batch.add(message, now);
        }
        if state.pinged.is_none_or(|pinged| now.since(pinged) >= MEASURE_EVERY) {
            state.pinged = Some(now);
            // A ping that is still under way is sent again with its nonce: its round trip counts from the first time.
            let nonce = match state.ping {
                Some((nonce, _)) => nonce,
                None => {
                    state.nonce += 1;
                    state.ping = Some((state.nonce, now));
                    state.nonce
                }
            };
            batch.add(&Message::Ping { nonce }, now);
        }
        state.anchors.sent(number, now);
        batch.done()
    }

    /// Takes a batch that arrived at `now` apart. Pings are answered here; what cannot be read is counted and skipped.
    ///
    /// So is a batch that came before, or after a later one: a stream keeps the order, and an old batch would be dated from
    /// what its sender had not yet seen when it computed the ages in it.
    pub fn receive(&self, batch: pb::SessionBatch, now: Moment) -> Vec<Message> {
        self.heard.store(now.as_nanos(), Ordering::Relaxed);
        let batch = Received::new(batch);
        let anchor = {
            let mut state = self.state();
            if batch.number <= state.seen {
                self.unknown_frames.fetch_add(batch.frames as u64, Ordering::Relaxed);
                return Vec::new();
            }
            state.seen = batch.number;
            state.anchors.seen(batch.seen)
        };
        if batch.frames == 0 {
            self.beats.heard(Instant::now());
        }
        // Frames may be empty, and messages are large: the room is that of a batch as others send it.
        let mut messages = Vec::with_capacity(batch.frames.min(BATCH_MESSAGES + 1));
        for message in batch.messages(anchor) {
            match message {
                Ok(Message::Ping { nonce }) => {
                    // A full lane loses the pong: the other side then sees a link that is as stuck as it is.
                    let _ = self.push(Message::Pong { nonce });
                }
                Ok(Message::Pong { nonce }) => self.measured(nonce, now),
                Ok(message) => messages.push(message),
                Err(_unreadable) => {
                    self.unknown_frames.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        messages
    }

    fn measured(&self, nonce: u64, now: Moment) {
        let mut state = self.state();
        let Some((expected, sent)) = state.ping else { return };
        if expected != nonce {
            return;
        }
        state.ping = None;
        let sample = now.since(sent).max(Duration::from_nanos(1));
        let smoothed = match self.round_trip() {
            None => sample,
            Some(old) => old - old / SMOOTHING + sample / SMOOTHING,
        };
        self.round_trip.store(smoothed.as_nanos() as u64, Ordering::Relaxed);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
