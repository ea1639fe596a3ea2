//! What the upstream does when a query arrives.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::answers;
use super::journal::{Received, Transport};
use crate::wire::{Flags, Message, Record};

/// Which socket a packet leaves from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The door that was asked.
    Door,
    /// The door's address, another port.
    OtherPort,
    /// Another address.
    OtherAddress,
}

/// One thing to do.
#[derive(Clone, Debug)]
pub enum Step {
    /// Let time pass.
    Wait(Duration),
    /// Wait until the test opens the gate.
    Hold(Gate),
    /// Send a packet.
    Send(Source, Vec<u8>),
    /// Close the connection (TCP).
    Close,
}

/// What is done about one received query, in order. No `Send` means silence.
#[derive(Clone, Debug, Default)]
pub struct Script(pub Vec<Step>);

impl Script {
    /// One packet from the door.
    pub fn send(packet: Vec<u8>) -> Self {
        Self(vec![Step::Send(Source::Door, packet)])
    }
}

/// Holds answers back until the test opens it. Clones are the same gate.
#[derive(Clone, Debug)]
pub struct Gate(Arc<watch::Sender<bool>>);

impl Default for Gate {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Gate {
    /// Lets through what waits and what comes.
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    pub(crate) async fn passed(&self) {
        // The sender lives in `self`, so this only ends by opening.
        let _ = self.0.subscribe().wait_for(|open| *open).await;
    }
}

/// A function from the received query to the script.
#[derive(Clone)]
pub struct Rule(Arc<dyn Fn(&Received) -> Script + Send + Sync>);

impl Rule {
    /// Any function.
    pub fn new(function: impl Fn(&Received) -> Script + Send + Sync + 'static) -> Self {
        Self(Arc::new(function))
    }

    /// A message made from the query; over UDP cut to a truncated one if the asker has no room for it.
    pub fn message(function: impl Fn(&Received) -> Message + Send + Sync + 'static) -> Self {
        Self::new(move |received| {
            let message = function(received);
            let packet = message.encode_compressed();
            let room = received.query.opt.as_ref().map_or(512, |opt| usize::from(opt.size.max(512)));
            if received.transport == Transport::Tcp || packet.len() <= room {
                return Script::send(packet);
            }
            Script::send(truncated(received).encode())
        })
    }

    /// Every name has an address that follows from it ([`super::address_of`]).
    pub fn addresses() -> Self {
        Self::message(answers::address)
    }

    /// The name does not exist.
    pub fn nxdomain() -> Self {
        Self::message(|received| {
            received.query.response().with_rcode(3).with_authority(answers::soa(&received.question.name))
        })
    }

    /// An empty answer with this rcode.
    pub fn rcode(rcode: u16) -> Self {
        Self::message(move |received| received.query.response().with_rcode(rcode))
    }

    /// These records as the answer section, in text form.
    pub fn answer(records: &[&str]) -> Self {
        let records: Vec<Record> =
            records.iter().map(|text| Record::parse(text).expect("a rule's record must parse")).collect();
        Self::message(move |received| Message { answers: records.clone(), ..received.query.response() })
    }

    /// Nothing at all.
    pub fn silence() -> Self {
        Self::new(|_| Script::default())
    }

    /// The same, but over UDP only a truncated packet without records.
    #[must_use]
    pub fn tcp_only(self) -> Self {
        Self::new(move |received| match received.transport {
            Transport::Udp => Script::send(truncated(received).encode()),
            Transport::Tcp => self.script(received),
        })
    }

    /// The same, this much later.
    #[must_use]
    pub fn after(self, delay: Duration) -> Self {
        self.preceded_by(Step::Wait(delay))
    }

    /// The same once `gate` is open.
    #[must_use]
    pub fn held_by(self, gate: &Gate) -> Self {
        self.preceded_by(Step::Hold(gate.clone()))
    }

    fn preceded_by(self, step: Step) -> Self {
        Self::new(move |received| {
            let mut script = self.script(received);
            script.0.insert(0, step.clone());
            script
        })
    }

    pub(crate) fn script(&self, received: &Received) -> Script {
        (self.0)(received)
    }
}

fn truncated(received: &Received) -> Message {
    let mut message = received.query.response();
    message.flags.0 |= Flags::TC;
    message
}
