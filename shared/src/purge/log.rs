//! The purges that a process remembers, and what they cover. Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Moment;
use crate::key::Key;

use super::scope::suffixes;
use super::{Applied, Position, Purge, PurgeId, Scope};

/// Purges remembered at a time, some 400 bytes each with what finds them. One more, and everything is purged, which takes the
/// place of all of them.
pub const RECORDS_MAX: usize = 16_384;

/// How often what is too old is looked for: it only takes room.
const EXPIRE_EVERY: Duration = Duration::from_secs(60);

/// Incarnations of origins that are remembered, some 100 bytes each. The one not heard for the longest time is forgotten; would
/// it be told on once more, its purges were applied once more.
const ORIGINS_MAX: usize = 4_096;

/// Which type, at which position, when it arrived.
type Find = (Option<u16>, Position, Moment);

/// The log of one process.
#[derive(Debug)]
pub struct Log {
    /// For how long a purge is remembered: no older entry lives anywhere by then.
    keep: Duration,
    position: Position,
    records: BTreeMap<Position, Arc<Purge>>,
    names: HashMap<Box<[u8]>, Vec<Find>>,
    suffixes: HashMap<Box<[u8]>, Vec<Find>>,
    keys: HashMap<Key, Vec<Find>>,
    everything: Vec<Find>,
    ids: HashMap<PurgeId, Position>,
    /// The newest purge of each origin's incarnation, and when it came. Those of one origin come in their order.
    seen: HashMap<(Arc<str>, u64), (u64, Moment)>,
    expire_at: Moment,
}

impl Log {
    /// No purge so far.
    pub fn new(keep: Duration) -> Self {
        Self {
            keep,
            position: 0,
            records: BTreeMap::new(),
            names: HashMap::new(),
            suffixes: HashMap::new(),
            keys: HashMap::new(),
            everything: Vec::new(),
            ids: HashMap::new(),
            seen: HashMap::new(),
            expire_at: Moment::default(),
        }
    }

    /// Purges applied so far.
    pub const fn position(&self) -> Position {
        self.position
    }

    /// Purges remembered.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether no purge covers anything.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.everything.is_empty()
    }

    /// Whether there are more than are to be remembered.
    pub fn is_full(&self) -> bool {
        self.records.len() > RECORDS_MAX
    }

    /// Whether a purge was applied, or one that takes its place.
    pub fn knows(&self, id: &PurgeId) -> bool {
        let seen = self.seen.get(&(Arc::clone(&id.origin), id.incarnation));
        seen.is_some_and(|&(sequence, _)| id.sequence <= sequence)
    }

    /// Applies a purge that came at `now`, unless it is known or so old that it covers nothing any more. Gives its position.
    pub fn apply(&mut self, purge: &Arc<Purge>, now: Moment) -> Option<Position> {
        if self.knows(&purge.id) {
            return None;
        }
        self.see(&purge.id, now);
        if now.since(purge.issued) > self.keep {
            return None;
        }
        for folded in &purge.folds {
            self.see(folded, now);
        }
        if !purge.folds.is_empty() {
            self.fold(&purge.folds);
        }
        self.position += 1;
        let position = self.position;
        let find = |qtype| (qtype, position, now);
        match &purge.scope {
            Scope::Name { name, qtype } => self.names.entry(name[..].into()).or_default().push(find(*qtype)),
            Scope::Suffix { suffix, qtype } => {
                self.suffixes.entry(suffix[..].into()).or_default().push(find(*qtype));
            }
            Scope::Key(key) => self.keys.entry(key.detached()).or_default().push(find(None)),
            Scope::Everything => self.everything.push(find(None)),
        }
        self.ids.insert(purge.id.clone(), position);
        self.records.insert(position, Arc::clone(purge));
        Some(position)
    }

    /// The position of the newest purge that covers a key, and when it came; 0 when none does.
    pub fn newest(&self, key: &Key) -> (Position, Moment) {
        let mut newest = self.everything.last().copied();
        let mut look = |finds: Option<&Vec<Find>>| {
            let of_type = |find: &&Find| find.0.is_none_or(|qtype| qtype == key.qtype());
            let found = finds.and_then(|finds| finds.iter().rev().find(of_type)).copied();
            if found.map(|find| find.1) > newest.map(|find| find.1) {
                newest = found;
            }
        };
        look(self.names.get(key.name()));
        if !self.keys.is_empty() {
            look(self.keys.get(key));
        }
        if !self.suffixes.is_empty() {
            suffixes(key.name()).for_each(|suffix| look(self.suffixes.get(suffix)));
        }
        newest.map_or((0, Moment::default()), |(_, position, arrived)| (position, arrived))
    }

    /// The position of the newest purge that covers a key.
    pub fn covers(&self, key: &Key) -> Position {
        self.newest(key).0
    }

    /// All that is remembered, in the order in which it was applied.
    pub fn records(&self) -> impl Iterator<Item = Applied> {
        self.records.iter().map(|(&position, purge)| Applied { position, purge: Arc::clone(purge) })
    }

    /// What was applied after a position.
    pub fn after(&self, position: Position) -> Vec<(Position, Arc<Purge>)> {
        self.records.range(position + 1..).map(|(&position, purge)| (position, Arc::clone(purge))).collect()
    }

    /// Whether the purge at a position is remembered.
    pub fn has(&self, position: Position) -> bool {
        self.records.contains_key(&position)
    }

    /// Where a purge stands, if it is remembered.
    pub fn find(&self, id: &PurgeId) -> Option<Position> {
        self.ids.get(id).copied()
    }

    /// When everything was purged last, if that is remembered.
    pub fn emptied(&self) -> Option<Moment> {
        self.everything.last().map(|&(_, _, arrived)| arrived)
    }

    /// The newest purge of each origin.
    pub fn marks(&self) -> Vec<PurgeId> {
        let mark = |(&(ref origin, incarnation), &(sequence, _)): (&(Arc<str>, u64), &(u64, Moment))| PurgeId {
            origin: Arc::clone(origin),
            incarnation,
            sequence,
        };
        self.seen.iter().map(mark).collect()
    }

    /// Forgets all purges but that there were some: whatever is older than this moment is covered. For who cannot purge
    /// everything everywhere.
    pub fn give_up(&mut self, now: Moment) {
        for position in self.records.keys().copied().collect::<Vec<_>>() {
            self.forget(position);
        }
        self.everything = vec![(None, self.position, now)];
    }

    /// Forgets what is so old that it covers nothing any more. Does so now and then.
    pub fn expire(&mut self, now: Moment) {
        if now < self.expire_at {
            return;
        }
        self.expire_at = now + EXPIRE_EVERY;
        let is_over = |purge: &Arc<Purge>| now.since(purge.issued) > self.keep;
        let over: Vec<_> = self.records.iter().filter(|(_, purge)| is_over(purge)).map(|(&at, _)| at).collect();
        over.into_iter().for_each(|position| self.forget(position));
        let keep = self.keep;
        self.seen.retain(|_, (_, heard)| now.since(*heard) <= keep);
    }

    fn see(&mut self, id: &PurgeId, now: Moment) {
        let key = (Arc::clone(&id.origin), id.incarnation);
        if self.seen.len() >= ORIGINS_MAX && !self.seen.contains_key(&key) {
            let oldest = self.seen.iter().min_by_key(|(_, (_, heard))| *heard).map(|(key, _)| key.clone());
            oldest.and_then(|oldest| self.seen.remove(&oldest));
        }
        let seen = self.seen.entry(key).or_insert((0, now));
        *seen = (seen.0.max(id.sequence), now);
    }

    /// Forgets what a purge of everything takes the place of.
    fn fold(&mut self, folds: &[PurgeId]) {
        let newest: HashMap<(&str, u64), u64> =
            folds.iter().map(|id| ((&*id.origin, id.incarnation), id.sequence)).collect();
        let is_folded = |id: &PurgeId| newest.get(&(&*id.origin, id.incarnation)).is_some_and(|&at| id.sequence <= at);
        let folded: Vec<_> = self.records.iter().filter(|(_, purge)| is_folded(&purge.id)).map(|(&at, _)| at).collect();
        folded.into_iter().for_each(|position| self.forget(position));
    }

    fn forget(&mut self, position: Position) {
        let Some(purge) = self.records.remove(&position) else { return };
        self.ids.remove(&purge.id);
        match &purge.scope {
            Scope::Name { name, .. } => drop_find(&mut self.names, &name[..], position),
            Scope::Suffix { suffix, .. } => drop_find(&mut self.suffixes, &suffix[..], position),
            Scope::Key(key) => drop_find(&mut self.keys, key, position),
            Scope::Everything => self.everything.retain(|find| find.1 != position),
        }
    }
}

fn drop_find<K, Q>(finds: &mut HashMap<K, Vec<Find>>, key: &Q, position: Position)
where
    K: std::hash::Hash + Eq + std::borrow::Borrow<Q>,
    Q: std::hash::Hash + Eq + ?Sized,
{
    if let Some(of_key) = finds.get_mut(key) {
        of_key.retain(|find| find.1 != position);
        if of_key.is_empty() {
            finds.remove(key);
        }
    }
}
