//! Two ends of a link, joined by hand.

use std::num::NonZeroU64;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::entry::Entry;
use crate::key::{Flags, Key};
use crate::purge::{Applied, Injected, Purge, PurgeId, Purges, Scope};
use crate::token::Token;
use crate::wire;

fn key(name: &[u8]) -> Key {
    Key::new(name, 1, 1, Flags::default(), "").unwrap()
}

fn entry(size: usize) -> Entry {
    Entry { packet: Bytes::from(vec![0; size]), born: Moment::now(), lifetime: Duration::from_secs(60), since: 0 }
}

fn purge_id(sequence: u64) -> PurgeId {
    PurgeId { origin: "a".into(), incarnation: 7, sequence }
}

/// A batch with frames that no link would send.
fn batch(number: u64, frames: &[pb::SessionFrame]) -> pb::SessionBatch {
    let mut octets = Packing::new(number, 0, 0).done().octets.to_vec();
    prost::encoding::message::encode_repeated(3, frames, &mut octets);
    pb::SessionBatch { octets: octets.into() }
}

fn frames(batch: &pb::SessionBatch) -> usize {
    Received::new(batch.clone()).frames
}

fn token(counter: u64) -> Token {
    Token { granter: "a".into(), incarnation: 7, counter }
}

#[tokio::test]
async fn results_leave_before_requests_and_copies_last() {
    let link = Link::new(Moment::now(), &Beats::default());
    let lookup = Lookup {
        key: key(b"\x01a\x00"),
        deadline: Duration::from_secs(1),
        skipped: vec!["b".into()],
        stream: 3,
        trace: None,
        mode: LookupMode::Join,
    };
    link.push(Message::Copy { key: key(b"\x01a\x00"), entry: entry(10), write: None }).unwrap();
    link.push(Message::Lookup { id: 1, lookup: lookup.clone() }).unwrap();
    link.push(Message::Release { token: token(1) }).unwrap();
    let batch = link.outgoing().boxed().next().await.unwrap();

    let other = Link::new(Moment::now(), &Beats::default());
    let received = other.receive(batch, Moment::now());
    assert_eq!(received[0], Message::Release { token: token(1) });
    assert_eq!(received[1], Message::Lookup { id: 1, lookup });
    assert!(matches!(received[2], Message::Copy { .. }));
}

#[tokio::test]
async fn what_ends_a_request_does_not_overtake_it() {
    let link = Link::new(Moment::now(), &Beats::default());
    let lookup = |stream| Lookup {
        key: key(b"\x01a\x00"),
        deadline: Duration::from_secs(1),
        skipped: Vec::new(),
        stream,
        trace: None,
        mode: LookupMode::Join,
    };
    link.push(Message::Lookup { id: 1, lookup: lookup(3) }).unwrap();
    link.push(Message::Lookup { id: 3, lookup: lookup(3) }).unwrap();
    link.push(Message::Lookup { id: 5, lookup: lookup(4) }).unwrap();
    // Still here: neither of them leaves. The other requests of a stream may have left before.
    link.push(Message::Cancel { id: 1 }).unwrap();
    link.push(Message::StreamGone { stream: 3 }).unwrap();
    // It has left already.
    link.push(Message::Cancel { id: 9 }).unwrap();
    link.close();
    let batches: Vec<_> = link.outgoing().collect().await;
    let far = Link::new(Moment::now(), &Beats::default());
    let received: Vec<_> = batches.into_iter().flat_map(|batch| far.receive(batch, Moment::now())).collect();
    let expected =
        [Message::StreamGone { stream: 3 }, Message::Cancel { id: 9 }, Message::Lookup { id: 5, lookup: lookup(4) }];
    assert_eq!(received, expected);
}

#[test]
fn a_full_lane_refuses_and_the_others_still_take() {
    let link = Link::new(Moment::now(), &Beats::default());
    let mut copies = 0;
    while link.push(Message::Copy { key: key(b"\x00"), entry: entry(60_000), write: None }).is_ok() {
        copies += 1;
        assert!(copies < 100, "the lane of copies has a bound in bytes");
    }
    assert_eq!(
        link.push(Message::Copy { key: key(b"\x00"), entry: entry(60_000), write: None }),
        Err(Full(Lane::Copies))
    );
    link.push(Message::Release { token: token(1) }).unwrap();
}

#[tokio::test]
async fn a_closed_link_takes_nothing_and_ends_its_stream_after_what_was_queued() {
    let link = Link::new(Moment::now(), &Beats::default());
    link.push(Message::Leaving).unwrap();
    link.close();
    link.closed().await;
    assert!(link.push(Message::Leaving).is_err());
    assert_eq!(link.outgoing().collect::<Vec<_>>().await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_waits_for_leaves_with_what_somebody_does_or_a_moment_later() {
    let link = Link::new(Moment::now(), &Beats::default());
    let mut outgoing = link.outgoing().boxed();
    let release = |counter| Message::Release { token: token(counter) };
    link.push_idly(release(1)).unwrap();
    assert!(outgoing.next().now_or_never().is_none(), "it may have company");
    link.push(release(2)).unwrap();
    assert_eq!(frames(&outgoing.next().await.unwrap()), 3, "and a ping, since it is the first");

    link.push_idly(release(3)).unwrap();
    let begun = Instant::now();
    assert_eq!(frames(&outgoing.next().await.unwrap()), 1);
    assert!(begun.elapsed() < BEAT_EVERY);

    link.push_idly(release(4)).unwrap();
    link.close();
    assert_eq!(outgoing.collect::<Vec<_>>().now_or_never().unwrap().len(), 1, "a closed link sends what it has");
}

#[tokio::test(start_paused = true)]
async fn a_full_batch_of_what_nobody_waits_for_leaves_at_once() {
    let link = Link::new(Moment::now(), &Beats::default());
    let mut outgoing = link.outgoing().boxed();
    let mut pushed = 0;
    let batch = loop {
        link.push_idly(Message::Release { token: token(pushed) }).unwrap();
        pushed += 1;
        if let Some(batch) = outgoing.next().now_or_never() {
            break batch.unwrap();
        }
    };
    assert_eq!(frames(&batch) as u64, pushed + 1, "and a ping, since it is the first");
}

#[tokio::test(start_paused = true)]
async fn an_idle_link_beats_and_measures_its_round_trip_now_and_then() {
    let beats = Beats::default();
    tokio::spawn(beats.clone().run(CancellationToken::new()));
    let (near, far) = (Link::new(Moment::now(), &beats), Link::new(Moment::now(), &beats));
    let (mut near_out, mut far_out) = (near.outgoing().boxed(), far.outgoing().boxed());
    let begun = Instant::now();
    let first = near_out.next().await.unwrap();
    assert_eq!((frames(&first), begun.elapsed()), (1, BEAT_EVERY), "the first beat measures");
    assert!(far.receive(first, Moment::now()).is_empty(), "pings are answered by the link itself");
    let pong = far_out.next().await.unwrap();
    assert_eq!(near.round_trip(), None);
    near.receive(pong, Moment::now());
    assert!(near.round_trip().is_some());
    let answer = near_out.next().await.unwrap();
    assert_eq!(frames(&answer), 1, "the other side measures too");
    far.receive(answer, Moment::now());
    // The clock of pings is the real one, which has hardly moved.
    let beat = near_out.next().await.unwrap();
    assert_eq!(
        (Received::new(beat.clone()).number, frames(&beat)),
        (3, 0),
        "a beat says no more than that it is there"
    );
    assert!(far.receive(beat, Moment::now()).is_empty());
    assert_eq!(frames(&far_out.next().await.unwrap()), 0, "and nobody answers it");
}

#[tokio::test(start_paused = true)]
async fn a_link_beats_early_with_the_one_that_it_hears_and_then_again_after_a_whole_beat() {
    let beats = Beats::default();
    tokio::spawn(beats.clone().run(CancellationToken::new()));
    let (near, begun) = (Link::new(Moment::now(), &beats), Instant::now());
    let mut outgoing = near.outgoing().boxed();
    for (heard, number) in [(100, 1), (150, 2)] {
        sleep_until(begun + Duration::from_millis(heard)).await;
        near.receive(batch(number, &[]), Moment::now());
    }
    let mut beats = Vec::new();
    while beats.len() < 3 {
        outgoing.next().await.unwrap();
        beats.push(begun.elapsed().as_millis());
    }
    assert_eq!(beats, [150, 400, 650], "100 is too early, 150 is not");
}

#[test]
fn frames_that_cannot_be_read_are_counted_and_the_rest_is_taken() {
    let link = Link::new(Moment::now(), &Beats::default());
    let unknown = pb::SessionFrame { id: 1, kind: None };
    let bad = pb::SessionFrame {
        id: 1,
        kind: Some(pb::session_frame::Kind::Lookup(pb::Lookup {
            key: Bytes::from_static(b"\x09"),
            ..Default::default()
        })),
    };
    let good = wire::to_frame(&Message::Leaving, Moment::now());
    assert_eq!(link.receive(batch(1, &[unknown, bad, good]), Moment::now()), [Message::Leaving]);
    assert_eq!(link.unknown_frames(), 2);
}

#[test]
fn every_kind_of_message_survives_the_wire() {
    let entry =
        Entry { packet: Bytes::from_static(b"x"), born: Moment::now(), lifetime: Duration::from_secs(9), since: 3 };
    let now = entry.born;
    let trace = crate::trace::TraceContext { trace_id: [1; 16], span_id: [2; 8], sampled: true };
    let applied = |scope: Scope| {
        let injected = matches!(scope, Scope::Key(_))
            .then(|| Injected { packet: Bytes::from_static(b"x"), lifetime: Duration::from_secs(5) });
        let folds = if scope == Scope::Everything { vec![purge_id(3)] } else { Vec::new() };
        Applied { position: 7, purge: Arc::new(Purge { id: purge_id(4), scope, issued: now, folds, injected }) }
    };
    let asked = key(b"\x01a\x00");
    let (checked, found) = (asked.clone(), entry.clone());
    let reply = |reply| Message::Reply { id: 5, reply };
    let messages = [
        Message::Hello(Hello {
            version: 1,
            name: "a".into(),
            incarnation: 9,
            view_digest: 8,
            advertise: Some("a:1".into()),
            state: Some(NodeState { condition: Condition::Degraded, reasons: vec![DegradedReason::Upstreams] }),
        }),
        Message::Ping { nonce: 1 },
        Message::Pong { nonce: 2 },
        Message::Wait { id: 3, wait: Wait { key: asked.clone(), token: token(1), stream: 4, trace: Some(trace) } },
        reply(Reply::Working),
        reply(Reply::Entry(entry.clone())),
        reply(Reply::Failure { remaining: Duration::from_millis(1_500) }),
        reply(Reply::Granted { token: token(2), takeover: true, ask_first: None }),
        reply(Reply::Held { token: token(2), holder: Some(trace) }),
        reply(Reply::Proceed),
        reply(Reply::Elsewhere("b".into())),
        reply(Reply::Stored { copies: 1, needed: 2 }),
        reply(Reply::Refused("no".to_owned())),
        Message::Cancel { id: 5 },
        Message::Publish {
            id: 0,
            publish: Publish {
                key: asked.clone(),
                entry: entry.clone(),
                token: Some(token(3)),
                level: Some(WriteLevel::Quorum),
            },
        },
        Message::Fail { token: token(4), kind: FailureKind::Shared },
        Message::Fail { token: token(4), kind: FailureKind::Local },
        Message::Release { token: token(4) },
        Message::Tick { working: vec![token(1)], struggling: vec![token(2)] },
        Message::Watch { token: token(1) },
        Message::Copy { key: asked, entry, write: NonZeroU64::new(9) },
        Message::CopyReceipt { write: NonZeroU64::MIN, held: true },
        Message::StreamGone { stream: 6 },
        Message::Check { id: 8, key: checked },
        reply(Reply::Checked { entry: Some(found), source: None }),
        reply(Reply::Checked { entry: None, source: Some("b".into()) }),
        Message::Leaving,
        Message::HandOver,
        Message::TakenOver { entries: 3, kept: 2, complete: true },
        Message::NodeState(NodeState::of(Condition::Starting)),
        Message::UpstreamState { failing: true },
        Message::Purges(Purges::Next(applied(Scope::Suffix {
            suffix: Bytes::from_static(b"\x01a\x00"),
            qtype: Some(28),
        }))),
        Message::Purges(Purges::Log(vec![
            applied(Scope::Name { name: Bytes::from_static(b"\x01a\x00"), qtype: None }),
            applied(Scope::Key(key(b"\x01a\x00"))),
            applied(Scope::Everything),
        ])),
        Message::Purges(Purges::Whole { position: 9, marks: vec![purge_id(1), purge_id(2)] }),
        Message::PurgesDone { position: 8 },
    ];
    let mut batch = Packing::new(1, 0, 0);
    for message in &messages {
        assert_eq!(wire::from_frame(wire::to_frame(message, now), now).as_ref(), Ok(message));
        batch.add(message, now);
    }
    let received = Received::new(batch.done());
    assert_eq!((received.number, received.seen, received.frames), (1, 0, messages.len()));
    assert_eq!(received.messages(now).collect::<Result<Vec<_>, _>>().unwrap(), messages);
}

#[test]
fn a_batch_that_comes_twice_or_too_late_is_skipped() {
    let link = Link::new(Moment::now(), &Beats::default());
    let batch = |number| batch(number, &[wire::to_frame(&Message::Leaving, Moment::now())]);
    assert_eq!(link.receive(batch(2), Moment::now()), [Message::Leaving]);
    assert_eq!(link.receive(batch(2), Moment::now()), []);
    assert_eq!(link.receive(batch(1), Moment::now()), []);
    assert_eq!(link.unknown_frames(), 2);
    assert_eq!(link.receive(batch(3), Moment::now()), [Message::Leaving]);
}
