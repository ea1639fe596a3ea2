//! What the identity layer counts.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use tonic::Code;

use super::refusal::Refusal;
use super::spiffe::Role;

type Label = [(&'static str, &'static str); 1];

/// What a call is refused with before it reaches its handler.
const REFUSING: [Code; 3] = [Code::PermissionDenied, Code::Unauthenticated, Code::Unimplemented];

/// Counters of handshakes, dials and certificate reloads. Clones count into the same counters.
#[derive(Clone, Debug)]
pub struct IdentityMetrics {
    accepted: Family<Label, Counter>,
    refused: Family<Label, Counter>,
    dial_failures: Family<Label, Counter>,
    calls_refused: Family<Label, Counter>,
    accept_errors: Counter,
    reloads: Family<Label, Counter>,
    not_after: Gauge,
}

impl IdentityMetrics {
    /// Counters at zero, with every label that there can be.
    pub fn new() -> Self {
        let metrics = Self {
            accepted: Family::default(),
            refused: Family::default(),
            dial_failures: Family::default(),
            calls_refused: Family::default(),
            accept_errors: Counter::default(),
            reloads: Family::default(),
            not_after: Gauge::default(),
        };
        for role in ["replica", "operator"] {
            drop(metrics.accepted.get_or_create(&[("role", role)]));
        }
        for reason in Refusal::ALL {
            drop(metrics.refused.get_or_create(&[("reason", reason.as_str())]));
            drop(metrics.dial_failures.get_or_create(&[("reason", reason.as_str())]));
        }
        for code in REFUSING {
            drop(metrics.calls_refused.get_or_create(&[("code", label(code))]));
        }
        for outcome in ["replaced", "failed"] {
            drop(metrics.reloads.get_or_create(&[("outcome", outcome)]));
        }
        metrics
    }

    /// Puts the counters into `registry`, whose prefix they take.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "peer_handshakes_accepted",
            "Connections from peers and operators that completed the TLS handshake",
            self.accepted.clone(),
        );
        registry.register(
            "peer_handshakes_refused",
            "Connections to the peer port that ended in the TLS handshake",
            self.refused.clone(),
        );
        registry.register(
            "peer_dial_failures",
            "Dials to peers that ended before there was a connection",
            self.dial_failures.clone(),
        );
        registry.register(
            "peer_calls_refused",
            "Calls on the peer port that the caller's identity does not allow",
            self.calls_refused.clone(),
        );
        registry.register(
            "peer_accept_errors",
            "Errors of the system while it was to hand over a connection, such as too many open files",
            self.accept_errors.clone(),
        );
        registry.register(
            "certificate_reloads",
            "Changed certificate files that were taken into use, or not",
            self.reloads.clone(),
        );
        registry.register(
            "certificate_not_after_timestamp_seconds",
            "When the certificate in use expires, in seconds since 1970",
            self.not_after.clone(),
        );
    }

    /// How many handshakes with us were refused for `reason`.
    pub fn refused(&self, reason: Refusal) -> u64 {
        self.refused.get_or_create(&[("reason", reason.as_str())]).get()
    }

    /// How many of our dials failed for `reason`.
    pub fn dial_failures(&self, reason: Refusal) -> u64 {
        self.dial_failures.get_or_create(&[("reason", reason.as_str())]).get()
    }

    /// How many calls were refused with `code`.
    pub fn calls_refused(&self, code: Code) -> u64 {
        self.calls_refused.get_or_create(&[("code", label(code))]).get()
    }

    /// How many changed sets of files were not taken.
    pub fn failed_reloads(&self) -> u64 {
        self.reloads.get_or_create(&[("outcome", "failed")]).get()
    }

    pub(super) fn count_accepted(&self, role: &Role) {
        let role = match role {
            Role::Replica(_) => "replica",
            // The handshake lets nobody else in.
            Role::Operator(_) | Role::Other(_) => "operator",
        };
        self.accepted.get_or_create(&[("role", role)]).inc();
    }

    pub(super) fn count_refused(&self, reason: Refusal) {
        self.refused.get_or_create(&[("reason", reason.as_str())]).inc();
    }

    pub(super) fn count_dial_failure(&self, reason: Refusal) {
        self.dial_failures.get_or_create(&[("reason", reason.as_str())]).inc();
    }

    pub(crate) fn count_call_refused(&self, code: Code) {
        self.calls_refused.get_or_create(&[("code", label(code))]).inc();
    }

    pub(super) fn count_accept_error(&self) {
        self.accept_errors.inc();
    }

    pub(super) fn reload_succeeded(&self) {
        self.reloads.get_or_create(&[("outcome", "replaced")]).inc();
    }

    pub(super) fn reload_failed(&self) {
        self.reloads.get_or_create(&[("outcome", "failed")]).inc();
    }

    pub(super) fn set_not_after(&self, since_1970: Duration) {
        self.not_after.set(i64::try_from(since_1970.as_secs()).unwrap_or(i64::MAX));
    }
}

const fn label(code: Code) -> &'static str {
    match code {
        Code::PermissionDenied => "permission_denied",
        Code::Unauthenticated => "unauthenticated",
        Code::Unimplemented => "unimplemented",
        _ => "other",
    }
}

impl Default for IdentityMetrics {
    fn default() -> Self {
        Self::new()
    }
}
