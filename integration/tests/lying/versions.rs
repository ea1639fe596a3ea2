//! Releases beside each other: what a later one says and this one does not know, and what an earlier one does not offer, costs
//! neither a link nor an answer.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use heimdall_integration::cluster::{Cluster, Part};
use heimdall_integration::unary;
use heimdall_integration::upstream::Upstream;
use heimdall_proto::v1::purge_cache_request::What;
use heimdall_proto::v1::session_frame::Kind;
use heimdall_proto::v1::{
    AppliedPurge, CacheEntry, GetCacheEntryRequest, GetCacheEntryResponse, Hello, Lookup, MemberState, NodeState,
    Proceed, Publish, Purge, PurgeCacheRequest, PurgeId, PurgeLogEnd, Purges, ReplicaOutcome, Reply, SessionFrame,
    purges, reply,
};
use prost::Message as _;
use tokio::sync::mpsc::{self, Sender};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request};

use super::liar::{Liar, lie};
use super::lies::{LIAR, key, member};
use super::octets::{Octets, of_later, with_field};
use super::older::Older;
use super::scene::TOLD;

/// The service between members, as paths name it.
const PEERS: &str = "/heimdall.coordination.v1.ReplicaCoordination";

/// Numbers of kinds, and of values of enumerations, that no release has yet.
const LATER_KIND: u32 = 1_000;
const LATER_VALUE: i32 = 1_000;

/// Batches that may wait to be sent: more than there are in a test.
const UNSENT: usize = 64;

/// What the servers send as `SessionBatch`, as a generated type would be.
#[derive(Clone, PartialEq, prost::Message)]
struct Batch {
    #[prost(uint64, tag = 1)]
    number: u64,
    #[prost(uint64, tag = 2)]
    seen: u64,
    #[prost(message, repeated, tag = 3)]
    frames: Vec<SessionFrame>,
}

/// Fields of the messages that are written by hand.
const BATCH_FRAMES: u32 = 3;
const FRAME_HELLO: u32 = 2;
const FRAME_REPLY: u32 = 6;

async fn start() -> (Upstream, Cluster) {
    let upstream = Upstream::start().await.unwrap();
    let builder = Cluster::builder().replicas(LIAR).spares(1).long_budgets().replication_factor(2);
    let mut cluster = builder.start(&upstream).await.unwrap();
    cluster.set_members(&[0, 1, 2, LIAR]).unwrap();
    cluster.until("the member is known", async || member(&cluster, TOLD).await.is_some()).await.unwrap();
    (upstream, cluster)
}

/// A member of a later release, linked with one replica.
struct Later {
    said: Sender<Bytes>,
    batches: u64,
    heard: Arc<Mutex<Vec<SessionFrame>>>,
    reader: JoinHandle<()>,
}

impl Later {
    async fn join(channel: Channel) -> Self {
        let (said, outgoing) = mpsc::channel(UNSENT);
        let heard = Arc::<Mutex<Vec<SessionFrame>>>::default();
        let mut later = Self { said, batches: 0, heard: Arc::clone(&heard), reader: tokio::spawn(async {}) };
        let mut call = Grpc::new(channel);
        call.ready().await.unwrap();
        let path = PathAndQuery::from_maybe_shared(format!("{PEERS}/Session")).unwrap();
        let request = Request::new(ReceiverStream::new(outgoing));
        let mut incoming = call.streaming(request, path, Octets).await.unwrap().into_inner();
        later.reader = tokio::spawn(async move {
            while let Ok(Some(batch)) = incoming.message().await {
                heard.lock().unwrap().extend(Batch::decode(batch).unwrap().frames);
            }
        });
        later
    }

    /// Says some frames, each with fields that nobody knows around it.
    fn say(&mut self, frames: &[Vec<u8>]) {
        self.batches += 1;
        let batch = of_later(&Batch { number: self.batches, seen: 0, frames: Vec::new() });
        let batch = frames.iter().fold(batch, |batch, frame| with_field(&batch, BATCH_FRAMES, frame));
        self.said.try_send(batch.into()).unwrap();
    }

    /// What was heard that `wanted` takes.
    fn heard<T>(&self, wanted: impl Fn(&SessionFrame) -> Option<T>) -> Vec<T> {
        self.heard.lock().unwrap().iter().filter_map(wanted).collect()
    }

    /// What was answered to a request.
    async fn answer(&self, cluster: &Cluster, id: u64) -> reply::Kind {
        let answers = || {
            self.heard(|frame| match &frame.kind {
                Some(Kind::Reply(reply)) if frame.id == id => reply.kind.clone(),
                _ => None,
            })
        };
        cluster.until("an answer", async || !answers().is_empty()).await.unwrap();
        answers().remove(0)
    }
}

fn frame(id: u64, kind: Kind) -> Vec<u8> {
    of_later(&SessionFrame { id, kind: Some(kind) })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_later_release_says_is_survived() {
    let (upstream, cluster) = start().await;
    let stranger = Liar::of(&cluster, LIAR, |_: &_, _: &_| {});
    let mut later = Later::join(stranger.channel(&cluster, TOLD).await).await;
    let unreadable = async || {
        let metrics = cluster.metrics(TOLD, Part::Agent).await.unwrap();
        metrics.sum("heimdall_agent_frames_unreadable_total", &[]) as usize
    };
    // Unknown abilities, fields, and a condition that this release has no word for.
    let hello = of_later(&Hello {
        protocol_version: 1,
        name: cluster.replica(LIAR).layout.name.clone(),
        incarnation: 7,
        features: vec!["of-a-later-release".to_owned()],
        state: Some(NodeState { condition: LATER_VALUE, reasons: vec![LATER_VALUE] }),
        ..Hello::default()
    });
    // Each side says first what it has purged: nothing.
    let nothing = Purges { kind: Some(purges::Kind::End(PurgeLogEnd::default())) };
    later.say(&[
        with_field(&SessionFrame::default().encode_to_vec(), FRAME_HELLO, &hello),
        frame(0, Kind::Purges(nothing)),
    ]);
    cluster.sees(TOLD, LIAR, true).await.unwrap();
    assert_eq!(member(&cluster, TOLD).await.unwrap().state(), MemberState::Alive, "taken for a healthy one");

    // Kinds that it does not know are counted and skipped, and the frames beside them are read.
    let name = cluster.name_ordered(&[TOLD, 1], "later");
    let lookup = Lookup { key: key(&name).to_bytes(), deadline_ms: 4_000, mode: LATER_VALUE, ..Lookup::default() };
    later.say(&[
        with_field(&SessionFrame::default().encode_to_vec(), LATER_KIND, b"news"),
        with_field(&SessionFrame { id: 1, kind: None }.encode_to_vec(), LATER_KIND, b"a question"),
        frame(3, Kind::Lookup(lookup.clone())),
    ]);
    // A mode that it does not know is answered like a look: there is nothing, and no lease.
    assert!(matches!(later.answer(&cluster, 3).await, reply::Kind::Proceed(_)));
    assert_eq!(unreadable().await, 2);

    // A level that it does not know is its own default.
    let entry = lie(&key(&name));
    let entry = CacheEntry { packet: entry.packet, age_ms: 0, lifetime_ms: 300_000, purges: 0 };
    let publish = Publish { key: key(&name).to_bytes(), entry: Some(entry), token: None, level: LATER_VALUE };
    later.say(&[frame(5, Kind::Publish(publish))]);
    assert!(matches!(later.answer(&cluster, 5).await, reply::Kind::Stored(_)));
    later.say(&[frame(7, Kind::Lookup(lookup))]);
    assert!(matches!(later.answer(&cluster, 7).await, reply::Kind::Entry(_)));

    // A reply of an unknown kind is no answer: the one after it is.
    let owned = cluster.name_ordered(&[LIAR, TOLD], "later-owned");
    let asking = tokio::spawn({
        let (client, owned) = (cluster.client(TOLD), owned.clone());
        async move { client.ask_address(&owned).await }
    });
    let asked = || {
        later.heard(|frame| match &frame.kind {
            Some(Kind::Lookup(lookup)) if lookup.key == key(&owned).to_bytes() => Some(frame.id),
            _ => None,
        })
    };
    cluster.until("the member is asked", async || !asked().is_empty()).await.unwrap();
    let id = asked().remove(0);
    let unknown = with_field(&[], LATER_KIND, b"an answer");
    let proceed = of_later(&Reply { kind: Some(reply::Kind::Proceed(Proceed {})) });
    let reply = |reply: &[u8]| with_field(&SessionFrame { id, kind: None }.encode_to_vec(), FRAME_REPLY, reply);
    later.say(&[reply(&unknown), reply(&proceed)]);
    asking.await.unwrap().unwrap();
    assert_eq!(unreadable().await, 3);

    // A purge of an unknown scope is one of everything.
    cluster.replicated(TOLD, &name, 2).await.unwrap();
    let id = PurgeId { origin: "later".to_owned(), incarnation: 7, sequence: 1 };
    let purge = Purge { id: Some(id), ..Purge::default() };
    let next = purges::Kind::Next(AppliedPurge { position: 1, purge: Some(purge) });
    later.say(&[frame(0, Kind::Purges(Purges { kind: Some(next) }))]);
    cluster
        .until("everything is purged", async || {
            let located = cluster.locate(1, &name).await.unwrap();
            located.holdings.iter().all(|holding| !holding.found)
        })
        .await
        .unwrap();

    // Calls with unknown fields are answered, and calls that this release does not offer are told just that.
    let mut call = Grpc::new(stranger.channel(&cluster, TOLD).await);
    let request: Bytes = of_later(&GetCacheEntryRequest { key: unary::key(&name) }).into();
    for (method, wanted) in [("GetCacheEntry", Code::Ok), ("ForeseeEntry", Code::Unimplemented)] {
        call.ready().await.unwrap();
        let path = PathAndQuery::from_maybe_shared(format!("{PEERS}/{method}")).unwrap();
        let answer = call.unary(Request::new(request.clone()), path, Octets).await;
        let code = answer.as_ref().map_or_else(tonic::Status::code, |_| Code::Ok);
        assert_eq!(code, wanted, "{method}: {answer:?}");
        if let Ok(answer) = answer {
            assert!(!GetCacheEntryResponse::decode(answer.into_inner()).unwrap().found, "it was purged");
        }
    }

    // All of it on one link, and nobody lost an answer.
    assert!(!later.reader.is_finished(), "the link has ended");
    for replica in 0..LIAR {
        cluster.client(replica).ask_address(&name).await.unwrap();
    }
    assert_eq!(upstream.journal().count(&name, "A").resolutions, 1);
    cluster.shut_down().await.unwrap();
}

/// Names that clients ask for, while there is a member of an earlier release.
const NAMES: usize = 60;

async fn all_are_answered(cluster: &Cluster, label: &str) {
    for number in 0..NAMES {
        let name = format!("{label}-{number}.example.");
        for replica in 0..LIAR {
            cluster.client(replica).ask_address(&name).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_offers_less_costs_no_answer() {
    let (upstream, mut cluster) = start().await;
    let address: SocketAddr = cluster.replica(LIAR).layout.peer;
    let older = Older::serve(&cluster, LIAR, address).await;
    for replica in 0..LIAR {
        cluster.sees(replica, LIAR, true).await.unwrap();
    }
    all_are_answered(&cluster, "older").await;
    assert!(older.asked() > 0, "names that it owns were asked of it");

    // It never heard of purges: all the others have done it, and one fetch brings each name back.
    let name = cluster.name_ordered(&[TOLD, 1], "older-purged");
    cluster.client(TOLD).ask_address(&name).await.unwrap();
    let request = PurgeCacheRequest { what: Some(What::Name(name.clone())), ..PurgeCacheRequest::default() };
    let results = cluster.agent(TOLD).await.unwrap().purge_cache(request).await.unwrap().into_inner().results;
    for result in &results {
        let is_older = result.replica == cluster.replica(LIAR).layout.name;
        // Nothing that it says shows that it has heard of it.
        let wanted = if is_older { ReplicaOutcome::NotReached } else { ReplicaOutcome::Done };
        assert_eq!(result.outcome(), wanted, "{results:?}");
    }
    for replica in 0..LIAR {
        cluster.client(replica).ask_address(&name).await.unwrap();
    }
    assert_eq!(upstream.journal().count(&name, "A").resolutions, 2);

    // A replica that starts asks it for its share of the entries, hears that this is not offered, and is ready all the same.
    cluster.kill(TOLD, Part::Agent).await.unwrap();
    cluster.start(TOLD, Part::Agent).unwrap();
    cluster.ready(TOLD, Part::Agent).await.unwrap();
    cluster.whole().await.unwrap();
    cluster.sees(TOLD, LIAR, true).await.unwrap();
    assert!(older.refused().iter().any(|path| path.ends_with("/TransferEntries")), "{:?}", older.refused());
    all_are_answered(&cluster, "afterwards").await;
    for replica in 0..LIAR {
        cluster.sees(replica, LIAR, true).await.unwrap();
    }
    cluster.shut_down().await.unwrap();
}
