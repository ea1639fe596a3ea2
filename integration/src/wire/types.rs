//! Type, class and rcode numbers and their names, as far as scripts use them.

const TYPES: &[(&str, u16)] = &[
    ("A", 1),
    ("NS", 2),
    ("CNAME", 5),
    ("SOA", 6),
    ("NULL", 10),
    ("PTR", 12),
    ("HINFO", 13),
    ("MX", 15),
    ("TXT", 16),
    ("AFSDB", 18),
    ("AAAA", 28),
    ("SRV", 33),
    ("NAPTR", 35),
    ("DNAME", 39),
    ("OPT", 41),
    ("DS", 43),
    ("RRSIG", 46),
    ("NSEC", 47),
    ("DNSKEY", 48),
    ("NSEC3", 50),
    ("SVCB", 64),
    ("HTTPS", 65),
    ("IXFR", 251),
    ("AXFR", 252),
    ("ANY", 255),
    ("CAA", 257),
];

const CLASSES: &[(&str, u16)] = &[("IN", 1), ("CH", 3), ("HS", 4), ("NONE", 254), ("ANY", 255)];

const RCODES: &[(&str, u16)] =
    &[("NOERROR", 0), ("FORMERR", 1), ("SERVFAIL", 2), ("NXDOMAIN", 3), ("NOTIMP", 4), ("REFUSED", 5), ("BADVERS", 16)];

fn number(table: &[(&str, u16)], prefix: &str, text: &str) -> Option<u16> {
    let upper = text.to_ascii_uppercase();
    table
        .iter()
        .find(|(name, _)| *name == upper)
        .map(|&(_, number)| number)
        .or_else(|| upper.strip_prefix(prefix)?.parse().ok())
}

fn name(table: &[(&str, u16)], prefix: &str, value: u16) -> String {
    table
        .iter()
        .find(|&&(_, number)| number == value)
        .map_or_else(|| format!("{prefix}{value}"), |(name, _)| (*name).to_owned())
}

/// `A`, `TYPE65333` → number.
pub fn type_number(text: &str) -> Option<u16> {
    number(TYPES, "TYPE", text)
}

/// The mnemonic of a type, or `TYPEn`.
pub fn type_name(value: u16) -> String {
    name(TYPES, "TYPE", value)
}

/// `IN`, `CLASS32` → number.
pub fn class_number(text: &str) -> Option<u16> {
    number(CLASSES, "CLASS", text)
}

/// `NXDOMAIN`, `RCODE11` → number.
pub fn rcode_number(text: &str) -> Option<u16> {
    number(RCODES, "RCODE", text)
}

/// The mnemonic of an rcode, or `RCODEn`.
pub fn rcode_name(value: u16) -> String {
    name(RCODES, "RCODE", value)
}
