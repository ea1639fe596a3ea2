//! The standard services of both surfaces: health, and reflection in both versions, so that grpcurl and its like need no
//! `.proto` files.

use heimdall_proto::v1::FILE_DESCRIPTOR_SET;
use tonic::server::NamedService;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_reflection::server::Builder;
use tonic_reflection::server::v1::{ServerReflection, ServerReflectionServer};
use tonic_reflection::server::v1alpha::{
    ServerReflection as ServerReflectionAlpha, ServerReflectionServer as ServerReflectionServerAlpha,
};

/// Health of `S`: serving from the start, since nothing is accepted before.
pub async fn health<S: NamedService>() -> HealthServer<impl Health> {
    let (reporter, service) = tonic_health::server::health_reporter();
    reporter.set_serving::<S>().await;
    service
}

/// Reflection of a surface that offers `S`.
pub fn reflection<S: NamedService>() -> ServerReflectionServer<impl ServerReflection> {
    let builder = builder::<S>().with_service_name("grpc.reflection.v1.ServerReflection");
    builder.build_v1().expect("the compiled descriptors must be readable")
}

/// Reflection as older clients speak it.
pub fn reflection_alpha<S: NamedService>() -> ServerReflectionServerAlpha<impl ServerReflectionAlpha> {
    let builder = builder::<S>().with_service_name("grpc.reflection.v1alpha.ServerReflection");
    builder.build_v1alpha().expect("the compiled descriptors must be readable")
}

/// Lists what the surface offers; the descriptors also hold the service of the other one. Each reflection adds itself alone:
/// it knows no descriptor of the other (both files have one name), and a tool gives up on a listed service without one.
fn builder<S: NamedService>() -> Builder<'static> {
    Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name(S::NAME)
        .with_service_name(tonic_health::pb::health_server::SERVICE_NAME)
}
