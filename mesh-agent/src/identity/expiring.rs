//! A connection that ends when the certificate behind it does.
//!
//! The handshake checks a certificate once, and links live for weeks. Ending them at expiry means that a replica which
//! stopped renewing loses its access when its certificate says so, and one that renews pays one new dial.

#![allow(clippy::disallowed_methods)] // certificates hold by the wall clock

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::SystemTime;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// A stream that fails from a given time on.
#[derive(Debug)]
pub struct Expiring<S> {
    stream: S,
    expiry: Pin<Box<Sleep>>,
}

impl<S> Expiring<S> {
    /// `stream` until `not_after`. The distance is measured once: later steps of the wall clock change nothing.
    pub fn new(stream: S, not_after: SystemTime) -> Self {
        let left = not_after.duration_since(SystemTime::now()).unwrap_or_default();
        Self { stream, expiry: Box::pin(tokio::time::sleep(left)) }
    }

    /// The stream inside.
    pub const fn get_ref(&self) -> &S {
        &self.stream
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Expiring<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // An HTTP/2 connection always waits in a read, so looking here is enough.
        if self.expiry.is_elapsed() || self.expiry.as_mut().poll(cx).is_ready() {
            let error = io::Error::new(io::ErrorKind::TimedOut, "the certificate behind this connection has expired");
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Expiring<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_works_until_its_certificate_expires_and_not_longer() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut near = Expiring::new(near, SystemTime::now() + Duration::from_secs(3_600));

        far.write_all(b"before").await.unwrap();
        let mut bytes = [0; 6];
        near.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"before");

        // Nothing arrives: the paused clock runs on to the expiry, which ends the read.
        assert_eq!(near.read(&mut bytes).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        far.write_all(b"after").await.unwrap();
        assert_eq!(near.read(&mut bytes).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
