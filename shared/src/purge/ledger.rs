//! A process's purges, for all its tasks: the [`Book`] behind a lock, and the links to which it is told on.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::clock::Moment;
use crate::key::Key;
use crate::link::{Link, Message};

use super::{Applied, Book, Injected, LinkKind, Position, Purge, PurgeId, Purges, Scope};

/// The purges of one process.
///
/// What is said on a link is queued under the same lock under which it comes to hold: whoever hears of a position has heard of
/// all purges before it.
#[derive(Debug)]
pub struct Ledger {
    state: Mutex<State>,
    /// The same as in the book, to be read without its lock.
    position: AtomicU64,
    /// Whether any purge covers anything: usually there is none, and then nothing costs anything.
    covers_any: AtomicBool,
    /// Counts changes, for those who wait for one.
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    book: Book,
    links: HashMap<u64, (LinkKind, Arc<Link>)>,
    /// Purges that began here.
    sequence: u64,
    /// Up to where this process's own caches are emptied.
    done: Position,
}

impl Ledger {
    /// Nothing is purged. A purge is remembered for `keep`.
    pub fn new(keep: Duration) -> Self {
        let state = State { book: Book::new(keep), links: HashMap::new(), sequence: 0, done: 0 };
        Self {
            state: Mutex::new(state),
            position: AtomicU64::new(0),
            covers_any: AtomicBool::new(false),
            changes: watch::Sender::new(0),
        }
    }

    /// Purges applied so far. What is read from a cache after this was newer than all of them.
    pub fn position(&self) -> Position {
        self.position.load(Ordering::Acquire)
    }

    /// The position of the newest purge that covers a key.
    pub fn covers(&self, key: &Key) -> Position {
        if self.covers_any.load(Ordering::Acquire) { self.state().book.log().covers(key) } else { 0 }
    }

    /// The position of the newest purge that covers a key, and when it came.
    pub fn newest(&self, key: &Key) -> Option<(Position, Moment)> {
        if !self.covers_any.load(Ordering::Acquire) {
            return None;
        }
        Some(self.state().book.log().newest(key)).filter(|(position, _)| *position > 0)
    }

    /// Whether what was fetched at a position may still be kept and given to those who ask now.
    pub fn admits(&self, key: &Key, since: Position) -> bool {
        self.covers(key) <= since
    }

    /// Keeps something if [`Ledger::admits`] it. No purge is applied meanwhile: who then empties a cache finds it.
    pub fn keep(&self, key: &Key, since: Position, keep: impl FnOnce()) -> bool {
        let state = self.state();
        let admitted = state.book.log().covers(key) <= since;
        if admitted {
            keep();
        }
        admitted
    }

    /// Up to which purge here the other side of a link vouches for what it said at its position `theirs`. A side that knows no
    /// purges vouches for nothing.
    pub fn vouched(&self, link: u64, theirs: Position) -> Position {
        // Read first: what is applied after this is not vouched for.
        let position = self.position();
        if !self.covers_any.load(Ordering::Acquire) {
            return position;
        }
        self.state().book.vouched(link, theirs).unwrap_or_default()
    }

    /// The same for an entry that came by a call, for which nobody vouches: it must be born after the purges of its key.
    pub fn dated(&self, key: &Key, born: Moment) -> Position {
        let position = self.position();
        let (_, arrived) = self.state().book.log().newest(key);
        if arrived <= born { position } else { 0 }
    }

    /// A link came up: says on it what is remembered here. To be called before anything else but the Hello is said on it.
    pub fn connect(&self, id: u64, kind: LinkKind, link: &Arc<Link>) {
        let mut state = self.state();
        for purges in state.book.connect(id, kind) {
            say(link, Message::Purges(purges));
        }
        say(link, Message::PurgesDone { position: state.done });
        state.links.insert(id, (kind, Arc::clone(link)));
        drop(state);
        self.changed();
    }

    /// A link ended.
    pub fn disconnect(&self, id: u64) {
        let mut state = self.state();
        state.book.disconnect(id);
        state.links.remove(&id);
        drop(state);
        self.changed();
    }

    /// The other side of a link says what it has applied. Gives what was not known here and is applied by now, in order. A side
    /// that leaves something out has its link ended.
    pub fn hear(&self, id: u64, purges: &Purges, now: Moment) -> Vec<Applied> {
        let mut state = self.state();
        let fresh = state.book.hear(id, purges, now).unwrap_or_else(|_gap| {
            state.end(id);
            Vec::new()
        });
        self.tell_on(&state, &fresh);
        drop(state);
        self.changed();
        fresh
    }

    /// The other side of a link has emptied its caches.
    pub fn hear_done(&self, id: u64, position: Position) {
        let mut state = self.state();
        if state.book.hear_done(id, position).is_err() {
            state.end(id);
        }
        drop(state);
        self.changed();
    }

    /// A purge begins here, of the member `origin`. Gives it with its position here.
    pub fn issue(&self, origin: (&Arc<str>, u64), scope: Scope, injected: Option<Injected>, now: Moment) -> Applied {
        let mut state = self.state();
        state.sequence += 1;
        let id = PurgeId { origin: Arc::clone(origin.0), incarnation: origin.1, sequence: state.sequence };
        let folds = if scope == Scope::Everything { state.book.log().marks() } else { Vec::new() };
        let purge = Arc::new(Purge { id, scope, issued: now, folds, injected });
        let applied = state.book.issue(&purge, now).expect("a purge that begins must be new");
        self.tell_on(&state, std::slice::from_ref(&applied));
        drop(state);
        self.changed();
        applied
    }

    /// The caches of this process, and of those below it, are emptied up to a position: says so on the links beside it.
    pub fn finish(&self, position: Position) {
        let mut state = self.state();
        if position <= state.done {
            return;
        }
        state.done = position;
        for (kind, link) in state.links.values() {
            if *kind == LinkKind::Beside {
                say(link, Message::PurgesDone { position });
            }
        }
        drop(state);
        self.changed();
    }

    /// Forgets all purges but that there were some.
    pub fn give_up(&self, now: Moment) {
        self.state().book.give_up(now);
    }

    /// Reads the book.
    pub fn look<T>(&self, look: impl FnOnce(&Book) -> T) -> T {
        look(&self.state().book)
    }

    /// Up to where this process's caches are emptied.
    pub fn done(&self) -> Position {
        self.state().done
    }

    /// Counts changes, for those who wait for one.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn tell_on(&self, state: &State, fresh: &[Applied]) {
        for applied in fresh {
            for (_, link) in state.links.values() {
                say(link, Message::Purges(Purges::Next(applied.clone())));
            }
        }
        let log = state.book.log();
        self.covers_any.store(!log.is_empty(), Ordering::Release);
        self.position.store(log.position(), Ordering::Release);
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn end(&self, id: u64) {
        if let Some((_, link)) = self.links.get(&id) {
            link.close();
        }
    }
}

/// Says something that must not be left out: a link without room for it ends, and tells all when it is back.
fn say(link: &Link, message: Message) {
    if link.push(message).is_err() {
        link.close();
    }
}
