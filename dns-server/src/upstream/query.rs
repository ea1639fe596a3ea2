//! The query that goes out, built anew, and whether a packet that comes back belongs to it.

use heimdall_shared::dns::answer::{self, Answer, Refused, TtlLimits};
use heimdall_shared::dns::message::{HEADER, Header, Question};
use heimdall_shared::key::Key;

/// UDP payload that upstreams may send us: fits into any path's MTU unfragmented (DNS flag day 2020, RFC 9715 3.2).
const UDP_PAYLOAD: u16 = 1_232;

/// RD: an upstream is a resolver.
const RECURSION_DESIRED: u8 = 0x01;
const CHECKING_DISABLED: u8 = 0x10;
const DNSSEC_OK: u8 = 0x80;
/// Offset of ARCOUNT's low octet.
const ARCOUNT_LOW: usize = 11;
const OPT: u8 = 41;
/// Octets of an OPT record without options: root, type, class, TTL, RDLENGTH.
const OPT_LENGTH: usize = 11;

/// One query to one upstream.
///
/// RFC 6891 6.2.6: "OPT is hop by hop", and so is everything that follows the question: nothing of what a client sent but
/// the question and the bits in its key is in here.
#[derive(Debug)]
pub(super) struct Query<'a> {
    key: &'a Key,
    /// Header, question, OPT.
    packet: Vec<u8>,
    exact_case: bool,
}

/// What a received packet is to a query.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Not the answer, whatever it is: the wait goes on.
    Stray(Stray),
    /// The right question in the wrong case: a forgery, or an upstream that does not copy the case.
    WrongCase,
    /// An error without a question, as upstreams send that cannot parse the query. Anybody who guesses the id can send
    /// it, so it ends nothing.
    Headless(u8),
    /// The answer, but cut: fetch it over TCP.
    Truncated,
    /// The upstream's answer is this return code (neither NOERROR nor NXDOMAIN).
    Rcode(u16),
    /// The answer.
    Answer(Answer),
}

/// Why a packet is not the answer. The values of a metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Stray {
    /// Shorter than a header.
    Short,
    /// Another id.
    Id,
    /// A query, or another opcode.
    Header,
    /// Another question.
    Question,
    /// The right question, and then octets that do not parse.
    Malformed,
}

impl Stray {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::Id => "id",
            Self::Header => "header",
            Self::Question => "question",
            Self::Malformed => "malformed",
        }
    }
}

impl<'a> Query<'a> {
    /// The query for `key`; with `mix_case` each letter of its name gets a random case, and an answer must repeat it.
    pub(super) fn new(key: &'a Key, mix_case: bool) -> Self {
        let mut packet = Vec::with_capacity(HEADER + key.name().len() + Question::TAIL + OPT_LENGTH);
        let flags = key.flags();
        packet.extend_from_slice(&rand::random::<u16>().to_be_bytes());
        packet.push(RECURSION_DESIRED);
        packet.push(if flags.checking_disabled { CHECKING_DISABLED } else { 0 });
        packet.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, 1]);
        packet.extend_from_slice(key.name());
        if mix_case {
            randomise_case(&mut packet[HEADER..]);
        }
        packet.extend_from_slice(&key.qtype().to_be_bytes());
        packet.extend_from_slice(&key.qclass().to_be_bytes());
        let [size_high, size_low] = UDP_PAYLOAD.to_be_bytes();
        let dnssec_ok = if flags.dnssec_ok { DNSSEC_OK } else { 0 };
        packet.extend_from_slice(&[0, 0, OPT, size_high, size_low, 0, 0, dnssec_ok, 0, 0, 0]);
        Self { key, packet, exact_case: mix_case }
    }

    /// The octets to send.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.packet
    }

    /// Whether it still carries an OPT record.
    pub(super) fn has_edns(&self) -> bool {
        self.packet[ARCOUNT_LOW] == 1
    }

    /// Takes the OPT record out, for an upstream that does not know EDNS.
    pub(super) fn drop_edns(&mut self) {
        if self.has_edns() {
            self.packet[ARCOUNT_LOW] = 0;
            self.packet.truncate(self.packet.len() - OPT_LENGTH);
        }
    }

    /// What `packet`, which came from the upstream's own address and port, is to this query (RFC 5452 9.1).
    pub(super) fn judge(&self, packet: &[u8], limits: &TtlLimits) -> Verdict {
        let Some(header) = Header::of(packet) else { return Verdict::Stray(Stray::Short) };
        if packet[..2] != self.packet[..2] {
            return Verdict::Stray(Stray::Id);
        }
        if !header.is_response() || header.opcode() != 0 {
            return Verdict::Stray(Stray::Header);
        }
        if header.questions() == 0 && header.rcode() != 0 {
            return Verdict::Headless(header.rcode());
        }
        let name = self.key.name().len();
        let (asked_name, asked_tail) = self.packet[HEADER..HEADER + name + Question::TAIL].split_at(name);
        let echoed = packet.get(HEADER..HEADER + name + Question::TAIL).filter(|_| header.questions() == 1);
        let Some((echoed_name, echoed_tail)) = echoed.map(|echoed| echoed.split_at(name)) else {
            return Verdict::Stray(Stray::Question);
        };
        // A name in wire form is compared octet by octet: its length octets are no letters.
        if echoed_tail != asked_tail || !echoed_name.eq_ignore_ascii_case(asked_name) {
            return Verdict::Stray(Stray::Question);
        }
        if self.exact_case && echoed_name != asked_name {
            return Verdict::WrongCase;
        }
        // Before the records are read: some upstreams cut them in the middle.
        if header.is_truncated() {
            return Verdict::Truncated;
        }
        self.read(packet, limits)
    }

    fn read(&self, packet: &[u8], limits: &TtlLimits) -> Verdict {
        match answer::normalise(self.key, packet, limits) {
            Ok(answer) => Verdict::Answer(answer),
            Err(Refused::Truncated) => Verdict::Truncated,
            Err(Refused::Rcode(code)) => Verdict::Rcode(code),
            Err(Refused::WrongQuestion) => Verdict::Stray(Stray::Question),
            Err(_) => Verdict::Stray(Stray::Malformed),
        }
    }
}

/// Gives each letter of a wire name a random case. Length octets (at most 63) are no letters.
fn randomise_case(name: &mut [u8]) {
    for octets in name.chunks_mut(u64::BITS as usize) {
        let mut bits = rand::random::<u64>();
        for octet in octets {
            let flip = octet.is_ascii_alphabetic() && bits & 1 == 1;
            *octet ^= u8::from(flip) << 5;
            bits >>= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use heimdall_shared::key::Flags;
    use hickory_proto::op::Message;
    use proptest::prelude::*;

    use super::*;

    const NAME: &[u8] = b"\x07example\x03org\x00";

    fn key(flags: Flags) -> Key {
        Key::new(NAME, 1, 1, flags, "").unwrap()
    }

    /// What an upstream that knows one address says.
    fn answer_to(query: &[u8]) -> Vec<u8> {
        let question = HEADER + NAME.len() + Question::TAIL;
        let mut packet = query[..question].to_vec();
        packet[2] = 0x81;
        packet[3] = 0x80;
        packet[7] = 1;
        packet[ARCOUNT_LOW] = 0;
        packet.extend_from_slice(&[0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
        packet
    }

    fn judge(query: &Query<'_>, packet: &[u8]) -> Verdict {
        query.judge(packet, &TtlLimits::default())
    }

    #[test]
    fn the_query_is_header_question_and_an_opt_of_our_own() {
        let key = key(Flags { dnssec_ok: true, checking_disabled: true });
        let query = Query::new(&key, false);
        assert_eq!(query.as_bytes().len(), HEADER + NAME.len() + Question::TAIL + OPT_LENGTH);
        let message = Message::from_vec(query.as_bytes()).unwrap();
        assert!(message.metadata.recursion_desired && message.metadata.checking_disabled);
        assert_eq!(message.queries.len(), 1);
        assert_eq!(message.answers.len() + message.authorities.len() + message.additionals.len(), 0);
        let edns = message.edns.unwrap();
        assert_eq!((edns.max_payload(), edns.version(), edns.flags().dnssec_ok), (1_232, 0, true));
        assert!(edns.options().as_ref().is_empty());
    }

    #[test]
    fn without_edns_the_query_ends_after_its_question() {
        let key = key(Flags::default());
        let mut query = Query::new(&key, false);
        query.drop_edns();
        query.drop_edns();
        assert_eq!(query.as_bytes().len(), HEADER + NAME.len() + Question::TAIL);
        assert!(Message::from_vec(query.as_bytes()).unwrap().edns.is_none());
    }

    #[test]
    fn the_case_of_a_name_is_random_and_the_name_stays_the_same() {
        let key = key(Flags::default());
        let names: HashSet<Vec<u8>> =
            (0..200).map(|_| Query::new(&key, true).as_bytes()[HEADER..HEADER + NAME.len()].to_vec()).collect();
        // 10 letters, so 1,024 cases: 200 draws give about 182 of them.
        assert!(names.len() > 140, "{} different cases", names.len());
        assert!(names.iter().all(|name| name.eq_ignore_ascii_case(NAME)));
    }

    #[test]
    fn ids_are_spread_evenly() {
        // Chi-square over the 256 values of each octet: 255 degrees of freedom, below 350 with p > 0.9999.
        let mut counts = [[0_f64; 256]; 2];
        let key = key(Flags::default());
        const DRAWS: usize = 100_000;
        for _ in 0..DRAWS {
            let query = Query::new(&key, false);
            for (octet, counts) in counts.iter_mut().enumerate() {
                counts[usize::from(query.as_bytes()[octet])] += 1.0;
            }
        }
        let expected = DRAWS as f64 / 256.0;
        for counts in counts {
            let chi: f64 = counts.iter().map(|count| (count - expected).powi(2) / expected).sum();
            assert!((160.0..370.0).contains(&chi), "{chi}");
        }
    }

    #[test]
    fn the_answer_is_taken_only_with_id_bits_question_and_case() {
        let key = key(Flags::default());
        let query = Query::new(&key, true);
        let good = answer_to(query.as_bytes());
        assert!(matches!(judge(&query, &good), Verdict::Answer(_)));
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut packet = good.clone();
            change(&mut packet);
            judge(&query, &packet)
        };
        assert_eq!(with(&|packet| packet.truncate(11)), Verdict::Stray(Stray::Short));
        assert_eq!(with(&|packet| packet.clear()), Verdict::Stray(Stray::Short));
        assert_eq!(with(&|packet| packet[0] ^= 1), Verdict::Stray(Stray::Id));
        assert_eq!(with(&|packet| packet[1] ^= 0x80), Verdict::Stray(Stray::Id));
        assert_eq!(with(&|packet| packet[2] &= 0x7F), Verdict::Stray(Stray::Header));
        assert_eq!(with(&|packet| packet[2] |= 0x28), Verdict::Stray(Stray::Header));
        assert_eq!(with(&|packet| packet[5] = 0), Verdict::Stray(Stray::Question));
        assert_eq!(with(&|packet| packet[5] = 2), Verdict::Stray(Stray::Question));
        assert_eq!(with(&|packet| packet[HEADER + 1] = b'q'), Verdict::Stray(Stray::Question));
        assert_eq!(with(&|packet| packet[HEADER + 1] ^= 0x20), Verdict::WrongCase);
        let qtype = HEADER + NAME.len() + 1;
        assert_eq!(with(&|packet| packet[qtype] = 28), Verdict::Stray(Stray::Question));
        assert_eq!(with(&|packet| packet[qtype + 2] = 3), Verdict::Stray(Stray::Question));
        assert_eq!(with(&|packet| packet[7] = 2), Verdict::Stray(Stray::Malformed));
        assert_eq!(with(&|packet| packet.truncate(packet.len() - 1)), Verdict::Stray(Stray::Malformed));
    }

    #[test]
    fn type_and_class_are_numbers_and_not_letters() {
        // 65 and 97 are `A` and `a`.
        let key = Key::new(NAME, 65, 1, Flags::default(), "").unwrap();
        let query = Query::new(&key, true);
        let mut packet = answer_to(query.as_bytes());
        packet[HEADER + NAME.len() + 1] = 97;
        assert_eq!(judge(&query, &packet), Verdict::Stray(Stray::Question));
    }

    #[test]
    fn return_codes_and_truncation_are_told_apart() {
        let key = key(Flags::default());
        let query = Query::new(&key, true);
        let good = answer_to(query.as_bytes());
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut packet = good.clone();
            change(&mut packet);
            judge(&query, &packet)
        };
        assert_eq!(with(&|packet| packet[3] = 0x82), Verdict::Rcode(2));
        assert!(matches!(with(&|packet| packet[3] = 0x83), Verdict::Answer(_)));
        assert_eq!(with(&|packet| packet[2] |= 2), Verdict::Truncated);
        // Cut in the middle of a record, as some upstreams do.
        assert_eq!(
            with(&|packet| {
                packet[2] |= 2;
                packet.truncate(packet.len() - 3);
            }),
            Verdict::Truncated
        );
        assert_eq!(
            with(&|packet| {
                packet[3] = 0x81;
                packet[4..12].fill(0);
                packet.truncate(HEADER);
            }),
            Verdict::Headless(1)
        );
        // BADVERS: 16 is in the OPT record alone.
        assert_eq!(
            with(&|packet| {
                packet[ARCOUNT_LOW] = 1;
                packet.extend_from_slice(&[0, 0, 41, 4, 208, 1, 0, 0, 0, 0, 0]);
            }),
            Verdict::Rcode(16)
        );
    }

    proptest! {
        // RFC 5452 9.1, and as many forgeries as fit between a query and its answer on a fast path.
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        #[test]
        fn forged_packets_are_never_taken(flips in prop::collection::vec((0usize..33, 0u8..8), 1..4), junk: Vec<u8>) {
            let key = key(Flags::default());
            let query = Query::new(&key, true);
            let mut packet = answer_to(query.as_bytes());
            for (octet, bit) in flips {
                packet[octet] ^= 1 << bit;
            }
            // Flips in id, QR, opcode, counts or question (AA, TC, RD and the fourth octet say nothing about identity).
            let identity = |packet: &[u8]| [&packet[..2], &[packet[2] & 0xF8], &packet[4..6], &packet[12..29]].concat();
            if identity(&packet) != identity(&answer_to(query.as_bytes())) {
                prop_assert!(!matches!(judge(&query, &packet), Verdict::Answer(_)));
            }
            prop_assert!(!matches!(judge(&query, &junk), Verdict::Answer(_)));
        }
    }
}
