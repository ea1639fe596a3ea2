//! Dials one member for as long as it is a member, and has no link to it.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use heimdall_proto::v1::SessionBatch;
use heimdall_proto::v1::replica_coordination_client::ReplicaCoordinationClient;
use heimdall_shared::clock::Moment;
use heimdall_shared::link::{BATCH_BYTES_MAX, Link};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tracing::{debug, warn};

use crate::agent::Agent;
use crate::identity::Connector;
use crate::membership::Event;
use crate::session::Refusal;
use crate::session::peer::{self, Connection};

/// First and longest pause between two dials: a restarted member is back within a second, and a dead one costs each other
/// member one handshake a second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// The greater name gives the smaller one this much time to dial first: of two links, that one would stay.
const YIELD: Duration = Duration::from_millis(250);

/// Looking up a host name may take this long.
const RESOLVE_WITHIN: Duration = Duration::from_secs(2);

/// The other side must take the stream within this time.
const OPEN_WITHIN: Duration = Duration::from_secs(2);

/// Keeps a link to one member.
pub struct Dialler {
    /// This agent.
    pub agent: Arc<Agent>,
    /// Makes authenticated connections.
    pub connector: Arc<Connector>,
    /// Whom to dial.
    pub member: Arc<str>,
    /// `host:port` as discovery says; looked up again at each dial.
    pub address: Arc<str>,
}

impl Dialler {
    /// Dials until `stop` is cancelled. A session under way then ends in order.
    pub async fn run(self, stop: CancellationToken) {
        let mut pause = PAUSES.0;
        let mut reported = false;
        if self.agent.name > self.member {
            stop.run_until_cancelled(sleep(YIELD)).await;
        }
        while !stop.is_cancelled() {
            if let Some(peer) = self.agent.links.peer(&self.member) {
                stop.run_until_cancelled(peer.link.closed()).await;
                pause = PAUSES.0;
                reported = false;
            } else if let Err(error) = self.dial(&stop).await {
                self.agent.metrics.dial_failures.inc();
                if reported {
                    debug!(member = %self.member, error, "dialling failed again");
                } else {
                    warn!(member = %self.member, error, "dialling failed; trying again until it answers");
                    reported = true;
                }
                let failed = Event::DialFailed { member: Arc::clone(&self.member), error: error.into() };
                stop.run_until_cancelled(self.agent.tell_cluster(failed)).await;
            }
            // Half to all of it at random: members that lost the same peer do not come back in step.
            stop.run_until_cancelled(sleep(pause.mul_f64(rand::random_range(0.5..=1.0)))).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// One dial; returns when the session ended, or when `stop` cut the dial off.
    async fn dial(&self, stop: &CancellationToken) -> Result<(), String> {
        peer::cut_off(&self.agent, &self.member).map_err(|refusal| refusal.to_string())?;
        let mut last = format!("{} has no address", self.address);
        // Where the member said it is, then where discovery says it is.
        let learned = self.agent.view().member(&self.member).and_then(|member| member.learned.clone());
        let looked_up = stop.run_until_cancelled(Box::pin(addresses(learned.as_deref(), &self.address))).await;
        let Some(addresses) = looked_up else { return Ok(()) };
        for address in addresses? {
            // Boxed: while the session lasts, its task must have no room for a handshake.
            match stop.run_until_cancelled(Box::pin(self.open(address))).await {
                None => return Ok(()),
                Some(Ok((link, incoming))) => match self.serve(link, incoming, address, stop).await {
                    Ok(()) => return Ok(()),
                    Err(refusal) => last = format!("{address}: {refusal}"),
                },
                Some(Err(error)) => last = error,
            }
        }
        Err(last)
    }

    /// Serves a session to its end: who is connected, and what is queued, must not be forgotten by a stop.
    async fn serve(
        &self,
        link: Arc<Link>,
        incoming: Streaming<SessionBatch>,
        address: SocketAddr,
        stop: &CancellationToken,
    ) -> Result<(), Refusal> {
        let connection = Connection { member: Arc::clone(&self.member), address, dialled: true };
        let mut session = pin!(peer::serve(Arc::clone(&self.agent), Arc::clone(&link), incoming, connection));
        tokio::select! {
            ended = &mut session => return ended,
            () = stop.cancelled() => link.close(),
        }
        session.await
    }

    async fn open(&self, address: SocketAddr) -> Result<(Arc<Link>, Streaming<SessionBatch>), String> {
        let channel = self.connector.channel(address, &self.member).await.map_err(|error| error.to_string())?;
        let link = Link::new(Moment::now(), &self.agent.beats);
        let mut client = ReplicaCoordinationClient::new(channel).max_decoding_message_size(BATCH_BYTES_MAX);
        // The server answers with headers at once; without a limit a stopped one would hold the dialler for ever.
        let opened = timeout(OPEN_WITHIN, client.session(link.outgoing())).await;
        let incoming = opened
            .map_err(|_| format!("{address} did not open the stream within {} s", OPEN_WITHIN.as_secs()))?
            .map_err(|status| format!("{address} refused the stream: {status}"))?
            .into_inner();
        Ok((link, incoming))
    }
}

/// The addresses of a member, that which it told first.
///
/// # Errors
/// None could be looked up; says which and why.
pub async fn addresses(learned: Option<&str>, discovered: &str) -> Result<Vec<SocketAddr>, String> {
    let mut found = Vec::new();
    let mut failure = None;
    for host in learned.into_iter().chain([discovered]) {
        match timeout(RESOLVE_WITHIN, tokio::net::lookup_host(host)).await {
            Ok(Ok(addresses)) => found.extend(addresses),
            Ok(Err(error)) => failure = Some(format!("looking up {host}: {error}")),
            Err(_) => failure = Some(format!("looking up {host}: no answer within {} s", RESOLVE_WITHIN.as_secs())),
        }
    }
    found.dedup();
    match failure {
        Some(failure) if found.is_empty() => Err(failure),
        _ => Ok(found),
    }
}
