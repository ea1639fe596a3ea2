//! Whole messages.

use std::fmt;

use super::{Name, Record, WireError, class_number, rcode_name, type_name};

/// The header's second 16 bits as one number, with names for the parts.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(pub u16);

impl Flags {
    /// Response.
    pub const QR: u16 = 0x8000;
    /// Authoritative answer.
    pub const AA: u16 = 0x0400;
    /// Truncated.
    pub const TC: u16 = 0x0200;
    /// Recursion desired.
    pub const RD: u16 = 0x0100;
    /// Recursion available.
    pub const RA: u16 = 0x0080;
    /// The reserved bit.
    pub const Z: u16 = 0x0040;
    /// Authentic data.
    pub const AD: u16 = 0x0020;
    /// Checking disabled.
    pub const CD: u16 = 0x0010;

    const NAMES: [(&str, u16); 8] = [
        ("qr", Self::QR),
        ("aa", Self::AA),
        ("tc", Self::TC),
        ("rd", Self::RD),
        ("ra", Self::RA),
        ("z", Self::Z),
        ("ad", Self::AD),
        ("cd", Self::CD),
    ];

    /// Reads `qr,aa,rd`; the empty string and `none` are no flags.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "none" {
            return Some(Self(0));
        }
        text.split(',')
            .filter(|word| !word.is_empty())
            .map(|word| Self::NAMES.iter().find(|(name, _)| *name == word).map(|&(_, bit)| bit))
            .try_fold(0, |all, bit| Some(all | bit?))
            .map(Self)
    }

    /// Whether all bits of `mask` are set.
    pub fn has(self, mask: u16) -> bool {
        self.0 & mask == mask
    }

    /// The opcode.
    pub fn opcode(self) -> u16 {
        (self.0 >> 11) & 0xF
    }

    /// The rcode in the header, four bits.
    pub fn rcode(self) -> u16 {
        self.0 & 0xF
    }

    /// Only the named bits, without opcode and rcode.
    #[must_use]
    pub fn bits(self) -> Self {
        Self(self.0 & 0x87F0)
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = Self::NAMES.iter().filter(|(_, bit)| self.has(*bit)).map(|(name, _)| *name).collect();
        write!(f, "[{}]", names.join(","))
    }
}

/// One question.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Question {
    /// Name, case as written.
    pub name: Name,
    /// Type number.
    pub qtype: u16,
    /// Class number.
    pub qclass: u16,
}

impl Question {
    /// A question in class IN.
    ///
    /// # Errors
    /// The name or the type cannot be read.
    pub fn parse(name: &str, qtype: &str) -> Result<Self, WireError> {
        let number = super::type_number(qtype).ok_or_else(|| WireError::new(format!("type {qtype:?}")))?;
        Ok(Self { name: Name::parse(name)?, qtype: number, qclass: class_number("IN").unwrap_or(1) })
    }

    /// Equal but for the name's case.
    pub fn same(&self, other: &Self) -> bool {
        self.name.lower() == other.name.lower() && (self.qtype, self.qclass) == (other.qtype, other.qclass)
    }

    /// Appends the question.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.name.wire());
        out.extend_from_slice(&self.qtype.to_be_bytes());
        out.extend_from_slice(&self.qclass.to_be_bytes());
    }
}

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, type_name(self.qtype))?;
        if self.qclass == 1 { Ok(()) } else { write!(f, " CLASS{}", self.qclass) }
    }
}

/// The OPT pseudo-record, unpacked (RFC 6891 6.1).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Opt {
    /// Requestor's UDP payload size.
    pub size: u16,
    /// Upper eight bits of the rcode.
    pub extended_rcode: u8,
    /// EDNS version.
    pub version: u8,
    /// DO and the reserved flags.
    pub flags: u16,
    /// Options: code and data.
    pub options: Vec<(u16, Vec<u8>)>,
}

impl Opt {
    /// DNSSEC OK.
    pub const DO: u16 = 0x8000;

    /// As the record that goes on the wire.
    pub fn to_record(&self) -> Record {
        let ttl = u32::from(self.extended_rcode) << 24 | u32::from(self.version) << 16 | u32::from(self.flags);
        let mut rdata = Vec::new();
        for (code, data) in &self.options {
            rdata.extend_from_slice(&code.to_be_bytes());
            rdata.extend_from_slice(&u16::try_from(data.len()).unwrap_or(u16::MAX).to_be_bytes());
            rdata.extend_from_slice(data);
        }
        Record { name: root(), rtype: 41, class: self.size, ttl, rdata }
    }

    /// From the record of a received message; options that do not parse end the list.
    pub fn from_record(record: &Record) -> Self {
        let [extended_rcode, version, high, low] = record.ttl.to_be_bytes();
        let mut options = Vec::new();
        let mut rest = record.rdata.as_slice();
        while let [c1, c2, l1, l2, tail @ ..] = rest {
            let length = usize::from(u16::from_be_bytes([*l1, *l2]));
            let Some((data, tail)) = tail.split_at_checked(length) else { break };
            options.push((u16::from_be_bytes([*c1, *c2]), data.to_vec()));
            rest = tail;
        }
        Self { size: record.class, extended_rcode, version, flags: u16::from_be_bytes([high, low]), options }
    }
}

fn root() -> Name {
    Name::parse(".").expect("the root must be a name")
}

/// A message, taken apart.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Message {
    /// Id.
    pub id: u16,
    /// Flags, opcode and rcode.
    pub flags: Flags,
    /// Question section.
    pub questions: Vec<Question>,
    /// Answer section.
    pub answers: Vec<Record>,
    /// Authority section.
    pub authority: Vec<Record>,
    /// Additional section without OPT.
    pub additional: Vec<Record>,
    /// The OPT record.
    pub opt: Option<Opt>,
    /// Bytes after the last record.
    pub trailing: Vec<u8>,
}

impl Message {
    /// A query with RD set.
    pub fn query(id: u16, question: Question) -> Self {
        Self { id, flags: Flags(Flags::RD), questions: vec![question], ..Self::default() }
    }

    /// An empty response to `self`: same id, question and RD, with RA set.
    #[must_use]
    pub fn response(&self) -> Self {
        let kept = self.flags.0 & (Flags::RD | Flags::CD);
        Self {
            id: self.id,
            flags: Flags(Flags::QR | Flags::RA | kept),
            questions: self.questions.clone(),
            opt: self.opt.as_ref().map(|opt| Opt { size: 1232, flags: opt.flags & Opt::DO, ..Opt::default() }),
            ..Self::default()
        }
    }

    /// The rcode with the extended bits of OPT.
    pub fn rcode(&self) -> u16 {
        let high = self.opt.as_ref().map_or(0, |opt| u16::from(opt.extended_rcode));
        high << 4 | self.flags.rcode()
    }

    /// Sets the header's rcode.
    #[must_use]
    pub fn with_rcode(mut self, rcode: u16) -> Self {
        self.flags.0 = self.flags.0 & !0xF | rcode & 0xF;
        self
    }

    /// Adds an answer.
    #[must_use]
    pub fn with_answer(mut self, record: Record) -> Self {
        self.answers.push(record);
        self
    }

    /// Adds an authority record.
    #[must_use]
    pub fn with_authority(mut self, record: Record) -> Self {
        self.authority.push(record);
        self
    }

    /// All records but OPT, section by section.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.answers.iter().chain(&self.authority).chain(&self.additional)
    }

    /// As bytes, names uncompressed.
    pub fn encode(&self) -> Vec<u8> {
        self.encode_with(|record, out| record.write(out))
    }

    /// As bytes; owners that equal the question's name are a pointer to it, as servers send them.
    pub fn encode_compressed(&self) -> Vec<u8> {
        let asked = self.questions.first().map(|question| question.name.lower());
        self.encode_with(|record, out| {
            if Some(record.name.lower()) != asked || record.name.wire().len() < 3 {
                return record.write(out);
            }
            out.extend_from_slice(&[0xC0, 12]);
            let mut whole = Vec::new();
            record.write(&mut whole);
            out.extend_from_slice(&whole[record.name.wire().len()..]);
        })
    }

    fn encode_with(&self, write: impl Fn(&Record, &mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        let count = |n: usize| u16::try_from(n).unwrap_or(u16::MAX).to_be_bytes();
        out.extend_from_slice(&self.id.to_be_bytes());
        out.extend_from_slice(&self.flags.0.to_be_bytes());
        out.extend_from_slice(&count(self.questions.len()));
        out.extend_from_slice(&count(self.answers.len()));
        out.extend_from_slice(&count(self.authority.len()));
        out.extend_from_slice(&count(self.additional.len() + usize::from(self.opt.is_some())));
        for question in &self.questions {
            question.write(&mut out);
        }
        for record in self.records() {
            write(record, &mut out);
        }
        if let Some(opt) = &self.opt {
            opt.to_record().write(&mut out);
        }
        out.extend_from_slice(&self.trailing);
        out
    }

    /// Reads a whole message; bytes after the last record are kept in `trailing`.
    ///
    /// # Errors
    /// Says where the packet stops being a message.
    pub fn parse(packet: &[u8]) -> Result<Self, WireError> {
        let header = packet.get(..12).ok_or_else(|| WireError::new(format!("{} bytes are no header", packet.len())))?;
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let mut message = Self { id: word(0), flags: Flags(word(2)), ..Self::default() };
        let mut at = 12;
        for _ in 0..word(4) {
            let (name, next) = Name::read(packet, at)?;
            let fixed = packet.get(next..next + 4).ok_or_else(|| WireError::new("the question is cut"))?;
            message.questions.push(Question {
                name,
                qtype: u16::from_be_bytes([fixed[0], fixed[1]]),
                qclass: u16::from_be_bytes([fixed[2], fixed[3]]),
            });
            at = next + 4;
        }
        for (section, count) in [(0, word(6)), (1, word(8)), (2, word(10))] {
            for _ in 0..count {
                let (record, next) = Record::read(packet, at)?;
                at = next;
                match section {
                    0 => message.answers.push(record),
                    1 => message.authority.push(record),
                    _ if record.rtype == 41 && message.opt.is_none() => message.opt = Some(Opt::from_record(&record)),
                    _ => message.additional.push(record),
                }
            }
        }
        message.trailing = packet[at..].to_vec();
        Ok(message)
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "id {} {} {:?}", self.id, rcode_name(self.rcode()), self.flags)?;
        if self.flags.opcode() != 0 {
            write!(f, " opcode {}", self.flags.opcode())?;
        }
        write!(f, " {:?}", self.questions)?;
        for (section, records) in
            [("answer", &self.answers), ("authority", &self.authority), ("additional", &self.additional)]
        {
            if !records.is_empty() {
                write!(f, " {section} {records:?}")?;
            }
        }
        if let Some(opt) = &self.opt {
            write!(f, " {opt:?}")?;
        }
        if !self.trailing.is_empty() {
            write!(f, " and {} bytes after the end", self.trailing.len())?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_message_survives_writing_and_reading() {
        let query = Message::query(7, Question::parse("www.example.", "A").unwrap());
        let mut reply = query
            .response()
            .with_answer(Record::parse("www.example. 300 IN A 192.0.2.1").unwrap())
            .with_authority(Record::parse("example. 300 IN NS ns.example.").unwrap());
        reply.opt = Some(Opt { size: 1232, flags: Opt::DO, options: vec![(10, vec![1; 8])], ..Opt::default() });
        reply.trailing = vec![1, 2, 3];
        assert_eq!(Message::parse(&reply.encode()).unwrap(), reply);
    }
}
