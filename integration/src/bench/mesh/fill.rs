//! Gives a replica's agent entries, in the words in which its own dns-server would.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use heimdall_proto::v1::mesh_agent_client::MeshAgentClient;
use heimdall_shared::clock::Moment;
use heimdall_shared::dns::answer::{self, TtlLimits};
use heimdall_shared::entry::Entry;
use heimdall_shared::key::{Flags, Key};
use heimdall_shared::link::{BATCH_BYTES_MAX, Beats, H2_WINDOW, Hello, Link, Message as Said, Publish, Reply};
use tonic::transport::Endpoint;

use super::names::Owned;
use crate::wire::{Message, Record};

/// Publishes that have no reply yet: what the agent's granter takes at once, and some room for others.
const UNDER_WAY: usize = 1_024;

/// How long one reply may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Publishes an entry for each name to the agent at `socket`, which must own them, and waits until it has stored them.
///
/// # Errors
/// The agent does not listen, or refuses one.
pub(super) async fn fill(socket: &Path, names: &[Owned]) -> Result<()> {
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?
        .initial_stream_window_size(H2_WINDOW)
        .initial_connection_window_size(H2_WINDOW);
    let channel = endpoint.connect().await.with_context(|| format!("connecting to {}", socket.display()))?;
    // It is never idle, and so needs no beats.
    let link = Link::new(Moment::now(), &Beats::default());
    link.push(Said::Hello(Hello::of("fill".into(), rand::random())))?;
    let mut client = MeshAgentClient::new(channel).max_decoding_message_size(BATCH_BYTES_MAX);
    let mut incoming = client.session(link.outgoing()).await.context("opening a session")?.into_inner();
    let (mut sent, mut stored) = (0, 0);
    while stored < names.len() {
        while sent < names.len() && sent - stored < UNDER_WAY {
            let publish = publish(&names[sent])?;
            sent += 1;
            link.push(Said::Publish { id: sent as u64, publish })?;
        }
        let batch = tokio::time::timeout(PATIENCE, incoming.message()).await.context("the agent says nothing")?;
        let batch = batch.context("the session broke")?.context("the agent closed the session")?;
        for message in link.receive(batch, Moment::now()) {
            match message {
                Said::Reply { reply: Reply::Stored { .. }, .. } => stored += 1,
                Said::Reply { id, reply } => bail!("the agent answers publish {id} with {reply:?}"),
                _ => {}
            }
        }
    }
    link.close();
    // The agent ends its side when it has read ours.
    while let Ok(Ok(Some(_))) = tokio::time::timeout(PATIENCE, incoming.message()).await {}
    Ok(())
}

fn publish(owned: &Owned) -> Result<Publish> {
    let key = Key::new(owned.name.wire(), 1, 1, Flags::default(), "").context("a name must make a key")?;
    let query = Message::parse(&owned.asked.query)?;
    let data = owned.asked.truth.data.as_deref().context("the name must have an address")?;
    let record =
        Record { name: owned.name.clone(), rtype: 1, class: 1, ttl: owned.asked.truth.ttl, rdata: data.to_vec() };
    let packet = query.response().with_answer(record).encode_compressed();
    let answer = answer::normalise(&key, &packet, &TtlLimits::default());
    let answer = answer.map_err(|refused| anyhow!("the answer to {key} was refused: {refused}"))?;
    let entry = Entry { packet: answer.packet, born: Moment::now(), lifetime: answer.lifetime, since: 0 };
    Ok(Publish { key, entry, token: None, level: None })
}
