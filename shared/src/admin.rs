//! HTTP for probes and Prometheus: `/livez`, `/readyz`, `/metrics`, and what a process adds.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Media type of OpenMetrics text.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Connections at a time: a few scrapers and probes have one each for some milliseconds, and a flood must not take descriptors
/// from DNS.
const CONNECTIONS_MAX: usize = 64;

/// A client that has not sent its request by then is cut off: it would hold a place that a probe may need.
const HEADER_WITHIN: Duration = Duration::from_secs(5);

/// A request is answered and the answer taken by then: the largest page is some hundred kilobytes.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);

/// Pause after the system refused to hand over a connection for want of files or memory, which lasts for longer.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What still stands between a process and being ready: a latch for each thing, gone when it is dropped.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    missing: Arc<Mutex<Vec<&'static str>>>,
}

/// One thing that is waited for. Drop it when it is there; make it again when it is lost.
#[derive(Debug)]
pub struct Latch {
    what: &'static str,
    readiness: Readiness,
}

impl Readiness {
    /// Not ready until the latch is dropped; `what` tells people what for.
    #[must_use]
    pub fn latch(&self, what: &'static str) -> Latch {
        self.missing().push(what);
        Latch { what, readiness: self.clone() }
    }

    /// What is waited for; ready when empty.
    pub fn waits_for(&self) -> Vec<&'static str> {
        self.missing().clone()
    }

    fn missing(&self) -> MutexGuard<'_, Vec<&'static str>> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Latch {
    fn drop(&mut self) {
        let mut missing = self.readiness.missing();
        if let Some(at) = missing.iter().position(|what| *what == self.what) {
            missing.remove(at);
        }
    }
}

/// The HTTP server of a process, bound and not yet serving.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    router: Router,
}

#[derive(Clone, Debug)]
struct Probes {
    readiness: Readiness,
    registry: Arc<Registry>,
}

impl Admin {
    /// Binds `address`. `extra` are the process's own pages.
    ///
    /// # Errors
    /// When the address cannot be bound; the error names it.
    pub async fn bind(
        address: SocketAddr,
        readiness: Readiness,
        registry: Registry,
        extra: Router,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|error| io::Error::new(error.kind(), format!("cannot listen for HTTP on {address}: {error}")))?;
        let probes = Probes { readiness, registry: Arc::new(registry) };
        let router = Router::new()
            .route("/livez", get(async || "live\n"))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .with_state(probes)
            .merge(extra);
        Ok(Self { listener, router })
    }

    /// Where it listens, with the real port.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop`; requests under way are then cut off, since scrapes come again.
    pub async fn serve(self, stop: CancellationToken) {
        // Owns the connections' tasks: they end with this one.
        let mut connections = JoinSet::new();
        let service = TowerToHyperService::new(self.router);
        let accept = async {
            loop {
                // Room first: who comes when all is taken waits in the kernel's queue.
                while connections.len() >= CONNECTIONS_MAX {
                    connections.join_next().await;
                }
                tokio::select! {
                    accepted = self.listener.accept() => match accepted {
                        Ok((stream, _)) => {
                            connections.spawn(answer(stream, service.clone()));
                        }
                        Err(error) => {
                            warn!(%error, "cannot accept an HTTP connection");
                            sleep(ACCEPT_PAUSE).await;
                        }
                    },
                    Some(_) = connections.join_next() => {}
                }
            }
        };
        stop.run_until_cancelled(accept).await;
    }
}

/// Answers one request on a connection. A client that breaks off or sends what is no HTTP is its own trouble.
async fn answer(stream: TcpStream, service: TowerToHyperService<Router>) {
    let mut server = auto::Builder::new(TokioExecutor::new()).http1_only();
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_WITHIN).keep_alive(false);
    let _ = timeout(ANSWERED_WITHIN, server.serve_connection(TokioIo::new(stream), service)).await;
}

async fn ready(State(probes): State<Probes>) -> impl IntoResponse {
    let missing = probes.readiness.waits_for();
    if missing.is_empty() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for: {}\n", missing.join(", ")))
    }
}

async fn metrics(State(probes): State<Probes>) -> impl IntoResponse {
    let mut text = String::new();
    match encode(&mut text, &probes.registry) {
        Ok(()) => (StatusCode::OK, [(header::CONTENT_TYPE, OPENMETRICS)], text),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            [(header::CONTENT_TYPE, "text/plain")],
            format!("the metrics cannot be written: {error}\n"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::task::JoinHandle;

    use super::*;

    struct Server {
        address: SocketAddr,
        stop: CancellationToken,
        task: JoinHandle<()>,
    }

    async fn start(readiness: Readiness) -> Server {
        let admin = Admin::bind("127.0.0.1:0".parse().unwrap(), readiness, Registry::default(), Router::new());
        let admin = admin.await.unwrap();
        let (address, stop) = (admin.address().unwrap(), CancellationToken::new());
        Server { address, stop: stop.clone(), task: tokio::spawn(admin.serve(stop)) }
    }

    async fn get_page(address: SocketAddr, path: &str) -> String {
        request(address, "GET", path).await
    }

    async fn request(address: SocketAddr, method: &str, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: test\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn readiness_names_what_is_missing_until_it_is_there() {
        let readiness = Readiness::default();
        let first = readiness.latch("the first view of the members");
        let second = readiness.latch("a certificate");
        let Server { address, stop, task } = start(readiness).await;

        let page = get_page(address, "/readyz").await;
        assert!(page.starts_with("HTTP/1.1 503"), "{page}");
        assert!(page.contains("the first view of the members, a certificate"), "{page}");
        drop(first);
        assert!(get_page(address, "/readyz").await.contains("waiting for: a certificate"));
        drop(second);
        assert!(get_page(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(get_page(address, "/livez").await.ends_with("live\n"));
        let metrics = get_page(address, "/metrics").await;
        assert!(metrics.contains("application/openmetrics-text") && metrics.ends_with("# EOF\n"), "{metrics}");

        stop.cancel();
        task.await.unwrap();
    }

    #[tokio::test]
    async fn nothing_can_be_changed_over_http() {
        let server = start(Readiness::default()).await;
        assert!(request(server.address, "POST", "/readyz").await.starts_with("HTTP/1.1 405"));
        assert!(get_page(server.address, "/secrets").await.starts_with("HTTP/1.1 404"));
    }

    #[tokio::test(start_paused = true)]
    async fn clients_that_send_no_request_lose_their_places() {
        let server = start(Readiness::default()).await;
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            silent.push(TcpStream::connect(server.address).await.unwrap());
        }
        // Waits in the kernel's queue until the first ones are cut off.
        let page = timeout(ANSWERED_WITHIN, get_page(server.address, "/livez")).await.unwrap();
        assert!(page.ends_with("live\n"), "{page}");
        for mut stream in silent {
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
        }
    }
}
