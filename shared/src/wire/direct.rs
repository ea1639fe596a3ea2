//! The four messages of which a miss consists, written and read without the generated types: a lookup, its answers "entry" and
//! "granted", a publish and a copy. As generated types each is a tree of allocations that is built to be taken apart.
//!
//! Whatever is not exactly what these messages usually hold is left to the generated types. What is written here is octet by octet
//! what they write, and what is read here is what they read: the tests hold it to that.

use std::num::NonZeroU64;
use std::time::Duration;

use bytes::Bytes;
use heimdall_proto::v1 as pb;

use super::octets::{Fields, Value, Writer};
use super::{dated, entry_times, level_from_proto, level_to_proto, names, packet_fits};
use crate::clock::Moment;
use crate::entry::Entry;
use crate::key::Key;
use crate::link::{Lookup, LookupMode, Message, Publish, Reply, WriteLevel};
use crate::token::Token;

/// Octets of a frame besides keys and packets, about: numbers, and a token.
const REST: usize = 40;

/// Field numbers of `session.proto` and `entry.proto`.
mod field {
    pub(super) mod frame {
        pub(crate) const ID: u32 = 1;
        pub(crate) const LOOKUP: u32 = 5;
        pub(crate) const REPLY: u32 = 6;
        pub(crate) const PUBLISH: u32 = 8;
        pub(crate) const COPY: u32 = 13;
    }
    pub(super) mod lookup {
        pub(crate) const KEY: u32 = 1;
        pub(crate) const DEADLINE: u32 = 2;
        pub(crate) const STREAM: u32 = 4;
        pub(crate) const MODE: u32 = 6;
    }
    pub(super) mod reply {
        pub(crate) const ENTRY: u32 = 2;
        pub(crate) const GRANTED: u32 = 4;
    }
    pub(super) mod granted {
        pub(crate) const TOKEN: u32 = 1;
        pub(crate) const TAKEOVER: u32 = 2;
    }
    pub(super) mod publish {
        pub(crate) const KEY: u32 = 1;
        pub(crate) const ENTRY: u32 = 2;
        pub(crate) const TOKEN: u32 = 3;
        pub(crate) const LEVEL: u32 = 4;
    }
    pub(super) mod copy {
        pub(crate) const KEY: u32 = 1;
        pub(crate) const ENTRY: u32 = 2;
        pub(crate) const WRITE: u32 = 3;
    }
    pub(super) mod entry {
        pub(crate) const PACKET: u32 = 1;
        pub(crate) const AGE: u32 = 2;
        pub(crate) const LIFETIME: u32 = 3;
        pub(crate) const PURGES: u32 = 30;
    }
    pub(super) mod token {
        pub(crate) const GRANTER: u32 = 1;
        pub(crate) const INCARNATION: u32 = 2;
        pub(crate) const COUNTER: u32 = 3;
    }
}

/// Writes the message as field `number`, if it is one of those. Ages and remaining times are those at `now`.
#[inline]
pub(super) fn write(out: &mut Writer, number: u32, message: &Message, now: Moment) -> bool {
    use field::frame;
    match message {
        Message::Lookup { id, lookup } if is_plain(lookup) => {
            let key = lookup.key.as_bytes();
            out.message(number, key.len() + REST / 2, |out| {
                out.number(frame::ID, *id);
                out.message(frame::LOOKUP, key.len() + REST / 4, |out| {
                    out.octets(field::lookup::KEY, key);
                    let deadline = u32::try_from(lookup.deadline.as_millis()).unwrap_or(u32::MAX);
                    out.number(field::lookup::DEADLINE, deadline.into());
                    out.number(field::lookup::STREAM, lookup.stream);
                    out.number(field::lookup::MODE, pb::LookupMode::Join as u64);
                });
            });
        }
        Message::Reply { id, reply: Reply::Entry(entry) } => {
            let about = entry.packet.len() + REST / 2;
            out.message(number, about, |out| {
                out.number(frame::ID, *id);
                out.message(frame::REPLY, about, |out| write_entry(out, field::reply::ENTRY, entry, now));
            });
        }
        Message::Reply { id, reply: Reply::Granted { token, takeover, ask_first: None } } => {
            out.message(number, REST, |out| {
                out.number(frame::ID, *id);
                out.message(frame::REPLY, REST, |out| {
                    out.message(field::reply::GRANTED, REST, |out| {
                        write_token(out, field::granted::TOKEN, token);
                        out.number(field::granted::TAKEOVER, (*takeover).into());
                    });
                });
            });
        }
        Message::Publish { id, publish } => {
            let key = publish.key.as_bytes();
            let about = key.len() + publish.entry.packet.len() + REST;
            out.message(number, about, |out| {
                out.number(frame::ID, *id);
                out.message(frame::PUBLISH, about, |out| {
                    out.octets(field::publish::KEY, key);
                    write_entry(out, field::publish::ENTRY, &publish.entry, now);
                    if let Some(token) = &publish.token {
                        write_token(out, field::publish::TOKEN, token);
                    }
                    out.number(field::publish::LEVEL, level_to_proto(publish.level) as u64);
                });
            });
        }
        Message::Copy { key, entry, write } => {
            let key = key.as_bytes();
            let about = key.len() + entry.packet.len() + REST / 2;
            out.message(number, about, |out| {
                out.message(frame::COPY, about, |out| {
                    out.octets(field::copy::KEY, key);
                    write_entry(out, field::copy::ENTRY, entry, now);
                    out.number(field::copy::WRITE, write.map_or(0, NonZeroU64::get));
                });
            });
        }
        _ => return false,
    }
    true
}

/// Whether it is a lookup as nearly all are: nobody was skipped, nobody traces it.
fn is_plain(lookup: &Lookup) -> bool {
    lookup.mode == LookupMode::Join && lookup.skipped.is_empty() && lookup.trace.is_none()
}

#[inline]
fn write_entry(out: &mut Writer, number: u32, entry: &Entry, now: Moment) {
    use field::entry;
    let (age, lifetime) = entry_times(entry, now);
    out.message(number, entry.packet.len() + REST / 4, |out| {
        out.octets(entry::PACKET, &entry.packet);
        out.number(entry::AGE, age);
        out.number(entry::LIFETIME, lifetime);
        out.number(entry::PURGES, entry.since);
    });
}

#[inline]
fn write_token(out: &mut Writer, number: u32, token: &Token) {
    out.message(number, REST, |out| {
        out.octets(field::token::GRANTER, token.granter.as_bytes());
        out.fixed(field::token::INCARNATION, token.incarnation);
        out.number(field::token::COUNTER, token.counter);
    });
}

/// Reads a frame whose ages count from `anchor`. `None` when it is anything else, or not well formed: the generated types say what.
#[inline]
pub(super) fn read(frame: Fields<'_>, anchor: Moment) -> Option<Message> {
    use field::frame;
    let (mut id, mut kind) = (0, None);
    for_each(frame, |number, value| match (number, value) {
        (frame::ID, Value::Number(value)) => set(&mut id, value),
        (_, Value::Octets(inner)) if kind.is_none() => set(&mut kind, Some((number, inner))),
        _ => None,
    })?;
    match kind? {
        (frame::LOOKUP, inner) => Some(Message::Lookup { id, lookup: read_lookup(inner)? }),
        (frame::REPLY, inner) => Some(Message::Reply { id, reply: read_reply(inner, anchor)? }),
        (frame::PUBLISH, inner) => Some(Message::Publish { id, publish: read_publish(inner, anchor)? }),
        (frame::COPY, inner) => read_copy(inner, anchor),
        _ => None,
    }
}

#[inline]
fn read_lookup(fields: Fields<'_>) -> Option<Lookup> {
    use field::lookup;
    let (mut key, mut deadline, mut stream, mut mode) = (None, 0, 0, 0);
    for_each(fields, |number, value| match (number, value) {
        (lookup::KEY, Value::Octets(octets)) => set(&mut key, Some(octets.cut())),
        (lookup::DEADLINE, Value::Number(value)) => set(&mut deadline, u32::try_from(value).ok()?),
        (lookup::STREAM, Value::Number(value)) => set(&mut stream, value),
        (lookup::MODE, Value::Number(value)) => set(&mut mode, value),
        _ => None,
    })?;
    let is_join = mode == pb::LookupMode::Join as u64;
    let key = Key::from_bytes(key.filter(|_| is_join)?).ok()?;
    let deadline = Duration::from_millis(deadline.into());
    Some(Lookup { key, deadline, skipped: Vec::new(), stream, trace: None, mode: LookupMode::Join })
}

#[inline]
fn read_reply(fields: Fields<'_>, anchor: Moment) -> Option<Reply> {
    use field::reply;
    let mut reply = None;
    for_each(fields, |number, value| match (number, value) {
        (reply::ENTRY, Value::Octets(inner)) if reply.is_none() => {
            set(&mut reply, Some(Reply::Entry(read_entry(inner, anchor)?)))
        }
        (reply::GRANTED, Value::Octets(inner)) if reply.is_none() => set(&mut reply, Some(read_granted(inner)?)),
        _ => None,
    })?;
    reply
}

#[inline]
fn read_granted(fields: Fields<'_>) -> Option<Reply> {
    use field::granted;
    let (mut token, mut takeover) = (None, false);
    for_each(fields, |number, value| match (number, value) {
        (granted::TOKEN, Value::Octets(inner)) if token.is_none() => set(&mut token, Some(read_token(inner)?)),
        (granted::TAKEOVER, Value::Number(value)) => set(&mut takeover, value != 0),
        _ => None,
    })?;
    Some(Reply::Granted { token: token?, takeover, ask_first: None })
}

#[inline]
fn read_publish(fields: Fields<'_>, anchor: Moment) -> Option<Publish> {
    use field::publish;
    let (mut key, mut entry, mut token, mut level) = (None, None, None, None);
    for_each(fields, |number, value| match (number, value) {
        (publish::KEY, Value::Octets(octets)) => set(&mut key, Some(octets.cut())),
        (publish::ENTRY, Value::Octets(inner)) if entry.is_none() => set(&mut entry, Some(read_entry(inner, anchor)?)),
        (publish::TOKEN, Value::Octets(inner)) if token.is_none() => set(&mut token, Some(read_token(inner)?)),
        (publish::LEVEL, Value::Number(value)) => set(&mut level, read_level(value)?),
        _ => None,
    })?;
    Some(Publish { key: Key::from_bytes(key?).ok()?, entry: entry?, token, level })
}

fn read_level(value: u64) -> Option<Option<WriteLevel>> {
    Some(level_from_proto(pb::WriteLevel::try_from(i32::try_from(value).ok()?).ok()?))
}

#[inline]
fn read_copy(fields: Fields<'_>, anchor: Moment) -> Option<Message> {
    use field::copy;
    let (mut key, mut entry, mut write) = (None, None, 0);
    for_each(fields, |number, value| match (number, value) {
        (copy::KEY, Value::Octets(octets)) => set(&mut key, Some(octets.cut())),
        (copy::ENTRY, Value::Octets(inner)) if entry.is_none() => set(&mut entry, Some(read_entry(inner, anchor)?)),
        (copy::WRITE, Value::Number(value)) => set(&mut write, value),
        _ => None,
    })?;
    Some(Message::Copy { key: Key::from_bytes(key?).ok()?, entry: entry?, write: NonZeroU64::new(write) })
}

#[inline]
fn read_entry(fields: Fields<'_>, anchor: Moment) -> Option<Entry> {
    use field::entry;
    let (mut packet, mut age, mut lifetime, mut purges) = (Bytes::new(), 0, 0, 0);
    for_each(fields, |number, value| match (number, value) {
        (entry::PACKET, Value::Octets(octets)) => set(&mut packet, octets.cut()),
        (entry::AGE, Value::Number(value)) => set(&mut age, value),
        (entry::LIFETIME, Value::Number(value)) => set(&mut lifetime, value),
        (entry::PURGES, Value::Number(value)) => set(&mut purges, value),
        _ => None,
    })?;
    packet_fits(&packet).then(|| dated(packet, age, lifetime, purges, anchor))
}

#[inline]
fn read_token(fields: Fields<'_>) -> Option<Token> {
    use field::token;
    let (mut granter, mut incarnation, mut counter) = (None, 0, 0);
    for_each(fields, |number, value| match (number, value) {
        (token::GRANTER, Value::Octets(octets)) => set(&mut granter, Some(octets.octets())),
        (token::INCARNATION, Value::Fixed(value)) => set(&mut incarnation, value),
        (token::COUNTER, Value::Number(value)) => set(&mut counter, value),
        _ => None,
    })?;
    Some(Token { granter: names::read(granter?)?, incarnation, counter })
}

/// Takes each field, until one is not taken. `None` then, and when the octets end in the middle of a field.
#[inline]
fn for_each<'a>(mut fields: Fields<'a>, mut take: impl FnMut(u32, Value<'a>) -> Option<()>) -> Option<()> {
    for (number, value) in fields.by_ref() {
        take(number, value)?;
    }
    fields.is_over().then_some(())
}

/// The last of several fields of one number counts.
#[inline]
fn set<T>(to: &mut T, value: T) -> Option<()> {
    *to = value;
    Some(())
}

#[cfg(test)]
mod tests;
