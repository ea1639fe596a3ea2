//! Members that lie or hoard: what is known against them, and what follows from it.
//!
//! ```text
//!  an entry of a peer's is taken ─► sampling: one in N ─► checks: the own dns-server asks an upstream
//!                                                           │ verdict: can both be true?
//!  links, dials, calls ◄─ Trust::cut_off ◄─ ledger ◄────────┴─ who did it come from? (the peer is asked)
//!  leases that run out ─► hoard: no more grants for a while
//! ```
//!
//! Each replica judges by its own upstreams and for itself alone: what another one says of a member cuts nobody off.

pub mod checks;
pub mod hoard;
pub mod ledger;
pub mod sampling;
pub mod verdict;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use heimdall_shared::clock::Moment;
use heimdall_shared::entry::Entry;
use heimdall_shared::key::Key;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;

use self::checks::Suspect;
use self::ledger::{CutOff, Ledger};

/// Label of what a check came to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CheckLabels {
    /// In one word.
    pub result: &'static str,
}

/// Label of a member that was cut off.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct MemberLabels {
    /// Its name; there are only so many members.
    pub member: String,
}

/// What is counted.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    checks: Family<CheckLabels, Counter>,
    cut_offs: Family<MemberLabels, Counter>,
}

impl Metrics {
    /// Counts what a check came to.
    pub(crate) fn check(&self, result: &'static str) {
        self.checks.get_or_create(&CheckLabels { result }).inc();
    }

    fn cut_off(&self, member: &str) {
        self.cut_offs.get_or_create(&MemberLabels { member: member.to_owned() }).inc();
    }

    /// Shows the counters.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Answers of peers that were compared with an upstream's, by result";
        registry.register("peer_checks", help, self.checks.clone());
        let help = "Times that a member was cut off since its answers contradicted the upstreams";
        registry.register("members_cut_off", help, self.cut_offs.clone());
    }
}

/// What this replica thinks of the others.
#[derive(Debug)]
pub struct Trust {
    one_in: u32,
    ledger: Mutex<Ledger>,
    /// What readers need of it.
    standing: ArcSwap<Standing>,
    suspects: mpsc::Sender<Suspect>,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct Standing {
    cut_off: Vec<CutOff>,
    watched: Vec<Arc<str>>,
}

impl Trust {
    /// Everybody is trusted, and one in `one_in` of their answers is checked; none with 0. Suspects go to `suspects`.
    pub fn new(one_in: u32, suspects: mpsc::Sender<Suspect>, metrics: &Metrics) -> Self {
        let (ledger, standing) = (Mutex::default(), ArcSwap::default());
        Self { one_in, ledger, standing, suspects, metrics: metrics.clone() }
    }

    /// What is counted here.
    pub const fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// For how long nothing is taken from `member` any more, if it is cut off, and why.
    pub fn cut_off(&self, member: &str, now: Moment) -> Option<(Duration, CutOff)> {
        let standing = self.standing.load();
        // Nearly always nobody is.
        let cut_off = standing.cut_off.iter().find(|cut_off| *cut_off.member == *member && now < cut_off.until)?;
        Some((cut_off.until.since(now), cut_off.clone()))
    }

    /// An entry of `from` was taken: now and then one is checked.
    pub fn taken(&self, key: &Key, entry: &Entry, from: &Arc<str>) {
        if self.one_in == 0 {
            return;
        }
        let is_watched = self.standing.load().watched.contains(from);
        if sampling::is_due(self.one_in, is_watched, rand::random()) {
            self.suspect(key, entry, from);
        }
    }

    /// A peer says that an entry is wrong that `from` had given to this replica: it is checked here too.
    pub fn accused(&self, key: &Key, entry: &Entry, from: &Arc<str>) {
        if self.one_in != 0 {
            self.suspect(key, entry, from);
        }
    }

    fn suspect(&self, key: &Key, entry: &Entry, from: &Arc<str>) {
        let suspect = Suspect { key: key.detached(), entry: entry.clone(), from: Arc::clone(from) };
        if self.suspects.try_send(suspect).is_err() {
            self.metrics.check("dropped");
        }
    }

    /// Changes what is known, and what readers see of it.
    fn note<T>(&self, change: impl FnOnce(&mut Ledger, Moment) -> T) -> T {
        let now = Moment::now();
        let mut ledger = self.ledger();
        let changed = change(&mut ledger, now);
        self.standing.store(Arc::new(Standing { cut_off: ledger.cut_off(now), watched: ledger.watched(now) }));
        changed
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
