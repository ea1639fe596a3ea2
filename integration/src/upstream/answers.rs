//! Answers that follow from the question, so that whoever asks can check them without a table.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::journal::Received;
use crate::wire::{Message, Name, Question, Record};

/// TTL of names that do not say another one.
const DEFAULT_TTL: u32 = 300;

/// TTL and MINIMUM of the SOA in negative answers.
const NEGATIVE_TTL: u32 = 60;

/// The address that the upstream gives `name`: 198.18.0.0/15 (RFC 2544) and a hash of the lower-case name.
pub fn address_of(name: &Name) -> Ipv4Addr {
    // FNV-1a: stable, short, and good enough to tell names apart.
    let hash = name
        .lower()
        .wire()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    let [.., a, b, c] = (hash ^ hash >> 32).to_be_bytes();
    Ipv4Addr::new(198, 18 | a & 1, b, c)
}

/// The TTL of a name: the number in a label `ttl-N`, else 300.
pub fn ttl_of(name: &Name) -> u32 {
    name.labels()
        .find_map(|label| std::str::from_utf8(label).ok()?.to_ascii_lowercase().strip_prefix("ttl-")?.parse().ok())
        .unwrap_or(DEFAULT_TTL)
}

/// The SOA record of negative answers about `name`: that of its last label.
pub(crate) fn soa(name: &Name) -> Record {
    let zone = name.labels().last().map_or(".".to_owned(), |label| format!("{}.", String::from_utf8_lossy(label)));
    let text = format!("{zone} {NEGATIVE_TTL} IN SOA ns.example. hostmaster.example. 1 3600 600 86400 {NEGATIVE_TTL}");
    Record::parse(&text).unwrap_or_else(|_| {
        Record::parse(&format!(". {NEGATIVE_TTL} IN SOA . . 1 3600 600 86400 {NEGATIVE_TTL}"))
            .expect("a fixed record must parse")
    })
}

/// The default: A and AAAA from the name; a name with a label `nxdomain` does not exist; other types have no data.
pub(crate) fn address(received: &Received) -> Message {
    let reply = received.query.response();
    let Question { name, qtype, .. } = &received.question;
    if name.labels().any(|label| label.eq_ignore_ascii_case(b"nxdomain")) {
        return reply.with_rcode(3).with_authority(soa(name));
    }
    let (ttl, v4) = (ttl_of(name), address_of(name));
    match qtype {
        1 => reply.with_answer(Record::a(name, ttl, v4)),
        28 => {
            let [a, b, c, d] = v4.octets();
            let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            reply.with_answer(Record { name: name.clone(), rtype: 28, class: 1, ttl, rdata: v6.octets().to_vec() })
        }
        _ => reply.with_authority(soa(name)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_a_name_ignores_case_and_differs_between_names() {
        let of = |text: &str| address_of(&Name::parse(text).unwrap());
        assert_eq!(of("WWW.example."), of("www.EXAMPLE."));
        assert_ne!(of("a.example."), of("b.example."));
    }

    #[test]
    fn a_name_can_say_its_ttl() {
        assert_eq!(ttl_of(&Name::parse("a.ttl-2.example.").unwrap()), 2);
        assert_eq!(ttl_of(&Name::parse("a.example.").unwrap()), DEFAULT_TTL);
    }
}
