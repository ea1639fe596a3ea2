//! Domain names in wire form.

use std::fmt;

use super::WireError;

/// A name in uncompressed wire form, its case as written.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Vec<u8>);

impl Name {
    /// Reads presentation format with `\.` and `\DDD` escapes. A missing last dot is added.
    ///
    /// # Errors
    /// A label over 63 bytes, a name over 255, an empty label, a bad escape.
    pub fn parse(text: &str) -> Result<Self, WireError> {
        let bad = |why: &str| WireError::new(format!("name {text:?}: {why}"));
        let mut wire = Vec::new();
        let mut label = Vec::new();
        let mut bytes = text.bytes().peekable();
        if text == "." {
            return Ok(Self(vec![0]));
        }
        while let Some(byte) = bytes.next() {
            match byte {
                b'.' => {
                    push_label(&mut wire, &label).ok_or_else(|| bad("a label must have 1 to 63 bytes"))?;
                    label.clear();
                }
                b'\\' => {
                    let first = bytes.next().ok_or_else(|| bad("ends in a backslash"))?;
                    if first.is_ascii_digit() {
                        let mut value = u32::from(first - b'0');
                        for _ in 0..2 {
                            let digit = bytes
                                .next()
                                .filter(u8::is_ascii_digit)
                                .ok_or_else(|| bad("an escape must have three digits"))?;
                            value = value * 10 + u32::from(digit - b'0');
                        }
                        label.push(u8::try_from(value).map_err(|_| bad("an escape over 255"))?);
                    } else {
                        label.push(first);
                    }
                }
                other => label.push(other),
            }
        }
        if !label.is_empty() {
            push_label(&mut wire, &label).ok_or_else(|| bad("a label must have 1 to 63 bytes"))?;
        }
        wire.push(0);
        if wire.len() > 255 {
            return Err(bad("over 255 bytes"));
        }
        Ok(Self(wire))
    }

    /// Reads a name at `offset` of `packet`, following pointers; gives the offset behind it.
    ///
    /// # Errors
    /// Anything that is not a name.
    pub fn read(packet: &[u8], offset: usize) -> Result<(Self, usize), WireError> {
        let mut wire = Vec::new();
        let mut at = offset;
        let mut end = None;
        // A pointer must point backwards, so at most one hop per byte of a packet; 128 is more than any name has.
        for _ in 0..128 {
            let length =
                *packet.get(at).ok_or_else(|| WireError::new(format!("name at {offset} runs past the end")))?;
            match length {
                0 => {
                    wire.push(0);
                    return Ok((Self(wire), end.unwrap_or(at + 1)));
                }
                1..=63 => {
                    let label = packet
                        .get(at..at + 1 + usize::from(length))
                        .ok_or_else(|| WireError::new(format!("label at {at} runs past the end")))?;
                    wire.extend_from_slice(label);
                    if wire.len() > 254 {
                        return Err(WireError::new(format!("name at {offset} is over 255 bytes")));
                    }
                    at += label.len();
                }
                192..=255 => {
                    let low = *packet.get(at + 1).ok_or_else(|| WireError::new(format!("pointer at {at} is cut")))?;
                    end.get_or_insert(at + 2);
                    let target = (usize::from(length & 0x3F) << 8) | usize::from(low);
                    if target >= at {
                        return Err(WireError::new(format!("pointer at {at} does not point backwards")));
                    }
                    at = target;
                }
                _ => return Err(WireError::new(format!("label type {length:#x} at {at}"))),
            }
        }
        Err(WireError::new(format!("name at {offset} never ends")))
    }

    /// The wire bytes.
    pub fn wire(&self) -> &[u8] {
        &self.0
    }

    /// The same name with ASCII letters in lower case.
    #[must_use]
    pub fn lower(&self) -> Self {
        // Length bytes are below 64 and so never letters.
        Self(self.0.to_ascii_lowercase())
    }

    /// Labels from the left, the root not among them.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.0.as_slice();
        std::iter::from_fn(move || {
            let (&length, tail) = rest.split_first()?;
            if length == 0 {
                return None;
            }
            let (label, tail) = tail.split_at(usize::from(length));
            rest = tail;
            Some(label)
        })
    }
}

fn push_label(wire: &mut Vec<u8>, label: &[u8]) -> Option<()> {
    let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
    wire.push(length);
    wire.extend_from_slice(label);
    Some(())
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == [0] {
            return f.write_str(".");
        }
        for label in self.labels() {
            for &byte in label {
                match byte {
                    b'.' | b'\\' => write!(f, "\\{}", char::from(byte))?,
                    0x21..=0x7E => write!(f, "{}", char::from(byte))?,
                    _ => write!(f, "\\{byte:03}")?,
                }
            }
            f.write_str(".")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn text_and_wire_are_the_same_name() {
        for text in ["example.", "a\\.b.example.", "\\000\\255.x.", "."] {
            let name = Name::parse(text).unwrap();
            assert_eq!(name.to_string(), text);
            assert_eq!(Name::read(name.wire(), 0).unwrap(), (name.clone(), name.wire().len()));
        }
    }

    #[test]
    fn a_pointer_that_does_not_go_back_is_refused() {
        assert!(Name::read(&[0xC0, 0x00], 0).is_err());
        assert!(Name::read(&[0xC0, 0x05, 0, 0, 0, 0], 0).is_err());
    }
}
