#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bytes::Bytes;
use heimdall_shared::clock::Moment;
use heimdall_shared::dns::answer::{TtlLimits, normalise};
use heimdall_shared::entry::Entry;
use heimdall_shared::key::Key;
use hickory_proto::op::{Edns as OracleEdns, Message, MessageType, OpCode, Query as Question, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, MX, NULL, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use proptest::prelude::*;

use super::*;
use crate::query::KeyBuf;

/// An answer from an upstream with `records` addresses, and the query for it.
fn exchange(records: u8, edns: Option<(u16, bool)>) -> (Vec<u8>, Ready) {
    let name = Name::from_ascii("wWw.Example.com.").unwrap();
    let mut query = Message::new(0x4321, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Question::query(name.clone(), RecordType::A));
    let mut upstream = query.clone();
    if let Some((size, dnssec_ok)) = edns {
        let mut edns = OracleEdns::new();
        edns.set_max_payload(size).set_dnssec_ok(dnssec_ok);
        query.set_edns(edns);
    }
    upstream.metadata.message_type = MessageType::Response;
    upstream.metadata.authoritative = true;
    upstream.metadata.recursion_available = true;
    for index in 0..records {
        let address = RData::A(A::new(10, 0, 0, index));
        upstream.add_answer(Record::from_rdata(name.clone(), 60 + u32::from(index), address));
    }
    let query = query.to_vec().unwrap();
    let mut key = KeyBuf::new();
    Query::parse(&query, &mut key).unwrap();
    let key = Key::from_bytes(Bytes::copy_from_slice(key.as_bytes())).unwrap();
    let answer = normalise(&key, &upstream.to_vec().unwrap(), &TtlLimits::default()).unwrap();
    let entry = Entry { packet: answer.packet, born: Moment::from_nanos(0), lifetime: answer.lifetime, since: 0 };
    (query, Ready::new(&key, &entry).unwrap())
}

fn reply(packet: &[u8], ready: &Ready, elapsed: u32, fresh: bool, limit: Option<usize>) -> (Vec<u8>, Message) {
    let query = Query::parse(packet, &mut KeyBuf::new()).unwrap();
    let mut out = vec![0xEE; TCP_LIMIT];
    let limit = limit.unwrap_or_else(|| query.udp_limit());
    let length = answer(&query, ready, elapsed, fresh, limit, &mut out);
    assert!(length <= limit && out[length..].iter().all(|&octet| octet == 0xEE), "nothing is written behind the reply");
    out.truncate(length);
    let message = Message::from_vec(&out).unwrap();
    (out, message)
}

#[test]
fn a_reply_repeats_the_question_as_it_was_sent_and_ages_every_record() {
    let (packet, ready) = exchange(3, None);
    let (octets, message) = reply(&packet, &ready, 7, false, None);
    assert_eq!(message.id, 0x4321);
    assert_eq!(octets[12..33], packet[12..33]);
    assert_eq!(message.answers.iter().map(|record| record.ttl).collect::<Vec<_>>(), [53, 54, 55]);
    assert!(message.metadata.recursion_available && message.metadata.recursion_desired);
    assert!(message.edns.is_none(), "no OPT in the query, none in the reply");
    let (_, old) = reply(&packet, &ready, 61, false, None);
    assert_eq!(old.answers.iter().map(|record| record.ttl).collect::<Vec<_>>(), [0, 0, 1], "never below zero");
}

#[test]
fn only_a_fresh_answer_is_authoritative() {
    let (packet, ready) = exchange(1, None);
    assert!(reply(&packet, &ready, 0, true, None).1.metadata.authoritative);
    assert!(!reply(&packet, &ready, 0, false, None).1.metadata.authoritative);
}

#[test]
fn a_client_with_edns_gets_our_own_opt_record() {
    for dnssec_ok in [false, true] {
        let (packet, ready) = exchange(1, Some((4_096, dnssec_ok)));
        let (_, message) = reply(&packet, &ready, 0, false, None);
        let edns = message.edns.unwrap();
        assert_eq!((edns.max_payload(), edns.version(), edns.flags().dnssec_ok), (1_232, 0, dnssec_ok));
        assert!(edns.options().as_ref().is_empty());
    }
}

#[test]
fn recursion_desired_and_checking_disabled_are_copied() {
    let (mut packet, ready) = exchange(1, None);
    packet[2] &= 0xFE;
    packet[3] |= 0x30;
    let (_, message) = reply(&packet, &ready, 0, false, None);
    assert!(!message.metadata.recursion_desired && message.metadata.checking_disabled);
    assert!(!message.metadata.authentic_data, "we validate nothing");
}

#[test]
fn what_does_not_fit_leaves_truncated_with_nothing_but_question_and_opt() {
    // 12 + 21 + 29 * 16 = 497 octets fit into 512; one more record does not.
    for (records, edns, truncated) in [
        (29, None, false),
        (30, None, true),
        (29, Some((100, false)), false),
        (30, Some((100, false)), true),
        (60, Some((1_232, false)), false),
        (80, Some((65_000, true)), true),
    ] {
        let (packet, ready) = exchange(records, edns);
        let (octets, message) = reply(&packet, &ready, 0, false, None);
        assert_eq!(message.metadata.truncation, truncated, "{records} records, {edns:?}");
        assert_eq!(message.edns.is_some(), edns.is_some());
        if truncated {
            assert_eq!(octets.len(), 33 + if edns.is_some() { 11 } else { 0 });
            assert!(message.answers.is_empty());
        }
        assert!(!reply(&packet, &ready, 0, false, Some(TCP_LIMIT)).1.metadata.truncation, "over TCP it fits");
    }
}

#[test]
fn the_reason_of_a_failure_goes_to_clients_with_edns_alone() {
    for edns in [None, Some((512, false))] {
        let (packet, _) = exchange(1, edns);
        let query = Query::parse(&packet, &mut KeyBuf::new()).unwrap();
        let mut out = [0; SHORT_MAX];
        let length = failure(&query, 2, Some(Ede::NoReachableAuthority), &mut out);
        let message = Message::from_vec(&out[..length]).unwrap();
        assert_eq!(message.response_code, ResponseCode::ServFail);
        assert_eq!(message.edns.is_some(), edns.is_some());
        assert_eq!(out[..length].ends_with(&[0, 15, 0, 2, 0, 22]), edns.is_some());
    }
}

#[test]
fn the_longest_question_fits_into_a_short_reply() {
    let mut packet = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    for length in [63_u8, 63, 63, 61] {
        packet.push(length);
        packet.resize(packet.len() + usize::from(length), b'x');
    }
    packet.extend_from_slice(b"\0\0\x01\0\x01\0\0\x29\x04\xD0\0\0\0\0\0\0");
    let query = Query::parse(&packet, &mut KeyBuf::new()).unwrap();
    let mut out = [0; SHORT_MAX];
    assert_eq!(overloaded(&query, &mut out), SHORT_MAX);
}

/// Records of many kinds, with names inside and outside the zone of the question.
fn records() -> impl Strategy<Value = Vec<Record>> {
    let name = prop_oneof![
        // Most of them of the question: an answer holds nothing else.
        8 => Just("www.example.com."),
        1 => Just("mail.Example.com."),
        1 => Just("a.b.c.www.example.com."),
        1 => Just("other.org."),
        1 => Just("."),
    ]
    .prop_map(|name| Name::from_ascii(name).unwrap());
    let data = (0..6_u8, name.clone(), any::<[u8; 4]>()).prop_map(|(kind, name, octets)| match kind {
        0 => RData::A(A::new(octets[0], octets[1], octets[2], octets[3])),
        1 => RData::CNAME(CNAME(name)),
        2 => RData::MX(MX::new(u16::from(octets[0]), name)),
        3 => RData::SRV(SRV::new(1, 2, 3, name)),
        4 => RData::TXT(TXT::from_bytes(vec![&octets])),
        _ => RData::Unknown { code: RecordType::from(65_333), rdata: NULL::with(octets.to_vec()) },
    });
    let record = (name, 1..100_000_u32, data).prop_map(|(name, ttl, data)| Record::from_rdata(name, ttl, data));
    proptest::collection::vec(record, 0..12)
}

proptest! {
    #[test]
    fn whatever_was_accepted_of_the_upstream_reaches_the_client(
        answers in records(),
        authorities in records(),
        additionals in records(),
        elapsed in 0..200_000_u32,
        dnssec_ok: bool,
    ) {
        let (packet, _) = exchange(1, Some((4_096, dnssec_ok)));
        let mut key = KeyBuf::new();
        Query::parse(&packet, &mut key).unwrap();
        let mut upstream = Message::from_vec(&packet).unwrap();
        upstream.metadata.message_type = MessageType::Response;
        upstream.add_answers(answers).add_authorities(authorities).add_additionals(additionals);
        let key = Key::from_bytes(Bytes::copy_from_slice(key.as_bytes())).unwrap();
        let accepted = normalise(&key, &upstream.to_vec().unwrap(), &TtlLimits::default()).unwrap();
        let upstream = Message::from_vec(&accepted.packet).unwrap();
        let entry = Entry { packet: accepted.packet, born: Moment::from_nanos(0), lifetime: accepted.lifetime, since: 0 };
        let (_, seen) = reply(&packet, &Ready::new(&key, &entry).unwrap(), elapsed, true, Some(TCP_LIMIT));
        for (sent, seen) in [
            (&upstream.answers, &seen.answers),
            (&upstream.authorities, &seen.authorities),
            (&upstream.additionals, &seen.additionals),
        ] {
            let told = |records: &[Record], elapsed: u32| -> Vec<_> {
                let record = |record: &Record| {
                    let ttl = record.ttl.saturating_sub(elapsed);
                    (record.name.to_lowercase(), ttl, record.data.to_string().to_ascii_lowercase())
                };
                records.iter().map(record).collect()
            };
            prop_assert_eq!(told(sent, elapsed), told(seen, 0));
        }
    }
}

#[test]
fn an_entry_that_died_on_its_way_is_given_with_ttl_zero() {
    let (packet, ready) = exchange(1, None);
    let now = Moment::from_nanos(0) + Duration::from_secs(3_600);
    assert_eq!(reply(&packet, &ready, ready.elapsed(now), false, None).1.answers[0].ttl, 0);
}

#[test]
fn a_stale_answer_has_a_ttl_of_its_own_and_says_so_to_who_speaks_edns() {
    let (packet, ready) = exchange(3, None);
    let query = Query::parse(&packet, &mut KeyBuf::new()).unwrap();
    let mut out = vec![0; TCP_LIMIT];
    let length = stale(&query, &ready, query.udp_limit(), &mut out);
    let message = Message::from_vec(&out[..length]).unwrap();
    assert!(message.edns.is_none());
    assert_eq!(message.answers.iter().map(|record| record.ttl).collect::<Vec<_>>(), [STALE_TTL; 3]);

    let (packet, ready) = exchange(3, Some((1_232, false)));
    let query = Query::parse(&packet, &mut KeyBuf::new()).unwrap();
    let length = stale(&query, &ready, query.udp_limit(), &mut out);
    assert_eq!(out[length - 6..length], [0, 15, 0, 2, 0, 3], "stale answer");
    assert!(Message::from_vec(&out[..length]).is_ok() && length <= room(ready.packet().len()));
}
