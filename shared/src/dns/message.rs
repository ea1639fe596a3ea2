//! A packet's skeleton: header, question, records. One linear walk checks all of it.

use std::ops::Range;

use super::name::{self, NameError};
use super::rr::rtype;

/// Octets of a message header (RFC 1035 4.1.1).
pub const HEADER: usize = 12;

/// Largest message in octets: what the length field of TCP can say.
pub const MAX_MESSAGE: usize = 65_535;

/// Fewest octets of a question: the root's name, type, class.
const MIN_QUESTION: usize = 5;

/// Fewest octets of a record: the root's name, type, class, TTL, RDLENGTH.
const MIN_RECORD: usize = 11;

/// How nearly every owner in an answer is written: as a pointer to the name of the question.
pub(super) const TO_THE_QUESTION: [u8; 2] = [0xC0, HEADER as u8];

/// What is wrong with a packet. Always its sender's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Shorter than a header.
    #[error("packet of {0} octets is shorter than a header")]
    NoHeader(usize),
    /// The header counts more records than the packet has room for.
    #[error("section counts do not fit into the packet")]
    Counts,
    /// More than one question.
    #[error("{0} questions where one may stand")]
    Questions(u16),
    /// A question or record that the packet's end cuts.
    #[error("packet ends inside a question or record at offset {0}")]
    Cut(usize),
    /// A broken name.
    #[error("broken name at offset {0}: {1}")]
    Name(usize, NameError),
    /// RDATA that does not have the layout of its type.
    #[error("RDATA at offset {0} does not have the layout of its type")]
    Rdata(usize),
    /// A second OPT record (RFC 6891 6.1.1: "it MUST be the only OPT RR in that message").
    #[error("more than one OPT record")]
    SecondOpt,
    /// An OPT record outside the additional section or with an owner other than the root (RFC 6891 6.1.1, 6.1.2).
    #[error("OPT record in a wrong place or with an owner")]
    MisplacedOpt,
}

/// The header's fields, read in place.
#[derive(Clone, Copy, Debug)]
pub struct Header<'a>(&'a [u8; HEADER]);

impl<'a> Header<'a> {
    /// The header of `packet`, if that is long enough to have one.
    #[inline]
    pub fn of(packet: &'a [u8]) -> Option<Self> {
        packet.first_chunk().map(Self)
    }

    /// ID.
    #[inline]
    pub const fn id(self) -> u16 {
        u16::from_be_bytes([self.0[0], self.0[1]])
    }

    /// QR: the message is a response.
    #[inline]
    pub const fn is_response(self) -> bool {
        self.0[2] & 0x80 != 0
    }

    /// OPCODE, 0 to 15.
    #[inline]
    pub const fn opcode(self) -> u8 {
        self.0[2] >> 3 & 0x0F
    }

    /// AA.
    #[inline]
    pub const fn is_authoritative(self) -> bool {
        self.0[2] & 0x04 != 0
    }

    /// TC.
    #[inline]
    pub const fn is_truncated(self) -> bool {
        self.0[2] & 0x02 != 0
    }

    /// RD.
    #[inline]
    pub const fn recursion_desired(self) -> bool {
        self.0[2] & 0x01 != 0
    }

    /// RA.
    #[inline]
    pub const fn recursion_available(self) -> bool {
        self.0[3] & 0x80 != 0
    }

    /// AD.
    #[inline]
    pub const fn authentic_data(self) -> bool {
        self.0[3] & 0x20 != 0
    }

    /// CD.
    #[inline]
    pub const fn checking_disabled(self) -> bool {
        self.0[3] & 0x10 != 0
    }

    /// RCODE: the header's four bits alone. [`Message::rcode`] adds those of an OPT record.
    #[inline]
    pub const fn rcode(self) -> u8 {
        self.0[3] & 0x0F
    }

    /// QDCOUNT.
    #[inline]
    pub const fn questions(self) -> u16 {
        u16::from_be_bytes([self.0[4], self.0[5]])
    }

    /// ANCOUNT, NSCOUNT, ARCOUNT.
    #[inline]
    pub const fn records(self) -> [u16; 3] {
        [
            u16::from_be_bytes([self.0[6], self.0[7]]),
            u16::from_be_bytes([self.0[8], self.0[9]]),
            u16::from_be_bytes([self.0[10], self.0[11]]),
        ]
    }
}

/// A question: where its name stands, and what it asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The name's octets, uncompressed.
    pub name: Range<usize>,
    /// QTYPE.
    pub qtype: u16,
    /// QCLASS.
    pub qclass: u16,
}

impl Question {
    /// Octets after the name: type and class.
    pub const TAIL: usize = 4;

    /// Reads the question at `at`. Its name cannot be compressed: nothing stands before it but the header.
    #[inline]
    pub fn parse(packet: &[u8], at: usize) -> Result<Self, Malformed> {
        let end = name::end_of_uncompressed(packet, at).map_err(|error| Malformed::Name(at, error))?;
        let Some(&[t0, t1, c0, c1]) = packet.get(end..end + Self::TAIL) else {
            return Err(Malformed::Cut(at));
        };
        Ok(Self { name: at..end, qtype: u16::from_be_bytes([t0, t1]), qclass: u16::from_be_bytes([c0, c1]) })
    }

    /// The offset after the question.
    #[inline]
    pub const fn end(&self) -> usize {
        self.name.end + Self::TAIL
    }
}

/// The three sections that hold records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// Answer.
    Answer,
    /// Authority.
    Authority,
    /// Additional.
    Additional,
}

const SECTIONS: [Section; 3] = [Section::Answer, Section::Authority, Section::Additional];

/// A record: where its parts stand, and its fixed fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where in the message it stands.
    pub section: Section,
    /// Offset of the owner's name, which is where the record begins.
    pub owner: usize,
    /// TYPE.
    pub rtype: u16,
    /// CLASS; of an OPT record the sender's UDP payload size.
    pub class: u16,
    /// Offset of the TTL.
    pub ttl_at: usize,
    /// TTL as received.
    pub ttl: u32,
    /// The RDATA's octets; their end is the record's end.
    pub rdata: Range<usize>,
}

impl Record {
    /// Reads the record at `at`, behind a question whose name is sound if `asked`. RDATA is only measured; its names are checked
    /// by whoever needs them.
    #[inline]
    fn parse(packet: &[u8], at: usize, section: Section, asked: bool) -> Result<Self, Malformed> {
        let fixed = match packet.get(at..) {
            Some(owner) if asked && owner.starts_with(&TO_THE_QUESTION) => at + TO_THE_QUESTION.len(),
            _ => name::skip(packet, at).map_err(|error| Malformed::Name(at, error))?,
        };
        let Some(&[t0, t1, c0, c1, l0, l1, l2, l3, d0, d1]) = packet.get(fixed..fixed + 10) else {
            return Err(Malformed::Cut(at));
        };
        let start = fixed + 10;
        let rdata = start..start + usize::from(u16::from_be_bytes([d0, d1]));
        if rdata.end > packet.len() {
            return Err(Malformed::Cut(at));
        }
        Ok(Self {
            section,
            owner: at,
            rtype: u16::from_be_bytes([t0, t1]),
            class: u16::from_be_bytes([c0, c1]),
            ttl_at: fixed + 4,
            ttl: u32::from_be_bytes([l0, l1, l2, l3]),
            rdata,
        })
    }

    /// The offset after the record.
    #[inline]
    pub const fn end(&self) -> usize {
        self.rdata.end
    }
}

/// An OPT record's fields (RFC 6891 6.1.2, 6.1.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opt {
    /// Offset at which the record begins.
    pub at: usize,
    /// The largest UDP payload that the sender takes.
    pub udp_size: u16,
    /// The upper eight bits of the return code.
    pub extended_rcode: u8,
    /// EDNS version.
    pub version: u8,
    /// DO.
    pub dnssec_ok: bool,
    /// The options' octets; their end is the record's end.
    pub rdata: Range<usize>,
}

impl Opt {
    /// Takes a record of type OPT, if it has the root as owner (RFC 6891 6.1.2: "MUST be 0 (root domain)").
    #[inline]
    pub fn from_record(packet: &[u8], record: &Record) -> Result<Self, Malformed> {
        if record.section != Section::Additional || packet.get(record.owner) != Some(&0) {
            return Err(Malformed::MisplacedOpt);
        }
        let [extended_rcode, version, flags, _] = record.ttl.to_be_bytes();
        Ok(Self {
            at: record.owner,
            udp_size: record.class,
            extended_rcode,
            version,
            dnssec_ok: flags & 0x80 != 0,
            rdata: record.rdata.clone(),
        })
    }

    /// The options in order: code and value. The last item is an error if the options do not fill the RDATA exactly.
    pub fn options<'a>(&self, packet: &'a [u8]) -> impl Iterator<Item = Result<(u16, &'a [u8]), Malformed>> {
        let start = self.rdata.start;
        let mut rest = packet.get(self.rdata.clone()).unwrap_or_default();
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let option = split_option(rest);
            rest = option.map_or(&[], |(_, _, after)| after);
            Some(option.map(|(code, value, _)| (code, value)).ok_or(Malformed::Rdata(start)))
        })
    }
}

fn split_option(octets: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (&[c0, c1, l0, l1], rest) = octets.split_first_chunk()?;
    let (value, after) = rest.split_at_checked(usize::from(u16::from_be_bytes([l0, l1])))?;
    Some((u16::from_be_bytes([c0, c1]), value, after))
}

/// A packet that has been walked from end to end: its header, question, OPT and every record's frame are sound.
#[derive(Clone, Debug)]
pub struct Message<'a> {
    packet: &'a [u8],
    header: Header<'a>,
    question: Option<Question>,
    opt: Option<Opt>,
    end: usize,
}

impl<'a> Message<'a> {
    /// Walks `packet`. At most one question; octets after the last record are left to the caller ([`Message::end`]).
    #[inline]
    pub fn parse(packet: &'a [u8]) -> Result<Self, Malformed> {
        let header = Header::of(packet).ok_or(Malformed::NoHeader(packet.len()))?;
        let questions = header.questions();
        let records: usize = header.records().into_iter().map(usize::from).sum();
        // Before anything else: counts that the packet cannot hold must cost nothing.
        if usize::from(questions) * MIN_QUESTION + records * MIN_RECORD > packet.len() - HEADER {
            return Err(Malformed::Counts);
        }
        let question = match questions {
            0 => None,
            1 => Some(Question::parse(packet, HEADER)?),
            more => return Err(Malformed::Questions(more)),
        };
        let mut end = question.as_ref().map_or(HEADER, Question::end);
        let mut opt = None;
        for (section, count) in SECTIONS.into_iter().zip(header.records()) {
            for _ in 0..count {
                let record = Record::parse(packet, end, section, question.is_some())?;
                end = record.end();
                if record.rtype == rtype::OPT && opt.replace(Opt::from_record(packet, &record)?).is_some() {
                    return Err(Malformed::SecondOpt);
                }
            }
        }
        Ok(Self { packet, header, question, opt, end })
    }

    /// The packet itself.
    pub const fn packet(&self) -> &'a [u8] {
        self.packet
    }

    /// The header.
    pub const fn header(&self) -> Header<'a> {
        self.header
    }

    /// The question, unless QDCOUNT is 0.
    pub const fn question(&self) -> Option<&Question> {
        self.question.as_ref()
    }

    /// The OPT record.
    pub const fn opt(&self) -> Option<&Opt> {
        self.opt.as_ref()
    }

    /// The offset after the last record; what follows is not part of the message.
    pub const fn end(&self) -> usize {
        self.end
    }

    /// The return code with the upper bits of an OPT record (RFC 6891 6.1.3).
    pub fn rcode(&self) -> u16 {
        let upper = self.opt.as_ref().map_or(0, |opt| opt.extended_rcode);
        u16::from(upper) << 4 | u16::from(self.header.rcode())
    }

    /// Whether the question asks `name` (uncompressed wire form, any case), type and class.
    pub fn asks(&self, name: &[u8], qtype: u16, qclass: u16) -> bool {
        self.question.as_ref().is_some_and(|question| {
            question.qtype == qtype
                && question.qclass == qclass
                // Most are in the same case: that is compared in large pieces.
                && self
                    .packet
                    .get(question.name.clone())
                    .is_some_and(|asked| asked == name || asked.eq_ignore_ascii_case(name))
        })
    }

    /// All records in order, OPT included. Over a parsed message no item is an error.
    pub fn records(&self) -> Records<'a> {
        Records::after(self.packet, self.question.as_ref(), self.header.records())
    }
}

/// A walk over the records of a packet. Ends after its first error.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    packet: &'a [u8],
    position: usize,
    left: [u16; 3],
    /// Whether a question was read in front of them.
    asked: bool,
}

impl<'a> Records<'a> {
    /// So many records of each section of `packet`, behind a question that was read there.
    pub(super) fn after(packet: &'a [u8], question: Option<&Question>, counts: [u16; 3]) -> Self {
        Self { packet, position: question.map_or(HEADER, Question::end), left: counts, asked: question.is_some() }
    }
}

impl Iterator for Records<'_> {
    type Item = Result<Record, Malformed>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let (left, section) = self.left.iter_mut().zip(SECTIONS).find(|(left, _)| **left > 0)?;
        *left -= 1;
        let record = Record::parse(self.packet, self.position, section, self.asked);
        match &record {
            Ok(record) => self.position = record.end(),
            Err(_) => self.left = [0; 3],
        }
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// A response header with these counts, then `body`.
    fn packet(counts: [u16; 4], body: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x12, 0x34, 0x81, 0x80];
        packet.extend(counts.iter().flat_map(|count| count.to_be_bytes()));
        packet.extend_from_slice(body);
        packet
    }

    const QUESTION: &[u8] = b"\x01a\x00\x00\x01\x00\x01";
    const RECORD: &[u8] = b"\xC0\x0C\x00\x01\x00\x01\x00\x00\x00\x3C\x00\x04\x0A\x00\x00\x01";
    const OPT: &[u8] = b"\x00\x00\x29\x04\xD0\x01\x00\x80\x00\x00\x04\xFF\xDC\x00\x00";

    #[test]
    fn a_whole_message_is_walked_to_its_end() {
        let bytes = packet([1, 1, 0, 1], &[QUESTION, RECORD, OPT, b"junk"].concat());
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(message.end(), bytes.len() - 4);
        assert!(message.asks(b"\x01A\x00", 1, 1) && !message.asks(b"\x01b\x00", 1, 1));
        let records: Vec<_> = message.records().map(Result::unwrap).collect();
        assert_eq!(records.len(), 2);
        assert_eq!((records[0].ttl, records[0].section), (60, Section::Answer));
        assert_eq!(bytes[records[0].rdata.clone()], [10, 0, 0, 1]);
        let opt = message.opt().unwrap();
        assert_eq!((opt.udp_size, opt.version, opt.dnssec_ok), (1232, 0, true));
        assert_eq!(message.rcode(), 16, "the OPT record's bits are the upper ones");
        assert_eq!(opt.options(&bytes).collect::<Vec<_>>(), [Ok((65_500, &[][..]))]);
    }

    #[test]
    fn counts_that_the_packet_cannot_hold_are_refused_before_any_walk() {
        assert_eq!(Message::parse(&packet([65_535; 4], b"")).unwrap_err(), Malformed::Counts);
        assert_eq!(Message::parse(&packet([1, 2, 0, 0], &[QUESTION, RECORD].concat())).unwrap_err(), Malformed::Counts);
        assert_eq!(
            Message::parse(&packet([2, 0, 0, 0], &[QUESTION, QUESTION].concat())).unwrap_err(),
            Malformed::Questions(2)
        );
        assert_eq!(Message::parse(&[0; 11]).unwrap_err(), Malformed::NoHeader(11));
    }

    #[test]
    fn a_message_cut_anywhere_is_refused() {
        let bytes = packet([1, 1, 0, 1], &[QUESTION, RECORD, OPT].concat());
        for length in 0..bytes.len() {
            assert!(Message::parse(&bytes[..length]).is_err(), "{length} octets");
        }
    }

    #[test]
    fn rdlength_past_the_end_is_refused() {
        let mut bytes = packet([1, 1, 0, 0], &[QUESTION, RECORD].concat());
        let rdlength = bytes.len() - 5;
        bytes[rdlength] = 5;
        assert_eq!(Message::parse(&bytes).unwrap_err(), Malformed::Cut(HEADER + QUESTION.len()));
    }

    #[test]
    fn an_opt_record_is_alone_in_the_additional_section_and_belongs_to_the_root() {
        let parse = |counts, body: &[&[u8]]| Message::parse(&packet(counts, &body.concat())).map(|_| ());
        assert_eq!(parse([1, 0, 0, 2], &[QUESTION, OPT, OPT]), Err(Malformed::SecondOpt));
        assert_eq!(parse([1, 1, 0, 0], &[QUESTION, OPT]), Err(Malformed::MisplacedOpt));
        assert_eq!(parse([1, 0, 0, 1], &[QUESTION, b"\x01x", OPT]), Err(Malformed::MisplacedOpt));
        assert_eq!(parse([1, 0, 0, 2], &[QUESTION, OPT, RECORD]), Ok(()), "it need not be the last");
    }

    #[test]
    fn options_that_do_not_fill_their_record_end_in_an_error() {
        let mut opt = OPT.to_vec();
        let last = opt.len() - 1;
        opt[last] = 1;
        let bytes = packet([1, 0, 0, 1], &[QUESTION, &opt].concat());
        let message = Message::parse(&bytes).unwrap();
        let options: Vec<_> = message.opt().unwrap().options(&bytes).collect();
        assert_eq!(options, [Err(Malformed::Rdata(bytes.len() - 4))]);
    }
}
