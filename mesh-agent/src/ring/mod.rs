//! Who owns which key: rendezvous hashing over the discovered members, tabulated for every slot.
//!
//! The ring is a pure function of the members' names and the replication factor. Whether a member answers changes
//! nothing here: liveness only skips (see [`crate::membership::View`]).

use std::iter;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

/// Version of the placement: what is hashed and how scores are ranked. It is part of the digest, so that agents which
/// place differently notice it.
const HASH_VERSION: u8 = 1;

/// Slots of the key space: the values of [`heimdall_shared::key::Key::slot`].
pub const SLOTS: usize = 1 << 16;

/// Ranks kept per slot behind those of the replicas. Lookups and copies hardly ever look further, and what is kept is held
/// for each of 65,536 slots: with three replicas 256 KiB, however many members there are.
const RANKS_BEHIND: usize = 1;

/// Most members of a ring. A full mesh is sensible up to about a hundred; much more than that is a mistake in discovery.
/// Of more than that, the first by name count, so that all agents leave out the same ones. An index is one octet.
pub const MEMBERS_MAX: usize = u8::MAX as usize + 1;

/// The order of the members for every slot. Immutable; a change of members makes a new one.
#[derive(Debug)]
pub struct Ring {
    /// Sorted by name, without duplicates.
    members: Vec<Arc<str>>,
    replication_factor: usize,
    /// Ranks kept per slot: the replicas and [`RANKS_BEHIND`] more, if there are so many members.
    kept: usize,
    /// `kept` indices into `members` per slot, best first.
    ranks: Box<[u8]>,
    digest: u64,
}

impl Ring {
    /// Ranks `members`, given in any order. A replication factor of 0 counts as 1: the owner.
    pub fn new(members: &[Arc<str>], replication_factor: usize) -> Self {
        let members = canonical(members);
        let replication_factor = replication_factor.max(1);
        let kept = members.len().min(replication_factor.saturating_add(RANKS_BEHIND));
        let digest = digest(&members, replication_factor);
        let ranks = tabulate(&members, kept);
        Self { members, replication_factor, kept, ranks, digest }
    }

    /// All members for `slot`, best first: the owner, the further replicas, then who would follow them.
    pub fn order(&self, slot: u16) -> impl Iterator<Item = &Arc<str>> {
        let kept = self.kept_ranks(slot).iter().map(|&index| &self.members[usize::from(index)]);
        // Ranks beyond the table are computed only for who really looks that far.
        let rest = self.members.len() - self.kept;
        let tail = (rest > 0).then(|| iter::once_with(move || self.rank_all(slot)).flatten().skip(self.kept));
        kept.chain(tail.into_iter().flatten())
    }

    /// The members that keep a copy of the keys of `slot`, owner first.
    pub fn replicas(&self, slot: u16) -> impl Iterator<Item = &Arc<str>> {
        self.order(slot).take(self.replication_factor)
    }

    /// The first in the order of `slot`; none in an empty ring.
    pub fn owner(&self, slot: u16) -> Option<&Arc<str>> {
        self.order(slot).next()
    }

    /// Whether `member` keeps a copy of the keys of `slot`.
    pub fn is_replica(&self, slot: u16, member: &str) -> bool {
        self.replicas(slot).any(|name| &**name == member)
    }

    /// Whether `member` is one of the ring's members.
    pub fn contains(&self, member: &str) -> bool {
        self.members.binary_search_by(|name| (**name).cmp(member)).is_ok()
    }

    /// All members, sorted by name.
    pub fn members(&self) -> &[Arc<str>] {
        &self.members
    }

    /// Copies that each key should have, the owner's included.
    pub const fn replication_factor(&self) -> usize {
        self.replication_factor
    }

    /// Equal on two agents if, and as good as only if, they place every key alike: over hash version, replication factor and names.
    pub const fn digest(&self) -> u64 {
        self.digest
    }

    /// How many slots each member owns, in the order of [`Self::members`].
    pub fn slots_owned(&self) -> Vec<u32> {
        let mut owned = vec![0; self.members.len()];
        if self.kept > 0 {
            for ranks in self.ranks.chunks_exact(self.kept) {
                owned[usize::from(ranks[0])] += 1;
            }
        }
        owned
    }

    fn kept_ranks(&self, slot: u16) -> &[u8] {
        let at = usize::from(slot) * self.kept;
        &self.ranks[at..at + self.kept]
    }

    fn rank_all(&self, slot: u16) -> impl Iterator<Item = &Arc<str>> {
        let mut scorers: Vec<Scorer> = self.members.iter().map(|name| Scorer::new(name)).collect();
        let mut scores = Vec::with_capacity(self.members.len());
        rank(&mut scorers, slot, self.members.len(), &mut scores);
        scores.into_iter().map(|(_, index)| &self.members[usize::from(index)])
    }
}

/// Computes a member's score for any slot without building the hashed bytes anew.
struct Scorer {
    /// Slot as two big-endian bytes, then the member's name.
    bytes: Vec<u8>,
}

impl Scorer {
    fn new(name: &str) -> Self {
        let mut bytes = vec![0; 2];
        bytes.extend_from_slice(name.as_bytes());
        Self { bytes }
    }

    fn score(&mut self, slot: u16) -> u64 {
        self.bytes[..2].copy_from_slice(&slot.to_be_bytes());
        xxh3_64(&self.bytes)
    }
}

/// The members in the order of their names, each once, not too many.
fn canonical(members: &[Arc<str>]) -> Vec<Arc<str>> {
    let mut members = members.to_vec();
    members.sort_unstable();
    members.dedup();
    members.truncate(MEMBERS_MAX);
    members
}

/// Fills `scores` with the best `kept` of (score, member's index), highest score first, ties by name.
fn rank(scorers: &mut [Scorer], slot: u16, kept: usize, scores: &mut Vec<(u64, u8)>) {
    scores.clear();
    scores.extend((0..=u8::MAX).zip(scorers).map(|(index, scorer)| (scorer.score(slot), index)));
    // Indices follow the names' order, so comparing them is comparing names.
    let best_first = |a: &(u64, u8), b: &(u64, u8)| b.0.cmp(&a.0).then(a.1.cmp(&b.1));
    if kept < scores.len() {
        scores.select_nth_unstable_by(kept, best_first);
        scores.truncate(kept);
    }
    scores.sort_unstable_by(best_first);
}

fn tabulate(members: &[Arc<str>], kept: usize) -> Box<[u8]> {
    let mut scorers: Vec<Scorer> = members.iter().map(|name| Scorer::new(name)).collect();
    let mut scores = Vec::with_capacity(members.len());
    let mut ranks = Vec::with_capacity(SLOTS * kept);
    for slot in 0..=u16::MAX {
        rank(&mut scorers, slot, kept, &mut scores);
        ranks.extend(scores.iter().map(|&(_, index)| index));
    }
    ranks.into_boxed_slice()
}

/// Hash over: hash version (1 byte) ‖ replication factor (4 bytes big-endian) ‖ for each member in the order of names,
/// length of its name (4 bytes big-endian) ‖ name.
fn digest(members: &[Arc<str>], replication_factor: usize) -> u64 {
    let mut bytes = vec![HASH_VERSION];
    bytes.extend_from_slice(&u32::try_from(replication_factor).unwrap_or(u32::MAX).to_be_bytes());
    for name in members {
        bytes.extend_from_slice(&u32::try_from(name.len()).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend_from_slice(name.as_bytes());
    }
    xxh3_64(&bytes)
}

#[cfg(test)]
mod tests;
