//! Where connections between agents come from: the machine's network, or a simulated one that a test drives.
//!
//! Everything above it (TLS, HTTP/2, the services) is the same on both. A boxed connection costs an indirect call per read and
//! write, which is nothing beside the system call behind it.

use std::fmt::Debug;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

/// The octets of one connection, in both directions.
pub trait Wire: AsyncRead + AsyncWrite + Debug + Send + Unpin {}

impl<W: AsyncRead + AsyncWrite + Debug + Send + Unpin> Wire for W {}

/// A connection of any network.
pub type Connection = Box<dyn Wire>;

/// Opens connections and listens for them.
pub trait Network: Debug + Send + Sync {
    /// Connects to `to`. Small messages leave at once.
    ///
    /// # Errors
    /// What the network says: nobody listens there, or it cannot be reached.
    fn connect(&self, to: SocketAddr) -> BoxFuture<'_, io::Result<Connection>>;

    /// Listens at `at`.
    ///
    /// # Errors
    /// What the network says: the address is taken, or not one of this machine.
    fn listen(&self, at: SocketAddr) -> BoxFuture<'_, io::Result<Arc<dyn Listener>>>;
}

/// Accepts connections.
pub trait Listener: Debug + Send + Sync {
    /// The next connection, and where it comes from. Small messages leave at once.
    ///
    /// # Errors
    /// What the network says; of one connection or of all, and it may be tried again.
    fn accept(&self) -> BoxFuture<'_, io::Result<(Connection, SocketAddr)>>;

    /// Where it listens, with the real port.
    ///
    /// # Errors
    /// When the network does not say.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

/// The machine's network.
#[derive(Clone, Copy, Debug, Default)]
pub struct Machine;

impl Network for Machine {
    fn connect(&self, to: SocketAddr) -> BoxFuture<'_, io::Result<Connection>> {
        Box::pin(async move { at_once(TcpStream::connect(to).await?) })
    }

    fn listen(&self, at: SocketAddr) -> BoxFuture<'_, io::Result<Arc<dyn Listener>>> {
        Box::pin(async move { Ok(Arc::new(TcpListener::bind(at).await?) as Arc<dyn Listener>) })
    }
}

impl Listener for TcpListener {
    fn accept(&self) -> BoxFuture<'_, io::Result<(Connection, SocketAddr)>> {
        Box::pin(async move {
            let (tcp, from) = Self::accept(self).await?;
            // It fails for a connection that has died in the queue, and says nothing about the next one.
            let tcp = at_once(tcp).map_err(|error| io::Error::new(io::ErrorKind::ConnectionAborted, error))?;
            Ok((tcp, from))
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Self::local_addr(self)
    }
}

/// Ticks and answers are small and must not wait for each other.
fn at_once(tcp: TcpStream) -> io::Result<Connection> {
    tcp.set_nodelay(true)?;
    Ok(Box::new(tcp))
}
