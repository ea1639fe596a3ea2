//! Protobuf's encoding itself: fields written one after the other, and read where they lie.
//!
//! Source: protobuf.dev, "Encoding". A field is a key (its number and wire type) and a value; an absent one has its default.

use bytes::Bytes;

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH: u64 = 2;
const FIXED32: u64 = 5;

/// Octets of the longest varint.
const VARINT_MAX: usize = 10;

/// Writes fields. One with its default value is left out.
#[derive(Debug)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    /// With room for so many octets.
    pub(super) fn with_room(octets: usize) -> Self {
        Self(Vec::with_capacity(octets))
    }

    /// What was written.
    pub(super) fn into_bytes(self) -> Bytes {
        Bytes::from(self.0)
    }

    /// A field of an unsigned kind, an enumeration or a bool.
    #[inline]
    pub(super) fn number(&mut self, field: u32, value: u64) {
        if value != 0 {
            self.key(field, VARINT);
            self.varint(value);
        }
    }

    /// A field of the kind `fixed64`.
    #[inline]
    pub(super) fn fixed(&mut self, field: u32, value: u64) {
        if value != 0 {
            self.key(field, FIXED64);
            self.0.extend_from_slice(&value.to_le_bytes());
        }
    }

    /// A field of octets or text.
    #[inline]
    pub(super) fn octets(&mut self, field: u32, value: &[u8]) {
        if !value.is_empty() {
            self.key(field, LENGTH);
            self.varint(value.len() as u64);
            self.0.extend_from_slice(value);
        }
    }

    /// A field that is a message of `about` so many octets: after a good guess nothing has to be moved.
    #[inline]
    pub(super) fn message(&mut self, field: u32, about: usize, write: impl FnOnce(&mut Self)) {
        self.key(field, LENGTH);
        let length = self.0.len();
        self.varint(about as u64);
        let begin = self.0.len();
        write(self);
        let (varint, octets) = varint((self.0.len() - begin) as u64);
        // One or two octets, of which a call to copy them would be most of the cost.
        match (&mut self.0[length..begin], octets) {
            ([first], 1) => *first = varint[0],
            ([first, second], 2) => [*first, *second] = [varint[0], varint[1]],
            _ => drop(self.0.splice(length..begin, varint[..octets].iter().copied())),
        }
    }

    /// A field that is a message of a generated type.
    pub(super) fn generated(&mut self, field: u32, message: &impl prost::Message) {
        self.key(field, LENGTH);
        self.varint(message.encoded_len() as u64);
        message.encode_raw(&mut self.0);
    }

    #[inline]
    fn key(&mut self, field: u32, wire_type: u64) {
        self.varint(u64::from(field) << 3 | wire_type);
    }

    #[inline]
    fn varint(&mut self, value: u64) {
        if value < 0x80 {
            self.0.push(value as u8);
        } else {
            let (varint, octets) = varint(value);
            let end = self.0.len() + octets;
            // As many as always, which are copied without a call, and then back.
            self.0.extend_from_slice(&varint);
            self.0.truncate(end);
        }
    }
}

/// A number as a varint: seven bits an octet, the lowest first, and a bit that says whether another one follows.
#[inline]
const fn varint(mut value: u64) -> ([u8; VARINT_MAX], usize) {
    let mut octets = [0; VARINT_MAX];
    let mut at = 0;
    while value >= 0x80 {
        octets[at] = value as u8 | 0x80;
        value >>= 7;
        at += 1;
    }
    octets[at] = value as u8;
    (octets, at + 1)
}

/// The fields of a message that lies within `whole`, in their order. It ends with `None` where the octets do, or where they
/// are no field any more: [`Fields::is_over`] tells which.
#[derive(Clone, Debug)]
pub(super) struct Fields<'a> {
    whole: &'a Bytes,
    /// Those that are left, a part of `whole`.
    octets: &'a [u8],
}

/// The value of a field.
#[derive(Clone, Debug)]
pub(super) enum Value<'a> {
    /// Of an unsigned kind, an enumeration or a bool.
    Number(u64),
    /// Of a kind with eight octets.
    Fixed(u64),
    /// Octets, text or a message.
    Octets(Fields<'a>),
    /// Of a kind with four octets, which no message of ours has yet.
    Unused,
}

impl<'a> Fields<'a> {
    /// Those of a message that is all of `whole`.
    pub(super) fn of(whole: &'a Bytes) -> Self {
        Self { whole, octets: whole }
    }

    /// Whether all of it was read.
    pub(super) const fn is_over(&self) -> bool {
        self.octets.is_empty()
    }

    /// What is left, as octets.
    pub(super) const fn octets(&self) -> &'a [u8] {
        self.octets
    }

    /// What is left, cut out: it keeps the whole message in memory.
    #[inline]
    pub(super) fn cut(&self) -> Bytes {
        self.whole.slice_ref(self.octets)
    }

    #[inline]
    fn varint(&mut self) -> Option<u64> {
        let (&first, rest) = self.octets.split_first()?;
        if first < 0x80 {
            self.octets = rest;
            return Some(u64::from(first));
        }
        self.long_varint()
    }

    fn long_varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for (at, &octet) in self.octets.iter().enumerate().take(VARINT_MAX) {
            let bits = u64::from(octet & 0x7f);
            let shifted = bits << (7 * at);
            if shifted >> (7 * at) != bits {
                return None;
            }
            value |= shifted;
            if octet < 0x80 {
                self.octets = &self.octets[at + 1..];
                return Some(value);
            }
        }
        None
    }

    #[inline(always)]
    fn field(&mut self) -> Option<(u32, Value<'a>)> {
        let key = self.varint()?;
        let field = u32::try_from(key >> 3).ok()?;
        let value = match key & 7 {
            VARINT => Value::Number(self.varint()?),
            FIXED64 => {
                let (octets, rest) = self.octets.split_first_chunk()?;
                self.octets = rest;
                Value::Fixed(u64::from_le_bytes(*octets))
            }
            FIXED32 => {
                self.octets = self.octets.get(4..)?;
                Value::Unused
            }
            LENGTH => {
                let length = usize::try_from(self.varint()?).ok()?;
                let (octets, rest) = self.octets.split_at_checked(length)?;
                self.octets = rest;
                Value::Octets(Fields { whole: self.whole, octets })
            }
            _ => return None,
        };
        Some((field, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u32, Value<'a>);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let before = self.octets;
        let field = self.field();
        if field.is_none() {
            self.octets = before;
        }
        field
    }
}
