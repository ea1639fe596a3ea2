//! Many datagrams per system call: two calls and the headers for them, in unsafe code.
//!
//! `nix` wraps both calls safely, but sets up and reads whole headers for each datagram of each call, and of sent ones too. Here
//! what is always the same is written once. Places of buffers are written before each call all the same, so that no pointer
//! is ever older than the borrow that it stands for.

#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::libc::{self, MSG_DONTWAIT, iovec, mmsghdr};

use super::batch::{BATCH, DATAGRAM_MAX, Replies, Slots};
use super::envelope::{ADDRESS_MAX, Envelope, PACKET_INFO_MAX};

/// What the system calls are told about each datagram.
struct Headers {
    headers: Box<[mmsghdr; BATCH]>,
    vectors: Box<[iovec; BATCH]>,
}

impl Headers {
    fn new() -> Self {
        // SAFETY: all zeros are a header without address, buffers, control messages or flags.
        let headers = Box::new(unsafe { std::mem::zeroed::<[mmsghdr; BATCH]>() });
        let vectors = Box::new([iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; BATCH]);
        let mut this = Self { headers, vectors };
        for header in this.headers.iter_mut() {
            header.msg_hdr.msg_namelen = ADDRESS_MAX as u32;
            header.msg_hdr.msg_iovlen = 1;
        }
        this
    }
}

/// The envelopes of the datagrams that were received last, and what it takes to receive and answer them.
pub(super) struct Mail {
    envelopes: Box<[Envelope; BATCH]>,
    /// Whether the kernel says which of our addresses was asked, and has to hear it again.
    has_packet_info: bool,
    receiving: Headers,
    sending: Headers,
}

impl Mail {
    /// For a socket that says which address was asked (IP_PKTINFO, IPV6_RECVPKTINFO), or for one that does not.
    pub(super) fn new(has_packet_info: bool) -> Self {
        let envelopes = Box::new([Envelope::NONE; BATCH]);
        Self { envelopes, has_packet_info, receiving: Headers::new(), sending: Headers::new() }
    }

    /// Receives at most `room` datagrams without waiting, and gives their number.
    pub(super) fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        slots: &mut Slots<DATAGRAM_MAX>,
        room: usize,
    ) -> Result<usize, Errno> {
        slots.clear();
        let (buffers, lengths) = slots.parts_mut();
        let Headers { headers, vectors } = &mut self.receiving;
        let room = room.min(BATCH);
        let places = buffers.iter_mut().zip(self.envelopes.iter_mut()).zip(vectors.iter_mut());
        for (header, ((buffer, envelope), vector)) in headers[..room].iter_mut().zip(places) {
            *vector = iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: DATAGRAM_MAX };
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_name = envelope.sender.as_mut_ptr().cast();
            if self.has_packet_info {
                header.msg_hdr.msg_control = envelope.packet_info.as_mut_ptr().cast();
                header.msg_hdr.msg_controllen = PACKET_INFO_MAX;
            }
        }
        // SAFETY: the first `room` headers have just been given a buffer and an envelope each, of the lengths that they say and
        // borrowed until the call is over. An address's length is what the last call wrote, which is the same for each datagram
        // of a socket. Room for control messages has its length from above, or there is none, and no call gives it one.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                room as u32,
                MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        let count = Errno::result(received)? as usize;
        for (length, header) in lengths.iter_mut().zip(&headers[..count]) {
            *length = header.msg_len as usize;
        }
        if self.has_packet_info {
            for (envelope, header) in self.envelopes.iter_mut().zip(&headers[..count]) {
                envelope.keep(header.msg_hdr.msg_controllen);
            }
        }
        slots.set_len(count);
        Ok(count)
    }

    /// Sends the replies from `first` on without waiting, and gives the number of those that left.
    pub(super) fn send(&mut self, socket: BorrowedFd<'_>, replies: &Replies, first: usize) -> Result<usize, Errno> {
        let Headers { headers, vectors } = &mut self.sending;
        let length = self.receiving.headers[0].msg_hdr.msg_namelen;
        let replies = (first..replies.len()).map(|index| (replies.packet(index), replies.to(index)));
        let mut count = 0;
        for ((packet, to), (header, vector)) in replies.zip(headers.iter_mut().zip(vectors.iter_mut())) {
            // The kernel only reads what is to be sent, though the type does not say so.
            *vector = iovec { iov_base: packet.as_ptr().cast_mut().cast(), iov_len: packet.len() };
            header.msg_hdr.msg_iov = vector;
            let envelope = &self.envelopes[to];
            header.msg_hdr.msg_name = envelope.sender.as_ptr().cast_mut().cast();
            header.msg_hdr.msg_namelen = length;
            if self.has_packet_info {
                header.msg_hdr.msg_control = envelope.packet_info.as_ptr().cast_mut().cast();
                header.msg_hdr.msg_controllen = envelope.packet_info_length as usize;
            }
            count += 1;
        }
        // SAFETY: the first `count` headers have just been given a packet and an envelope each, borrowed until the call is over.
        let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), count, MSG_DONTWAIT as _) };
        Errno::result(sent).map(|sent| sent as usize)
    }

    /// The envelope of datagram `index`.
    pub(super) fn envelope(&self, index: usize) -> Option<Envelope> {
        self.envelopes.get(index).copied()
    }

    /// Takes `envelope` as the one of datagram `index`: of one that was received before, by the same socket.
    pub(super) fn set_envelope(&mut self, index: usize, envelope: Envelope) {
        if let Some(place) = self.envelopes.get_mut(index) {
            *place = envelope;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
    use std::os::fd::AsFd;
    use std::time::Duration;

    use nix::libc::{AF_INET, AF_INET6};
    use nix::sys::socket::setsockopt;
    use nix::sys::socket::sockopt::{Ipv4PacketInfo, Ipv6RecvPacketInfo};

    use super::*;

    /// An address as everybody else wants it.
    fn socket(octets: [u8; ADDRESS_MAX]) -> Option<SocketAddr> {
        let field = |at: usize| -> Option<[u8; 4]> { octets.get(at..)?.first_chunk().copied() };
        let [f0, f1, p0, p1] = field(0)?;
        let port = u16::from_be_bytes([p0, p1]);
        match i32::from(u16::from_ne_bytes([f0, f1])) {
            AF_INET => Some(SocketAddrV4::new(Ipv4Addr::from(field(4)?), port).into()),
            AF_INET6 => {
                let ip = Ipv6Addr::from(*octets.get(8..)?.first_chunk::<16>()?);
                // As the standard library has them: both in the machine's order.
                let (flow, scope) = (u32::from_ne_bytes(field(4)?), u32::from_ne_bytes(field(24)?));
                Some(SocketAddrV6::new(ip, port, flow, scope).into())
            }
            _ => None,
        }
    }

    /// Loopback of both families; not every machine has IPv6.
    fn hosts() -> impl Iterator<Item = &'static str> {
        ["127.0.0.1", "::1"].into_iter().filter(|&host| host != "::1" || UdpSocket::bind((host, 0)).is_ok())
    }

    /// A server's socket and a client's.
    fn pair(host: &str) -> (UdpSocket, UdpSocket) {
        let (server, client) = (UdpSocket::bind((host, 0)).unwrap(), UdpSocket::bind((host, 0)).unwrap());
        client.connect(server.local_addr().unwrap()).unwrap();
        (server, client)
    }

    fn sender(mail: &Mail, index: usize) -> Option<SocketAddr> {
        socket(mail.envelope(index)?.sender)
    }

    fn reply(replies: &mut Replies, octets: &[u8], to: usize) {
        replies.next_mut()[..octets.len()].copy_from_slice(octets);
        replies.push(octets.len(), to);
    }

    #[test]
    fn addresses_are_read_as_the_kernel_writes_them() {
        let family = |family: i32| (family as u16).to_ne_bytes();
        let mut octets = [0; ADDRESS_MAX];
        assert_eq!(socket(octets), None);
        octets[..2].copy_from_slice(&family(AF_INET));
        octets[2..8].copy_from_slice(&[0x14, 0xE9, 192, 0, 2, 1]);
        assert_eq!(socket(octets), "192.0.2.1:5353".parse().ok());
        octets[..2].copy_from_slice(&family(AF_INET6));
        octets[4..8].fill(0);
        octets[8..12].copy_from_slice(&[0xFE, 0x80, 0, 0]);
        octets[23] = 7;
        octets[24..28].copy_from_slice(&3_u32.to_ne_bytes());
        assert_eq!(socket(octets), "[fe80::7%3]:5353".parse().ok());
    }

    #[test]
    fn a_batch_is_received_with_each_sender_s_address_and_never_more_than_there_is_room_for() {
        for host in hosts() {
            let (server, first) = pair(host);
            let clients = [first, UdpSocket::bind((host, 0)).unwrap(), UdpSocket::bind((host, 0)).unwrap()];
            for (index, client) in clients.iter().enumerate() {
                client.send_to(&vec![index as u8; index * 1_000], server.local_addr().unwrap()).unwrap();
            }
            let address = |index: usize| Some(clients[index].local_addr().unwrap());
            let (mut mail, mut slots) = (Mail::new(false), Slots::new());
            assert_eq!(mail.receive(server.as_fd(), &mut slots, 2), Ok(2));
            assert_eq!((slots.packet(0), slots.packet(1)), (&[][..], &[1; 1_000][..]));
            assert_eq!([sender(&mail, 0), sender(&mail, 1)], [address(0), address(1)]);
            assert_eq!(mail.receive(server.as_fd(), &mut slots, 2), Ok(1));
            assert_eq!(slots.packet(0), [2; DATAGRAM_MAX], "what is too long for any honest query is cut");
            assert_eq!((sender(&mail, 0), sender(&mail, BATCH)), (address(2), None));
            assert_eq!(mail.receive(server.as_fd(), &mut slots, 2), Err(Errno::EAGAIN));
            assert_eq!(slots.len(), 0);
        }
    }

    #[test]
    fn replies_go_to_those_who_asked_whatever_their_order() {
        for host in hosts() {
            let (server, client) = pair(host);
            let other = UdpSocket::bind((host, 0)).unwrap();
            other.connect(server.local_addr().unwrap()).unwrap();
            client.send(b"a").unwrap();
            other.send(b"b").unwrap();
            let (mut mail, mut slots, mut replies) = (Mail::new(false), Slots::new(), Replies::new());
            assert_eq!(mail.receive(server.as_fd(), &mut slots, BATCH), Ok(2));
            for (octets, to) in [(&b"for b"[..], 1), (b"for a", 0), (b"a", 0)] {
                reply(&mut replies, octets, to);
            }
            assert_eq!(mail.send(server.as_fd(), &replies, 0), Ok(3));
            let mut buffer = [0; 8];
            let mut heard = |socket: &UdpSocket| {
                let length = socket.recv(&mut buffer).unwrap();
                buffer[..length].to_vec()
            };
            assert_eq!(heard(&other), b"for b");
            assert_eq!([heard(&client), heard(&client)], [&b"for a"[..], b"a"]);
            // As replies to misses leave: not to whom was received last.
            let to = [mail.envelope(1).unwrap(), mail.envelope(0).unwrap()];
            replies.clear();
            for (index, to) in to.into_iter().enumerate() {
                mail.set_envelope(index, to);
                reply(&mut replies, &[index as u8], index);
            }
            assert_eq!(mail.send(server.as_fd(), &replies, 0), Ok(2));
            assert_eq!((heard(&other), heard(&client)), (vec![0], vec![1]));
        }
    }

    #[test]
    fn a_reply_that_cannot_be_sent_holds_up_none_behind_it() {
        let (server, client) = pair("127.0.0.1");
        let (mut mail, mut slots, mut replies) = (Mail::new(false), Slots::new(), Replies::new());
        for _ in 0..4 {
            client.send(b"?").unwrap();
        }
        assert_eq!(mail.receive(server.as_fd(), &mut slots, BATCH), Ok(4));
        // Nobody can be answered on port 0; whoever forges addresses can ask from there.
        mail.envelopes[2].sender[2..4].fill(0);
        for to in 0..4 {
            reply(&mut replies, &[to as u8], to);
        }
        assert_eq!(mail.send(server.as_fd(), &replies, 0), Ok(2), "those before it");
        assert_eq!(mail.send(server.as_fd(), &replies, 2), Err(Errno::EINVAL), "it alone");
        assert_eq!(mail.send(server.as_fd(), &replies, 3), Ok(1), "those behind it");
        let mut buffer = [9; 4];
        for expected in [0, 1, 3] {
            assert_eq!(client.recv(&mut buffer).unwrap(), 1);
            assert_eq!(buffer[0], expected);
        }
    }

    #[test]
    fn what_was_asked_is_where_the_reply_comes_from_also_when_it_comes_late() {
        let server = UdpSocket::bind("0.0.0.0:0").unwrap();
        setsockopt(&server, Ipv4PacketInfo, &true).unwrap();
        let port = server.local_addr().unwrap().port();
        let clients = [1, 2, 3].map(|last| {
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            client.connect(SocketAddr::from(([127, 0, 0, last], port))).unwrap();
            client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            client
        });
        let (mut mail, mut slots, mut replies) = (Mail::new(true), Slots::new(), Replies::new());
        let mut buffer = [0; 4];
        for round in 0..2 {
            for client in &clients {
                client.send(b"?").unwrap();
            }
            assert_eq!(mail.receive(server.as_fd(), &mut slots, BATCH), Ok(3));
            let envelopes = [0, 1, 2].map(|index| mail.envelope(index).unwrap());
            // Whoever was received last is somebody else by then.
            if round == 1 {
                envelopes.into_iter().rev().enumerate().for_each(|(nth, envelope)| mail.set_envelope(nth, envelope));
            }
            replies.clear();
            for to in 0..3 {
                reply(&mut replies, &[if round == 1 { 2 - to as u8 } else { to as u8 }], to);
            }
            assert_eq!(mail.send(server.as_fd(), &replies, 0), Ok(3));
            for (nth, client) in clients.iter().enumerate() {
                // Connected, it hears nobody else.
                assert_eq!((client.recv(&mut buffer).unwrap(), usize::from(buffer[0])), (1, nth));
            }
        }
    }
    #[test]
    fn what_was_asked_is_known_over_ipv6_too() {
        // Not every machine has IPv6.
        let Ok(server) = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)) else { return };
        let Ok(client) = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)) else { return };
        setsockopt(&server, Ipv6RecvPacketInfo, &true).unwrap();
        client.connect((Ipv6Addr::LOCALHOST, server.local_addr().unwrap().port())).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        client.send(b"?").unwrap();
        let (mut mail, mut slots, mut replies) = (Mail::new(true), Slots::new(), Replies::new());
        assert_eq!(mail.receive(server.as_fd(), &mut slots, BATCH), Ok(1));
        let envelope = mail.envelope(0).unwrap();
        assert_eq!(envelope.packet_info_length, 40);
        assert_eq!(envelope.packet_info[16..32], Ipv6Addr::LOCALHOST.octets());
        reply(&mut replies, b"!", 0);
        assert_eq!(mail.send(server.as_fd(), &replies, 0), Ok(1));
        assert_eq!(client.recv(&mut [0; 4]).unwrap(), 1);
    }
}
