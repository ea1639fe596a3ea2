//! The network and the clock that the simulation drives.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use heimdall_agent::network::{Connection, Listener, Network};
use heimdall_shared::clock::Moment;
use turmoil::net::{TcpListener, TcpStream};

/// The machines have been up for so long when a run begins: a moment before the beginning must exist.
const UPTIME: Duration = Duration::from_secs(86_400);

thread_local! {
    static LAST: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// The simulation's time. What is dropped after its end sees its last moment.
pub(crate) fn now() -> Moment {
    let elapsed = turmoil::sim_elapsed().unwrap_or_else(|| LAST.get());
    LAST.set(elapsed);
    Moment::from_nanos(0) + UPTIME + elapsed
}

/// The network between the hosts of the simulation.
#[derive(Debug)]
pub(crate) struct Simulated;

struct Accepts(TcpListener);

impl fmt::Debug for Accepts {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?}", self.0.local_addr())
    }
}

impl Network for Simulated {
    fn connect(&self, to: SocketAddr) -> BoxFuture<'_, io::Result<Connection>> {
        async move { Ok(Box::new(TcpStream::connect(to).await?) as Connection) }.boxed()
    }

    fn listen(&self, at: SocketAddr) -> BoxFuture<'_, io::Result<Arc<dyn Listener>>> {
        async move { Ok(Arc::new(Accepts(TcpListener::bind(at).await?)) as Arc<dyn Listener>) }.boxed()
    }
}

impl Listener for Accepts {
    fn accept(&self) -> BoxFuture<'_, io::Result<(Connection, SocketAddr)>> {
        async move {
            let (tcp, from) = self.0.accept().await?;
            Ok((Box::new(tcp) as Connection, from))
        }
        .boxed()
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}
