//! Whom a lookup of this replica's own dns-server asks, one after the other.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use heimdall_shared::link::{Lookup, LookupMode, Reply};
use heimdall_shared::telemetry::Span;

use super::{ReplyTo, answer, ask_granter, asker, join, refresh};
use crate::agent::Agent;
use crate::granter::Ask;
use crate::lease::Holder;
use crate::links::Peer;
use crate::metrics::Routed;
use crate::ring::Ring;

/// The members still to be asked, in order, and those that could not be.
pub(super) struct Route {
    ring: Arc<Ring>,
    slot: u16,
    /// The rank of the next one, and where they end.
    ranks: Range<usize>,
    pub(super) skipped: Vec<Arc<str>>,
    /// Whom a member sent us to.
    redirect: Option<Arc<str>>,
    /// Whether it is to be asked next.
    redirected: bool,
}

impl Route {
    pub(super) fn new(agent: &Agent, lookup: &Lookup) -> Self {
        let ring = agent.view().ring_shared();
        let end = match lookup.mode {
            // Nobody else was ever given a copy to keep.
            LookupMode::Stale { .. } => ring.replication_factor(),
            _ => usize::MAX,
        };
        let slot = lookup.key.slot();
        Self { ring, slot, ranks: 0..end, skipped: Vec::new(), redirect: None, redirected: false }
    }

    /// The next peer that can be asked. `None` when it is this replica's own turn and its granter has the lookup, or when nobody
    /// is left and the asker knows.
    pub(super) fn next_peer(
        &mut self,
        agent: &Agent,
        to: ReplyTo,
        lookup: &Lookup,
        span: &mut Option<Span>,
    ) -> Option<(Arc<str>, Arc<Peer>)> {
        loop {
            let Some(member) = self.next() else {
                agent.metrics.routed(Routed::Nobody);
                answer(agent, to, span.take(), Reply::Proceed);
                return None;
            };
            if *member != *agent.name {
                match agent.usable_peer(&member) {
                    Some(peer) => return Some((member, peer)),
                    None => self.skip(member),
                }
            } else if lookup.mode.only_looks() || !agent.view().is_up(&member) {
                self.skip(member);
            } else {
                agent.metrics.routed(Routed::Own);
                let own = Holder { member, incarnation: agent.incarnation };
                let (asker, join, refresh) = (asker(&own, to, lookup), join(lookup.mode), refresh(lookup.mode));
                let (key, span) = (lookup.key.clone(), span.take());
                ask_granter(agent, to, Ask { key, asker, join, refresh, margin: Duration::ZERO, span });
                return None;
            }
        }
    }

    fn next(&mut self) -> Option<Arc<str>> {
        if self.redirected {
            self.redirected = false;
            return self.redirect.clone();
        }
        loop {
            let member = self.ring.order(self.slot).nth(self.ranks.next()?)?;
            if self.redirect.as_ref() != Some(member) {
                return Some(Arc::clone(member));
            }
        }
    }

    pub(super) fn skip(&mut self, member: Arc<str>) {
        self.skipped.push(member);
    }

    /// One redirect is followed per miss: members that disagree about the order cost a duplicate, never a loop.
    pub(super) fn redirect(&mut self, from: Arc<str>, to: Arc<str>) {
        if self.redirect.is_some() || self.skipped.contains(&to) {
            self.ranks = 0..0;
            return;
        }
        self.skipped.push(from);
        (self.redirect, self.redirected) = (Some(to), true);
    }
}
