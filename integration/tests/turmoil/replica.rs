//! One replica: a whole agent, and of a dns-server what is behind its listeners.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use heimdall_agent::config::Config;
use heimdall_agent::discovery::PeerAddress;
use heimdall_dns::agent::Settings;
use heimdall_dns::answer::{Core, Outcome, Resolver};
use heimdall_dns::cache::Cache;
use heimdall_dns::metrics::Metrics;
use heimdall_dns::purge::Purges;
use heimdall_dns::upstream::{self, Upstreams};
use heimdall_shared::clock;
use heimdall_shared::dns::answer::TtlLimits;
use heimdall_shared::key::Key;
use heimdall_shared::telemetry::Tracer;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::network::{Simulated, now};

/// Port of every agent.
pub(crate) const PORT: u16 = 8443;

/// Bytes of a replica's caches: far more than a run asks for.
const CACHE_BYTES: u64 = 4 << 20;

/// Resolutions at a time of a replica: more than a run begins.
const RESOLUTIONS_MAX: usize = 256;

/// A question of a client, and where its answer goes.
pub(crate) type Asked = (Key, oneshot::Sender<Outcome>);

/// What a replica is started with.
#[derive(Clone, Debug)]
pub(crate) struct Replica {
    pub(crate) name: String,
    /// The other members' names, and where they are.
    pub(crate) peers: Vec<(String, String)>,
    /// Where it is, as peers are told.
    pub(crate) host: String,
    pub(crate) tls: PathBuf,
    pub(crate) socket: PathBuf,
}

impl Replica {
    fn agent(&self) -> Config {
        let member = |(name, host): &(String, String)| PeerAddress {
            name: name.as_str().into(),
            host: host.clone(),
            port: PORT,
        };
        Config {
            node: self.name.as_str().into(),
            peer_listen: SocketAddr::from(([0, 0, 0, 0], PORT)),
            advertise: Some(format!("{}:{PORT}", self.host).into()),
            peers: self.peers.iter().map(member).collect(),
            tls_dir: self.tls.clone(),
            socket: self.socket.clone(),
            http_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            store_bytes: CACHE_BYTES,
            // Each comparison would be an upstream query.
            peer_sample: 0,
            ..Config::default()
        }
    }

    /// Runs it, and answers what is `asked`, until nobody can ask any more.
    pub(crate) async fn run(self, upstream: SocketAddr, mut asked: mpsc::Receiver<Asked>) -> turmoil::Result {
        clock::simulate(now);
        let app = self.agent().build_on(Arc::new(Simulated)).await?;
        let running = app.spawn(Tracer::default());

        let config = heimdall_dns::Config::default();
        let (cache, metrics) = (Arc::new(Cache::new(CACHE_BYTES).unwrap()), Arc::new(Metrics::new(1)));
        let purges = Arc::new(Purges::new(Arc::clone(&cache), config.stale.limit));
        tokio::spawn(Arc::clone(&purges).run(CancellationToken::new()));
        let settings = upstream::Settings {
            servers: vec![upstream.to_string().parse()?],
            attempt_timeout: config.attempt_timeout,
            mix_case: config.mix_case,
            explore: true,
            resolutions_max: RESOLUTIONS_MAX,
            avoided_ports: Vec::new(),
            limits: TtlLimits::default(),
        };
        let upstreams = Arc::new(Upstreams::new(settings, &metrics.upstream, &Tracer::default()));
        let (budget, stale) = (config.query_budget, config.stale);
        let core = Core::new(upstreams, cache, purges, metrics, Tracer::default(), budget, stale);
        let agent = Settings { socket: self.socket, tick: config.tick, silence: config.silence };
        let resolver = Arc::new(Resolver::new(&core, Some(agent), 0));
        while let Some((key, answer)) = asked.recv().await {
            let resolver = Arc::clone(&resolver);
            tokio::spawn(async move {
                // Whoever asked may have given up.
                let _ = answer.send(resolver.resolve(&key).await);
            });
        }
        drop(running);
        Ok(())
    }
}
