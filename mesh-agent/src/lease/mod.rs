//! Who may fetch which key now, and who waits for it: the granter's side of a miss.
//!
//! Pure: every call takes values and `now` and appends what is to be sent to a list of [`Action`]s. One task owns the
//! [`Table`]; it asks the store before it calls [`Table::ask`], so an asker of a key with a live entry never comes here.
//!
//! A lease is about efficiency, not safety: in doubt somebody asks the upstream twice, rather than nobody.

mod deadlines;
mod episode;
mod failures;
mod table;
mod waits;

use std::sync::Arc;
use std::time::Duration;

use heimdall_shared::clock::Moment;
use heimdall_shared::key::Key;
use heimdall_shared::link::Reply;
use heimdall_shared::token::Token;
use heimdall_shared::trace::TraceContext;

pub use self::table::Table;

/// Names one connection of this process: a peer's link, a stream of the own dns-server, a unary call.
pub type LinkId = u64;

/// Who asks for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asker {
    /// The connection to which the answer goes.
    pub link: LinkId,
    /// The request's id there.
    pub request: u64,
    /// The replica on whose behalf it is asked.
    pub member: Arc<str>,
    /// That replica's incarnation.
    pub incarnation: u64,
    /// The dns-server's stream at that replica: a lease ends with it.
    pub stream: u64,
    /// The asker's span; those who wait for it link to it.
    pub trace: Option<TraceContext>,
}

/// Whose word counts for a lease: the replica, in the incarnation to which the lease was granted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Holder {
    /// The member.
    pub member: Arc<str>,
    /// Its incarnation.
    pub incarnation: u64,
}

/// What an asker who meets somebody else's lease wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    /// To wait for it in the same step.
    Now,
    /// To be told of it: it waits in a second step, if at all.
    Later,
    /// To wait for it, and no lease when there is none.
    Only,
}

/// Times and bounds of a [`Table`].
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A lease ends after this: longer than the dns-server's budget of 4 s for a query, so that a holder that still works is
    /// never overtaken.
    pub lease: Duration,
    /// How often a watched holder ticks. Ticks are passed on as they come, but not more than twice as often as this.
    pub tick: Duration,
    /// A takeover must be ticked within this, or it goes on to the next: the longest peer budget, so that the others who
    /// wait still have some of their 100 ms of silence left.
    pub confirm: Duration,
    /// Requests that may wait for one key; a replica normally has one per process.
    pub waiters_per_key: usize,
    /// Requests that may wait over one connection: as many as may be in flight on a link.
    pub waiters_per_link: usize,
    /// Leases that one replica may hold at a time: what a replica with 20,000 misses per second and an upstream of
    /// 50 ms needs. More is a replica that takes leases without working.
    pub leases_per_peer: usize,
    /// Leases at a time in all. At about 1 KiB each with what waits for them they take 16 MiB at most.
    pub leases_total: usize,
    /// Shared failures remembered at a time, about 500 bytes each.
    pub failures_total: usize,
    /// How long the result of an ended lease is kept for a unary asker that was told to wait and has not called yet.
    pub result_kept: Duration,
    /// Results kept at a time: unary calls come from people and tests.
    pub results_total: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(5),
            tick: Duration::from_millis(25),
            confirm: Duration::from_millis(80),
            waiters_per_key: 256,
            waiters_per_link: 1_024,
            leases_per_peer: 1_024,
            leases_total: 16_384,
            failures_total: 16_384,
            result_kept: Duration::from_millis(100),
            results_total: 256,
        }
    }
}

/// What the table wants to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// An answer to a request. A lookup that joined gets [`Reply::Held`] and later exactly one final reply.
    Reply {
        /// The connection that asked.
        link: LinkId,
        /// The request's id there.
        request: u64,
        /// What it is told.
        reply: Reply,
    },
    /// Tells a holder that somebody waits: it ticks from now on.
    Watch {
        /// The holder.
        holder: Holder,
        /// Its dns-server's stream.
        stream: u64,
        /// The lease.
        token: Token,
    },
    /// Signs of work for those who wait over a connection, by the tokens that they were told.
    Tick {
        /// The connection.
        link: LinkId,
        /// What is being worked on.
        tokens: Vec<Token>,
    },
}

/// Whether a token is worth something in the hands of who shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It names a live lease of theirs.
    Live,
    /// It names no live lease: it ended, or was never granted here. Not a mistake: results come late.
    Ended,
    /// It names somebody else's lease. Nothing was changed.
    NotTheirs,
}

/// What became of a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Whether it came under a live lease of its sender: otherwise it is an ordinary write.
    pub token_live: bool,
    /// How many requests got the entry.
    pub woken: usize,
}

/// A lease, as shown to people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseInfo {
    /// What is being fetched.
    pub key: Key,
    /// The lease's name.
    pub token: Token,
    /// Who fetches it.
    pub holder: Holder,
    /// Its dns-server's stream.
    pub stream: u64,
    /// When it was granted.
    pub granted: Moment,
    /// When it ends at the latest.
    pub expires: Moment,
    /// Whether its first attempt ended without an answer.
    pub struggling: bool,
    /// Requests that wait for the key.
    pub waiters: usize,
}

/// What happened since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Leases granted to who asked first, takeovers and second leases not included.
    pub granted: u64,
    /// Askers that were told of somebody else's lease.
    pub held: u64,
    /// Leases passed on to a waiter.
    pub takeovers: u64,
    /// Second leases, beside one whose holder struggles.
    pub second_leases: u64,
    /// Takeovers that were not ticked in time.
    pub unconfirmed: u64,
    /// Leases that ended with a result.
    pub published: u64,
    /// Leases that ended with an upstream's own failure.
    pub failed_shared: u64,
    /// Leases whose holder's own attempts failed.
    pub failed_local: u64,
    /// Leases given back unused.
    pub released: u64,
    /// Leases that reached their end without a word.
    pub timeouts: u64,
    /// Leases whose holder went away.
    pub orphaned: u64,
    /// Requests answered with a result that they waited for.
    pub woken: u64,
    /// Requests answered from a remembered failure.
    pub failures_served: u64,
    /// Requests sent on without a lease because a bound was reached.
    pub proceed_by_limit: u64,
    /// Waiters sent on without a lease because every replica among them had failed.
    pub proceed_none_left: u64,
    /// Requests that stopped waiting: cancelled, or their connection went away.
    pub freed: u64,
    /// Words about a lease from somebody who does not hold it.
    pub refused: u64,
    /// Requests with the id of one that still waits; ignored.
    pub duplicates: u64,
    /// Failures and results not remembered because their table was full.
    pub not_kept: u64,
    /// Leases under which something was fetched that was purged meanwhile.
    pub purged: u64,
    /// Times that a member's grants were stopped since it let leases run out.
    pub hoarders: u64,
}

/// What the table holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Live leases.
    pub leases: usize,
    /// Requests that wait.
    pub waiters: usize,
    /// Shared failures remembered.
    pub failures: usize,
    /// Results kept for unary askers.
    pub results: usize,
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
