//! DNS over TCP (RFC 7766): pipelined queries, answered as soon as each is ready.

use std::io;
use std::net::TcpListener as StdListener;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use heimdall_shared::clock::Moment;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::cache::Cache;
use crate::query::{KeyBuf, Query};
use crate::reply::{self, SHORT_MAX};
use crate::worker::{Miss, Worker};

/// Connections of the whole process. Each holds a descriptor and some 10 KiB; beyond it clients wait in the kernel's
/// backlog until one closes.
pub(crate) const CONNECTIONS_MAX: usize = 1_024;

/// Queries in flight on one connection; the next one is read when an answer has left.
const IN_FLIGHT_MAX: usize = 100;

/// Pieces of up to [`WRITE_TOGETHER`] octets and one reply that wait for the connection to take them. Together with the one being
/// written they bound what a client that does not read makes us hold.
const REPLIES_WAITING: usize = 16;

/// A connection on which nothing has been asked for this long is closed (RFC 7766 6.2.3: "of the order of seconds").
const IDLE: Duration = Duration::from_secs(10);

/// From a message's first octet to its last, and for a client to take a reply.
const MESSAGE_TIME: Duration = Duration::from_secs(10);

/// Pause after a failed accept: descriptors that ran out come back when connections close.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);

/// Replies are written together up to this many octets.
const WRITE_TOGETHER: usize = 16 * 1_024;

/// Octets read at once: many queries, and little for a connection that is idle.
const READ_TOGETHER: usize = 4 * 1_024;

/// Octets of a reply that are made ready before its length is known: nearly all are shorter.
const USUAL_REPLY: usize = 512;

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
            () = broken.cancelled() => {}
            () = read(input, replies, worker, stop) => {}
        }
    };
    tokio::join!(reader, writer);
}

/// Reads queries and sees to their replies, until the client has nothing more to say, or `stop`.
async fn read(
    mut input: impl AsyncRead + Unpin,
    replies: mpsc::Sender<Vec<u8>>,
    worker: &Rc<Worker>,
    stop: &CancellationToken,
) {
    let in_flight = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
    let tallies = &worker.desk.tallies;
    let (mut received, mut ready) = (BytesMut::new(), Vec::new());
    let mut key = KeyBuf::new();
    loop {
        if whole(&received).is_none() {
            // Nothing that is ready waits for the client to say more.
            if !pass_on(&replies, &mut ready).await {
                return;
            }
            let message = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                message = next_message(&mut input, &mut received) => message,
            };
            if !message {
                return;
            }
        }
        let Some(message) = whole(&received) else { return };
        let used = LENGTH + message.len();
        tallies.tcp_queries.add(1);
        let miss = match Query::parse(message, &mut key) {
            Ok(query) if hit(&worker.desk.cache, &query, &key, &mut ready) => {
                tallies.l1_hits.add(1);
                None
            }
            Ok(query) => {
                tallies.l1_misses.add(1);
                Miss::new(&query, &key)
            }
            Err(reject) => {
                tallies.rejected.add(1);
                append(&mut ready, SHORT_MAX, |out| reply::rejection(&reject, out));
                None
            }
        };
        received.advance(used);
        let Some(miss) = miss else {
            if ready.len() >= WRITE_TOGETHER && !pass_on(&replies, &mut ready).await {
                return;
            }
            continue;
        };
        let Some(place) = worker.place() else {
            // Over TCP nobody retransmits: the client must hear that this one was dropped.
            append(&mut ready, SHORT_MAX, |out| reply::overloaded(&miss.query(), out));
            continue;
        };
        if in_flight.available_permits() == 0 && !pass_on(&replies, &mut ready).await {
            return;
        }
        let Ok(permit) = Arc::clone(&in_flight).acquire_owned().await else { return };
        let (replies, own) = (replies.clone(), Rc::clone(worker));
        tokio::task::spawn_local(async move {
            let frame = own.answer_over_tcp(&miss, LENGTH).await;
            // A client that went away needs no answer.
            let _ = replies.send(with_length(frame)).await;
            drop((permit, place));
        });
    }
}

/// Hands over the replies that are ready; false when nobody takes them any more.
async fn pass_on(replies: &mpsc::Sender<Vec<u8>>, ready: &mut Vec<u8>) -> bool {
    ready.is_empty() || replies.send(std::mem::take(ready)).await.is_ok()
}

/// Octets of the length in front of each message (RFC 1035 4.2.2).
const LENGTH: usize = 2;

/// The first message of what was received, when it is whole.
fn whole(received: &[u8]) -> Option<&[u8]> {
    let (length, rest) = received.split_first_chunk::<LENGTH>()?;
    rest.get(..usize::from(u16::from_be_bytes(*length)))
}

/// Reads until there is a whole message; false when there is none, or not in time.
async fn next_message(input: &mut (impl AsyncRead + Unpin), received: &mut BytesMut) -> bool {
    if received.is_empty() {
        received.reserve(READ_TOGETHER);
        let Ok(Ok(1..)) = timeout(IDLE, input.read_buf(received)).await else { return false };
    }
    let rest = async {
        while whole(received).is_none() {
            received.reserve(READ_TOGETHER);
            if input.read_buf(received).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
        }
        Ok(())
    };
    matches!(timeout(MESSAGE_TIME, rest).await, Ok(Ok(())))
}

/// Appends the answer that the cache has, if it has one.
fn hit(cache: &Cache, query: &Query<'_>, key: &KeyBuf, ready: &mut Vec<u8>) -> bool {
    let (now, start) = (Moment::now(), ready.len());
    let mut room = USUAL_REPLY;
    // A second time where the first one showed that the answer is longer.
    for _ in 0..2 {
        ready.resize(start + LENGTH + room, 0);
        let out = &mut ready[start + LENGTH..];
        let Some(copied) = cache.hit(key.sought(), now, out) else { break };
        if reply::room(copied.length) <= room {
            let length = reply::complete(query, copied.head, copied.length, false, reply::TCP_LIMIT, out);
            ready.truncate(start + LENGTH + length);
            write_length(&mut ready[start..]);
            return true;
        }
        room = reply::room(copied.length);
    }
    ready.truncate(start);
    false
}

/// Appends a reply behind its length, written into `room` octets; nothing where nothing is written.
fn append(ready: &mut Vec<u8>, room: usize, write: impl FnOnce(&mut [u8]) -> usize) {
    let start = ready.len();
    ready.resize(start + LENGTH + room, 0);
    let length = write(&mut ready[start + LENGTH..]);
    if length == 0 {
        ready.truncate(start);
    } else {
        ready.truncate(start + LENGTH + length);
        write_length(&mut ready[start..]);
    }
}

/// Fills in the length at the front of a frame.
fn with_length(mut frame: Vec<u8>) -> Vec<u8> {
    write_length(&mut frame);
    frame
}

fn write_length(frame: &mut [u8]) {
    let length = frame.len().saturating_sub(LENGTH) as u16;
    if let Some(field) = frame.first_chunk_mut::<LENGTH>() {
        *field = length.to_be_bytes();
    }
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
        assert!(!next_message(&mut server, &mut BytesMut::new()).await);
        assert_eq!(start.elapsed().as_secs(), IDLE.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_trickles_in_has_a_deadline_from_its_first_octet() {
        let (mut client, mut server) = duplex(64);
        let start = Instant::now();
        let trickle = async {
            for octet in [0_u8, 9, 1, 2, 3, 4, 5, 6] {
                client.write_all(&[octet]).await.unwrap();
                // On the paused clock: it takes no time, and makes each octet later than the one before.
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        };
        let (read, ()) = tokio::join!(
            async {
                let mut received = BytesMut::new();
                (next_message(&mut server, &mut received).await, start.elapsed())
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
        let mut received = BytesMut::new();
        for length in [0, 1, 65_535] {
            assert!(whole(&received).is_some() || next_message(&mut server, &mut received).await);
            assert_eq!(whole(&received).map(<[u8]>::len), Some(length));
            received.advance(LENGTH + length);
        }
        drop(client);
        assert!(!next_message(&mut server, &mut received).await, "the client's FIN");
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
            let mut ready = Vec::new();
            append(&mut ready, 4, |_| 0);
            append(&mut ready, 4, |out| {
                out[..2].fill(octet);
                2
            });
            assert!(pass_on(&replies, &mut ready).await && ready.is_empty());
        }
        drop(replies);
        write(server, outbox).await;
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, [0, 2, 1, 1, 0, 2, 2, 2, 0, 2, 3, 3]);
    }
}
