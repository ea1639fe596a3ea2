//! What is said on a session stream, in the types of the rest of the code.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use super::{Lane, PROTOCOL_VERSION};
use crate::clock::Moment;
use crate::entry::Entry;
use crate::key::Key;
use crate::purge::{Position, Purges};
use crate::token::Token;
use crate::trace::TraceContext;

/// One message. The answer to a request carries the request's id.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// First message of either side.
    Hello(Hello),
    /// Answered by a pong with the same nonce.
    Ping {
        /// Chosen by the sender.
        nonce: u64,
    },
    /// Answers a ping.
    Pong {
        /// That of the ping.
        nonce: u64,
    },
    /// Asks for an answer or for the right to fetch it.
    Lookup {
        /// Request id.
        id: u64,
        /// What is asked.
        lookup: Lookup,
    },
    /// Joins the wait for a lease that an earlier lookup met.
    Wait {
        /// Request id.
        id: u64,
        /// What is waited for.
        wait: Wait,
    },
    /// Answers a lookup, a wait or a publish; a lookup may get several, the last one final.
    Reply {
        /// That of the request.
        id: u64,
        /// The answer.
        reply: Reply,
    },
    /// The asker needs no answer any more.
    Cancel {
        /// That of the request.
        id: u64,
    },
    /// An upstream's answer for the granter or owner; with an id the taker says what became of it.
    Publish {
        /// Request id, 0 when no reply is wanted.
        id: u64,
        /// What is published.
        publish: Publish,
    },
    /// The holder could not get an answer.
    Fail {
        /// The lease.
        token: Token,
        /// Whose failure it was.
        kind: FailureKind,
    },
    /// The lease goes back unused.
    Release {
        /// The lease.
        token: Token,
    },
    /// Leases at work: holder to granter, granter to waiters.
    Tick {
        /// Leases that are being worked on.
        working: Vec<Token>,
        /// Those of them whose first attempt ended without an answer.
        struggling: Vec<Token>,
    },
    /// Somebody waits for this lease: its holder ticks from now on.
    Watch {
        /// The lease.
        token: Token,
    },
    /// A copy from one member of a key's set for another.
    Copy {
        /// The key.
        key: Key,
        /// The entry.
        entry: Entry,
        /// The write that waits for a receipt, by the sender's number.
        write: Option<NonZeroU64>,
    },
    /// What became of a copy whose sender wanted to know.
    CopyReceipt {
        /// The number in the copy.
        write: NonZeroU64,
        /// Whether the receiver has that entry or a younger one.
        held: bool,
    },
    /// Asks a dns-server for an upstream's answer to compare a peer's with, or a peer who its answer came from.
    Check {
        /// Request id.
        id: u64,
        /// What is checked.
        key: Key,
    },
    /// A dns-server's stream at the sender closed.
    StreamGone {
        /// The stream's number at the sender.
        stream: u64,
    },
    /// The sender is shutting down.
    Leaving,
    /// The receiver fetches what it would keep without the sender.
    HandOver,
    /// Answers a hand-over.
    TakenOver {
        /// Entries that came.
        entries: u64,
        /// Those of them that were kept.
        kept: u64,
        /// Whether all came that were asked for.
        complete: bool,
    },
    /// How the sender is now.
    NodeState(NodeState),
    /// What the sender has purged.
    Purges(Purges),
    /// The sender's caches, and those of its dns-server, are emptied of what it had purged at that position of its.
    PurgesDone {
        /// The sender's position.
        position: Position,
    },
    /// Whether none of the sending dns-server's upstreams answers.
    UpstreamState {
        /// None answered the last queries.
        failing: bool,
    },
}

/// How a member is, as it says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeState {
    /// In one word.
    pub condition: Condition,
    /// Why it is degraded, each reason once.
    pub reasons: Vec<DegradedReason>,
}

impl NodeState {
    /// In that condition, for no reason that needs to be named.
    pub const fn of(condition: Condition) -> Self {
        Self { condition, reasons: Vec::new() }
    }
}

/// A member's condition. Its keys stay with it in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Condition {
    /// It does not have its share of the entries yet.
    Starting,
    /// Nothing is wrong.
    Healthy,
    /// It works, and somebody should look.
    Degraded,
    /// It shuts down.
    Leaving,
}

impl Condition {
    /// In one word, as metrics show it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Leaving => "leaving",
        }
    }
}

/// What is wrong with a degraded member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DegradedReason {
    /// Its memory is nearly at its limit.
    Memory,
    /// It is not given the processor when it needs it.
    Cpu,
    /// Its store drops entries before their time.
    StoreFull,
    /// None of its upstreams answers.
    Upstreams,
}

impl DegradedReason {
    /// In one word, as logs and metrics show it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::StoreFull => "store_full",
            Self::Upstreams => "upstreams",
        }
    }
}

/// Who speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Version of the session protocol.
    pub version: u32,
    /// Member name of the sender.
    pub name: Arc<str>,
    /// Random number drawn when the sender started.
    pub incarnation: u64,
    /// Digest of the sender's view; 0 from a dns-server.
    pub view_digest: u64,
    /// Where the sender can be dialled, `host:port`.
    pub advertise: Option<Arc<str>>,
    /// How the sender is; a dns-server and an older agent do not say.
    pub state: Option<NodeState>,
}

impl Hello {
    /// That of somebody who is no agent with a view: a dns-server's stream.
    pub const fn of(name: Arc<str>, incarnation: u64) -> Self {
        Self { version: PROTOCOL_VERSION, name, incarnation, view_digest: 0, advertise: None, state: None }
    }
}

/// A lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// What is asked.
    pub key: Key,
    /// What is left of the asker's time.
    pub deadline: Duration,
    /// Members before the receiver in the key's order that the asker could not use.
    pub skipped: Vec<Arc<str>>,
    /// The asking stream at the sender; its leases end with it.
    pub stream: u64,
    /// The asker's span.
    pub trace: Option<TraceContext>,
    /// What the asker wants when there is no live entry.
    pub mode: LookupMode,
}

/// What the asker of a key wants when there is no live entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookupMode {
    /// The lease, or to join the wait for its result: the data path.
    Join,
    /// The lease, or the token of the one that somebody else holds: the unary call.
    Acquire,
    /// Nothing; `Proceed` then means that there is no entry.
    Peek,
    /// To join the wait when somebody holds a lease of the receiver's, and never a lease: `Proceed` when nobody does.
    JoinOnly,
    /// Nothing, but an entry that died a while ago is welcome too.
    Stale {
        /// How long ago at most.
        within: Duration,
    },
    /// An entry younger than the one that the asker has; else as [`LookupMode::Join`], though an entry still lives.
    Refresh {
        /// When the asker's was born.
        held: Moment,
    },
}

/// Joins the wait for a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// What is waited for.
    pub key: Key,
    /// The lease.
    pub token: Token,
    /// The waiting stream at the sender.
    pub stream: u64,
    /// The waiter's span.
    pub trace: Option<TraceContext>,
}

/// An upstream's answer on its way to the granter or owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// The key.
    pub key: Key,
    /// The answer.
    pub entry: Entry,
    /// The lease under which it was fetched.
    pub token: Option<Token>,
    /// Copies that must exist before it is answered; nothing means the default of who takes it first.
    pub level: Option<WriteLevel>,
}

/// When the publisher of an answer is told that it was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WriteLevel {
    /// When the owner has it.
    Eventual,
    /// When more than half of the configured copies exist.
    Quorum,
    /// When all configured copies exist.
    Strong,
}

impl WriteLevel {
    /// Its name, as options and metrics have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Eventual => "eventual",
            Self::Quorum => "quorum",
            Self::Strong => "strong",
        }
    }

    /// The level of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Eventual, Self::Quorum, Self::Strong].into_iter().find(|level| level.as_str() == name)
    }

    /// Copies that it asks for, the owner's included, of the configured `replication_factor` and never of the members that
    /// happen to answer.
    pub const fn copies(self, replication_factor: usize) -> usize {
        match self {
            Self::Eventual => 1,
            Self::Quorum => replication_factor / 2 + 1,
            Self::Strong => replication_factor,
        }
    }
}

/// Answers to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Another reply follows.
    Working,
    /// The answer.
    Entry(Entry),
    /// The upstreams themselves failed a moment ago (RFC 9520).
    Failure {
        /// Do not ask again for this long.
        remaining: Duration,
    },
    /// The lease is the asker's.
    Granted {
        /// Its name.
        token: Token,
        /// The asker inherits it after waiting, and confirms with a tick at once.
        takeover: bool,
        /// This member is asked before the upstream, by the asker's agent: a dns-server never sees it.
        ask_first: Option<Arc<str>>,
    },
    /// Somebody else holds the lease.
    Held {
        /// Its name.
        token: Token,
        /// The holder's span.
        holder: Option<TraceContext>,
    },
    /// No lease, just ask the upstream.
    Proceed,
    /// Ask this member instead.
    Elsewhere(Arc<str>),
    /// A publish was taken. Fewer copies than needed: its level was not reached.
    Stored {
        /// Copies that are known to exist now, the owner's included.
        copies: u32,
        /// Copies that the write level asked for.
        needed: u32,
    },
    /// A publish was not taken.
    Refused(String),
    /// An entry that is dead; for one client at a time, never to be kept as live.
    Stale(Entry),
    /// What came of a check.
    Checked {
        /// What an upstream says, from a dns-server.
        entry: Option<Entry>,
        /// Whose answer it was, from a peer.
        source: Option<Arc<str>>,
    },
}

impl LookupMode {
    /// Whether the asker only looks, and takes no lease.
    pub const fn only_looks(self) -> bool {
        matches!(self, Self::Peek | Self::Stale { .. })
    }
}

impl Reply {
    /// Its kind in one word, as spans show it.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Working => "working",
            Self::Entry(_) => "entry",
            Self::Failure { .. } => "failure",
            Self::Granted { .. } => "granted",
            Self::Held { .. } => "held",
            Self::Proceed => "proceed",
            Self::Elsewhere(_) => "elsewhere",
            Self::Stored { .. } => "stored",
            Self::Refused(_) => "refused",
            Self::Stale(_) => "stale",
            Self::Checked { .. } => "checked",
        }
    }

    /// Whether no other reply follows for a lookup that joined.
    pub const fn is_final(&self) -> bool {
        !matches!(self, Self::Working | Self::Held { .. })
    }
}

/// Whose failure ended a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// Every attempt ended in an upstream's own SERVFAIL: true for everybody.
    Shared,
    /// Anything else: it may be this replica's network.
    Local,
}

impl Message {
    /// The entry in the message.
    pub const fn entry_mut(&mut self) -> Option<&mut Entry> {
        match self {
            Self::Reply {
                reply: Reply::Entry(entry) | Reply::Stale(entry) | Reply::Checked { entry: Some(entry), .. },
                ..
            }
            | Self::Copy { entry, .. } => Some(entry),
            Self::Publish { publish, .. } => Some(&mut publish.entry),
            _ => None,
        }
    }

    /// The lane in which the message waits. What ends somebody's wait goes first, copies go last.
    pub(super) const fn lane(&self) -> Lane {
        match self {
            Self::Lookup { .. } | Self::Wait { .. } | Self::Check { .. } => Lane::Requests,
            Self::Copy { .. } => Lane::Copies,
            _ => Lane::Results,
        }
    }

    /// Roughly what the message takes in memory and on the wire, bytes.
    pub(super) fn weight(&self) -> usize {
        /// Framing, ids, a token.
        const FIXED: usize = 64;
        FIXED
            + match self {
                Self::Lookup { lookup, .. } => {
                    lookup.key.as_bytes().len() + lookup.skipped.iter().map(|name| name.len()).sum::<usize>()
                }
                Self::Wait { wait, .. } => wait.key.as_bytes().len(),
                Self::Check { key, .. } => key.as_bytes().len(),
                Self::Reply {
                    reply: Reply::Entry(entry) | Reply::Stale(entry) | Reply::Checked { entry: Some(entry), .. },
                    ..
                } => entry.packet.len(),
                Self::Reply { reply: Reply::Refused(reason), .. } => reason.len(),
                Self::Publish { publish, .. } => publish.key.as_bytes().len() + publish.entry.packet.len(),
                Self::Copy { key, entry, .. } => key.as_bytes().len() + entry.packet.len(),
                Self::Tick { working, struggling } => FIXED * (working.len() + struggling.len()),
                Self::Purges(purges) => purges.weight(),
                _ => 0,
            }
    }
}
