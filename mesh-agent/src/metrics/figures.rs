//! Figures that the lease table and the store keep by themselves, read when somebody looks.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::lease::{Sizes, Stats};
use crate::store::Store;

/// Shows the table's and the store's own counts.
#[derive(Debug)]
pub(super) struct Figures {
    pub(super) leases: Arc<Mutex<(Stats, Sizes)>>,
    pub(super) store: Arc<Store>,
}

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (stats, sizes) = *self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        let Stats {
            granted,
            held,
            takeovers,
            second_leases,
            unconfirmed,
            published,
            failed_shared,
            failed_local,
            released,
            timeouts,
            orphaned,
            woken,
            failures_served,
            proceed_by_limit,
            proceed_none_left,
            freed,
            refused,
            duplicates,
            not_kept,
            purged,
            hoarders,
        } = stats;
        let leases = [
            ("granted", granted),
            ("held", held),
            ("takeover", takeovers),
            ("second_lease", second_leases),
            ("unconfirmed", unconfirmed),
            ("published", published),
            ("failed_shared", failed_shared),
            ("failed_local", failed_local),
            ("released", released),
            ("timeout", timeouts),
            ("orphaned", orphaned),
            ("woken", woken),
            ("failure_served", failures_served),
            ("proceed_by_limit", proceed_by_limit),
            ("proceed_none_left", proceed_none_left),
            ("freed", freed),
            ("refused", refused),
            ("duplicate", duplicates),
            ("not_kept", not_kept),
            ("purged", purged),
            ("hoarder_stopped", hoarders),
        ];
        counters(&mut encoder, "leases", "What happened to leases granted here", &leases)?;
        let holds = [
            ("leases", sizes.leases as u64),
            ("waiters", sizes.waiters as u64),
            ("failures", sizes.failures as u64),
            ("results", sizes.results as u64),
        ];
        gauges(&mut encoder, "granter_holds", "What the granter's table holds now", &holds)?;

        let store = self.store.stats();
        let events = [
            ("hit", store.hits),
            ("miss", store.misses),
            ("stored", store.stored),
            ("behind", store.behind),
            ("kept_existing", store.kept_existing),
            ("older", store.older),
            ("rejuvenated", store.rejuvenated),
            ("dead_on_arrival", store.dead_on_arrival),
            ("overtaken", store.overtaken),
            ("purged", store.purged),
            ("evicted", store.evicted),
            ("expired", store.expired),
        ];
        counters(&mut encoder, "store_events", "What happened to entries of the store", &events)?;
        gauges(
            &mut encoder,
            "store_size",
            "What the store keeps",
            &[("entries", store.entries), ("bytes", store.bytes)],
        )
    }
}

fn counters(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: &[(&str, u64)],
) -> Result<(), fmt::Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for &(event, value) in values {
        ConstCounter::new(value).encode(metric.encode_family(&[("event", event)])?)?;
    }
    Ok(())
}

fn gauges(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: &[(&str, u64)],
) -> Result<(), fmt::Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for &(what, value) in values {
        ConstGauge::new(value).encode(metric.encode_family(&[("what", what)])?)?;
    }
    Ok(())
}
