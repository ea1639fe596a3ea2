//! The one acceptor of answers, for upstream packets and for peers' packets alike.
//!
//! An accepted answer is in *normal form*: ID 0; QR, RD and RA set; AA as received; TC, Z and AD clear; CD as in the
//! key; NOERROR or NXDOMAIN; the key's question in lower case; only records to which that question leads (`reach`), and so
//! no OPT; without DO none of RRSIG, NSEC and NSEC3 unless that type was asked; every TTL within the limits. Its lifetime is
//! the smallest TTL of any record in any section. A packet that needs nothing taken out but a trailing OPT keeps its octets; else, or if a compression pointer leads to
//! something that is no name, its records are written anew.

use std::time::Duration;

use bytes::Bytes;

use super::encode::Encoder;
use super::message::{HEADER, MAX_MESSAGE, Malformed, Message, Question, Record, Records, Section};
use super::name::Anchors;
use super::rdata;
use super::reach::Reach;
use super::rr::{rcode, rtype};
use crate::key::Key;

/// The header's second flag octet and the fixed bits of the first, in normal form (without AA, CD and the rcode).
const QR_RD: u8 = 0x81;
const AA: u8 = 0x04;
const RA: u8 = 0x80;
const CD: u8 = 0x10;

/// MAILB and MAILA (RFC 1035 3.2.3) ask for types other than themselves, as ANY does.
const MAILB: u16 = 253;
const MAILA: u16 = 254;

/// The longest that answers may live here, whatever their origin says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TtlLimits {
    /// For every record. A TTL above it, or with the top bit set, becomes this one.
    pub max: Duration,
    /// For the SOA record of a negative answer, and so for the answer.
    pub negative_max: Duration,
}

impl Default for TtlLimits {
    /// One day, as RFC 8767 4 advises for a cap ("on the order of days to weeks" is too long for a shared cache that
    /// has no way to hear of a change), and one hour for negative answers (RFC 2308 5: "one to three hours").
    fn default() -> Self {
        Self { max: Duration::from_secs(86_400), negative_max: Duration::from_secs(3_600) }
    }
}

/// An accepted answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The packet in normal form, with memory of its own.
    pub packet: Bytes,
    /// How long it may live, counted from the start of the exchange that fetched it. Zero: for those who wait only.
    pub lifetime: Duration,
}

/// Why a packet is not an answer to the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It does not parse.
    #[error("malformed: {0}")]
    Malformed(#[from] Malformed),
    /// QR is 0.
    #[error("not a response")]
    NotAResponse,
    /// Not a standard query's opcode.
    #[error("opcode {0} where 0 was expected")]
    Opcode(u8),
    /// Another question than the key's, or none.
    #[error("answers another question")]
    WrongQuestion,
    /// TC is set.
    #[error("truncated")]
    Truncated,
    /// Neither NOERROR nor NXDOMAIN, extended bits included.
    #[error("return code {0}")]
    Rcode(u16),
    /// Larger than a message can be.
    #[error("larger than 65,535 octets")]
    TooLarge,
    /// From a peer: parses, but is not in normal form.
    #[error("not in normal form: {0}")]
    NotNormal(&'static str),
    /// From a peer: a TTL above the limits.
    #[error("TTL {0} s is above the limit")]
    Ttl(u32),
}

/// Turns an upstream's packet into an answer to `key`. Other return codes than NOERROR and NXDOMAIN are refused with
/// [`Refused::Rcode`], TC with [`Refused::Truncated`]: what to do then is the caller's decision.
pub fn normalise(key: &Key, packet: &[u8], limits: &TtlLimits) -> Result<Answer, Refused> {
    let message = Message::parse(packet)?;
    let question = response_to(key, &message)?;
    let reach = Reach::of(key, &message)?;
    let mut anchors = anchors(&message);
    let mut anew = false;
    for record in message.records() {
        let record = record?;
        anew |= !sound(packet, &record, &mut anchors)?;
        let trailing_opt = record.rtype == rtype::OPT && record.end() == message.end();
        anew |= !(trailing_opt || reach.covers(&record)?);
    }
    let end = match message.opt() {
        Some(opt) if opt.rdata.end == message.end() => opt.at,
        _ => message.end(),
    };
    let mut octets = packet.get(..end).unwrap_or_default().to_vec();
    // Lower case before anything is expanded: owners mostly point at the question, whatever case it was sent in.
    if let Some(name) = octets.get_mut(question.name.clone()) {
        name.copy_from_slice(key.name());
    }
    let mut counts = message.header().records();
    if anew {
        (octets, counts) = rewrite(&reach, &octets, &message, &question)?;
    } else if message.opt().is_some() {
        counts[2] = counts[2].saturating_sub(1);
    }
    if octets.len() > MAX_MESSAGE {
        return Err(Refused::TooLarge);
    }
    write_header(key, &message, &mut octets, counts);
    let lifetime = clamp(Life::start(key, &message, limits), &mut octets, &question, counts)?;
    Ok(Answer { packet: Bytes::from(octets), lifetime })
}

/// The same answer with this TTL on every record.
pub fn with_ttl(packet: &[u8], seconds: u32) -> Bytes {
    let mut octets = packet.to_vec();
    if let Ok(message) = Message::parse(packet) {
        for record in message.records().flatten() {
            if let Some(ttl) = octets.get_mut(record.ttl_at..record.ttl_at + 4) {
                ttl.copy_from_slice(&seconds.to_be_bytes());
            }
        }
    }
    Bytes::from(octets)
}

/// Checks a packet that claims to be in normal form, and gives the longest lifetime that it may have.
pub fn check(key: &Key, packet: &[u8], limits: &TtlLimits) -> Result<Duration, Refused> {
    if packet.len() > MAX_MESSAGE {
        return Err(Refused::TooLarge);
    }
    let message = Message::parse(packet)?;
    let question = response_to(key, &message)?;
    let not_normal = |what| Err(Refused::NotNormal(what));
    if message.end() != packet.len() {
        return not_normal("octets after the last record");
    }
    let mut expected = [0; HEADER];
    expected.copy_from_slice(packet.first_chunk::<HEADER>().ok_or(Malformed::NoHeader(packet.len()))?);
    flags(key, &message, &mut expected);
    if !packet.starts_with(&expected) {
        return not_normal("header");
    }
    if packet.get(question.name) != Some(key.name()) {
        return not_normal("question in upper case");
    }
    let reach = Reach::of(key, &message)?;
    let mut anchors = anchors(&message);
    let mut life = Life::start(key, &message, limits);
    for record in message.records() {
        let record = record?;
        if !sound(packet, &record, &mut anchors)? {
            return not_normal("a name that leans on something else than a name");
        }
        if !reach.covers(&record)? {
            return not_normal("a record that is not for this key");
        }
        life.take(packet, &record);
    }
    match life.over {
        Some(ttl) => Err(Refused::Ttl(ttl)),
        None => Ok(life.lifetime()),
    }
}

/// The question of a message that is a whole response to `key` with a usable return code.
fn response_to(key: &Key, message: &Message<'_>) -> Result<Question, Refused> {
    let header = message.header();
    if !header.is_response() {
        return Err(Refused::NotAResponse);
    }
    if header.opcode() != 0 {
        return Err(Refused::Opcode(header.opcode()));
    }
    if !message.asks(key.name(), key.qtype(), key.qclass()) {
        return Err(Refused::WrongQuestion);
    }
    // RFC 2181 9: "When a DNS client receives a reply with TC set, it should ignore that response".
    if header.is_truncated() {
        return Err(Refused::Truncated);
    }
    let code = message.rcode();
    if code != u16::from(rcode::NOERROR) && code != u16::from(rcode::NXDOMAIN) {
        return Err(Refused::Rcode(code));
    }
    message.question().cloned().ok_or(Refused::WrongQuestion)
}

/// The labels of the question, which the first owner leans on.
fn anchors(message: &Message<'_>) -> Anchors {
    let mut anchors = Anchors::new(message.packet().len());
    if let Some(question) = message.question() {
        anchors.admit(message.packet(), question.name.start);
    }
    anchors
}

/// Checks a record's RDATA; whether its names lean on nothing but other names.
fn sound(packet: &[u8], record: &Record, anchors: &mut Anchors) -> Result<bool, Malformed> {
    let mut sound = anchors.admit(packet, record.owner);
    rdata::check(packet, record.rtype, &record.rdata, |name| sound &= anchors.admit(packet, name))?;
    Ok(sound)
}

/// Writes header, question and every record that the question leads to; `lower` is the packet with its question in lower case.
fn rewrite(
    reach: &Reach<'_>,
    lower: &[u8],
    message: &Message<'_>,
    question: &Question,
) -> Result<(Vec<u8>, [u16; 3]), Refused> {
    let mut out = Vec::with_capacity(lower.len());
    out.extend_from_slice(lower.get(..question.end()).unwrap_or_default());
    let mut encoder = Encoder::after(out, HEADER);
    let mut counts = [0; 3];
    for record in message.records() {
        let record = record?;
        if reach.covers(&record)? {
            encoder.record(lower, &record)?;
            counts[record.section as usize] += 1;
        }
    }
    Ok((encoder.finish(), counts))
}

fn write_header(key: &Key, message: &Message<'_>, octets: &mut [u8], counts: [u16; 3]) {
    let Some(header) = octets.first_chunk_mut::<HEADER>() else { return };
    flags(key, message, header);
    for (field, count) in header[6..].chunks_exact_mut(2).zip(counts) {
        field.copy_from_slice(&count.to_be_bytes());
    }
}

/// ID and flags in normal form.
fn flags(key: &Key, message: &Message<'_>, header: &mut [u8; HEADER]) {
    let from = message.header();
    header[0] = 0;
    header[1] = 0;
    header[2] = QR_RD | if from.is_authoritative() { AA } else { 0 };
    header[3] = RA | if key.flags().checking_disabled { CD } else { 0 } | from.rcode();
}

/// Brings every TTL within the limits and gives the answer's lifetime, which is `life` when all records are counted in.
fn clamp(mut life: Life, octets: &mut [u8], question: &Question, counts: [u16; 3]) -> Result<Duration, Refused> {
    let mut writes = Vec::new();
    for record in Records::after(octets, Some(question), counts) {
        let record = record?;
        let ttl = life.take(octets, &record);
        if ttl != record.ttl {
            writes.push((record.ttl_at, ttl));
        }
    }
    for (at, ttl) in writes {
        if let Some(field) = octets.get_mut(at..at + 4) {
            field.copy_from_slice(&ttl.to_be_bytes());
        }
    }
    Ok(life.lifetime())
}

/// The lifetime of an answer, found by a walk over its records in their order.
struct Life {
    limits: TtlLimits,
    qtype: u16,
    denied: bool,
    /// Whether a record of the type that was asked was among those of the answer section.
    answered: bool,
    smallest: Option<u32>,
    /// Whether an SOA record has said how long a negative answer may live.
    vouched: bool,
    /// The first TTL that was above its limit.
    over: Option<u32>,
}

impl Life {
    fn start(key: &Key, message: &Message<'_>, limits: &TtlLimits) -> Self {
        let denied = message.header().rcode() == rcode::NXDOMAIN;
        let (limits, qtype) = (*limits, key.qtype());
        Self { limits, qtype, denied, answered: false, smallest: None, vouched: false, over: None }
    }

    /// NXDOMAIN, or NOERROR without a record of the type that was asked (RFC 2308 2.1, 2.2; at the end of a CNAME chain too).
    /// Known when the answer section is over.
    const fn is_negative(&self) -> bool {
        self.denied || !self.answered
    }

    const fn is_asked(&self, rtype: u16) -> bool {
        matches!(self.qtype, rtype::ANY | MAILA | MAILB) || rtype == self.qtype
    }

    /// Counts a record in and gives the TTL that it may have.
    fn take(&mut self, packet: &[u8], record: &Record) -> u32 {
        // RFC 2181 8: the top bit is no sign. RFC 8767 4: a TTL with it set is a large one, and is capped.
        let mut ttl = record.ttl.min(seconds(self.limits.max));
        self.answered |= record.section == Section::Answer && self.is_asked(record.rtype);
        if record.section == Section::Authority && record.rtype == rtype::SOA && self.is_negative() {
            // RFC 2308 5: "the TTL of this record is set from the minimum of the MINIMUM field of the SOA record and the
            // TTL of the SOA itself".
            let minimum = packet.get(..record.rdata.end).and_then(|octets| octets.last_chunk::<4>());
            ttl =
                ttl.min(minimum.map_or(0, |octets| u32::from_be_bytes(*octets))).min(seconds(self.limits.negative_max));
            self.vouched = true;
        }
        if ttl < record.ttl {
            self.over.get_or_insert(record.ttl);
        }
        self.smallest = Some(self.smallest.map_or(ttl, |smallest| smallest.min(ttl)));
        ttl
    }

    fn lifetime(&self) -> Duration {
        match self.smallest {
            // RFC 2308 5: "Negative responses without SOA records SHOULD NOT be cached".
            Some(ttl) if !self.is_negative() || self.vouched => Duration::from_secs(u64::from(ttl)),
            _ => Duration::ZERO,
        }
    }
}

/// A limit in whole seconds, as a TTL can say it.
fn seconds(limit: Duration) -> u32 {
    u32::try_from(limit.as_secs()).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
