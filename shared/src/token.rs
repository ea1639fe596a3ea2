//! The name of a lease.

use std::fmt;
use std::sync::Arc;

/// Names one lease. Opaque to everybody but its granter, who compares it for equality: there is no order of tokens and
/// no global epoch, so a token says nothing about another granter's or another incarnation's leases.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    /// The member that granted the lease, and to which the result is published.
    pub granter: Arc<str>,
    /// The granter's incarnation: a random number drawn when it started.
    pub incarnation: u64,
    /// The granter's own counter.
    pub counter: u64,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:016x}/{}", self.granter, self.incarnation, self.counter)
    }
}
