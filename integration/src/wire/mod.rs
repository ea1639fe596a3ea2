//! DNS messages as the harness reads and writes them.
//!
//! The harness must be able to send what no decent program sends (wrong ids, foreign questions, bytes after
//! the end) and must not trust the parser that it tests. So this is a small reader and writer of its own:
//! everything is a plain field, nothing is corrected on the way out, names are written uncompressed.

mod message;
mod name;
mod record;
mod types;

pub use message::{Flags, Message, Opt, Question};
pub use name::Name;
pub use record::Record;
pub(crate) use record::hex_bytes as record_hex;
pub use types::{class_number, rcode_name, rcode_number, type_name, type_number};

/// Why a text or a packet could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct WireError(pub(crate) String);

impl WireError {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}
