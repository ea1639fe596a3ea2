//! One UDP socket as its loop has it: what arrives, what leaves, and when the runtime has to watch for more.
//!
//! A socket that somebody watches costs more to send from: for each datagram that has left it the kernel asks all its watchers whether they
//! wait for room in its send buffer. That was a twentieth of what a cached answer took. So a socket that is busy is not watched until it
//! is found empty, as a thread that waits in the receive call itself is on the socket's list only while it waits.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::rc::Rc;

use heimdall_shared::watched::watched;
use nix::errno::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::batch::{BATCH, DATAGRAM_MAX, Replies, Slots};
use super::envelope::{Envelope, has_packet_info};
use super::mmsg::Mail;

/// Fewest datagrams that a receive call offers room for: a quiet socket should not pay for setting up all of them.
const LEAST_ROOM: usize = 4;

/// A socket that does not block, and the envelopes of what was received last.
pub(super) struct Mailbox {
    socket: Rc<UdpSocket>,
    /// The runtime's, from when the socket was found empty until two batches in a row are many.
    watch: Option<AsyncFd<Rc<UdpSocket>>>,
    mail: Mail,
    room: usize,
    was_full: bool,
}

impl Mailbox {
    /// Of a socket that does not block and is bound to `address`.
    pub(super) fn new(socket: UdpSocket, address: SocketAddr) -> Self {
        let mail = Mail::new(has_packet_info(address));
        Self { socket: Rc::new(socket), watch: None, mail, room: LEAST_ROOM, was_full: false }
    }

    /// Receives at least one datagram, and waits for it.
    ///
    /// # Errors
    /// The machine's: no memory, or no place for one more socket to watch.
    pub(super) async fn receive(&mut self, into: &mut Slots<DATAGRAM_MAX>) -> io::Result<()> {
        loop {
            if let Some(watch) = &self.watch {
                let _still_readable = watch.readable().await?;
            }
            match self.receive_watched(into) {
                // What arrives between the call and this is readable from the beginning.
                Err(Errno::EAGAIN) if self.watch.is_none() => {
                    self.watch = Some(watched(Rc::clone(&self.socket), Interest::READABLE)?);
                }
                Err(Errno::EAGAIN) => {}
                received => return received.map_err(io::Error::from).or_else(passing),
            }
        }
    }

    /// Receives what is there behind a full batch. Where that is many again the socket is busy, and watched no more: a few more than there
    /// was room for are not worth being watched anew.
    pub(super) fn receive_more(&mut self, into: &mut Slots<DATAGRAM_MAX>) -> Result<(), Errno> {
        self.receive_watched(into)?;
        if into.len() >= LEAST_ROOM {
            self.watch = None;
        }
        Ok(())
    }

    /// Receives what is there.
    ///
    /// The runtime believes that there is something until it is told that there is nothing. A call that did not fill its room has emptied
    /// the socket: it need not be followed by one that finds nothing.
    fn receive_watched(&mut self, into: &mut Slots<DATAGRAM_MAX>) -> Result<(), Errno> {
        let Some(watch) = self.watch.take() else { return self.receive_now(into) };
        let mut received = Err(Errno::EAGAIN);
        let _ = watch.try_io(Interest::READABLE, |_| {
            received = self.receive_now(into);
            match received {
                Ok(()) if !self.was_full => Err(io::ErrorKind::WouldBlock.into()),
                received => received.map_err(io::Error::from),
            }
        });
        self.watch = Some(watch);
        received
    }

    /// Receives what is there, whoever watches.
    pub(super) fn receive_now(&mut self, into: &mut Slots<DATAGRAM_MAX>) -> Result<(), Errno> {
        self.was_full = false;
        let count = self.mail.receive(self.socket.as_fd(), into, self.room)?;
        self.was_full = count == self.room;
        // Twice the room after a full batch, half of it after one that left most of it unused.
        self.room = if self.was_full { BATCH.min(self.room * 2) } else { LEAST_ROOM.max(count.next_power_of_two()) };
        Ok(())
    }

    /// Whether the last receive call filled its room.
    pub(super) const fn was_full(&self) -> bool {
        self.was_full
    }

    /// Sends the replies from `first` on without waiting, and gives the number of those that left.
    pub(super) fn send(&mut self, replies: &Replies, first: usize) -> Result<usize, Errno> {
        self.mail.send(self.socket.as_fd(), replies, first)
    }

    /// The envelope of datagram `index`.
    pub(super) fn envelope(&self, index: usize) -> Option<Envelope> {
        self.mail.envelope(index)
    }

    /// Takes `envelope` as the one of datagram `index`: of one that was received before.
    pub(super) fn set_envelope(&mut self, index: usize, envelope: Envelope) {
        self.mail.set_envelope(index, envelope);
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

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    /// A mailbox, and a client that `asks` so many times.
    fn mailbox() -> (Mailbox, impl Fn(usize)) {
        let (socket, client) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let address = socket.local_addr().unwrap();
        client.connect(address).unwrap();
        socket.set_nonblocking(true).unwrap();
        let asks = move |times| (0..times).for_each(|_| assert_eq!(client.send(b"?").unwrap(), 1));
        (Mailbox::new(socket, address), asks)
    }

    #[tokio::test]
    async fn who_waits_is_woken_by_the_next_datagram_each_time() {
        let (mut mailbox, asks) = mailbox();
        let mut received = Slots::new();
        for times in [1, 3, 1] {
            assert!(mailbox.receive(&mut received).now_or_never().is_none());
            asks(times);
            mailbox.receive(&mut received).await.unwrap();
            assert_eq!(received.len(), times);
        }
    }

    #[tokio::test]
    async fn a_socket_is_watched_from_when_it_was_found_empty_until_it_is_busy() {
        let (mut mailbox, asks) = mailbox();
        let mut received = Slots::new();
        asks(1);
        mailbox.receive(&mut received).await.unwrap();
        assert!(mailbox.watch.is_none(), "nobody had to wait");
        for _ in 0..2 {
            assert!(mailbox.receive(&mut received).now_or_never().is_none());
            assert!(mailbox.watch.is_some());
            asks(LEAST_ROOM + 2);
            mailbox.receive(&mut received).await.unwrap();
            assert!(mailbox.was_full());
            mailbox.receive_more(&mut received).unwrap();
            assert_eq!((received.len(), mailbox.watch.is_some()), (2, true), "a few more are no reason to stop");
            asks(3 * LEAST_ROOM);
            mailbox.receive(&mut received).await.unwrap();
            mailbox.receive_more(&mut received).unwrap();
            assert_eq!((received.len(), mailbox.watch.is_none()), (2 * LEAST_ROOM, true));
            asks(1);
            mailbox.receive(&mut received).await.unwrap();
            assert_eq!((received.len(), mailbox.watch.is_none()), (1, true));
        }
    }
}
