//! The lookups of one dns-server stream that are on their way through the cluster.
//!
//! ```text
//! begin ─► the question goes out, the lookup sleeps with the request at its peer
//!            ├─ a first word that ends it (nearly always) ─► answered where that word was read
//!            ├─ any other first word, or the link broke ───► a task goes on
//!            └─ no word for a few milliseconds ────────────► a task goes on
//! ```

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::fast::RandomState;
use heimdall_shared::clock::Moment;
use heimdall_shared::link::{Lookup, Message, Pending, REQUESTS_IN_FLIGHT, Reply};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::way::{From, Then, Way};
use super::{ReplyTo, reply};
use crate::agent::Agent;
use crate::lease::LinkId;
use crate::links::Peer;
use crate::request::Request;

/// Lookups of one stream that may be on their way through the cluster at the same time: as many as one link takes.
const LOOKUPS_MAX: usize = REQUESTS_IN_FLIGHT;

/// A lookup is on its way for its deadline, and never longer than this: several times the dns-server's usual budget.
const UNDER_WAY_WITHIN: Duration = Duration::from_secs(60);

/// The lookups of one stream that are on their way, each with the means to call it back.
#[derive(Debug)]
pub struct UnderWay {
    agent: Arc<Agent>,
    stream: LinkId,
    tasks: TaskTracker,
    places: Mutex<Places>,
}

type Places = HashMap<u64, Place, RandomState>;

/// Where a lookup is.
#[derive(Debug)]
enum Place {
    /// With the request that its peer has not said a word to.
    Asleep(Arc<Peer>, u64),
    Task(AbortHandle),
}

/// A lookup whose peer has not said a word yet. The peer's reader wakes it with the first one.
pub struct Asleep {
    way: Way,
    under_way: Arc<UnderWay>,
    sent: Instant,
}

impl fmt::Debug for Asleep {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Asleep").field("way", &self.way).finish_non_exhaustive()
    }
}

impl UnderWay {
    /// None so far. What takes longer becomes one of `tasks`.
    pub fn new(agent: &Arc<Agent>, stream: LinkId, tasks: TaskTracker) -> Arc<Self> {
        Arc::new(Self { agent: Arc::clone(agent), stream, tasks, places: Mutex::default() })
    }

    /// Begins the lookup `id` of the stream, which arrived at `now`, on either clock.
    pub fn begin(self: &Arc<Self>, id: u64, lookup: Lookup, (now, sent): (Moment, Instant)) {
        let to = ReplyTo { link: self.stream, request: id };
        // Nobody waits any more after its time, whatever became of the word that should have ended it.
        let until = sent + lookup.deadline.min(UNDER_WAY_WITHIN);
        let Some(way) = Way::begin(&self.agent, to, lookup, now, until) else { return };
        let question = way.question(now);
        let asleep = Box::new(Asleep { way, under_way: Arc::clone(self), sent });
        let peer = Arc::clone(asleep.way.peer());
        // Until it is in its place: its first word looks for it there.
        let mut places = self.places();
        // A dns-server gives no number twice.
        let is_known = places.contains_key(&id);
        if is_known || places.len() >= LOOKUPS_MAX {
            drop(places);
            let metrics = &self.agent.metrics;
            if is_known { &metrics.unexpected_messages } else { &metrics.routes_full }.inc();
            reply(&self.agent, to, Reply::Proceed);
            return;
        }
        match asleep.send(question) {
            Ok(request) => {
                places.insert(id, Place::Asleep(Arc::clone(&peer), request));
                drop(places);
                if let Err((peer, request)) = self.agent.first_words.begin(sent, (peer, request)) {
                    bear_silence(&peer, request);
                }
            }
            Err(mut asleep) => match asleep.way.unsent() {
                Then::Over => {}
                then => asleep.rise(&mut places, From::Word(then, None)),
            },
        }
    }

    /// Calls a lookup back: nobody waits for it any more.
    pub fn cancel(&self, id: u64) {
        let place = self.places().remove(&id);
        place.into_iter().for_each(Place::call_back);
    }

    /// Calls all of them back.
    pub fn cancel_all(&self) {
        let places = std::mem::take(&mut *self.places());
        places.into_values().for_each(Place::call_back);
    }

    fn over(&self, id: u64) {
        self.places().remove(&id);
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    fn call_back(self) {
        match self {
            Self::Asleep(peer, request) => {
                if peer.requests.close(request) {
                    // A full lane: the peer then answers in vain.
                    let _ = peer.link.push(Message::Cancel { id: request });
                }
            }
            Self::Task(task) => task.abort(),
        }
    }
}

impl Asleep {
    /// Sends the question and lies down with the request. Gives the request's id.
    fn send(self: Box<Self>, question: Lookup) -> Result<u64, Box<Self>> {
        let peer = Arc::clone(self.way.peer());
        let id = peer.requests.open_for(self)?;
        if peer.link.push(Message::Lookup { id, lookup: question }).is_err()
            && let Some(asleep) = peer.requests.take_back(id)
        {
            return Err(asleep);
        }
        // Where it was gone already, the end of the link has woken it.
        Ok(id)
    }

    /// Its peer said the first word, and others arrive at `more`; or its link broke.
    pub fn hear(mut self: Box<Self>, word: Option<Reply>, more: Option<Pending>) {
        let request = more.map(|more| Request::under_way(self.way.peer(), more));
        match self.way.hear(word) {
            Then::Over => self.under_way.over(self.way.number()),
            then => self.wake(From::Word(then, request)),
        }
    }

    /// Goes on as a task, unless it was called back.
    fn wake(self: Box<Self>, from: From) {
        let under_way = Arc::clone(&self.under_way);
        let mut places = under_way.places();
        if places.contains_key(&self.way.number()) {
            self.rise(&mut places, from);
        }
    }

    fn rise(self: Box<Self>, places: &mut Places, from: From) {
        let Self { way, under_way, .. } = *self;
        let id = way.number();
        let tasks = under_way.tasks.clone();
        // Boxed: the runtime moves a task about while it begins and ends, and this one has room for all that may happen on its way.
        let task = tasks.spawn(Box::pin(async move {
            way.go_on(from).await;
            under_way.over(id);
        }));
        // Under the lock that its end takes, too. Called back before it began, it asks nobody.
        places.insert(id, Place::Task(task.abort_handle()));
    }
}

/// The request's peer has not said a word for [`super::FIRST_WORD_WITHIN`]. If it still has not, a task goes on.
pub fn bear_silence(peer: &Arc<Peer>, request: u64) {
    if let Some((asleep, pending)) = peer.requests.wake(request) {
        let sent = asleep.sent;
        asleep.wake(From::Silence(Request::under_way(peer, pending), sent));
    }
}

#[cfg(test)]
mod tests;
