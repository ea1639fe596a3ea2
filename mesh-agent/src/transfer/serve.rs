//! The giving side: the entries of the slots that a peer asks for, youngest first, one chunk per request.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use heimdall_proto::v1 as pb;
use heimdall_shared::clock::Moment;
use heimdall_shared::key::Key;
use heimdall_shared::wire;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;

use crate::agent::Agent;
use crate::replicate::WORTH_COPYING;
use crate::transfer::Slots;

/// Peers that are given entries at the same time. Each has a list of keys meanwhile, some 12 MiB for a full store of the
/// default size; a cluster that starts has one newcomer at a time, and one that was cut in two a few.
const GIVEN_AT_ONCE: usize = 8;

/// A peer that asks for no more for this long has its stream ended: what it waits for may be its rate, at which a chunk
/// takes a twentieth of a second.
const ASK_WITHIN: Duration = Duration::from_secs(10);

/// Largest chunk, whatever is asked for.
pub const CHUNK_ENTRIES_MAX: usize = 1_024;
/// A chunk is closed when it reaches this many bytes: with the last entry it stays well below what a peer decodes.
pub const CHUNK_BYTES_MAX: usize = 256 << 10;

/// A chunk, or why there is none.
pub type Chunk = Result<pb::TransferEntriesResponse, Status>;

/// Places for peers that are given entries.
#[derive(Clone, Debug)]
pub struct Giving(Arc<Semaphore>);

impl Default for Giving {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(GIVEN_AT_ONCE)))
    }
}

impl Giving {
    /// A place.
    ///
    /// # Errors
    /// When all are taken: the peer asks somebody else.
    pub fn place(&self) -> Result<OwnedSemaphorePermit, Status> {
        let all_taken = || Status::resource_exhausted(format!("{GIVEN_AT_ONCE} peers are given entries already"));
        Arc::clone(&self.0).try_acquire_owned().map_err(|_| all_taken())
    }
}

/// Serves one transfer until the peer has all, or asks no more.
pub async fn give<S>(agent: Arc<Agent>, mut requests: S, chunks: mpsc::Sender<Chunk>, place: OwnedSemaphorePermit)
where
    S: Stream<Item = Result<pb::TransferEntriesRequest, Status>> + Unpin,
{
    let mut listed: Option<VecDeque<Key>> = None;
    while let Ok(Some(Ok(request))) = timeout(ASK_WITHIN, requests.next()).await {
        let keys = match &mut listed {
            Some(keys) => keys,
            None => match list(&agent, &request).await {
                Ok(keys) => listed.insert(keys),
                Err(status) => {
                    // Who asked wrongly and is gone does not need to know.
                    let _ = chunks.send(Err(status)).await;
                    break;
                }
            },
        };
        let chunk = chunk(&agent, keys, &request);
        let last = chunk.last;
        agent.metrics.transfer.given.inc_by(chunk.entries.len() as u64);
        if chunks.send(Ok(chunk)).await.is_err() || last {
            break;
        }
    }
    drop(place);
}

/// The stream of chunks that [`give`] fills: one at a time, since each was asked for.
pub fn chunks() -> (mpsc::Sender<Chunk>, ReceiverStream<Chunk>) {
    let (sender, receiver) = mpsc::channel(1);
    (sender, ReceiverStream::new(receiver))
}

async fn list(agent: &Arc<Agent>, request: &pb::TransferEntriesRequest) -> Result<VecDeque<Key>, Status> {
    let slots = Slots::from_bytes(&request.slots)
        .ok_or_else(|| Status::invalid_argument("the first request names the slots, one bit each in 8192 bytes"))?;
    let min_age = Duration::from_millis(request.min_age_ms);
    let store = Arc::clone(&agent.store);
    // A walk over the whole store, on a thread that nothing else waits for.
    let listing = tokio::task::spawn_blocking(move || {
        let now = Moment::now();
        let mut keys = store.list(|key, entry| {
            slots.contains(key.slot()) && entry.age(now) >= min_age && entry.remaining(now) >= WORTH_COPYING
        });
        keys.sort_unstable_by_key(|(_, born)| std::cmp::Reverse(*born));
        keys.into_iter().map(|(key, _)| key).collect()
    });
    listing.await.map_err(|error| Status::internal(format!("the walk over the store ended: {error}")))
}

/// The next entries of `keys` that still live, with their ages at this moment.
fn chunk(agent: &Agent, keys: &mut VecDeque<Key>, request: &pb::TransferEntriesRequest) -> pb::TransferEntriesResponse {
    let entries_max = (request.entries_max as usize).clamp(1, CHUNK_ENTRIES_MAX);
    let bytes_max = (request.bytes_max as usize).clamp(1, CHUNK_BYTES_MAX);
    let now = Moment::now();
    let mut chunk = pb::TransferEntriesResponse { incarnation: agent.incarnation, ..Default::default() };
    let mut bytes = 0;
    while chunk.entries.len() < entries_max && bytes < bytes_max {
        let Some(key) = keys.pop_front() else { break };
        let Some(entry) = agent.store.look(&key, now).filter(|entry| entry.remaining(now) >= WORTH_COPYING) else {
            continue;
        };
        bytes += key.as_bytes().len() + entry.packet.len();
        chunk
            .entries
            .push(pb::TransferredEntry { key: key.to_bytes(), entry: Some(wire::entry_to_proto(&entry, now)) });
    }
    chunk.last = keys.is_empty();
    chunk
}
