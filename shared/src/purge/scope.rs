//! What a purge covers.

use std::fmt;

use bytes::Bytes;

use crate::dns::{name, rr};
use crate::key::Key;

/// What a purge covers: in all views, with and without DNSSEC records, positive and negative answers alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// One name.
    Name {
        /// In lower-case wire form.
        name: Bytes,
        /// Answers of this type alone.
        qtype: Option<u16>,
    },
    /// A name and all names below it.
    Suffix {
        /// In lower-case wire form.
        suffix: Bytes,
        /// Answers of this type alone.
        qtype: Option<u16>,
    },
    /// One key.
    Key(Key),
    /// All names.
    Everything,
}

impl Scope {
    /// Whether it covers a key.
    pub fn covers(&self, key: &Key) -> bool {
        self.covers_octets(key.as_bytes(), key.name(), key.qtype())
    }

    /// The same for a key's octets, when its name and type are known.
    pub fn covers_octets(&self, key: &[u8], name: &[u8], qtype: u16) -> bool {
        let of_type = |wanted: &Option<u16>| wanted.is_none_or(|wanted| wanted == qtype);
        match self {
            Self::Name { name: wanted, qtype } => wanted == name && of_type(qtype),
            Self::Suffix { suffix, qtype } => of_type(qtype) && suffixes(name).any(|below| below == suffix),
            Self::Key(wanted) => wanted.as_bytes() == key,
            Self::Everything => true,
        }
    }
}

impl Scope {
    /// Whether there may be a key that both cover, of whatever type.
    pub fn touches(&self, other: &Self) -> bool {
        let (Some((name, below)), Some((other, others_below))) = (self.name(), other.name()) else { return true };
        name == other
            || below && suffixes(other).any(|above| above == name)
            || others_below && suffixes(name).any(|above| above == other)
    }

    /// The name that it is about, and whether those below it are meant too.
    fn name(&self) -> Option<(&[u8], bool)> {
        match self {
            Self::Name { name, .. } => Some((name, false)),
            Self::Suffix { suffix, .. } => Some((suffix, true)),
            Self::Key(key) => Some((key.name(), false)),
            Self::Everything => None,
        }
    }
}

/// A lower-case name in wire form and all names above it, the root last.
pub(super) fn suffixes(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(name);
    std::iter::from_fn(move || {
        let now = rest?;
        let (&length, below) = now.split_first()?;
        rest = if length == 0 { None } else { below.get(usize::from(length)..) };
        Some(now)
    })
}

/// `example.com. AAAA`, `*.example.com.`, `everything`.
impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (front, wire, qtype) = match self {
            Self::Name { name, qtype } => ("", name, qtype),
            Self::Suffix { suffix, qtype } => ("*.", suffix, qtype),
            Self::Key(key) => return key.fmt(f),
            Self::Everything => return f.write_str("everything"),
        };
        write!(f, "{front}{}", name::Presented(wire))?;
        qtype.map_or(Ok(()), |qtype| write!(f, " {}", rr::TypeText(qtype)))
    }
}
