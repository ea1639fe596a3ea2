//! Purges ⇄ protobuf.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use heimdall_proto::v1 as pb;
use pb::purge::Scope as WireScope;
use pb::purges::Kind;

use super::{PACKET_MAX, WireError, member_name};
use crate::clock::Moment;
use crate::dns::name::is_wire_name;
use crate::key::Key;
use crate::purge::{Applied, Injected, Purge, PurgeId, Purges, Scope};

/// Purges in one part of a log.
const PART_MAX: usize = 4_096;
/// Origins that one purge may fold, and a log may name.
const MARKS_MAX: usize = 8_192;

/// What was purged; ages are those at `now`.
pub(super) fn to_proto(purges: &Purges, now: Moment) -> pb::Purges {
    let applied = |applied: &Applied| pb::AppliedPurge {
        position: applied.position,
        purge: Some(purge_to_proto(&applied.purge, now)),
    };
    let kind = match purges {
        Purges::Next(next) => Kind::Next(applied(next)),
        Purges::Log(part) => Kind::Log(pb::PurgeLog { purges: part.iter().map(applied).collect() }),
        Purges::Whole { position, marks } => {
            Kind::End(pb::PurgeLogEnd { position: *position, marks: marks.iter().map(id_to_proto).collect() })
        }
    };
    pb::Purges { kind: Some(kind) }
}

/// What the other side has purged; ages count from `anchor`.
pub(super) fn from_proto(purges: pb::Purges, anchor: Moment) -> Result<Purges, WireError> {
    Ok(match purges.kind.ok_or(WireError::UnknownKind)? {
        Kind::Next(next) => Purges::Next(applied(next, anchor)?),
        Kind::Log(log) if log.purges.len() > PART_MAX => return Err(WireError::TooLarge("part of a purge log")),
        Kind::Log(log) => {
            Purges::Log(log.purges.into_iter().map(|next| applied(next, anchor)).collect::<Result<_, _>>()?)
        }
        Kind::End(end) => Purges::Whole { position: end.position, marks: ids(&end.marks)? },
    })
}

fn purge_to_proto(purge: &Purge, now: Moment) -> pb::Purge {
    let (scope, qtype) = match &purge.scope {
        Scope::Name { name, qtype } => (WireScope::Name(name.clone()), *qtype),
        Scope::Suffix { suffix, qtype } => (WireScope::Suffix(suffix.clone()), *qtype),
        Scope::Key(key) => (WireScope::Key(key.to_bytes()), None),
        Scope::Everything => (WireScope::Everything(true), None),
    };
    let injected = purge.injected.as_ref();
    pb::Purge {
        id: Some(id_to_proto(&purge.id)),
        scope: Some(scope),
        r#type: qtype.unwrap_or_default().into(),
        age_ms: now.since(purge.issued).as_nanos().div_ceil(1_000_000) as u64,
        folds: purge.folds.iter().map(id_to_proto).collect(),
        packet: injected.map(|injected| injected.packet.clone()).unwrap_or_default(),
        lifetime_ms: injected.map_or(0, |injected| injected.lifetime.as_millis() as u64),
    }
}

fn applied(applied: pb::AppliedPurge, anchor: Moment) -> Result<Applied, WireError> {
    let purge = applied.purge.ok_or(WireError::Missing("purge"))?;
    Ok(Applied { position: applied.position, purge: Arc::new(purge_from_proto(purge, anchor)?) })
}

fn purge_from_proto(purge: pb::Purge, anchor: Moment) -> Result<Purge, WireError> {
    let qtype = match purge.r#type {
        0 => None,
        number => Some(u16::try_from(number).map_err(|_| WireError::TooLarge("type"))?),
    };
    let scope = match purge.scope {
        Some(WireScope::Name(name)) => Scope::Name { name: wire_name(&name)?, qtype },
        Some(WireScope::Suffix(suffix)) => Scope::Suffix { suffix: wire_name(&suffix)?, qtype },
        Some(WireScope::Key(key)) => Scope::Key(Key::from_bytes(key)?.detached()),
        // A scope of a later release is purged with everything else rather than not at all.
        Some(WireScope::Everything(_)) | None => Scope::Everything,
    };
    if purge.packet.len() > PACKET_MAX {
        return Err(WireError::TooLarge("packet"));
    }
    let age = Duration::from_millis(purge.age_ms);
    let issued = anchor.minus(age);
    let injected = (!purge.packet.is_empty()).then(|| Injected {
        packet: Bytes::copy_from_slice(&purge.packet),
        // A clock that began after the purge cannot hold its beginning: what cannot be dated is dead on arrival.
        lifetime: if anchor.since(issued) < age { Duration::ZERO } else { Duration::from_millis(purge.lifetime_ms) },
    });
    Ok(Purge {
        id: id(purge.id.as_ref().ok_or(WireError::Missing("name of the purge"))?)?,
        scope,
        issued,
        folds: ids(&purge.folds)?,
        injected,
    })
}

fn wire_name(name: &[u8]) -> Result<Bytes, WireError> {
    if !is_wire_name(name) {
        return Err(WireError::Missing("name in wire form"));
    }
    Ok(Bytes::from(name.to_ascii_lowercase()))
}

fn id_to_proto(id: &PurgeId) -> pb::PurgeId {
    pb::PurgeId { origin: id.origin.to_string(), incarnation: id.incarnation, sequence: id.sequence }
}

fn id(id: &pb::PurgeId) -> Result<PurgeId, WireError> {
    Ok(PurgeId { origin: member_name(&id.origin)?, incarnation: id.incarnation, sequence: id.sequence })
}

fn ids(of: &[pb::PurgeId]) -> Result<Vec<PurgeId>, WireError> {
    if of.len() > MARKS_MAX {
        return Err(WireError::TooLarge("list of purges"));
    }
    of.iter().map(id).collect()
}
