//! A collector of spans, as Jaeger is one: OTLP over gRPC, everything kept.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status};

use crate::net::own_loopback;

/// A span and who made it.
#[derive(Clone, Debug)]
pub struct Collected {
    /// The program: `service.name`.
    pub service: String,
    /// The replica: `service.instance.id`.
    pub instance: String,
    /// The span.
    pub span: Span,
}

/// A running collector. Dropping it stops it.
pub struct Collector {
    address: SocketAddr,
    spans: Spans,
    _stops: DropGuard,
}

#[derive(Clone, Default)]
struct Spans(Arc<Mutex<Vec<Collected>>>);

impl Collector {
    /// Starts a collector on a loopback address of its own.
    ///
    /// # Errors
    /// No socket could be bound.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind((own_loopback(), 0)).await.context("binding the collector")?;
        let address = listener.local_addr()?;
        let (spans, stop) = (Spans::default(), CancellationToken::new());
        let server = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(spans.clone()))
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.clone().cancelled_owned());
        tokio::spawn(server);
        Ok(Self { address, spans, _stops: stop.drop_guard() })
    }

    /// What `OTEL_EXPORTER_OTLP_ENDPOINT` has to say.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Everything that has arrived.
    pub fn spans(&self) -> Vec<Collected> {
        self.spans.0.lock().expect("no holder of this lock can panic").clone()
    }
}

#[tonic::async_trait]
impl TraceService for Spans {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut collected = Vec::new();
        for resource_spans in request.into_inner().resource_spans {
            let attributes = resource_spans.resource.map(|resource| resource.attributes).unwrap_or_default();
            let [service, instance] = ["service.name", "service.instance.id"].map(|key| text(&attributes, key));
            let spans = resource_spans.scope_spans.into_iter().flat_map(|scope| scope.spans);
            collected.extend(spans.map(|span| Collected {
                service: service.clone(),
                instance: instance.clone(),
                span,
            }));
        }
        self.0.lock().expect("no holder of this lock can panic").append(&mut collected);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    let value = attributes.iter().find(|attribute| attribute.key == key).and_then(|attribute| attribute.value.clone());
    match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        _ => String::new(),
    }
}
