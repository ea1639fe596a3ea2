//! The envelope of the data path, in its wire form.

use bytes::{Buf, BufMut, Bytes};
use prost::DecodeError;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, skip_field};

/// A `SessionBatch` of `session.proto` as it travels. As a generated type it would be a tree of small allocations, built and
/// taken apart at each end of each link, which took a fifth of the agents' instructions in a miss. `heimdall_shared::wire` reads and
/// writes it where it lies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionBatch {
    /// The message's fields, well framed where it was received.
    pub octets: Bytes,
}

impl Message for SessionBatch {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        buf.put_slice(&self.octets);
    }

    fn encoded_len(&self) -> usize {
        self.octets.len()
    }

    /// Takes all that there is, and looks only at the frame of each field: one that runs over the end is an error, as it is for
    /// generated code.
    fn merge(&mut self, mut buf: impl Buf) -> Result<(), DecodeError> {
        self.octets = buf.copy_to_bytes(buf.remaining());
        let mut fields = &self.octets[..];
        while fields.has_remaining() {
            let (tag, wire_type) = decode_key(&mut fields)?;
            skip_field(wire_type, tag, &mut fields, DecodeContext::default())?;
        }
        Ok(())
    }

    /// Not a part of any other message, which is how one would come here: what is not understood is skipped.
    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        skip_field(wire_type, tag, buf, context)
    }

    fn clear(&mut self) {
        self.octets.clear();
    }
}
