//! When the idle links of a process say that they are there: all at once, and with those of the processes that they lead to.
//!
//! A beat costs little but the wake-up for it, and what is looked at that often is looked at then. So the links of a process share
//! one beat; and whoever hears somebody else's shortly before its own comes in with it, as fireflies do (Mirollo and Strogatz,
//! "Synchronization of Pulse-Coupled Biological Oscillators", 1990). After a few beats a whole cluster is woken once for all.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::Link;

/// An idle link sends a batch without content this often: often enough that an anchor costs a short-lived entry little, and
/// that silence of a peer shows within a second or two.
pub const BEAT_EVERY: Duration = Duration::from_millis(250);

/// A beat comes in early by this much at most: half of the time, so that any two agree after one or two, and so that nobody can
/// make this process beat more than twice as often.
const EARLY_MAX: Duration = Duration::from_millis(125);

/// The beat of a process. Clones are the same beat.
#[derive(Clone, Debug)]
pub struct Beats(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// The next one comes earlier than it was to.
    moved: Notify,
    /// When the last one was due.
    beaten: watch::Sender<Instant>,
}

#[derive(Debug)]
struct State {
    due: Instant,
    links: Vec<Weak<Link>>,
}

impl Default for Beats {
    fn default() -> Self {
        let now = Instant::now();
        let state = Mutex::new(State { due: now + BEAT_EVERY, links: Vec::new() });
        Self(Arc::new(Shared { state, moved: Notify::new(), beaten: watch::Sender::new(now) }))
    }
}

impl Beats {
    /// Beats until `stop` is cancelled. Without this no link of this process ever does.
    pub async fn run(self, stop: CancellationToken) {
        let beating = async {
            loop {
                let due = self.state().due;
                if timeout_at(due, self.0.moved.notified()).await.is_err() {
                    self.beat(due);
                }
            }
        };
        stop.run_until_cancelled(beating).await;
    }

    /// Tells when each beat was due, right after it.
    pub fn subscribe(&self) -> watch::Receiver<Instant> {
        self.0.beaten.subscribe()
    }

    pub(super) fn join(&self, link: Weak<Link>) {
        self.state().links.push(link);
    }

    /// Another process beat at `now`.
    pub(super) fn heard(&self, now: Instant) {
        let mut state = self.state();
        if comes_in(state.due, now) {
            state.due = now;
            drop(state);
            self.0.moved.notify_one();
        }
    }

    fn beat(&self, due: Instant) {
        let mut state = self.state();
        // From now on and not from when it was due: after a stop of this process no beats are made up for.
        state.due = Instant::now() + BEAT_EVERY;
        state.links.retain(|link| link.upgrade().is_some_and(|link| link.beat()));
        drop(state);
        self.0.beaten.send_replace(due);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a beat that is due then comes in with another one that is heard at `now`.
fn comes_in(due: Instant, now: Instant) -> bool {
    due > now && due - now <= EARLY_MAX
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_beat_comes_in_early_but_never_by_more_than_half() {
        let now = Instant::now();
        let due_in = |millis| comes_in(now + Duration::from_millis(millis), now);
        assert_eq!([0, 1, 125, 126, 250].map(due_in), [false, true, true, false, false]);
        assert!(!comes_in(now, now + Duration::from_millis(1)), "it is late, and comes at once by itself");
    }

    proptest! {
        /// Processes that hear each other after a short way, from any moments on: after three beats all beat within that way.
        #[test]
        fn a_cluster_beats_together_after_a_few_beats(
            starts in prop::collection::vec(0u64..250_000, 2..12),
            way in 1u64..1_000,
        ) {
            let begun = Instant::now();
            let at = |micros| begun + Duration::from_micros(micros);
            let every = BEAT_EVERY.as_micros() as u64;
            let mut due: Vec<u64> = starts.iter().map(|start| start + every).collect();
            let mut last = vec![0; due.len()];
            // What is under way: when it comes, and from whom.
            let mut coming: Vec<(u64, usize)> = Vec::new();
            let end = 4 * every;
            loop {
                let beat = (0..due.len()).min_by_key(|&member| due[member]).unwrap();
                let heard = (0..coming.len()).min_by_key(|&nth| coming[nth].0);
                match heard {
                    Some(nth) if coming[nth].0 < due[beat] => {
                        let (now, from) = coming.swap_remove(nth);
                        for member in (0..due.len()).filter(|&member| member != from) {
                            if comes_in(at(due[member]), at(now)) {
                                due[member] = now;
                            }
                        }
                    }
                    _ if due[beat] > end => break,
                    _ => {
                        let now = due[beat];
                        prop_assert!(last[beat] == 0 || now - last[beat] >= every / 2);
                        last[beat] = now;
                        due[beat] = now + every;
                        coming.push((now + way, beat));
                    }
                }
            }
            // Some may have beaten once more than others already.
            let apart = |&due: &u64, from: u64| (due.abs_diff(from) % every).min(every - due.abs_diff(from) % every);
            prop_assert!(due.iter().all(|member| apart(member, due[0]) <= way), "{due:?}");
        }
    }
}
