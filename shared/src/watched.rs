//! Sockets of which the runtime is told what is waited for, and nothing else.
//!
//! The runtime's own sockets are watched for both: whether there is something to read, and whether there is room to write. For datagrams and
//! on Unix sockets the kernel says the latter each time that something has left the send buffer, and so wakes a thread that waits for
//! something to read once more for each write, to do nothing.

use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// Octets that are read at a time: as much as HTTP/2 has in a frame.
const READ_MAX: usize = 16 << 10;

/// Has the runtime watch a socket that does not block for `interest` alone.
///
/// # Errors
/// The system does not watch it.
#[expect(
    deprecated,
    reason = "its successor is unsafe: it asks for a descriptor that stays the same, and a socket's does"
)]
pub fn watched<S: AsRawFd>(socket: S, interest: Interest) -> io::Result<AsyncFd<S>> {
    AsyncFd::with_interest(socket, interest)
}

/// Room to write on a socket that is watched for what arrives alone: looked for only while there is none.
#[derive(Debug)]
pub struct Room<S: AsRawFd> {
    /// The same socket once more, from the beginning: who has a full buffer must not need a descriptor that there may not be.
    spare: Option<S>,
    /// That one, while the buffer is full.
    full: Option<AsyncFd<S>>,
}

impl<S: AsRawFd> Room<S> {
    /// Of the socket of which `spare` is a clone.
    pub const fn new(spare: S) -> Self {
        Self { spare: Some(spare), full: None }
    }

    /// Ready when there may be room again; then comes another try to write. To be called after one that found none.
    ///
    /// # Errors
    /// The system does not watch the socket.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(spare) = self.spare.take() {
            self.full = Some(watched(spare, Interest::WRITABLE)?);
        }
        let Some(full) = &self.full else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
        // Forgotten before the next try, which may find it full again.
        ready!(full.poll_write_ready(cx))?.clear_ready();
        Poll::Ready(Ok(()))
    }

    /// There was room: it is not waited for any more.
    pub fn found(&mut self) {
        if let Some(full) = self.full.take() {
            self.spare = Some(full.into_inner());
        }
    }
}

/// A connection over a Unix socket that is watched for what arrives, and for room to write while that is waited for.
#[derive(Debug)]
pub struct LocalConnection {
    socket: AsyncFd<UnixStream>,
    room: Room<UnixStream>,
}

impl LocalConnection {
    /// Takes over a connection.
    ///
    /// # Errors
    /// The system does not watch it, or has no second descriptor for it.
    pub fn new(stream: tokio::net::UnixStream) -> io::Result<Self> {
        let stream = stream.into_std()?;
        let room = Room::new(stream.try_clone()?);
        Ok(Self { socket: watched(stream, Interest::READABLE)?, room })
    }

    /// Writes what `write` writes, when there is room for it.
    fn poll_written(
        &mut self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&mut &UnixStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            match write(&mut self.socket.get_ref()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(self.room.poll(cx))?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                written => {
                    self.room.found();
                    return Poll::Ready(written);
                }
            }
        }
    }
}

impl AsyncRead for LocalConnection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let room = buffer.remaining().min(READ_MAX);
        loop {
            let mut ready = ready!(self.socket.poll_read_ready(cx))?;
            match self.socket.get_ref().read(buffer.initialize_unfilled_to(room)) {
                Ok(length) => {
                    // What did not fill the room has emptied the socket; at its end it stays readable.
                    if 0 < length && length < room {
                        ready.clear_ready();
                    }
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for LocalConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_written(cx, |socket| socket.write(octets))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_written(cx, |socket| socket.write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.socket.get_ref().shutdown(Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn pair() -> (LocalConnection, LocalConnection) {
        let (one, other) = tokio::net::UnixStream::pair().unwrap();
        (LocalConnection::new(one).unwrap(), LocalConnection::new(other).unwrap())
    }

    #[tokio::test]
    async fn all_that_is_written_arrives_also_through_a_full_buffer() {
        let (mut one, mut other) = pair();
        let sent: Vec<u8> = (0..4_u32 << 20).map(|at| (at % 251) as u8).collect();
        let expected = sent.clone();
        let writer = tokio::spawn(async move {
            one.write_all(&sent).await.unwrap();
            assert!(one.room.full.is_none(), "nobody waits for room any more");
            one.shutdown().await.unwrap();
            one
        });
        let mut received = Vec::new();
        other.read_to_end(&mut received).await.unwrap();
        assert!(received == expected);
        drop(writer.await.unwrap());
    }

    #[tokio::test]
    async fn a_reader_waits_for_each_piece_and_hears_the_end() {
        let (mut one, mut other) = pair();
        let mut piece = [0; 64];
        for round in 0..100_u8 {
            assert!(other.read(&mut piece).now_or_never().is_none());
            one.write_all(&[round; 3]).await.unwrap();
            assert_eq!(other.read(&mut piece).await.unwrap(), 3);
            assert_eq!(piece[..3], [round; 3]);
        }
        // Exactly as much as there is room for says nothing about what is left.
        one.write_all(&[7; 128]).await.unwrap();
        assert_eq!((other.read(&mut piece).await.unwrap(), other.read(&mut piece).await.unwrap()), (64, 64));
        drop(one);
        assert_eq!((other.read(&mut piece).await.unwrap(), other.read(&mut piece).await.unwrap()), (0, 0));
    }

    #[tokio::test]
    async fn the_runtime_is_not_told_that_what_was_written_has_left() {
        let (mut one, mut other) = pair();
        let mut piece = [0; 8];
        one.write_all(b"question").await.unwrap();
        other.read_exact(&mut piece).await.unwrap();
        // By the time at which this arrives the runtime has heard all that the kernel had to say before.
        let (mut later, mut at_last) = pair();
        later.write_all(b"at last.").await.unwrap();
        at_last.read_exact(&mut piece).await.unwrap();
        assert!(one.socket.ready(Interest::WRITABLE).now_or_never().is_none());
    }
}
