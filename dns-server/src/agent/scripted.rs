//! An agent of tests: a real gRPC server on a Unix socket whose words a script chooses.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use heimdall_proto::v1 as pb;
use heimdall_proto::v1::mesh_agent_server::{MeshAgent, MeshAgentServer};
use heimdall_shared::clock::Moment;
use heimdall_shared::link::{Beats, Hello, Link, Lookup, Message, PROTOCOL_VERSION, Reply};
use heimdall_shared::token::Token;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// A test that waits longer for an event hangs for want of it.
const PATIENCE: Duration = Duration::from_secs(20);

/// The server, and the sessions that were opened on it.
pub(crate) struct ScriptedAgent {
    folder: tempfile::TempDir,
    sessions: mpsc::Receiver<Session>,
    /// A runtime of its own, so that it can end as a process does, with everything that it had open.
    process: Option<Runtime>,
}

/// One stream of a dns-server worker.
pub(crate) struct Session {
    pub(crate) link: Arc<Link>,
    messages: mpsc::Receiver<Message>,
    /// What the dns-server says of purges, which few scripts are about.
    pub(crate) purges: mpsc::Receiver<Message>,
    frozen: watch::Sender<bool>,
}

impl ScriptedAgent {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (process, sessions) = serve(&folder.path().join("agent.sock"));
        Self { folder, sessions, process: Some(process) }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("agent.sock")
    }

    /// Ends it as a crash would: every stream breaks.
    pub(crate) fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.shutdown_background();
        }
    }

    /// Starts it again after a kill.
    pub(crate) fn restart(&mut self) {
        std::fs::remove_file(self.socket()).unwrap();
        let (process, sessions) = serve(&self.socket());
        (self.process, self.sessions) = (Some(process), sessions);
    }

    /// The next stream, after its Hello.
    pub(crate) async fn session(&mut self) -> Session {
        let mut session = soon(self.sessions.recv()).await.unwrap();
        let Message::Hello(hello) = session.message().await else { panic!("no Hello") };
        assert_eq!(hello.version, PROTOCOL_VERSION);
        session
    }
}

impl Drop for ScriptedAgent {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Session {
    /// The next message of the dns-server.
    pub(crate) async fn message(&mut self) -> Message {
        soon(self.messages.recv()).await.expect("the stream must be open")
    }

    /// The next lookup and its id. Nothing else may come before it.
    pub(crate) async fn lookup(&mut self) -> (u64, Lookup) {
        match self.message().await {
            Message::Lookup { id, lookup } => (id, lookup),
            other => panic!("{other:?} instead of a lookup"),
        }
    }

    /// What arrived so far.
    pub(crate) fn so_far(&mut self) -> Vec<Message> {
        std::iter::from_fn(|| self.messages.try_recv().ok()).collect()
    }

    /// Whether the dns-server has ended its side.
    pub(crate) async fn rest(&mut self) -> Vec<Message> {
        let mut rest = Vec::new();
        while let Some(message) = soon(self.messages.recv()).await {
            rest.push(message);
        }
        rest
    }

    pub(crate) fn reply(&self, id: u64, reply: Reply) {
        self.link.push(Message::Reply { id, reply }).unwrap();
    }

    /// Stops it from saying anything, as SIGSTOP does; it still hears.
    pub(crate) fn freeze(&self, frozen: bool) {
        self.frozen.send_replace(frozen);
    }
}

pub(crate) fn token(counter: u64) -> Token {
    Token { granter: "a".into(), incarnation: 7, counter }
}

pub(crate) async fn soon<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, event).await.expect("the event must come")
}

fn serve(socket: &Path) -> (Runtime, mpsc::Receiver<Session>) {
    let process = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let _inside = process.enter();
    let listener = UnixListener::bind(socket).unwrap();
    let (opened, sessions) = mpsc::channel(16);
    let server = tonic::transport::Server::builder()
        .add_service(MeshAgentServer::new(Script { opened }))
        .serve_with_incoming(UnixListenerStream::new(listener));
    process.spawn(async move { server.await.unwrap() });
    (process, sessions)
}

struct Script {
    opened: mpsc::Sender<Session>,
}

/// The script speaks over the stream alone.
fn unscripted<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("the script speaks over the stream alone"))
}

#[tonic::async_trait]
impl MeshAgent for Script {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<pb::SessionBatch, Status>> + Send>>;

    type StreamCacheUpdatesStream = Pin<Box<dyn Stream<Item = Result<pb::CacheUpdate, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<pb::SessionBatch>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let beats = Beats::default();
        tokio::spawn(beats.clone().run(CancellationToken::new()));
        let link = Link::new(Moment::now(), &beats);
        let hello = Hello { view_digest: 1, ..Hello::of("a".into(), 7) };
        link.push(Message::Hello(hello)).unwrap();
        let (heard, messages) = mpsc::channel(1_024);
        let (purged, purges) = mpsc::channel(1_024);
        let mut incoming = request.into_inner();
        tokio::spawn({
            let link = Arc::clone(&link);
            async move {
                while let Ok(Some(batch)) = incoming.message().await {
                    for message in link.receive(batch, Moment::now()) {
                        let about_purges = matches!(message, Message::Purges(_) | Message::PurgesDone { .. });
                        // Whoever drops the session wants to hear no more.
                        let _ = if about_purges { &purged } else { &heard }.send(message).await;
                    }
                }
                link.close();
            }
        });
        let frozen = watch::Sender::new(false);
        let thaw = frozen.subscribe();
        let outgoing = link.outgoing().then(move |batch| {
            let mut thaw = thaw.clone();
            async move {
                // Nobody left to thaw it: let it go.
                let _ = thaw.wait_for(|frozen| !frozen).await;
                Ok(batch)
            }
        });
        let _ = self.opened.send(Session { link, messages, purges, frozen }).await;
        Ok(Response::new(Box::pin(outgoing)))
    }

    async fn get_cache_entry(
        &self,
        _: Request<pb::GetCacheEntryRequest>,
    ) -> Result<Response<pb::GetCacheEntryResponse>, Status> {
        unscripted()
    }

    async fn set_cache_entry(
        &self,
        _: Request<pb::SetCacheEntryRequest>,
    ) -> Result<Response<pb::SetCacheEntryResponse>, Status> {
        unscripted()
    }

    async fn acquire_query_lock(
        &self,
        _: Request<pb::AcquireQueryLockRequest>,
    ) -> Result<Response<pb::AcquireQueryLockResponse>, Status> {
        unscripted()
    }

    async fn wait_for_result(
        &self,
        _: Request<pb::WaitForResultRequest>,
    ) -> Result<Response<pb::WaitForResultResponse>, Status> {
        unscripted()
    }

    async fn release_query_lock(
        &self,
        _: Request<pb::ReleaseQueryLockRequest>,
    ) -> Result<Response<pb::ReleaseQueryLockResponse>, Status> {
        unscripted()
    }

    async fn locate_key(&self, _: Request<pb::LocateKeyRequest>) -> Result<Response<pb::LocateKeyResponse>, Status> {
        unscripted()
    }

    async fn hand_off(&self, _: Request<pb::HandOffRequest>) -> Result<Response<pb::HandOffResponse>, Status> {
        unscripted()
    }

    async fn stream_cache_updates(
        &self,
        _: Request<pb::CacheStreamRequest>,
    ) -> Result<Response<Self::StreamCacheUpdatesStream>, Status> {
        unscripted()
    }

    async fn purge_cache(&self, _: Request<pb::PurgeCacheRequest>) -> Result<Response<pb::PurgeCacheResponse>, Status> {
        unscripted()
    }

    async fn inject_entry(
        &self,
        _: Request<pb::InjectEntryRequest>,
    ) -> Result<Response<pb::InjectEntryResponse>, Status> {
        unscripted()
    }

    async fn list_members(
        &self,
        _: Request<pb::ListMembersRequest>,
    ) -> Result<Response<pb::ListMembersResponse>, Status> {
        unscripted()
    }
}
