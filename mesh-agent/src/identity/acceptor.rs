//! The peer port: accepts connections, does the handshakes, hands out those that are somebody.
//!
//! ```text
//! accept loop ──permit──► handshake task (5 s) ──┬─ refused: log, count, close
//!                                               └─ done ──► bounded channel ──► the gRPC server's incoming stream
//! ```

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::credentials::Snapshot;
use super::expiring::Expiring;
use super::files::not_after;
use super::metrics::IdentityMetrics;
use super::refusal::Refusal;
use super::spiffe::Identity;
use crate::log_limit::LogLimit;
use crate::network::{Connection, Listener};
use crate::seated::Seated;

/// Handshakes at a time. One costs about a millisecond of CPU; more at once only make all of them late. When all are
/// taken, connections wait in the kernel's backlog.
pub const HANDSHAKES_MAX: usize = 64;

/// Longest handshake. A slow link needs three round trips; who stays silent must not keep a place.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections at a time: two links to each of 200 replicas, and operators. One more is closed and counted.
pub const CONNECTIONS_MAX: usize = 512;

/// Finished connections that the server has not picked up yet. It picks up at once; when it does not, handshakes wait.
const PICKUP_QUEUE: usize = 16;

/// Shortest and longest pause after the system refused to hand over a connection for want of files or memory: without
/// one the loop would spin, and the condition lasts for seconds rather than for milliseconds.
const ACCEPT_PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// What a refused client may still send, bytes, and how long it may take to close: closed with octets unread, the system
/// would reset the connection, and the alert that says why would be lost with it.
const LINGER: (usize, Duration) = (64 << 10, Duration::from_secs(1));

/// Lines per second about refused connections: enough to see a pattern, too few to fill a disk.
const LOG_LINES_PER_SECOND: u32 = 5;

/// Who is at the other end of a connection: the services find it in each request's extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerInfo {
    /// Whom the certificate names.
    pub identity: Identity,
    /// Where the connection comes from.
    pub address: SocketAddr,
}

/// A connection whose other end is a replica or an operator of our trust domain.
pub type PeerStream = Seated<Expiring<TlsStream<Connection>>, PeerInfo>;

/// The accept loop.
#[derive(Debug)]
pub struct Acceptor {
    listener: Arc<dyn Listener>,
    identity: watch::Receiver<Arc<Snapshot>>,
    metrics: IdentityMetrics,
    connections: Arc<Semaphore>,
    accepted: mpsc::Sender<io::Result<PeerStream>>,
    log: Arc<LogLimit>,
}

impl Acceptor {
    /// An acceptor for `listener`, and the stream of what it accepts. The stream ends when [`Acceptor::run`] does.
    pub fn new(
        listener: Arc<dyn Listener>,
        identity: watch::Receiver<Arc<Snapshot>>,
        metrics: IdentityMetrics,
    ) -> (Self, ReceiverStream<io::Result<PeerStream>>) {
        let (accepted, pickup) = mpsc::channel(PICKUP_QUEUE);
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let log = Arc::new(LogLimit::new(LOG_LINES_PER_SECOND));
        (Self { listener, identity, metrics, connections, accepted, log }, ReceiverStream::new(pickup))
    }

    /// Accepts until `stop`. Then the port is closed at once and handshakes under way are given up: there would be
    /// nobody to serve them.
    pub async fn run(self, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        let mut pause = ACCEPT_PAUSES.0;
        while let Some((connection, address, place)) =
            stop.run_until_cancelled(self.next(&handshakes, &mut pause)).await
        {
            let handshake = self.handshake(connection, address, place);
            let stop = stop.clone();
            tasks.spawn(async move {
                stop.run_until_cancelled(handshake).await;
            });
        }
        drop(self);
        tasks.close();
        tasks.wait().await;
    }

    /// The next connection, with its place among the handshakes. Errors of the system do not end the loop.
    async fn next(
        &self,
        handshakes: &Arc<Semaphore>,
        pause: &mut Duration,
    ) -> (Connection, SocketAddr, OwnedSemaphorePermit) {
        let place = Arc::clone(handshakes).acquire_owned().await.expect("the semaphore must never be closed");
        loop {
            match self.listener.accept().await {
                Ok((connection, address)) => {
                    *pause = ACCEPT_PAUSES.0;
                    return (connection, address, place);
                }
                // The connection died in the queue: the next one may be well.
                Err(error) if is_of_one_connection(&error) => {
                    debug!(%error, "a connection ended before it was accepted")
                }
                Err(error) => {
                    self.metrics.count_accept_error();
                    if let Some(suppressed) = self.log.allow() {
                        warn!(%error, suppressed, pause = ?*pause, "cannot accept peer connections now, trying again");
                    }
                    tokio::time::sleep(*pause).await;
                    *pause = (*pause * 2).min(ACCEPT_PAUSES.1);
                }
            }
        }
    }

    fn handshake(
        &self,
        connection: Connection,
        address: SocketAddr,
        place: OwnedSemaphorePermit,
    ) -> impl Future<Output = ()> + Send + use<> {
        // The newest certificate counts for each connection.
        let server = Arc::clone(&self.identity.borrow().server);
        let connections = Arc::clone(&self.connections);
        let accepted = self.accepted.clone();
        let metrics = self.metrics.clone();
        let log = Arc::clone(&self.log);
        async move {
            let result = greet(connection, address, server, &connections).await;
            match result {
                Ok(stream) => {
                    metrics.count_accepted(&stream.info().identity.role);
                    debug!(%address, identity = %stream.info().identity, "peer connected");
                    // The receiver is gone only when the server is: then there is nobody to serve this connection.
                    let _ = accepted.send(Ok(stream)).await;
                }
                Err(Refused { reason, detail, told }) => {
                    metrics.count_refused(reason);
                    if let Some(suppressed) = log.allow() {
                        warn!(%address, reason = reason.as_str(), detail, suppressed, "peer connection refused");
                    }
                    if let Some(connection) = told {
                        linger(connection).await;
                    }
                }
            }
            // Held until the server has the connection, so that it cannot be flooded with finished ones.
            drop(place);
        }
    }
}

/// A connection that is none.
struct Refused {
    reason: Refusal,
    detail: String,
    /// The connection, where an alert that says why is on its way.
    told: Option<Connection>,
}

impl Refused {
    fn new(reason: Refusal, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into(), told: None }
    }
}

async fn greet(
    connection: Connection,
    address: SocketAddr,
    server: Arc<rustls::ServerConfig>,
    connections: &Arc<Semaphore>,
) -> Result<PeerStream, Refused> {
    let place = Arc::clone(connections)
        .try_acquire_owned()
        .map_err(|_| Refused::new(Refusal::Full, format!("{CONNECTIONS_MAX} connections are open")))?;
    let handshake = TlsAcceptor::from(server).accept(connection).into_fallible();
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err((error, connection))) => {
            let told = Some(connection);
            return Err(Refused { reason: Refusal::of(&error), detail: Refusal::explain(&error), told });
        }
        Err(_) => return Err(Refused::new(Refusal::Timeout, format!("no handshake within {HANDSHAKE_TIMEOUT:?}"))),
    };
    let (identity, not_after) = who(&stream).map_err(|error| Refused::new(Refusal::NoIdentity, error))?;
    if stream.get_ref().1.alpn_protocol().is_none() {
        return Err(Refused::new(Refusal::Protocol, "it did not agree on HTTP/2 (ALPN h2)"));
    }
    let info = PeerInfo { identity, address };
    Ok(Seated::new(Expiring::new(stream, not_after), info, place))
}

/// Lets a refused client read why, and ends.
async fn linger(mut connection: Connection) {
    let read = async {
        connection.shutdown().await?;
        let (mut buffer, mut left) = ([0; 1_024], LINGER.0);
        while left > 0 {
            match connection.read(&mut buffer).await? {
                0 => break,
                count => left = left.saturating_sub(count),
            }
        }
        io::Result::Ok(())
    };
    // Whatever comes of it: the connection is refused already.
    let _ = tokio::time::timeout(LINGER.1, read).await;
}

/// Reads once more what the handshake has checked: the TLS library keeps the certificate and not our conclusion.
fn who(stream: &TlsStream<Connection>) -> Result<(Identity, SystemTime), String> {
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let certificate = certificates.first().ok_or("it showed no certificate")?;
    let identity = Identity::from_certificate(certificate).map_err(|error| error.to_string())?;
    let not_after = not_after(certificate).ok_or("its certificate has no readable end")?;
    Ok((identity, not_after))
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}
