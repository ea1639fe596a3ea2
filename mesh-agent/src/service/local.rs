//! The local surface: `MeshAgent` on the Unix socket. Who may connect was decided by the socket's mode and the peer's
//! credentials.

use std::sync::Arc;

use heimdall_proto::v1 as pb;
use heimdall_proto::v1::mesh_agent_server::MeshAgent;
use heimdall_shared::clock::Moment;
use heimdall_shared::link::Link;
use tokio_stream::StreamExt as _;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use super::peer::Batches;
use super::{Caller, Operations, UpdateStream, trace_of};
use crate::session;

/// Serves this replica's dns-server, and whoever may open the socket.
#[derive(Debug)]
pub struct LocalService {
    operations: Operations,
    tasks: TaskTracker,
}

impl LocalService {
    /// A service whose session readers run in `tasks`.
    pub const fn new(operations: Operations, tasks: TaskTracker) -> Self {
        Self { operations, tasks }
    }
}

#[tonic::async_trait]
impl MeshAgent for LocalService {
    type SessionStream = Batches;
    type StreamCacheUpdatesStream = UpdateStream;

    async fn session(&self, request: Request<Streaming<pb::SessionBatch>>) -> Result<Response<Batches>, Status> {
        let agent = Arc::clone(self.operations.agent());
        let link = Link::new(Moment::now(), &agent.beats);
        let outgoing = link.outgoing().map(Ok);
        self.tasks.spawn(session::local::serve(agent, link, request.into_inner(), self.tasks.clone()));
        Ok(Response::new(Box::pin(outgoing)))
    }

    async fn get_cache_entry(
        &self,
        request: Request<pb::GetCacheEntryRequest>,
    ) -> Result<Response<pb::GetCacheEntryResponse>, Status> {
        self.operations.get(Caller::Local, request.into_inner()).await.map(Response::new)
    }

    async fn set_cache_entry(
        &self,
        request: Request<pb::SetCacheEntryRequest>,
    ) -> Result<Response<pb::SetCacheEntryResponse>, Status> {
        self.operations.set(Caller::Local, request.into_inner()).await.map(Response::new)
    }

    async fn acquire_query_lock(
        &self,
        request: Request<pb::AcquireQueryLockRequest>,
    ) -> Result<Response<pb::AcquireQueryLockResponse>, Status> {
        let trace = trace_of(request.metadata());
        self.operations.acquire(Caller::Local, request.into_inner(), trace).await.map(Response::new)
    }

    async fn wait_for_result(
        &self,
        request: Request<pb::WaitForResultRequest>,
    ) -> Result<Response<pb::WaitForResultResponse>, Status> {
        self.operations.wait(Caller::Local, request.into_inner()).await.map(Response::new)
    }

    async fn release_query_lock(
        &self,
        request: Request<pb::ReleaseQueryLockRequest>,
    ) -> Result<Response<pb::ReleaseQueryLockResponse>, Status> {
        self.operations.release(Caller::Local, request.into_inner()).await.map(Response::new)
    }

    async fn locate_key(
        &self,
        request: Request<pb::LocateKeyRequest>,
    ) -> Result<Response<pb::LocateKeyResponse>, Status> {
        self.operations.locate(Caller::Local, request.into_inner()).await.map(Response::new)
    }

    async fn list_members(
        &self,
        _request: Request<pb::ListMembersRequest>,
    ) -> Result<Response<pb::ListMembersResponse>, Status> {
        Ok(Response::new(self.operations.members()))
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
