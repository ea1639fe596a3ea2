//! Batches: a number, the newest batch that was seen from the other side, and frames.

use bytes::Bytes;
use heimdall_proto::v1 as pb;
use prost::Message as _;

use super::octets::{Fields, Value, Writer};
use super::{WireError, direct, from_frame, to_frame};
use crate::clock::Moment;
use crate::link::Message;

/// Field numbers of `SessionBatch`.
const NUMBER: u32 = 1;
const SEEN: u32 = 2;
const FRAMES: u32 = 3;

/// Room in a batch besides its messages: its own numbers, and a ping.
const HEAD: usize = 64;

/// A batch that is being written.
#[derive(Debug)]
pub struct Packing(Writer);

impl Packing {
    /// The batch of that `number`, with room for messages of `weight` bytes in all; `seen` is the newest of the other side.
    pub fn new(number: u64, seen: u64, weight: usize) -> Self {
        let mut out = Writer::with_room(weight + HEAD);
        out.number(NUMBER, number);
        out.number(SEEN, seen);
        Self(out)
    }

    /// Adds a message; ages and remaining times are those at `now`.
    pub fn add(&mut self, message: &Message, now: Moment) {
        if !direct::write(&mut self.0, FRAMES, message, now) {
            self.0.generated(FRAMES, &to_frame(message, now));
        }
    }

    /// The batch.
    pub fn done(self) -> pb::SessionBatch {
        pb::SessionBatch { octets: self.0.into_bytes() }
    }
}

/// A batch that came.
#[derive(Debug)]
pub struct Received {
    /// Its number.
    pub number: u64,
    /// The newest batch that its sender had seen.
    pub seen: u64,
    /// How many frames are in it.
    pub frames: usize,
    octets: Bytes,
}

impl Received {
    /// Reads what stands around the frames.
    pub fn new(batch: pb::SessionBatch) -> Self {
        let (mut number, mut seen, mut frames) = (0, 0, 0);
        for field in Fields::of(&batch.octets) {
            match field {
                (NUMBER, Value::Number(value)) => number = value,
                (SEEN, Value::Number(value)) => seen = value,
                (FRAMES, Value::Octets(_)) => frames += 1,
                _ => {}
            }
        }
        Self { number, seen, frames, octets: batch.octets }
    }

    /// The messages, whose ages count from `anchor`, in their order; an error for each frame that is none.
    pub fn messages(&self, anchor: Moment) -> impl Iterator<Item = Result<Message, WireError>> {
        Fields::of(&self.octets).filter_map(move |field| match field {
            (FRAMES, Value::Octets(frame)) => Some(read(&frame, anchor)),
            _ => None,
        })
    }
}

fn read(frame: &Fields<'_>, anchor: Moment) -> Result<Message, WireError> {
    match direct::read(frame.clone(), anchor) {
        Some(message) => Ok(message),
        None => from_frame(pb::SessionFrame::decode(frame.cut()).map_err(|_| WireError::Malformed)?, anchor),
    }
}
