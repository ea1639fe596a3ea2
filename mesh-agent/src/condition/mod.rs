//! How this agent is: what it measures on itself, and whom it tells.

mod judge;
mod memory;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use heimdall_shared::clock::Moment;
use heimdall_shared::link::{Condition, Message, NodeState};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::agent::Agent;

pub use self::judge::{Judge, LOWER_AFTER, RAISE_AFTER, Sample};

/// Looks, one at each beat of the links, between two in which the memory is read: a second.
const MEMORY_EVERY: u32 = 4;

/// Measures, judges and tells the peers until `stop` is cancelled. `store_bytes` is what the store may hold.
pub async fn watch(agent: Arc<Agent>, store_bytes: u64, stop: CancellationToken) {
    let mut judge = Judge::default();
    let mut told = agent.state();
    let mut sample = Sample::default();
    let mut looks = 0_u32;
    let mut beats = agent.beats.subscribe();
    agent.metrics.node_state(told.condition);
    loop {
        // A peer that picks its sources knows within one that this agent has its entries.
        let Some(Ok(())) = stop.run_until_cancelled(beats.changed()).await else { return };
        let now = Moment::now();
        sample.late = Instant::now().saturating_duration_since(*beats.borrow_and_update());
        sample.store = agent.store.stats().bytes as f64 / store_bytes as f64;
        let connected = agent.links.connected();
        sample.upstreams_failing = !connected.streams.is_empty()
            && connected.streams.values().all(|stream| stream.upstreams_failing.load(Ordering::Relaxed));
        if looks.is_multiple_of(MEMORY_EVERY) {
            sample.memory = memory::part_used();
        }
        looks = looks.wrapping_add(1);
        let reasons = judge.step(&sample, now);
        if **agent.degraded.load() != reasons {
            agent.degraded.store(Arc::new(reasons));
        }
        let state = agent.state();
        if state != told {
            tell(&agent, &state);
            told = state;
        }
    }
}

fn tell(agent: &Agent, state: &NodeState) {
    let reasons: Vec<_> = state.reasons.iter().map(|reason| reason.as_str()).collect();
    match state.condition {
        Condition::Degraded => warn!(reasons = reasons.join(","), "this replica is degraded; its keys stay with it"),
        condition => info!(?condition, "this replica's state changed"),
    }
    agent.metrics.node_state(state.condition);
    for peer in agent.links.connected().peers.values() {
        // A lane so full that this does not fit has worse to tell; the next Hello says it too.
        let _ = peer.link.push(Message::NodeState(state.clone()));
    }
}
