//! What arrived at an upstream, packets and resolutions apart.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use heimdall_shared::clock::Moment;
use tokio::sync::watch;

use crate::wire::{Message, Name, Question, type_number};

/// How long one resolution may go on asking: the query budget. A question through the same door after that is a new one.
const RESOLUTION_SPAN: Duration = Duration::from_secs(4);

/// How long a test waits for an event before it fails: far more than any machine needs, so that only a lost event fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a query came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// As a datagram.
    Udp,
    /// In a frame of a connection.
    Tcp,
}

/// One query as it arrived.
#[derive(Clone, Debug)]
pub struct Received {
    /// The first question, case as received.
    pub question: Question,
    /// The whole query.
    pub query: Message,
    /// Its bytes.
    pub packet: Vec<u8>,
    /// How it came.
    pub transport: Transport,
    /// From where.
    pub from: SocketAddr,
    /// Through which door.
    pub door: usize,
    /// When.
    pub at: Moment,
}

/// Counts of one (name, type).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Everything that arrived, over UDP and TCP.
    pub packets: usize,
    /// Questions that somebody set out to answer, however many packets each took.
    pub resolutions: usize,
}

#[derive(Default)]
struct State {
    received: Vec<Received>,
    /// Whether nothing is to be added to them.
    counts_only: bool,
    keys: HashMap<(Name, u16), KeyState>,
}

#[derive(Default)]
struct KeyState {
    count: Count,
    /// Resolutions that have no answer yet: door and beginning.
    open: Vec<(usize, Moment)>,
    /// Doors whose resolution was told to come back over TCP.
    truncated: Vec<usize>,
}

/// The record of an upstream's life; shared by all its doors.
pub struct Journal {
    state: Mutex<State>,
    version: watch::Sender<u64>,
}

impl Default for Journal {
    fn default() -> Self {
        Self { state: Mutex::default(), version: watch::Sender::new(0) }
    }
}

impl Journal {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock can panic")
    }

    /// From now on counts what arrives and keeps nothing else of it: for loads of a million queries.
    pub fn count_only(&self) {
        self.state().counts_only = true;
    }

    pub(crate) fn arrived(&self, received: &Received) {
        {
            let mut state = self.state();
            let key = state.keys.entry(key(&received.question)).or_default();
            key.count.packets += 1;
            if key.begins_resolution(received) {
                key.count.resolutions += 1;
            }
            if !state.counts_only {
                state.received.push(received.clone());
            }
        }
        self.version.send_modify(|version| *version += 1);
    }

    pub(crate) fn answered(&self, received: &Received, truncated: bool) {
        let mut state = self.state();
        let key = state.keys.entry(key(&received.question)).or_default();
        if let Some(at) = key.open.iter().position(|(door, _)| *door == received.door) {
            key.open.remove(at);
        }
        if truncated && received.transport == Transport::Udp {
            key.truncated.push(received.door);
        }
    }

    /// Counts of one question.
    pub fn count(&self, name: &str, qtype: &str) -> Count {
        let name = Name::parse(name).expect("a counted name must parse").lower();
        let qtype = type_number(qtype).expect("a counted type must be known");
        self.state().keys.get(&(name, qtype)).map(|key| key.count).unwrap_or_default()
    }

    /// Counts of a question.
    pub fn count_of(&self, question: &Question) -> Count {
        self.state().keys.get(&key(question)).map(|key| key.count).unwrap_or_default()
    }

    /// Counts of all questions together.
    pub fn total(&self) -> Count {
        self.state().keys.values().fold(Count::default(), |sum, key| Count {
            packets: sum.packets + key.count.packets,
            resolutions: sum.resolutions + key.count.resolutions,
        })
    }

    /// The questions that were resolved more than once, with their counts.
    pub fn repeated(&self) -> Vec<(Name, u16, Count)> {
        let state = self.state();
        state
            .keys
            .iter()
            .filter(|(_, key)| key.count.resolutions > 1)
            .map(|((name, qtype), key)| (name.clone(), *qtype, key.count))
            .collect()
    }

    /// Everything that arrived before [`Self::count_only`], in order.
    pub fn received(&self) -> Vec<Received> {
        self.state().received.clone()
    }

    /// What arrived for one question, in order.
    pub fn received_for(&self, name: &str, qtype: &str) -> Vec<Received> {
        let wanted = Question::parse(name, qtype).expect("a looked-up question must parse");
        let state = self.state();
        state.received.iter().filter(|received| received.question.same(&wanted)).cloned().collect()
    }

    /// Waits until `packets` queries for the question have arrived.
    ///
    /// # Panics
    /// After 30 s, with what had arrived.
    pub async fn wait_for(&self, name: &str, qtype: &str, packets: usize) {
        self.wait_until(&format!("{packets} packets for {name} {qtype}"), |journal| {
            journal.count(name, qtype).packets >= packets
        })
        .await;
    }

    /// Waits until `condition` holds; it is looked at after each arrival.
    ///
    /// # Panics
    /// After 30 s, naming `what`.
    pub async fn wait_until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let mut version = self.version.subscribe();
        let waited = tokio::time::timeout(PATIENCE, async {
            while !condition(self) {
                // The sender lives in `self`, so there is always a next version to wait for.
                let _ = version.changed().await;
            }
        })
        .await;
        assert!(waited.is_ok(), "the upstream waited {PATIENCE:?} for {what}; arrived: {:?}", self.total());
    }
}

impl KeyState {
    fn begins_resolution(&mut self, received: &Received) -> bool {
        let door = received.door;
        if received.transport == Transport::Tcp {
            let Some(at) = self.truncated.iter().position(|told| *told == door) else { return true };
            self.truncated.remove(at);
            return false;
        }
        let now = Moment::now();
        self.open.retain(|(_, since)| now.since(*since) < RESOLUTION_SPAN);
        let again = self.open.iter().any(|(asker, _)| *asker == door);
        if !again {
            self.open.push((door, now));
        }
        !again
    }
}

fn key(question: &Question) -> (Name, u16) {
    (question.name.lower(), question.qtype)
}
