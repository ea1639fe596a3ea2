//! The key of an answer: the whole question, in one canonical byte form that all replicas agree on.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{BuildHasher as _, Hash, Hasher};
use std::sync::LazyLock;

use bytes::Bytes;
use foldhash::quality::RandomState;
use xxhash_rust::xxh3::xxh3_64;

use crate::dns::{name, rr};

/// Longest name in wire form (RFC 1035 section 2.3.4), in bytes.
const NAME_MAX: usize = 255;
/// Longest view name, in bytes: it travels in every message of its queries.
const VIEW_MAX: usize = 64;
/// Bytes after the name that are always there: type, class, flags.
const FIXED: usize = 5;

const DNSSEC_OK: u8 = 1;
const CHECKING_DISABLED: u8 = 2;

/// The bits of a query that change its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flags {
    /// DO of RFC 3225: the client wants DNSSEC records.
    pub dnssec_ok: bool,
    /// CD of RFC 4035: the client validates by itself.
    pub checking_disabled: bool,
}

impl Flags {
    /// The flags as the byte that stands in a key.
    pub const fn to_byte(self) -> u8 {
        (if self.dnssec_ok { DNSSEC_OK } else { 0 }) | (if self.checking_disabled { CHECKING_DISABLED } else { 0 })
    }

    const fn from_byte(byte: u8) -> Option<Self> {
        // An unknown flag is refused, never ignored: an older agent must not answer one question from another's entry.
        if byte & !(DNSSEC_OK | CHECKING_DISABLED) != 0 {
            return None;
        }
        Some(Self { dnssec_ok: byte & DNSSEC_OK != 0, checking_disabled: byte & CHECKING_DISABLED != 0 })
    }
}

/// Canonical key: `0x01 ‖ name (lower case, uncompressed wire form) ‖ type ‖ class ‖ flags ‖ view`, numbers big-endian.
#[derive(Clone)]
pub struct Key {
    bytes: Bytes,
    /// What tables hash instead of the octets, which one query has looked up some thirty times in a replica. With a seed of this
    /// process, so that nobody can prepare names that collide; as short as fits in beside the rest.
    hash: u32,
    slot: u16,
    name_len: u8,
}

/// Makes [`Key::hash`] of the octets.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::default);

/// Why bytes are not a key. Always the sender's fault; nothing changed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The version byte is not one that this release knows.
    #[error("unknown key version {0}; this release knows version {known}", known = Key::VERSION)]
    Version(u8),
    /// A flag is set that this release does not know.
    #[error("unknown key flags {0:#04x}")]
    Flags(u8),
    /// The name is not an uncompressed, lower-case name in wire form.
    #[error("the key's name is not a lower-case name in uncompressed wire form")]
    Name,
    /// The key ends before its fixed fields do.
    #[error("the key is cut short")]
    Short,
    /// The view is not UTF-8 or too long.
    #[error("the key's view is not UTF-8 of at most {VIEW_MAX} bytes")]
    View,
}

impl Key {
    /// First byte of every key: the version of this layout. An unknown version is refused, never guessed at.
    pub const VERSION: u8 = 1;

    /// Longest key in bytes.
    pub const MAX: usize = 1 + NAME_MAX + FIXED + VIEW_MAX;

    /// Builds a key; `name` is in uncompressed wire form, in any case. The default view is the empty one.
    pub fn new(name: &[u8], qtype: u16, qclass: u16, flags: Flags, view: &str) -> Result<Self, KeyError> {
        let mut bytes = Vec::with_capacity(1 + name.len() + FIXED + view.len());
        bytes.push(Self::VERSION);
        bytes.extend(name.iter().map(u8::to_ascii_lowercase));
        bytes.extend_from_slice(&qtype.to_be_bytes());
        bytes.extend_from_slice(&qclass.to_be_bytes());
        bytes.push(flags.to_byte());
        bytes.extend_from_slice(view.as_bytes());
        let key = Self::from_bytes(Bytes::from(bytes))?;
        // A name with bytes after its root label would have been read as other fields.
        if key.name().len() == name.len() { Ok(key) } else { Err(KeyError::Name) }
    }

    /// Takes bytes from a peer as a key if they are one in canonical form.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, KeyError> {
        let (&version, rest) = bytes.split_first().ok_or(KeyError::Short)?;
        if version != Self::VERSION {
            return Err(KeyError::Version(version));
        }
        let name_len = name_length(rest)?;
        let fixed = rest.get(name_len..name_len + FIXED).ok_or(KeyError::Short)?;
        Flags::from_byte(fixed[4]).ok_or(KeyError::Flags(fixed[4]))?;
        let view = &rest[name_len + FIXED..];
        if view.len() > VIEW_MAX || std::str::from_utf8(view).is_err() {
            return Err(KeyError::View);
        }
        let mut hasher = HASHER.build_hasher();
        hasher.write(&bytes);
        let (hash, slot) = (hasher.finish() as u32, slot(&rest[..name_len], view));
        Ok(Self { hash, slot, name_len: name_len as u8, bytes })
    }

    /// A copy whose bytes are its own. A key cut out of a received message keeps that whole message in memory.
    pub fn detached(&self) -> Self {
        Self { bytes: Bytes::copy_from_slice(&self.bytes), ..*self }
    }

    /// The canonical bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The canonical bytes, shared.
    pub fn to_bytes(&self) -> Bytes {
        self.bytes.clone()
    }

    /// The name in lower-case wire form, root label included.
    pub fn name(&self) -> &[u8] {
        &self.bytes[1..1 + usize::from(self.name_len)]
    }

    /// The query type.
    pub fn qtype(&self) -> u16 {
        let at = self.after_name();
        u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    /// The query class.
    pub fn qclass(&self) -> u16 {
        let at = self.after_name();
        u16::from_be_bytes([self.bytes[at + 2], self.bytes[at + 3]])
    }

    /// The DO and CD bits.
    pub fn flags(&self) -> Flags {
        Flags::from_byte(self.bytes[self.after_name() + 4])
            .expect("a key's flags must have been checked when it was made")
    }

    /// The view; empty for the default one.
    pub fn view(&self) -> &str {
        std::str::from_utf8(self.view_bytes()).expect("a key's view must have been checked when it was made")
    }

    /// The key's slot, the unit of ownership: the top 16 bits of xxh3 over name and view. All types of a name share a
    /// slot, so that NXDOMAIN and a purge by name have one home.
    pub const fn slot(&self) -> u16 {
        self.slot
    }

    fn after_name(&self) -> usize {
        1 + usize::from(self.name_len)
    }

    fn view_bytes(&self) -> &[u8] {
        &self.bytes[self.after_name() + FIXED..]
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.bytes == other.bytes
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u32(self.hash);
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        self.bytes.cmp(&other.bytes)
    }
}

/// The slot of a name in a view.
fn slot(name: &[u8], view: &[u8]) -> u16 {
    let hash = if view.is_empty() { xxh3_64(name) } else { xxh3_64(&[name, view].concat()) };
    (hash >> 48) as u16
}

/// Length of the lower-case, uncompressed name at the start of `bytes`.
fn name_length(bytes: &[u8]) -> Result<usize, KeyError> {
    let mut at = 0;
    loop {
        let label = usize::from(*bytes.get(at).ok_or(KeyError::Short)?);
        at += 1;
        if label == 0 {
            break;
        }
        if label > 63 {
            return Err(KeyError::Name);
        }
        at += label;
        if at >= NAME_MAX {
            return Err(KeyError::Name);
        }
    }
    // All of it at once: a length octet is below any letter.
    let has_capitals = bytes[..at].iter().fold(false, |any, octet| any | octet.is_ascii_uppercase());
    if has_capitals { Err(KeyError::Name) } else { Ok(at) }
}

/// `example.com. AAAA`, with class, flags and view only where they are not the usual ones.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", name::Presented(self.name()), rr::TypeText(self.qtype()))?;
        if self.qclass() != rr::class::IN {
            write!(f, " {}", rr::ClassText(self.qclass()))?;
        }
        if self.flags().dnssec_ok {
            f.write_str(" +do")?;
        }
        if self.flags().checking_disabled {
            f.write_str(" +cd")?;
        }
        if !self.view().is_empty() {
            write!(f, " view={}", self.view())?;
        }
        Ok(())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &[u8] = b"\x03wWw\x07Example\x03com\x00";

    fn key(flags: Flags, view: &str) -> Key {
        Key::new(NAME, 28, 1, flags, view).unwrap()
    }

    #[test]
    fn the_byte_form_is_fixed() {
        let flags = Flags { dnssec_ok: true, checking_disabled: true };
        assert_eq!(key(flags, "lab").as_bytes(), b"\x01\x03www\x07example\x03com\x00\x00\x1c\x00\x01\x03lab");
    }

    #[test]
    fn fields_come_back_as_they_went_in() {
        let key = key(Flags { dnssec_ok: false, checking_disabled: true }, "lab");
        assert_eq!(key.name(), NAME.to_ascii_lowercase());
        assert_eq!((key.qtype(), key.qclass(), key.view()), (28, 1, "lab"));
        assert!(key.flags().checking_disabled && !key.flags().dnssec_ok);
        assert_eq!(Key::from_bytes(key.to_bytes()), Ok(key));
    }

    #[test]
    fn all_types_of_a_name_share_a_slot_and_views_do_not() {
        let a = Key::new(NAME, 1, 1, Flags::default(), "").unwrap();
        assert_eq!(a.slot(), key(Flags { dnssec_ok: true, ..Flags::default() }, "").slot());
        assert_ne!(a.slot(), key(Flags::default(), "lab").slot());
    }

    #[test]
    fn slots_are_the_same_on_every_build() {
        // Golden vectors: agents of different releases must agree on who owns a name.
        let slot = |name: &[u8]| Key::new(name, 1, 1, Flags::default(), "").unwrap().slot();
        assert_eq!(slot(b"\x00"), (xxh3_64(b"\x00") >> 48) as u16);
        assert_eq!(
            [slot(b"\x00"), slot(b"\x07example\x03com\x00"), slot(b"\x03www\x07example\x03com\x00")],
            GOLDEN_SLOTS
        );
    }

    const GOLDEN_SLOTS: [u16; 3] = [50_251, 23_100, 48_268];

    #[test]
    fn what_is_not_canonical_is_refused() {
        let refused = |bytes: &'static [u8]| Key::from_bytes(Bytes::from_static(bytes)).unwrap_err();
        assert_eq!(refused(b""), KeyError::Short);
        assert_eq!(refused(b"\x02\x00\x00\x01\x00\x01\x00"), KeyError::Version(2));
        assert_eq!(refused(b"\x01\x00\x00\x01\x00\x01\x04"), KeyError::Flags(4));
        assert_eq!(refused(b"\x01\x01A\x00\x00\x01\x00\x01\x00"), KeyError::Name);
        assert_eq!(refused(b"\x01\xc0\x0c\x00\x01\x00\x01\x00"), KeyError::Name);
        assert_eq!(refused(b"\x01\x00\x00\x01\x00\x01"), KeyError::Short);
        assert_eq!(refused(b"\x01\x00\x00\x01\x00\x01\x00\xff"), KeyError::View);
        assert_eq!(Key::new(b"\x00\x00", 1, 1, Flags::default(), ""), Err(KeyError::Name));
        assert_eq!(Key::new(&[1; 300], 1, 1, Flags::default(), ""), Err(KeyError::Name));
    }

    #[test]
    fn a_name_of_255_bytes_is_the_longest() {
        let mut name = Vec::new();
        for _ in 0..3 {
            name.push(63);
            name.extend([b'a'; 63]);
        }
        name.push(61);
        name.extend([b'a'; 61]);
        name.push(0);
        assert_eq!(name.len(), 255);
        assert!(Key::new(&name, 1, 1, Flags::default(), "").is_ok());
        name[192] = 62;
        name.insert(193, b'a');
        assert_eq!(Key::new(&name, 1, 1, Flags::default(), ""), Err(KeyError::Name));
    }
}
