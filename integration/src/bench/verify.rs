//! Whether a packet is the answer to a query: every octet of it has one right value, or one of a few.

use super::workload::Asked;

/// Octets of a header.
const HEADER: usize = 12;

/// Type of the record in negative answers.
const SOA: u16 = 6;

/// Seconds of a life that may have passed when an answer to a miss is given: the four that a query may take, and rounding.
const MISS_SECONDS: u32 = 5;

/// Pointers that are followed in a name.
const POINTERS_MAX: u32 = 16;

/// What a candidate must send back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// The query itself.
    Echo,
    /// The answer to a query without EDNS.
    Answer,
}

/// What is wrong with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Wrong {
    #[error("the ID is not that of a query that waits here")]
    Id,
    #[error("the packet ends too early, or goes on after its end")]
    Length,
    #[error("the flags are not those of an untruncated answer")]
    Flags,
    #[error("the return code is another one")]
    Rcode,
    #[error("the sections do not hold one question and one record alone")]
    Counts,
    #[error("the question is another one")]
    Question,
    #[error("the record's name, type or class is another one")]
    Record,
    #[error("the TTL is above the origin's, or zero")]
    Ttl,
    #[error("the data are another name's")]
    Data,
}

impl Expected {
    /// Checks everything behind the ID.
    pub(super) fn check(self, asked: &Asked, packet: &[u8]) -> Result<(), Wrong> {
        let query = &asked.query;
        if self == Self::Echo {
            return if packet.get(2..) == query.get(2..) { Ok(()) } else { Err(Wrong::Question) };
        }
        let truth = &asked.truth;
        let &[_, _, flags, code, q0, q1, a0, a1, n0, n1, e0, e1] =
            packet.first_chunk::<HEADER>().ok_or(Wrong::Length)?;
        // QR, RD and no TC; AA may be either. RA; AD may be either.
        if flags & !0x04 != 0x81 || code & 0xD0 != 0x80 {
            return Err(Wrong::Flags);
        }
        if code & 0x0F != truth.rcode {
            return Err(Wrong::Rcode);
        }
        let negative = u8::from(truth.data.is_none());
        if [q0, q1, a0, a1, n0, n1, e0, e1] != [0, 1, 0, 1 - negative, 0, negative, 0, 0] {
            return Err(Wrong::Counts);
        }
        if packet.get(HEADER..query.len()) != query.get(HEADER..) {
            return Err(Wrong::Question);
        }
        let name = &query[HEADER..query.len() - 4];
        let qtype = u16::from_be_bytes([query[query.len() - 4], query[query.len() - 3]]);
        match &truth.data {
            Some(data) => record(packet, query.len(), name, qtype, truth.ttl, data),
            None => record(packet, query.len(), asked.zone.wire(), SOA, truth.ttl, &truth.soa()),
        }
    }
}

/// Checks the packet's one record, which begins at `at`.
fn record(packet: &[u8], at: usize, owner: &[u8], rtype: u16, ttl: u32, data: &[u8]) -> Result<(), Wrong> {
    let at = behind_name(packet, at, owner).ok_or(Wrong::Record)?;
    let fixed = packet.get(at..).and_then(<[u8]>::first_chunk::<10>).ok_or(Wrong::Length)?;
    let &[t0, t1, c0, c1, l0, l1, l2, l3, d0, d1] = fixed;
    if packet.len() - at - 10 != usize::from(u16::from_be_bytes([d0, d1])) {
        return Err(Wrong::Length);
    }
    if [t0, t1, c0, c1] != [rtype.to_be_bytes(), [0, 1]].concat()[..] {
        return Err(Wrong::Record);
    }
    let given = u32::from_be_bytes([l0, l1, l2, l3]);
    // An answer whose life ended on its way goes to those who waited for it, with TTL 0.
    if given > ttl || given == 0 && ttl > MISS_SECONDS {
        return Err(Wrong::Ttl);
    }
    if packet[at + 10..] == *data { Ok(()) } else { Err(Wrong::Data) }
}

/// The place behind the name at `at`, if it is `name`. In full or compressed, in letters of any case.
fn behind_name(packet: &[u8], at: usize, name: &[u8]) -> Option<usize> {
    let (mut at, mut rest) = (at, name);
    let mut end = None;
    let mut pointers = 0;
    loop {
        let &length = packet.get(at)?;
        if length >= 0xC0 {
            end = end.or(Some(at + 2));
            pointers += 1;
            at = usize::from(length & 0x3F) << 8 | usize::from(*packet.get(at + 1)?);
            if pointers > POINTERS_MAX {
                return None;
            }
            continue;
        }
        let label = packet.get(at..=at + usize::from(length))?;
        let (wanted, others) = rest.split_at_checked(label.len())?;
        if !label.eq_ignore_ascii_case(wanted) {
            return None;
        }
        if length == 0 {
            return others.is_empty().then_some(end.unwrap_or(at + 1));
        }
        at += label.len();
        rest = others;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::workload::{Kind, Named, Subject, Workload, rule};
    use super::*;
    use crate::upstream::Upstream;
    use crate::wire::Message;

    fn asked(name: Named, qtype: u16, ttl: u32) -> Asked {
        Asked::new(&Subject { name, qtype, ttl })
    }

    /// A right answer: fixed octets of a server that compresses the owner.
    fn answer(asked: &Asked) -> Vec<u8> {
        let mut packet = asked.query.clone();
        packet[2..4].copy_from_slice(&[0x81, 0x80 | asked.truth.rcode]);
        let qtype = [packet[packet.len() - 4], packet[packet.len() - 3]];
        let (rtype, data) = match &asked.truth.data {
            Some(data) => {
                packet[7] = 1;
                packet.extend([0xC0, 0x0C]);
                (qtype, data.to_vec())
            }
            None => {
                packet[9] = 1;
                // The last label of the question's name.
                let zone = packet.len() - 4 - asked.zone.wire().len();
                packet.extend([0xC0, zone as u8]);
                ([0, 6], asked.truth.soa().to_vec())
            }
        };
        packet.extend(rtype);
        packet.extend([0, 1]);
        packet.extend(asked.truth.ttl.to_be_bytes());
        packet.extend((data.len() as u16).to_be_bytes());
        packet.extend(data);
        packet
    }

    #[test]
    fn an_answer_that_differs_in_any_octet_is_found_out() {
        for (name, qtype) in
            [(Named::Ranked(1), 1), (Named::Ranked(1), 15), (Named::Missing(1), 1), (Named::Service(1), 28)]
        {
            let asked = asked(name, qtype, 86_400);
            let right = answer(&asked);
            assert_eq!(Expected::Answer.check(&asked, &right), Ok(()), "{name:?}");
            let data = asked.truth.data.as_ref().map_or(22, |data| data.len());
            let ttl = right.len() - data - 6..right.len() - data - 2;
            for at in (2..right.len()).filter(|at| !ttl.contains(at)) {
                let mut wrong = right.clone();
                wrong[at] ^= 0x40;
                assert!(Expected::Answer.check(&asked, &wrong).is_err(), "{name:?}: octet {at}");
            }
            for length in 0..right.len() {
                assert!(Expected::Answer.check(&asked, &right[..length]).is_err(), "{length} octets");
            }
            assert_eq!(Expected::Answer.check(&asked, &[right.as_slice(), &[0]].concat()), Err(Wrong::Length));
        }
        let (one, other) = (asked(Named::Ranked(1), 1, 60), asked(Named::Ranked(2), 1, 60));
        assert_eq!(Expected::Answer.check(&other, &answer(&one)), Err(Wrong::Question));
    }

    #[test]
    fn a_ttl_may_be_lower_than_the_origin_s_but_not_higher_and_zero_only_after_a_wait() {
        for (origin, given, expected) in [
            (86_400, 0, Err(Wrong::Ttl)),
            (86_400, 1, Ok(())),
            (86_400, 86_400, Ok(())),
            (86_400, 86_401, Err(Wrong::Ttl)),
            (5, 0, Ok(())),
            (0, 0, Ok(())),
        ] {
            let asked = asked(Named::Ranked(1), 1, origin);
            let mut packet = answer(&asked);
            let at = packet.len() - 10;
            packet[at..at + 4].copy_from_slice(&u32::to_be_bytes(given));
            assert_eq!(Expected::Answer.check(&asked, &packet), expected, "{given} of {origin}");
        }
    }

    #[test]
    fn an_echo_is_the_query_and_no_answer() {
        let asked = asked(Named::Ranked(1), 1, 60);
        assert_eq!(Expected::Echo.check(&asked, &asked.query), Ok(()));
        assert_eq!(Expected::Echo.check(&asked, &answer(&asked)), Err(Wrong::Question));
        assert_eq!(Expected::Answer.check(&asked, &asked.query), Err(Wrong::Flags));
    }

    #[test]
    fn a_name_that_points_at_itself_is_no_name() {
        assert_eq!(behind_name(&[0xC0, 0], 0, &[1, b'a', 0]), None);
        assert_eq!(behind_name(&[1, b'A', 0xC0, 4, 0], 0, &[1, b'a', 0]), Some(4));
    }

    #[tokio::test]
    async fn what_the_upstream_says_to_every_workload_is_right() {
        let upstream = Upstream::start().await.unwrap();
        upstream.otherwise(rule());
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(upstream.address()).await.unwrap();
        let mut buffer = [0; 1_500];
        for kind in [Kind::Zipf, Kind::Edge, Kind::K8s, Kind::Storm] {
            let workload = Workload::cached(kind, 200, 1.0, 1).unwrap();
            for number in workload.all() {
                let asked = workload.name(number);
                socket.send(&asked.query).await.unwrap();
                let length = socket.recv(&mut buffer).await.unwrap();
                let packet = &buffer[..length];
                assert_eq!(Expected::Answer.check(asked, packet), Ok(()), "{:?}", Message::parse(packet));
            }
        }
    }
}
