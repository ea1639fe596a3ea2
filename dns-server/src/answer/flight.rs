//! One flight: it asks the mesh, feeds the miss's life with what happens, and does what that says.
//!
//! ```text
//! begin ─► the mesh is asked
//!            ├─ it has the answer ──────────────────────────► landed where that word was read
//!            ├─ any other word, silence, no mesh ───────────► a task goes on
//! ```

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use futures_util::FutureExt;
use futures_util::future::Fuse;
use heimdall_shared::clock::Moment;
use heimdall_shared::key::Key;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::landing::{Landing, Left};
use super::life::{Action, Life};
use super::second_best::SecondBest;
use super::waiting::Flight;
use super::{Core, Failed, Outcome};
use crate::agent::{Absent, Asker, Conversation, Lease, Mesh, Silence, Word};
use crate::upstream;

/// A flight on its way, before it is a task or as one.
#[derive(Debug)]
pub(super) struct Trip {
    landing: Landing,
    mesh: Arc<dyn Mesh>,
    /// A failure of this process that is still remembered.
    failed: Option<Failed>,
    begun: Instant,
    /// Whoever waits for the flights of this worker waits for this one.
    flights: TaskTrackerToken,
}

/// Begins to fetch the answer to `key`.
///
/// The mesh is asked at once. Nothing else is to be done before its first word: a task begins only when that is no answer, or is long in
/// coming.
pub(super) fn begin(
    core: &Arc<Core>,
    mesh: &Arc<dyn Mesh>,
    key: &Key,
    flight: Arc<Flight>,
    failed: Option<Failed>,
    flights: TaskTrackerToken,
) {
    let landing = Landing::new(Arc::clone(core), key.clone(), flight);
    let trip = Box::new(Trip { landing, mesh: Arc::clone(mesh), failed, begun: Instant::now(), flights });
    let question = trip.landing.flight.question(core.budget);
    let begun = trip.begun;
    if let Err((trip, absent)) = mesh.ask_for(key, question, begun, trip) {
        trip.absent(absent);
    }
}

impl Asker for Trip {
    fn hear(mut self: Box<Self>, word: Word<Lease>, more: Option<Conversation>) {
        let now = Moment::now();
        let (mut life, _) = self.life(Ok(()));
        let mut actions = self.landing.heard(&mut life, word).into_iter();
        // In their order: whatever takes time holds up what comes after it.
        let left = actions.by_ref().find_map(|action| self.landing.act(&*self.mesh, action, now));
        if left.is_none() && life.is_finished() {
            return;
        }
        self.go(life, left.map(Action::from).into_iter().chain(actions).collect(), more);
    }

    fn wait(self: Box<Self>, conversation: Conversation) {
        let (life, actions) = self.life(Ok(()));
        self.go(life, actions, Some(conversation));
    }

    fn absent(self: Box<Self>, absent: Absent) {
        let (life, actions) = self.life(Err(absent));
        self.go(life, actions, None);
    }
}

impl Trip {
    fn life(&self, mesh: Result<(), Absent>) -> (Life<Lease>, Vec<Action<Lease>>) {
        Life::begin(mesh, self.failed.map(Outcome::from))
    }

    /// Goes on as a task. Boxed: the runtime moves a task about several times before and after it runs.
    fn go(self: Box<Self>, life: Life<Lease>, actions: Vec<Action<Lease>>, conversation: Option<Conversation>) {
        let flights = self.flights.task_tracker().clone();
        flights.spawn(Box::pin(async move {
            let Self { mut landing, mesh, begun, .. } = *self;
            fly(&mut landing, &*mesh, begun, life, actions, conversation).await;
        }));
    }
}

/// Feeds the miss's life with what happens, and does what that says, beginning with `actions`.
async fn fly(
    landing: &mut Landing,
    mesh: &dyn Mesh,
    begun: Instant,
    mut life: Life<Lease>,
    mut actions: Vec<Action<Lease>>,
    mut conversation: Option<Conversation>,
) {
    let (core, key, flight) = (Arc::clone(&landing.core), landing.key.clone(), Arc::clone(&landing.flight));
    let (core, key) = (&*core, &key);
    let deadline = begun + core.budget;
    // The last moment for an attempt of our own, but never before others had half of the time.
    let late = deadline - core.upstreams.attempt_timeout().min(core.budget / 2);
    let mut silence = conversation.as_ref().map(Conversation::silence);

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
        let now = Moment::now();
        for action in actions {
            match landing.act(mesh, action, now) {
                None => {}
                Some(Left::Resolve) => {
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
                Some(Left::AskAgain) => {
                    let question = flight.question(deadline.saturating_duration_since(Instant::now()));
                    match mesh.ask(key, question) {
                        Ok(again) => {
                            silence = Some(again.silence());
                            conversation = Some(again);
                        }
                        Err(_) => life.not_asked(),
                    }
                }
                // First whatever else is to be done: what is second best may have to be asked for.
                Some(Left::Fail(outcome)) => unanswered = Some(outcome),
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
            word = next(&mut conversation), if life.is_asking_mesh() => landing.heard(&mut life, word),
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
