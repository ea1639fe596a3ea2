//! One end of a stream: batches with numbers and anchors, over the same conversion that the servers use.

use heimdall_proto::v1::SessionBatch;
use heimdall_shared::clock::Moment;
use heimdall_shared::link::{Anchors, Message};
use heimdall_shared::wire::{Packing, Received};

/// What one side of a stream knows.
#[derive(Debug)]
pub(crate) struct End {
    anchors: Anchors,
    sent: u64,
    seen: u64,
}

impl End {
    /// An end of a stream that is opened at `now`.
    pub(crate) fn new(now: Moment) -> Self {
        Self { anchors: Anchors::new(now), sent: 0, seen: 0 }
    }

    /// Numbers a batch and computes the ages in it.
    pub(crate) fn pack(&mut self, messages: &[Message], now: Moment) -> SessionBatch {
        self.sent += 1;
        self.anchors.sent(self.sent, now);
        let mut batch = Packing::new(self.sent, self.seen, 0);
        for message in messages {
            batch.add(message, now);
        }
        batch.done()
    }

    /// Takes a batch apart and dates what is in it. One that comes twice or after a later one is skipped, as by a link.
    pub(crate) fn unpack(&mut self, batch: SessionBatch) -> Vec<Message> {
        let batch = Received::new(batch);
        if batch.number <= self.seen {
            return Vec::new();
        }
        self.seen = batch.number;
        let anchor = self.anchors.seen(batch.seen);
        batch.messages(anchor).map(|message| message.expect("what was packed must unpack")).collect()
    }
}
