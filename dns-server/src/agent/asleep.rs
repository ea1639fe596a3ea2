//! Askers that sleep until the mesh says the first word to their question: most misses that the mesh can answer are over with it,
//! and no task was begun, woken and ended for them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use heimdall_shared::clock::Moment;
use heimdall_shared::key::Key;
use heimdall_shared::link::{Pending, Reply};
use heimdall_shared::patience::Patience;
use tokio::time::Instant;
use tracing::error;

use super::conversation::said;
use super::{Agent, Asker, Conversation, Live, Question};

/// An asker is woken after this time when it was not by a word, or after all the silence that a miss bears, if that is less (usually it is
/// twenty times as much). The agent says that it is at work when it has had a lookup for as long.
pub(super) const FIRST_WORD_WITHIN: Duration = Duration::from_millis(5);

/// Requests that nobody may have said a word to yet.
pub(super) type FirstWords = Patience<(Arc<Live>, u64)>;

/// An asker with its request.
#[derive(Debug)]
pub(super) struct Asleep {
    asker: Box<dyn Asker>,
    asked: Instant,
}

impl Agent {
    /// Sends the question of an asker that sleeps until it is answered.
    pub(super) fn lay_down(
        self: &Arc<Self>,
        live: Arc<Live>,
        key: &Key,
        question: Question,
        now: Instant,
        asker: Box<dyn Asker>,
    ) -> Result<(), Box<dyn Asker>> {
        let id = live.requests.open_for(Asleep { asker, asked: now }).map_err(|asleep| asleep.asker)?;
        if live.link.push(self.lookup(id, key, question)).is_err()
            && let Some(asleep) = live.requests.take_back(id)
        {
            return Err(asleep.asker);
        }
        // Where it was gone already, the end of the link has woken it.
        if let Err((live, id)) = self.first_words.begin(now, (live, id)) {
            self.wake(&live, id);
        }
        Ok(())
    }

    /// Wakes an asker that has not heard a word for [`FIRST_WORD_WITHIN`], if it still has not.
    pub(super) fn wake(self: &Arc<Self>, live: &Arc<Live>, id: u64) {
        if let Some((asleep, pending)) = live.requests.wake(id) {
            let conversation = asleep.conversation(self, live, pending);
            asleep.asker.wait(conversation);
        }
    }

    /// Wakes an asker with the first reply.
    pub(super) fn tell(self: &Arc<Self>, live: &Arc<Live>, asleep: Asleep, reply: Reply, more: Option<Pending>) {
        // One that panics fails its own miss, as a task would, and not everybody's link.
        let heard = catch_unwind(AssertUnwindSafe(|| {
            let Some(pending) = more else {
                return asleep.asker.hear(said(self, reply), None);
            };
            let mut conversation = asleep.conversation(self, live, pending);
            match conversation.hear(reply) {
                Some(word) => asleep.asker.hear(word, Some(conversation)),
                None => asleep.asker.wait(conversation),
            }
        }));
        if heard.is_err() {
            error!("an answer of the agent made a miss panic; please report what stands above");
        }
    }
}

impl Asleep {
    pub(super) fn into_asker(self) -> Box<dyn Asker> {
        self.asker
    }

    /// What there is to hear, with the silence that was borne so far.
    fn conversation(&self, agent: &Arc<Agent>, live: &Arc<Live>, pending: Pending) -> Conversation {
        let asked = Moment::now().minus(self.asked.elapsed());
        Conversation::new(Arc::clone(agent), Arc::clone(live), pending, asked)
    }
}
