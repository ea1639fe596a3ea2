//! From a configuration to a running server: everything is bound in [`Config::build`], nothing is served before
//! [`App::spawn`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::routing::get;
use axum::{Json, Router};
use heimdall_shared::admin::{Admin, Latch, Readiness};
use heimdall_shared::dns::answer::TtlLimits;
use heimdall_shared::telemetry::Tracer;
use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::error;

use crate::agent;
use crate::answer::{Core, Resolver};
use crate::bind;
use crate::cache::Cache;
use crate::config::Config;
use crate::descriptors;
use crate::listener::batch::Desk;
use crate::listener::tcp::CONNECTIONS_MAX;
use crate::metrics::Metrics;
use crate::purge::Purges;
use crate::stats::Stats;
use crate::upstream::{Settings, Upstreams};
use crate::worker::{Sockets, Worker};

/// A server is ready when all its workers have their link to the agent, or after this time: the agent of its pod starts
/// beside it, and without any it serves all the same.
const LINKED_WITHIN: Duration = Duration::from_secs(2);

/// How often a starting server looks whether they have.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A server whose sockets are bound.
#[derive(Debug)]
pub struct App {
    config: Config,
    sockets: Vec<Sockets>,
    dns: Vec<SocketAddr>,
    admin: Admin,
    http: SocketAddr,
    readiness: Readiness,
    starting: Latch,
    metrics: Arc<Metrics>,
    cache: Arc<Cache>,
    tracer: Tracer,
}

impl Config {
    /// Binds every socket.
    ///
    /// # Errors
    /// With the address that could not be bound, or the size of the cache for which there is no memory.
    pub async fn build(self) -> anyhow::Result<App> {
        let workers = self.workers.max(1);
        let (sockets, dns) = bind::bind(&self.listen, workers)?;
        let metrics = Arc::new(Metrics::new(workers));
        let cache = Cache::new(self.cache_bytes).with_context(|| {
            format!("cannot reserve --cache-bytes, {} bytes; choose less than the machine has", self.cache_bytes)
        })?;
        let cache = Arc::new(cache);
        let mut registry = Registry::with_prefix("heimdall");
        metrics.register(&cache, &mut registry);
        let readiness = Readiness::default();
        let starting = readiness.latch("the workers");
        let admin = Admin::bind(self.http_listen, readiness.clone(), registry, pages(&metrics)).await?;
        let http = admin.address().context("cannot read the address of the HTTP listener")?;
        Ok(App { config: self, sockets, dns, admin, http, readiness, starting, metrics, cache, tracer: Tracer::off() })
    }
}

/// The pages that only this process has.
fn pages(metrics: &Arc<Metrics>) -> Router {
    let metrics = Arc::clone(metrics);
    Router::new().route("/stats", get(async move || Json(Stats::read(&metrics))))
}

impl App {
    /// Where DNS will be served, in the order of the configuration, with real ports.
    pub fn dns_addresses(&self) -> &[SocketAddr] {
        &self.dns
    }

    /// Where metrics and health will be served, with the real port.
    pub const fn http_address(&self) -> SocketAddr {
        self.http
    }

    /// Traces misses with this tracer.
    #[must_use]
    pub fn traced(mut self, tracer: Tracer) -> Self {
        self.tracer = tracer;
        self
    }

    /// Starts the workers, and HTTP on the runtime of the caller.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn spawn(self) -> anyhow::Result<Running> {
        let Self { config, sockets, dns, admin, http: _, readiness, starting, metrics, cache, tracer } = self;
        let running = Running {
            stop: CancellationToken::new(),
            ended: CancellationToken::new(),
            workers: TaskTracker::new(),
            http_stop: CancellationToken::new(),
            http: TaskTracker::new(),
            readiness,
        };
        running.http.spawn(admin.serve(running.http_stop.clone()));
        let settings = Settings {
            servers: config.upstreams.clone(),
            attempt_timeout: config.attempt_timeout,
            mix_case: config.mix_case,
            explore: true,
            resolutions_max: descriptors::resolutions(),
            avoided_ports: dns.iter().map(SocketAddr::port).collect(),
            limits: TtlLimits::default(),
        };
        let upstreams = Arc::new(Upstreams::new(settings, &metrics.upstream, &tracer));
        let purges = Arc::new(Purges::new(Arc::clone(&cache), config.stale.limit));
        running.http.spawn(Arc::clone(&purges).run(running.http_stop.clone()));
        let core = Core::new(
            upstreams,
            Arc::clone(&cache),
            purges,
            Arc::clone(&metrics),
            tracer,
            config.query_budget,
            config.stale,
        );
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        for (index, sockets) in sockets.into_iter().enumerate() {
            let desk = Desk {
                cache: Arc::clone(&cache),
                tallies: Arc::clone(&metrics.workers[index]),
                ahead: config.refresh_ahead,
            };
            let (metrics, permits, core) = (Arc::clone(&metrics), Arc::clone(&permits), Arc::clone(&core));
            let (socket, tick, silence) = (config.agent_socket.clone(), config.tick, config.silence);
            let agent = socket.map(|socket| agent::Settings { socket, tick, silence });
            let resolver = move || Resolver::new(&core, agent, index);
            let alive =
                Alive { _token: running.workers.token(), stop: running.stop.clone(), ended: running.ended.clone() };
            std::thread::Builder::new()
                .name(format!("dns-{index}"))
                .spawn(move || {
                    let alive = alive;
                    if let Err(error) = Worker::run(sockets, desk, metrics, resolver, &permits, &alive.stop) {
                        error!(%error, worker = index, "a worker could not start");
                    }
                })
                .with_context(|| format!("cannot start the thread of worker {index}"))?;
        }
        running.workers.close();
        let links = Arc::clone(&metrics);
        let has_agent = config.agent_socket.is_some();
        running.http.spawn(async move {
            let linked = async {
                while has_agent && usize::try_from(links.agent.links()).unwrap_or_default() < links.workers.len() {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            };
            // Who is sent queries before it has its agent asks the upstream for what the others know.
            let _ = tokio::time::timeout(LINKED_WITHIN, linked).await;
            drop(starting);
        });
        running.http.close();
        Ok(running)
    }
}

/// Dropped when a worker's thread ends, also by a panic.
struct Alive {
    _token: tokio_util::task::task_tracker::TaskTrackerToken,
    stop: CancellationToken,
    ended: CancellationToken,
}

impl Drop for Alive {
    fn drop(&mut self) {
        if !self.stop.is_cancelled() {
            self.ended.cancel();
        }
    }
}

/// A serving server.
#[derive(Debug)]
pub struct Running {
    stop: CancellationToken,
    ended: CancellationToken,
    workers: TaskTracker,
    http_stop: CancellationToken,
    http: TaskTracker,
    readiness: Readiness,
}

impl Running {
    /// What makes the workers take no new queries.
    pub const fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// From now on the server says that it is not ready, while it still takes queries.
    #[must_use]
    pub fn leave(&self) -> Latch {
        self.readiness.latch("nothing: it leaves")
    }

    /// Waits until a worker has ended without having been told to, which no fault from outside can bring about.
    pub async fn failed(&self) {
        self.ended.cancelled().await;
    }

    /// Once [`Running::stop`] is cancelled: waits until every query under way has its reply. Until then the process says
    /// that it is not ready, and still shows its metrics.
    pub async fn finish(&self) {
        let _leaving = self.readiness.latch("nothing: it is being stopped");
        self.workers.wait().await;
        self.http_stop.cancel();
        self.http.wait().await;
    }
}
