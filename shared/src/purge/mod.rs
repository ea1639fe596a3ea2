//! Purges: what is to be forgotten, and how every replica comes to know of it. Pure but for [`Ledger`].
//!
//! Each process numbers the purges that it has applied: its *position*. It tells each of its links of every purge, with that
//! number, before anything that it says at that position. An entry carries the position up to which it is known to be newer
//! than all purges ([`crate::entry::Entry::since`]); who receives it translates the sender's position into its own
//! ([`Book::vouched`]) and refuses the entry where a purge that covers its key lies beyond. So nothing depends on a clock: an
//! entry is taken only from who had applied, when it fetched or read the entry, every purge of that key that is applied here.

mod book;
mod ledger;
mod log;
mod scope;

use std::sync::Arc;

use bytes::Bytes;

use crate::clock::Moment;
use crate::entry::Entry;
use crate::key::Key;

pub use self::book::{Book, Gap, LinkKind};
pub use self::ledger::Ledger;
pub use self::log::{Log, RECORDS_MAX};
pub use self::scope::Scope;

/// How many purges a process has applied. Means something in that process alone.
pub type Position = u64;

/// Names a purge.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PurgeId {
    /// The member that was told by an operator.
    pub origin: Arc<str>,
    /// Its incarnation.
    pub incarnation: u64,
    /// 1, 2, 3 and so on in that incarnation.
    pub sequence: u64,
}

/// What an operator wants to be forgotten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purge {
    /// Its name.
    pub id: PurgeId,
    /// What it covers.
    pub scope: Scope,
    /// When it began, on this machine's clock, or a moment before that.
    pub issued: Moment,
    /// With [`Scope::Everything`]: the newest purge of each origin that its origin had applied before. They need not be
    /// remembered any more.
    pub folds: Vec<PurgeId>,
    /// With [`Scope::Key`]: what is to be served from then on.
    pub injected: Option<Injected>,
}

/// An operator's own answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injected {
    /// In normal form.
    pub packet: Bytes,
    /// How long it lives, from when the purge began.
    pub lifetime: std::time::Duration,
}

impl Purge {
    /// The operator's entry and its key.
    pub fn entry(&self, since: Position) -> Option<(&Key, Entry)> {
        let (Scope::Key(key), Some(injected)) = (&self.scope, &self.injected) else { return None };
        let entry = Entry { packet: injected.packet.clone(), born: self.issued, lifetime: injected.lifetime, since };
        Some((key, entry))
    }
}

/// A purge with the position at which its sender had applied it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The sender's position right after it.
    pub position: Position,
    /// The purge.
    pub purge: Arc<Purge>,
}

/// What one side of a link says of the purges that it has applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purges {
    /// One more.
    Next(Applied),
    /// A part of all that it remembers; said first on a link.
    Log(Vec<Applied>),
    /// That was all.
    Whole {
        /// The sender's position then.
        position: Position,
        /// The newest purge of each origin that it has applied, those included that need not be remembered any more.
        marks: Vec<PurgeId>,
    },
}

impl Purges {
    /// Roughly what it takes on the wire, bytes.
    pub(crate) fn weight(&self) -> usize {
        /// A purge without what it folds and injects, and a mark.
        const FIXED: usize = 128;
        let of = |applied: &Applied| {
            let purge = &applied.purge;
            FIXED * (1 + purge.folds.len()) + purge.injected.as_ref().map_or(0, |injected| injected.packet.len())
        };
        match self {
            Self::Next(applied) => of(applied),
            Self::Log(part) => part.iter().map(of).sum(),
            Self::Whole { marks, .. } => FIXED * marks.len(),
        }
    }
}

#[cfg(test)]
mod tests;
