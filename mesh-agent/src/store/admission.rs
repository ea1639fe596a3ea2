//! Which of two entries for a key stays: pure rules.

use heimdall_shared::clock::Moment;
use heimdall_shared::entry::Entry;

use super::{Held, Origin};

/// How an entry came in; whether its sender may send it that way is settled before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum How {
    /// From this replica's own dns-server.
    Local,
    /// From a peer, under this granter's live token.
    PublishWithToken,
    /// From a peer, without one.
    PublishWithoutToken,
    /// From a peer, as a copy or when asked.
    Copy,
}

/// What to do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Decision {
    /// It is served from now on.
    Store,
    /// What there is stays, the newcomer is dropped, whichever is younger.
    KeepExisting,
    /// What there is stays: it is at least as young.
    Older,
    /// What there is stays: it is the same answer, and its sender now claims a fetch that lies before the moment at which
    /// it had sent it as an older one. An entry that is sent again only gets older.
    Rejuvenated,
    /// It waits behind the entry that this replica fetched, and takes over when that one is over.
    Behind,
    /// A purge overtook it: it is stored nowhere.
    Overtaken,
    /// It has no whole second left: it goes to those who wait for it, and is stored nowhere.
    DeadOnArrival,
}

impl Decision {
    /// Whether the entry is kept, in front or behind.
    pub const fn is_kept(self) -> bool {
        matches!(self, Self::Store | Self::Behind)
    }

    /// Whether this replica has the entry now, or one at least as young.
    pub const fn has_it(self) -> bool {
        matches!(self, Self::Store | Self::Behind | Self::Older)
    }
}

/// Decides about `incoming`, which came from `from`, beside `existing`.
///
/// Of two entries the younger wins, with two exceptions. An entry that this replica fetched itself is never replaced by a
/// peer's while it lives. And without a token a peer stores only where there is no live entry: so a member that lies
/// can fill what is empty, but not change what is there.
pub fn admit(existing: Option<&Held>, incoming: &Entry, from: &Origin, how: How, now: Moment) -> Decision {
    if !incoming.is_live(now) {
        return Decision::DeadOnArrival;
    }
    let Some(held) = existing else { return Decision::Store };
    let Some(served) = held.live(now) else { return Decision::Store };
    let is_local_served = served.origin == Origin::Local;
    match how {
        How::PublishWithoutToken => Decision::KeepExisting,
        How::Copy if served.is_contradicted_by(incoming, from) => Decision::Rejuvenated,
        How::PublishWithToken | How::Copy if is_local_served => {
            // Whatever waits already: only a younger one takes its place. One that would be over before its turn never waits.
            let rival = held.behind.as_ref().map_or(&served.entry, |behind| &behind.entry);
            if !(incoming.is_younger_than(rival) && incoming.is_younger_than(&served.entry)) {
                Decision::Older
            } else if incoming.remaining(now) > served.entry.remaining(now) {
                Decision::Behind
            } else {
                Decision::KeepExisting
            }
        }
        How::Local | How::PublishWithToken | How::Copy => {
            if incoming.is_younger_than(&served.entry) {
                Decision::Store
            } else {
                Decision::Older
            }
        }
    }
}
