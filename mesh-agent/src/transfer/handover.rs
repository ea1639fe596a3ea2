//! The leaving side of a hand-over: who was asked to take this agent's entries, and who has answered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use heimdall_shared::link::Message;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::agent::Agent;
use crate::transfer::Taken;

/// A member that has not taken over by then will not: a drain of 6 s leaves no more, and a copy that is missing costs an
/// upstream query.
pub const TAKEN_WITHIN: Duration = Duration::from_secs(4);

/// What each member that was asked took; `None` while it has not answered.
pub type Outcome = BTreeMap<Arc<str>, Option<Taken>>;

/// The hand-over under way.
#[derive(Debug)]
pub struct HandOver {
    outcome: watch::Sender<Outcome>,
    /// One at a time: a second one waits for the first, and then finds little to do.
    turn: Semaphore,
}

impl Default for HandOver {
    fn default() -> Self {
        Self { outcome: watch::Sender::default(), turn: Semaphore::new(1) }
    }
}

impl HandOver {
    /// Has every connected member take what it would keep without this agent. Ends when all have answered, or gone, or
    /// after [`TAKEN_WITHIN`].
    pub async fn run(&self, agent: &Agent) -> Outcome {
        let _turn = self.turn.acquire().await;
        let mut outcomes = self.outcome.subscribe();
        self.outcome.send_replace(Outcome::new());
        for (member, peer) in &agent.links.connected().peers {
            self.outcome.send_modify(|outcome| {
                outcome.insert(Arc::clone(member), None);
            });
            if peer.link.push(Message::HandOver).is_err() {
                self.gone(member);
            }
        }
        let all_answered = outcomes.wait_for(|outcome| outcome.values().all(Option::is_some));
        // Whoever is late counts as not having answered.
        let _ = timeout(TAKEN_WITHIN, all_answered).await;
        self.outcome.send_replace(Outcome::new())
    }

    /// `member` says what it took.
    pub fn taken(&self, member: &str, taken: Taken) {
        self.outcome.send_if_modified(|outcome| {
            let waited = outcome.get_mut(member).filter(|outcome| outcome.is_none());
            waited.map(|outcome| *outcome = Some(taken)).is_some()
        });
    }

    /// The link to `member` ended.
    pub fn gone(&self, member: &str) {
        self.taken(member, Taken::default());
    }
}
