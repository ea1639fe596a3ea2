//! Numbers of types, classes, opcodes and return codes, and their names in text.

use std::fmt;

/// Record types that the code treats specially.
pub mod rtype {
    #![allow(missing_docs)] // the names are the documentation
    pub const A: u16 = 1;
    pub const NS: u16 = 2;
    pub const MD: u16 = 3;
    pub const MF: u16 = 4;
    pub const CNAME: u16 = 5;
    pub const SOA: u16 = 6;
    pub const MB: u16 = 7;
    pub const MG: u16 = 8;
    pub const MR: u16 = 9;
    pub const PTR: u16 = 12;
    pub const MINFO: u16 = 14;
    pub const MX: u16 = 15;
    pub const TXT: u16 = 16;
    pub const RP: u16 = 17;
    pub const AFSDB: u16 = 18;
    pub const RT: u16 = 21;
    pub const SIG: u16 = 24;
    pub const PX: u16 = 26;
    pub const AAAA: u16 = 28;
    pub const NXT: u16 = 30;
    pub const SRV: u16 = 33;
    pub const NAPTR: u16 = 35;
    pub const DNAME: u16 = 39;
    pub const OPT: u16 = 41;
    pub const DS: u16 = 43;
    pub const RRSIG: u16 = 46;
    pub const NSEC: u16 = 47;
    pub const NSEC3: u16 = 50;
    pub const SVCB: u16 = 64;
    pub const HTTPS: u16 = 65;
    pub const IXFR: u16 = 251;
    pub const AXFR: u16 = 252;
    pub const ANY: u16 = 255;
}

/// Classes that the code treats specially.
pub mod class {
    #![allow(missing_docs)] // the names are the documentation
    pub const IN: u16 = 1;
    pub const CH: u16 = 3;
    pub const HS: u16 = 4;
    pub const NONE: u16 = 254;
    pub const ANY: u16 = 255;
}

/// Return codes that the code treats specially.
pub mod rcode {
    #![allow(missing_docs)] // the names are the documentation
    pub const NOERROR: u8 = 0;
    pub const FORMERR: u8 = 1;
    pub const SERVFAIL: u8 = 2;
    pub const NXDOMAIN: u8 = 3;
    pub const NOTIMP: u8 = 4;
    pub const REFUSED: u8 = 5;
    /// Extended (RFC 6891 9): its upper bits travel in the OPT record.
    pub const BADVERS: u16 = 16;
}

/// Types by their names in presentation form (IANA registry), without those that cannot be asked for.
const TYPES: &[(u16, &str)] = &[
    (1, "A"),
    (2, "NS"),
    (3, "MD"),
    (4, "MF"),
    (5, "CNAME"),
    (6, "SOA"),
    (7, "MB"),
    (8, "MG"),
    (9, "MR"),
    (10, "NULL"),
    (11, "WKS"),
    (12, "PTR"),
    (13, "HINFO"),
    (14, "MINFO"),
    (15, "MX"),
    (16, "TXT"),
    (17, "RP"),
    (18, "AFSDB"),
    (19, "X25"),
    (20, "ISDN"),
    (21, "RT"),
    (22, "NSAP"),
    (23, "NSAP-PTR"),
    (24, "SIG"),
    (25, "KEY"),
    (26, "PX"),
    (27, "GPOS"),
    (28, "AAAA"),
    (29, "LOC"),
    (30, "NXT"),
    (31, "EID"),
    (32, "NIMLOC"),
    (33, "SRV"),
    (34, "ATMA"),
    (35, "NAPTR"),
    (36, "KX"),
    (37, "CERT"),
    (38, "A6"),
    (39, "DNAME"),
    (40, "SINK"),
    (41, "OPT"),
    (42, "APL"),
    (43, "DS"),
    (44, "SSHFP"),
    (45, "IPSECKEY"),
    (46, "RRSIG"),
    (47, "NSEC"),
    (48, "DNSKEY"),
    (49, "DHCID"),
    (50, "NSEC3"),
    (51, "NSEC3PARAM"),
    (52, "TLSA"),
    (53, "SMIMEA"),
    (55, "HIP"),
    (56, "NINFO"),
    (57, "RKEY"),
    (58, "TALINK"),
    (59, "CDS"),
    (60, "CDNSKEY"),
    (61, "OPENPGPKEY"),
    (62, "CSYNC"),
    (63, "ZONEMD"),
    (64, "SVCB"),
    (65, "HTTPS"),
    (66, "DSYNC"),
    (99, "SPF"),
    (104, "NID"),
    (105, "L32"),
    (106, "L64"),
    (107, "LP"),
    (108, "EUI48"),
    (109, "EUI64"),
    (249, "TKEY"),
    (250, "TSIG"),
    (251, "IXFR"),
    (252, "AXFR"),
    (253, "MAILB"),
    (254, "MAILA"),
    (255, "ANY"),
    (256, "URI"),
    (257, "CAA"),
    (258, "AVC"),
    (259, "DOA"),
    (260, "AMTRELAY"),
    (261, "RESINFO"),
    (32768, "TA"),
    (32769, "DLV"),
];

const CLASSES: &[(u16, &str)] = &[(1, "IN"), (3, "CH"), (4, "HS"), (254, "NONE"), (255, "ANY")];

/// Displays a type: its name, or `TYPE65333` (RFC 3597 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TypeText(pub u16);

impl fmt::Display for TypeText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match name_of(TYPES, self.0) {
            Some(name) => f.write_str(name),
            None => write!(f, "TYPE{}", self.0),
        }
    }
}

/// Displays a class: its name, or `CLASS65280` (RFC 3597 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassText(pub u16);

impl fmt::Display for ClassText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match name_of(CLASSES, self.0) {
            Some(name) => f.write_str(name),
            None => write!(f, "CLASS{}", self.0),
        }
    }
}

/// Reads a type's name in any case, or `TYPE` and a number.
pub fn type_from_text(text: &str) -> Option<u16> {
    number_of(TYPES, "TYPE", text)
}

/// Reads a class's name in any case, or `CLASS` and a number.
pub fn class_from_text(text: &str) -> Option<u16> {
    number_of(CLASSES, "CLASS", text)
}

fn name_of(table: &[(u16, &'static str)], number: u16) -> Option<&'static str> {
    let index = table.binary_search_by_key(&number, |&(number, _)| number).ok()?;
    table.get(index).map(|&(_, name)| name)
}

fn number_of(table: &[(u16, &str)], prefix: &str, text: &str) -> Option<u16> {
    if let Some((number, _)) = table.iter().find(|(_, name)| name.eq_ignore_ascii_case(text)) {
        return Some(*number);
    }
    let (head, digits) = text.split_at_checked(prefix.len())?;
    let plain = digits.bytes().all(|octet| octet.is_ascii_digit());
    if head.eq_ignore_ascii_case(prefix) && plain { digits.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_number_goes_to_text_and_back() {
        for number in 0..=u16::MAX {
            assert_eq!(type_from_text(&TypeText(number).to_string()), Some(number));
            assert_eq!(class_from_text(&ClassText(number).to_string()), Some(number));
        }
    }

    #[test]
    fn type_names_are_read_in_any_case_and_nothing_else_is() {
        assert_eq!(type_from_text("https"), Some(rtype::HTTPS));
        assert_eq!(type_from_text("type1"), Some(rtype::A));
        for text in ["", "TYPE", "TYPE65536", "TYPE+1", "TYPE-1", "AA", "TYPE 1", "ÄÖÜß"] {
            assert_eq!(type_from_text(text), None, "{text:?}");
        }
    }
}
