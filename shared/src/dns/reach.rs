//! Which records of a packet its question leads to. Whatever else a server sends is nobody's business: it is neither kept nor
//! given out, whoever sent it.
//!
//! - Answer: what the question's name owns, and what the names own to which aliases (CNAME, DNAME) lead from there.
//! - Authority: SOA and NS of a zone that may hold one of these names. The types of DNSSEC prove themselves to who asked for them.
//! - Additional: addresses of hosts that a record of the other two sections names.

use std::collections::HashSet;

use super::message::{Malformed, Message, Record, Section, TO_THE_QUESTION};
use super::name::{self, NameBuf};
use super::rdata;
use super::rr::rtype;
use crate::key::Key;

/// Aliases of a packet: several times as many as any resolver follows. More are left out, with what lies behind them.
const ALIASES_MAX: usize = 64;

/// RDATA of a service binding (RFC 9460 2.2) has its target, uncompressed, after a priority of two octets.
const BINDING_TARGET: usize = 2;

/// Where a question leads in one packet.
pub(super) struct Reach<'a> {
    key: &'a Key,
    packet: &'a [u8],
    /// The names to which aliases lead from the question's, in lower case.
    further: Vec<Box<[u8]>>,
    /// Owners of the DNAMEs on the way.
    redirected: Vec<Box<[u8]>>,
    /// Where the first alias stands that is one too many.
    aliases_end: usize,
    /// Names of hosts that may have an address in the additional section.
    hosts: HashSet<Box<[u8]>>,
}

/// One step of the way.
struct Alias {
    owner: Box<[u8]>,
    target: Box<[u8]>,
    /// Whether it is for all names below its owner (DNAME), and not for the owner (CNAME).
    below: bool,
}

impl<'a> Reach<'a> {
    /// Follows the aliases of a message that answers `key`.
    ///
    /// # Errors
    /// A name that is none.
    pub(super) fn of(key: &'a Key, message: &Message<'a>) -> Result<Self, Malformed> {
        let packet = message.packet();
        let mut reach = Self {
            key,
            packet,
            further: Vec::new(),
            redirected: Vec::new(),
            aliases_end: usize::MAX,
            hosts: HashSet::new(),
        };
        let (mut aliases, mut has_hosts) = (Vec::new(), false);
        for record in message.records() {
            let record = record?;
            match (record.section, record.rtype) {
                // What is left must lead where the whole led: so nothing is followed that cannot stay.
                _ if record.class != key.qclass() => {}
                (Section::Answer, rtype::CNAME | rtype::DNAME) if aliases.len() == ALIASES_MAX => {
                    reach.aliases_end = reach.aliases_end.min(record.owner);
                }
                (Section::Answer, rtype::CNAME | rtype::DNAME) => {
                    let (owner, target) = (lower(packet, record.owner)?, lower(packet, record.rdata.start));
                    // One whose target is no name leads nowhere; whether it may stand there is another matter.
                    let below = record.rtype == rtype::DNAME;
                    aliases.extend(target.ok().map(|target| Alias { owner, target, below }));
                }
                (Section::Additional, rtype::A | rtype::AAAA | rtype::RRSIG) => has_hosts = true,
                _ => {}
            }
        }
        if !aliases.is_empty() {
            reach.follow(&aliases);
        }
        if has_hosts {
            reach.find_hosts(message)?;
        }
        Ok(reach)
    }

    /// Whether the question leads to a record of the packet.
    ///
    /// # Errors
    /// A name that is none.
    pub(super) fn covers(&self, record: &Record) -> Result<bool, Malformed> {
        let flags = self.key.flags();
        let proof = matches!(record.rtype, rtype::RRSIG | rtype::NSEC | rtype::NSEC3);
        // RFC 4035 3.2.1: without DO "MUST strip any authenticating DNSSEC RRs", unless they were asked for.
        let asked = flags.dnssec_ok || self.key.qtype() == record.rtype || self.key.qtype() == rtype::ANY;
        // RFC 6891 6.2.6 and 7: OPT is hop by hop.
        if record.rtype == rtype::OPT || record.class != self.key.qclass() || proof && !asked {
            return Ok(false);
        }
        let owner = || lower(self.packet, record.owner);
        Ok(match record.section {
            Section::Answer if self.is_one_too_many(record) => false,
            Section::Answer => self.is_of_the_question(record) || self.is_on_the_way(&owner()?),
            Section::Authority => match record.rtype {
                rtype::SOA | rtype::NS => {
                    let zone = owner()?;
                    self.names().any(|name| name::is_within(name, &zone))
                }
                _ => proof || record.rtype == rtype::DS && flags.dnssec_ok,
            },
            Section::Additional => match record.rtype {
                rtype::A | rtype::AAAA | rtype::RRSIG => self.hosts.contains(&owner()?),
                _ => false,
            },
        })
    }

    fn is_one_too_many(&self, record: &Record) -> bool {
        matches!(record.rtype, rtype::CNAME | rtype::DNAME) && record.owner >= self.aliases_end
    }

    fn is_of_the_question(&self, record: &Record) -> bool {
        self.packet.get(record.owner..).is_some_and(|owner| owner.starts_with(&TO_THE_QUESTION))
    }

    fn is_on_the_way(&self, owner: &[u8]) -> bool {
        self.names().chain(self.redirected.iter().map(|name| &**name)).any(|name| name == owner)
    }

    /// The question's name and those to which aliases lead.
    fn names(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(self.key.name()).chain(self.further.iter().map(|name| &**name))
    }

    /// Walks until nothing new is reached: servers do not all write a chain in its order.
    fn follow(&mut self, aliases: &[Alias]) {
        let mut walked = 0;
        while self.further.len() < ALIASES_MAX {
            let Some(name) = self.names().nth(walked).map(Box::<[u8]>::from) else { break };
            walked += 1;
            for alias in aliases {
                let next = if alias.below { alias.substituted(&name) } else { alias.of(&name) };
                let Some(next) = next else { continue };
                if alias.below && !self.redirected.contains(&alias.owner) {
                    self.redirected.push(alias.owner.clone());
                }
                if !self.names().any(|name| *name == *next) {
                    self.further.push(next);
                }
            }
        }
    }

    /// Notes the names that the records of the first two sections lead to.
    fn find_hosts(&mut self, message: &Message<'_>) -> Result<(), Malformed> {
        let mut hosts: HashSet<Box<[u8]>> = self.names().map(Box::from).collect();
        for record in message.records() {
            let record = record?;
            if record.section == Section::Additional || !self.covers(&record)? {
                continue;
            }
            let mut named = Vec::new();
            rdata::check(self.packet, record.rtype, &record.rdata, |name| named.push(name))?;
            if matches!(record.rtype, rtype::SVCB | rtype::HTTPS) {
                named.push(record.rdata.start + BINDING_TARGET);
            }
            // What is no name there, in RDATA that is opaque to us, names no host.
            hosts.extend(named.into_iter().filter_map(|at| lower(self.packet, at).ok()));
        }
        self.hosts = hosts;
        Ok(())
    }
}

impl Alias {
    /// Where a CNAME leads from `name`.
    fn of(&self, name: &[u8]) -> Option<Box<[u8]>> {
        (*self.owner == *name).then(|| self.target.clone())
    }

    /// Where a DNAME leads from `name` (RFC 6672 2.2): its owner's labels are replaced by the target's.
    fn substituted(&self, name: &[u8]) -> Option<Box<[u8]>> {
        let is_below = *self.owner != *name && name::is_within(name, &self.owner);
        let labels = is_below.then(|| name.get(..name.len() - self.owner.len()))??;
        let whole = [labels, &self.target].concat();
        name::is_wire_name(&whole).then(|| whole.into())
    }
}

/// The name at `at`, expanded and in lower case.
fn lower(packet: &[u8], at: usize) -> Result<Box<[u8]>, Malformed> {
    let (mut name, _): (NameBuf, usize) = name::expand(packet, at).map_err(|error| Malformed::Name(at, error))?;
    name.make_lower_case();
    Ok(name.as_bytes().into())
}

#[cfg(test)]
#[path = "reach_tests.rs"]
mod tests;
