//! A socket of which the runtime is told one thing only.
//!
//! The runtime's own sockets are watched for both: whether there is something to read, and whether there is room to write. The kernel
//! says the latter each time that a datagram has left the send buffer, and so wakes a thread that waits for queries once more for each batch
//! of replies, to do nothing.

use std::io;
use std::net::UdpSocket;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Has the runtime watch a socket that does not block for `interest` alone.
#[expect(
    deprecated,
    reason = "its successor is unsafe: it asks for a descriptor that stays the same, and this socket's does"
)]
pub(crate) fn watched(socket: UdpSocket, interest: Interest) -> io::Result<AsyncFd<UdpSocket>> {
    AsyncFd::with_interest(socket, interest)
}
