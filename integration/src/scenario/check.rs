//! Whether a reply is the one that the script expects.

use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::packets::Packet;
use crate::client::verify_address;
use crate::wire::{Message, Opt, Record, rcode_name};

/// Option code of extended DNS errors.
const EXTENDED_ERROR: u16 = 15;

/// What is known about a query when its reply is looked at.
pub(super) struct Asked<'a> {
    /// The query; `None` for bytes that are none.
    pub query: Option<&'a Message>,
    /// Its id.
    pub id: u16,
    /// How old an answer can be at most: the script's own age.
    pub oldest: Duration,
}

pub(super) fn check(asked: &Asked<'_>, expected: &Packet, bytes: &[u8]) -> Result<Message> {
    let reply = Message::parse(bytes)?;
    ensure!(reply.id == asked.id, "id {} in place of {}: {reply:?}", reply.id, asked.id);
    ensure!(reply.flags.has(crate::wire::Flags::QR), "QR must be set: {reply:?}");
    ensure!(reply.trailing.is_empty(), "bytes after the end: {reply:?}");
    if let Some(limit) = expected.at_most {
        ensure!(bytes.len() <= limit, "{} bytes where {limit} are allowed: {reply:?}", bytes.len());
    }
    ensure!(
        reply.rcode() == expected.rcode || expected.address,
        "{} in place of {}: {reply:?}",
        rcode_name(reply.rcode()),
        rcode_name(expected.rcode)
    );
    if let Some(flags) = expected.flags {
        ensure!(reply.flags.bits() == flags, "flags {:?} in place of {flags:?}: {reply:?}", reply.flags.bits());
    }
    if expected.header {
        ensure!(bytes.len() == 12, "{} bytes in place of a bare header: {reply:?}", bytes.len());
        return Ok(reply);
    }
    if let Some(query) = asked.query {
        ensure!(reply.questions == query.questions, "the question is not the query's own: {reply:?}");
        ensure!(reply.flags.opcode() == query.flags.opcode(), "another opcode: {reply:?}");
        check_opt(query.opt.as_ref(), expected.opt.as_ref(), &reply)?;
        if expected.address {
            verify_address(&reply, &query.questions[0].name.to_string())?;
            return Ok(reply);
        }
    }
    let [answers, authority, additional] = &expected.records;
    for (section, wanted, got) in [
        ("answer", answers, &reply.answers),
        ("authority", authority, &reply.authority),
        ("additional", additional, &reply.additional),
    ] {
        if let Err(error) = check_section(wanted, got, asked.oldest) {
            bail!("{section} section: {error}: {reply:?}");
        }
    }
    Ok(reply)
}

fn check_opt(asked: Option<&Opt>, expected: Option<&Opt>, reply: &Message) -> Result<()> {
    // RFC 6891 7: "Lack of presence of an OPT record in a request MUST be taken as an indication that the requestor does
    // not implement any part of this specification and that the responder MUST NOT include an OPT record in its response."
    let (asked, got) = match (asked, &reply.opt) {
        (None, None) => return Ok(()),
        (None, Some(_)) => bail!("an OPT that was not asked for: {reply:?}"),
        (Some(_), None) => bail!("the query had an OPT and the reply has none: {reply:?}"),
        (Some(asked), Some(got)) => (asked, got),
    };
    ensure!(got.version == 0, "EDNS version {}: {reply:?}", got.version);
    ensure!(got.flags == asked.flags & Opt::DO, "only DO is echoed: {reply:?}");
    let options = expected.map_or(&[][..], |expected| &expected.options);
    // RFC 8914 2: an extended error may stand in any reply; it changes nothing about what the reply says.
    let others = got.options.iter().filter(|(code, _)| *code != EXTENDED_ERROR);
    ensure!(others.eq(options), "options {:?} in place of {options:?}: {reply:?}", got.options);
    if let Some(expected) = expected.filter(|expected| expected.size != 0) {
        ensure!(got.size == expected.size, "UDP size {} in place of {}: {reply:?}", got.size, expected.size);
    }
    Ok(())
}

fn check_section(wanted: &[Record], got: &[Record], oldest: Duration) -> Result<()> {
    ensure!(wanted.len() == got.len(), "{} records in place of {}", got.len(), wanted.len());
    // A part of a second counts as a whole one: TTLs are rounded down.
    let age = u32::try_from(oldest.as_secs()).unwrap_or(u32::MAX).saturating_add(1);
    for (wanted, got) in wanted.iter().zip(got) {
        ensure!(wanted.same_data(got), "{got:?} in place of {wanted:?}");
        ensure!(
            got.ttl <= wanted.ttl && got.ttl >= wanted.ttl.saturating_sub(age),
            "TTL {} where the origin's is {} and the answer at most {age} s old",
            got.ttl,
            wanted.ttl
        );
    }
    Ok(())
}
