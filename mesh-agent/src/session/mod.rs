//! The `Session` streams of this agent: reading what arrives and handing it to whom it concerns. A reader never waits for
//! a writer, nor for anything else but the next batch.

pub mod local;
pub mod peer;

use std::time::Duration;

use heimdall_proto::v1::SessionBatch;
use heimdall_shared::clock::Moment;
use heimdall_shared::link::{Hello, Link, Message, PROTOCOL_VERSION};
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;

use crate::agent::Agent;
use crate::trust::ledger::CutOff;

/// A new stream must say Hello within this time; nothing is asked on it before.
const HELLO_WITHIN: Duration = Duration::from_secs(5);

/// Why a stream ended before it was used.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The other side closed, or said nothing in time.
    #[error("no Hello within {} s", HELLO_WITHIN.as_secs())]
    Silent,
    /// Its first message was not a Hello.
    #[error("the first message was not a Hello")]
    NoHello,
    /// It speaks another version.
    #[error("session protocol version {0}; this release speaks {PROTOCOL_VERSION}")]
    Version(u32),
    /// It is not who it says.
    #[error("it says it is {said:?}, its certificate says {proven:?}")]
    Name {
        /// The name in the Hello.
        said: String,
        /// The name in the certificate.
        proven: String,
    },
    /// No member of that name was discovered.
    #[error("{0:?} is not among the discovered members")]
    Unknown(String),
    /// Nothing is taken from it.
    #[error("{}: {}; for {} s more", why.member, why, left.as_secs() + 1)]
    CutOff {
        /// For how long.
        left: Duration,
        /// Who, and why.
        why: CutOff,
    },
    /// It is this agent itself.
    #[error("it has this agent's own name {0:?}; member names must differ")]
    Own(String),
}

/// Takes a batch apart, and counts what in it could not be read.
fn receive(agent: &Agent, link: &Link, batch: SessionBatch) -> Vec<Message> {
    // Only the stream's reader receives, so nobody else counts between the two looks.
    let before = link.unknown_frames();
    let messages = link.receive(batch, Moment::now());
    agent.metrics.unreadable_frames.inc_by(link.unknown_frames() - before);
    messages
}

/// Waits for the Hello. What else came in the same batch is returned with it.
async fn hello<S>(link: &Link, incoming: &mut S) -> Result<(Hello, Vec<Message>), Refusal>
where
    S: Stream<Item = Result<SessionBatch, Status>> + Unpin,
{
    let first = async {
        while let Some(Ok(batch)) = incoming.next().await {
            let messages = link.receive(batch, Moment::now());
            if !messages.is_empty() {
                return Some(messages);
            }
        }
        None
    };
    let mut messages = tokio::time::timeout(HELLO_WITHIN, first).await.ok().flatten().ok_or(Refusal::Silent)?;
    let Message::Hello(hello) = messages.remove(0) else { return Err(Refusal::NoHello) };
    if hello.version != PROTOCOL_VERSION {
        return Err(Refusal::Version(hello.version));
    }
    Ok((hello, messages))
}
