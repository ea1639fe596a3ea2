//! A member of the cluster with a certificate of its own, whose every word the test decides.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use heimdall_agent::identity::{Connector, Credentials, IdentityMetrics};
use heimdall_agent::network::Machine;
use heimdall_integration::cluster::Cluster;
use heimdall_proto::v1::replica_coordination_client::ReplicaCoordinationClient;
use heimdall_shared::clock::Moment;
use heimdall_shared::entry::Entry;
use heimdall_shared::key::Key;
use heimdall_shared::link::{Beats, Full, Hello, Link, Lookup, LookupMode, Message};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::lies::key;

/// The address that it gives for every name.
pub(crate) const LIE: [u8; 4] = [203, 0, 113, 66];

/// What it does with a message of a peer; whatever it says goes over the link on which it heard it.
pub(crate) trait Manner: Fn(&Link, &Message) + Send + Sync + 'static {}

impl<F: Fn(&Link, &Message) + Send + Sync + 'static> Manner for F {}

/// The member, linked with some of the others until it is dropped.
pub(crate) struct Liar {
    name: String,
    connector: Connector,
    manner: Arc<dyn Manner>,
    beats: Beats,
    links: Vec<(usize, Arc<Link>)>,
    heard: Arc<Mutex<Vec<(usize, Message)>>>,
    readers: JoinSet<()>,
}

impl Liar {
    /// The replica of this index, which nobody has started, under its own certificate.
    pub(crate) fn of(cluster: &Cluster, index: usize, manner: impl Manner) -> Self {
        let layout = &cluster.replica(index).layout;
        Self::with(&layout.tls, &layout.name, manner)
    }

    /// Somebody of this name with the certificate in a folder.
    pub(crate) fn with(tls: &Path, name: &str, manner: impl Manner) -> Self {
        let credentials = Credentials::load(tls, name, IdentityMetrics::default()).unwrap();
        let connector = Connector::new(Arc::new(Machine), credentials.subscribe(), IdentityMetrics::default());
        let (name, manner) = (name.to_owned(), Arc::new(manner));
        let (beats, mut readers) = (Beats::default(), JoinSet::new());
        readers.spawn(beats.clone().run(CancellationToken::new()));
        Self { name, connector, manner, beats, links: Vec::new(), heard: Arc::default(), readers }
    }

    /// A connection to a replica.
    pub(crate) async fn channel(&self, cluster: &Cluster, index: usize) -> Channel {
        let layout = &cluster.replica(index).layout;
        self.connector.channel(layout.peer, &layout.name).await.unwrap()
    }

    /// Says Hello to a replica, and listens from then on. What became of it, the replica's members show.
    pub(crate) async fn join(&mut self, cluster: &Cluster, index: usize) {
        let link = Link::new(Moment::now(), &self.beats);
        let hello = Hello::of(self.name.as_str().into(), 7);
        link.push(Message::Hello(hello)).unwrap();
        let mut client = ReplicaCoordinationClient::new(self.channel(cluster, index).await);
        let mut incoming = client.session(link.outgoing()).await.unwrap().into_inner();
        let (manner, heard) = (Arc::clone(&self.manner), Arc::clone(&self.heard));
        self.links.push((index, Arc::clone(&link)));
        self.readers.spawn(async move {
            while let Ok(Some(batch)) = incoming.message().await {
                for message in link.receive(batch, Moment::now()) {
                    manner(&link, &message);
                    heard.lock().unwrap().push((index, message));
                }
            }
            link.close();
        });
    }

    /// Asks a replica for a name, as a member that waits if somebody holds the lease.
    pub(crate) fn ask_for(&self, replica: usize, id: u64, name: &str) -> Result<(), Full> {
        let lookup = Lookup {
            key: key(name),
            deadline: Duration::from_secs(4),
            skipped: Vec::new(),
            stream: 1,
            trace: None,
            mode: LookupMode::Join,
        };
        self.link(replica).push(Message::Lookup { id, lookup })
    }

    /// The link to a replica.
    pub(crate) fn link(&self, index: usize) -> &Arc<Link> {
        &self.links.iter().rev().find(|(other, _)| *other == index).expect("it must have joined").1
    }

    /// What replica `index` said so far that `wanted` takes.
    pub(crate) fn heard<T>(&self, index: usize, wanted: impl Fn(&Message) -> Option<T>) -> Vec<T> {
        let heard = self.heard.lock().unwrap();
        heard.iter().filter(|(from, _)| *from == index).filter_map(|(_, message)| wanted(message)).collect()
    }

    /// A unary client of a replica.
    pub(crate) async fn client(&self, cluster: &Cluster, index: usize) -> ReplicaCoordinationClient<Channel> {
        ReplicaCoordinationClient::new(self.channel(cluster, index).await)
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.links.iter().for_each(|(_, link)| link.close());
    }
}

/// An answer in normal form with one address and this TTL.
pub(crate) fn packet(key: &Key, address: [u8; 4], ttl: u32) -> Bytes {
    let mut packet = vec![0, 0, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
    packet.extend_from_slice(key.name());
    packet.extend_from_slice(&[0, 1, 0, 1, 0xC0, 0x0C, 0, 1, 0, 1]);
    packet.extend_from_slice(&ttl.to_be_bytes());
    packet.extend_from_slice(&[0, 4]);
    packet.extend_from_slice(&address);
    packet.into()
}

/// A fresh entry with the lie.
pub(crate) fn lie(key: &Key) -> Entry {
    Entry { packet: packet(key, LIE, 300), born: Moment::now(), lifetime: Duration::from_secs(300), since: 0 }
}
