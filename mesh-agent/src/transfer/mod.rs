//! Bulk copies: what this agent fetches when it starts, when the members change, and when one of them leaves.
//!
//! ```text
//!  start, ring changed ─► plan: which slots, from whom ─┐
//!  HandOver of a peer ──► plan::inherited ──────────────┴─► pull: chunk by chunk, paced ─► store, as copies
//!                                                  Warming ◄─┘ fetched: leases of these slots ask nobody first
//! ```
//!
//! Whoever lacks entries fetches them; nobody pushes. So each side of a transfer knows what it asked for and when, and a
//! peer that is slow or dies ends only its part.

mod handover;
mod pace;
pub mod plan;
mod progress;
mod pull;
pub mod serve;
mod slots;
mod warming;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::stream::{self, StreamExt as _};
use heimdall_shared::admin::Latch;
use heimdall_shared::clock::Moment;
use heimdall_shared::link::Message;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::agent::Agent;
use crate::heap;
use crate::identity::Connector;

use self::progress::{Progress, Pulled, Round};

pub use self::handover::{HandOver, Outcome, TAKEN_WITHIN};
pub use self::pace::Pace;
pub use self::pull::{Puller, Taken};
pub use self::slots::Slots;
pub use self::warming::{WARM_WITHIN, Warming};

/// An agent is ready when it has its share of the entries, or after this time: with the 3 s in which the members may
/// connect it stays below 10 s.
pub const READY_WITHIN: Duration = Duration::from_secs(5);

/// Members that one fetch takes entries from at a time. One budget of bytes per second is all that they have together, so more
/// would not be faster; each takes a connection of its own, here and there, whose memory a process that started keeps. Two, so
/// that one which does not answer does not hold up the others.
const SOURCES_AT_ONCE: usize = 2;

/// When this agent has its share, those that started with it may still fetch theirs from here, and connections are being closed.
/// What all of that took goes back to the system after this time.
const AFTERMATH: Duration = Duration::from_secs(2);

/// How often a starting agent looks whether its members have connected.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Peers that may ask to be taken over from before the first of them is served: each asks once.
const JOBS: usize = 64;

/// Fetches under way at a time. One more peer that leaves is told that nothing was taken: its entries are fetched when they
/// are asked for.
const FETCHES_MAX: usize = 16;

/// The slots whose entries this agent may lack.
#[derive(Debug)]
pub struct Warmth(ArcSwap<Warming>);

impl Warmth {
    /// Of an agent that starts.
    pub fn starting(now: Moment) -> Self {
        Self(ArcSwap::from_pointee(Warming::starting(now)))
    }

    /// As of now.
    pub fn now(&self) -> Arc<Warming> {
        self.0.load_full()
    }

    fn change(&self, change: impl Fn(&Warming) -> Warming) {
        self.0.rcu(|warming| change(warming));
    }
}

/// The task that fetches.
#[derive(Debug)]
pub struct Transfers {
    puller: Puller,
    leavers: mpsc::Receiver<Arc<str>>,
}

/// The queue of members that want to be taken over from.
pub fn channel() -> (mpsc::Sender<Arc<str>>, mpsc::Receiver<Arc<str>>) {
    mpsc::channel(JOBS)
}

impl Transfers {
    /// A task for `agent` that lets so many bytes per second in.
    pub fn new(
        agent: Arc<Agent>,
        connector: Arc<Connector>,
        bytes_per_second: u64,
        leavers: mpsc::Receiver<Arc<str>>,
    ) -> Self {
        let pace = Arc::new(Mutex::new(Pace::new(bytes_per_second, Moment::now())));
        Self { puller: Puller { agent, connector, pace }, leavers }
    }

    /// Runs until `stop` is cancelled. The latches are let go of when each member had its chance to connect, before which
    /// this replica would act as if alone, and when the share is here or has taken too long.
    pub async fn run(mut self, members: Latch, share: Latch, stop: CancellationToken) {
        let agent = Arc::clone(&self.puller.agent);
        let settled = async {
            while !agent.view().is_settled(Moment::now()) {
                sleep(LOOK_EVERY).await;
            }
        };
        if stop.run_until_cancelled(settled).await.is_none() {
            return;
        }
        drop(members);
        let mut views = agent.view.clone();
        let mut ring = views.borrow_and_update().ring_shared();
        let mut fetches = JoinSet::new();
        let mine = plan::share(&ring, &agent.name);
        fetches.spawn(self.puller.clone().warm_up(mine, Some(share)));
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(leaver) = self.leavers.recv() => {
                    if fetches.len() < FETCHES_MAX {
                        fetches.spawn(self.puller.clone().take_over(leaver));
                    } else {
                        answer(&agent, &leaver, Taken::default());
                    }
                }
                Ok(()) = views.changed() => {
                    let now = views.borrow_and_update().ring_shared();
                    if now.digest() != ring.digest() {
                        let gained = plan::gained(&ring, &now, &agent.name);
                        ring = now;
                        if fetches.len() < FETCHES_MAX {
                            fetches.spawn(self.puller.clone().warm_up(gained, None));
                        }
                    }
                }
                Some(_) = fetches.join_next() => {}
            }
        }
        fetches.shutdown().await;
    }
}

impl Puller {
    /// Fetches `slots` from whoever has them; `ready` is let go of when that is done or takes too long.
    async fn warm_up(self, slots: Slots, ready: Option<Latch>) {
        let agent = Arc::clone(&self.agent);
        let share = plan::share(agent.view().ring(), &agent.name);
        agent.warmth.change(|warming| warming.fetching(&slots, &share, Moment::now()));
        let had = CancellationToken::new();
        let readiness = async {
            if let Some(latch) = ready {
                if timeout(READY_WITHIN, had.cancelled()).await.is_err() {
                    info!("ready, with a part of the entries still on its way");
                }
                drop(latch);
            }
        };
        // What is late beyond that is a miss.
        let (_, ()) = tokio::join!(timeout(WARM_WITHIN, self.fetch(slots.clone(), had.clone())), readiness);
        agent.warmth.change(|warming| warming.fetched(&slots));
        sleep(AFTERMATH).await;
        heap::give_back();
    }

    /// Fetches what this agent has to keep when `leaver` is gone, and says so.
    async fn take_over(self, leaver: Arc<str>) {
        let slots = plan::inherited(&self.agent.view(), &leaver);
        let mut taken = Taken { complete: true, ..Taken::default() };
        if !slots.is_empty() {
            taken = timeout(TAKEN_WITHIN, self.pull(&leaver, &slots)).await.unwrap_or_default();
            let Taken { entries, kept, complete } = taken;
            info!(peer = %leaver, ?slots, entries, kept, complete, "took entries over");
        }
        answer(&self.agent, &leaver, taken);
    }

    /// Fetches `slots`, each from the first in its order that answers; what one could not give is asked of the next. While who
    /// comes before that one has no link yet, its part is still waited for. `had` is cancelled when all was fetched that can
    /// be had soon.
    async fn fetch(&self, slots: Slots, had: CancellationToken) {
        let (begun, wanted) = (Moment::now(), slots.len());
        let mut progress = Progress::of(slots);
        let mut views = self.agent.view.clone();
        let mut had = Some(had.drop_guard());
        while !progress.is_over() {
            let view = Arc::clone(&views.borrow_and_update());
            let sources = plan::sources(&view, progress.left(), progress.failed());
            let Round { whole, but_late, asked } = progress.next(sources, &self.agent.name);
            self.agent.warmth.change(|warming| warming.fetched(&whole).given(&but_late));
            if !asked.is_empty() {
                let pulls = stream::iter(asked).map(|(source, slots)| self.pulled(source, slots));
                progress.took(pulls.buffer_unordered(SOURCES_AT_ONCE).collect::<Vec<_>>().await);
            } else if !progress.is_over() {
                let comes_soon = view.members().iter().any(|member| member.is_coming());
                if progress.has_some() && !comes_soon && had.take().is_some() {
                    let (Taken { entries, kept, .. }, late) = (progress.sum(), progress.left().len());
                    info!(entries, kept, slots = wanted, late, "fetched what can be had of this replica's share");
                }
                // A newcomer may know the others before they know it, and then cannot reach them yet.
                let may_come = view.members().iter().any(|member| !progress.failed().contains(&member.name));
                if !may_come || views.changed().await.is_err() {
                    break;
                }
            }
        }
        let Taken { entries, kept, complete } = progress.sum();
        info!(slots = wanted, entries, kept, complete, after = ?Moment::now().since(begun), "fetched what this replica keeps");
    }

    async fn pulled(&self, source: Arc<str>, slots: Slots) -> Pulled {
        let taken = self.pull(&source, &slots).await;
        let is_linked = self.agent.links.peer(&source).is_some();
        Pulled { source, slots, taken, is_linked }
    }
}

/// Tells a peer what was taken from it. One that is gone does not need to know.
fn answer(agent: &Agent, leaver: &str, taken: Taken) {
    if let Some(peer) = agent.links.peer(leaver) {
        let Taken { entries, kept, complete } = taken;
        let _ = peer.link.push(Message::TakenOver { entries, kept, complete });
    }
}
