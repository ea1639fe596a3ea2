//! Many clients that ask the same at the same time.

use std::time::Duration;

use anyhow::Result;
use heimdall_shared::clock::Moment;
use tokio::task::JoinHandle;

use crate::cluster::Cluster;
use crate::wire::Message;

/// One client's experience.
#[derive(Debug)]
pub struct Told {
    /// The replica that it asked.
    pub replica: usize,
    /// How long it waited.
    pub after: Duration,
    /// What it got.
    pub reply: Result<Message>,
}

/// Clients that have asked and wait.
pub struct Crowd(Vec<JoinHandle<Told>>);

impl Crowd {
    /// Lets `clients` clients of each of `replicas` ask for the address of `name`.
    pub fn ask(cluster: &Cluster, replicas: &[usize], clients: usize, name: &str) -> Self {
        let each = replicas.iter().flat_map(|&replica| std::iter::repeat_n(replica, clients));
        let asked = each.map(|replica| {
            let (client, name) = (cluster.client(replica), name.to_owned());
            tokio::spawn(async move {
                let begun = Moment::now();
                let reply = client.ask_address(&name).await;
                Told { replica, after: Moment::now().since(begun), reply }
            })
        });
        Self(asked.collect())
    }

    /// Waits until each client has been told something.
    ///
    /// # Panics
    /// A client's task panicked.
    pub async fn told(self) -> Vec<Told> {
        let mut told = Vec::with_capacity(self.0.len());
        for client in self.0 {
            told.push(client.await.expect("a client never panics"));
        }
        told
    }

    /// Waits until each client has its answer; gives the longest wait.
    ///
    /// # Panics
    /// A client got no answer, or a wrong one.
    pub async fn all_answered(self) -> Duration {
        let told = self.told().await;
        for Told { replica, reply, .. } in &told {
            if let Err(error) = reply {
                panic!("a client of replica {replica}: {error:#}");
            }
        }
        told.into_iter().map(|told| told.after).max().unwrap_or_default()
    }

    /// Stops caring.
    pub fn leave(self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}
