#![allow(clippy::unwrap_used)]

use hickory_proto::op::{Message as Oracle, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::{A, CNAME, MX, NS, NULL, SOA};
use hickory_proto::rr::{Name, RData, Record as OracleRecord, RecordType};

use crate::dns::answer::{Refused, TtlLimits, check, normalise};
use crate::dns::name;
use crate::key::{Flags, Key};

/// The question of all of these: a host below a zone.
const ASKED: &str = "www.example.";

fn key(dnssec_ok: bool) -> Key {
    let flags = Flags { dnssec_ok, checking_disabled: false };
    Key::new(&name::from_text(ASKED).unwrap(), 1, 1, flags, "").unwrap()
}

fn of(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn record(owner: &str, data: RData) -> OracleRecord {
    OracleRecord::from_rdata(of(owner), 60, data)
}

fn a(owner: &str) -> OracleRecord {
    record(owner, RData::A(A::new(192, 0, 2, 1)))
}

fn cname(owner: &str, target: &str) -> OracleRecord {
    record(owner, RData::CNAME(CNAME(of(target))))
}

fn ns(owner: &str, host: &str) -> OracleRecord {
    record(owner, RData::NS(NS(of(host))))
}

fn soa(owner: &str) -> OracleRecord {
    record(owner, RData::SOA(SOA::new(of(owner), of(owner), 1, 2, 3, 4, 5)))
}

/// A record of a type whose data is opaque.
fn opaque(owner: &str, rtype: u16, data: &[u8]) -> OracleRecord {
    record(owner, RData::Unknown { code: RecordType::from(rtype), rdata: NULL::with(data.to_vec()) })
}

fn message(answers: &[OracleRecord], authority: &[OracleRecord], additional: &[OracleRecord]) -> Oracle {
    let mut message = Oracle::new(0, MessageType::Response, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.metadata.recursion_available = true;
    message.add_query(Query::query(of(ASKED), RecordType::A));
    for record in answers {
        message.add_answer(record.clone());
    }
    for record in authority {
        message.add_authority(record.clone());
    }
    for record in additional {
        message.add_additional(record.clone());
    }
    message
}

/// Owners and types of what is left of a message from an upstream, section by section.
fn left(key: &Key, message: &Oracle) -> [Vec<String>; 3] {
    let limits = TtlLimits::default();
    let packet = message.to_vec().unwrap();
    let answer = normalise(key, &packet, &limits).unwrap();
    assert_eq!(check(key, &answer.packet, &limits), Ok(answer.lifetime), "what is left is taken from a peer too");
    let left = Oracle::from_vec(&answer.packet).unwrap();
    let all = message.answers.len() + message.authorities.len() + message.additionals.len();
    let kept = left.answers.len() + left.authorities.len() + left.additionals.len();
    let whole = check(key, &packet, &limits);
    if kept < all {
        assert_eq!(whole, Err(Refused::NotNormal("a record that is not for this key")), "a peer takes nothing out");
    } else {
        assert!(whole.is_ok(), "{whole:?}");
    }
    let shown = |records: &[OracleRecord]| -> Vec<String> {
        records.iter().map(|record| format!("{} {}", record.name, record.record_type())).collect()
    };
    [shown(&left.answers), shown(&left.authorities), shown(&left.additionals)]
}

#[test]
fn an_answer_holds_what_its_question_and_its_aliases_lead_to() {
    let chain = [cname(ASKED, "cdn.other."), cname("cdn.other.", "edge.third."), a("edge.third.")];
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
        let mut answers: Vec<_> = order.iter().map(|&index| chain[index].clone()).collect();
        assert_eq!(left(&key(false), &message(&answers, &[], &[]))[0].len(), 3, "in the order {order:?}");
        answers.extend([a("bank.example."), a("other."), a("x.edge.third."), cname("bank.example.", "evil.")]);
        assert_eq!(left(&key(false), &message(&answers, &[], &[]))[0].len(), 3, "in the order {order:?}");
    }
    // An alias that nothing leads to leads nowhere.
    assert_eq!(left(&key(false), &message(&[cname("b.", "c."), a("c."), a(ASKED)], &[], &[]))[0], ["www.example. A"]);
    // Aliases that lead round in circles end.
    let circle = [cname(ASKED, "b."), cname("b.", ASKED), a("c.")];
    assert_eq!(left(&key(false), &message(&circle, &[], &[]))[0].len(), 2);
}

#[test]
fn an_alias_for_all_names_below_another_one_is_followed() {
    let dname = opaque("example.", 39, b"\x05other\x00");
    let answers = [dname.clone(), a("www.other."), a("other."), a("mail.other.")];
    assert_eq!(left(&key(false), &message(&answers, &[], &[]))[0], ["example. DNAME", "www.other. A"]);
    // As servers send it, with the alias that follows from it; and its signature.
    let answers = [dname, opaque("example.", 46, b"\x00x"), cname(ASKED, "www.other."), a("www.other.")];
    assert_eq!(left(&key(true), &message(&answers, &[], &[]))[0].len(), 4);
    // It is for what is below it, and not for itself.
    let own = [opaque(ASKED, 39, b"\x05other\x00"), a("other.")];
    assert_eq!(left(&key(false), &message(&own, &[], &[]))[0], ["www.example. DNAME"]);
    // One that makes names longer and longer ends too.
    let grows = [opaque("example.", 39, b"\x01x\x07example\x00"), a("www.x.x.example.")];
    assert_eq!(left(&key(false), &message(&grows, &[], &[]))[0].len(), 2);
}

#[test]
fn the_authority_is_of_a_zone_that_may_hold_the_names() {
    let answers = [cname(ASKED, "cdn.other."), a("cdn.other.")];
    let kept = [soa("example."), ns(".", "root."), ns("other.", "ns.other."), ns(ASKED, "ns.example.")];
    assert_eq!(left(&key(false), &message(&answers, &kept, &[]))[1].len(), 4);
    let dropped = [soa("bank."), ns("third.", "ns.third."), ns("x.www.example.", "ns."), a("example.")];
    assert!(left(&key(false), &message(&answers, &dropped, &[]))[1].is_empty());
    // What proves something is for who asks for it, whoever owns it.
    let proofs = [opaque("a.example.", 47, b"x"), opaque("b.example.", 46, b"x"), opaque("example.", 43, b"x")];
    assert_eq!(left(&key(true), &message(&answers, &proofs, &[]))[1].len(), 3);
    assert!(left(&key(false), &message(&answers, &proofs, &[]))[1].is_empty());
}

#[test]
fn the_additional_section_has_addresses_of_hosts_that_are_named() {
    let authority = [ns("example.", "ns.example."), ns("bank.", "ns.bank.")];
    let mail = record(ASKED, RData::MX(MX::new(10, of("mail.example."))));
    // A service binding has its target behind a priority.
    let service = opaque(ASKED, 65, b"\x00\x01\x03svc\x07example\x00");
    let answers = [a(ASKED), mail, service];
    let additional = [
        a("ns.example."),
        a("mail.example."),
        a("svc.example."),
        a(ASKED),
        // Nobody names it; whose zone is not that of any name; no address.
        a("bank.example."),
        a("ns.bank."),
        opaque("mail.example.", 16, b"\x01x"),
    ];
    let wanted = ["ns.example. A", "mail.example. A", "svc.example. A", "www.example. A"];
    assert_eq!(left(&key(false), &message(&answers, &authority, &additional))[2], wanted);
}

#[test]
fn a_chain_has_an_end() {
    let host = |index: usize| if index == 0 { ASKED.to_owned() } else { format!("h{index}.") };
    let chain: Vec<_> = (0..100).map(|index| cname(&host(index), &host(index + 1))).chain([a("h100.")]).collect();
    assert_eq!(left(&key(false), &message(&chain, &[], &[]))[0].len(), 64);
    assert_eq!(left(&key(false), &message(&chain[50..], &[], &[]))[0].len(), 0);
}

#[test]
fn a_signature_beside_an_address_of_another_class_stays_where_it_may_stand() {
    let mut other = a(ASKED);
    other.dns_class = hickory_proto::rr::DNSClass::CH;
    let additional = [opaque(ASKED, 46, b"x"), other];
    assert_eq!(left(&key(true), &message(&[a(ASKED)], &[], &additional))[2].len(), 1);
}

#[test]
fn an_alias_of_another_class_leads_nowhere() {
    let mut other = cname(ASKED, "b.");
    other.dns_class = hickory_proto::rr::DNSClass::CH;
    assert!(left(&key(false), &message(&[other, a("b.")], &[], &[]))[0].is_empty());
}

#[test]
fn records_of_another_class_are_foreign() {
    let mut other = a(ASKED);
    other.dns_class = hickory_proto::rr::DNSClass::CH;
    assert_eq!(left(&key(false), &message(&[a(ASKED), other], &[], &[]))[0].len(), 1);
}

#[test]
fn what_is_left_without_records_is_no_data() {
    let limits = TtlLimits::default();
    let packet = message(&[a("bank.example.")], &[], &[]).to_vec().unwrap();
    let answer = normalise(&key(false), &packet, &limits).unwrap();
    assert!(answer.lifetime.is_zero(), "and for nobody but those who wait");
}
