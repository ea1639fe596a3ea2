//! Domain names: wire form, compression pointers, presentation form.
//!
//! A name in *wire form* is a run of labels, each one length octet and up to 63 octets of any value, ended by the root's
//! zero octet; 255 octets at most. Lower-casing a whole wire form is safe: a length octet (at most 63) is below `A` (65).

use std::fmt;

use super::message::HEADER;

/// Longest name in wire form, root label included, in octets (RFC 1035 2.3.4).
pub const MAX_NAME: usize = 255;

/// Longest label in octets, without its length octet (RFC 1035 2.3.4).
pub const MAX_LABEL: usize = 63;

/// Most compression pointers that one name may follow. An honest encoder puts at least one label before each pointer,
/// and 255 octets hold at most 127 labels.
pub const MAX_POINTERS: usize = 127;

/// What is wrong with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The packet or text ends inside the name.
    #[error("name runs past the end")]
    Cut,
    /// A label type other than an ordinary label or a pointer (the two reserved bit patterns).
    #[error("label type {0:#04x} is not one of RFC 1035")]
    LabelType(u8),
    /// More than 255 octets.
    #[error("name is longer than 255 octets")]
    TooLong,
    /// A label of more than 63 octets, in presentation form.
    #[error("label is longer than 63 octets")]
    LabelTooLong,
    /// A pointer that does not lead strictly backwards, or leads into the header.
    #[error("compression pointer to offset {0} does not lead backwards into the body")]
    Pointer(usize),
    /// More pointers than a name can need.
    #[error("name follows more than 127 compression pointers")]
    Chain,
    /// A pointer where none may stand.
    #[error("compression pointer in a place that must not be compressed")]
    Compressed,
    /// An empty label, in presentation form.
    #[error("empty label")]
    EmptyLabel,
    /// A backslash that is not followed by a character or by three digits up to 255.
    #[error("broken escape in a name")]
    Escape,
}

/// A name expanded to wire form, on the stack.
#[derive(Clone)]
pub struct NameBuf {
    len: usize,
    bytes: [u8; MAX_NAME],
}

impl NameBuf {
    /// The root's name.
    pub const fn root() -> Self {
        Self { len: 1, bytes: [0; MAX_NAME] }
    }

    /// The wire form.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// Turns `A`-`Z` into lower case.
    pub fn make_lower_case(&mut self) {
        let len = self.len;
        if let Some(bytes) = self.bytes.get_mut(..len) {
            bytes.make_ascii_lowercase();
        }
    }

    fn push(&mut self, part: &[u8]) -> Result<(), NameError> {
        let end = self.len + part.len();
        let room = self.bytes.get_mut(self.len..end).ok_or(NameError::TooLong)?;
        room.copy_from_slice(part);
        self.len = end;
        Ok(())
    }
}

impl fmt::Debug for NameBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Presented(self.as_bytes()))
    }
}

/// The end of the uncompressed name that starts at `at`. A pointer is an error: questions and keys have none.
#[inline]
pub fn end_of_uncompressed(packet: &[u8], at: usize) -> Result<usize, NameError> {
    let mut position = at;
    loop {
        let &length = packet.get(position).ok_or(NameError::Cut)?;
        match length {
            0 => break,
            1..=63 => position += 1 + usize::from(length),
            0xC0.. => return Err(NameError::Compressed),
            other => return Err(NameError::LabelType(other)),
        }
        // The root label must still fit.
        if position - at >= MAX_NAME {
            return Err(NameError::TooLong);
        }
    }
    Ok(position + 1)
}

/// Whether `wire` is exactly one uncompressed name.
pub fn is_wire_name(wire: &[u8]) -> bool {
    end_of_uncompressed(wire, 0) == Ok(wire.len())
}

/// Checks the name at `at`, pointers included, and gives the offset after it.
pub fn skip(packet: &[u8], at: usize) -> Result<usize, NameError> {
    walk(packet, at, |_| Ok(()))
}

/// Expands the name at `at` and gives it with the offset after it.
pub fn expand(packet: &[u8], at: usize) -> Result<(NameBuf, usize), NameError> {
    let mut name = NameBuf { len: 0, bytes: [0; MAX_NAME] };
    let end = walk(packet, at, |part| name.push(part))?;
    Ok((name, end))
}

/// Visits the labels of the name at `at` (each with its length octet, the root's last) and gives the offset after the
/// name's own octets, which is where its first pointer ends if it has one.
fn walk(packet: &[u8], at: usize, mut visit: impl FnMut(&[u8]) -> Result<(), NameError>) -> Result<usize, NameError> {
    let mut position = at;
    // Start of the run of labels that is being read. Each pointer must lead before it, so runs only move backwards.
    let mut run = at;
    let mut end = None;
    let mut length = 0;
    let mut pointers = 0;
    loop {
        let &octet = packet.get(position).ok_or(NameError::Cut)?;
        match octet {
            0..=63 => {
                let next = position + 1 + usize::from(octet);
                let label = packet.get(position..next).ok_or(NameError::Cut)?;
                length += label.len();
                if length > MAX_NAME {
                    return Err(NameError::TooLong);
                }
                visit(label)?;
                position = next;
                if octet == 0 {
                    return Ok(end.unwrap_or(position));
                }
            }
            0xC0.. => {
                let &low = packet.get(position + 1).ok_or(NameError::Cut)?;
                let target = usize::from(octet & 0x3F) << 8 | usize::from(low);
                // RFC 1035 4.1.4: "a pointer to a prior occurance of the same name"; RFC 9267 2: anything else loops.
                if target >= run || target < HEADER {
                    return Err(NameError::Pointer(target));
                }
                pointers += 1;
                if pointers > MAX_POINTERS {
                    return Err(NameError::Chain);
                }
                end.get_or_insert(position + 2);
                position = target;
                run = target;
            }
            other => return Err(NameError::LabelType(other)),
        }
    }
}

/// The places in one packet at which the labels of its names begin.
///
/// A pointer may lead anywhere backwards, into a TTL for instance, whose octets change while the packet is kept. Names
/// that only lean on labels of other names are safe from that.
pub(super) struct Anchors {
    /// A bit for each of the first offsets, which are all that most packets have.
    near: [u64; Self::NEAR],
    /// A bit for each further one that a pointer can express.
    far: Vec<u64>,
}

impl Anchors {
    /// Offsets in a word.
    const WORD: usize = u64::BITS as usize;

    /// Words for the offsets of 512 octets.
    const NEAR: usize = 512 / Self::WORD;

    /// Words for all offsets that a pointer can express.
    const ALL: usize = 0x4000 / Self::WORD;

    /// None yet, of a packet of so many octets.
    pub(super) fn new(octets: usize) -> Self {
        let words = octets.div_ceil(Self::WORD).min(Self::ALL);
        Self { near: [0; Self::NEAR], far: vec![0; words.saturating_sub(Self::NEAR)] }
    }

    fn word(&mut self, offset: usize) -> Option<&mut u64> {
        let at = offset / Self::WORD;
        if at < Self::NEAR { self.near.get_mut(at) } else { self.far.get_mut(at - Self::NEAR) }
    }

    /// Notes the labels of the (checked) name at `at`; whether its pointer, if any, leads to a label noted before.
    pub(super) fn admit(&mut self, packet: &[u8], at: usize) -> bool {
        let mut position = at;
        while let Some(&octet) = packet.get(position) {
            match octet {
                0 => return true,
                1..=63 => {
                    if let Some(word) = self.word(position) {
                        *word |= 1 << (position % Self::WORD);
                    }
                    position += 1 + usize::from(octet);
                }
                _ => {
                    let low = packet.get(position + 1).copied().unwrap_or_default();
                    let target = usize::from(octet & 0x3F) << 8 | usize::from(low);
                    return self.word(target).is_some_and(|word| *word >> (target % Self::WORD) & 1 == 1);
                }
            }
        }
        false
    }
}

/// Whether a wire name is `zone` or below it. Both are uncompressed and in the same case.
pub fn is_within(name: &[u8], zone: &[u8]) -> bool {
    let Some(above) = name.len().checked_sub(zone.len()) else { return false };
    let mut at = 0;
    while at < above
        && let Some(&length) = name.get(at)
    {
        at += 1 + usize::from(length);
    }
    at == above && name.get(at..) == Some(zone)
}

/// The labels of a checked, uncompressed wire name, without length octets and without the root.
pub fn labels(wire: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = wire;
    std::iter::from_fn(move || {
        let (&length, tail) = rest.split_first()?;
        if length == 0 || usize::from(length) > tail.len() {
            return None;
        }
        let (label, after) = tail.split_at(usize::from(length));
        rest = after;
        Some(label)
    })
}

/// Displays a wire name in presentation form, fully qualified, with the escapes of RFC 1035 5.1.
#[derive(Clone, Copy, Debug)]
pub struct Presented<'a>(pub &'a [u8]);

impl fmt::Display for Presented<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        let mut root = true;
        for label in labels(self.0) {
            root = false;
            for &octet in label {
                match octet {
                    b'.' | b'\\' | b'"' | b'(' | b')' | b';' | b'@' | b'$' => {
                        f.write_char('\\')?;
                        f.write_char(char::from(octet))?;
                    }
                    0x21..=0x7E => f.write_char(char::from(octet))?,
                    _ => write!(f, "\\{octet:03}")?,
                }
            }
            f.write_char('.')?;
        }
        if root { f.write_char('.') } else { Ok(()) }
    }
}

/// Reads a name in presentation form. The final dot may be missing; `\DDD` and `\X` escapes are understood.
pub fn from_text(text: &str) -> Result<Vec<u8>, NameError> {
    if text == "." {
        return Ok(vec![0]);
    }
    let mut wire = vec![0];
    // Offset of the length octet of the label being read.
    let mut start = 0;
    let mut rest = text.as_bytes();
    while let Some((&octet, tail)) = rest.split_first() {
        rest = tail;
        if octet == b'.' {
            close_label(&mut wire, start)?;
            start = wire.len();
            wire.push(0);
            continue;
        }
        let octet = if octet == b'\\' {
            let (octet, tail) = unescape(rest)?;
            rest = tail;
            octet
        } else {
            octet
        };
        wire.push(octet);
        // The root's octet is counted already when the text ends in a dot, and is still to come when it does not.
        if wire.len() > MAX_NAME {
            return Err(NameError::TooLong);
        }
    }
    if start + 1 < wire.len() {
        close_label(&mut wire, start)?;
        wire.push(0);
    } else if start == 0 {
        return Err(NameError::EmptyLabel);
    }
    if wire.len() > MAX_NAME {
        return Err(NameError::TooLong);
    }
    Ok(wire)
}

fn close_label(wire: &mut [u8], start: usize) -> Result<(), NameError> {
    match wire.len() - start - 1 {
        0 => Err(NameError::EmptyLabel),
        length @ 1..=MAX_LABEL => {
            if let (Some(octet), Ok(length)) = (wire.get_mut(start), u8::try_from(length)) {
                *octet = length;
            }
            Ok(())
        }
        _ => Err(NameError::LabelTooLong),
    }
}

/// What stands after a backslash: one octet, and the text after it.
fn unescape(text: &[u8]) -> Result<(u8, &[u8]), NameError> {
    match text {
        [a @ b'0'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', tail @ ..] => {
            let value = u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0');
            let octet = u8::try_from(value).map_err(|_| NameError::Escape)?;
            Ok((octet, tail))
        }
        [b'0'..=b'9', ..] | [] => Err(NameError::Escape),
        [octet, tail @ ..] => Ok((*octet, tail)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// A packet body: 12 octets of header, then `body`.
    fn packet(body: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; HEADER];
        packet.extend_from_slice(body);
        packet
    }

    #[test]
    fn a_pointer_expands_to_the_earlier_name_and_ends_where_it_stands() {
        let packet = packet(b"\x03com\x00\x07example\xC0\x0C\xFF");
        let (name, end) = expand(&packet, 17).unwrap();
        assert_eq!(name.as_bytes(), b"\x07example\x03com\x00");
        assert_eq!(end, 27);
        assert_eq!(skip(&packet, 17), Ok(27));
    }

    #[test]
    fn pointers_that_do_not_lead_backwards_into_the_body_are_refused() {
        let cases: [(&str, &[u8], usize); 5] = [
            ("to itself", b"\xC0\x0C", 12),
            ("to its own label", b"\x01a\xC0\x0C", 12),
            ("forward", b"\xC0\x0E\x00", 14),
            ("into the header", b"\xC0\x04", 4),
            ("past the end", b"\xFF\xFF", 0x3FFF),
        ];
        for (what, body, target) in cases {
            assert_eq!(skip(&packet(body), HEADER), Err(NameError::Pointer(target)), "{what}");
        }
    }

    #[test]
    fn a_chain_of_pointers_longer_than_any_name_needs_is_refused() {
        // "a." at 12, then 200 pointers, each to the one before it.
        let mut chain = packet(b"\x01a\x00");
        let mut last = HEADER;
        for _ in 0..200 {
            let here = chain.len();
            chain.extend_from_slice(&(0xC000 | last as u16).to_be_bytes());
            last = here;
        }
        assert_eq!(skip(&chain, last), Err(NameError::Chain));
        // The 127th is still good.
        assert_eq!(skip(&chain, 15 + 126 * 2), Ok(15 + 127 * 2));
    }

    #[test]
    fn reserved_label_types_and_cut_names_are_refused() {
        assert_eq!(skip(&packet(b"\x40"), HEADER), Err(NameError::LabelType(0x40)));
        assert_eq!(skip(&packet(b"\x80"), HEADER), Err(NameError::LabelType(0x80)));
        for body in [&b""[..], b"\x03co", b"\x03com", b"\xC0"] {
            assert_eq!(skip(&packet(body), HEADER), Err(NameError::Cut));
        }
        assert_eq!(end_of_uncompressed(b"\x03com", 0), Err(NameError::Cut));
        assert_eq!(end_of_uncompressed(b"\xC0\x00", 0), Err(NameError::Compressed));
    }

    #[test]
    fn a_name_of_255_octets_passes_and_one_of_256_does_not() {
        let mut longest = Vec::new();
        for length in [63_u8, 63, 63, 61] {
            longest.push(length);
            longest.resize(longest.len() + usize::from(length), b'x');
        }
        longest.push(0);
        assert_eq!(longest.len(), 255);
        assert_eq!(end_of_uncompressed(&longest, 0), Ok(255));
        assert_eq!(skip(&packet(&longest), HEADER), Ok(HEADER + 255));
        assert!(is_wire_name(&longest));

        let mut longer = b"\x01x".to_vec();
        longer.extend_from_slice(&longest[2..]);
        longer[2 + 62] = 63;
        let over: Vec<u8> = [&b"\x01x"[..], &longest].concat();
        assert_eq!(end_of_uncompressed(&over, 0), Err(NameError::TooLong));
        assert_eq!(skip(&packet(&over), HEADER), Err(NameError::TooLong));
    }

    #[test]
    fn a_name_is_within_a_zone_by_whole_labels() {
        let within = |name: &str, zone: &str| is_within(&from_text(name).unwrap(), &from_text(zone).unwrap());
        for zone in [".", "example.", "b.example.", "a.b.example."] {
            assert!(within("a.b.example.", zone), "{zone}");
        }
        for zone in ["ample.", "a.example.", "x.a.b.example.", "other."] {
            assert!(!within("a.b.example.", zone), "{zone}");
        }
        // Octets that look like the end of a label, and the zone, and are neither.
        assert!(!is_within(b"\x09x\x07example\x00", b"\x07example\x00"));
    }

    #[test]
    fn presentation_form_goes_both_ways_for_every_octet() {
        for octet in 0..=255_u8 {
            let wire = [2, octet, b'.', 3, b'c', b'o', b'm', 0];
            let text = Presented(&wire).to_string();
            assert_eq!(from_text(&text).unwrap(), wire, "{text}");
        }
        assert_eq!(Presented(&[0]).to_string(), ".");
        assert_eq!(from_text(".").unwrap(), [0]);
        assert_eq!(from_text("Ab").unwrap(), b"\x02Ab\x00");
        assert_eq!(from_text("a\\.b.").unwrap(), b"\x03a.b\x00");
    }

    #[test]
    fn text_that_is_no_name_is_refused() {
        for (text, error) in [
            ("", NameError::EmptyLabel),
            ("a..b", NameError::EmptyLabel),
            (".a", NameError::EmptyLabel),
            ("a\\", NameError::Escape),
            ("a\\25", NameError::Escape),
            ("a\\256", NameError::Escape),
        ] {
            assert_eq!(from_text(text), Err(error), "{text:?}");
        }
        assert_eq!(from_text(&"x".repeat(64)), Err(NameError::LabelTooLong));
        let long = format!("{0}.{0}.{0}.{1}", "x".repeat(63), "y".repeat(62));
        assert_eq!(from_text(&long), Err(NameError::TooLong));
        let fits = format!("{0}.{0}.{0}.{1}", "x".repeat(63), "y".repeat(61));
        assert_eq!(from_text(&fits).unwrap().len(), MAX_NAME);
    }
}
