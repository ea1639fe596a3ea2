//! The link to a scripted agent.

use heimdall_shared::key::Flags;
use heimdall_shared::link::{REQUESTS_IN_FLIGHT, Reply};

use super::scripted::{ScriptedAgent, Session, soon, token};
use super::*;

const LONG: Duration = Duration::from_secs(20);

fn key(number: u16) -> Key {
    let [high, low] = number.to_be_bytes();
    Key::new(&[2, high, low, 0], 1, 1, Flags::default(), "").unwrap()
}

fn purges() -> Arc<Purges> {
    Arc::new(Purges::new(Arc::new(crate::cache::Cache::new(1 << 20).unwrap()), Duration::ZERO))
}

/// A link that is up, and the other end of it.
async fn linked() -> (Linked, ScriptedAgent, Session, tokio_util::sync::DropGuard) {
    let mut scripted = ScriptedAgent::start();
    let settings = Settings { socket: scripted.socket(), tick: LONG, silence: LONG };
    let agent = Agent::new(settings, 3, &Metrics::default(), &Arc::default(), &purges());
    let stop = tokio_util::sync::CancellationToken::new();
    tokio::spawn(Arc::clone(&agent).run(stop.clone()));
    let session = scripted.session().await;
    until(|| agent.is_up()).await;
    (Linked(agent), scripted, session, stop.drop_guard())
}

async fn until(mut happened: impl FnMut() -> bool) {
    soon(async {
        while !happened() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

fn ask(mesh: &Linked, number: u16) -> Result<Conversation, Absent> {
    mesh.ask(&key(number), Question { mode: LookupMode::Join, deadline: LONG, trace: None })
}

#[tokio::test]
async fn a_lookup_says_who_asks_and_how_long_it_may_take() {
    let (mesh, _agent, mut session, _stop) = linked().await;
    let trace = TraceContext { trace_id: [1; 16], span_id: [2; 8], sampled: true };
    let question = Question { mode: LookupMode::Join, deadline: Duration::from_millis(1_500), trace: Some(trace) };
    let _conversation = mesh.ask(&key(1), question).unwrap();
    let (id, lookup) = session.lookup().await;
    assert_eq!(id % 2, 1, "the dialler's ids are odd");
    let expected = Lookup {
        key: key(1),
        deadline: Duration::from_millis(1_500),
        skipped: Vec::new(),
        stream: 3,
        trace: Some(trace),
        mode: LookupMode::Join,
    };
    assert_eq!(lookup, expected);
}

#[tokio::test]
async fn ticks_of_the_lease_that_is_waited_for_put_the_end_of_patience_off() {
    let (mesh, _agent, mut session, _stop) = linked().await;
    let mut conversation = ask(&mesh, 1).unwrap();
    let (id, _) = session.lookup().await;
    session.reply(id, Reply::Held { token: token(1), holder: None });
    assert!(matches!(conversation.next().await, Word::Held(None)));
    let silence = conversation.silence();

    // Somebody else's lease says nothing about this one. The answer behind it shows that it was read.
    let before = silence.expires_at();
    let mut other = ask(&mesh, 2).unwrap();
    let (other_id, _) = session.lookup().await;
    session.link.push(Message::Tick { working: vec![token(2)], struggling: Vec::new() }).unwrap();
    session.reply(other_id, Reply::Proceed);
    assert!(matches!(other.next().await, Word::Proceed));
    assert_eq!(silence.expires_at(), before);

    for (working, struggling) in [(vec![token(1)], vec![]), (vec![], vec![token(1)])] {
        let before = silence.expires_at();
        session.link.push(Message::Tick { working, struggling }).unwrap();
        until(|| silence.expires_at() > before).await;
    }
}

#[tokio::test]
async fn a_conversation_that_is_dropped_is_called_back() {
    let (mesh, _agent, mut session, _stop) = linked().await;
    let conversation = ask(&mesh, 1).unwrap();
    let (id, _) = session.lookup().await;
    drop(conversation);
    assert_eq!(session.message().await, Message::Cancel { id });
}

#[tokio::test]
async fn a_grant_that_was_not_read_goes_back() {
    let (mesh, _agent, mut session, _stop) = linked().await;
    let conversation = ask(&mesh, 1).unwrap();
    let (id, _) = session.lookup().await;
    session.reply(id, Reply::Granted { token: token(1), takeover: true, ask_first: None });
    // The tick shows that the grant arrived.
    assert!(matches!(session.message().await, Message::Tick { .. }));
    drop(conversation);
    let released = soon(async {
        loop {
            match session.message().await {
                Message::Release { token } => return token,
                Message::Tick { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    });
    assert_eq!(released.await, token(1));
}

#[tokio::test]
async fn lookups_beyond_the_limit_go_on_without_the_mesh() {
    let (mesh, _agent, _session, _stop) = linked().await;
    let mut asked: Vec<_> = (0..REQUESTS_IN_FLIGHT as u16).map(|number| ask(&mesh, number).unwrap()).collect();
    assert_eq!(ask(&mesh, 9_999).unwrap_err(), Absent::Unable(MissOutcome::limit));
    // What is queued may have to leave first: the queue has a limit of its own.
    asked.pop();
    until(|| ask(&mesh, 9_999).is_ok()).await;
}

#[tokio::test]
async fn a_leaving_agent_is_asked_nothing_new_and_still_answers() {
    let (mesh, _agent, mut session, _stop) = linked().await;
    let mut conversation = ask(&mesh, 1).unwrap();
    let (id, _) = session.lookup().await;
    session.link.push(Message::Leaving).unwrap();
    session.reply(id, Reply::Proceed);
    assert!(matches!(conversation.next().await, Word::Proceed));
    assert_eq!(ask(&mesh, 2).unwrap_err(), Absent::Unable(MissOutcome::link_down));
}

#[tokio::test]
async fn a_broken_link_ends_every_conversation_on_it() {
    let (mesh, mut agent, mut session, _stop) = linked().await;
    let mut conversation = ask(&mesh, 1).unwrap();
    session.lookup().await;
    agent.kill();
    assert!(matches!(soon(conversation.next()).await, Word::LinkDown));
    until(|| !mesh.0.is_up()).await;
    assert_eq!(ask(&mesh, 2).unwrap_err(), Absent::Unable(MissOutcome::link_down));
}

#[tokio::test]
async fn the_agent_hears_of_every_purge_that_this_process_has_applied() {
    use heimdall_shared::purge::{Applied, Purge, PurgeId, Purges as Said, Scope};
    let (_mesh, _agent, mut session, _stop) = linked().await;
    let whole = Message::Purges(Said::Whole { position: 0, marks: Vec::new() });
    assert_eq!(soon(session.purges.recv()).await, Some(whole.clone()), "before anything else");
    assert_eq!(soon(session.purges.recv()).await, Some(Message::PurgesDone { position: 0 }));
    session.link.push(whole).unwrap();
    let id = PurgeId { origin: "a".into(), incarnation: 7, sequence: 1 };
    let purge = Purge { id, scope: Scope::Everything, issued: Moment::now(), folds: Vec::new(), injected: None };
    let next = Applied { position: 1, purge: Arc::new(purge) };
    session.link.push(Message::Purges(Said::Next(next.clone()))).unwrap();
    let Some(Message::Purges(Said::Next(repeated))) = soon(session.purges.recv()).await else { panic!("no purge") };
    assert_eq!((repeated.position, &repeated.purge.id), (1, &next.purge.id));
    // One that leaves a purge out cannot be relied on: the link ends.
    session.link.push(Message::Purges(Said::Next(Applied { position: 3, ..next }))).unwrap();
    soon(session.link.closed()).await;
}
