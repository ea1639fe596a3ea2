//! How leases and waits end.

use heimdall_shared::clock::Moment;
use heimdall_shared::key::Key;
use heimdall_shared::link::Reply;
use heimdall_shared::purge::Scope;

use super::{Due, Table};
use crate::lease::episode::{Confirmation, Lease, Waiter};
use crate::lease::{Action, Holder, LinkId};

impl Table {
    pub(super) fn gone(&mut self, from: &Holder, stream: Option<u64>, now: Moment, out: &mut Vec<Action>) {
        self.expire(now, out);
        let is_stream = |of: u64| stream.is_none_or(|stream| stream == of);
        // Rare, and the tables are bounded: a walk over all of it costs less than an index kept at every grant.
        let mut freed = Vec::new();
        for (key, episode) in &self.episodes {
            for Waiter { asker, .. } in &episode.waiters {
                if asker.member == from.member && asker.incarnation == from.incarnation && is_stream(asker.stream) {
                    freed.push((key.clone(), asker.link, asker.request));
                }
            }
        }
        // First those who wait, so that no lease is passed on to who is gone as well.
        for (key, link, request) in freed {
            self.waits.remove(link, request);
            self.forget_waiter(&key, link, request);
        }
        let is_theirs = |lease: &Lease| lease.is_held_by(from) && is_stream(lease.stream);
        let mut ended: Vec<u64> =
            self.leases.iter().filter(|(_, lease)| is_theirs(lease)).map(|(&counter, _)| counter).collect();
        ended.sort_unstable();
        let keys: Vec<Key> = ended.into_iter().map(|counter| self.end(counter).key).collect();
        self.stats.orphaned += keys.len() as u64;
        for key in keys {
            self.pass_on(&key, now, out);
        }
    }

    /// Something was purged. What is fetched under leases that were granted before is not for those who ask from now on: they
    /// end, and who waits fetches it anew.
    pub fn purge(&mut self, scope: &Scope, now: Moment, out: &mut Vec<Action>) {
        self.expire(now, out);
        self.failures.purge(scope);
        self.results.retain(|_, (key, _)| !scope.covers(key));
        let mut keys: Vec<Key> = self.episodes.keys().filter(|key| scope.covers(key)).cloned().collect();
        keys.sort_unstable();
        for key in keys {
            for counter in self.episodes[&key].leases.clone() {
                self.stats.purged += 1;
                self.end(counter);
            }
            self.pass_on(&key, now, out);
        }
    }

    /// Takes a waiter that is no longer in `waits` out of its episode.
    pub(super) fn forget_waiter(&mut self, key: &Key, link: LinkId, request: u64) {
        let episode = self.episodes.get_mut(key).expect("a waiter's key must have an episode");
        episode.remove_waiter(link, request).expect("a waiter must be in its key's episode");
        self.stats.freed += 1;
    }

    pub(super) fn wake(&mut self, key: &Key, reply: &Reply, out: &mut Vec<Action>) -> usize {
        let woken = self.answer_waiters(key, reply, out);
        self.stats.woken += woken as u64;
        woken
    }

    pub(super) fn answer_waiters(&mut self, key: &Key, reply: &Reply, out: &mut Vec<Action>) -> usize {
        let Some(episode) = self.episodes.get_mut(key) else { return 0 };
        let waiters = std::mem::take(&mut episode.waiters);
        for Waiter { asker, .. } in &waiters {
            self.waits.remove(asker.link, asker.request);
            out.push(Action::Reply { link: asker.link, request: asker.request, reply: reply.clone() });
        }
        waiters.len()
    }

    /// Ends a lease. The episode may be left without one: the caller passes it on or removes it.
    pub(super) fn end(&mut self, counter: u64) -> Lease {
        let lease = self.leases.remove(&counter).expect("a lease that ends must be live");
        self.due.clear(lease.expires, (counter, Due::End));
        if let Confirmation::Due(at) = lease.confirmation {
            self.due.clear(at, (counter, Due::Confirmation));
        }
        let held = self.held_by.get_mut(&lease.holder.member).expect("a holder must be counted");
        *held -= 1;
        if *held == 0 {
            self.held_by.remove(&lease.holder.member);
        }
        if let Some(episode) = self.episodes.get_mut(&lease.key) {
            episode.leases.retain(|&other| other != counter);
        }
        lease
    }

    pub(super) fn end_with_result(&mut self, counter: u64, result: &Reply, now: Moment) {
        let lease = self.end(counter);
        if !lease.result_wanted {
            return;
        }
        if self.results.len() >= self.limits.results_total {
            self.stats.not_kept += 1;
            return;
        }
        self.due.set(now + self.limits.result_kept, (counter, Due::ResultForgotten));
        self.results.insert(counter, (lease.key, result.clone()));
    }
}
