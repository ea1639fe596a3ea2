//! A scripted DNS upstream: a real server on UDP and TCP whose every answer the test decides.
//!
//! It listens on *doors*, each an address of its own. A harness gives every replica its own door, so that the
//! journal knows who asked and one replica's uplink can be cut alone. What arrived is in the [`Journal`], which
//! counts packets and resolutions apart and lets a test wait for an event in place of a time.

mod answers;
mod door;
mod journal;
mod script;

pub use answers::{address_of, ttl_of};
pub use door::Door;
pub use journal::{Count, Journal, Received, Transport};
pub use script::{Gate, Rule, Script, Source, Step};

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio_util::sync::{CancellationToken, DropGuard};

use crate::wire::{Name, Question};

/// A running upstream. Dropping it closes all doors.
pub struct Upstream {
    core: Arc<Core>,
    host: Ipv4Addr,
    stop: CancellationToken,
    _closes: DropGuard,
    doors: Mutex<Vec<Door>>,
}

/// What all doors share.
pub(crate) struct Core {
    rules: Mutex<Rules>,
    pub(crate) journal: Journal,
}

struct Rules {
    by_question: HashMap<(Name, Option<u16>), Rule>,
    otherwise: Rule,
}

impl Core {
    pub(crate) fn script(&self, received: &Received) -> Script {
        let name = received.question.name.lower();
        let rule = {
            let rules = self.rules.lock().expect("no holder of this lock can panic");
            rules
                .by_question
                .get(&(name.clone(), Some(received.question.qtype)))
                .or_else(|| rules.by_question.get(&(name, None)))
                .unwrap_or(&rules.otherwise)
                .clone()
        };
        rule.script(received)
    }
}

impl Upstream {
    /// Starts an upstream with one door on a loopback address of its own. Every name has an address
    /// ([`address_of`]) until a rule says otherwise.
    ///
    /// # Errors
    /// No socket could be bound.
    pub async fn start() -> io::Result<Self> {
        Self::start_at(crate::net::own_loopback(), 0).await
    }

    /// Starts an upstream whose first door is `host:port`; port 0 chooses one.
    ///
    /// # Errors
    /// The sockets could not be bound.
    pub async fn start_at(host: Ipv4Addr, port: u16) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let rules = Rules { by_question: HashMap::new(), otherwise: Rule::addresses() };
        let upstream = Self {
            core: Arc::new(Core { rules: Mutex::new(rules), journal: Journal::default() }),
            host,
            _closes: stop.clone().drop_guard(),
            stop,
            doors: Mutex::new(Vec::new()),
        };
        upstream.open(port).await?;
        Ok(upstream)
    }

    async fn open(&self, port: u16) -> io::Result<Door> {
        let index = self.doors.lock().expect("no holder of this lock can panic").len();
        let door = Door::open(SocketAddr::from((self.host, port)), index, self.core.clone(), self.stop.clone()).await?;
        self.doors.lock().expect("no holder of this lock can panic").push(door.clone());
        Ok(door)
    }

    /// Opens one more door.
    ///
    /// # Errors
    /// No socket could be bound.
    pub async fn new_door(&self) -> io::Result<Door> {
        self.open(0).await
    }

    /// The first door's address.
    pub fn address(&self) -> SocketAddr {
        self.doors.lock().expect("no holder of this lock can panic")[0].address()
    }

    /// Sets what is answered to `name` and one type.
    pub fn rule(&self, name: &str, qtype: &str, rule: Rule) {
        let question = Question::parse(name, qtype).expect("a rule must be for a question that can be asked");
        self.set((question.name.lower(), Some(question.qtype)), rule);
    }

    /// Sets what is answered to `name`, whatever the type.
    pub fn rule_for_name(&self, name: &str, rule: Rule) {
        let name = Name::parse(name).expect("a rule must be for a name that can be asked");
        self.set((name.lower(), None), rule);
    }

    /// Sets what is answered where no other rule fits.
    pub fn otherwise(&self, rule: Rule) {
        self.core.rules.lock().expect("no holder of this lock can panic").otherwise = rule;
    }

    fn set(&self, key: (Name, Option<u16>), rule: Rule) {
        self.core.rules.lock().expect("no holder of this lock can panic").by_question.insert(key, rule);
    }

    /// All doors stop answering (and go on counting), or answer again.
    pub fn blackhole(&self, on: bool) {
        for door in self.doors.lock().expect("no holder of this lock can panic").iter() {
            door.blackhole(on);
        }
    }

    /// What has arrived.
    pub fn journal(&self) -> &Journal {
        &self.core.journal
    }
}
