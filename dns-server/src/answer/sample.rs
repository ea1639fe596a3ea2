//! Asking an upstream what the agent wants to compare a peer's answer with: beside the way of every client.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use heimdall_shared::clock::Moment;
use heimdall_shared::dns::rr::class;
use heimdall_shared::entry::Entry;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Core;
use crate::agent::{Agent, Check};
use crate::upstream::Outcome;

/// Questions of one worker's link that are asked at a time: each takes a socket and some 4 KiB.
const AT_ONCE: usize = 4;

/// An upstream has this long to answer, or the query budget if that is less. Behind one that is silent the others must not wait
/// for so long that the agent gives them up.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks until `stop` is cancelled; what is under way then is dropped, since nobody waits for it.
pub(super) async fn run(core: Arc<Core>, agent: Arc<Agent>, stop: CancellationToken) {
    let mut under_way = FuturesUnordered::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(()) = under_way.next() => {}
            check = agent.next_check(), if under_way.len() < AT_ONCE => under_way.push(ask(&core, check)),
        }
    }
}

async fn ask(core: &Core, check: Check) {
    // Nothing of another class comes from the mesh.
    if check.key.qclass() != class::IN {
        return;
    }
    core.metrics.peer_checks.inc();
    let since = core.purges.ledger().position();
    let resolution = core.upstreams.resolve(&check.key, Instant::now() + core.budget.min(PATIENCE), None, || {}).await;
    if let Outcome::Answer { answer, born } = resolution.outcome {
        let entry = Entry { packet: answer.packet, born, lifetime: answer.lifetime, since };
        // Younger than what the mesh gave, and this process's own: should that have been a lie, it is told no longer.
        core.cache.insert(&check.key, &entry, Moment::now());
        check.answer(entry);
    }
}
