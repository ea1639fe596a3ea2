//! Resource records: from text, from a packet, and their canonical form for comparison.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Name, WireError, class_number, type_name, type_number};

/// One resource record. `rdata` holds names uncompressed after reading, and whatever a script gave before writing.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    /// Owner.
    pub name: Name,
    /// Type number.
    pub rtype: u16,
    /// Class number.
    pub class: u16,
    /// TTL as on the wire, top bit and all.
    pub ttl: u32,
    /// RDATA.
    pub rdata: Vec<u8>,
}

impl Record {
    /// Reads `NAME TTL CLASS TYPE RDATA…`; RDATA of an unknown type as `\# LENGTH HEX` (RFC 3597 5).
    ///
    /// # Errors
    /// Says which field it could not read.
    pub fn parse(text: &str) -> Result<Self, WireError> {
        let mut words = text.split_whitespace();
        let mut next =
            |what: &str| words.next().ok_or_else(|| WireError::new(format!("record {text:?}: {what} is missing")));
        let name = Name::parse(next("the owner")?)?;
        let ttl = next("the TTL")?;
        let ttl = ttl.parse().map_err(|_| WireError::new(format!("record {text:?}: TTL {ttl:?}")))?;
        let class = next("the class")?;
        let class = class_number(class).ok_or_else(|| WireError::new(format!("class {class:?}")))?;
        let rtype = next("the type")?;
        let rtype = type_number(rtype).ok_or_else(|| WireError::new(format!("type {rtype:?}")))?;
        let fields: Vec<&str> = words.collect();
        let rdata = rdata(rtype, &fields)
            .ok_or_else(|| WireError::new(format!("record {text:?}: RDATA {fields:?} of {}", type_name(rtype))))?;
        Ok(Self { name, rtype, class, ttl, rdata })
    }

    /// An `A` record in class IN.
    pub fn a(name: &Name, ttl: u32, address: Ipv4Addr) -> Self {
        Self { name: name.clone(), rtype: 1, class: 1, ttl, rdata: address.octets().to_vec() }
    }

    /// Reads the record at `offset`; gives the offset behind it.
    ///
    /// # Errors
    /// Anything that runs past the end of the packet.
    pub fn read(packet: &[u8], offset: usize) -> Result<(Self, usize), WireError> {
        let cut = || WireError::new(format!("record at {offset} is cut"));
        let (name, at) = Name::read(packet, offset)?;
        let fixed = packet.get(at..at + 10).ok_or_else(cut)?;
        let rtype = u16::from_be_bytes([fixed[0], fixed[1]]);
        let class = u16::from_be_bytes([fixed[2], fixed[3]]);
        let ttl = u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]);
        let length = usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
        let (start, end) = (at + 10, at + 10 + length);
        if packet.len() < end {
            return Err(cut());
        }
        let rdata = expanded(packet, rtype, start, end).unwrap_or_else(|| packet[start..end].to_vec());
        Ok((Self { name, rtype, class, ttl, rdata }, end))
    }

    /// Appends the record, names as they stand.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.name.wire());
        out.extend_from_slice(&self.rtype.to_be_bytes());
        out.extend_from_slice(&self.class.to_be_bytes());
        out.extend_from_slice(&self.ttl.to_be_bytes());
        let length = u16::try_from(self.rdata.len()).unwrap_or(u16::MAX);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&self.rdata);
    }

    /// Equal but for the TTL; owners, and names in the RDATA of the types of RFC 1035, are compared without case.
    pub fn same_data(&self, other: &Self) -> bool {
        self.name.lower() == other.name.lower()
            && (self.rtype, self.class) == (other.rtype, other.class)
            && (self.rdata == other.rdata
                || names_in(self.rtype).is_some() && self.rdata.eq_ignore_ascii_case(&other.rdata))
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} CLASS{} {} ", self.name, self.ttl, self.class, type_name(self.rtype))?;
        match (self.rtype, <[u8; 4]>::try_from(self.rdata.as_slice())) {
            (1, Ok(octets)) => write!(f, "{}", Ipv4Addr::from(octets)),
            _ => {
                write!(f, "\\# {} ", self.rdata.len())?;
                self.rdata.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

/// Where the RDATA of a type has names that may be compressed: bytes before the first one, and how many.
fn names_in(rtype: u16) -> Option<(usize, usize)> {
    match rtype {
        2 | 3 | 4 | 5 | 7 | 8 | 9 | 12 | 39 => Some((0, 1)),
        6 | 14 | 17 => Some((0, 2)),
        15 | 18 | 21 => Some((2, 1)),
        33 => Some((6, 1)),
        _ => None,
    }
}

/// RDATA with its names expanded, for the types whose names may be compressed (RFC 3597 4).
fn expanded(packet: &[u8], rtype: u16, start: usize, end: usize) -> Option<Vec<u8>> {
    let (prefix, names) = names_in(rtype)?;
    let mut rdata = packet.get(start..start + prefix)?.to_vec();
    let mut at = start + prefix;
    for _ in 0..names {
        let (name, next) = Name::read(packet, at).ok()?;
        rdata.extend_from_slice(name.wire());
        at = next;
    }
    rdata.extend_from_slice(packet.get(at..end)?);
    Some(rdata)
}

fn rdata(rtype: u16, fields: &[&str]) -> Option<Vec<u8>> {
    if let ["\\#", length, hex @ ..] = fields {
        let bytes = hex_bytes(&hex.concat())?;
        return (length.parse() == Ok(bytes.len())).then_some(bytes);
    }
    let name = |text: &str| Some(Name::parse(text).ok()?.wire().to_vec());
    let short = |text: &str| Some(text.parse::<u16>().ok()?.to_be_bytes().to_vec());
    let long = |text: &str| Some(text.parse::<u32>().ok()?.to_be_bytes().to_vec());
    let parts = match (rtype, fields) {
        (1, [address]) => vec![address.parse::<Ipv4Addr>().ok()?.octets().to_vec()],
        (28, [address]) => vec![address.parse::<Ipv6Addr>().ok()?.octets().to_vec()],
        (2 | 5 | 12 | 39, [target]) => vec![name(target)?],
        (15, [preference, exchange]) => vec![short(preference)?, name(exchange)?],
        (33, [priority, weight, port, target]) => {
            vec![short(priority)?, short(weight)?, short(port)?, name(target)?]
        }
        (6, [mname, rname, numbers @ ..]) if numbers.len() == 5 => {
            let mut parts = vec![name(mname)?, name(rname)?];
            for number in numbers {
                parts.push(long(number)?);
            }
            parts
        }
        (16, texts) => {
            let mut parts = Vec::new();
            for text in texts {
                let text = text.trim_matches('"');
                parts.push(vec![u8::try_from(text.len()).ok()?]);
                parts.push(text.as_bytes().to_vec());
            }
            parts
        }
        _ => return None,
    };
    Some(parts.concat())
}

/// Bytes from hex digits; spaces are ignored.
pub(crate) fn hex_bytes(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| u8::try_from(c.to_digit(16)?).ok())
        .collect::<Option<_>>()?;
    let pairs = digits.chunks_exact(2);
    pairs.remainder().is_empty().then(|| pairs.map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn records_of_known_and_unknown_types_survive_writing_and_reading() {
        for text in [
            "www.example. 300 IN A 192.0.2.1",
            "example. 60 IN SOA ns.example. root.example. 1 2 3 4 5",
            "example. 60 IN MX 10 mail.example.",
            "example. 60 IN TYPE65333 \\# 3 c00c00",
        ] {
            let record = Record::parse(text).unwrap();
            let mut bytes = Vec::new();
            record.write(&mut bytes);
            assert_eq!(Record::read(&bytes, 0).unwrap(), (record, bytes.len()));
        }
    }

    #[test]
    fn a_compressed_exchange_is_read_as_the_full_name() {
        let mut packet = Name::parse("example.").unwrap().wire().to_vec();
        Record { rdata: vec![0, 10, 0xC0, 0], ..Record::parse("example. 60 IN MX 1 x.").unwrap() }.write(&mut packet);
        let (record, _) = Record::read(&packet, 9).unwrap();
        assert_eq!(record, Record::parse("example. 60 IN MX 10 example.").unwrap());
    }
}
