//! Calls whose messages are octets: what another release would send can be written, and what it would not know stays unread.

use bytes::{Buf as _, BufMut as _, Bytes};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Takes and gives messages as they are.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Octets;

impl Codec for Octets {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Octets {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(message);
        Ok(())
    }
}

impl Decoder for Octets {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// A message with a field more, of this number, that holds octets: text, or another message.
pub(crate) fn with_field(message: &[u8], number: u32, octets: &[u8]) -> Vec<u8> {
    let mut whole = message.to_vec();
    encode_key(number, WireType::LengthDelimited, &mut whole);
    encode_varint(octets.len() as u64, &mut whole);
    whole.extend_from_slice(octets);
    whole
}

/// A message of this release with a field that it does not know.
pub(crate) fn of_later<M: Message>(message: &M) -> Vec<u8> {
    with_field(&message.encode_to_vec(), 1_900, b"of a later release")
}
