//! Datagrams by the batch, with two system calls for up to 32 of them.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, MultiHeaders, RecvMsg, SockaddrIn, recvmmsg, sendmmsg, setsockopt, sockopt,
};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, set_ip_mtu_discover};

/// Datagrams per system call: as many as the server takes, and beyond the point from which more save nothing.
pub(super) const BATCH: usize = 32;

/// Octets kept of a datagram: more than any answer to a query without EDNS may have (512), so that a longer one is seen.
pub(super) const DATAGRAM_MAX: usize = 600;

/// What was received last.
pub(super) struct Inbox {
    /// Never used to send: a send would leave pointers in it through which the next receive would write.
    headers: MultiHeaders<SockaddrIn>,
    buffers: Box<[[u8; DATAGRAM_MAX]]>,
    lengths: [usize; BATCH],
    senders: [Option<SockaddrIn>; BATCH],
    stamps: [Option<Duration>; BATCH],
    count: usize,
    flags: MsgFlags,
}

impl Inbox {
    /// For a socket that waits.
    pub(super) fn new() -> Self {
        Self::with(MultiHeaders::preallocate(BATCH, None), MsgFlags::MSG_WAITFORONE)
    }

    /// For a socket on which [`stamp_arrivals`] was called, without waiting.
    pub(super) fn stamped() -> Self {
        // Room for exactly one: what a call leaves of it is then what the next one needs.
        let stamp = nix::cmsg_space!(TimeSpec);
        Self::with(MultiHeaders::preallocate(BATCH, Some(stamp)), MsgFlags::MSG_DONTWAIT)
    }

    fn with(headers: MultiHeaders<SockaddrIn>, flags: MsgFlags) -> Self {
        Self {
            headers,
            buffers: vec![[0; DATAGRAM_MAX]; BATCH].into_boxed_slice(),
            lengths: [0; BATCH],
            senders: [None; BATCH],
            stamps: [None; BATCH],
            count: 0,
            flags,
        }
    }

    /// Takes the datagrams that are there; waits for the first one, as long as the socket's timeout allows, unless it is stamped.
    pub(super) fn receive(&mut self, socket: &UdpSocket) -> Result<(), Errno> {
        self.count = 0;
        let mut arrived = [(0, None, None); BATCH];
        let mut vectors: [_; BATCH] = {
            let mut buffers = self.buffers.iter_mut();
            std::array::from_fn(|_| [IoSliceMut::new(buffers.next().expect("there must be BATCH buffers"))])
        };
        let results = recvmmsg(socket.as_raw_fd(), &mut self.headers, vectors.iter_mut(), self.flags, None)?;
        let mut count = 0;
        for (slot, message) in arrived.iter_mut().zip(results) {
            *slot = (message.bytes, message.address, stamp(&message));
            count += 1;
        }
        for (index, (length, sender, stamp)) in arrived.into_iter().take(count).enumerate() {
            self.lengths[index] = length;
            self.senders[index] = sender;
            self.stamps[index] = stamp;
        }
        self.count = count;
        Ok(())
    }

    /// The datagrams.
    pub(super) fn packets(&self) -> impl Iterator<Item = &[u8]> {
        self.buffers.iter().zip(self.lengths).take(self.count).map(|(buffer, length)| &buffer[..length])
    }

    /// When each reached the socket, by the wall clock, where it was stamped.
    pub(super) fn stamps(&self) -> &[Option<Duration>] {
        &self.stamps[..self.count]
    }

    /// Their senders.
    pub(super) fn senders(&self) -> &[Option<SockaddrIn>] {
        &self.senders[..self.count]
    }
}

/// A client's socket towards `server`.
///
/// # Errors
/// The socket cannot be had.
pub(super) fn client(server: SocketAddrV4) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((*server.ip(), 0))?;
    never_fragment(&socket)?;
    socket.connect(server)?;
    Ok(socket)
}

/// Has the kernel never fragment what leaves `socket`, which spares it looking for the path's MTU: 4 % of what a datagram costs.
///
/// # Errors
/// The kernel's.
pub(super) fn never_fragment(socket: impl AsFd) -> io::Result<()> {
    Ok(set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::PROBE)?)
}

/// Has the kernel say when each datagram reached the socket.
pub(super) fn stamp_arrivals(socket: &UdpSocket) -> Result<(), Errno> {
    setsockopt(socket, sockopt::ReceiveTimestampns, &true)
}

/// The clock of the stamps. It may step, so nothing but the difference between two near readings means anything.
pub(super) fn stamp_clock() -> Result<Duration, Errno> {
    clock_gettime(ClockId::CLOCK_REALTIME).map(Duration::from)
}

fn stamp(message: &RecvMsg<'_, '_, SockaddrIn>) -> Option<Duration> {
    message.cmsgs().ok()?.find_map(|control| match control {
        ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time)),
        _ => None,
    })
}

/// Sends batches.
pub(super) struct Outbox(MultiHeaders<SockaddrIn>);

impl Outbox {
    pub(super) fn new() -> Self {
        Self(MultiHeaders::preallocate(BATCH, None))
    }

    /// Sends each packet to its address; to the socket's own peer where there is none. At most [`BATCH`] of them.
    ///
    /// The socket must be one that waits: the call then ends early only on an error, and what it left behind is missed as
    /// a lost answer.
    pub(super) fn send<'a>(
        &mut self,
        socket: &UdpSocket,
        packets: impl Iterator<Item = &'a [u8]>,
        to: &[Option<SockaddrIn>],
    ) -> Result<(), Errno> {
        let mut packets = packets;
        let vectors: [[IoSlice<'_>; 1]; BATCH] =
            std::array::from_fn(|_| [IoSlice::new(packets.next().unwrap_or_default())]);
        sendmmsg(socket.as_raw_fd(), &mut self.0, &vectors[..to.len()], to, [], MsgFlags::empty()).map(|_| ())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_goes_out_and_comes_back_with_its_senders() {
        let (server, client) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        client.connect(server.local_addr().unwrap()).unwrap();
        let (mut inbox, mut outbox) = (Inbox::new(), Outbox::new());
        let sent: [&[u8]; 3] = [b"one", b"", b"three"];
        outbox.send(&client, sent.into_iter(), &[None; 3]).unwrap();
        inbox.receive(&server).unwrap();
        assert_eq!(inbox.packets().collect::<Vec<_>>(), sent);
        let port = client.local_addr().unwrap().port();
        assert!(inbox.senders().iter().all(|sender| sender.is_some_and(|sender| sender.port() == port)));

        outbox.send(&server, inbox.packets(), inbox.senders()).unwrap();
        inbox.receive(&client).unwrap();
        assert_eq!(inbox.packets().collect::<Vec<_>>(), sent);
    }

    #[test]
    fn every_datagram_of_every_call_is_stamped_between_its_send_and_its_receipt() {
        let (server, client) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        client.connect(server.local_addr().unwrap()).unwrap();
        stamp_arrivals(&server).unwrap();
        let mut inbox = Inbox::stamped();
        for count in [3, 1, BATCH] {
            for _ in 0..count {
                client.send(b"x").unwrap();
            }
            inbox.receive(&server).unwrap();
            assert_eq!(inbox.stamps().len(), count);
            assert!(inbox.stamps().iter().all(|stamp| stamp.is_some()));
            assert!(inbox.stamps().is_sorted());
        }
        assert_eq!(inbox.receive(&server), Err(Errno::EAGAIN));
    }
}
