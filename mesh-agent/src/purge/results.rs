//! What became of a purge at each replica.

use std::sync::Arc;
use std::time::Duration;

use heimdall_shared::clock::Moment;
use heimdall_shared::purge::Position;
use tokio::time::timeout;

use crate::agent::Agent;

/// What became of a purge at one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is applied there, and the dns-server's cache is emptied.
    Done,
    /// The replica is connected, and has not said so within the time.
    Late,
    /// There is no link to it, or nothing is heard on it.
    NotReached,
}

/// Waits until every replica that is connected has done the purge at `position` of this agent, but no longer than `within`.
pub async fn results(agent: &Agent, position: Position, within: Duration) -> Vec<(Arc<str>, Outcome)> {
    let until = Moment::now() + within;
    let mut changes = agent.purges.changes();
    loop {
        changes.mark_unchanged();
        let now = outcomes(agent, position);
        let left = until.since(Moment::now());
        if left.is_zero() || now.iter().all(|(_, outcome)| *outcome != Outcome::Late) {
            return now;
        }
        // The ledger outlives its agent's tasks; a change or the end of the time.
        let _ = timeout(left, changes.changed()).await;
    }
}

fn outcomes(agent: &Agent, position: Position) -> Vec<(Arc<str>, Outcome)> {
    let view = agent.view();
    let of_done = |done: Position| if done >= position { Outcome::Done } else { Outcome::Late };
    let own = (Arc::clone(&agent.name), of_done(agent.purges.done()));
    let others = view.members().iter().map(|member| {
        let peer = agent.links.peer(&member.name);
        let outcome = peer.and_then(|peer| {
            agent.purges.look(|book| book.vouched(peer.id, 0).is_some().then(|| of_done(book.done_at(peer.id))))
        });
        // A link on which nothing is heard any more reaches nobody, though it may come to life again.
        let outcome = outcome.filter(|outcome| *outcome == Outcome::Done || view.is_up(&member.name));
        (Arc::clone(&member.name), outcome.unwrap_or(Outcome::NotReached))
    });
    std::iter::once(own).chain(others).collect()
}
