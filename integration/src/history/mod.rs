//! What happened in a run, as seen from outside, and the rules that every such history must keep.
//!
//! Every answer of the upstream carries a number of its own in its data, so that whatever a client is told can be traced
//! back to the one exchange that brought it, whichever caches it came through.

mod check;
pub mod grants;
mod load;

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use heimdall_shared::clock::Moment;

use crate::upstream::{Rule, ttl_of};
use crate::wire::{Message, Name, Record};

pub use self::check::{Bounds, Verdict};
pub use self::load::{Load, Pace};

/// The first two numbers of the addresses that carry a number: 100.64.0.0/10 (RFC 6598) has 22 bits for it.
const NUMBERED: u32 = 100 << 24 | 64 << 16;

/// Answers that can be told apart.
const NUMBERS: u32 = 1 << 22;

/// One exchange with the upstream.
#[derive(Clone, Debug)]
pub struct Given {
    /// The name.
    pub name: String,
    /// Through which door: which replica asked.
    pub door: usize,
    /// When the query arrived. The exchange began before, so that an answer's life ends before this moment and its TTL.
    pub at: Moment,
    /// The TTL that it was given.
    pub ttl: Duration,
}

/// What a client was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// The answer of that number with this TTL.
    Answer {
        /// Its number.
        number: u32,
        /// The TTL in it.
        ttl: Duration,
        /// Whether it was marked as stale (RFC 8914 section 4.4).
        stale: bool,
    },
    /// SERVFAIL, or anything else that is no answer.
    Failure,
    /// Nothing.
    Nothing,
}

/// One question of a client.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The replica.
    pub replica: usize,
    /// The name.
    pub name: String,
    /// When it was sent.
    pub at: Moment,
    /// When the answer came, or was given up.
    pub told_at: Moment,
    /// What came.
    pub told: Told,
}

/// A purge that was acknowledged.
#[derive(Clone, Debug)]
pub struct Purged {
    /// The name.
    pub name: String,
    /// When it was asked for.
    pub asked: Moment,
    /// When the result came.
    pub told: Moment,
    /// The replicas that said that it is done there.
    pub done: Vec<usize>,
}

/// The history of a run. Clones are the same one.
#[derive(Clone, Default)]
pub struct History(Arc<Mutex<Events>>);

/// What happened, in the order in which it became known.
#[derive(Clone, Debug, Default)]
pub struct Events {
    /// Exchanges with the upstream; an answer's number is its place here.
    pub given: Vec<Given>,
    /// Clients' questions.
    pub asked: Vec<Asked>,
    /// Purges.
    pub purged: Vec<Purged>,
    /// When all replicas reached each other again.
    pub healed: Option<Moment>,
}

impl History {
    /// An upstream's rule that answers every name with a number of its own, and writes it down. The TTL is in the name
    /// ([`ttl_of`]).
    pub fn numbered_answers(&self) -> Rule {
        let history = self.clone();
        Rule::message(move |received| {
            let name = received.question.name.lower();
            let ttl = ttl_of(&name);
            let number = {
                let mut events = history.events();
                events.given.push(Given {
                    name: name.to_string(),
                    door: received.door,
                    at: received.at,
                    ttl: Duration::from_secs(ttl.into()),
                });
                (events.given.len() - 1) as u32
            };
            let reply = received.query.response();
            reply.with_answer(Record::a(
                &received.question.name,
                ttl,
                Ipv4Addr::from_bits(NUMBERED | (number % NUMBERS)),
            ))
        })
    }

    /// Writes down what a client was told.
    pub fn asked(&self, asked: Asked) {
        self.events().asked.push(asked);
    }

    /// Writes down a purge.
    pub fn purged(&self, purged: Purged) {
        self.events().purged.push(purged);
    }

    /// Writes down that all replicas reach each other again, after the last purge.
    pub fn healed(&self, at: Moment) {
        self.events().healed = Some(at);
    }

    /// Everything so far.
    pub fn snapshot(&self) -> Events {
        self.events().clone()
    }

    fn events(&self) -> MutexGuard<'_, Events> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a reply tells.
fn told(reply: &Message, name: &Name) -> Told {
    /// The option of extended errors (RFC 8914 section 2) and its code for a stale answer (section 4.4).
    const EDE: u16 = 15;
    const STALE_ANSWER: [u8; 2] = [0, 3];
    let [record] = reply.answers.as_slice() else { return Told::Failure };
    let Ok(octets) = <[u8; 4]>::try_from(record.rdata.as_slice()) else { return Told::Failure };
    let bits = u32::from_be_bytes(octets);
    if reply.rcode() != 0 || record.name.lower() != name.lower() || bits & !(NUMBERS - 1) != NUMBERED {
        return Told::Failure;
    }
    let options = reply.opt.iter().flat_map(|opt| &opt.options);
    let stale = options.into_iter().any(|(code, data)| *code == EDE && data.starts_with(&STALE_ANSWER));
    Told::Answer { number: bits & (NUMBERS - 1), ttl: Duration::from_secs(record.ttl.into()), stale }
}
