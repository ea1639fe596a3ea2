//! What happens to this replica's entries, for those who follow it from outside.
//!
//! Whoever changes the store never waits for a reader: a reader that lags is told so, and goes on with what comes.

use std::sync::{Arc, Mutex, PoisonError};

use heimdall_shared::entry::Entry;
use heimdall_shared::key::Key;
use heimdall_shared::purge::Purge;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};
use tokio_util::sync::CancellationToken;

/// Updates that a reader may be behind. They are kept once for all readers, some 300 bytes each with their entries.
pub const UPDATES_BEHIND: usize = 2_048;

/// Readers at a time. Each has a list of keys while it is given a snapshot, some 12 MiB for a full store of the default size.
pub const READERS_MAX: usize = 8;

/// Why an entry left the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// There was no room for it.
    Size,
    /// Its life, and the time for which stale ones are kept, was over.
    Expired,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// An entry is served from now on.
    Insert(Key, Entry),
    /// An entry is gone.
    Evict(Key, Cause),
    /// A purge was applied.
    Purge(Arc<Purge>),
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// Rises by one with each.
    pub sequence: u64,
    /// What happened.
    pub what: What,
}

/// Where it is told.
#[derive(Debug)]
pub struct Updates {
    updates: broadcast::Sender<Arc<Update>>,
    /// The number of the last one. Held while it is sent, so that they arrive in their order.
    last: Mutex<u64>,
    places: Arc<Semaphore>,
    end: CancellationToken,
}

impl Default for Updates {
    fn default() -> Self {
        Self {
            updates: broadcast::Sender::new(UPDATES_BEHIND),
            last: Mutex::default(),
            places: Arc::new(Semaphore::new(READERS_MAX)),
            end: CancellationToken::new(),
        }
    }
}

impl Updates {
    /// Tells the readers. Without any it costs an atomic load, and `what` is not asked.
    pub fn tell(&self, what: impl FnOnce() -> What) {
        if self.places.available_permits() == READERS_MAX {
            return;
        }
        let what = what();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last += 1;
        // Nobody reads any more: nobody misses it.
        let _ = self.updates.send(Arc::new(Update { sequence: *last, what }));
    }

    /// A reader of what happens from now on; none when there are [`READERS_MAX`].
    pub fn follow(&self) -> Option<Reader> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        Some(Reader { updates: self.updates.subscribe(), seen: *last, end: self.end.clone(), _place: place })
    }

    /// Nothing is told any more: the agent ends.
    pub fn end(&self) {
        self.end.cancel();
    }
}

/// Somebody who follows.
#[derive(Debug)]
pub struct Reader {
    updates: broadcast::Receiver<Arc<Update>>,
    seen: u64,
    end: CancellationToken,
    _place: OwnedSemaphorePermit,
}

/// What a reader finds next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// The next thing that happened.
    Update(Arc<Update>),
    /// The reader lagged: so many updates are lost.
    Missed(u64),
}

impl Reader {
    /// The number of the last update that was read or lost; at first, of the last one before this reader came.
    pub const fn seen(&self) -> u64 {
        self.seen
    }

    /// Cancelled when the agent ends.
    pub const fn end(&self) -> &CancellationToken {
        &self.end
    }

    /// What happens next. Nothing when the agent has ended.
    pub async fn next(&mut self) -> Option<Next> {
        match self.updates.recv().await {
            Ok(update) => {
                self.seen = update.sequence;
                Some(Next::Update(update))
            }
            Err(RecvError::Lagged(missed)) => {
                self.seen += missed;
                Some(Next::Missed(missed))
            }
            Err(RecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::cell::Cell;

    use heimdall_shared::key::Flags;

    use super::*;

    fn evict() -> What {
        What::Evict(Key::new(b"\x01a\x00", 1, 1, Flags::default(), "").unwrap(), Cause::Size)
    }

    async fn sequence(reader: &mut Reader) -> u64 {
        match reader.next().await.unwrap() {
            Next::Update(update) => update.sequence,
            Next::Missed(missed) => panic!("{missed} missed"),
        }
    }

    #[tokio::test]
    async fn nothing_is_made_for_nobody_and_each_reader_gets_all_from_when_it_came() {
        let (updates, asked) = (Updates::default(), Cell::new(0));
        let tell = || {
            updates.tell(|| {
                asked.set(asked.get() + 1);
                evict()
            });
        };
        tell();
        assert_eq!(asked.get(), 0);
        let mut first = updates.follow().unwrap();
        tell();
        let mut second = updates.follow().unwrap();
        assert_eq!((first.seen(), second.seen()), (0, 1));
        tell();
        assert_eq!(asked.get(), 2, "each is made once for all readers");
        assert_eq!((sequence(&mut first).await, sequence(&mut first).await), (1, 2));
        assert_eq!(sequence(&mut second).await, 2);
        drop((first, second));
        tell();
        assert_eq!(asked.get(), 2);
    }

    #[tokio::test]
    async fn a_reader_that_lags_is_told_how_much_it_missed_and_goes_on_behind_it() {
        let updates = Updates::default();
        let mut reader = updates.follow().unwrap();
        updates.tell(evict);
        assert_eq!(sequence(&mut reader).await, 1);
        for _ in 0..UPDATES_BEHIND + 5 {
            updates.tell(evict);
        }
        assert_eq!(reader.next().await, Some(Next::Missed(5)));
        assert_eq!(reader.seen(), 6);
        for expected in 7..7 + UPDATES_BEHIND as u64 {
            assert_eq!(sequence(&mut reader).await, expected);
        }
        drop(updates);
        assert_eq!(reader.next().await, None);
    }

    #[test]
    fn so_many_may_follow_at_a_time() {
        let updates = Updates::default();
        let mut readers: Vec<_> = (0..READERS_MAX).map(|_| updates.follow().unwrap()).collect();
        assert!(updates.follow().is_none());
        readers.pop();
        assert!(updates.follow().is_some());
    }
}
