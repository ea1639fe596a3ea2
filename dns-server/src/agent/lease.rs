//! Leases that this process holds, and the ticks that say that it works on them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::quality::RandomState;
use heimdall_shared::entry::Entry;
use heimdall_shared::key::Key;
use heimdall_shared::link::{FailureKind, Message};
use heimdall_shared::token::Token;
use heimdall_shared::wire::TICK_TOKENS_MAX;
use tokio::sync::Notify;

use super::Agent;

/// The right to fetch an answer for the cluster. Dropped unused, it goes back to its granter.
#[derive(Debug)]
pub struct Lease {
    agent: Arc<Agent>,
    /// Taken when the lease ends in words.
    token: Option<Token>,
}

impl Lease {
    /// A lease whose token is at work already.
    pub(super) const fn new(agent: Arc<Agent>, token: Token) -> Self {
        Self { agent, token: Some(token) }
    }

    /// The first attempt ended without an answer: the granter may give a second lease to another replica.
    pub fn struggle(&self) {
        if let Some(token) = &self.token {
            self.agent.work.struggle(token);
        }
    }

    /// Ends the lease with its answer.
    pub fn publish(mut self, key: &Key, entry: &Entry) {
        let urgent = self.token.as_ref().is_some_and(|token| self.agent.work.is_watched_for(token));
        if let Some(token) = self.end() {
            self.agent.send_publish(key, entry, Some(token), urgent);
        }
    }

    /// Ends the lease without an answer.
    pub fn fail(mut self, kind: FailureKind) {
        if let Some(token) = self.end() {
            self.agent.push(Message::Fail { token, kind });
        }
    }

    fn end(&mut self) -> Option<Token> {
        let token = self.token.take()?;
        self.agent.work.end(&token);
        Some(token)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(token) = self.end() {
            self.agent.push(Message::Release { token });
        }
    }
}

/// Leases at work in this worker. At most one per miss, so they are bounded as misses are.
#[derive(Debug, Default)]
pub(super) struct Work {
    leases: Mutex<HashMap<Token, Doing, RandomState>>,
    /// A lease became watched, or a watched one struggles: a tick is due at once.
    due: Notify,
}

#[derive(Clone, Copy, Debug, Default)]
struct Doing {
    watched: bool,
    struggling: bool,
    /// Whether a tick has said all this.
    said: bool,
}

/// Which leases a tick lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// All that somebody waits for: once per period.
    All,
    /// Those about which something is new: at once. Listing all of them each time would cost a storm of n misses n² tokens.
    News,
}

impl Work {
    /// A lease was granted. After a takeover somebody waits for it already.
    pub(super) fn begin(&self, token: &Token, takeover: bool) {
        self.leases().insert(token.clone(), Doing { watched: takeover, ..Doing::default() });
        if takeover {
            self.due.notify_one();
        }
    }

    /// Somebody waits for the lease. One that ended in the meantime is none of ours any more.
    pub(super) fn watch(&self, token: &Token) {
        if let Some(doing) = self.leases().get_mut(token) {
            doing.watched = true;
            doing.said = false;
            self.due.notify_one();
        }
    }

    fn struggle(&self, token: &Token) {
        if let Some(doing) = self.leases().get_mut(token) {
            doing.struggling = true;
            doing.said = false;
            if doing.watched {
                self.due.notify_one();
            }
        }
    }

    pub(super) fn end(&self, token: &Token) {
        self.leases().remove(token);
    }

    /// Whether somebody waits for this lease.
    fn is_watched_for(&self, token: &Token) -> bool {
        self.leases().get(token).is_some_and(|doing| doing.watched)
    }

    /// Whether somebody waits for any of the leases.
    pub(super) fn is_watched(&self) -> bool {
        self.leases().values().any(|doing| doing.watched)
    }

    /// The ticks to send now: none if nobody watches, several if there is more than one may list.
    pub(super) fn ticks(&self, which: Which) -> Vec<Message> {
        let watched: Vec<(Token, bool)> = {
            let mut leases = self.leases();
            let listed = leases.iter_mut().filter(|(_, doing)| doing.watched && (which == Which::All || !doing.said));
            listed
                .map(|(token, doing)| {
                    doing.said = true;
                    (token.clone(), doing.struggling)
                })
                .collect()
        };
        let tick = |some: &[(Token, bool)]| {
            let struggling = some.iter().filter(|(_, struggling)| *struggling).map(|(token, _)| token.clone());
            Message::Tick {
                working: some.iter().map(|(token, _)| token.clone()).collect(),
                struggling: struggling.collect(),
            }
        };
        watched.chunks(TICK_TOKENS_MAX).map(tick).collect()
    }

    /// Waits until a tick is due before its time.
    pub(super) async fn due(&self) {
        self.due.notified().await;
    }

    fn leases(&self) -> MutexGuard<'_, HashMap<Token, Doing, RandomState>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use super::Which::{All, News};

    fn token(counter: u64) -> Token {
        Token { granter: "a".into(), incarnation: 1, counter }
    }

    #[test]
    fn only_leases_that_somebody_waits_for_are_ticked() {
        let work = Work::default();
        work.begin(&token(1), false);
        work.begin(&token(2), true);
        assert_eq!(work.ticks(All), [Message::Tick { working: vec![token(2)], struggling: Vec::new() }]);
        work.end(&token(2));
        assert_eq!(work.ticks(All), []);
        work.watch(&token(1));
        assert_eq!(work.ticks(All), [Message::Tick { working: vec![token(1)], struggling: Vec::new() }]);
    }

    #[test]
    fn no_tick_lists_more_than_a_receiver_takes() {
        let work = Work::default();
        let count = TICK_TOKENS_MAX + 1;
        (0..count as u64).for_each(|counter| work.begin(&token(counter), true));
        let sizes: Vec<_> = work
            .ticks(All)
            .iter()
            .map(|tick| matches!(tick, Message::Tick { working, .. } if working.len() <= TICK_TOKENS_MAX))
            .collect();
        assert_eq!(sizes, [true, true]);
    }

    #[test]
    fn a_struggling_lease_is_at_work_and_says_so() {
        let work = Work::default();
        work.begin(&token(1), false);
        work.struggle(&token(1));
        assert_eq!(work.ticks(All), []);
        work.watch(&token(1));
        assert_eq!(work.ticks(All), [Message::Tick { working: vec![token(1)], struggling: vec![token(1)] }]);
    }

    #[test]
    fn news_are_said_once_and_repeated_with_everything_else() {
        let work = Work::default();
        work.begin(&token(1), true);
        work.begin(&token(2), false);
        let tick = |working: &[u64], struggling: &[u64]| Message::Tick {
            working: working.iter().map(|&counter| token(counter)).collect(),
            struggling: struggling.iter().map(|&counter| token(counter)).collect(),
        };
        assert_eq!(work.ticks(News), [tick(&[1], &[])]);
        assert_eq!(work.ticks(News), []);
        work.watch(&token(2));
        assert_eq!(work.ticks(News), [tick(&[2], &[])]);
        work.struggle(&token(1));
        assert_eq!(work.ticks(News), [tick(&[1], &[1])]);
        let all = work.ticks(All);
        assert!(matches!(&all[..], [Message::Tick { working, .. }] if working.len() == 2), "{all:?}");
    }

    #[test]
    fn watching_an_ended_lease_changes_nothing() {
        let work = Work::default();
        work.watch(&token(1));
        work.struggle(&token(1));
        assert_eq!(work.ticks(All), []);
    }
}
