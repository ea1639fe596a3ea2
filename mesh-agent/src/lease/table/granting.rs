//! Who gets a lease: the first who asks, a waiter when one is passed on, a rival beside a holder that struggles.

use std::sync::Arc;

use heimdall_shared::clock::Moment;
use heimdall_shared::key::Key;
use heimdall_shared::link::Reply;
use heimdall_shared::token::Token;

use super::{Due, Table};
use crate::lease::episode::{Confirmation, Episode, Lease, Waiter};
use crate::lease::{Action, Asker, Holder, Join};

impl Table {
    pub(super) fn take_ask(&mut self, key: &Key, asker: Asker, join: Join, now: Moment, out: &mut Vec<Action>) {
        self.expire(now, out);
        if self.waits.contains(asker.link, asker.request) {
            // Whatever it was told would answer the other one too.
            self.stats.duplicates += 1;
            return;
        }
        if let Some(remaining) = self.failures.remaining(key, now) {
            self.stats.failures_served += 1;
            out.push(Action::Reply { link: asker.link, request: asker.request, reply: Reply::Failure { remaining } });
            return;
        }
        self.drop_overdue(key);
        let Some(episode) = self.episodes.get(key) else {
            if join == Join::Only {
                out.push(Action::Reply { link: asker.link, request: asker.request, reply: Reply::Proceed });
                return;
            }
            if self.has_room_for(&asker.member, now) {
                let key = key.detached();
                self.episodes.insert(key.clone(), Episode::default());
                self.stats.granted += 1;
                self.grant(&key, asker, false, now, out);
            } else {
                self.proceed_by_limit(&asker, out);
            }
            return;
        };
        if join != Join::Only && self.may_have_second(episode, &asker.member) && self.has_room_for(&asker.member, now) {
            let somebody_waits = !episode.waiters.is_empty();
            self.stats.second_leases += 1;
            self.grant(key, asker, somebody_waits, now, out);
            return;
        }
        self.hold(key, asker, join, now, out);
    }

    /// Tells an asker of the lease that there is, and lets it wait.
    fn hold(&mut self, key: &Key, asker: Asker, join: Join, now: Moment, out: &mut Vec<Action>) {
        let episode = self.episodes.get_mut(key).expect("a held key must have an episode");
        let counter = *episode.leases.last().expect("an episode must have a lease");
        let lease = self.leases.get_mut(&counter).expect("an episode's lease must exist");
        if join != Join::Later
            && (episode.waiters.len() >= self.limits.waiters_per_key
                || self.waits.on_link(asker.link) >= self.limits.waiters_per_link)
        {
            self.proceed_by_limit(&asker, out);
            return;
        }
        let token = Token { granter: Arc::clone(&self.granter), incarnation: self.incarnation, counter };
        let reply = Reply::Held { token, holder: lease.trace };
        out.push(Action::Reply { link: asker.link, request: asker.request, reply });
        self.stats.held += 1;
        if join == Join::Later {
            lease.result_wanted = true;
            return;
        }
        self.waits.insert(asker.link, asker.request, lease.key.clone());
        episode.waiters.push_back(Waiter { asker, told: counter });
        for counter in episode.leases.clone() {
            let lease = self.leases.get_mut(&counter).expect("an episode's lease must exist");
            if lease.needs_watch(self.limits.tick, now) {
                lease.watched = Some(now);
                let (holder, stream) = (lease.holder.clone(), lease.stream);
                out.push(Action::Watch { holder, stream, token: self.token(counter) });
            }
        }
    }

    fn grant(&mut self, key: &Key, asker: Asker, takeover: bool, now: Moment, out: &mut Vec<Action>) {
        self.counter += 1;
        let counter = self.counter;
        let expires = now + self.limits.lease;
        self.due.set(expires, (counter, Due::End));
        let confirmation = if takeover {
            let at = now + self.limits.confirm;
            self.due.set(at, (counter, Due::Confirmation));
            Confirmation::Due(at)
        } else {
            Confirmation::Given
        };
        *self.held_by.entry(Arc::clone(&asker.member)).or_default() += 1;
        let episode = self.episodes.get_mut(key).expect("a granted key must have an episode");
        episode.leases.push(counter);
        let lease = Lease {
            key: key.clone(),
            holder: Holder { member: asker.member, incarnation: asker.incarnation },
            stream: asker.stream,
            trace: asker.trace,
            granted: now,
            expires,
            confirmation,
            struggling: false,
            // Who takes over knows that somebody waits.
            watched: takeover.then_some(now),
            ticked: None,
            relayed: None,
            result_wanted: false,
        };
        self.leases.insert(counter, lease);
        let reply = Reply::Granted { token: self.token(counter), takeover, ask_first: None };
        out.push(Action::Reply { link: asker.link, request: asker.request, reply });
    }

    /// Gives the key's free lease, if it has one, to those who wait, longest wait first; forgets the key when nobody is left.
    pub(super) fn pass_on(&mut self, key: &Key, now: Moment, out: &mut Vec<Action>) {
        while let Some(episode) = self.episodes.get_mut(key) {
            let is_second = !episode.leases.is_empty();
            let next = match episode.leases.as_slice() {
                [] => episode.waiters.iter().position(|waiter| !episode.has_failed(&waiter.asker.member)),
                [only] => {
                    let lease = &self.leases[only];
                    let is_eligible = |member: &Arc<str>| *member != lease.holder.member && !episode.has_failed(member);
                    let next = episode.waiters.iter().position(|waiter| is_eligible(&waiter.asker.member));
                    next.filter(|_| lease.struggling)
                }
                _ => None,
            };
            let Some(waiter) = next.and_then(|at| episode.waiters.remove(at)) else { break };
            self.waits.remove(waiter.asker.link, waiter.asker.request);
            if !self.has_room_for(&waiter.asker.member, now) {
                self.proceed_by_limit(&waiter.asker, out);
                continue;
            }
            *(if is_second { &mut self.stats.second_leases } else { &mut self.stats.takeovers }) += 1;
            self.grant(key, waiter.asker, true, now, out);
        }
        if self.episodes.get(key).is_some_and(|episode| episode.leases.is_empty()) {
            // Every replica that waits has tried: each goes on by itself, no client gets an error for it.
            let sent_on = self.answer_waiters(key, &Reply::Proceed, out);
            self.stats.proceed_none_left += sent_on as u64;
            self.episodes.remove(key);
        }
    }

    pub(super) fn confirmation_missed(&mut self, counter: u64, now: Moment, out: &mut Vec<Action>) {
        let Some(lease) = self.leases.get_mut(&counter) else { return };
        let key = lease.key.clone();
        lease.confirmation = Confirmation::Overdue;
        let episode = self.episodes.get_mut(&key).expect("a live lease must have an episode");
        if episode.waiters.is_empty() {
            return;
        }
        self.stats.unconfirmed += 1;
        episode.mark_failed(&lease.holder.member);
        self.end(counter);
        self.pass_on(&key, now, out);
    }

    /// Ends leases of `key` that were passed on and not taken up; somebody asks who will.
    fn drop_overdue(&mut self, key: &Key) {
        let Some(episode) = self.episodes.get(key) else { return };
        let is_overdue = |counter: &u64| self.leases[counter].confirmation == Confirmation::Overdue;
        let overdue: Vec<u64> = episode.leases.iter().copied().filter(is_overdue).collect();
        for counter in overdue {
            self.stats.unconfirmed += 1;
            self.end(counter);
        }
        // A lease is overdue only as long as nobody waits.
        if self.episodes.get(key).is_some_and(|episode| episode.leases.is_empty()) {
            self.episodes.remove(key);
        }
    }

    fn may_have_second(&self, episode: &Episode, member: &Arc<str>) -> bool {
        let [only] = episode.leases.as_slice() else { return false };
        let lease = &self.leases[only];
        lease.struggling && lease.holder.member != *member && !episode.has_failed(member)
    }

    fn has_room_for(&self, member: &Arc<str>, now: Moment) -> bool {
        let held = self.held_by.get(member).copied().unwrap_or_default();
        held < self.limits.leases_per_peer
            && self.leases.len() < self.limits.leases_total
            && self.hoards.may_hold(member, now)
    }

    fn proceed_by_limit(&mut self, asker: &Asker, out: &mut Vec<Action>) {
        self.stats.proceed_by_limit += 1;
        out.push(Action::Reply { link: asker.link, request: asker.request, reply: Reply::Proceed });
    }
}
