//! `StreamCacheUpdates`: this replica's inserts, evictions and purges, for one reader.

use std::sync::Arc;

use heimdall_proto::v1 as pb;
use heimdall_shared::clock::Moment;
use heimdall_shared::key::Key;
use heimdall_shared::purge::Scope;
use heimdall_shared::wire;
use pb::cache_stream_request::Filter;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::Operations;
use super::overriding::wire_name;
use crate::agent::Agent;
use crate::updates::{Cause, Next, READERS_MAX, Reader, Update, What};

/// Updates on their way to one reader; what it does not take stays in the buffer of all of them, which is bounded too.
const ON_THE_WAY: usize = 64;

/// The updates of one reader.
pub type UpdateStream = ReceiverStream<Result<pb::CacheUpdate, Status>>;

impl Operations {
    /// Follows what happens to this replica's entries, until the reader goes or the agent ends.
    pub fn follow(
        &self,
        request: &pb::CacheStreamRequest,
    ) -> Result<(impl Future<Output = ()> + Send + use<>, UpdateStream), Status> {
        self.count("StreamCacheUpdates");
        let scope = match &request.filter {
            None => Scope::Everything,
            Some(Filter::Name(text)) => Scope::Name { name: wire_name(text)?, qtype: None },
            Some(Filter::Suffix(text)) => Scope::Suffix { suffix: wire_name(text)?, qtype: None },
        };
        // Followed from here on: what happens during the snapshot comes after it, and may be in it too.
        let reader = self.agent().store.updates().follow().ok_or_else(|| {
            Status::resource_exhausted(format!("{READERS_MAX} readers follow already: end one, or ask another replica"))
        })?;
        let (sender, stream) = mpsc::channel(ON_THE_WAY);
        let teller = Teller { agent: Arc::clone(self.agent()), scope, sender };
        Ok((teller.run(reader, request.snapshot), ReceiverStream::new(stream)))
    }
}

struct Teller {
    agent: Arc<Agent>,
    scope: Scope,
    sender: mpsc::Sender<Result<pb::CacheUpdate, Status>>,
}

/// The reader is gone.
struct Gone;

impl Teller {
    async fn run(self, reader: Reader, snapshot: bool) {
        let end = reader.end().clone();
        tokio::select! {
            _gone = self.tell_all(reader, snapshot) => {}
            // Seen even when nothing happens that could be told.
            () = self.sender.closed() => {}
            () = end.cancelled() => {}
        }
    }

    async fn tell_all(&self, mut reader: Reader, snapshot: bool) -> Result<(), Gone> {
        if snapshot {
            self.tell_snapshot(reader.seen()).await?;
        }
        while let Some(next) = reader.next().await {
            let told = match next {
                Next::Update(update) => self.shown(&update),
                Next::Missed(missed) => Some(pb::CacheUpdate { missed, ..of(pb::CacheAction::Resync, reader.seen()) }),
            };
            if let Some(told) = told {
                self.tell(told).await?;
            }
        }
        Ok(())
    }

    async fn tell_snapshot(&self, last: u64) -> Result<(), Gone> {
        let (store, scope) = (Arc::clone(&self.agent.store), self.scope.clone());
        // A walk over the whole store, on a thread that nothing else waits for. It never panics.
        let listing = tokio::task::spawn_blocking(move || store.list(|key, _| scope.covers(key)));
        for (key, _) in listing.await.unwrap_or_default() {
            let now = Moment::now();
            if let Some(entry) = self.agent.store.look(&key, now) {
                let entry = Some(wire::entry_to_proto(&entry, now));
                let key = Some(wire::key_to_proto(&key));
                let insert = of(pb::CacheAction::Insert, last);
                self.tell(pb::CacheUpdate { key, entry, in_snapshot: true, ..insert }).await?;
            }
        }
        self.tell(of(pb::CacheAction::SnapshotEnd, last)).await
    }

    /// What the reader is told of an update, if it wants to know.
    fn shown(&self, Update { sequence, what }: &Update) -> Option<pb::CacheUpdate> {
        let wanted = |key: &Key| self.scope.covers(key).then(|| Some(wire::key_to_proto(key)));
        Some(match what {
            What::Insert(key, entry) => pb::CacheUpdate {
                key: wanted(key)?,
                entry: Some(wire::entry_to_proto(entry, Moment::now())),
                ..of(pb::CacheAction::Insert, *sequence)
            },
            What::Evict(key, cause) => {
                let cause = match cause {
                    Cause::Size => pb::EvictionCause::Size,
                    Cause::Expired => pb::EvictionCause::Expired,
                };
                pb::CacheUpdate { key: wanted(key)?, cause: cause.into(), ..of(pb::CacheAction::Evict, *sequence) }
            }
            What::Purge(purge) => {
                let purged = self.scope.touches(&purge.scope).then(|| purge.scope.to_string())?;
                pb::CacheUpdate { purged, ..of(pb::CacheAction::Purge, *sequence) }
            }
        })
    }

    async fn tell(&self, update: pb::CacheUpdate) -> Result<(), Gone> {
        self.sender.send(Ok(update)).await.map_err(|_| Gone)
    }
}

fn of(action: pb::CacheAction, sequence: u64) -> pb::CacheUpdate {
    pb::CacheUpdate { action: action.into(), sequence, ..pb::CacheUpdate::default() }
}
