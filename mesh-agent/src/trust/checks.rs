//! Checking what a peer gave, beside the way of every query: this replica's dns-server asks an upstream, and a lie is traced to
//! who it came from.

use std::sync::Arc;
use std::time::Duration;

use heimdall_shared::clock::Moment;
use heimdall_shared::entry::Entry;
use heimdall_shared::key::Key;
use heimdall_shared::link::{Message, Reply};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use xxhash_rust::xxh3::xxh3_64;

use super::ledger::{Blame, CUT_OFF, CutOff};
use super::sampling::Allowance;
use super::verdict::{self, Verdict};
use crate::agent::Agent;
use crate::request::Request;

/// Answers that may wait to be checked; one more is not.
const WAITING: usize = 64;

/// Checks under way at a time: each waits for an upstream most of its time.
const AT_ONCE: usize = 8;

/// The dns-server says what an upstream said within this time: it gives each question 2 s, and some wait for others.
const ANSWER_WITHIN: Duration = Duration::from_secs(6);

/// A peer says who an entry came from within this time. Nobody waits for it, and who does not say is to blame himself: so there
/// is time for one that is busy.
const SOURCE_WITHIN: Duration = Duration::from_secs(3);

/// Lies of a member that is cut off are under way for this long: what others have of it, and what is being checked.
const UNDER_WAY: Duration = Duration::from_secs(15);

/// An entry is traced over this many members: from its owner's copy to its owner to who fetched it, and one more.
const TRACED_MAX: usize = 4;

/// An entry of a peer's that is to be checked.
#[derive(Clone, Debug)]
pub struct Suspect {
    /// What it answers.
    pub key: Key,
    /// What the peer gave.
    pub entry: Entry,
    /// The peer.
    pub from: Arc<str>,
}

/// The queue of what is to be checked.
pub fn channel() -> (mpsc::Sender<Suspect>, mpsc::Receiver<Suspect>) {
    mpsc::channel(WAITING)
}

/// Checks until `stop` is cancelled.
pub async fn run(agent: Arc<Agent>, mut suspects: mpsc::Receiver<Suspect>, stop: CancellationToken) {
    let mut allowance = Allowance::new(Moment::now());
    let mut under_way = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = under_way.join_next() => {}
            suspect = suspects.recv(), if under_way.len() < AT_ONCE => match suspect {
                Some(suspect) if allowance.take(Moment::now()) => {
                    under_way.spawn(check(Arc::clone(&agent), suspect));
                }
                Some(_) => agent.trust.metrics().check("dropped"),
                None => break,
            },
        }
    }
    under_way.shutdown().await;
}

async fn check(agent: Arc<Agent>, suspect: Suspect) {
    let Suspect { key, entry, from } = suspect;
    let Some((verdict, truth)) = compare(&agent, &key, &entry).await else {
        agent.trust.metrics().check("unanswered");
        debug!(%from, "no upstream said what to compare an answer with");
        return;
    };
    agent.trust.metrics().check(verdict.as_str());
    debug!(%from, verdict = verdict.as_str(), "an answer was compared with an upstream's");
    match verdict {
        Verdict::Agrees => agent.trust.note(|ledger, now| ledger.agreed(&from, now)),
        Verdict::Unclear => {}
        Verdict::Contradicts => {
            // What this replica knows from its own upstream takes the lie's place.
            agent.store.remove(&key);
            agent.store.keep_own(&key, &truth, &agent.name, &agent.view(), Moment::now());
            let name = xxh3_64(key.name());
            let chain = trace(&agent, &key, from).await;
            debug!(?chain, "an answer of a peer's contradicts the upstream");
            if is_known(&agent, &chain) {
                return;
            }
            for (member, blame) in chain {
                let cut_off = agent.trust.note(|ledger, now| ledger.lied(&member, name, blame, now));
                if let Some(cut_off) = cut_off {
                    act(&agent, &cut_off);
                }
            }
        }
    }
}

/// Compares an entry with what an upstream says, and says that. `None` when none gave an answer.
async fn compare(agent: &Agent, key: &Key, entry: &Entry) -> Option<(Verdict, Entry)> {
    let first = ask(agent, key).await?;
    let verdict = verdict::compare(key, &entry.packet, &first.packet);
    if verdict != Verdict::Contradicts {
        return Some((verdict, first));
    }
    let second = ask(agent, key).await?;
    Some((verdict::confirm(key, &entry.packet, &first.packet, &second.packet), second))
}

/// What an upstream says, through any stream of this replica's dns-server.
async fn ask(agent: &Agent, key: &Key) -> Option<Entry> {
    let stream = agent.links.connected().streams.values().next().cloned()?;
    let mut pending = stream.requests.open()?;
    let asked = stream.link.push(Message::Check { id: pending.id, key: key.clone() });
    let reply = match asked {
        Ok(()) => timeout(ANSWER_WITHIN, pending.replies.recv()).await.ok().flatten(),
        Err(_full) => None,
    };
    stream.requests.close(pending.id);
    match reply? {
        Reply::Checked { entry, .. } => agent.check(key, &entry?).ok(),
        _ => None,
    }
}

/// Who an entry came from, beginning with who gave it to this replica: each is asked who it has it from. The last one is to
/// blame, as far as anybody can say; those before it passed it on.
async fn trace(agent: &Agent, key: &Key, from: Arc<str>) -> Vec<(Arc<str>, Blame)> {
    let mut chain = vec![from];
    while chain.len() < TRACED_MAX {
        let last = chain.last().expect("a chain must begin with somebody");
        let Some(source) = source(agent, last, key).await else { break };
        let is_other = source != agent.name && !chain.contains(&source) && agent.view().ring().contains(&source);
        if !is_other {
            break;
        }
        chain.push(source);
    }
    let last = chain.len() - 1;
    let blame = |index| if index == last { Blame::Own } else { Blame::Relayed };
    chain.into_iter().enumerate().map(|(index, member)| (member, blame(index))).collect()
}

/// Whether the one to blame was cut off a moment ago: those who passed its lies on need that moment to find out too.
fn is_known(agent: &Agent, chain: &[(Arc<str>, Blame)]) -> bool {
    let cut_off = chain.last().and_then(|(member, _)| agent.trust.cut_off(member, Moment::now()));
    cut_off.is_some_and(|(left, _)| left + UNDER_WAY > CUT_OFF)
}

async fn source(agent: &Agent, member: &str, key: &Key) -> Option<Arc<str>> {
    let peer = agent.links.peer(member)?;
    let mut request = Request::send(&peer, |id| Message::Check { id, key: key.clone() })?;
    match timeout(SOURCE_WITHIN, request.replies().recv()).await.ok()?? {
        Reply::Checked { source, .. } => source,
        _ => None,
    }
}

/// Answers a peer that found this replica's answer for `key` wrong: who it came from. It is checked here too.
pub fn accused(agent: &Agent, key: &Key) -> Reply {
    let found = agent.store.origin(key);
    let source = found.map(|found| match found.origin.peer() {
        None => Arc::clone(&agent.name),
        Some(from) => {
            agent.trust.accused(key, &found.entry, from);
            Arc::clone(from)
        }
    });
    Reply::Checked { entry: None, source }
}

/// Cuts a member off: its link ends and is not taken again for a while, and what it gave is dropped.
fn act(agent: &Agent, cut_off: &CutOff) {
    let CutOff { member, lies, checked, until } = cut_off;
    let dropped = agent.store.forget_from(member);
    agent.trust.metrics().cut_off(member);
    warn!(
        %member,
        lies,
        checked,
        dropped,
        for_secs = until.since(Moment::now()).as_secs(),
        "member is cut off: its answers contradict the upstreams. Look whether somebody else has taken it over, and whether \
         it asks the same upstreams as the others"
    );
    if let Some(peer) = agent.links.peer(member) {
        peer.link.close();
    }
}
