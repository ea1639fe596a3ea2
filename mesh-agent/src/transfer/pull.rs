//! The fetching side: asks one member for the entries of some slots, chunk by chunk, at no more than the agent's rate.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use heimdall_proto::v1 as pb;
use heimdall_proto::v1::replica_coordination_client::ReplicaCoordinationClient;
use heimdall_shared::clock::Moment;
use heimdall_shared::entry::Entry;
use heimdall_shared::key::Key;
use heimdall_shared::link::BATCH_BYTES_MAX;
use heimdall_shared::purge::Position;
use heimdall_shared::wire;
use tokio::sync::mpsc;
use tokio::task::coop::consume_budget;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tracing::debug;

use crate::agent::Agent;
use crate::dial;
use crate::identity::Connector;
use crate::permissions::may_copy;
use crate::transfer::serve::{CHUNK_BYTES_MAX, CHUNK_ENTRIES_MAX};
use crate::transfer::{Pace, Slots};

/// A chunk must be here within this time after it was asked for, the walk over the giver's store included. Who is slower
/// is given up: somebody else has the entries too.
const CHUNK_WITHIN: Duration = Duration::from_secs(3);

/// A transfer that broke is taken up again where it broke so many times.
const RESUMED_MAX: usize = 1;

/// What has come from one member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Entries that came.
    pub entries: u64,
    /// Those of them that were kept.
    pub kept: u64,
    /// Whether all came that were asked for.
    pub complete: bool,
}

/// Fetches from members.
#[derive(Clone, Debug)]
pub struct Puller {
    /// This agent.
    pub agent: Arc<Agent>,
    /// Makes authenticated connections.
    pub connector: Arc<Connector>,
    /// The rate of all transfers together.
    pub pace: Arc<Mutex<Pace>>,
}

impl Puller {
    /// Fetches the entries of `slots` from `source`, over a connection of its own.
    pub async fn pull(&self, source: &Arc<str>, slots: &Slots) -> Taken {
        let mut taken = Taken::default();
        // The youngest come first: when the stream breaks, the rest is what was born before the last one that came.
        let mut oldest: Option<Moment> = None;
        for _ in 0..=RESUMED_MAX {
            match self.run(source, slots, &mut oldest, &mut taken).await {
                Ok(()) => {
                    taken.complete = true;
                    break;
                }
                Err(why) => {
                    self.agent.metrics.transfer.broken.inc();
                    debug!(peer = %source, why, "a transfer of entries broke");
                }
            }
        }
        taken
    }

    async fn run(
        &self,
        source: &Arc<str>,
        slots: &Slots,
        oldest: &mut Option<Moment>,
        taken: &mut Taken,
    ) -> Result<(), String> {
        let (requests, mut chunks) = self.open(source).await?;
        let min_age = oldest.map_or(Duration::ZERO, |born| Moment::now().since(born));
        let mut request = pb::TransferEntriesRequest {
            slots: slots.as_bytes().to_vec().into(),
            min_age_ms: min_age.as_millis() as u64,
            entries_max: CHUNK_ENTRIES_MAX as u32,
            bytes_max: CHUNK_BYTES_MAX as u32,
        };
        loop {
            // Ages in the chunk are computed after this request arrives there: counted from now they are never too young.
            let asked = Moment::now();
            let next = pb::TransferEntriesRequest { slots: Vec::new().into(), min_age_ms: 0, ..request };
            let first = std::mem::replace(&mut request, next);
            requests.send(first).await.map_err(|_| "the stream ended".to_owned())?;
            let chunk = timeout(CHUNK_WITHIN, chunks.message())
                .await
                .map_err(|_| format!("no chunk within {} s", CHUNK_WITHIN.as_secs()))?
                .map_err(|status| status.to_string())?
                .ok_or("the stream ended before its last chunk")?;
            let mut bytes = 0;
            for transferred in chunk.entries {
                // Each is parsed; others get their turn in between.
                consume_budget().await;
                bytes += transferred.key.len() + transferred.entry.as_ref().map_or(0, |entry| entry.packet.len());
                taken.entries += 1;
                self.agent.metrics.transfer.fetched.inc();
                let Some((key, mut entry)) = self.read(transferred, slots, asked) else {
                    self.agent.metrics.refused_entries.inc();
                    continue;
                };
                entry.since = self.vouched(source, chunk.incarnation, entry.since);
                *oldest = Some(entry.born);
                taken.kept += u64::from(self.keep(&key, &entry, source));
            }
            self.agent.metrics.transfer.bytes.inc_by(bytes as u64);
            if chunk.last {
                return Ok(());
            }
            let now = Moment::now();
            let next = self.pace.lock().unwrap_or_else(PoisonError::into_inner).took(bytes, now);
            sleep(next.since(now)).await;
        }
    }

    /// What the giver vouches for counts by the link to it: it has told that of its purges.
    fn vouched(&self, source: &str, incarnation: u64, theirs: Position) -> Position {
        let peer = self.agent.links.peer(source).filter(|peer| peer.incarnation == incarnation);
        peer.map_or(0, |peer| self.agent.purges.vouched(peer.id, theirs))
    }

    async fn open(
        &self,
        source: &Arc<str>,
    ) -> Result<(mpsc::Sender<pb::TransferEntriesRequest>, Streaming<pb::TransferEntriesResponse>), String> {
        let view = self.agent.view();
        let member = view.member(source).ok_or_else(|| format!("{source} is no member any more"))?;
        let mut last = format!("{source} has no address");
        for address in dial::addresses(member.learned.as_deref(), &member.address).await? {
            let channel = match self.connector.channel(address, source).await {
                Ok(channel) => channel,
                Err(error) => {
                    last = error.to_string();
                    continue;
                }
            };
            let (requests, receiver) = mpsc::channel(1);
            let mut client = ReplicaCoordinationClient::new(channel).max_decoding_message_size(BATCH_BYTES_MAX);
            let opened = timeout(CHUNK_WITHIN, client.transfer_entries(ReceiverStream::new(receiver))).await;
            let opened = opened.map_err(|_| format!("{address} did not open the stream in time"))?;
            return Ok((requests, opened.map_err(|status| status.to_string())?.into_inner()));
        }
        Err(last)
    }

    /// An entry of a slot that was asked for, whose packet answers its key.
    fn read(&self, transferred: pb::TransferredEntry, slots: &Slots, asked: Moment) -> Option<(Key, Entry)> {
        let key = Key::from_bytes(transferred.key).ok().filter(|key| slots.contains(key.slot()))?;
        let entry = wire::entry_from_proto(transferred.entry?, asked).ok()?;
        let entry = self.agent.check(&key, &entry).ok()?;
        Some((key, entry))
    }

    /// Keeps it as a copy when its sender is of the key's set too; from one who only stood in, where there is nothing.
    fn keep(&self, key: &Key, entry: &Entry, source: &Arc<str>) -> bool {
        let (now, view) = (Moment::now(), self.agent.view());
        if may_copy(view.ring(), key.slot(), source, &self.agent.name) {
            self.agent.store.keep_copy(key, entry, source, now).is_kept()
        } else {
            self.agent.store.keep_where_empty(key, entry, source, now)
        }
    }
}
