//! Replies to misses on their way to their socket's loop, which sends all that are ready with one system call.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use tokio::net::UdpSocket;

use super::mmsg::Address;

/// Replies that may wait for the loop: more than the misses that a worker lets in at a time, so that none is dropped unless
/// the loop is held up by a full send buffer, where a datagram would be lost anyway.
const LATE_MAX: usize = 8_192;

/// The way from the tasks of misses to one socket.
#[derive(Debug)]
pub(crate) struct Late {
    socket: Rc<UdpSocket>,
    state: RefCell<State>,
}

#[derive(Debug)]
struct State {
    waiting: VecDeque<(Vec<u8>, Address)>,
    waker: Option<Waker>,
    /// The loop has ended: whoever is later still sends by himself.
    closed: bool,
}

/// A reply was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotSent;

impl Late {
    /// Nothing waits to be sent over `socket`.
    pub(crate) const fn new(socket: Rc<UdpSocket>) -> Self {
        Self { socket, state: RefCell::new(State { waiting: VecDeque::new(), waker: None, closed: false }) }
    }

    /// Sends a reply with the next ones.
    ///
    /// # Errors
    /// [`NotSent`] when too many wait already, or the system did not take it.
    pub(crate) async fn send(&self, reply: Vec<u8>, peer: Address) -> Result<(), NotSent> {
        {
            let mut state = self.state.borrow_mut();
            if !state.closed {
                if state.waiting.len() >= LATE_MAX {
                    return Err(NotSent);
                }
                state.waiting.push_back((reply, peer));
                if let Some(waker) = state.waker.take() {
                    waker.wake();
                }
                return Ok(());
            }
        }
        let peer = peer.socket().ok_or(NotSent)?;
        // Boxed: nearly no miss must have room for it.
        Box::pin(self.socket.send_to(&reply, peer)).await.map(drop).map_err(|_| NotSent)
    }

    /// Resolves when there is a reply to send.
    pub(super) async fn ready(&self) {
        poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            if !state.waiting.is_empty() {
                return Poll::Ready(());
            }
            match &mut state.waker {
                Some(waker) => waker.clone_from(context.waker()),
                waker => *waker = Some(context.waker().clone()),
            }
            Poll::Pending
        })
        .await;
    }

    /// The oldest reply that waits.
    pub(super) fn take(&self) -> Option<(Vec<u8>, Address)> {
        self.state.borrow_mut().waiting.pop_front()
    }

    /// Nobody sends what waits from now on but those who bring it.
    pub(super) fn close(&self) {
        self.state.borrow_mut().closed = true;
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket as StdSocket;

    use super::*;
    use futures_util::FutureExt as _;

    fn late() -> (Late, Address) {
        let socket = StdSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let std::net::SocketAddr::V4(address) = socket.local_addr().unwrap() else {
            unreachable!("it was bound to IPv4")
        };
        (Late::new(Rc::new(UdpSocket::from_std(socket).unwrap())), Address::v4(address))
    }

    #[tokio::test]
    async fn what_is_ready_waits_for_the_loop_in_order_and_within_bounds() {
        let (late, peer) = late();
        assert!(late.ready().now_or_never().is_none());
        for number in 0..LATE_MAX {
            assert_eq!(late.send(number.to_be_bytes().to_vec(), peer).await, Ok(()));
        }
        late.ready().await;
        assert_eq!(late.send(Vec::new(), peer).await, Err(NotSent));
        for number in 0..LATE_MAX {
            assert_eq!(late.take().unwrap().0, number.to_be_bytes());
        }
        assert!(late.take().is_none());
    }

    #[tokio::test]
    async fn whoever_comes_after_the_loop_sends_by_himself() {
        let (late, own) = late();
        late.close();
        assert_eq!(late.send(b"last".to_vec(), own).await, Ok(()));
        let mut buffer = [0; 8];
        assert_eq!(late.socket.recv(&mut buffer).await.unwrap(), 4);
        assert_eq!(&buffer[..4], b"last");
    }
}
