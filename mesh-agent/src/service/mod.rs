//! The gRPC surfaces: decode, check who calls, call the same code as the session streams do, encode.

pub mod authorize;
mod following;
pub mod local;
mod operations;
mod overriding;
pub mod peer;
pub mod standard;

use heimdall_shared::trace::TraceContext;
use tonic::metadata::MetadataMap;

pub use self::following::UpdateStream;
pub use self::operations::{Caller, Operations};

/// The caller's span, if it sent one (W3C Trace Context).
fn trace_of(metadata: &MetadataMap) -> Option<TraceContext> {
    TraceContext::parse_traceparent(metadata.get("traceparent")?.to_str().ok()?)
}
