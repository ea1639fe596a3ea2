//! DNS over TCP (RFC 7766): pipelined queries, answered as soon as each is ready.

use std::io;
use std::net::TcpListener as StdListener;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use heimdall_shared::clock::Moment;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::query::{KeyBuf, Query};
use crate::reply::{self, SHORT_MAX};
use crate::worker::{Miss, Worker};

/// Connections of the whole process. Each holds a descriptor and some 10 KiB; beyond it clients wait in the kernel's
/// backlog until one closes.
pub(crate) const CONNECTIONS_MAX: usize = 1_024;

/// Queries in flight on one connection; the next one is read when an answer has left.
const IN_FLIGHT_MAX: usize = 100;

/// Replies that wait for the connection to take them. Together with the one being written they bound what a client that
/// does not read makes us hold.
const REPLIES_WAITING: usize = 16;

/// A connection on which nothing has been asked for this long is closed (RFC 7766 6.2.3: "of the order of seconds").
const IDLE: Duration = Duration::from_secs(10);

/// From a message's first octet to its last, and for a client to take a reply.
const MESSAGE_TIME: Duration = Duration::from_secs(10);

/// Pause after a failed accept: descriptors that ran out come back when connections close.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);

/// Replies are written together up to this many octets.
const WRITE_TOGETHER: usize = 16 * 1_024;

/// Accepts connections until `stop`, and serves each in a task that `tasks` waits for.
pub(crate) async fn serve(
    listener: StdListener,
    worker: Rc<Worker>,
    permits: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            // The permit first: a connection that we cannot serve stays in the backlog.
            accepted = async {
                let permit = Arc::clone(&permits).acquire_owned().await.map_err(io::Error::other)?;
                listener.accept().await.map(|(stream, _)| (stream, permit))
            } => accepted,
        };
        match accepted {
            Ok((stream, permit)) => {
                worker.metrics.tcp_connections.inc();
                // Whole replies are written at once, so waiting for more would only delay them.
                let _ = stream.set_nodelay(true);
                let (worker, stop) = (Rc::clone(&worker), stop.clone());
                tasks.spawn_local(async move {
                    let (input, output) = stream.into_split();
                    connection(input, output, &worker, &stop).await;
                    drop(permit);
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept a DNS connection; trying again");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// Serves one connection until it is idle, closed, broken, or `stop`; what was asked before is still answered.
async fn connection(
    input: impl AsyncRead + Unpin,
    output: impl AsyncWrite + Unpin,
    worker: &Rc<Worker>,
    stop: &CancellationToken,
) {
    let (replies, outbox) = mpsc::channel(REPLIES_WAITING);
    // When the client stops taking replies there is nobody to read for.
    let broken = CancellationToken::new();
    let writer = async {
        write(output, outbox).await;
        broken.cancel();
    };
    let reader = async {
        tokio::select! {
            () = stop.cancelled() => {}
            () = broken.cancelled() => {}
            () = read(input, replies, worker) => {}
        }
    };
    tokio::join!(reader, writer);
}

/// Reads queries and sees to their replies, until the client has nothing more to say.
async fn read(mut input: impl AsyncRead + Unpin, replies: mpsc::Sender<Vec<u8>>, worker: &Rc<Worker>) {
    let in_flight = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
    let mut message = Vec::new();
    let mut key = KeyBuf::new();
    loop {
        let Ok(permit) = Arc::clone(&in_flight).acquire_owned().await else { return };
        if !next_message(&mut input, &mut message).await {
            return;
        }
        worker.desk.tallies.tcp_queries.add(1);
        let now = Moment::now();
        let query = match Query::parse(&message, &mut key) {
            Ok(query) => query,
            Err(reject) => {
                worker.desk.tallies.rejected.add(1);
                let frame = frame(SHORT_MAX, |out| reply::rejection(&reject, out));
                if frame.len() > LENGTH && replies.send(frame).await.is_err() {
                    return;
                }
                continue;
            }
        };
        if let Some(ready) = worker.desk.cache.get(key.as_bytes(), now) {
            worker.desk.tallies.l1_hits.add(1);
            let room = reply::room(ready.packet().len());
            let elapsed = ready.elapsed(now);
            let frame = frame(room, |out| reply::answer(&query, &ready, elapsed, false, reply::TCP_LIMIT, out));
            if replies.send(frame).await.is_err() {
                return;
            }
            continue;
        }
        worker.desk.tallies.l1_misses.add(1);
        let Some(miss) = Miss::new(&query, &key) else { continue };
        let Some(task) = worker.miss() else {
            // Over TCP nobody retransmits: the client must hear that this one was dropped.
            let frame = frame(SHORT_MAX, |out| reply::overloaded(&query, out));
            if replies.send(frame).await.is_err() {
                return;
            }
            continue;
        };
        let replies = replies.clone();
        let own = Rc::clone(worker);
        task.spawn_local(async move {
            let frame = own.answer(&miss, reply::TCP_LIMIT, LENGTH).await;
            // A client that went away needs no answer.
            let _ = replies.send(with_length(frame)).await;
            drop(permit);
        });
    }
}

/// Octets of the length in front of each message (RFC 1035 4.2.2).
const LENGTH: usize = 2;

/// Reads one message; false when there is none, or not in time.
async fn next_message(input: &mut (impl AsyncRead + Unpin), message: &mut Vec<u8>) -> bool {
    let Ok(Ok(first)) = timeout(IDLE, input.read_u8()).await else { return false };
    let rest = async {
        let second = input.read_u8().await?;
        message.clear();
        message.resize(usize::from(u16::from_be_bytes([first, second])), 0);
        input.read_exact(message).await.map(drop)
    };
    matches!(timeout(MESSAGE_TIME, rest).await, Ok(Ok(())))
}

/// A reply behind its length, written into `room` octets.
fn frame(room: usize, write: impl FnOnce(&mut [u8]) -> usize) -> Vec<u8> {
    let mut frame = vec![0; LENGTH + room];
    let length = write(&mut frame[LENGTH..]);
    frame.truncate(LENGTH + length);
    with_length(frame)
}

/// Fills in the length at the front of a frame.
fn with_length(mut frame: Vec<u8>) -> Vec<u8> {
    let length = frame.len().saturating_sub(LENGTH) as u16;
    if let Some(field) = frame.first_chunk_mut::<LENGTH>() {
        *field = length.to_be_bytes();
    }
    frame
}

/// Writes replies, several at once when several are ready, until there are no more or the client takes none.
async fn write(mut output: impl AsyncWrite + Unpin, mut outbox: mpsc::Receiver<Vec<u8>>) {
    while let Some(mut frames) = outbox.recv().await {
        while frames.len() < WRITE_TOGETHER
            && let Ok(more) = outbox.try_recv()
        {
            frames.extend_from_slice(&more);
        }
        // RFC 7766 8: length and message go out in one write.
        if !matches!(timeout(MESSAGE_TIME, output.write_all(&frames)).await, Ok(Ok(()))) {
            return;
        }
    }
    // A FIN, so that the client sees an end and not a reset.
    let _ = output.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn a_connection_on_which_nothing_is_asked_is_given_up_after_its_idle_time() {
        let (_client, mut server) = duplex(64);
        let start = Instant::now();
        assert!(!next_message(&mut server, &mut Vec::new()).await);
        assert_eq!(start.elapsed().as_secs(), IDLE.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_trickles_in_has_a_deadline_from_its_first_octet() {
        let (mut client, mut server) = duplex(64);
        let start = Instant::now();
        let trickle = async {
            for octet in [0_u8, 9, 1, 2, 3, 4, 5, 6] {
                client.write_all(&[octet]).await.unwrap();
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        };
        let (read, ()) = tokio::join!(
            async {
                let mut message = Vec::new();
                (next_message(&mut server, &mut message).await, start.elapsed())
            },
            trickle
        );
        assert_eq!((read.0, read.1.as_secs()), (false, MESSAGE_TIME.as_secs()));
    }

    #[tokio::test(start_paused = true)]
    async fn messages_follow_each_other_whatever_their_length() {
        let (mut client, mut server) = duplex(1 << 17);
        let large = vec![7; 65_535];
        for body in [&b""[..], b"x", &large] {
            client.write_all(&(body.len() as u16).to_be_bytes()).await.unwrap();
            client.write_all(body).await.unwrap();
        }
        let mut message = Vec::new();
        for length in [0, 1, 65_535] {
            assert!(next_message(&mut server, &mut message).await);
            assert_eq!(message.len(), length);
        }
        drop(client);
        assert!(!next_message(&mut server, &mut message).await, "the client's FIN");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_cut_off() {
        let (client, server) = duplex(16);
        let (replies, outbox) = mpsc::channel(REPLIES_WAITING);
        replies.send(vec![0; 64]).await.unwrap();
        let start = Instant::now();
        write(server, outbox).await;
        assert_eq!(start.elapsed().as_secs(), MESSAGE_TIME.as_secs());
        assert!(replies.is_closed());
        drop(client);
    }

    #[tokio::test]
    async fn replies_that_are_ready_together_leave_in_order_in_one_piece() {
        let (mut client, server) = duplex(1 << 10);
        let (replies, outbox) = mpsc::channel(REPLIES_WAITING);
        for octet in 1..=3_u8 {
            replies
                .send(frame(4, |out| {
                    out[..2].fill(octet);
                    2
                }))
                .await
                .unwrap();
        }
        drop(replies);
        write(server, outbox).await;
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, [0, 2, 1, 1, 0, 2, 2, 2, 0, 2, 3, 3]);
    }
}
