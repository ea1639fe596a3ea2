//! What is kept for a key: an answer, where it came from, and at times a younger one that waits behind it.

use std::sync::Arc;
use std::time::Duration;

use heimdall_shared::clock::Moment;
use heimdall_shared::entry::Entry;
use heimdall_shared::purge::Position;

/// Where an entry came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This replica's own dns-server fetched it.
    Local,
    /// That member fetched it and published it here.
    Publisher(Arc<str>),
    /// That member sent a copy of what it has, or gave it when asked.
    Replica(Arc<str>),
}

impl Origin {
    /// The peer that it came from, if it did.
    pub const fn peer(&self) -> Option<&Arc<str>> {
        match self {
            Self::Local => None,
            Self::Publisher(from) | Self::Replica(from) => Some(from),
        }
    }
}

/// An entry with its origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sourced {
    /// The entry.
    pub entry: Entry,
    /// Where it came from.
    pub origin: Origin,
    /// When it came.
    pub taken: Moment,
}

impl Sourced {
    /// Whether the same sender now dates the same answer's fetch before the moment at which it had sent it as an older one.
    /// A later fetch may well bring the same octets; one that lies before that moment would have been sent then.
    pub(super) fn is_contradicted_by(&self, incoming: &Entry, from: &Origin) -> bool {
        let is_same = self.origin == *from && self.entry.packet == incoming.packet;
        is_same && incoming.is_younger_than(&self.entry) && incoming.born < self.taken
    }
}

/// What is kept for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// What is served.
    pub front: Sourced,
    /// A younger entry of a peer's, which takes over when the front one, fetched by this replica, is over.
    pub behind: Option<Box<Sourced>>,
}

impl Held {
    /// What is to be served at `now`, if anything of it lives.
    pub fn live(&self, now: Moment) -> Option<&Sourced> {
        self.all().find(|sourced| sourced.entry.is_live(now))
    }

    /// The youngest of what lives at `now`, served or waiting.
    pub(super) fn youngest(&self, now: Moment) -> Option<&Sourced> {
        self.all().filter(|sourced| sourced.entry.is_live(now)).max_by_key(|sourced| sourced.entry.born)
    }

    /// The youngest of what died at most `within` before `now`.
    pub(super) fn stale(&self, within: Duration, now: Moment) -> Option<&Sourced> {
        let died_then = |sourced: &&Sourced| sourced.entry.age(now) <= sourced.entry.lifetime.saturating_add(within);
        self.all().filter(died_then).max_by_key(|sourced| sourced.entry.born)
    }

    /// What of it is newer than the purges up to a position.
    pub fn newer_than(&self, purged: Position) -> Newer {
        let is_newer = |sourced: &Sourced| sourced.entry.since >= purged;
        match (is_newer(&self.front), &self.behind) {
            (true, None) => Newer::All,
            (true, Some(behind)) if is_newer(behind) => Newer::All,
            (true, Some(_)) => Newer::Some(Self { front: self.front.clone(), behind: None }),
            (false, Some(behind)) if is_newer(behind) => Newer::Some(Self { front: (**behind).clone(), behind: None }),
            (false, _) => Newer::None,
        }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Sourced> {
        [Some(&self.front), self.behind.as_deref()].into_iter().flatten()
    }

    /// When nothing of it lives any more.
    pub(super) fn end(&self) -> Moment {
        let end = |sourced: &Sourced| sourced.entry.born + sourced.entry.lifetime;
        self.behind.as_deref().map_or(Moment::default(), end).max(end(&self.front))
    }
}

/// What is left of what is kept for a key when purges are taken out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Newer {
    /// All of it.
    All,
    /// This.
    Some(Held),
    /// Nothing.
    None,
}
