//! What a client gets when nobody has a live answer in time: one that is dead, of this process or of the mesh.
//!
//! RFC 8767 5: "the client response timer [...] If this timer is reached without a final answer, the resolver SHOULD then
//! check its cache for expired data that would satisfy the request", and use it also when the resolution failed.

use heimdall_shared::clock::Moment;
use heimdall_shared::entry::Entry;
use heimdall_shared::key::Key;
use heimdall_shared::link::LookupMode;
use heimdall_shared::purge::Position;
use tokio::time::{Instant, sleep};

use super::flight::next;
use super::{Core, Outcome};
use crate::agent::{Conversation, Lease, Mesh, Question, Word};

/// The search for the second best answer of one flight.
pub(super) struct SecondBest<'a> {
    core: &'a Core,
    key: &'a Key,
    /// When those who wait have waited long enough.
    due: Instant,
    /// The purges that were applied when it was looked for.
    since: Position,
    state: State,
}

enum State {
    /// Not needed yet.
    Ahead,
    /// The mesh is asked.
    Asking(Option<Conversation>),
    /// Found, or not to be had.
    Over,
}

impl<'a> SecondBest<'a> {
    pub(super) fn new(core: &'a Core, key: &'a Key, begun: Instant) -> Self {
        let state = if core.stale.is_on() { State::Ahead } else { State::Over };
        Self { core, key, due: begun + core.stale.after, since: 0, state }
    }

    /// When it has to be looked for; `None` when it was, or never is.
    pub(super) const fn due(&self) -> Option<Instant> {
        match self.state {
            State::Ahead => Some(self.due),
            State::Asking(_) | State::Over => None,
        }
    }

    /// What is found is newer than these purges.
    pub(super) const fn since(&self) -> Position {
        self.since
    }

    /// Looks for it here, and else begins to ask the mesh.
    pub(super) fn look(&mut self, mesh: &dyn Mesh) -> Option<Outcome> {
        self.since = self.core.purges.ledger().position();
        match self.core.stale(self.key, Moment::now()) {
            // The answer that is being replaced still lives: nobody waits yet.
            Some(Outcome::Answer { .. }) => self.due = Instant::now() + self.core.stale.after,
            Some(found) => {
                self.state = State::Over;
                return Some(found);
            }
            None => self.state = State::Asking(self.ask(mesh)),
        }
        None
    }

    /// What the mesh has, if it was asked: at most once. Cancelling this future loses nothing.
    pub(super) async fn next(&mut self) -> Outcome {
        if let State::Asking(conversation) = &mut self.state {
            let word = next(conversation).await;
            self.state = State::Over;
            if let Some(found) = self.found(word) {
                return found;
            }
        }
        std::future::pending().await
    }

    /// What there is when nobody has an answer: a mesh that is silent is not waited for longer than a miss waits for it.
    pub(super) async fn last_resort(mut self, mesh: &dyn Mesh) -> Option<Outcome> {
        let own = self.core.stale(self.key, Moment::now());
        if own.is_some() {
            return own;
        }
        if let State::Ahead = self.state {
            self.state = State::Asking(self.ask(mesh));
        }
        let State::Asking(Some(mut conversation)) = self.state else { return None };
        let patience = conversation.silence().expires_at().since(Moment::now());
        self.state = State::Over;
        let word = tokio::select! {
            word = conversation.next() => word,
            () = sleep(patience) => return None,
        };
        self.found(word)
    }

    fn ask(&self, mesh: &dyn Mesh) -> Option<Conversation> {
        let mode = LookupMode::Stale { within: self.core.stale.limit };
        mesh.ask(self.key, Question { mode, deadline: self.core.budget, trace: None }).ok()
    }

    fn found(&self, word: Word<Lease>) -> Option<Outcome> {
        let now = Moment::now();
        match self.core.checked(self.key, word) {
            // Somebody has a live one after all.
            Word::Entry(entry) if entry.is_live(now) => {
                self.core.purges.keep(self.key, &entry, now);
                Some(Outcome::Answer { entry, fresh: false })
            }
            Word::Stale(entry) if self.may_be_given(&entry, now) => {
                // As dead as it is: the next client need not ask the mesh for it.
                self.core.purges.keep_stale(self.key, &entry, now, self.core.stale.limit);
                Some(Outcome::Stale(entry))
            }
            _ => None,
        }
    }

    fn may_be_given(&self, entry: &Entry, now: Moment) -> bool {
        entry.age(now) <= entry.lifetime.saturating_add(self.core.stale.limit)
    }
}
