//! The peer surface: `ReplicaCoordination` over mTLS. Who calls is proven by the certificate, and what he may call was
//! decided before these methods run.

use std::pin::Pin;
use std::sync::Arc;

use heimdall_proto::v1 as pb;
use heimdall_proto::v1::replica_coordination_server::ReplicaCoordination;
use heimdall_shared::clock::Moment;
use heimdall_shared::link::Link;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};
use tracing::warn;

use super::{Caller, Operations, UpdateStream, trace_of};
use crate::identity::{PeerInfo, Role};
use crate::session;
use crate::transfer::{self, serve::Giving};

/// The batches that this side sends.
pub type Batches = Pin<Box<dyn Stream<Item = Result<pb::SessionBatch, Status>> + Send>>;

/// The chunks of a transfer.
pub type Chunks = ReceiverStream<transfer::serve::Chunk>;

/// Serves peers and operators.
#[derive(Debug)]
pub struct PeerService {
    operations: Operations,
    tasks: TaskTracker,
    giving: Giving,
}

impl PeerService {
    /// A service whose session readers run in `tasks`.
    pub fn new(operations: Operations, tasks: TaskTracker) -> Self {
        Self { operations, tasks, giving: Giving::default() }
    }

    /// Who calls. A member that is cut off is told so.
    fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let caller = caller(request)?;
        if let Caller::Replica(name) = &caller {
            session::peer::cut_off(self.operations.agent(), name)
                .map_err(|refusal| Status::permission_denied(refusal.to_string()))?;
        }
        Ok(caller)
    }
}

#[tonic::async_trait]
impl ReplicaCoordination for PeerService {
    type SessionStream = Batches;
    type TransferEntriesStream = Chunks;
    type StreamCacheUpdatesStream = UpdateStream;

    async fn session(&self, request: Request<Streaming<pb::SessionBatch>>) -> Result<Response<Batches>, Status> {
        let info = peer_info(&request)?;
        let Role::Replica(member) = &info.identity.role else {
            return Err(Status::permission_denied("only a replica opens a session"));
        };
        let connection =
            session::peer::Connection { member: Arc::clone(member), address: info.address, dialled: false };
        let agent = Arc::clone(self.operations.agent());
        let link = Link::new(Moment::now(), &agent.beats);
        let outgoing = link.outgoing().map(Ok);
        // The handler must return before it reads: the other side sends nothing before it has our headers.
        self.tasks.spawn(async move {
            let address = connection.address;
            if let Err(refusal) = session::peer::serve(Arc::clone(&agent), link, request.into_inner(), connection).await
            {
                agent.metrics.refused_streams.inc();
                warn!(%address, %refusal, "a stream was refused");
            }
        });
        Ok(Response::new(Box::pin(outgoing)))
    }

    async fn get_cache_entry(
        &self,
        request: Request<pb::GetCacheEntryRequest>,
    ) -> Result<Response<pb::GetCacheEntryResponse>, Status> {
        let caller = self.caller(&request)?;
        self.operations.get(caller, request.into_inner()).await.map(Response::new)
    }

    async fn set_cache_entry(
        &self,
        request: Request<pb::SetCacheEntryRequest>,
    ) -> Result<Response<pb::SetCacheEntryResponse>, Status> {
        let caller = self.caller(&request)?;
        self.operations.set(caller, request.into_inner()).await.map(Response::new)
    }

    async fn acquire_query_lock(
        &self,
        request: Request<pb::AcquireQueryLockRequest>,
    ) -> Result<Response<pb::AcquireQueryLockResponse>, Status> {
        let (caller, trace) = (self.caller(&request)?, trace_of(request.metadata()));
        self.operations.acquire(caller, request.into_inner(), trace).await.map(Response::new)
    }

    async fn wait_for_result(
        &self,
        request: Request<pb::WaitForResultRequest>,
    ) -> Result<Response<pb::WaitForResultResponse>, Status> {
        let caller = self.caller(&request)?;
        self.operations.wait(caller, request.into_inner()).await.map(Response::new)
    }

    async fn release_query_lock(
        &self,
        request: Request<pb::ReleaseQueryLockRequest>,
    ) -> Result<Response<pb::ReleaseQueryLockResponse>, Status> {
        let caller = self.caller(&request)?;
        self.operations.release(caller, request.into_inner()).await.map(Response::new)
    }

    async fn locate_key(
        &self,
        request: Request<pb::LocateKeyRequest>,
    ) -> Result<Response<pb::LocateKeyResponse>, Status> {
        let caller = self.caller(&request)?;
        self.operations.locate(caller, request.into_inner()).await.map(Response::new)
    }

    async fn list_members(
        &self,
        _request: Request<pb::ListMembersRequest>,
    ) -> Result<Response<pb::ListMembersResponse>, Status> {
        Ok(Response::new(self.operations.members()))
    }

    async fn transfer_entries(
        &self,
        request: Request<Streaming<pb::TransferEntriesRequest>>,
    ) -> Result<Response<Chunks>, Status> {
        let (place, agent) = (self.giving.place()?, Arc::clone(self.operations.agent()));
        let (sender, chunks) = transfer::serve::chunks();
        // As with sessions: the other side asks for nothing before it has our headers.
        self.tasks.spawn(transfer::serve::give(agent, request.into_inner(), sender, place));
        Ok(Response::new(chunks))
    }

    async fn purge_cache(
        &self,
        request: Request<pb::PurgeCacheRequest>,
    ) -> Result<Response<pb::PurgeCacheResponse>, Status> {
        self.operations.purge(request.into_inner()).await.map(Response::new)
    }

    async fn inject_entry(
        &self,
        request: Request<pb::InjectEntryRequest>,
    ) -> Result<Response<pb::InjectEntryResponse>, Status> {
        self.operations.inject(request.into_inner()).await.map(Response::new)
    }

    async fn stream_cache_updates(
        &self,
        request: Request<pb::CacheStreamRequest>,
    ) -> Result<Response<UpdateStream>, Status> {
        let (following, updates) = self.operations.follow(request.get_ref())?;
        self.tasks.spawn(following);
        Ok(Response::new(updates))
    }

    async fn hand_off(&self, request: Request<pb::HandOffRequest>) -> Result<Response<pb::HandOffResponse>, Status> {
        Ok(Response::new(self.operations.hand_off(request.into_inner()).await))
    }
}

fn peer_info<T>(request: &Request<T>) -> Result<&PeerInfo, Status> {
    request.extensions().get::<PeerInfo>().ok_or_else(|| Status::unauthenticated("the connection has no certificate"))
}

fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    match &peer_info(request)?.identity.role {
        Role::Replica(name) => Ok(Caller::Replica(Arc::clone(name))),
        Role::Operator(_) => Ok(Caller::Operator),
        // Its handshake should have failed.
        Role::Other(path) => Err(Status::permission_denied(format!("{path:?} is neither a replica nor an operator"))),
    }
}
