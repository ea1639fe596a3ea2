//! Misses between a scripted agent and a scripted upstream, both on real sockets.

mod stale;

use std::net::SocketAddr;

use heimdall_shared::dns::answer::TtlLimits;
use heimdall_shared::link::{FailureKind, LookupMode, Message, Publish, Reply};
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::agent::scripted::{ScriptedAgent, Session, soon, token};
use crate::metrics::MissOutcome;
use crate::upstream::scripted::{self, SERVFAIL, Seen};
use crate::upstream::{Address, Settings, Transport};

/// Longer than any test: what it bounds is not what the test is about.
const LONG: Duration = Duration::from_secs(20);
/// Short, for tests in which it runs out.
const SHORT: Duration = Duration::from_millis(60);
const TICK: Duration = Duration::from_millis(10);

struct Patience {
    silence: Duration,
    attempt: Duration,
    budget: Duration,
    stale: Stale,
}

const NEVER_STALE: Stale = Stale { limit: Duration::ZERO, after: LONG, recheck: LONG };

const PATIENT: Patience = Patience { silence: LONG, attempt: LONG, budget: LONG, stale: NEVER_STALE };

struct Server {
    resolver: Arc<Resolver>,
    cache: Arc<Cache>,
    metrics: Arc<Metrics>,
}

impl Server {
    fn new(upstream: SocketAddr, agent: Option<&ScriptedAgent>, patience: &Patience) -> Self {
        let (cache, metrics) = (Arc::new(Cache::new(1 << 20).unwrap()), Arc::new(Metrics::new(1)));
        let settings = Settings {
            servers: vec![Address { socket: upstream, transport: Transport::Udp }],
            attempt_timeout: patience.attempt,
            mix_case: true,
            explore: false,
            resolutions_max: upstream::RESOLUTIONS_MAX,
            avoided_ports: Vec::new(),
            limits: TtlLimits::default(),
        };
        let upstreams = Arc::new(Upstreams::new(settings, &metrics.upstream, &Tracer::off()));
        let purges = Arc::new(Purges::new(Arc::clone(&cache), patience.stale.limit));
        tokio::spawn(Arc::clone(&purges).run(CancellationToken::new()));
        let core = Core::new(
            upstreams,
            Arc::clone(&cache),
            purges,
            Arc::clone(&metrics),
            Tracer::off(),
            patience.budget,
            patience.stale,
        );
        let silence = patience.silence;
        let agent = agent.map(|agent| agent::Settings { socket: agent.socket(), tick: TICK, silence });
        Self { resolver: Arc::new(Resolver::new(&core, agent, 0)), cache, metrics }
    }

    /// A client's query, under way.
    fn query(&self) -> tokio::task::JoinHandle<Outcome> {
        let resolver = Arc::clone(&self.resolver);
        tokio::spawn(async move { resolver.resolve(&scripted::key()).await })
    }

    fn count(&self, outcome: MissOutcome) -> u64 {
        self.metrics.outcome_count(outcome)
    }

    fn is_cached(&self) -> bool {
        self.cache.get(scripted::key().as_bytes(), Moment::now()).is_some()
    }
}

/// An upstream whose answers wait for a word of the test.
async fn held_upstream() -> (SocketAddr, mpsc::Receiver<Seen>, oneshot::Sender<()>) {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let (seen, queries) = mpsc::channel(16);
    let (answer, may_answer) = oneshot::channel::<()>();
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
        let packet = buffer[..length].to_vec();
        seen.send(Seen { packet: packet.clone(), from }).await.unwrap();
        if may_answer.await.is_ok() {
            socket.send_to(&scripted::answer(&packet), from).await.unwrap();
        }
    });
    (address, queries, answer)
}

async fn answering() -> (SocketAddr, mpsc::Receiver<Seen>) {
    scripted::upstream(|_, query| vec![scripted::answer(query)]).await
}

/// An answer with TTL 0: nothing of it may be kept, so that every query of it is a miss.
fn without_life(query: &[u8]) -> Vec<u8> {
    let mut packet = scripted::answer(query);
    let ttl = packet.len() - 7;
    packet[ttl] = 0;
    packet
}

/// Asks until the agent is asked: the server must find out by itself that it may.
async fn is_asked_again(server: &Server, session: &mut Session) {
    soon(async {
        loop {
            tokio::select! {
                message = session.message() => if matches!(message, Message::Lookup { .. }) { return },
                _ = server.query() => {}
            }
        }
    })
    .await;
}

/// The server, linked to its agent.
async fn linked(upstream: SocketAddr, patience: &Patience) -> (Server, ScriptedAgent, Session) {
    let mut agent = ScriptedAgent::start();
    let server = Server::new(upstream, Some(&agent), patience);
    let session = agent.session().await;
    // The link is up at the server once it has read the Hello, which left with the answer to its own.
    soon(async {
        while server.metrics.agent.links() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    (server, agent, session)
}

/// An entry as the mesh would send it.
fn entry() -> Entry {
    let query = [&[0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], scripted::NAME, &[0, 1, 0, 1]].concat();
    let key = scripted::key();
    let answer =
        heimdall_shared::dns::answer::normalise(&key, &scripted::answer(&query), &TtlLimits::default()).unwrap();
    Entry { packet: answer.packet, born: Moment::now(), lifetime: answer.lifetime, since: 0 }
}

fn is_answer(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Answer { .. })
}

fn is_fresh(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Answer { fresh: true, .. })
}

#[tokio::test]
async fn a_hundred_clients_of_one_name_cost_one_query() {
    let (upstream, mut seen, answer) = held_upstream().await;
    let server = Server::new(upstream, None, &PATIENT);
    let clients: Vec<_> = (0..100).map(|_| server.query()).collect();
    seen.recv().await.unwrap();
    answer.send(()).unwrap();
    for client in clients {
        assert!(is_fresh(&client.await.unwrap()));
    }
    assert_eq!(server.metrics.upstream.resolutions(), 1);
    assert!(server.is_cached());
}

#[tokio::test]
async fn a_client_that_goes_away_takes_nothing_with_it() {
    let (upstream, mut seen, answer) = held_upstream().await;
    let server = Server::new(upstream, None, &PATIENT);
    let first = server.query();
    seen.recv().await.unwrap();
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    let second = server.query();
    answer.send(()).unwrap();
    assert!(is_answer(&second.await.unwrap()));
    assert_eq!(server.metrics.upstream.resolutions(), 1);
}

#[tokio::test]
async fn clients_beyond_the_limit_of_one_flight_are_refused_at_once() {
    let (upstream, mut seen, answer) = held_upstream().await;
    let server = Server::new(upstream, None, &PATIENT);
    let clients: Vec<_> = (0..waiting::WAITERS_MAX + 5).map(|_| server.query()).collect();
    seen.recv().await.unwrap();
    answer.send(()).unwrap();
    let mut refused = 0;
    for client in clients {
        match client.await.unwrap() {
            Outcome::Answer { .. } => {}
            Outcome::Refused => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(refused, 5);
    assert_eq!(server.count(MissOutcome::refused), 5);
}

#[tokio::test]
async fn a_granted_lease_ends_with_a_publish_that_carries_its_token() {
    let (upstream, _seen) = answering().await;
    let (server, _agent, mut session) = linked(upstream, &PATIENT).await;
    let client = server.query();
    let (id, lookup) = session.lookup().await;
    assert_eq!(lookup.key, scripted::key());
    session.reply(id, Reply::Working);
    session.reply(id, Reply::Granted { token: token(1), takeover: false, ask_first: None });
    assert!(is_fresh(&client.await.unwrap()));
    let Message::Publish { publish: Publish { key, entry, token: with, .. }, .. } = session.message().await else {
        panic!("no publish")
    };
    assert_eq!((key, with), (scripted::key(), Some(token(1))));
    assert_eq!(entry.lifetime, Duration::from_secs(60));
}

#[tokio::test]
async fn an_entry_of_the_cluster_is_answered_and_kept_without_an_upstream() {
    let (upstream, _seen) = answering().await;
    let (server, _agent, mut session) = linked(upstream, &PATIENT).await;
    let client = server.query();
    let (id, _) = session.lookup().await;
    session.reply(id, Reply::Held { token: token(1), holder: None });
    session.reply(id, Reply::Entry(entry()));
    let outcome = client.await.unwrap();
    assert!(is_answer(&outcome) && !is_fresh(&outcome));
    assert!(server.is_cached());
    assert_eq!(server.metrics.upstream.resolutions(), 0);
    assert_eq!((server.count(MissOutcome::held_entry), server.metrics.mesh_hits.get()), (1, 1));
}

#[tokio::test]
async fn an_entry_that_answers_another_question_is_as_good_as_none() {
    let (upstream, _seen) = answering().await;
    let (server, _agent, mut session) = linked(upstream, &PATIENT).await;
    let client = server.query();
    let (id, _) = session.lookup().await;
    let mut packet = entry().packet.to_vec();
    packet[scripted::QUESTION_END - 3] = 28;
    session.reply(id, Reply::Entry(Entry { packet: packet.into(), ..entry() }));
    assert!(is_fresh(&client.await.unwrap()));
    assert_eq!(server.metrics.agent.refused_entries(), 1);
}

#[tokio::test]
async fn a_watched_lease_is_ticked_until_it_ends_and_says_when_it_struggles() {
    let (upstream, mut seen, answer) = held_upstream().await;
    let patience = Patience { attempt: SHORT, ..PATIENT };
    let (server, _agent, mut session) = linked(upstream, &patience).await;
    let client = server.query();
    let (id, _) = session.lookup().await;
    session.reply(id, Reply::Granted { token: token(1), takeover: false, ask_first: None });
    session.link.push(Message::Watch { token: token(1) }).unwrap();
    seen.recv().await.unwrap();
    let mut ticks = 0;
    loop {
        match session.message().await {
            Message::Tick { working, struggling } => {
                ticks += 1;
                assert_eq!(working, [token(1)]);
                if struggling == [token(1)] {
                    break;
                }
            }
            // A struggling holder asks once more, for what others may find.
            Message::Lookup { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    // One at once, one per period, and one when the first attempt's time was over.
    assert!(ticks >= 2, "{ticks} ticks");
    answer.send(()).unwrap();
    assert!(is_answer(&client.await.unwrap()));
    let published = soon(async {
        loop {
            if let Message::Publish { publish, .. } = session.message().await {
                break publish;
            }
        }
    })
    .await;
    assert_eq!(published.token, Some(token(1)));
    server.resolver.drain().await;
    assert!(!session.rest().await.iter().any(|message| matches!(message, Message::Tick { .. })));
}

#[tokio::test]
async fn a_holder_whose_network_is_broken_answers_with_what_another_replica_finds() {
    let (upstream, _seen) = scripted::upstream(|_, _| Vec::new()).await;
    let patience = Patience { attempt: SHORT, ..PATIENT };
    let (server, _agent, mut session) = linked(upstream, &patience).await;
    let client = server.query();
    let (id, _) = session.lookup().await;
    session.reply(id, Reply::Granted { token: token(1), takeover: false, ask_first: None });
    let (again, lookup) = session.lookup().await;
    assert_eq!(lookup.key, scripted::key());
    session.reply(again, Reply::Held { token: token(2), holder: None });
    session.reply(again, Reply::Entry(entry()));
    assert!(is_answer(&client.await.unwrap()));
    assert!(server.is_cached());
    assert_eq!(session.message().await, Message::Release { token: token(1) });
}

#[tokio::test]
async fn a_takeover_is_confirmed_with_a_tick_at_once() {
    let (upstream, mut seen, _answer) = held_upstream().await;
    let (server, _agent, mut session) = linked(upstream, &PATIENT).await;
    let _client = server.query();
    let (id, _) = session.lookup().await;
    session.reply(id, Reply::Held { token: token(1), holder: None });
    session.reply(id, Reply::Granted { token: token(2), takeover: true, ask_first: None });
    assert_eq!(session.message().await, Message::Tick { working: vec![token(2)], struggling: Vec::new() });
    seen.recv().await.unwrap();
    assert_eq!(server.count(MissOutcome::takeover), 1);
}

#[tokio::test]
async fn a_silent_mesh_is_left_and_told_so_and_gets_the_answer_all_the_same() {
    let (upstream, _seen) = answering().await;
    let patience = Patience { silence: SHORT, ..PATIENT };
    let (server, _agent, mut session) = linked(upstream, &patience).await;
    let client = server.query();
    let (id, _) = session.lookup().await;
    session.reply(id, Reply::Working);
    assert!(is_fresh(&client.await.unwrap()));
    let messages = [session.message().await, session.message().await];
    assert!(messages.contains(&Message::Cancel { id }), "{messages:?}");
    let published = messages.iter().find_map(|message| match message {
        Message::Publish { publish, .. } => Some(publish),
        _ => None,
    });
    assert_eq!(published.unwrap().token, None);
    assert_eq!((server.count(MissOutcome::silence), server.metrics.fallbacks.get()), (1, 1));
}

#[tokio::test]
async fn a_mesh_that_only_says_that_it_works_does_not_cost_the_answer() {
    let (upstream, _seen) = answering().await;
    let patience = Patience { attempt: SHORT, budget: 4 * SHORT, ..PATIENT };
    let (server, _agent, mut session) = linked(upstream, &patience).await;
    let client = server.query();
    let (id, _) = session.lookup().await;
    session.reply(id, Reply::Held { token: token(1), holder: None });
    assert!(is_fresh(&client.await.unwrap()));
    assert_eq!(server.count(MissOutcome::late), 1);
}

#[tokio::test]
async fn a_late_grant_is_adopted_by_the_query_under_way() {
    let (upstream, mut seen, answer) = held_upstream().await;
    let patience = Patience { silence: SHORT, ..PATIENT };
    let (server, _agent, mut session) = linked(upstream, &patience).await;
    let client = server.query();
    let (id, _) = session.lookup().await;
    seen.recv().await.unwrap();
    session.reply(id, Reply::Granted { token: token(9), takeover: true, ask_first: None });
    assert!(matches!(session.message().await, Message::Tick { working, .. } if working == [token(9)]));
    answer.send(()).unwrap();
    assert!(is_fresh(&client.await.unwrap()));
    server.resolver.drain().await;
    let published: Vec<_> = session
        .rest()
        .await
        .into_iter()
        .filter_map(|message| match message {
            Message::Publish { publish, .. } => Some(publish.token),
            Message::Cancel { .. } | Message::Release { .. } => panic!("{message:?}"),
            _ => None,
        })
        .collect();
    assert_eq!(published, [Some(token(9))]);
    assert_eq!(server.metrics.upstream.resolutions(), 1);
}

#[tokio::test]
async fn a_late_entry_answers_while_the_upstream_is_still_silent() {
    let (upstream, mut seen, _answer) = held_upstream().await;
    let patience = Patience { silence: SHORT, ..PATIENT };
    let (server, _agent, mut session) = linked(upstream, &patience).await;
    let client = server.query();
    let (id, _) = session.lookup().await;
    seen.recv().await.unwrap();
    session.reply(id, Reply::Entry(entry()));
    let outcome = client.await.unwrap();
    assert!(is_answer(&outcome) && !is_fresh(&outcome));
}

#[tokio::test]
async fn a_grant_that_nobody_waits_for_goes_back() {
    let (upstream, _seen) = answering().await;
    let (_server, _agent, mut session) = linked(upstream, &PATIENT).await;
    session.reply(4_711, Reply::Granted { token: token(3), takeover: false, ask_first: None });
    assert_eq!(session.message().await, Message::Release { token: token(3) });
}

#[tokio::test]
async fn an_agent_that_dies_costs_nothing_and_is_found_again() {
    let (upstream, mut seen) = scripted::upstream(|_, query| vec![without_life(query)]).await;
    let (server, mut agent, mut session) = linked(upstream, &PATIENT).await;
    let client = server.query();
    session.lookup().await;
    agent.kill();
    assert!(is_fresh(&soon(client).await.unwrap()));
    seen.recv().await.unwrap();
    assert_eq!(server.count(MissOutcome::link_down), 1);

    agent.restart();
    let mut session = agent.session().await;
    is_asked_again(&server, &mut session).await;
}

#[tokio::test]
async fn a_missing_socket_makes_a_complete_forwarder() {
    let (upstream, _seen) = answering().await;
    let mut agent = ScriptedAgent::start();
    agent.kill();
    std::fs::remove_file(agent.socket()).unwrap();
    let server = Server::new(upstream, Some(&agent), &PATIENT);
    assert!(is_fresh(&soon(server.query()).await.unwrap()));
    server.resolver.drain().await;
}

#[tokio::test]
async fn after_three_silences_the_agent_is_not_asked_until_it_speaks() {
    let (upstream, _seen) = scripted::upstream(|_, query| vec![without_life(query)]).await;
    let patience = Patience { silence: SHORT, ..PATIENT };
    let (server, _agent, mut session) = linked(upstream, &patience).await;
    session.freeze(true);
    let mut misses = 0;
    while server.count(MissOutcome::breaker_open) == 0 {
        misses += 1;
        assert!(is_fresh(&soon(server.query()).await.unwrap()));
        assert!(misses < 20, "the breaker must open");
    }
    // A ping that had left before the freeze may have cut the first window.
    assert!((4..=5).contains(&misses), "{misses} misses");
    // One query was needed to see that it is open; it was not asked of the agent.
    let lookups = session.so_far().iter().filter(|message| matches!(message, Message::Lookup { .. })).count();
    assert!(lookups < misses, "{lookups} lookups for {misses} misses");
    session.freeze(false);
    is_asked_again(&server, &mut session).await;
}

#[tokio::test]
async fn what_may_not_be_kept_goes_to_those_who_wait_and_nowhere_else() {
    let (upstream, _seen) = scripted::upstream(|_, query| vec![without_life(query)]).await;
    let (server, _agent, mut session) = linked(upstream, &PATIENT).await;
    let client = server.query();
    let (id, _) = session.lookup().await;
    session.reply(id, Reply::Granted { token: token(1), takeover: false, ask_first: None });
    let Outcome::Answer { entry, .. } = client.await.unwrap() else { panic!("no answer") };
    assert_eq!(entry.lifetime, Duration::ZERO);
    assert!(!server.is_cached());
    assert!(matches!(session.message().await, Message::Publish { publish, .. } if publish.token == Some(token(1))));
}

#[tokio::test]
async fn the_upstreams_own_failure_is_told_and_remembered() {
    let (upstream, mut seen) = scripted::upstream(|_, query| vec![scripted::error(query, SERVFAIL)]).await;
    let (server, _agent, mut session) = linked(upstream, &PATIENT).await;
    let client = server.query();
    let (id, _) = session.lookup().await;
    session.reply(id, Reply::Granted { token: token(1), takeover: false, ask_first: None });
    assert_eq!(client.await.unwrap(), Outcome::Failed);
    assert_eq!(session.message().await, Message::Fail { token: token(1), kind: FailureKind::Shared });
    seen.recv().await.unwrap();
    assert_eq!(server.query().await.unwrap(), Outcome::Failed);
    assert!(seen.try_recv().is_err() && session.so_far().is_empty());
}

#[tokio::test]
async fn a_failure_of_the_cluster_is_remembered_for_as_long_as_it_says() {
    let (upstream, _seen) = answering().await;
    let (server, _agent, mut session) = linked(upstream, &PATIENT).await;
    let client = server.query();
    let (id, _) = session.lookup().await;
    session.reply(id, Reply::Failure { remaining: LONG });
    assert_eq!(client.await.unwrap(), Outcome::Failed);
    assert_eq!(server.query().await.unwrap(), Outcome::Failed);
    assert!(session.so_far().is_empty());
    assert_eq!(server.metrics.upstream.resolutions(), 0);
}

#[tokio::test]
async fn a_process_whose_network_failed_still_asks_the_others() {
    let (upstream, _seen) = scripted::upstream(|_, _| Vec::new()).await;
    let patience = Patience { attempt: SHORT, budget: SHORT, ..PATIENT };
    let (server, _agent, mut session) = linked(upstream, &patience).await;
    let client = server.query();
    let (id, _) = session.lookup().await;
    session.reply(id, Reply::Granted { token: token(1), takeover: false, ask_first: None });
    assert_eq!(client.await.unwrap(), Outcome::Failed);
    assert_eq!(session.message().await, Message::Fail { token: token(1), kind: FailureKind::Local });

    let client = server.query();
    let (id, _) = session.lookup().await;
    session.reply(id, Reply::Entry(entry()));
    assert!(is_answer(&client.await.unwrap()));
    assert_eq!(server.metrics.upstream.resolutions(), 1);
}

#[tokio::test]
async fn what_was_published_leaves_before_the_link_closes() {
    let (upstream, _seen) = answering().await;
    let (server, _agent, mut session) = linked(upstream, &PATIENT).await;
    let client = server.query();
    let (id, _) = session.lookup().await;
    session.reply(id, Reply::Granted { token: token(1), takeover: false, ask_first: None });
    assert!(is_fresh(&client.await.unwrap()));
    soon(server.resolver.drain()).await;
    let rest = session.rest().await;
    assert!(matches!(&rest[..], [Message::Publish { .. }]), "{rest:?}");
}

#[tokio::test]
async fn a_refresh_asks_for_a_younger_answer_and_takes_the_lease_for_it() {
    let (upstream, _seen) = answering().await;
    let (server, _agent, mut session) = linked(upstream, &PATIENT).await;
    let key = scripted::key();
    let born = Moment::now().minus(Duration::from_secs(9));
    server.cache.insert(&key, &Entry { born, ..entry() }, Moment::now());
    server.resolver.refresh(&key);
    server.resolver.refresh(&key);
    let (id, lookup) = session.lookup().await;
    assert!(matches!(lookup.mode, LookupMode::Refresh { held } if held <= born));
    assert!(is_answer(&server.query().await.unwrap()), "nobody waits for a refresh");
    session.reply(id, Reply::Granted { token: token(1), takeover: false, ask_first: None });
    assert!(matches!(session.message().await, Message::Publish { publish, .. } if publish.token == Some(token(1))));
    assert!(server.cache.get(key.as_bytes(), Moment::now()).is_some_and(|ready| ready.born() > born));
    assert_eq!((server.metrics.refreshes.get(), server.metrics.refresh_resolutions.get()), (1, 1));
    assert_eq!(server.count(MissOutcome::granted), 0, "it is no miss");
}

/// Sends a question of the agent's, and gives the upstream's word that comes back.
async fn checked(session: &mut Session, id: u64) -> Option<Entry> {
    session.link.push(Message::Check { id, key: scripted::key() }).unwrap();
    match session.message().await {
        Message::Reply { id: of, reply: Reply::Checked { entry, source: None } } if of == id => entry,
        other => panic!("{other:?} instead of the upstream's word"),
    }
}

#[tokio::test]
async fn what_the_agent_wants_to_compare_is_asked_of_an_upstream_and_kept() {
    let (upstream, mut seen) = answering().await;
    let (server, _agent, mut session) = linked(upstream, &PATIENT).await;
    let mut asked = 0;
    let entry = loop {
        asked += 1;
        // A machine that stands still for a while has no answer in time.
        if let Some(entry) = checked(&mut session, 2 * asked).await {
            break entry;
        }
    };
    seen.recv().await.unwrap();
    assert_eq!(entry.packet, self::entry().packet);
    assert_eq!(server.metrics.peer_checks.get(), asked);
    // The next client has it from there, and asks nobody.
    assert!(is_answer(&server.query().await.unwrap()));
    assert!(session.so_far().is_empty());
}
