//! Answers that are dead, where nobody has a live one.

use bytes::Bytes;
use heimdall_shared::link::{Beats, Link};
use heimdall_shared::purge::{Applied, Purge, PurgeId, Purges as Said, Scope};

use super::*;

/// An answer that died some seconds ago.
fn dead() -> Entry {
    let entry = entry();
    Entry { born: entry.born.minus(Duration::from_secs(9)), lifetime: Duration::from_secs(2), ..entry }
}

/// Dead answers are taken, but not before an attempt has failed.
const STALE: Stale = Stale { limit: Duration::from_secs(3_600), after: LONG, recheck: LONG };

fn is_stale(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Stale(entry) if *entry.packet == *dead().packet)
}

#[tokio::test]
async fn when_no_upstream_answers_a_dead_answer_is_given_and_then_at_once() {
    let (upstream, mut seen) = scripted::upstream(|_, _| Vec::new()).await;
    let server = Server::new(upstream, None, &Patience { attempt: SHORT, budget: SHORT, stale: STALE, ..PATIENT });
    server.cache.insert_stale(&scripted::key(), &dead(), Moment::now(), STALE.limit);
    assert!(is_stale(&server.query().await.unwrap()));
    assert!(is_stale(&server.query().await.unwrap()));
    assert_eq!(server.metrics.upstream.resolutions(), 1, "what failed a moment ago is not asked again");
    assert!(!server.is_cached(), "nothing stale ever counts as fresh");
    assert!(seen.recv().await.is_some());
}

#[tokio::test]
async fn who_has_waited_long_enough_gets_a_dead_answer_and_the_next_one_the_new() {
    let (upstream, mut queries, answer) = held_upstream().await;
    let stale = Stale { after: Duration::ZERO, ..STALE };
    let server = Server::new(upstream, None, &Patience { stale, ..PATIENT });
    server.cache.insert_stale(&scripted::key(), &dead(), Moment::now(), STALE.limit);
    assert!(is_stale(&server.query().await.unwrap()));
    assert!(is_stale(&server.query().await.unwrap()), "nobody waits longer because others wait");
    queries.recv().await.unwrap();
    answer.send(()).unwrap();
    soon(async {
        while !server.is_cached() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(is_answer(&server.query().await.unwrap()));
    assert_eq!(server.metrics.upstream.resolutions(), 1);
}

/// Has the process forget the answer to the key, and waits until it has.
async fn purge(server: &Server) {
    const LINK: u64 = 1_000;
    let ledger = server.resolver.core.purges.ledger();
    ledger.connect(LINK, Purges::KIND, &Link::new(Moment::now(), &Beats::default()));
    ledger.hear(LINK, &Said::Whole { position: 0, marks: Vec::new() }, Moment::now());
    let id = PurgeId { origin: "a".into(), incarnation: 1, sequence: 1 };
    let scope = Scope::Name { name: Bytes::copy_from_slice(scripted::key().name()), qtype: None };
    let purge = Arc::new(Purge { id, scope, issued: Moment::now(), folds: Vec::new(), injected: None });
    ledger.hear(LINK, &Said::Next(Applied { position: 1, purge }), Moment::now());
    let mut changes = ledger.changes();
    soon(async {
        while ledger.done() < ledger.position() {
            changes.changed().await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn a_dead_answer_that_was_purged_is_for_nobody_who_comes_later() {
    let (upstream, _seen) = answering().await;
    let stale = Stale { after: Duration::ZERO, ..STALE };
    let (server, _agent, mut session) = linked(upstream, &Patience { stale, ..PATIENT }).await;
    server.cache.insert_stale(&scripted::key(), &dead(), Moment::now(), STALE.limit);
    let first = server.query();
    let (id, _) = session.lookup().await;
    assert!(is_stale(&first.await.unwrap()));
    assert!(is_stale(&server.query().await.unwrap()), "while the flight waits for somebody else");
    purge(&server).await;
    let later = server.query();
    tokio::task::yield_now().await;
    assert!(!later.is_finished());
    session.reply(id, Reply::Granted { token: token(1), takeover: false, ask_first: None });
    assert!(is_fresh(&later.await.unwrap()));
}

#[tokio::test]
async fn a_dead_answer_of_another_replica_is_asked_for_when_nobody_has_one_that_lives() {
    let (upstream, _seen) = scripted::upstream(|_, _| Vec::new()).await;
    let patience = Patience { attempt: SHORT, budget: SHORT, stale: STALE, ..PATIENT };
    let (server, _agent, mut session) = linked(upstream, &patience).await;
    let client = server.query();
    let (id, _) = session.lookup().await;
    session.reply(id, Reply::Granted { token: token(1), takeover: false, ask_first: None });
    assert_eq!(session.message().await, Message::Fail { token: token(1), kind: FailureKind::Local });
    let (id, lookup) = session.lookup().await;
    assert_eq!(lookup.mode, LookupMode::Stale { within: STALE.limit });
    session.reply(id, Reply::Stale(dead()));
    assert!(is_stale(&client.await.unwrap()));
    assert!(is_stale(&server.query().await.unwrap()), "kept as the dead answer that it is");
    assert!(session.so_far().is_empty() && !server.is_cached());
}
