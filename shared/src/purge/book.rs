//! The log of a process and what is known of the logs at the other ends of its links. Pure.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Moment;

use super::{Applied, Log, Position, Purge, PurgeId, Purges};

/// Purges in one message of a link's first words: well below what a batch holds.
const LOG_PART: usize = 256;

/// Purges of the other side whose positions there are remembered: entries may be as old as the oldest of them when they arrive.
/// What is older than that is vouched for by nobody.
const HEARD_MAX: usize = 1_024;

/// What is at the other end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A dns-server of this agent: what it has not done is not done here.
    Below,
    /// Another agent, or the agent of this dns-server.
    Beside,
}

/// The other side left a purge out: what it says of its purges means nothing any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the other side's purges did not come one after the other")]
pub struct Gap;

/// A process's purges.
#[derive(Debug)]
pub struct Book {
    log: Log,
    links: HashMap<u64, Far>,
}

/// What is known of one other side.
#[derive(Debug)]
struct Far {
    kind: LinkKind,
    /// Positions of purges here that the other side is not known to have applied.
    unheard: BTreeSet<Position>,
    /// Where the last ones stand there, and here.
    heard: VecDeque<(Position, Position)>,
    /// The newest position there that is no longer in `heard`.
    dropped: Position,
    /// Its newest position.
    at: Position,
    /// Up to where it has also emptied its caches, in its positions.
    done: Position,
    /// Whether it has said all that it remembers.
    whole: bool,
}

impl Far {
    fn heard(&mut self, theirs: Position, ours: Position) {
        if self.unheard.remove(&ours) {
            self.heard.push_back((theirs, ours));
            if self.heard.len() > HEARD_MAX {
                self.dropped = self.heard.pop_front().map_or(self.dropped, |(theirs, _)| theirs);
            }
        }
    }
}

impl Book {
    /// Nothing is purged. A purge is remembered for `keep`.
    pub fn new(keep: Duration) -> Self {
        Self { log: Log::new(keep), links: HashMap::new() }
    }

    /// The log.
    pub const fn log(&self) -> &Log {
        &self.log
    }

    /// A link came up: what is to be said on it before anything else.
    pub fn connect(&mut self, link: u64, kind: LinkKind) -> Vec<Purges> {
        let records: Vec<Applied> = self.log.records().collect();
        let far = Far {
            kind,
            unheard: records.iter().map(|applied| applied.position).collect(),
            heard: VecDeque::new(),
            dropped: 0,
            at: 0,
            done: 0,
            whole: false,
        };
        self.links.insert(link, far);
        let parts = records.chunks(LOG_PART).map(|part| Purges::Log(part.to_vec()));
        let whole = Purges::Whole { position: self.log.position(), marks: self.log.marks() };
        parts.chain([whole]).collect()
    }

    /// A link ended.
    pub fn disconnect(&mut self, link: u64) {
        self.links.remove(&link);
    }

    /// A purge that an operator wants begins here. Nothing when it is known.
    pub fn issue(&mut self, purge: &Arc<Purge>, now: Moment) -> Option<Applied> {
        self.apply(purge, now)
    }

    /// The other side of a link says what it has applied. Gives what is new here, which is to be said on every link.
    ///
    /// # Errors
    /// [`Gap`]: the link must end, and begin anew.
    pub fn hear(&mut self, link: u64, purges: &Purges, now: Moment) -> Result<Vec<Applied>, Gap> {
        let far = self.links.get(&link).ok_or(Gap)?;
        let said: &[Applied] = match purges {
            Purges::Next(applied) if !far.whole || applied.position != far.at + 1 => return Err(Gap),
            Purges::Next(applied) => std::slice::from_ref(applied),
            Purges::Log(_) if far.whole => return Err(Gap),
            Purges::Log(records) => records,
            Purges::Whole { position, marks } => {
                self.whole(link, *position, marks)?;
                &[]
            }
        };
        let mut fresh = Vec::new();
        for Applied { position, purge } in said {
            let new = self.apply(purge, now);
            let ours = new.as_ref().map(|applied| applied.position).or_else(|| self.log.find(&purge.id));
            let far = self.links.get_mut(&link).ok_or(Gap)?;
            if *position <= far.at {
                return Err(Gap);
            }
            far.at = *position;
            if let Some(ours) = ours {
                far.heard(*position, ours);
            }
            fresh.extend(new);
        }
        Ok(fresh)
    }

    fn whole(&mut self, link: u64, position: Position, marks: &[PurgeId]) -> Result<(), Gap> {
        let far = self.links.get_mut(&link).ok_or(Gap)?;
        if far.whole || position < far.at {
            return Err(Gap);
        }
        (far.whole, far.at) = (true, position);
        // What it has applied and need not remember any more, it has applied.
        let marks: HashMap<_, _> = marks.iter().map(|id| ((&*id.origin, id.incarnation), id.sequence)).collect();
        for Applied { position: ours, purge } in self.log.records() {
            let id = &purge.id;
            if marks.get(&(&*id.origin, id.incarnation)).is_some_and(|&newest| id.sequence <= newest) {
                far.heard(position, ours);
            }
        }
        Ok(())
    }

    /// The other side has emptied its caches of all that it had purged at that position of its.
    ///
    /// # Errors
    /// [`Gap`]: it never was at that position.
    pub fn hear_done(&mut self, link: u64, position: Position) -> Result<(), Gap> {
        let far = self.links.get_mut(&link).filter(|far| far.whole && position <= far.at).ok_or(Gap)?;
        far.done = far.done.max(position);
        Ok(())
    }

    /// Up to which of this process's purges the other side had applied all when it was at `theirs`. Nothing for a side that has
    /// not said what it remembers: one of a release without purges never does.
    pub fn vouched(&self, link: u64, theirs: Position) -> Option<Position> {
        let far = self.links.get(&link).filter(|far| far.whole)?;
        if theirs < far.dropped {
            return Some(0);
        }
        let unheard = far.unheard.iter().copied().find(|&ours| self.log.has(ours));
        let later = far.heard.iter().rev().take_while(|(at, _)| *at > theirs).map(|&(_, ours)| ours);
        let first = later.filter(|&ours| self.log.has(ours)).chain(unheard).min();
        Some(first.map_or(self.log.position(), |ours| ours - 1))
    }

    /// Up to which of this process's purges the other side has emptied its caches.
    pub fn done_at(&self, link: u64) -> Position {
        let done = self.links.get(&link).map_or(0, |far| far.done);
        self.vouched(link, done).unwrap_or_default()
    }

    /// Up to which purge all dns-servers have emptied their caches. Nothing where there is none.
    pub fn done_below(&self) -> Option<Position> {
        let below = self.links.iter().filter(|(_, far)| far.kind == LinkKind::Below);
        below.map(|(&link, _)| self.done_at(link)).min()
    }

    /// Forgets all purges but that there were some. For who cannot purge everything everywhere.
    pub fn give_up(&mut self, now: Moment) {
        self.log.give_up(now);
        self.tidy();
    }

    /// Forgets what is too old to cover anything.
    pub fn expire(&mut self, now: Moment) {
        let before = self.log.len();
        self.log.expire(now);
        if self.log.len() != before {
            self.tidy();
        }
    }

    fn apply(&mut self, purge: &Arc<Purge>, now: Moment) -> Option<Applied> {
        self.expire(now);
        let position = self.log.apply(purge, now)?;
        if !purge.folds.is_empty() {
            self.tidy();
        }
        for far in self.links.values_mut() {
            far.unheard.insert(position);
        }
        Some(Applied { position, purge: Arc::clone(purge) })
    }

    fn tidy(&mut self) {
        for far in self.links.values_mut() {
            far.unheard.retain(|&ours| self.log.has(ours));
        }
    }
}
