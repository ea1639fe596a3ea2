#![allow(clippy::unwrap_used)]

use heimdall_shared::key::{Flags, Key};
use proptest::prelude::*;

use super::*;
use crate::reply::{SHORT_MAX, rejection};

/// A query with these counts, then `body`.
fn packet(flags: [u8; 2], counts: [u16; 4], body: &[&[u8]]) -> Vec<u8> {
    let mut packet = vec![0x12, 0x34, flags[0], flags[1]];
    packet.extend(counts.iter().flat_map(|count| count.to_be_bytes()));
    packet.extend(body.concat());
    packet
}

const RD: [u8; 2] = [0x01, 0];
const QUESTION: &[u8] = b"\x03wWw\x07EXAMPLE\x00\x00\x01\x00\x01";

fn opt(size: u16, version: u8, flags: u8, rdata: &[u8]) -> Vec<u8> {
    let [high, low] = size.to_be_bytes();
    let mut opt = vec![0, 0, 41, high, low, 0, version, flags, 0];
    opt.extend((rdata.len() as u16).to_be_bytes());
    opt.extend_from_slice(rdata);
    opt
}

/// The reply to a message that must be rejected.
fn rejected(packet: &[u8]) -> Vec<u8> {
    let mut out = [0; SHORT_MAX];
    let reject = Query::parse(packet, &mut KeyBuf::new()).unwrap_err();
    let length = rejection(&reject, &mut out);
    out[..length].to_vec()
}

fn rcode_of(reply: &[u8]) -> u8 {
    reply[3] & 0x0F
}

#[test]
fn a_query_becomes_the_key_that_all_replicas_use() {
    let mut key = KeyBuf::new();
    let dnssec = opt(4_096, 0, 0x80, b"");
    for (flags, edns, expected) in [
        ([1, 0], &b""[..], Flags::default()),
        ([1, 0x10], b"", Flags { dnssec_ok: false, checking_disabled: true }),
        ([0, 0x30], &dnssec, Flags { dnssec_ok: true, checking_disabled: true }),
    ] {
        let packet = packet(flags, [1, 0, 0, u16::from(!edns.is_empty())], &[QUESTION, edns]);
        let query = Query::parse(&packet, &mut key).unwrap();
        assert_eq!(query.question, QUESTION);
        assert_eq!(query.head.recursion_desired, flags[0] == 1);
        let canonical = Key::new(b"\x03www\x07example\x00", 1, 1, expected, "").unwrap();
        assert_eq!(key.as_bytes(), canonical.as_bytes());
    }
}

#[test]
fn the_shape_of_nearly_every_query_needs_no_full_walk() {
    for (count, edns) in [(0, vec![]), (1, opt(1_232, 0, 0x80, b"")), (1, opt(100, 0, 0, b""))] {
        let packet = packet(RD, [1, 0, 0, count], &[QUESTION, &edns]);
        assert!(usual::parse(&packet, packet.len(), &mut KeyBuf::new()).is_some(), "{edns:?}");
    }
}

proptest! {
    /// One octet of a usual query is another one, and its end may be missing or followed by more.
    #[test]
    fn the_reader_of_the_usual_shape_agrees_with_the_full_walk(
        labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..64), 0..5),
        tail in prop_oneof![Just([0, 1, 0, 1]), any::<[u8; 4]>()],
        edns in prop::option::of(prop_oneof![Just(vec![]), prop::collection::vec(any::<u8>(), 0..9)]),
        flags in any::<[u8; 2]>(),
        change in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
        length in prop_oneof![3 => Just(None), 1 => any::<prop::sample::Index>().prop_map(Some)],
        more in prop_oneof![3 => Just(vec![]), 1 => prop::collection::vec(any::<u8>(), 1..4)],
    ) {
        let name: Vec<u8> = labels.iter().flat_map(|label| [&[label.len() as u8], label.as_slice()].concat()).collect();
        let edns = edns.map(|rdata| opt(1_232, 0, 0x80, &rdata));
        let counts = [1, 0, 0, u16::from(edns.is_some())];
        let mut octets = packet([flags[0] & 0x07, flags[1]], counts, &[&name, &[0], &tail, &edns.unwrap_or_default(), &more]);
        if let Some((at, octet)) = change {
            let at = at.index(octets.len());
            octets[at] = octet;
        }
        octets.truncate(length.map_or(octets.len(), |length| length.index(octets.len())));
        let (mut key, mut walked) = (KeyBuf::new(), KeyBuf::new());
        if let Some(query) = usual::parse(&octets, octets.len(), &mut key) {
            prop_assert_eq!(Query::parse_any(&octets, &mut walked), Ok(query));
            prop_assert_eq!(key.as_bytes(), walked.as_bytes());
        }
    }
}

#[test]
fn responses_and_fragments_of_a_header_get_silence() {
    let mut packet = packet([0x81, 0], [1, 0, 0, 0], &[QUESTION]);
    assert_eq!(rejected(&packet), b"");
    packet[2] = 0xA9; // another opcode makes no difference
    assert_eq!(rejected(&packet), b"");
    for length in 0..12 {
        assert_eq!(rejected(&[0; 11][..length.min(11)]), b"");
    }
}

#[test]
fn every_other_opcode_gets_notimp() {
    for opcode in 1..16_u8 {
        let reply = rejected(&packet([opcode << 3 | 1, 0], [1, 0, 0, 0], &[b"\xFF\xFF not a question"]));
        assert_eq!(reply, [0x12, 0x34, 0x80 | opcode << 3 | 1, 0x84, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}

#[test]
fn what_cannot_be_read_gets_twelve_octets_of_formerr() {
    let two_opts = [opt(512, 0, 0, b""), opt(512, 0, 0, b"")].concat();
    let pointer = b"\xC0\x0C\x00\x01\x00\x01";
    let broken_option = opt(512, 0, 0, b"\x00\x0A\x00\x09");
    type Case<'a> = (&'a str, [u16; 4], &'a [&'a [u8]]);
    let cases: [Case<'_>; 10] = [
        ("no question", [0, 0, 0, 0], &[]),
        ("two questions", [2, 0, 0, 0], &[QUESTION, QUESTION]),
        ("counts of 65,535", [65_535; 4], &[]),
        ("a cut question", [1, 0, 0, 0], &[&QUESTION[..QUESTION.len() - 1]]),
        ("a question that points at itself", [1, 0, 0, 0], &[pointer]),
        ("a label of 64", [1, 0, 0, 0], &[b"\x40aaaaaaaaa\x00\x00\x01\x00\x01"]),
        ("two OPT records", [1, 0, 0, 2], &[QUESTION, &two_opts]),
        ("an OPT record with an owner", [1, 0, 0, 1], &[QUESTION, b"\x01x", &opt(512, 0, 0, b"")]),
        ("an option past the end of its record", [1, 0, 0, 1], &[QUESTION, &broken_option]),
        ("type OPT", [1, 0, 0, 0], &[b"\x00\x00\x29\x00\x01"]),
    ];
    for (what, counts, body) in cases {
        let reply = rejected(&packet(RD, counts, body));
        assert_eq!(reply, [0x12, 0x34, 0x81, 0x81, 0, 0, 0, 0, 0, 0, 0, 0], "{what}");
    }
}

#[test]
fn an_unknown_edns_version_gets_badvers_in_version_zero() {
    let reply = rejected(&packet(RD, [1, 0, 0, 1], &[QUESTION, &opt(4_096, 1, 0x80, b"")]));
    assert_eq!(rcode_of(&reply), 0);
    assert_eq!(reply[4..12], [0, 1, 0, 0, 0, 0, 0, 1]);
    assert_eq!(reply[12..12 + QUESTION.len()], *QUESTION);
    assert_eq!(reply[12 + QUESTION.len()..], opt(1_232, 0, 0x80, b"").tap(|opt| opt[5] = 1));
}

trait Tap: Sized {
    fn tap(self, change: impl FnOnce(&mut Self)) -> Self;
}

impl<T> Tap for T {
    fn tap(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

#[test]
fn transfers_class_any_and_questions_about_the_server_are_refused() {
    for question in [
        &b"\x01a\x00\x00\xFC\x00\x01"[..],
        b"\x01a\x00\x00\xFB\x00\x01",
        b"\x01a\x00\x00\x01\x00\xFF",
        b"\x07vErsion\x04bind\x00\x00\x10\x00\x03",
        b"\x02id\x06server\x00\x00\x10\x00\x03",
    ] {
        let reply = rejected(&packet(RD, [1, 0, 0, 0], &[question]));
        assert_eq!((rcode_of(&reply), &reply[12..]), (5, question));
        let reply = rejected(&packet(RD, [1, 0, 0, 1], &[question, &opt(512, 0, 0, b"")]));
        assert_eq!(reply[reply.len() - 6..reply.len() - 2], [0, 15, 0, 2], "the reason is for clients with EDNS");
    }
}

#[test]
fn other_classes_and_types_pass_and_only_class_in_is_cacheable() {
    let mut key = KeyBuf::new();
    for (question, cacheable) in [
        (&b"\x01a\x00\xFF\x35\x00\x01"[..], true),
        (b"\x01a\x00\x00\xFF\x00\x01", true),
        (b"\x01a\x00\x00\x10\x00\x03", false),
        (b"\x01a\x00\x00\x01\xFF\x00", false),
        (b"\x00\x00\x02\x00\x01", true),
        (b"\x04a.\x00\xFF\x00\x00\x01\x00\x01", true),
    ] {
        let packet = packet(RD, [1, 0, 0, 0], &[question]);
        assert_eq!(Query::parse(&packet, &mut key).unwrap().is_cacheable(), cacheable);
    }
}

#[test]
fn a_client_takes_at_least_512_octets_and_gets_at_most_1232() {
    let limit = |edns: Option<u16>| {
        let opt = edns.map(|size| opt(size, 0, 0, b"")).unwrap_or_default();
        let packet = packet(RD, [1, 0, 0, u16::from(edns.is_some())], &[QUESTION, &opt]);
        Query::parse(&packet, &mut KeyBuf::new()).unwrap().udp_limit()
    };
    assert_eq!(
        [None, Some(0), Some(511), Some(513), Some(1_232), Some(4_096)].map(limit),
        [512, 512, 512, 513, 1_232, 1_232]
    );
}

#[test]
fn octets_behind_the_message_and_other_records_change_nothing() {
    let record = b"\xC0\x0C\x00\x01\x00\x01\x00\x00\x00\x3C\x00\x04\x0A\x00\x00\x01";
    let packet = packet(RD, [1, 1, 0, 1], &[QUESTION, record, &opt(1_400, 0, 0, b"\xFF\xDC\x00\x01x"), b"behind"]);
    let query = Query::parse(&packet, &mut KeyBuf::new()).unwrap();
    assert_eq!(query.head.edns, Some(Edns { udp_size: 1_400, dnssec_ok: false }));
}

#[test]
fn names_of_every_length_and_octet_become_lower_case_whatever_stands_behind_the_query() {
    let mut used = KeyBuf::new();
    for length in 0..=250_usize {
        // Labels of at most 63 octets with every octet there is in turn.
        let octets: Vec<_> = (0..length).map(|at| (at + 5 * length) as u8).collect();
        let name: Vec<_> =
            octets.chunks(63).flat_map(|label| [&[label.len() as u8], label].concat()).chain([0]).collect();
        let mut packet = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        packet.extend_from_slice(&name);
        packet.extend_from_slice(&[0, 65, 0, 1]);
        let key = Key::new(&name, 65, 1, Flags::default(), "").unwrap();
        for behind in [0, 1, 31, 500] {
            let buffer = [&packet[..], &vec![b'Q'; behind]].concat();
            assert!(Query::parse_usual(&buffer, packet.len(), &mut used).is_some());
            assert_eq!(used.as_bytes(), key.as_bytes(), "{behind} octets behind a name of {}", name.len());
            let sought = used.sought();
            assert_eq!(sought.length, key.as_bytes().len());
            let pieces = &sought.pieces[..sought.length.div_ceil(PIECE)];
            let (octets, zeros) = pieces.as_flattened().split_at(sought.length);
            assert_eq!((octets, zeros.iter().all(|&octet| octet == 0)), (key.as_bytes(), true));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_octets_make_the_parser_panic(octets in proptest::collection::vec(any::<u8>(), 0..80), header: bool) {
        let mut packet = octets;
        if header && packet.len() > 12 {
            packet[..12].copy_from_slice(&[0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
        }
        let mut key = KeyBuf::new();
        match Query::parse(&packet, &mut key) {
            Ok(query) => {
                prop_assert!(Key::from_bytes(bytes::Bytes::copy_from_slice(key.as_bytes())).is_ok());
                prop_assert!(query.question.len() >= 5);
            }
            Err(reject) => {
                let mut out = [0; SHORT_MAX];
                let length = rejection(&reject, &mut out);
                prop_assert!(length == 0 || out[2] & 0x80 != 0);
            }
        }
    }
}
