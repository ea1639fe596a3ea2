//! Our own certificate in use, and its replacement while the process runs.
//!
//! The folder is polled and compared by content: a Kubernetes secret changes by a link that is swapped, and lags by a
//! minute anyway, so a file watcher would buy nothing. What does not pass every check is not taken, and the old stays.

#![allow(clippy::disallowed_methods)] // certificates hold by the wall clock

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::files::{Contents, LoadError, Material};
use super::metrics::IdentityMetrics;
use super::spiffe::Identity;
use super::tls;

/// How often the folder is looked at. New files take effect within this time; each look reads three small files.
pub const POLL_EVERY: Duration = Duration::from_secs(10);

/// One certificate in use: immutable, taken by each handshake and each dial.
#[derive(Debug)]
pub struct Snapshot {
    /// For connections that arrive.
    pub server: Arc<ServerConfig>,
    /// Who we are.
    pub own: Identity,
    /// When our certificate expires.
    pub not_after: SystemTime,
    /// 1 for the first certificate, one more for each replacement.
    pub generation: u64,
    key: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
}

/// What a look at the folder came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// The files are those that are in use.
    Unchanged,
    /// New files are in use from now on, for new connections.
    Replaced,
}

/// The keeper of our certificate: reads, checks, publishes.
#[derive(Debug)]
pub struct Credentials {
    dir: PathBuf,
    name: String,
    metrics: IdentityMetrics,
    in_use: Contents,
    /// What the last look failed on, so that it is reported once and not at every look.
    failure: Option<Failure>,
    current: watch::Sender<Arc<Snapshot>>,
}

/// What a look failed on.
#[derive(Debug, PartialEq, Eq)]
enum Failure {
    Unreadable,
    Bad(Contents),
}

impl Snapshot {
    fn new(material: Material, generation: u64) -> Result<Self, rustls::Error> {
        let Material { key, roots, own, not_after } = material;
        let server = tls::server_config(Arc::clone(&key), Arc::clone(&roots), Arc::clone(&own.trust_domain))?;
        Ok(Self { server: Arc::new(server), own, not_after, generation, key, roots })
    }

    /// For dialling the replica `expected`, and nobody else.
    pub fn client(&self, expected: &str) -> Result<Arc<ClientConfig>, rustls::Error> {
        let trust_domain = Arc::clone(&self.own.trust_domain);
        tls::client_config(Arc::clone(&self.key), Arc::clone(&self.roots), trust_domain, expected).map(Arc::new)
    }
}

impl Credentials {
    /// Reads the folder `dir` for the replica `name`. Without one good certificate there is no start.
    pub fn load(dir: impl Into<PathBuf>, name: &str, metrics: IdentityMetrics) -> Result<Self, LoadError> {
        let dir = dir.into();
        let in_use = Contents::read(&dir)?;
        let material = in_use.validate(name, SystemTime::now())?;
        let snapshot =
            Snapshot::new(material, 1).map_err(|source| LoadError::Untrusted { path: dir.clone(), source })?;
        announce(&snapshot, &metrics);
        let (current, _) = watch::channel(Arc::new(snapshot));
        Ok(Self { dir, name: name.to_owned(), metrics, in_use, failure: None, current })
    }

    /// The certificate in use, now and from now on.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.current.subscribe()
    }

    /// Looks at the folder now. An error leaves everything as it was; it is counted and logged once for the same files.
    pub fn reload(&mut self) -> Result<Reload, LoadError> {
        let contents = match Contents::read(&self.dir) {
            Ok(contents) if contents == self.in_use => {
                self.failure = None;
                return Ok(Reload::Unchanged);
            }
            Ok(contents) => contents,
            Err(error) => return Err(self.failed(Failure::Unreadable, error)),
        };
        // Files that failed before are tried again: a certificate that begins later becomes good by waiting.
        match self.replacement(&contents) {
            Ok(snapshot) => {
                announce(&snapshot, &self.metrics);
                self.metrics.reload_succeeded();
                self.in_use = contents;
                self.failure = None;
                self.current.send_replace(Arc::new(snapshot));
                Ok(Reload::Replaced)
            }
            Err(error) => Err(self.failed(Failure::Bad(contents), error)),
        }
    }

    /// Looks at the folder every `every` until `stop`. Owns the certificate while it runs.
    pub async fn run(mut self, every: Duration, stop: CancellationToken) {
        let mut looks = tokio::time::interval(every);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(looks.tick()).await.is_some() {
            // Reported inside; the next look is another chance.
            let _ = self.reload();
        }
    }

    fn replacement(&self, contents: &Contents) -> Result<Snapshot, LoadError> {
        let material = contents.validate(&self.name, SystemTime::now())?;
        let generation = self.current.borrow().generation + 1;
        Snapshot::new(material, generation).map_err(|source| LoadError::Untrusted { path: self.dir.clone(), source })
    }

    fn failed(&mut self, failure: Failure, error: LoadError) -> LoadError {
        if self.failure.as_ref() != Some(&failure) {
            self.metrics.reload_failed();
            warn!(%error, dir = %self.dir.display(), "changed certificate files not taken, the old certificate stays in use");
            self.failure = Some(failure);
        }
        error
    }
}

fn announce(snapshot: &Snapshot, metrics: &IdentityMetrics) {
    let expires = snapshot.not_after.duration_since(UNIX_EPOCH).unwrap_or_default();
    metrics.set_not_after(expires);
    let left = snapshot.not_after.duration_since(SystemTime::now()).unwrap_or_default();
    info!(
        identity = %snapshot.own,
        generation = snapshot.generation,
        hours_left = left.as_secs() / 3_600,
        "certificate in use"
    );
}
