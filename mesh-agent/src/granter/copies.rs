//! What follows a stored answer: its copies, and the word to its publisher.

use std::sync::Arc;

use heimdall_shared::clock::Moment;
use heimdall_shared::entry::Entry;
use heimdall_shared::key::Key;
use heimdall_shared::link::{Link, Message, Reply, WriteLevel};

use super::Granter;
use crate::levels::Outcome;
use crate::lookup::ReplyTo;
use crate::membership::View;
use crate::replicate::{self, Plan};

impl Granter {
    /// Sends copies of what was stored to the key's other replicas, and tells the publisher when its level is reached or
    /// cannot be.
    pub(super) fn replicate(
        &mut self,
        view: &View,
        (key, entry): (&Key, &Entry),
        publisher: &str,
        (level, reply_to): (WriteLevel, Option<ReplyTo>),
        now: Moment,
    ) {
        let needed = level.copies(view.ring().replication_factor());
        let outcome = Outcome { whom: reply_to, level, copies: 1, needed };
        let number = if outcome.is_reached() { None } else { self.writes.number() };
        let plan = match number {
            // Who published has an entry of its own, and keeps it; whether it really does is asked only where it counts.
            None => replicate::plan(view, key.slot(), entry, publisher, now),
            Some(_) => replicate::whole_set(view, key.slot()),
        };
        let Plan { to, skipped } = plan;
        self.metrics.copies_dropped.inc_by(skipped as u64);
        // Cut out of a received message the key would keep all of that in memory while copies wait to be sent.
        let key = if to.is_empty() { key.clone() } else { key.detached() };
        let mut sent: Vec<Arc<str>> = Vec::new();
        for member in to {
            let copy = Message::Copy { key: key.clone(), entry: entry.clone(), write: number };
            // A publisher waits only where there is a number.
            let push = |link: &Link| if number.is_some() { link.push(copy) } else { link.push_idly(copy) };
            if self.links.peer(&member).is_some_and(|peer| push(&peer.link).is_ok()) {
                self.metrics.copies_sent.inc();
                sent.push(member);
            } else {
                self.metrics.copies_dropped.inc();
            }
        }
        let told = match number {
            Some(number) => self.writes.begin(number, outcome, sent, now + self.promise.within),
            None => Some(outcome),
        };
        if let Some(outcome) = told {
            self.told(&outcome);
        }
    }

    /// Tells a publisher what came of its write.
    pub(super) fn told(&self, outcome: &Outcome<Option<ReplyTo>>) {
        if outcome.level != WriteLevel::Eventual {
            self.metrics.level(outcome.level, outcome.is_reached());
        }
        if let Some(to) = outcome.whom {
            let count = |copies: usize| u32::try_from(copies).unwrap_or(u32::MAX);
            let (copies, needed) = (count(outcome.copies), count(outcome.needed));
            self.reply(to.link, to.request, Reply::Stored { copies, needed });
        }
    }
}
