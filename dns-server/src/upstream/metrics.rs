//! What upstream exchanges cost and bring.

use std::net::SocketAddr;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::address::{Address, Transport};
use super::query::Stray;

/// Upper bounds of response times, seconds: from a cache in the same rack to the end of the query budget.
const BUCKETS: [f64; 14] = [0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.2, 2.4, 4.0];

/// Counters of all upstreams. Labels come from the configuration and from this code, never from a packet.
#[derive(Clone, Debug)]
pub struct Metrics {
    queries: Family<QueryLabels, Counter>,
    /// All of `queries` together, for those who read figures without a registry.
    packets: Counter,
    resolutions: Counter,
    response_time: Family<ServerLabel, Histogram, Buckets>,
    failures: Family<ReasonLabel, Counter>,
    strays: Family<ReasonLabel, Counter>,
}

/// How a resolution ended without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum FailureReason {
    Timeout,
    ServFail,
    Rcode,
    Overload,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueryLabels {
    server: String,
    transport: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServerLabel {
    server: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: String,
}

#[derive(Clone, Copy, Debug)]
struct Buckets;

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(BUCKETS)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            queries: Family::default(),
            packets: Counter::default(),
            resolutions: Counter::default(),
            response_time: Family::new_with_constructor(Buckets),
            failures: Family::default(),
            strays: Family::default(),
        }
    }
}

impl Metrics {
    /// Names the metrics in `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("upstream_queries", "Packets sent to upstreams", self.queries.clone());
        registry.register("upstream_resolutions", "Keys for which an upstream was asked", self.resolutions.clone());
        let help = "Time from a query's first packet to its answer, per exchange";
        registry.register_with_unit("upstream_response_time", help, Unit::Seconds, self.response_time.clone());
        registry.register("upstream_failures", "Resolutions that brought no answer, by reason", self.failures.clone());
        registry.register(
            "upstream_strays",
            "Packets that were not the answer, by what was wrong",
            self.strays.clone(),
        );
    }

    /// Resolutions begun so far.
    pub fn resolutions(&self) -> u64 {
        self.resolutions.get()
    }

    /// Packets sent so far, to all upstreams.
    pub fn packets(&self) -> u64 {
        self.packets.get()
    }

    pub(super) fn resolution(&self) {
        self.resolutions.inc();
    }

    pub(super) fn failed(&self, reason: FailureReason) {
        let reason = match reason {
            FailureReason::Timeout => "timeout",
            FailureReason::ServFail => "servfail",
            FailureReason::Rcode => "rcode",
            FailureReason::Overload => "overload",
        };
        self.failures.get_or_create(&ReasonLabel { reason: reason.to_owned() }).inc();
    }

    pub(super) fn stray(&self, stray: Stray) {
        self.strays.get_or_create(&ReasonLabel { reason: stray.as_str().to_owned() }).inc();
    }

    pub(super) fn unreachable(&self) {
        self.strays.get_or_create(&ReasonLabel { reason: "unreachable".to_owned() }).inc();
    }

    pub(super) fn wrong_case(&self) {
        self.strays.get_or_create(&ReasonLabel { reason: "case".to_owned() }).inc();
    }

    pub(super) fn headless(&self) {
        self.strays.get_or_create(&ReasonLabel { reason: "headless".to_owned() }).inc();
    }

    /// The handles of one upstream.
    pub(super) fn server(&self, address: &Address) -> ServerMetrics {
        let queries = |transport: Transport| {
            let labels = QueryLabels { server: label(address.socket), transport: transport.as_str().to_owned() };
            self.queries.get_or_create_owned(&labels)
        };
        ServerMetrics {
            udp: queries(Transport::Udp),
            tcp: queries(Transport::Tcp),
            packets: self.packets.clone(),
            response_time: self.response_time.get_or_create_owned(&ServerLabel { server: label(address.socket) }),
        }
    }
}

/// Handles of one upstream's metrics.
#[derive(Clone, Debug)]
pub(super) struct ServerMetrics {
    udp: Counter,
    tcp: Counter,
    packets: Counter,
    pub(super) response_time: Histogram,
}

impl ServerMetrics {
    pub(super) fn sent(&self, transport: Transport) {
        self.packets.inc();
        match transport {
            Transport::Udp => self.udp.inc(),
            Transport::Tcp => self.tcp.inc(),
        };
    }
}

fn label(server: SocketAddr) -> String {
    server.to_string()
}
