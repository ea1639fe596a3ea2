//! Bringing the link up, reading it, and bringing it up again.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use heimdall_proto::v1::SessionBatch;
use heimdall_proto::v1::mesh_agent_client::MeshAgentClient;
use heimdall_shared::clock::Moment;
use heimdall_shared::link::{
    BATCH_BYTES_MAX, Delivered, H2_WINDOW, Hello, Link, Message, PROTOCOL_VERSION, Reply, Requests, Side,
};
use heimdall_shared::watched::LocalConnection;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::{Endpoint, Uri};
use tower::service_fn;
use tracing::{debug, info, warn};

use super::conversation::Listeners;
use super::lease::Which;
use super::{Agent, Live, Purging, Word};

/// A stream must be open, and its Hello here, within this time. The socket is on this machine: an agent that takes longer
/// is stopped or starved.
const OPEN_WITHIN: Duration = Duration::from_secs(1);

/// Pause before the first new attempt.
const BACKOFF_MIN: Duration = Duration::from_millis(20);

/// Longest pause between attempts: an agent that comes back is found within this time.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// When this process ends, what is queued for the agent may take this long to leave.
const FLUSH_WITHIN: Duration = Duration::from_millis(250);

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
enum Down {
    #[error("cannot connect to the agent's socket {0}: {1}")]
    Connect(String, String),
    #[error("the agent on {0} did not open a session: {1}")]
    Open(String, String),
    #[error("the agent on {0} was not ready within {limit} ms", limit = OPEN_WITHIN.as_millis())]
    Late(String),
    #[error(
        "the agent speaks version {0} of the session protocol, this release speaks {PROTOCOL_VERSION}; update the older one"
    )]
    Version(u32),
    #[error("the agent's stream ended: {0}")]
    Ended(String),
}

/// What went wrong in the end: the layers above it only say that something did.
fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

impl Agent {
    /// Keeps the link up until `stop`; then sends what is queued and ends.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        tokio::spawn(self.beats.clone().run(stop.clone()));
        let agent = Arc::clone(&self);
        let silent = move |(live, request): (Arc<Live>, u64)| agent.wake(&live, request);
        tokio::spawn(Arc::clone(&self.first_words).run(silent, stop.clone()));
        let mut pause = BACKOFF_MIN;
        let mut complained = false;
        while !stop.is_cancelled() {
            let down = tokio::select! {
                opened = self.open() => match opened {
                    Ok((live, more, incoming)) => {
                        pause = BACKOFF_MIN;
                        complained = false;
                        self.serve(&live, more, incoming, &stop).await
                    }
                    Err(down) => down,
                },
                () = stop.cancelled() => return,
            };
            if stop.is_cancelled() {
                return;
            }
            if complained {
                debug!(worker = self.worker, %down, "still no link to the agent");
            } else {
                warn!(worker = self.worker, %down, "going on without the agent, and looking for it");
                complained = true;
            }
            tokio::select! {
                () = sleep(pause.mul_f64(rand::random_range(0.5..1.0))) => {}
                () = stop.cancelled() => return,
            }
            pause = (pause * 2).min(BACKOFF_MAX);
        }
    }

    /// Dials and waits for the agent's Hello. Gives what came with it, too.
    async fn open(&self) -> Result<(Arc<Live>, Vec<Message>, Streaming<SessionBatch>), Down> {
        let socket = self.settings.socket.clone();
        let name = socket.display().to_string();
        let opening = async {
            let connect = service_fn(move |_: Uri| {
                let socket = socket.clone();
                async move { UnixStream::connect(socket).await.and_then(LocalConnection::new).map(TokioIo::new) }
            });
            let channel = Endpoint::from_static("http://agent.local")
                .initial_stream_window_size(H2_WINDOW)
                .initial_connection_window_size(H2_WINDOW)
                .connect_with_connector(connect)
                .await
                .map_err(|error| Down::Connect(name.clone(), root_cause(&error)))?;
            let link = Link::new(Moment::now(), &self.beats);
            let hello = Hello::of(format!("dns-{}", self.worker).into(), rand::random());
            // An empty link takes a message.
            let _ = link.push(Message::Hello(hello));
            let purges = Purging::begin(&self.purges, &link);
            let mut client = MeshAgentClient::new(channel).max_decoding_message_size(BATCH_BYTES_MAX);
            let refused = |status: tonic::Status| Down::Open(name.clone(), status.message().to_owned());
            let mut incoming = client.session(link.outgoing()).await.map_err(refused)?.into_inner();
            let live = Live {
                link,
                purges,
                requests: Requests::new(Side::Dialler),
                listeners: Listeners::default(),
                leaving: AtomicBool::new(false),
                upstreams_failing: AtomicBool::new(false),
            };
            loop {
                let batch = incoming.message().await.map_err(refused)?;
                let Some(batch) = batch else { return Err(Down::Ended("before its Hello".to_owned())) };
                let mut messages = live.link.receive(batch, Moment::now()).into_iter();
                match messages.by_ref().find(|message| matches!(message, Message::Hello(_))) {
                    Some(Message::Hello(hello)) if hello.version == PROTOCOL_VERSION => {
                        return Ok((Arc::new(live), messages.collect(), incoming));
                    }
                    Some(Message::Hello(hello)) => return Err(Down::Version(hello.version)),
                    _ => {}
                }
            }
        };
        match timeout(OPEN_WITHIN, opening).await {
            Ok(opened) => opened,
            Err(_) => Err(Down::Late(self.settings.socket.display().to_string())),
        }
    }

    /// Reads the link until it ends, and ticks.
    async fn serve(
        self: &Arc<Self>,
        live: &Arc<Live>,
        more: Vec<Message>,
        mut incoming: Streaming<SessionBatch>,
        stop: &CancellationToken,
    ) -> Down {
        for message in more {
            self.take(live, message, live.link.heard());
        }
        self.hearing.heard(live.link.heard());
        *self.live() = Some(Arc::clone(live));
        self.metrics.links.inc();
        self.metrics.sessions.inc();
        info!(worker = self.worker, "linked to the agent");
        let down = tokio::select! {
            down = self.read(live, &mut incoming) => down,
            () = self.ticks(live) => Down::Ended("ticking stopped".to_owned()),
            () = stop.cancelled() => Down::Ended("this process is ending".to_owned()),
        };
        *self.live() = None;
        self.metrics.links.dec();
        live.link.close();
        for asleep in live.requests.break_off() {
            asleep.into_asker().hear(Word::LinkDown, None);
        }
        self.checks.clear();
        if stop.is_cancelled() {
            // Publishes may be queued; the agent closes its side when it has read ours.
            let _ = timeout(FLUSH_WITHIN, async { while let Ok(Some(_)) = incoming.message().await {} }).await;
        }
        down
    }

    async fn read(self: &Arc<Self>, live: &Arc<Live>, incoming: &mut Streaming<SessionBatch>) -> Down {
        let mut unreadable = 0;
        loop {
            match incoming.message().await {
                Ok(Some(batch)) => {
                    if live.link.is_closed() {
                        return Down::Ended("its purges had a gap".to_owned());
                    }
                    let now = Moment::now();
                    self.hearing.heard(now);
                    for message in live.link.receive(batch, now) {
                        self.take(live, message, now);
                    }
                    let total = live.link.unknown_frames();
                    self.metrics.unreadable.inc_by(total - unreadable);
                    unreadable = total;
                }
                Ok(None) => return Down::Ended("closed".to_owned()),
                Err(status) => return Down::Ended(status.message().to_owned()),
            }
        }
    }

    fn take(self: &Arc<Self>, live: &Arc<Live>, mut message: Message, now: Moment) {
        let (ledger, link) = (self.purges.ledger(), live.purges.link);
        if let Some(entry) = message.entry_mut() {
            entry.since = ledger.vouched(link, entry.since);
        }
        match message {
            Message::Reply { id, reply } => self.deliver(live, id, reply),
            Message::Tick { working, struggling } => {
                live.listeners.sign(&working, now);
                live.listeners.sign(&struggling, now);
            }
            Message::Watch { token } => self.work.watch(&token),
            Message::Check { id, key } => self.checks.push(live, id, &key),
            // Leases and waits under way still end there.
            Message::Leaving => live.leaving.store(true, Ordering::Relaxed),
            Message::Purges(purges) => drop(ledger.hear(link, &purges, now)),
            Message::PurgesDone { position } => ledger.hear_done(link, position),
            // Other messages are for agents.
            _ => {}
        }
    }

    fn deliver(self: &Arc<Self>, live: &Arc<Live>, id: u64, reply: Reply) {
        // Before its miss reads it: somebody may watch the lease in the very next message.
        if let Reply::Granted { token, takeover, .. } = &reply {
            self.work.begin(token, *takeover);
        }
        match live.requests.deliver(id, reply) {
            Delivered::First { asker, reply, more } => self.tell(live, asker, reply, more),
            Delivered::Unwanted(Reply::Granted { token, .. }) => {
                self.metrics.late_grants.inc();
                self.work.end(&token);
                self.push(Message::Release { token });
            }
            Delivered::Heard | Delivered::Unwanted(_) => {}
        }
    }

    /// One tick as soon as it is due, then one per period while anybody watches.
    async fn ticks(&self, live: &Live) {
        let mut next = Instant::now();
        loop {
            let now = Instant::now();
            let which = if now >= next {
                next = now + self.settings.tick;
                Which::All
            } else {
                Which::News
            };
            for tick in self.work.ticks(which) {
                if live.link.push(tick).is_err() {
                    self.metrics.undelivered.inc();
                }
            }
            if self.work.is_watched() {
                // Whichever comes first: news, or the time to say everything again.
                let _ = timeout_at(next, self.work.due()).await;
            } else {
                self.work.due().await;
            }
        }
    }
}
