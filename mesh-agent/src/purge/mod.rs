//! Purges in the agent: what is done about each, how its result is found out, and the task that keeps house.
//!
//! Who has applied what is the [`Ledger`]'s to know, which also tells every link. Entries of the store that a purge covers are
//! not found any more from the moment at which it is applied; they are removed a little later.

mod results;

use std::sync::Arc;
use std::time::Duration;

use heimdall_shared::clock::Moment;
use heimdall_shared::dns::answer::TtlLimits;
use heimdall_shared::purge::{Applied, Injected, Ledger, Scope};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::agent::Agent;
use crate::granter::Event;
use crate::updates::What;

pub use self::results::{Outcome, results};

/// Longer than any entry is kept are purges remembered, by this much: ages grow a little on their way.
const MARGIN: Duration = Duration::from_secs(60);

/// Everything is purged at most so often: each time all names of all clients are fetched anew.
pub const EVERYTHING_EVERY: Duration = Duration::from_secs(10);

/// How often the task looks whether there is something to do, at the latest.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// An agent to which no dns-server has come within this time has none: they look for it every second.
const ALONE_AFTER: Duration = Duration::from_secs(5);

/// A ledger whose purges outlive every entry of an agent that keeps entries for `stale` after their end.
pub fn ledger(stale: Duration) -> Ledger {
    Ledger::new(TtlLimits::default().max + stale + MARGIN)
}

/// Begins a purge, here and everywhere. Gives it with its position here.
pub async fn begin(agent: &Agent, scope: Scope, injected: Option<Injected>) -> Applied {
    let origin = (&agent.name, agent.incarnation);
    let applied = agent.purges.issue(origin, scope, injected, Moment::now());
    apply(agent, std::slice::from_ref(&applied)).await;
    applied
}

/// Does what is to be done about purges that have just been applied. Whatever is asked after this meets no lease that was
/// granted before.
pub async fn apply(agent: &Agent, fresh: &[Applied]) {
    for Applied { position, purge } in fresh {
        agent.metrics.purges.inc();
        let origin = &purge.id.origin;
        info!(%origin, sequence = purge.id.sequence, scope = %purge.scope, injected = purge.injected.is_some(), "purged");
        agent.store.updates().tell(|| What::Purge(Arc::clone(purge)));
        if let Some((key, entry)) = purge.entry(*position) {
            agent.store.inject(key, &entry, Moment::now());
        }
        agent.granter.must_hear(Event::Purged(Arc::clone(purge))).await;
    }
}

/// Says when this replica has emptied its caches, removes what is purged, and keeps the log within its bounds, until `stop` is
/// cancelled.
pub async fn run(agent: Arc<Agent>, stop: CancellationToken) {
    let started = Moment::now();
    let mut changes = agent.purges.changes();
    let mut had_dns = false;
    let mut swept = (0, started);
    let mut sweep: Option<JoinHandle<()>> = None;
    while !stop.is_cancelled() {
        let now = Moment::now();
        let (position, below) = agent.purges.look(|book| (book.log().position(), book.done_below()));
        had_dns |= below.is_some();
        let alone = !had_dns && now.since(started) >= ALONE_AFTER;
        if let Some(done) = below.or(alone.then_some(position)) {
            agent.purges.finish(done);
        }
        let is_swept = sweep.as_ref().is_none_or(JoinHandle::is_finished);
        if position > swept.0 && is_swept && now.since(swept.1) >= LOOK_EVERY {
            swept = (position, now);
            let store = Arc::clone(&agent.store);
            // A walk over the whole store, on a thread that nothing else waits for.
            sweep = Some(tokio::task::spawn_blocking(move || store.sweep()));
        }
        let (remembered, is_full) = agent.purges.look(|book| (book.log().len(), book.log().is_full()));
        agent.metrics.purges_remembered.set(i64::try_from(remembered).unwrap_or(i64::MAX));
        if is_full {
            warn!("more purges than can be remembered: everything is purged in their place");
            begin(&agent, Scope::Everything, None).await;
        }
        // Whichever comes first: a change, or the time to look again.
        let _ = stop.run_until_cancelled(timeout(LOOK_EVERY, changes.changed())).await;
    }
    if let Some(sweep) = sweep {
        // It ends by itself, and panics never.
        let _ = sweep.await;
    }
}
