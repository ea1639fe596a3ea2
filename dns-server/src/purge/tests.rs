//! Purges that an agent tells, and what is left in the cache.

use heimdall_shared::key::Flags;
use heimdall_shared::link::{Beats, Link};
use heimdall_shared::purge::{Applied, Injected, PurgeId, Purges as Said};

use super::*;

/// An answer of `name` and its type with one A record, whatever the type: what is kept is not looked into.
fn answer(name: &str, qtype: u16, since: Position) -> (Key, Entry) {
    let wire = heimdall_shared::dns::name::from_text(name).unwrap();
    let key = Key::new(&wire, qtype, 1, Flags::default(), "").unwrap();
    let mut packet = vec![0, 0, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
    packet.extend(key.name());
    packet.extend([&qtype.to_be_bytes()[..], &[0, 1]].concat());
    packet.extend([0xC0, 0x0C, 0, 1, 0, 1, 0, 0, 1, 0, 0, 4, 192, 0, 2, 1]);
    let entry = Entry { packet: packet.into(), born: Moment::now(), lifetime: Duration::from_secs(256), since };
    (key, entry)
}

fn scope_of(name: &str) -> Scope {
    Scope::Name { name: heimdall_shared::dns::name::from_text(name).unwrap().into(), qtype: None }
}

struct Process {
    purges: Arc<Purges>,
    told: Position,
    _stop: tokio_util::sync::DropGuard,
}

impl Process {
    /// With a link to an agent that has purged nothing so far.
    fn start() -> Self {
        let purges = Arc::new(Purges::new(Arc::new(Cache::new(1 << 20).unwrap()), Duration::ZERO));
        let stop = CancellationToken::new();
        tokio::spawn(Arc::clone(&purges).run(stop.clone()));
        purges.ledger().connect(1, Purges::KIND, &Link::new(Moment::now(), &Beats::default()));
        purges.ledger().hear(1, &Said::Whole { position: 0, marks: Vec::new() }, Moment::now());
        Self { purges, told: 0, _stop: stop.drop_guard() }
    }

    /// The agent tells of a purge; returns when it is done.
    async fn purge(&mut self, scope: Scope, injected: Option<Injected>) {
        self.told += 1;
        let id = PurgeId { origin: "a".into(), incarnation: 1, sequence: self.told };
        let purge = Arc::new(Purge { id, scope, issued: Moment::now(), folds: Vec::new(), injected });
        self.purges.ledger().hear(1, &Said::Next(Applied { position: self.told, purge }), Moment::now());
        let mut changes = self.purges.ledger().changes();
        while self.purges.ledger().done() < self.told {
            changes.changed().await.unwrap();
        }
    }

    fn keep(&self, (key, entry): &(Key, Entry)) -> bool {
        self.purges.keep(key, entry, Moment::now());
        self.has(key)
    }

    fn has(&self, key: &Key) -> bool {
        self.purges.cache.get(key.as_bytes(), Moment::now()).is_some()
    }
}

#[tokio::test]
async fn what_is_purged_leaves_the_cache_and_the_rest_stays() {
    let mut process = Process::start();
    let all = [("a.com", 1), ("a.com", 28), ("b.com", 1), ("b.com", 28), ("c.com", 1), ("a.org", 1)];
    let all = all.map(|(name, qtype)| answer(name, qtype, 0));
    assert!(all.iter().all(|answer| process.keep(answer)));
    let kept = |process: &Process| all.each_ref().map(|(key, _)| process.has(key));
    process.purge(scope_of("a.com"), None).await;
    assert_eq!(kept(&process), [false, false, true, true, true, true]);
    let Scope::Name { name: suffix, .. } = scope_of("com") else { unreachable!("it is a name") };
    process.purge(Scope::Suffix { suffix, qtype: Some(28) }, None).await;
    assert_eq!(kept(&process), [false, false, true, false, true, true]);
    process.purge(Scope::Everything, None).await;
    assert_eq!(kept(&process), [false; 6]);
}

#[tokio::test]
async fn a_name_goes_also_when_there_are_more_kinds_than_are_remembered() {
    let mut process = Process::start();
    let count = KINDS_MAX as u16 + 20;
    let all: Vec<_> = (1..=count).map(|qtype| answer("a.com", 1_000 + qtype, 0)).collect();
    assert!(all.iter().all(|answer| process.keep(answer)));
    process.purge(scope_of("a.com"), None).await;
    assert!(!all.iter().any(|(key, _)| process.has(key)));
}

#[tokio::test]
async fn what_was_fetched_before_a_purge_is_not_kept_after_it() {
    let mut process = Process::start();
    process.purge(scope_of("a.com"), None).await;
    assert!(!process.keep(&answer("a.com", 1, 0)));
    assert!(process.keep(&answer("b.com", 1, 0)), "of another name");
    assert!(process.keep(&answer("a.com", 1, 1)), "fetched after it");
}

#[tokio::test]
async fn an_injected_answer_is_in_the_cache_when_the_purge_is_done() {
    let mut process = Process::start();
    let (key, entry) = answer("a.com", 1, 0);
    let injected = Injected { packet: entry.packet, lifetime: entry.lifetime };
    process.purge(Scope::Key(key.clone()), Some(injected)).await;
    assert!(process.has(&key));
    process.purge(scope_of("a.com"), None).await;
    assert!(!process.has(&key));
}
