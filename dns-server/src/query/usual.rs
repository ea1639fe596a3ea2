//! The shape that nearly every query has, read with a third of the instructions of a full walk: one question of class IN,
//! nothing else but an OPT record without options. Anything else, and anything wrong, is left to the full walk, so that this
//! reader never has to say what is wrong with a packet.

use heimdall_shared::dns::message::{HEADER, Question};
use heimdall_shared::dns::name::{MAX_LABEL, MAX_NAME};
use heimdall_shared::dns::rr::{class, rtype};

use super::{Edns, Head, KeyBuf, LEAST_UDP_PAYLOAD, Query};

/// QDCOUNT 1 and no records, as the last eight octets of the header.
const QUESTION_ALONE: u64 = 1 << 48;

/// The same and one additional record.
const QUESTION_AND_ONE: u64 = QUESTION_ALONE + 1;

/// QR and OPCODE.
const QR_OPCODE: u8 = 0xF8;

/// CD.
const CD: u8 = 0x10;

/// Reads a query of the usual shape, of `length` octets at the front of `buffer`, and leaves its key in `key`; `None` means that the full walk must decide.
#[inline(always)]
pub(super) fn parse<'a>(buffer: &'a [u8], length: usize, key: &mut KeyBuf) -> Option<Query<'a>> {
    let packet = buffer.get(..length)?;
    let (&[i0, i1, first, second, ref counts @ ..], body) = packet.split_first_chunk::<HEADER>()?;
    if first & QR_OPCODE != 0 {
        return None;
    }
    let (name, rest) = body.split_at_checked(name_length(body)?)?;
    let (&tail, additional) = rest.split_first_chunk::<{ Question::TAIL }>()?;
    let [t0, t1, c0, c1] = tail;
    if u16::from_be_bytes([c0, c1]) != class::IN {
        return None;
    }
    // Types that are refused, or that are no types of a question.
    if matches!(u16::from_be_bytes([t0, t1]), rtype::OPT | rtype::AXFR | rtype::IXFR) {
        return None;
    }
    let edns = match u64::from_be_bytes(*counts) {
        QUESTION_ALONE if additional.is_empty() => None,
        QUESTION_AND_ONE => Some(opt(additional)?),
        _ => return None,
    };
    let head = Head {
        id: u16::from_be_bytes([i0, i1]),
        recursion_desired: first & 1 != 0,
        checking_disabled: second & CD != 0,
        edns,
    };
    key.fill(&buffer[HEADER..], name.len(), tail, head.flags());
    Some(Query { head, question: &body[..name.len() + Question::TAIL] })
}

/// Length of the uncompressed name at the front.
#[inline(always)]
fn name_length(octets: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let label = *octets.get(at)?;
        at += 1 + usize::from(label);
        // The root or too long, in one comparison.
        if usize::from(label.wrapping_sub(1)) >= MAX_LABEL {
            return (label == 0 && at <= MAX_NAME).then_some(at);
        }
    }
}

/// Root name and type 41, then the fields that differ, then version 0: the front of an OPT record.
const OPT_FRONT: u64 = 41 << 40;

/// Which of these bits differ from record to record: the payload size, the upper part of the return code, the first flags.
const OPT_VARIES: u64 = 0x00FF_FFFF_00FF;

/// What an OPT record of version 0 without options says; `None` for anything else.
#[inline(always)]
fn opt(record: &[u8]) -> Option<Edns> {
    let &[r0, r1, r2, r3, r4, r5, r6, r7, _, 0, 0] = record else { return None };
    // All fixed octets in one comparison.
    let front = u64::from_be_bytes([r0, r1, r2, r3, r4, r5, r6, r7]);
    if front & !OPT_VARIES != OPT_FRONT {
        return None;
    }
    let udp_size = ((front >> 24) as u16).max(LEAST_UDP_PAYLOAD);
    Some(Edns { udp_size, dnssec_ok: front & 0x80 != 0 })
}
