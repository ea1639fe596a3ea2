//! The granter's table of leases.

mod ending;
mod granting;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use foldhash::quality::RandomState;
use heimdall_shared::clock::Moment;
use heimdall_shared::entry::Entry;
use heimdall_shared::key::Key;
use heimdall_shared::link::{FailureKind, Reply};
use heimdall_shared::token::Token;

use super::deadlines::Deadlines;
use super::episode::{Confirmation, Episode, Lease};
use super::failures::Failures;
use super::waits::Waits;
use super::{Action, Asker, Claim, Holder, Join, LeaseInfo, Limits, LinkId, Published, Sizes, Stats};
use crate::trust::hoard::Hoards;

/// Holders of overdue leases that wait to be asked for: what ends at one moment, seldom more than a few.
const OVERDUE_MAX: usize = 256;

/// All leases that this agent granted, who waits for them, and the failures that it remembers.
///
/// Replies, ticks and watches that an event causes are appended to `out`, in the order in which they are to be sent.
#[derive(Debug)]
pub struct Table {
    granter: Arc<str>,
    incarnation: u64,
    limits: Limits,
    /// Counter of the lease granted last.
    counter: u64,
    leases: HashMap<u64, Lease, RandomState>,
    episodes: HashMap<Key, Episode, RandomState>,
    waits: Waits,
    /// Live leases per member; members without one are not in it.
    held_by: HashMap<Arc<str>, usize, RandomState>,
    due: Deadlines<(u64, Due)>,
    failures: Failures,
    hoards: Hoards,
    /// Holders of leases that reached their end without a word, until somebody asks for them.
    overdue: Vec<Holder>,
    /// Results of ended leases, by the lease's counter.
    results: HashMap<u64, (Key, Reply), RandomState>,
    stats: Stats,
}

/// What is due for a lease, by its counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Confirmation,
    End,
    ResultForgotten,
}

impl Table {
    /// An empty table of the granter `granter` in its incarnation `incarnation`.
    pub fn new(granter: Arc<str>, incarnation: u64, limits: Limits) -> Self {
        Self {
            granter,
            incarnation,
            limits,
            counter: 0,
            leases: HashMap::default(),
            episodes: HashMap::default(),
            waits: Waits::default(),
            held_by: HashMap::default(),
            due: Deadlines::default(),
            failures: Failures::new(limits.failures_total),
            hoards: Hoards::default(),
            overdue: Vec::new(),
            results: HashMap::default(),
            stats: Stats::default(),
        }
    }

    /// Somebody asks for `key`, for which the store has no live entry. They get the lease, a remembered failure, the
    /// advice to proceed without a lease when a bound is reached, or are told who holds it and wait.
    pub fn ask(&mut self, key: &Key, asker: Asker, now: Moment, out: &mut Vec<Action>) {
        self.take_ask(key, asker, Join::Now, now, out);
    }

    /// The same for an asker who waits in a second step, with [`Self::wait`], if at all: for it, `Held` is the last reply.
    pub fn ask_without_joining(&mut self, key: &Key, asker: Asker, now: Moment, out: &mut Vec<Action>) {
        self.take_ask(key, asker, Join::Later, now, out);
    }

    /// Somebody joins the wait for a lease that runs, and never gets one: it holds a lease of another granter.
    pub fn join_only(&mut self, key: &Key, asker: Asker, now: Moment, out: &mut Vec<Action>) {
        self.take_ask(key, asker, Join::Only, now, out);
    }

    /// What is fetched under a live lease of this table.
    pub fn key_of(&self, token: &Token) -> Option<&Key> {
        self.live(token).map(|(_, lease)| &lease.key)
    }

    /// Somebody who was told to wait for `token` does so. A lease that ended a moment ago gives its result; one that ended
    /// without a result makes this an [`Self::ask`].
    pub fn wait(&mut self, key: &Key, token: &Token, asker: Asker, now: Moment, out: &mut Vec<Action>) {
        self.expire(now, out);
        let result = self.own_counter(token).and_then(|counter| self.results.get(&counter));
        match result {
            Some((of, result)) if of == key => {
                let reply = match result {
                    // It counts from when it happened, not from when it is told.
                    Reply::Failure { .. } => {
                        Reply::Failure { remaining: self.failures.remaining(key, now).unwrap_or_default() }
                    }
                    other => other.clone(),
                };
                self.stats.woken += 1;
                out.push(Action::Reply { link: asker.link, request: asker.request, reply });
            }
            _ => self.take_ask(key, asker, Join::Now, now, out),
        }
    }

    /// Whether `token` names a live lease of `from` for `key`: what decides how a publish may be stored, before
    /// [`Self::publish`] ends that lease.
    pub fn holds(&self, key: &Key, token: &Token, from: &Holder, now: Moment) -> bool {
        self.live(token).is_some_and(|(_, lease)| lease.key == *key && lease.is_held_by(from) && lease.expires > now)
    }

    /// A holder's leases are being worked on. Those who wait are told so at once, and only then: a holder's silence is
    /// theirs too. For a lease that struggles, one waiter of another member gets a second one.
    pub fn tick(&mut self, from: &Holder, working: &[Token], struggling: &[Token], now: Moment, out: &mut Vec<Action>) {
        self.expire(now, out);
        let mut signs: BTreeMap<LinkId, BTreeSet<u64>> = BTreeMap::new();
        let mut struggles = Vec::new();
        for (token, is_struggling) in working.iter().map(|t| (t, false)).chain(struggling.iter().map(|t| (t, true))) {
            let Some(counter) = self.own_counter(token) else { continue };
            let Some(lease) = self.leases.get_mut(&counter) else { continue };
            if !lease.is_held_by(from) {
                self.stats.refused += 1;
                continue;
            }
            if let Confirmation::Due(at) = lease.confirmation {
                self.due.clear(at, (counter, Due::Confirmation));
            }
            lease.confirmation = Confirmation::Given;
            lease.ticked = Some(now);
            if is_struggling && !lease.struggling {
                lease.struggling = true;
                struggles.push(lease.key.clone());
            }
            // Whoever ticks too fast does not make us send more than twice what is needed.
            if lease.relayed.is_some_and(|relayed| now.since(relayed) < self.limits.tick / 2) {
                continue;
            }
            lease.relayed = Some(now);
            if let Some(episode) = self.episodes.get(&lease.key) {
                for waiter in &episode.waiters {
                    signs.entry(waiter.asker.link).or_default().insert(waiter.told);
                }
            }
        }
        for (link, counters) in signs {
            let tokens = counters.into_iter().map(|counter| self.token(counter)).collect();
            out.push(Action::Tick { link, tokens });
        }
        for key in struggles {
            self.pass_on(&key, now, out);
        }
    }

    /// An entry for `key` came. It goes to everybody who waits, even with no life left; a live token of `from` ends the
    /// leases of the key.
    ///
    /// To be called for what was stored, for what is dead on arrival, and for what came with a live token
    /// ([`Self::holds`]); where the store kept another live entry, with that one.
    pub fn publish(
        &mut self,
        key: &Key,
        token: Option<&Token>,
        from: &Holder,
        entry: &Entry,
        now: Moment,
        out: &mut Vec<Action>,
    ) -> Published {
        self.expire(now, out);
        let token_live = token.is_some_and(|token| match self.claim(token, from) {
            (Claim::Live, Some(counter)) => self.leases[&counter].key == *key,
            _ => false,
        });
        self.failures.clear(key);
        let reply = Reply::Entry(entry.clone());
        let woken = self.wake(key, &reply, out);
        if token_live {
            self.stats.published += 1;
            self.hoards.ended(&from.member, now);
            // With the result there, a second lease has nothing more to find: what it publishes is an ordinary write.
            let leases = self.episodes.get(key).map(|episode| episode.leases.clone()).unwrap_or_default();
            for counter in leases {
                self.end_with_result(counter, &reply, now);
            }
            self.episodes.remove(key);
        }
        Published { token_live, woken }
    }

    /// A holder has no answer. An upstream's own failure is everybody's for a moment; a failure of the holder's own passes
    /// the lease on to a waiter of a member that has not failed for this key, or, with none left, sends all waiters on
    /// their own.
    pub fn fail(
        &mut self,
        token: &Token,
        kind: FailureKind,
        from: &Holder,
        now: Moment,
        out: &mut Vec<Action>,
    ) -> Claim {
        self.expire(now, out);
        let (claim, Some(counter)) = self.claim(token, from) else { return Claim::Ended };
        if claim != Claim::Live {
            return claim;
        }
        let key = self.leases[&counter].key.clone();
        self.hoards.ended(&from.member, now);
        match kind {
            FailureKind::Shared => {
                self.stats.failed_shared += 1;
                let (remaining, is_kept) = self.failures.record(&key, now);
                self.stats.not_kept += u64::from(!is_kept);
                let reply = Reply::Failure { remaining };
                self.wake(&key, &reply, out);
                self.end_with_result(counter, &reply, now);
            }
            FailureKind::Local => {
                self.stats.failed_local += 1;
                let lease = self.end(counter);
                if let Some(episode) = self.episodes.get_mut(&key) {
                    episode.mark_failed(&lease.holder.member);
                }
            }
        }
        self.pass_on(&key, now, out);
        claim
    }

    /// A holder gives its lease back unused.
    pub fn release(&mut self, token: &Token, from: &Holder, now: Moment, out: &mut Vec<Action>) -> Claim {
        self.expire(now, out);
        let (claim, counter) = self.claim(token, from);
        if let (Claim::Live, Some(counter)) = (claim, counter) {
            self.stats.released += 1;
            self.hoards.ended(&from.member, now);
            let lease = self.end(counter);
            self.pass_on(&lease.key, now, out);
        }
        claim
    }

    /// A grant did not reach its asker, who is gone or takes no more messages: the lease goes to the next one.
    pub fn undelivered(&mut self, token: &Token, now: Moment, out: &mut Vec<Action>) {
        let Some((counter, _)) = self.live(token) else { return };
        self.stats.orphaned += 1;
        let lease = self.end(counter);
        self.pass_on(&lease.key, now, out);
    }

    /// A request is wanted no longer. One that waits is freed; a granted one is finished, only a release ends its lease.
    pub fn cancel(&mut self, link: LinkId, request: u64, now: Moment, out: &mut Vec<Action>) {
        self.expire(now, out);
        if let Some(key) = self.waits.remove(link, request) {
            self.forget_waiter(&key, link, request);
        }
    }

    /// A connection closed: who waits over it cannot be answered any more. Its member's leases live as long as the member
    /// has another one.
    pub fn link_closed(&mut self, link: LinkId, now: Moment, out: &mut Vec<Action>) {
        self.expire(now, out);
        for (request, key) in self.waits.remove_link(link) {
            self.forget_waiter(&key, link, request);
        }
    }

    /// A dns-server's stream at a member is gone: its leases end, its requests wait no longer.
    pub fn stream_gone(
        &mut self,
        member: &Arc<str>,
        incarnation: u64,
        stream: u64,
        now: Moment,
        out: &mut Vec<Action>,
    ) {
        self.gone(&Holder { member: Arc::clone(member), incarnation }, Some(stream), now, out);
    }

    /// The last link of a member's incarnation closed: its leases end, its requests wait no longer.
    pub fn member_gone(&mut self, member: &Arc<str>, incarnation: u64, now: Moment, out: &mut Vec<Action>) {
        self.gone(&Holder { member: Arc::clone(member), incarnation }, None, now, out);
    }

    /// Ends what is over at `now`. Every other call does this first; this is for when nothing happens
    /// until [`Self::next_deadline`].
    pub fn expire(&mut self, now: Moment, out: &mut Vec<Action>) {
        self.failures.expire(now);
        while let Some((counter, due)) = self.due.pop_due(now) {
            match due {
                Due::ResultForgotten => {
                    self.results.remove(&counter);
                }
                Due::End => {
                    self.stats.timeouts += 1;
                    let lease = self.end(counter);
                    if self.overdue.len() < OVERDUE_MAX {
                        self.overdue.push(lease.holder);
                    }
                    self.pass_on(&lease.key, now, out);
                }
                Due::Confirmation => self.confirmation_missed(counter, now, out),
            }
        }
    }

    /// Who let leases run out since the last call. Whether they were there is not for the table to know.
    pub fn take_overdue(&mut self) -> Vec<Holder> {
        std::mem::take(&mut self.overdue)
    }

    /// A member was there all the time in which a lease of it ran out. Says for how long it gets no more leases, if it is to
    /// get none from now on.
    pub fn hoarded(&mut self, member: &Arc<str>, now: Moment) -> Option<Duration> {
        let stopped = self.hoards.overdue(member, now);
        self.stats.hoarders += u64::from(stopped.is_some());
        stopped
    }

    /// When [`Self::expire`] has something to do.
    pub fn next_deadline(&self) -> Option<Moment> {
        [self.due.next(), self.failures.next_deadline()].into_iter().flatten().min()
    }

    /// Whether somebody fetches `key` now under a lease of this table.
    pub fn is_leased(&self, key: &Key) -> bool {
        self.episodes.contains_key(key)
    }

    /// Live leases, in no order.
    pub fn leases(&self) -> impl Iterator<Item = LeaseInfo> {
        self.leases.iter().map(|(&counter, lease)| self.describe(counter, lease))
    }

    /// The leases of one key, oldest first.
    pub fn leases_of(&self, key: &Key) -> Vec<LeaseInfo> {
        let counters = self.episodes.get(key).map(|episode| episode.leases.as_slice()).unwrap_or_default();
        counters.iter().map(|&counter| self.describe(counter, &self.leases[&counter])).collect()
    }

    /// What happened since start.
    pub const fn stats(&self) -> &Stats {
        &self.stats
    }

    /// What the table holds now.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            leases: self.leases.len(),
            waiters: self.waits.len(),
            failures: self.failures.len(),
            results: self.results.len(),
        }
    }

    /// What `token` is worth in the hands of `from`, and the counter of the live lease that it names.
    fn claim(&mut self, token: &Token, from: &Holder) -> (Claim, Option<u64>) {
        match self.live(token) {
            None => (Claim::Ended, None),
            Some((counter, lease)) if lease.is_held_by(from) => (Claim::Live, Some(counter)),
            Some((counter, _)) => {
                self.stats.refused += 1;
                (Claim::NotTheirs, Some(counter))
            }
        }
    }

    fn live(&self, token: &Token) -> Option<(u64, &Lease)> {
        let counter = self.own_counter(token)?;
        self.leases.get(&counter).map(|lease| (counter, lease))
    }

    /// The counter of a token that this granter made in this incarnation.
    fn own_counter(&self, token: &Token) -> Option<u64> {
        (token.incarnation == self.incarnation && token.granter == self.granter).then_some(token.counter)
    }

    fn token(&self, counter: u64) -> Token {
        Token { granter: Arc::clone(&self.granter), incarnation: self.incarnation, counter }
    }

    fn describe(&self, counter: u64, lease: &Lease) -> LeaseInfo {
        LeaseInfo {
            key: lease.key.clone(),
            token: self.token(counter),
            holder: lease.holder.clone(),
            stream: lease.stream,
            granted: lease.granted,
            expires: lease.expires,
            struggling: lease.struggling,
            waiters: self.episodes.get(&lease.key).map_or(0, |episode| episode.waiters.len()),
        }
    }
}
