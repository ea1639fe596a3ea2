//! One UDP socket of one worker: batches in, hits out in the same turn, misses when they are answered.

use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, UdpSocket as StdSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use heimdall_shared::clock::Moment;
use nix::errno::Errno;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::batch::{BATCH, Batch};
use super::late::Late;
use super::mailbox::Mailbox;
use crate::worker::Worker;
use heimdall_shared::watched::Room;

/// Batches answered before timers, connections and the link to the agent, which share the thread, get a turn.
const ROUNDS_PER_TURN: u32 = 16;

/// Batches read after the signal to stop: with four datagrams each at least, more than the largest receive buffer holds, and an end
/// also when clients go on asking.
const LAST_ROUNDS: usize = 4_096;

/// Pause after a receive call that failed for a reason of the machine's (no memory): a failing call must not spin.
const RECEIVE_RETRY: Duration = Duration::from_millis(10);

/// Serves one socket until `stop`, then answers what had already arrived.
pub(crate) async fn serve(socket: StdSocket, worker: Rc<Worker>, stop: CancellationToken) -> io::Result<()> {
    let address = socket.local_addr()?;
    let room = Room::new(socket.try_clone()?);
    Loop::new(Mailbox::new(socket, address), room, worker, address).run(&stop).await;
    Ok(())
}

struct Loop {
    address: SocketAddr,
    mailbox: Mailbox,
    send_room: Room<StdSocket>,
    worker: Rc<Worker>,
    late: Arc<Late>,
    batch: Batch,
}

impl Loop {
    fn new(mailbox: Mailbox, send_room: Room<StdSocket>, worker: Rc<Worker>, address: SocketAddr) -> Self {
        let batch = Batch::new(worker.desk.ahead);
        Self { address, mailbox, send_room, worker, late: Arc::default(), batch }
    }

    async fn run(mut self, stop: &CancellationToken) {
        let mut rounds = 0;
        loop {
            let late = Arc::clone(&self.late);
            let received = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                // Those wait longest; there are never more than the misses under way.
                () = late.ready() => {
                    self.send_late().await;
                    continue;
                }
                received = self.mailbox.receive(&mut self.batch.received) => received,
            };
            match received {
                Ok(()) => {
                    self.answer().await;
                    rounds += 1;
                    // Behind a full batch there is another one: no need to ask the runtime, which costs as much as an answer.
                    while self.mailbox.was_full()
                        && rounds < ROUNDS_PER_TURN
                        && self.mailbox.receive_more(&mut self.batch.received).is_ok()
                    {
                        self.answer().await;
                        rounds += 1;
                    }
                }
                Err(error) => {
                    warn!(%error, socket = %self.address, "cannot receive; trying again");
                    tokio::time::sleep(RECEIVE_RETRY).await;
                }
            }
            if rounds >= ROUNDS_PER_TURN {
                rounds = 0;
                tokio::task::yield_now().await;
            }
        }
        // Datagrams that are still queued would die with the socket.
        for _ in 0..LAST_ROUNDS {
            if self.mailbox.receive_now(&mut self.batch.received).is_err() {
                break;
            }
            self.answer().await;
        }
        // Nobody else would send what is still being asked for. It takes as long as a query may.
        while self.late.ready_or_over().await {
            self.send_late().await;
        }
    }

    /// Sends a batch of replies to misses.
    async fn send_late(&mut self) {
        self.batch.replies.clear();
        let now = Moment::now();
        while self.batch.replies.len() < BATCH {
            let Some((query, outcome)) = self.late.take() else { break };
            // What was received last is answered: its envelopes' places are free.
            let nth = self.batch.replies.len();
            self.mailbox.set_envelope(nth, query.envelope);
            let length = self.worker.reply_over_udp(&query.miss, outcome, now, self.batch.replies.next_mut());
            self.batch.replies.push(length, nth);
        }
        self.send_replies(0).await;
    }

    /// Sends what the cache has, and asks for what it has not.
    async fn answer(&mut self) {
        let worker = Rc::clone(&self.worker);
        self.batch.answer(Moment::now(), &worker.desk.cache, &worker.desk.tallies);
        // Hits wait for nothing else, and nothing else for a full send buffer.
        let sent = if self.batch.replies.is_empty() { 0 } else { self.send_from(0).unwrap_or(0) };
        for missed in self.batch.misses() {
            if let Some(envelope) = self.mailbox.envelope(missed.index) {
                worker.miss_over_udp(&missed.query, missed.key, envelope, &self.late);
            }
        }
        for due in self.batch.due() {
            worker.refresh(due.key);
        }
        self.send_replies(sent).await;
    }

    /// Sends the replies of the batch behind the first `sent`.
    async fn send_replies(&mut self, mut sent: usize) {
        while sent < self.batch.replies.len() {
            let result = match self.send_from(sent) {
                Err(Errno::EAGAIN) => self.send_when_writable(sent).await,
                result => result.map_err(drop),
            };
            match result {
                Ok(count) => sent += count,
                Err(()) => {
                    // The first datagram cannot be sent (its address may be forged); the others can.
                    self.worker.desk.tallies.send_errors.add(1);
                    sent += 1;
                }
            }
        }
    }

    /// A full send buffer makes us wait, and the kernel's receive queue take up the slack.
    async fn send_when_writable(&mut self, first: usize) -> Result<usize, ()> {
        loop {
            poll_fn(|context| self.send_room.poll(context)).await.map_err(drop)?;
            match self.send_from(first) {
                Err(Errno::EAGAIN) => {}
                sent => {
                    self.send_room.found();
                    return sent.map_err(drop);
                }
            }
        }
    }

    fn send_from(&mut self, first: usize) -> Result<usize, Errno> {
        self.mailbox.send(&self.batch.replies, first)
    }
}
