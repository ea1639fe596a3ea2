//! Three replicas and a member that sends what it likes, in every way in which an entry can come from a member.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use heimdall_integration::cluster::{Cluster, Part};
use heimdall_integration::unary;
use heimdall_integration::upstream::Upstream;
use heimdall_proto::v1::{CacheEntry, SetCacheEntryRequest};
use heimdall_shared::clock::Moment;
use heimdall_shared::entry::Entry;
use heimdall_shared::key::Key;
use heimdall_shared::link::{Link, Message, Publish, Reply};
use heimdall_shared::token::Token;

use super::liar::Liar;
use super::lies::{LIAR, is_lie, join, key};

/// The replica that the member is linked with, and whose view of things is looked at.
pub(crate) const TOLD: usize = 0;

/// How an entry is sent.
#[derive(Clone, Debug)]
pub(crate) enum Way {
    /// As a copy for another member of the key's set.
    Copy,
    /// As the answer of a fetch, without a lease.
    Publish,
    /// The same, with a token that the member was never given.
    Forged,
    /// By `SetCacheEntry`.
    Call,
    /// As the answer when it is asked.
    Answer,
}

/// What the member says when it is asked for a key.
#[derive(Default)]
struct Answers {
    entries: HashMap<Key, Entry>,
    /// When there is no entry: that the upstreams failed, for so long; otherwise that it has nothing.
    failing: Option<Duration>,
}

/// The cluster and the member.
pub(crate) struct Scene {
    pub(crate) upstream: Upstream,
    pub(crate) cluster: Cluster,
    pub(crate) liar: Liar,
    /// What the member says when it is asked.
    answers: Arc<Mutex<Answers>>,
    numbers: AtomicU64,
}

impl Scene {
    /// Two copies of each key, so that not everybody keeps everything; answers of members are not compared.
    pub(crate) async fn set() -> Self {
        let upstream = Upstream::start().await.unwrap();
        let builder = Cluster::builder().replicas(LIAR).spares(1).long_budgets().replication_factor(2);
        let mut cluster = builder.start(&upstream).await.unwrap();
        cluster.set_members(&[0, 1, 2, LIAR]).unwrap();
        let answers = Arc::<Mutex<Answers>>::default();
        let known = Arc::clone(&answers);
        let mut liar = Liar::of(&cluster, LIAR, move |link: &Link, message: &Message| {
            if let Message::Lookup { id, lookup } = message {
                let known = known.lock().unwrap();
                let otherwise = || known.failing.map_or(Reply::Proceed, |remaining| Reply::Failure { remaining });
                let reply = known.entries.get(&lookup.key).cloned().map_or_else(otherwise, Reply::Entry);
                let _ = link.push(Message::Reply { id: *id, reply });
            }
        });
        join(&mut liar, &cluster, &[TOLD]).await;
        Self { upstream, cluster, liar, answers, numbers: AtomicU64::new(0) }
    }

    /// A name that starts with `label`, in this order of replicas.
    pub(crate) fn name(&self, order: &[usize], label: &str) -> String {
        self.cluster.name_ordered(order, label)
    }

    /// Sends an entry for a name. Says whether it was taken.
    pub(crate) async fn send(&self, way: &Way, name: &str, entry: Entry) -> bool {
        let (key, link) = (key(name), self.liar.link(TOLD));
        let number = self.numbers.fetch_add(1, Ordering::Relaxed) + 1;
        match way {
            Way::Copy => {
                let write = NonZeroU64::new(number).unwrap();
                link.push(Message::Copy { key, entry, write: Some(write) }).unwrap();
                self.hears(|message| match message {
                    Message::CopyReceipt { write: of, held } if *of == write => Some(*held),
                    _ => None,
                })
                .await
            }
            Way::Publish | Way::Forged => {
                let granter = self.cluster.replica(TOLD).layout.name.as_str().into();
                let forged = Token { granter, incarnation: 1, counter: number };
                let token = matches!(way, Way::Forged).then_some(forged);
                // Who dials asks with odd numbers.
                let id = 2 * number + 1;
                link.push(Message::Publish { id, publish: Publish { key, entry, token, level: None } }).unwrap();
                self.hears(|message| match message {
                    Message::Reply { id: of, reply } if *of == id => Some(matches!(reply, Reply::Stored { .. })),
                    _ => None,
                })
                .await
            }
            Way::Call => {
                let lifetime_ms = entry.lifetime.as_millis() as u64;
                let age_ms = entry.age(Moment::now()).as_millis() as u64;
                let entry = CacheEntry { packet: entry.packet, age_ms, lifetime_ms, purges: 0 };
                let request = SetCacheEntryRequest { key: unary::key(name), entry: Some(entry), token: None, level: 0 };
                let mut client = self.liar.client(&self.cluster, TOLD).await;
                client.set_cache_entry(request).await.is_ok_and(|answer| answer.into_inner().stored)
            }
            Way::Answer => {
                self.answers.lock().unwrap().entries.insert(key, entry);
                self.tells_the_lie(name).await
            }
        }
    }

    /// From now on the member says of all names that the upstreams failed, for so long.
    pub(crate) fn fails(&self, remaining: Duration) {
        self.answers.lock().unwrap().failing = Some(remaining);
    }

    /// The first thing that the member hears and `wanted` takes.
    pub(crate) async fn hears<T>(&self, wanted: impl Fn(&Message) -> Option<T>) -> T {
        let heard = || self.liar.heard(TOLD, &wanted);
        self.cluster.until("the member hears of it", async || !heard().is_empty()).await.unwrap();
        heard().remove(0)
    }

    /// Whether a client is told the lie; otherwise it is told what the upstream says.
    pub(crate) async fn tells_the_lie(&self, name: &str) -> bool {
        is_lie(&self.cluster.client(TOLD).ask(name, "A").await.unwrap(), name)
    }

    /// Nothing of what was sent is told to clients of any replica: they are told what an upstream says. That is asked once, and
    /// once more by each replica that does not reach an owner.
    pub(crate) async fn tells_the_truth(&self, name: &str, what: &str) {
        for replica in 0..LIAR {
            let told = self.cluster.client(replica).ask_address(name).await;
            told.unwrap_or_else(|wrong| panic!("{what}: a client of {replica}: {wrong:#}"));
        }
        let asked = self.upstream.journal().count(name, "A").resolutions;
        assert!((1..=LIAR).contains(&asked), "{what}: {name} was asked for {asked} times");
    }

    /// A counter of the replica that the member is linked with.
    pub(crate) async fn counted(&self, metric: &str, labels: &[&str]) -> usize {
        self.cluster.metrics(TOLD, Part::Agent).await.unwrap().sum(metric, labels) as usize
    }
}
