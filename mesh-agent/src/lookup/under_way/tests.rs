//! Lookups at a peer whose end of the link the test has. One thread: what is not awaited has not happened.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use futures_util::StreamExt as _;
use heimdall_shared::entry::Entry;
use heimdall_shared::key::{Flags, Key};
use heimdall_shared::link::{Beats, Delivered, Link, LookupMode, Requests, Side};
use heimdall_shared::token::Token;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::agent;
use crate::links::LocalStream;

const PEER: LinkId = 1_001;
const STREAM: LinkId = 1_002;
/// The lookup's number on the stream.
const ID: u64 = 7;

struct Scene {
    agent: Arc<Agent>,
    peer: Arc<Peer>,
    stream: Arc<LocalStream>,
    under_way: Arc<UnderWay>,
    key: Key,
}

/// An agent whose dns-server asks for a key of its peer's.
fn scene() -> Scene {
    let agent = agent::tests::linked_to_b(PEER);
    let link = || Link::new(Moment::now(), &Beats::default());
    let peer = Arc::new(Peer {
        id: PEER,
        member: "b".into(),
        incarnation: 1,
        address: "127.0.0.1:1".parse().unwrap(),
        advertised: None,
        dialled: true,
        link: link(),
        requests: Requests::new(Side::Dialler),
        since: Moment::now(),
        breaker: Mutex::default(),
    });
    agent.links.register("a", &peer);
    let stream = Arc::new(LocalStream {
        id: STREAM,
        link: link(),
        requests: Requests::new(Side::Acceptor),
        upstreams_failing: AtomicBool::new(false),
    });
    agent.links.add_stream(&stream);
    let key = |number: u8| Key::new(&[1, number, 0], 1, 1, Flags::default(), "").unwrap();
    let is_peer_s = |key: &Key| agent.view().ring().order(key.slot()).next().is_some_and(|owner| **owner == *"b");
    let key = (b'a'..=b'z').map(key).find(is_peer_s).unwrap();
    let under_way = UnderWay::new(&agent, STREAM, TaskTracker::new());
    Scene { agent, peer, stream, under_way, key }
}

impl Scene {
    fn begin(&self) {
        let lookup = Lookup {
            key: self.key.clone(),
            deadline: Duration::from_secs(4),
            skipped: Vec::new(),
            stream: STREAM,
            trace: None,
            mode: LookupMode::Join,
        };
        self.under_way.begin(ID, lookup, (Moment::now(), Instant::now()));
    }

    /// The peer replies to its only request.
    fn reply(&self, reply: Reply) {
        match self.peer.requests.deliver(1, reply) {
            Delivered::First { asker, reply, more } => asker.hear(Some(reply), more),
            Delivered::Heard => {}
            unwanted @ Delivered::Unwanted(_) => panic!("{unwanted:?}"),
        }
    }

    fn is_idle(&self) -> bool {
        self.under_way.places().is_empty() && self.peer.requests.in_flight() == 0
    }

    fn entry(&self) -> Entry {
        let name = self.key.name();
        let front: &[u8] = &[0, 0, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
        let answer: &[u8] = &[0, 1, 0, 1, 0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1];
        let packet = Bytes::from([front, name, answer].concat());
        Entry { packet, born: Moment::now(), lifetime: Duration::from_secs(60), since: 0 }
    }
}

fn token() -> Token {
    Token { granter: "b".into(), incarnation: 1, counter: 1 }
}

/// What was sent over a link, which is closed by it.
async fn sent(link: &Arc<Link>) -> Vec<Message> {
    link.close();
    let far = Link::new(Moment::now(), &Beats::default());
    let batches: Vec<_> = link.outgoing().collect().await;
    let messages = batches.into_iter().flat_map(|batch| far.receive(batch, Moment::now()));
    messages.filter(|message| !matches!(message, Message::Lookup { .. })).collect()
}

/// What the dns-server was told.
async fn told(scene: &Scene) -> Vec<Reply> {
    let replies = sent(&scene.stream.link).await.into_iter().map(|message| match message {
        Message::Reply { id: ID, reply } => reply,
        other => panic!("{other:?}"),
    });
    replies.collect()
}

#[tokio::test]
async fn a_first_word_that_ends_a_lookup_is_passed_on_where_it_is_read() {
    let scene = scene();
    scene.begin();
    scene.reply(Reply::Entry(scene.entry()));
    assert!(scene.is_idle() && scene.under_way.tasks.is_empty(), "no task has begun");
    assert!(scene.agent.stored(&scene.key, Moment::now()).is_some());
    let told = told(&scene).await;
    assert!(matches!(&told[..], [Reply::Entry(entry)] if entry.packet == scene.entry().packet), "{told:?}");
}

#[tokio::test]
async fn whoever_is_held_back_hears_the_end_from_a_task() {
    let scene = scene();
    scene.begin();
    scene.reply(Reply::Held { token: token(), holder: None });
    assert_eq!(scene.under_way.tasks.len(), 1);
    scene.reply(Reply::Proceed);
    scene.under_way.tasks.close();
    scene.under_way.tasks.wait().await;
    assert!(scene.is_idle());
    assert_eq!(told(&scene).await, [Reply::Held { token: token(), holder: None }, Reply::Proceed]);
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_told_of_and_its_late_word_still_counts() {
    let scene = scene();
    let silent = |(peer, request): (Arc<Peer>, u64)| bear_silence(&peer, request);
    tokio::spawn(Arc::clone(&scene.agent.first_words).run(silent, CancellationToken::new()));
    scene.begin();
    tokio::time::sleep(crate::lookup::FIRST_WORD_WITHIN * 3 / 2).await;
    assert_eq!(scene.under_way.tasks.len(), 1);
    scene.reply(Reply::Proceed);
    scene.under_way.tasks.close();
    scene.under_way.tasks.wait().await;
    assert!(scene.is_idle());
    assert_eq!(told(&scene).await, [Reply::Working, Reply::Proceed]);
}

#[tokio::test]
async fn a_lookup_that_is_called_back_is_called_back_at_its_peer() {
    let scene = scene();
    scene.begin();
    scene.under_way.cancel(ID);
    assert!(scene.is_idle());
    // The question had not left: neither need leave any more.
    assert_eq!(sent(&scene.peer.link).await, []);

    let scene = self::scene();
    scene.begin();
    scene.reply(Reply::Held { token: token(), holder: None });
    tokio::task::yield_now().await;
    scene.under_way.cancel(ID);
    scene.under_way.tasks.close();
    scene.under_way.tasks.wait().await;
    assert!(scene.is_idle());
}

#[tokio::test]
async fn a_grant_that_nobody_follows_any_more_goes_back() {
    let scene = scene();
    scene.begin();
    scene.reply(Reply::Granted { token: token(), takeover: false, ask_first: Some("c".into()) });
    // Before its task has had a turn.
    scene.under_way.cancel(ID);
    scene.under_way.tasks.close();
    scene.under_way.tasks.wait().await;
    assert!(scene.is_idle());
    assert_eq!(sent(&scene.peer.link).await, [Message::Release { token: token() }]);
}

#[tokio::test]
async fn a_peer_that_is_lost_leaves_its_lookups_to_the_next_member() {
    let scene = scene();
    scene.begin();
    scene.peer.link.close();
    scene.agent.links.unregister(&scene.peer);
    for asleep in scene.peer.requests.break_off() {
        asleep.hear(None, None);
    }
    scene.under_way.tasks.close();
    scene.under_way.tasks.wait().await;
    assert!(scene.is_idle());
    // It is this replica's own turn: its granter, who is not there, has no room.
    assert_eq!(told(&scene).await, [Reply::Proceed]);
}

#[tokio::test]
async fn a_number_that_is_given_twice_costs_the_first_one_nothing() {
    let scene = scene();
    scene.begin();
    scene.begin();
    assert_eq!(scene.under_way.places().len(), 1);
    scene.reply(Reply::Proceed);
    assert!(scene.is_idle());
    assert_eq!(told(&scene).await, [Reply::Proceed, Reply::Proceed]);
}
