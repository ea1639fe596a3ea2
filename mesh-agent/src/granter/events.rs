//! What the granter is told, and the queue in which that waits.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use heimdall_shared::clock::Moment;
use heimdall_shared::entry::Entry;
use heimdall_shared::key::Key;
use heimdall_shared::link::{FailureKind, WriteLevel};
use heimdall_shared::purge::Purge;
use heimdall_shared::telemetry::Span;
use heimdall_shared::token::Token;
use tokio::sync::{mpsc, oneshot};

use crate::lease::{Asker, Holder, Join, LinkId};
use crate::lookup::ReplyTo;

/// Events that may wait for the granter: a burst of as many requests as eight full links carry. Beyond it a lookup goes on
/// without a lease.
const EVENTS: usize = 8_192;

/// What happens to leases.
#[derive(Debug)]
pub enum Event {
    /// Somebody asks for a key that he found no entry for.
    Ask(Box<Ask>),
    /// Somebody who met a lease in an earlier call waits for its result.
    Wait {
        /// What is waited for.
        key: Key,
        /// The lease.
        token: Token,
        /// Who waits.
        asker: Asker,
    },
    /// A holder is at work.
    Tick {
        /// Who says so.
        from: Holder,
        /// Its leases.
        working: Vec<Token>,
        /// Those whose first attempt ended without an answer.
        struggling: Vec<Token>,
    },
    /// An answer.
    Publish(Publication),
    /// A holder has none.
    Fail {
        /// Its lease.
        token: Token,
        /// Whose failure it was.
        kind: FailureKind,
        /// Who says so.
        from: Holder,
    },
    /// A lease goes back.
    Release {
        /// The lease.
        token: Token,
        /// Who gives it back.
        from: Holder,
        /// Hears whether it was the sender's and still running.
        answer: Option<oneshot::Sender<bool>>,
    },
    /// An asker has its answer from elsewhere.
    Cancel {
        /// The connection it asked over.
        link: LinkId,
        /// Its request there.
        request: u64,
    },
    /// A dns-server's stream ended.
    StreamGone {
        /// The member whose stream it was.
        member: Arc<str>,
        /// Its incarnation.
        incarnation: u64,
        /// The stream.
        stream: u64,
    },
    /// The last link of an incarnation ended.
    MemberGone {
        /// The member.
        member: Arc<str>,
        /// The incarnation.
        incarnation: u64,
    },
    /// A member says what became of a copy.
    Receipt {
        /// Who says so.
        member: Arc<str>,
        /// The write, by its number here.
        write: NonZeroU64,
        /// Whether the member has the entry or a younger one.
        held: bool,
    },
    /// Something was purged.
    Purged(Arc<Purge>),
    /// A connection ended: nobody can be answered over it.
    LinkClosed {
        /// The connection.
        link: LinkId,
    },
}

/// A request for the right to fetch a key.
#[derive(Debug)]
pub struct Ask {
    /// The key.
    pub key: Key,
    /// Who asks.
    pub asker: Asker,
    /// How far on the asker's clock of an entry may be when an answer arrives there.
    pub margin: Duration,
    /// What it wants when somebody else holds the lease.
    pub join: Join,
    /// When the entry was born that it has and wants a younger one for, if it does.
    pub refresh: Option<Moment>,
    /// The span that ends when the table has decided.
    pub span: Option<Span>,
}

/// An answer from an upstream, checked against its key.
#[derive(Debug)]
pub struct Publication {
    /// The key.
    pub key: Key,
    /// The answer.
    pub entry: Entry,
    /// The lease under which it was fetched.
    pub token: Option<Token>,
    /// Who publishes.
    pub from: Holder,
    /// Copies that must exist before that is said; nothing means this agent's default.
    pub level: Option<WriteLevel>,
    /// Who wants to know what became of it.
    pub reply_to: Option<ReplyTo>,
}

/// The granter has no room for another event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Tells the granter what happens.
#[derive(Clone, Debug)]
pub struct Handle(mpsc::Sender<Event>);

impl Handle {
    /// Tells it if it has room; never waits.
    ///
    /// # Errors
    /// [`Full`]: the caller goes on without it and counts that.
    pub fn send(&self, event: Event) -> Result<(), Full> {
        self.0.try_send(event).map_err(|_| Full)
    }

    /// Tells it what it must not miss, waiting for room. The granter itself waits for nobody.
    pub async fn must_hear(&self, event: Event) {
        // A closed channel means that the agent is going down, and all leases with it.
        let _ = self.0.send(event).await;
    }
}

/// A handle, and the queue for the task.
pub fn channel() -> (Handle, mpsc::Receiver<Event>) {
    let (sender, events) = mpsc::channel(EVENTS);
    (Handle(sender), events)
}
