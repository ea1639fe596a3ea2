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
const fn varint(value: u64) -> ([u8; VARINT_MAX], usize) {
    let (low, high) = (value & LOW, value >> LOW_BITS);
    let octets = if value == 0 { 1 } else { value.ilog2() as usize / 7 + 1 };
    let follows = if octets > WORD { FOLLOWS } else { FOLLOWS & ((1 << (8 * (octets - 1))) - 1) };
    let [a, b, c, d, e, f, g, h] = (spread(low) | follows).to_le_bytes();
    let follows = if octets == VARINT_MAX { 0x80 } else { 0 };
    ([a, b, c, d, e, f, g, h, high as u8 & 0x7F | follows, (high >> 7) as u8], octets)
}

/// Octets that are worked on at once, and the bits of a number that stand in them.
const WORD: usize = 8;
const LOW_BITS: u32 = 7 * WORD as u32;
const LOW: u64 = (1 << LOW_BITS) - 1;

/// The bits that say that another octet follows.
const FOLLOWS: u64 = 0x8080_8080_8080_8080;

/// Seven bits an octet: halves are moved apart, then quarters, then eighths.
#[inline]
const fn spread(bits: u64) -> u64 {
    let bits = bits & 0x0000_0000_0FFF_FFFF | (bits & 0x00FF_FFFF_F000_0000) << 4;
    let bits = bits & 0x0000_3FFF_0000_3FFF | (bits & 0x0FFF_C000_0FFF_C000) << 2;
    bits & 0x007F_007F_007F_007F | (bits & 0x3F80_3F80_3F80_3F80) << 1
}

/// And back.
#[inline]
const fn gathered(octets: u64) -> u64 {
    let bits = octets & 0x007F_007F_007F_007F | (octets & 0x7F00_7F00_7F00_7F00) >> 1;
    let bits = bits & 0x0000_3FFF_0000_3FFF | (bits & 0x3FFF_0000_3FFF_0000) >> 2;
    bits & 0x0000_0000_0FFF_FFFF | (bits & 0x0FFF_FFFF_0000_0000) >> 4
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

    /// One of more than one octet.
    #[inline]
    fn long_varint(&mut self) -> Option<u64> {
        if let Some(word) = self.octets.first_chunk() {
            let word = u64::from_le_bytes(*word);
            let ends = !word & FOLLOWS;
            if ends != 0 {
                // The bits below the last one of the octet that ends it, and that one.
                let octets = word & (ends ^ (ends - 1));
                self.octets = &self.octets[ends.trailing_zeros() as usize / 8 + 1..];
                return Some(gathered(octets & !FOLLOWS));
            }
        }
        self.any_varint()
    }

    fn any_varint(&mut self) -> Option<u64> {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Numbers of each length, and those at the ends of each.
    fn numbers() -> impl Strategy<Value = u64> {
        let end = (0..64_u32, 0..3_u64).prop_map(|(bits, off)| (1_u64 << bits).wrapping_add(off).wrapping_sub(1));
        prop_oneof![end, (any::<u64>(), 0..64_u32).prop_map(|(value, bits)| value >> bits)]
    }

    proptest! {
        #[test]
        fn a_varint_is_what_everybody_writes_and_is_read_before_anything(value in numbers(), behind: Vec<u8>) {
            let mut expected = Vec::new();
            prost::encoding::encode_varint(value, &mut expected);
            let mut out = Writer::with_room(0);
            out.varint(value);
            prop_assert_eq!(&out.0, &expected);

            let whole = Bytes::from([&*expected, &*behind].concat());
            let mut fields = Fields::of(&whole);
            prop_assert_eq!(fields.varint(), Some(value));
            prop_assert_eq!(fields.octets(), &*behind);
            // Cut off, it is none.
            let cut = whole.slice(..expected.len() - 1);
            prop_assert_eq!(Fields::of(&cut).varint(), None);
        }

        #[test]
        fn octets_that_are_no_varint_are_refused_and_others_are_read_as_by_everybody(octets: [u8; 12], all_follow: bool) {
            let octets = octets.map(|octet| if all_follow { octet | 0x80 } else { octet });
            let whole = Bytes::copy_from_slice(&octets);
            let mut theirs = &octets[..];
            let expected = prost::encoding::decode_varint(&mut theirs).ok();
            let mut fields = Fields::of(&whole);
            prop_assert_eq!(fields.varint(), expected);
            if expected.is_some() {
                prop_assert_eq!(fields.octets(), theirs);
            }
        }
    }
}
