//! What a Kubernetes Service does for clients: it sends them to replicas that are ready, and for a moment more to one that has
//! just said that it leaves.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::client::Client;
use crate::cluster::{Cluster, Part};
use crate::http;
use crate::process::Signal;

/// Clients hear so much later that a replica is not ready any more: what endpoints take to reach a node.
const LAG: Duration = Duration::from_millis(200);

/// A leaving dns-server must take queries for longer than that: its option, and what a busy machine can bear.
pub const GRACE: (&str, &str) = ("--grace", "600ms");

/// The replicas that clients are sent to. Clones are the same Service.
#[derive(Clone)]
pub struct Service(Arc<Mutex<Vec<(usize, Client)>>>);

impl Service {
    /// One in front of `replicas`.
    pub fn new(cluster: &Cluster, replicas: impl IntoIterator<Item = usize>) -> Self {
        let ready = replicas.into_iter().map(|replica| (replica, cluster.client(replica))).collect();
        Self(Arc::new(Mutex::new(ready)))
    }

    /// Where the next question goes: to one of them at random.
    ///
    /// # Panics
    /// None is left.
    pub fn pick(&self) -> (usize, Client) {
        let ready = self.ready();
        ready[rand::random_range(0..ready.len())]
    }

    /// Nobody is sent to `replica` any more.
    pub fn leaves(&self, replica: usize) {
        self.ready().retain(|(ready, _)| *ready != replica);
    }

    /// Clients are sent to `replica` from now on.
    pub fn joins(&self, cluster: &Cluster, replica: usize) {
        self.ready().push((replica, cluster.client(replica)));
    }

    /// Restarts a replica behind this Service, as an update rolls over it: both processes are told to end, clients follow,
    /// and come back when it is ready and each agent sees every other one.
    ///
    /// # Errors
    /// A process does not end well, or does not become ready again.
    pub async fn restart(&self, cluster: &mut Cluster, replica: usize) -> Result<()> {
        for part in [Part::Dns, Part::Agent] {
            cluster.signal(replica, part, Signal::SIGTERM);
        }
        let address = cluster.replica(replica).layout.dns_http;
        cluster
            .until("the drain to begin", async || !matches!(http::get(address, "/readyz").await, Ok((200, _))))
            .await?;
        // It still answers, and is still asked.
        tokio::time::sleep(LAG).await;
        self.leaves(replica);
        for part in [Part::Dns, Part::Agent] {
            let status = cluster.ended(replica, part).await?;
            ensure!(status.success(), "{part:?} of {replica} ended with {status}");
        }
        cluster.start_replica(replica).await?;
        cluster.whole().await?;
        self.joins(cluster, replica);
        Ok(())
    }

    fn ready(&self) -> MutexGuard<'_, Vec<(usize, Client)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
