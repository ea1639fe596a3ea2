//! What the answer to a question is. It follows from the question alone: upstream and load agree without a table.

use std::time::Duration;

use super::subject::qtype::{A, AAAA, HTTPS, MX, TXT};
use crate::upstream::{Rule, address_of};
use crate::wire::{Name, Question, Record};

/// Return codes (RFC 1035 4.1.1).
const NOERROR: u8 = 0;
const NXDOMAIN: u8 = 3;

/// Type of the record in negative answers.
const SOA: u16 = 6;

/// TTL in seconds of a name that does not say another one.
const DEFAULT_TTL: u32 = 300;

/// The answer to a question: one record, or that there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truth {
    /// The return code.
    pub rcode: u8,
    /// TTL in seconds, of the record or of its absence.
    pub ttl: u32,
    /// The one answer's data; nothing where there is no such record.
    pub data: Option<Box<[u8]>>,
}

impl Truth {
    /// What is true: a label `neg-N` anywhere makes a name that does not exist, for N seconds; `ttl-N` is the TTL otherwise;
    /// a name with a label `v4` has an A record alone. The data follow from a hash of the name.
    pub fn of(question: &Question) -> Self {
        let name = &question.name;
        if let Some(ttl) = number(name, b"neg-") {
            return Self { rcode: NXDOMAIN, ttl, data: None };
        }
        let ttl = number(name, b"ttl-").unwrap_or(DEFAULT_TTL);
        let only_v4 = name.labels().any(|label| label.eq_ignore_ascii_case(b"v4"));
        let data = if only_v4 && question.qtype != A { None } else { data(name, question.qtype) };
        Self { rcode: NOERROR, ttl, data: data.map(Vec::into_boxed_slice) }
    }

    /// How long a server may give it out after it asked for it: until less than one whole second of the TTL is left.
    pub const fn life(&self) -> Duration {
        Duration::from_secs(self.ttl.saturating_sub(1) as u64)
    }

    /// The data of the SOA record in a negative answer. Its names are the root, which nobody can compress.
    pub fn soa(&self) -> [u8; 22] {
        let mut data = [0; 22];
        // Serial, refresh, retry, expire, minimum.
        for (chunk, number) in data[2..].chunks_exact_mut(4).zip([1, 3_600, 600, 86_400, self.ttl]) {
            chunk.copy_from_slice(&number.to_be_bytes());
        }
        data
    }
}

/// How the upstream answers every workload.
pub fn rule() -> Rule {
    Rule::message(|received| {
        let (question, truth) = (&received.question, Truth::of(&received.question));
        let reply = received.query.response().with_rcode(truth.rcode.into());
        let record = |name, rtype, rdata| Record { name, rtype, class: 1, ttl: truth.ttl, rdata };
        match &truth.data {
            Some(data) => reply.with_answer(record(question.name.clone(), question.qtype, data.to_vec())),
            None => reply.with_authority(record(zone(&question.name), SOA, truth.soa().to_vec())),
        }
    })
}

/// The zone that says that something is not there: the name's last label.
pub(super) fn zone(name: &Name) -> Name {
    let last = name.labels().last().map(String::from_utf8_lossy).unwrap_or_default();
    Name::parse(&format!("{last}.")).expect("the last label of a name must be a name")
}

fn number(name: &Name, prefix: &[u8]) -> Option<u32> {
    name.labels().find_map(|label| {
        let (start, digits) = label.split_at_checked(prefix.len())?;
        let digits = start.eq_ignore_ascii_case(prefix).then_some(digits)?;
        std::str::from_utf8(digits).ok()?.parse().ok()
    })
}

fn data(name: &Name, qtype: u16) -> Option<Vec<u8>> {
    let v4 = address_of(name).octets();
    let text = format!("{:02x}{:02x}{:02x}{:02x}", v4[0], v4[1], v4[2], v4[3]);
    let label = |text: String| {
        let mut label = vec![text.len() as u8];
        label.extend(text.into_bytes());
        label
    };
    match qtype {
        A => Some(v4.to_vec()),
        AAAA => Some([&[0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0], v4.as_slice()].concat()),
        TXT => Some(label(format!("v=bench1 id={text}"))),
        // A host of a single label: there is nothing in the message that it could be compressed with.
        MX => Some([vec![0, 10], label(format!("mx-{text}")), vec![0]].concat()),
        // RFC 9460 2.2: priority 1, the name itself, and the parameters alpn and ipv4hint.
        HTTPS => Some([&[0, 1, 0, 0, 1, 0, 3, 2, b'h', b'2', 0, 4, 0, 4], v4.as_slice()].concat()),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn truth(name: &str, qtype: &str) -> Truth {
        Truth::of(&Question::parse(name, qtype).unwrap())
    }

    #[test]
    fn a_name_says_what_the_answers_to_it_are() {
        let exists = truth("N1.TTL-60.example.", "A");
        assert_eq!((exists.rcode, exists.ttl, exists.data.as_deref().map(<[u8]>::len)), (0, 60, Some(4)));
        assert_eq!(exists, truth("n1.ttl-60.example.", "A"), "letters of any case make the same name");
        assert_eq!(truth("x.neg-7.example.", "MX"), Truth { rcode: 3, ttl: 7, data: None });
        assert_eq!(truth("ext.ttl-9.example.neg-30.local.", "A").ttl, 30);
        assert_eq!(truth("svc.v4.ttl-5.local.", "AAAA"), Truth { rcode: 0, ttl: 5, data: None });
        assert!(truth("svc.v4.ttl-5.local.", "A").data.is_some());
    }

    #[test]
    fn names_differ_in_the_data_of_every_type() {
        for qtype in ["A", "AAAA", "TXT", "MX", "HTTPS"] {
            let of = |name| truth(name, qtype).data.unwrap();
            assert_ne!(of("a.example."), of("b.example."), "{qtype}");
        }
    }

    #[test]
    fn an_answer_may_be_given_out_until_a_whole_second_is_not_left() {
        assert_eq!([0, 1, 5].map(|ttl| Truth { rcode: 0, ttl, data: None }.life().as_secs()), [0, 0, 4]);
    }
}
