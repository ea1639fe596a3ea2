//! The unary calls of both surfaces. Each is the same operation as its message on a session stream: same store, same
//! granter, same rules.

use std::sync::Arc;
use std::time::Duration;

use heimdall_proto::v1 as pb;
use heimdall_shared::clock::Moment;
use heimdall_shared::entry::Entry;
use heimdall_shared::key::Key;
use heimdall_shared::link::{Condition, Lookup, LookupMode, Message, NodeState, Publish, Replies, Reply, Wait};
use heimdall_shared::trace::TraceContext;
use heimdall_shared::wire;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use crate::agent::Agent;
use crate::granter::{Event, Publication};
use crate::lease::{Asker, Holder};
use crate::links::{Call, Peer};
use crate::lookup::{self, ReplyTo, Way};
use crate::membership::{Reason, State};
use crate::metrics::CallLabels;
use crate::publish::{self, Destination};
use crate::request::Request;
use crate::transfer::Taken;

/// A call that is answered at once takes at most this long, hops included.
const CALL_WITHIN: Duration = wire::PUSH_ALLOWANCE;

/// The long call for a result ends after this: a lease and one takeover.
const WAIT_WITHIN: Duration = Duration::from_secs(10);

/// Unary callers have no stream whose end would end their leases; the lease's own time does.
const NO_STREAM: u64 = 0;

/// Who makes a unary call.
#[derive(Clone, Debug)]
pub enum Caller {
    /// This replica's own dns-server or somebody on its machine: wants the cluster's answer.
    Local,
    /// Another replica: wants this one's.
    Replica(Arc<str>),
    /// An operator: wants this one's, and may look around.
    Operator,
}

/// The operations behind both surfaces.
#[derive(Clone, Debug)]
pub struct Operations {
    agent: Arc<Agent>,
}

impl Operations {
    /// Operations of `agent`.
    pub const fn new(agent: Arc<Agent>) -> Self {
        Self { agent }
    }

    /// The agent behind the operations.
    pub const fn agent(&self) -> &Arc<Agent> {
        &self.agent
    }

    /// What this replica has for a key or, for a local caller, what the cluster has.
    pub async fn get(
        &self,
        caller: Caller,
        request: pb::GetCacheEntryRequest,
    ) -> Result<pb::GetCacheEntryResponse, Status> {
        self.count("GetCacheEntry");
        let key = key(request.key.as_ref())?;
        let found = |entry: &Entry, replica: &str| pb::GetCacheEntryResponse {
            found: true,
            entry: Some(wire::entry_to_proto(entry, Moment::now())),
            replica: replica.to_owned(),
        };
        if let Some(entry) = self.agent.stored(&key, Moment::now()) {
            return Ok(found(&entry, &self.agent.name));
        }
        if matches!(caller, Caller::Local) {
            for (replica, entry) in self.peek(&key).await? {
                if let Some(Some(entry)) = entry {
                    return Ok(found(&entry, &replica));
                }
            }
        }
        Ok(pb::GetCacheEntryResponse::default())
    }

    /// Publishes an answer.
    pub async fn set(
        &self,
        caller: Caller,
        request: pb::SetCacheEntryRequest,
    ) -> Result<pb::SetCacheEntryResponse, Status> {
        self.count("SetCacheEntry");
        let key = key(request.key.as_ref())?;
        let entry = request.entry.ok_or_else(|| Status::invalid_argument("the entry is missing"))?;
        // Nothing dates a pushed age: it loses what such a call may take at most.
        let anchor = Moment::now().minus(wire::PUSH_ALLOWANCE);
        let mut entry = wire::entry_from_proto(entry, anchor).map_err(invalid)?;
        entry.since = self.agent.purges.dated(&key, entry.born);
        let token = request.token.map(|token| wire::token_from_proto(Some(token))).transpose().map_err(invalid)?;
        let level =
            match request.level {
                0 => None,
                number => pb::WriteLevel::try_from(number).ok().and_then(wire::level_from_proto).map(Some).ok_or_else(
                    || Status::invalid_argument(format!("write level {number} is none that this release knows")),
                )?,
            };
        // The copies have their own time, after that of the call itself.
        let within = CALL_WITHIN + self.agent.promise.within;
        let reply = match caller {
            Caller::Operator => {
                return Err(Status::permission_denied("an operator reads and inspects; it does not write"));
            }
            Caller::Local => self.publish_for_stream(Publish { key, entry, token, level }, within).await?,
            Caller::Replica(member) => {
                let entry = self.agent.check(&key, &entry).map_err(invalid)?;
                self.agent.trust.taken(&key, &entry, &member);
                let mut call = self.call()?;
                let reply_to = Some(ReplyTo { link: call.id, request: 0 });
                let from = unary_holder(member);
                self.tell(Event::Publish(Publication { key, entry, token, from, level, reply_to }))?;
                last_word(&mut call.replies, within).await?
            }
        };
        match reply {
            Reply::Stored { copies, needed } if copies < needed => Err(level_not_reached(copies, needed)),
            Reply::Stored { copies, needed } => {
                Ok(pb::SetCacheEntryResponse { stored: true, reason: String::new(), copies, needed })
            }
            Reply::Refused(reason) => Ok(pb::SetCacheEntryResponse { stored: false, reason, copies: 0, needed: 1 }),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks for the right to fetch a key.
    pub async fn acquire(
        &self,
        caller: Caller,
        request: pb::AcquireQueryLockRequest,
        trace: Option<TraceContext>,
    ) -> Result<pb::AcquireQueryLockResponse, Status> {
        self.count("AcquireQueryLock");
        let lookup = Lookup {
            key: key(request.key.as_ref())?,
            deadline: CALL_WITHIN,
            skipped: Vec::new(),
            stream: NO_STREAM,
            trace,
            mode: LookupMode::Acquire,
        };
        let mut call = self.call()?;
        let to = ReplyTo { link: call.id, request: 0 };
        if let Some(entry) = self.agent.stored(&lookup.key, Moment::now()) {
            return Ok(pb::AcquireQueryLockResponse { answer: wire::lock_answer(&Reply::Entry(entry), Moment::now()) });
        }
        let answered = async {
            match caller {
                Caller::Local => {
                    let until = Instant::now() + CALL_WITHIN;
                    if let Some(way) = Way::begin(&self.agent, to, lookup, Moment::now(), until) {
                        way.go().await;
                    }
                }
                Caller::Replica(member) => {
                    lookup::for_peer(&self.agent, &unary_holder(member), to, lookup, Moment::now());
                }
                Caller::Operator => return Err(Status::permission_denied("an operator takes no leases")),
            }
            last_word(&mut call.replies, CALL_WITHIN).await
        };
        let reply = timeout(CALL_WITHIN, answered).await.unwrap_or_else(|_| Err(too_late(CALL_WITHIN)))?;
        Ok(pb::AcquireQueryLockResponse { answer: wire::lock_answer(&reply, Moment::now()) })
    }

    /// Waits for the result of a lease.
    pub async fn wait(
        &self,
        caller: Caller,
        request: pb::WaitForResultRequest,
    ) -> Result<pb::WaitForResultResponse, Status> {
        self.count("WaitForResult");
        let key = key(request.key.as_ref())?;
        let token = wire::token_from_proto(request.token).map_err(invalid)?;
        let remote = matches!(caller, Caller::Local) && *token.granter != *self.agent.name;
        let reply = if remote {
            let peer = self.granter_of(&token.granter)?;
            let wait = Wait { key: key.clone(), token, stream: NO_STREAM, trace: None };
            let mut request = ask(&peer, |id| Message::Wait { id, wait })?;
            match result(request.replies(), WAIT_WITHIN).await? {
                Reply::Entry(entry) => Reply::Entry(self.agent.check(&key, &entry).map_err(invalid)?),
                other => other,
            }
        } else {
            let holder = self.holder(caller)?;
            let mut call = self.call()?;
            let asker = Asker {
                link: call.id,
                request: 0,
                member: holder.member,
                incarnation: holder.incarnation,
                stream: NO_STREAM,
                trace: None,
            };
            self.tell(Event::Wait { key, token, asker })?;
            let reply = result(&mut call.replies, WAIT_WITHIN).await;
            if reply.is_err() {
                self.tell(Event::Cancel { link: call.id, request: 0 })?;
            }
            reply?
        };
        Ok(pb::WaitForResultResponse { answer: wire::lock_answer(&reply, Moment::now()) })
    }

    /// Gives a lease back.
    pub async fn release(
        &self,
        caller: Caller,
        request: pb::ReleaseQueryLockRequest,
    ) -> Result<pb::ReleaseQueryLockResponse, Status> {
        self.count("ReleaseQueryLock");
        let token = wire::token_from_proto(request.token).map_err(invalid)?;
        if matches!(caller, Caller::Local) && *token.granter != *self.agent.name {
            let peer = self.granter_of(&token.granter)?;
            let released = peer.link.push(Message::Release { token }).is_ok();
            return Ok(pb::ReleaseQueryLockResponse { released });
        }
        let from = self.holder(caller)?;
        let (answer, released) = oneshot::channel();
        self.tell(Event::Release { token, from, answer: Some(answer) })?;
        let released = timeout(CALL_WITHIN, released).await.map_err(|_| too_late(CALL_WITHIN))?;
        Ok(pb::ReleaseQueryLockResponse { released: released.unwrap_or(false) })
    }

    /// Who owns a name, who has it, how old it is there. A replica that asks hears about this replica only.
    pub async fn locate(&self, caller: Caller, request: pb::LocateKeyRequest) -> Result<pb::LocateKeyResponse, Status> {
        self.count("LocateKey");
        let key = key(request.key.as_ref())?;
        let view = self.agent.view();
        let mut holdings = vec![holding(&self.agent.name, Some(&self.agent.stored(&key, Moment::now())))];
        if !matches!(caller, Caller::Replica(_)) {
            let peers = self.peek(&key).await?;
            holdings.extend(peers.into_iter().map(|(replica, entry)| holding(&replica, entry.as_ref())));
        }
        Ok(pb::LocateKeyResponse {
            slot: key.slot().into(),
            order: view.ring().order(key.slot()).map(ToString::to_string).collect(),
            replication_factor: u32::try_from(view.ring().replication_factor()).unwrap_or(u32::MAX),
            holdings,
        })
    }

    /// The members as this replica sees them.
    pub fn members(&self) -> pb::ListMembersResponse {
        self.count("ListMembers");
        let view = self.agent.view();
        let now = Moment::now();
        let said = self.agent.state();
        let own = pb::Member {
            name: self.agent.name.to_string(),
            address: self.agent.advertise.to_string(),
            state: state_of(State::Up, &said).into(),
            degraded: degraded(&said),
            reason: reason_of(&Reason::Heard, &said),
            is_self: true,
            ..pb::Member::default()
        };
        let others = view.members().iter().map(|member| {
            let link = self.agent.links.peer(&member.name);
            let link = link.as_ref().map(|peer| &peer.link);
            let cut_off = self.agent.trust.cut_off(&member.name, now);
            pb::Member {
                name: member.name.to_string(),
                address: member.learned.as_ref().unwrap_or(&member.address).to_string(),
                state: state_of(member.state, &member.said).into(),
                heard_ms_ago: link.map(|link| now.since(link.heard()).as_millis() as u64),
                round_trip_us: link.and_then(|link| link.round_trip()).map(|time| time.as_micros() as u64),
                degraded: degraded(&member.said),
                reason: match &cut_off {
                    Some((_, cut_off)) => cut_off.to_string(),
                    None => reason_of(&member.reason, &member.said),
                },
                since_ms_ago: member.for_how_long(now).as_millis() as u64,
                is_self: false,
                cut_off_ms: cut_off.map_or(0, |(left, _)| left.as_millis() as u64),
            }
        });
        pb::ListMembersResponse {
            replica: self.agent.name.to_string(),
            view_digest: view.ring().digest(),
            members: std::iter::once(own).chain(others).collect(),
        }
    }

    /// Has this replica's entries fetched by those who would keep them without it.
    pub async fn hand_off(&self, request: pb::HandOffRequest) -> pb::HandOffResponse {
        self.count("HandOff");
        if request.leave {
            self.agent.leave().await;
        }
        let results = self.agent.hand_over.run(&self.agent).await.into_iter().map(|(replica, taken)| {
            let Taken { entries, kept, complete } = taken.unwrap_or_default();
            pb::HandOffResult { replica: replica.to_string(), complete, entries, kept }
        });
        pb::HandOffResponse { results: results.collect() }
    }

    /// Looks at all other members for a live entry: per member `None` when it was out of reach.
    async fn peek(&self, key: &Key) -> Result<Vec<(Arc<str>, Option<Option<Entry>>)>, Status> {
        // A place among the calls that wait: whoever looks around leaves most of each link's requests to the data path.
        let _place = self.call()?;
        let view = self.agent.view();
        let members = view.ring().order(key.slot()).filter(|member| **member != self.agent.name).cloned();
        let looks = members.map(|member| async move {
            let found = self.peek_at(&member, key).await;
            (member, found)
        });
        Ok(futures_util::future::join_all(looks).await)
    }

    async fn peek_at(&self, member: &str, key: &Key) -> Option<Option<Entry>> {
        let peer = self.agent.links.peer(member)?;
        let lookup = Lookup {
            key: key.clone(),
            deadline: CALL_WITHIN,
            skipped: Vec::new(),
            stream: NO_STREAM,
            trace: None,
            mode: LookupMode::Peek,
        };
        let mut request = Request::send(&peer, |id| Message::Lookup { id, lookup })?;
        match last_word(request.replies(), CALL_WITHIN).await.ok()? {
            Reply::Entry(entry) => {
                let sound = self.agent.check(key, &entry).ok();
                Some(sound.filter(|entry| self.agent.store.admits(key, entry)))
            }
            _ => Some(None),
        }
    }

    async fn publish_for_stream(&self, publish: Publish, within: Duration) -> Result<Reply, Status> {
        let mut call = self.call()?;
        let reply_to = ReplyTo { link: call.id, request: 0 };
        match publish::from_stream(&self.agent, publish, Some(reply_to)).map_err(Status::invalid_argument)? {
            Destination::Here => last_word(&mut call.replies, within).await,
            Destination::Peer(peer, publish) => {
                let mut request = ask(&peer, |id| Message::Publish { id, publish })?;
                last_word(request.replies(), within).await
            }
        }
    }

    fn holder(&self, caller: Caller) -> Result<Holder, Status> {
        match caller {
            Caller::Local => Ok(Holder { member: Arc::clone(&self.agent.name), incarnation: self.agent.incarnation }),
            Caller::Replica(member) => Ok(unary_holder(member)),
            Caller::Operator => Err(Status::permission_denied("an operator holds no leases")),
        }
    }

    fn granter_of(&self, granter: &str) -> Result<Arc<Peer>, Status> {
        self.agent.links.peer(granter).ok_or_else(|| {
            Status::unavailable(format!("there is no link to {granter:?}, which granted the lease; it has ended there"))
        })
    }

    fn call(&self) -> Result<Call, Status> {
        self.agent.links.open_call().ok_or_else(|| Status::resource_exhausted("too many calls wait already; try again"))
    }

    fn tell(&self, event: Event) -> Result<(), Status> {
        self.agent.granter.send(event).map_err(|_full| {
            self.agent.metrics.granter_full.inc();
            Status::resource_exhausted("this agent has too much to do; try again")
        })
    }

    pub(super) fn count(&self, method: &'static str) {
        self.agent.metrics.calls.get_or_create(&CallLabels { method }).inc();
    }
}

/// A replica that calls has no stream here that would say its incarnation; its certificate says who it is.
const fn unary_holder(member: Arc<str>) -> Holder {
    Holder { member, incarnation: 0 }
}

/// The first reply that says more than "working".
async fn last_word(replies: &mut Replies, within: Duration) -> Result<Reply, Status> {
    first(replies, within, |reply| !matches!(reply, Reply::Working)).await
}

/// How a wait ends. That it has begun is said with "held", and is no result.
async fn result(replies: &mut Replies, within: Duration) -> Result<Reply, Status> {
    first(replies, within, |reply| !matches!(reply, Reply::Working | Reply::Held { .. })).await
}

async fn first(replies: &mut Replies, within: Duration, wanted: impl Fn(&Reply) -> bool) -> Result<Reply, Status> {
    let word = async {
        loop {
            match replies.recv().await {
                Some(reply) if !wanted(&reply) => {}
                other => return other,
            }
        }
    };
    match timeout(within, word).await {
        Ok(Some(reply)) => Ok(reply),
        Ok(None) => Err(Status::unavailable("the link to the replica that was asked broke")),
        Err(_) => Err(too_late(within)),
    }
}

fn ask(peer: &Arc<Peer>, message: impl FnOnce(u64) -> Message) -> Result<Request, Status> {
    Request::send(peer, message).ok_or_else(|| {
        Status::resource_exhausted(format!("too many requests are under way to {:?}; try again", peer.member))
    })
}

/// Nobody can overlook an error; how far the write came stands in its text and in its trailers.
fn level_not_reached(copies: u32, needed: u32) -> Status {
    let text = format!("the write level was not reached: {copies} of {needed} copies exist, and stay");
    let mut trailers = MetadataMap::new();
    for (name, count) in [("heimdall-copies", copies), ("heimdall-needed", needed)] {
        trailers.insert(name, count.into());
    }
    Status::with_metadata(Code::FailedPrecondition, text, trailers)
}

fn holding(replica: &str, entry: Option<&Option<Entry>>) -> pb::KeyHolding {
    let now = Moment::now();
    let found = entry.and_then(Option::as_ref);
    pb::KeyHolding {
        replica: replica.to_owned(),
        reached: entry.is_some(),
        found: found.is_some(),
        age_ms: found.map_or(0, |entry| entry.age(now).as_millis() as u64),
        remaining_ms: found.map_or(0, |entry| entry.remaining(now).as_millis() as u64),
    }
}

/// What is shown of a member: whether it answers and, when it does, what it says of itself.
const fn state_of(state: State, said: &NodeState) -> pb::MemberState {
    match (state, said.condition) {
        (State::Up, Condition::Healthy) => pb::MemberState::Alive,
        (State::Up, Condition::Starting) => pb::MemberState::Starting,
        (State::Up, Condition::Degraded) => pb::MemberState::Degraded,
        (State::Leaving, _) | (State::Up, Condition::Leaving) => pb::MemberState::Leaving,
        (State::Suspected, _) => pb::MemberState::Suspected,
        (State::Joining | State::Silent | State::Down, _) => pb::MemberState::Dead,
    }
}

fn degraded(said: &NodeState) -> Vec<i32> {
    said.reasons.iter().map(|&reason| wire::degraded_reason_to_proto(reason).into()).collect()
}

fn reason_of(reason: &Reason, said: &NodeState) -> String {
    match (reason, said.condition) {
        (Reason::Heard, Condition::Healthy) => "healthy".to_owned(),
        (Reason::Heard, Condition::Starting) => "it does not have its share of the entries yet".to_owned(),
        (Reason::Heard, Condition::Degraded) => {
            let reasons: Vec<_> = said.reasons.iter().map(|reason| reason.as_str()).collect();
            format!("degraded: {}", reasons.join(", "))
        }
        (Reason::Announced, _) | (Reason::Heard, Condition::Leaving) => "it shuts down".to_owned(),
        (Reason::Discovered, _) => "it was discovered and not reached yet".to_owned(),
        (Reason::NotHeard, _) => "nothing was heard of it".to_owned(),
        (Reason::LinkEnded, _) => "its link ended".to_owned(),
        (Reason::DialFailed(error), _) => format!("it cannot be dialled: {error}"),
    }
}

pub(super) fn key(key: Option<&pb::CacheKey>) -> Result<Key, Status> {
    wire::key_from_proto(key).map_err(invalid)
}

pub(super) fn invalid(error: impl std::fmt::Display) -> Status {
    Status::invalid_argument(error.to_string())
}

fn too_late(within: Duration) -> Status {
    Status::deadline_exceeded(format!("no answer within {} ms", within.as_millis()))
}

fn unexpected(reply: &Reply) -> Status {
    Status::internal(format!("an answer of the wrong kind came back: {reply:?}"))
}
