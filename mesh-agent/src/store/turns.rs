//! One writer at a time per key, so that what is decided by what is there is still so when it is done.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks; a power of two. A key has one of them, which it shares with others. Writers are the agent's one thread of the data
/// path and now and then a thread that sweeps, so they seldom meet.
const LOCKS: usize = 64;

/// Whose turn it is to write.
#[derive(Debug)]
pub(super) struct Turns([Mutex<()>; LOCKS]);

impl Default for Turns {
    fn default() -> Self {
        Self([const { Mutex::new(()) }; LOCKS])
    }
}

impl Turns {
    /// Waits for the turn to write the key with that hash, which ends with what is returned. Whoever has one takes no other.
    pub(super) fn take(&self, hash: u64) -> MutexGuard<'_, ()> {
        self.0[hash as usize % LOCKS].lock().unwrap_or_else(PoisonError::into_inner)
    }
}
