//! A stream to or from another replica's agent.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use heimdall_proto::v1::SessionBatch;
use heimdall_shared::clock::Moment;
use heimdall_shared::entry::Entry;
use heimdall_shared::key::Key;
use heimdall_shared::link::{Delivered, Link, Message, NodeState, Publish, Reply, Requests, Side};
use heimdall_shared::purge::LinkKind;
use heimdall_shared::token::Token;
use tokio::task::coop::consume_budget;
use tokio::time::timeout;
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;
use tracing::{debug, info};

use super::Refusal;
use crate::agent::Agent;
use crate::granter::{Event, Publication};
use crate::lease::Holder;
use crate::links::{Peer, Registered};
use crate::lookup::{self, ReplyTo};
use crate::membership;
use crate::permissions::may_copy;
use crate::publish;
use crate::purge;
use crate::transfer::Taken;
use crate::trust::checks;

/// When this side ends a link, what is queued for the peer may take this long to leave.
const FLUSH_WITHIN: Duration = Duration::from_millis(250);

/// How a stream to a peer came to be.
#[derive(Clone, Debug)]
pub struct Connection {
    /// The member that its certificate proves it to be.
    pub member: Arc<str>,
    /// Where it is.
    pub address: SocketAddr,
    /// Whether this side dialled.
    pub dialled: bool,
}

/// Serves one stream of a peer until it ends.
///
/// # Errors
/// [`Refusal`] when the stream was not taken as a link to that member.
pub async fn serve<S>(
    agent: Arc<Agent>,
    link: Arc<Link>,
    mut incoming: S,
    connection: Connection,
) -> Result<(), Refusal>
where
    S: Stream<Item = Result<SessionBatch, Status>> + Unpin,
{
    let _ = link.push(Message::Hello(agent.hello()));
    let accepted = accept(&agent, &link, &mut incoming, &connection).await;
    let (peer, said, more) = match accepted {
        Ok(accepted) => accepted,
        Err(refusal) => {
            link.close();
            return Err(refusal);
        }
    };
    // Before anybody else can say anything on it.
    agent.purges.connect(peer.id, LinkKind::Beside, &link);
    let replaced = match agent.links.register(&agent.name, &peer) {
        Registered::Superseded => {
            agent.purges.disconnect(peer.id);
            debug!(peer = %peer.member, address = %peer.address, "there is a link to this member already");
            link.close();
            return Ok(());
        }
        Registered::Kept { replaced } => replaced,
    };
    info!(peer = %peer.member, address = %peer.address, dialled = peer.dialled, "peer connected");
    let up = membership::Event::LinkUp {
        member: Arc::clone(&peer.member),
        incarnation: peer.incarnation,
        link: peer.id,
        advertised: peer.advertised.clone(),
    };
    agent.tell_cluster(up).await;
    if let Some(replaced) = replaced {
        // Only now: the end of a member's last link would end its leases.
        debug!(peer = %replaced.member, address = %replaced.address, "its older link was replaced");
        replaced.link.close();
    }
    let reader = Reader { agent: &agent, peer: &peer };
    if let Some(said) = said {
        reader.says(said).await;
    }
    reader.take(more).await;
    loop {
        tokio::select! {
            batch = incoming.next() => match batch {
                Some(Ok(batch)) => reader.take(super::receive(&agent, &link, batch)).await,
                Some(Err(status)) => {
                    debug!(peer = %peer.member, %status, "the stream broke");
                    break;
                }
                None => break,
            },
            () = link.closed() => break,
        }
    }
    let ended_here = link.is_closed();
    reader.end().await;
    if ended_here {
        // What is queued leaves first; the other side closes when it has read it. Dropping the stream would cut it off.
        let _ = timeout(FLUSH_WITHIN, async { while let Some(Ok(_)) = incoming.next().await {} }).await;
    }
    info!(peer = %peer.member, address = %peer.address, "peer disconnected");
    Ok(())
}

async fn accept<S>(
    agent: &Agent,
    link: &Arc<Link>,
    incoming: &mut S,
    connection: &Connection,
) -> Result<(Arc<Peer>, Option<NodeState>, Vec<Message>), Refusal>
where
    S: Stream<Item = Result<SessionBatch, Status>> + Unpin,
{
    let (hello, more) = super::hello(link, incoming).await?;
    if hello.name != connection.member {
        return Err(Refusal::Name { said: hello.name.to_string(), proven: connection.member.to_string() });
    }
    if hello.name == agent.name {
        return Err(Refusal::Own(hello.name.to_string()));
    }
    if !agent.view().ring().contains(&hello.name) {
        return Err(Refusal::Unknown(hello.name.to_string()));
    }
    cut_off(agent, &hello.name)?;
    if hello.view_digest != agent.view().ring().digest() {
        // Harmless by design: a duplicate query for keys whose owner differs.
        agent.metrics.view_disagreements.inc();
        info!(peer = %hello.name, "its view of the members differs from this replica's");
    }
    let peer = Peer {
        id: agent.links.next_id(),
        member: hello.name,
        incarnation: hello.incarnation,
        address: connection.address,
        advertised: hello.advertise,
        dialled: connection.dialled,
        link: Arc::clone(link),
        requests: Requests::new(if connection.dialled { Side::Dialler } else { Side::Acceptor }),
        since: Moment::now(),
        breaker: Mutex::default(),
    };
    Ok((Arc::new(peer), hello.state, more))
}

/// Refuses a member from which nothing is taken.
///
/// # Errors
/// [`Refusal::CutOff`].
pub fn cut_off(agent: &Agent, member: &str) -> Result<(), Refusal> {
    match agent.trust.cut_off(member, Moment::now()) {
        None => Ok(()),
        Some((left, why)) => Err(Refusal::CutOff { left, why }),
    }
}

struct Reader<'a> {
    agent: &'a Arc<Agent>,
    peer: &'a Arc<Peer>,
}

impl Reader<'_> {
    async fn take(&self, messages: Vec<Message>) {
        let now = Moment::now();
        for mut message in messages {
            if let Some(entry) = message.entry_mut() {
                entry.since = self.agent.purges.vouched(self.peer.id, entry.since);
            }
            // A batch may hold thousands of messages: others get their turn between them.
            consume_budget().await;
            match message {
                Message::Lookup { id, lookup } => {
                    lookup::for_peer(self.agent, &self.holder(), self.reply_to(id), lookup, now);
                }
                Message::Wait { id, wait } => {
                    let asker = self.asker(id, wait.stream, wait.trace);
                    self.tell_granter(Event::Wait { key: wait.key, token: wait.token, asker });
                }
                Message::Reply { id, reply } => self.reply(id, reply),
                Message::Cancel { id } => self.tell_granter(Event::Cancel { link: self.peer.id, request: id }),
                Message::Publish { id, publish } => self.publish(id, publish),
                Message::Fail { token, kind } => self.tell_granter(Event::Fail { token, kind, from: self.holder() }),
                Message::Release { token } => {
                    self.tell_granter(Event::Release { token, from: self.holder(), answer: None });
                }
                Message::Tick { working, struggling } => self.tick(working, struggling),
                // One of this replica's dns-server streams holds the lease, and knows.
                Message::Watch { token } if self.is_theirs(&token) => {
                    self.agent.links.push_to_streams(&Message::Watch { token });
                }
                Message::Copy { key, entry, write } => {
                    let held = self.copy(&key, &entry, now);
                    if let Some(write) = write
                        && self.peer.link.push(Message::CopyReceipt { write, held }).is_err()
                    {
                        self.agent.metrics.undelivered.inc();
                    }
                }
                Message::CopyReceipt { write, held } => {
                    let member = Arc::clone(&self.peer.member);
                    self.tell_granter(Event::Receipt { member, write, held });
                }
                Message::StreamGone { stream } => self.tell_granter(Event::StreamGone {
                    member: Arc::clone(&self.peer.member),
                    incarnation: self.peer.incarnation,
                    stream,
                }),
                Message::Leaving => {
                    let leaving =
                        membership::Event::Leaving { member: Arc::clone(&self.peer.member), link: self.peer.id };
                    self.agent.tell_cluster(leaving).await;
                }
                Message::Check { id, key } => {
                    lookup::reply(self.agent, self.reply_to(id), checks::accused(self.agent, &key));
                }
                Message::NodeState(said) => self.says(said).await,
                Message::HandOver => self.take_over(),
                Message::TakenOver { entries, kept, complete } => {
                    self.agent.hand_over.taken(&self.peer.member, Taken { entries, kept, complete });
                }
                Message::Purges(purges) => {
                    let fresh = self.agent.purges.hear(self.peer.id, &purges, now);
                    purge::apply(self.agent, &fresh).await;
                }
                Message::PurgesDone { position } => self.agent.purges.hear_done(self.peer.id, position),
                // A granter alone says who waits for its leases.
                Message::Watch { .. }
                | Message::Hello(_)
                | Message::Ping { .. }
                | Message::Pong { .. }
                | Message::UpstreamState { .. } => {
                    self.agent.metrics.unexpected_messages.inc();
                }
            }
        }
    }

    fn reply(&self, id: u64, reply: Reply) {
        match self.peer.requests.deliver(id, reply) {
            Delivered::First { asker, reply, more } => asker.hear(Some(reply), more),
            // A grant that nobody waits for goes back at once, so that the next waiter gets it.
            Delivered::Unwanted(Reply::Granted { token, .. }) => {
                self.agent.metrics.late_grants.inc();
                if self.peer.link.push(Message::Release { token }).is_err() {
                    self.agent.metrics.undelivered.inc();
                }
            }
            Delivered::Heard | Delivered::Unwanted(_) => {}
        }
    }

    fn publish(&self, id: u64, publish: Publish) {
        let reply_to = (id != 0).then(|| self.reply_to(id));
        match self.agent.check(&publish.key, &publish.entry) {
            Ok(entry) => {
                let Publish { key, token, level, .. } = publish;
                self.agent.trust.taken(&key, &entry, &self.peer.member);
                let from = self.holder();
                self.tell_granter(Event::Publish(Publication { key, entry, token, from, level, reply_to }));
            }
            Err(why) => {
                self.agent.metrics.refused_entries.inc();
                debug!(peer = %self.peer.member, key = %publish.key, %why, "a publish was refused");
                if let Some(to) = reply_to {
                    lookup::reply(self.agent, to, Reply::Refused(why.to_string()));
                }
            }
        }
    }

    /// Ticks of the peer's holders for leases granted here, or of the peer's own leases for those who wait here.
    fn tick(&self, working: Vec<Token>, struggling: Vec<Token>) {
        let (granted_here, waited_for) = working.into_iter().partition::<Vec<_>, _>(|token| self.is_own(token));
        // Nobody keeps those waiting who wait for another member's lease.
        let waited_for: Vec<_> = waited_for.into_iter().filter(|token| self.is_theirs(token)).collect();
        let struggling: Vec<_> = struggling.into_iter().filter(|token| self.is_own(token)).collect();
        if !granted_here.is_empty() || !struggling.is_empty() {
            self.tell_granter(Event::Tick { from: self.holder(), working: granted_here, struggling });
        }
        if !waited_for.is_empty() {
            let behind = self.agent.relays.behind(&waited_for);
            if !behind.is_empty() {
                publish::tick(self.agent, &behind, &[]);
            }
            self.agent.links.push_to_streams(&Message::Tick { working: waited_for, struggling: Vec::new() });
        }
    }

    /// Whether this replica has that entry now, or a younger one.
    fn copy(&self, key: &Key, entry: &Entry, now: Moment) -> bool {
        let view = self.agent.view();
        if !may_copy(view.ring(), key.slot(), &self.peer.member, &self.agent.name) {
            self.agent.metrics.refused_copies.inc();
            debug!(peer = %self.peer.member, %key, "a copy between replicas that do not both keep the key was refused");
            return false;
        }
        match self.agent.check_in_place(key, entry) {
            Ok(entry) => self.agent.store.keep_copy(key, &entry, &self.peer.member, now).has_it(),
            Err(why) => {
                self.agent.metrics.refused_entries.inc();
                debug!(peer = %self.peer.member, %key, %why, "a copy was refused");
                false
            }
        }
    }

    async fn says(&self, said: NodeState) {
        let says = membership::Event::Says { member: Arc::clone(&self.peer.member), link: self.peer.id, said };
        self.agent.tell_cluster(says).await;
    }

    /// The peer wants its entries to be taken over.
    fn take_over(&self) {
        if self.agent.leavers.try_send(Arc::clone(&self.peer.member)).is_err() {
            // It must not wait for an answer that never comes.
            let _ = self.peer.link.push(Message::TakenOver { entries: 0, kept: 0, complete: false });
        }
    }

    async fn end(&self) {
        self.peer.link.close();
        self.agent.hand_over.gone(&self.peer.member);
        for asker in self.peer.requests.break_off() {
            asker.hear(None, None);
        }
        self.agent.links.unregister(self.peer);
        self.agent.purges.disconnect(self.peer.id);
        // Membership knows which of an incarnation's links was the last, and tells the granter.
        let down = membership::Event::LinkDown { member: Arc::clone(&self.peer.member), link: self.peer.id };
        self.agent.tell_cluster(down).await;
        self.agent.granter.must_hear(Event::LinkClosed { link: self.peer.id }).await;
    }

    fn is_own(&self, token: &Token) -> bool {
        *token.granter == *self.agent.name
    }

    fn is_theirs(&self, token: &Token) -> bool {
        token.granter == self.peer.member
    }

    fn holder(&self) -> Holder {
        Holder { member: Arc::clone(&self.peer.member), incarnation: self.peer.incarnation }
    }

    fn asker(
        &self,
        request: u64,
        stream: u64,
        trace: Option<heimdall_shared::trace::TraceContext>,
    ) -> crate::lease::Asker {
        crate::lease::Asker {
            link: self.peer.id,
            request,
            member: Arc::clone(&self.peer.member),
            incarnation: self.peer.incarnation,
            stream,
            trace,
        }
    }

    fn reply_to(&self, request: u64) -> ReplyTo {
        ReplyTo { link: self.peer.id, request }
    }

    fn tell_granter(&self, event: Event) {
        if self.agent.granter.send(event).is_err() {
            self.agent.metrics.granter_full.inc();
        }
    }
}
