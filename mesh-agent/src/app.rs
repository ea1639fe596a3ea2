//! From a configuration to a running agent: everything is bound in [`Config::build`], nothing is served before
//! [`App::spawn`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use heimdall_proto::v1::mesh_agent_server::MeshAgentServer;
use heimdall_proto::v1::replica_coordination_server::ReplicaCoordinationServer;
use heimdall_shared::admin::{Admin, Readiness};
use heimdall_shared::clock::Moment;
use heimdall_shared::dns::answer::TtlLimits;
use heimdall_shared::link::{BATCH_BYTES_MAX, Beats, H2_WINDOW};
use heimdall_shared::patience::Patience;
use heimdall_shared::purge::Ledger;
use heimdall_shared::telemetry::Tracer;
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;
use tracing::{error, warn};

use crate::agent::{Agent, Budgets};
use crate::ask_first::{self, Relays};
use crate::cluster::{self, Cluster};
use crate::condition;
use crate::config::Config;
use crate::dial::Dialler;
use crate::discovery::PeerAddress;
use crate::granter::{self, Granter};
use crate::identity::connector::KEEPALIVE;
use crate::identity::credentials::POLL_EVERY;
use crate::identity::{Acceptor, Connector, Credentials, IdentityMetrics};
use crate::lease::{Limits, Table};
use crate::levels::Writes;
use crate::links::{Links, Peer};
use crate::local_socket::{LocalSocket, LocalSocketMetrics};
use crate::lookup::{self, FIRST_WORD_WITHIN};
use crate::membership::{Discovered, Event, Membership, Update, View};
use crate::metrics::Metrics;
use crate::network::{Listener, Machine, Network};
use crate::purge;
use crate::repair::Repairs;
use crate::service::Operations;
use crate::service::authorize::Authorize;
use crate::service::local::LocalService;
use crate::service::peer::PeerService;
use crate::service::standard::{health, reflection, reflection_alpha};
use crate::store::{Store, tidy};
use crate::transfer::{self, HandOver, Transfers, Warmth};
use crate::trust::{Trust, checks};

/// Calls and streams at a time on one connection: a session, and what people and tests call.
const STREAMS_MAX: u32 = 256;

/// Headers of one call, bytes: a path, a trace context and a deadline take some hundred.
const HEADERS_MAX: u32 = 16 << 10;

/// Calls of one connection that may be over before they were begun, or broken by a mistake of the caller's, before the
/// connection is cut off: opening and cancelling costs the caller less than us.
const RESETS_MAX: usize = 32;

/// How often a draining agent looks whether its dns-server has left and its leases
/// have ended.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// An agent whose sockets are bound.
pub struct App {
    config: Config,
    network: Arc<dyn Network>,
    peer_listener: Arc<dyn Listener>,
    peer_address: SocketAddr,
    local: LocalSocket,
    credentials: Credentials,
    identity_metrics: IdentityMetrics,
    local_metrics: LocalSocketMetrics,
    metrics: Arc<Metrics>,
    store: Arc<Store>,
    purges: Arc<Ledger>,
    readiness: Readiness,
    admin: Admin,
}

impl Config {
    /// Binds every socket and reads the certificate.
    ///
    /// # Errors
    /// With the address or file that stood in the way.
    pub async fn build(self) -> anyhow::Result<App> {
        self.build_on(Arc::new(Machine)).await
    }

    /// The same, with `network` between this agent and its peers.
    ///
    /// # Errors
    /// As [`Config::build`].
    pub async fn build_on(self, network: Arc<dyn Network>) -> anyhow::Result<App> {
        let (identity_metrics, local_metrics) = (IdentityMetrics::default(), LocalSocketMetrics::default());
        let (metrics, purges) = (Arc::<Metrics>::default(), Arc::new(purge::ledger(self.stale_limit)));
        let store = Arc::new(Store::keeping_stale(self.store_bytes, self.stale_limit, Arc::clone(&purges)));
        let mut registry = Registry::with_prefix("heimdall_agent");
        metrics.register(&store, &mut registry);
        identity_metrics.register(&mut registry);
        local_metrics.register(&mut registry);

        let credentials = Credentials::load(&self.tls_dir, &self.node, identity_metrics.clone())
            // Its text says it all, sources included.
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        let peer_listener = network
            .listen(self.peer_listen)
            .await
            .with_context(|| format!("cannot listen for peers on {}", self.peer_listen))?;
        let peer_address = peer_listener.local_addr()?;
        let local = LocalSocket::bind(&self.socket).map_err(|error| anyhow::anyhow!("{error}"))?;
        let readiness = Readiness::default();
        let admin = Admin::bind(self.http_listen, readiness.clone(), registry, axum::Router::new()).await?;
        Ok(App {
            config: self,
            network,
            peer_listener,
            peer_address,
            local,
            credentials,
            identity_metrics,
            local_metrics,
            metrics,
            store,
            purges,
            readiness,
            admin,
        })
    }
}

impl App {
    /// Where peers can reach this agent, with the real port.
    pub const fn peer_address(&self) -> SocketAddr {
        self.peer_address
    }

    /// Where probes and metrics are served, with the real port.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn http_address(&self) -> std::io::Result<SocketAddr> {
        self.admin.address()
    }

    /// Starts everything.
    pub fn spawn(self, tracer: Tracer) -> Running {
        let (end, tasks) = (CancellationToken::new(), TaskTracker::new());
        let advertise = self.config.advertise.clone().unwrap_or_else(|| self.peer_address.to_string().into());
        let me = Discovered { name: Arc::clone(&self.config.node), address: Arc::clone(&advertise) };
        // Configuration is known before anybody connects: a peer that is early is not a stranger.
        let members = discovered(&self.config.peers);
        let mut membership = Membership::new(me, self.config.replication_factor, Moment::now());
        let first = membership.step(Event::Discovered(Update::Reset(members)), Moment::now());
        let level = self.config.promise.level;
        let needed = level.copies(self.config.replication_factor);
        if self.config.peers.len() + 1 < needed {
            warn!(
                level = level.as_str(),
                members = self.config.peers.len() + 1,
                needed,
                "no write can reach the configured level: there are fewer members than copies that it needs; \
                 add members, or lower --write-consistency or --replication-factor"
            );
        }
        let (view_sender, view) = watch::channel(membership.view());
        let (granter, granter_events) = granter::channel();
        let (cluster, cluster_events) = mpsc::channel(cluster::EVENTS);
        let links = Arc::new(Links::default());
        let beats = Beats::default();
        tasks.spawn(beats.clone().run(end.clone()));
        let first_words = Arc::new(Patience::new(FIRST_WORD_WITHIN));
        let silent = |(peer, request): (Arc<Peer>, u64)| lookup::bear_silence(&peer, request);
        tasks.spawn(Arc::clone(&first_words).run(silent, end.clone()));
        let warmth = Arc::new(Warmth::starting(Moment::now()));
        let (leavers, leaving) = transfer::channel();
        let (grants, granted) = ask_first::channel();
        let (suspects, suspected) = checks::channel();
        let trust = Trust::new(self.config.peer_sample, suspects, &self.metrics.trust);
        let incarnation = rand::random();
        let limits = Limits { lease: self.config.lease, tick: self.config.tick, ..Limits::default() };
        let agent = Arc::new(Agent {
            name: Arc::clone(&self.config.node),
            incarnation,
            advertise,
            view: view.clone(),
            links: Arc::clone(&links),
            beats: beats.clone(),
            store: Arc::clone(&self.store),
            purges: self.purges,
            granter: granter.clone(),
            warmth: Arc::clone(&warmth),
            degraded: ArcSwap::default(),
            relays: Relays::default(),
            leavers,
            hand_over: HandOver::default(),
            cluster,
            budgets: Budgets { peer: self.config.peer_budget },
            first_words,
            promise: self.config.promise,
            repairs: Repairs::default(),
            trust,
            ttl_limits: TtlLimits::default(),
            metrics: Arc::clone(&self.metrics),
            tracer,
        });

        tasks.spawn(
            Granter {
                table: Table::new(Arc::clone(&self.config.node), incarnation, limits),
                events: granter_events,
                store: Arc::clone(&self.store),
                links: Arc::clone(&links),
                view: view.clone(),
                warmth,
                ask_first: grants,
                promise: self.config.promise,
                writes: Writes::default(),
                metrics: Arc::clone(&self.metrics),
            }
            .run(end.clone()),
        );
        tasks.spawn(purge::run(Arc::clone(&agent), end.clone()));
        tasks.spawn(tidy::run(Arc::clone(&agent.store), end.clone()));
        tasks.spawn(checks::run(Arc::clone(&agent), suspected, end.clone()));
        tasks.spawn(ask_first::run(Arc::clone(&agent), granted, tasks.clone(), end.clone()));

        let identity = self.credentials.subscribe();
        tasks.spawn(self.credentials.run(POLL_EVERY, end.clone()));
        let connector = Arc::new(Connector::new(self.network, identity.clone(), self.identity_metrics.clone()));
        let dial = {
            let (agent, tasks, connector) = (Arc::clone(&agent), tasks.clone(), Arc::clone(&connector));
            move |member, address, stop| {
                let (agent, connector) = (Arc::clone(&agent), Arc::clone(&connector));
                tasks.spawn(Dialler { agent, connector, member, address }.run(stop));
            }
        };
        tasks.spawn(
            Cluster {
                membership,
                first,
                events: cluster_events,
                beats: beats.subscribe(),
                view: view_sender,
                links,
                granter,
                dial,
            }
            .run(end.clone()),
        );
        let (members, share) =
            (self.readiness.latch("the other members"), self.readiness.latch("this replica's entries"));
        let transfers = Transfers::new(Arc::clone(&agent), connector, self.config.transfer_rate, leaving);
        tasks.spawn(transfers.run(members, share, end.clone()));

        tasks.spawn(condition::watch(Arc::clone(&agent), self.config.store_bytes, end.clone()));

        let operations = Operations::new(Arc::clone(&agent));
        let peers = PeerService::new(operations.clone(), tasks.clone());
        let (acceptor, accepted) = Acceptor::new(self.peer_listener, identity, self.identity_metrics.clone());
        tasks.spawn(acceptor.run(end.clone()));
        let authorize = Authorize::new(self.identity_metrics);
        tasks.spawn(serve("peers", end.clone(), async move |end: CancellationToken| {
            server()
                .layer(authorize)
                .add_service(ReplicaCoordinationServer::new(peers).max_decoding_message_size(BATCH_BYTES_MAX))
                .add_service(health::<ReplicaCoordinationServer<PeerService>>().await)
                .add_service(reflection::<ReplicaCoordinationServer<PeerService>>())
                .add_service(reflection_alpha::<ReplicaCoordinationServer<PeerService>>())
                .serve_with_incoming_shutdown(accepted, end.cancelled_owned())
                .await
        }));

        let local = LocalService::new(operations, tasks.clone());
        let incoming = self.local.incoming(self.local_metrics);
        tasks.spawn(serve("the local socket", end.clone(), async move |end: CancellationToken| {
            server()
                .add_service(MeshAgentServer::new(local).max_decoding_message_size(BATCH_BYTES_MAX))
                .add_service(health::<MeshAgentServer<LocalService>>().await)
                .add_service(reflection::<MeshAgentServer<LocalService>>())
                .add_service(reflection_alpha::<MeshAgentServer<LocalService>>())
                .serve_with_incoming_shutdown(incoming, end.cancelled_owned())
                .await
        }));
        tasks.spawn(self.admin.serve(end.clone()));
        tasks.close();
        Running { agent, readiness: self.readiness, stop: CancellationToken::new(), end, tasks }
    }
}

fn server() -> Server {
    Server::builder()
        .initial_stream_window_size(H2_WINDOW)
        .initial_connection_window_size(H2_WINDOW)
        .max_concurrent_streams(STREAMS_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .http2_max_header_list_size(HEADERS_MAX)
        .http2_max_pending_accept_reset_streams(Some(RESETS_MAX))
        .http2_max_local_error_reset_streams(Some(RESETS_MAX))
        .tcp_nodelay(true)
}

/// Serves until it is told to end; a server that ends before is a defect that the log must show.
async fn serve<F>(what: &'static str, end: CancellationToken, server: impl FnOnce(CancellationToken) -> F)
where
    F: Future<Output = Result<(), tonic::transport::Error>>,
{
    if let Err(error) = server(end).await {
        error!(%error, "the server for {what} ended");
    }
}

fn discovered(peers: &[PeerAddress]) -> Vec<Discovered> {
    let member = |peer: &PeerAddress| Discovered { name: Arc::clone(&peer.name), address: peer.to_string().into() };
    peers.iter().map(member).collect()
}

/// A running agent.
pub struct Running {
    agent: Arc<Agent>,
    readiness: Readiness,
    stop: CancellationToken,
    end: CancellationToken,
    tasks: TaskTracker,
}

impl Running {
    /// Cancelled by the first signal.
    pub const fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// These are the members from now on.
    pub async fn discovered(&self, peers: Vec<PeerAddress>) {
        self.agent.tell_cluster(Event::Discovered(Update::Reset(discovered(&peers)))).await;
    }

    /// Leaves: the peers are told, nothing new is granted, and the agent stays until its dns-server has gone and its leases
    /// have ended. Then everything ends.
    pub async fn finish(self) {
        let _never_ready_again = self.readiness.latch("nothing: stopping");
        self.agent.leave().await;
        self.agent.hand_over.run(&self.agent).await;
        while !self.agent.links.connected().streams.is_empty() || self.agent.metrics.leases_live() > 0 {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        self.end.cancel();
        self.agent.store.updates().end();
        let connected = self.agent.links.connected();
        let streams = connected.streams.values().map(|stream| &stream.link);
        for link in connected.peers.values().map(|peer| &peer.link).chain(streams) {
            link.close();
        }
        self.tasks.wait().await;
    }

    /// The present view, for tests.
    pub fn view(&self) -> Arc<View> {
        self.agent.view()
    }
}
