//! What is asked: small enough to be copied, and turned into a question when one is needed.

use crate::wire::{Name, Question};

/// Namespaces of the cluster.
pub(super) const NAMESPACES: u8 = 20;

/// Types that are asked for.
pub(super) mod qtype {
    pub(in crate::bench::workload) const A: u16 = 1;
    pub(in crate::bench::workload) const MX: u16 = 15;
    pub(in crate::bench::workload) const TXT: u16 = 16;
    pub(in crate::bench::workload) const AAAA: u16 = 28;
    pub(in crate::bench::workload) const HTTPS: u16 = 65;
}

/// A question with the life that its answer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Subject {
    /// The name.
    pub name: Named,
    /// The type.
    pub qtype: u16,
    /// TTL in seconds that the origin gives, the negative one where there is nothing.
    pub ttl: u32,
}

/// Names by their kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Named {
    /// One that exists, by its popularity.
    Ranked(u32),
    /// One that does not exist, by its popularity.
    Missing(u32),
    /// One that nobody asks for again.
    Once(u64),
    /// A service of the cluster, with an IPv4 address alone.
    Service(u16),
    /// A name outside of the cluster.
    External(u16),
    /// An external name under a search suffix, where there is nothing.
    Searched {
        /// Number of the external name.
        external: u16,
        /// Number of the namespace, where the suffix has one.
        namespace: u8,
        /// Number of the suffix.
        suffix: u8,
    },
    /// One that a run asks for the first time.
    New(u64),
    /// The name of a storm.
    Cold(u64),
}

impl Subject {
    /// The question. Its name says what the answer is ([`super::Truth::of`]).
    pub fn question(&self) -> Question {
        let ttl = self.ttl;
        let text = match self.name {
            Named::Ranked(rank) => format!("n{rank}.ttl-{ttl}.example."),
            Named::Missing(rank) => format!("x{rank}.neg-{ttl}.example."),
            Named::Once(serial) => format!("once{serial}.ttl-{ttl}.example."),
            Named::Service(number) => {
                format!("svc{number}.ns{}.svc.v4.ttl-{ttl}.local.", number % u16::from(NAMESPACES))
            }
            Named::External(number) => format!("ext{number}.ttl-{ttl}.example."),
            Named::Searched { external, namespace, suffix } => {
                let suffix = match suffix {
                    0 => format!("ns{namespace}.svc.cluster.neg-{ttl}.local."),
                    1 => format!("svc.cluster.neg-{ttl}.local."),
                    2 => format!("cluster.neg-{ttl}.local."),
                    _ => format!("zone.neg-{ttl}.internal."),
                };
                format!("ext{external}.example.{suffix}")
            }
            Named::New(number) => format!("new{number}.ttl-{ttl}.example."),
            Named::Cold(number) => format!("cold{number}.ttl-{ttl}.example."),
        };
        let name = Name::parse(&text).expect("a name of short labels must parse");
        Question { name, qtype: self.qtype, qclass: 1 }
    }
}
