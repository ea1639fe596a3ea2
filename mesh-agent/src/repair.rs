//! An owner that came up without the entries that its replicas still have gets them back as they are asked for.
//!
//! A replica serves its own live copy and asks nobody; without this an owner that restarted would stay empty for that
//! key, and every member that keeps no copy would make it fetch anew.

use std::sync::{Mutex, PoisonError};

use heimdall_shared::clock::Moment;
use heimdall_shared::key::Key;
use heimdall_shared::link::Message;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::agent::Agent;
use crate::replicate::WORTH_COPYING;
use crate::store::Sourced;

/// Keys remembered as sent, 8 bytes each. A newer one takes the place of an older one with the same hash, which may then
/// be sent once more: the owner refuses what it has.
const REMEMBERED: usize = 8_192;

/// What was sent back to which incarnation of an owner.
#[derive(Debug)]
pub struct Repairs(Mutex<Box<[u64]>>);

impl Default for Repairs {
    fn default() -> Self {
        Self(Mutex::new(vec![0; REMEMBERED].into()))
    }
}

impl Repairs {
    /// Whether this is the first time for that key and that incarnation.
    fn is_first(&self, key: &Key, incarnation: u64) -> bool {
        let hash = xxh3_64_with_seed(key.as_bytes(), incarnation).max(1);
        let mut sent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = &mut sent[hash as usize % REMEMBERED];
        std::mem::replace(place, hash) != hash
    }
}

/// This replica serves an entry from its own store: its owner gets a copy if it came up after the entry came here, and so
/// may lack it.
pub fn owner(agent: &Agent, key: &Key, Sourced { entry, taken, .. }: &Sourced, now: Moment) {
    // The usual case costs one load: the entry came after every link.
    if *taken >= agent.links.newest_link() || entry.remaining(now) < WORTH_COPYING {
        return;
    }
    let view = agent.view();
    if !view.ring().is_replica(key.slot(), &agent.name) {
        return;
    }
    let owner = view.ring().owner(key.slot()).filter(|owner| **owner != agent.name);
    let Some(peer) = owner.and_then(|owner| agent.usable_peer(owner)) else { return };
    if *taken >= peer.since || !agent.repairs.is_first(key, peer.incarnation) {
        return;
    }
    let copy = Message::Copy { key: key.detached(), entry: entry.clone(), write: None };
    if peer.link.push(copy).is_ok() {
        agent.metrics.owner_repairs.inc();
    } else {
        agent.metrics.copies_dropped.inc();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use heimdall_shared::key::Flags;

    use super::*;

    fn key(letter: u8) -> Key {
        Key::new(&[1, letter, 0], 1, 1, Flags::default(), "").unwrap()
    }

    #[test]
    fn a_key_is_sent_once_to_each_incarnation_of_its_owner() {
        let repairs = Repairs::default();
        assert!(repairs.is_first(&key(b'a'), 1));
        assert!(!repairs.is_first(&key(b'a'), 1));
        assert!(repairs.is_first(&key(b'b'), 1));
        assert!(repairs.is_first(&key(b'a'), 2), "it restarted");
    }
}
