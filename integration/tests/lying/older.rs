//! A member of an earlier release, which others dial: it takes sessions, answers questions there, and knows of nothing else.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use heimdall_agent::identity::{Acceptor, Credentials, IdentityMetrics};
use heimdall_integration::cluster::Cluster;
use heimdall_proto::v1::SessionBatch;
use heimdall_shared::clock::Moment;
use heimdall_shared::link::{Beats, Hello, Link, Message, Reply};
use prost::Message as _;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use super::octets::Octets;

/// The member, until it is dropped.
pub(crate) struct Older {
    known: Arc<Known>,
    _stops: DropGuard,
}

/// What is seen of it.
struct Known {
    name: String,
    asked: AtomicUsize,
    refused: Mutex<Vec<String>>,
}

impl Older {
    /// Listens where the others look for replica `index`, which nobody has started, with its certificate.
    pub(crate) async fn serve(cluster: &Cluster, index: usize, address: SocketAddr) -> Self {
        let layout = &cluster.replica(index).layout;
        let credentials = Credentials::load(&layout.tls, &layout.name, IdentityMetrics::default()).unwrap();
        let listener = TcpListener::bind(address).await.unwrap();
        let (acceptor, accepted) =
            Acceptor::new(Arc::new(listener), credentials.subscribe(), IdentityMetrics::default());
        let stop = CancellationToken::new();
        tokio::spawn(acceptor.run(stop.clone()));
        let known =
            Arc::new(Known { name: layout.name.clone(), asked: AtomicUsize::new(0), refused: Mutex::default() });
        let service = Calls(Arc::clone(&known));
        let end = stop.clone().cancelled_owned();
        tokio::spawn(async move {
            // Whoever the certificate belongs to was said in the handshake; the keeper of it must outlive the server.
            let _credentials = credentials;
            Server::builder().add_service(service).serve_with_incoming_shutdown(accepted, end).await
        });
        Self { known, _stops: stop.drop_guard() }
    }

    /// Questions that it was asked.
    pub(crate) fn asked(&self) -> usize {
        self.known.asked.load(Ordering::Relaxed)
    }

    /// Paths of the calls that it does not offer.
    pub(crate) fn refused(&self) -> Vec<String> {
        self.known.refused.lock().unwrap().clone()
    }
}

/// Its calls: a session, and UNIMPLEMENTED.
#[derive(Clone)]
struct Calls(Arc<Known>);

impl NamedService for Calls {
    const NAME: &'static str = "heimdall.coordination.v1.ReplicaCoordination";
}

impl Service<http::Request<Body>> for Calls {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let path = request.uri().path().to_owned();
        if path.ends_with("/Session") {
            let session = Session(Arc::clone(&self.0));
            return Box::pin(async move { Ok(Grpc::new(Octets).streaming(session, request).await) });
        }
        self.0.refused.lock().unwrap().push(path);
        Box::pin(std::future::ready(Ok(Status::unimplemented("it is not offered here").into_http())))
    }
}

/// A session: it answers what it is asked with "just ask", and skips whatever else is said.
struct Session(Arc<Known>);

type Batches = std::pin::Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

impl StreamingService<Bytes> for Session {
    type Response = Bytes;
    type ResponseStream = Batches;
    type Future = BoxFuture<Response<Batches>, Status>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let (known, mut incoming) = (Arc::clone(&self.0), request.into_inner());
        let beats = Beats::default();
        let link = Link::new(Moment::now(), &beats);
        let hello = Hello::of(known.name.as_str().into(), 5);
        link.push(Message::Hello(hello)).unwrap();
        let outgoing = link.outgoing().map(|batch| Ok(Bytes::from(batch.encode_to_vec())));
        let stop = CancellationToken::new();
        tokio::spawn(beats.run(stop.clone()));
        tokio::spawn(async move {
            let _stop = stop.drop_guard();
            while let Ok(Some(batch)) = incoming.message().await {
                for message in link.receive(SessionBatch::decode(batch).unwrap(), Moment::now()) {
                    if let Message::Lookup { id, .. } = message {
                        known.asked.fetch_add(1, Ordering::Relaxed);
                        let _ = link.push(Message::Reply { id, reply: Reply::Proceed });
                    }
                }
            }
            link.close();
        });
        Box::pin(std::future::ready(Ok(Response::new(Box::pin(outgoing) as Batches))))
    }
}
