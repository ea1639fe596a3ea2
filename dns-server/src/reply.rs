//! What a client gets: octets into the caller's buffer. Pure, and without an allocation.

use heimdall_shared::dns::message::HEADER;
use heimdall_shared::dns::rr::{rcode, rtype};

use crate::cache::{Head, Ready, age};
use crate::query::{Edns, LEAST_UDP_PAYLOAD, Query, Reject, UDP_PAYLOAD};

const QR: u8 = 0x80;
const AA: u8 = 0x04;
const TC: u8 = 0x02;
const RD: u8 = 0x01;
const RA: u8 = 0x80;
const CD: u8 = 0x10;

/// Octets of an OPT record without options.
const OPT_LEN: usize = 11;

/// Octets of an answer that fits into any limit, whether an OPT record comes behind it or not.
const FITS_ALWAYS: usize = LEAST_UDP_PAYLOAD as usize - OPT_LEN;

/// Octets of an extended error without text: option code, length, info-code.
const EDE_LEN: usize = 6;

/// TTL of every record of a stale answer. RFC 8767 4: "the TTL of the expired records in the response SHOULD be set to a
/// value greater than zero, with 30 seconds being RECOMMENDED".
pub const STALE_TTL: u32 = 30;

/// Octets of the longest reply that is written without an entry: header, question, OPT, extended error.
pub const SHORT_MAX: usize = HEADER + 255 + 4 + OPT_LEN + EDE_LEN;

/// Largest reply over TCP in octets.
pub const TCP_LIMIT: usize = 65_535;

/// Why a query failed, in the numbers of RFC 8914. Sent only to clients that sent an OPT record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ede {
    /// The answer is over; no upstream gives a new one.
    StaleAnswer = 3,
    /// This server is full or not ready.
    NotReady = 14,
    /// The question is refused to everybody.
    Prohibited = 18,
    /// The denial is over; no upstream gives a new answer.
    StaleNxdomain = 19,
    /// The server does not do what was asked.
    NotSupported = 21,
    /// No upstream gave an answer.
    NoReachableAuthority = 22,
}

/// Writes the answer that `ready` holds, `elapsed` whole seconds (rounded up) after its birth, and gives its length.
///
/// `out` must hold `limit` octets, and `limit` at least 512.
pub fn answer(query: &Query<'_>, ready: &Ready, elapsed: u32, fresh: bool, limit: usize, out: &mut [u8]) -> usize {
    let packet = ready.packet();
    if packet.len() <= limit {
        out[..packet.len()].copy_from_slice(packet);
        for at in ready.ttls() {
            age(out, at, elapsed);
        }
    }
    complete(query, Head::of(packet), packet.len(), fresh, limit, out)
}

/// Makes a reply of a cached packet of `length` octets, of which what follows the question was copied to `out`, and gives its
/// length.
///
/// What does not fit into `limit` leaves with TC and nothing but the question and OPT (RFC 2181 9).
#[inline(always)]
pub fn complete(query: &Query<'_>, head: Head, length: usize, fresh: bool, limit: usize, out: &mut [u8]) -> usize {
    let Head([flags, code, an0, an1, ns0, ns1, ar0, ar1]) = head;
    let code = code & 0x0F;
    // RFC 1034 4.3.1, 6.2.2: what comes out of a cache is not authoritative.
    let authoritative = if fresh { flags & AA } else { 0 };
    let opt_len = if query.head.edns.is_some() { OPT_LEN } else { 0 };
    // In this order: nearly every answer fits into any limit, and then neither of the other two need be known.
    if length > FITS_ALWAYS && length + opt_len > limit {
        let end = question(query, authoritative | TC, u16::from(code), out);
        return opt(query, u16::from(code), None, end, out);
    }
    flag_octets(query, authoritative, code, out);
    let [ar0, ar1] = additional(query, [ar0, ar1]);
    out[4..HEADER].copy_from_slice(&[0, 1, an0, an1, ns0, ns1, ar0, ar1]);
    // The client's own octets, so that its mixed case comes back (RFC 4343; draft-vixie-dnsext-dns0x20).
    copy(query.question, &mut out[HEADER..HEADER + query.question.len()]);
    opt(query, u16::from(code), None, length, out)
}

/// Copies octets to a place of the same length. Those of a usual question take two moves that overlap; a call to copy so few would be
/// most of the cost.
#[inline(always)]
fn copy(from: &[u8], to: &mut [u8]) {
    const PIECE: usize = 16;
    let (first, last) = (from.first_chunk::<PIECE>(), from.last_chunk::<PIECE>());
    if from.len() <= 2 * PIECE
        && let (Some(first), Some(last)) = (first, last)
    {
        if let Some(to) = to.first_chunk_mut() {
            *to = *first;
        }
        if let Some(to) = to.last_chunk_mut() {
            *to = *last;
        }
    } else {
        to.copy_from_slice(from);
    }
}

/// Writes the answer that `ready` held before it died, and gives its length. `out` and `limit` are as in [`answer`].
pub fn stale(query: &Query<'_>, ready: &Ready, limit: usize, out: &mut [u8]) -> usize {
    let packet = ready.packet();
    let code = packet[3] & 0x0F;
    let ede = Some(if code == rcode::NXDOMAIN { Ede::StaleNxdomain } else { Ede::StaleAnswer });
    let opt_len = if query.head.edns.is_some() { OPT_LEN + EDE_LEN } else { 0 };
    if packet.len() + opt_len > limit {
        let end = question(query, TC, u16::from(code), out);
        return opt(query, u16::from(code), ede, end, out);
    }
    let end = packet.len();
    out[..end].copy_from_slice(packet);
    flag_octets(query, 0, code, out);
    out[HEADER..HEADER + query.question.len()].copy_from_slice(query.question);
    for at in ready.ttls() {
        if let Some(field) = out[usize::from(at)..].first_chunk_mut::<4>() {
            *field = STALE_TTL.to_be_bytes();
        }
    }
    let count = additional(query, [out[10], out[11]]);
    out[10..HEADER].copy_from_slice(&count);
    opt(query, u16::from(code), ede, end, out)
}

/// Writes a reply that has no records: question, OPT and, with a reason, an extended error.
pub fn failure(query: &Query<'_>, rcode: u16, ede: Option<Ede>, out: &mut [u8]) -> usize {
    let end = question(query, 0, rcode, out);
    opt(query, rcode, ede, end, out)
}

/// Writes the reply to a query for which there is no room: SERVFAIL, so that the client asks another server.
pub fn overloaded(query: &Query<'_>, out: &mut [u8]) -> usize {
    failure(query, u16::from(rcode::SERVFAIL), Some(Ede::NotReady), out)
}

/// Octets that a reply with an answer of `packet` octets may need.
pub const fn room(packet: usize) -> usize {
    let with_opt = packet + OPT_LEN + EDE_LEN;
    if with_opt > SHORT_MAX { with_opt } else { SHORT_MAX }
}

/// Writes the reply to a message that was rejected; 0 octets where none may be sent.
pub fn rejection(reject: &Reject<'_>, out: &mut [u8]) -> usize {
    match *reject {
        Reject::Silent => 0,
        Reject::Bare { id, opcode, recursion_desired, rcode } => {
            out[..HEADER].fill(0);
            out[..2].copy_from_slice(&id.to_be_bytes());
            out[2] = QR | opcode << 3 | if recursion_desired { RD } else { 0 };
            out[3] = RA | rcode;
            HEADER
        }
        Reject::Refused { query, rcode, ede } => failure(&query, rcode, ede, out),
    }
}

/// Header without records, and question; gives the offset after them.
fn question(query: &Query<'_>, flags: u8, rcode: u16, out: &mut [u8]) -> usize {
    let [ar0, ar1] = additional(query, [0, 0]);
    out[..HEADER].copy_from_slice(&[0, 0, 0, 0, 0, 1, 0, 0, 0, 0, ar0, ar1]);
    flag_octets(query, flags, rcode as u8 & 0x0F, out);
    let end = HEADER + query.question.len();
    out[HEADER..end].copy_from_slice(query.question);
    end
}

/// ID and flags: RD and CD as the client sent them, RA always, AD never (RFC 6840 5.8: we validate nothing).
#[inline(always)]
fn flag_octets(query: &Query<'_>, flags: u8, rcode: u8, out: &mut [u8]) {
    let head = &query.head;
    let [high, low] = head.id.to_be_bytes();
    let first = QR | flags | if head.recursion_desired { RD } else { 0 };
    let second = RA | if head.checking_disabled { CD } else { 0 } | rcode;
    out[..4].copy_from_slice(&[high, low, first, second]);
}

/// The number of additional records, ours among them.
#[inline(always)]
fn additional(query: &Query<'_>, others: [u8; 2]) -> [u8; 2] {
    u16::from_be_bytes(others).saturating_add(u16::from(query.head.edns.is_some())).to_be_bytes()
}

/// Appends our OPT record if the client sent one (RFC 6891 7); gives the reply's length.
#[inline(always)]
fn opt(query: &Query<'_>, rcode: u16, ede: Option<Ede>, at: usize, out: &mut [u8]) -> usize {
    let Some(Edns { dnssec_ok, .. }) = query.head.edns else { return at };
    // RFC 3225 3: DO is copied; RFC 6891 6.1.4: all other flags are zero.
    let flags = u64::from(dnssec_ok) << 7;
    // Root name, type 41, payload size, upper return code, version 0, flags, in one word.
    let front = u64::from(rtype::OPT) << 40 | u64::from(UDP_PAYLOAD) << 24 | u64::from(rcode >> 4) << 16 | flags;
    let options = if ede.is_some() { EDE_LEN as u8 } else { 0 };
    let mut end = at + OPT_LEN;
    let record = &mut out[at..end];
    record[..8].copy_from_slice(&front.to_be_bytes());
    record[8..].copy_from_slice(&[0, 0, options]);
    if let Some(ede) = ede {
        out[end..end + EDE_LEN].copy_from_slice(&[0, 15, 0, 2, 0, ede as u8]);
        end += EDE_LEN;
    }
    end
}

#[cfg(test)]
#[path = "reply_tests.rs"]
mod tests;
