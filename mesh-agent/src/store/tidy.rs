//! Removes what is over for good, a little at a time.

use std::sync::Arc;
use std::time::Duration;

use heimdall_shared::clock::Moment;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Store;
use super::shelf::Slot;

/// How often it goes on.
const EVERY: Duration = Duration::from_secs(1);

/// Times that it goes on until it has looked at every entry: so much longer, a minute, is one kept at most.
const TIMES: usize = 60;

/// Entries between which nobody else of the same thread has their turn: some 20 µs when each is somewhere else in memory. A full
/// store of the default size has less than 20 such steps a second. Nobody of another thread waits for more than one entry.
const STEP: usize = 256;

/// A walk over all entries, in steps.
pub(super) struct Walk<'a> {
    store: &'a Store,
    slots: Box<dyn Iterator<Item = Arc<Slot>> + Send + 'a>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(store: &'a Store) -> Self {
        Self { store, slots: Box::new(store.shelf.iter()) }
    }

    /// Looks at the next `most` entries, and removes of them what is over. Says whether there may be more.
    pub(super) fn step(&mut self, most: usize, now: Moment) -> bool {
        let mut seen = 0;
        for slot in self.slots.by_ref().take(most) {
            seen += 1;
            if slot.over <= now && self.store.shelf.remove_this(&slot) {
                self.store.gone(&slot, now);
            }
        }
        seen == most
    }
}

/// Keeps the store tidy until `stop` is cancelled.
pub async fn run(store: Arc<Store>, stop: CancellationToken) {
    let mut walk = Walk::new(&store);
    while stop.run_until_cancelled(sleep(EVERY)).await.is_some() {
        for _ in 0..=store.shelf.entries() / (STEP * TIMES) {
            if !walk.step(STEP, Moment::now()) {
                walk = Walk::new(&store);
                break;
            }
            tokio::task::yield_now().await;
        }
    }
}
