//! Whether two answers to one question can both be true. Pure.
//!
//! Answers differ for honest reasons: an origin that rotates or chooses addresses by who asks, a record that changed in
//! between, a serial number. What can only be told apart by guessing is [`Verdict::Unclear`] and counts for nobody.

use std::collections::BTreeSet;

use heimdall_shared::dns::message::{Message, Record, Section};
use heimdall_shared::dns::name;
use heimdall_shared::dns::rr::{rcode, rtype};
use heimdall_shared::key::Key;

/// What two answers to one question say about each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Both may be true.
    Agrees,
    /// They say different things, as honest ones may.
    Unclear,
    /// One of them is wrong.
    Contradicts,
}

impl Verdict {
    /// In one word, as metrics show it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Agrees => "agrees",
            Self::Unclear => "unclear",
            Self::Contradicts => "contradicts",
        }
    }
}

/// SVCB, as HTTPS (RFC 9460): carries keys that are changed by the hour.
const SVCB: u16 = 64;

/// Compares two accepted answers to `key`.
///
/// Existing or not is a contradiction; of two answers with data one common record is enough to agree, since rotated and
/// limited sets overlap. Where a chain of aliases begins alike and ends differently, a content network has chosen.
pub fn compare(key: &Key, one: &[u8], other: &[u8]) -> Verdict {
    let (Some(one), Some(other)) = (Said::by(key, one), Said::by(key, other)) else { return Verdict::Unclear };
    match (one.data.is_empty(), other.data.is_empty()) {
        // Some servers say NXDOMAIN where others say that there is no such data.
        (true, true) => Verdict::Agrees,
        (true, false) | (false, true) => Verdict::Contradicts,
        (false, false) if changes_by_itself(key.qtype()) => Verdict::Agrees,
        (false, false) if !one.data.is_disjoint(&other.data) => Verdict::Agrees,
        (false, false) if one.alias.is_some() && one.alias == other.alias => Verdict::Unclear,
        (false, false) => Verdict::Contradicts,
    }
}

/// What an upstream says twice in a row is what it stands by; data that it changes at once, nobody can be blamed for. `given`
/// is a peer's answer, the other two are this replica's own.
pub fn confirm(key: &Key, given: &[u8], first: &[u8], second: &[u8]) -> Verdict {
    let verdict = compare(key, given, second);
    let has_data = |packet| Said::by(key, packet).map(|said| !said.data.is_empty());
    match compare(key, first, second) {
        Verdict::Agrees => verdict,
        // Twice it said that there is something, and not twice what.
        _ if has_data(first) == has_data(second) && has_data(given) == Some(false) => verdict,
        Verdict::Unclear | Verdict::Contradicts => Verdict::Unclear,
    }
}

/// Types whose data is another at every change of the zone, at every signing, or for every asker.
const fn changes_by_itself(qtype: u16) -> bool {
    matches!(
        qtype,
        rtype::SOA | rtype::RRSIG | rtype::NSEC | rtype::NSEC3 | rtype::HTTPS | SVCB | rtype::NAPTR | rtype::ANY
    )
}

/// What an answer says in its answer section.
struct Said {
    /// The data of the asked type, names in it expanded and in lower case.
    data: BTreeSet<Vec<u8>>,
    /// Where the question's alias leads.
    alias: Option<Vec<u8>>,
}

impl Said {
    fn by(key: &Key, packet: &[u8]) -> Option<Self> {
        let message = Message::parse(packet).ok()?;
        let mut said = Self { data: BTreeSet::new(), alias: None };
        if message.header().rcode() != rcode::NOERROR {
            return Some(said);
        }
        for record in message.records().map_while(Result::ok).take_while(|record| record.section == Section::Answer) {
            if record.rtype == key.qtype() || key.qtype() == rtype::ANY {
                said.data.insert(data(packet, &record)?);
            } else if record.rtype == rtype::CNAME && said.alias.is_none() {
                said.alias = Some(data(packet, &record)?);
            }
        }
        Some(said)
    }
}

/// A record's data in a form in which equal data is equal octets. Only the types that are compared need their names
/// expanded; SRV's must not be compressed (RFC 2782).
fn data(packet: &[u8], record: &Record) -> Option<Vec<u8>> {
    let octets = packet.get(record.rdata.clone())?;
    let before_name = match record.rtype {
        rtype::CNAME | rtype::NS | rtype::PTR => 0,
        rtype::MX => 2,
        rtype::SRV => 6,
        _ => return Some(octets.to_vec()),
    };
    let (mut target, _) = name::expand(packet, record.rdata.start + before_name).ok()?;
    target.make_lower_case();
    Some([octets.get(..before_name)?, target.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use heimdall_shared::key::Flags;
    use proptest::prelude::*;

    use super::*;

    const CNAME: u16 = rtype::CNAME;

    fn key(qtype: u16) -> Key {
        Key::new(b"\x01a\x00", qtype, 1, Flags::default(), "").unwrap()
    }

    /// An answer with this return code and these records: type and data, all of the question's name.
    fn answer(qtype: u16, rcode: u8, records: &[(u16, &[u8])]) -> Vec<u8> {
        let mut packet = vec![0, 0, 0x81, 0x80 | rcode, 0, 1, 0, records.len() as u8, 0, 0, 0, 0];
        packet.extend_from_slice(b"\x01a\x00");
        packet.extend_from_slice(&qtype.to_be_bytes());
        packet.extend_from_slice(&[0, 1]);
        for (rtype, data) in records {
            packet.extend_from_slice(b"\xC0\x0C");
            packet.extend_from_slice(&rtype.to_be_bytes());
            packet.extend_from_slice(&[0, 1, 0, 0, 0, 60, 0, data.len() as u8]);
            packet.extend_from_slice(data);
        }
        packet
    }

    fn addresses(last: &[u8]) -> Vec<u8> {
        let data: Vec<[u8; 4]> = last.iter().map(|&last| [10, 0, 0, last]).collect();
        answer(rtype::A, 0, &data.iter().map(|data| (rtype::A, &data[..])).collect::<Vec<_>>())
    }

    #[test]
    fn existing_or_not_is_a_contradiction_and_sets_that_overlap_agree() {
        let (nothing, no_data) = (answer(rtype::A, rcode::NXDOMAIN, &[]), answer(rtype::A, 0, &[]));
        for (one, other, expected) in [
            (addresses(&[1, 2, 3]), addresses(&[1, 2, 3]), Verdict::Agrees),
            (addresses(&[1, 2, 3]), addresses(&[3, 4]), Verdict::Agrees),
            (addresses(&[1]), addresses(&[2]), Verdict::Contradicts),
            (nothing.clone(), addresses(&[1]), Verdict::Contradicts),
            (no_data.clone(), addresses(&[1]), Verdict::Contradicts),
            (nothing, no_data, Verdict::Agrees),
            (addresses(&[1]), b"junk".to_vec(), Verdict::Unclear),
        ] {
            assert_eq!(compare(&key(rtype::A), &one, &other), expected, "{one:?} and {other:?}");
            assert_eq!(compare(&key(rtype::A), &other, &one), expected, "{other:?} and {one:?}");
        }
    }

    #[test]
    fn an_alias_that_is_the_same_may_end_anywhere_and_one_that_is_not_may_not() {
        let through = |alias: &[u8], last: u8| answer(rtype::A, 0, &[(CNAME, alias), (rtype::A, &[10, 0, 0, last])]);
        let same = compare(&key(rtype::A), &through(b"\x03cdn\x00", 1), &through(b"\x03CDN\x00", 2));
        assert_eq!(same, Verdict::Unclear);
        let other = compare(&key(rtype::A), &through(b"\x03cdn\x00", 1), &through(b"\x04evil\x00", 2));
        assert_eq!(other, Verdict::Contradicts);
        assert_eq!(compare(&key(rtype::A), &through(b"\x03cdn\x00", 1), &addresses(&[2])), Verdict::Contradicts);
    }

    #[test]
    fn names_are_compared_as_names_and_not_as_octets() {
        let plain = answer(rtype::NS, 0, &[(rtype::NS, b"\x02ns\x01a\x00")]);
        let pointing = answer(rtype::NS, 0, &[(rtype::NS, b"\x02NS\xC0\x0C")]);
        assert_eq!(compare(&key(rtype::NS), &plain, &pointing), Verdict::Agrees);
    }

    #[test]
    fn what_changes_by_itself_is_nobody_s_lie_unless_it_is_not_there_at_all() {
        let serial = |last: u8| answer(rtype::HTTPS, 0, &[(rtype::HTTPS, &[0, 1, 0, last])]);
        assert_eq!(compare(&key(rtype::HTTPS), &serial(1), &serial(2)), Verdict::Agrees);
        let nothing = answer(rtype::HTTPS, rcode::NXDOMAIN, &[]);
        assert_eq!(compare(&key(rtype::HTTPS), &serial(1), &nothing), Verdict::Contradicts);
    }

    #[test]
    fn an_upstream_that_contradicts_itself_proves_nothing() {
        let confirm = |first: &[u8], second: &[u8]| {
            confirm(&key(rtype::A), &addresses(&[1]), &addresses(first), &addresses(second))
        };
        assert_eq!(confirm(&[2], &[2]), Verdict::Contradicts);
        assert_eq!(confirm(&[2], &[3]), Verdict::Unclear);
        assert_eq!(confirm(&[2], &[2, 1]), Verdict::Agrees);
        let nothing = answer(rtype::A, rcode::NXDOMAIN, &[]);
        let denied = |first: &[u8], second: &[u8]| super::confirm(&key(rtype::A), &nothing, first, second);
        assert_eq!(denied(&addresses(&[2]), &addresses(&[3])), Verdict::Contradicts, "it is there, whatever it is");
        assert_eq!(denied(&addresses(&[2]), &nothing), Verdict::Unclear);
    }

    proptest! {
        #[test]
        fn nothing_contradicts_itself_and_octets_of_any_kind_are_compared(
            one in proptest::collection::vec(any::<u8>(), 0..80), last in proptest::collection::vec(any::<u8>(), 1..9)
        ) {
            let key = key(rtype::A);
            prop_assert_ne!(compare(&key, &one, &one), Verdict::Contradicts);
            prop_assert_eq!(compare(&key, &addresses(&last), &addresses(&last)), Verdict::Agrees);
            prop_assert_eq!(compare(&key, &one, &addresses(&last)), compare(&key, &addresses(&last), &one));
        }
    }
}
