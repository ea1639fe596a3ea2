//! Who may call what on the peer surface: one table, enforced before any handler runs.
//!
//! A replica may do everything that keeps the shared cache going; an operator may look, follow, purge and inject. What a replica may write *where*
//! is decided later, by the ring and the leases ([`crate::permissions`]).

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use heimdall_proto::v1::replica_coordination_server::SERVICE_NAME;
use tonic::Status;
use tower::{Layer, Service};

use crate::identity::{IdentityMetrics, PeerInfo, Role};

/// Who may call a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Replicas alone: the call changes something, or takes part in the protocol.
    Replicas,
    /// Replicas and operators: the call only looks.
    ReplicasAndOperators,
    /// Operators alone: the call overrides what the replicas know, or shows all that clients ask for.
    Operators,
}

/// Services that describe the server itself. All their methods only look.
const DESCRIBING: [&str; 3] =
    ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"];

/// The rule for a method, by its HTTP/2 path (`/package.Service/Method`). No rule means that nobody may call it.
pub fn access(path: &str) -> Option<Access> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    if DESCRIBING.contains(&service) {
        return Some(Access::ReplicasAndOperators);
    }
    if service != SERVICE_NAME {
        return None;
    }
    match method {
        "GetCacheEntry" | "LocateKey" | "ListMembers" | "HandOff" => Some(Access::ReplicasAndOperators),
        "PurgeCache" | "InjectEntry" | "StreamCacheUpdates" => Some(Access::Operators),
        "Session" | "SetCacheEntry" | "AcquireQueryLock" | "WaitForResult" | "ReleaseQueryLock" | "TransferEntries" => {
            Some(Access::Replicas)
        }
        _ => None,
    }
}

impl Access {
    /// Whether a holder of `role` may call.
    pub const fn admits(self, role: &Role) -> bool {
        match (self, role) {
            (Self::Replicas | Self::ReplicasAndOperators, Role::Replica(_))
            | (Self::Operators | Self::ReplicasAndOperators, Role::Operator(_)) => true,
            (Self::Operators, Role::Replica(_)) | (Self::Replicas, Role::Operator(_)) | (_, Role::Other(_)) => false,
        }
    }

    const fn in_words(self) -> &'static str {
        match self {
            Self::Replicas => "it is for replicas only",
            Self::ReplicasAndOperators => "it is for replicas and operators only",
            Self::Operators => "it is for operators only",
        }
    }
}

/// The answer to a call that must not reach its handler; `Ok` lets it through.
pub fn check(path: &str, peer: Option<&PeerInfo>) -> Result<(), Status> {
    let Some(peer) = peer else {
        return Err(Status::unauthenticated(format!("{path} needs a connection with a certificate")));
    };
    match access(path) {
        // A newer peer may call what this release does not know yet, and must hear just that.
        None => Err(Status::unimplemented(format!("{path} is not offered here"))),
        Some(access) if access.admits(&peer.identity.role) => Ok(()),
        Some(access) => {
            Err(Status::permission_denied(format!("{} may not call {path}: {}", peer.identity, access.in_words())))
        }
    }
}

/// Enforces the table on every call of a server whose connections are [`crate::identity::PeerStream`]s.
#[derive(Clone, Debug)]
pub struct Authorize {
    metrics: IdentityMetrics,
}

impl Authorize {
    /// A layer that counts what it refuses in `metrics`.
    pub const fn new(metrics: IdentityMetrics) -> Self {
        Self { metrics }
    }
}

impl<S> Layer<S> for Authorize {
    type Service = Authorized<S>;

    fn layer(&self, inner: S) -> Authorized<S> {
        Authorized { inner, metrics: self.metrics.clone() }
    }
}

/// A service behind [`Authorize`].
#[derive(Clone, Debug)]
pub struct Authorized<S> {
    inner: S,
    metrics: IdentityMetrics,
}

impl<S, Body, Answer> Service<http::Request<Body>> for Authorized<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Answer>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    Answer: Default + Send + 'static,
{
    type Response = http::Response<Answer>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match check(request.uri().path(), request.extensions().get()) {
            Ok(()) => Box::pin(self.inner.call(request)),
            Err(status) => {
                self.metrics.count_call_refused(status.code());
                Box::pin(std::future::ready(Ok(status.into_http())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use heimdall_proto::v1::FILE_DESCRIPTOR_SET;
    use prost::Message;
    use prost_types::FileDescriptorSet;
    use tonic::Code;

    use super::*;
    use crate::identity::Identity;

    fn peer(uri: &str) -> PeerInfo {
        let address = ([127, 0, 0, 1], 1).into();
        PeerInfo { identity: Identity::parse(uri).unwrap(), address }
    }

    /// Every method of the peer service, from the same descriptors that reflection serves.
    fn methods() -> Vec<String> {
        let files = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
        let mut methods = Vec::new();
        for file in &files.file {
            for service in &file.service {
                if format!("{}.{}", file.package(), service.name()) == SERVICE_NAME {
                    methods.extend(service.method.iter().map(|method| method.name().to_owned()));
                }
            }
        }
        methods
    }

    #[test]
    fn every_method_of_the_service_has_a_rule() {
        let methods = methods();
        assert!(methods.len() >= 8, "the descriptors must hold the service: {methods:?}");
        for method in methods {
            assert!(access(&format!("/{SERVICE_NAME}/{method}")).is_some(), "{method} has no rule: who may call it?");
        }
    }

    #[test]
    fn an_operator_may_look_and_override_and_take_no_part() {
        let alice = peer("spiffe://heimdall.local/operator/alice");
        let allowed: Vec<_> = methods()
            .into_iter()
            .filter(|method| check(&format!("/{SERVICE_NAME}/{method}"), Some(&alice)).is_ok())
            .collect();
        assert_eq!(
            allowed,
            ["GetCacheEntry", "LocateKey", "ListMembers", "HandOff", "PurgeCache", "InjectEntry", "StreamCacheUpdates"]
        );
    }

    #[test]
    fn a_replica_may_call_every_method_but_those_of_operators_and_others_none() {
        let replica = peer("spiffe://heimdall.local/replica/a");
        let other = peer("spiffe://heimdall.local/ns/x/sa/y");
        for method in methods() {
            let path = format!("/{SERVICE_NAME}/{method}");
            let for_operators = ["PurgeCache", "InjectEntry", "StreamCacheUpdates"].contains(&&*method);
            assert_eq!(check(&path, Some(&replica)).is_ok(), !for_operators, "{method}");
            assert_eq!(check(&path, Some(&other)).unwrap_err().code(), Code::PermissionDenied, "{method}");
            assert_eq!(check(&path, None).unwrap_err().code(), Code::Unauthenticated, "{method}");
        }
    }

    #[test]
    fn a_refusal_names_the_caller_and_the_rule() {
        let alice = peer("spiffe://heimdall.local/operator/alice");
        let status = check(&format!("/{SERVICE_NAME}/SetCacheEntry"), Some(&alice)).unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);
        assert_eq!(
            status.message(),
            "spiffe://heimdall.local/operator/alice may not call \
             /heimdall.coordination.v1.ReplicaCoordination/SetCacheEntry: it is for replicas only"
        );
    }

    #[test]
    fn what_has_no_rule_reaches_no_handler() {
        let replica = peer("spiffe://heimdall.local/replica/a");
        for path in [
            "",
            "/",
            "/heimdall.coordination.v1.ReplicaCoordination",
            "/heimdall.coordination.v1.ReplicaCoordination/",
            "/heimdall.coordination.v1.ReplicaCoordination/FromTheFuture",
            "/heimdall.coordination.v1.ReplicaCoordination/Session/",
            "//Session",
            "/heimdall.coordination.v1.MeshAgent/GetCacheEntry",
            "/grpc.reflection.v2.ServerReflection/ServerReflectionInfo",
        ] {
            assert_eq!(check(path, Some(&replica)).unwrap_err().code(), Code::Unimplemented, "{path:?}");
        }
        for service in DESCRIBING {
            assert!(check(&format!("/{service}/Anything"), Some(&replica)).is_ok(), "{service}");
        }
    }
}
