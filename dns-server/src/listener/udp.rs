//! One UDP socket of one worker: batches in, hits out in the same turn, misses to tasks of their own.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket as StdSocket};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use heimdall_shared::clock::Moment;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, SockaddrIn6, SockaddrLike, recvmmsg, sendmmsg};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::batch::{BATCH, Batch, DATAGRAM_MAX, Slots};
use super::late::Late;
use crate::query::UDP_PAYLOAD;
use crate::worker::Worker;

/// Batches answered before timers, connections and the link to the agent, which share the thread, get a turn.
const ROUNDS_PER_TURN: u32 = 16;

/// Fewest datagrams that a receive call offers room for: a quiet socket should not pay for setting up all of them.
const LEAST_ROOM: usize = 4;

/// Batches read after the signal to stop: with [`LEAST_ROOM`] each, more than the largest receive buffer holds, and an end
/// also when clients go on asking.
const LAST_ROUNDS: usize = 4_096;

/// Pause after a receive call that failed for a reason of the machine's (no memory): a failing call must not spin.
const RECEIVE_RETRY: Duration = Duration::from_millis(10);

/// A socket address of one family, as the system calls want it.
pub(crate) trait Peer: SockaddrLike + Copy + 'static {
    /// The address as everybody else wants it.
    fn address(self) -> SocketAddr;
}

impl Peer for SockaddrIn {
    fn address(self) -> SocketAddr {
        SocketAddr::V4(SocketAddrV4::new(self.ip(), self.port()))
    }
}

impl Peer for SockaddrIn6 {
    fn address(self) -> SocketAddr {
        SocketAddr::V6(SocketAddrV6::new(self.ip(), self.port(), self.flowinfo(), self.scope_id()))
    }
}

/// Serves one socket until `stop`, then answers what had already arrived.
pub(crate) async fn serve(socket: StdSocket, worker: Rc<Worker>, stop: CancellationToken) -> io::Result<()> {
    let address = socket.local_addr()?;
    let socket = Rc::new(UdpSocket::from_std(socket)?);
    match address {
        SocketAddr::V4(_) => Loop::<SockaddrIn>::new(socket, worker, address)?.run(&stop).await,
        SocketAddr::V6(_) => Loop::<SockaddrIn6>::new(socket, worker, address)?.run(&stop).await,
    }
    Ok(())
}

struct Loop<P: Peer> {
    address: SocketAddr,
    socket: Rc<UdpSocket>,
    worker: Rc<Worker>,
    late: Rc<Late<P>>,
    batch: Batch<P>,
    /// Never shared with `sending`: a send leaves pointers to our addresses in it, through which a receive would write.
    receiving: MultiHeaders<P>,
    sending: MultiHeaders<P>,
    room: usize,
    /// Whether the last receive call filled its room.
    was_full: bool,
}

impl<P: Peer> Loop<P> {
    fn new(socket: Rc<UdpSocket>, worker: Rc<Worker>, address: SocketAddr) -> io::Result<Self> {
        let batch = Batch::new(worker.desk.ahead);
        Ok(Self {
            address,
            late: Rc::new(Late::new(Rc::clone(&socket))),
            socket,
            worker,
            batch,
            receiving: MultiHeaders::preallocate(BATCH, None),
            sending: primed(address)?,
            room: LEAST_ROOM,
            was_full: false,
        })
    }

    async fn run(mut self, stop: &CancellationToken) {
        let mut rounds = 0;
        loop {
            let late = Rc::clone(&self.late);
            let received = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                // Those wait longest; there are never more than the misses under way.
                () = late.ready() => {
                    self.send_late().await;
                    continue;
                }
                received = self.receive() => received,
            };
            match received {
                Ok(()) => {
                    self.answer().await;
                    rounds += 1;
                    // Behind a full batch there is another one: no need to ask the runtime, which costs as much as an answer.
                    while self.was_full && rounds < ROUNDS_PER_TURN && self.receive_now().is_ok() {
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
            if self.receive_now().is_err() {
                break;
            }
            self.answer().await;
        }
        self.late.close();
        while self.send_late().await > 0 {}
    }

    /// Sends a batch of replies to misses, and gives their number.
    async fn send_late(&mut self) -> usize {
        self.batch.replies.clear();
        while self.batch.replies.len() < BATCH {
            let Some((reply, peer)) = self.late.take() else { break };
            self.batch.replies.push(&reply, peer);
        }
        self.send_replies().await;
        self.batch.replies.len()
    }

    /// Waits for at least one datagram.
    async fn receive(&mut self) -> io::Result<()> {
        let socket = Rc::clone(&self.socket);
        socket.async_io(Interest::READABLE, || self.receive_now().map_err(io::Error::from)).await.or_else(passing)
    }

    fn receive_now(&mut self) -> Result<(), Errno> {
        let fd = self.socket.as_fd().as_raw_fd();
        self.was_full = false;
        let count = receive(fd, &mut self.receiving, &mut self.batch.received, self.room)?;
        self.was_full = count == self.room;
        // Twice the room after a full batch, half of it after one that left most of it unused.
        self.room = if self.was_full { BATCH.min(self.room * 2) } else { LEAST_ROOM.max(count.next_power_of_two()) };
        Ok(())
    }

    /// Sends what the cache has, and begins a task for each miss.
    async fn answer(&mut self) {
        let worker = Rc::clone(&self.worker);
        let misses = self.batch.answer(Moment::now(), &worker.desk.cache, &worker.desk.tallies);
        let missed = misses.len();
        for nth in 0..missed {
            let index = self.batch.misses()[nth];
            if let Some(peer) = self.batch.received.peers()[index] {
                worker.miss_over_udp(self.batch.received.packet(index), peer, &self.late);
            }
        }
        // Behind the misses, and before a send that may wait: neither costs a hit of this batch its turn, both only begin tasks.
        for nth in 0..self.batch.due().len() {
            worker.refresh(self.batch.received.packet(self.batch.due()[nth]));
        }
        self.send_replies().await;
    }

    /// Sends the replies of the batch.
    async fn send_replies(&mut self) {
        let mut sent = 0;
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
        let socket = Rc::clone(&self.socket);
        socket.async_io(Interest::WRITABLE, || self.send_from(first).map_err(io::Error::from)).await.map_err(drop)
    }

    fn send_from(&mut self, first: usize) -> Result<usize, Errno> {
        send(self.socket.as_fd().as_raw_fd(), &mut self.sending, &self.batch.replies, first)
    }
}

/// An error of a receive call that says something about an earlier datagram, not about the socket.
fn passing(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::ConnectionRefused
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::Interrupted => Ok(()),
        _ => Err(error),
    }
}

/// Receives at most `room` datagrams without waiting, and gives their number.
fn receive<P: Peer>(
    fd: RawFd,
    headers: &mut MultiHeaders<P>,
    slots: &mut Slots<P, DATAGRAM_MAX>,
    room: usize,
) -> Result<usize, Errno> {
    slots.clear();
    let (buffers, lengths, peers) = slots.parts_mut();
    let mut vectors = buffers.each_mut().map(|buffer| [IoSliceMut::new(buffer)]);
    let results = recvmmsg(fd, headers, vectors.iter_mut().take(room), MsgFlags::MSG_DONTWAIT, None)?;
    let mut count = 0;
    for ((length, peer), message) in lengths.iter_mut().zip(peers).zip(results) {
        (*length, *peer) = (message.bytes, message.address);
        count += 1;
    }
    slots.set_len(count);
    Ok(count)
}

/// Sends the datagrams from `first` on without waiting, and gives the number of those that left.
fn send<P: Peer>(
    fd: RawFd,
    headers: &mut MultiHeaders<P>,
    slots: &Slots<P, { UDP_PAYLOAD as usize }>,
    first: usize,
) -> Result<usize, Errno> {
    let vectors: [[IoSlice<'_>; 1]; BATCH] =
        std::array::from_fn(|index| [IoSlice::new(if index < slots.len() { slots.packet(index) } else { &[] })]);
    let results = sendmmsg(
        fd,
        headers,
        &vectors[first..slots.len()],
        &slots.peers()[first..slots.len()],
        [],
        MsgFlags::MSG_DONTWAIT,
    )?;
    // The only count there is. It looks at addresses that a send does not write: hence `primed`.
    Ok(results.count())
}

/// Headers for sending whose address fields hold values. Counting the results of a send reads those fields, which nothing
/// but a receive ever fills: so a throw-away socket receives once into each.
fn primed<P: Peer>(like: SocketAddr) -> io::Result<MultiHeaders<P>> {
    let loopback = match like {
        SocketAddr::V4(_) => SocketAddr::from(([127, 0, 0, 1], 0)),
        SocketAddr::V6(_) => SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, 0)),
    };
    let socket = StdSocket::bind(loopback)?;
    let address = socket.local_addr()?;
    for _ in 0..BATCH {
        socket.send_to(&[0], address)?;
    }
    let mut headers = MultiHeaders::preallocate(BATCH, None);
    let mut slots = Slots::new();
    let count = receive(socket.as_raw_fd(), &mut headers, &mut slots, BATCH)?;
    if count < BATCH {
        return Err(io::Error::other(format!(
            "only {count} of {BATCH} datagrams came back over loopback at {address}"
        )));
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound() -> (StdSocket, SockaddrIn) {
        let socket = StdSocket::bind("127.0.0.1:0").unwrap();
        let SocketAddr::V4(address) = socket.local_addr().unwrap() else { unreachable!("it was bound to IPv4") };
        (socket, address.into())
    }

    #[test]
    fn a_reply_that_cannot_be_sent_holds_up_none_behind_it() {
        let (server, address) = bound();
        let (client, to) = bound();
        // Nobody can be answered on port 0; whoever forges addresses can ask from there.
        let nobody = SockaddrIn::new(127, 0, 0, 1, 0);
        let mut slots = Slots::new();
        for (index, peer) in [to, to, nobody, to].into_iter().enumerate() {
            slots.buffers_mut()[index][0] = index as u8;
            slots.received(1, Some(peer));
        }
        let mut headers = primed::<SockaddrIn>(address.address()).unwrap();
        let fd = server.as_raw_fd();
        assert_eq!(send(fd, &mut headers, &slots, 0), Ok(2), "those before it");
        assert_eq!(send(fd, &mut headers, &slots, 2), Err(Errno::EINVAL), "it alone");
        assert_eq!(send(fd, &mut headers, &slots, 3), Ok(1), "those behind it");
        let mut buffer = [9; 4];
        for expected in [0, 1, 3] {
            assert_eq!(client.recv_from(&mut buffer).unwrap(), (1, server.local_addr().unwrap()));
            assert_eq!(buffer[0], expected);
        }
    }

    #[test]
    fn a_batch_is_received_with_each_sender_s_address_and_never_more_than_there_is_room_for() {
        let (server, _) = bound();
        let clients: Vec<_> = (0..3).map(|_| bound()).collect();
        for (index, (client, _)) in clients.iter().enumerate() {
            client.send_to(&vec![index as u8; index * 1_000], server.local_addr().unwrap()).unwrap();
        }
        let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
        let mut slots = Slots::new();
        assert_eq!(receive(server.as_raw_fd(), &mut headers, &mut slots, 2), Ok(2));
        assert_eq!((slots.packet(0), slots.packet(1)), (&[][..], &[1; 1_000][..]));
        assert_eq!(slots.peers()[..2], [Some(clients[0].1), Some(clients[1].1)]);
        assert_eq!(receive(server.as_raw_fd(), &mut headers, &mut slots, 2), Ok(1));
        assert_eq!(slots.packet(0), [2; DATAGRAM_MAX], "what is too long for any honest query is cut");
        assert_eq!(slots.peers()[0], Some(clients[2].1));
        assert_eq!(receive(server.as_raw_fd(), &mut headers, &mut slots, 2), Err(Errno::EAGAIN));
    }
}
