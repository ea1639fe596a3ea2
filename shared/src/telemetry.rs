//! Logs, and spans of sampled queries.
//!
//! Spans are made by hand on OpenTelemetry's SDK, not through `tracing`: an unsampled query must cost one branch, and a
//! parent or link comes from a message as often as from the code around it. Without an OTLP endpoint there is no
//! tracing at all. Configured by OpenTelemetry's own variables.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, TraceContextExt as _, TraceFlags, TraceId, TraceState,
    Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider};
use tracing_subscriber::EnvFilter;

use crate::trace::TraceContext;

/// Spans that wait for export, about 500 bytes each. Over it they are dropped: a slow collector costs nothing else.
const EXPORT_QUEUE: usize = 4_096;
/// A batch leaves at least this often.
const EXPORT_EVERY: Duration = Duration::from_secs(1);
/// The collector may take this long for one batch.
const EXPORT_WITHIN: Duration = Duration::from_secs(3);
/// At the end of the process, what waits for export gets this much time.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);

/// Checks what [`init_logs`] will be given, for a configuration that is to report all of its mistakes at once.
///
/// # Errors
/// Why it is no filter.
pub fn parse_filter(filter: &str) -> Result<String, String> {
    EnvFilter::try_new(filter).map(|_| filter.to_owned()).map_err(|error| format!("is no log filter: {error}"))
}

/// Starts logging to standard error. `filter` is a level or a list like `info,heimdall_agent=debug`.
///
/// # Errors
/// When `filter` cannot be parsed.
pub fn init_logs(filter: &str, json: bool) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter).map_err(|error| format!("the log filter {filter:?} is wrong: {error}"))?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    // A second start of logging in one process (tests) keeps the first.
    let _ = if json { subscriber.json().try_init() } else { subscriber.try_init() };
    Ok(())
}

/// How many of the queries that nobody else decided about are traced.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sampling {
    Always,
    Never,
    Ratio(f64),
}

/// Makes spans, or nothing at all.
#[derive(Clone, Debug, Default)]
pub struct Tracer(Option<Arc<Active>>);

#[derive(Debug)]
struct Active {
    tracer: SdkTracer,
    sampling: Sampling,
    /// Whether a sampled trace is continued: always, unless this process is told to make no span at all.
    follows_parent: bool,
}

/// Keeps the exporter alive; what is still queued is sent when it is dropped.
#[derive(Debug, Default)]
pub struct Exporter {
    provider: Option<SdkTracerProvider>,
    /// The exporter's own runtime: the process's may be busy or gone.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Tracer {
    /// No tracing.
    pub const fn off() -> Self {
        Self(None)
    }

    /// Reads OpenTelemetry's variables and connects to the collector that they name, lazily. Without one, tracing is off.
    ///
    /// # Errors
    /// Names the variable that cannot be used.
    pub fn from_environment(service: &'static str, instance: &str) -> Result<(Self, Exporter), String> {
        #[expect(
            clippy::disallowed_methods,
            reason = "the names and meanings are OpenTelemetry's, for every program alike"
        )]
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let endpoint =
            variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").or_else(|| variable("OTEL_EXPORTER_OTLP_ENDPOINT"));
        let switched_off = variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let Some(endpoint) = endpoint.filter(|_| !switched_off) else {
            return Ok((Self::off(), Exporter::default()));
        };
        let (sampling, follows_parent) = sampling(
            variable("OTEL_TRACES_SAMPLER").as_deref().unwrap_or("parentbased_always_on"),
            variable("OTEL_TRACES_SAMPLER_ARG").as_deref(),
        )?;
        let failed = |what: &dyn std::fmt::Display| format!("cannot send spans to {endpoint}: {what}");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("otlp")
            .enable_all()
            .build()
            .map_err(|error| failed(&error))?;
        let exporter = {
            let _inside = runtime.enter();
            SpanExporter::builder().with_tonic().with_endpoint(&endpoint).with_timeout(EXPORT_WITHIN).build()
        };
        let exporter = exporter.map_err(|error| failed(&error))?;
        let batches =
            BatchConfigBuilder::default().with_max_queue_size(EXPORT_QUEUE).with_scheduled_delay(EXPORT_EVERY).build();
        let resource = Resource::builder()
            .with_service_name(variable("OTEL_SERVICE_NAME").unwrap_or_else(|| service.to_owned()))
            .with_attribute(KeyValue::new("service.instance.id", instance.to_owned()))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batches).build())
            // The coin was tossed before a span is made.
            .with_sampler(Sampler::AlwaysOn)
            .with_resource(resource)
            .build();
        let tracer = provider.tracer("heimdall");
        let active = Active { tracer, sampling, follows_parent };
        Ok((Self(Some(Arc::new(active))), Exporter { provider: Some(provider), runtime: Some(runtime) }))
    }

    /// A span that begins a trace, if this query is to be traced.
    pub fn root(&self, name: &'static str) -> Option<Span> {
        let active = self.0.as_ref()?;
        let sampled = match active.sampling {
            Sampling::Always => true,
            Sampling::Never => false,
            Sampling::Ratio(ratio) => coin() < ratio,
        };
        sampled.then(|| active.span(name, SpanKind::Server, &Context::new()))
    }

    /// A span under `parent`, if that trace is recorded.
    pub fn child(&self, parent: &TraceContext, name: &'static str) -> Option<Span> {
        let active = self.0.as_ref()?;
        if !parent.sampled || !active.follows_parent {
            return None;
        }
        let context = Context::new().with_remote_span_context(span_context(parent));
        Some(active.span(name, SpanKind::Internal, &context))
    }
}

impl Active {
    fn span(&self, name: &'static str, kind: SpanKind, parent: &Context) -> Span {
        let builder = SpanBuilder::from_name(name).with_kind(kind);
        Span(Box::new(self.tracer.build_with_context(builder, parent)))
    }
}

/// A span that is being recorded; it ends when it is dropped. Boxed: every task of a query has room for one, and hardly any
/// has one.
#[derive(Debug)]
pub struct Span(Box<opentelemetry_sdk::trace::Span>);

impl Span {
    /// Where it stands, for children here and elsewhere.
    pub fn context(&self) -> TraceContext {
        let context = self.0.span_context();
        TraceContext {
            trace_id: context.trace_id().to_bytes(),
            span_id: context.span_id().to_bytes(),
            sampled: context.is_sampled(),
        }
    }

    /// Links to a span of another trace: what this one waited for.
    pub fn link(&mut self, other: &TraceContext) {
        self.0.add_link(span_context(other), Vec::new());
    }

    /// Notes a fact about it.
    pub fn attribute(&mut self, key: &'static str, value: impl Into<Value>) {
        self.0.set_attribute(KeyValue::new(key, value));
    }

    /// Notes that something happened now.
    pub fn event(&mut self, name: &'static str) {
        self.0.add_event(name, Vec::new());
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        if let Some(provider) = self.provider.take() {
            // Nobody is left to tell about a collector that does not answer.
            let _ = provider.shutdown_with_timeout(FLUSH_WITHIN);
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn span_context(trace: &TraceContext) -> SpanContext {
    let flags = if trace.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
    SpanContext::new(
        TraceId::from_bytes(trace.trace_id),
        SpanId::from_bytes(trace.span_id),
        flags,
        true,
        TraceState::default(),
    )
}

/// What OTEL_TRACES_SAMPLER and its argument say.
fn sampling(sampler: &str, argument: Option<&str>) -> Result<(Sampling, bool), String> {
    let (name, follows_parent) = match sampler.strip_prefix("parentbased_") {
        Some(name) => (name, true),
        None => (sampler, false),
    };
    let sampling = match name {
        "always_on" => Sampling::Always,
        "always_off" => Sampling::Never,
        "traceidratio" => {
            let ratio: f64 = argument.unwrap_or("1.0").parse().unwrap_or(f64::NAN);
            if !(0.0..=1.0).contains(&ratio) {
                return Err(format!("OTEL_TRACES_SAMPLER_ARG: {argument:?} is not a number from 0 to 1"));
            }
            Sampling::Ratio(ratio)
        }
        _ => return Err(format!("OTEL_TRACES_SAMPLER: {sampler:?} is not a sampler that is known here")),
    };
    // The other samplers decide by the trace's id, so that all of a trace decide alike: what is sampled is so as a whole.
    Ok((sampling, follows_parent || sampling != Sampling::Never))
}

/// A number from 0 to 1, evenly spread: only which queries are traced hangs on it.
fn coin() -> f64 {
    use std::hash::{BuildHasher as _, RandomState};
    thread_local! {
        static STATE: std::cell::Cell<u64> = std::cell::Cell::new(RandomState::new().hash_one(SystemTime::UNIX_EPOCH) | 1);
    }
    // xorshift64* (Vigna 2016).
    let mut x = STATE.get();
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    STATE.set(x);
    (x.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use opentelemetry_sdk::trace::InMemorySpanExporter;

    use super::*;

    fn tracer(sampling: Sampling) -> (Tracer, InMemorySpanExporter) {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
        let active = Active { tracer: provider.tracer("test"), sampling, follows_parent: true };
        (Tracer(Some(Arc::new(active))), exporter)
    }

    #[test]
    fn a_child_hangs_under_its_parent_and_a_link_points_across_traces() {
        let (tracer, exporter) = tracer(Sampling::Always);
        let parent = tracer.root("dns.query").unwrap();
        let other = tracer.root("dns.query").unwrap().context();
        let mut child = tracer.child(&parent.context(), "agent.lookup").unwrap();
        child.link(&other);
        child.attribute("heimdall.member", "a");
        let (parent_context, child_context) = (parent.context(), child.context());
        drop(child);
        drop(parent);
        let spans = exporter.get_finished_spans().unwrap();
        let child = spans.iter().find(|span| span.name == "agent.lookup").unwrap();
        assert_eq!(child.parent_span_id.to_bytes(), parent_context.span_id);
        assert_eq!(child_context.trace_id, parent_context.trace_id);
        assert_ne!(other.trace_id, parent_context.trace_id);
        assert_eq!(child.links.links[0].span_context.span_id().to_bytes(), other.span_id);
    }

    #[test]
    fn what_is_not_sampled_makes_no_span() {
        let (tracer, exporter) = tracer(Sampling::Never);
        assert!(tracer.root("dns.query").is_none());
        let unsampled = TraceContext { trace_id: [1; 16], span_id: [2; 8], sampled: false };
        assert!(tracer.child(&unsampled, "agent.lookup").is_none());
        assert!(Tracer::off().root("dns.query").is_none());
        assert!(exporter.get_finished_spans().unwrap().is_empty());
    }

    #[test]
    fn a_ratio_samples_about_that_share() {
        let (tracer, _exporter) = tracer(Sampling::Ratio(0.25));
        let sampled = (0..10_000).filter(|_| tracer.root("dns.query").is_some()).count();
        assert!((2_000..3_000).contains(&sampled), "{sampled} of 10,000");
    }

    #[test]
    fn the_standard_samplers_are_understood() {
        assert_eq!(sampling("parentbased_traceidratio", Some("0.1")), Ok((Sampling::Ratio(0.1), true)));
        assert_eq!(sampling("traceidratio", Some("0.1")), Ok((Sampling::Ratio(0.1), true)));
        assert_eq!(sampling("always_off", None), Ok((Sampling::Never, false)));
        assert!(sampling("traceidratio", Some("2")).unwrap_err().contains("OTEL_TRACES_SAMPLER_ARG"));
        assert!(sampling("jaeger_remote", None).unwrap_err().contains("jaeger_remote"));
    }
}
