//! One query can be followed over all hops, and those who wait point at the one that fetches.

#![allow(clippy::unwrap_used)]

use heimdall_integration::cluster::{Builder, Cluster};
use heimdall_integration::collector::{Collected, Collector};
use heimdall_integration::crowd::Crowd;
use heimdall_integration::upstream::{Gate, Rule, Upstream};

/// A miss of replica 0 on a name that replica 1 owns, with one client waiting at each of the other two.
async fn miss_with_waiters(builder: Builder) {
    let upstream = Upstream::start().await.unwrap();
    let cluster = builder.start(&upstream).await.unwrap();
    let name = cluster.name_owned_by(1, "traced");
    let gate = Gate::default();
    upstream.rule(&name, "A", Rule::addresses().held_by(&gate));
    let holder = Crowd::ask(&cluster, &[0], 1, &name);
    upstream.journal().wait_for(&name, "A", 1).await;
    let waiters = Crowd::ask(&cluster, &[1, 2], 1, &name);
    for waiter in [1, 2] {
        // Its agent was told who holds the lease, so its span knows what it waits for.
        cluster
            .until("the waiters to wait", async || cluster.figure(waiter, "l1_misses").await.is_ok_and(|n| n == 1))
            .await
            .unwrap();
    }
    cluster.until("both to wait at the granter", async || waiting(&cluster).await >= 2.0).await.unwrap();
    gate.open();
    holder.all_answered().await;
    waiters.all_answered().await;
    assert_eq!(upstream.journal().count(&name, "A").resolutions, 1);
    // Processes that end send what they have: nothing needs to be waited for after this.
    cluster.shut_down().await.unwrap();
}

async fn waiting(cluster: &Cluster) -> f64 {
    let metrics = cluster.metrics(1, heimdall_integration::cluster::Part::Agent).await.unwrap_or_default();
    metrics.sum("heimdall_agent_granter_holds", &["\"waiters\""])
}

fn the<'a>(spans: &'a [Collected], name: &str, instance: &str) -> &'a Collected {
    let found: Vec<&Collected> =
        spans.iter().filter(|collected| collected.span.name == name && collected.instance == instance).collect();
    assert_eq!(found.len(), 1, "one {name} of {instance} among {spans:#?}");
    found[0]
}

fn hangs_under(child: &Collected, parent: &Collected) {
    assert_eq!(
        child.span.trace_id, parent.span.trace_id,
        "{} is not in the trace of {}",
        child.span.name, parent.span.name
    );
    assert_eq!(child.span.parent_span_id, parent.span.span_id, "{} is not under {}", child.span.name, parent.span.name);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_miss_is_one_trace_over_all_hops_and_waiters_link_to_its_holder() {
    let collector = Collector::start().await.unwrap();
    let builder = Cluster::builder()
        .replicas(3)
        .long_budgets()
        .environment("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint())
        .environment("OTEL_TRACES_SAMPLER", "parentbased_always_on");
    miss_with_waiters(builder).await;
    let spans = collector.spans();

    let query = the(&spans, "dns.query", "replica-0");
    assert_eq!(query.service, "heimdall-dns");
    assert!(query.span.parent_span_id.is_empty(), "a client's query begins a trace");
    let holder_trace: Vec<Collected> =
        spans.iter().filter(|collected| collected.span.trace_id == query.span.trace_id).cloned().collect();
    let lookup = the(&holder_trace, "agent.lookup", "replica-0");
    assert_eq!(lookup.service, "heimdall-agent");
    hangs_under(lookup, query);
    hangs_under(the(&holder_trace, "owner.lookup", "replica-1"), lookup);
    let exchange = the(&holder_trace, "upstream.exchange", "replica-0");
    assert_eq!(exchange.service, "heimdall-dns");
    hangs_under(exchange, query);

    for waiter in ["replica-1", "replica-2"] {
        let waiting = the(&spans, "dns.query", waiter);
        assert_ne!(waiting.span.trace_id, query.span.trace_id, "{waiter} has a client and a trace of its own");
        let links: Vec<(&[u8], &[u8])> =
            waiting.span.links.iter().map(|link| (&*link.trace_id, &*link.span_id)).collect();
        let to_holder = holder_trace
            .iter()
            .any(|other| other.instance == "replica-0" && links.contains(&(&other.span.trace_id, &other.span.span_id)));
        assert!(to_holder, "{waiter} links to {links:02x?}, the holder's spans are {holder_trace:#?}");
        let own: Vec<Collected> =
            spans.iter().filter(|collected| collected.span.trace_id == waiting.span.trace_id).cloned().collect();
        hangs_under(the(&own, "agent.lookup", waiter), waiting);
        assert!(own.iter().all(|collected| collected.span.name != "upstream.exchange"), "{waiter} asked no upstream");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_sampled_makes_no_span() {
    let collector = Collector::start().await.unwrap();
    let builder = Cluster::builder()
        .replicas(3)
        .long_budgets()
        .environment("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint())
        .environment("OTEL_TRACES_SAMPLER", "parentbased_always_off");
    miss_with_waiters(builder).await;
    assert!(collector.spans().is_empty(), "{:#?}", collector.spans());
}
