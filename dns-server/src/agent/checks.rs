//! Questions of the agent that wait to be asked of an upstream, so that it can compare what a peer said.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use heimdall_shared::entry::Entry;
use heimdall_shared::key::Key;
use heimdall_shared::link::{Message, Reply};
use tokio::sync::Notify;

use super::Live;

/// Questions that may wait; one more is answered with nothing at once. An agent has fewer under way.
const WAITING: usize = 32;

/// One question. Dropped without an answer it is answered with nothing.
#[derive(Debug)]
pub struct Check {
    live: Arc<Live>,
    id: u64,
    /// What is asked.
    pub key: Key,
    entry: Option<Entry>,
}

impl Check {
    /// Answers it.
    pub fn answer(mut self, entry: Entry) {
        self.entry = Some(entry);
    }
}

impl Drop for Check {
    fn drop(&mut self) {
        let reply = Reply::Checked { entry: self.entry.take(), source: None };
        // Without it the agent gives up after a while.
        let _ = self.live.link.push(Message::Reply { id: self.id, reply });
    }
}

/// The questions of one worker's link.
#[derive(Debug, Default)]
pub(super) struct Checks {
    waiting: Mutex<VecDeque<Check>>,
    ready: Notify,
}

impl Checks {
    /// Takes a question in.
    pub(super) fn push(&self, live: &Arc<Live>, id: u64, key: &Key) {
        let check = Check { live: Arc::clone(live), id, key: key.detached(), entry: None };
        let mut waiting = self.waiting();
        if waiting.len() < WAITING {
            waiting.push_back(check);
            self.ready.notify_one();
        }
    }

    /// The next one. There is one reader; cancelling this future loses nothing.
    pub(super) async fn next(&self) -> Check {
        loop {
            if let Some(check) = self.waiting().pop_front() {
                return check;
            }
            self.ready.notified().await;
        }
    }

    /// Forgets those that wait: their link is gone.
    pub(super) fn clear(&self) {
        self.waiting().clear();
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Check>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
