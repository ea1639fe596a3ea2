//! The task of one flight: it feeds the miss's life with what happens, and does what that says.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::Fuse;
use heimdall_shared::clock::Moment;
use heimdall_shared::dns::answer::{self, Answer};
use heimdall_shared::entry::Entry;
use heimdall_shared::key::Key;
use heimdall_shared::link::LookupMode;
use heimdall_shared::purge::Position;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::life::{Action, Life, Memory};
use super::second_best::SecondBest;
use super::waiting::Flight;
use super::{Core, Failed, Outcome};
use crate::agent::{Conversation, Lease, Mesh, Silence, Word};
use crate::metrics::MissOutcome;
use crate::upstream;

/// Fetches the answer to `key` and lands the flight; `failed` is a failure of this process that is still remembered.
///
/// Boxed: the runtime moves a task about several times before and after it runs.
pub(super) fn fly(
    core: Arc<Core>,
    mesh: Arc<dyn Mesh>,
    key: Key,
    flight: Arc<Flight>,
    failed: Option<Failed>,
) -> Pin<Box<impl Future<Output = ()> + Send>> {
    Box::pin(async move { fetch(&core, &*mesh, &key, &flight, failed).await })
}

async fn fetch(core: &Core, mesh: &dyn Mesh, key: &Key, flight: &Arc<Flight>, failed: Option<Failed>) {
    let mut landing = Landing { core, key, flight, landed: false };
    let begun = Instant::now();
    let deadline = begun + core.budget;
    // The last moment for an attempt of our own, but never before others had half of the time.
    let late = deadline - core.upstreams.attempt_timeout().min(core.budget / 2);
    let mode = flight.refreshes.map_or(LookupMode::Join, |held| LookupMode::Refresh { held });
    let counts = flight.refreshes.is_none();
    let (mut conversation, asked) = match mesh.ask(key, mode, core.budget, flight.trace) {
        Ok(conversation) => (Some(conversation), Ok(())),
        Err(absent) => (None, Err(absent)),
    };
    let mut silence = conversation.as_ref().map(Conversation::silence);
    let (mut life, mut actions) = Life::<Lease>::begin(asked, failed.map(Outcome::from));

    // Set by what is resolved in this task, and so looked at whenever it may have been: nobody has to be woken for it.
    let struggles = AtomicBool::new(false);
    let mut struggling = false;
    let mut asked_upstreams = false;
    let (mut late_at, mut expired) = (Some(late), false);
    // One timer for all that may come due: most flights end before any of it does.
    let mut alarm = pin!(sleep_until(late));
    let mut resolving = pin!(Fuse::terminated());
    let mut second_best = SecondBest::new(core, key, begun);
    let mut unanswered = None;
    loop {
        for action in actions {
            match action {
                Action::Resolve => {
                    if std::mem::replace(&mut asked_upstreams, true) {
                        continue;
                    }
                    if flight.refreshes.is_some() {
                        core.metrics.refresh_resolutions.inc();
                    }
                    let since = core.purges.ledger().position();
                    life.asks(since);
                    flight.since.store(since, Ordering::Relaxed);
                    // Whoever inherits a lease late still gets the time of one attempt.
                    let until = deadline.max(Instant::now() + core.upstreams.attempt_timeout());
                    let struggle = || struggles.store(true, Ordering::Relaxed);
                    // Boxed: most flights never ask.
                    let resolve = Box::pin(core.upstreams.resolve(key, until, flight.trace, struggle));
                    resolving.set(resolve.fuse());
                }
                Action::AskAgain => {
                    match mesh.ask(key, mode, deadline.saturating_duration_since(Instant::now()), flight.trace) {
                        Ok(again) => {
                            silence = Some(again.silence());
                            conversation = Some(again);
                        }
                        Err(_) => life.not_asked(),
                    }
                }
                Action::Keep(entry) => {
                    core.purges.keep(key, &entry, Moment::now());
                    core.failures().answered(key);
                }
                Action::Remember(Memory::Own(known)) => core.failures().failed(key, known, Moment::now()),
                Action::Remember(Memory::Told(remaining)) => core.failures().told(key, remaining, Moment::now()),
                // First whatever else is to be done: what is second best may have to be asked for.
                Action::Finish(outcome) if outcome.is_failure() => unanswered = Some(outcome),
                Action::Finish(outcome) => landing.land(outcome),
                Action::Publish(entry, Some(lease)) => lease.publish(key, &entry),
                Action::Publish(entry, None) => mesh.publish(key, &entry),
                Action::Fail(lease, kind) => lease.fail(kind),
                // A lease that is dropped goes back.
                Action::Release(lease) => drop(lease),
                // A refresh is no miss.
                Action::Count(_) | Action::CountFallback if !counts => {}
                Action::Count(outcome) => {
                    if matches!(outcome, MissOutcome::entry | MissOutcome::held_entry) {
                        core.metrics.mesh_hits.inc();
                    }
                    core.metrics.outcome(outcome);
                }
                Action::CountFallback => {
                    core.metrics.fallbacks.inc();
                }
            }
        }
        if life.is_finished() {
            break;
        }
        if let (true, Some(lease)) = (struggling, life.lease()) {
            lease.struggle();
        }
        let is_awaited = {
            let spent = silence.as_ref().filter(|_| life.minds_silence()).map(Silence::due);
            let time = late_at.or((!expired).then_some(deadline));
            let due = [time, spent, second_best.due()].into_iter().flatten().min();
            if let Some(due) = due.filter(|&due| due != alarm.deadline()) {
                alarm.as_mut().reset(due);
            }
            due.is_some()
        };
        actions = tokio::select! {
            // In a fixed order, which costs less than to draw one. Nothing starves: what comes first is bounded or comes once.
            biased;
            word = next(&mut conversation), if life.is_asking_mesh() => {
                if let Word::Held(Some(holder)) = word {
                    flight.held_by(holder);
                }
                life.heard(core.checked(key, word))
            }
            resolution = &mut resolving => {
                if let Some(silence) = &silence {
                    silence.renew();
                }
                let now = Moment::now();
                if !matches!(resolution.outcome, upstream::Outcome::NoAnswer | upstream::Outcome::Overload) {
                    core.failures().heard(now);
                }
                life.resolved(core.in_time(key, life.since(), resolution.outcome), now)
            }
            () = is_set(&struggles), if !struggling => {
                struggling = true;
                life.struggled()
            }
            () = &mut alarm, if is_awaited => {
                let now = Instant::now();
                if late_at.is_some_and(|time| time <= now) {
                    late_at = None;
                    life.late()
                } else if late_at.is_none() && !expired && deadline <= now {
                    expired = true;
                    life.expired()
                } else if second_best.due().is_some_and(|due| due <= now) {
                    if let Some(found) = second_best.look(mesh) {
                        landing.meanwhile(second_best.since(), found);
                    }
                    Vec::new()
                } else if life.minds_silence() && silence.as_ref().is_some_and(Silence::is_spent) {
                    life.silent()
                } else {
                    // Something was heard since it was set.
                    Vec::new()
                }
            }
            found = second_best.next() => {
                landing.meanwhile(second_best.since(), found);
                Vec::new()
            }
        };
    }
    if let Some(outcome) = unanswered {
        // Boxed: no other flight must have room for it.
        let found = if flight.is_waited_for() { Box::pin(second_best.last_resort(mesh)).await } else { None };
        landing.land(found.unwrap_or(outcome));
    }
}

impl Core {
    /// What the upstreams said. When a purge has overtaken it, it is for those alone who wait for it.
    fn in_time(&self, key: &Key, since: Position, outcome: upstream::Outcome) -> upstream::Outcome {
        match outcome {
            upstream::Outcome::Answer { answer, born } if !self.purges.ledger().admits(key, since) => {
                self.metrics.overtaken.inc();
                let answer = Answer { packet: answer::with_ttl(&answer.packet, 0), lifetime: Duration::ZERO };
                upstream::Outcome::Answer { answer, born }
            }
            outcome => outcome,
        }
    }

    /// An entry must answer the question of its key, whoever sent it, and a failure must not be the second one in a row that this
    /// process is only told of: a mesh that lies is one that has nothing.
    pub(super) fn checked(&self, key: &Key, word: Word<Lease>) -> Word<Lease> {
        let (entry, is_stale) = match word {
            Word::Entry(entry) => (entry, false),
            Word::Stale(entry) => (entry, true),
            Word::Failure(_) if !self.failures().believes(key, Moment::now()) => return Word::Proceed,
            word => return word,
        };
        if !self.purges.ledger().admits(key, entry.since) {
            // Its sender had not heard of the purge, or it was on its way: it is no answer any more.
            self.metrics.overtaken.inc();
            return Word::Proceed;
        }
        match answer::check(key, &entry.packet, self.upstreams.limits()) {
            Ok(longest) => {
                // Cut out of a received message, it would keep all of that in memory for as long as L1 keeps it.
                let packet = Bytes::copy_from_slice(&entry.packet);
                let entry = Entry { packet, lifetime: entry.lifetime.min(longest), ..entry };
                if is_stale { Word::Stale(entry) } else { Word::Entry(entry) }
            }
            Err(refused) => {
                self.metrics.agent.refuse_entry();
                debug!(%refused, "the agent sent an entry that does not answer its key");
                Word::Proceed
            }
        }
    }
}

/// Resolves when a flag is set by what the same task polls before it.
fn is_set(flag: &AtomicBool) -> impl Future<Output = ()> {
    poll_fn(|_| if flag.load(Ordering::Relaxed) { Poll::Ready(()) } else { Poll::Pending })
}

/// The next word of a conversation. Where there is none, nothing is ever said.
pub(super) async fn next(conversation: &mut Option<Conversation>) -> Word<Lease> {
    match conversation {
        Some(conversation) => conversation.next().await,
        None => std::future::pending().await,
    }
}

/// Tells everybody who waits and takes the flight off the list, whatever happens to its task.
struct Landing<'a> {
    core: &'a Core,
    key: &'a Key,
    flight: &'a Arc<Flight>,
    landed: bool,
}

impl Landing<'_> {
    /// What those get who have waited long enough, and those who come before the flight has landed.
    fn meanwhile(&self, since: Position, outcome: Outcome) {
        self.flight.meanwhile(self.core, self.key, since, outcome);
    }

    fn land(&mut self, outcome: Outcome) {
        self.landed = true;
        // Off the list first: whoever comes now finds the answer in L1, or begins anew when it is kept nowhere. After a purge
        // another flight may be there.
        let mut flights = self.core.flights();
        if flights.get(self.key).is_some_and(|listed| Arc::ptr_eq(listed, self.flight)) {
            flights.remove(self.key);
        }
        drop(flights);
        self.flight.land(self.core, self.key, outcome);
    }
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        if !self.landed {
            self.land(Outcome::Failed);
        }
        if self.flight.refreshes.is_some() {
            self.core.refreshing.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
