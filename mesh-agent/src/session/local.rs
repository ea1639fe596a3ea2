//! A stream of this replica's own dns-server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use heimdall_proto::v1::SessionBatch;
use heimdall_shared::clock::Moment;
use heimdall_shared::link::{Link, Lookup, LookupMode, Message, Publish, Reply, Requests, Side};
use heimdall_shared::purge::LinkKind;
use tokio::time::Instant;
use tokio_stream::{Stream, StreamExt as _};
use tokio_util::task::TaskTracker;
use tonic::Status;
use tracing::{debug, info};

use crate::agent::Agent;
use crate::granter::Event;
use crate::links::LocalStream;
use crate::lookup::{self, ReplyTo, UnderWay};
use crate::publish::{self, Destination};
use crate::purge;

/// Serves one stream of the dns-server until it ends.
pub async fn serve<S>(agent: Arc<Agent>, link: Arc<Link>, mut incoming: S, tasks: TaskTracker)
where
    S: Stream<Item = Result<SessionBatch, Status>> + Unpin,
{
    let _ = link.push(Message::Hello(agent.hello()));
    let (hello, more) = match super::hello(&link, &mut incoming).await {
        Ok(hello) => hello,
        Err(refusal) => {
            info!(%refusal, "a stream on the local socket was refused");
            link.close();
            return;
        }
    };
    let stream = Arc::new(LocalStream {
        id: agent.links.next_id(),
        link: Arc::clone(&link),
        requests: Requests::new(Side::Acceptor),
        upstreams_failing: AtomicBool::new(false),
    });
    // Before anybody else can say anything on it.
    agent.purges.connect(stream.id, LinkKind::Below, &link);
    agent.links.add_stream(&stream);
    info!(stream = stream.id, from = %hello.name, "dns-server connected");
    let under_way = UnderWay::new(&agent, stream.id, tasks);
    let reader = Reader { agent: &agent, stream: &stream, under_way };
    reader.take(more).await;
    loop {
        tokio::select! {
            batch = incoming.next() => match batch {
                Some(Ok(batch)) => reader.take(super::receive(&agent, &link, batch)).await,
                Some(Err(_)) | None => break,
            },
            () = link.closed() => break,
        }
    }
    reader.end().await;
    info!(stream = stream.id, "dns-server disconnected");
}

struct Reader<'a> {
    agent: &'a Arc<Agent>,
    stream: &'a Arc<LocalStream>,
    under_way: Arc<UnderWay>,
}

impl Reader<'_> {
    async fn take(&self, messages: Vec<Message>) {
        let mut now = (Moment::now(), Instant::now());
        for mut message in messages {
            if let Some(entry) = message.entry_mut() {
                entry.since = self.agent.purges.vouched(self.stream.id, entry.since);
            }
            match message {
                Message::Lookup { id, lookup } => self.lookup(id, lookup, now),
                Message::Cancel { id } => self.cancel(id),
                Message::Publish { id, publish } => self.publish(id, publish),
                Message::Fail { token, kind } => publish::fail(self.agent, token, kind),
                Message::Release { token } => publish::release(self.agent, token),
                Message::Tick { working, struggling } => publish::tick(self.agent, &working, &struggling),
                Message::Purges(purges) => {
                    // After a restart of this agent its dns-server may know more than it.
                    let fresh = self.agent.purges.hear(self.stream.id, &purges, now.0);
                    purge::apply(self.agent, &fresh).await;
                    // That may have taken a while, which the lookups behind it have not waited for.
                    now = (Moment::now(), Instant::now());
                }
                Message::PurgesDone { position } => self.agent.purges.hear_done(self.stream.id, position),
                Message::Reply { id, reply } => {
                    // One that comes too late concerns nobody.
                    let _ = self.stream.requests.deliver(id, reply);
                }
                Message::UpstreamState { failing } => self.stream.upstreams_failing.store(failing, Ordering::Relaxed),
                other => {
                    self.agent.metrics.unexpected_messages.inc();
                    debug!(?other, "a message that a dns-server has no business to send");
                }
            }
        }
    }

    fn lookup(&self, id: u64, lookup: Lookup, now: (Moment, Instant)) {
        let to = ReplyTo { link: self.stream.id, request: id };
        if lookup::stored(self.agent, to, &lookup, now.0) {
            self.agent.metrics.store_hits.inc();
            return;
        }
        self.agent.metrics.store_misses.inc();
        let mode = match lookup.mode {
            LookupMode::Stale { .. } | LookupMode::Refresh { .. } => lookup.mode,
            // Over a stream there is no second step.
            LookupMode::Join | LookupMode::JoinOnly | LookupMode::Acquire | LookupMode::Peek => LookupMode::Join,
        };
        let lookup = Lookup { stream: self.stream.id, skipped: Vec::new(), mode, ..lookup };
        self.under_way.begin(id, lookup, now);
    }

    fn cancel(&self, id: u64) {
        self.under_way.cancel(id);
        // The wait may have been here.
        if self.agent.granter.send(Event::Cancel { link: self.stream.id, request: id }).is_err() {
            self.agent.metrics.granter_full.inc();
        }
    }

    fn publish(&self, id: u64, publish: Publish) {
        let reply_to = (id != 0).then_some(ReplyTo { link: self.stream.id, request: id });
        match publish::from_stream(self.agent, publish, reply_to) {
            Ok(Destination::Here) => {}
            Ok(Destination::Peer(peer, publish)) => {
                if peer.link.push(Message::Publish { id: 0, publish }).is_err() {
                    self.agent.metrics.undelivered.inc();
                }
            }
            Err(reason) => {
                debug!(stream = self.stream.id, reason, "a publish of the dns-server was refused");
                if let Some(to) = reply_to {
                    lookup::reply(self.agent, to, Reply::Refused(reason));
                }
            }
        }
    }

    async fn end(&self) {
        self.stream.link.close();
        let _nobody_sleeps = self.stream.requests.break_off();
        self.agent.links.remove_stream(self.stream.id);
        self.agent.purges.disconnect(self.stream.id);
        self.under_way.cancel_all();
        let stream = self.stream.id;
        for peer in self.agent.links.connected().peers.values() {
            let _ = peer.link.push(Message::StreamGone { stream });
        }
        let (member, incarnation) = (Arc::clone(&self.agent.name), self.agent.incarnation);
        self.agent.granter.must_hear(Event::StreamGone { member, incarnation, stream }).await;
        self.agent.granter.must_hear(Event::LinkClosed { link: stream }).await;
    }
}
