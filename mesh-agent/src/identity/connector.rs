//! Dialling a peer: a connection to exactly the replica that was expected, or an error that says what went wrong.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use heimdall_shared::link::H2_WINDOW;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use super::credentials::Snapshot;
use super::expiring::Expiring;
use super::files::not_after;
use super::metrics::IdentityMetrics;
use super::refusal::Refusal;
use crate::network::{Connection, Network};

/// Longest dial, connection and handshake together. A peer that needs longer is as good as gone; whoever waits for it
/// has long gone on by itself.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(2);

/// A peer that does not answer a ping of HTTP/2 for this long after this long has gone without a word, and is dialled
/// anew: perhaps it lives elsewhere by now. Membership skips it long before.
pub const KEEPALIVE: Duration = Duration::from_secs(5);

/// Name in requests to a peer. Peers are known by their certificate; HTTP wants a name all the same.
const ORIGIN: &str = "https://heimdall-peer";

/// A connection that was dialled.
pub type DialledStream = Expiring<TlsStream<Connection>>;

/// Dials peers with the certificate that is in use at that moment.
#[derive(Clone, Debug)]
pub struct Connector {
    network: Arc<dyn Network>,
    identity: watch::Receiver<Arc<Snapshot>>,
    metrics: IdentityMetrics,
}

/// Why a dial came to nothing. There is no connection; dial again later.
#[derive(Debug, Error)]
#[error("dialling {expected} at {address}: {detail}")]
pub struct DialError {
    /// The replica that was to be reached.
    pub expected: String,
    /// Where it was dialled.
    pub address: SocketAddr,
    /// What went wrong, as a label.
    pub reason: Refusal,
    detail: String,
}

impl Connector {
    /// A connector over `network` that follows `identity`.
    pub fn new(network: Arc<dyn Network>, identity: watch::Receiver<Arc<Snapshot>>, metrics: IdentityMetrics) -> Self {
        Self { network, identity, metrics }
    }

    /// Connects to `address` and makes sure that the replica `expected` answers there.
    ///
    /// With TLS 1.3 our side is done before the other one has looked at our certificate: a peer that refuses us shows it
    /// at the first read.
    pub async fn dial(&self, address: SocketAddr, expected: &str) -> Result<DialledStream, DialError> {
        let result = match tokio::time::timeout(DIAL_TIMEOUT, self.connect(address, expected)).await {
            Ok(result) => result,
            Err(_) => Err((Refusal::Timeout, format!("no answer within {DIAL_TIMEOUT:?}"))),
        };
        result.map_err(|(reason, detail)| {
            self.metrics.count_dial_failure(reason);
            DialError { expected: expected.to_owned(), address, reason, detail }
        })
    }

    /// A gRPC channel over one dialled connection. When that connection ends, so does the channel's use: it is never
    /// silently connected again, because the peer may meanwhile live elsewhere.
    pub async fn channel(&self, address: SocketAddr, expected: &str) -> Result<Channel, DialError> {
        let stream = self.dial(address, expected).await?;
        let mut stream = Some(TokioIo::new(stream));
        // The scheme is http because TLS is done by then, and tonic must not try it again.
        let endpoint = Endpoint::from(
            Uri::builder()
                .scheme("http")
                .authority(address.to_string())
                .path_and_query("/")
                .build()
                .expect("a socket address must be an authority"),
        )
        .origin(Uri::from_static(ORIGIN))
        .initial_stream_window_size(H2_WINDOW)
        .initial_connection_window_size(H2_WINDOW)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE);
        let once = tower::service_fn(move |_: Uri| {
            let stream = stream.take().ok_or("the connection to this peer has ended");
            async move { stream }
        });
        endpoint.connect_with_connector(once).await.map_err(|error| {
            self.metrics.count_dial_failure(Refusal::Protocol);
            DialError {
                expected: expected.to_owned(),
                address,
                reason: Refusal::Protocol,
                detail: format!("no HTTP/2 on the connection: {error}"),
            }
        })
    }

    async fn connect(&self, address: SocketAddr, expected: &str) -> Result<DialledStream, (Refusal, String)> {
        let client =
            self.identity.borrow().client(expected).map_err(|error| (Refusal::of_tls(&error), error.to_string()))?;
        let connected = self.network.connect(address).await;
        let connection = connected.map_err(|error| (Refusal::Connection, error.to_string()))?;
        let stream = TlsConnector::from(client)
            .connect(ServerName::IpAddress(address.ip().into()), connection)
            .await
            .map_err(|error| (Refusal::of(&error), Refusal::explain(&error)))?;
        let connection = stream.get_ref().1;
        if connection.alpn_protocol().is_none() {
            return Err((Refusal::Protocol, "it did not agree on HTTP/2 (ALPN h2)".to_owned()));
        }
        let expires = connection.peer_certificates().and_then(<[_]>::first).and_then(not_after);
        let expires = expires.ok_or((Refusal::BadCertificate, "its certificate has no readable end".to_owned()))?;
        Ok(Expiring::new(stream, expires))
    }
}
