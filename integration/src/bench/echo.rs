//! The limit: a process that sends every datagram back and does nothing else. What it costs is what the kernel costs.

use std::net::SocketAddrV4;

use anyhow::{Context, Result};
use socket2::{Domain, Socket, Type};

use super::datagrams::{Inbox, Outbox, never_fragment};

/// Receive buffer in bytes that is asked for, as servers do; what a system gives by default holds less than 256 datagrams.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Echoes until it is killed.
///
/// # Errors
/// The socket's.
pub(super) fn serve(address: SocketAddrV4) -> Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).context("making a socket")?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER).context("setting the size of a receive buffer")?;
    // As heimdall-dns does: a limit that servers can get below is none.
    never_fragment(&socket).context("forbidding fragments")?;
    socket.bind(&address.into()).with_context(|| format!("binding {address}"))?;
    let socket = socket.into();
    let (mut inbox, mut outbox) = (Inbox::new(), Outbox::new());
    loop {
        inbox.receive(&socket).with_context(|| format!("receiving on {address}"))?;
        outbox.send(&socket, inbox.packets(), inbox.senders()).with_context(|| format!("sending from {address}"))?;
    }
}
