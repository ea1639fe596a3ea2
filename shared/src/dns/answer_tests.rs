#![allow(clippy::unwrap_used)]

use hickory_proto::op::{Message as Oracle, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, MX, NS, NULL, SOA, SRV};
use hickory_proto::rr::{DNSClass, Name, RData, Record as OracleRecord, RecordType};
use proptest::prelude::*;

use super::super::rdata;
use super::*;
use crate::dns::name;
use crate::key::Flags;

fn key(name: &str, qtype: u16) -> Key {
    key_with(name, qtype, Flags::default())
}

fn key_with(name: &str, qtype: u16, flags: Flags) -> Key {
    Key::new(&name::from_text(name).unwrap(), qtype, 1, flags, "").unwrap()
}

fn response(name: &str, qtype: RecordType) -> Oracle {
    let mut message = Oracle::new(0x1234, MessageType::Response, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.metadata.recursion_available = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), qtype));
    message
}

fn a(name: &str, ttl: u32, last: u8) -> OracleRecord {
    OracleRecord::from_rdata(Name::from_ascii(name).unwrap(), ttl, RData::A(A::new(10, 0, 0, last)))
}

fn soa(zone: &str, ttl: u32, minimum: u32) -> OracleRecord {
    let name = Name::from_ascii(zone).unwrap();
    OracleRecord::from_rdata(name.clone(), ttl, RData::SOA(SOA::new(name.clone(), name, 1, 2, 3, 4, minimum)))
}

fn ns(zone: &str, ttl: u32, host: &str) -> OracleRecord {
    let (zone, host) = (Name::from_ascii(zone).unwrap(), Name::from_ascii(host).unwrap());
    OracleRecord::from_rdata(zone, ttl, RData::NS(NS(host)))
}

fn unknown(name: &str, rtype: u16, ttl: u32, rdata: &[u8]) -> OracleRecord {
    let rdata = RData::Unknown { code: RecordType::from(rtype), rdata: NULL::with(rdata.to_vec()) };
    OracleRecord::from_rdata(Name::from_ascii(name).unwrap(), ttl, rdata)
}

const LIMITS: TtlLimits = TtlLimits { max: Duration::from_secs(86_400), negative_max: Duration::from_secs(3_600) };

fn accept(key: &Key, message: &Oracle) -> (Oracle, Answer) {
    let answer = normalise(key, &message.to_vec().unwrap(), &LIMITS).unwrap();
    assert_eq!(check(key, &answer.packet, &LIMITS), Ok(answer.lifetime), "what is accepted is in normal form");
    (Oracle::from_vec(&answer.packet).unwrap(), answer)
}

#[test]
fn a_plain_answer_keeps_its_octets_but_for_header_and_case() {
    let mut message = response("wWw.Example.com.", RecordType::A);
    message.add_answer(a("wWw.Example.com.", 60, 1)).add_answer(a("wWw.Example.com.", 30, 2));
    let sent = message.to_vec().unwrap();
    let (_, answer) = accept(&key("www.example.com", 1), &message);
    assert_eq!(answer.lifetime, Duration::from_secs(30));
    let question = HEADER..HEADER + 17;
    assert_eq!(&answer.packet[..4], [0, 0, 0x81, 0x80]);
    assert_eq!(answer.packet[question.clone()], sent[question.clone()].to_ascii_lowercase());
    assert_eq!(answer.packet[question.end..], sent[question.end..]);
}

#[test]
fn a_trailing_opt_and_octets_behind_the_message_are_cut_off() {
    let mut message = response("a.", RecordType::A);
    message.add_answer(a("a.", 60, 1));
    let plain = message.to_vec().unwrap();
    message.set_edns(hickory_proto::op::Edns::new());
    let mut sent = message.to_vec().unwrap();
    sent.extend_from_slice(b"garbage");
    let answer = normalise(&key("a", 1), &sent, &LIMITS).unwrap();
    assert_eq!(answer.packet[HEADER..], plain[HEADER..]);
    assert_eq!(answer.packet[10..12], [0, 0]);
}

#[test]
fn an_opt_in_the_middle_is_taken_out_and_later_names_still_expand() {
    let mut message = response("a.example.", RecordType::A);
    message.add_answer(a("a.example.", 60, 1)).add_additional(a("a.example.", 50, 2));
    let plain = message.to_vec().unwrap();
    // Put an OPT before the additional record, whose name is compressed against the question and so stays sound.
    let at = Message::parse(&plain).unwrap().records().last().unwrap().unwrap().owner;
    let opt = b"\x00\x00\x29\x04\xD0\x00\x00\x00\x00\x00\x00";
    let mut sent = [&plain[..at], opt, &plain[at..]].concat();
    sent[11] += 1;
    let answer = normalise(&key("a.example", 1), &sent, &LIMITS).unwrap();
    assert_eq!(answer.packet[HEADER..], plain[HEADER..], "and it is compressed as before");
    assert_eq!(answer.lifetime, Duration::from_secs(50));
}

#[test]
fn what_does_not_answer_the_key_is_refused() {
    let key = key("a", 1);
    let mut message = response("a.", RecordType::A);
    message.add_answer(a("a.", 60, 1));
    let good = message.to_vec().unwrap();
    let refused = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut packet = good.clone();
        change(&mut packet);
        normalise(&key, &packet, &LIMITS).unwrap_err()
    };
    assert_eq!(refused(&|packet| packet[2] &= 0x7F), Refused::NotAResponse);
    assert_eq!(refused(&|packet| packet[2] |= 0x20), Refused::Opcode(4));
    assert_eq!(refused(&|packet| packet[13] = b'b'), Refused::WrongQuestion);
    assert_eq!(refused(&|packet| packet[16] = 28), Refused::WrongQuestion);
    assert_eq!(refused(&|packet| packet[18] = 3), Refused::WrongQuestion);
    assert_eq!(refused(&|packet| packet[2] |= 0x02), Refused::Truncated);
    assert_eq!(refused(&|packet| packet[3] |= 2), Refused::Rcode(2));
    assert_eq!(refused(&|packet| packet.truncate(30)), Refused::Malformed(Malformed::Cut(19)));
    assert_eq!(refused(&|packet| packet[5] = 0), Refused::WrongQuestion);
}

#[test]
fn an_extended_return_code_is_not_mistaken_for_noerror() {
    let mut message = response("a.", RecordType::A);
    message.metadata.response_code = ResponseCode::BADVERS;
    message.set_edns(hickory_proto::op::Edns::new());
    let packet = message.to_vec().unwrap();
    assert_eq!(packet[3] & 0x0F, 0);
    assert_eq!(normalise(&key("a", 1), &packet, &LIMITS), Err(Refused::Rcode(16)));
}

#[test]
fn ttls_are_capped_and_the_top_bit_means_large() {
    for ttl in [86_401, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF] {
        let mut message = response("a.", RecordType::A);
        message.add_answer(a("a.", ttl, 1)).add_answer(a("a.", 86_400, 2));
        let (read, answer) = accept(&key("a", 1), &message);
        assert_eq!(read.answers[0].ttl, 86_400);
        assert_eq!(answer.lifetime, Duration::from_secs(86_400));
    }
}

#[test]
fn a_message_lives_as_long_as_the_smallest_ttl_of_any_section() {
    for (answer_ttl, authority, additional) in [(5, 60, 60), (60, 5, 60), (60, 60, 5)] {
        let mut message = response("a.", RecordType::A);
        message
            .add_answer(a("a.", answer_ttl, 1))
            .add_authority(ns(".", authority, "c."))
            .add_additional(a("c.", additional, 1))
            .set_edns(hickory_proto::op::Edns::new());
        assert_eq!(accept(&key("a", 1), &message).1.lifetime, Duration::from_secs(5));
    }
}

#[test]
fn a_negative_answer_lives_by_its_soa_record() {
    for (ttl, minimum, life) in [(60, 30, 30), (30, 60, 30), (7_200, 7_200, 3_600), (60, 0x8000_0000, 60)] {
        for code in [ResponseCode::NXDomain, ResponseCode::NoError] {
            let mut message = response("a.example.", RecordType::A);
            message.metadata.response_code = code;
            message.add_authority(soa("example.", ttl, minimum));
            let (read, answer) = accept(&key("a.example", 1), &message);
            assert_eq!(read.authorities[0].ttl, life, "the SOA record leaves with the negative TTL");
            assert_eq!(answer.lifetime, Duration::from_secs(life.into()));
        }
    }
}

#[test]
fn the_soa_minimum_does_not_shorten_a_positive_answer() {
    let mut message = response("a.example.", RecordType::A);
    message.add_answer(a("a.example.", 60, 1)).add_authority(soa("example.", 60, 5));
    assert_eq!(accept(&key("a.example", 1), &message).1.lifetime, Duration::from_secs(60));
}

#[test]
fn the_end_of_a_cname_chain_decides_whether_an_answer_is_negative() {
    let alias = OracleRecord::from_rdata(
        Name::from_ascii("a.").unwrap(),
        600,
        RData::CNAME(CNAME(Name::from_ascii("b.").unwrap())),
    );
    let mut message = response("a.", RecordType::A);
    message.add_answer(alias.clone());
    assert_eq!(accept(&key("a", 1), &message).1.lifetime, Duration::ZERO, "no data, and no SOA record");
    message.add_authority(soa(".", 300, 300));
    assert_eq!(accept(&key("a", 1), &message).1.lifetime, Duration::from_secs(300));
    let mut asked_itself = response("a.", RecordType::CNAME);
    asked_itself.add_answer(alias);
    assert_eq!(accept(&key("a", 5), &asked_itself).1.lifetime, Duration::from_secs(600));
}

#[test]
fn negative_answers_without_soa_live_for_nobody_but_those_who_wait() {
    let mut message = response("a.", RecordType::A);
    assert_eq!(accept(&key("a", 1), &message).1.lifetime, Duration::ZERO);
    message.metadata.response_code = ResponseCode::NXDomain;
    message.add_authority(a("b.", 60, 1));
    assert_eq!(accept(&key("a", 1), &message).1.lifetime, Duration::ZERO);
}

#[test]
fn dnssec_records_are_for_those_who_asked_for_them() {
    let mut message = response("a.", RecordType::A);
    message.add_answer(a("a.", 60, 1));
    for rtype in [46, 47, 50] {
        message.add_answer(unknown("a.", rtype, 10, b"\x00signature"));
    }
    message.add_answer(unknown("a.", 43, 20, b"\x00ds"));
    let (read, answer) = accept(&key("a", 1), &message);
    assert_eq!(read.answers.len(), 2, "DS is data like any other");
    assert_eq!(answer.lifetime, Duration::from_secs(20));
    let wants = Flags { dnssec_ok: true, checking_disabled: true };
    let (read, answer) = accept(&key_with("a", 1, wants), &message);
    assert_eq!((read.answers.len(), read.metadata.checking_disabled), (5, true));
    assert_eq!(answer.lifetime, Duration::from_secs(10));

    let mut asked = response("a.", RecordType::from(47));
    asked.add_answer(unknown("a.", 47, 10, b"\x00next")).add_answer(unknown("a.", 46, 10, b"\x00signature"));
    assert_eq!(accept(&key("a", 47), &asked).0.answers.len(), 1);
}

#[test]
fn the_authenticated_bit_is_cleared_and_the_authoritative_one_kept() {
    let mut message = response("a.", RecordType::A);
    message.metadata.authentic_data = true;
    message.metadata.authoritative = true;
    message.add_answer(a("a.", 60, 1));
    let (read, _) = accept(&key("a", 1), &message);
    assert!(read.metadata.authoritative && !read.metadata.authentic_data);
}

#[test]
fn unknown_types_pass_byte_exact_even_when_the_packet_is_written_anew() {
    // Octets that look like compression pointers.
    let rdata = b"\xC0\x0C\xC0\x00\x00\xFF\x01a";
    for rtype in [65_333, 64, 65, 39, 257] {
        let mut message = response("a.", RecordType::from(rtype));
        message.add_answer(unknown("a.", 46, 60, b"\x00x")).add_answer(unknown("a.", rtype, 60, rdata));
        let packet = message.to_vec().unwrap();
        let answer = normalise(&key("a", rtype), &packet, &LIMITS).unwrap();
        assert!(answer.packet.ends_with(rdata), "TYPE{rtype}");
        assert!(answer.packet.len() < packet.len());
    }
}

#[test]
fn names_in_rdata_are_compressed_anew_only_for_the_types_of_rfc_1035() {
    let target = Name::from_ascii("mail.a.example.").unwrap();
    for (rdata, qtype, compressed) in
        [(RData::MX(MX::new(10, target.clone())), 15, true), (RData::SRV(SRV::new(1, 2, 3, target.clone())), 33, false)]
    {
        let mut message = response("a.example.", RecordType::from(qtype));
        message.add_answer(unknown("a.example.", 46, 60, b"\x00x"));
        message.add_answer(OracleRecord::from_rdata(Name::from_ascii("a.example.").unwrap(), 60, rdata));
        let (read, answer) = accept(&key("a.example", qtype), &message);
        assert_eq!(read.answers[0].data, message.answers[1].data);
        assert_eq!(answer.packet.ends_with(b"\x04mail\xC0\x0C"), compressed);
        assert_eq!(answer.packet.ends_with(b"\x04mail\x01a\x07example\x00"), !compressed);
    }
}

#[test]
fn broken_rdata_of_a_type_with_names_is_refused() {
    for (rtype, rdata) in [
        (5, &b"\x01b"[..]),
        (5, b"\x01b\x00\x00"),
        (15, b"\x00"),
        (6, b"\x00\x00\x00\x00\x00\x01"),
        (33, b"\x00\x01\x00\x01\x00\x01\xC0\xFF"),
        (35, b"\x00\x01\x00\x01\x09a\x00\x00\x00"),
    ] {
        let mut message = response("a.", RecordType::A);
        message.add_answer(unknown("a.", rtype, 60, rdata));
        let refused = normalise(&key("a", 1), &message.to_vec().unwrap(), &LIMITS).unwrap_err();
        assert!(matches!(refused, Refused::Malformed(_)), "type {rtype}: {refused}");
    }
}

#[test]
fn a_peer_cannot_slip_in_what_an_upstream_could_not() {
    let key = key("a", 1);
    let mut message = response("a.", RecordType::A);
    message.add_answer(a("a.", 60, 1));
    let good = normalise(&key, &message.to_vec().unwrap(), &LIMITS).unwrap().packet;
    let refused = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut packet = good.to_vec();
        change(&mut packet);
        check(&key, &packet, &LIMITS).unwrap_err()
    };
    assert_eq!(refused(&|packet| packet.push(0)), Refused::NotNormal("octets after the last record"));
    assert_eq!(refused(&|packet| packet[0] = 1), Refused::NotNormal("header"));
    assert_eq!(refused(&|packet| packet[3] |= 0x20), Refused::NotNormal("header"));
    assert_eq!(refused(&|packet| packet[3] |= 0x10), Refused::NotNormal("header"));
    assert_eq!(refused(&|packet| packet[3] &= 0x7F), Refused::NotNormal("header"));
    assert_eq!(refused(&|packet| packet[13] = b'A'), Refused::NotNormal("question in upper case"));
    assert_eq!(refused(&|packet| packet[2] |= 2), Refused::Truncated);
    assert_eq!(refused(&|packet| packet[3] |= 5), Refused::Rcode(5));
    assert_eq!(refused(&|packet| packet[22 + 3] = 2), Refused::Ttl(60 | 2 << 24));
    let opt = |packet: &mut Vec<u8>| {
        packet[11] = 1;
        packet.extend_from_slice(b"\x00\x00\x29\x04\xD0\x00\x00\x00\x00\x00\x00");
    };
    assert_eq!(refused(&opt), Refused::NotNormal("a record that is not for this key"));
    assert_eq!(check(&key_with("a", 28, Flags::default()), &good, &LIMITS), Err(Refused::WrongQuestion));
}

#[test]
fn a_peer_cannot_stretch_a_negative_answer() {
    let key = key("a", 1);
    let mut message = response("a.", RecordType::A);
    message.add_authority(soa(".", 60, 60));
    let mut packet = normalise(&key, &message.to_vec().unwrap(), &LIMITS).unwrap().packet.to_vec();
    let minimum = packet.len() - 4;
    packet[minimum + 3] = 59;
    assert_eq!(check(&key, &packet, &LIMITS), Err(Refused::Ttl(60)));
}

#[test]
fn a_name_that_leans_on_a_ttl_is_expanded_before_the_ttl_changes() {
    // The second owner points at the first record's TTL, which reads as the label "a" and the root, and is above the limit.
    let packet = [
        &b"\0\0\x81\x80\0\x01\0\x02\0\0\0\0\x01a\0\0\x01\0\x01"[..],
        b"\xC0\x0C\0\x01\0\x01\x01a\0\0\0\x04\x0A\0\0\x01",
        b"\xC0\x19\0\x01\0\x01\0\0\0\x3C\0\x04\x0A\0\0\x02",
    ]
    .concat();
    let answer = normalise(&key("a", 1), &packet, &LIMITS).unwrap();
    let read = Oracle::from_vec(&answer.packet).unwrap();
    assert_eq!((read.answers[0].ttl, read.answers[1].name.to_string()), (86_400, "a.".to_owned()));
    assert!(check(&key("a", 1), &answer.packet, &LIMITS).is_ok());
    let unsound = [&answer.packet[..19], &packet[19..]].concat();
    assert!(check(&key("a", 1), &unsound, &LIMITS).is_err());
}

#[test]
fn writing_anew_is_linear_in_the_number_of_names() {
    // Counted, not timed: each distinct name costs its label and a pointer, so that doubling the records doubles the
    // octets and nothing else.
    let size = |records: u16| {
        let mut packet = response("zone.example.", RecordType::A).to_vec().unwrap();
        packet[6..8].copy_from_slice(&1_u16.to_be_bytes());
        packet[8..10].copy_from_slice(&records.to_be_bytes());
        packet[10..12].copy_from_slice(&records.to_be_bytes());
        packet.extend_from_slice(b"\xC0\x0C\x00\x2E\x00\x01\x00\x00\x00\x3C\x00\x01x");
        for index in 0..records {
            packet.extend_from_slice(b"\xC0\x0C\x00\x02\x00\x01\x00\x00\x00\x3C\x00\x08");
            packet.extend_from_slice(format!("\x05h{index:04}").as_bytes());
            packet.extend_from_slice(b"\xC0\x0C");
        }
        for index in 0..records {
            packet.extend_from_slice(format!("\x05h{index:04}").as_bytes());
            packet.extend_from_slice(b"\xC0\x0C\x00\x01\x00\x01\x00\x00\x00\x3C\x00\x04\x0A\x00\x00\x01");
        }
        normalise(&key("zone.example", 1), &packet, &LIMITS).unwrap().packet.len()
    };
    let (one, two) = (size(200), size(400));
    // A host's second name is a pointer to its first one.
    assert_eq!(two - one, 200 * (12 + 6 + 2 + 2 + 14));
}

/// Octets near enough to a response that mutations reach deep into the walk.
fn nearly_a_response() -> impl Strategy<Value = Vec<u8>> {
    let fixed = prop_oneof![
        Just(b"\xC0\x0C\x00\x01\x00\x01\x00\x00\x00\x3C\x00\x04\x0A\x00\x00\x01".to_vec()),
        Just(b"\xC0\x0C\x00\x05\x00\x01\x00\x00\x00\x3C\x00\x04\x01b\xC0\x0C".to_vec()),
        Just(b"\x01c\xC0\x0C\x00\x0F\x00\x01\x00\x00\x00\x05\x00\x05\x00\x01\x01d\x00".to_vec()),
        Just(b"\xC0\x0C\x00\x2E\x00\x01\x00\x00\x00\x05\x00\x03xyz".to_vec()),
        Just(b"\x00\x00\x29\x04\xD0\x00\x00\x80\x00\x00\x00".to_vec()),
        Just(b"\xC0\x0C\x00\x06\x00\x01\xFF\x00\x00\x05\x00\x18\xC0\x0C\xC0\x0C01234567890123456789".to_vec()),
        proptest::collection::vec(any::<u8>(), 0..24),
    ];
    let records = proptest::collection::vec(fixed, 0..6);
    let edits = proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..3);
    (records, edits, 0..=3_u16).prop_map(|(records, edits, split)| {
        let count = records.len() as u16;
        let split = split.min(count);
        let mut packet = vec![0, 0, 0x81, 0x80, 0, 1];
        packet.extend(split.to_be_bytes());
        packet.extend([0, 0]);
        packet.extend((count - split).to_be_bytes());
        packet.extend_from_slice(b"\x01A\x00\x00\x01\x00\x01");
        packet.extend(records.concat());
        for (index, octet) in edits {
            let at = index.index(packet.len());
            packet[at] = octet;
        }
        packet
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_octets_make_the_acceptor_panic(packet in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = normalise(&key("a", 1), &packet, &LIMITS);
        let _ = check(&key("a", 1), &packet, &LIMITS);
    }

    #[test]
    fn whatever_is_accepted_is_in_normal_form_and_stays_as_it_is(packet in nearly_a_response(), dnssec_ok: bool) {
        let key = key_with("a", 1, Flags { dnssec_ok, checking_disabled: false });
        if let Ok(answer) = normalise(&key, &packet, &LIMITS) {
            prop_assert_eq!(check(&key, &answer.packet, &LIMITS), Ok(answer.lifetime));
            prop_assert_eq!(normalise(&key, &answer.packet, &LIMITS), Ok(answer));
        }
    }

    #[test]
    fn the_oracle_reads_the_same_records_before_and_after(packet in nearly_a_response()) {
        let key = key_with("a", 1, Flags::default());
        if let (Ok(answer), Ok(before)) = (normalise(&key, &packet, &LIMITS), Oracle::from_vec(&packet)) {
            let after = Oracle::from_vec(&answer.packet).unwrap();
            let data = |records: &[OracleRecord]| -> Vec<_> {
                records
                    .iter()
                    .filter(|record| !matches!(u16::from(record.record_type()), 46 | 47 | 50))
                    // Names in types that the oracle does not know are octets to it, and those change when a name is expanded.
                    .filter(|record| {
                        !matches!(record.data, RData::Unknown { .. })
                            || rdata::layout(record.record_type().into()).is_none()
                    })
                    .map(|record| (record.name.to_lowercase(), record.dns_class, record.data.clone()))
                    .collect()
            };
            // What the question leads to is another test's to say; nothing that is left is new, or in another order.
            for (before, after) in [
                (&before.answers, &after.answers),
                (&before.authorities, &after.authorities),
                (&before.additionals, &after.additionals),
            ] {
                let mut rest = data(before).into_iter();
                for record in data(after) {
                    prop_assert!(rest.any(|before| before == record), "{:?} in {:?}", record, before);
                }
            }
            let own = |records: &[OracleRecord]| -> Vec<_> {
                let is_own = |(name, class, _): &(Name, DNSClass, RData)| name.to_ascii() == "a." && *class == DNSClass::IN;
                data(records).into_iter().filter(is_own).collect()
            };
            prop_assert_eq!(own(&before.answers), own(&after.answers));
            prop_assert_eq!(after.queries[0].query_class(), DNSClass::IN);
        }
    }

    #[test]
    fn names_expand_as_the_oracle_expands_them(tail in proptest::collection::vec(any::<u8>(), 0..40), at in 12..30_usize) {
        use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
        let packet = [&[0; HEADER][..], b"\x01a\x02bc\x00\x01d\xC0\x0C", &tail].concat();
        let at = at.min(packet.len());
        let mut decoder = BinDecoder::new(&packet).clone(at as u16);
        if let Ok((ours, end)) = name::expand(&packet, at) {
            let theirs = Name::read(&mut decoder).unwrap();
            let labels: Vec<&[u8]> = theirs.iter().collect();
            prop_assert_eq!(name::labels(ours.as_bytes()).collect::<Vec<_>>(), labels);
            prop_assert_eq!(end, decoder.index());
            prop_assert_eq!(name::skip(&packet, at), Ok(end));
        }
    }
}
