//! What a dialogue of either transport needs, and how it ends.

use std::io;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicU32, Ordering};

use heimdall_shared::dns::answer::{Answer, TtlLimits};
use heimdall_shared::dns::rr::rcode;
use heimdall_shared::key::Key;
use tokio::io::unix::AsyncFd;
use tracing::debug;

use super::address::{Address, Transport};
use super::dialogues::Told;
use super::metrics::{Metrics, ServerMetrics};
use super::plan::{End, Hint};
use super::ports::Ports;
use super::query::Query;

/// One dialogue's surroundings.
pub(super) struct Exchange<'a> {
    /// The dialogue's number in its plan.
    pub(super) number: usize,
    pub(super) key: &'a Key,
    pub(super) server: Address,
    pub(super) mix_case: bool,
    pub(super) limits: &'a TtlLimits,
    pub(super) ports: &'a Ports,
    pub(super) told: &'a Told,
    pub(super) packets: &'a AtomicU32,
    pub(super) metrics: &'a Metrics,
    pub(super) server_metrics: &'a ServerMetrics,
}

/// How a dialogue ended.
#[derive(Debug)]
pub(super) enum Finish {
    Answer(Answer),
    End(End),
}

impl Exchange<'_> {
    pub(super) fn open(&self) -> io::Result<AsyncFd<UdpSocket>> {
        self.ports.open(self.server.socket)
    }

    /// Tells the plan.
    pub(super) fn hint(&self, hint: Hint) {
        self.told.hint(self.number, hint);
    }

    /// Resolves when another packet is to be sent.
    pub(super) async fn again(&self) {
        self.told.again(self.number).await;
    }

    /// A packet leaves.
    pub(super) fn count(&self, transport: Transport) {
        self.packets.fetch_add(1, Ordering::Relaxed);
        self.server_metrics.sent(transport);
    }

    /// Whether a return code may mean that the upstream does not know EDNS (RFC 6891 7, and BADVERS of 6.1.3). A silence
    /// never does.
    pub(super) fn is_about_edns(&self, query: &Query<'_>, code: u16) -> bool {
        let codes = [u16::from(rcode::FORMERR), u16::from(rcode::NOTIMP), rcode::BADVERS];
        query.has_edns() && codes.contains(&code)
    }

    pub(super) fn broken(&self, what: &str, error: &io::Error) -> Finish {
        debug!(server = %self.server, %error, "{what} the upstream");
        Finish::End(End::Broken)
    }
}
