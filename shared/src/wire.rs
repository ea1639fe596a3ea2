//! Our types ⇄ protobuf. The only place that knows the generated types of the data path; what comes in is checked here.

mod batch;
mod direct;
mod names;
mod octets;
mod purges;

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use heimdall_proto::v1 as pb;
use pb::reply::Kind as ReplyKind;
use pb::session_frame::Kind;

use crate::clock::Moment;
use crate::dns::{name, rr};
use crate::entry::Entry;
use crate::key::{Flags, Key, KeyError};
use crate::link::{
    Condition, DegradedReason, FailureKind, Hello, Lookup, LookupMode, Message, NodeState, Publish, Reply, Wait,
    WriteLevel,
};
use crate::purge::Position;
use crate::token::Token;
use crate::trace::TraceContext;

pub use self::batch::{Packing, Received};

/// What an entry pushed by a unary call loses of its life, since nothing dates the push: the longest that such a call may
/// take, and its deadline.
pub const PUSH_ALLOWANCE: Duration = Duration::from_millis(500);

/// Longest member name: it travels in every token.
const MEMBER_NAME_MAX: usize = 253;
/// Longest advertised address: a host name and a port.
const ADDRESS_MAX: usize = 260;
/// Members that one lookup may name as skipped: all that a ring has room for.
const SKIPPED_MAX: usize = 256;
/// Tokens that one tick may list, in each list. More go into several ticks.
pub const TICK_TOKENS_MAX: usize = 2_048;
/// Largest DNS message (RFC 1035 section 4.2.2), bytes.
const PACKET_MAX: usize = 65_535;

/// Why a frame or field could not be read. The sender's fault; nothing changed here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A frame or reply of a kind that this release does not know.
    #[error("a frame of an unknown kind")]
    UnknownKind,
    /// A frame that is no message of its kind.
    #[error("a frame that cannot be read")]
    Malformed,
    /// A message without one of its parts.
    #[error("the {0} is missing")]
    Missing(&'static str),
    /// The key is not one.
    #[error("bad key: {0}")]
    Key(#[from] KeyError),
    /// The readable key is not one.
    #[error("bad key: {0}")]
    ReadableKey(String),
    /// A field is longer or larger than it may be.
    #[error("the {0} is over its limit")]
    TooLarge(&'static str),
}

/// A message as a frame; ages and remaining times are those at `now`.
pub fn to_frame(message: &Message, now: Moment) -> pb::SessionFrame {
    let (id, kind) = match message {
        Message::Hello(hello) => (
            0,
            Kind::Hello(pb::Hello {
                protocol_version: hello.version,
                name: hello.name.to_string(),
                incarnation: hello.incarnation,
                view_digest: hello.view_digest,
                features: Vec::new(),
                advertise: hello.advertise.as_deref().unwrap_or_default().to_owned(),
                state: hello.state.as_ref().map(node_state_to_proto),
            }),
        ),
        Message::Ping { nonce } => (0, Kind::Ping(pb::Ping { nonce: *nonce })),
        Message::Pong { nonce } => (0, Kind::Pong(pb::Pong { nonce: *nonce })),
        Message::Lookup { id, lookup } => (*id, Kind::Lookup(lookup_to_proto(lookup, now))),
        Message::Wait { id, wait } => (
            *id,
            Kind::Wait(pb::Wait {
                key: wait.key.to_bytes(),
                token: Some(token_to_proto(&wait.token)),
                stream: wait.stream,
                trace: wait.trace.as_ref().map(trace_to_proto),
            }),
        ),
        Message::Reply { id, reply } => (*id, Kind::Reply(reply_to_proto(reply, now))),
        Message::Cancel { id } => (*id, Kind::Cancel(pb::Cancel {})),
        Message::Publish { id, publish } => (
            *id,
            Kind::Publish(pb::Publish {
                key: publish.key.to_bytes(),
                entry: Some(entry_to_proto(&publish.entry, now)),
                token: publish.token.as_ref().map(token_to_proto),
                level: level_to_proto(publish.level).into(),
            }),
        ),
        Message::Fail { token, kind } => {
            let kind = match kind {
                FailureKind::Shared => pb::FailureKind::Shared,
                FailureKind::Local => pb::FailureKind::Local,
            };
            (0, Kind::Fail(pb::Fail { token: Some(token_to_proto(token)), kind: kind.into() }))
        }
        Message::Release { token } => (0, Kind::Release(pb::Release { token: Some(token_to_proto(token)) })),
        Message::Tick { working, struggling } => (
            0,
            Kind::Tick(pb::Tick {
                working: working.iter().map(token_to_proto).collect(),
                struggling: struggling.iter().map(token_to_proto).collect(),
            }),
        ),
        Message::Watch { token } => (0, Kind::Watch(pb::Watch { token: Some(token_to_proto(token)) })),
        Message::Copy { key, entry, write } => (
            0,
            Kind::Copy(pb::Copy {
                key: key.to_bytes(),
                entry: Some(entry_to_proto(entry, now)),
                write: write.map_or(0, NonZeroU64::get),
            }),
        ),
        Message::CopyReceipt { write, held } => {
            (0, Kind::CopyReceipt(pb::CopyReceipt { write: write.get(), held: *held }))
        }
        Message::Check { id, key } => (*id, Kind::Check(pb::Check { key: key.to_bytes() })),
        Message::StreamGone { stream } => (0, Kind::StreamGone(pb::StreamGone { stream: *stream })),
        Message::Leaving => (0, Kind::Leaving(pb::Leaving {})),
        Message::HandOver => (0, Kind::HandOver(pb::HandOver {})),
        Message::TakenOver { entries, kept, complete } => {
            (0, Kind::TakenOver(pb::TakenOver { entries: *entries, kept: *kept, complete: *complete }))
        }
        Message::NodeState(state) => (0, Kind::NodeState(node_state_to_proto(state))),
        Message::UpstreamState { failing } => (0, Kind::UpstreamState(pb::UpstreamState { failing: *failing })),
        Message::Purges(said) => (0, Kind::Purges(purges::to_proto(said, now))),
        Message::PurgesDone { position } => (0, Kind::PurgesDone(pb::PurgesDone { position: *position })),
    };
    pb::SessionFrame { id, kind: Some(kind) }
}

/// A frame as a message; its ages count from `anchor`.
///
/// # Errors
/// [`WireError`] when the frame is of an unknown kind or not well formed.
pub fn from_frame(frame: pb::SessionFrame, anchor: Moment) -> Result<Message, WireError> {
    let id = frame.id;
    Ok(match frame.kind.ok_or(WireError::UnknownKind)? {
        Kind::Hello(hello) => Message::Hello(Hello {
            version: hello.protocol_version,
            name: member_name(&hello.name)?,
            incarnation: hello.incarnation,
            view_digest: hello.view_digest,
            advertise: match hello.advertise.as_str() {
                "" => None,
                address if address.len() > ADDRESS_MAX => return Err(WireError::TooLarge("advertised address")),
                address => Some(Arc::from(address)),
            },
            state: hello.state.as_ref().map(node_state_from_proto),
        }),
        Kind::Ping(ping) => Message::Ping { nonce: ping.nonce },
        Kind::Pong(pong) => Message::Pong { nonce: pong.nonce },
        Kind::Lookup(lookup) => Message::Lookup { id, lookup: lookup_from_proto(lookup, anchor)? },
        Kind::Wait(wait) => Message::Wait {
            id,
            wait: Wait {
                key: Key::from_bytes(wait.key)?,
                token: token_from_proto(wait.token)?,
                stream: wait.stream,
                trace: wait.trace.and_then(|trace| trace_from_proto(&trace)),
            },
        },
        Kind::Reply(reply) => Message::Reply { id, reply: reply_from_proto(reply, anchor)? },
        Kind::Cancel(pb::Cancel {}) => Message::Cancel { id },
        Kind::Publish(publish) => Message::Publish {
            id,
            publish: Publish {
                level: level_from_proto(publish.level()),
                key: Key::from_bytes(publish.key)?,
                entry: entry_from_proto(publish.entry.ok_or(WireError::Missing("entry"))?, anchor)?,
                token: publish.token.map(|token| token_from_proto(Some(token))).transpose()?,
            },
        },
        Kind::Fail(fail) => {
            let kind = match fail.kind() {
                pb::FailureKind::Shared => FailureKind::Shared,
                // An unknown kind is the harmless one: it says nothing about other replicas.
                pb::FailureKind::Local | pb::FailureKind::Unspecified => FailureKind::Local,
            };
            Message::Fail { token: token_from_proto(fail.token)?, kind }
        }
        Kind::Release(release) => Message::Release { token: token_from_proto(release.token)? },
        Kind::Tick(tick) => Message::Tick { working: tokens(tick.working)?, struggling: tokens(tick.struggling)? },
        Kind::Watch(watch) => Message::Watch { token: token_from_proto(watch.token)? },
        Kind::Copy(copy) => Message::Copy {
            key: Key::from_bytes(copy.key)?,
            entry: entry_from_proto(copy.entry.ok_or(WireError::Missing("entry"))?, anchor)?,
            write: NonZeroU64::new(copy.write),
        },
        Kind::CopyReceipt(receipt) => Message::CopyReceipt {
            write: NonZeroU64::new(receipt.write).ok_or(WireError::Missing("number of the write"))?,
            held: receipt.held,
        },
        Kind::Check(check) => Message::Check { id, key: Key::from_bytes(check.key)? },
        Kind::StreamGone(gone) => Message::StreamGone { stream: gone.stream },
        Kind::Leaving(pb::Leaving {}) => Message::Leaving,
        Kind::HandOver(pb::HandOver {}) => Message::HandOver,
        Kind::TakenOver(pb::TakenOver { entries, kept, complete }) => Message::TakenOver { entries, kept, complete },
        Kind::NodeState(state) => Message::NodeState(node_state_from_proto(&state)),
        Kind::UpstreamState(pb::UpstreamState { failing }) => Message::UpstreamState { failing },
        Kind::Purges(said) => Message::Purges(purges::from_proto(said, anchor)?),
        Kind::PurgesDone(pb::PurgesDone { position }) => Message::PurgesDone { position },
    })
}

/// An entry with its age at `now`, rounded so that no hop makes it younger or longer-lived.
pub fn entry_to_proto(entry: &Entry, now: Moment) -> pb::CacheEntry {
    let (age_ms, lifetime_ms) = entry_times(entry, now);
    pb::CacheEntry { packet: entry.packet.clone(), age_ms, lifetime_ms, purges: entry.since }
}

/// An entry's age at `now`, rounded up, and its lifetime, rounded down, in milliseconds.
fn entry_times(entry: &Entry, now: Moment) -> (u64, u64) {
    (entry.age(now).as_nanos().div_ceil(1_000_000) as u64, entry.lifetime.as_millis() as u64)
}

/// An entry whose age counts from `anchor`. Whether its packet answers a key, and may live that long, is for
/// [`crate::dns::answer::check`] to say; which purges it is newer than, for [`crate::purge`]. The packet shares the received message's memory: copy before keeping it.
///
/// # Errors
/// [`WireError::TooLarge`] when the packet cannot be a DNS message.
pub fn entry_from_proto(entry: pb::CacheEntry, anchor: Moment) -> Result<Entry, WireError> {
    if !packet_fits(&entry.packet) {
        return Err(WireError::TooLarge("packet"));
    }
    Ok(dated(entry.packet, entry.age_ms, entry.lifetime_ms, entry.purges, anchor))
}

/// Whether it can be a DNS message.
const fn packet_fits(packet: &Bytes) -> bool {
    packet.len() <= PACKET_MAX
}

/// An entry whose age, in milliseconds like its lifetime, counts from `anchor`.
fn dated(packet: Bytes, age: u64, lifetime: u64, since: Position, anchor: Moment) -> Entry {
    let age = Duration::from_millis(age);
    let born = anchor.minus(age);
    // A clock that began after the entry was born cannot hold its birth: what cannot be dated is dead on arrival.
    let lifetime = if anchor.since(born) < age { Duration::ZERO } else { Duration::from_millis(lifetime) };
    Entry { packet, born, lifetime, since }
}

/// A write level in its wire form.
fn level_to_proto(level: Option<WriteLevel>) -> pb::WriteLevel {
    match level {
        None => pb::WriteLevel::Unspecified,
        Some(WriteLevel::Eventual) => pb::WriteLevel::Eventual,
        Some(WriteLevel::Quorum) => pb::WriteLevel::Quorum,
        Some(WriteLevel::Strong) => pb::WriteLevel::Strong,
    }
}

/// A write level from its wire form; nothing where none was given.
pub const fn level_from_proto(level: pb::WriteLevel) -> Option<WriteLevel> {
    match level {
        pb::WriteLevel::Unspecified => None,
        pb::WriteLevel::Eventual => Some(WriteLevel::Eventual),
        pb::WriteLevel::Quorum => Some(WriteLevel::Quorum),
        pb::WriteLevel::Strong => Some(WriteLevel::Strong),
    }
}

/// A token in its wire form.
pub fn token_to_proto(token: &Token) -> pb::LeaseToken {
    pb::LeaseToken { granter: token.granter.to_string(), incarnation: token.incarnation, counter: token.counter }
}

/// A token from its wire form.
///
/// # Errors
/// [`WireError`] when it is missing or names no member.
pub fn token_from_proto(token: Option<pb::LeaseToken>) -> Result<Token, WireError> {
    let token = token.ok_or(WireError::Missing("token"))?;
    Ok(Token { granter: member_name(&token.granter)?, incarnation: token.incarnation, counter: token.counter })
}

/// The readable form of a key.
pub fn key_to_proto(key: &Key) -> pb::CacheKey {
    pb::CacheKey {
        name: name::Presented(key.name()).to_string(),
        r#type: rr::TypeText(key.qtype()).to_string(),
        class: rr::ClassText(key.qclass()).to_string(),
        dnssec_ok: key.flags().dnssec_ok,
        checking_disabled: key.flags().checking_disabled,
        view: key.view().to_owned(),
    }
}

/// A key from its readable form; an empty type means A and an empty class IN.
///
/// # Errors
/// [`WireError`] says which field is wrong and how it is written.
pub fn key_from_proto(key: Option<&pb::CacheKey>) -> Result<Key, WireError> {
    let key = key.ok_or(WireError::Missing("key"))?;
    let bad = |what: String| WireError::ReadableKey(what);
    if key.name.is_empty() {
        return Err(bad("the name is empty; the root is \".\"".to_owned()));
    }
    let name = name::from_text(&key.name).map_err(|error| bad(format!("name {:?}: {error}", key.name)))?;
    let qtype = match key.r#type.as_str() {
        "" => rr::rtype::A,
        text => rr::type_from_text(text).ok_or_else(|| {
            bad(format!("type {text:?} is neither a known type like \"AAAA\" nor of the form \"TYPE65333\""))
        })?,
    };
    let qclass = match key.class.as_str() {
        "" => rr::class::IN,
        text => rr::class_from_text(text).ok_or_else(|| bad(format!("class {text:?} is not a class like \"IN\"")))?,
    };
    let flags = Flags { dnssec_ok: key.dnssec_ok, checking_disabled: key.checking_disabled };
    Ok(Key::new(&name, qtype, qclass, flags, &key.view)?)
}

/// What a lookup found, for the unary calls. `None` for replies that are no answers to a lookup.
pub fn lock_answer(reply: &Reply, now: Moment) -> Option<pb::LockAnswer> {
    use pb::lock_answer::Kind;
    let kind = match reply_to_proto(reply, now).kind? {
        ReplyKind::Entry(entry) => Kind::Entry(entry),
        ReplyKind::Failure(failure) => Kind::Failure(failure),
        ReplyKind::Granted(granted) => Kind::Granted(granted),
        ReplyKind::Held(held) => Kind::Held(held),
        ReplyKind::Proceed(proceed) => Kind::Proceed(proceed),
        ReplyKind::Elsewhere(elsewhere) => Kind::Elsewhere(elsewhere),
        ReplyKind::Working(_)
        | ReplyKind::Stored(_)
        | ReplyKind::Refused(_)
        | ReplyKind::Stale(_)
        | ReplyKind::Checked(_) => return None,
    };
    Some(pb::LockAnswer { kind: Some(kind) })
}

fn lookup_to_proto(lookup: &Lookup, now: Moment) -> pb::Lookup {
    let (mode, stale_within, held_age) = match lookup.mode {
        LookupMode::Join => (pb::LookupMode::Join, Duration::ZERO, Duration::ZERO),
        LookupMode::Acquire => (pb::LookupMode::Acquire, Duration::ZERO, Duration::ZERO),
        LookupMode::Peek | LookupMode::JoinOnly => (pb::LookupMode::Peek, Duration::ZERO, Duration::ZERO),
        LookupMode::Stale { within } => (pb::LookupMode::Peek, within, Duration::ZERO),
        LookupMode::Refresh { held } => (pb::LookupMode::Refresh, Duration::ZERO, now.since(held)),
    };
    pb::Lookup {
        key: lookup.key.to_bytes(),
        deadline_ms: u32::try_from(lookup.deadline.as_millis()).unwrap_or(u32::MAX),
        skipped: lookup.skipped.iter().map(ToString::to_string).collect(),
        stream: lookup.stream,
        trace: lookup.trace.as_ref().map(trace_to_proto),
        mode: mode.into(),
        stale_within_ms: u64::try_from(stale_within.as_millis()).unwrap_or(u64::MAX),
        held_age_ms: u64::try_from(held_age.as_millis()).unwrap_or(u64::MAX),
        join_wait: lookup.mode == LookupMode::JoinOnly,
    }
}

fn lookup_from_proto(lookup: pb::Lookup, anchor: Moment) -> Result<Lookup, WireError> {
    if lookup.skipped.len() > SKIPPED_MAX {
        return Err(WireError::TooLarge("list of skipped members"));
    }
    let mode = match lookup.mode() {
        pb::LookupMode::Join => LookupMode::Join,
        pb::LookupMode::Acquire => LookupMode::Acquire,
        pb::LookupMode::Peek if lookup.join_wait => LookupMode::JoinOnly,
        pb::LookupMode::Refresh => {
            LookupMode::Refresh { held: anchor.minus(Duration::from_millis(lookup.held_age_ms)) }
        }
        pb::LookupMode::Peek | pb::LookupMode::Unspecified => match lookup.stale_within_ms {
            0 => LookupMode::Peek,
            millis => LookupMode::Stale { within: Duration::from_millis(millis) },
        },
    };
    Ok(Lookup {
        key: Key::from_bytes(lookup.key)?,
        deadline: Duration::from_millis(lookup.deadline_ms.into()),
        skipped: lookup.skipped.iter().map(|name| member_name(name)).collect::<Result<_, _>>()?,
        stream: lookup.stream,
        trace: lookup.trace.and_then(|trace| trace_from_proto(&trace)),
        mode,
    })
}

fn reply_to_proto(reply: &Reply, now: Moment) -> pb::Reply {
    let kind = match reply {
        Reply::Working => ReplyKind::Working(pb::Working {}),
        Reply::Entry(entry) => ReplyKind::Entry(entry_to_proto(entry, now)),
        Reply::Failure { remaining } => {
            ReplyKind::Failure(pb::SharedFailure { remaining_ms: remaining.as_millis() as u64 })
        }
        Reply::Granted { token, takeover, ask_first } => ReplyKind::Granted(pb::Granted {
            token: Some(token_to_proto(token)),
            takeover: *takeover,
            ask_first: ask_first.as_deref().unwrap_or_default().to_owned(),
        }),
        Reply::Held { token, holder } => ReplyKind::Held(pb::Held {
            token: Some(token_to_proto(token)),
            holder: holder.as_ref().map(trace_to_proto),
        }),
        Reply::Proceed => ReplyKind::Proceed(pb::Proceed {}),
        Reply::Elsewhere(name) => ReplyKind::Elsewhere(pb::Elsewhere { name: name.to_string() }),
        Reply::Stored { copies, needed } => ReplyKind::Stored(pb::Stored { copies: *copies, needed: *needed }),
        Reply::Refused(reason) => ReplyKind::Refused(pb::Refused { reason: reason.clone() }),
        Reply::Stale(entry) => ReplyKind::Stale(entry_to_proto(entry, now)),
        Reply::Checked { entry, source } => ReplyKind::Checked(pb::Checked {
            entry: entry.as_ref().map(|entry| entry_to_proto(entry, now)),
            source: source.as_deref().unwrap_or_default().to_owned(),
        }),
    };
    pb::Reply { kind: Some(kind) }
}

fn reply_from_proto(reply: pb::Reply, anchor: Moment) -> Result<Reply, WireError> {
    Ok(match reply.kind.ok_or(WireError::UnknownKind)? {
        ReplyKind::Working(pb::Working {}) => Reply::Working,
        ReplyKind::Entry(entry) => Reply::Entry(entry_from_proto(entry, anchor)?),
        ReplyKind::Failure(failure) => Reply::Failure { remaining: Duration::from_millis(failure.remaining_ms) },
        ReplyKind::Granted(granted) => {
            // A grant is worth more than the advice that comes with it.
            let ask_first = member_name(&granted.ask_first).ok();
            Reply::Granted { token: token_from_proto(granted.token)?, takeover: granted.takeover, ask_first }
        }
        ReplyKind::Held(held) => Reply::Held {
            token: token_from_proto(held.token)?,
            holder: held.holder.and_then(|trace| trace_from_proto(&trace)),
        },
        ReplyKind::Proceed(pb::Proceed {}) => Reply::Proceed,
        ReplyKind::Elsewhere(elsewhere) => Reply::Elsewhere(member_name(&elsewhere.name)?),
        ReplyKind::Stored(stored) => Reply::Stored { copies: stored.copies, needed: stored.needed },
        ReplyKind::Refused(refused) => Reply::Refused(refused.reason),
        ReplyKind::Stale(entry) => Reply::Stale(entry_from_proto(entry, anchor)?),
        ReplyKind::Checked(checked) => Reply::Checked {
            entry: checked.entry.map(|entry| entry_from_proto(entry, anchor)).transpose()?,
            source: member_name(&checked.source).ok(),
        },
    })
}

fn node_state_to_proto(state: &NodeState) -> pb::NodeState {
    let condition = match state.condition {
        Condition::Starting => pb::Condition::Starting,
        Condition::Healthy => pb::Condition::Healthy,
        Condition::Degraded => pb::Condition::Degraded,
        Condition::Leaving => pb::Condition::Leaving,
    };
    let reasons = state.reasons.iter().map(|&reason| degraded_reason_to_proto(reason).into()).collect();
    pb::NodeState { condition: condition.into(), reasons }
}

/// A reason in its wire form.
pub const fn degraded_reason_to_proto(reason: DegradedReason) -> pb::DegradedReason {
    match reason {
        DegradedReason::Memory => pb::DegradedReason::Memory,
        DegradedReason::Cpu => pb::DegradedReason::Cpu,
        DegradedReason::StoreFull => pb::DegradedReason::StoreFull,
        DegradedReason::Upstreams => pb::DegradedReason::Upstreams,
    }
}

/// A condition of a later release is taken for a healthy one, and a reason of it for none.
fn node_state_from_proto(state: &pb::NodeState) -> NodeState {
    let condition = match state.condition() {
        pb::Condition::Starting => Condition::Starting,
        pb::Condition::Degraded => Condition::Degraded,
        pb::Condition::Leaving => Condition::Leaving,
        pb::Condition::Healthy | pb::Condition::Unspecified => Condition::Healthy,
    };
    let mut reasons: Vec<_> = [
        (pb::DegradedReason::Memory, DegradedReason::Memory),
        (pb::DegradedReason::Cpu, DegradedReason::Cpu),
        (pb::DegradedReason::StoreFull, DegradedReason::StoreFull),
        (pb::DegradedReason::Upstreams, DegradedReason::Upstreams),
    ]
    .into_iter()
    .filter(|(wire, _)| state.reasons().any(|reason| reason == *wire))
    .map(|(_, reason)| reason)
    .collect();
    if condition != Condition::Degraded {
        reasons.clear();
    }
    NodeState { condition, reasons }
}

fn tokens(tokens: Vec<pb::LeaseToken>) -> Result<Vec<Token>, WireError> {
    if tokens.len() > TICK_TOKENS_MAX {
        return Err(WireError::TooLarge("list of tokens"));
    }
    tokens.into_iter().map(|token| token_from_proto(Some(token))).collect()
}

fn member_name(name: &str) -> Result<Arc<str>, WireError> {
    if name.is_empty() {
        return Err(WireError::Missing("member name"));
    }
    if name.len() > MEMBER_NAME_MAX {
        return Err(WireError::TooLarge("member name"));
    }
    Ok(Arc::from(name))
}

fn trace_to_proto(trace: &TraceContext) -> pb::TraceContext {
    pb::TraceContext {
        trace_id: Bytes::copy_from_slice(&trace.trace_id),
        span_id: Bytes::copy_from_slice(&trace.span_id),
        flags: u32::from(trace.sampled),
    }
}

/// A context with ids of the wrong length is dropped: a trace is never worth an answer.
fn trace_from_proto(trace: &pb::TraceContext) -> Option<TraceContext> {
    let mut compact = [0; TraceContext::LENGTH];
    let (ids, flags) = compact.split_at_mut(TraceContext::LENGTH - 1);
    if trace.trace_id.len() != 16 || trace.span_id.len() != 8 {
        return None;
    }
    ids[..16].copy_from_slice(&trace.trace_id);
    ids[16..].copy_from_slice(&trace.span_id);
    flags[0] = (trace.flags & 0xff) as u8;
    TraceContext::from_bytes(&compact)
}
